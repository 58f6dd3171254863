"""Feature groups: what they are made of and which combinations exist.

Names and rules follow CreateFeatureGroup of the SageMaker API. All values here are immutable and checked when made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from featurestore.errors import Fault, ValidationFailed
from featurestore.model import limits


class FeatureType(StrEnum):
    """Type of a feature's values: signed 64-bit integer, IEEE-754 double, or UTF-8 text."""

    INTEGRAL = "Integral"
    FRACTIONAL = "Fractional"
    STRING = "String"


class CollectionType(StrEnum):
    LIST = "List"
    SET = "Set"
    VECTOR = "Vector"


class StorageType(StrEnum):
    STANDARD = "Standard"
    STANDARD_V2 = "Standard_V2"
    IN_MEMORY = "InMemory"


class CompactionMode(StrEnum):
    """What becomes of the originals in `data/` once their rows are in merged files."""

    SHADOW = "shadow"
    """They stay: readers by path see every row once, at the price of up to twice the storage."""
    REPLACE = "replace"
    """They are deleted after the grace period. For stores whose files nobody reads by path."""


class TableFormat(StrEnum):
    DEFAULT = "Default"
    GLUE = "Glue"
    ICEBERG = "Iceberg"


class ThroughputMode(StrEnum):
    ON_DEMAND = "OnDemand"
    PROVISIONED = "Provisioned"


class TargetStore(StrEnum):
    ONLINE = "OnlineStore"
    OFFLINE = "OfflineStore"


class GroupStatus(StrEnum):
    CREATING = "Creating"
    CREATED = "Created"
    CREATE_FAILED = "CreateFailed"
    DELETING = "Deleting"
    DELETE_FAILED = "DeleteFailed"


class OfflineStatus(StrEnum):
    ACTIVE = "Active"
    BLOCKED = "Blocked"
    DISABLED = "Disabled"


class UpdateStatus(StrEnum):
    SUCCESSFUL = "Successful"
    FAILED = "Failed"
    IN_PROGRESS = "InProgress"


class TtlUnit(StrEnum):
    SECONDS = "Seconds"
    MINUTES = "Minutes"
    HOURS = "Hours"
    DAYS = "Days"
    WEEKS = "Weeks"


UNIT_S: Final = {
    TtlUnit.SECONDS: 1,
    TtlUnit.MINUTES: 60,
    TtlUnit.HOURS: 3600,
    TtlUnit.DAYS: 86_400,
    TtlUnit.WEEKS: 7 * 86_400,
}

TTL_S_MAX: Final = 10_000 * 366 * 86_400
"""Longer than the span of years that event times can name, so that event time + TTL stays a 64-bit count."""


@dataclass(frozen=True, slots=True)
class TtlDuration:
    """How long after its event time a record stays readable. `value` >= 1."""

    unit: TtlUnit
    value: int

    def __post_init__(self) -> None:
        longest = TTL_S_MAX // UNIT_S[self.unit]
        if not limits.TTL_VALUE_MIN <= self.value <= longest:
            expected = f"an integer from {limits.TTL_VALUE_MIN} to {longest} {self.unit}"
            raise ValidationFailed.one("TtlDuration.Value", expected, self.value)

    @property
    def ttl_us(self) -> int:
        return self.value * UNIT_S[self.unit] * 1_000_000


@dataclass(frozen=True, slots=True)
class FeatureDefinition:
    """One feature: name, type, and for collections (InMemory groups only) the collection type.

    `dimension` (elements, 1 to 8192) belongs to vectors and only to them.
    """

    name: str
    type: FeatureType
    collection: CollectionType | None = None
    dimension: int | None = None

    def faults(self, path: str) -> Iterator[Fault]:
        yield from name_faults(f"{path}.FeatureName", self.name)
        if self.name.lower() in limits.RESERVED_FEATURE_NAMES:
            yield Fault(f"{path}.FeatureName", f"a name other than {sorted(limits.RESERVED_FEATURE_NAMES)}", self.name)
        vector = self.collection is CollectionType.VECTOR
        if vector and self.type is not FeatureType.FRACTIONAL:
            yield Fault(f"{path}.FeatureType", "Fractional elements for a Vector", str(self.type))
        if vector and not 1 <= (self.dimension or 0) <= limits.VECTOR_DIMENSION_MAX:
            yield Fault(
                f"{path}.CollectionConfig.VectorConfig.Dimension",
                f"an integer from 1 to {limits.VECTOR_DIMENSION_MAX}",
                self.dimension,
            )
        if not vector and self.dimension is not None:
            yield Fault(f"{path}.CollectionConfig", "none unless CollectionType is Vector", self.dimension)


