"""Records that are checked in one go are checked as all others are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import Fault, ValidationFailed
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureGroup, FeatureType, OnlineConfig
from featurestore.model.record import FeaturePair, RecordPlan, Row

SPARE = "spare"
"""A feature that no record has a value for. Naming it is unusual, and changes nothing."""


def group(identifier: FeatureType, time: FeatureType) -> FeatureGroup:
    features = (
        FeatureDefinition("id", identifier),
        FeatureDefinition("at", time),
        FeatureDefinition("count", FeatureType.INTEGRAL),
        FeatureDefinition("share", FeatureType.FRACTIONAL),
        FeatureDefinition("word", FeatureType.STRING),
        FeatureDefinition("tags", FeatureType.STRING, CollectionType.LIST),
        FeatureDefinition(SPARE, FeatureType.STRING),
    )
    return FeatureGroup(name="g", record_identifier="id", event_time="at", features=features, online=OnlineConfig())


PLANS = [
    RecordPlan(group(identifier, time)) for identifier in FeatureType for time in (FeatureType.STRING, FeatureType.FRACTIONAL)
]
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(repr),
    st.from_regex(r"[+-]?[0-9]{0,3}\.?[0-9]{0,3}", fullmatch=True),
    st.sampled_from(
        ["", "+1", "-0", "1_000", "1 ", "\n1", "1\n2", "٣", "1e3", ".5", "5.", "1.2.3", "9223372036854775808", "0" * 50]
    ),
)
TIMES = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from(["2024-02-30T00:00:00Z", "0000-02-29T00:00:00Z", "2024-05-01T12:00:00", "1714564800.25", "1e9", "-1"]),
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z", fullmatch=True),
)
WORDS = st.text(max_size=20) | st.sampled_from(["", "x" * 2049, "ü" * 1500])
VALUES = {
    "id": WORDS | NUMBERS,
    "at": TIMES,
    "count": NUMBERS,
    "share": NUMBERS,
    "word": WORDS,
    "tags": st.lists(WORDS),
    "nobody": WORDS,
}
ANY = st.none() | WORDS | st.lists(WORDS, max_size=2)


@st.composite
def records(draw: st.DrawFn) -> list[FeaturePair]:
    names = draw(st.lists(st.sampled_from(list(VALUES)), unique=draw(st.integers(0, 9)) > 0, max_size=7))
    if draw(st.integers(0, 9)):
        names = list(dict.fromkeys([*names, "id", "at"]))
    return [(name, draw(VALUES[name] if draw(st.integers(0, 9)) else ANY)) for name in names]


def checked(plan: RecordPlan, pairs: list[FeaturePair]) -> Row | list[Fault]:
    try:
        return plan.row(pairs)
    except ValidationFailed as failed:
        return list(failed.faults)


@settings(max_examples=500)
@given(plan=st.sampled_from(PLANS), pairs=records())
def test_rows_and_faults_are_the_same_with_an_unusual_feature(plan: RecordPlan, pairs: list[FeaturePair]) -> None:
    assert checked(plan, pairs) == checked(plan, [*pairs, (SPARE, None)])


def test_usual_records_go_the_short_way() -> None:
    plan = PLANS[0]
    pairs: list[FeaturePair] = [("word", "w"), ("id", "1"), ("share", "0.5"), ("at", "2024-05-01T12:00:00Z"), ("count", "-7")]
    assert plan._usual_row(pairs) == Row("1", 1714564800_000_000, ["1", "2024-05-01T12:00:00Z", "-7", "0.5", "w", None, None])
    assert plan._usual_row([*pairs, ("tags", ["a"])]) is None
