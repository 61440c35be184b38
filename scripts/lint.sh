#!/bin/sh
# Usage: scripts/lint.sh [format|clippy|docs|prose]...
#
# Checks that need no server: the format, clippy with all features and with none, the documentation,
# and the rules of writing. Without arguments, all of them.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 4 "$@"
for check in "$@"; do
    case $check in format | clippy | docs | prose) ;; *) misused "unknown check: $check" ;; esac
done

for check in ${*:-format clippy docs prose}; do
    echo "lint: $check"
    case $check in
        format)
            # Packages of their own, beside the workspace.
            for package in . benches/compare fuzz tests/public-api; do
                cargo fmt --all --manifest-path "$package/Cargo.toml" --check
            done
            ;;
        clippy)
            cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings
            cargo clippy --quiet --all-targets --no-default-features -- -D warnings
            # --all-targets omits those with `test = false` or `bench = false`.
            cargo clippy --quiet --features deadpool --test engines --bench failover --bench soak -- -D warnings
            ;;
        docs) RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --all-features ;;
        prose) cargo test --quiet --all-features --test structure prose:: ;;
    esac
done