@dataclass(frozen=True, slots=True)
class OnlineConfig:
    """The online store of a group. `storage_type` is None when the creator did not name one (it then means Standard)."""

    ttl: TtlDuration | None = None
    storage_type: StorageType | None = None
    kms_key_id: str | None = None


@dataclass(frozen=True, slots=True)
class DataCatalog:
    table_name: str
    catalog: str
    database: str


@dataclass(frozen=True, slots=True)
class OfflineConfig:
    """The offline store of a group.

    Attributes:
        s3_uri: where the creator wants it, `s3://bucket[/prefix]`; decides the folder below the offline root.
        resolved_s3_uri: `<s3_uri>/<account>/sagemaker/<region>/offline-store/<group>-<epoch>/data`, set at creation.
        data_catalog: the name SQL clients use; None when the creator disabled it and named none.
        retention_days: records whose event time is longer ago leave the history; None keeps all.
    """

    s3_uri: str
    resolved_s3_uri: str = ""
    kms_key_id: str | None = None
    table_format: TableFormat | None = None
    disable_glue_table_creation: bool = False
    data_catalog: DataCatalog | None = None
    retention_days: int | None = None


@dataclass(frozen=True, slots=True)
class Throughput:
    """Stored and returned, never enforced."""

    mode: ThroughputMode
    read_capacity_units: int | None = None
    write_capacity_units: int | None = None


class Durability(StrEnum):
    """When a write is acknowledged."""

    ONLINE = "online"
    """When the online store has it, with its entry in the outbox."""
    LOG = "log"
    """When Kafka has acknowledged it, too: it survives the loss of the online store."""


@dataclass(frozen=True, slots=True)
class FeatureGroup:
    """A feature group as the registry keeps it.

    Attributes:
        group_id: the registry's key; never used twice, so a group re-created under an old name shares nothing with it.
        features: in definition order; only ever appended to.
        feature_counts: entry v-1 is the number of features that schema version v has, so version v of the schema is
            `features[:feature_counts[v - 1]]`.
        created_at_us, modified_at_us: microseconds since 1970.
    """

    name: str
    record_identifier: str
    event_time: str
    features: tuple[FeatureDefinition, ...]
    online: OnlineConfig | None = None
    offline: OfflineConfig | None = None
    throughput: Throughput | None = None
    role_arn: str | None = None
    description: str | None = None
    group_id: int = 0
    account_id: str = ""
    region: str = ""
    feature_counts: tuple[int, ...] = ()
    created_at_us: int = 0
    modified_at_us: int = 0
    status: GroupStatus = GroupStatus.CREATED
    failure_reason: str | None = None
    update_status: UpdateStatus | None = None
    tags: dict[str, str] = field(default_factory=dict)
    durability: Durability = Durability.ONLINE

    @property
    def schema_version(self) -> int:
        return len(self.feature_counts)

    @property
    def arn(self) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.account_id}:feature-group/{self.name}"

    @property
    def offline_status(self) -> OfflineStatus | None:
        """Of the offline store; None for a group that has none, or whose creation failed."""
        return None if self.offline is None or self.status is GroupStatus.CREATE_FAILED else OfflineStatus.ACTIVE

    @property
    def created_at_s(self) -> int:
        """Whole seconds of the creation time: the epoch in the offline path and the catalog's table name."""
        return self.created_at_us // 1_000_000

    @property
    def feature_names(self) -> list[str]:
        return [feature.name for feature in self.features]

    def feature(self, name: str) -> FeatureDefinition | None:
        return next((feature for feature in self.features if feature.name == name), None)

    @property
    def record_identifier_type(self) -> FeatureType:
        return self._type_of(self.record_identifier)

    @property
    def event_time_type(self) -> FeatureType:
        return self._type_of(self.event_time)

    def _type_of(self, name: str) -> FeatureType:
        feature = self.feature(name)
        assert feature is not None, f"{name} was checked to be a feature when the group was made"
        return feature.type

    def features_at(self, schema_version: int) -> tuple[FeatureDefinition, ...]:
        """The features that schema version `schema_version` (1-based) had."""
        return self.features[: self.feature_counts[schema_version - 1]]

    def default_targets(self) -> frozenset[TargetStore]:
        """Every store the group has: where a write goes that names none."""
        stores = {TargetStore.ONLINE: self.online, TargetStore.OFFLINE: self.offline}
        return frozenset(target for target, config in stores.items() if config is not None)

    def with_features(self, additions: Sequence[FeatureDefinition]) -> FeatureGroup:
        """The group with features appended as a new schema version, checked as a whole."""
        features = (*self.features, *additions)
        changed = replace(self, features=features, feature_counts=(*self.feature_counts, len(features)))
        validate_group(changed)
        return changed


