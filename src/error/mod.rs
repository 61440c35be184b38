//! The one error type of the crate, and what to do about an error.

mod advice;
mod copy;
mod db;
pub mod sqlstate;
mod text;

use std::{fmt, io, time::Duration};

pub(crate) use self::advice::for_refusal as advice_for_refusal;
use self::sqlstate::SqlState;
pub(crate) use self::text::OneLine;
pub use self::{
    advice::{ErrorCategory, RetryAdvice},
    db::DbError,
};

/// A result whose error is [`Error`] unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
///
/// `Display` is one line: what failed, where, and what to do about it, with the server's words and
/// SQLSTATE where the server said something. [`source`](std::error::Error::source) holds a cause
/// that `Display` does not repeat, except for [`JsonDecode`](Self::JsonDecode). No variant ever
/// shows a password. `Debug`, which `main` and `unwrap` print, is the same line with its causes,
/// the category, and the fields of the server's error that `Display` leaves out.
///
/// ```
/// use fraiseql_wire::{Error, RetryAdvice, sqlstate};
///
/// fn describe(error: &Error) -> &'static str {
///     match error {
///         Error::Server(e) if *e.code() == sqlstate::UNDEFINED_TABLE => "deploy the view first",
///         e if e.is_row_error() => "one bad document: the stream goes on",
///         e if e.retry_advice() == RetryAdvice::Immediately => "run it again",
///         e if e.is_retriable() => "wait a little and run it again",
///         _ => "a person has to look at it",
///     }
/// }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting, a name or an argument is not valid. Nothing was sent.
    #[error("invalid configuration: {message}")]
    Config {
        /// Which one, why, and what to write in its place.
        message: String,
    },

    /// No connection could be made: every address was tried.
    #[error("could not connect to {}{}", advice::join(attempts), advice::for_attempts(attempts))]
    Connection {
        /// What was tried, in order.
        attempts: Vec<ConnectAttempt>,
    },

    /// The connection ended before the answer was complete: the peer closed it, or it stopped
    /// answering, or the network to it was lost.
    #[error("{}", advice::closed(during, source.as_ref()))]
    ConnectionClosed {
        /// What was going on.
        during: &'static str,
        /// The operating system's reason, when it is more than an orderly end.
        source: Option<io::Error>,
    },

    /// The client already runs a query.
    #[error(
        "the client is busy: a query, stream or ping of it is going on; read the stream to its end or \
         drop it, or use another client"
    )]
    ConnectionBusy,

    /// TLS was asked for and cannot be had.
    #[error("TLS: {message}")]
    Tls {
        /// What failed, and what to do.
        message: String,
    },

    /// The server refused the login, or the server itself could not be trusted.
    #[error("authentication failed: {message}")]
    Authentication {
        /// Who refused whom and why, with the server's words.
        message: String,
        /// The server's error, when it was the server that refused.
        server: Option<Box<DbError>>,
    },

    /// The other side does not speak the protocol as documented.
    #[error("protocol error: {message}")]
    Protocol {
        /// What came, and what was expected.
        message: String,
    },

    /// The server reported an error.
    #[error("the server reported {}{}", .0, advice::hint_for(.0))]
    Server(Box<DbError>),

    /// The query was stopped by a [`CancelToken`](crate::CancelToken) of its client, or by a
    /// [`StreamControl`](crate::StreamControl) of its stream.
    #[error("the query was cancelled, by a cancel token of its client or a control of its stream")]
    Cancelled,

    /// A deadline passed.
    #[error("timed out {phase} after {after:?}; {}", phase.hint())]
    Timeout {
        /// Which deadline.
        phase: TimeoutPhase,
        /// How long it was.
        after: Duration,
    },

    /// The query does not return what this crate can stream: exactly one column of type `json` or
    /// `jsonb`.
    #[error("the query must return exactly one column, json or jsonb, but it returns {found}")]
    InvalidSchema {
        /// The columns that came, with their types, and what to do.
        found: String,
    },

    /// A row cannot be read as JSON: it is not JSON or not UTF-8, or it is JSON beyond what the
    /// decoder reads (nesting of more than 128 levels, a number beyond `f64`, half a surrogate
    /// pair, a fraction for an integer of 128 bits); `source` says which. Only this row is lost:
    /// the stream goes on.
    ///
    /// JSON that the decoder can read but that does not fit `T` is [`Error::Deserialization`].
    #[error("row {row} cannot be decoded at `{path}`: {source}")]
    JsonDecode {
        /// The type asked for.
        type_name: &'static str,
        /// Which row the server sent it as, counted from 1.
        row: u64,
        /// Where in the document, as far as it could be read.
        path: String,
        /// What the decoder said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A row is JSON but does not fit the type asked for. Only this row is lost: the stream goes
    /// on.
    #[error("row {row} does not fit {type_name} at `{path}`")]
    Deserialization {
        /// The type asked for.
        type_name: &'static str,
        /// Which row the server sent it as, counted from 1.
        row: u64,
        /// Where in the document, for example `lines[0].price`; `.` is the document itself.
        path: String,
        /// What serde said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// One row, or another message, is larger than the memory the stream may use, and was not read.
    #[error(
        "{required} bytes do not fit into the memory limit of {limit} bytes; raise max_memory() or \
         select less of the document"
    )]
    MemoryLimitExceeded {
        /// The limit that was set, in bytes.
        limit: usize,
        /// What would have been needed, in bytes.
        required: usize,
    },

    /// The consumer read more slowly than the server sent, and
    /// [`memory_soft_limits`](crate::QueryBuilder::memory_soft_limits) ends such a stream. No row
    /// is too large.
    ///
    /// Not retriable: the same consumer would start again from the first row.
    #[error(
        "the consumer is too slow: {buffered} bytes are buffered, and memory_soft_limits() ends the \
         stream at {limit}; read faster, run fewer streams at once, raise max_memory(), or let the \
         server wait (a second limit of 1.0)"
    )]
    ConsumerLagged {
        /// The number of buffered bytes at which the stream ends: the second share of
        /// `memory_soft_limits`, of `max_memory`.
        limit: usize,
        /// The number of bytes that were buffered when the next read would have exceeded `limit`.
        buffered: usize,
    },

    /// The call makes no sense at this point, for example pausing a stream that has ended.
    #[error("{message}")]
    InvalidState {
        /// What was called when.
        message: &'static str,
    },

    /// The operating system reported an error: on the connection, or for a file that the
    /// configuration names. As an attempt of [`Error::Connection`], also a server that could not
    /// start a session or that has the wrong role.
    #[error("{}", advice::io(during))]
    Io {
        /// The operation in progress, or the failure.
        during: &'static str,
        /// The reason: the operating system's, or the server's.
        source: io::Error,
    },
}

