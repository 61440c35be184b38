#!/bin/sh
# Instructions a row, counted by callgrind. With `check`, this crate's are compared with those in
# docs/benchmarks.md; without, those of every client are counted and written there.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup-postgres.sh
. scripts/setup-bench.sh
command -v valgrind >/dev/null || apt_install valgrind || die "valgrind is missing: install it"
if [ "${1:-}" = check ]; then
    build_compare ""
    exec "$(compare_in "")" instructions check
fi
build_compare peers
exec "$(compare_in peers)" instructions write
