"""docs/start.md, run from top to bottom: what it prints is what the page says."""

from __future__ import annotations

import io
import re
import shlex
import urllib.request
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.service import Service

PAGE = Path(__file__).parents[2] / "docs" / "start.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITTEN_URL = "http://127.0.0.1:8080"


def test_the_tutorial_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = ""
    service: Service | None = None
    compared = 0
    try:
        for language, text in BLOCK.findall(PAGE.read_text()):
            runnable = text if service is None else text.replace(WRITTEN_URL, service.url)
            if language == "python":
                sink = io.StringIO()
                with redirect_stdout(sink):
                    exec(compile(runnable, str(PAGE), "exec"), names)  # noqa: S102 - the page is ours
                printed = sink.getvalue()
            elif language == "sh" and text.startswith("featurestore serve"):
                assert text.split() == ["featurestore", "serve", "--home", "my-store", "--port", "8080"]
                service = Service(tmp_path / "my-store", tmp_path / "service.log").start()
            elif language == "sh":
                program, option, url = shlex.split(runnable)
                assert (program, option) == ("curl", "-s")
                with urllib.request.urlopen(url) as answer:  # as curl would; not every machine has it
                    printed = answer.read().decode()
            elif language == "text":
                assert printed.strip() == text.strip()
                compared += 1
            else:
                assert language == "console", f"a block of {language} that nobody runs"
    finally:
        if service is not None:
            assert service.stop() == 0
    assert compared >= 10
