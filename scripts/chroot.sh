# Sourced by engines.sh and platforms.sh: chroots with newer releases of Debian.
#
# They are made with debootstrap, from the mirror in the machine's own apt configuration, and
# removed when the script ends, unless KEEP is set.

if [ -z "${cleanup:-}" ]; then
    usage="Usage: . scripts/chroot.sh, in a script that has sourced scripts/common.sh"
    case ${1:-} in -h | --help) echo "$usage" && exit 0 ;; esac
    echo "$usage" >&2
    exit 2
fi

command -v apt-get >/dev/null || die "The chroots are made of Debian's packages, with apt-get"
command -v debootstrap >/dev/null || apt_install debootstrap || die "debootstrap could not be installed"

# The site from which this machine installs packages of its release.
find_mirror() {
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016
    targets='apt-get indextargets --format $(RELEASE)_$(SITE)'
    mirror=$($targets | sed -n "s/^${codename}_//p" | head -n 1)
    [ -n "$mirror" ] || { apt-get update -qq && mirror=$($targets | sed -n "s/^${codename}_//p" | head -n 1); }
    [ -n "$mirror" ] || die "apt knows no mirror for $codename: run apt-get update"
}

# Runs a command in namespaces of its own, which end its mounts and processes with it. It ends when
# this script does. In the background, because a shell handles a signal only after a command in the
# foreground. $1: another option of unshare, or nothing.
isolated=
isolate() {
    option=$1
    shift
    # shellcheck disable=SC2086
    setpriv --pdeathsig KILL unshare $option --pid --fork --kill-child --mount-proc "$@" &
    isolated=$!
    status=0
    wait "$isolated" || status=$?
    isolated=
    return "$status"
}

# Returns when no process in the namespaces is left.
end_isolated() {
    [ -n "$isolated" ] || return 0
    # unshare ends after its child, which the kernel ends after all others.
    read -r child <"/proc/$isolated/task/$isolated/children" || child=$isolated
    kill -KILL $child 2>/dev/null || true
    wait "$isolated" 2>/dev/null || true
    isolated=
}

# $1: the folder, $2: the release. The rest: packages; with the prefix "experimental:", from there.
make_chroot() {
    root=$1
    suite=$2
    shift 2
    at_exit "end_isolated; [ -n '${KEEP:-}' ] && [ -e '$root/complete' ] || rm -rf --one-file-system '$root'"
    [ "$(head -n 1 "$root/complete" 2>/dev/null)" != "$*" ] || return 0
    find_mirror
    echo "Making a chroot of $suite ..."
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    isolate "" debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
        die "debootstrap failed: see $root.log"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    mkdir -p "$root/etc/postgresql-common/createcluster.d"
    echo "create_main_cluster = false" >"$root/etc/postgresql-common/createcluster.d/none.conf"
    # sid's is old at times, where a mirror is frozen.
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90valid"
    case "$*" in *experimental:*)
        echo "deb $mirror experimental main" >"$root/etc/apt/sources.list.d/experimental.list"
        ;;
    esac
    add_packages "$root" "$@"
}

# Installs packages in a chroot, if it does not have them. $1: the folder. The rest: packages.
add_packages() {
    root=$1
    shift
    ! grep -qxF "$*" "$root/complete" 2>/dev/null || return 0
    # What is interrupted is not complete.
    [ ! -e "$root/complete" ] || mv "$root/complete" "$root/incomplete"
    isolate "" sh -c '
        set -e
        root=$1; shift
        mount -t proc proc "$root/proc"
        case "$*" in *:arm64*) chroot "$root" dpkg --add-architecture arm64 ;; esac
        chroot "$root" apt-get update -qq
        for package in "$@"; do
            release=
            case $package in experimental:*) release="-t experimental" ;; esac
            chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get install -y -qq --no-install-recommends $release "${package#experimental:}"
        done' sh "$root" "$@" >>"$root.log" 2>&1 || die "The packages could not be installed: see $root.log"
    echo "$*" >>"$root/incomplete"
    mv "$root/incomplete" "$root/complete"
}
