#!/bin/sh
# This crate beside other clients: fills docs/benchmarks.md. Takes about 25 minutes. With `short`, only the
# short queries, in about 4 minutes; their tables are printed too. The last argument is the number of rounds,
# 5 by default.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup-postgres.sh
. scripts/setup-bench.sh
build_compare peers
# A build without the other drivers: see `Programs` in benches/compare/src/short/mod.rs.
build_compare ""
if [ "${1:-}" = short ]; then
    exec "$(compare_in peers)" short compare "${2:-5}" "$(compare_in "")"
fi
# A build of its own: benches/compare/Cargo.toml says why.
build_compare earlier
"$(compare_in peers)" compare "${1:-5}" "$(compare_in earlier)"
exec "$(compare_in peers)" short compare "${1:-5}" "$(compare_in "")"
