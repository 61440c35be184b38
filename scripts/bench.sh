#!/bin/sh
# Usage: scripts/bench.sh [short] [ROUNDS]
#
# Compares this crate with other clients, and writes docs/benchmarks.md and benchmarks-raw.md. Takes
# about 30 minutes after the builds. Default: 5 rounds. With `short`, runs only the short queries
# and the first rows, in about 5 minutes. Clients that share connections run in at most 3 rounds.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 2 "$@"
short=
if [ "${1:-}" = short ]; then
    short=yes
    shift
fi
check_arguments 1 "$@"
rounds=${1-5}
check_number "$rounds"
. scripts/setup-postgres.sh
. scripts/setup-bench.sh
build_compare peers
# A build without the other drivers: see `Programs` in benches/compare/src/short/mod.rs.
build_compare ""
if [ -n "$short" ]; then
    exec "$(compare_in peers)" short compare "$rounds" "$(compare_in "")"
fi
# A build of its own: benches/compare/Cargo.toml says why.
build_compare earlier
"$(compare_in peers)" compare "$rounds" "$(compare_in earlier)"
"$(compare_in peers)" short compare "$rounds" "$(compare_in "")"
[ "$rounds" -le 3 ] || rounds=3
exec "$(compare_in peers)" short share "$rounds" "$(compare_in "")"