def name_faults(path: str, name: str, *, limit: limits.Text = limits.FEATURE_NAME) -> Iterator[Fault]:
    """The faults of a feature or feature group name: 1 to 64 letters, digits, hyphens and underscores within."""
    yield from text_faults(path, name, limit)


def text_faults(path: str, text: str | None, limit: limits.Text) -> Iterator[Fault]:
    """The fault of a text, if it is there and not within its limit."""
    if text is not None and not limit.allows(text):
        yield Fault(path, limit.expected, text)


def description_faults(path: str, text: str | None, limit: limits.Text) -> Iterator[Fault]:
    """The faults of a description. NUL is refused, as not every database can keep it."""
    yield from text_faults(path, text, limit)
    if text is not None and "\0" in text:
        yield Fault(path, "a text without NUL characters", text)


def validate_group(group: FeatureGroup) -> None:
    """Check everything about a group that does not need the registry.

    Raises:
        ValidationFailed: with every fault found.
    """
    faults = list(_group_faults(group))
    if faults:
        raise ValidationFailed(faults)


def _group_faults(group: FeatureGroup) -> Iterator[Fault]:
    yield from name_faults("FeatureGroupName", group.name, limit=limits.FEATURE_GROUP_NAME)
    yield from _feature_faults(group)
    if group.online is None and group.offline is None:
        yield Fault("OnlineStoreConfig, OfflineStoreConfig", "at least one of the two stores to be enabled")
    if group.offline is not None:
        yield from _offline_faults(group, group.offline)
    if group.throughput is not None:
        yield from _throughput_faults(group, group.throughput)
    yield from description_faults("Description", group.description, limits.DESCRIPTION)
    yield from text_faults("RoleArn", group.role_arn, limits.ROLE_ARN)
    yield from tag_faults(group.tags)


def _feature_faults(group: FeatureGroup) -> Iterator[Fault]:
    path = "FeatureDefinitions"
    if not 1 <= len(group.features) <= limits.FEATURES_PER_GROUP_MAX:
        yield Fault(path, f"1 to {limits.FEATURES_PER_GROUP_MAX} features", len(group.features))
    seen: dict[str, str] = {}
    vectors = 0
    in_memory = group.online is not None and group.online.storage_type is StorageType.IN_MEMORY
    for index, feature in enumerate(group.features):
        yield from feature.faults(f"{path}[{index}]")
        twin = seen.get(feature.name.lower())
        seen[feature.name.lower()] = feature.name
        if twin is not None:
            yield Fault(f"{path}[{index}].FeatureName", f"a name that differs from {twin!r} by more than case", feature.name)
        vectors += feature.collection is CollectionType.VECTOR
        if feature.collection is not None and not in_memory:
            yield Fault(f"{path}[{index}].CollectionType", "none unless StorageType is InMemory", str(feature.collection))
    if vectors > 1:
        yield Fault(path, "at most one Vector feature", vectors)
    for role, name in (
        ("RecordIdentifierFeatureName", group.record_identifier),
        ("EventTimeFeatureName", group.event_time),
    ):
        definition = group.feature(name)
        if definition is None:
            yield Fault(role, "the name of one of the FeatureDefinitions", name)
        elif definition.collection is not None:
            yield Fault(role, "a scalar feature", f"{definition.collection} of {definition.type}")
        elif role == "EventTimeFeatureName" and definition.type is FeatureType.INTEGRAL:
            yield Fault(role, "a feature of type String or Fractional", str(definition.type))
    if group.record_identifier == group.event_time:
        yield Fault("EventTimeFeatureName", "another feature than RecordIdentifierFeatureName", group.event_time)


