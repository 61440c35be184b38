//! What the readers and the stream share: a bounded queue of chunks, the memory they hold, the pause, and
//! how it all ended. There is one reader, or in a parallel stream one for each connection.

mod blocked_time;
mod budget;
mod chunk;
mod chunk_size;
mod pause;
mod producer;
mod seats;

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
use tracing::{Span, debug};

use self::{
    blocked_time::{On, Waits},
    budget::Budget,
    pause::Gate,
    seats::Seats,
};
pub(super) use self::{
    budget::share,
    chunk::{Block, Chunk},
    chunk_size::ChunkSize,
    producer::Seat,
};
use super::{
    settings::StreamSettings,
    stats::{StreamState, StreamStats},
};
use crate::{
    connection::{StreamGuard, TARGET},
    error::{Error, Result},
    metrics::QueryMetrics,
};

#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<State>,
    /// Written by the stream alone, once a row, and so without the lock.
    pub(super) consumed: Consumed,
    /// Each wakes one reader: room, pause, resume, abandonment.
    readers: Box<[Notify]>,
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
    /// For how long each reader was blocked.
    waits: Box<[Waits]>,
    /// Whose columns are right. When that is all, an error that follows is an item of the stream, behind its
    /// rows, and no failure to start.
    started: Seats,
    end: End,
    /// Who reads the socket, or has read something that is not handed over.
    reading: Seats,
    /// Who waits for room in the queue or the budget.
    waiting: Seats,
    /// Whose rows have all been handed over.
    finished: Seats,
    /// Whose connection is clean or gone.
    settled: Seats,
    /// How the stream ended for who has it: nobody wants the rest of the rows.
    ended: Option<Ended>,
    /// Keeps other streams of the client away, up to the end of this one.
    guard: Option<StreamGuard>,
    /// That of the query, up to the end of the stream: what happens behind it is not in it.
    span: Arc<Span>,
    consumer: Option<Waker>,
    /// Why a connection could not be cleaned up.
    unsettled: Option<Error>,
    /// How often the query went on on another connection.
    resumptions: u64,
    received: Received,
    /// What of it the stream has taken out of the queue.
    handed: Volume,
}

impl State {
    /// Nobody wants the rest of the rows: the stream has ended, or one of several readers has failed.
    fn is_over(&self) -> bool {
        self.ended.is_some() || matches!(self.end, End::Failed(_))
    }

    /// The reader is blocked from now on, or not any more.
    fn blocked(&mut self, reader: usize, on: Option<On>) {
        match (self.waits.get_mut(reader), on) {
            (Some(waits), Some(on)) => waits.begin(on, now()),
            (Some(waits), None) => waits.end(now()),
            (None, _) => {}
        }
    }

    fn all_unblocked(&mut self, now: Instant) {
        self.waits.iter_mut().for_each(|waits| waits.end(now));
    }

    /// At least two reads wait for the consumer. With only one, the consumer may be fast: memory
    /// for another read may be missing only because reads are large compared with the limit.
    fn consumer_lags(&self) -> bool {
        match (self.queue.front(), self.queue.back()) {
            (Some(first), Some(last)) => !Arc::ptr_eq(&first._block, &last._block),
            _ => false,
        }
    }
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

impl Channel {
    /// `called` is when the query was executed. Tests have no guard.
    pub(super) fn new(
        readers: usize,
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
                waits: std::iter::repeat_with(Waits::default).take(readers).collect(),
                started: Seats::default(),
                end: End::Open,
                reading: Seats::default(),
                waiting: Seats::default(),
                finished: Seats::default(),
                settled: Seats::default(),
                ended: None,
                guard,
                span: Arc::new(span),
                consumer: None,
                unsettled: None,
                resumptions: 0,
                received: Received::default(),
                handed: Volume::default(),
            }),
            consumed: Consumed::default(),
            readers: std::iter::repeat_with(Notify::new).take(readers).collect(),
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

    fn wake_waiting_readers(&self, mut state: MutexGuard<'_, State>) {
        let waiting = mem::take(&mut state.waiting);
        // They have not run yet, but a pause that comes now must wait for what they will do.
        state.reading.add_all(waiting);
        drop(state);
        for (reader, _) in self.readers.iter().zip(0..).filter(|(_, seat)| waiting.has(*seat)) {
            reader.notify_one();
        }
    }

    fn wake_readers(&self) {
        for reader in &self.readers {
            reader.notify_one();
        }
    }
}

