//! What connections report: events of `tracing`, and errors of the protocol.

use crate::{
    error::{Error, Result},
    metrics::connection::protocol_error,
    protocol::backend::Message,
};

/// The target of every event of this crate.
pub(crate) const TARGET: &str = "fraiseql_wire";

/// Counts what a server has said against the protocol, in a message of this name.
pub(crate) fn count_protocol_error<T>(message: &'static str, result: Result<T>) -> Result<T> {
    if let Err(Error::Protocol { .. }) = result {
        protocol_error(message);
    }
    result
}

/// The error of a message that came where it must not.
pub(super) fn unexpected<T>(message: &Message, expected: &str) -> Result<T> {
    count_protocol_error(message.name(), Err(message.unexpected(expected)))
}
