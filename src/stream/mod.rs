//! The stream of rows that a query returns.

mod budget;
mod channel;
mod chunk;
mod gate;
mod reader;
mod row;
mod stats;

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use futures_core::{FusedStream, Stream};
use serde_json::Value;
use tokio::task::coop;

pub(crate) use self::reader::Limits;
use self::{
    channel::{Channel, Consumed},
    chunk::Chunk,
    row::Row,
};
pub use self::{
    row::{FromJsonRow, RawJson},
    stats::{StreamState, StreamStats},
};
use crate::{
    connection::{Slot, StreamGuard},
    error::{Error, Result},
};

/// Conditions in Rust, all of which must hold.
pub(crate) struct Predicates<T> {
    pub(crate) on_documents: Vec<Predicate<Value>>,
    pub(crate) on_rows: Vec<Predicate<T>>,
}

type Predicate<V> = Box<dyn Fn(&V) -> bool + Send>;

impl<T> Predicates<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.on_documents.is_empty() && self.on_rows.is_empty()
    }
}

impl<T> Default for Predicates<T> {
    fn default() -> Self {
        Self { on_documents: Vec::new(), on_rows: Vec::new() }
    }
}

/// The rows of one query, as they arrive.
///
/// Made by [`QueryBuilder::execute`](crate::QueryBuilder::execute). Rows come in the server's
/// order. A row that does not decode is an `Err` item for which
/// [`is_row_error`](Error::is_row_error) holds, and the stream goes on; any other error is the last
/// item, after every row that came before it.
///
/// # Memory
///
/// A task of its own reads ahead, up to the stream's memory limit
/// ([`max_memory`](crate::QueryBuilder::max_memory)); then it leaves the rest in the sockets, and
/// the server waits.
///
/// # Drop
///
/// Dropping the stream before its end stops the query: a cancel request goes to the server in the
/// background, on a connection of its own, and what is in flight is drained. Both together take at
/// most 2 seconds and 16 MiB; if that is not enough, the connection is closed. Drop itself never
/// waits. The client can run its next query at once: it waits for the clean-up by itself.
///
/// # Cancel safety
///
/// `next()` is cancel-safe: a row is taken out of the stream only when it is returned.
pub struct QueryStream<T> {
    consumer: Consumer,
    /// The rows that are being read.
    chunk: Option<Chunk>,
    consumed: Consumed,
    predicates: Predicates<T>,
    chunk_size: usize,
    rows: PhantomData<fn() -> T>,
}

impl<T: FromJsonRow> QueryStream<T> {
    /// Runs the request on the slot's connection, up to where the first row can come.
    ///
    /// A connection that turns out to have ended while it was idle is replaced, once. Dropping the
    /// future stops the query.
    pub(crate) async fn open(
        slot: &Arc<Slot>,
        request: Vec<u8>,
        limits: Limits,
        predicates: Predicates<T>,
    ) -> Result<Self> {
        let request = Bytes::from(request);
        let called = Instant::now();
        let mut replaced = false;
        loop {
            let (guard, lease, connection) = slot.acquire().await?;
            let channel = Arc::new(Channel::new(limits.memory, called));
            // From here on, whatever happens to this future or the stream, the task is told.
            let consumer =
                Consumer { channel: Arc::clone(&channel), guard: Some(guard), ended: None };
            reader::spawn(connection, channel, limits, request.clone(), lease);
            match consumer.channel.started().await {
                Ok(()) => {
                    return Ok(Self {
                        consumer,
                        chunk: None,
                        consumed: Consumed::default(),
                        predicates,
                        chunk_size: limits.chunk_size,
                        rows: PhantomData,
                    });
                }
                Err(e) if e.stale && !replaced => replaced = true,
                Err(e) => return Err(e.error),
            }
        }
    }

