use std::{
    any::Any,
    fmt, mem,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{select, sync::Notify, time::sleep};
use tracing::debug;

use super::{
    Connection, TARGET,
    establish::{connect, connect_to},
    random,
    session::{Notices, Session},
};
use crate::{
    config::{ConnectionConfig, Target},
    error::{Error, Result},
    metrics::{
        QueryMetricsCache,
        connection::{Closed, reconnected},
    },
};

/// A client's place for its one connection, and who has it at the moment.
///
/// Two parties hold on to it while a query runs: the stream, as long as the user has it, and the
/// task that works on the connection, which may outlive the stream for the clean-up.
#[derive(Debug)]
pub(crate) struct Slot {
    config: ConnectionConfig,
    state: Mutex<State>,
    freed: Notify,
    /// Wakes who works for a query that is to be stopped without having the client's connection.
    cancelled: Notify,
    pub(crate) notices: Notices,
    /// Handles of metrics that its queries share.
    pub(crate) query_metrics: QueryMetricsCache,
}

#[derive(Debug, Default)]
struct State {
    work: Work,
    stream_alive: bool,
    /// That of the connection, wherever it is.
    session: Option<Arc<Session>>,
    /// There has been a connection before.
    connected_before: bool,
    /// The client is gone: nobody will ask for the connection again.
    closed: bool,
}

/// A slot, and what is kept as long as somebody works on it: its place in a pool.
#[derive(Clone)]
pub(crate) struct Access {
    slot: Arc<Slot>,
    _kept: Option<Kept>,
}

type Kept = Arc<dyn Any + Send + Sync>;

impl Access {
    /// Takes the connection for a query, or opens one, and the right to run it.
    ///
    /// Waits for the clean-up of an earlier stream, which is bounded. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`] at once, when a stream is alive; those of connecting.
    pub(crate) async fn acquire(&self) -> Result<(StreamGuard, Lease, Connection)> {
        let (guard, lease, mut idle) = self.take().await?;
        if let Some(connection) = &idle {
            // A cancel request that is still on its way would hit the query that follows.
            if !connection.session.is_clean().await {
                idle = None;
            }
        }
        let connection = match idle {
            Some(connection) => connection,
            None => self.open().await?,
        };
        Ok((guard, lease, connection))
    }

    /// Takes the connection to close it, if there is one. Waits for a clean-up, like
    /// [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`] at once, when a stream is alive.
    pub(crate) async fn take_idle(&self) -> Result<Option<Connection>> {
        let (_guard, _lease, idle) = self.take().await?;
        Ok(idle)
    }

    async fn take(&self) -> Result<(StreamGuard, Lease, Option<Connection>)> {
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
    fn try_take(&self) -> Result<Option<(StreamGuard, Lease, Option<Connection>)>> {
        let mut state = self.lock();
        if state.stream_alive {
            return Err(Error::ConnectionBusy);
        }
        let idle = match mem::replace(&mut state.work, Work::Out) {
            Work::Out => return Ok(None),
            Work::Idle(connection) => Some(*connection),
            Work::None => None,
        };
        state.stream_alive = true;
        let guard = StreamGuard { access: self.clone() };
        Ok(Some((guard, Lease { access: Some(self.clone()) }, idle)))
    }

    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    pub(crate) fn keeping(self, kept: Kept) -> Self {
        Self { _kept: Some(kept), ..self }
    }
}

impl Deref for Access {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

/// What the connection is doing.
#[derive(Debug, Default)]
enum Work {
    /// There is none, or it was lost.
    #[default]
    None,
    Idle(Box<Connection>),
    /// Out on a [`Lease`].
    Out,
}

impl Slot {
    pub(crate) fn new(config: ConnectionConfig) -> Self {
        let (state, notices) = (Mutex::default(), Notices::default());
        let query_metrics = QueryMetricsCache::default();
        Self {
            config,
            state,
            freed: Notify::new(),
            cancelled: Notify::new(),
            notices,
            query_metrics,
        }
    }

    /// The way in.
    pub(crate) fn access(self: &Arc<Self>) -> Access {
        Access { slot: Arc::clone(self), _kept: None }
    }

    pub(crate) fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// Opens the client's connection.
    async fn open(&self) -> Result<Connection> {
        // Whoever asks meanwhile, or cancels, must not be told of the old one.
        self.lock().session = None;
        let connection = self.connect().await?;
        let mut state = self.lock();
        state.session = Some(Arc::clone(&connection.session));
        state.connected_before = true;
        Ok(connection)
    }

    /// Makes a connection; one in place of another by the policy for that.
    async fn connect(&self) -> Result<Connection> {
        let replaces = self.lock().connected_before;
        let mut failures = 0;
        loop {
            let error = match connect(&self.config, &self.notices).await {
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

    /// Opens one more connection to the server of this session, for who asks and nobody else.
    pub(crate) async fn connect_beside(&self, session: &Session) -> Result<Connection> {
        let info = session.info();
        let server = Target {
            host: info.host.clone(),
            hostaddr: info.address,
            unix_socket: info.unix_socket.clone(),
            port: info.port,
        };
        connect_to(vec![server], &self.config, &self.notices).await
    }

    /// Stops the query that runs, if one does.
    pub(crate) async fn cancel(&self) -> Result<()> {
        let cancel = {
            let state = self.lock();
            match (&state.work, &state.session) {
                (Work::Out, Some(session)) => Some(Arc::clone(session).begin_cancel()),
                _ => None,
            }
        };
        // Behind it: who begins to listen now can see of the session that it was asked for.
        self.cancelled.notify_waiters();
        match cancel {
            Some(cancel) => cancel.send(self.config.cancel_timeout()).await,
            None => Ok(()),
        }
    }

    /// Resolves when the query is cancelled that began on this session of the client's, which may be done with
    /// its part. For those whose part the session waits for before it is done.
    pub(crate) async fn cancelled(&self, session: &Session) {
        let cancelled = self.cancelled.notified();
        // It may have been before this was asked.
        if !session.is_cancelled() {
            cancelled.await;
        }
    }

    /// Ends a lease, with the connection or without one.
    fn end_lease(&self, connection: Option<Connection>) {
        let unwanted = {
            let mut state = self.lock();
            match connection {
                Some(connection) if !state.closed => {
                    state.work = Work::Idle(Box::new(connection));
                    None
                }
                other => {
                    state.work = Work::None;
                    state.session = None;
                    other
                }
            }
        };
        // Behind the lock, for its last message goes to the socket.
        if let Some(mut connection) = unwanted {
            connection.closes(Closed::Close);
        }
        self.freed.notify_waiters();
    }

    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.lock().session.clone()
    }

    pub(crate) fn is_busy(&self) -> bool {
        let state = self.lock();
        state.stream_alive || matches!(state.work, Work::Out)
    }

    /// Ends the connection, now or when the work on it ends.
    pub(crate) fn close(&self) {
        let idle = {
            let mut state = self.lock();
            state.closed = true;
            match &state.work {
                Work::Idle(_) => mem::take(&mut state.work),
                _ => Work::None,
            }
        };
        if let Work::Idle(mut connection) = idle {
            connection.closes(Closed::Close);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the query of a client from anywhere else: made by
/// [`FraiseClient::cancel_token`](crate::FraiseClient::cancel_token).
///
/// It does not keep the client's connection open.
#[derive(Debug, Clone)]
pub struct CancelToken {
    slot: Weak<Slot>,
}

impl CancelToken {
    pub(crate) fn new(slot: &Arc<Slot>) -> Self {
        Self { slot: Arc::downgrade(slot) }
    }

    /// Asks the server to stop the query that runs at the moment; resolves when the server has taken
    /// the request. When none runs, nothing happens.
    ///
    /// The stream ends with [`Error::Cancelled`], behind the rows that had arrived, unless it was at
    /// its end already. A request never hits a later query: that waits for it.
    ///
    /// # Errors
    ///
    /// The server could not be told: [`Error::Timeout`] after `cancel_timeout`, or the error of the
    /// connection that the request was sent on. The query goes on then.
    ///
    /// # Cancel safety
    ///
    /// The request may or may not be sent when the future is dropped. The connection is closed
    /// behind the query then, because it might still hit the next one.
    pub async fn cancel(&self) -> Result<()> {
        match self.slot.upgrade() {
            Some(slot) => slot.cancel().await,
            None => Ok(()),
        }
    }
}

/// Says that a stream is alive, until it is dropped.
pub(crate) struct StreamGuard {
    /// What it keeps goes behind the last that it does.
    access: Access,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.access.lock().stream_alive = false;
    }
}

/// The right to work on the client's connection. Dropped without giving one back, the connection is lost.
pub(crate) struct Lease {
    /// Until the lease ends. From then on the connection may be out on another one, which must not
    /// be touched.
    access: Option<Access>,
}

impl Lease {
    /// That of a connection which is nobody's: given back, it ends.
    pub(crate) fn none() -> Self {
        Self { access: None }
    }

    /// What the server was told at the start of the session.
    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        self.access.as_ref()?.config.statement_timeout()
    }

    /// The pause before it is tried once more, by the policy for that; `None` when it is enough.
    ///
    /// # Errors
    ///
    /// There is no chance to be had.
    pub(crate) fn pause_before_retry(&self, failures: u32) -> Result<Option<Duration>> {
        match (&self.access, failures) {
            (_, 0) => Ok(Some(Duration::ZERO)),
            (Some(access), failures) => Ok(access.config.retry().pause(failures, random::unit()?)),
            (None, _) => Ok(None),
        }
    }

    /// Opens another connection, after a pause, in place of one that was lost in mid-query. Cancel-safe.
    ///
    /// # Errors
    ///
    /// Those of connecting, and [`Error::Cancelled`] by a token: the query runs nowhere then.
    pub(crate) async fn replace(&self, lost: &Session, pause: Duration) -> Result<Connection> {
        let Some(access) = &self.access else {
            return Err(Error::InvalidState { message: "a connection beside is not replaced" });
        };
        let opened = async {
            sleep(pause).await;
            access.open().await
        };
        // It listens before the lost session is forgotten.
        select! {
            biased;
            () = access.cancelled(lost) => Err(Error::Cancelled),
            opened = opened => opened,
        }
    }

    /// Gives the connection back for the next query.
    pub(crate) fn give_back(mut self, mut connection: Connection) {
        // From now on it may end unseen.
        connection.reused = true;
        // What the last query needed, the next one need not.
        connection.buffer = BytesMut::from(connection.buffer.as_ref());
        match self.access.take() {
            Some(access) => {
                let clean = connection.is_clean();
                access.end_lease(Some(connection).filter(|_| clean));
            }
            None => connection.closes(Closed::Close),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(access) = self.access.take() {
            access.end_lease(None);
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
