//! The rights to a client's connection: to run a query, and to use the connection.

use std::{
    any::Any,
    fmt,
    future::pending,
    mem,
    ops::Deref,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::futures::Notified, time::sleep};
use tracing::debug;

use super::{
    connect::{connect, connect_to},
    connecting::Connecting,
    random,
    report::TARGET,
    running_query::RunningQuery,
    server_connection::Connection,
    session::Session,
    slot::{ConnectionState, Slot, SlotState},
};
use crate::{
    error::{ConnectAttempt, Error, Result},
    metrics::connection::{CloseReason, reconnected},
};

/// A slot, and the guard that keeps its client out of a pool while the slot is in use.
#[derive(Clone)]
pub(crate) struct SlotHandle {
    slot: Arc<Slot>,
    connecting: Arc<Connecting>,
    _pool_guard: Option<PoolGuard>,
}

type PoolGuard = Arc<dyn Any + Send + Sync>;

/// The right to use the client's connection, and the connection, if there is one.
pub(crate) type Leased = (Lease, Option<Box<Connection>>);

/// How a fetch gets the connection.
pub(crate) enum FetchClaim {
    /// For itself.
    Alone(Leased),
    /// Together with other fetches, or after another query.
    Shared,
}

impl SlotHandle {
    /// Takes the connection for a query, or opens one, and the right to run the query.
    ///
    /// Waits for the cleanup of an earlier stream, at most `cancel_timeout`. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`] immediately, if a stream is active; the errors of connecting.
    pub(crate) async fn acquire(
        &self,
        continue_fetches: impl Fn(),
    ) -> Result<(StreamGuard, Lease, Box<Connection>)> {
        let (guard, leased) = self.claim_alone(continue_fetches).await?;
        let (lease, connection) = self.usable(leased).await?;
        Ok((guard, lease, connection))
    }

    /// Returns a connection that can run a query: the one that was leased, or a new one if there is
    /// none or it has ended.
    pub(crate) async fn usable(&self, leased: Leased) -> Result<(Lease, Box<Connection>)> {
        let (lease, idle) = leased;
        if let Some(mut connection) = idle {
            // Before the request is sent, because afterwards the server may have begun it.
            if connection.is_alive().await {
                return Ok((lease, connection));
            }
            connection.discard_stale();
        }
        // On the heap: connecting is rare, its future is large, and every query would move it.
        let connection = Box::pin(self.open()).await?;
        Ok((lease, connection))
    }

    /// Claims the connection for a fetch. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`], if a stream is active.
    pub(crate) fn claim_fetch(&self) -> Result<FetchClaim> {
        let mut state = self.lock();
        if state.stream_alive {
            return Err(Error::ConnectionBusy);
        }
        if self.is_shared() {
            return Ok(FetchClaim::Shared);
        }
        let Some(leased) = self.lease(&mut state) else { return Ok(FetchClaim::Shared) };
        state.is_fetching = true;
        Ok(FetchClaim::Alone(leased))
    }

    /// Lets fetches share the connection, until [`unshare`](Self::unshare).
    pub(crate) fn share(&self) {
        self.begin_sharing(&self.lock());
    }

    /// The same, for a fetch that found the connection in use.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`], if a stream has come since.
    pub(crate) fn share_with_fetch(&self) -> Result<()> {
        let state = self.lock();
        if state.stream_alive {
            return Err(Error::ConnectionBusy);
        }
        self.begin_sharing(&state);
        Ok(())
    }

    fn begin_sharing(&self, _state: &SlotState) {
        self.is_shared.store(true, Relaxed);
        self.contended.notify_waiters();
    }

    /// Ends the sharing. Returns the connection if the client was dropped before: the caller drops
    /// it without holding a lock, because that writes to the socket.
    pub(crate) fn unshare(&self) -> Option<Box<Connection>> {
        let unwanted = {
            let mut state = self.lock();
            self.is_shared.store(false, Relaxed);
            state.take_unwanted()
        };
        self.freed.notify_waiters();
        unwanted
    }

