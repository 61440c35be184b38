//! The task that runs the requests of several fetches on one connection.

use std::{
    collections::VecDeque,
    future::pending,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    select,
    task::yield_now,
    time::{sleep, sleep_until},
};

use super::{
    entry::{Entry, task_ended},
    head::{Head, Step, confirm, deliver},
    queue::Pipeline,
    request::{Queued, Sent, needs_reader},
};
use crate::{
    connection::{Choice, Connection, Lease, Session, SlotHandle, cancel_and_drain},
    error::{Error, Result, TimeoutPhase},
    metrics::connection::{CloseReason, RequestsInFlight},
    protocol::extended_query::{ExtendedQuery, Progress},
    stream_impl::{
        exchange::{Answer, Exchange, Next, closed},
        observer::now,
        open::{Job, OpenError, Sessions, Start, failed},
        schema::check_columns,
        settings::MAX_READ,
        statement,
        teardown::{Held, LostSession, cleanup_failed, give_back, is_lost},
    },
};

/// The maximum number of requests that were sent and are not answered.
const MAX_IN_FLIGHT: usize = 128;

/// How many bytes of requests may wait for the socket before no more are added.
const MAX_OUTGOING: usize = 64 << 10;

/// Room for a good read.
const MIN_FREE: usize = 8 << 10;

/// How long the driver waits for further requests after several at once.
const LINGER: Duration = Duration::from_millis(1);

/// Runs the requests of a pipeline, in the order in which they came.
pub(super) struct Driver {
    pipeline: Arc<Pipeline>,
    slot: SlotHandle,
    /// The request whose answer is being read.
    head: Option<Head>,
    /// Requests that were sent after it, the oldest first.
    sent: VecDeque<Sent>,
    /// The session that they were sent to.
    session: Option<Arc<Session>>,
    /// The connection that was lost, until it is replaced.
    lost: Option<Lost>,
    in_flight: RequestsInFlight,
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
    /// Since when the server has sent nothing though it has a request.
    silent_since: Instant,
}

impl Driver {
    /// Starts the task. It ends when there is nothing left to do.
    pub(super) fn start(pipeline: Arc<Pipeline>, slot: SlotHandle) {
        let driver = Self {
            pipeline,
            slot,
            head: None,
            sent: VecDeque::new(),
            session: None,
            lost: None,
            in_flight: RequestsInFlight::new(),
            has_finished: false,
        };
        tokio::spawn(Box::pin(driver.run()));
    }

