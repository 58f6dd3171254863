"""`python -m tests.bench [NAME ...] [--kind KIND] [--size tiny|canonical] [--rounds N]`, and `python -m tests.bench report`."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from tests.bench import report
from tests.bench.suite import BENCHMARKS, KINDS, ROUNDS, SIZES, run

REPORT = "report"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure the feature store beside what it stands on. Canonical results are kept in docs/benchmarks.ndjson.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)} (default: all), or {REPORT}: only rewrite docs/benchmarks.md and its plots",
    )
    parser.add_argument("--kind", choices=KINDS, help="all benchmarks of one kind, instead of names")
    parser.add_argument("--size", choices=SIZES, default="canonical")
    parser.add_argument("--rounds", type=int, help="default: 5, or 1 in tiny size")
    asked = parser.parse_args()
    unknown = set(asked.names) - set(BENCHMARKS) - {REPORT}
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    if asked.rounds is not None and asked.rounds < 1:
        parser.error("--rounds must be at least 1")
    if asked.kind and asked.names:
        parser.error("expected names or --kind, got both")
    if REPORT in asked.names:
        report.rewrite()
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    for name in asked.names or KINDS.get(asked.kind, BENCHMARKS):
        result = run(
            name, asked.size, asked.rounds or ROUNDS[asked.size], lambda text, name=name: print(f"{name}: {text}", flush=True)
        )
        report.show(result, console)
        if asked.size == "canonical":
            report.append(result)


if __name__ == "__main__":
    main()
