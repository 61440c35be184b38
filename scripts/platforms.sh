#!/bin/sh
# Usage: scripts/platforms.sh [NAME...]
#
# Tests the library with the oldest Rust that it supports, and for other platforms with the same
# compiler. Prints a table of results. Default: all of them. For Debian 12 on x86_64, as root.
#
# NAME is one of:
#   rust-1.85  no warnings with the default features, with none, and with all but `time`; then the
#              unit tests
#   windows    x86_64-pc-windows-gnu, with wine
#   aarch64    aarch64-unknown-linux-gnu, with qemu
#   musl       x86_64-unknown-linux-musl, static
# The last three run the unit tests, and the checks of tests/engines with a server: without TLS,
# with `sslmode=verify-full` and a file of roots, and with `sslrootcert=system`.
#
# All programs are those of Debian 13, in a chroot that debootstrap makes from the mirror of the
# machine's apt. It is removed at the end; with KEEP=yes it stays in target/platforms, where the
# next run uses it. CARGO_CONFIG is a file for Cargo in the chroot, such as one that names a
# registry. The complete output is in target/platforms.
#
# Everything runs in namespaces, which end with this script, however that ends. Those of the server
# and the tests have no network.
set -eu

all="rust-1.85 windows aarch64 musl"

# Inside the namespaces: $1 is "inside", $2 the folder target/platforms, $3 the platform, $4 the
# unit tests, $5 the program with the checks. The rest: a command that runs a program.
if [ "${1:-}" = inside ]; then
    folder=$2
    name=$3
    unit_tests=$4
    checks=$5
    shift 5
    root=$folder/trixie
    work=/run/test
    PGPASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    export PGPASSWORD
    inside() { chroot "$root" env -u SSL_CERT_FILE -u SSL_CERT_DIR HOME=/root LC_ALL=C.UTF-8 "$@"; }
    as_postgres() { inside setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mkdir -p "$root$work"
    mount -t tmpfs tmpfs "$root$work"
    inside ip link set lo up

    # The server's certificate, and the only root that the system trusts. Each connection reads all
    # of them, which takes seconds with wine and qemu if there are many.
    inside sh -c "
        set -e
        cd $work
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=root -days 2 -keyout root.key -out root.crt
        openssl req -new -newkey rsa:2048 -nodes -subj /CN=server -addext subjectAltName=IP:127.0.0.1 \\
            -keyout server.key -out server.csr
        openssl x509 -req -in server.csr -copy_extensions copyall -CA root.crt -CAkey root.key -days 2 -out server.crt
        mkdir roots
        cp root.crt roots/ca-certificates.crt
        install -d -o postgres -g postgres -m 700 postgres
        chown postgres: server.key"
    mount --bind "$root$work/roots" "$root/etc/ssl/certs"

    bin=/usr/lib/postgresql/17/bin
    (umask 077 && printf '%s\n' "$PGPASSWORD" >"$root$work/postgres/password")
    inside chown postgres: $work/postgres/password
    as_postgres $bin/initdb -A scram-sha-256 -E UTF8 --locale=C.UTF-8 -U postgres \
        --pwfile=$work/postgres/password -D $work/postgres/data
    as_postgres $bin/pg_ctl -D $work/postgres/data -w -l $work/postgres/log -o "-p 5417 -c fsync=off \
        -c unix_socket_directories=$work/postgres -c ssl=on -c ssl_cert_file=$work/server.crt \
        -c ssl_key_file=$work/server.key" start
    . tests/engines/relations.sh
    as_postgres psql -h $work/postgres -p 5417 -U postgres -qX -v ON_ERROR_STOP=1 -c "$table; $endless; $recreate"

    # $1: a name. The rest: a command, in the library's folder. An exit status that is not 0 is the
    # last line of the errors.
    run() {
        output=$folder/$name-$1
        shift
        inside sh -c 'cd /copy && exec timeout 1200 "$@"' sh "$@" >"$output.txt" 2>"$output.err" ||
            echo "exit status $?" >>"$output.err"
    }
    drive=
    if [ "$name" = windows ]; then
        drive=Z:
        export WINEPREFIX=$work/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
        run start "$@" wineboot --init
    fi
    url="postgres://probe@127.0.0.1:5417/postgres?connect_timeout=10"
    run unit "$@" "$unit_tests"
    run plaintext "$@" "$checks" "$url&sslmode=disable"
    run verify-full "$@" "$checks" "$url&sslmode=verify-full&sslrootcert=$drive$work/root.crt"
    run system "$@" "$checks" "$url&sslrootcert=system"
    exit
fi

cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 4 "$@"
for name in "$@"; do
    case " $all " in *" $name "*) ;; *) misused "unknown name: $name" ;; esac