/// The stream's side.
impl Channel {
    /// Waits until the columns are known to be right, those of every reader.
    pub(super) async fn started(&self) -> Result<(), StartError> {
        loop {
            let changed = self.watchers.notified();
            {
                let mut state = self.lock();
                let all = state.started.len() == self.readers.len();
                match &mut state.end {
                    End::Failed(error) if !all => return error.take().map_or(Ok(()), Err),
                    _ if all => return Ok(()),
                    _ => {}
                }
            }
            changed.await;
        }
    }

    /// The next chunk, the error that ends the rows, or their end.
    pub(super) fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk>>> {
        // Cloned and dropped without the lock: an executor's waker may own a task, whose drop can
        // run arbitrary code.
        let mut waker = None;
        loop {
            let mut state = self.lock();
            if state.ended.is_some() {
                return Poll::Ready(Some(Err(Error::Cancelled)));
            }
            if let Some(chunk) = state.queue.pop_front() {
                state.handed.add(&chunk);
                self.wake_waiting_readers(state);
                return Poll::Ready(Some(Ok(chunk)));
            }
            if !state.gate.is_paused() {
                match &mut state.end {
                    End::Open => {}
                    End::Complete => return Poll::Ready(None),
                    End::Failed(error) => return Poll::Ready(error.take().map(|e| Err(e.error))),
                }
            }
            if state.consumer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            if waker.is_some() {
                let earlier = mem::replace(&mut state.consumer, waker);
                drop(state);
                drop(earlier);
                return Poll::Pending;
            }
            drop(state);
            waker = Some(cx.waker().clone());
        }
    }

