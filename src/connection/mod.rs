//! A connection to a server: it exists only when it is ready for a query.

mod cancel;
mod establish;
mod exchange;
mod handshake;
mod random;
mod session;
mod slot;

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::session::{Heard, Session};
pub(crate) use self::{
    cancel::settle,
    exchange::{Exchange, Progress},
    slot::{Lease, Slot, StreamGuard},
};
pub use self::{
    session::{ConnectionInfo, ServerVersion},
    slot::CancelToken,
};
use crate::{
    error::{Error, Result},
    protocol::{
        backend::Message,
        frame::{HEADER, Header, MAX_CONTROL_FRAME},
        frontend,
        rows::{Run, value_at},
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
    pub(crate) session: Arc<Session>,
    pub(crate) bounds: Bounds,
    /// Whether the server has answered a query on this connection before.
    pub(crate) reused: bool,
}

/// What is allowed on a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of one message.
    pub(crate) max_message_size: usize,
    /// How long a stream that wants rows may hear nothing.
    pub(crate) read_timeout: Option<Duration>,
    /// How long stopping a query may take, draining included.
    cancel_timeout: Duration,
    /// How many bytes may be drained.
    drain_limit: usize,
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

    /// Takes one message off the buffer.
    pub(crate) fn take_message(&mut self) -> Result<Taken> {
        take_message(&mut self.buffer, MAX_CONTROL_FRAME, &self.session.heard)
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

    /// Runs a query by the simple protocol that returns one value.
    async fn ask(&mut self, sql: &str) -> Result<Option<String>> {
        let mut query = Bytes::from(frontend::simple_query(sql)?);
        self.write(&mut query).await.map_err(|e| Error::io(DURING_PING, e))?;
        let (mut value, mut failure) = (None, None);
        loop {
            let mut run = Run::default();
            run.extend(&self.buffer, 1, MAX_CONTROL_FRAME);
            if run.rows == 1 {
                let frame = self.buffer.split_to(run.frame_bytes);
                let range = value_at(&frame, 0).and_then(|(range, _)| range);
                value =
                    range.and_then(|r| frame.get(r)).map(String::from_utf8_lossy).map(Into::into);
                continue;
            }
            match self.receive().await? {
                Message::ReadyForQuery => return failure.map_or(Ok(value), Err),
                Message::RowDescription(_) | Message::CommandComplete => {}
                Message::ErrorResponse(e) => failure = Some(Error::Server(e)),
                other => return Err(other.unexpected("the answer to a simple query")),
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
        let _ = self.transport.try_write_last(frontend::TERMINATE);
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
fn take_message(buffer: &mut BytesMut, max: usize, heard: &Heard) -> Result<Taken> {
    match Header::read(buffer, max)? {
        Some(header) if buffer.len() >= header.size => {
            let frame = buffer.split_to(header.size);
            let body = frame.get(HEADER..).unwrap_or_default();
            let message = heard.absorb(Message::read(header.tag, body)?);
            Ok(message.map_or(Taken::Absorbed, Taken::Message))
        }
        _ => Ok(Taken::Incomplete),
    }
}

/// The target of every event of this crate.
pub(crate) const TARGET: &str = "fraiseql_wire";