done
names=${*:-$all}
[ "$(id -u)" = 0 ] || die "Run this as root: it makes a chroot and namespaces"
. scripts/chroot.sh
folder=$PWD/target/platforms
root=$folder/trixie
mkdir -p "$folder"
make_chroot "$root" trixie rustc cargo gcc libc6-dev ca-certificates openssl

# Runs a command in the chroot, with the repository in /src.
inside() {
    # shellcheck disable=SC2016
    isolate "" sh -c '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount -t tmpfs tmpfs "$root/dev/shm"
        # The root certificates of this machine, for Cargo.
        mount --bind /etc/ssl/certs "$root/etc/ssl/certs"
        mkdir -p "$root/src"
        mount --bind "$PWD" "$root/src"
        mount -o remount,bind,ro "$root/src"
        exec chroot "$root" env CARGO_HOME=/cargo CARGO_TARGET_DIR=/build HOME=/root LC_ALL=C.UTF-8 "$@"' \
        sh "$root" "$@"
}

export CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0
mkdir -p "$root/cargo"
[ -z "${CARGO_CONFIG:-}" ] || cp "$CARGO_CONFIG" "$root/cargo/config.toml"

# The features whose dependencies support Rust 1.85: since it fixed an advisory, `time` does not.
features=bb8,chrono,deadpool,rust_decimal,uuid

