# Sourced by bench.sh and bench-instructions.sh: builds the program that compares.

if [ -z "${cleanup:-}" ]; then
    usage="Usage: . scripts/setup-bench.sh, in a script that has sourced scripts/common.sh"
    case ${1:-} in -h | --help) echo "$usage" && exit 0 ;; esac
    echo "$usage" >&2
    exit 2
fi

# $1: the features. Each in a folder of its own, so that none is built anew for another.
build_compare() {
    cargo build --release --quiet --locked --manifest-path benches/compare/Cargo.toml --features "$1" \
        --target-dir "target/compare-$1"
}

compare_in() {
    echo "$PWD/target/compare-$1/release/fraiseql-wire-compare"
}
