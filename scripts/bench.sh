#!/bin/sh
# This crate beside other clients, over the same rows: fills docs/benchmarks.md. Takes about 20 minutes;
# the argument is the number of rounds, 5 if there is none.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup-postgres.sh
. scripts/setup-bench.sh
build_compare peers
# A build of its own: benches/compare/Cargo.toml says why.
build_compare earlier
exec "$(compare_in peers)" compare "${1:-5}" "$(compare_in earlier)"
