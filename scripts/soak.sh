#!/bin/sh
# Usage: scripts/soak.sh [MINUTES [SEED]]
#
# Runs many clients at the same time, with a server and networks that fail. Default: 20 minutes.
# Nothing may be lost, and nothing may grow or remain. A seed repeats the beginning of another run.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 2 "$@"
for number in "$@"; do check_number "$number"; done
. scripts/setup-postgres.sh
[ -r /proc/self/status ] || die "The resources of a process are read from /proc: this needs Linux"
exec cargo bench --quiet --bench soak -- "${1:-20}" ${2:+"$2"}
