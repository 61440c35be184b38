# Sourced by the other scripts: makes sure that Rust and the Postgres server programs are there.
#
# A running server is never touched, and none is started: the tests and examples start private
# servers of their own.

die() {
    echo "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "Run this as root once, or install sudo: it needs $*"
    fi
}

apt_install() {
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The same places as find_binaries() in tests/support/cluster.rs.
have_postgres() {
    if [ -n "${PG_BIN:-}" ]; then
        [ -x "$PG_BIN/initdb" ] || die "PG_BIN is $PG_BIN, where initdb is not"
        return 0
    fi
    for initdb in "$(command -v initdb)" /usr/lib/postgresql/*/bin/initdb \
        /opt/homebrew/opt/postgresql*/bin/initdb /usr/local/opt/postgresql*/bin/initdb; do
        if [ -n "$initdb" ] && [ -x "$initdb" ]; then
            return 0
        fi
    done
    return 1
}

install_postgres() {
    if ! command -v apt-get >/dev/null; then
        [ "$(uname)" = Darwin ] &&
            die "Postgres is missing. Install it with: brew install postgresql@17"
        die "Postgres is missing. Install its server package (initdb, pg_ctl, postgres), or set" \
            "PG_BIN to the folder of these programs"
    fi
    echo "Installing Postgres (its programs only, no server is set up) ..."
    # Debian's package would make and start a server; this keeps it from doing so.
    no_server=/etc/postgresql-common/createcluster.d/fraiseql-wire.conf
    as_root mkdir -p "${no_server%/*}"
    echo "create_main_cluster = false" | as_root tee "$no_server" >/dev/null
    installed=yes
    apt_install postgresql || installed=no
    as_root rm -f "$no_server"
    [ "$installed" = yes ] && have_postgres || die "Postgres could not be installed; see above"
}

command -v cargo >/dev/null || die "Rust is missing. Install it from https://rustup.rs"
command -v cc >/dev/null || die "A C compiler is missing. On Debian: apt-get install gcc libc6-dev"
have_postgres || install_postgres
