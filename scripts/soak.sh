#!/bin/sh
# Many clients at once, of a server and networks that fail, for so many minutes: 20 if none are given. Nothing may be
# lost, and nothing may grow or stay behind. A seed may follow, to begin as another run did.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup-postgres.sh
[ -r /proc/self/status ] || die "What a process holds is read from /proc: this needs Linux"
exec cargo bench --quiet --bench soak -- "${1:-20}" ${2:+"$2"}
