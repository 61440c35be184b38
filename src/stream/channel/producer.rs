//! A reader's side of the channel.

use std::{
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use tokio::task::yield_now;
use tracing::warn;

use super::{
    Activity, BlockedOn, Channel, ChannelState, Chunk, ChunkMemory, Delivery, Interrupt,
    MemoryPermit, Phase, ReaderState, RowsState, chunk_size::Demand, now, wake,
};
use crate::{
    connection::TARGET,
    error::{Error, Result, TimeoutPhase},
    metrics::ChunkSeen,
};

/// The handle of one reader.
#[derive(Debug, Clone)]
pub(in crate::stream_impl) struct Producer {
    channel: Arc<Channel>,
    reader: usize,
}

/// The permission of a reader to read the socket.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::stream_impl) enum ReadPermit {
    Granted,
    Paused,
    Closed,
}

/// The rows that had arrived when the stream was created.
#[derive(Debug)]
pub(in crate::stream_impl) struct FirstRows {
    pub(in crate::stream_impl) chunk: Chunk,
    /// The size of the buffer that contains the chunk.
    pub(in crate::stream_impl) memory: usize,
    pub(in crate::stream_impl) arrived_at: Instant,
}

impl Channel {
    pub(in crate::stream_impl) fn producer(self: &Arc<Self>, reader: usize) -> Producer {
        Producer { channel: Arc::clone(self), reader }
    }

    /// Enqueues the rows that arrived before the stream was created. `blocked` is how long the
    /// query waited for the server until then.
    pub(in crate::stream_impl) fn start(
        self: &Arc<Self>,
        blocked: Duration,
        first: Option<FirstRows>,
    ) {
        let mut state = self.lock();
        state.blocked_before = blocked;
        // Each has read something, which a pause that begins before its first turn must wait for.
        state.readers.iter_mut().for_each(|reader| reader.activity = Activity::Reading);
        let Some(FirstRows { chunk, memory, arrived_at }) = first else { return };
        // Nothing is held yet, so any one chunk is admitted.
        let memory = self.take_memory(state, memory);
        let delivery = Delivery { chunk, memory: ChunkMemory::Own { _permit: memory } };
        self.enqueue(self.lock(), delivery, (Duration::ZERO, blocked), || arrived_at);
    }

    /// Reserves memory that was admitted.
    fn take_memory(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, ChannelState>,
        size: usize,
    ) -> MemoryPermit {
        let crossed = state.memory.reserve(size);
        let (held, limit) = (state.memory.held(), state.memory.limit());
        // There may be room for the next reader too.
        self.room(state);
        self.observer.metrics.memory_taken(size);
        if crossed {
            self.observer.metrics.soft_limit_crossed();
            self.observer.span().in_scope(|| {
                warn!(target: TARGET, held, limit, "a stream holds more than its soft limit");
            });
        }
        MemoryPermit { size, channel: Arc::clone(self) }
    }

    /// Adds a chunk to the queue. Returns the maximum number of rows for the next one.
    fn enqueue(
        &self,
        mut state: MutexGuard<'_, ChannelState>,
        delivery: Delivery,
        (waited_for_consumer, waited_for_server): (Duration, Duration),
        arrived_at: impl FnOnce() -> Instant,
    ) -> usize {
        let volume = delivery.volume();
        let occupancy = state.memory.held() as f64 / state.memory.limit() as f64;
        let seen = ChunkSeen {
            rows: volume.rows,
            bytes: volume.bytes,
            waited_for_consumer,
            waited_for_server,
            occupancy,
        };
        let is_first = state.received.add(volume, arrived_at);
        let first_row = state.received.first_row.filter(|_| is_first);
        let next = state.chunk_size.next();
        state.queue.push_back(delivery);
        let waker = state.consumer.take();
        drop(state);
        let observer = &self.observer;
        if let Some(at) = first_row {
            observer.metrics.first_row(at.saturating_duration_since(observer.started_at));
        }
        observer.metrics.chunk(&seen);
        wake(waker);
        next
    }
}

impl Producer {
    pub(in crate::stream_impl) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Ends this reader's rows, after everything that it has enqueued. The first error ends the
    /// rows of the stream, otherwise the last reader does. The first call counts.
    pub(in crate::stream_impl) fn finish(&self, end: Result<()>) {
        let failed = end.is_err();
        let waker = {
            let mut state = self.channel.lock();
            let Some(reader) = state.readers.get_mut(self.reader) else { return };
            if reader.phase >= Phase::Finished {
                return;
            }
            reader.phase = Phase::Finished;
            // A deadline may have ended it while it waited.
            reader.activity = Activity::Idle;
            reader.set_blocked(None);
            state.memory.leave(self.reader);
            if !matches!(state.rows, RowsState::Open) {
                return;
            }
            let is_last = state.readers.iter().all(|reader| reader.phase >= Phase::Finished);
            state.rows = match end {
                Ok(()) if is_last => RowsState::Complete,
                Ok(()) => RowsState::Open,
                Err(e) => RowsState::Failed(Some(e)),
            };
            if !matches!(state.rows, RowsState::Open) {
                state.all_unblocked(now());
            }
            state.consumer.take()
        };
        if failed {
            self.channel.wake_all_readers();
        }
        self.channel.watchers.notify_waiters();
        wake(waker);
    }

