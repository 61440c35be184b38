//! The unit that a [`CancelToken`](super::CancelToken) cancels: one query, from the call that
//! starts it until no session works on it.

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use tokio::{select, sync::Notify, time::sleep};

use super::session::{CancelInFlight, FIRST_REPEAT, Session, no_key, send_repeatedly};
use crate::{
    error::{Error, Result},
    sync::lock,
};

/// A query that is being started or runs, or a ping.
///
/// Its mark is sticky: it holds at every later step of the query, and for no other query.
#[derive(Debug, Clone)]
pub(crate) struct RunningQuery(Arc<Shared>);

/// A client's weak reference to a query, which does not keep it in progress.
pub(super) type WeakQuery = Weak<Shared>;

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<QueryState>,
    /// Wakes the steps of the query.
    cancelled: Notify,
    /// Wakes those who wait for its end. Not the steps: nearly every query ends in the task that
    /// waits for the other notification too, and would wake it for nothing.
    session_ended: Notify,
}

#[derive(Debug, Default)]
struct QueryState {
    is_cancelled: bool,
    /// How many sessions may work on the query.
    sessions: usize,
    /// The sessions among them whose answer is read by a future of the caller, which may not be
    /// polled.
    in_futures: Sessions,
    /// Why a session may still work on it though its task has ended.
    failure: Option<Error>,
}

/// Sessions of one query, usually one.
#[derive(Debug, Default)]
struct Sessions {
    first: Option<Arc<Session>>,
    others: Vec<Arc<Session>>,
}

impl Sessions {
    fn add(&mut self, session: Arc<Session>) {
        match &mut self.first {
            first @ None => *first = Some(session),
            Some(_) => self.others.push(session),
        }
    }

    fn remove(&mut self, session: &Arc<Session>) {
        self.first.take_if(|other| Arc::ptr_eq(other, session));
        self.others.retain(|other| !Arc::ptr_eq(other, session));
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.first.iter().chain(&self.others)
    }
}

impl RunningQuery {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    pub(super) fn downgrade(&self) -> WeakQuery {
        Arc::downgrade(&self.0)
    }

    pub(super) fn upgrade(query: &WeakQuery) -> Option<Self> {
        query.upgrade().map(Self)
    }

    /// Marks the query. Every step of it that waits ends with [`Error::Cancelled`].
    pub(super) fn cancel(&self) {
        self.0.lock().is_cancelled = true;
        self.0.cancelled.notify_waiters();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.lock().is_cancelled
    }

    /// Resolves when the query is marked.
    pub(crate) async fn cancelled(&self) {
        self.0.until(&self.0.cancelled, |state| state.is_cancelled).await;
    }

    /// Runs a step of the query that ends when the query is cancelled. A query that is cancelled
    /// already does not begin the step.
    pub(crate) async fn unless_cancelled<T, E: From<Error>>(
        &self,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        select! {
            biased;
            () = self.cancelled() => Err(Error::Cancelled.into()),
            done = step => done,
        }
    }

    /// From now on, and until the value is dropped, a session may work on the query.
    pub(crate) fn session(&self) -> QuerySession {
        self.0.lock().sessions += 1;
        QuerySession(self.clone())
    }

    /// Waits until no session works on the query, after it was marked.
    ///
    /// A task, or a future that is polled, stops its session itself. For a future that is not
    /// polled, this sends cancel requests: several, because nothing shows whether one was too
    /// early.
    ///
    /// # Errors
    ///
    /// Why a session may still work on the query: it could not be stopped, and its connection was
    /// closed.
    pub(super) async fn stop(&self) -> Result<()> {
        let stop_unpolled = async {
            sleep(FIRST_REPEAT).await;
            let sessions: Vec<_> = self.0.lock().in_futures.iter().cloned().collect();
            if sessions.is_empty() {
                return pending().await;
            }
            for session in &sessions {
                let key = session.cancel.as_ref().ok_or_else(no_key)?;
                send_repeatedly(key, || self.0.begin_request(session)).await?;
            }
            let are_unpolled =
                |state: &QueryState| state.sessions == state.in_futures.iter().count();
            self.0.until(&self.0.session_ended, are_unpolled).await;
            Ok(())
        };
        select! {
            biased;
            stopped = self.stopped() => stopped,
            stopped = stop_unpolled => stopped,
        }
    }

