"""A process that erases record after record until it is killed: `python -m tests.crash.erasing HOME FIRST`."""

from __future__ import annotations

import sys
from pathlib import Path

import featurestore

GROUP = "people"


def identifier(number: int) -> str:
    return f"person-{number:05d}-of-many"


def main(home: Path, first: int) -> None:
    with featurestore.open(home) as store:
        print("ready", flush=True)
        number = first
        while True:
            print(f"begin {number}", flush=True)
            store.erase(GROUP, identifier(number), progress=False)
            print(f"done {number}", flush=True)
            number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
