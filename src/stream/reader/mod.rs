//! The reader task, which reads the rest of a response: it enqueues rows, resumes on a new
//! connection, and cleans up.

mod buffer;
mod read_threshold;

use std::{future::pending, pin::pin, time::Duration};

use bytes::Bytes;
use tokio::{select, task::yield_now, time::sleep};
use tracing::{debug, warn};

use self::buffer::ReadBuffer;
use super::{
    channel::{Interrupt, Producer, ReadPermit},
    deadline::Deadlines,
    exchange::{Exchange, Next, late_cancel},
    resume::{self, ResumeState},
    settings::StreamSettings,
    teardown::{Held, LostSession, cancel_and_release, cleanup_failed, is_lost, release},
};
use crate::{
    connection::{Lease, QuerySession, TARGET, cancel_and_drain, count_protocol_error},
    error::{Error, Result},
    protocol::{
        backend::DATA_ROW,
        extended_query::{ExtendedQuery, Progress},
        rows::{Incomplete, Stop},
    },
};

/// The parameters of a reader task. Each connection of the query has one.
pub(super) struct ReaderTask {
    pub(super) held: Held,
    pub(super) producer: Producer,
    pub(super) settings: StreamSettings,
    /// The number of readers that share the memory of the stream.
    pub(super) readers: usize,
    /// The number of rows that were enqueued before.
    pub(super) rows: u64,
    pub(super) deadlines: Deadlines,
    /// The current request, if a late cancel request for an earlier query can cancel it.
    pub(super) again: Option<Bytes>,
    pub(super) resume: Option<ResumeState>,
    /// The error after which there is nothing to read.
    pub(super) failed: Option<Error>,
}

struct Reader {
    exchange: Exchange,
    producer: Producer,
    buffer: ReadBuffer,
    again: Option<Bytes>,
    resume: Option<ResumeState>,
    /// Whether the connection needs no cleanup, because a new one replaces it.
    is_replaced: bool,
    settings: StreamSettings,
}

/// What to do with the connection when the reader stops.
#[derive(Debug)]
enum Teardown {
    /// The response is complete.
    Release,
    /// The server may still be running the query.
    CancelAndDrain,
    /// The session has ended.
    CloseEnded,
    /// Where this answer ends is not known.
    Close,
    /// Its query has already been cancelled or has ended.
    Drop,
}

impl ReaderTask {
    /// Starts the task. It ends when the connection is released or closed, which the deadline of
    /// the cleanup bounds once the stream is closed.
    pub(super) fn start(self) {
        let Self { held, producer, settings, readers, rows, deadlines, again, resume, failed } =
            self;
        let Held { exchange, lease, running } = held;
        let buffer = ReadBuffer::new(producer.clone(), settings, readers, rows);
        let is_replaced = false;
        let reader = Reader { exchange, producer, buffer, again, resume, is_replaced, settings };
        // Created here, because a runtime that shuts down drops tasks that have never run.
        let guard = TaskGuard(reader.producer.clone());
        // Boxed, because the runtime moves a spawned future several times.
        tokio::spawn(Box::pin(async move {
            let _guard = guard;
            reader.run(lease, deadlines, running, failed).await;
        }));
    }
}

impl Reader {
    async fn run(
        mut self,
        lease: Option<Lease>,
        deadlines: Deadlines,
        running: QuerySession,
        failed: Option<Error>,
    ) {
        let producer = self.producer.clone();
        let end = match failed {
            Some(error) => Err(error.into()),
            None => select! {
                biased;
                () = running.cancelled() => Err(Error::Cancelled.into()),
                end = self.read_answers(lease.as_ref(), &running) => end,
                error = deadlines.expired(producer.channel()) => {
                    Err(lease.as_ref().map_or_else(|| error.copy(), |l| l.deadline_error(error.copy())).into())
                }
                error = stalled(&producer, lease.as_ref()) => Err(error.into()),
            },
        };
        self.tear_down(end, lease, running).await;
    }

    /// Reads the answer to its end, on one connection after the other if it can be resumed.
    async fn read_answers(
        &mut self,
        lease: Option<&Lease>,
        running: &QuerySession,
    ) -> Result<(), Interrupt> {
        let mut request = None;
        loop {
            let read = match request.take() {
                Some(request) => self.start(request).await,
                None => Ok(()),
            };
            let read = match read {
                Ok(()) => self.read_answer().await,
                failed => failed,
            };
            // The next response can be short, and must not wait for the bytes of a large read.
            self.exchange.connection.set_rcvlowat(1);
            request = match read {
                Err(Interrupt::Failed(error)) => match lease {
                    Some(lease) if self.can_resume(&error) => {
                        Some(self.resume(error, lease, running).await?)
                    }
                    _ if self.can_run_again(&error) => Some(self.run_again(error).await?),
                    _ => return Err(error.into()),
                },
                Ok(()) => {
                    let request = self.resume.as_mut().map(ResumeState::following_request);
                    match request.transpose()?.flatten() {
                        Some(request) => {
                            // This is the one that a late cancel request can cancel now.
                            self.again = self.again.take().map(|_| request.clone());
                            Some(request)
                        }
                        None => return Ok(()),
                    }
                }
                closed => return closed,
            };
        }
    }

