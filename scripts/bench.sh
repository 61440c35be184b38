#!/bin/sh
# Usage: scripts/bench.sh [short] [ROUNDS]
#
# Compares this crate with other clients, and writes docs/benchmarks.md. Takes about 25 minutes.
# Default: 5 rounds. With `short`, runs only the short queries, in about 4 minutes, and prints their
# tables too.
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
exec "$(compare_in peers)" short compare "$rounds" "$(compare_in "")"
