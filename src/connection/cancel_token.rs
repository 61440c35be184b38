use std::sync::{Arc, Weak};

use super::slot::Slot;
use crate::error::Result;

#[cfg(doc)]
use crate::error::Error;

/// Cancels the queries of a client from any task.
///
/// Created by [`FraiseClient::cancel_token`](crate::FraiseClient::cancel_token).
///
/// It does not keep the client's connection open.
#[derive(Debug, Clone)]
pub struct CancelToken {
    slot: Weak<Slot>,
    /// The token of a pooled client is for one checkout.
    checkout: u64,
}

impl CancelToken {
    pub(crate) fn new(slot: &Arc<Slot>) -> Self {
        Self { slot: Arc::downgrade(slot), checkout: slot.lock().checkouts }
    }

    /// Cancels every query of the client that is in progress, and no later one.
    ///
    /// A query is in progress from the first poll of its future (`execute()`, `fetch_all()`,
    /// `count()`, `ping()` and so on) until the server has answered it completely. That includes
    /// waiting for the cleanup of an earlier stream, connecting, reconnecting and resuming. If none
    /// is in progress, nothing happens, and the next query is not affected.
    ///
    /// A query that has not been sent is never sent. A query that has been sent is stopped on the
    /// server: the cancel request is repeated until the query ends. Its future or its stream then
    /// ends with [`Error::Cancelled`], after the rows already received. Rows that the client has
    /// not read from the network yet are discarded. There are two exceptions: a query whose answer
    /// had arrived completely, and a query whose own error came first.
    ///
    /// Resolves when the server no longer works on any of these queries, whether or not their
    /// streams are read. The future of `execute()` or of a fetch should be polled while this waits.
    /// If it is not, its query is stopped by four cancel requests within 350 ms. They have no
    /// effect on a server that is blocked by backpressure, nor on a [`parallel`] query that is
    /// still being started. Both are stopped when the future is polled or dropped.
    ///
    /// [`parallel`]: crate::QueryBuilder::parallel
    ///
    /// A stream that is not read keeps the rows already received. It keeps a pooled client out of
    /// its pool until it is read or dropped. To discard them, use [`StreamControl::cancel`].
    ///
    /// [`StreamControl::cancel`]: crate::StreamControl::cancel
    ///
    /// The token of a pooled client is valid for one checkout, including the streams made from the
    /// client. It has no effect after the client is returned to its pool.
    ///
    /// # Errors
    ///
    /// After an error the query may still run on the server. Its connection is closed, so another
    /// call does nothing, and its stream still ends with `Error::Cancelled`:
    ///
    /// * [`Error::Timeout`]: it could not be stopped within `cancel_timeout`.
    /// * [`Error::Connection`] or another error of connecting: the cancel request could not be
    ///   sent.
    /// * [`Error::Protocol`]: more than `drain_limit` bytes were still to be read.
    /// * [`Error::InvalidState`]: the server sent no key for cancel requests.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future after its first poll does not stop the cancellation, except of a query
    /// whose future is not polled: that one ends at its next poll or when it is dropped.
    pub async fn cancel(&self) -> Result<()> {
        match self.slot.upgrade() {
            Some(slot) => slot.cancel(self.checkout).await,
            None => Ok(()),
        }
    }
}