    /// Stops reading from the server; resolves when nothing is read any more.
    ///
    /// Rows that had arrived can still be read; then the stream is pending, its end included, until
    /// [`resume`](Self::resume). The server is held up by the full sockets and keeps its snapshot
    /// all the while. A second pause changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`] when the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause(&mut self) -> Result<()> {
        if self.consumer.ended.is_some() {
            return Err(Error::InvalidState { message: "pause() on a stream that has ended" });
        }
        self.consumer.channel.pause().await;
        Ok(())
    }

    /// Goes on after a [`pause`](Self::pause); without one, nothing changes. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`] when the stream has ended.
    pub async fn resume(&mut self) -> Result<()> {
        if self.consumer.ended.is_some() {
            return Err(Error::InvalidState { message: "resume() on a stream that has ended" });
        }
        self.consumer.channel.resume();
        Ok(())
    }

    /// Stops the query on the server; resolves when the client can run its next query.
    ///
    /// Rows that were not read are discarded, and the stream is at its end. After the end nothing
    /// is left to stop.
    ///
    /// # Errors
    ///
    /// The server could not be told, or did not stop in time: [`Error::Timeout`] after 2 seconds,
    /// or the error of the connection that the request was sent on. The connection is closed then,
    /// and the next query opens another one.
    ///
    /// # Cancel safety
    ///
    /// The query is stopped all the same when the future is dropped.
    pub async fn cancel(&mut self) -> Result<()> {
        self.chunk = None;
        self.consumer.end(StreamState::Cancelled);
        self.consumer.channel.settled().await
    }

    /// Returns where the stream stands.
    pub fn state(&self) -> StreamState {
        self.stats().state
    }

    /// Returns what the stream has done and holds at the moment.
    pub fn stats(&self) -> StreamStats {
        let Consumer { channel, ended, .. } = &self.consumer;
        channel.stats(&self.consumed, *ended, self.chunk_size)
    }

    /// Whether the end, or the error that is the end, has been read.
    pub(crate) fn has_ended(&self) -> bool {
        self.consumer.ended.is_some()
    }

    /// The next row of the present chunk that no predicate rejects.
    fn next_buffered(&mut self) -> Option<Result<T>> {
        let chunk = self.chunk.as_mut()?;
        while let Some(row) = chunk.next_row(self.consumed.rows + 1) {
            self.consumed.rows += 1;
            self.consumed.bytes += row.value_bytes();
            let decoded = match is_wanted(&row, &self.predicates.on_documents) {
                Ok(true) => T::from_row(&row),
                Ok(false) => {
                    self.consumed.filtered += 1;
                    continue;
                }
                Err(e) => Err(e),
            };
            let rejects = |row: &T| self.predicates.on_rows.iter().any(|accepts| !accepts(row));
            if decoded.as_ref().is_ok_and(rejects) {
                self.consumed.filtered += 1;
                continue;
            }
            match &decoded {
                Ok(_) => self.consumed.yielded += 1,
                Err(_) => self.consumed.failed += 1,
            }
            return Some(decoded);
        }
        None
    }
}

/// Asks the predicates. What they cannot be asked about must not pass: it is an error, even where
/// the type asked for would take it.
fn is_wanted(row: &Row<'_>, predicates: &[Predicate<Value>]) -> Result<bool> {
    if predicates.is_empty() {
        return Ok(true);
    }
    let document = Value::from_row(row)?;
    Ok(predicates.iter().all(|p| p(&document)))
}

impl<T: FromJsonRow> Stream for QueryStream<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        loop {
            if let Some(row) = self.next_buffered() {
                return Poll::Ready(Some(row));
            }
            self.chunk = None;
            if self.consumer.ended.is_some() {
                return Poll::Ready(None);
            }
            // Once a chunk: a reader that is always ready must let other tasks run.
            let coop = ready!(coop::poll_proceed(cx));
            let next = ready!(self.consumer.channel.poll_chunk(cx));
            coop.made_progress();
            match next {
                Some(Ok(chunk)) => self.chunk = Some(chunk),
                Some(Err(error)) => {
                    let by_token = matches!(error, Error::Cancelled);
                    let state = if by_token { StreamState::Cancelled } else { StreamState::Failed };
                    self.consumer.end(state);
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.consumer.end(StreamState::Completed),
            }
        }
    }
}

impl<T: FromJsonRow> FusedStream for QueryStream<T> {
    fn is_terminated(&self) -> bool {
        self.consumer.ended.is_some()
    }
}

impl<T> fmt::Debug for QueryStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryStream")
            .field("ended", &self.consumer.ended.map(|(state, _)| state))
            .field("consumed", &self.consumed)
            .finish_non_exhaustive()
    }
}

/// The stream's end of the channel. Dropped before the end of the rows, it stops the query.
struct Consumer {
    channel: Arc<Channel>,
    /// Keeps other streams of the client away, up to the end of this one.
    guard: Option<StreamGuard>,
    ended: Option<(StreamState, Instant)>,
}

impl Consumer {
    /// Ends the stream; the first end counts.
    fn end(&mut self, state: StreamState) {
        if self.ended.is_none() {
            self.ended = Some((state, Instant::now()));
            self.channel.abandon();
            self.guard = None;
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.end(StreamState::Cancelled);
    }
}
