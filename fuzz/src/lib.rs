//! What is fuzzed, as plain functions: libFuzzer calls them by `fuzz_targets/`, and `cargo test --test fuzz`
//! with the inputs in `seeds/` and what can be made of those.
//!
//! `cargo +nightly fuzz run -s none rows fuzz/corpus/rows fuzz/seeds/rows`: without a sanitizer, because
//! there is no `unsafe` here that one could watch.

// Most of it is not public: this is its source once more.
#[path = "../../src/error/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod error;
#[path = "../../src/protocol/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod protocol;
#[path = "../../src/auth/scram.rs"]
#[allow(dead_code)]
mod scram;
#[path = "../../src/secret.rs"]
#[allow(dead_code)]
mod secret;

mod certificates;
mod config;
pub mod targets;
