use std::{fmt, io, time::Duration};

use super::{
    db::DbError,
    hint::{self, UNREADABLE},
    sqlstate::SqlState,
    timeout::TimeoutPhase,
};

/// A result with [`Error`] as the default error type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
///
/// `Display` is one line: what failed, where, and what to do about it. It includes the message and
/// SQLSTATE of the server if there are any. [`source`](std::error::Error::source) is a cause that
/// `Display` does not repeat, except for [`JsonDecode`](Self::JsonDecode).
///
/// `Debug`, which `main` and `unwrap` print, is the same line with its causes, the category, and
/// the fields of the server's error that `Display` omits. Neither ever shows a password.
///
/// ```
/// use fraiseql_wire::{Error, RetryAdvice, sqlstate};
///
/// fn describe(error: &Error) -> &'static str {
///     match error {
///         Error::Server(e) if *e.code() == sqlstate::UNDEFINED_TABLE => "deploy the view first",
///         e if e.is_row_error() => "one bad document: the stream continues",
///         e if e.retry_advice() == RetryAdvice::Immediately => "run it again",
///         e if e.is_retriable() => "run it again after a delay",
///         _ => "notify an operator",
///     }
/// }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting, a name or an argument is invalid.
    ///
    /// The query was not sent, with one exception: a stream with
    /// [`resume_by`](crate::QueryBuilder::resume_by) ends with this error at a row whose key is
    /// missing or not unique.
    #[error("invalid configuration: {message}")]
    Config {
        /// Which one, why, and what to write instead.
        message: String,
    },

    /// No connection could be established to any address.
    #[error("could not connect to {}{}", join(attempts), for_attempts(attempts))]
    Connection {
        /// The attempts, in order.
        attempts: Vec<ConnectAttempt>,
    },

    /// The connection ended before the response was complete: the peer closed it or stopped
    /// responding, or the network failed.
    #[error("{}", hint::closed(during, source.as_ref()))]
    ConnectionClosed {
        /// The operation in progress.
        during: &'static str,
        /// The error of the operating system; `None` if the peer closed the connection normally.
        source: Option<io::Error>,
    },

    /// A stream of the client is active or being opened, or a ping is in progress.
    #[error(
        "the client is busy: another query, stream or ping is in progress; finish or drop it, or \
         use another client"
    )]
    ConnectionBusy,

    /// TLS is required and could not be established.
    #[error("TLS: {message}")]
    Tls {
        /// What failed, and what to do.
        message: String,
    },

    /// The server rejected the login, or the client rejected the server.
    #[error("authentication failed: {message}")]
    Authentication {
        /// Which side rejected the other and why, with the server's message.
        message: String,
        /// The server's error, if the server rejected the login.
        server: Option<Box<DbError>>,
    },

    /// The server violated the protocol.
    #[error("protocol error: {message}")]
    Protocol {
        /// What was received, and what was expected.
        message: String,
    },

    /// The server reported an error.
    #[error("the server reported {}{}", .0, hint::hint_for(.0))]
    Server(Box<DbError>),

    /// The query was cancelled by a [`CancelToken`](crate::CancelToken) of its client or a
    /// [`StreamControl`](crate::StreamControl) of its stream.
    #[error("the query was cancelled by a cancel token of its client or a control of its stream")]
    Cancelled,

    /// A timeout expired.
    #[error("timed out {phase} after {after:?}; {}", phase.hint())]
    Timeout {
        /// Which timeout.
        phase: TimeoutPhase,
        /// The duration of the timeout.
        after: Duration,
    },

    /// The query does not return exactly one column of type `json` or `jsonb`.
    #[error("the query must return exactly one column, json or jsonb, but it returns {found}")]
    InvalidSchema {
        /// The columns that the query returns, with their types, and what to do.
        found: String,
    },

    /// A row cannot be decoded as JSON. Only this row is lost: the stream continues.
    ///
    /// It is not JSON, not UTF-8, or beyond the limits of the decoder: nesting of more than 128
    /// levels, a number beyond `f64`, a lone surrogate, or a fraction for a 128-bit integer.
    /// `source` is the reason.
    ///
    /// Valid JSON that does not match `T` is [`Error::Deserialization`].
    #[error("row {row} cannot be decoded at `{path}`: {source}")]
    JsonDecode {
        /// The requested type.
        type_name: &'static str,
        /// The number of the row, in the order of the server, starting at 1.
        row: u64,
        /// The path in the document, as far as it could be decoded.
        path: String,
        /// The error of the decoder.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A row is JSON but does not match the requested type. Only this row is lost: the stream
    /// continues.
    #[error("row {row} does not match {type_name} at `{path}`")]
    Deserialization {
        /// The requested type.
        type_name: &'static str,
        /// The number of the row, in the order of the server, starting at 1.
        row: u64,
        /// The path in the document, for example `lines[0].price`; `.` is the document itself.
        path: String,
        /// The error of serde.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A row or another message exceeds the memory limit of the stream, and was not read.
    #[error(
        "{required} bytes exceed the memory limit of {limit} bytes; raise max_memory() or select \
         less of the document"
    )]
    MemoryLimitExceeded {
        /// The configured limit, in bytes.
        limit: usize,
        /// The required memory, in bytes.
        required: usize,
    },

    /// The consumer is slower than the server, and
    /// [`memory_soft_limits`](crate::QueryBuilder::memory_soft_limits) ended the stream. No row is
    /// too large.
    ///
    /// Not retriable: the same consumer would start again at the first row.
    ///
    /// ```
    /// use fraiseql_wire::Error;
    ///
    /// fn log(error: &Error) {
    ///     if let Error::ConsumerLagged { limit, buffered } = error {
    ///         tracing::warn!(limit, buffered, "the client reads too slowly");
    ///     }
    /// }
    /// ```
    #[error(
        "the consumer is too slow: {buffered} bytes are buffered, and memory_soft_limits() ends \
         the stream at {limit}; read faster, run fewer concurrent streams, raise max_memory(), or \
         apply backpressure to the server (a second limit of 1.0)"
    )]
    ConsumerLagged {
        /// The number of buffered bytes at which the stream ends: `max_memory` times the second
        /// value of `memory_soft_limits`.
        limit: usize,
        /// The number of buffered bytes when the next read would have exceeded `limit`.
        buffered: usize,
    },

    /// The call is invalid in the current state, for example pausing a stream that has ended.
    #[error("{message}")]
    InvalidState {
        /// The call and the state.
        message: &'static str,
    },

    /// The operating system reported an error, for the connection or for a file of the
    /// configuration.
    ///
    /// Within [`Error::Connection`], an attempt is also `Io` if:
    ///
    /// * the server could not start a session, or has the wrong role (`target_session_attrs`);
    /// * the connector could not open a stream;
    /// * the password provider returned a retriable error.
    #[error("{}", hint::io(during))]
    Io {
        /// The operation in progress, or the failure.
        during: &'static str,
        /// The error of the operating system or the server.
        source: io::Error,
    },
}

