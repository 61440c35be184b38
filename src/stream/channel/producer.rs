//! A reader's side of the channel.

use std::sync::{Arc, MutexGuard};

use tokio::task::yield_now;
use tracing::warn;

use super::{
    Block, Channel, Chunk, End, Interrupt, Permission, StartError, State,
    blocked_time::{On, Waits},
    chunk_size::Demand,
    now, wake,
};
use crate::{
    connection::TARGET,
    error::{Error, Result},
    metrics::ChunkSeen,
};

/// One reader's place.
#[derive(Debug, Clone)]
pub(in crate::stream) struct Seat {
    channel: Arc<Channel>,
    number: usize,
}

impl Channel {
    pub(in crate::stream) fn seat(self: &Arc<Self>, number: usize) -> Seat {
        Seat { channel: Arc::clone(self), number }
    }
}

impl Seat {
    pub(in crate::stream) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Says that the columns are right.
    pub(in crate::stream) fn start(&self) {
        self.channel.lock().started.add(self.number);
        self.channel.watchers.notify_waiters();
    }

    /// Waits until the columns are known to be right, those of every reader, or that nobody wants the rows.
    pub(in crate::stream) async fn all_started(&self) {
        loop {
            let changed = self.channel.watchers.notified();
            {
                let state = self.channel.lock();
                if state.started.len() == self.channel.readers.len() || state.is_over() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Ends this reader's rows, after everything that was handed over. The last reader's end is that of the
    /// stream, or the first error. A reader's first end counts.
    pub(in crate::stream) fn finish(&self, end: Result<(), StartError>) {
        let failed = end.is_err();
        let waker = {
            let mut state = self.channel.lock();
            if state.finished.has(self.number) {
                return;
            }
            state.finished.add(self.number);
            state.reading.remove(self.number);
            // A deadline may have ended it while it waited.
            state.waiting.remove(self.number);
            state.budget.leave(self.number);
            state.blocked(self.number, None);
            if !matches!(state.end, End::Open) {
                return;
            }
            state.end = match end {
                Ok(()) if state.finished.len() < self.channel.readers.len() => End::Open,
                Ok(()) => End::Complete,
                Err(e) => End::Failed(Some(e)),
            };
            if !matches!(state.end, End::Open) {
                state.all_unblocked(now());
            }
            state.consumer.take()
        };
        if failed {
            self.channel.wake_readers();
        }
        self.channel.watchers.notify_waiters();
        wake(waker);
    }

    /// Says how the clean-up ended. The first result counts.
    pub(in crate::stream) fn settle(&self, result: Result<()>) {
        {
            let mut state = self.channel.lock();
            if state.settled.has(self.number) {
                return;
            }
            state.settled.add(self.number);
            if let Err(e) = result {
                state.unsettled.get_or_insert(e);
            }
        }
        self.channel.watchers.notify_waiters();
    }

    /// Asks to read the socket. In a pause whoever holds rows must hand them over first, and ask again.
    pub(in crate::stream) fn permission(&self, holds_rows: bool) -> Permission {
        let mut state = self.channel.lock();
        if state.is_over() {
            return Permission::Abandoned;
        }
        if state.gate.is_paused() {
            if !holds_rows {
                self.rest(state);
            }
            return Permission::Paused;
        }
        state.reading.add(self.number);
        Permission::Granted
    }

    /// The reader reads no more for now: that is what a pause waits for.
    fn rest(&self, mut state: MutexGuard<'_, State>) {
        state.reading.remove(self.number);
        let is_awaited = state.gate.is_paused();
        if !is_awaited {
            state.blocked(self.number, Some(On::Consumer));
        }
        drop(state);
        if is_awaited {
            self.channel.watchers.notify_waiters();
        }
    }

    /// There is no socket to be read for now: a pause need not wait.
    pub(in crate::stream) fn stopped_reading(&self) {
        {
            let mut state = self.channel.lock();
            state.reading.remove(self.number);
            if !state.gate.is_paused() {
                state.blocked(self.number, Some(On::Server));
            }
        }
        self.channel.watchers.notify_waiters();
    }

    /// The query goes on on another connection.
    pub(in crate::stream) fn resumed_elsewhere(&self) {
        {
            let mut state = self.channel.lock();
            state.resumptions += 1;
            state.blocked(self.number, None);
        }
        self.channel.metrics.resumed_elsewhere();
    }

    /// The socket is empty, and the reader waits for the server.
    pub(in crate::stream) fn waiting(&self) {
        let mut state = self.channel.lock();
        if !state.gate.is_paused() {
            state.blocked(self.number, Some(On::Server));
        }
    }

    pub(in crate::stream) fn waited(&self) {
        self.channel.lock().blocked(self.number, None);
    }

    /// Waits until something has changed that the reader may care for.
    pub(in crate::stream) async fn changed(&self) {
        if let Some(reader) = self.channel.readers.get(self.number) {
            reader.notified().await;
        }
    }

    /// Resolves when nobody wants the rest.
    pub(in crate::stream) async fn abandoned(&self) {
        while !self.channel.lock().is_over() {
            self.changed().await;
        }
    }

    /// Waits for room, and hands over a chunk, which `make` cuts off the read buffer. Returns the
    /// most rows for the next one.
    pub(in crate::stream) async fn push(
        &self,
        make: impl FnOnce() -> Chunk,
    ) -> Result<usize, Interrupt> {
        let mut waited = false;
        loop {
            {
                let state = self.channel.lock();
                if state.is_over() {
                    return Err(Interrupt::Abandoned);
                }
                if state.queue.len() < self.channel.max_chunks {
                    return Ok(self.take(state, make(), waited));
                }
                let mut state = state;
                state.waiting.add(self.number);
                waited = true;
                self.rest(state);
            }
            self.changed().await;
        }
    }

    /// Whether the consumer has not taken yet all that was handed over. Then the reader waits for it, up to
    /// [`waited`](Self::waited).
    pub(in crate::stream) fn has_unread(&self) -> bool {
        let mut state = self.channel.lock();
        let has_unread = !state.queue.is_empty();
        if has_unread && !state.gate.is_paused() {
            state.blocked(self.number, Some(On::Consumer));
        }
        has_unread
    }

    /// Hands over the last chunk, whether there is room or not: an error that follows it must not
    /// wait for the consumer.
    pub(in crate::stream) fn push_last(&self, make: impl FnOnce() -> Chunk) {
        let state = self.channel.lock();
        if state.ended.is_none() {
            self.take(state, make(), false);
        }
    }

    fn take(&self, mut state: MutexGuard<'_, State>, chunk: Chunk, waited: bool) -> usize {
        if waited {
            state.blocked(self.number, None);
        }
        let demand = match (waited, &state.consumer) {
            (true, _) => Demand::Full,
            (false, Some(_)) => Demand::Empty,
            (false, None) => Demand::Between,
        };
        let before = state.chunk_size.next();
        state.chunk_size.record(demand);
        let next = state.chunk_size.next();
        let (waited_for_consumer, waited_for_server) =
            state.waits.get_mut(self.number).map(Waits::since_last).unwrap_or_default();
        let seen = ChunkSeen {
            rows: chunk.rows as u64,
            bytes: chunk.value_bytes as u64,
            waited_for_consumer,
            waited_for_server,
            occupancy: state.budget.held() as f64 / state.budget.limit() as f64,
        };
        let is_first = state.received.add(&chunk);
        state.queue.push_back(chunk);
        let waker = state.consumer.take();
        drop(state);
        if let Some(at) = is_first {
            self.channel.metrics.first_row(at.saturating_duration_since(self.channel.started_at));
        }
        self.channel.metrics.chunk(&seen);
        if next != before {
            self.channel.metrics.chunk_size_adjusted(next > before);
            self.channel.metrics.chunk_size(next);
        }
        wake(waker);
        next
    }

    /// Whether another reader waits for memory until others hold less.
    pub(in crate::stream) fn is_memory_short(&self) -> bool {
        self.channel.lock().budget.is_short()
    }

    /// If the stream is to fail because its consumer lags and `size` more bytes are needed: the
    /// limit, and what is held.
    fn beyond_soft_limit(&self, size: usize) -> Option<(usize, usize)> {
        let fail_at = self.channel.fail_at?;
        let state = self.channel.lock();
        let held = state.budget.held();
        (held + size > fail_at && state.consumer_lags()).then_some((fail_at, held))
    }

    /// Waits until `size` more bytes may be held. Whoever waits must hold none: what it held would
    /// never be given back.
    ///
    /// # Errors
    ///
    /// [`Error::ConsumerLagged`], where the stream is to fail instead of waiting.
    pub(in crate::stream) async fn reserve(&self, size: usize) -> Result<Arc<Block>, Interrupt> {
        let mut has_asked = false;
        let mut consumer_had_turn = false;
        loop {
            if let Some((limit, buffered)) = self.beyond_soft_limit(size) {
                if consumer_had_turn {
                    return Err(Error::ConsumerLagged { limit, buffered }.into());
                }
                // The consumer may be fast, and this task may have had the thread to itself.
                consumer_had_turn = true;
                yield_now().await;
                continue;
            }
            let is_next = {
                let mut state = self.channel.lock();
                if state.is_over() {
                    return Err(Interrupt::Abandoned);
                }
                if state.budget.admit(self.number, size) {
                    let crossed = state.budget.take(size);
                    let (held, limit) = (state.budget.held(), state.budget.limit());
                    let span = Arc::clone(&state.span);
                    state.blocked(self.number, None);
                    // There may be room for the next one too.
                    self.channel.wake_waiting_readers(state);
                    self.channel.metrics.memory_taken(size);
                    if crossed {
                        self.channel.metrics.soft_limit_crossed();
                        span.in_scope(|| {
                            warn!(target: TARGET, held, limit, "a stream holds more than its soft limit");
                        });
                    }
                    return Ok(Arc::new(Block { size, channel: Arc::clone(&self.channel) }));
                }
                state.waiting.add(self.number);
                state.chunk_size.record(Demand::Full);
                let is_next = state.budget.is_next(self.number);
                self.rest(state);
                is_next
            };
            // Those that hold a buffer and wait for their servers. They lend it only if the next reader needs it, so one
            // that is not the next yet would ask too early.
            if is_next && self.channel.readers.len() > 1 && !std::mem::replace(&mut has_asked, true)
            {
                self.channel.wake_readers();
            }
            self.changed().await;
        }
    }
}
