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
    report::{count_protocol_error, unexpected},
    session::Session,
    statement_cache::StatementCache,
    unanswered::Unanswered,
};
use crate::{
    error::{Error, Result, TimeoutPhase},
    metrics::connection::{CloseReason, OpenConnection},
    protocol::{
        backend::Message,
        frame::MAX_CONTROL_FRAME,
        frontend,
        long::Long,
        rows::{Run, Stop, value_at},
    },
    transport::Transport,
};

/// A session whose server waits for a query, or is answering the one it was given.
///
/// Dropping it ends the session with a Terminate message, as far as the socket takes it at once.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) transport: Transport,
    /// How many bytes the system waits for before it says that there are any.
    pub(super) low_water: usize,
    /// Bytes that have arrived and not been looked at.
    pub(crate) buffer: BytesMut,
    /// A message that is read as it arrives: what is in the buffer continues it.
    pub(super) long: Option<Long>,
    pub(crate) session: Arc<Session>,
    /// The statements that the server has prepared for this connection.
    pub(crate) statements: StatementCache,
    pub(crate) limits: Limits,
    /// Bytes of a message that is being drained and that have not arrived yet.
    pub(super) skip: usize,
    /// Whether the server has answered a query on this connection before.
    pub(crate) reused: bool,
    /// In a transaction that this client has begun. Whatever is in between may leave a connection in another
    /// one: that is not as clean as it seems, and an error.
    pub(super) in_transaction: bool,
    /// The answer to a [round trip](Self::round_trip) has not come to its end.
    pub(super) is_awaited: bool,
    /// How many ends of answers it still waits for; 0 if the requests were not sent completely.
    pub(super) due: usize,
    /// Statements that are stopped if the connection is dropped before they are answered.
    pub(super) unanswered: Option<Unanswered>,
    pub(super) open: OpenConnection,
}

/// What is allowed on a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of one message.
    pub(crate) max_message_size: usize,
    /// How long a stream that wants rows may hear nothing.
    pub(crate) read_timeout: Option<Duration>,
    /// How long stopping a query may take, draining included.
    pub(crate) cancel_timeout: Duration,
    /// How many bytes may be drained.
    pub(super) drain_limit: usize,
}

impl Connection {
    /// Sends what is in `bytes`, which keeps what is not sent yet. Cancel-safe.
    pub(crate) async fn write(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        self.transport.write_all_buf(bytes).await?;
        // TLS may keep the end of it back otherwise.
        self.transport.flush().await
    }

    /// Waits for bytes and adds them to the buffer, within its capacity; 0 is the end.
    /// Cancel-safe.
    pub(crate) async fn read(&mut self) -> io::Result<usize> {
        let limit = self.buffer.capacity() - self.buffer.len();
        // `read_buf` would grow the buffer when it is full; the caller decides about that.
        let mut room = bytes::BufMut::limit(&mut self.buffer, limit);
        self.transport.read_buf(&mut room).await
    }

