use std::{
    any::Any,
    fmt, mem,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tracing::debug;

use super::{
    Connection, TARGET,
    cancel::timed_out,
    connect::{connect, connect_to},
    connecting::Connecting,
    random,
    running_query::{RunningQuery, WeakQuery},
    session::{Notices, Session},
};
use crate::{
    config::ConnectionConfig,
    error::{ConnectAttempt, Error, Result},
    metrics::{
        QueryMetricsCache,
        connection::{CloseReason, reconnected},
    },
};

/// A client's place for its one connection, and who has it at the moment.
///
/// Two parties hold on to it while a query runs: the stream, as long as the user has it, and the
/// task that works on the connection, which may outlive the stream for the clean-up.
#[derive(Debug)]
pub(crate) struct Slot {
    config: ConnectionConfig,
    state: Mutex<SlotState>,
    freed: Notify,
    pub(crate) notices: Notices,
    /// Handles of metrics that its queries share.
    pub(crate) query_metrics: QueryMetricsCache,
}

#[derive(Debug, Default)]
struct SlotState {
    connection: ConnectionState,
    stream_alive: bool,
    /// That of the connection, wherever it is.
    session: Option<Arc<Session>>,
    /// There has been a connection before.
    connected_before: bool,
    /// The client is gone: nobody will ask for the connection again.
    closed: bool,
    /// Queries that may be in progress: one that runs, and those that wait for its cleanup.
    queries: Vec<WeakQuery>,
    /// How often the client was taken out of its pool or returned to it; 0 without a pool.
    checkouts: u64,
}

/// A slot, and what is kept as long as somebody works on it: its place in a pool.
#[derive(Clone)]
pub(crate) struct SlotHandle {
    slot: Arc<Slot>,
    connecting: Arc<Connecting>,
    _pool_guard: Option<PoolGuard>,
}

type PoolGuard = Arc<dyn Any + Send + Sync>;

/// The right to run a query, the right to the connection, and the connection, if there is one.
type Acquired = (StreamGuard, Lease, Option<Box<Connection>>);

impl SlotHandle {
    /// Takes the connection for a query, or opens one, and the right to run it.
    ///
    /// Waits for the clean-up of an earlier stream, which is bounded. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`] at once, when a stream is alive; those of connecting.
    pub(crate) async fn acquire(&self) -> Result<(StreamGuard, Lease, Box<Connection>)> {
        let (guard, lease, idle) = self.take().await?;
        if let Some(mut connection) = idle {
            // Before the request is sent, because afterwards the server may have begun it.
            if connection.is_alive().await {
                return Ok((guard, lease, connection));
            }
            connection.discard_stale();
        }
        // On the heap: connecting is rare, its future is large, and every query would move it.
        let connection = Box::pin(self.open()).await?;
        Ok((guard, lease, connection))
    }

    /// Begins a query that the client's tokens can cancel, until the value and its sessions are
    /// dropped.
    pub(crate) fn begin_query(&self) -> RunningQuery {
        let query = RunningQuery::new();
        let mut state = self.lock();
        state.queries.retain(|query| query.strong_count() > 0);
        state.queries.push(query.downgrade());
        query
    }

    /// The attempts to connect of this query.
    pub(crate) fn connecting(&self) -> &Connecting {
        &self.connecting
    }

    /// Takes the connection to close it, if there is one. Waits for a clean-up, like
    /// [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`] at once, when a stream is alive.
    pub(crate) async fn take_idle(&self) -> Result<Option<Box<Connection>>> {
        let (_guard, _lease, idle) = self.take().await?;
        Ok(idle)
    }

    async fn take(&self) -> Result<Acquired> {
        loop {
            // Before the look at the state, so that no notification falls in between.
            let freed = self.freed.notified();
            if let Some(taken) = self.try_take()? {
                return Ok(taken);
            }
            freed.await;
        }
    }

    /// Takes what is there, which may be no connection; `None` while one is being cleaned up.
    fn try_take(&self) -> Result<Option<Acquired>> {
        let mut state = self.lock();
        if state.stream_alive {
            return Err(Error::ConnectionBusy);
        }
        let idle = match mem::replace(&mut state.connection, ConnectionState::InUse) {
            ConnectionState::InUse => return Ok(None),
            ConnectionState::Idle(connection) => Some(connection),
            ConnectionState::None => None,
        };
        state.stream_alive = true;
        let guard = StreamGuard { slot: self.clone() };
        Ok(Some((guard, Lease { slot: Some(self.clone()) }, idle)))
    }

    /// Opens the client's connection.
    async fn open(&self) -> Result<Box<Connection>> {
        // The client must not report the old one meanwhile.
        self.lock().session = None;
        self.connecting.begin();
        let opened = self.connect().await;
        self.connecting.end();
        let connection = opened?;
        let mut state = self.lock();
        state.session = Some(Arc::clone(&connection.session));
        state.connected_before = true;
        Ok(Box::new(connection))
    }

    /// Makes a connection; one in place of another by the retry policy.
    async fn connect(&self) -> Result<Connection> {
        let replaces = self.lock().connected_before;
        let mut failures = 0;
        loop {
            self.connecting.begin_round();
            let error = match connect(&self.config, &self.notices, &self.connecting).await {
                Ok(connection) => {
                    if replaces {
                        reconnected();
                    }
                    return Ok(connection);
                }
                Err(e) if !replaces || !e.is_retriable() => return Err(e),
                Err(e) => e,
            };
            failures += 1;
            match self.config.retry().pause(failures, random::unit()?) {
                Some(pause) => {
                    debug!(target: TARGET, %error, ?pause, "will try again to connect");
                    sleep(pause).await;
                }
                None => return Err(error),
            }
        }
    }

    /// Opens one more connection to the server of this session, for the caller alone.
    pub(crate) async fn connect_beside(&self, session: &Session) -> Result<Connection> {
        self.connecting.begin();
        let opened =
            connect_to(vec![session.server()], &self.config, &self.notices, &self.connecting).await;
        self.connecting.end();
        opened
    }

    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    pub(crate) fn with_pool_guard(self, guard: PoolGuard) -> Self {
        Self { _pool_guard: Some(guard), ..self }
    }
}

impl Deref for SlotHandle {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

/// What the connection is doing.
#[derive(Debug, Default)]
enum ConnectionState {
    /// There is none, or it was lost.
    #[default]
    None,
    Idle(Box<Connection>),
    /// Out on a [`Lease`].
    InUse,
}

impl Slot {
    pub(crate) fn new(config: ConnectionConfig) -> Self {
        let (state, notices) = (Mutex::default(), Notices::default());
        let query_metrics = QueryMetricsCache::default();
        Self { config, state, freed: Notify::new(), notices, query_metrics }
    }

    /// The way in.
    pub(crate) fn handle(self: &Arc<Self>) -> SlotHandle {
        SlotHandle { slot: Arc::clone(self), connecting: Arc::default(), _pool_guard: None }
    }

    pub(crate) fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// Cancels the queries that are in progress, if `checkout` is still the present one.
    ///
    /// A query that has no session yet sees its mark before it sends anything. A session is stopped
    /// by its task, which repeats the cancel request until the query ends.
    async fn cancel(&self, checkout: u64) -> Result<()> {
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
        let stopped = async {
            for query in &queries {
                query.stop().await?;
            }
            Ok(())
        };
        let after = self.config.cancel_timeout();
        timeout(after, stopped).await.unwrap_or_else(|_| Err(timed_out(after)))
    }

    /// The client was taken out of its pool or returned to it: tokens from before are void.
    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    pub(crate) fn next_checkout(&self) {
        self.lock().checkouts += 1;
    }

    /// Ends a lease, with the connection or without one.
    fn end_lease(&self, connection: Option<Box<Connection>>) {
        let unwanted = {
            let mut state = self.lock();
            match connection {
                Some(connection) if !state.closed => {
                    state.connection = ConnectionState::Idle(connection);
                    None
                }
                other => {
                    state.connection = ConnectionState::None;
                    state.session = None;
                    other
                }
            }
        };
        // Behind the lock, for its last message goes to the socket.
        if let Some(mut connection) = unwanted {
            connection.set_close_reason(CloseReason::Close);
        }
        self.freed.notify_waiters();
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.lock().session.clone()
    }

    pub(crate) fn is_busy(&self) -> bool {
        let state = self.lock();
        state.stream_alive || matches!(state.connection, ConnectionState::InUse)
    }

    /// Ends the connection, now or when the work on it ends.
    pub(crate) fn close(&self) {
        let idle = {
            let mut state = self.lock();
            state.closed = true;
            match &state.connection {
                ConnectionState::Idle(_) => mem::take(&mut state.connection),
                _ => ConnectionState::None,
            }
        };
        if let ConnectionState::Idle(mut connection) = idle {
            connection.set_close_reason(CloseReason::Close);
        }
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cancels the query of a client from any task: made by
/// [`FraiseClient::cancel_token`](crate::FraiseClient::cancel_token).
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
    /// `count()`, `ping()` and so on) until the server has answered it to its end. That includes
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
    /// streams are read.
    ///
    /// The token of a pooled client is valid for one checkout, including the streams made from the
    /// client. It has no effect after the client is returned to its pool.
    ///
    /// # Errors
    ///
    /// After an error the query may still run on the server. Its connection is closed, and its
    /// stream still ends with `Error::Cancelled`:
    ///
    /// * [`Error::Timeout`]: it could not be stopped within `cancel_timeout`.
    /// * [`Error::Connection`] or another error of connecting: the cancel request could not be
    ///   sent.
    /// * [`Error::Protocol`]: more than `drain_limit` bytes were still to be read.
    /// * [`Error::InvalidState`]: the server sent no key for cancel requests.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future after its first poll changes nothing: the query is cancelled.
    pub async fn cancel(&self) -> Result<()> {
        match self.slot.upgrade() {
            Some(slot) => slot.cancel(self.checkout).await,
            None => Ok(()),
        }
    }
}

/// Says that a stream is alive, until it is dropped.
pub(crate) struct StreamGuard {
    /// What it keeps goes behind the last that it does.
    slot: SlotHandle,
}

impl StreamGuard {
    /// The timeout that the server was given at the start of the session.
    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        self.slot.config.statement_timeout()
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.slot.lock().stream_alive = false;
    }
}

/// The right to work on the client's connection. Dropped without the connection, the client has
/// none.
pub(crate) struct Lease {
    /// Until the lease ends. From then on the connection may be in use by another one, which must
    /// not be affected.
    slot: Option<SlotHandle>,
}

impl Lease {
    /// The pause before another attempt to connect, by the retry policy; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The system has no random number.
    pub(crate) fn pause_before_retry(&self, failures: u32) -> Result<Option<Duration>> {
        match (&self.slot, failures) {
            (_, 0) => Ok(Some(Duration::ZERO)),
            (Some(slot), failures) => Ok(slot.config.retry().pause(failures, random::unit()?)),
            (None, _) => Ok(None),
        }
    }

    /// Opens another connection, after a pause, in place of one that was lost during the query with
    /// this error. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The errors of connecting.
    pub(crate) async fn replace(
        &self,
        lost: &Session,
        error: &Error,
        pause: Duration,
    ) -> Result<Box<Connection>> {
        let Some(slot) = &self.slot else { return Err(error.copy()) };
        // A deadline that passes in the pause is about the lost connection.
        slot.connecting.begin();
        slot.connecting.failed(&ConnectAttempt {
            target: lost.server().to_string(),
            error: Box::new(error.copy()),
        });
        sleep(pause).await;
        let opened = Box::pin(slot.open()).await;
        slot.connecting.end();
        opened
    }

    /// Returns the error of a deadline that has passed: see [`Connecting::deadline_error`].
    pub(crate) fn deadline_error(&self, error: Error) -> Error {
        match &self.slot {
            Some(slot) => slot.connecting.deadline_error(error),
            None => error,
        }
    }

    /// Returns the connection to the client, for the next query. It keeps its read buffer.
    pub(crate) fn give_back(mut self, mut connection: Box<Connection>) {
        // From now on it may end unnoticed.
        connection.reused = true;
        // The handler of notices may panic here: then the lease ends without the connection.
        let is_clean = connection.is_clean();
        if let Some(slot) = self.slot.take() {
            slot.end_lease(Some(connection).filter(|_| is_clean));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.end_lease(None);
        }
    }
}

impl fmt::Debug for StreamGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamGuard")
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}
