//! The category of an error and its retry advice.

use std::fmt;

use super::{
    db::DbError,
    hint::is_lost_snapshot,
    sqlstate,
    variants::{ConnectAttempt, Error},
};

/// The category of an error, one for each variant of [`Error`]. Suitable as a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCategory {
    /// [`Error::Config`]
    Config,
    /// [`Error::Connection`]
    Connection,
    /// [`Error::ConnectionClosed`]
    ConnectionClosed,
    /// [`Error::ConnectionBusy`]
    ConnectionBusy,
    /// [`Error::Tls`]
    Tls,
    /// [`Error::Authentication`]
    Authentication,
    /// [`Error::Protocol`]
    Protocol,
    /// [`Error::Server`]
    Server,
    /// [`Error::Cancelled`]
    Cancelled,
    /// [`Error::Timeout`]
    Timeout,
    /// [`Error::InvalidSchema`]
    InvalidSchema,
    /// [`Error::JsonDecode`]
    JsonDecode,
    /// [`Error::Deserialization`]
    Deserialization,
    /// [`Error::MemoryLimitExceeded`]
    MemoryLimit,
    /// [`Error::InvalidState`]
    InvalidState,
    /// [`Error::Io`]
    Io,
    /// [`Error::ConsumerLagged`]
    ConsumerLagged,
    // Later variants come last, so that `as` casts keep their values.
}

impl ErrorCategory {
    /// Returns the name used as a label of metrics, for example `connection_closed`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Connection => "connection",
            Self::ConnectionClosed => "connection_closed",
            Self::ConnectionBusy => "connection_busy",
            Self::Tls => "tls",
            Self::Authentication => "authentication",
            Self::Protocol => "protocol",
            Self::Server => "server",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
            Self::InvalidSchema => "invalid_schema",
            Self::JsonDecode => "json_decode",
            Self::Deserialization => "deserialization",
            Self::MemoryLimit => "memory_limit",
            Self::ConsumerLagged => "consumer_lagged",
            Self::InvalidState => "invalid_state",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for ErrorCategory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether and when to run the same query again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// The query would fail again unless something is changed first.
    Never,
    /// The query lost a conflict with another session, or its connection: it can succeed
    /// immediately.
    Immediately,
    /// The server, the network or the client is not ready: retry with increasing delays.
    AfterDelay,
}

impl Error {
    /// Returns the category of the error.
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Config { .. } => ErrorCategory::Config,
            Self::Connection { .. } => ErrorCategory::Connection,
            Self::ConnectionClosed { .. } => ErrorCategory::ConnectionClosed,
            Self::ConnectionBusy => ErrorCategory::ConnectionBusy,
            Self::Tls { .. } => ErrorCategory::Tls,
            Self::Authentication { .. } => ErrorCategory::Authentication,
            Self::Protocol { .. } => ErrorCategory::Protocol,
            Self::Server(_) => ErrorCategory::Server,
            Self::Cancelled => ErrorCategory::Cancelled,
            Self::Timeout { .. } => ErrorCategory::Timeout,
            Self::InvalidSchema { .. } => ErrorCategory::InvalidSchema,
            Self::JsonDecode { .. } => ErrorCategory::JsonDecode,
            Self::Deserialization { .. } => ErrorCategory::Deserialization,
            Self::MemoryLimitExceeded { .. } => ErrorCategory::MemoryLimit,
            Self::ConsumerLagged { .. } => ErrorCategory::ConsumerLagged,
            Self::InvalidState { .. } => ErrorCategory::InvalidState,
            Self::Io { .. } => ErrorCategory::Io,
        }
    }

    /// Returns whether running the same query again can succeed, on a new connection if necessary.
    ///
    /// A stream that failed after its first rows starts again at the first row.
    pub fn is_retriable(&self) -> bool {
        self.retry_advice() != RetryAdvice::Never
    }

    /// Returns whether and when to run the same query again.
    ///
    /// For errors of the server it depends on the [SQLSTATE]. Lost connections and timeouts can be
    /// retried. A wrong setting, login, schema or document cannot.
    ///
    /// [SQLSTATE]: crate::sqlstate
    pub fn retry_advice(&self) -> RetryAdvice {
        match self {
            Self::Server(e) => for_server_error(e),
            Self::ConnectionClosed { .. } => RetryAdvice::Immediately,
            Self::ConnectionBusy | Self::Timeout { .. } | Self::Io { .. } => {
                RetryAdvice::AfterDelay
            }
            Self::Connection { attempts } => {
                let hope = |a: &ConnectAttempt| a.error.is_retriable();
                if attempts.iter().any(hope) { RetryAdvice::AfterDelay } else { RetryAdvice::Never }
            }
            // The caller that cancelled it does not want it to run again.
            Self::Cancelled
            | Self::Config { .. }
            | Self::Tls { .. }
            | Self::Authentication { .. }
            | Self::Protocol { .. }
            | Self::InvalidSchema { .. }
            | Self::JsonDecode { .. }
            | Self::Deserialization { .. }
            | Self::MemoryLimitExceeded { .. }
            | Self::ConsumerLagged { .. }
            | Self::InvalidState { .. } => RetryAdvice::Never,
        }
    }
}

fn for_server_error(e: &DbError) -> RetryAdvice {
    match *e.code() {
        // A recovery conflict on a standby is a serialization failure too.
        sqlstate::T_R_SERIALIZATION_FAILURE | sqlstate::T_R_DEADLOCK_DETECTED => {
            RetryAdvice::Immediately
        }
        // A dropped database stays dropped.
        sqlstate::DATABASE_DROPPED => RetryAdvice::Never,
        sqlstate::QUERY_CANCELED
        | sqlstate::LOCK_NOT_AVAILABLE
        | sqlstate::ADMIN_SHUTDOWN
        | sqlstate::CRASH_SHUTDOWN
        | sqlstate::CANNOT_CONNECT_NOW
        | sqlstate::IDLE_SESSION_TIMEOUT
        | sqlstate::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => RetryAdvice::AfterDelay,
        _ if is_lost_snapshot(e) => RetryAdvice::AfterDelay,
        state if matches!(state.class(), "08" | "53") && state != sqlstate::PROTOCOL_VIOLATION => {
            RetryAdvice::AfterDelay
        }
        _ => RetryAdvice::Never,
    }
}
