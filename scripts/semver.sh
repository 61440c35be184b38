#!/bin/sh
# Usage: scripts/semver.sh [COMMIT]
#
# Whether the version fits the changes of the public API since a release. Default: the commit in
# tests/public-api/release.txt, because a clone may have no tags.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 1 "$@"

version=0.51.0

release=${1:-$(cat tests/public-api/release.txt)}
git cat-file -e "$release^{commit}" 2>/dev/null ||
    die "There is no commit $release to compare with: git fetch --unshallow"
PATH="$PWD/target/tools/bin:$PATH"
if [ "$(cargo-semver-checks --version 2>/dev/null)" != "cargo-semver-checks $version" ]; then
    echo "Building cargo-semver-checks $version into target/tools ..."
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --debug --locked "cargo-semver-checks@$version" --root target/tools
fi
exec cargo-semver-checks semver-checks --all-features --baseline-rev "$release"
