use std::{
    fmt,
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
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
    open::{Claim, Outcome, open},
    pipeline::{Pipeline, continue_fetches, fetch},
    plan::{Execution, QueryPlan},
    predicates::{Encoding, Predicates, decode_selected, passes},
    row::FromJsonRow,
    row_chunk::RowChunk,
    stats::{StreamState, StreamStats},
};
use crate::{
    connection::SlotHandle,
    error::{Error, Result},
    metrics,
    sql::Field,
};

/// The rows of one query, as a [`Stream`] of decoded values.
///
/// Created by [`QueryBuilder::execute`](crate::QueryBuilder::execute). Rows are yielded in the
/// order in which the server sends them:
///
/// * A row that cannot be decoded is an `Err` item for which [`is_row_error`](Error::is_row_error)
///   returns true, and the stream continues.
/// * Any other error is the last item, after all rows received before it:
///   [`Server`](Error::Server), [`ConnectionClosed`](Error::ConnectionClosed), [`Io`](Error::Io),
///   [`Timeout`](Error::Timeout), [`Cancelled`](Error::Cancelled), [`Protocol`](Error::Protocol),
///   [`MemoryLimitExceeded`](Error::MemoryLimitExceeded) or
///   [`ConsumerLagged`](Error::ConsumerLagged). With
///   [`resume_by`](crate::QueryBuilder::resume_by) also [`Config`](Error::Config) and the errors of
///   connecting.
/// * A stream that ends without such an error has yielded every row.
///
/// # Memory
///
/// A background task reads ahead, up to [`max_memory`](crate::QueryBuilder::max_memory) (default: 1
/// MiB, or one larger row). It then stops reading, and TCP backpressure holds the server back.
///
/// # Drop
///
/// Dropping the stream before its end cancels the query. In the background, a cancel request is
/// sent to the server on a separate connection, and the in-flight data is drained. Both together
/// take at most 2 seconds and 16 MiB by default ([`cancel_timeout`], [`drain_limit`]). If that is
/// not enough, the connection is closed.
///
/// Dropping never blocks. The client can be used for the next query immediately; that query waits
/// for the cleanup to finish.
///
/// [`cancel_timeout`]: crate::ConnectionConfigBuilder::cancel_timeout
/// [`drain_limit`]: crate::ConnectionConfigBuilder::drain_limit
///
/// # Cancel safety
///
/// `next()` is cancel-safe: a row is removed from the stream only when it is returned.
///
/// # Example
///
/// ```no_run
/// # use fraiseql_wire::{FraiseClient, RawJson, Result};
/// # async fn run(client: &FraiseClient) -> Result<()> {
/// use futures_util::StreamExt;
///
/// let mut orders = client.query::<RawJson>("v_order").execute().await?;
/// while let Some(order) = orders.next().await {
///     println!("{}", order?);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping a stream cancels its query"]
pub struct QueryStream<T> {
    consumer: Consumer,
    /// The chunk whose rows are being returned.
    chunk: Option<Delivery>,
    /// The number of rows in the chunk, until one of them has been timed.
    sample_pending: Option<usize>,
    /// Whether the next row only has to be decoded: it is not timed, and there are no predicates.
    fast_path: bool,
    /// The number of the last row that was returned or skipped.
    row: u64,
    predicates: Predicates<T>,
    /// The key of `resume_by`.
    pub(super) key: Option<Box<Field>>,
    rows: PhantomData<fn() -> T>,
}

impl<T: FromJsonRow> QueryStream<T> {
    /// Runs a query until its first rows. Dropping the future cancels it.
    pub(crate) async fn open(
        pipeline: &Arc<Pipeline>,
        slot: SlotHandle,
        plan: QueryPlan,
        predicates: Predicates<T>,
    ) -> Result<Self> {
        // Boxed: otherwise the future of each caller would contain it and copy it.
        let continue_fetches = |slot: &SlotHandle| continue_fetches(pipeline, slot);
        let query = slot.begin_query();
        let key = match &plan.execution {
            Execution::Resumable(key) => Some(Box::new(key.clone())),
            Execution::Single | Execution::Parallel { .. } => None,
        };
        let opened = Box::pin(open(slot, plan, query, Claim::Exclusive(&continue_fetches))).await?;
        let Outcome::Open(channel) = opened else { return Err(interrupted()) };
        Ok(Self { key, ..Self::new(Consumer::new(channel), predicates) })
    }

