//! The task that runs the requests of several fetches on one connection.

use std::{
    future::{pending, poll_fn},
    mem,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    select,
    task::yield_now,
    time::{sleep, sleep_until},
};

use super::{
    active_requests::ActiveRequests,
    entry::task_ended,
    head::{Head, Step, confirm, deliver},
    queue::Pipeline,
    request::Sent,
};
use crate::{
    connection::{Connection, Lease, Session, SlotHandle, cancel_and_drain},
    error::{Error, Result, TimeoutPhase},
    protocol::extended_query::ExtendedQuery,
    stream_impl::{
        exchange::{Answer, Exchange, closed},
        observer::now,
        open::{Job, Sessions, Start},
        settings::MAX_READ,
        teardown::{Held, LostSession, cleanup_failed, give_back, is_lost},
    },
};

/// Room for a good read.
const MIN_FREE: usize = 8 << 10;

/// How long the driver waits for further requests after several at once.
const LINGER: Duration = Duration::from_millis(1);

/// Runs the requests of a pipeline, in the order in which they came.
pub(super) struct Driver {
    requests: ActiveRequests,
    /// The session that they were sent to.
    session: Option<Arc<Session>>,
    /// The connection that was lost, until it is replaced.
    lost: Option<Lost>,
    has_finished: bool,
}

/// Why a connection must be replaced.
struct Lost {
    session: Arc<Session>,
    error: Error,
    /// The pause before the first attempt.
    pause: Duration,
}

/// A connection that the driver uses.
struct Work {
    lease: Lease,
    exchange: Exchange,
    /// Since when no byte was sent or received though the server has a request.
    silent_since: Instant,
}

impl Driver {
    /// The driver has the handle until it ends, so that a client does not return to its pool while
    /// answers are discarded. Dropped before it is started, it fails the requests.
    pub(super) fn new(pipeline: Arc<Pipeline>, slot: SlotHandle) -> Self {
        Self {
            requests: ActiveRequests::new(pipeline, slot),
            session: None,
            lost: None,
            has_finished: false,
        }
    }

    /// Starts the task. It ends when there is nothing left to do.
    pub(super) fn start(self) {
        tokio::spawn(Box::pin(self.run()));
    }

    async fn run(mut self) {
        while !self.has_finished {
            // A handle of its own: an attempt to connect that was dropped is not the next one's.
            self.requests.slot = self.requests.slot.renewed();
            let is_over =
                |requests: &ActiveRequests| requests.is_unwanted() && !requests.slot.is_claimed();
            let (lease, connection) = select! {
                biased;
                leased = self.requests.slot.lease_shared() => leased,
                () = self.until(is_over) => {
                    self.finish();
                    continue;
                }
            };
            match self.connection(&lease, connection).await {
                Ok(Some(connection)) => self.work(lease, connection).await,
                Ok(None) => {
                    drop(lease);
                    self.finish();
                }
                Err(error) => {
                    drop(lease);
                    self.requests.fail_all(&error);
                    self.finish();
                }
            }
        }
    }

    /// Returns a connection on which the requests that were sent are answered. If theirs was lost,
    /// they are sent again. `None`: there is none, and nothing is wanted any more.
    async fn connection(
        &mut self,
        lease: &Lease,
        connection: Option<Box<Connection>>,
    ) -> Result<Option<Box<Connection>>> {
        let earlier = self.session.take();
        let session = self.requests.adopt().or(earlier);
        if let Some(mut connection) = connection {
            // Without requests in flight, it may have ended unnoticed.
            let is_theirs = !self.requests.sent.is_empty()
                && session.is_some_and(|session| Arc::ptr_eq(&session, &connection.session));
            if is_theirs || connection.is_alive_for_many().await {
                return Ok(Some(connection));
            }
            connection.discard_stale();
        }
        self.requests.requeue();
        let lost = self.lost.take();
        let opened = async {
            match &lost {
                Some(Lost { session, error, pause }) => lease.replace(session, error, *pause).await,
                None => lease.open().await,
            }
        };
        self.requests.pipeline.set_connecting(Some(self.requests.slot.clone()));
        let opened = select! {
            biased;
            () = self.until(ActiveRequests::is_unwanted) => Ok(None),
            opened = opened => opened.map(Some),
        };
        self.requests.pipeline.set_connecting(None);
        opened
    }

