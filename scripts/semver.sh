#!/bin/sh
# Usage: scripts/semver.sh [RELEASE]
#
# Whether the version fits the changes of the public API since a release. Default: the newest tag.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 1 "$@"

version=0.51.0

release=${1:-$(git describe --tags --abbrev=0 --match 'v[0-9]*')} || {
    echo "There is no tag of a release to compare with: git fetch --tags" >&2
    exit 1
}
PATH="$PWD/target/tools/bin:$PATH"
if [ "$(cargo-semver-checks --version 2>/dev/null)" != "cargo-semver-checks $version" ]; then
    echo "Building cargo-semver-checks $version into target/tools ..."
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --debug --locked "cargo-semver-checks@$version" --root target/tools
fi
exec cargo-semver-checks semver-checks --all-features --baseline-rev "$release"