/// `during` of an [`Error::Io`] that is not about I/O on a connection: it is the whole message.
pub(crate) const WRONG_ROLE: &str =
    "the server does not have the role that target_session_attrs asks for";
pub(crate) const NOT_STARTED: &str = "the server could not start a session";
pub(crate) const UNREADABLE: &str = "a file of the configuration could not be read";

pub(crate) const RESOLVING: &str = "while resolving the name";
pub(crate) const LOGGING_IN: &str = "while logging in";
/// In place of [`LOGGING_IN`] if a newer version was asked for and nothing was answered to it.
pub(crate) const LOGGING_IN_BY_3_2: &str =
    "while logging in by protocol 3.2, which max_protocol_version asks for";

/// One line first: `Display` and the causes. Then the category and what else the server sent.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        advice::write_causes(f, self)?;
        write!(f, " [{:?}", self.category())?;
        if let Self::Server(e) | Self::Authentication { server: Some(e), .. } = self {
            e.write_rest(f)?;
        }
        f.write_str("]")
    }
}

/// The deadline that passed, in [`Error::Timeout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeoutPhase {
    /// `connect_timeout`: resolving the name, connecting, authenticating and starting up together.
    Connect,
    /// `cancel_timeout`: stopping a query on the server and draining what was in flight. The
    /// connection was closed; the next query opens another one.
    Cancel,
    /// `read_timeout`: the server sent nothing at all while the stream wanted rows.
    Read,
    /// `first_row_timeout`: no row had come so long after `execute()` was called.
    FirstRow,
    /// `timeout`: the last row had not come so long after `execute()` was called.
    Query,
    /// The start of a [`parallel`](crate::QueryBuilder::parallel) query. Not all of its connections
    /// could begin a transaction within `connect_timeout` (10 seconds if it is not set), or other
    /// sessions kept changing the relation for 3 seconds.
    Parallel {
        /// The number of connections that had begun a transaction.
        connections: usize,
        /// The number of connections that were needed.
        of: usize,
    },
}