/// The output of `Display` with the causes, then the category and the other fields that the server
/// sent.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        hint::write_causes(f, self)?;
        write!(f, " [{:?}", self.category())?;
        if let Self::Server(e) | Self::Authentication { server: Some(e), .. } = self {
            e.write_rest(f)?;
        }
        f.write_str("]")
    }
}

/// A failed attempt to connect to one address.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectAttempt {
    /// The configured host and its resolved address: `localhost:5432 ([::1]:5432)`.
    pub target: String,
    /// Why it failed.
    pub error: Box<Error>,
}

impl fmt::Display for ConnectAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.error)?;
        hint::write_causes(f, &*self.error)
    }
}

/// Joins the reasons of several attempts in one line.
fn join(attempts: &[ConnectAttempt]) -> String {
    let reasons: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    reasons.join("; ")
}

/// Returns advice for connection attempts whose errors have none of their own, without duplicates.
fn for_attempts(attempts: &[ConnectAttempt]) -> String {
    let mut advice: Vec<&str> = attempts.iter().filter_map(for_attempt).collect();
    let mut seen = Vec::new();
    advice.retain(|text| {
        !seen.contains(text) && {
            seen.push(*text);
            true
        }
    });
    advice.iter().map(|text| format!("; {text}")).collect()
}

fn for_attempt(attempt: &ConnectAttempt) -> Option<&'static str> {
    match &*attempt.error {
        Error::Io { during, source } => Some(hint::for_connecting(during, source)),
        _ => None,
    }
}

