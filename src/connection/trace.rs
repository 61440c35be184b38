//! TRACE events of single messages: direction, name and size, but no contents. Rows have none.

use tracing::{Level, enabled, trace};

use super::report::TARGET;
use crate::protocol::frontend;

/// Emits an event for a message from the server.
#[inline]
pub(crate) fn trace_received(name: &'static str, bytes: usize) {
    if enabled!(target: TARGET, Level::TRACE) {
        emit("received", name, bytes);
    }
}

/// Emits an event for each message to the server in `bytes`, which holds complete messages.
#[inline]
pub(crate) fn trace_sent(bytes: &[u8]) {
    if enabled!(target: TARGET, Level::TRACE) {
        frontend::messages_in(bytes).for_each(|(name, bytes)| emit("sent", name, bytes));
    }
}

#[cold]
fn emit(direction: &'static str, name: &'static str, bytes: usize) {
    trace!(target: TARGET, direction, name, bytes, "protocol message");
}
