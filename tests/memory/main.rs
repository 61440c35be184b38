//! Memory and allocations, counted for the whole process: one test runs at a time.

mod memory;
mod short;
#[path = "../support/mod.rs"]
mod support;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::sync::Mutex;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Every test of this binary holds it: what is counted is the process's.
static ALONE: Mutex<()> = Mutex::const_new(());
