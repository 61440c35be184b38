//! A connection to a server: it exists only when it is ready for a query.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
    time::timeout,
};

use super::{
    cancel::timed_out,
    messages::{Taken, take_message},
    outgoing::Outgoing,
    report::{count_protocol_error, unexpected, violation},
    session::Session,
    statement_cache::{Choice, StatementCache},
    trace::trace_sent,
    unanswered::Unanswered,
};
use crate::{
    error::{Error, Result, TimeoutPhase},
    metrics::connection::{CloseReason, OpenConnection},
    protocol::{
        backend::Message,
        extended_query::Steps,
        frame::MAX_CONTROL_FRAME,
        frontend::{self, Query},
        long_message::LongMessage,
        rows::{Run, Stop, value_at},
    },
    transport::Transport,
};

/// A session whose server waits for a query, or is answering one.
///
/// Dropping it sends a Terminate message, if the socket accepts it without waiting, and closes the
/// connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) transport: Transport,
    /// `SO_RCVLOWAT`: how many bytes must have arrived before a read returns.
    pub(super) rcvlowat: usize,
    /// Bytes that have arrived and are not processed yet.
    pub(crate) buffer: BytesMut,
    /// The memory of the last request, for the next one.
    pub(super) requests: BytesMut,
    /// Pipelined requests. Reading sends them.
    pub(super) outgoing: Outgoing,
    /// How many requests were made after the one whose answer is being read. Their answers follow.
    pub(crate) followers: usize,
    /// A long message that is read as it arrives. The buffer has its next bytes.
    pub(super) long: Option<LongMessage>,
    pub(crate) session: Arc<Session>,
    /// The statements that the server has prepared for this connection.
    pub(crate) statements: StatementCache,
    pub(crate) limits: Limits,
    /// Bytes of a discarded message that have not arrived yet.
    pub(super) skip: usize,
    /// Whether the server has answered a query on this connection before.
    pub(crate) reused: bool,
    /// In a transaction that this client has begun. A pooler may hand out a connection with a
    /// transaction of another client, which is an error.
    pub(super) in_transaction: bool,
    /// The answer to a [round trip](Self::round_trip) is not complete.
    pub(super) is_awaited: bool,
    /// How many ReadyForQuery it still waits for; 0 if the requests were not sent completely.
    pub(super) due: usize,
    /// Cancels the statements that are not answered when the connection is dropped.
    pub(super) unanswered: Option<Unanswered>,
    pub(super) open: OpenConnection,
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The maximum size of a message, in bytes.
    pub(crate) max_message_size: usize,
    /// The maximum time to wait for data while reading an answer.
    pub(crate) read_timeout: Option<Duration>,
    /// The maximum time to cancel and drain a query.
    pub(crate) cancel_timeout: Duration,
    /// The maximum number of bytes to drain.
    pub(super) drain_limit: usize,
}

impl Connection {
    /// Encodes the request for a query. See [`Query::request`].
    pub(crate) fn request(
        &mut self,
        query: &Query,
        choice: &Choice,
        closes: &[impl AsRef<str>],
    ) -> Result<(Bytes, Steps)> {
        /// The maximum size of a request whose memory is used again, in bytes.
        const MAX_REUSED: usize = 4 << 10;
        let process = self.statements.process_to_ask(choice);
        let request = query.request(choice.statement(), closes, process, &mut self.requests);
        if request.as_ref().ok().is_none_or(|(request, _)| request.len() > MAX_REUSED) {
            self.requests = BytesMut::new();
        }
        request
    }

    /// Sends `bytes`, which keeps what is not sent yet. Cancel-safe.
    pub(crate) async fn write(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        self.transport.write_all_buf(bytes).await?;
        // TLS may buffer the end of it otherwise.
        self.transport.flush().await
    }

    /// Waits for bytes and appends them to the buffer, within its capacity. Returns 0 at the end of
    /// the stream. Cancel-safe.
    pub(crate) async fn read(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Sends as much of the pipelined requests as the socket accepts.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) {
        self.outgoing.poll_send(&mut self.transport, cx);
    }

