#!/bin/sh
# Fetches the Kafka broker of the tests, once for each change of pom.xml beside this file, with Maven into build/kafka
# (KAFKA_JARS names another folder). Does nothing when it is there, and only says so when Java or Maven is missing:
# the tests then skip what needs a broker, and fail instead where CI is set.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
jars=${KAFKA_JARS:-$here/../../build/kafka}
pom_sum=$(cksum < "$here/pom.xml")

if [ "$(cat "$jars/.installed" 2>/dev/null || true)" = "$pom_sum" ]; then
    exit 0
fi
for program in java mvn; do
    if ! command -v "$program" > /dev/null; then
        echo "tests/kafka/install.sh: $program is missing, so no Kafka broker for the tests" >&2
        exit 0
    fi
done
echo "fetching the Kafka broker of the tests into $jars"
fresh=$jars.$$
trap 'rm -rf "$fresh"' EXIT
mkdir -p "$fresh"
mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$fresh" || {
    echo "tests/kafka/install.sh: Maven could not fetch Kafka, so no broker for the tests" >&2
    exit 0
}
echo "$pom_sum" > "$fresh/.installed"
rm -rf "$jars"
mv "$fresh" "$jars"
