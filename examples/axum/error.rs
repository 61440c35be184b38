//! Errors as HTTP responses. Details go to the log only.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fraiseql_wire::{Error, pool::deadpool::PoolError};
use tracing::{error, warn};

use crate::status::status;

#[derive(Debug)]
pub enum Failure {
    /// An invalid request, and why.
    BadRequest(String),
    /// A request for another host.
    Host,
    /// The stream does not exist, or has ended.
    NoStream,
    /// The service is stopping.
    Stopping,
    /// The pool returned no connection.
    Pool(PoolError),
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

/// Returns what a client may know of an error of the database.
pub fn reason(error: &Error) -> &'static str {
    match status(error) {
        _ if matches!(error, Error::Cancelled) => "the query was cancelled",
        StatusCode::CONFLICT => "the stream has ended",
        StatusCode::GATEWAY_TIMEOUT => "the database took too long",
        StatusCode::SERVICE_UNAVAILABLE => "the database cannot be reached: try again later",
        _ => INTERNAL,
    }
}

const INTERNAL: &str = "the orders could not be read: see the service's log";

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::NoStream => StatusCode::NOT_FOUND,
            Self::Stopping | Self::Pool(PoolError::Timeout(_) | PoolError::Closed) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Pool(PoolError::Backend(error)) | Self::Query(error) => status(error),
            Self::Pool(_) | Self::Random(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the same request can succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
    }

    /// Returns what the client may know.
    fn text(&self) -> &str {
        match self {
            Self::BadRequest(text) => text,
            Self::Host => "not a name of this service: add it to HOSTS",
            Self::NoStream => "there is no such stream, or it has ended",
            Self::Stopping | Self::Pool(PoolError::Closed) => "the service is being stopped",
            Self::Pool(PoolError::Timeout(_)) => "no connection is available: try again later",
            Self::Pool(PoolError::Backend(error)) | Self::Query(error) => reason(error),
            Self::Pool(_) | Self::Random(_) => INTERNAL,
        }
    }

    /// Logs what the client may not know.
    pub fn log(&self) {
        let status = self.status().as_u16();
        match self {
            Self::BadRequest(_) | Self::Host | Self::NoStream | Self::Stopping => {}
            Self::Pool(error) if self.is_temporary() => warn!(status, %error, "no connection"),
            Self::Pool(error) => error!(status, %error, "no connection"),
            Self::Query(error) if self.is_temporary() => warn!(status, %error, "query failed"),
            Self::Query(error) => error!(status, %error, "query failed"),
            Self::Random(error) => error!(status, %error, "no random bytes"),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.log();
        let status = self.status();
        let mut response = (status, format!("{}\n", self.text())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
