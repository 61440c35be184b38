//! The HTTP status for an error.

use axum::http::StatusCode;
use fraiseql_wire::{Error, ErrorCategory, sqlstate};

/// Returns the status of a response that has not begun.
///
/// ERROR_HANDLING_GUIDE.md lists it for each category. If the database rejects the login, the
/// service is misconfigured, not its client, so the status is not 401.
pub fn status(error: &Error) -> StatusCode {
    match error.category() {
        ErrorCategory::Timeout => StatusCode::GATEWAY_TIMEOUT,
        // By statement_timeout.
        ErrorCategory::Server if error.sqlstate() == Some(&sqlstate::QUERY_CANCELED) => {
            StatusCode::GATEWAY_TIMEOUT
        }
        ErrorCategory::InvalidState => StatusCode::CONFLICT,
        // By this service, when it stops.
        ErrorCategory::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        _ if error.is_retriable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
