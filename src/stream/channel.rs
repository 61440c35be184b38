//! What the reader task and the stream share: a bounded queue of chunks, the memory they hold, the
//! pause, and how it all ended.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, futures::Notified};
use tracing::{Span, debug, warn};

use super::{
    budget::Budget,
    chunk::Chunk,
    chunk_size::{ChunkSize, Demand},
    gate::Gate,
    settings::StreamSettings,
    stats::{StreamState, StreamStats},
    waits::{On, Waits},
};
use crate::{
    connection::{StreamGuard, TARGET},
    error::{Error, Result},
    metrics::{ChunkSeen, QueryMetrics},
};

#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<State>,
    /// Written by the stream alone, once a row, and so without the lock.
    pub(super) consumed: Consumed,
    /// Wakes the reader task: room, pause, resume, abandonment.
    reader: Notify,
    /// Wakes those who wait for the start, the pause, its end, or the clean-up.
    watchers: Notify,
    pub(super) metrics: Arc<QueryMetrics>,
    started_at: Instant,
    /// The most chunks that wait to be read.
    max_chunks: usize,
    /// Bytes at which the stream fails instead of waiting for its consumer.
    fail_at: Option<usize>,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Chunk>,
    budget: Budget,
    gate: Gate,
    chunk_size: ChunkSize,
    waits: Waits,
    /// Those that were over when the last chunk was handed over: for the consumer, for the server.
    earlier_waits: (Duration, Duration),
    /// The columns are right. An error that follows is an item of the stream, behind its rows, and
    /// no failure to start.
    started: bool,
    end: End,
    /// The reader reads the socket, or has read something that it has not handed over.
    reading: bool,
    /// The reader waits for room in the queue or the budget.
    reader_waits: bool,
    /// How the stream ended for who has it: nobody wants the rest of the rows.
    ended: Option<Ended>,
    /// Keeps other streams of the client away, up to the end of this one.
    guard: Option<StreamGuard>,
    /// That of the query, up to the end of the stream: what happens behind it is not in it.
    span: Arc<Span>,
    consumer: Option<Waker>,
    /// How the clean-up behind the query ended.
    settled: Option<Result<()>>,
    received: Received,
    /// What of it the stream has taken out of the queue.
    handed: Volume,
}

/// Whether and how the rows have ended.
#[derive(Debug)]
enum End {
    Open,
    Complete,
    /// The error, until somebody takes it.
    Failed(Option<StartError>),
}

/// Why a query did not start, or ended early.
#[derive(Debug)]
pub(super) struct StartError {
    pub(super) error: Error,
    /// The connection had been idle and ended before the server answered anything: the query can
    /// be run again on another one as if nothing had happened.
    pub(super) stale: bool,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    state: StreamState,
    at: Instant,
    /// By the stream itself, which then has no rows in its hands.
    by_stream: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Volume {
    rows: u64,
    bytes: u64,
}

/// Counts of what was handed over.
#[derive(Debug, Default, Clone, Copy)]
struct Received {
    volume: Volume,
    chunks: u64,
    first_row: Option<Instant>,
}

/// Counts of what was taken out of chunks. One writer, so they need not be added to atomically.
#[derive(Debug, Default)]
pub(super) struct Consumed {
    pub(super) yielded: Count,
    pub(super) filtered: Count,
    pub(super) failed: Count,
    /// Of JSON, in all of these.
    pub(super) bytes: Count,
}

impl Consumed {
    fn volume(&self) -> Volume {
        let rows = self.yielded.get() + self.filtered.get() + self.failed.get();
        Volume { rows, bytes: self.bytes.get() }
    }
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.get() + n, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Whether the reader may read the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Granted,
    Paused,
    Abandoned,
}

/// Why the reader does not read on.
#[derive(Debug)]
pub(super) enum Interrupt {
    Failed(Error),
    /// Nobody wants the rest.
    Abandoned,
}

/// What there is to watch of pauses.
#[derive(Debug)]
pub(super) enum PauseWatch {
    Running,
    Paused { since: Instant, timeout: Option<Duration> },
    Ended,
}

/// Memory that chunks and the reader share. It counts until the last of them lets go of it.
#[derive(Debug)]
pub(super) struct Block {
    size: usize,
    channel: Arc<Channel>,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.channel.lock();
        state.budget.give(self.size);
        self.channel.wake_waiting_reader(state);
        self.channel.metrics.memory_given(self.size);
    }
}

