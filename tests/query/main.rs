//! Queries: what is sent, how values are bound, typed filters, and prepared statements.

mod filters;
mod query;
mod statements;
#[path = "../support/mod.rs"]
mod support;
mod values;