    /// Takes the connection for the fetches that share it. Waits for the query that uses it.
    pub(crate) async fn lease_shared(&self) -> Leased {
        loop {
            let freed = self.freed.notified();
            {
                let mut state = self.lock();
                if let Some(leased) = self.lease(&mut state) {
                    state.is_fetching = true;
                    return leased;
                }
            }
            freed.await;
        }
    }

    /// Resolves when fetches wait for the connection, or share it.
    pub(crate) async fn contended(&self) {
        loop {
            let contended = self.contended.notified();
            if self.is_shared() {
                return;
            }
            contended.await;
        }
    }

    /// Resolves when a cancel token is used, or a stream waits for the connection.
    pub(crate) fn driver_needed(&self) -> Notified<'_> {
        self.driver_notify.notified()
    }

    /// Whether a stream has the connection or waits for it.
    pub(crate) fn is_claimed(&self) -> bool {
        self.lock().stream_alive
    }

    /// The guard of a fetch, which does not reject other queries.
    pub(crate) fn fetch_guard(&self) -> StreamGuard {
        StreamGuard { slot: self.clone(), is_exclusive: false }
    }

    /// Begins a query that the client's tokens can cancel, until the value and its sessions are
    /// dropped.
    pub(crate) fn begin_query(&self) -> RunningQuery {
        let query = RunningQuery::new();
        let mut state = self.lock();
        // Not for each query: many may be in progress. Then half of the list is free.
        if state.queries.len() == state.queries.capacity() {
            state.queries.retain(|query| query.strong_count() > 0);
            let in_progress = state.queries.len();
            state.queries.reserve(in_progress.max(8));
        }
        state.queries.push(query.downgrade());
        query
    }

    /// The attempts to connect of this query.
    pub(crate) fn connecting(&self) -> &Connecting {
        &self.connecting
    }

    /// Takes the connection to close it, if there is one. Waits for a cleanup, like
    /// [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`] immediately, if a stream is active.
    pub(crate) async fn take_idle(
        &self,
        continue_fetches: impl Fn(),
    ) -> Result<Option<Box<Connection>>> {
        let (_guard, (_lease, idle)) = self.claim_alone(continue_fetches).await?;
        Ok(idle)
    }

    /// Claims the connection for one query. Waits for the fetches in progress and for a cleanup;
    /// from the first moment on, queries that come later are rejected.
    ///
    /// `continue_fetches` is called when a fetch has the connection: its caller may not poll it.
    pub(crate) async fn claim_alone(
        &self,
        continue_fetches: impl Fn(),
    ) -> Result<(StreamGuard, Leased)> {
        let guard = {
            let mut state = self.lock();
            if state.stream_alive {
                return Err(Error::ConnectionBusy);
            }
            state.stream_alive = true;
            StreamGuard { slot: self.clone(), is_exclusive: true }
        };
        loop {
            // Registered before the state is read, so that no notification is missed.
            let freed = self.freed.notified();
            let (leased, is_fetching) = {
                let mut state = self.lock();
                let leased = if self.is_shared() { None } else { self.lease(&mut state) };
                (leased, state.is_fetching || self.is_shared())
            };
            if let Some(leased) = leased {
                return Ok((guard, leased));
            }
            if is_fetching {
                continue_fetches();
                self.driver_notify.notify_one();
            }
            freed.await;
        }
    }

    /// Takes the connection, unless it is in use.
    fn lease(&self, state: &mut SlotState) -> Option<Leased> {
        let idle = match mem::replace(&mut state.connection, ConnectionState::InUse) {
            ConnectionState::InUse => return None,
            ConnectionState::Idle(connection) => Some(connection),
            ConnectionState::None => None,
        };
        state.is_fetching = false;
        Some((Lease { slot: Some(self.clone()) }, idle))
    }

    /// Opens the client's connection.
    async fn open(&self) -> Result<Box<Connection>> {
        // The client must not report the old session while it connects.
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

    /// Opens a connection. If it replaces an earlier one, or is one of a pool that has connected
    /// before, the retry policy applies.
    async fn connect(&self) -> Result<Connection> {
        let (replaces, retries) = {
            let state = self.lock();
            (state.connected_before, state.connected_before || state.retries_first)
        };
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
                Err(e) if !retries || !e.is_retriable() => return Err(e),
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

    /// Opens a further connection to the server of this session, which the slot does not own.
    pub(crate) async fn connect_beside(&self, session: &Session) -> Result<Connection> {
        self.connecting.begin();
        let opened =
            connect_to(vec![session.server.clone()], &self.config, &self.notices, &self.connecting)
                .await;
        self.connecting.end();
        opened
    }

    /// Another handle, which has the guard of the pool too, and attempts to connect of its own.
    pub(crate) fn renewed(&self) -> Self {
        Self { connecting: Arc::default(), ..self.clone() }
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

impl Slot {
    /// Returns a handle for one query.
    pub(crate) fn handle(self: &Arc<Self>) -> SlotHandle {
        SlotHandle { slot: Arc::clone(self), connecting: Arc::default(), _pool_guard: None }
    }
}

/// Keeps the client out of its pool until the query's stream is closed. For a stream of the user,
/// it also rejects other queries of the client.
pub(crate) struct StreamGuard {
    /// The pool guard in it is released after the mark is removed.
    slot: SlotHandle,
    is_exclusive: bool,
}

impl StreamGuard {
    /// The `statement_timeout` that was set at the start of the session.
    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        self.slot.config.statement_timeout()
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if self.is_exclusive {
            self.slot.lock().stream_alive = false;
            if self.slot.is_shared() {
                // The stream waited, and does not wait any more.
                self.slot.driver_notify.notify_one();
            }
        }
    }
}

/// The right to use the client's connection. If it is dropped before
/// [`give_back`](Self::give_back), the client has no connection.
pub(crate) struct Lease {
    /// `None` after the lease has ended: the connection may then be in use by another lease, which
    /// must not be affected.
    slot: Option<SlotHandle>,
}

impl Lease {
    /// The pause before another attempt to connect, by the retry policy; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The operating system returned no random bytes.
    pub(crate) fn pause_before_retry(&self, failures: u32) -> Result<Option<Duration>> {
        match (&self.slot, failures) {
            (_, 0) => Ok(Some(Duration::ZERO)),
            (Some(slot), failures) => Ok(slot.config.retry().pause(failures, random::unit()?)),
            (None, _) => Ok(None),
        }
    }

    /// Opens a connection, after a pause, to replace one that was lost with this error during the
    /// query. Cancel-safe.
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
        // If a deadline passes in the pause, its error reports the lost connection.
        slot.connecting.begin();
        slot.connecting.failed(&ConnectAttempt {
            target: lost.server.to_string(),
            error: Box::new(error.copy()),
        });
        sleep(pause).await;
        let opened = Box::pin(slot.open()).await;
        slot.connecting.end();
        opened
    }

    /// Opens the client's connection.
    ///
    /// # Errors
    ///
    /// The errors of connecting.
    pub(crate) async fn open(&self) -> Result<Box<Connection>> {
        match &self.slot {
            Some(slot) => Box::pin(slot.open()).await,
            None => Err(Error::InvalidState { message: "the lease of the connection has ended" }),
        }
    }

    /// Resolves when fetches wait for this connection.
    pub(crate) async fn contended(&self) {
        match &self.slot {
            Some(slot) => slot.contended().await,
            None => pending().await,
        }
    }

    /// See [`Connecting::deadline_error`].
    pub(crate) fn deadline_error(&self, error: Error) -> Error {
        match &self.slot {
            Some(slot) => slot.connecting.deadline_error(error),
            None => error,
        }
    }

    /// Returns the connection to the client, for the next query. It keeps its read buffer.
    pub(crate) fn give_back(mut self, mut connection: Box<Connection>) {
        // From now on the server may end it unnoticed.
        connection.reused = true;
        // If the handler of notices panics here, the lease ends without the connection.
        let is_clean = connection.is_clean();
        if connection.session.is_ending() {
            connection.set_close_reason(CloseReason::Server);
        }
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

impl fmt::Debug for SlotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlotHandle")
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