impl Channel {
    /// `called` is when the query was executed. Tests have no guard.
    pub(super) fn new(
        settings: &StreamSettings,
        guard: Option<StreamGuard>,
        metrics: Arc<QueryMetrics>,
        called: Instant,
        span: Span,
    ) -> Self {
        let mut gate = Gate::default();
        gate.set_timeout(settings.pause_timeout);
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                budget: Budget::new(settings.memory(), settings.warn_at()),
                gate,
                chunk_size: settings.chunk_size(),
                waits: Waits::default(),
                earlier_waits: Default::default(),
                started: false,
                end: End::Open,
                reading: false,
                reader_waits: false,
                ended: None,
                guard,
                span: Arc::new(span),
                consumer: None,
                settled: None,
                received: Received::default(),
                handed: Volume::default(),
            }),
            consumed: Consumed::default(),
            reader: Notify::new(),
            watchers: Notify::new(),
            metrics,
            started_at: called,
            max_chunks: settings.max_chunks(),
            fail_at: settings.fail_at(),
        }
    }

    /// No user's code runs under the lock, a recorder of metrics included, and no chunk is dropped under it: a chunk's memory is
    /// given back under the lock too.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_waiting_reader(&self, mut state: MutexGuard<'_, State>) {
        if mem::take(&mut state.reader_waits) {
            // It has not run yet, but a pause that comes now must wait for what it will do.
            state.reading = true;
            drop(state);
            self.reader.notify_one();
        }
    }
}

/// The reader's side.
impl Channel {
    /// Says that the columns are right.
    pub(super) fn start(&self) {
        self.lock().started = true;
        self.watchers.notify_waiters();
    }

    /// Ends the rows, after everything that was handed over. The first end counts.
    pub(super) fn finish(&self, end: Result<(), StartError>) {
        let waker = {
            let mut state = self.lock();
            if !matches!(state.end, End::Open) {
                return;
            }
            state.end = match end {
                Ok(()) => End::Complete,
                Err(e) => End::Failed(Some(e)),
            };
            state.reading = false;
            // A deadline may have ended it while it waited.
            state.reader_waits = false;
            state.waits.end(now());
            state.consumer.take()
        };
        self.watchers.notify_waiters();
        wake(waker);
    }

    /// Says how the clean-up ended. The first result counts.
    pub(super) fn settle(&self, result: Result<()>) {
        self.lock().settled.get_or_insert(result);
        self.watchers.notify_waiters();
    }

    /// Asks to read the socket. In a pause whoever holds rows must hand them over first, and ask again.
    pub(super) fn permission(&self, holds_rows: bool) -> Permission {
        let mut state = self.lock();
        if state.ended.is_some() {
            return Permission::Abandoned;
        }
        if state.gate.is_paused() {
            if !holds_rows {
                self.rest(state);
            }
            return Permission::Paused;
        }
        state.reading = true;
        Permission::Granted
    }

    /// The reader reads no more for now: that is what a pause waits for.
    fn rest(&self, mut state: MutexGuard<'_, State>) {
        state.reading = false;
        let is_awaited = state.gate.is_paused();
        if !is_awaited {
            state.waits.begin(On::Consumer, now());
        }
        drop(state);
        if is_awaited {
            self.watchers.notify_waiters();
        }
    }

    /// The socket is empty, and the reader waits for the server.
    pub(super) fn waiting(&self) {
        let mut state = self.lock();
        if !state.gate.is_paused() {
            state.waits.begin(On::Server, now());
        }
    }

    pub(super) fn waited(&self) {
        self.lock().waits.end(now());
    }

    /// Waits until something has changed that the reader may care for.
    pub(super) async fn changed(&self) {
        self.reader.notified().await;
    }

    /// Resolves when nobody wants the rest.
    pub(super) async fn abandoned(&self) {
        while self.lock().ended.is_none() {
            self.reader.notified().await;
        }
    }

