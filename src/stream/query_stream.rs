use std::{
    fmt,
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::{FusedStream, Stream};
use tokio::task::coop;

use super::{
    channel::Delivery,
    chunk::Chunk,
    consumer::Consumer,
    control::StreamControl,
    open::open,
    plan::QueryPlan,
    predicates::{Predicates, passes, read},
    row::FromJsonRow,
    row_chunk::RowChunk,
    stats::{StreamState, StreamStats},
};
use crate::{connection::SlotHandle, error::Result, metrics::Outcome};

#[cfg(doc)]
use crate::error::Error;

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
    chunk: Option<Delivery>,
    /// How many they were, until the first is timed.
    untimed: Option<usize>,
    /// The next row is only decoded: it is not timed, and there are no predicates.
    is_plain: bool,
    /// Which row of the result was the last one taken.
    row: u64,
    predicates: Predicates<T>,
    rows: PhantomData<fn() -> T>,
}

impl<T: FromJsonRow> QueryStream<T> {
    /// Runs a query up to its first rows. Dropping the future cancels it.
    pub(crate) async fn open(
        slot: &SlotHandle,
        plan: QueryPlan,
        predicates: Predicates<T>,
    ) -> Result<Self> {
        // On the heap: each caller's future would have room for it and copy it.
        let channel = Box::pin(open(slot, plan)).await?;
        Ok(Self {
            consumer: Consumer::new(channel),
            chunk: None,
            untimed: None,
            is_plain: false,
            row: 0,
            predicates,
            rows: PhantomData,
        })
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
        self.consumer.channel.pause(None).await
    }

