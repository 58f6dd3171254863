"""Records as columns: each cell is what the text means, null where there is none."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.batch_get import BatchGet, Entry
from api.record_arrow import RecordArrow, RecordColumns, record_columns
from featurestore.errors import StoreCorrupt, ValidationFailed
from featurestore.model.codec import encode_values
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureGroup, FeatureType, OnlineConfig
from featurestore.model.record import RecordPlan
from featurestore.model.value import PARSE, Value
from featurestore.online.protocol import Found

FIRST = (
    FeatureDefinition("id", FeatureType.STRING),
    FeatureDefinition("at", FeatureType.STRING),
    FeatureDefinition("count", FeatureType.INTEGRAL),
    FeatureDefinition("share", FeatureType.FRACTIONAL),
    FeatureDefinition("size", FeatureType.INTEGRAL),
    FeatureDefinition("tags", FeatureType.STRING, CollectionType.LIST),
    FeatureDefinition("vector", FeatureType.FRACTIONAL, CollectionType.VECTOR, 2),
    FeatureDefinition("set", FeatureType.INTEGRAL, CollectionType.SET),
    FeatureDefinition("rate", FeatureType.FRACTIONAL),
)
SECOND = (*FIRST[:2], FeatureDefinition("more", FeatureType.FRACTIONAL), FIRST[4], FeatureDefinition("note", FeatureType.STRING))
"""Of another group: some that the first one has, too, in another order."""


def plan_of(name: str, features: tuple[FeatureDefinition, ...]) -> RecordPlan:
    group = FeatureGroup(name=name, record_identifier="id", event_time="at", features=features, online=OnlineConfig())
    return RecordPlan(group)


PLANS = [plan_of("first", FIRST), plan_of("second", SECOND)]
INTEGRALS = st.integers(-(2**63), 2**63 - 1).map(str) | st.sampled_from(["+1", "-0", "007", "+" + "0" * 30 + "5"])
FRACTIONALS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["+1", "-0", ".5", "5.", "1E5", "1e-400", "0" * 60 + "1", "9007199254740993", "-.5e+3"]),
)
SCALARS = {
    FeatureType.STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    FeatureType.INTEGRAL: INTEGRALS,
    FeatureType.FRACTIONAL: FRACTIONALS,
}


def values_of(feature: FeatureDefinition) -> st.SearchStrategy[Value]:
    scalar = SCALARS[feature.type]
    size = feature.dimension
    return st.none() | (scalar if feature.collection is None else st.lists(scalar, min_size=size or 1, max_size=size or 4))


@st.composite
def entries(draw: st.DrawFn) -> tuple[RecordPlan, list[str] | None, list[tuple[str, list[Value], int | None] | None]]:
    """A group, the features asked for, and what is found: identifier, some of the values or one too many, expiry."""
    plan = draw(st.sampled_from(PLANS))
    rows = st.tuples(*[values_of(feature) for feature in plan.group.features]).map(list)
    stored = st.builds(lambda row, end: [*row, "of a feature added just now"][:end], rows, st.integers(2, len(plan.names) + 1))
    found = st.none() | st.tuples(SCALARS[FeatureType.STRING], stored, st.none() | st.integers(-(10**15), 10**17))
    names = st.none() | st.lists(st.sampled_from(plan.names), min_size=1)
    return plan, draw(names), draw(st.lists(found, max_size=4))


def meaning(feature: FeatureDefinition, value: Value) -> Any:
    """By the parser of single values. Doubles as hexadecimal, in which no two are equal."""
    if isinstance(value, list):
        return [meaning(FeatureDefinition("", feature.type), item) for item in value]
    typed: Any = None if value is None else PARSE[feature.type](value)
    return typed.hex() if isinstance(typed, float) else typed


def exact(cell: Any) -> Any:
    """A cell in the form of `meaning`."""
    if isinstance(cell, list):
        return [exact(item) for item in cell]
    return cell.hex() if isinstance(cell, float) else cell


def table_of(batch: BatchGet[RecordColumns], items: list[Found]) -> pa.Table:
    with pa.ipc.open_stream(asyncio.run(RecordArrow(batch).stream(items))) as stream:
        table = stream.read_all()
    table.validate(full=True)
    return table


@given(st.lists(entries(), max_size=4), st.booleans())
@example([(PLANS[0], ["tags"], [("a", ["a", "b"], None)])], False)  # one feature, which the record lacks
def test_cells_are_what_texts_mean(asked: list[Any], with_expiry: bool) -> None:
    wanted: dict[str, FeatureDefinition] = {}
    rows: list[dict[str, Any]] = []
    for plan, names, found in asked:
        features = [item for item in plan.group.features if names is None or item.name in names]
        wanted |= {item.name: item for item in features if item.name not in wanted}
        for item in found:
            if item is None:
                continue
            identifier, values, expires_at_us = item
            texts = dict(zip(plan.names, values, strict=False))
            row = {"FeatureGroupName": plan.group.name, "RecordIdentifierValueAsString": identifier}
            row |= {"ExpiresAt": expires_at_us} if with_expiry else {}
            rows.append(row | {feature.name: meaning(feature, texts.get(feature.name)) for feature in features})
    batch = BatchGet(
        [
            Entry(place, plan.group.name, [item[0] if item else "" for item in found], record_columns(plan, names))
            for place, (plan, names, found) in enumerate(asked)
        ],
        [(1, "key")] * sum(len(found) for _, _, found in asked),
        [{"ErrorCode": "Ü"}],
        with_expiry,
    )
    items = [item and (encode_values(1, item[1]), item[2]) for _, _, found in asked for item in found]
    table = table_of(batch, items)
    fixed = ["FeatureGroupName", "RecordIdentifierValueAsString", *(["ExpiresAt"] if with_expiry else [])]
    assert table.schema.names == [*fixed, *wanted]
    if with_expiry:
        assert table.schema.field("ExpiresAt").type == pa.timestamp("us", "UTC")
        table = table.set_column(2, "ExpiresAt", table["ExpiresAt"].cast(pa.int64()))
    empty = dict.fromkeys(table.schema.names)
    assert [{name: exact(cell) for name, cell in row.items()} for row in table.to_pylist()] == [empty | row for row in rows]
    types = {FeatureType.INTEGRAL: pa.int64(), FeatureType.FRACTIONAL: pa.float64(), FeatureType.STRING: pa.string()}
    for name, feature in wanted.items():
        kind = types[feature.type]
        assert table.schema.field(name).type == (kind if feature.collection is None else pa.list_(kind))
    metadata = {name.decode(): json.loads(text) for name, text in table.schema.metadata.items()}
    assert metadata == {"Errors": [{"ErrorCode": "Ü"}], "UnprocessedIdentifiers": []}


def asking(plan: RecordPlan) -> BatchGet[RecordColumns]:
    return BatchGet([Entry(0, "g", ["a"], record_columns(plan, None))], [(1, "a")], [], False)


@pytest.mark.parametrize("values", [["a", "b", "1.5"], ["a", "b", None, "one"], ["a", "b"] + [None] * 5 + [["1", "x"]]])
def test_texts_that_are_not_of_their_type(values: list[Value]) -> None:
    with pytest.raises(StoreCorrupt, match="count|share|set"):
        table_of(asking(PLANS[0]), [(encode_values(1, values), None)])


def test_bytes_that_are_no_record() -> None:
    with pytest.raises(StoreCorrupt, match="record values"):
        table_of(asking(PLANS[0]), [(b"\x01\x92\x01", None)])


def test_a_choice_is_compiled_once_and_too_many_are_forgotten() -> None:
    plan = plan_of("g", FIRST)
    assert record_columns(plan, ["count", "id"]) is record_columns(plan, ["count", "id"])
    for number in range(1000):
        record_columns(plan, ["id"] * (number % 50 + 1) + [plan.names[number % 7]])
    assert len(plan.compiled) <= 256
    with pytest.raises(ValidationFailed, match="nobody"):
        record_columns(plan, ["nobody"])