    /// Waits for room, and hands over a chunk, which `make` cuts off the read buffer. Returns the
    /// most rows for the next one.
    pub(super) async fn push(&self, make: impl FnOnce() -> Chunk) -> Result<usize, Interrupt> {
        let mut waited = false;
        loop {
            {
                let state = self.lock();
                if state.ended.is_some() {
                    return Err(Interrupt::Abandoned);
                }
                if state.queue.len() < self.max_chunks {
                    return Ok(self.take(state, make(), waited));
                }
                let mut state = state;
                state.reader_waits = true;
                waited = true;
                self.rest(state);
            }
            self.reader.notified().await;
        }
    }

    /// Whether the consumer has not taken yet all that was handed over. Then the reader waits for it, up to
    /// [`waited`](Self::waited).
    pub(super) fn has_unread(&self) -> bool {
        let mut state = self.lock();
        let has_unread = !state.queue.is_empty();
        if has_unread && !state.gate.is_paused() {
            state.waits.begin(On::Consumer, now());
        }
        has_unread
    }

    /// Hands over the last chunk, whether there is room or not: an error that follows it must not
    /// wait for the consumer.
    pub(super) fn push_last(&self, make: impl FnOnce() -> Chunk) {
        let state = self.lock();
        if state.ended.is_none() {
            self.take(state, make(), false);
        }
    }

    fn take(&self, mut state: MutexGuard<'_, State>, chunk: Chunk, waited: bool) -> usize {
        if waited {
            state.waits.end(now());
        }
        let demand = match (waited, &state.consumer) {
            (true, _) => Demand::Full,
            (false, Some(_)) => Demand::Empty,
            (false, None) => Demand::Between,
        };
        let before = state.chunk_size.next();
        state.chunk_size.record(demand);
        let next = state.chunk_size.next();
        let waits = state.waits.over();
        let earlier = mem::replace(&mut state.earlier_waits, waits);
        let seen = ChunkSeen {
            rows: chunk.rows as u64,
            bytes: chunk.value_bytes as u64,
            waited_for_consumer: waits.0.saturating_sub(earlier.0),
            waited_for_server: waits.1.saturating_sub(earlier.1),
            occupancy: state.budget.held() as f64 / state.budget.limit() as f64,
        };
        let is_first = state.received.add(&chunk);
        state.queue.push_back(chunk);
        let waker = state.consumer.take();
        drop(state);
        if let Some(at) = is_first {
            self.metrics.first_row(at.saturating_duration_since(self.started_at));
        }
        self.metrics.chunk(&seen);
        if next != before {
            self.metrics.chunk_size_adjusted(next > before);
            self.metrics.chunk_size(next);
        }
        wake(waker);
        next
    }

    /// Waits until `size` more bytes may be held. Whoever waits must hold none: what it held would
    /// never be given back.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryLimitExceeded`], where the stream is to fail instead of waiting.
    pub(super) async fn reserve(self: &Arc<Self>, size: usize) -> Result<Arc<Block>, Interrupt> {
        loop {
            {
                let mut state = self.lock();
                if state.ended.is_some() {
                    return Err(Interrupt::Abandoned);
                }
                let held = state.budget.held();
                if let Some(limit) = self.fail_at.filter(|fail| held > 0 && held + size > *fail) {
                    let required = held + size;
                    return Err(Error::MemoryLimitExceeded { limit, required }.into());
                }
                if state.budget.allows(size) {
                    let crossed = state.budget.take(size);
                    let (held, limit) = (state.budget.held(), state.budget.limit());
                    let span = Arc::clone(&state.span);
                    state.waits.end(now());
                    drop(state);
                    self.metrics.memory_taken(size);
                    if crossed {
                        self.metrics.soft_limit_crossed();
                        span.in_scope(|| {
                            warn!(target: TARGET, held, limit, "a stream holds more than its soft limit");
                        });
                    }
                    return Ok(Arc::new(Block { size, channel: Arc::clone(self) }));
                }
                state.reader_waits = true;
                state.chunk_size.record(Demand::Full);
                self.rest(state);
            }
            self.reader.notified().await;
        }
    }
}

