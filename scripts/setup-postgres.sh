# Sourced by the other scripts: makes sure that Rust and the Postgres server programs are there.
#
# A running server is never touched, and none is started: the tests and examples start private
# servers of their own.

if [ -z "${cleanup:-}" ]; then
    usage="Usage: . scripts/setup-postgres.sh, in a script that has sourced scripts/common.sh"
    case ${1:-} in -h | --help) echo "$usage" && exit 0 ;; esac
    echo "$usage" >&2
    exit 2
fi

# The same places as find_binaries() in examples/support/cluster.rs.
have_postgres() {
    if [ -n "${PG_BIN:-}" ]; then
        [ -x "$PG_BIN/initdb" ] || die "PG_BIN is $PG_BIN, where initdb is not"
        return 0
    fi
    for initdb in "$(command -v initdb)" "${SYSTEM_ROOT:-}"/usr/lib/postgresql/*/bin/initdb \
        "${SYSTEM_ROOT:-}"/opt/homebrew/opt/postgresql*/bin/initdb \
        "${SYSTEM_ROOT:-}"/usr/local/opt/postgresql*/bin/initdb; do
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
    apt_install postgresql && have_postgres || die "Postgres could not be installed; see above"
}

command -v cargo >/dev/null || die "Rust is missing. Install it from https://rustup.rs"
command -v cc >/dev/null || die "A C compiler is missing. On Debian: apt-get install gcc libc6-dev"
have_postgres || install_postgres
