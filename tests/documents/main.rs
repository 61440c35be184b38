//! Documents, guides and examples, checked as a reader uses them.

mod documents;
mod examples;
mod guides;
mod quickstart;
#[path = "../../examples/axum/status.rs"]
mod status;
#[path = "../support/mod.rs"]
mod support;
