#!/bin/sh
# Usage: scripts/public-api.sh [check]
#
# Writes every item of the public API into tests/public-api/public-api.txt. With `check`, compares
# them with that file.
#
# They are read from rustdoc's JSON, whose format depends on the version of the compiler.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
check_arguments 1 "$@"
[ "${1-check}" = check ] || misused "unknown argument: $1"
version=1.95
list=tests/public-api/public-api.txt

rustc --version | grep -q "^rustc $version\." || {
    echo "The public API is listed with Rust $version, as rust-toolchain.toml has it" >&2
    exit 1
}
mkdir -p target/public-api
# The JSON is not stable yet: a stable compiler writes it only with RUSTC_BOOTSTRAP. It is set for
# rustdoc only, because Cargo would build the dependencies again otherwise.
cat >target/public-api/rustdoc <<'END'
#!/bin/sh
case " $* " in *" --output-format json "*) export RUSTC_BOOTSTRAP=1 ;; esac
exec rustdoc "$@"
END
chmod +x target/public-api/rustdoc
RUSTDOC=$PWD/target/public-api/rustdoc cargo rustdoc --quiet --lib --all-features -- \
    -Z unstable-options --output-format json
found=target/public-api/found.txt
cargo run --quiet --locked --manifest-path tests/public-api/Cargo.toml --target-dir target/public-api -- \
    target/doc/fraiseql_wire.json >"$found"

if [ "${1:-}" = check ]; then
    diff -u "$list" "$found" || {
        echo "The public API has changed. If that is intended, read COMPATIBILITY_POLICY.md, run" >&2
        echo "scripts/public-api.sh, and add the change to docs/API_AUDIT.md and CHANGELOG.md." >&2
        exit 1
    }
else
    cp "$found" "$list"
fi
