#!/bin/sh
# Usage: scripts/miri.sh
#
# Runs the pure layers under Miri, and the statistics that two threads share in orders that the
# memory model allows.
# Needs a nightly compiler, and so is not one of the usual checks:
#   rustup toolchain install nightly --component miri --component rust-src
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 0 "$@"
flags='--lib --no-default-features'

# shellcheck disable=SC2086
MIRIFLAGS='-Zmiri-disable-isolation' cargo +nightly miri test $flags -- \
    protocol:: sql:: error:: md5:: metrics:: stream:: config::parse
# shellcheck disable=SC2086
MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-many-seeds=0..64' cargo +nightly miri test $flags -- \
    stream_stats_are_consistent_while_rows_are_consumed
