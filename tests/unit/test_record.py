from __future__ import annotations

from dataclasses import replace

import pytest

from featurestore.errors import ValidationFailed
from featurestore.model import limits
from featurestore.model.change import OFFLINE, ONLINE, Op
from featurestore.model.codec import decode_values
from featurestore.model.feature_group import (
    CollectionType,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
    TargetStore,
    TtlDuration,
    TtlUnit,
    definitions,
)
from featurestore.model.record import FeaturePair, RecordPlan

GROUP = FeatureGroup(
    "g",
    "id",
    "t",
    (
        *definitions(
            [("id", FeatureType.STRING), ("t", FeatureType.STRING), ("n", FeatureType.INTEGRAL), ("x", FeatureType.FRACTIONAL)]
        ),
        FeatureDefinition("words", FeatureType.STRING, CollectionType.SET),
        FeatureDefinition("place", FeatureType.FRACTIONAL, CollectionType.VECTOR, 2),
    ),
    online=OnlineConfig(ttl=TtlDuration(TtlUnit.HOURS, 1), storage_type=StorageType.IN_MEMORY),
    offline=OfflineConfig("s3://bucket"),
    group_id=7,
    feature_counts=(6,),
)
PLAN = RecordPlan(GROUP)
KEYS: list[FeaturePair] = [("id", "a"), ("t", "2024-05-01T00:00:00Z")]


def test_a_record_keeps_its_text_in_definition_order() -> None:
    change = PLAN.put([("x", "1.50"), *reversed(KEYS), ("words", ["b", "a", "b"]), ("place", ["1", "2.0"])])
    assert (change.group_id, change.record_id, change.op, change.targets) == (7, "a", Op.PUT, ONLINE | OFFLINE)
    version, values = decode_values(change.values)
    assert version == 1
    assert values == ["a", "2024-05-01T00:00:00Z", None, "1.50", ["b", "a"], ["1", "2.0"]]
    assert PLAN.pairs(values, [5, 3]) == [("place", ["1", "2.0"]), ("x", "1.50")]
    assert [name for name, _ in PLAN.pairs(values)] == ["id", "t", "x", "words", "place"]


def test_expiry_is_event_time_plus_ttl() -> None:
    hour_us = 3_600_000_000
    by_default, own = PLAN.put(KEYS), PLAN.put(KEYS, ttl=TtlDuration(TtlUnit.DAYS, 1))
    assert by_default.expires_at_us == by_default.event_time_us + hour_us
    assert own.expires_at_us == own.event_time_us + 24 * hour_us
    assert PLAN.delete("a", "2024-05-01T00:00:00Z", hard=False).expires_at_us is None


def test_absent_values() -> None:
    assert PLAN.put([*KEYS, ("n", None), ("words", [])]).values == PLAN.put(KEYS).values


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("t", "2024-05-01T00:00:00Z")], "record identifier feature 'id'"),
        ([("id", "a")], "event time feature 't'"),
        ([("id", ""), KEYS[1]], "Record.id: expected a non-empty record identifier"),
        ([*KEYS, ("zz", "1")], r"Record\[2\].FeatureName: expected a feature of 'g', got 'zz'"),
        ([*KEYS, ("n", "1"), ("n", "2")], r"Record\[3\].FeatureName: expected each feature at most once"),
        ([*KEYS, ("n", "1.5")], "Record.n: expected Integral"),
        ([*KEYS, ("n", str(2**63))], "Record.n: expected Integral"),
        ([*KEYS, ("n", "1_000")], "Record.n: expected Integral"),
        ([*KEYS, ("x", "nan")], "Record.x: expected Fractional"),
        ([*KEYS, ("x", "1e999")], "Record.x: expected Fractional"),
        ([*KEYS, ("x", " 1")], "Record.x: expected Fractional"),
        ([("id", "a"), ("t", "2024-05-01T00:00:00")], "Record.t: expected an ISO-8601"),
        ([*KEYS, ("x", ["1"])], r"Record\[2\].ValueAsStringList: expected ValueAsString"),
        ([*KEYS, ("words", "a")], r"Record\[2\].ValueAsString: expected ValueAsStringList"),
        ([*KEYS, ("place", ["1", "2", "3"])], "a Vector of 2 elements"),
        ([*KEYS, ("place", ["1", "north"])], "Vector of Fractional"),
        ([("id", "a" * 2049), KEYS[1]], "at most 2048 bytes"),
        ([("id", "é" * 1025), KEYS[1]], "at most 2048 bytes"),
        ([*KEYS, ("words", ["a" * (limits.RECORD_BYTES_MAX - 10)])], "bytes of names and values"),
    ],
)
def test_faults_are_named(pairs: list[FeaturePair], message: str) -> None:
    with pytest.raises(ValidationFailed, match=message):
        PLAN.row(pairs)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ValidationFailed) as caught:
        PLAN.row([("n", "x"), ("x", "y"), ("nobody", "z")])
    assert len(caught.value.faults) == 5


@pytest.mark.parametrize(
    ("kind", "same"),
    [
        (FeatureType.INTEGRAL, ["7", "07", "+7"]),
        (FeatureType.FRACTIONAL, ["10", "10.0", "1e1"]),
        (FeatureType.FRACTIONAL, ["0", "-0.0"]),
    ],
)
def test_identifiers_are_looked_up_by_meaning(kind: FeatureType, same: list[str]) -> None:
    group = replace(GROUP, features=(FeatureDefinition("id", kind), *GROUP.features[1:]))
    plan = RecordPlan(group)
    assert len({plan.record_id(text) for text in same}) == 1
    assert len({plan.put([("id", text), KEYS[1]]).record_id for text in same}) == 1


def test_targets() -> None:
    assert PLAN.put(KEYS, targets=frozenset({TargetStore.OFFLINE})).targets == OFFLINE
    online_only = RecordPlan(replace(GROUP, offline=None))
    assert online_only.put(KEYS).targets == ONLINE
    with pytest.raises(ValidationFailed, match="TargetStores: expected OnlineStore.*got.*OfflineStore"):
        online_only.put(KEYS, targets=frozenset(TargetStore))


def test_selections() -> None:
    assert PLAN.selection(None) is None
    assert PLAN.selection(["x", "id", "x"]) == [0, 3]
    for wanted in ([], ["nobody"]):
        with pytest.raises(ValidationFailed, match="FeatureNames"):
            PLAN.selection(wanted)


def test_deletes() -> None:
    change = PLAN.delete("a", "2024-05-01T00:00:00Z", hard=True)
    assert change.op is Op.HARD_DELETE
    assert decode_values(change.values)[1] == ["a", "2024-05-01T00:00:00Z"]
    with pytest.raises(ValidationFailed) as caught:
        PLAN.delete("", "yesterday", hard=False)
    assert [fault.path for fault in caught.value.faults] == ["RecordIdentifierValueAsString", "EventTime"]
