"""The commands that look after the offline store, each call as a process of its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import featurestore
from tests.integration.conftest import Cli
from tests.integration.test_cli import cells, refused, succeeded


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    with featurestore.open(home) as store:
        features = {"id": "String", "t": "String", "n": "Integral"}
        store.create_feature_group("g", record_identifier="id", event_time="t", features=features)
        store.create_feature_group("online", record_identifier="id", event_time="t", features=features, offline=False)
        at = pd.date_range("2024-05-01", periods=30, freq="h", tz="UTC")
        store.ingest("g", pd.DataFrame({"id": [f"k{n % 3}" for n in range(30)], "t": at, "n": range(30)}), progress=False)
    return home


def test_compact(cli: Cli, home: Path) -> None:
    head, row = cells(succeeded(cli("compact", home=home)))
    assert head == ["group", "files before", "files", "rows merged", "bytes written", "objects deleted"]
    assert (row[:4], row[5]) == (["g", "30", "1", "30"], "0")
    assert cells(succeeded(cli("compact", "g", home=home)))[1] == ["g", "1", "1", "0", "0", "0"]
    refused(cli("compact", "nope", home=home), "'nope' does not exist")
    refused(cli("compact", "online", home=home), "feature group", "'online'", "offline store")


def test_erase(cli: Cli, home: Path) -> None:
    done = cli("erase", "g", "k1", home=home)
    assert (done.returncode, done.stderr) == (1, "Aborted!\n"), "nobody said yes"
    text = succeeded(cli("erase", "g", "k1", "k2", "--yes", home=home))
    assert text.startswith("erasure 1: 2 records online, 20 rows in 20 files\n")
    with featurestore.open(home) as store:
        assert store.sql("SELECT DISTINCT id FROM g").to_pylist() == [{"id": "k0"}]
    refused(cli("erase", "g", "", "--yes", home=home), "identifiers[0]")


def test_retention(cli: Cli, home: Path) -> None:
    assert succeeded(cli("retention", "g", home=home)) == "g: all history is kept\n"
    assert succeeded(cli("retention", "g", "--days", "30", home=home)).splitlines() == [
        "30 rows in 30 files left the history",
        "g: history is kept for 30 days",
    ]
    assert succeeded(cli("retention", "g", "--forever", home=home)) == "g: all history is kept\n"
    refused(cli("retention", "g", "--days", "3", "--forever", home=home), "--forever")
    refused(cli("retention", "g", "--days", "0", home=home), "--days", status=2)
