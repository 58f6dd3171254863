#!/bin/sh
# Installs the real clients of the tests, each with its own locked versions in an environment of its own: build/clients/<name>
# (CLIENTS_HOME names another folder). Does nothing for those that are there. Where one can't be installed it says so, and fails
# where CI is set.
set -u

here=$(cd "$(dirname "$0")" && pwd)
home=${CLIENTS_HOME:-$here/../../build/clients}
python=${PYTHON:-python3}
failed=

. "$here/../python_environment.sh"

install_javascript() {
    mkdir "$2" || return
    cp "$(dirname "$1")/package.json" "$1" "$2" || return
    npm ci --prefix "$2" --ignore-scripts --no-audit --no-fund --loglevel=error > /dev/null
}

install_java() {
    mvn -q -B -f "$1" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$2"
}

install() { # the environment $2, from the lock $1
    rm -rf "$2"
    case $1 in
    *.lock) install_python "$1" "$2" ;;
    *.json) install_javascript "$1" "$2" ;;
    *.xml) install_java "$1" "$2" ;;
    esac
}

mkdir -p "$home"
home=$(cd "$home" && pwd)
for lock in "$here"/*/requirements.lock "$here"/*/package-lock.json "$here"/*/pom.xml; do
    name=$(basename "$(dirname "$lock")")
    environment=$home/$name
    case $lock in
    *.lock) sum="$("$python" -V) $(cksum < "$lock")" ;;
    *) sum=$(cksum < "$lock") ;;
    esac
    if [ "$(cat "$environment/.installed" 2> /dev/null || true)" = "$sum" ]; then
        continue
    fi
    echo "installing the client $name into $environment"
    if install "$lock" "$environment"; then
        echo "$sum" > "$environment/.installed"
    else
        failed="$failed $name"
    fi
done
if [ -n "$failed" ]; then
    echo "*** NOT INSTALLED:$failed. The tests with these clients do not run. ***" >&2
    test -z "${CI:-}"
fi
