//! One request on a connection, and the state of its response.

use std::{
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use tokio::task::yield_now;
use tracing::warn;

use super::{
    channel::FirstRows, chunk::Chunk, observer::now, schema::check_columns,
    settings::StreamSettings,
};
use crate::{
    connection::{
        Connection, TARGET, Taken, count_protocol_error, trace_received, trace_sent, within,
    },
    error::{Error, Result, sqlstate},
    protocol::{
        backend::{DATA_ROW, ERROR_RESPONSE, Message, name_of},
        extended_query::{ExtendedQuery, Progress},
        frame::{HEADER, Header, MAX_CONTROL_FRAME},
        frontend,
        rows::{Run, Stop},
    },
};

/// A request that is sent, and answered, on a connection.
pub(super) struct Exchange {
    pub(super) connection: Box<Connection>,
    pub(super) query: ExtendedQuery,
    /// The prepared statements that the request closes.
    pub(super) closes: Vec<Arc<str>>,
    request_bytes: usize,
    unsent: Bytes,
    /// Whether the server has responded with something other than an error.
    is_answered: bool,
    /// How long the server has sent nothing.
    pub(super) blocked: Duration,
    /// When the last bytes arrived, if they were waited for.
    arrived_at: Option<Instant>,
    /// The server cannot have started the query: it has not received the whole request, or has not
    /// read it.
    not_begun: bool,
    /// Whether it was run again after a late cancel request, which happens at most once.
    pub(super) is_rerun: bool,
}

/// The next part of a response.
pub(super) enum Next {
    Progress(Progress),
    /// A message that may come at any time. Its handler has run.
    Async,
    /// A message of this size has not arrived completely.
    Incomplete(usize),
}

/// Whether the response is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Complete,
    /// The rest is read by a [`Reader`](super::reader::Reader).
    Continues,
}

impl Exchange {
    pub(super) fn new(connection: Box<Connection>, request: Bytes, query: ExtendedQuery) -> Self {
        Self {
            connection,
            query,
            closes: Vec::new(),
            request_bytes: request.len(),
            unsent: request,
            is_answered: false,
            blocked: Duration::ZERO,
            arrived_at: None,
            not_begun: false,
            is_rerun: false,
        }
    }

    /// Sends another request after one whose response is complete.
    pub(super) fn send_instead(&mut self, request: Bytes, query: ExtendedQuery) {
        self.query = query;
        self.request_bytes = request.len();
        self.unsent = request;
    }

    /// Begins to read the answer to a pipelined request.
    pub(super) fn read_answer(&mut self, query: ExtendedQuery, is_rerun: bool) {
        self.query = query;
        self.request_bytes = frontend::END_OF_QUERY;
        self.is_answered = false;
        self.blocked = Duration::ZERO;
        self.is_rerun = is_rerun;
    }

    /// Reads the rest of the response to a request that has failed.
    ///
    /// # Errors
    ///
    /// The connection cannot be used again.
    pub(super) async fn skip_failed(&mut self) -> Result<()> {
        loop {
            match self.next_message()? {
                Next::Progress(Progress::Ready) => return Ok(()),
                Next::Progress(_) => {}
                Next::Async => yield_now().await,
                Next::Incomplete(bytes) => {
                    self.connection.reserve(bytes);
                    self.wait_for_bytes().await?;
                }
            }
        }
    }

    /// Returns whether the server may have received a part of the request.
    pub(super) fn is_sent(&self) -> bool {
        self.unsent.len() < self.request_bytes
    }

    /// Returns the part of the request that has not been sent.
    pub(super) fn take_unsent(&mut self) -> Bytes {
        std::mem::take(&mut self.unsent)
    }

    /// Sends the request, and reads the response until rows may arrive. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The server's error; [`Error::InvalidSchema`] if the columns are not one JSON column; errors
    /// of the connection.
    pub(super) async fn start(&mut self, settings: &StreamSettings, read: usize) -> Result<()> {
        self.connection.set_read_buffer(read);
        self.send().await?;
        while !self.query.takes_rows() {
            match self.next_message()? {
                Next::Progress(Progress::Failed(error)) => {
                    return Err(Box::pin(self.failed(error)).await);
                }
                Next::Progress(Progress::Columns(columns)) => {
                    check_columns(&columns, settings.json_text)?;
                }
                Next::Progress(Progress::Continue | Progress::Process(_) | Progress::Ready) => {}
                Next::Async => yield_now().await,
                Next::Incomplete(bytes) => {
                    settings.admit_message(bytes)?;
                    self.connection.reserve(bytes);
                    self.wait_for_bytes().await?;
                }
            }
        }
        Ok(())
    }

