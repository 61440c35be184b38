//! The requests that a driver has sent, or is about to send.

use std::{collections::VecDeque, mem, sync::Arc, thread::panicking};

use super::{
    entry::{Entry, FinishOnPanic, task_ended},
    head::{Head, Step, confirm, deliver},
    queue::Pipeline,
    request::{Queued, Sent, needs_reader},
};
use crate::{
    connection::{Choice, Connection, Session, SlotHandle},
    error::{Error, Result},
    metrics::connection::RequestsInFlight,
    protocol::extended_query::{ExtendedQuery, Progress},
    stream_impl::{
        exchange::{Answer, Exchange, Next},
        open::{Job, OpenError, Sessions, Start, failed},
        schema::check_columns,
        statement,
    },
};

/// The maximum number of requests that were sent and are not answered.
const MAX_IN_FLIGHT: usize = 128;

/// How many bytes of requests may wait for the socket before no more are added.
const MAX_OUTGOING: usize = 64 << 10;

/// The requests of a pipeline whose answers are being read or awaited.
pub(super) struct ActiveRequests {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) slot: SlotHandle,
    /// The request whose answer is being read.
    pub(super) head: Option<Head>,
    /// Requests that were sent after it, the oldest first.
    pub(super) sent: VecDeque<Sent>,
    in_flight: RequestsInFlight,
}

impl ActiveRequests {
    pub(super) fn new(pipeline: Arc<Pipeline>, slot: SlotHandle) -> Self {
        let in_flight = RequestsInFlight::new();
        Self { pipeline, slot, head: None, sent: VecDeque::new(), in_flight }
    }

    /// Takes over the request that was sent before the driver started, and returns its session.
    pub(super) fn adopt(&mut self) -> Option<Arc<Session>> {
        let mut adopted = self.pipeline.take_adopted()?;
        let session = adopted.session.take();
        adopted.in_flight = Some(self.in_flight.another());
        self.sent.push_back(adopted);
        session
    }

    /// Whether the server has answered everything.
    pub(super) fn are_answered(&self) -> bool {
        self.head.is_none() && self.sent.is_empty()
    }

    /// Sends the next requests, unless all that were sent are to be cancelled first: a cancel
    /// request must not hit the next ones.
    pub(super) fn send_queued(&mut self, connection: &mut Connection) {
        let is_wanted = |sent: &Sent| sent.entry.is_wanted();
        let mut sent = self.head.iter().map(|head| &head.sent).chain(&self.sent).peekable();
        if sent.peek().is_some() && !sent.any(is_wanted) {
            return;
        }
        let heads = usize::from(self.head.is_some());
        while self.sent.len() + heads < MAX_IN_FLIGHT && connection.outgoing() < MAX_OUTGOING {
            let Some(queued) = self.pipeline.next() else { return };
            self.send(connection, queued, None);
        }
    }

    /// Sends a request. `choice`: how to run it again.
    fn send(&mut self, connection: &mut Connection, queued: Queued, choice: Option<Choice>) {
        let Queued { entry, losses, is_rerun } = queued;
        let _guard = FinishOnPanic::new(&entry);
        let sent = entry.with_job(|job| {
            if job.query.is_cancelled() {
                return Err(Error::Cancelled);
            }
            job.observer.connected(&self.slot);
            let sql = job.plan.query.sql();
            let choice = choice.unwrap_or_else(|| {
                let is_prepared = || self.prepares(sql);
                statement::choose(&job.plan, &self.slot, connection, &job.observer, is_prepared)
            });
            let prepares = matches!(choice, Choice::Prepare(_)).then(|| sql.to_owned());
            let closes = connection.statements.take_closes();
            let (request, steps) = connection.request(&job.plan.query, &choice, &closes)?;
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
    pub(super) fn advance(&mut self, exchange: &mut Exchange) -> Result<Step> {
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
                Next::Progress(Progress::Continue | Progress::Process(_)) => continue,
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

    /// The answer to the head is complete.
    fn complete(&mut self, exchange: &mut Exchange) {
        let Some(Head { sent, first, error, .. }) = self.head.take() else { return };
        let Sent { entry, choice, losses, .. } = &sent;
        let _guard = FinishOnPanic::new(entry);
        if let Some(error) = error.as_ref().filter(|_| first.is_none()) {
            let failed = (choice, error);
            let again = entry.with_job(|job| {
                statement::retry(&job.plan, &self.slot, exchange, failed, &job.observer)
            });
            if let Some(choice) = again.flatten() {
                // Requests that were sent meanwhile may have closed the statement.
                let choice = match choice {
                    Choice::Existing(_) if !self.sent.is_empty() => Choice::Unnamed,
                    choice => choice,
                };
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

    /// Removes an answer that a reader is to continue, unless its caller has dropped it.
    pub(super) fn take_long_answer(&mut self) -> Option<(Head, Job)> {
        let job = self.head.as_ref()?.sent.entry.take_job()?;
        self.head.take().zip(Some(job))
    }

    /// Whether a request that was sent after the head is wanted. To the others a late cancel
    /// request does no harm.
    pub(super) fn are_followers_wanted(&self) -> bool {
        self.sent.iter().any(|sent| sent.entry.is_wanted())
    }

    /// Whether nothing was sent, and nothing that is not sent is wanted.
    pub(super) fn is_unwanted(&self) -> bool {
        self.sent.is_empty() && self.pipeline.is_unwanted()
    }

    /// Puts the requests that were sent back to the front of the queue.
    pub(super) fn requeue(&mut self) {
        let sent = mem::take(&mut self.sent);
        let queued =
            |sent: Sent| Queued { entry: sent.entry, losses: sent.losses, is_rerun: false };
        let queued: Vec<_> = sent.into_iter().map(queued).collect();
        self.pipeline.requeue(queued);
    }

    pub(super) fn fail_head(&self, error: Error) {
        if let Some(head) = &self.head {
            self.fail(&head.sent.entry, error);
        }
    }

    pub(super) fn fail(&self, entry: &Entry, error: impl Into<OpenError>) {
        if panicking() {
            // Reporting the error may panic again, and a second panic aborts the process.
            return entry.finish(Err(task_ended()));
        }
        let _guard = FinishOnPanic::new(entry);
        if let Some(job) = entry.take_job() {
            entry.finish(Err(failed(&self.slot, &job.observer, error.into())));
        }
    }

    pub(super) fn fail_all(&mut self, error: &Error) {
        self.requeue();
        while let Some(queued) = self.pipeline.next() {
            self.fail(&queued.entry, OpenError::of_acquire(error.copy()));
        }
    }

    /// Ends the requests that a cancel token has marked: their callers may not poll them.
    pub(super) fn end_cancelled(&self) {
        let sent = self.head.iter().map(|head| &head.sent).chain(&self.sent);
        let sent = sent.map(|sent| Arc::clone(&sent.entry));
        for entry in sent.chain(self.pipeline.waiting()) {
            if entry.with_job(|job| job.query.is_cancelled()) == Some(true) {
                self.fail(&entry, Error::Cancelled);
            }
        }
    }
}
