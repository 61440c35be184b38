#!/bin/sh
# Usage: scripts/check-dependencies.sh
#
# Checks the dependencies against deny.toml: licenses, banned crates, and sources.
#
# Advisories change from day to day and come from the network: cargo deny check advisories.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 0 "$@"

version=0.20.2

PATH="$PWD/target/tools/bin:$PATH"
if [ "$(cargo-deny --version 2>/dev/null)" != "cargo-deny $version" ]; then
    echo "Building cargo-deny $version into target/tools ..."
    # Unoptimized: half the time to build, and one second more to run. CARGO_TARGET_DIR would keep
    # artifacts that are not needed again.
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --debug --locked "cargo-deny@$version" --root target/tools
fi

# Packages of other systems are checked too, and cargo-deny fetches nothing itself.
cargo fetch --quiet --locked
# A reason in deny.toml that no longer applies is an error as well.
cargo-deny --log-level warn --offline --locked --workspace \
    check -D unmatched-skip -D unnecessary-skip -D license-exception-not-encountered licenses bans sources