    /// Sends the rest of the request. A server that reads nothing for `read_timeout` counts as
    /// silent.
    async fn send(&mut self) -> Result<()> {
        if !self.is_sent() {
            trace_sent(&self.unsent);
        }
        let question = if self.query.asks_process() { frontend::MAX_QUESTION } else { 0 };
        let end = frontend::END_OF_QUERY + question;
        let Self { connection, unsent, not_begun, .. } = self;
        let timeout = connection.limits.read_timeout;
        let during = |e| Error::io("while sending the query", e);
        while !unsent.is_empty() {
            if let Err(e) = within(timeout, connection.write_some(unsent)).await? {
                *not_begun = unsent.len() >= end;
                return Err(during(e));
            }
        }
        // TLS may hold back the end of the request otherwise.
        within(timeout, connection.flush()).await?.map_err(during)
    }

    async fn wait_for_bytes(&mut self) -> Result<()> {
        let timeout = self.connection.limits.read_timeout;
        let since = now();
        let read = within(timeout, self.connection.read()).await;
        let arrived_at = now();
        self.blocked += arrived_at.saturating_duration_since(since);
        self.arrived_at = Some(arrived_at);
        match read? {
            Ok(0) => Err(closed(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(e) => Err(closed(e)),
        }
    }

    /// Handles the message at the front of the read buffer, which is not a row.
    pub(super) fn next_message(&mut self) -> Result<Next> {
        if let Some(size) = self.take_usual() {
            let tag = self.connection.buffer.first().copied().unwrap_or_default();
            trace_received(name_of(tag), size);
            self.connection.buffer.advance(size);
            self.is_answered = true;
            return Ok(Next::Progress(Progress::Continue));
        }
        if let Some(size) = self.take_ready() {
            trace_received(Message::ReadyForQuery.name(), size);
            self.connection.check_ready()?;
            self.connection.buffer.advance(size);
            return Ok(Next::Progress(Progress::Ready));
        }
        let message = match self.connection.take_message()? {
            Taken::Message(message) => message,
            Taken::Async => return Ok(Next::Async),
            Taken::Incomplete => {
                let header = Header::parse(&self.connection.buffer, MAX_CONTROL_FRAME)?;
                return Ok(Next::Incomplete(header.map_or(HEADER, |header| header.size)));
            }
        };
        let name = message.name();
        let is_asking = self.query.is_asking();
        let progress = self.query.advance(message);
        let progress = progress.inspect_err(|error| count_protocol_error(name, error))?;
        self.is_answered |= !matches!(progress, Progress::Failed(_));
        match progress {
            Progress::Process(is_same) => self.connection.statements.set_is_process(is_same),
            // A pooler would have passed the question on.
            Progress::Ready if is_asking => self.connection.statements.set_is_process(true),
            _ => {}
        }
        Ok(Next::Progress(progress))
    }

    fn take_usual(&mut self) -> Option<usize> {
        let Self { connection, query, .. } = self;
        if connection.is_in_message() { None } else { query.take_usual(&connection.buffer) }
    }

    fn take_ready(&mut self) -> Option<usize> {
        let Self { connection, query, .. } = self;
        if connection.is_in_message() { None } else { query.take_ready(&connection.buffer) }
    }

    /// Checks whether a session that has ended was ended before the request arrived.
    async fn failed(&mut self, error: Error) -> Error {
        if error.ends_session() {
            self.connection.session.set_ending();
        }
        if self.connection.reused && !self.is_answered && error.ends_session() {
            self.not_begun = ended_idle(&error) || self.connection.ends_unread().await;
        }
        error
    }

    /// Returns whether the connection had ended while it was idle. The server has then not started
    /// the query, and it can be run on another connection.
    pub(super) fn is_stale(&self, error: &Error) -> bool {
        self.connection.reused
            && !self.is_answered
            && error.ends_session()
            && self.has_not_begun(error)
    }

    /// Returns whether the server ended a session that had been used before because it was idle.
    /// It has then not started the request, nor those that were sent after it.
    pub(super) fn ended_idle(&self, error: &Error) -> bool {
        self.connection.reused && !self.is_answered && ended_idle(error)
    }

    /// Returns whether the server cannot have started the query.
    pub(super) fn has_not_begun(&self, error: &Error) -> bool {
        self.not_begun || self.connection.session.is_ending() && is_reset(error)
    }

    /// Returns whether a cancel request for an earlier query cancelled this one. Some proxies close
    /// the connection of a cancel request before the server has processed it. The server has ended
    /// the query.
    pub(super) fn is_late_cancel(&self, error: &Error) -> bool {
        let is_cancelled = error.sqlstate().is_some_and(|code| *code == sqlstate::QUERY_CANCELED);
        // After that, it was statement_timeout or another session, with the same SQLSTATE.
        is_cancelled
            && !self.is_rerun
            && !self.connection.is_in_transaction()
            && self.connection.session.was_cancelled_recently()
    }

    /// Reads the rows that arrive together, and the end of the response if it arrives with them.
    /// Does not wait for more. Cancel-safe.
    ///
    /// Leaves everything unusual in the read buffer, for a reader: rows that do not fit into it,
    /// malformed messages, and errors of the server.
    ///
    /// # Errors
    ///
    /// Errors of the connection. Rows received before are in `first`.
    pub(super) async fn begin(
        &mut self,
        settings: &StreamSettings,
        first: &mut Option<FirstRows>,
    ) -> Result<Answer> {
        let row_limit = settings.row_limit.unwrap_or(u64::MAX);
        let max_rows = settings.chunk_rows().0.min(row_limit.try_into().unwrap_or(usize::MAX));
        let mut run = Run::default();
        while first.is_none() && !self.connection.is_in_message() {
            let max_bytes = self.connection.limits.max_message_size;
            match run.extend(&self.connection.buffer, max_rows, max_bytes) {
                Stop::Full if run.rows as u64 == row_limit => break,
                Stop::Full | Stop::Malformed(_) => return Ok(self.take_rows(&mut run, first)),
                Stop::Other => break,
                Stop::Incomplete(row) => {
                    let arrived = self.connection.buffer.len() - run.frame_bytes;
                    let is_full = row.frame_bytes > arrived + self.connection.free();
                    if is_full {
                        return Ok(self.take_rows(&mut run, first));
                    }
                    match self.read_more().await {
                        Ok(true) => {}
                        Ok(false) => return Ok(self.take_rows(&mut run, first)),
                        Err(e) => {
                            self.take_rows(&mut run, first);
                            return Err(e);
                        }
                    }
                }
            }
        }
        self.take_rows(&mut run, first);
        self.end().await
    }

    /// Reads the end of the response, after the rows, as far as it has arrived.
    async fn end(&mut self) -> Result<Answer> {
        loop {
            let is_unusual = match self.connection.buffer.first() {
                _ if self.connection.is_in_message() => false,
                Some(&DATA_ROW) => !self.query.is_asking(),
                Some(&ERROR_RESPONSE) => true,
                _ => false,
            };
            if is_unusual {
                return Ok(Answer::Continues);
            }
            match self.next_message()? {
                Next::Progress(Progress::Ready) => return Ok(Answer::Complete),
                Next::Progress(_) => {}
                Next::Async => yield_now().await,
                Next::Incomplete(bytes) => {
                    let is_full = bytes > self.connection.buffer.len() + self.connection.free();
                    if is_full || !self.read_more().await? {
                        return Ok(Answer::Continues);
                    }
                }
            }
        }
    }

    /// Reads what has arrived. Returns whether there was any data.
    async fn read_more(&mut self) -> Result<bool> {
        match poll_fn(|cx| Poll::Ready(self.connection.poll_read(cx))).await {
            Poll::Ready(Ok(0)) => Err(closed(std::io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(_)) => {
                self.arrived_at = None;
                Ok(true)
            }
            Poll::Ready(Err(e)) => Err(closed(e)),
            Poll::Pending => Ok(false),
        }
    }

    /// Splits the run of rows off the read buffer.
    pub(super) fn take_rows(&mut self, run: &mut Run, first: &mut Option<FirstRows>) -> Answer {
        if run.rows > 0 {
            let Run { rows, frame_bytes, value_bytes } = std::mem::take(run);
            let buffer = &mut self.connection.buffer;
            let capacity = buffer.capacity();
            // A few small rows must not keep the whole buffer in memory, nor take it from the
            // connection.
            let is_small = frame_bytes <= capacity / 4;
            let frames = if is_small {
                let frames = Bytes::copy_from_slice(buffer.get(..frame_bytes).unwrap_or_default());
                buffer.advance(frame_bytes);
                frames
            } else {
                buffer.split_to(frame_bytes).freeze()
            };
            let chunk = Chunk::new(frames, rows, value_bytes);
            let memory = if is_small { frame_bytes } else { capacity };
            let arrived_at = self.arrived_at.unwrap_or_else(now);
            *first = Some(FirstRows { chunk, memory, arrived_at });
        }
        Answer::Continues
    }
}

/// Logs that a cancel request for an earlier query cancelled this one.
pub(super) fn late_cancel(error: &Error) {
    warn!(
        target: TARGET,
        %error,
        "a late cancel request for an earlier query cancelled this one, which is run again"
    );
}

/// Returns whether the server has ended the session because it was idle, so that it has not started
/// a query.
fn ended_idle(error: &Error) -> bool {
    error.sqlstate().is_some_and(|code| *code == sqlstate::IDLE_SESSION_TIMEOUT)
}

/// Returns whether the peer closed the connection before it had read everything that was sent.
fn is_reset(error: &Error) -> bool {
    let Error::ConnectionClosed { source: Some(source), .. } = error else { return false };
    source.kind() == std::io::ErrorKind::ConnectionReset
}

pub(super) fn closed(e: std::io::Error) -> Error {
    Error::io("before the result was complete", e)
}
