"""The limits of the record operations are those of the service's own model."""

from __future__ import annotations

import re
from typing import Any

import botocore.session
import pytest

from api import runtime
from featurestore.model import limits
from featurestore.model.feature_group import TargetStore, TtlUnit

SERVICE = botocore.session.get_session().get_service_model("sagemaker-featurestore-runtime")


def rules(shape: str) -> dict[str, Any]:
    return dict(SERVICE.shape_for(shape).metadata)


@pytest.mark.parametrize(
    ("shape", "rule", "ours"),
    [
        ("FeatureGroupNameOrArn", "max", limits.RECORD_GROUP_CHARS_MAX),
        ("FeatureName", "max", limits.FEATURE_NAME_CHARS_MAX),
        ("ValueAsString", "max", limits.VALUE_CHARS_MAX),
        ("ValueAsStringList", "max", limits.COLLECTION_ELEMENTS_MAX),
        ("BatchGetRecordIdentifiers", "max", limits.BATCH_GET_GROUPS_MAX),
        ("RecordIdentifiers", "max", limits.BATCH_GET_IDENTIFIERS_MAX),
        ("BatchWriteRecordEntries", "max", limits.BATCH_WRITE_ENTRIES_MAX),
        ("ListRecordsMaxResults", "max", limits.LIST_RECORDS_MAX),
        ("ListRecordsNextToken", "max", limits.NEXT_TOKEN_CHARS_MAX),
        ("TargetStores", "max", limits.TARGET_STORES_MAX),
        ("TtlDurationValue", "min", limits.TTL_VALUE_MIN),
        ("Message", "max", limits.MESSAGE_CHARS_MAX),
        ("TargetStore", "enum", list(TargetStore)),
        ("TtlDurationUnit", "enum", list(TtlUnit)),
        ("ExpirationTimeResponse", "enum", list(runtime.EXPIRATION_TIME_RESPONSES)),
        ("DeletionMode", "enum", list(runtime.DELETION_MODES)),
    ],
)
def test_a_limit_is_the_models(shape: str, rule: str, ours: object) -> None:
    assert rules(shape)[rule] == ours


@pytest.mark.parametrize(
    "text",
    [
        *("a", "A-1", "a--__b", "a" * 64, "-a", "a-", "_a", "a_", "a.b", "a b", "", "ä", "a\n", "a" * 65, "a/b"),
        "arn:aws:sagemaker:eu-west-1:123456789012:feature-group/a",
        "arn:aws-cn:sagemaker::123456789012:feature-group/a",
        "arn:aws:sagemaker:eu-west-1:12345678901:feature-group/a",
        "arn:aws:s3:eu-west-1:123456789012:feature-group/a",
        "arn:aws:sagemaker:eu-west-1:123456789012:feature-group/",
        "arn:aws:sagemaker:eu-west-1:123456789012:feature-group/a/b",
        f"arn:aws:sagemaker:{'x' * 150}:123456789012:feature-group/a",
    ],
)
def test_names_are_the_models(text: str) -> None:
    name = limits.FEATURE_GROUP_ARN_PREFIX.sub("", text, count=1)
    ours = limits.FEATURE_GROUP_NAME.fullmatch(name) is not None and len(text) <= limits.RECORD_GROUP_CHARS_MAX
    model = rules("FeatureGroupNameOrArn")
    assert ours == (re.fullmatch(model["pattern"], text) is not None and model["min"] <= len(text) <= model["max"])
    pattern = rules("FeatureName")["pattern"].removeprefix("^")
    assert (limits.FEATURE_NAME.fullmatch(text) is None) == (re.fullmatch(pattern, text) is None)