    /// Reads the rows and the end of an answer that has started.
    async fn read_answer(&mut self) -> Result<(), Interrupt> {
        self.buffer.renew(&mut self.exchange.connection).await?;
        loop {
            let Exchange { query, connection, .. } = &self.exchange;
            let stop = if !query.takes_rows() || connection.is_in_message() {
                Stop::Other
            } else if self.buffer.is_at_limit() {
                self.beyond_limit()
            } else {
                self.buffer.next_rows(connection)
            };
            match stop {
                Stop::Full => self.enqueue().await?,
                Stop::Incomplete(row) => self.read_more(row).await?,
                Stop::Malformed(error) => {
                    count_protocol_error("DataRow", &error);
                    return Err(error.into());
                }
                Stop::Other => {
                    self.enqueue().await?;
                    match self.exchange.next_message()? {
                        Next::Progress(Progress::Ready) => return Ok(()),
                        Next::Progress(Progress::Failed(error)) => return Err(error.into()),
                        Next::Progress(_) => {}
                        // Its handler has run. Yield, so that the deadlines are checked.
                        Next::Async => yield_now().await,
                        Next::Incomplete(frame_bytes) => {
                            self.settings.admit_message(frame_bytes)?;
                            self.read_more(Incomplete { frame_bytes, value_bytes: 0 }).await?;
                        }
                    }
                }
            }
        }
    }

    /// Enqueues the rows at the front of the buffer.
    async fn enqueue(&mut self) -> Result<(), Interrupt> {
        self.buffer.enqueue(&mut self.exchange.connection, &mut self.resume).await
    }

    async fn read_more(&mut self, next: Incomplete) -> Result<(), Interrupt> {
        let Self { exchange, buffer, resume, .. } = self;
        buffer.make_room(&mut exchange.connection, resume, next).await?;
        buffer.fill(&mut exchange.connection, resume).await
    }

    /// Returns why to stop at a message after the last row that the statement requests. A server
    /// sends no further row, but a proxy that merges the results of several servers can.
    fn beyond_limit(&self) -> Stop {
        match self.exchange.connection.buffer.first() {
            Some(&DATA_ROW) => Stop::Malformed(Error::protocol(format!(
                "received more rows than the limit of {}: does a proxy distribute the query over \
                 several servers?",
                self.settings.row_limit.unwrap_or_default()
            ))),
            _ => Stop::Other,
        }
    }

    /// Sends another request on the current connection.
    async fn start(&mut self, request: Bytes) -> Result<(), Interrupt> {
        self.exchange.send_instead(request, ExtendedQuery::new());
        self.buffer.release(&mut self.exchange.connection);
        let Self { exchange, producer, settings, .. } = self;
        producer.readable().await?;
        let mut started = pin!(exchange.start(settings, settings.first_read_size(1)));
        loop {
            select! {
                biased;
                started = &mut started => {
                    started?;
                    return producer.readable().await;
                }
                // A pause does not wait for the server's answer: no row is read here.
                () = producer.changed() => {
                    if producer.permit_read(false) == ReadPermit::Closed {
                        return Err(Interrupt::Closed);
                    }
                }
            }
        }
    }

    fn can_resume(&self, error: &Error) -> bool {
        self.resume.is_some() && resume::is_transient(error)
    }

    /// Returns whether a cancel request for an earlier query cancelled this one.
    fn can_run_again(&self, error: &Error) -> bool {
        // The rest of a pipelined request would be sent in the middle of the next one.
        let is_sent = self.exchange.connection.outgoing() == 0;
        is_sent
            && self.again.is_some()
            && self.buffer.has_no_row()
            && self.exchange.is_late_cancel(error)
    }

    /// Prepares to run the query once more on the same connection. Returns the request.
    async fn run_again(&mut self, error: Error) -> Result<Bytes, Interrupt> {
        let Some(request) = self.again.take() else { return Err(error.into()) };
        self.producer.channel().observer.span().in_scope(|| late_cancel(&error));
        if self.exchange.skip_failed().await.is_err() {
            self.is_replaced = true;
            return Err(error.into());
        }
        Ok(request)
    }