    /// Pauses, and waits until no reader reads its socket any more.
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
                state.all_unblocked(now);
                let span = Arc::clone(&state.span);
                drop(state);
                span.in_scope(|| debug!(target: TARGET, reason, "paused a stream"));
                self.metrics.paused(reason);
                self.watchers.notify_waiters();
            }
        }
        let mut has_woken = false;
        loop {
            let stopped = self.watchers.notified();
            {
                let state = self.lock();
                // Resumed meanwhile, or ended: then there is nothing to wait for.
                let is_over = state.is_over();
                if state.reading.is_empty() || !state.gate.is_paused() || is_over {
                    return Ok(());
                }
            }
            // Once: a reader that has stopped notifies the watchers each time it is woken, so that
            // they would wake each other until the last reader has stopped.
            if !std::mem::replace(&mut has_woken, true) {
                self.wake_readers();
            }
            stopped.await;
        }
    }

    /// Resumes. Succeeds after the end too: a task that only resumes a stream cannot know that it
    /// has ended.
    pub(super) fn resume(&self) {
        self.go_on(self.lock(), "resume");
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
        self.wake_readers();
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
                    state.all_unblocked(at);
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
        self.wake_readers();
        self.watchers.notify_waiters();
        wake(waker);
        is_first
    }

    /// Waits until every connection is clean or gone. Every caller gets the reason why one is gone.
    pub(super) async fn settled(&self) -> Result<()> {
        loop {
            let changed = self.watchers.notified();
            {
                let state = self.lock();
                if state.settled.len() == self.readers.len() {
                    return state.unsettled.as_ref().map_or(Ok(()), |error| Err(error.copy()));
                }
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
        // Under the lock no chunk is taken, so it is never more than what was received, and nothing is missing
        // of a stream that has ended. Each once, so that they add up.
        let state = self.lock();
        let (yielded, filtered, failed) = (yielded.get(), filtered.get(), failed.get());
        let consumed = Volume { rows: yielded + filtered + failed, bytes: bytes.get() };
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
            resumptions: state.resumptions,
            time_to_first_row: received.first_row.map(|at| at - self.started_at),
            elapsed: now.saturating_duration_since(self.started_at),
            time_blocked_on_consumer: state.waits.iter().map(|w| w.total(On::Consumer, now)).sum(),
            time_blocked_on_server: state.waits.iter().map(|w| w.total(On::Server, now)).sum(),
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
    use std::{
        pin::pin,
        task::{Wake, Waker},
    };

    use bytes::Bytes;

    use super::*;
    use crate::metrics::{QueryLabels, QueryMetricsCache};

    fn channel(readers: usize) -> Arc<Channel> {
        channel_with(readers, &StreamSettings::default())
    }

    fn channel_with(readers: usize, settings: &StreamSettings) -> Arc<Channel> {
        let metrics =
            Arc::new(QueryMetrics::begin(&QueryMetricsCache::default(), QueryLabels::default()));
        Arc::new(Channel::new(readers, settings, None, metrics, now(), Span::none()))
    }

    fn reserve(seat: &Seat, size: usize) -> Result<Arc<Block>, Interrupt> {
        let mut cx = Context::from_waker(Waker::noop());
        match pin!(seat.reserve(size)).as_mut().poll(&mut cx) {
            Poll::Ready(reserved) => reserved,
            Poll::Pending => panic!("no room for {size} bytes"),
        }
    }

    /// An executor's waker may own a task, whose drop may do anything with a stream.
    #[test]
    fn the_consumers_waker_is_dropped_without_the_lock() {
        struct UsesTheStream(Arc<Channel>);
        impl Wake for UsesTheStream {
            fn wake(self: Arc<Self>) {}
        }
        impl Drop for UsesTheStream {
            fn drop(&mut self) {
                self.0.stats();
            }
        }
        let channel = channel(1);
        for _ in 0..3 {
            let waker = Waker::from(Arc::new(UsesTheStream(Arc::clone(&channel))));
            for _ in 0..2 {
                assert!(channel.poll_chunk(&mut Context::from_waker(&waker)).is_pending());
            }
        }
        channel.seat(0).finish(Ok(()));
        assert!(channel.poll_chunk(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    /// What has come is read, in the stream's hands, in the queue, or discarded, and nothing else.
    #[test]
    fn the_numbers_of_a_stream_add_up() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(1);
        let seat = channel.seat(0);
        let block = reserve(&seat, 150).unwrap();
        assert_eq!(channel.stats().time_to_first_row, None);
        for (rows, value_bytes) in [(10, 100), (5, 50)] {
            let block = Arc::clone(&block);
            let chunk = || Chunk { frames: Bytes::new(), rows, value_bytes, at: 0, _block: block };
            assert!(pin!(seat.push(chunk)).as_mut().poll(&mut cx).is_ready());
        }
        assert!(channel.poll_chunk(&mut cx).is_ready());
        channel.consumed.yielded.add(4);
        channel.consumed.filtered.add(2);
        channel.consumed.failed.add(1);
        channel.consumed.bytes.add(70);

        let check = |state, buffered, discarded| {
            let stats = channel.stats();
            assert_eq!(stats.state, state);
            let rows =
                (stats.total_rows_yielded, stats.total_rows_filtered, stats.total_rows_failed);
            assert_eq!(rows, (4, 2, 1));
            assert_eq!((stats.total_rows_received, stats.total_bytes_received), (15, 150));
            assert_eq!((stats.items_buffered, stats.bytes_buffered), buffered);
            assert_eq!((stats.total_rows_discarded, stats.chunks_received), (discarded, 2));
            assert!(stats.time_to_first_row.is_some());
        };
        check(StreamState::Running, (8, 80), 0);
        assert_eq!(channel.in_hand(), (3, 30));
        assert!(channel.end(StreamState::Cancelled, false));
        check(StreamState::Cancelled, (3, 30), 5);
        assert!(!channel.end(StreamState::Completed, true), "the first end counts");
        check(StreamState::Cancelled, (0, 0), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn time_counts_for_whom_the_reader_waits() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(1);
        let seat = channel.seat(0);
        let pass = async |seconds| tokio::time::advance(Duration::from_secs(seconds)).await;
        let blocked = || {
            let stats = channel.stats();
            [stats.time_blocked_on_server, stats.time_blocked_on_consumer].map(|t| t.as_secs())
        };
        seat.waiting();
        pass(3).await;
        seat.waited();
        pass(1).await;
        assert!(!seat.has_unread());
        pass(1).await;
        assert_eq!(blocked(), [3, 0]);

        let limit = StreamSettings::default().memory();
        let block = reserve(&seat, limit).unwrap();
        let chunk = Chunk { frames: Bytes::new(), rows: 1, value_bytes: 1, at: 0, _block: block };
        seat.push(|| chunk).await.unwrap();
        assert!(seat.has_unread());
        pass(10).await;
        seat.waited();
        pass(1).await;
        assert_eq!(blocked(), [3, 10]);
        {
            let mut room = pin!(seat.reserve(1));
            assert!(room.as_mut().poll(&mut cx).is_pending());
            pass(20).await;
            assert!(channel.poll_chunk(&mut cx).is_ready());
            assert!(room.as_mut().poll(&mut cx).is_ready());
        }
        pass(1).await;
        assert_eq!(blocked(), [3, 30]);

        let block = reserve(&seat, 1).unwrap();
        let chunk = Chunk { frames: Bytes::new(), rows: 1, value_bytes: 1, at: 0, _block: block };
        seat.push(|| chunk).await.unwrap();
        let mut pause = pin!(channel.pause(None));
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        assert_eq!(seat.permission(false), Permission::Paused);
        assert!(pause.as_mut().poll(&mut cx).is_ready());
        seat.waiting();
        pass(1).await;
        assert!(seat.has_unread());
        pass(1).await;
        assert_eq!(blocked(), [3, 30], "a pause is neither's doing");
    }

    #[test]
    fn a_stream_that_is_to_fail_does_so_beyond_its_share() {
        let settings = StreamSettings {
            max_memory: Some(1000),
            soft_limits: Some((0.5, 0.5)),
            ..Default::default()
        };
        let channel = channel_with(1, &settings);
        let seat = channel.seat(0);
        drop(reserve(&seat, 700).unwrap());
        let mut cx = Context::from_waker(Waker::noop());
        let mut wait_for_consumer = |size| {
            let block = reserve(&seat, size).unwrap();
            let chunk =
                || Chunk { frames: Bytes::new(), rows: 1, value_bytes: 1, at: 0, _block: block };
            assert!(pin!(seat.push(chunk)).as_mut().poll(&mut cx).is_ready());
        };
        wait_for_consumer(300);
        // Only one read is waiting for the consumer, which may be fast.
        drop(reserve(&seat, 300).unwrap());
        wait_for_consumer(200);
        let mut cx = Context::from_waker(Waker::noop());
        let mut third = pin!(seat.reserve(5));
        assert!(third.as_mut().poll(&mut cx).is_pending(), "the consumer has its turn first");
        let Poll::Ready(Err(Interrupt::Failed(error))) = third.as_mut().poll(&mut cx) else {
            panic!()
        };
        assert!(matches!(error, Error::ConsumerLagged { limit: 500, buffered: 500 }), "{error:?}");
    }

    /// Another pause may have begun since.
    #[test]
    fn a_timeout_ends_only_the_pause_that_it_is_of() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(1);
        assert!(matches!(channel.pause_watch(), PauseWatch::Running));
        assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
        channel.set_pause_timeout(Some(Duration::from_secs(5)));
        let PauseWatch::Paused { since, timeout } = channel.pause_watch() else { panic!() };
        assert_eq!(timeout, Some(Duration::from_secs(5)));
        channel.resume_late(since - Duration::from_nanos(1));
        assert_eq!(channel.stats().state, StreamState::Paused);
        channel.resume_late(since);
        assert_eq!(channel.stats().state, StreamState::Running);
        channel.end(StreamState::Completed, true);
        assert!(matches!(channel.pause_watch(), PauseWatch::Ended));
    }

    /// Else whoever paused a stream at its last row would be told that it has ended.
    #[test]
    fn the_end_waits_behind_a_pause() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(1);
        let seat = channel.seat(0);
        assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
        seat.finish(Ok(()));
        let error = Error::Timeout { phase: crate::TimeoutPhase::Query, after: Duration::ZERO };
        seat.finish(Err(StartError { error, stale: false }));
        assert!(channel.poll_chunk(&mut cx).is_pending());
        channel.resume();
        assert!(matches!(channel.poll_chunk(&mut cx), Poll::Ready(None)), "the first end counts");
    }

    /// It is missing while the rows can still come and none has; in a pause nobody can tell.
    #[test]
    fn the_first_row_is_missing_until_it_has_come_or_cannot() {
        let mut cx = Context::from_waker(Waker::noop());
        let missing = |channel: &Channel| {
            let mut cx = Context::from_waker(Waker::noop());
            pin!(channel.first_row_missing()).as_mut().poll(&mut cx)
        };
        let channel = channel(1);
        let seat = channel.seat(0);
        assert_eq!(missing(&channel), Poll::Ready(Some(Duration::ZERO)));
        assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
        assert_eq!(missing(&channel), Poll::Pending);
        channel.resume();
        assert!(matches!(missing(&channel), Poll::Ready(Some(paused)) if !paused.is_zero()));
        let block = reserve(&seat, 1).unwrap();
        let chunk =
            || Chunk { frames: Bytes::new(), rows: 1, value_bytes: 1, at: 0, _block: block };
        assert!(pin!(seat.push(chunk)).as_mut().poll(&mut cx).is_ready());
        assert_eq!(missing(&channel), Poll::Ready(None));
        for end in [
            |channel: &Arc<Channel>| channel.seat(0).finish(Ok(())),
            |channel: &Arc<Channel>| assert!(channel.end(StreamState::Cancelled, false)),
        ] {
            let channel = self::channel(1);
            end(&channel);
            assert_eq!(missing(&channel), Poll::Ready(None));
        }
    }

    /// The reader waits for room with rows in its hands; room is made, and before it runs, the stream
    /// is paused.
    #[test]
    fn a_pause_waits_for_a_reader_that_has_been_woken_but_not_run() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(1);
        let seat = channel.seat(0);
        let mut reserved = pin!(seat.reserve(1000));
        let Poll::Ready(Ok(block)) = reserved.as_mut().poll(&mut cx) else { panic!() };
        let chunk = || Chunk {
            frames: Bytes::new(),
            rows: 1,
            value_bytes: 0,
            at: 0,
            _block: Arc::clone(&block),
        };
        for _ in 0..channel.max_chunks {
            assert_eq!(seat.permission(false), Permission::Granted);
            assert!(pin!(seat.push(chunk)).as_mut().poll(&mut cx).is_ready());
        }
        let mut push = pin!(seat.push(chunk));
        assert!(push.as_mut().poll(&mut cx).is_pending());
        assert!(channel.poll_chunk(&mut cx).is_ready());

        let mut pause = pin!(channel.pause(None));
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        assert!(push.as_mut().poll(&mut cx).is_ready());
        assert_eq!(seat.permission(true), Permission::Paused);
        assert!(pause.as_mut().poll(&mut cx).is_pending(), "it holds rows");
        assert_eq!(seat.permission(false), Permission::Paused);
        assert!(pause.as_mut().poll(&mut cx).is_ready());
        channel.end(StreamState::Cancelled, true);
    }

    /// A reader that is ending its transaction stops late. Until then, the others and the pause must
    /// not wake each other.
    #[test]
    fn pause_that_waits_for_one_reader_does_not_wake_the_others_again() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(2);
        let (ending, paused) = (channel.seat(0), channel.seat(1));
        for seat in [&ending, &paused] {
            assert_eq!(seat.permission(false), Permission::Granted);
        }
        let mut pause = pin!(channel.pause(None));
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        assert!(pin!(paused.changed()).as_mut().poll(&mut cx).is_ready());
        assert_eq!(paused.permission(false), Permission::Paused);
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        assert!(pin!(paused.changed()).as_mut().poll(&mut cx).is_pending());
        ending.finish(Ok(()));
        assert!(pause.as_mut().poll(&mut cx).is_ready());
        channel.end(StreamState::Cancelled, true);
    }

    /// What the stream counts without the lock, and others read, adds up at any moment. Run under Miri, this
    /// tries the orders that the memory model allows.
    #[test]
    fn the_numbers_add_up_while_they_are_counted() {
        let channel = channel(1);
        let seat = channel.seat(0);
        let writer = Arc::clone(&channel);
        let counting = std::thread::spawn(move || {
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Ok(block)) = pin!(seat.reserve(1000)).poll(&mut cx) else { panic!() };
            for _ in 0..4 {
                let (frames, _block) = (Bytes::new(), Arc::clone(&block));
                let chunk = || Chunk { frames, rows: 3, value_bytes: 30, at: 0, _block };
                assert!(pin!(seat.push(chunk)).as_mut().poll(&mut cx).is_ready());
                assert!(writer.poll_chunk(&mut cx).is_ready());
                for count in [&writer.consumed.yielded, &writer.consumed.filtered] {
                    writer.consumed.bytes.add(10);
                    count.add(1);
                }
            }
            writer.end(StreamState::Cancelled, true);
        });
        loop {
            let stats = channel.stats();
            let consumed = stats.total_rows_yielded + stats.total_rows_filtered;
            let rest = stats.items_buffered + stats.total_rows_discarded;
            assert_eq!(stats.total_rows_received, consumed + rest, "{stats:?}");
            assert!(stats.bytes_buffered <= 120 && stats.total_rows_received <= 12, "{stats:?}");
            if stats.state == StreamState::Cancelled {
                break assert_eq!((consumed, rest), (8, 4));
            }
        }
        counting.join().unwrap();
    }

    /// A deadline ends the reader while it waits for room; room that is made later must not have a pause
    /// wait for it.
    #[test]
    fn a_pause_does_not_wait_for_a_reader_that_has_ended() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(1);
        let seat = channel.seat(0);
        let limit = StreamSettings::default().memory();
        let mut first = Box::pin(seat.reserve(limit));
        let Poll::Ready(Ok(block)) = first.as_mut().poll(&mut cx) else { panic!() };
        let mut second = Box::pin(seat.reserve(limit));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(second);
        let error = Error::Timeout { phase: crate::TimeoutPhase::Query, after: Duration::ZERO };
        seat.finish(Err(StartError { error, stale: false }));
        drop(block);
        assert!(pin!(channel.pause(None)).as_mut().poll(&mut cx).is_ready());
    }

    /// A reader that waits for its server with a buffer is asked for it when it is needed, also if it was first asked
    /// while the reader in front could be served without it.
    #[test]
    fn a_buffer_is_asked_for_when_it_is_needed() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(4);
        let [one, two, three, four] = [0, 1, 2, 3].map(|number| channel.seat(number));
        let quarter = StreamSettings::default().memory() / 4;
        let _kept = reserve(&one, 2 * quarter).unwrap();
        let given = reserve(&two, quarter).unwrap();
        let mut in_front = Box::pin(three.reserve(2 * quarter));
        assert!(in_front.as_mut().poll(&mut cx).is_pending());
        assert!(pin!(one.changed()).poll(&mut cx).is_ready() && one.is_memory_short());
        // Before the first has looked: now there is room.
        drop(given);
        let mut last = Box::pin(four.reserve(3 * quarter));
        assert!(last.as_mut().poll(&mut cx).is_pending());
        let _ = pin!(one.changed()).poll(&mut cx);
        assert!(!one.is_memory_short());
        assert!(in_front.as_mut().poll(&mut cx).is_ready());
        assert!(last.as_mut().poll(&mut cx).is_pending());
        assert!(pin!(one.changed()).poll(&mut cx).is_ready() && one.is_memory_short());
    }

    #[test]
    fn the_end_is_that_of_the_last_reader() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(3);
        let seats = [0, 1, 2].map(|number| channel.seat(number));
        let mut started = Box::pin(channel.started());
        for seat in &seats {
            assert!(started.as_mut().poll(&mut cx).is_pending());
            seat.start();
        }
        assert!(started.as_mut().poll(&mut cx).is_ready());
        let mut settled = Box::pin(channel.settled());
        for seat in &seats {
            assert!(channel.poll_chunk(&mut cx).is_pending());
            // A reader has one end: that its task ends too is no other.
            seat.finish(Ok(()));
            let error = Error::InvalidState { message: "late" };
            seat.finish(Err(StartError { error, stale: false }));
            assert!(settled.as_mut().poll(&mut cx).is_pending());
            seat.settle(Ok(()));
        }
        assert!(matches!(channel.poll_chunk(&mut cx), Poll::Ready(None)));
        assert!(settled.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn an_error_of_one_reader_ends_all_behind_the_rows_that_came() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = channel(2);
        let [one, two] = [0, 1].map(|number| channel.seat(number));
        let Poll::Ready(Ok(block)) = pin!(one.reserve(1000)).poll(&mut cx) else { panic!() };
        let chunk =
            || Chunk { frames: Bytes::new(), rows: 1, value_bytes: 0, at: 0, _block: block };
        assert!(pin!(one.push(chunk)).poll(&mut cx).is_ready());
        assert_eq!(one.permission(false), Permission::Granted);
        let mut pause = pin!(channel.pause(None));
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        let error = Error::ConnectionClosed { during: "a test", source: None };
        two.finish(Err(StartError { error, stale: false }));
        assert!(pause.as_mut().poll(&mut cx).is_ready(), "nothing is read any more");
        assert_eq!(one.permission(false), Permission::Abandoned);
        assert!(matches!(
            pin!(one.reserve(1)).poll(&mut cx),
            Poll::Ready(Err(Interrupt::Abandoned))
        ));
        channel.resume();
        assert!(matches!(channel.poll_chunk(&mut cx), Poll::Ready(Some(Ok(_)))));
        assert!(matches!(
            channel.poll_chunk(&mut cx),
            Poll::Ready(Some(Err(Error::ConnectionClosed { .. })))
        ));
    }
}
