from __future__ import annotations

from dataclasses import replace

import pytest

from featurestore.errors import ValidationFailed
from featurestore.model import limits
from featurestore.model.feature_group import (
    CollectionType,
    DataCatalog,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
    TableFormat,
    Throughput,
    ThroughputMode,
    TtlDuration,
    TtlUnit,
    definitions,
    name_of,
    validate_group,
)

STRING, INTEGRAL, FRACTIONAL = FeatureType.STRING, FeatureType.INTEGRAL, FeatureType.FRACTIONAL
GOOD = FeatureGroup(
    "air-quality",
    "station",
    "measured_at",
    definitions([("station", STRING), ("measured_at", STRING), ("pm25", FRACTIONAL)]),
    online=OnlineConfig(ttl=TtlDuration(TtlUnit.WEEKS, 2)),
    offline=OfflineConfig("s3://bucket/some/prefix/"),
    feature_counts=(3,),
)
IN_MEMORY = OnlineConfig(storage_type=StorageType.IN_MEMORY)


def features(*more: FeatureDefinition) -> tuple[FeatureDefinition, ...]:
    return (*GOOD.features, *more)


def vector(name: str, kind: FeatureType = FRACTIONAL, dimension: int | None = 3) -> FeatureDefinition:
    return FeatureDefinition(name, kind, CollectionType.VECTOR, dimension)


