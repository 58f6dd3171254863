"""Request and answer shapes of the control plane operations, member for member as in the service model.

Their limits come from `featurestore.model.limits`. They are not constraints of the decoder but `extra` of the annotations,
so that `limit_faults` can report all that is wrong with a request at once, with the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from featurestore.errors import Fault, ValidationFailed
from featurestore.model import limits, search
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
from featurestore.registry.protocol import FeatureMetadata, GroupSort, SearchQuery

Limit: TypeAlias = limits.Text | limits.Number | None

TIME_S_MAX: Final = 1e12
"""Seconds; in microseconds still a 64-bit integer."""


class _Shape(msgspec.Struct, frozen=True):
    """A structure of the service model. Members that are not known are ignored, and null means absent, as in the service."""


def _within(limit: limits.Text | limits.Number) -> Meta:
    return Meta(extra={"limit": limit})


_GroupName = Annotated[str, _within(limits.FEATURE_GROUP_NAME)]
_GroupNameOrArn = Annotated[str, _within(limits.FEATURE_GROUP_NAME_OR_ARN)]
_FeatureName = Annotated[str, _within(limits.FEATURE_NAME)]
_KmsKey = Annotated[str, _within(limits.KMS_KEY)]
_S3Uri = Annotated[str, _within(limits.S3_URI)]
_CatalogName = Annotated[str, _within(limits.CATALOG_NAME)]
_CapacityUnits = Annotated[int, _within(limits.CAPACITY_UNITS)]
_ResourceArn = Annotated[str, _within(limits.RESOURCE_ARN)]
_TagKey = Annotated[str, _within(limits.TAG_KEY)]
_ParameterText = Annotated[str, _within(limits.FEATURE_PARAMETER)]
_Page = Annotated[int, _within(limits.PAGE)]
_Token = Annotated[str, _within(limits.NEXT_TOKEN)]
_PropertyName = Annotated[str, _within(limits.PROPERTY_NAME)]


class SortOrder(StrEnum):
    ASCENDING = "Ascending"
    DESCENDING = "Descending"


class CrossAccountFilter(StrEnum):
    SAME_ACCOUNT = "SameAccount"
    CROSS_ACCOUNT = "CrossAccount"


class Resource(StrEnum):
    """Kinds of resources of the service, of which a feature store has two."""

    TRAINING_JOB = "TrainingJob"
    EXPERIMENT = "Experiment"
    EXPERIMENT_TRIAL = "ExperimentTrial"
    EXPERIMENT_TRIAL_COMPONENT = "ExperimentTrialComponent"
    ENDPOINT = "Endpoint"
    MODEL = "Model"
    MODEL_PACKAGE = "ModelPackage"
    MODEL_PACKAGE_GROUP = "ModelPackageGroup"
    PIPELINE = "Pipeline"
    PIPELINE_EXECUTION = "PipelineExecution"
    FEATURE_GROUP = "FeatureGroup"
    FEATURE_METADATA = "FeatureMetadata"
    IMAGE = "Image"
    IMAGE_VERSION = "ImageVersion"
    PROJECT = "Project"
    HYPER_PARAMETER_TUNING_JOB = "HyperParameterTuningJob"
    MODEL_CARD = "ModelCard"
    PIPELINE_VERSION = "PipelineVersion"
    JOB = "Job"
    HUB_CONTENT = "HubContent"


class Tag(_Shape, frozen=True):
    Key: _TagKey
    Value: Annotated[str, _within(limits.TAG_VALUE)]


class Ttl(_Shape, frozen=True):
    """Neither member is required: an empty TtlDuration in an update removes the default."""

    Unit: TtlUnit | None = None
    Value: Annotated[int, _within(limits.TTL_VALUE)] | None = None

    def duration(self) -> TtlDuration | None:
        if self.Unit is None and self.Value is None:
            return None
        if self.Unit is None or self.Value is None:
            raise ValidationFailed.one("OnlineStoreConfig.TtlDuration", "Unit and Value, or neither of them")
        return TtlDuration(self.Unit, self.Value)


class VectorConfig(_Shape, frozen=True):
    Dimension: Annotated[int, _within(limits.VECTOR_DIMENSION)]


class CollectionConfig(_Shape, frozen=True):
    VectorConfig: VectorConfig | None = None


class Definition(_Shape, frozen=True):
    FeatureName: _FeatureName
    FeatureType: FeatureType
    CollectionType: CollectionType | None = None
    CollectionConfig: CollectionConfig | None = None

    def definition(self) -> FeatureDefinition:
        vector = None if self.CollectionConfig is None else self.CollectionConfig.VectorConfig
        if self.CollectionConfig is not None and vector is None:
            raise ValidationFailed.one(f"{self.FeatureName}.CollectionConfig", "its one member VectorConfig")
        return FeatureDefinition(
            self.FeatureName, self.FeatureType, self.CollectionType, None if vector is None else vector.Dimension
        )


class SecurityConfig(_Shape, frozen=True):
    KmsKeyId: _KmsKey | None = None


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
        return OnlineConfig(ttl, self.StorageType, key)


class S3StorageConfig(_Shape, frozen=True):
    """`ResolvedOutputS3Uri` is the service's to say: whatever a request says is checked and left aside."""

    S3Uri: _S3Uri
    KmsKeyId: _KmsKey | None = None
    ResolvedOutputS3Uri: _S3Uri | None = None


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
        return OfflineConfig(
            self.S3StorageConfig.S3Uri,
            kms_key_id=self.S3StorageConfig.KmsKeyId,
            table_format=self.TableFormat,
            disable_glue_table_creation=bool(self.DisableGlueTableCreation),
            data_catalog=None if catalog is None else DataCatalog(catalog.TableName, catalog.Catalog, catalog.Database),
        )


