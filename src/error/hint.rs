//! Hints: the part of an error's message that says what to do.

use std::{borrow::Cow, fmt, io};

use super::{db::DbError, sqlstate};

/// Values of `during` that are the whole message of an `Error::Io`, because it is not an I/O
/// error of a connection.
pub(crate) const WRONG_ROLE: &str =
    "the server does not have the role that target_session_attrs requires";
pub(crate) const NO_PASSWORD: &str = "the password provider has no password at the moment";
pub(crate) const OPENING: &str = "the connector could not open a stream";
pub(crate) const NOT_STARTED: &str = "the server could not start a session";
pub(crate) const UNREADABLE: &str = "a file of the configuration could not be read";

pub(crate) const RESOLVING: &str = "while resolving the name";
pub(crate) const LOGGING_IN: &str = "while logging in";
/// Replaces [`LOGGING_IN`] if a newer version was requested and the server did not respond.
pub(crate) const LOGGING_IN_BY_3_2: &str =
    "while logging in by protocol 3.2, which max_protocol_version requests";

/// Returns whether a session could not import a snapshot.
///
/// The server function that reports the error decides, because messages can be translated.
pub(super) fn is_lost_snapshot(e: &DbError) -> bool {
    matches!(e.routine(), Some("ImportSnapshot" | "SetTransactionSnapshot"))
}

/// Returns advice for an error of the server, if its own text is not sufficient for users of this
/// crate.
///
/// Messages can be translated (`lc_messages`), so cases are distinguished by `routine`, the
/// function of the server that reported the error. Other engines send no routine, or their own.
pub(super) fn hint_for(e: &DbError) -> &'static str {
    if e.hint().is_some() {
        return "";
    }
    let routine = e.routine().unwrap_or_default();
    let in_function = e.where_().is_some() || e.internal_query().is_some();
    match *e.code() {
        sqlstate::UNDEFINED_TABLE | sqlstate::UNDEFINED_COLUMN if in_function => {
            "; a function called by the query refers to it: see as_db_error().where_()"
        }
        sqlstate::UNDEFINED_TABLE if routine == "errorMissingRTE" => {
            "; where_sql(), order_by() and select_projection() can only use columns of the relation"
        }
        sqlstate::UNDEFINED_TABLE => {
            "; check the name, which is case-sensitive, or qualify it with its schema: \
             query(\"schema.view\")"
        }
        sqlstate::UNDEFINED_COLUMN => {
            "; the relation needs a json or jsonb column named data, or the one set by column(); \
             where_sql() and order_by() can only use its columns"
        }
        // A type that a typed filter casts to: ltree, vector.
        sqlstate::UNDEFINED_OBJECT if routine == "typenameType" => {
            "; create the extension that provides the type, or add its schema to the search_path \
             of the role"
        }
        sqlstate::CHARACTER_NOT_IN_REPERTOIRE => {
            "; the text is invalid in the encoding of the database (SQL_ASCII accepts any bytes), \
             or a function converts bytes that are not text: JSON must be UTF-8"
        }
        sqlstate::INVALID_CATALOG_NAME => {
            "; create the database or correct the connection string: dbname defaults to the name \
             of the user"
        }
        sqlstate::INSUFFICIENT_PRIVILEGE => match routine {
            "CheckMyDatabase" => "; grant connect on the database to the role",
            "check_enable_rls" => {
                "; the session has row_security = off, but the table has row-level security: set \
                 it to on, or use a role with bypassrls"
            }
            set if set.starts_with("set_config") => {
                "; options or a startup parameter sets it, which the role is not allowed to do: \
                 remove it, or have a superuser set it for the role"
            }
            _ => {
                "; grant the privilege to the role, or to the owner of a view for what the view \
                 reads"
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
                "; use fewer clients, use a pooler in front of the server, or raise max_connections"
            }
            _ => "; use fewer clients or raise the limit in the message",
        },
        // It is fatal only during login.
        sqlstate::QUERY_CANCELED if e.severity() == "FATAL" => {
            "; the login took longer than the server's authentication_timeout"
        }
        sqlstate::LOCK_NOT_AVAILABLE => {
            "; another session has locked the relation or waits for an exclusive lock: run the \
             query again"
        }
        sqlstate::QUERY_CANCELED => {
            "; statement_timeout or another session cancelled it, or a proxy forwarded the cancel \
             request of an earlier query late: raise statement_timeout, find the other session, or \
             run the query again"
        }
        // 22023 or 55000; 42704 in Postgres 18.
        _ if is_lost_snapshot(e) => {
            "; the connection that exported the snapshot has ended, or a balancer distributed the \
             connections over several servers: all connections of parallel() must reach the same \
             one"
        }
        _ => "",
    }
}

/// Returns advice for a rejected login (class 28), by the server function that rejected it.
pub(crate) fn for_refusal(e: &DbError, user: &str) -> String {
    match (*e.code(), e.routine().unwrap_or_default()) {
        // The same error for a role that does not exist or has no password.
        (sqlstate::INVALID_PASSWORD, _) => format!(
            "check the user {user:?}, its password, and its entry in pg_hba.conf on the server; \
             the error is the same for a role that does not exist or has no password or an expired \
             one, and the server's log has the reason"
        ),
        // The name of the file is not translated.
        (_, "ClientAuthentication") if e.message().contains("pg_hba.conf") => format!(
            "give the user {user:?} an entry in pg_hba.conf on the server for this address, \
             database and encryption"
        ),
        (_, "ClientAuthentication") => {
            "set sslcert and sslkey to a certificate that the server accepts, over TLS".into()
        }
        (_, "InitializeSessionUserId") => format!(
            "create the role {user:?} or allow it to log in; user defaults to the name of the \
             operating system's user"
        ),
        (_, "auth_failed") => format!(
            "check the method in pg_hba.conf on the server for the user {user:?}, and what that \
             method uses: pg_ident.conf for peer and cert, the directory for ldap, pam and radius"
        ),
        _ => format!(
            "check the user {user:?}, its password, and the access rules of the server or the \
             pooler (pg_hba.conf)"
        ),
    }
}

