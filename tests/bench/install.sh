#!/bin/sh
# Make sure that a C compiler is there for the load generator of the benchmarks. Installs one where that is possible, and says so
# where not.
set -eu

if command -v cc >/dev/null 2>&1; then
    exit 0
fi
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null; then
        exit 0
    fi
fi
echo '*** NO C COMPILER: install gcc and libc6-dev, or the benchmarks that load the service do not run. ***' >&2