def _offline_faults(group: FeatureGroup, offline: OfflineConfig) -> Iterator[Fault]:
    path = "OfflineStoreConfig"
    yield from s3_uri_faults(f"{path}.S3StorageConfig.S3Uri", offline.s3_uri)
    if offline.table_format is TableFormat.ICEBERG:
        if offline.disable_glue_table_creation:
            yield Fault(f"{path}.DisableGlueTableCreation", "false when TableFormat is Iceberg", True)
        event_time = group.feature(group.event_time)
        if event_time is not None and event_time.type is not FeatureType.STRING:
            yield Fault("EventTimeFeatureName", "a String feature when TableFormat is Iceberg", str(event_time.type))
    catalog = offline.data_catalog
    if catalog is not None and not offline.disable_glue_table_creation:
        if catalog.catalog.lower() != "awsdatacatalog":
            yield Fault(f"{path}.DataCatalogConfig.Catalog", "AwsDataCatalog", catalog.catalog)
        for member, value in (("TableName", catalog.table_name), ("Database", catalog.database)):
            if not re.fullmatch(r"[a-z_][a-z0-9_]{0,254}", value):
                yield Fault(
                    f"{path}.DataCatalogConfig.{member}",
                    "lower-case letters, digits and '_', not starting with a digit",
                    value,
                )


def s3_uri_faults(path: str, uri: str) -> Iterator[Fault]:
    """`s3://bucket[/prefix]` whose parts name folders below the offline root and nothing outside it."""
    match = limits.S3_URI.fullmatch(uri)
    if match is None or not limits.S3_URI.allows(uri):
        yield Fault(path, limits.S3_URI.expected, uri)
        return
    scheme, bucket, prefix = match.groups()
    if scheme != "s3":
        yield Fault(path, "an s3:// URI", uri)
    if limits.S3_BUCKET.fullmatch(bucket) is None or ".." in bucket:
        yield Fault(path, "a bucket name of 3 to 63 lower-case letters, digits, '-' and '.'", bucket)
    segments = prefix.removesuffix("/").split("/") if prefix else []
    if any(ord(char) < 32 or char == "\\" for char in prefix) or any(segment in ("", ".", "..") for segment in segments):
        yield Fault(path, "a prefix without empty, '.' or '..' segments, control characters or backslashes", prefix)


def _throughput_faults(group: FeatureGroup, throughput: Throughput) -> Iterator[Fault]:
    units = {
        "ProvisionedReadCapacityUnits": throughput.read_capacity_units,
        "ProvisionedWriteCapacityUnits": throughput.write_capacity_units,
    }
    for member, value in units.items():
        if value is None:
            continue
        if throughput.mode is ThroughputMode.ON_DEMAND:
            yield Fault(f"ThroughputConfig.{member}", "none when ThroughputMode is OnDemand", value)
        elif not 0 <= value <= limits.CAPACITY_UNITS_MAX:
            yield Fault(f"ThroughputConfig.{member}", f"an integer from 0 to {limits.CAPACITY_UNITS_MAX}", value)
    in_memory = group.online is not None and group.online.storage_type is StorageType.IN_MEMORY
    if throughput.mode is ThroughputMode.PROVISIONED and in_memory:
        yield Fault("ThroughputConfig.ThroughputMode", "OnDemand when StorageType is InMemory", str(throughput.mode))


def tag_faults(tags: dict[str, str]) -> Iterator[Fault]:
    if len(tags) > limits.TAGS_MAX:
        yield Fault("Tags", f"at most {limits.TAGS_MAX} tags", len(tags))
    for key, value in tags.items():
        yield from text_faults("Tags.Key", key, limits.TAG_KEY)
        yield from text_faults("Tags.Value", value, limits.TAG_VALUE)
        if key.lower().startswith(limits.TAG_RESERVED_PREFIX):
            yield Fault("Tags.Key", f"a key that does not begin with {limits.TAG_RESERVED_PREFIX!r}, which is reserved", key)


def name_of(name_or_arn: str) -> str:
    """The plain name from a name or an ARN; checked by whoever looks it up."""
    match = limits.FEATURE_GROUP_ARN_PREFIX.match(name_or_arn)
    return name_or_arn[match.end() :] if match else name_or_arn


def definitions(features: Iterable[tuple[str, FeatureType]]) -> tuple[FeatureDefinition, ...]:
    """Scalar feature definitions from (name, type) pairs."""
    return tuple(FeatureDefinition(name, feature_type) for name, feature_type in features)