    /// Prepares to resume after the last row, on another connection. Returns the request.
    async fn resume(
        &mut self,
        error: Error,
        lease: &Lease,
        running: &QuerySession,
    ) -> Result<Bytes, Interrupt> {
        let ended = error.ends_session();
        if ended {
            self.exchange.connection.set_lost(&error);
        }
        self.is_replaced = ended;
        if ended {
            if is_lost(&error) {
                LostSession::new(&self.exchange.connection).cancel(running);
            }
            // Its replacement may need its file descriptor.
            self.exchange.connection.hang_up();
        }
        self.enqueue().await?;
        self.buffer.release(&mut self.exchange.connection);
        let Some(state) = &mut self.resume else { return Err(error.into()) };
        self.producer.stopped_reading();
        let rows = state.rows();
        self.producer.channel().observer.span().in_scope(|| {
            warn!(
                target: TARGET,
                %error,
                rows,
                "connection lost; resuming the stream on a new connection"
            );
        });
        let pause = lease.pause_before_retry(state.attempts_without_progress)?;
        state.attempts_without_progress += 1;
        let Some(pause) = pause else { return Err(error.into()) };
        if !ended {
            // Otherwise the server could continue to run the query.
            let Exchange { connection, query, .. } = &mut self.exchange;
            if let Err(error) = cancel_and_drain(connection, Some(query), Bytes::new()).await {
                debug!(
                    target: TARGET,
                    %error,
                    "could not cancel the query that is resumed on a new connection"
                );
            }
            self.is_replaced = true;
            self.exchange.connection.hang_up();
        }
        let request = state.next_request()?;
        let connection = select! {
            biased;
            () = self.producer.closed() => return Err(error.into()),
            replaced = lease.replace(&self.exchange.connection.session, &error, pause) => replaced?,
        };
        self.producer.resumed();
        self.exchange = Exchange::new(connection, Bytes::new(), ExtendedQuery::new());
        self.is_replaced = false;
        self.buffer.reset();
        Ok(request)
    }

    /// Ends the rows and cleans up the connection.
    async fn tear_down(
        mut self,
        end: Result<(), Interrupt>,
        lease: Option<Lease>,
        running: QuerySession,
    ) {
        // Rows before an error are valid, and are delivered before it.
        if let Err(Interrupt::Failed(_)) = end {
            self.buffer.enqueue_last(&mut self.exchange.connection, &mut self.resume);
        }
        let teardown = self.teardown(&end);
        let Self { mut exchange, producer, mut buffer, .. } = self;
        buffer.release(&mut exchange.connection);
        exchange.connection.set_rcvlowat(1);
        // On success, the connection is returned before the stream ends. After an error, the
        // consumer does not wait for the cleanup.
        let finish = |end| match end {
            Ok(()) => producer.finish(Ok(())),
            Err(Interrupt::Failed(error)) => producer.finish(Err(error)),
            Err(Interrupt::Closed) => {}
        };
        let released = match teardown {
            Teardown::Release => {
                let released = release(exchange.connection, lease).await;
                finish(end);
                released
            }
            Teardown::CancelAndDrain => {
                finish(end);
                let connection = &exchange.connection;
                let uncancelled = (connection.followers > 0).then(|| LostSession::new(connection));
                let released = cancel_and_release(exchange, lease).await;
                if let Some(session) = uncancelled.filter(|_| released.is_err()) {
                    session.cancel(&running);
                }
                released
            }
            Teardown::CloseEnded => {
                if let Err(Interrupt::Failed(error)) = &end {
                    Held { exchange, lease, running: running.clone() }.close_ended(error);
                }
                finish(end);
                Ok(())
            }
            Teardown::Close => {
                // The server may still work on it.
                LostSession::new(&exchange.connection).cancel(&running);
                drop((exchange, lease));
                finish(end);
                Ok(())
            }
            Teardown::Drop => {
                drop((exchange, lease));
                finish(end);
                Ok(())
            }
        };
        if let Err(error) = &released {
            cleanup_failed(error, &running);
        }
        producer.release(released);
    }

    fn teardown(&self, end: &Result<(), Interrupt>) -> Teardown {
        match end {
            Ok(()) => Teardown::Release,
            Err(_) if self.is_replaced => Teardown::Drop,
            Err(Interrupt::Failed(error)) if error.ends_session() => Teardown::CloseEnded,
            // The message that violates the protocol may be the end of this answer. To drain the
            // rest would then discard the next one.
            Err(Interrupt::Failed(Error::Protocol { .. }))
                if self.exchange.connection.followers > 0 =>
            {
                Teardown::Close
            }
            Err(_) => Teardown::CancelAndDrain,
        }
    }
}

/// Resolves when a fetch does not read its rows for [`MAX_STALL`] while others wait for its
/// connection.
async fn stalled(producer: &Producer, lease: Option<&Lease>) -> Error {
    let Some(lease) = lease else { return pending().await };
    loop {
        lease.contended().await;
        match producer.stalled(MAX_STALL) {
            Some(error) => return error,
            None => sleep(MAX_STALL / 4).await,
        }
    }
}

/// How long the caller of a fetch may leave its rows unread while other fetches wait for the
/// connection.
const MAX_STALL: Duration = Duration::from_secs(2);

/// Ends the rows if the task is dropped before its end, because its runtime shuts down or a notice
/// handler panics.
struct TaskGuard(Producer);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let gone = || Error::ConnectionClosed {
            during: "because its reader task ended (the runtime was shut down, or a notice handler \
                     panicked)",
            source: None,
        };
        self.0.finish(Err(gone()));
        self.0.release(Err(gone()));
    }
}