impl TimeoutPhase {
    fn hint(self) -> &'static str {
        match self {
            Self::Connect => {
                "the server or the network did not answer: check host and port, whether a firewall \
                 drops the packets, and the server's load, or raise connect_timeout"
            }
            Self::Cancel => {
                "the server may still run it; its connection is not used again, and the next query \
                 opens a new one"
            }
            Self::Read => {
                "the server sent nothing: look at the plan (explain()) and at locks, check the server \
                 and the network in between, or raise read_timeout"
            }
            Self::FirstRow => {
                "look at the plan (explain()) for an index or a sort that comes first, and at locks, \
                 or raise first_row_timeout"
            }
            Self::Parallel { connections, of } if connections < of => {
                "a stream needs all of them at once: (streams at once) x n must not exceed the pool"
            }
            Self::Parallel { .. } => {
                "other sessions kept changing the relation or its partitions: run the query again"
            }
            Self::Query => "ask for less (limit(), filter()), read faster, or raise timeout",
        }
    }
}

impl fmt::Display for TimeoutPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Cancel => "cancelling the query",
            Self::Read => "waiting for the server",
            Self::FirstRow => "waiting for the first row",
            Self::Query => "running the query",
            Self::Parallel { connections, of } => {
                return write!(
                    f,
                    "beginning a parallel query with {connections} of {of} connections"
                );
            }
        })
    }
}

/// One address that was tried, and why it did not work.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectAttempt {
    /// The host as configured, and the address it stands for: `localhost:5432 ([::1]:5432)`.
    pub target: String,
    /// Why it failed.
    pub error: Box<Error>,
}

impl fmt::Display for ConnectAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.error)?;
        advice::write_causes(f, &*self.error)
    }
}

impl Error {
    /// Returns whether running the same query again, on a new connection if need be, can succeed.
    ///
    /// A stream that failed after its first rows starts again from the first row.
    pub fn is_retriable(&self) -> bool {
        self.retry_advice() != RetryAdvice::Never
    }

    /// Returns the server's SQLSTATE, when the error came from the server.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        self.as_db_error().map(DbError::code)
    }

    /// Returns the server's error whole, when the error came from the server.
    pub fn as_db_error(&self) -> Option<&DbError> {
        match self {
            Self::Server(e) => Some(e),
            Self::Authentication { server, .. } => server.as_deref(),
            // One address: its reason is the reason. Of several, none speaks for the others.
            Self::Connection { attempts } => match attempts.as_slice() {
                [only] => only.error.as_db_error(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns whether the error is about one row only, after which the stream goes on.
    pub fn is_row_error(&self) -> bool {
        matches!(self, Self::JsonDecode { .. } | Self::Deserialization { .. })
    }

    /// Whether the connection is lost, or the server has ended the session with this error.
    pub(crate) fn ends_session(&self) -> bool {
        let is_fatal = |e: &DbError| matches!(e.severity(), "FATAL" | "PANIC");
        matches!(self, Self::ConnectionClosed { .. } | Self::Io { .. })
            || self.as_db_error().is_some_and(is_fatal)
    }

    /// Whether a session could not import a snapshot: the session that exported it has ended, or is
    /// one of another server.
    pub(crate) fn is_lost_snapshot(&self) -> bool {
        self.as_db_error().is_some_and(advice::is_lost_snapshot)
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

    /// An I/O error on an established connection: the ways in which a peer goes away, or can no
    /// longer be reached, are one case.
    pub(crate) fn io(during: &'static str, source: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match source.kind() {
            UnexpectedEof => Self::ConnectionClosed { during, source: None },
            BrokenPipe | ConnectionAborted | ConnectionReset => {
                Self::ConnectionClosed { during, source: Some(source) }
            }
            _ if advice::lost(&source).is_some() => {
                Self::ConnectionClosed { during, source: Some(source) }
            }
            _ => Self::Io { during, source },
        }
    }

    /// A file that exists, or may exist, but cannot be read at the moment: the process has no file
    /// descriptor left, for one. Returns the error if another attempt would not help.
    pub(crate) fn unreadable(what: &str, source: io::Error) -> Result<Self, io::Error> {
        match advice::is_transient(&source) {
            true => {
                let source = io::Error::new(source.kind(), format!("{what}: {source}"));
                Ok(Self::Io { during: UNREADABLE, source })
            }
            false => Err(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_is_lost_closes_the_session_and_says_why() {
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
        // An orderly close is the peer's decision, and a resource that the process lacks is no
        // network error.
        let closed = error(K::ConnectionReset.into()).to_string();
        assert!(closed.starts_with("the other side closed"), "{closed}");
        assert!(matches!(error(K::OutOfMemory.into()), Error::Io { .. }));
    }

    #[cfg(unix)]
    #[test]
    fn only_what_passes_makes_a_file_unreadable_for_the_moment() {
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
