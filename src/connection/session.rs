//! A session on a server, and the cancel requests that are sent to it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire},
        },
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{
    async_messages::AsyncMessages,
    cancel::CancelKey,
    info::{ConnectionInfo, ServerVersion},
    report::TARGET,
};
use crate::{
    config::Target,
    error::{Error, Result},
    sync::lock,
};

/// The pause before a query that still runs is cancelled again; doubled each time.
pub(super) const FIRST_REPEAT: Duration = Duration::from_millis(50);

/// How often a query is cancelled whose answer is not read. Nothing shows whether a request was too
/// early, or went to another server through a balancer.
const REPEATS: usize = 4;

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) async_messages: AsyncMessages,
    pub(super) info: ConnectionInfo,
    /// The server, for another connection to it.
    pub(super) server: Target,
    /// Without it, a query can be stopped only by closing the connection.
    pub(super) cancel: Option<CancelKey>,
    requests: Mutex<Requests>,
    request_ended: Notify,
    /// Other requests follow the one whose answer is being read, and are wanted: a cancel request
    /// might hit one of them.
    others_wanted: AtomicBool,
    others_unwanted: Notify,
}

/// Cancel requests that were sent to this session.
#[derive(Debug, Default)]
struct Requests {
    /// When the connection of the last one ended.
    last: Option<Instant>,
    /// Requests that have not ended.
    in_flight: usize,
    /// A request was abandoned before it ended: it may still arrive and would cancel any query.
    is_undelivered: bool,
}

impl Session {
    pub(super) fn new(
        async_messages: AsyncMessages,
        info: ConnectionInfo,
        server: Target,
        cancel: Option<CancelKey>,
    ) -> Self {
        Self {
            async_messages,
            info,
            server,
            cancel,
            requests: Mutex::default(),
            request_ended: Notify::new(),
            others_wanted: AtomicBool::new(false),
            others_unwanted: Notify::new(),
        }
    }

    /// Sets whether the session has other requests, which are wanted.
    pub(crate) fn set_others_wanted(&self, is_wanted: bool) {
        if self.others_wanted.swap(is_wanted, AcqRel) && !is_wanted {
            self.others_unwanted.notify_waiters();
        }
    }

    /// Whether a cancel request might hit another request than the one whose answer is being read.
    pub(crate) fn others_wanted(&self) -> bool {
        self.others_wanted.load(Acquire)
    }

    /// Resolves when a cancel request can hit no other request that is wanted.
    pub(super) async fn others_unwanted(&self) {
        loop {
            let changed = self.others_unwanted.notified();
            if !self.others_wanted() {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn backend_pid(&self) -> Option<u32> {
        self.cancel.as_ref().map(|key| key.process_id)
    }

    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        self.async_messages.parameter(name)
    }

    pub(crate) fn server_version(&self) -> Option<ServerVersion> {
        ServerVersion::parse(&self.parameter("server_version")?)
    }

    /// Records that an error of the server ends the session.
    pub(crate) fn set_ending(&self) {
        self.async_messages.set_ending();
    }

    /// Whether a notice or an error of the server has announced the end of the session.
    pub(crate) fn is_ending(&self) -> bool {
        self.async_messages.is_ending()
    }

    /// Sends one cancel request, and waits until the server has acted on it.
    ///
    /// # Errors
    ///
    /// The request may not have arrived, and may still do so: the session must not run another
    /// query.
    pub(super) async fn send_cancel(&self, key: &CancelKey) -> Result<()> {
        self.begin_request().send(key).await
    }

    /// From now on, and until the value is dropped, a cancel request may be in flight.
    pub(super) fn begin_request(&self) -> CancelInFlight<'_> {
        lock(&self.requests).in_flight += 1;
        CancelInFlight { session: self, has_ended: false }
    }

    /// Whether a cancel request may still arrive.
    pub(super) fn may_be_cancelled(&self) -> bool {
        let requests = lock(&self.requests);
        requests.in_flight > 0 || requests.is_undelivered
    }

    /// Waits until no cancel request is in flight.
    pub(super) async fn requests_ended(&self) {
        loop {
            let ended = self.request_ended.notified();
            if lock(&self.requests).in_flight == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Whether a cancel request has ended so recently that a proxy may still be holding it: some
    /// close the request's connection before the server has acted on it.
    pub(crate) fn was_cancelled_recently(&self) -> bool {
        lock(&self.requests).last.is_some_and(|last| last.elapsed() < LATE_CANCEL)
    }
}

/// How late a proxy may deliver a cancel request whose connection it has closed.
const LATE_CANCEL: Duration = Duration::from_secs(1);

/// A cancel request in flight.
pub(super) struct CancelInFlight<'a> {
    session: &'a Session,
    has_ended: bool,
}

impl CancelInFlight<'_> {
    /// See [`Session::send_cancel`].
    pub(super) async fn send(mut self, key: &CancelKey) -> Result<()> {
        let sent = key.send().await;
        self.has_ended = sent.is_ok();
        sent
    }
}

impl Drop for CancelInFlight<'_> {
    fn drop(&mut self) {
        let mut requests = lock(&self.session.requests);
        requests.last = Some(Instant::now());
        requests.in_flight -= 1;
        requests.is_undelivered |= !self.has_ended;
        drop(requests);
        self.session.request_ended.notify_waiters();
    }
}

/// Cancels the query of a session whose connection was lost during the query: the server may not
/// have noticed and may still be working on it. Bounded by `cancel_timeout`; best effort, because
/// nothing shows whether the query has ended.
pub(crate) async fn stop_lost(session: Arc<Session>, cancel_timeout: Duration) {
    match timeout(cancel_timeout, stop_without_answer(&session)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            debug!(target: TARGET, %error, "could not cancel the query of a lost connection");
        }
        Err(_) => debug!(target: TARGET, "timed out cancelling the query of a lost connection"),
    }
}

/// Cancels a query whose answer is not read because its connection is lost.
pub(super) async fn stop_without_answer(session: &Session) -> Result<()> {
    match &session.cancel {
        Some(key) => send_repeatedly(key, || Some(session.begin_request())).await,
        None => Ok(()),
    }
}

/// Sends several cancel requests, because nothing shows whether one was too early. Ends when
/// `begin` returns `None`.
pub(super) async fn send_repeatedly<'a>(
    key: &CancelKey,
    begin: impl Fn() -> Option<CancelInFlight<'a>>,
) -> Result<()> {
    let mut pause = FIRST_REPEAT;
    for number in 1..=REPEATS {
        let Some(request) = begin() else { break };
        request.send(key).await?;
        if number < REPEATS {
            sleep(pause).await;
            pause *= 2;
        }
    }
    Ok(())
}

/// The error of a query that cannot be cancelled.
pub(super) fn no_key() -> Error {
    Error::InvalidState {
        message: "the server sent no key to cancel queries with, so its connection was closed",
    }
}
