//! Errors as HTTP responses. Details go to the log only.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use deadpool::managed::PoolError;
use fraiseql_wire::{Error, sqlstate};

#[derive(Debug)]
pub enum Failure {
    /// An invalid request, and why.
    BadRequest(String),
    /// A request for another host.
    Host,
    /// The stream does not exist, or has ended.
    NoStream,
    /// The pool returned no connection.
    Pool(PoolError<Error>),
    /// The query failed, or could not be controlled.
    Query(Error),
    /// The system has no random bytes.
    Random(getrandom::Error),
}

impl From<getrandom::Error> for Failure {
    fn from(error: getrandom::Error) -> Self {
        Self::Random(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, text) = match &self {
            Self::BadRequest(text) => (StatusCode::BAD_REQUEST, text.as_str()),
            Self::Host => {
                (StatusCode::MISDIRECTED_REQUEST, "not a name of this service: add it to HOSTS")
            }
            Self::NoStream => (StatusCode::NOT_FOUND, "there is no such stream, or it has ended"),
            Self::Pool(PoolError::Backend(error)) | Self::Query(error) => of(error),
            Self::Pool(PoolError::Timeout(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "every connection is in use: try again later")
            }
            Self::Pool(PoolError::Closed) => {
                (StatusCode::SERVICE_UNAVAILABLE, "the service is being stopped")
            }
            Self::Pool(_) | Self::Random(_) => INTERNAL,
        };
        match &self {
            Self::BadRequest(_) | Self::Host | Self::NoStream => {}
            Self::Pool(error) => eprintln!("{status}: {error}"),
            Self::Query(error) => eprintln!("{status}: {error}"),
            Self::Random(error) => eprintln!("{status}: {error}"),
        }
        let mut response = (status, format!("{text}\n")).into_response();
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

const INTERNAL: (StatusCode, &str) =
    (StatusCode::INTERNAL_SERVER_ERROR, "the orders could not be read: see the service's log");

/// Temporary errors are those with a retry advice.
fn of(error: &Error) -> (StatusCode, &'static str) {
    match error {
        Error::InvalidState { .. } => (StatusCode::CONFLICT, "the stream has ended"),
        Error::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "the database took too long"),
        // By statement_timeout.
        Error::Server(e) if *e.code() == sqlstate::QUERY_CANCELED => {
            (StatusCode::GATEWAY_TIMEOUT, "the database took too long")
        }
        e if e.is_retriable() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the database cannot be reached: try again later")
        }
        _ => INTERNAL,
    }
}
