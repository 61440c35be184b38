#!/bin/sh
# Usage: scripts/platforms.sh
#
# Compiles the library with Rust 1.85, the oldest version that it supports, without warnings: with
# the default features, with none, and with all but `time`. Then runs the unit tests but those of
# TLS, whose certificates are made by a crate that needs Rust 1.88. For Debian 12, as root.
#
# The compiler is that of Debian 13, in a chroot that debootstrap makes from the mirror of the
# machine's apt. It is removed at the end; with KEEP=yes it stays in target/platforms, where the
# next run uses it. CARGO_CONFIG is a file for Cargo in the chroot, such as one that names a
# registry. The output is in target/platforms/rust-1.85.log.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 0 "$@"
[ "$(id -u)" = 0 ] || die "Run this as root: it makes a chroot"
. scripts/chroot.sh
folder=$PWD/target/platforms
root=$folder/trixie
mkdir -p "$folder"
make_chroot "$root" trixie rustc cargo gcc libc6-dev ca-certificates

# Runs a command in the chroot. The mounts end with it. All processes in it end with the first one.
inside() {
    unshare --mount --pid --fork --kill-child sh -c '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount -t tmpfs tmpfs "$root/dev/shm"
        # The root certificates of this machine, for Cargo.
        mount --bind /etc/ssl/certs "$root/etc/ssl/certs"
        mkdir -p "$root/src"
        mount --bind "$PWD" "$root/src"
        mount -o remount,bind,ro "$root/src"
        exec chroot "$root" env CARGO_HOME=/cargo CARGO_TARGET_DIR=/build HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"' \
        sh "$root" "$@"
}

mkdir -p "$root/cargo"
[ -z "${CARGO_CONFIG:-}" ] || cp "$CARGO_CONFIG" "$root/cargo/config.toml"

# The features whose dependencies support Rust 1.85: since it fixed an advisory, `time` does not.
features=bb8,chrono,deadpool,rust_decimal,uuid

# A copy of the library without the dependencies that its unit tests do not need: some of those do
# not support Rust 1.85.
copy_library() {
    rm -rf "$root/copy"
    mkdir "$root/copy"
    cp -R src README.md "$root/copy"
    awk '
        /^\[/ { section = $0; kept = section !~ /^\[\[|^\[profile|^\[workspace/ }
        section == "[dev-dependencies]" && !/^\[/ &&
            !/^(bb8|chrono|deadpool|futures-util|metrics-util|serde|socket2|tempfile|tokio) =/ && NF { next }
        /^include/ { next }
        kept
        END { print "[workspace]" }' Cargo.toml >"$root/copy/Cargo.toml"
    cp Cargo.lock "$root/copy"
}

rust_1_85() {
    inside sh -c "cd /src && export RUSTFLAGS='-D warnings' && cargo check --locked --lib &&
        cargo check --locked --lib --no-default-features &&
        cargo check --locked --lib --features $features,encrypted-keys,tls-aws-lc-rs,webpki-roots" &&
        copy_library &&
        inside sh -c "cd /copy && cargo test --lib --no-default-features --features $features"
}

log=$folder/rust-1.85.log
echo "Compiling with Rust 1.85 ..."
rust_1_85 >"$log" 2>&1 || die "Failed: see $log"
rustc=$(inside rustc --version | cut -d ' ' -f 2)
tests=$(sed -n 's/^test result: ok. \([0-9]*\) passed.*/\1/p' "$log" | head -n 1)
echo
echo "| platform | result |"
echo "|---|---|"
echo "| Rust $rustc | no warnings; $tests unit tests, without TLS, pass |"
