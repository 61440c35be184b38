//! One result by several connections.

use std::fmt;

use bytes::Bytes;

use super::settings::MIN_READ;
use crate::{
    connection::Connection,
    error::{Error, Result, sqlstate},
};

/// The most connections of one stream: one backend for each processor of a large server.
pub(crate) const MAX_PARALLEL: usize = 64;

/// The least memory of a stream for each of its connections: a quarter of it is one read.
pub(crate) const MIN_MEMORY: usize = 4 * MIN_READ;

/// A query that several connections work on, each on a part of its rows, in one snapshot.
pub(crate) struct Parallel {
    /// Begins the transaction that holds the snapshot, and asks what is needed to split the query.
    pub(crate) begin: Begin,
    pub(crate) split: Box<Split>,
}

/// How that transaction begins.
pub(crate) struct Begin {
    /// Asks whether the relation can be locked.
    pub(crate) is_lockable: String,
    /// Locks it before there is a snapshot.
    pub(crate) locked: String,
    pub(crate) unlocked: String,
}

/// Makes the parts, by what the server has answered.
type Split = dyn Fn(&str) -> Result<Parts> + Send + Sync;

/// What each connection has to do.
pub(crate) struct Parts {
    /// Begins a transaction in the snapshot.
    pub(crate) join: String,
    /// A query for each connection; the first is that of the client.
    pub(crate) queries: Vec<Bytes>,
}

impl Parallel {
    /// Begins on the client's connection.
    ///
    /// # Errors
    ///
    /// Unless the connection is lost or time is up, it can be given back when the transaction has been ended.
    pub(super) async fn begin(&self, connection: &mut Connection) -> Result<Parts> {
        let Begin { is_lockable, locked, unlocked } = &self.begin;
        let is_lockable = connection.begin(is_lockable).await?.as_deref() == Some("t");
        let mut answer = connection.begin(if is_lockable { locked } else { unlocked }).await;
        // Who may read some columns only, or whose view may, can read without the lock.
        let is_denied =
            |e: &Error| e.sqlstate().is_some_and(|code| *code == sqlstate::INSUFFICIENT_PRIVILEGE);
        if is_lockable && answer.as_ref().is_err_and(is_denied) {
            connection.end_transaction().await?;
            answer = connection.begin(unlocked).await;
        }
        match answer? {
            Some(answer) => (self.split)(&answer),
            None => Err(Error::protocol("the server answered without a row")),
        }
    }
}

impl fmt::Debug for Parallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parallel").finish_non_exhaustive()
    }
}