class ThroughputConfig(_Shape, frozen=True):
    ThroughputMode: ThroughputMode
    ProvisionedReadCapacityUnits: _CapacityUnits | None = None
    ProvisionedWriteCapacityUnits: _CapacityUnits | None = None

    def throughput(self) -> Throughput:
        return Throughput(self.ThroughputMode, self.ProvisionedReadCapacityUnits, self.ProvisionedWriteCapacityUnits)


class ThroughputConfigUpdate(_Shape, frozen=True):
    ThroughputMode: ThroughputMode | None = None
    ProvisionedReadCapacityUnits: _CapacityUnits | None = None
    ProvisionedWriteCapacityUnits: _CapacityUnits | None = None

    def throughput(self, before: Throughput | None) -> Throughput:
        """The whole configuration: members that are not given stay, as far as the mode does. A group that was created
        without one is on demand."""
        read, write = self.ProvisionedReadCapacityUnits, self.ProvisionedWriteCapacityUnits
        if self.ThroughputMode is None and read is None and write is None:
            names = "ThroughputMode, ProvisionedReadCapacityUnits and ProvisionedWriteCapacityUnits"
            raise ValidationFailed.one("ThroughputConfig", f"at least one of {names}")
        kept = before or Throughput(ThroughputMode.ON_DEMAND)
        mode = self.ThroughputMode or kept.mode
        if mode is not kept.mode:
            kept = Throughput(mode)
        return Throughput(
            mode,
            kept.read_capacity_units if read is None else read,
            kept.write_capacity_units if write is None else write,
        )


class CreateFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: _GroupName
    RecordIdentifierFeatureName: _FeatureName
    EventTimeFeatureName: _FeatureName
    FeatureDefinitions: Annotated[list[Definition], _within(limits.FEATURE_DEFINITIONS)]
    OnlineStoreConfig: OnlineStoreConfig | None = None
    OfflineStoreConfig: OfflineStoreConfig | None = None
    ThroughputConfig: ThroughputConfig | None = None
    RoleArn: Annotated[str, _within(limits.ROLE_ARN)] | None = None
    Description: Annotated[str, _within(limits.DESCRIPTION)] | None = None
    Tags: Annotated[list[Tag], _within(limits.TAGS)] | None = None

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
            tags=distinct(self.Tags or []),
        )


class DescribeFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: _GroupNameOrArn
    NextToken: _Token | None = None


class ListFeatureGroups(_Shape, frozen=True):
    NameContains: Annotated[str, _within(limits.NAME_CONTAINS)] | None = None
    FeatureGroupStatusEquals: GroupStatus | None = None
    OfflineStoreStatusEquals: OfflineStatus | None = None
    CreationTimeAfter: float | None = None
    CreationTimeBefore: float | None = None
    SortOrder: SortOrder | None = None
    SortBy: GroupSort | None = None
    MaxResults: _Page | None = None
    NextToken: _Token | None = None