/// The stream's side.
impl Channel {
    /// Waits until the columns are known to be right.
    pub(super) async fn started(&self) -> Result<(), StartError> {
        loop {
            let changed = self.watchers.notified();
            {
                let mut state = self.lock();
                if state.started {
                    return Ok(());
                }
                if let End::Failed(error) = &mut state.end {
                    return error.take().map_or(Ok(()), Err);
                }
            }
            changed.await;
        }
    }

    /// The next chunk, the error that ends the rows, or their end.
    pub(super) fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk>>> {
        let mut state = self.lock();
        if state.ended.is_some() {
            return Poll::Ready(Some(Err(Error::Cancelled)));
        }
        if let Some(chunk) = state.queue.pop_front() {
            state.handed.add(&chunk);
            self.wake_waiting_reader(state);
            return Poll::Ready(Some(Ok(chunk)));
        }
        if !state.gate.is_paused() {
            match &mut state.end {
                End::Open => {}
                End::Complete => return Poll::Ready(None),
                End::Failed(error) => return Poll::Ready(error.take().map(|e| Err(e.error))),
            }
        }
        match &mut state.consumer {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            other => *other = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Pauses, and waits until the reader does not read the socket any more.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`]: the stream has ended.
    pub(super) async fn pause(&self, reason: Option<&str>) -> Result<()> {
        {
            let mut state = self.lock();
            if state.ended.is_some() {
                return Err(Error::InvalidState { message: "pause() on a stream that has ended" });
            }
            let now = now();
            if state.gate.pause(reason.map(Into::into), now) {
                state.waits.end(now);
                let span = Arc::clone(&state.span);
                drop(state);
                span.in_scope(|| debug!(target: TARGET, reason, "paused a stream"));
                self.metrics.paused(reason);
                self.watchers.notify_waiters();
            }
        }
        loop {
            let stopped = self.watchers.notified();
            {
                let state = self.lock();
                // Resumed meanwhile, or ended: then there is nothing to wait for.
                if !state.reading || !state.gate.is_paused() || state.ended.is_some() {
                    return Ok(());
                }
            }
            self.reader.notify_one();
            stopped.await;
        }
    }

    /// # Errors
    ///
    /// [`Error::InvalidState`]: the stream has ended.
    pub(super) fn resume(&self) -> Result<()> {
        let state = self.lock();
        if state.ended.is_some() {
            return Err(Error::InvalidState { message: "resume() on a stream that has ended" });
        }
        self.go_on(state, "resume");
        Ok(())
    }

    /// Resumes because the pause that began at `since` has lasted too long.
    pub(super) fn resume_late(&self, since: Instant) {
        let state = self.lock();
        if state.gate.paused_since() == Some(since) {
            self.go_on(state, "timeout");
        }
    }

    fn go_on(&self, mut state: MutexGuard<'_, State>, cause: &'static str) {
        let Some(lasted) = state.gate.resume(now()) else { return };
        // The end may have been waiting behind the pause.
        let waker = state.consumer.take();
        let span = Arc::clone(&state.span);
        drop(state);
        span.in_scope(|| debug!(target: TARGET, cause, ?lasted, "resumed a stream"));
        self.metrics.resumed(Some(cause), lasted);
        self.reader.notify_one();
        self.watchers.notify_waiters();
        wake(waker);
    }

    pub(super) fn set_pause_timeout(&self, timeout: Option<Duration>) {
        self.lock().gate.set_timeout(timeout);
        self.watchers.notify_waiters();
    }

    /// Ends the stream: the query is stopped if it still runs, and the connection cleaned up. The
    /// first end counts, and whether this is it is returned. `by_stream`: it holds no row any more.
    pub(super) fn end(&self, how: StreamState, by_stream: bool) -> bool {
        let (queue, guard, span, waker, pause, is_first) = {
            let mut state = self.lock();
            let state = &mut *state;
            let mut pause = None;
            let is_first = state.ended.is_none();
            match &mut state.ended {
                Some(ended) => ended.by_stream |= by_stream,
                None => {
                    let at = now();
                    state.ended = Some(Ended { state: how, at, by_stream });
                    pause = state.gate.resume(at);
                    state.waits.end(at);
                }
            }
            (
                mem::take(&mut state.queue),
                state.guard.take(),
                // Whoever else ends it, the query is over for its reader only when that sees it.
                by_stream.then(|| mem::replace(&mut state.span, Arc::new(Span::none()))),
                state.consumer.take(),
                pause,
                is_first,
            )
        };
        let (rows, bytes) = queue.iter().fold((0, 0), |(rows, bytes), chunk| {
            (rows + chunk.rows as u64, bytes + chunk.value_bytes as u64)
        });
        drop((queue, guard, span));
        self.metrics.taken(rows, bytes);
        self.metrics.discarded(rows);
        if let Some(lasted) = pause {
            self.metrics.resumed(None, lasted);
        }
        self.reader.notify_one();
        self.watchers.notify_waiters();
        wake(waker);
        is_first
    }

    /// Waits until the connection is clean or gone, and returns which; only the first to ask hears
    /// why it is gone.
    pub(super) async fn settled(&self) -> Result<()> {
        loop {
            let changed = self.watchers.notified();
            if let Some(result) = &mut self.lock().settled {
                return mem::replace(result, Ok(()));
            }
            changed.await;
        }
    }

    /// Rows and their bytes that the stream has in its hands.
    pub(super) fn in_hand(&self) -> (u64, u64) {
        let handed = self.lock().handed;
        let consumed = self.consumed.volume();
        (handed.rows.saturating_sub(consumed.rows), handed.bytes.saturating_sub(consumed.bytes))
    }

    pub(super) fn stats(&self) -> StreamStats {
        let Consumed { yielded, filtered, failed, bytes } = &self.consumed;
        // Before what was received: so it is never more. And each once, so that they add up.
        let (yielded, filtered, failed) = (yielded.get(), filtered.get(), failed.get());
        let consumed = Volume { rows: yielded + filtered + failed, bytes: bytes.get() };
        let state = self.lock();
        let now = state.ended.map_or_else(now, |ended| ended.at);
        let received = state.received;
        let running =
            if state.gate.is_paused() { StreamState::Paused } else { StreamState::Running };
        // What may still be read: of what was cancelled by others, what the stream has in its hands.
        let readable = match state.ended {
            None => received.volume,
            Some(Ended { by_stream: false, .. }) => state.handed,
            Some(Ended { by_stream: true, .. }) => consumed,
        };
        let buffered_rows = readable.rows.saturating_sub(consumed.rows);
        let buffered_bytes = readable.bytes.saturating_sub(consumed.bytes);
        StreamStats {
            state: state.ended.map_or(running, |ended| ended.state),
            items_buffered: buffered_rows,
            bytes_buffered: usize::try_from(buffered_bytes).unwrap_or(usize::MAX),
            estimated_memory: state.budget.held(),
            peak_memory: state.budget.peak(),
            total_rows_yielded: yielded,
            total_rows_filtered: filtered,
            total_rows_failed: failed,
            total_rows_discarded: received.volume.rows - consumed.rows - buffered_rows,
            total_rows_received: received.volume.rows,
            total_bytes_received: received.volume.bytes,
            chunk_size: state.chunk_size.next(),
            chunks_received: received.chunks,
            chunk_adjustments: state.chunk_size.adjustments(),
            pauses: state.gate.pauses(),
            paused_for: state.gate.paused_for(now),
            pause_reason: state.gate.reason().map(|reason| reason.as_ref().to_owned()),
            time_to_first_row: received.first_row.map(|at| at - self.started_at),
            elapsed: now.saturating_duration_since(self.started_at),
            time_blocked_on_consumer: state.waits.total(On::Consumer, now),
            time_blocked_on_server: state.waits.total(On::Server, now),
        }
    }
}

/// Those who watch the time.
impl Channel {
    pub(super) fn changed_for_watchers(&self) -> Notified<'_> {
        self.watchers.notified()
    }

    pub(super) fn span(&self) -> Arc<Span> {
        Arc::clone(&self.lock().span)
    }

    pub(super) fn pause_watch(&self) -> PauseWatch {
        let state = self.lock();
        match (state.ended, state.gate.paused_since()) {
            (Some(_), _) => PauseWatch::Ended,
            (None, None) => PauseWatch::Running,
            (None, Some(since)) => PauseWatch::Paused { since, timeout: state.gate.timeout() },
        }
    }

    /// Waits for the end of a pause. Then, if the first row has not come, and can: for how long there
    /// have been pauses in all.
    pub(super) async fn first_row_missing(&self) -> Option<Duration> {
        loop {
            let changed = self.watchers.notified();
            {
                let state = self.lock();
                let open = matches!(state.end, End::Open) && state.ended.is_none();
                if !open || state.received.first_row.is_some() {
                    return None;
                }
                if !state.gate.is_paused() {
                    return Some(state.gate.paused_for(now()));
                }
            }
            changed.await;
        }
    }
}

impl Received {
    /// Returns when it was, if this is the first one.
    fn add(&mut self, chunk: &Chunk) -> Option<Instant> {
        let is_first = self.first_row.is_none();
        let at = *self.first_row.get_or_insert_with(now);
        self.volume.add(chunk);
        self.chunks += 1;
        is_first.then_some(at)
    }
}

impl Volume {
    fn add(&mut self, chunk: &Chunk) {
        self.rows += chunk.rows as u64;
        self.bytes += chunk.value_bytes as u64;
    }
}

impl From<Error> for Interrupt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The time as tokio has it, which a test may stop.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Behind the lock: what a waker does is not ours to know.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Waker};

    use bytes::Bytes;

    use super::*;
    use crate::metrics::QueryLabels;

    /// The reader waits for room with rows in its hands; room is made, and before it runs, the stream
    /// is paused.
    #[test]
    fn a_pause_waits_for_a_reader_that_has_been_woken_but_not_run() {
        let mut cx = Context::from_waker(Waker::noop());
        let metrics = Arc::new(QueryMetrics::begin(QueryLabels::default()));
        let channel =
            Arc::new(Channel::new(&StreamSettings::default(), None, metrics, now(), Span::none()));
        let mut reserved = pin!(channel.reserve(1000));
        let Poll::Ready(Ok(block)) = reserved.as_mut().poll(&mut cx) else { panic!() };
        let chunk = || Chunk {
            frames: Bytes::new(),
            rows: 1,
            value_bytes: 0,
            at: 0,
            _block: Arc::clone(&block),
        };
        for _ in 0..channel.max_chunks {
            assert_eq!(channel.permission(false), Permission::Granted);
            assert!(pin!(channel.push(chunk)).as_mut().poll(&mut cx).is_ready());
        }
        let mut push = pin!(channel.push(chunk));
        assert!(push.as_mut().poll(&mut cx).is_pending());
        assert!(channel.poll_chunk(&mut cx).is_ready());

        let mut pause = pin!(channel.pause(None));
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        assert!(push.as_mut().poll(&mut cx).is_ready());
        assert_eq!(channel.permission(true), Permission::Paused);
        assert!(pause.as_mut().poll(&mut cx).is_pending(), "it holds rows");
        assert_eq!(channel.permission(false), Permission::Paused);
        assert!(pause.as_mut().poll(&mut cx).is_ready());
    }

    /// A deadline ends the reader while it waits for room; room that is made later must not have a pause
    /// wait for it.
    #[test]
    fn a_pause_does_not_wait_for_a_reader_that_has_ended() {
        let mut cx = Context::from_waker(Waker::noop());
        let metrics = Arc::new(QueryMetrics::begin(QueryLabels::default()));
        let channel =
            Arc::new(Channel::new(&StreamSettings::default(), None, metrics, now(), Span::none()));
        let limit = StreamSettings::default().memory();
        let mut first = Box::pin(channel.reserve(limit));
        let Poll::Ready(Ok(block)) = first.as_mut().poll(&mut cx) else { panic!() };
        let mut second = Box::pin(channel.reserve(limit));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(second);
        let error = Error::Timeout { phase: crate::TimeoutPhase::Query, after: Duration::ZERO };
        channel.finish(Err(StartError { error, stale: false }));
        drop(block);
        assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
    }
}
