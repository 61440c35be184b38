//! What connections report: events of `tracing`, and errors of the protocol.

use crate::{
    error::{Error, Result},
    metrics::connection::protocol_error,
    protocol::backend::Message,
};

/// The target of all `tracing` events of this crate.
pub(crate) const TARGET: &str = "fraiseql_wire";

/// Counts an error in a message of this name, if it is a protocol error.
pub(crate) fn count_protocol_error(message: &'static str, error: &Error) {
    if let Error::Protocol { .. } = error {
        protocol_error(message);
    }
}

/// Returns the error of a message that violates the protocol, and counts it.
pub(crate) fn violation(message: &'static str, text: impl Into<String>) -> Error {
    protocol_error(message);
    Error::protocol(text)
}

/// Returns the error of an unexpected message, and counts it.
pub(super) fn unexpected<T>(message: &Message, expected: &str) -> Result<T> {
    protocol_error(message.name());
    Err(message.unexpected(expected))
}