/// Returns advice for an I/O error of a connection attempt.
pub(super) fn for_connecting(during: &str, source: &io::Error) -> &'static str {
    use io::ErrorKind as K;
    match (during, source.kind()) {
        (WRONG_ROLE, _) => {
            "wait until a host has that role, add the host that has it, or change \
             target_session_attrs"
        }
        (NO_PASSWORD, _) => "wait, and check the service that issues the passwords",
        (OPENING, _) => "check what the connector connects through, and that the server is running",
        (NOT_STARTED, _) => "wait, and see the server's log: it may be out of memory or processes",
        (UNREADABLE, _) => {
            "wait, and check whether this process is out of file descriptors or memory"
        }
        (RESOLVING, _) => "check the host name and the name server",
        _ if is_one_of(source, errno::DESCRIPTORS) => {
            "close unused files, use fewer clients, or raise the limit of open files (ulimit -n)"
        }
        (_, K::AddrNotAvailable) => {
            "there is no free local port for this address: reuse connections (a pool) instead of \
             opening new ones"
        }
        (_, K::OutOfMemory) => "free memory",
        (_, K::NotFound) => {
            "check host (the directory of the socket) and port, and that the server is running on \
             this machine"
        }
        (_, K::PermissionDenied) => {
            "check the permissions of the server's socket, and the firewall of this machine"
        }
        (_, K::TimedOut | K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown) => {
            "check the address, the route to it, and firewalls"
        }
        (_, K::WouldBlock) => "the server does not accept more connections at the moment: wait",
        _ => "check host and port, and that the server is running there",
    }
}

/// Returns the message of an `Error::Io`.
pub(super) fn io(during: &str) -> Cow<'_, str> {
    match during {
        WRONG_ROLE | NO_PASSWORD | OPENING | NOT_STARTED | UNREADABLE => during.into(),
        during => format!("I/O error on the connection {during}").into(),
    }
}

/// Returns the message of an `Error::ConnectionClosed`.
pub(super) fn closed(during: &str, source: Option<&io::Error>) -> String {
    let what = match source.and_then(lost) {
        Some(reason) => format!("the connection was lost {during} ({reason})"),
        None => format!("the server closed the connection {during}"),
    };
    let advice = match during {
        LOGGING_IN => "see the log of the server, or of the pooler in front of it",
        LOGGING_IN_BY_3_2 => "if it supports only 3.0, set max_protocol_version=3.0",
        _ => "run the query again",
    };
    format!("{what}; {advice}")
}

/// Returns why the peer of a session can no longer be reached, if it has not closed the connection.
/// Reasons are unanswered keepalives or retransmissions, `tcp_user_timeout`, and network failures.
pub(super) fn lost(e: &io::Error) -> Option<&'static str> {
    use io::ErrorKind as K;
    Some(match e.kind() {
        K::TimedOut => "timed out: the server or the network stopped responding",
        K::HostUnreachable => "the host is unreachable",
        K::NetworkUnreachable => "the network is unreachable",
        K::NetworkDown => "the network is down",
        // The session was open, so this comes from a router or from a host whose server is gone.
        K::ConnectionRefused => "the host refuses it",
        _ if is_one_of(e, errno::HOST_DOWN) => "the host is down",
        _ => return None,
    })
}

/// Returns whether reading a file failed for a transient reason: the file and its name are not the
/// problem.
pub(super) fn is_transient(e: &io::Error) -> bool {
    use io::ErrorKind as K;
    let resources = is_one_of(e, errno::DESCRIPTORS) || is_one_of(e, errno::STORAGE);
    resources || matches!(e.kind(), K::OutOfMemory | K::Interrupted | K::TimedOut | K::WouldBlock)
}

fn is_one_of(e: &io::Error, codes: &[i32]) -> bool {
    e.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Errors without an `ErrorKind` in the standard library.
#[cfg(unix)]
mod errno {
    use nix::errno::Errno;

    pub(super) const DESCRIPTORS: &[i32] = &[Errno::EMFILE as i32, Errno::ENFILE as i32];
    /// The second is specific to network file systems.
    pub(super) const STORAGE: &[i32] = &[Errno::EIO as i32, Errno::ESTALE as i32];
    pub(super) const HOST_DOWN: &[i32] = &[Errno::EHOSTDOWN as i32];
}

/// Errors without an `ErrorKind` in the standard library: `ERROR_TOO_MANY_OPEN_FILES`, `WSAEMFILE`,
/// `ERROR_IO_DEVICE`, `WSAEHOSTDOWN`.
#[cfg(not(unix))]
mod errno {
    pub(super) const DESCRIPTORS: &[i32] = &[4, 10_024];
    pub(super) const STORAGE: &[i32] = &[1117];
    pub(super) const HOST_DOWN: &[i32] = &[10_064];
}

/// Writes the causes of an error, each after a colon.
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
