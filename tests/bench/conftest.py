from __future__ import annotations

import os
import sys

import pytest

from tests.bench import load


@pytest.fixture(scope="session")
def load_generator() -> None:
    """Skip what needs the load generator where it can't be made, loudly; fail there if everything is expected to be there."""
    for there, missing in ((sys.platform == "linux", load.NOT_LINUX), (load.COMPILER, load.MISSING)):
        if not there:
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)
