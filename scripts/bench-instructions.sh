#!/bin/sh
# Usage: scripts/bench-instructions.sh [check] [short]
#
# Counts the instructions, copies and allocations of rows and short queries with valgrind. With
# `check`, compares this crate's counts with those in docs/benchmarks.md and benchmarks-raw.md.
# Otherwise counts those of every client and writes them there. With `short`, only those of short
# queries.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 2 "$@"
what="$*"
case $what in
    '' | check | short | 'check short') ;;
    *) misused "unknown arguments: $what" ;;
esac
. scripts/setup-postgres.sh
. scripts/setup-bench.sh
command -v valgrind >/dev/null || apt_install valgrind || die "valgrind is missing: install it"
build_compare ""
case $what in
    'check short') exec "$(compare_in "")" short check ;;
    check) exec "$(compare_in "")" instructions check ;;
esac
build_compare peers
[ "$what" = short ] || "$(compare_in peers)" instructions write
exec "$(compare_in peers)" short write "$(compare_in "")"
