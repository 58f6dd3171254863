"""The commands that look after the offline store, each call as a process of its own."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

import featurestore
from featurestore.model.change import shard_of
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


def test_audit(cli: Cli, home: Path) -> None:
    head, *rows = cells(succeeded(cli("audit", home=home)))
    assert head == [
        "group",
        "acknowledged",
        "streamed",
        "waiting",
        "quarantined",
        "offline rows",
        "online records",
        "explained",
        "differences",
    ]
    assert sorted(rows) == [["g", "0", "0", "0", "0", "30", "3", "0", "0"], ["online", *["0"] * 8]]
    by_shard = cells(succeeded(cli("audit", "g", "--by-shard", home=home)))[1:]
    assert len(by_shard) > 1
    assert sum(int(row[6]) for row in by_shard) == 30
    refused(cli("audit", "nope", home=home), "'nope' does not exist")
    with closing(sqlite3.connect(home / "online.db")) as database, database:
        database.execute("DELETE FROM record WHERE record_id = 'k2'")
    done = cli("audit", home=home)
    shard = shard_of("k2", len(by_shard))
    assert done.returncode == 1
    assert f"g: shard {shard}: missing online: 'k2': event time none online, 2024-05-02T05:00:00Z offline\n" in done.stdout
    done = cli("audit", "g", "--json", home=home)
    (report,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, report["group"], report["counts"]) == (1, "g", {"missing online": 1})
    assert [(one["kind"], one["subject"], one["shard"]) for one in report["differences"]] == [("missing online", "k2", shard)]
