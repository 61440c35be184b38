# Sourced by bench.sh and bench-instructions.sh: builds the program that compares.

# $1: the features. Each in a folder of its own, so that none is built anew for another.
build_compare() {
    cargo build --release --quiet --manifest-path benches/compare/Cargo.toml --features "$1" \
        --target-dir "target/compare-$1"
}

compare_in() {
    echo "$PWD/target/compare-$1/release/fraiseql-wire-compare"
}
