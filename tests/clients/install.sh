#!/bin/sh
# Installs the real clients of the tests, each with the versions of its requirements.lock in an environment of its own:
# build/clients/<name> (CLIENTS_HOME names another folder). Does nothing for those that are there. Where one can't be installed
# it says so, and fails where CI is set.
set -u

here=$(cd "$(dirname "$0")" && pwd)
home=${CLIENTS_HOME:-$here/../../build/clients}
python=${PYTHON:-python3}
failed=

install() { # the environment $1, from the lock $2
    rm -rf "$1"
    # --no-deps: a lock names everything, and leaves out what excludes.txt says
    if command -v uv > /dev/null; then
        "$python" -m venv --without-pip "$1" || return
        uv pip install --quiet --python "$1/bin/python" --no-deps --require-hashes --compile-bytecode -r "$2"
    else
        "$python" -m venv "$1" || return
        "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$2"
    fi
}

mkdir -p "$home"
home=$(cd "$home" && pwd)
for lock in "$here"/*/requirements.lock; do
    name=$(basename "$(dirname "$lock")")
    environment=$home/$name
    sum="$("$python" -V) $(cksum < "$lock")"
    if [ "$(cat "$environment/.installed" 2> /dev/null || true)" = "$sum" ]; then
        continue
    fi
    echo "installing the client $name into $environment"
    if install "$environment" "$lock"; then
        echo "$sum" > "$environment/.installed"
    else
        failed="$failed $name"
    fi
done
if [ -n "$failed" ]; then
    echo "*** NOT INSTALLED:$failed. The tests with these clients do not run. ***" >&2
    test -z "${CI:-}"
fi
