#!/bin/sh
# Make sure that the servers are there which tests talk to. Installs what is missing where that is possible, and says so where not.
set -eu

if command -v redis-server >/dev/null 2>&1; then
    exit 0
fi
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then # the package would start a server of its own
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null; then
        exit 0
    fi
fi
echo '*** NO REDIS SERVER: install redis-server, or the tests of the Redis store do not run. ***' >&2