    /// Reads what has arrived, within the capacity of the buffer, without waiting. Sends pipelined
    /// requests first.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.outgoing.poll_send(&mut self.transport, cx);
        let limit = self.buffer.capacity() - self.buffer.len();
        // `read_buf` would grow the buffer when it is full; the caller decides about that.
        let mut room = bytes::BufMut::limit(&mut self.buffer, limit);
        let read = std::pin::pin!(self.transport.read_buf(&mut room));
        match std::future::Future::poll(read, cx) {
            Poll::Pending => match self.outgoing.take_error(&self.transport) {
                Some(e) => Poll::Ready(Err(e)),
                None => Poll::Pending,
            },
            read => read,
        }
    }

    /// Adds a request that does not wait for the answers to earlier ones. Reading sends it.
    pub(crate) fn pipeline(&mut self, request: &[u8]) {
        self.outgoing.add(request);
    }

    /// How many bytes of pipelined requests are not sent yet.
    pub(crate) fn outgoing(&self) -> usize {
        self.outgoing.len()
    }

    /// When bytes of pipelined requests were sent last.
    pub(crate) fn last_outgoing(&self) -> Option<std::time::Instant> {
        self.outgoing.sent_at.map(tokio::time::Instant::into_std)
    }

    /// Makes [`read`](Self::read) wait for `bytes` bytes. Returns whether the system supports it.
    pub(crate) fn set_rcvlowat(&mut self, bytes: usize) -> bool {
        if bytes != self.rcvlowat && self.transport.set_rcvlowat(bytes) {
            self.rcvlowat = bytes;
        }
        bytes == self.rcvlowat
    }

    /// Makes the read buffer about `size` bytes large, and keeps its content. Reuses memory that
    /// earlier chunks have released.
    pub(crate) fn set_read_buffer(&mut self, size: usize) {
        if self.buffer.capacity() > 2 * size {
            let mut buffer = BytesMut::with_capacity(size.max(self.buffer.len()));
            buffer.extend_from_slice(&self.buffer);
            self.buffer = buffer;
        }
        self.buffer.reserve(size.saturating_sub(self.buffer.len()));
    }

    /// Makes room for a message of this size at the front of the read buffer.
    pub(crate) fn reserve(&mut self, size: usize) {
        self.buffer.reserve(size.saturating_sub(self.buffer.len()).max(1));
    }

    /// How many bytes can be read without another allocation.
    pub(crate) fn free(&self) -> usize {
        self.buffer.capacity() - self.buffer.len()
    }

    /// Releases the memory of the read buffer. Its content is kept.
    pub(crate) fn release_read_buffer(&mut self) {
        self.buffer = BytesMut::from(self.buffer.as_ref());
    }

    /// Closes a connection that is not needed any more.
    pub(crate) fn finished(mut self) {
        self.set_close_reason(CloseReason::Close);
    }

    /// Sets the reason that is counted when the connection ends. Default: broken.
    pub(crate) fn set_close_reason(&mut self, reason: CloseReason) {
        self.open.set_close_reason(reason);
    }

    /// Closes a connection that the server ended while it was idle.
    pub(crate) fn discard_stale(mut self) {
        self.set_close_reason(CloseReason::Idle);
    }

    /// Sets the reason of a connection that ended with this error.
    pub(crate) fn set_lost(&mut self, error: &Error) {
        if !matches!(error, Error::Io { .. }) {
            self.set_close_reason(CloseReason::Server);
        }
    }

    /// Removes one message from the buffer.
    pub(crate) fn take_message(&mut self) -> Result<Taken> {
        self.take_message_within(MAX_CONTROL_FRAME)
    }

    /// The same, for messages of at most `max` bytes.
    pub(super) fn take_message_within(&mut self, max: usize) -> Result<Taken> {
        let async_messages = Some(&self.session.async_messages);
        match take_message(&mut self.buffer, &mut self.long, max, async_messages)? {
            Taken::Message(message) => self.check_state(message).map(Taken::Message),
            Taken::Async => self.session.async_messages.check_encoding().map(|()| Taken::Async),
            Taken::Incomplete => Ok(Taken::Incomplete),
        }
    }

    /// Whether the next bytes continue a long message, and are no message of their own.
    pub(crate) fn is_in_message(&self) -> bool {
        self.long.is_some()
    }

    /// Checks the state of a session that is ready for the next query. In a transaction of this
    /// client, ReadyInTransaction is returned as ReadyForQuery.
    fn check_state(&self, message: Message) -> Result<Message> {
        if matches!(message, Message::ReadyForQuery | Message::ReadyInTransaction) {
            self.session.async_messages.check_encoding()?;
        }
        match (message, self.in_transaction) {
            (Message::ReadyInTransaction, true) => Ok(Message::ReadyForQuery),
            (message @ Message::ReadyInTransaction, false) => {
                let text = "unexpected open transaction in ReadyForQuery: none was begun";
                Err(violation(message.name(), text))
            }
            (message, _) => Ok(message),
        }
    }

    /// Checks the state of a session that reports that it is ready, and in no transaction.
    pub(crate) fn check_ready(&self) -> Result<()> {
        self.session.async_messages.check_encoding()
    }

    /// Whether nothing is left of the last answer. Messages that may come at any time are handled;
    /// any other one would be taken for the answer to the next query. The answers to pipelined
    /// requests are expected.
    pub(super) fn is_clean(&mut self) -> bool {
        if self.followers > 0 {
            return self.is_usable();
        }
        loop {
            if let Some(is_clean) = self.look_for_rest() {
                return is_clean;
            }
        }
    }

    fn is_usable(&self) -> bool {
        // A server reads a request before it answers. Otherwise the next one would be written into
        // the middle of it.
        let is_sent = self.followers > 0 || !self.outgoing.is_sending();
        is_sent
            && self.skip == 0
            && !self.transport.is_closed()
            && !self.session.may_be_cancelled()
            && !self.session.is_ending()
    }

    /// A step of [`is_clean`](Self::is_clean); `None` after a message that may come at any time.
    fn look_for_rest(&mut self) -> Option<bool> {
        if !self.is_usable() {
            return Some(false);
        }
        if self.buffer.is_empty() && self.long.is_none() {
            return Some(true);
        }
        match self.take_message() {
            Ok(Taken::Async) => None,
            Ok(Taken::Incomplete) => Some(true),
            Ok(Taken::Message(_)) | Err(_) => Some(false),
        }
    }

    /// Whether an idle connection can run a query: no end of it has arrived, and nothing is left on
    /// it. Reads only what has arrived.
    ///
    /// The operating system is asked, not only the runtime, because bytes may have arrived since
    /// the runtime last polled the socket. A Unix socket of Linux need not be asked.
    pub(crate) async fn is_alive(&mut self) -> bool {
        let is_asked = !self.transport.reports_end_on_write();
        self.is_open(is_asked).await
    }

    /// Same as [`is_alive`](Self::is_alive), before pipelined requests. A failed write does not
    /// show how many of them were sent.
    pub(crate) async fn is_alive_for_many(&mut self) -> bool {
        self.is_open(true).await
    }

    async fn is_open(&mut self, is_asked: bool) -> bool {
        if self.followers > 0 {
            return false;
        }
        if !self.transport.can_peek() {
            // Lets the runtime look for what has arrived.
            yield_now().await;
        }
        // A server does not send more than this to an idle session.
        for _ in 0..MAX_IDLE_READS {
            loop {
                match self.look_for_rest() {
                    Some(true) => break,
                    Some(false) => return false,
                    // Its handler has run: check the query's deadlines.
                    None => yield_now().await,
                }
            }
            self.buffer.reserve(SMALL_READ);
            match poll_fn(|cx| Poll::Ready(self.poll_read(cx))).await {
                Poll::Ready(Ok(1..)) => continue,
                Poll::Ready(_) => return false,
                Poll::Pending => {}
            }
            if !is_asked {
                return true;
            }
            match self.transport.peek() {
                Ok(None) => return true,
                Ok(Some(0)) | Err(_) => return false,
                // These bytes may contain no data for TLS.
                Ok(Some(_)) if self.transport.readable().await.is_err() => return false,
                Ok(Some(_)) => {}
            }
        }
        false
    }

    /// Whether the server closed the connection without having read all that was sent, after it has
    /// reported that it ends the session. The server's system then resets the connection instead of
    /// ending it in order. A server that has begun a query has read all of it.
    pub(crate) async fn ends_unread(&mut self) -> bool {
        let mut rest = [0; 512];
        let ended = async {
            loop {
                match self.transport.read(&mut rest).await {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(e) => return e.kind() == io::ErrorKind::ConnectionReset,
                }
            }
        };
        timeout(self.limits.cancel_timeout, ended).await.unwrap_or(false)
    }

    /// Closes the connection without Terminate, and frees its descriptor and port immediately.
    pub(super) fn abort(&mut self) {
        self.transport.abort();
    }

    /// Closes a connection that is lost, and frees its descriptor.
    pub(crate) fn hang_up(&mut self) {
        // The server may still read.
        self.try_terminate();
        self.transport.close();
    }

    /// Sends Terminate, if the socket accepts it without waiting.
    fn try_terminate(&mut self) {
        if !self.transport.is_closed() && self.transport.try_write_last(frontend::TERMINATE).is_ok()
        {
            trace_sent(frontend::TERMINATE);
        }
    }

    /// Sends some of `bytes`, which keeps what is not sent yet. Cancel-safe.
    pub(crate) async fn write_some(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        match self.transport.write_buf(bytes).await? {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        }
    }

    /// Reads a few messages that have arrived, without waiting. Returns the number of bytes.
    pub(super) async fn read_arrived(&mut self) -> Result<usize> {
        self.buffer.reserve(SMALL_READ);
        match poll_fn(|cx| Poll::Ready(self.poll_read(cx))).await {
            // The next read that needs more bytes reports the end.
            Poll::Ready(Ok(bytes)) => Ok(bytes),
            Poll::Ready(Err(e)) => Err(Error::io(DURING, e)),
            Poll::Pending => Ok(0),
        }
    }

    /// Sends what TLS has buffered. Cancel-safe.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.transport.flush().await
    }

    /// Waits for bytes, in a round trip of a few small messages.
    async fn fill(&mut self) -> Result<()> {
        self.buffer.reserve(SMALL_READ);
        let read_timeout = self.limits.read_timeout;
        match within(read_timeout, self.read()).await? {
            Ok(0) => Err(Error::ConnectionClosed { during: DURING, source: None }),
            Ok(_) => Ok(()),
            Err(e) => Err(Error::io(DURING, e)),
        }
    }

    /// One round trip to the server.
    pub(crate) async fn ping(&mut self) -> Result<()> {
        let empty = Bytes::from_static(frontend::EMPTY_QUERY);
        self.round_trip(empty, 1).await.map(drop)
    }

    /// Runs a query with the simple protocol, and returns its one value.
    ///
    /// # Errors
    ///
    /// Same as [`round_trip`](Self::round_trip); also [`Error::Protocol`] if there is no value.
    pub(super) async fn query_scalar(&mut self, sql: &str) -> Result<String> {
        let query = Bytes::from(frontend::simple_query(sql)?);
        let missing = || format!("no value in the server's answer to {sql:?}");
        let answer = self.round_trip(query, 1).await?;
        answer.ok_or_else(|| violation("ReadyForQuery", missing()))
    }

    /// Sends requests, reads the answer to each until its ReadyForQuery, and returns the value of
    /// the last row.
    ///
    /// # Errors
    ///
    /// The first error of the server, after the last answer: later errors are often consequences.
    pub(super) async fn round_trip(
        &mut self,
        mut requests: Bytes,
        answers: usize,
    ) -> Result<Option<String>> {
        let read_timeout = self.limits.read_timeout;
        trace_sent(&requests);
        self.is_awaited = true;
        self.due = 0;
        while !requests.is_empty() {
            let sent = within(read_timeout, self.write_some(&mut requests)).await?;
            sent.map_err(|e| Error::io(DURING, e))?;
        }
        within(read_timeout, self.flush()).await?.map_err(|e| Error::io(DURING, e))?;
        self.due = answers;
        let (mut value, mut failure) = (None, None);
        loop {
            let mut run = Run::default();
            let stop = if self.is_in_message() {
                Stop::Other
            } else {
                run.extend(&self.buffer, 1, MAX_CONTROL_FRAME)
            };
            match stop {
                Stop::Full => {
                    let row = self.buffer.split_to(run.frame_bytes);
                    let range = value_at(&row, 0).and_then(|(range, _)| range);
                    let text = range.and_then(|r| row.get(r)).map(String::from_utf8_lossy);
                    value = text.map(Into::into);
                    continue;
                }
                Stop::Malformed(error) => {
                    count_protocol_error("DataRow", &error);
                    return Err(error);
                }
                Stop::Incomplete(_) | Stop::Other => {}
            }
            match self.take_message()? {
                Taken::Message(Message::ReadyForQuery) => {
                    self.due -= 1;
                    if self.due == 0 {
                        self.is_awaited = false;
                        return failure.map_or(Ok(value), Err);
                    }
                }
                Taken::Message(Message::ErrorResponse(e)) => {
                    failure.get_or_insert(Error::Server(e));
                }
                Taken::Message(
                    Message::ParseComplete
                    | Message::BindComplete
                    | Message::RowDescription(_)
                    | Message::CommandComplete
                    | Message::EmptyQueryResponse,
                ) => {}
                // Its handler has run: check the caller's deadline.
                Taken::Async => yield_now().await,
                Taken::Message(other) => return unexpected(&other, "the answer to a simple query"),
                // Prefer the server's error over the end of the connection that followed it. After
                // a timeout the connection is open, and not all of its answers have come.
                Taken::Incomplete => match (self.fill().await, failure.take()) {
                    (Ok(()), earlier) => failure = earlier,
                    (Err(e @ Error::Timeout { .. }), _) => return Err(e),
                    (Err(_), Some(earlier)) => return Err(earlier),
                    (Err(e), None) => return Err(e),
                },
            }
        }
    }

    /// Ends the session: sends Terminate, then closes the connection. Takes at most
    /// `cancel_timeout`, because the socket may be full.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.set_close_reason(CloseReason::Close);
        let after = self.limits.cancel_timeout;
        let ended = async {
            self.transport.write_all(frontend::TERMINATE).await?;
            trace_sent(frontend::TERMINATE);
            self.transport.shutdown().await
        };
        let ended = timeout(after, ended).await.map_err(|_| timed_out(after))?;
        match ended.map_err(|e| Error::io("while closing it", e)) {
            // The server closed it first.
            Err(Error::ConnectionClosed { .. }) => Ok(()),
            other => other,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // After `close` the socket rejects it, which does not matter.
        self.try_terminate();
    }
}

/// Runs a step that waits for the server once, with `read_timeout`.
pub(crate) async fn within<T>(
    read_timeout: Option<Duration>,
    step: impl Future<Output = T>,
) -> Result<T> {
    let step = std::pin::pin!(step);
    let Some(after) = read_timeout else { return Ok(step.await) };
    let phase = TimeoutPhase::Read;
    // On the heap: the timer is larger than the step.
    Box::pin(timeout(after, step)).await.map_err(|_| Error::Timeout { phase, after })
}

/// The maximum number of reads of an idle connection before it is used again.
const MAX_IDLE_READS: usize = 16;

/// The size of a read where a few small messages are expected, in bytes.
pub(super) const SMALL_READ: usize = 8 << 10;

const DURING: &str = "during a round trip";
