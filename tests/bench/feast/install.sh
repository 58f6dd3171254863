#!/bin/sh
# Installs Feast, which two benchmarks measure beside the feature store, with its own locked versions in an environment of its own:
# build/bench/feast. About 700 MB. Does nothing where it is there.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
. "$here/../../python_environment.sh"

mkdir -p "$here/../../../build/bench"
environment=$(cd "$here/../../../build/bench" && pwd)/feast
lock=$here/requirements.lock
sum="$("$python" -V) $(cksum < "$lock")"
if [ "$(cat "$environment/.installed" 2> /dev/null || true)" != "$sum" ]; then
    echo "installing Feast into $environment"
    rm -rf "$environment"
    install_python "$lock" "$environment"
    echo "$sum" > "$environment/.installed"
fi
