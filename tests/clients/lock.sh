#!/bin/sh
# Resolves the requirements.in of each client, and of Feast for the benchmarks, anew into the requirements.lock beside it, without
# what its excludes.txt names. Needs uv.
set -eu

cd "$(dirname "$0")"
for wanted in */requirements.in ../bench/feast/requirements.in; do
    (
        cd "$(dirname "$wanted")"
        set -- --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet
        if [ -e excludes.txt ]; then
            set -- "$@" --excludes excludes.txt
        fi
        uv pip compile "$@" requirements.in --output-file requirements.lock
    )
done