    async fn stopped(&self) -> Result<()> {
        self.0.until(&self.0.session_ended, |state| state.sessions == 0).await;
        self.0.lock().failure.as_ref().map_or(Ok(()), |error| Err(error.copy()))
    }
}

impl Shared {
    /// Waits until the state is as expected, which `change` announces.
    async fn until(&self, change: &Notify, holds: impl Fn(&QueryState) -> bool) {
        loop {
            // Registered before the state is read, so that no change is missed.
            let changed = change.notified();
            if holds(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// Begins a cancel request for a session whose answer is read by a future of the caller.
    ///
    /// After [`left_future`](QuerySession::left_future), the cleanup waits for the requests that
    /// were begun before, and the session may then run another query: no further one must begin.
    fn begin_request<'a>(&self, session: &'a Arc<Session>) -> Option<CancelInFlight<'a>> {
        let state = self.lock();
        let is_in_future = state.in_futures.iter().any(|other| Arc::ptr_eq(other, session));
        is_in_future.then(|| session.begin_request())
    }

    fn lock(&self) -> MutexGuard<'_, QueryState> {
        lock(&self.state)
    }
}

/// A session that may work on a query, until it is dropped.
#[derive(Debug)]
pub(crate) struct QuerySession(RunningQuery);

impl QuerySession {
    /// The session's answer is read by a future of the caller, until
    /// [`left_future`](Self::left_future).
    pub(crate) fn in_future(&self, session: &Arc<Session>) {
        self.0.0.lock().in_futures.add(Arc::clone(session));
    }

    pub(crate) fn left_future(&self, session: &Arc<Session>) {
        self.0.0.lock().in_futures.remove(session);
    }

    /// See [`RunningQuery::cancelled`].
    pub(crate) async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// Reports why the session may work on after this was dropped. The first reason counts.
    pub(crate) fn failed_to_stop(&self, error: &Error) {
        self.0.0.lock().failure.get_or_insert_with(|| error.copy());
    }
}

impl Clone for QuerySession {
    fn clone(&self) -> Self {
        self.0.session()
    }
}

impl Drop for QuerySession {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let is_cancelled = {
            let mut state = shared.lock();
            state.sessions -= 1;
            state.is_cancelled
        };
        // Only `stop` waits for the end, after the query was marked. Most queries never are.
        if is_cancelled {
            shared.session_ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ConnectionConfig,
        connection_impl::{async_messages::AsyncMessages, info::ConnectionInfo},
    };

    fn session() -> Arc<Session> {
        let config: ConnectionConfig = "host=h".parse().unwrap();
        let server = config.targets().remove(0);
        let info = ConnectionInfo {
            host: None,
            address: None,
            unix_socket: None,
            port: 5432,
            tls_version: None,
            tls_cipher: None,
            auth_method: "none",
            protocol_version: "3.0",
        };
        Arc::new(Session::new(AsyncMessages::default(), info, server, None))
    }

    #[test]
    fn no_request_starts_for_a_session_that_has_left_the_future() {
        let (query, session, other) = (RunningQuery::new(), session(), session());
        let running = query.session();
        assert!(query.0.begin_request(&session).is_none());
        running.in_future(&session);
        let request = query.0.begin_request(&session);
        assert!(request.is_some() && session.may_be_cancelled());
        assert!(query.0.begin_request(&other).is_none());
        running.left_future(&session);
        assert!(query.0.begin_request(&session).is_none());
        assert!(session.may_be_cancelled(), "the cleanup waits for the one that was begun");
    }

    #[tokio::test(start_paused = true)]
    async fn session_without_a_key_cannot_be_cancelled_while_its_future_is_not_polled() {
        let (query, session) = (RunningQuery::new(), session());
        let running = query.session();
        running.in_future(&session);
        query.cancel();
        assert!(matches!(query.stop().await, Err(Error::InvalidState { .. })));
        drop(running);
        assert!(query.stop().await.is_ok());
    }
}
