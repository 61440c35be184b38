use std::fmt;

/// The timeout that expired, in [`Error::Timeout`](crate::Error::Timeout).
///
/// ```
/// use fraiseql_wire::{Error, TimeoutPhase};
///
/// fn describe(error: &Error) -> &'static str {
///     match error {
///         Error::Timeout { phase: TimeoutPhase::FirstRow | TimeoutPhase::Query, .. } => "slow query",
///         Error::Timeout { phase: TimeoutPhase::Parallel, .. } => "the pool is too small",
///         Error::Timeout { phase: TimeoutPhase::Consumer, .. } => "a fetch was not polled",
///         Error::Timeout { .. } => "no answer",
///         _ => "another error",
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeoutPhase {
    /// `connect_timeout`: name resolution, connecting, authentication and startup together.
    Connect,
    /// `cancel_timeout`: stopping a query on the server and draining in-flight data. The connection
    /// was closed; the next query opens a new one.
    Cancel,
    /// `read_timeout`: a query, a stream or a ping waited for the server, and no byte was sent or
    /// received.
    Read,
    /// `first_row_timeout`: no row arrived within this time after the call of `execute()`.
    FirstRow,
    /// `timeout`: the last row did not arrive within this time after the call of `execute()`.
    Query,
    /// The caller of a fetch left its rows unread for 2 seconds while other fetches waited for the
    /// connection.
    Consumer,
    /// Not all connections of a [`parallel`](crate::QueryBuilder::parallel) query could begin a
    /// transaction within `connect_timeout`, or 10 seconds if that is not set.
    Parallel,
    /// Other sessions kept changing the relation of a [`parallel`](crate::QueryBuilder::parallel)
    /// query for 3 seconds.
    Contention,
    // Later variants come last and have no fields, so that `as` casts keep their values.
}

impl TimeoutPhase {
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Connect => {
                "the server or the network did not respond: check host and port, whether a \
                 firewall drops the packets, and the server's load, or raise connect_timeout"
            }
            Self::Cancel => {
                "the server may still be running it; its connection is not reused, and the next \
                 query opens a new one"
            }
            Self::Read => {
                "the server sent nothing: check the plan (explain()), locks, the server and the \
                 network, or raise read_timeout"
            }
            Self::FirstRow => {
                "check the plan (explain()) for a missing index or an initial sort, check locks, \
                 or raise first_row_timeout"
            }
            Self::Parallel => {
                "a stream needs all of them at the same time: (concurrent streams) x n must not \
                 exceed the size of the pool"
            }
            Self::Contention => {
                "other sessions kept changing the relation or its partitions: run the query again"
            }
            Self::Consumer => {
                "its future was not polled, or a predicate took long: poll it, spawn it as a task, \
                 or use another client for it"
            }
            Self::Query => "select less (limit(), filter()), read faster, or raise timeout",
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
            Self::Consumer => "waiting for rows to be read that block other fetches",
            Self::Parallel => "beginning a parallel query on all of its connections",
            Self::Contention => "beginning a parallel query",
        })
    }
}