@pytest.mark.parametrize(
    "group",
    [
        GOOD,
        replace(GOOD, name="a"),
        replace(GOOD, name="a" * 64),
        replace(GOOD, offline=None),
        replace(GOOD, online=None),
        replace(GOOD, online=IN_MEMORY, features=features(vector("v"), FeatureDefinition("s", STRING, CollectionType.SET))),
        replace(GOOD, offline=OfflineConfig("s3://b.c-d/x", table_format=TableFormat.ICEBERG)),
        replace(GOOD, throughput=Throughput(ThroughputMode.PROVISIONED, 5, 7)),
        replace(GOOD, features=tuple(definitions([("station", STRING), ("measured_at", FRACTIONAL)]))),
        replace(GOOD, tags={f"key {number}": "é:/=+-@." for number in range(50)}),
        replace(GOOD, role_arn="arn:aws:iam::000000000000:role/service-role/name"),
    ],
)
def test_good_groups(group: FeatureGroup) -> None:
    validate_group(group)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (replace(GOOD, name="-a"), "FeatureGroupName"),
        (replace(GOOD, name="a_"), "FeatureGroupName"),
        (replace(GOOD, name="a b"), "FeatureGroupName"),
        (replace(GOOD, name="a" * 65), "FeatureGroupName"),
        (replace(GOOD, name=""), "FeatureGroupName"),
        (replace(GOOD, features=()), "FeatureDefinitions: expected 1 to 2500"),
        (replace(GOOD, features=features(FeatureDefinition("write_time", STRING))), r"FeatureDefinitions\[3\].FeatureName"),
        (replace(GOOD, features=features(FeatureDefinition("Is_Deleted", STRING))), r"FeatureDefinitions\[3\].FeatureName"),
        (replace(GOOD, features=features(FeatureDefinition("PM25", STRING))), "differs from 'pm25' by more than case"),
        (replace(GOOD, features=features(FeatureDefinition("a.b", STRING))), r"FeatureDefinitions\[3\].FeatureName"),
        (replace(GOOD, features=features(vector("v"))), "none unless StorageType is InMemory"),
        (replace(GOOD, online=IN_MEMORY, features=features(vector("v"), vector("w"))), "at most one Vector"),
        (replace(GOOD, online=IN_MEMORY, features=features(vector("v", INTEGRAL))), "Fractional elements for a Vector"),
        (replace(GOOD, online=IN_MEMORY, features=features(vector("v", dimension=None))), "Dimension"),
        (replace(GOOD, online=IN_MEMORY, features=features(vector("v", dimension=8193))), "Dimension"),
        (replace(GOOD, features=features(FeatureDefinition("x", STRING, None, 3))), "CollectionConfig"),
        (replace(GOOD, record_identifier="nobody"), "RecordIdentifierFeatureName"),
        (replace(GOOD, event_time="nobody"), "EventTimeFeatureName"),
        (replace(GOOD, event_time="station"), "another feature than RecordIdentifierFeatureName"),
        (replace(GOOD, event_time="n", features=features(FeatureDefinition("n", INTEGRAL))), "type String or Fractional"),
        (replace(GOOD, online=None, offline=None), "at least one of the two stores"),
        (replace(GOOD, offline=OfflineConfig("file:///etc")), "S3Uri"),
        (replace(GOOD, offline=OfflineConfig("https://bucket/x")), "an s3:// URI"),
        (replace(GOOD, offline=OfflineConfig("s3://bucket/../x")), "S3Uri"),
        (replace(GOOD, offline=OfflineConfig("s3://bucket/a//b")), "S3Uri"),
        (replace(GOOD, offline=OfflineConfig("s3://bucket/a\\b")), "S3Uri"),
        (replace(GOOD, offline=OfflineConfig("s3://../x")), "S3Uri"),
        (replace(GOOD, offline=OfflineConfig("s3://_writer/x")), "S3Uri"),
        (replace(GOOD, offline=OfflineConfig("s3://a..b/x")), "S3Uri"),
        (replace(GOOD, offline=OfflineConfig("s3://bucket/" + "x" * 1024)), "S3Uri"),
        (
            replace(GOOD, offline=OfflineConfig("s3://bucket", data_catalog=DataCatalog("T", "AwsDataCatalog", "d"))),
            "DataCatalogConfig.TableName",
        ),
        (
            replace(GOOD, offline=OfflineConfig("s3://bucket", data_catalog=DataCatalog("t", "Other", "d"))),
            "DataCatalogConfig.Catalog",
        ),
        (
            replace(
                GOOD,
                offline=OfflineConfig("s3://bucket", table_format=TableFormat.ICEBERG, disable_glue_table_creation=True),
            ),
            "DisableGlueTableCreation",
        ),
        (replace(GOOD, throughput=Throughput(ThroughputMode.ON_DEMAND, 5)), "ProvisionedReadCapacityUnits"),
        (replace(GOOD, throughput=Throughput(ThroughputMode.PROVISIONED, -1)), "ProvisionedReadCapacityUnits"),
        (replace(GOOD, throughput=Throughput(ThroughputMode.PROVISIONED), online=IN_MEMORY), "ThroughputMode"),
        (replace(GOOD, description="d" * 129), "Description"),
        (replace(GOOD, role_arn="arn:aws:iam::0:role/x"), "RoleArn"),
        (replace(GOOD, tags={f"k{number}": "v" for number in range(51)}), "Tags: expected at most 50"),
        (replace(GOOD, tags={"": "v"}), "Tags.Key"),
        (replace(GOOD, tags={"k": "a\tb"}), "Tags.Value"),
        (replace(GOOD, tags={"k": "v" * 257}), "Tags.Value"),
    ],
)
def test_faults_are_named(group: FeatureGroup, message: str) -> None:
    with pytest.raises(ValidationFailed, match=message):
        validate_group(group)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ValidationFailed) as caught:
        validate_group(replace(GOOD, name="-", description="d" * 200, online=None, offline=None))
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("value", [0, -1, 10**30])
def test_ttl_range(value: int) -> None:
    with pytest.raises(ValidationFailed, match="TtlDuration.Value"):
        TtlDuration(TtlUnit.SECONDS, value)


def test_ttl_units() -> None:
    assert [TtlDuration(unit, 2).ttl_us // 2_000_000 for unit in TtlUnit] == [1, 60, 3600, 86_400, 604_800]


def test_schema_versions() -> None:
    grown = GOOD.with_features([FeatureDefinition("a", STRING)]).with_features([FeatureDefinition("b", STRING)])
    assert grown.schema_version == 3
    assert [len(grown.features_at(version)) for version in (1, 2, 3)] == [3, 4, 5]
    with pytest.raises(ValidationFailed):
        GOOD.with_features([FeatureDefinition(f"f{number}", STRING) for number in range(limits.FEATURES_PER_GROUP_MAX)])


def test_names_of_arns() -> None:
    assert name_of("arn:aws:sagemaker:us-east-1:000000000000:feature-group/a-b") == "a-b"
    assert name_of("arn:aws-cn:sagemaker:cn-north-1:000000000000:feature-group/x") == "x"
    assert name_of("plain") == "plain"
