"""Runs scripts one after the other in this process: the SDKs take longer to import than most scripts to run."""

from __future__ import annotations

import runpy
import sys
import time

for path in sys.argv[1:]:
    started_s = time.monotonic()
    print(f"== {path}", flush=True)
    runpy.run_path(path, run_name="__main__")
    print(f"== {path} has passed in {time.monotonic() - started_s:.1f} s", flush=True)
