//! A connection to a server: it exists only when it is ready for a query.

mod cancel;
mod establish;
mod exchange;
mod handshake;
mod slot;

use std::{
    io,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::{debug, warn};

use self::cancel::CancelKey;
pub(crate) use self::{
    cancel::settle,
    exchange::{Exchange, Progress},
    slot::{Lease, Slot, StreamGuard},
};
use crate::{
    error::{DbError, Error, Result},
    protocol::{
        backend::Message,
        frame::{HEADER, Header, MAX_CONTROL_FRAME},
        frontend,
    },
    transport::Transport,
};

/// A session whose server waits for a query, or is answering the one it was given.
///
/// Dropping it ends the session with a Terminate message, as far as the socket takes it at once.
#[derive(Debug)]
pub(crate) struct Connection {
    transport: Transport,
    /// Bytes that have arrived and not been looked at.
    pub(crate) buffer: BytesMut,
    cancel: CancelKey,
    /// Whether the server has answered a query on this connection before.
    pub(crate) reused: bool,
}

impl Connection {
    pub(crate) fn backend_pid(&self) -> u32 {
        self.cancel.process_id
    }

    /// Sends what is in `bytes`, which keeps what is not sent yet. Cancel-safe.
    pub(crate) async fn write(&mut self, bytes: &mut Bytes) -> io::Result<()> {
        self.transport.write_all_buf(bytes).await
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

    /// Takes one message off the buffer.
    pub(crate) fn take_message(&mut self) -> Result<Taken> {
        take_message(&mut self.buffer, MAX_CONTROL_FRAME)
    }

    /// The next message, for exchanges of a few small ones.
    async fn receive(&mut self) -> Result<Message> {
        loop {
            match self.take_message()? {
                Taken::Message(message) => return Ok(message),
                Taken::Absorbed => continue,
                Taken::Incomplete => self.buffer.reserve(SMALL_READ),
            }
            match self.read().await {
                Ok(0) => return Err(Error::ConnectionClosed { during: DURING_PING, source: None }),
                Ok(_) => {}
                Err(e) => return Err(Error::io(DURING_PING, e)),
            }
        }
    }

    /// One round trip to the server.
    pub(crate) async fn ping(&mut self) -> Result<()> {
        self.transport
            .write_all(frontend::EMPTY_QUERY)
            .await
            .map_err(|e| Error::io(DURING_PING, e))?;
        let mut failure = None;
        loop {
            match self.receive().await? {
                Message::ReadyForQuery => return failure.map_or(Ok(()), Err),
                Message::EmptyQueryResponse => {}
                Message::ErrorResponse(e) => failure = Some(Error::Server(e)),
                other => return Err(other.unexpected("the answer to an empty query")),
            }
        }
    }

    /// Ends the session: Terminate, then the end of the stream.
    pub(crate) async fn close(mut self) -> Result<()> {
        let ended = async {
            self.transport.write_all(frontend::TERMINATE).await?;
            self.transport.shutdown().await
        };
        match ended.await.map_err(|e| Error::io("while closing it", e)) {
            // The server was faster.
            Err(Error::ConnectionClosed { .. }) => Ok(()),
            other => other,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // After `close` the socket refuses it, and nobody has to know.
        let _ = self.transport.try_write(frontend::TERMINATE);
    }
}

/// Bytes asked for at once where a few small messages are expected.
const SMALL_READ: usize = 8 << 10;

const DURING_PING: &str = "during a ping";

/// What is at the front of a buffer.
pub(crate) enum Taken {
    Message(Message),
    /// A message that may come at any time, and has been dealt with. What follows may be anything:
    /// a row, for one, is not for [`take_message`].
    Absorbed,
    /// Not a whole message yet.
    Incomplete,
}

/// Takes one message off a buffer.
fn take_message(buffer: &mut BytesMut, max: usize) -> Result<Taken> {
    match Header::read(buffer, max)? {
        Some(header) if buffer.len() >= header.size => {
            let frame = buffer.split_to(header.size);
            let body = frame.get(HEADER..).unwrap_or_default();
            let message = absorb(Message::read(header.tag, body)?);
            Ok(message.map_or(Taken::Absorbed, Taken::Message))
        }
        _ => Ok(Taken::Incomplete),
    }
}

/// Deals with what a server may say at any time; what belongs to an exchange is returned.
fn absorb(message: Message) -> Option<Message> {
    match message {
        Message::NoticeResponse(notice) => report(&notice),
        Message::ParameterStatus { name, value } => {
            debug!(target: TARGET, %name, %value, "the server changed a parameter");
        }
        Message::NotificationResponse { channel } => {
            debug!(target: TARGET, %channel, "a notification came, which nobody listens for");
        }
        other => return Some(other),
    }
    None
}

fn report(notice: &DbError) {
    match notice.severity() {
        "WARNING" => warn!(target: TARGET, "{notice}"),
        _ => debug!(target: TARGET, "{notice}"),
    }
}

/// The target of every event of this crate.
pub(crate) const TARGET: &str = "fraiseql_wire";
