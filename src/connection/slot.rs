//! A client's place for its one connection.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::{sync::Notify, time::timeout};

use super::{
    async_messages::Notices,
    cancel::timed_out,
    running_query::{RunningQuery, WeakQuery},
    server_connection::Connection,
    session::Session,
};
use crate::{
    config::{ConnectionConfig, Target},
    error::Result,
    metrics::{QueryMetricsCache, connection::CloseReason},
    sync::lock,
};

/// A client's place for its one connection, and the state of that connection.
///
/// Two parties hold it while a query runs: the stream ([`StreamGuard`](super::StreamGuard)), and
/// the owner of the connection ([`Lease`](super::Lease)), which may outlive the stream for the
/// cleanup.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) config: ConnectionConfig,
    state: Mutex<SlotState>,
    /// Wakes a stream that waits for the connection, and the driver of shared fetches.
    pub(super) freed: Notify,
    /// Several fetches share the connection, or wait to share it. Changes under the lock.
    pub(super) is_shared: AtomicBool,
    pub(crate) notices: Notices,
    /// Notified when a fetch begins to wait for a connection in use.
    pub(super) contended: Notify,
    /// Notified when the task that runs shared fetches must look at them.
    pub(super) driver_notify: Notify,
    first_target: OnceLock<Option<Target>>,
    /// Handles of metrics, which its queries share.
    pub(crate) query_metrics: QueryMetricsCache,
}

#[derive(Debug, Default)]
pub(super) struct SlotState {
    pub(super) connection: ConnectionState,
    /// A stream is active or waits for the connection: other queries are rejected.
    pub(super) stream_alive: bool,
    /// The connection is or was last used by fetches.
    pub(super) is_fetching: bool,
    /// The session of the connection, also while the connection is in use.
    pub(super) session: Option<Arc<Session>>,
    /// There has been a connection before.
    pub(super) connected_before: bool,
    /// The retry policy also applies to the first connection.
    pub(super) retries_first: bool,
    /// The client was dropped: the connection will not be used again.
    pub(super) closed: bool,
    /// Queries that may be in progress: one that runs, and those that wait for its cleanup.
    pub(super) queries: Vec<WeakQuery>,
    /// How often the client was taken out of its pool or returned to it; 0 without a pool.
    pub(super) checkouts: u64,
}

/// The state of the connection.
#[derive(Debug, Default)]
pub(super) enum ConnectionState {
    /// There is no connection, or it was lost.
    #[default]
    None,
    Idle(Box<Connection>),
    /// Held with a [`Lease`](super::Lease).
    InUse,
}

impl SlotState {
    /// Takes an idle connection, if the client was dropped.
    pub(super) fn take_unwanted(&mut self) -> Option<Box<Connection>> {
        match mem::take(&mut self.connection) {
            ConnectionState::Idle(mut connection) if self.closed => {
                connection.set_close_reason(CloseReason::Close);
                Some(connection)
            }
            other => {
                self.connection = other;
                None
            }
        }
    }
}

impl Slot {
    pub(crate) fn new(config: ConnectionConfig) -> Self {
        let (state, notices) = (Mutex::default(), Notices::default());
        let query_metrics = QueryMetricsCache::default();
        Self {
            config,
            state,
            freed: Notify::new(),
            is_shared: AtomicBool::new(false),
            notices,
            contended: Notify::new(),
            driver_notify: Notify::new(),
            first_target: OnceLock::new(),
            query_metrics,
        }
    }

    /// Applies the retry policy to the first connection too.
    #[cfg(feature = "deadpool")]
    pub(crate) fn retry_first(&self) {
        self.lock().retries_first = true;
    }

    pub(crate) fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// The server that is tried first, unless hosts are shuffled. Kept, because each query's span
    /// has it.
    pub(crate) fn first_target(&self) -> Option<&Target> {
        let first = || self.config.targets().into_iter().next();
        self.first_target.get_or_init(first).as_ref()
    }

    /// Cancels the queries that are in progress, if `checkout` is still the current one.
    ///
    /// A query that has no session yet sees its mark before it sends anything. A session is stopped
    /// by its task, which repeats the cancel request until the query ends.
    pub(super) async fn cancel(&self, checkout: u64) -> Result<()> {
        let queries: Vec<_> = {
            let state = self.lock();
            if state.checkouts != checkout {
                return Ok(());
            }
            state.queries.iter().filter_map(RunningQuery::upgrade).collect()
        };
        for query in &queries {
            query.cancel();
        }
        self.driver_notify.notify_one();
        let stopped = async {
            for query in &queries {
                query.stop().await?;
            }
            Ok(())
        };
        let after = self.config.cancel_timeout();
        timeout(after, stopped).await.unwrap_or_else(|_| Err(timed_out(after)))
    }

    /// Invalidates earlier cancel tokens, because the client was taken out of its pool or returned
    /// to it.
    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    pub(crate) fn next_checkout(&self) {
        self.lock().checkouts += 1;
    }

    /// Ends a lease, with the connection or without one.
    pub(super) fn end_lease(&self, connection: Option<Box<Connection>>) {
        let (unwanted, is_awaited) = {
            let mut state = self.lock();
            // Only an active stream and the driver of shared fetches wait for the connection.
            let is_awaited = state.stream_alive || self.is_shared();
            let unwanted = match connection {
                Some(connection) if !state.closed || self.is_shared() => {
                    state.connection = ConnectionState::Idle(connection);
                    None
                }
                other => {
                    state.connection = ConnectionState::None;
                    state.session = None;
                    other
                }
            };
            (unwanted, is_awaited)
        };
        // As in `close`.
        if let Some(mut connection) = unwanted {
            connection.set_close_reason(CloseReason::Close);
        }
        if is_awaited {
            self.freed.notify_waiters();
        }
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.lock().session.clone()
    }

    /// Whether several fetches share the connection, or wait to share it.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared.load(Relaxed)
    }

    pub(crate) fn is_busy(&self) -> bool {
        let state = self.lock();
        state.stream_alive || matches!(state.connection, ConnectionState::InUse)
    }

    /// Closes the connection: now, when its lease ends, or when fetches share it no longer.
    pub(crate) fn close(&self) {
        let unwanted = {
            let mut state = self.lock();
            state.closed = true;
            // While it is shared, an idle connection may have requests in flight.
            if self.is_shared() { None } else { state.take_unwanted() }
        };
        // After the lock is released, because dropping it writes to the socket.
        drop(unwanted);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SlotState> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    /// An idle connection may have requests in flight: a reader has ended, and the driver of the
    /// fetches that share it runs next.
    #[tokio::test]
    async fn shared_connection_of_a_dropped_client_is_closed_when_it_is_shared_no_longer() {
        let config = ConnectionConfig::parse("postgres://u@h/d?sslmode=disable").unwrap();
        let config = config.to_builder().connector(|_| async {
            let (ours, mut theirs) = duplex(1024);
            tokio::spawn(async move {
                theirs.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
                std::future::pending::<std::io::Result<()>>().await
            });
            Ok(ours)
        });
        let slot = Arc::new(Slot::new(config.build().unwrap())).handle();
        let (guard, lease, connection) = slot.acquire(|| {}).await.unwrap();
        drop(guard);
        slot.share();
        lease.give_back(connection);
        slot.close();
        assert!(matches!(slot.lock().connection, ConnectionState::Idle(_)));
        assert!(slot.unshare().is_some());
        assert!(matches!(slot.lock().connection, ConnectionState::None));
    }
}
