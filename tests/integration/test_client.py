"""`featurestore.connect` against the real service: the same verbs, the same answers as the library on the same home."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import featurestore
from featurestore.client import Client
from featurestore.errors import ServiceRefused, StoreUnavailable, ValidationFailed
from featurestore.model.feature_group import TtlDuration, TtlUnit
from tests.service import Service

FEATURES = {"id": "Integral", "t": "Fractional", "x": "Fractional", "note": "String"}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    with featurestore.connect(service.url) as client:
        yield client


@pytest.fixture
def group(client: Client) -> str:
    name = f"client-{uuid.uuid4().hex[:12]}"
    arn = client.create_feature_group(name, record_identifier="id", event_time="t", features=FEATURES, tags={"a": "b"})
    assert arn.endswith(f":feature-group/{name}")
    return name


def test_records(client: Client, group: str) -> None:
    client.put_record(group, {"id": 7, "t": 10.5, "x": 1.25, "note": None})
    client.put_record(group, {"id": 7, "t": 9, "x": 9.0})
    assert client.get_record(group, 7) == {"id": 7, "t": 10.5, "x": 1.25}
    assert client.get_record(group, "7", ["x"]) == {"x": 1.25}
    assert client.get_record(group, 8) is None
    client.put_record(group, {"id": 8, "t": 1, "note": "late"}, ttl=TtlDuration(TtlUnit.DAYS, 1))
    assert client.batch_get_record(group, [8, 7, 9], ["x"]) == [None, {"x": 1.25}, None]
    client.delete_record(group, 7, 11)
    assert client.get_record(group, 7) is None
    client.put_record(group, {"id": 7, "t": 10.9})
    assert client.get_record(group, 7) is None
    client.delete_record(group, 7, datetime(1970, 1, 1, 0, 0, 12, tzinfo=UTC), hard=True)
    client.put_record(group, {"id": 7, "t": 1})
    assert client.get_record(group, 7) == {"id": 7, "t": 1.0}


def test_dataframes_and_training_sets(client: Client, group: str, tmp_path: Path, service: Service) -> None:
    frame = pd.DataFrame({"id": [1, 1, 2], "t": [10.0, 20.0, 15.0], "x": [0.1, 0.2, None], "note": ["a", "b", "c"]})
    report = client.ingest(group, frame)
    assert (report["rows"], report["online_newest"], report["faults"]) == (3, 2, [])
    assert client.ingest(group, frame.assign(x=[1.0, float("inf"), 2.0]), skip_faulty=True)["skipped"] == 1
    spine = pd.DataFrame({"who": [2, 1, 1, 3], "when": [16.0, 12.0, 30.0, 30.0], "label": [0, 1, 0, 1]})
    options = {"event_time": "when", "keys": {group: "who"}, "event_times": True}
    made = client.create_training_set(spine, {"note": f"{group}.note"}, **options)
    assert made.spine.column_names == ["who", "when", "label"]
    assert made.features.column_names == ["note", f"{group}._event_time"]
    assert made.features["note"].to_pylist() == ["c", "a", "b", None]
    path = made.to_parquet(tmp_path / "set.parquet")
    again = client.create_training_set(Path(path), [f"{group}.*"], event_time="when", keys={group: "who"}, as_served=False)
    assert again.features[f"{group}.note"].to_pylist() == ["c", "a", "b", None]
    from_sql = client.create_training_set(f'SELECT id, t FROM "{group}" ORDER BY t', [f"{group}.x"], event_time="t")
    assert from_sql.num_rows == 5
    past = client.create_training_set(
        spine, [f"{group}.note"], event_time="when", keys={group: "who"}, known_by=datetime(2020, 1, 1, tzinfo=UTC)
    )
    assert past.features[f"{group}.note"].to_pylist() == [None] * 4
    with featurestore.open(service.home) as store:
        local = store.create_training_set(spine, {"note": f"{group}.note"}, **options)
    assert local.to_arrow().equals(made.to_arrow())
    assert local.manifest_versions == made.manifest_versions


def test_sql_and_groups(client: Client, group: str) -> None:
    client.put_record(group, {"id": 1, "t": 1, "note": "é"})
    assert client.sql(f'SELECT note FROM latest."{group}"').equals(pa.table({"note": ["é"]}))
    client.flush()
    assert client.sql(f'SELECT count(*) AS n FROM "{group}"', fresh=False).to_pylist() == [{"n": 1}]
    assert {"name": group, "record_identifier": "id", "features": FEATURES}.items() <= next(
        item for item in client.feature_groups() if item["name"] == group
    ).items()
    client.delete_feature_group(group)
    assert group not in [item["name"] for item in client.feature_groups()]


def test_as_of_a_time(client: Client, group: str) -> None:
    client.put_record(group, {"id": 1, "t": 1, "note": "before"})
    client.flush()
    between = datetime.now(UTC)
    client.put_record(group, {"id": 1, "t": 1, "note": "after"})
    statement = f'SELECT note FROM latest."{group}"'
    assert client.sql(statement, as_of=between).to_pylist() == [{"note": "before"}]
    assert client.sql(statement).to_pylist() == [{"note": "after"}]
    spine = pd.DataFrame({"id": [1], "when": [10.0]})
    for options, note in (({"as_of": between}, "before"), ({}, "after")):
        made = client.create_training_set(spine, {"note": f"{group}.note"}, event_time="when", **options)
        assert made.features["note"].to_pylist() == [note]
    with pytest.raises(ServiceRefused, match="as_of: expected a datetime with a time zone"):
        client.sql(statement, as_of=datetime(2024, 5, 1))
    with pytest.raises(ServiceRefused, match="as_of: expected a time in the past"):
        client.create_training_set(spine, [f"{group}.note"], event_time="when", as_of=datetime(2099, 5, 1, tzinfo=UTC))


def test_erase(client: Client, group: str) -> None:
    for identifier in (1, 2):
        client.put_record(group, {"id": identifier, "t": 1, "note": "x"})
    receipt = client.erase(group, 1)
    assert (receipt["group"], receipt["online"], receipt["unreadable"]) == (group, 1, [])
    assert client.get_record(group, 1) is None
    assert client.sql(f'SELECT id FROM "{group}"').to_pylist() == [{"id": 2}]
    with pytest.raises(ServiceRefused, match=r"identifiers\[1\]: expected"):
        client.erase(group, 2, "two")
    with pytest.raises(ServiceRefused, match="identifiers: .*at least 1"):
        client.erase(group)
    assert client.get_record(group, 2) is not None


def test_errors_carry_the_services_words(client: Client, group: str) -> None:
    with pytest.raises(ServiceRefused, match="ResourceNotFound: feature group 'nobody'") as caught:
        client.get_record("nobody", 1)
    assert caught.value.code == "ResourceNotFound"
    with pytest.raises(ServiceRefused, match=r"Record\[2\].FeatureName: expected a feature of"):
        client.put_record(group, {"id": 1, "t": 1, "zz": "1"})
    with pytest.raises(ServiceRefused, match=r"rows\[1\].x"):
        client.ingest(group, pd.DataFrame({"id": [1, 2], "t": [1.0, 2.0], "x": ["1", "n/a"]}))
    with pytest.raises(ServiceRefused, match="ValidationError"):
        client.sql("DROP TABLE x")
    with pytest.raises(ValidationFailed, match=r"record\.x"):
        client.put_record(group, {"id": 1, "t": 1, "x": object()})
    with pytest.raises(ValidationFailed, match="spine"):
        client.create_training_set(Path("nowhere.parquet"), [f"{group}.x"], event_time="t")


def test_a_service_that_is_not_there() -> None:
    with featurestore.connect("http://127.0.0.1:9") as nobody, pytest.raises(StoreUnavailable, match="does not answer"):
        nobody.feature_groups()
