#!/bin/sh
# Usage: scripts/quickstart.sh
#
# The main job, from an empty machine to typed rows. With DATABASE_URL set, on that server.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 0 "$@"
# A server of your own is enough.
[ -n "${DATABASE_URL:-}" ] || . scripts/setup-postgres.sh
exec cargo run --release --example quickstart