impl Error {
    /// Returns the SQLSTATE, if the server reported the error.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        self.as_db_error().map(DbError::code)
    }

    /// Returns the server's error with all its fields, if the server reported the error.
    pub fn as_db_error(&self) -> Option<&DbError> {
        match self {
            Self::Server(e) => Some(e),
            Self::Authentication { server, .. } => server.as_deref(),
            // With several addresses, no single error represents them all.
            Self::Connection { attempts } => match attempts.as_slice() {
                [only] => only.error.as_db_error(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns whether the error affects only one row, after which the stream continues.
    pub fn is_row_error(&self) -> bool {
        matches!(self, Self::JsonDecode { .. } | Self::Deserialization { .. })
    }

    /// Returns whether the connection is lost, or the server ended the session with this error.
    pub(crate) fn ends_session(&self) -> bool {
        let is_fatal = |e: &DbError| matches!(e.severity(), "FATAL" | "PANIC");
        matches!(self, Self::ConnectionClosed { .. } | Self::Io { .. })
            || self.as_db_error().is_some_and(is_fatal)
    }

    /// Returns whether a session could not import a snapshot, because the session that exported it
    /// has ended or is on another server.
    pub(crate) fn is_lost_snapshot(&self) -> bool {
        self.as_db_error().is_some_and(hint::is_lost_snapshot)
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Config { message: message.into() }
    }

    pub(crate) fn tls(message: impl Into<String>) -> Self {
        Self::Tls { message: message.into() }
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::Protocol { message: message.into() }
    }

    pub(crate) fn authentication(message: impl Into<String>) -> Self {
        Self::Authentication { message: message.into(), server: None }
    }

    /// Converts an I/O error of an established connection. All errors of a peer that has closed it
    /// or can no longer be reached become [`Error::ConnectionClosed`].
    pub(crate) fn io(during: &'static str, source: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match source.kind() {
            UnexpectedEof => Self::ConnectionClosed { during, source: None },
            BrokenPipe | ConnectionAborted | ConnectionReset => {
                Self::ConnectionClosed { during, source: Some(source) }
            }
            _ if hint::lost(&source).is_some() => {
                Self::ConnectionClosed { during, source: Some(source) }
            }
            _ => Self::Io { during, source },
        }
    }

    /// The error for a file that cannot be read at the moment, for example because the process has
    /// no file descriptors left. Returns `source` if another attempt would not help.
    pub(crate) fn unreadable(what: &str, source: io::Error) -> Result<Self, io::Error> {
        if !hint::is_transient(&source) {
            return Err(source);
        }
        let source = io::Error::new(source.kind(), format!("{what}: {source}"));
        Ok(Self::Io { during: UNREADABLE, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RetryAdvice;

    #[test]
    fn lost_network_is_connection_closed_with_its_reason() {
        use io::ErrorKind as K;
        let error = |source: io::Error| Error::io("before the result was complete", source);
        let kinds = [K::TimedOut, K::HostUnreachable, K::NetworkUnreachable, K::NetworkDown]
            .map(io::Error::from);
        #[cfg(unix)]
        let kinds = kinds.into_iter().chain(
            [
                nix::errno::Errno::ETIMEDOUT,
                nix::errno::Errno::EHOSTUNREACH,
                nix::errno::Errno::ENETUNREACH,
                nix::errno::Errno::ENETDOWN,
                nix::errno::Errno::EHOSTDOWN,
            ]
            .map(|errno| io::Error::from_raw_os_error(errno as i32)),
        );
        for source in kinds {
            let reason = source.to_string();
            let error = error(source);
            let text = error.to_string();
            assert!(matches!(error, Error::ConnectionClosed { source: Some(_), .. }), "{error:?}");
            assert!(text.starts_with("the connection was lost before"), "{text}");
            let says = ["timed out", "unreachable", "down"].iter().any(|word| text.contains(word));
            assert!(says && text.ends_with("; run the query again"), "{text}");
            assert!(format!("{error:?}").contains(&reason), "{error:?}");
            assert!(error.ends_session() && error.retry_advice() == RetryAdvice::Immediately);
        }
        // A close is the peer's decision, and a missing resource of the process is not a network
        // error.
        let closed = error(K::ConnectionReset.into()).to_string();
        assert!(closed.starts_with("the server closed"), "{closed}");
        assert!(matches!(error(K::OutOfMemory.into()), Error::Io { .. }));
    }

    #[cfg(unix)]
    #[test]
    fn unreadable_is_retriable_only_for_transient_errors() {
        use nix::errno::Errno::{
            EACCES, EINTR, EIO, EISDIR, ELOOP, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR, EPERM,
        };
        let read = |errno: nix::errno::Errno| {
            Error::unreadable("the file", io::Error::from_raw_os_error(errno as i32))
        };
        for errno in [EMFILE, ENFILE, ENOMEM, EINTR, EIO] {
            let error = read(errno).unwrap();
            assert_eq!(error.retry_advice(), RetryAdvice::AfterDelay);
            let reason = io::Error::from_raw_os_error(errno as i32).to_string();
            assert!(format!("{error:?}").contains(&format!("the file: {reason}")), "{error:?}");
        }
        for errno in [EACCES, EISDIR, ELOOP, ENOENT, ENOTDIR, EPERM] {
            assert!(read(errno).is_err(), "{errno}");
        }
    }
}
