//! Faults: servers that stop, malformed messages, lost connections, and their errors.

mod errors;
mod faults;
mod hostile;
#[path = "../support/mod.rs"]
mod support;