# A copy of the library without the dependencies that its unit tests and the checks do not need:
# some of those do not support Rust 1.85. rcgen and `time`, which it needs, become older versions.
copy_library() {
    rm -rf "$root/copy"
    mkdir -p "$root/copy/tests/support" "$root/copy/.cargo"
    cp -R src README.md Cargo.lock "$root/copy"
    cp -R tests/engines "$root/copy/tests"
    cp tests/support/random.rs "$root/copy/tests/support"
    awk '
        /^\[/ { section = $0; kept = section !~ /^\[\[|^\[profile|^\[workspace/ }
        section == "[dev-dependencies]" && !/^\[/ && NF &&
            !/^(bb8|chrono|deadpool|futures-util|metrics-util|rcgen|rustls|serde|socket2|tempfile|tokio|webpki|x509-cert) =/ { next }
        /^include/ { next }
        /^rcgen/ { sub(/version = "[^"]*"/, "version = \"0.14\"") }
        /^time/ { sub(/version = "[^"]*"/, "version = \"0.3\"") }
        kept
        END {
            print "[[test]]\nname = \"engines\"\npath = \"tests/engines/main.rs\"\nharness = false"
            print "[workspace]"
        }' Cargo.toml >"$root/copy/Cargo.toml"
    cat >"$root/copy/.cargo/config.toml" <<END
[target.x86_64-pc-windows-gnu]
linker = "x86_64-w64-mingw32-gcc"
[target.aarch64-unknown-linux-gnu]
linker = "aarch64-linux-gnu-gcc"
[target.x86_64-unknown-linux-musl]
linker = "musl-gcc"
rustflags = ["-C", "link-self-contained=no", "-C", "relocation-model=static", "-L", "/unwind"]
END
    inside sh -c "cd /copy && cargo update rcgen time"
}

# Compiles the unit tests and the checks, and runs them. $1: the target, $2: its standard library:
# "installed", or "built" from the source. The rest: a command that runs a program.
test_target() {
    target=$1
    build=cargo
    [ "$2" = installed ] || build="RUSTC_BOOTSTRAP=1 cargo -Zbuild-std"
    shift 2
    add_packages "$root" postgresql-17 iproute2
    inside sh -c "cd /copy && $build test --target $target --lib --test engines --features $features \
        --no-run --message-format=json-render-diagnostics" >"$folder/$name.json" || return 1
    unit_tests=$(sed -n 's/.*"executable":"\([^"]*fraiseql_wire-[^"]*\)".*/\1/p' "$folder/$name.json")
    checks=$(sed -n 's/.*"executable":"\([^"]*engines-[^"]*\)".*/\1/p' "$folder/$name.json")
    isolate --net sh scripts/platforms.sh inside "$folder" "$name" "$unit_tests" "$checks" "$@"
}

rust_1_85() {
    inside sh -c "cd /src && export RUSTFLAGS='-D warnings' && cargo check --locked --lib &&
        cargo check --locked --lib --no-default-features &&
        cargo check --locked --lib --features $features,encrypted-keys,tls-aws-lc-rs,webpki-roots" &&
        inside sh -c "cd /copy && cargo test --lib --features $features" >"$folder/$name-unit.txt" 2>"$folder/$name-unit.err"
}

windows() {
    add_packages "$root" rust-src gcc-mingw-w64-x86-64-posix wine64 libgnutls30t64
    # Debian has no standard library for this target. It begins and ends with these two objects.
    # shellcheck disable=SC2016
    inside sh -c '
        library=$(rustc --print sysroot)/lib/rustlib
        mkdir -p "$library/$1/lib"
        for object in rsbegin rsend; do
            RUSTC_BOOTSTRAP=1 rustc --target "$1" --emit obj -o "$library/$1/lib/$object.o" \
                "$library/src/rust/library/rtstartup/$object.rs"
        done' sh x86_64-pc-windows-gnu &&
        test_target x86_64-pc-windows-gnu built /usr/lib/wine/wine64
}

aarch64() {
    add_packages "$root" libstd-rust-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
    test_target aarch64-unknown-linux-gnu installed qemu-aarch64
}

musl() {
    add_packages "$root" rust-src musl-tools
    # The standard library unwinds with GCC's library. Debian's calls a function of glibc that musl
    # does not have. Only what that library reads of its result is filled in.
    cat >"$root/root/find.c" <<END
#define _GNU_SOURCE
#include <link.h>
struct object { unsigned long long flags; void *start, *end, *map, *eh_frame; };
static int find(struct dl_phdr_info *info, size_t size, void *object) {
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_GNU_EH_FRAME) {
            ((struct object *)object)->eh_frame = (void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
            return 1;
        }
    return 0;
}
int _dl_find_object(void *address, struct object *object) { return dl_iterate_phdr(find, object) - 1; }
END
    # shellcheck disable=SC2016
    inside sh -c '
        mkdir -p /unwind && cd /unwind
        musl-gcc -O -c /root/find.c
        cp "$(gcc -print-file-name=libgcc_eh.a)" libunwind.a
        ar r libunwind.a find.o' &&
        test_target x86_64-unknown-linux-musl built env &&
        # No loader, so it is static.
        inside sh -c '! readelf --program-headers "$1" | grep INTERP' sh "$checks"
}

# The version of a package, without those of its packaging.
version() { chroot "$root" dpkg-query -W -f '${Version}' "$1" | sed 's/^[0-9]*://; s/[+~-].*//'; }

# How many unit tests passed, of how many.
unit_tests_of() {
    sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; .*/\1 \2/p' "$folder/$name-unit.txt" |
        awk '{ print $1 " of " $1 + $2 }'
}

# How many checks work, of how many. $1: the run.
checks_of() {
    awk -F '\t' '
        /^exit status/ { failed = "; " $0 }
        NF > 1 { total++ }
        $2 == "works" { works++ }
        END { print works + 0 " of " total + 0 failed }' "$folder/$name-$1.txt" "$folder/$name-$1.err"
}

copy_library >"$folder/copy.log" 2>&1 || die "The dependencies could not be resolved: see $folder/copy.log"
table=
failed=
for name in $names; do
    echo "$name ..."
    rm -f "$folder/$name"[-.]*
    log=$folder/$name.log
    test=$(echo "$name" | tr .- __)
    if ! $test >"$log" 2>&1; then
        failed="$failed $log"
        continue
    fi
    case $name in
        rust-1.85) with="no warnings" ;;
        windows) with="Wine $(version wine64)" ;;
        aarch64) with="QEMU $(version qemu-user)" ;;
        musl) with="musl $(version musl-dev)" ;;
    esac
    row="| $name | Rust $(version rustc), $with | $(unit_tests_of) |"
    for run in plaintext verify-full system; do
        cell=
        [ "$name" = rust-1.85 ] || cell=" $(checks_of $run)"
        row="$row$cell |"
    done
    table="$table
$row"
    # The last line of a failure, and a check that returned an error.
    for output in $(grep -l -e '^exit status' -e '	error	' "$folder/$name"-*.err "$folder/$name"-*.txt); do
        failed="$failed $output"
    done
done
echo
LC_ALL=C date '+%-d %B %Y'
echo "| platform | with | unit tests | checks without TLS | checks with a file of roots | checks with the system's roots |"
echo "|---|---|---|---|---|---|$table"
[ -z "$failed" ] || die "Failed:$failed"
