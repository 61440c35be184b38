#!/bin/sh
# Usage: scripts/test.sh [CARGO-TEST-OPTION...] [FILTER] [-- TEST-OPTION...]
#
# Runs the whole test suite, from an empty machine, with all features. Arguments select tests, as
# those of `cargo test`: -p, --package, --test, --example, --bench, --features, --lib, --bins,
# --tests, --examples, --doc, --no-run, --no-fail-fast, --release, -q, --quiet, -v, --verbose.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
value=
for argument in "$@"; do
    [ -z "$value" ] || { value= && continue; }
    case $argument in
        -h | --help) usage && exit 0 ;;
        --) break ;;
        -p | --package | --test | --example | --bench | --features) value=follows ;;
        --package=* | --test=* | --example=* | --bench=* | --features=*) ;;
        --lib | --bins | --tests | --examples | --doc | --no-run | --no-fail-fast | --release) ;;
        -q | --quiet | -v | --verbose) ;;
        -*) misused "unknown option: $argument" ;;
    esac
done
. scripts/setup-postgres.sh
. scripts/setup-tests.sh
exec cargo test --workspace --all-features "$@"