    /// Sends requests and reads answers, as long as there are any and the connection lasts.
    async fn work(&mut self, lease: Lease, connection: Box<Connection>) {
        self.session = Some(Arc::clone(&connection.session));
        let mut exchange = Exchange::new(connection, Bytes::new(), ExtendedQuery::new());
        exchange.connection.followers = 0;
        exchange.connection.session.set_others_wanted(false);
        let mut work = Work { lease, exchange, silent_since: now() };
        let mut was_shared = false;
        loop {
            if self.requests.are_answered() {
                work.silent_since = now();
            }
            self.requests.send_queued(&mut work.exchange.connection);
            was_shared |= self.requests.sent.len() > 1;
            match self.requests.advance(&mut work.exchange) {
                Ok(Step::Yield) => yield_now().await,
                Ok(Step::Wait) => match self.wait(&mut work).await {
                    Ok(()) => {}
                    Err(error) if error.ends_session() => return self.lost(work, &error),
                    Err(error) => self.requests.fail_head(error),
                },
                Ok(Step::HandOver) => {
                    if let Some((head, job)) = self.requests.take_long_answer() {
                        return self.hand_over(work, head, job);
                    }
                }
                Ok(Step::Discard) => match self.discard(&mut work).await {
                    // During the cleanup, the session may have ended: this checks it before the
                    // next request is sent.
                    Ok(()) if self.requests.sent.is_empty() => {
                        return self.idle(work, was_shared).await;
                    }
                    Ok(()) => self.requests.head = None,
                    Err(error) => return self.broken(work, &error),
                },
                Ok(Step::Idle) => return self.idle(work, was_shared).await,
                Err(error) if error.ends_session() => return self.lost(work, &error),
                Err(error) => {
                    self.requests.fail_head(error.copy());
                    return self.broken(work, &error);
                }
            }
        }
    }

    /// Returns the connection, on which nothing is left to be answered.
    async fn idle(&mut self, work: Work, was_shared: bool) {
        self.requests.head = None;
        let Work { lease, mut exchange, .. } = work;
        // Everything was sent, but only a poll shows that TLS holds nothing back.
        poll_fn(|cx| {
            exchange.connection.poll_send(cx);
            Poll::Ready(())
        })
        .await;
        give_back(exchange.connection, Some(lease));
        if !self.has_more(was_shared).await {
            self.finish();
        }
    }

