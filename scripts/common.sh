# Sourced by the scripts, in the root of the repository: usage, and cleaning up.

case ${0##*/} in common.sh)
    usage="Usage: . scripts/common.sh, in another script"
    case ${1:-} in -h | --help) echo "$usage" && exit 0 ;; esac
    echo "$usage" >&2
    exit 2
    ;;
esac

die() {
    echo "$*" >&2
    exit 1
}

# The comment at the top of the script that runs.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "scripts/${0##*/}"; }

# Rejects the arguments.
misused() {
    echo "$*" >&2
    usage >&2
    exit 2
}

# $1: the maximum number of arguments that are no options. The rest: all arguments.
# Answers --help, and rejects every other option.
check_arguments() {
    maximum=$1
    shift
    for argument in "$@"; do
        case $argument in
            -h | --help) usage && exit 0 ;;
            -*) misused "unknown option: $argument" ;;
        esac
    done
    [ $# -le "$maximum" ] || misused "too many arguments: $*"
}

# Whether the argument is a number above 0.
check_number() {
    case $1 in
        '' | 0 | *[!0-9]*) misused "not a number: $1" ;;
    esac
}

# Commands that remove what a script has created, in reverse order. They run when it ends, also when
# a signal ends it.
cleanup=:
at_exit() { cleanup="$1; $cleanup"; }
clean_up() {
    # What has begun is completed.
    trap '' INT TERM HUP
    eval "$cleanup"
    cleanup=:
    catch_signals
}
catch_signals() {
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}
trap clean_up EXIT
catch_signals

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "Run this as root once, or install sudo: it needs $*"
    fi
}

# Installs Debian's packages without starting a service or creating a cluster. Both files are
# removed before the script continues; a leftover of a killed script is recognized by its comment.
# The tests set SYSTEM_ROOT, and install no package.
apt_install() {
    policy=${SYSTEM_ROOT:-}/usr/sbin/policy-rc.d
    no_cluster=${SYSTEM_ROOT:-}/etc/postgresql-common/createcluster.d/fraiseql-wire.conf
    # The packages' scripts ask this program whether they may start a service.
    if [ ! -e "$policy" ] || grep -q '^# fraiseql-wire' "$policy"; then
        at_exit "as_root rm -f '$policy'"
        printf '#!/bin/sh\n# fraiseql-wire is installing packages\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    at_exit "as_root rm -f '$no_cluster'"
    as_root mkdir -p "${no_cluster%/*}"
    echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
    installed=yes
    { as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >/dev/null; } || installed=no
    clean_up
    [ "$installed" = yes ]
}
