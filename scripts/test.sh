#!/bin/sh
# The whole test suite, from an empty machine. Arguments go to cargo test.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup-postgres.sh
. scripts/setup-tests.sh
exec cargo test --workspace --features bb8,deadpool "$@"