    /// Waits for the server, for another request, or until a request is not wanted any more.
    async fn wait(&mut self, work: &mut Work) -> Result<()> {
        let Work { exchange, silent_since, .. } = work;
        // Not since the last byte or the last request: both may continue for long.
        let slow_at = self.requests.head.as_mut().and_then(|head| head.slow_at(exchange));
        let connection = &mut exchange.connection;
        // Not for the rest of a large message, for which there is room.
        if connection.free() < MIN_FREE && connection.buffer.len() + MIN_FREE <= MAX_READ {
            connection.set_read_buffer(MAX_READ);
        }
        let silent_at = connection.limits.read_timeout.and_then(|after| {
            let at = silent_since.checked_add(after)?;
            Some((at, Error::Timeout { phase: TimeoutPhase::Read, after }))
        });
        let silent = async {
            let Some((at, error)) = silent_at else { return pending().await };
            sleep_until(at.into()).await;
            error
        };
        let slow = async {
            let Some(at) = slow_at else { return pending().await };
            sleep_until(at.into()).await;
        };
        let since = now();
        let read = select! {
            biased;
            read = connection.read() => read,
            () = self.requests.pipeline.changed.notified() => return Ok(()),
            () = self.requests.slot.driver_needed() => {
                self.requests.end_cancelled();
                return Ok(());
            }
            () = slow => return Ok(()),
            error = silent => match connection.last_outgoing() {
                // The rest of a large request was being sent.
                Some(sent_at) if sent_at > *silent_since => {
                    *silent_since = sent_at;
                    return Ok(());
                }
                _ => return Err(error),
            },
        };
        *silent_since = now();
        exchange.blocked += silent_since.saturating_duration_since(since);
        match read {
            Ok(0) => Err(closed(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(e) => Err(closed(e)),
        }
    }

    /// Lets a reader continue a long answer. The connection comes back when the reader has ended.
    fn hand_over(&mut self, work: Work, head: Head, job: Job) {
        let Work { lease, mut exchange, .. } = work;
        let Head { sent: Sent { entry, running, choice, .. }, first, .. } = head;
        confirm(&mut exchange, &job, &choice);
        exchange.connection.followers = self.requests.sent.len();
        exchange.connection.session.set_others_wanted(self.requests.are_followers_wanted());
        let blocked = exchange.blocked;
        let held = Held { exchange, lease: Some(lease), running };
        let answer = Ok(Answer::Continues);
        deliver(
            &entry,
            job,
            Start { sessions: Sessions::One(Box::new(held)), blocked, first, answer },
        );
        if self.requests.sent.is_empty() {
            self.finish();
        }
    }

    /// Discards the rest of an answer. The query is cancelled if no other one on the connection is
    /// wanted.
    ///
    /// # Errors
    ///
    /// The connection cannot be used any more.
    async fn discard(&self, work: &mut Work) -> Result<()> {
        let Exchange { connection, query, .. } = &mut work.exchange;
        self.requests.end_cancelled();
        let session = Arc::clone(&connection.session);
        session.set_others_wanted(self.requests.are_followers_wanted());
        select! {
            biased;
            discarded = cancel_and_drain(connection, Some(query), Bytes::new()) => discarded?,
            () = self.until(|_| false) => {}
        }
        session.set_others_wanted(false);
        work.silent_since = now();
        Ok(())
    }

    /// Waits until `condition` holds. Meanwhile, tells the cleanup of an earlier request whether
    /// requests that were sent after it are still wanted.
    async fn until(&self, condition: impl Fn(&ActiveRequests) -> bool) {
        loop {
            if let Some(session) = &self.session {
                session.set_others_wanted(self.requests.are_followers_wanted());
            }
            if condition(&self.requests) {
                return;
            }
            select! {
                biased;
                () = self.requests.pipeline.changed.notified() => {}
                () = self.requests.slot.driver_needed() => self.requests.end_cancelled(),
            }
        }
    }

    /// The connection is lost. A request whose rows have begun to arrive ends with the error; the
    /// others are sent again on another connection.
    fn lost(&mut self, work: Work, error: &Error) {
        let Work { lease, mut exchange, .. } = work;
        exchange.connection.set_lost(error);
        let session = Arc::clone(&exchange.connection.session);
        let may_run = is_lost(error).then(|| LostSession::new(&exchange.connection));
        let was_idle = exchange.ended_idle(error);
        // Frees the descriptor.
        drop(exchange);
        if let Some(Head { sent, run, first, error: reported, .. }) = self.requests.head.take() {
            if let Some(session) = may_run {
                session.cancel(&sent.running);
            }
            if was_idle {
                self.requests.sent.push_front(sent);
                return self.requests.requeue();
            }
            let losses = sent.losses + 1;
            // A query that is not retriable would end the next session too.
            let is_rerun = error.is_retriable() && run.rows == 0 && first.is_none();
            match (reported, lease.pause_before_retry(losses)) {
                // Prefer the server's error over the end of the connection that followed it.
                (Some(reported), _) => self.requests.fail(&sent.entry, reported),
                (None, Ok(Some(pause))) if is_rerun => {
                    self.lost = Some(Lost { session, error: error.copy(), pause });
                    self.requests.sent.push_front(Sent { losses, ..sent });
                }
                _ => self.requests.fail(&sent.entry, error.copy()),
            }
        }
        self.requests.requeue();
    }

    /// The connection cannot be used any more. The requests that were sent after the head are sent
    /// again on another one.
    fn broken(&mut self, work: Work, error: &Error) {
        if let Some(head) = self.requests.head.take() {
            let running = &head.sent.running;
            cleanup_failed(error, running);
            // The server may still work on it.
            LostSession::new(&work.exchange.connection).cancel(running);
        }
        self.requests.requeue();
    }

    /// Waits a moment for further requests. Callers that have just received their answers may make
    /// the next ones.
    async fn has_more(&self, was_shared: bool) -> bool {
        yield_now().await;
        let changed = async {
            while self.requests.pipeline.is_empty() && !self.requests.slot.is_claimed() {
                select! {
                    () = self.requests.pipeline.changed.notified() => {}
                    () = self.requests.slot.driver_needed() => {}
                }
            }
        };
        if was_shared {
            select! {
                biased;
                () = changed => {}
                () = sleep(LINGER) => {}
            }
        }
        !self.requests.pipeline.is_empty()
    }

    /// Ends the sharing, unless there are further requests.
    fn finish(&mut self) -> bool {
        self.has_finished = self.requests.pipeline.finish(&self.requests.slot);
        self.has_finished
    }
}

impl Drop for Driver {
    /// A runtime that shuts down drops its tasks.
    fn drop(&mut self) {
        if self.has_finished {
            return;
        }
        self.requests.pipeline.set_connecting(None);
        self.requests.sent.extend(self.requests.head.take().map(|head| head.sent));
        loop {
            self.requests.sent.extend(self.requests.pipeline.take_adopted());
            for sent in mem::take(&mut self.requests.sent) {
                self.requests.fail(&sent.entry, task_ended());
            }
            if self.finish() {
                return;
            }
            self.requests.fail_all(&task_ended());
        }
    }
}