    /// Records that the connection is released, or closed because of an error. The first call
    /// counts.
    pub(in crate::stream_impl) fn release(&self, result: Result<()>) {
        {
            let mut state = self.channel.lock();
            let Some(reader) = state.readers.get_mut(self.reader) else { return };
            if reader.phase == Phase::Released {
                return;
            }
            reader.phase = Phase::Released;
            if let Err(e) = result {
                state.cleanup_error.get_or_insert(e);
            }
        }
        self.channel.watchers.notify_waiters();
    }

    /// Requests to read the socket. During a pause, a reader that holds rows must enqueue them
    /// first, and request again.
    pub(in crate::stream_impl) fn permit_read(&self, holds_rows: bool) -> ReadPermit {
        let mut state = self.channel.lock();
        if state.is_over() {
            return ReadPermit::Closed;
        }
        if state.pause.is_paused() {
            if !holds_rows {
                self.stop_reading(state, Activity::Idle);
            }
            return ReadPermit::Paused;
        }
        if let Some(reader) = state.readers.get_mut(self.reader) {
            reader.activity = Activity::Reading;
        }
        ReadPermit::Granted
    }

    /// Records that the reader has stopped reading. `pause()` waits for this.
    fn stop_reading(&self, mut state: MutexGuard<'_, ChannelState>, activity: Activity) {
        let is_paused = state.pause.is_paused();
        if let Some(reader) = state.readers.get_mut(self.reader) {
            reader.activity = activity;
            if !is_paused {
                reader.set_blocked(Some(BlockedOn::Consumer));
            }
        }
        drop(state);
        if is_paused {
            self.channel.watchers.notify_waiters();
        }
    }

    /// Records that there is no socket to read, so that a pause does not wait for this reader.
    pub(in crate::stream_impl) fn stopped_reading(&self) {
        self.update(|reader, is_paused| {
            reader.activity = Activity::Idle;
            if !is_paused {
                reader.set_blocked(Some(BlockedOn::Server));
            }
        });
        self.channel.watchers.notify_waiters();
    }

    /// Records that the query was resumed on a new connection.
    pub(in crate::stream_impl) fn resumed(&self) {
        self.channel.lock().resumptions += 1;
        self.unblocked();
        self.channel.observer.metrics.resumed_elsewhere();
    }

    /// Records that the socket is empty and the reader waits for the server.
    pub(in crate::stream_impl) fn blocked_on_server(&self) {
        self.update(|reader, is_paused| {
            if !is_paused {
                reader.set_blocked(Some(BlockedOn::Server));
            }
        });
    }

    /// Returns whether the consumer has not dequeued everything yet. If so, the reader is blocked
    /// on it until [`unblocked`](Self::unblocked).
    pub(in crate::stream_impl) fn has_unread(&self) -> bool {
        let mut state = self.channel.lock();
        let has_unread = !state.queue.is_empty();
        let is_paused = state.pause.is_paused();
        if let Some(reader) = state.readers.get_mut(self.reader).filter(|_| !is_paused) {
            if has_unread {
                reader.set_blocked(Some(BlockedOn::Consumer));
            }
        }
        has_unread
    }

    pub(in crate::stream_impl) fn unblocked(&self) {
        self.update(|reader, _| reader.set_blocked(None));
    }

    fn update(&self, change: impl FnOnce(&mut ReaderState, bool)) {
        let mut state = self.channel.lock();
        let is_paused = state.pause.is_paused();
        if let Some(reader) = state.readers.get_mut(self.reader) {
            change(reader, is_paused);
        }
    }

    /// Waits for a change that may concern the reader.
    pub(in crate::stream_impl) async fn changed(&self) {
        if let Some(reader) = self.channel.wake_readers.get(self.reader) {
            reader.notified().await;
        }
    }

    /// Waits until the stream is not paused.
    pub(in crate::stream_impl) async fn readable(&self) -> Result<(), Interrupt> {
        loop {
            match self.permit_read(false) {
                ReadPermit::Granted => return Ok(()),
                ReadPermit::Closed => return Err(Interrupt::Closed),
                ReadPermit::Paused => self.changed().await,
            }
        }
    }

    /// Resolves when the remaining rows are discarded.
    pub(in crate::stream_impl) async fn closed(&self) {
        while !self.channel.lock().is_over() {
            self.changed().await;
        }
    }

