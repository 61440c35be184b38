//! The example `axum` over HTTP and in a browser.

mod axum;
mod browser;
#[path = "../support/mod.rs"]
mod support;
