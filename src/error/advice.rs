//! What an error means for the caller: its category, whether to retry, what to do about it.

use std::{borrow::Cow, fmt, io};

use super::{
    ConnectAttempt, DbError, Error, LOGGING_IN, LOGGING_IN_BY_3_2, NOT_STARTED, RESOLVING,
    UNREADABLE, WRONG_ROLE, sqlstate,
};

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
        | sqlstate::IDLE_SESSION_TIMEOUT
        | sqlstate::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => RetryAdvice::AfterDelay,
        _ if is_lost_snapshot(e) => RetryAdvice::AfterDelay,
        state if matches!(state.class(), "08" | "53") && state != sqlstate::PROTOCOL_VIOLATION => {
            RetryAdvice::AfterDelay
        }
        _ => RetryAdvice::Never,
    }
}

/// The functions of the server that report it; its messages may be translated.
pub(super) fn is_lost_snapshot(e: &DbError) -> bool {
    matches!(e.routine(), Some("ImportSnapshot" | "SetTransactionSnapshot"))
}

/// Advice for a server's error, if its text does not tell a user of this crate what to do.
///
/// Messages are translated (`lc_messages`), so what a code stands for is read from `routine`, the
/// function of the server's source that reported it. Other engines send no routine, or their own.
pub(super) fn hint_for(e: &DbError) -> &'static str {
    if e.hint().is_some() {
        return "";
    }
    let routine = e.routine().unwrap_or_default();
    let in_function = e.where_().is_some() || e.internal_query().is_some();
    match *e.code() {
        sqlstate::UNDEFINED_TABLE | sqlstate::UNDEFINED_COLUMN if in_function => {
            "; a function that the query calls names it, as_db_error().where_() says which"
        }
        sqlstate::UNDEFINED_TABLE if routine == "errorMissingRTE" => {
            "; where_sql(), order_by() and select_projection() may name columns of the relation only"
        }
        sqlstate::UNDEFINED_TABLE => {
            "; check the name, whose case counts, or write it with its schema: \
             query(\"schema.view\")"
        }
        sqlstate::UNDEFINED_COLUMN => {
            "; the relation needs a json or jsonb column called data, or the one that column() names; \
             where_sql() and order_by() may name its columns only"
        }
        // A type that a typed filter casts to: ltree, vector.
        sqlstate::UNDEFINED_OBJECT if routine == "typenameType" => {
            "; create the extension that has the type, or put its schema into the search_path of the \
             role"
        }
        sqlstate::CHARACTER_NOT_IN_REPERTOIRE => {
            "; the text is not valid in the encoding of the database (SQL_ASCII takes any bytes), or \
             a function converts bytes that are no text: JSON has to be UTF-8"
        }
        sqlstate::INVALID_CATALOG_NAME => {
            "; create the database or correct the connection string: without dbname, it is the name \
             of the user"
        }
        sqlstate::INSUFFICIENT_PRIVILEGE => match routine {
            "CheckMyDatabase" => "; grant connect on the database to the role",
            "check_enable_rls" => {
                "; the session runs with row_security = off, which row-level security of the table \
                 does not allow: switch it on, or use a role with bypassrls"
            }
            set if set.starts_with("set_config") => {
                "; options or a start-up parameter sets it, which the role may not: remove it, or \
                 have a superuser set it for the role"
            }
            _ => {
                "; grant the privilege: to the role, or, for what a view reads, to the owner of the \
                 view"
            }
        },
        sqlstate::TOO_MANY_CONNECTIONS => match routine {
            "InitializeSessionUserId" => {
                "; use fewer clients or raise the connection limit of the role"
            }
            "CheckMyDatabase" => {
                "; use fewer clients or raise the connection limit of the database"
            }
            "InitProcess" | "InitPostgres" => {
                "; use fewer clients, a pooler in front of the server, or raise max_connections"
            }
            _ => "; use fewer clients or raise the limit that the message names",
        },
        // Only while logging in it ends the session.
        sqlstate::QUERY_CANCELED if e.severity() == "FATAL" => {
            "; the login took longer than authentication_timeout of the server"
        }
        sqlstate::LOCK_NOT_AVAILABLE => {
            "; another session has locked the relation or wants it exclusively: run the query again"
        }
        sqlstate::QUERY_CANCELED => {
            "; statement_timeout or another session ended it, or a proxy that was late with the cancel \
             request of an earlier query: raise the first, ask the second, run the query again after \
             the third"
        }
        // 22023 or 55000; 42704 in Postgres 18.
        _ if is_lost_snapshot(e) => {
            "; the connection that exported the snapshot has ended, or a balancer spread the \
             connections over several servers: all of parallel() must reach the same one"
        }
        _ => "",
    }
}

/// Advice for a refused login (class 28), by the server function that refused it.
pub(crate) fn for_refusal(e: &DbError, user: &str) -> String {
    match (*e.code(), e.routine().unwrap_or_default()) {
        // The same error for a role that does not exist or has no password.
        (sqlstate::INVALID_PASSWORD, _) => format!(
            "check the user {user:?}, its password, and its entry in pg_hba.conf on the server; a role \
             that does not exist, has no password, or an expired one, is refused so too, and the \
             server's log says which"
        ),
        // The name of the file is not translated.
        (_, "ClientAuthentication") if e.message().contains("pg_hba.conf") => format!(
            "give the user {user:?} an entry in pg_hba.conf on the server for this address, database \
             and encryption"
        ),
        (_, "ClientAuthentication") => {
            "set sslcert and sslkey to a certificate that the server accepts, over TLS".into()
        }
        (_, "InitializeSessionUserId") => format!(
            "create the role {user:?} or let it log in; without user, it is the name of the \
             operating system's user"
        ),
        (_, "auth_failed") => format!(
            "check which method pg_hba.conf on the server has for the user {user:?}, and what that \
             method asks: pg_ident.conf for peer and cert, the directory for ldap, pam and radius"
        ),
        _ => format!(
            "check the user {user:?}, its password, and who may log in at the server or the pooler \
             (pg_hba.conf)"
        ),
    }
}

