//! Which errors a query can be resumed after.

use crate::error::{DbError, Error, TimeoutPhase, sqlstate};

/// Returns whether a query can be resumed after this error.
pub(in crate::stream_impl) fn is_transient(error: &Error) -> bool {
    match error {
        Error::Timeout { phase, .. } => *phase == TimeoutPhase::Read,
        // A conflict with recovery on a standby.
        Error::Server(e) if *e.code() == sqlstate::T_R_SERIALIZATION_FAILURE => true,
        Error::Server(e) if is_pooler_error(e) => true,
        error => error.ends_session() && error.is_retriable(),
    }
}

/// Returns whether PgBouncer itself reports the error. It uses one SQLSTATE for all its errors, and
/// sends no routine.
///
/// During a response, the error means that the server is lost or that a timeout expired. At other
/// times it can also mean that a login or a transaction was rejected, so it is not retriable in
/// general.
fn is_pooler_error(error: &DbError) -> bool {
    error.severity() == "FATAL"
        && *error.code() == sqlstate::PROTOCOL_VIOLATION
        && error.routine().is_none()
}