class OnlineStoreConfigUpdate(_Shape, frozen=True):
    TtlDuration: Ttl | UnsetType | None = UNSET
    StorageType: StorageType | None = None


class UpdateFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: _GroupNameOrArn
    FeatureAdditions: Annotated[list[Definition], _within(limits.FEATURE_ADDITIONS)] | None = None
    OnlineStoreConfig: OnlineStoreConfigUpdate | None = None
    ThroughputConfig: ThroughputConfigUpdate | None = None


class DeleteFeatureGroup(_Shape, frozen=True):
    FeatureGroupName: _GroupName


class DescribeFeatureMetadata(_Shape, frozen=True):
    FeatureGroupName: _GroupNameOrArn
    FeatureName: _FeatureName


class Parameter(_Shape, frozen=True):
    Key: _ParameterText
    Value: _ParameterText


class UpdateFeatureMetadata(_Shape, frozen=True):
    FeatureGroupName: _GroupNameOrArn
    FeatureName: _FeatureName
    Description: Annotated[str, _within(limits.FEATURE_DESCRIPTION)] | None = None
    ParameterAdditions: Annotated[list[Parameter], _within(limits.FEATURE_PARAMETERS)] | None = None
    ParameterRemovals: Annotated[list[_ParameterText], _within(limits.FEATURE_PARAMETERS)] | None = None


class Filter(_Shape, frozen=True):
    Name: _PropertyName
    Operator: search.Operator | None = None
    Value: Annotated[str, _within(limits.FILTER_VALUE)] | None = None

    def filter(self) -> search.Filter:
        return search.Filter(self.Name, self.Operator, self.Value)


_Filters = Annotated[list[Filter], _within(limits.EXPRESSION_PARTS)]


class NestedFilters(_Shape, frozen=True):
    NestedPropertyName: _PropertyName
    Filters: _Filters

    def filters(self) -> search.NestedFilters:
        return search.NestedFilters(self.NestedPropertyName, [item.filter() for item in self.Filters])


class SearchExpression(_Shape, frozen=True):
    """One without any filter, which Amazon's own SDK sends, is met by everything."""

    Filters: _Filters | None = None
    NestedFilters: Annotated[list[NestedFilters], _within(limits.EXPRESSION_PARTS)] | None = None
    SubExpressions: Annotated[list[SearchExpression], _within(limits.EXPRESSION_PARTS)] | None = None
    Operator: search.BooleanOperator | None = None

    def expression(self) -> search.SearchExpression:
        return search.SearchExpression(
            [item.filter() for item in self.Filters or ()],
            [item.filters() for item in self.NestedFilters or ()],
            [item.expression() for item in self.SubExpressions or ()],
            self.Operator or search.BooleanOperator.AND,
        )


class VisibilityCondition(_Shape, frozen=True):
    Key: Annotated[str, _within(limits.VISIBILITY_KEY)] | None = None
    Value: Annotated[str, _within(limits.VISIBILITY_VALUE)] | None = None


class Search(_Shape, frozen=True):
    Resource: Resource
    SearchExpression: SearchExpression | None = None
    SortBy: _PropertyName | None = None
    SortOrder: SortOrder | None = None
    NextToken: _Token | None = None
    MaxResults: _Page | None = None
    CrossAccountFilterOption: CrossAccountFilter | None = None
    VisibilityConditions: Annotated[list[VisibilityCondition], _within(limits.VISIBILITY_CONDITIONS)] | None = None

    def query(self) -> SearchQuery:
        """The search with every part checked.

        Raises:
            ValidationFailed
        """
        try:
            resource = search.SearchResource(self.Resource)
        except ValueError:
            expected = "FeatureGroup or FeatureMetadata, as a feature store has no other resources"
            raise ValidationFailed.one("Resource", expected, str(self.Resource)) from None
        expression = search.SearchExpression() if self.SearchExpression is None else self.SearchExpression.expression()
        visible = enumerate(self.VisibilityConditions or ())
        return SearchQuery(
            resource,
            search.check_sort(resource, self.SortBy or "LastModifiedTime"),
            search.check_expression(resource, expression),
            descending=self.SortOrder is not SortOrder.ASCENDING,
            visible=tuple(search.check_visibility(position, item.Key, item.Value) for position, item in visible),
            page_rows=self.MaxResults or limits.LIST_PAGE_MAX,
            page_token=self.NextToken,
        )