    async fn run(mut self) {
        while !self.has_finished {
            // A handle of its own: an attempt to connect that was dropped is not the next one's.
            self.slot = self.slot.unpooled();
            let (lease, connection) = select! {
                biased;
                leased = self.slot.lease_shared() => leased,
                () = self.until(|driver| driver.is_unwanted() && !driver.slot.is_claimed()) => {
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
                    self.fail_all(&error);
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
        let mut session = self.session.take();
        if let Some(mut adopted) = self.pipeline.take_adopted() {
            session = adopted.session.take();
            adopted.in_flight = Some(self.in_flight.another());
            self.sent.push_back(adopted);
        }
        if let Some(mut connection) = connection {
            // Without requests in flight, it may have ended unnoticed.
            let is_theirs = !self.sent.is_empty()
                && session.is_some_and(|session| Arc::ptr_eq(&session, &connection.session));
            if is_theirs || connection.is_alive_for_many().await {
                return Ok(Some(connection));
            }
            connection.discard_stale();
        }
        self.requeue();
        let lost = self.lost.take();
        let opened = async {
            match &lost {
                Some(Lost { session, error, pause }) => lease.replace(session, error, *pause).await,
                None => lease.open().await,
            }
        };
        self.pipeline.set_connecting(Some(self.slot.clone()));
        let opened = select! {
            biased;
            () = self.until(Self::is_unwanted) => Ok(None),
            opened = opened => opened.map(Some),
        };
        self.pipeline.set_connecting(None);
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
            if self.sent.is_empty() && self.head.is_none() {
                work.silent_since = now();
            }
            self.send_queued(&mut work.exchange.connection);
            was_shared |= self.sent.len() > 1;
            match self.advance(&mut work.exchange) {
                Ok(Step::Yield) => yield_now().await,
                Ok(Step::Wait) => match self.wait(&mut work).await {
                    Ok(()) => {}
                    Err(error) if error.ends_session() => return self.lost(work, &error),
                    Err(error) => self.fail_head(error),
                },
                Ok(Step::HandOver) => {
                    let job = self.head.as_ref().and_then(|head| head.sent.entry.take_job());
                    if let Some((head, job)) = self.head.take_if(|_| job.is_some()).zip(job) {
                        return self.hand_over(work, head, job);
                    }
                }
                Ok(Step::Discard) => match self.discard(&mut work).await {
                    // During the cleanup, the session may have ended: this checks it before the
                    // next request is sent.
                    Ok(()) if self.sent.is_empty() => return self.idle(work, was_shared).await,
                    Ok(()) => self.head = None,
                    Err(error) => return self.broken(work, &error),
                },
                Ok(Step::Idle) => return self.idle(work, was_shared).await,
                Err(error) if error.ends_session() => return self.lost(work, &error),
                Err(error) => {
                    self.fail_head(error.copy());
                    return self.broken(work, &error);
                }
            }
        }
    }

    /// Returns the connection, on which nothing is left to be answered.
    async fn idle(&mut self, work: Work, was_shared: bool) {
        self.head = None;
        give_back(work.exchange.connection, Some(work.lease));
        if !self.has_more(was_shared).await {
            self.finish();
        }
    }

    /// Sends the next requests, unless all that were sent are to be cancelled first: a cancel
    /// request must not hit the next ones.
    fn send_queued(&mut self, connection: &mut Connection) {
        let is_wanted = |sent: &Sent| sent.entry.is_wanted();
        let mut sent = self.head.iter().map(|head| &head.sent).chain(&self.sent).peekable();
        if sent.peek().is_some() && !sent.any(is_wanted) {
            return;
        }
        while self.sent.len() < MAX_IN_FLIGHT && connection.outgoing() < MAX_OUTGOING {
            let Some(queued) = self.pipeline.next() else { return };
            self.send(connection, queued, None);
        }
    }

    /// Sends a request. `choice`: how to run it again.
    fn send(&mut self, connection: &mut Connection, queued: Queued, choice: Option<Choice>) {
        let Queued { entry, losses, is_rerun } = queued;
        let sent = entry.with_job(|job| {
            if job.query.is_cancelled() {
                return Err(Error::Cancelled);
            }
            job.observer.connected(&self.slot);
            let sql = job.plan.query.sql();
            let choice = match choice {
                Some(choice) => choice,
                None if connection.statements.is_unconfirmed(sql) && self.prepares(sql) => {
                    Choice::Unnamed
                }
                None => statement::choose(&job.plan, &self.slot, connection, &job.observer),
            };
            let prepares = matches!(choice, Choice::Prepare(_)).then(|| sql.to_owned());
            let closes = connection.statements.take_closes();
            let (request, steps) = job.plan.query.request(choice.statement(), &closes)?;
            connection.pipeline(&request);
            Ok(Sent {
                entry: Arc::clone(&entry),
                running: job.query.session(),
                settings: job.plan.spec.settings,
                needs_reader: needs_reader(&job.plan),
                choice,
                prepares,
                query: ExtendedQuery::with(steps),
                losses,
                is_rerun,
                in_flight: Some(self.in_flight.another()),
                session: None,
            })
        });
        match sent {
            Some(Ok(sent)) => self.sent.push_back(sent),
            Some(Err(error)) => self.fail(&entry, error),
            // Its caller has dropped it.
            None => {}
        }
    }

    /// Whether a request in flight prepares this text.
    fn prepares(&self, sql: &str) -> bool {
        let head = self.head.iter().map(|head| &head.sent);
        head.chain(&self.sent).any(|sent| sent.prepares.as_deref() == Some(sql))
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    ///
    /// The connection cannot be used any more.
    fn advance(&mut self, exchange: &mut Exchange) -> Result<Step> {
        let mut is_known_as_wanted = false;
        loop {
            let Some(head) = &mut self.head else {
                let Some(sent) = self.sent.pop_front() else { return Ok(Step::Idle) };
                exchange.read_answer(sent.query, sent.is_rerun);
                self.head = Some(Head::new(sent));
                is_known_as_wanted = false;
                continue;
            };
            if !is_known_as_wanted && !head.sent.entry.is_wanted() {
                return Ok(Step::Discard);
            }
            is_known_as_wanted = true;
            if let Some(step) = head.read_rows(exchange) {
                return Ok(step);
            }
            let checked = match exchange.next_message()? {
                Next::Progress(Progress::Ready) => {
                    self.complete(exchange);
                    continue;
                }
                Next::Progress(Progress::Failed(error)) => {
                    if error.ends_session() {
                        return Err(error);
                    }
                    head.error = Some(error);
                    continue;
                }
                Next::Progress(Progress::Columns(columns)) => {
                    check_columns(&columns, head.sent.settings.json_text)
                }
                Next::Progress(Progress::Continue) => continue,
                Next::Async => return Ok(Step::Yield),
                Next::Incomplete(bytes) => match head.sent.settings.admit_message(bytes) {
                    Ok(()) => {
                        exchange.connection.reserve(bytes);
                        return Ok(Step::Wait);
                    }
                    refused => refused,
                },
            };
            if let Err(error) = checked {
                if matches!(error, Error::InvalidSchema { .. }) {
                    let sql = head.sent.entry.with_job(|job| job.plan.query.sql().to_owned());
                    let statements = &mut exchange.connection.statements;
                    sql.into_iter().for_each(|sql| statements.forget(&sql, true));
                }
                self.fail_head(error);
                return Ok(Step::Discard);
            }
        }
    }

    /// Waits for the server, for another request, or until a request is not wanted any more.
    async fn wait(&mut self, work: &mut Work) -> Result<()> {
        let Work { exchange, silent_since, .. } = work;
        let connection = &mut exchange.connection;
        if connection.free() < MIN_FREE {
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
        // Not since the last byte or the last request: both may go on for long.
        let slow_at = self.head.as_mut().and_then(Head::slow_at);
        let slow = async {
            let Some(at) = slow_at else { return pending().await };
            sleep_until(at.into()).await;
        };
        let since = now();
        let read = select! {
            biased;
            read = connection.read() => read,
            () = self.pipeline.changed.notified() => return Ok(()),
            () = self.slot.driver_needed() => {
                self.end_cancelled();
                return Ok(());
            }
            () = slow => return Ok(()),
            error = silent => return Err(error),
        };
        *silent_since = now();
        exchange.blocked += silent_since.saturating_duration_since(since);
        match read {
            Ok(0) => Err(closed(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(e) => Err(closed(e)),
        }
    }

    /// The answer to the head is complete.
    fn complete(&mut self, exchange: &mut Exchange) {
        let Some(Head { sent, first, error, .. }) = self.head.take() else { return };
        let Sent { entry, choice, losses, .. } = &sent;
        if let Some(error) = error.as_ref().filter(|_| first.is_none()) {
            let failed = (choice, error);
            let again = entry.with_job(|job| {
                statement::retry(&job.plan, &self.slot, exchange, failed, &job.observer)
            });
            if let Some(choice) = again.flatten() {
                // Requests that were sent meanwhile may have closed the statement.
                let choice = if self.sent.is_empty() { choice } else { Choice::Unnamed };
                let (losses, is_rerun) = (*losses, exchange.is_rerun);
                let queued = Queued { entry: Arc::clone(entry), losses, is_rerun };
                return self.send(&mut exchange.connection, queued, Some(choice));
            }
        }
        let answer = match error {
            Some(error) if first.is_none() => return self.fail(entry, error),
            Some(error) => Err(error),
            None => Ok(Answer::Complete),
        };
        let Some(job) = entry.take_job() else { return };
        confirm(exchange, &job, choice);
        let start = Start { sessions: Sessions::None, blocked: exchange.blocked, first, answer };
        deliver(entry, job, start);
    }

    /// Lets a reader continue a long answer. The connection comes back when the reader has ended.
    fn hand_over(&mut self, work: Work, head: Head, job: Job) {
        let Work { lease, mut exchange, .. } = work;
        let Head { sent: Sent { entry, running, choice, .. }, first, .. } = head;
        confirm(&mut exchange, &job, &choice);
        exchange.connection.followers = self.sent.len();
        exchange.connection.session.set_others_wanted(self.are_followers_wanted());
        let blocked = exchange.blocked;
        let held = Held { exchange, lease: Some(lease), running };
        let answer = Ok(Answer::Continues);
        deliver(
            &entry,
            job,
            Start { sessions: Sessions::One(Box::new(held)), blocked, first, answer },
        );
        if self.sent.is_empty() {
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
        self.end_cancelled();
        let session = Arc::clone(&connection.session);
        session.set_others_wanted(self.are_followers_wanted());
        select! {
            biased;
            discarded = cancel_and_drain(connection, query, Bytes::new()) => discarded?,
            () = self.until(|_| false) => {}
        }
        session.set_others_wanted(false);
        work.silent_since = now();
        Ok(())
    }

    /// Whether a request that was sent after the head is wanted. To the others a late cancel
    /// request does no harm.
    fn are_followers_wanted(&self) -> bool {
        self.sent.iter().any(|sent| sent.entry.is_wanted())
    }

    /// Whether nothing was sent, and nothing that is not sent is wanted.
    fn is_unwanted(&self) -> bool {
        self.sent.is_empty() && self.pipeline.is_unwanted()
    }

    /// Waits until `condition` holds. Meanwhile, tells the cleanup of an earlier request whether
    /// requests that were sent after it are still wanted.
    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            if let Some(session) = &self.session {
                session.set_others_wanted(self.are_followers_wanted());
            }
            if condition(self) {
                return;
            }
            select! {
                biased;
                () = self.pipeline.changed.notified() => {}
                () = self.slot.driver_needed() => self.end_cancelled(),
            }
        }
    }

    /// The connection is lost. A request whose rows have begun to arrive ends with the error; the
    /// others are sent again on another connection.
    fn lost(&mut self, work: Work, error: &Error) {
        let Work { lease, mut exchange, .. } = work;
        if !matches!(error, Error::Io { .. }) {
            exchange.connection.set_close_reason(CloseReason::Server);
        }
        let session = Arc::clone(&exchange.connection.session);
        let may_run = is_lost(error).then(|| LostSession::new(&exchange.connection));
        let was_idle = exchange.ended_idle(error);
        // Frees the descriptor.
        drop(exchange);
        if let Some(Head { sent, run, first, error: reported, .. }) = self.head.take() {
            if let Some(session) = may_run {
                session.cancel(&sent.running);
            }
            if was_idle {
                self.sent.push_front(sent);
                return self.requeue();
            }
            let losses = sent.losses + 1;
            match (reported, lease.pause_before_retry(losses)) {
                // Prefer the server's error over the end of the connection that followed it.
                (Some(reported), _) => self.fail(&sent.entry, reported),
                (None, Ok(Some(pause))) if run.rows == 0 && first.is_none() => {
                    self.lost = Some(Lost { session, error: error.copy(), pause });
                    self.sent.push_front(Sent { losses, ..sent });
                }
                _ => self.fail(&sent.entry, error.copy()),
            }
        }
        self.requeue();
    }

    /// The connection cannot be used any more. The requests that were sent after the head are sent
    /// again on another one.
    fn broken(&mut self, work: Work, error: &Error) {
        if let Some(head) = self.head.take() {
            let running = &head.sent.running;
            cleanup_failed(error, running);
            // The server may still work on it.
            LostSession::new(&work.exchange.connection).cancel(running);
        }
        self.requeue();
    }

    /// Puts the requests that were sent back to the front of the queue.
    fn requeue(&mut self) {
        let sent = mem::take(&mut self.sent);
        let queued =
            |sent: Sent| Queued { entry: sent.entry, losses: sent.losses, is_rerun: false };
        let queued: Vec<_> = sent.into_iter().map(queued).collect();
        self.pipeline.requeue(queued);
    }

    fn fail_head(&self, error: Error) {
        if let Some(head) = &self.head {
            self.fail(&head.sent.entry, error);
        }
    }

    fn fail(&self, entry: &Entry, error: impl Into<OpenError>) {
        if let Some(job) = entry.take_job() {
            entry.finish(Err(failed(&self.slot, &job.observer, error.into())));
        }
    }

    fn fail_all(&mut self, error: &Error) {
        self.requeue();
        while let Some(queued) = self.pipeline.next() {
            self.fail(&queued.entry, OpenError::of_acquire(error.copy()));
        }
    }

    /// Ends the requests that a cancel token has marked: their callers may not poll them.
    fn end_cancelled(&self) {
        let sent = self.head.iter().map(|head| &head.sent).chain(&self.sent);
        let sent = sent.map(|sent| Arc::clone(&sent.entry));
        for entry in sent.chain(self.pipeline.waiting()) {
            if entry.with_job(|job| job.query.is_cancelled()) == Some(true) {
                self.fail(&entry, Error::Cancelled);
            }
        }
    }

    /// Waits a moment for further requests. Callers that have just received their answers may make
    /// the next ones.
    async fn has_more(&self, was_shared: bool) -> bool {
        yield_now().await;
        let changed = async {
            while self.pipeline.is_empty() && !self.slot.is_claimed() {
                select! {
                    () = self.pipeline.changed.notified() => {}
                    () = self.slot.driver_needed() => {}
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
        !self.pipeline.is_empty()
    }

    /// Ends the sharing, unless there are further requests.
    fn finish(&mut self) -> bool {
        self.has_finished = self.pipeline.finish(&self.slot);
        self.has_finished
    }
}

impl Drop for Driver {
    /// A runtime that shuts down drops its tasks.
    fn drop(&mut self) {
        if self.has_finished {
            return;
        }
        self.pipeline.set_connecting(None);
        self.sent.extend(self.head.take().map(|head| head.sent));
        loop {
            self.sent.extend(self.pipeline.take_adopted());
            for sent in mem::take(&mut self.sent) {
                self.fail(&sent.entry, task_ended());
            }
            if self.finish() {
                return;
            }
            self.fail_all(&task_ended());
        }
    }
}
