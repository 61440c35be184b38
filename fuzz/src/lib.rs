//! Fuzz targets as plain functions. libFuzzer calls them from `fuzz_targets/`; `cargo test --test
//! fuzz` calls them with the inputs in `seeds/` and mutations of these.
//!
//! Run one with `cargo +nightly fuzz run -s none rows fuzz/corpus/rows fuzz/seeds/rows`. It needs
//! no sanitizer, because the crate has no `unsafe`.

// Most modules are not public, so their source is included here. A feature that exports them would
// make them public API: Cargo enables the features that any crate of a build requests, for all of
// them.
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