class AddTags(_Shape, frozen=True):
    ResourceArn: _ResourceArn
    Tags: Annotated[list[Tag], _within(limits.TAGS)]


class ListTags(_Shape, frozen=True):
    ResourceArn: _ResourceArn
    NextToken: _Token | None = None
    MaxResults: Annotated[int, _within(limits.TAGS_PAGE)] | None = None


class DeleteTags(_Shape, frozen=True):
    ResourceArn: _ResourceArn
    TagKeys: Annotated[list[_TagKey], _within(limits.TAG_KEYS)]


def limit_faults(request: msgspec.Struct, path: str = "") -> Iterator[Fault]:
    """The members of a decoded request that are not within their limits, at any depth."""
    for name, limit, item_limit in _limits(type(request)):
        value = getattr(request, name)
        where = f"{path}.{name}" if path else name
        if isinstance(value, list):
            if isinstance(limit, limits.Number) and not limit.allows(len(value)):
                yield Fault(where, limit.expected_count, len(value))
            for position, item in enumerate(value):
                yield from _member_faults(item, item_limit, f"{where}[{position}]")
        else:
            yield from _member_faults(value, limit, where)


def _member_faults(value: object, limit: Limit, path: str) -> Iterator[Fault]:
    if isinstance(value, msgspec.Struct):
        yield from limit_faults(value, path)
    elif isinstance(value, str):
        if isinstance(limit, limits.Text) and not limit.allows(value):
            yield Fault(path, limit.expected, value)
    elif isinstance(value, int) and isinstance(limit, limits.Number) and not limit.allows(value):
        yield Fault(path, limit.expected, value)


@cache
def _limits(kind: type[msgspec.Struct]) -> tuple[tuple[str, Limit, Limit], ...]:
    """The members of a shape, each with its limit and, of lists, that of the elements."""
    shape = msgspec.inspect.type_info(kind)
    assert isinstance(shape, msgspec.inspect.StructType), "asked of shapes"
    return tuple((member.encode_name, *_limit(member.type)) for member in shape.fields)


def _limit(found: msgspec.inspect.Type) -> tuple[Limit, Limit]:
    limit = None
    if isinstance(found, msgspec.inspect.UnionType):
        found = next(option for option in found.types if not isinstance(option, msgspec.inspect.NoneType))
    if isinstance(found, msgspec.inspect.Metadata):
        limit = (found.extra or {}).get("limit")
        found = found.type
    return limit, _limit(found.item_type)[0] if isinstance(found, msgspec.inspect.ListType) else None


def distinct(items: list[Tag]) -> dict[str, str]:
    """Tags by key.

    Raises:
        ValidationFailed: a key is there twice.
    """
    found: dict[str, str] = {}
    for position, tag in enumerate(items):
        if tag.Key in found:
            raise ValidationFailed.one(f"Tags[{position}].Key", "a key that is not in the request already", tag.Key)
        found[tag.Key] = tag.Value
    return found


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
    if group.offline_status is not None:
        answer["OfflineStoreStatus"] = {"Status": group.offline_status}
    return answer


def description(group: FeatureGroup) -> dict[str, Any]:
    """A DescribeFeatureGroup answer; members that do not apply are left out, never null."""
    answer = _group(group)
    if group.online is not None:
        answer["OnlineStoreTotalSizeBytes"] = 0
    if group.throughput is not None:
        answer["ThroughputConfig"] = _present(
            ThroughputMode=group.throughput.mode,
            ProvisionedReadCapacityUnits=group.throughput.read_capacity_units,
            ProvisionedWriteCapacityUnits=group.throughput.write_capacity_units,
        )
    return answer


def group_record(group: FeatureGroup) -> dict[str, Any]:
    """A feature group in the results of Search: unlike its description with tags."""
    answer = _group(group)
    if group.tags:
        answer["Tags"] = tags(group)
    return {"FeatureGroup": answer}


def feature_record(metadata: FeatureMetadata) -> dict[str, Any]:
    """A feature in the results of Search."""
    return {"FeatureMetadata": feature_metadata(metadata)}


def _group(group: FeatureGroup) -> dict[str, Any]:
    """What descriptions and search results have in common."""
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
    if group.offline is not None:
        answer["OfflineStoreConfig"] = _offline(group.offline)
    if group.offline_status is not None:
        answer["OfflineStoreStatus"] = {"Status": group.offline_status}
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