    /// Reads what has arrived, within the capacity of the buffer, without waiting.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let limit = self.buffer.capacity() - self.buffer.len();
        let mut room = bytes::BufMut::limit(&mut self.buffer, limit);
        let read = std::pin::pin!(self.transport.read_buf(&mut room));
        std::future::Future::poll(read, cx)
    }

    /// Has [`read`](Self::read) wait for so many bytes, where the system can do that: says whether it does.
    pub(crate) fn set_low_water(&mut self, bytes: usize) -> bool {
        if bytes != self.low_water && self.transport.set_rcvlowat(bytes) {
            self.low_water = bytes;
        }
        bytes == self.low_water
    }

    /// Makes the read buffer about `size` bytes large. Its content is kept. Memory that earlier
    /// chunks have released is used again.
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

    /// How many bytes can be read without another buffer.
    pub(crate) fn free(&self) -> usize {
        self.buffer.capacity() - self.buffer.len()
    }

    /// Releases the memory of the read buffer. Its content is kept.
    pub(crate) fn release_read_buffer(&mut self) {
        self.buffer = BytesMut::from(self.buffer.as_ref());
    }

    /// Closes a connection whose work is done.
    pub(crate) fn finished(mut self) {
        self.set_close_reason(CloseReason::Close);
    }

    /// Says why it will end, for those who count.
    pub(crate) fn set_close_reason(&mut self, reason: CloseReason) {
        self.open.set_close_reason(reason);
    }

    /// Ends a connection that the server had ended while nobody used it.
    pub(crate) fn discard_stale(mut self) {
        self.set_close_reason(CloseReason::Idle);
    }

    /// Takes one message off the buffer.
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

    /// Whether the next bytes continue a long message, so that they are no row, whatever their tag.
    pub(crate) fn is_in_message(&self) -> bool {
        self.long.is_some()
    }

    /// Checks that a session that is ready for the next query is in the expected state. In a
    /// transaction of this client a server is ready as it is outside of one.
    fn check_state(&self, message: Message) -> Result<Message> {
        if matches!(message, Message::ReadyForQuery | Message::ReadyInTransaction) {
            self.session.async_messages.check_encoding()?;
        }
        match (message, self.in_transaction) {
            (Message::ReadyInTransaction, true) => Ok(Message::ReadyForQuery),
            (message @ Message::ReadyInTransaction, false) => {
                let text = "ReadyForQuery says that a transaction is open, where none was begun";
                count_protocol_error(message.name(), Err(Error::protocol(text)))
            }
            (message, _) => Ok(message),
        }
    }

    /// Whether nothing is left of the last exchange. What may come at any time is dealt with; anything
    /// else would be taken for the answer to the next query.
    pub(super) fn is_clean(&mut self) -> bool {
        loop {
            if let Some(is_clean) = self.look_for_rest() {
                return is_clean;
            }
        }
    }

    /// A step of [`is_clean`](Self::is_clean); `None` after a message that may come at any time.
    fn look_for_rest(&mut self) -> Option<bool> {
        if self.skip > 0 || self.transport.is_closed() || self.session.may_be_cancelled() {
            return Some(false);
        }
        match self.take_message() {
            Ok(Taken::Async) => None,
            Ok(Taken::Incomplete) => Some(true),
            Ok(Taken::Message(_)) | Err(_) => Some(false),
        }
    }

    /// Whether an idle connection can take a query: the server has not ended it, as far as has
    /// arrived, and nothing is left on it. Waits for nothing but bytes that are there.
    ///
    /// The system is asked, not only the runtime: what has arrived since the runtime last looked
    /// counts too.
    pub(super) async fn is_alive(&mut self) -> bool {
        // A server does not send more than that to an idle session.
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
            match self.transport.peek() {
                Ok(None) => return true,
                Ok(Some(0)) | Err(_) => return false,
                // TLS may not produce any data from it.
                Ok(Some(_)) if self.transport.readable().await.is_err() => return false,
                Ok(Some(_)) => {}
            }
        }
        false
    }

    /// Whether the server closed the connection without having read all that was sent, after it
    /// has reported that it ends the session: the system then resets the connection instead of
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

    /// Ends a connection that is lost, and frees its descriptor.
    pub(crate) fn hang_up(&mut self) {
        // The peer may still read.
        let _ = self.transport.try_write_last(frontend::TERMINATE);
        self.transport.close();
    }

    /// Sends some of `bytes`, which keeps what is not sent yet. Cancel-safe.
    pub(crate) async fn write_some(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        match self.transport.write_buf(bytes).await? {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        }
    }

    /// Reads a few messages that have arrived, without waiting. Returns whether there were any bytes.
    pub(super) async fn read_arrived(&mut self) -> Result<bool> {
        self.buffer.reserve(SMALL_READ);
        match poll_fn(|cx| Poll::Ready(self.poll_read(cx))).await {
            // The end is found by whoever needs more.
            Poll::Ready(Ok(bytes)) => Ok(bytes > 0),
            Poll::Ready(Err(e)) => Err(Error::io(DURING, e)),
            Poll::Pending => Ok(false),
        }
    }

    /// Sends what TLS has kept back. Cancel-safe.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.transport.flush().await
    }

    /// Waits for some bytes, for exchanges of a few small messages.
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

    /// Runs a query by the simple protocol that returns one value.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] too, when no value comes.
    pub(super) async fn query_scalar(&mut self, sql: &str) -> Result<String> {
        let query = Bytes::from(frontend::simple_query(sql)?);
        let missing = || Error::protocol(format!("the server answers {sql:?} without a value"));
        let answer = self.round_trip(query, 1).await?;
        count_protocol_error("ReadyForQuery", answer.ok_or_else(missing))
    }

    /// Sends requests, each of which is answered up to a ReadyForQuery, and returns the value of
    /// the last row.
    ///
    /// # Errors
    ///
    /// The first one of the server, after the last answer: what follows it is often its
    /// consequence.
    pub(super) async fn round_trip(
        &mut self,
        mut requests: Bytes,
        answers: usize,
    ) -> Result<Option<String>> {
        let read_timeout = self.limits.read_timeout;
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
            let stop = match self.is_in_message() {
                true => Stop::Other,
                false => run.extend(&self.buffer, 1, MAX_CONTROL_FRAME),
            };
            match stop {
                Stop::Full => {
                    let row = self.buffer.split_to(run.frame_bytes);
                    let range = value_at(&row, 0).and_then(|(range, _)| range);
                    let text = range.and_then(|r| row.get(r)).map(String::from_utf8_lossy);
                    value = text.map(Into::into);
                    continue;
                }
                Stop::Malformed(error) => return count_protocol_error("DataRow", Err(error)),
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
                // Prefer the server's error over the end of the connection that followed it. After a
                // timeout the connection is open, and not all of its answers have come.
                Taken::Incomplete => match (self.fill().await, failure.take()) {
                    (Ok(()), earlier) => failure = earlier,
                    (Err(e @ Error::Timeout { .. }), _) => return Err(e),
                    (Err(_), Some(earlier)) => return Err(earlier),
                    (Err(e), None) => return Err(e),
                },
            }
        }
    }

    /// Ends the session: Terminate, then the end of the stream. Bounded by `cancel_timeout`: a
    /// server that does not read has no room for the message.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.set_close_reason(CloseReason::Close);
        let after = self.limits.cancel_timeout;
        let ended = async {
            self.transport.write_all(frontend::TERMINATE).await?;
            self.transport.shutdown().await
        };
        let ended = timeout(after, ended).await.map_err(|_| timed_out(after))?;
        match ended.map_err(|e| Error::io("while closing it", e)) {
            // The server was faster.
            Err(Error::ConnectionClosed { .. }) => Ok(()),
            other => other,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // After `close` the socket refuses it, and nobody has to know.
        let _ = self.transport.try_write_last(frontend::TERMINATE);
    }
}

/// Runs a step that waits for the server once, within `read_timeout`.
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

/// How often an idle connection is read before it is used again.
const MAX_IDLE_READS: usize = 16;

/// Bytes asked for at once where a few small messages are expected.
pub(super) const SMALL_READ: usize = 8 << 10;

const DURING: &str = "during a round trip";