/// The reasons of several attempts in one line.
pub(super) fn join(attempts: &[ConnectAttempt]) -> String {
    let reasons: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    reasons.join("; ")
}

/// Advice for attempts to connect whose errors have none of their own, each advice once.
pub(super) fn for_attempts(attempts: &[ConnectAttempt]) -> String {
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
    use io::ErrorKind as K;
    let Error::Io { during, source } = &*attempt.error else { return None };
    Some(match (*during, source.kind()) {
        (WRONG_ROLE, _) => {
            "wait until a host has that role, add the host that has it, or change \
             target_session_attrs"
        }
        (NOT_STARTED, _) => "wait, and see the server's log: it lacks memory or processes",
        (UNREADABLE, _) => "wait, and see what this process lacks: file descriptors or memory",
        (RESOLVING, _) => "check the host name, and the name server",
        _ if is_one_of(source, errno::DESCRIPTORS) => {
            "close what is not used, use fewer clients, or raise the limit of open files (ulimit -n)"
        }
        (_, K::AddrNotAvailable) => {
            "no local port is left for this address: keep connections (a pool) instead of opening new \
             ones"
        }
        (_, K::OutOfMemory) => "free memory",
        (_, K::NotFound) => {
            "check host (the folder of the socket) and port, and that the server is running on this \
             machine"
        }
        (_, K::PermissionDenied) => {
            "check who may use the server's socket, and the firewall of this machine"
        }
        (_, K::TimedOut | K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown) => {
            "check the address, the route to it, and the firewalls in between"
        }
        (_, K::WouldBlock) => "the server accepts no more connections at the moment: wait",
        _ => "check host and port, and that the server is running there",
    })
}

/// The message of an [`Error::Io`].
pub(super) fn io(during: &str) -> Cow<'_, str> {
    match during {
        WRONG_ROLE | NOT_STARTED | UNREADABLE => during.into(),
        during => format!("I/O error on the connection {during}").into(),
    }
}

/// The message of an [`Error::ConnectionClosed`].
pub(super) fn closed(during: &str, source: Option<&io::Error>) -> String {
    let what = match source.and_then(lost) {
        Some(reason) => format!("the connection was lost {during} ({reason})"),
        None => format!("the other side closed the connection {during}"),
    };
    let advice = match during {
        LOGGING_IN => "see the log of the server, or of the pooler in front of it",
        LOGGING_IN_BY_3_2 => "if it supports 3.0 only, set max_protocol_version=3.0",
        _ => "run the query again",
    };
    format!("{what}; {advice}")
}

/// Why a session's network or peer is gone without having closed the connection: keepalives,
/// retransmissions or `tcp_user_timeout` without an answer, or a network that is away.
pub(super) fn lost(e: &io::Error) -> Option<&'static str> {
    use io::ErrorKind as K;
    Some(match e.kind() {
        K::TimedOut => "timed out: the server or the network stopped answering",
        K::HostUnreachable => "the host is unreachable",
        K::NetworkUnreachable => "the network is unreachable",
        K::NetworkDown => "the network is down",
        // The session was open: this is the answer of a router, or of the host without its server.
        K::ConnectionRefused => "the host refuses it",
        _ if is_one_of(e, errno::HOST_DOWN) => "the host is down",
        _ => return None,
    })
}

/// Whether reading a file failed for a reason that passes: neither the file nor its name is wrong.
pub(super) fn is_transient(e: &io::Error) -> bool {
    use io::ErrorKind as K;
    let resources = is_one_of(e, errno::DESCRIPTORS) || is_one_of(e, errno::STORAGE);
    resources || matches!(e.kind(), K::OutOfMemory | K::Interrupted | K::TimedOut | K::WouldBlock)
}

fn is_one_of(e: &io::Error, codes: &[i32]) -> bool {
    e.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Errors that the standard library has no name for.
#[cfg(unix)]
mod errno {
    use nix::errno::Errno;

    pub(super) const DESCRIPTORS: &[i32] = &[Errno::EMFILE as i32, Errno::ENFILE as i32];
    /// The second is that of a network file system.
    pub(super) const STORAGE: &[i32] = &[Errno::EIO as i32, Errno::ESTALE as i32];
    pub(super) const HOST_DOWN: &[i32] = &[Errno::EHOSTDOWN as i32];
}

/// Errors that the standard library has no name for: `ERROR_TOO_MANY_OPEN_FILES`, `WSAEMFILE`,
/// `ERROR_IO_DEVICE`, `WSAEHOSTDOWN`.
#[cfg(not(unix))]
mod errno {
    pub(super) const DESCRIPTORS: &[i32] = &[4, 10_024];
    pub(super) const STORAGE: &[i32] = &[1117];
    pub(super) const HOST_DOWN: &[i32] = &[10_064];
}

/// The causes of an error, each after a colon.
pub(super) fn write_causes(
    f: &mut fmt::Formatter<'_>,
    error: &dyn std::error::Error,
) -> fmt::Result {
    let mut cause = error.source();
    while let Some(e) = cause {
        write!(f, ": {e}")?;
        cause = e.source();
    }
    Ok(())
}
