//! What connections report: events of `tracing`, and errors of the protocol.

use crate::{
    error::{Error, Result},
    metrics::connection::protocol_error,
    protocol::backend::Message,
};

/// The target of all `tracing` events of this crate.
pub(crate) const TARGET: &str = "fraiseql_wire";

/// Counts a protocol error in a message of this name.
pub(crate) fn count_protocol_error<T>(message: &'static str, result: Result<T>) -> Result<T> {
    if let Err(Error::Protocol { .. }) = result {
        protocol_error(message);
    }
    result
}

/// Returns the error of an unexpected message, and counts it.
pub(super) fn unexpected<T>(message: &Message, expected: &str) -> Result<T> {
    count_protocol_error(message.name(), Err(message.unexpected(expected)))
}