    /// Runs a query up to its first rows, and shares the connection with other fetches of the
    /// client. Dropping the future cancels it.
    pub(crate) async fn fetch(
        pipeline: &Arc<Pipeline>,
        slot: SlotHandle,
        plan: QueryPlan,
        predicates: Predicates<T>,
    ) -> Result<Self> {
        let consumer = fetch(pipeline, slot, plan).await?;
        Ok(Self::new(consumer, predicates))
    }

    fn new(consumer: Consumer, predicates: Predicates<T>) -> Self {
        Self {
            consumer,
            chunk: None,
            sample_pending: None,
            fast_path: false,
            row: 0,
            predicates,
            key: None,
            rows: PhantomData,
        }
    }

    /// Stops reading from the server. Resolves when reading has stopped.
    ///
    /// Buffered rows can still be read. After that the stream is pending, even at the end of the
    /// result, until [`resume`](Self::resume) is called. Meanwhile TCP backpressure blocks the
    /// server, which keeps its snapshot. Pausing a paused stream has no effect.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`]: the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause(&mut self) -> Result<()> {
        self.consumer.channel.pause(None).await
    }

    /// Pauses the stream with a reason, which [`stats`](Self::stats) and `tracing` events report.
    ///
    /// Pausing a paused stream replaces the reason. Use a kind of reason (`"maintenance"`), not a
    /// unique text: it becomes a label of a [metric](crate::metrics).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`]: the stream has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the stream paused.
    pub async fn pause_with_reason(&mut self, reason: &str) -> Result<()> {
        self.consumer.channel.pause(Some(reason)).await
    }

    /// Resumes a paused stream. Otherwise has no effect.
    ///
    /// Resolves immediately.
    ///
    /// # Errors
    ///
    /// None. The result is always `Ok`.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: it resolves immediately.
    pub async fn resume(&mut self) -> Result<()> {
        self.consumer.channel.resume();
        Ok(())
    }

    /// Sets the maximum duration of a pause, including the current one. Default: none.
    ///
    /// When it expires, the stream resumes automatically.
    pub fn set_pause_timeout(&mut self, timeout: Duration) {
        self.consumer.channel.set_pause_timeout(Some(timeout));
    }

    /// Removes the limit on the duration of pauses.
    pub fn clear_pause_timeout(&mut self) {
        self.consumer.channel.set_pause_timeout(None);
    }

    /// Returns a handle that controls the stream from other tasks.
    pub fn control(&self) -> StreamControl {
        StreamControl::new(&self.consumer.channel)
    }

    /// Returns the next chunk of received rows, without decoding them.
    ///
    /// This is the rest of the current chunk, or the next one. `None` means the end of the stream.
    /// The rows count as yielded.
    ///
    /// Rows rejected by a Rust predicate are left out. A row that cannot be decoded for a predicate
    /// is returned as an error, in order.
    ///
    /// # Errors
    ///
    /// Errors of the stream, as its items.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a chunk is removed from the stream only when it is returned.
    pub async fn next_chunk(&mut self) -> Option<Result<RowChunk>> {
        poll_fn(|cx| self.poll_rows(cx, Encoding::Unchecked)).await
    }

    /// Cancels the query on the server. Resolves when the client is ready for its next query.
    ///
    /// Unread rows are discarded, and the stream ends. Has no effect after the end of the stream.
    ///
    /// # Errors
    ///
    /// After an error the query may still be running on the server. Its connection is closed, and
    /// the next query opens a new one.
    ///
    /// * [`Error::Timeout`]: the query could not be cancelled within `cancel_timeout` (default: 2
    ///   seconds).
    /// * [`Error::Protocol`]: more than `drain_limit` bytes would have to be drained (default: 16
    ///   MiB).
    /// * [`Error::Connection`] or another error of connecting: the cancel request could not be
    ///   sent.
    /// * [`Error::ConnectionClosed`]: the connection was lost before the query ended.
    /// * [`Error::InvalidState`]: the server sent no key for cancel requests.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the cancellation.
    pub async fn cancel(&mut self) -> Result<()> {
        self.stop(metrics::Outcome::Cancelled);
        self.consumer.channel.released().await
    }

    /// Returns the state of the stream.
    pub fn state(&self) -> StreamState {
        self.stats().state
    }

    /// Returns the statistics of the stream.
    pub fn stats(&self) -> StreamStats {
        self.consumer.channel.stats()
    }

    /// Returns whether the consumer has seen the end of the stream or the error that ends it.
    pub(crate) fn has_ended(&self) -> bool {
        self.consumer.ended
    }

    /// Returns whether the consumer has seen the end of a complete result.
    pub(super) fn has_succeeded(&self) -> bool {
        self.consumer.succeeded
    }

    /// Ends the stream successfully: its caller needs no more rows. Otherwise same as
    /// [`cancel`](Self::cancel).
    pub(crate) async fn complete(&mut self) -> Result<()> {
        self.stop(metrics::Outcome::Success);
        self.consumer.channel.released().await
    }

    /// Ends the stream with a row error that its caller does not continue after. The query is
    /// cancelled in the background. Has no effect after the end of the stream.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.chunk = None;
        self.consumer.fail(error);
    }

    fn stop(&mut self, how: metrics::Outcome) {
        self.chunk = None;
        self.consumer.end(how);
    }

    /// Returns the next row of the current chunk that no predicate rejects.
    #[inline]
    fn next_buffered(&mut self) -> Option<Result<T>> {
        if !self.fast_path {
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

    /// Same as [`next_buffered`](Self::next_buffered), if there are predicates or the row must be
    /// timed.
    fn next_selected(&mut self) -> Option<Result<T>> {
        let chunk = &mut self.chunk.as_mut()?.chunk;
        self.fast_path = self.predicates.is_empty();
        let consumer = &mut self.consumer;
        let Predicates { on_documents, on_rows } = &self.predicates;
        while let Some(row) = chunk.next_row(self.row + 1) {
            self.row += 1;
            consumer.channel.consumed.bytes.add(row.value_bytes());
            let decode = |judged: &mut dyn FnMut()| decode_selected(&row, on_documents, judged);
            // One row is timed per chunk: two clock reads cost a tenth of a small row.
            let decoded = match self.sample_pending.take() {
                None => decode(&mut || {}),
                Some(rows) => consumer.timed(rows, decode),
            };
            let Some(decoded) = decoded else {
                consumer.channel.consumed.filtered.add(1);
                continue;
            };
            match &decoded {
                Ok(row) => {
                    consumer.deserialized += 1;
                    if !on_rows.iter().all(|predicate| predicate.accepts(row)) {
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

    /// Returns the next rows that no predicate rejects, undecoded.
    pub(super) fn poll_rows(
        &mut self,
        cx: &mut Context<'_>,
        encoding: Encoding,
    ) -> Poll<Option<Result<RowChunk>>> {
        loop {
            let rows = if encoding == Encoding::Utf8 || !self.predicates.is_empty() {
                self.select_buffered(encoding)
            } else {
                self.take_buffered().map(Ok)
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

    /// Returns the rest of the current chunk.
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

    /// Returns the rows of the current chunk that no predicate rejects, up to a row that fails.
    fn select_buffered(&mut self, encoding: Encoding) -> Option<Result<RowChunk>> {
        let chunk = &mut self.chunk.as_mut()?.chunk;
        let consumed = &self.consumer.channel.consumed;
        let mut selected = Vec::new();
        loop {
            let at = chunk.at;
            let Some(row) = chunk.next_row(self.row + 1) else { break };
            let (number, bytes) = (self.row + 1, row.value_bytes());
            let passes = passes(&row, &self.predicates, encoding);
            if passes.is_err() && !selected.is_empty() {
                // Return the rows before it first.
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

    /// Receives the next chunk and makes it the current one.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<()>>> {
        self.chunk = None;
        self.consumer.chunk_done();
        if self.consumer.ended {
            return Poll::Ready(None);
        }
        // Once per chunk: a consumer that is always ready must let other tasks run.
        let coop = ready!(coop::poll_proceed(cx));
        let next = ready!(self.consumer.channel.poll_chunk(cx));
        coop.made_progress();
        Poll::Ready(match next {
            Some(Ok(delivery)) => {
                self.consumer.chunk_received();
                self.sample_pending = Some(delivery.chunk.rows);
                self.fast_path = false;
                self.chunk = Some(delivery);
                Some(Ok(()))
            }
            Some(Err(error)) => {
                self.consumer.fail(&error);
                Some(Err(error))
            }
            None => {
                self.consumer.end(metrics::Outcome::Success);
                None
            }
        })
    }
}

/// Only fetches are interrupted.
fn interrupted() -> Error {
    Error::InvalidState { message: "the query of a stream was interrupted" }
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
