"""The memory that Arrow's columns are kept in, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

PROGRAM = """
import sys
from pathlib import Path
import pyarrow as pa
if sys.argv[2]:
    pa.set_memory_pool(getattr(pa, sys.argv[2])())
from featurestore.settings import Settings
from featurestore.store import FeatureStore
with FeatureStore(Settings(home=Path(sys.argv[1]))):
    print(pa.default_memory_pool().backend_name)
"""


def backend(home: Path, chosen_before: str = "", **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    command = [sys.executable, "-c", PROGRAM, str(home), chosen_before]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif("jemalloc" not in pa.supported_memory_backends(), reason="this build of Arrow has no jemalloc")
def test_an_open_store_has_its_columns_in_jemalloc(tmp_path: Path) -> None:
    assert backend(tmp_path) == "jemalloc"


@pytest.mark.parametrize("setting", ["system", "mimalloc"])
def test_a_setting_is_kept(tmp_path: Path, setting: str) -> None:
    assert backend(tmp_path, ARROW_DEFAULT_MEMORY_POOL=setting) == setting


def test_a_pool_that_was_chosen_before_is_kept(tmp_path: Path) -> None:
    assert backend(tmp_path, "system_memory_pool") == "system"
