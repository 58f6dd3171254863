"""Request and answer shapes of the control plane operations, member for member as in the service model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from featurestore.errors import Fault, ValidationFailed
from featurestore.model import limits
from featurestore.model.feature_group import (
    CollectionType,
    DataCatalog,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    GroupStatus,
    OfflineConfig,
    OfflineStatus,
    OnlineConfig,
    StorageType,
    TableFormat,
    Throughput,
    ThroughputMode,
    TtlDuration,
    TtlUnit,
)
from featurestore.registry.protocol import FeatureMetadata, GroupSort

TIME_S_MAX: Final = 1e12
"""Seconds; in microseconds still a 64-bit integer."""


class _Shape(msgspec.Struct, frozen=True):
    """A structure of the service model. Members that are not known are ignored, and null means absent, as in the service."""


_CatalogName = Annotated[str, Meta(min_length=1, max_length=limits.CATALOG_NAME_CHARS_MAX)]


class Tag(_Shape, frozen=True):
    Key: str
    Value: str


class Ttl(_Shape, frozen=True):
    """Neither member is required: an empty TtlDuration in an update removes the default."""

    Unit: TtlUnit | None = None
    Value: int | None = None

    def duration(self) -> TtlDuration | None:
        if self.Unit is None and self.Value is None:
            return None
        if self.Unit is None or self.Value is None:
            raise ValidationFailed.one("OnlineStoreConfig.TtlDuration", "Unit and Value, or neither of them")
        return TtlDuration(self.Unit, self.Value)


class VectorConfig(_Shape, frozen=True):
    Dimension: int


class CollectionConfig(_Shape, frozen=True):
    VectorConfig: VectorConfig | None = None


class Definition(_Shape, frozen=True):
    FeatureName: str
    FeatureType: FeatureType
    CollectionType: CollectionType | None = None
    CollectionConfig: CollectionConfig | None = None

    def definition(self) -> FeatureDefinition:
        vector = None if self.CollectionConfig is None else self.CollectionConfig.VectorConfig
        return FeatureDefinition(
            self.FeatureName, self.FeatureType, self.CollectionType, None if vector is None else vector.Dimension
        )


class SecurityConfig(_Shape, frozen=True):
    KmsKeyId: str | None = None


class OnlineStoreConfig(_Shape, frozen=True):
    EnableOnlineStore: bool | None = None
    SecurityConfig: SecurityConfig | None = None
    TtlDuration: Ttl | None = None
    StorageType: StorageType | None = None

    def config(self) -> OnlineConfig | None:
        if not self.EnableOnlineStore:
            return None
        ttl = None if self.TtlDuration is None else self.TtlDuration.duration()
        key = None if self.SecurityConfig is None else self.SecurityConfig.KmsKeyId
        _check_key("OnlineStoreConfig.SecurityConfig.KmsKeyId", key)
        return OnlineConfig(ttl, self.StorageType, key)


class S3StorageConfig(_Shape, frozen=True):
    S3Uri: str
    KmsKeyId: str | None = None


class DataCatalogConfig(_Shape, frozen=True):
    TableName: _CatalogName
    Catalog: _CatalogName
    Database: _CatalogName


class OfflineStoreConfig(_Shape, frozen=True):
    S3StorageConfig: S3StorageConfig
    DisableGlueTableCreation: bool | None = None
    DataCatalogConfig: DataCatalogConfig | None = None
    TableFormat: TableFormat | None = None

    def config(self) -> OfflineConfig:
        catalog = self.DataCatalogConfig
        _check_key("OfflineStoreConfig.S3StorageConfig.KmsKeyId", self.S3StorageConfig.KmsKeyId)
        return OfflineConfig(
            self.S3StorageConfig.S3Uri,
            kms_key_id=self.S3StorageConfig.KmsKeyId,
            table_format=self.TableFormat,
            disable_glue_table_creation=bool(self.DisableGlueTableCreation),
            data_catalog=None if catalog is None else DataCatalog(catalog.TableName, catalog.Catalog, catalog.Database),
        )


class ThroughputConfig(_Shape, frozen=True):
    ThroughputMode: ThroughputMode | None = None
    ProvisionedReadCapacityUnits: int | None = None
    ProvisionedWriteCapacityUnits: int | None = None

    def throughput(self, before: Throughput | None = None) -> Throughput:
        """The whole configuration; in an update, members that are not given stay."""
        mode = self.ThroughputMode or (before.mode if before is not None else None)
        if mode is None:
            raise ValidationFailed.one("ThroughputConfig.ThroughputMode", "this required member")
        kept = before if before is not None and mode is before.mode else Throughput(mode)
        read, write = self.ProvisionedReadCapacityUnits, self.ProvisionedWriteCapacityUnits
        return Throughput(
            mode,
            kept.read_capacity_units if read is None else read,
            kept.write_capacity_units if write is None else write,
        )


class CreateFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: str
    RecordIdentifierFeatureName: str
    EventTimeFeatureName: str
    FeatureDefinitions: list[Definition]
    OnlineStoreConfig: OnlineStoreConfig | None = None
    OfflineStoreConfig: OfflineStoreConfig | None = None
    ThroughputConfig: ThroughputConfig | None = None
    RoleArn: str | None = None
    Description: str | None = None
    Tags: list[Tag] | None = None

    def feature_group(self) -> FeatureGroup:
        """The group that is asked for, not yet checked as a whole."""
        return FeatureGroup(
            name=self.FeatureGroupName,
            record_identifier=self.RecordIdentifierFeatureName,
            event_time=self.EventTimeFeatureName,
            features=tuple(item.definition() for item in self.FeatureDefinitions),
            online=None if self.OnlineStoreConfig is None else self.OnlineStoreConfig.config(),
            offline=None if self.OfflineStoreConfig is None else self.OfflineStoreConfig.config(),
            throughput=None if self.ThroughputConfig is None else self.ThroughputConfig.throughput(),
            role_arn=self.RoleArn,
            description=self.Description,
            tags={tag.Key: tag.Value for tag in self.Tags or ()},
        )


class DescribeFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: str
    NextToken: str | None = None


class ListFeatureGroups(_Shape, frozen=True):
    NameContains: Annotated[str, Meta(min_length=1, max_length=limits.NAME_CONTAINS_CHARS_MAX)] | None = None
    FeatureGroupStatusEquals: GroupStatus | None = None
    OfflineStoreStatusEquals: OfflineStatus | None = None
    CreationTimeAfter: float | None = None
    CreationTimeBefore: float | None = None
    SortOrder: Literal["Ascending", "Descending"] | None = None
    SortBy: GroupSort | None = None
    MaxResults: Annotated[int, Meta(ge=1, le=limits.LIST_PAGE_MAX)] | None = None
    NextToken: Annotated[str, Meta(max_length=limits.NEXT_TOKEN_CHARS_MAX)] | None = None


class OnlineStoreConfigUpdate(_Shape, frozen=True):
    TtlDuration: Ttl | UnsetType | None = UNSET
    StorageType: StorageType | None = None


class UpdateFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: str
    FeatureAdditions: Annotated[list[Definition], Meta(min_length=1, max_length=limits.FEATURE_ADDITIONS_MAX)] | None = None
    OnlineStoreConfig: OnlineStoreConfigUpdate | None = None
    ThroughputConfig: ThroughputConfig | None = None


class DeleteFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: str


class DescribeFeatureMetadata(_Shape, frozen=True):
    FeatureGroupName: str
    FeatureName: str


_ParameterText = Annotated[str, Meta(min_length=1, max_length=limits.FEATURE_PARAMETER_CHARS_MAX)]


class Parameter(_Shape, frozen=True):
    Key: _ParameterText
    Value: _ParameterText


class UpdateFeatureMetadata(_Shape, frozen=True):
    FeatureGroupName: str
    FeatureName: str
    Description: Annotated[str, Meta(max_length=limits.FEATURE_DESCRIPTION_CHARS_MAX)] | None = None
    ParameterAdditions: Annotated[list[Parameter], Meta(max_length=limits.FEATURE_PARAMETERS_MAX)] | None = None
    ParameterRemovals: Annotated[list[_ParameterText], Meta(max_length=limits.FEATURE_PARAMETERS_MAX)] | None = None

    def faults(self) -> Iterator[Fault]:
        texts = [
            (f"ParameterAdditions[{position}].{member}", text)
            for position, item in enumerate(self.ParameterAdditions or ())
            for member, text in (("Key", item.Key), ("Value", item.Value))
        ]
        texts += [(f"ParameterRemovals[{position}]", key) for position, key in enumerate(self.ParameterRemovals or ())]
        for path, text in texts:
            if limits.FEATURE_PARAMETER.fullmatch(text) is None:
                yield Fault(path, "letters, digits, spaces or _.:/=+-", text)


class AddTags(_Shape, frozen=True):
    ResourceArn: str
    Tags: Annotated[list[Tag], Meta(max_length=limits.TAGS_MAX)]


class ListTags(_Shape, frozen=True):
    ResourceArn: str
    NextToken: str | None = None
    MaxResults: Annotated[int, Meta(ge=limits.TAGS_MAX)] | None = None


class DeleteTags(_Shape, frozen=True):
    ResourceArn: str
    TagKeys: Annotated[list[str], Meta(min_length=1, max_length=limits.TAGS_MAX)]


def _check_key(path: str, key: str | None) -> None:
    if key is not None and (len(key) > limits.KMS_KEY_CHARS_MAX or limits.KMS_KEY.fullmatch(key) is None):
        raise ValidationFailed.one(path, f"at most {limits.KMS_KEY_CHARS_MAX} letters, digits or :/_-", key)


def seconds(time_us: int) -> float:
    """A time as the protocol writes it: seconds since 1970, whole milliseconds, never rounded up into the next second."""
    return (time_us // 1000) / 1000


def micros(time_s: float | None) -> int | None:
    """A time of the protocol in microseconds; one beyond TIME_S_MAX counts as that, since no group is that old or young."""
    return None if time_s is None else round(max(-TIME_S_MAX, min(time_s, TIME_S_MAX)) * 1_000_000)


def tags(group: FeatureGroup) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in group.tags.items()]


def summary(group: FeatureGroup) -> dict[str, Any]:
    """A FeatureGroupSummary."""
    answer: dict[str, Any] = {
        "FeatureGroupName": group.name,
        "FeatureGroupArn": group.arn,
        "CreationTime": seconds(group.created_at_us),
        "FeatureGroupStatus": group.status,
    }
    if group.offline is not None:
        answer["OfflineStoreStatus"] = {"Status": OfflineStatus.ACTIVE}
    return answer


def description(group: FeatureGroup) -> dict[str, Any]:
    """A DescribeFeatureGroup answer; members that do not apply are left out, never null."""
    answer: dict[str, Any] = {
        "FeatureGroupArn": group.arn,
        "FeatureGroupName": group.name,
        "RecordIdentifierFeatureName": group.record_identifier,
        "EventTimeFeatureName": group.event_time,
        "FeatureDefinitions": [_definition(feature) for feature in group.features],
        "CreationTime": seconds(group.created_at_us),
        "LastModifiedTime": seconds(group.modified_at_us),
        "FeatureGroupStatus": group.status,
    }
    if group.online is not None:
        answer["OnlineStoreConfig"] = _online(group.online)
        answer["OnlineStoreTotalSizeBytes"] = 0
    if group.offline is not None:
        answer["OfflineStoreConfig"] = _offline(group.offline)
        answer["OfflineStoreStatus"] = {"Status": OfflineStatus.ACTIVE}
    if group.throughput is not None:
        answer["ThroughputConfig"] = _present(
            ThroughputMode=group.throughput.mode,
            ProvisionedReadCapacityUnits=group.throughput.read_capacity_units,
            ProvisionedWriteCapacityUnits=group.throughput.write_capacity_units,
        )
    if group.update_status is not None:
        answer["LastUpdateStatus"] = {"Status": group.update_status}
    return answer | _present(RoleArn=group.role_arn, Description=group.description, FailureReason=group.failure_reason)


def feature_metadata(metadata: FeatureMetadata) -> dict[str, Any]:
    """A DescribeFeatureMetadata answer."""
    answer: dict[str, Any] = {
        "FeatureGroupArn": metadata.group_arn,
        "FeatureGroupName": metadata.group_name,
        "FeatureName": metadata.feature_name,
        "FeatureType": metadata.feature_type,
        "CreationTime": seconds(metadata.created_at_us),
        "LastModifiedTime": seconds(metadata.modified_at_us),
    }
    if metadata.parameters:
        answer["Parameters"] = [{"Key": key, "Value": value} for key, value in metadata.parameters.items()]
    return answer | _present(Description=metadata.description)


def _definition(feature: FeatureDefinition) -> dict[str, Any]:
    answer: dict[str, Any] = {"FeatureName": feature.name, "FeatureType": feature.type}
    if feature.collection is not None:
        answer["CollectionType"] = feature.collection
    if feature.dimension is not None:
        answer["CollectionConfig"] = {"VectorConfig": {"Dimension": feature.dimension}}
    return answer


def _online(online: OnlineConfig) -> dict[str, Any]:
    answer: dict[str, Any] = {"EnableOnlineStore": True} | _present(StorageType=online.storage_type)
    if online.kms_key_id is not None:
        answer["SecurityConfig"] = {"KmsKeyId": online.kms_key_id}
    if online.ttl is not None:
        answer["TtlDuration"] = {"Unit": online.ttl.unit, "Value": online.ttl.value}
    return answer


def _offline(offline: OfflineConfig) -> dict[str, Any]:
    catalog = offline.data_catalog
    return _present(
        S3StorageConfig=_present(S3Uri=offline.s3_uri, ResolvedOutputS3Uri=offline.resolved_s3_uri, KmsKeyId=offline.kms_key_id),
        DisableGlueTableCreation=offline.disable_glue_table_creation,
        TableFormat=offline.table_format,
        DataCatalogConfig=None
        if catalog is None
        else {"TableName": catalog.table_name, "Catalog": catalog.catalog, "Database": catalog.database},
    )


def _present(**members: object) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
