//! Streams: rows, flow control, cancellation, parallel and resumed streams.

mod bodies;
mod cancel;
mod flow;
mod parallel;
mod pipeline;
mod scale;
mod stream;
#[path = "../support/mod.rs"]
mod support;