    /// Waits for room in the queue, and enqueues a chunk, which `make` cuts off the read buffer.
    /// Returns the maximum number of rows for the next one.
    pub(in crate::stream_impl) async fn push(
        &self,
        make: impl FnOnce() -> (Chunk, Arc<MemoryPermit>),
    ) -> Result<usize, Interrupt> {
        let mut waited = false;
        loop {
            {
                let state = self.channel.lock();
                if state.is_over() {
                    return Err(Interrupt::Closed);
                }
                if state.queue.len() < self.channel.max_chunks {
                    return Ok(self.deliver(state, make(), waited));
                }
                waited = true;
                self.stop_reading(state, Activity::WaitingForRoom);
            }
            self.changed().await;
        }
    }

    /// Enqueues the last chunk, whether or not there is room: the error that follows it must not
    /// wait for the consumer.
    pub(in crate::stream_impl) fn push_last(
        &self,
        make: impl FnOnce() -> (Chunk, Arc<MemoryPermit>),
    ) {
        let state = self.channel.lock();
        if state.closed.is_none() {
            self.deliver(state, make(), false);
        }
    }

    fn deliver(
        &self,
        mut state: MutexGuard<'_, ChannelState>,
        (chunk, memory): (Chunk, Arc<MemoryPermit>),
        waited: bool,
    ) -> usize {
        let demand = match (waited, &state.consumer) {
            (true, _) => Demand::Full,
            (false, Some(_)) => Demand::Empty,
            (false, None) => Demand::Between,
        };
        let before = state.chunk_size.next();
        state.chunk_size.record(demand);
        let reader = state.readers.get_mut(self.reader);
        let blocked = reader.map(|reader| {
            if waited {
                reader.set_blocked(None);
            }
            reader.blocked.since_last()
        });
        let delivery = Delivery { chunk, memory: ChunkMemory::Shared(memory) };
        let next = self.channel.enqueue(state, delivery, blocked.unwrap_or_default(), now);
        if next != before {
            self.channel.observer.metrics.chunk_size_adjusted(next > before);
            self.channel.observer.metrics.chunk_size(next);
        }
        next
    }

    /// If the consumer has received nothing for this long though there is something: the error that
    /// ends the rows.
    pub(in crate::stream_impl) fn stalled(&self, limit: Duration) -> Option<Error> {
        let state = self.channel.lock();
        let since = state.readers.get(self.reader)?.blocked.since(BlockedOn::Consumer)?;
        let is_stalled = now().saturating_duration_since(since) >= limit;
        is_stalled.then_some(Error::Timeout { phase: TimeoutPhase::Consumer, after: limit })
    }

    /// Returns whether another reader waits for memory until others hold less.
    pub(in crate::stream_impl) fn is_memory_short(&self) -> bool {
        self.channel.lock().memory.is_short()
    }

    /// If the stream is to fail because its consumer lags and `size` more bytes are needed: the
    /// limit, and what is held.
    fn beyond_soft_limit(&self, size: usize) -> Option<(usize, usize)> {
        let fail_at = self.channel.fail_at?;
        let state = self.channel.lock();
        let held = state.memory.held();
        (held + size > fail_at && state.consumer_lags()).then_some((fail_at, held))
    }

    /// Waits until `size` more bytes may be held. A reader that waits must hold none: it would wait
    /// for itself.
    ///
    /// # Errors
    ///
    /// [`Error::ConsumerLagged`], if the stream is to fail instead of waiting.
    pub(in crate::stream_impl) async fn reserve(
        &self,
        size: usize,
    ) -> Result<Arc<MemoryPermit>, Interrupt> {
        let mut has_requested = false;
        let mut consumer_had_turn = false;
        loop {
            if let Some((limit, buffered)) = self.beyond_soft_limit(size) {
                if consumer_had_turn {
                    return Err(Error::ConsumerLagged { limit, buffered }.into());
                }
                // The consumer may be fast but not have run, because this task occupied the thread.
                consumer_had_turn = true;
                yield_now().await;
                continue;
            }
            let is_next = {
                let mut state = self.channel.lock();
                if state.is_over() {
                    return Err(Interrupt::Closed);
                }
                if state.memory.admit(self.reader, size) {
                    if let Some(reader) = state.readers.get_mut(self.reader) {
                        reader.set_blocked(None);
                    }
                    return Ok(Arc::new(self.channel.take_memory(state, size)));
                }
                state.chunk_size.record(Demand::Full);
                let is_next = state.memory.is_next(self.reader);
                self.stop_reading(state, Activity::WaitingForRoom);
                is_next
            };
            // Readers that hold a buffer and wait for their servers release it only if the next
            // reader in the queue needs it, so one that is not the next must not wake them.
            if is_next
                && self.channel.wake_readers.len() > 1
                && !std::mem::replace(&mut has_requested, true)
            {
                self.channel.wake_all_readers();
            }
            self.changed().await;
        }
    }
}
