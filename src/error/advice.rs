//! What an error means for the caller: its category, whether to retry, what to do about it.

use std::fmt;

use super::{ConnectAttempt, DbError, Error, sqlstate};

/// The kind of an error, one for each variant of [`Error`]; a small, fixed set made for labels.
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
    /// [`Error::ConsumerLagged`]
    ConsumerLagged,
    /// [`Error::InvalidState`]
    InvalidState,
    /// [`Error::Io`]
    Io,
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
    /// It will fail again: something has to be changed first.
    Never,
    /// It lost against another session or a connection that had ended: it can succeed at once.
    Immediately,
    /// The server, the network or the client is not ready: wait, longer each time, and try again.
    AfterDelay,
}

impl Error {
    /// Returns the kind of the error.
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

    /// Returns whether and when to run the same query again.
    ///
    /// By [SQLSTATE] for what the server reported; lost connections and timeouts can be retried;
    /// a wrong setting, login, schema or document cannot.
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
            // Whoever stopped it does not want it run again.
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
        // A dropped database does not come back.
        sqlstate::DATABASE_DROPPED => RetryAdvice::Never,
        sqlstate::QUERY_CANCELED
        | sqlstate::LOCK_NOT_AVAILABLE
        | sqlstate::ADMIN_SHUTDOWN
        | sqlstate::CRASH_SHUTDOWN
        | sqlstate::CANNOT_CONNECT_NOW
        | sqlstate::IDLE_SESSION_TIMEOUT => RetryAdvice::AfterDelay,
        state if matches!(state.class(), "08" | "53") && state != sqlstate::PROTOCOL_VIOLATION => {
            RetryAdvice::AfterDelay
        }
        _ => RetryAdvice::Never,
    }
}

/// What to do about a server's error, where its text alone leaves a user of this crate guessing.
pub(super) fn hint_for(e: &DbError) -> &'static str {
    if e.hint().is_some() {
        return "";
    }
    match *e.code() {
        sqlstate::UNDEFINED_TABLE => {
            "; check the name, or write it with its schema: query(\"schema.view\")"
        }
        sqlstate::UNDEFINED_COLUMN => {
            "; the relation needs a json or jsonb column called data, and where_sql() and \
             order_by() may name its columns only"
        }
        sqlstate::CHARACTER_NOT_IN_REPERTOIRE => {
            "; the database's encoding does not say what these bytes are: JSON has to be UTF-8"
        }
        sqlstate::INVALID_CATALOG_NAME => "; create the database or correct the connection string",
        sqlstate::INSUFFICIENT_PRIVILEGE => "; grant the role the right to read it",
        sqlstate::TOO_MANY_CONNECTIONS => "; use fewer clients or raise max_connections",
        sqlstate::QUERY_CANCELED => {
            "; statement_timeout or another session ended it: raise the one or ask the other"
        }
        _ => "",
    }
}

/// The reasons of several attempts in one line.
pub(super) fn join(attempts: &[ConnectAttempt]) -> String {
    let reasons: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    reasons.join("; ")
}
