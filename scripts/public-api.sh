#!/bin/sh
# Usage: scripts/public-api.sh [check]
#
# The public API, every item of it, into docs/public-api.txt. With `check`, compared with what is there.
#
# It is read from rustdoc's JSON, which each version of the compiler writes differently; this is for the one below.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 1 "$@"
[ "${1-check}" = check ] || misused "unknown argument: $1"
version=1.95
list=docs/public-api.txt

rustc --version | grep -q "^rustc $version\." || {
    echo "The public API is listed with Rust $version: rustup run $version $0 $*" >&2
    exit 1
}
# The JSON is not stable yet, and a stable compiler writes it only so.
RUSTC_BOOTSTRAP=1 cargo rustdoc --quiet --lib --all-features --target-dir target/public-api -- \
    -Z unstable-options --output-format json
found=target/public-api/found.txt
cargo run --quiet --locked --manifest-path tests/public-api/Cargo.toml --target-dir target/public-api -- \
    target/public-api/doc/fraiseql_wire.json >"$found"

if [ "${1:-}" = check ]; then
    diff -u "$list" "$found" || {
        echo "The public API has changed. If that is meant, see what COMPATIBILITY_POLICY.md says of it, run" >&2
        echo "scripts/public-api.sh, and tell of it in docs/API_AUDIT.md and CHANGELOG.md." >&2
        exit 1
    }
else
    cp "$found" "$list"
fi