    /// Pauses, and says why: in [`stats`](Self::stats), and in the event that `tracing` gets.
    ///
    /// In a pause that goes on, the last reason given counts. Name a kind of reason
    /// (`"maintenance"`), not the occasion: it may become a label of a metric.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`] when the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause_with_reason(&mut self, reason: &str) -> Result<()> {
        self.consumer.channel.pause(Some(reason)).await
    }

    /// Resumes after a [`pause`](Self::pause). Without one, and after the end, nothing changes.
    /// Does not wait.
    ///
    /// # Errors
    ///
    /// None: the result is always `Ok`.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it resolves at once.
    pub async fn resume(&mut self) -> Result<()> {
        self.consumer.channel.resume();
        Ok(())
    }

    /// Bounds every pause, the present one included: one that lasts longer resumes by itself.
    pub fn set_pause_timeout(&mut self, timeout: Duration) {
        self.consumer.channel.set_pause_timeout(Some(timeout));
    }

    /// Lets pauses last as long as they will, as they do at first.
    pub fn clear_pause_timeout(&mut self) {
        self.consumer.channel.set_pause_timeout(None);
    }

    /// Returns a handle that steers the stream from other tasks.
    pub fn control(&self) -> StreamControl {
        StreamControl::new(&self.consumer.channel)
    }

    /// Returns the rows that have come, many at once and not decoded: the rest of the present chunk,
    /// or the next one. They count as yielded.
    ///
    /// Rows that Rust predicates reject are not in it. One that they cannot be asked about is an error
    /// by itself, in its place.
    ///
    /// # Errors
    ///
    /// Those of the stream, as its items.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a chunk is taken out of the stream only when it is returned.
    pub async fn next_chunk(&mut self) -> Option<Result<RowChunk>> {
        poll_fn(|cx| self.poll_rows(cx, false)).await
    }

    /// Stops the query on the server; resolves when the client can run its next query.
    ///
    /// Rows that were not read are discarded, and the stream is at its end. After the end nothing
    /// is left to stop.
    ///
    /// # Errors
    ///
    /// The query may still run on the server; its connection was closed, and the next query opens
    /// another one.
    ///
    /// * [`Error::Timeout`]: it could not be stopped within `cancel_timeout`, 2 seconds.
    /// * [`Error::Protocol`]: more than `drain_limit` bytes were still to be read.
    /// * [`Error::Connection`] or another error of connecting: the cancel request could not be
    ///   sent.
    /// * [`Error::ConnectionClosed`]: the connection ended before the query did.
    /// * [`Error::InvalidState`]: the server sent no key for cancel requests.
    ///
    /// # Cancel safety
    ///
    /// The query is stopped all the same when the future is dropped.
    pub async fn cancel(&mut self) -> Result<()> {
        self.stop();
        self.consumer.channel.released().await
    }

    /// Returns where the stream stands.
    pub fn state(&self) -> StreamState {
        self.stats().state
    }

    /// Returns what the stream has done and holds at the moment.
    pub fn stats(&self) -> StreamStats {
        self.consumer.channel.stats()
    }

    /// Whether the end, or the error that is the end, has been read.
    pub(crate) fn has_ended(&self) -> bool {
        self.consumer.ended
    }

    /// Ends the stream, without waiting for what that entails.
    pub(super) fn stop(&mut self) {
        self.chunk = None;
        self.consumer.end(Outcome::Cancelled);
    }

    /// The next row of the present chunk that no predicate rejects.
    #[inline]
    fn next_buffered(&mut self) -> Option<Result<T>> {
        if !self.is_plain {
            return self.next_selected();
        }
        let row = self.chunk.as_mut()?.chunk.next_row(self.row + 1)?;
        self.row += 1;
        let consumed = &self.consumer.channel.consumed;
        consumed.bytes.add(row.value_bytes());
        let decoded = T::from_row(&row);
        match &decoded {
            Ok(_) => {
                consumed.yielded.add(1);
                self.consumer.deserialized += 1;
            }
            Err(e) => self.consumer.row_failed(e),
        }
        Some(decoded)
    }

    /// The same, where there are predicates or the row is to be timed.
    fn next_selected(&mut self) -> Option<Result<T>> {
        let chunk = &mut self.chunk.as_mut()?.chunk;
        self.is_plain = self.predicates.is_empty();
        let consumer = &mut self.consumer;
        let Predicates { on_documents, on_rows } = &self.predicates;
        while let Some(row) = chunk.next_row(self.row + 1) {
            self.row += 1;
            consumer.channel.consumed.bytes.add(row.value_bytes());
            let read = |judged: &mut dyn FnMut()| read(&row, on_documents, judged);
            // One row of a chunk stands for all: looks at the clock cost as much as a small row.
            let decoded = match self.untimed.take() {
                None => read(&mut || {}),
                Some(rows) => consumer.timed(rows, !on_documents.is_empty(), read),
            };
            let Some(decoded) = decoded else {
                consumer.channel.consumed.filtered.add(1);
                continue;
            };
            match &decoded {
                Ok(row) => {
                    consumer.deserialized += 1;
                    if !on_rows.iter().all(|accepts| accepts(row)) {
                        consumer.channel.consumed.filtered.add(1);
                        continue;
                    }
                    consumer.channel.consumed.yielded.add(1);
                }
                Err(e) => consumer.row_failed(e),
            }
            return Some(decoded);
        }
        None
    }

    /// Rows as they came, of which no predicate rejects any; `as_text`: and each is UTF-8.
    pub(super) fn poll_rows(
        &mut self,
        cx: &mut Context<'_>,
        as_text: bool,
    ) -> Poll<Option<Result<RowChunk>>> {
        loop {
            let rows = match as_text || !self.predicates.is_empty() {
                true => self.select_buffered(as_text),
                false => self.take_buffered().map(Ok),
            };
            if rows.is_some() {
                return Poll::Ready(rows);
            }
            match ready!(self.poll_chunk(cx)) {
                Some(Ok(())) => {}
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => return Poll::Ready(None),
            }
        }
    }

    /// What is left of the present chunk.
    fn take_buffered(&mut self) -> Option<RowChunk> {
        let Delivery { chunk, .. } = self.chunk.take()?;
        let frames = chunk.frames.slice(chunk.at..);
        let mut left = Chunk { at: 0, frames: frames.clone(), ..chunk };
        let (first, mut bytes) = (self.row + 1, 0);
        while let Some(row) = left.next_row(0) {
            self.row += 1;
            bytes += row.value_bytes();
        }
        let len = (self.row + 1 - first) as usize;
        let consumed = &self.consumer.channel.consumed;
        consumed.bytes.add(bytes);
        consumed.yielded.add(len as u64);
        (len > 0).then(|| RowChunk::all(frames, first, len))
    }

    /// Those rows of the present chunk that pass, up to one that fails.
    fn select_buffered(&mut self, as_text: bool) -> Option<Result<RowChunk>> {
        let chunk = &mut self.chunk.as_mut()?.chunk;
        let consumed = &self.consumer.channel.consumed;
        let mut selected = Vec::new();
        loop {
            let at = chunk.at;
            let Some(row) = chunk.next_row(self.row + 1) else { break };
            let (number, bytes) = (self.row + 1, row.value_bytes());
            let passes = passes(&row, &self.predicates, as_text);
            if passes.is_err() && !selected.is_empty() {
                // First those before it.
                chunk.at = at;
                break;
            }
            self.row = number;
            consumed.bytes.add(bytes);
            match passes {
                Ok(true) => {
                    consumed.yielded.add(1);
                    selected.push((at, number));
                }
                Ok(false) => consumed.filtered.add(1),
                Err(e) => {
                    self.consumer.row_failed(&e);
                    return Some(Err(e));
                }
            }
        }
        (!selected.is_empty()).then(|| Ok(RowChunk::some(chunk.frames.clone(), selected)))
    }

    /// Makes the next chunk the present one.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<()>>> {
        self.chunk = None;
        self.consumer.chunk_done();
        if self.consumer.ended {
            return Poll::Ready(None);
        }
        // Once a chunk: a reader that is always ready must let other tasks run.
        let coop = ready!(coop::poll_proceed(cx));
        let next = ready!(self.consumer.channel.poll_chunk(cx));
        coop.made_progress();
        Poll::Ready(match next {
            Some(Ok(delivery)) => {
                self.consumer.chunk_received();
                self.untimed = Some(delivery.chunk.rows);
                self.is_plain = false;
                self.chunk = Some(delivery);
                Some(Ok(()))
            }
            Some(Err(error)) => {
                self.consumer.fail(&error);
                Some(Err(error))
            }
            None => {
                self.consumer.end(Outcome::Success);
                None
            }
        })
    }
}

impl<T: FromJsonRow> Stream for QueryStream<T> {
    type Item = Result<T>;

    #[inline]
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        loop {
            let row = self.next_buffered();
            if row.is_some() {
                return Poll::Ready(row);
            }
            match ready!(self.poll_chunk(cx)) {
                Some(Ok(())) => {}
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl<T: FromJsonRow> FusedStream for QueryStream<T> {
    fn is_terminated(&self) -> bool {
        self.consumer.ended
    }
}

impl<T> fmt::Debug for QueryStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.consumer.channel.stats();
        f.debug_struct("QueryStream").field("stats", &stats).finish_non_exhaustive()
    }
}
