//! What the reader task and the stream share: a bounded queue of chunks, the memory they hold, the
//! pause, and how it all ended.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use tokio::sync::Notify;

use super::{
    budget::Budget,
    chunk::Chunk,
    gate::Gate,
    stats::{StreamState, StreamStats},
};
use crate::error::{Error, Result};

/// The most chunks that wait to be read. Memory is bounded by bytes; this bounds what is not
/// counted there, when a server sends its rows one by one.
const MAX_CHUNKS: usize = 64;

#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<State>,
    /// Wakes the reader task: room, pause, resume, abandonment.
    reader: Notify,
    /// Wakes those who wait for the start, the pause or the clean-up.
    watchers: Notify,
    started_at: Instant,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Chunk>,
    budget: Budget,
    gate: Gate,
    /// The columns are right. An error that follows is an item of the stream, behind its rows, and
    /// no failure to start.
    started: bool,
    end: End,
    /// The reader reads the socket, or has read something that it has not handed over.
    reading: bool,
    /// The reader waits for room in the queue or the budget.
    reader_waits: bool,
    /// Nobody wants the rest of the rows.
    abandoned: bool,
    consumer: Option<Waker>,
    /// How the clean-up behind the query ended.
    settled: Option<Result<()>>,
    received: Received,
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

/// Counts of what was handed over.
#[derive(Debug, Default, Clone, Copy)]
struct Received {
    rows: u64,
    bytes: u64,
    chunks: u64,
    first_row: Option<Instant>,
}

/// Counts of what was taken out of chunks.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Consumed {
    /// Every row taken, whatever became of it.
    pub(super) rows: u64,
    pub(super) yielded: u64,
    pub(super) filtered: u64,
    pub(super) failed: u64,
    pub(super) bytes: u64,
}

/// Whether the reader may read the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Granted,
    Paused,
    Abandoned,
}

/// The stream was dropped or cancelled.
#[derive(Debug)]
pub(super) struct Abandoned;

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
    }
}

impl Channel {
    /// `called` is when the query was executed.
    pub(super) fn new(limit: usize, called: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                budget: Budget::new(limit),
                gate: Gate::default(),
                started: false,
                end: End::Open,
                reading: false,
                reader_waits: false,
                abandoned: false,
                consumer: None,
                settled: None,
                received: Received::default(),
            }),
            reader: Notify::new(),
            watchers: Notify::new(),
            started_at: called,
        }
    }

    /// No user's code runs under the lock, and no chunk is dropped under it: a chunk's memory is
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

    /// Asks to read the socket, when everything that was read has been handed over.
    pub(super) fn permission(&self) -> Permission {
        let mut state = self.lock();
        if state.abandoned {
            return Permission::Abandoned;
        }
        if state.gate.is_paused() {
            self.rest(state);
            return Permission::Paused;
        }
        state.reading = true;
        Permission::Granted
    }

    /// The reader reads no more for now: that is what a pause waits for.
    fn rest(&self, mut state: MutexGuard<'_, State>) {
        state.reading = false;
        let is_awaited = state.gate.is_paused();
        drop(state);
        if is_awaited {
            self.watchers.notify_waiters();
        }
    }

    /// Waits until something has changed that the reader may care for.
    pub(super) async fn changed(&self) {
        self.reader.notified().await;
    }

    pub(super) async fn abandoned(&self) -> Abandoned {
        while !self.lock().abandoned {
            self.reader.notified().await;
        }
        Abandoned
    }

    /// Waits for room, and hands over a chunk, which `make` cuts off the read buffer.
    pub(super) async fn push(&self, make: impl FnOnce() -> Chunk) -> Result<(), Abandoned> {
        let waker = loop {
            {
                let mut state = self.lock();
                if state.abandoned {
                    return Err(Abandoned);
                }
                if state.queue.len() < MAX_CHUNKS {
                    let chunk = make();
                    state.received.add(&chunk);
                    state.queue.push_back(chunk);
                    break state.consumer.take();
                }
                state.reader_waits = true;
                self.rest(state);
            }
            self.reader.notified().await;
        };
        wake(waker);
        Ok(())
    }

    /// Waits until `size` more bytes may be held. Whoever waits must hold none: what it held would
    /// never be given back.
    pub(super) async fn reserve(self: &Arc<Self>, size: usize) -> Result<Arc<Block>, Abandoned> {
        loop {
            {
                let mut state = self.lock();
                if state.abandoned {
                    return Err(Abandoned);
                }
                if state.budget.allows(size) {
                    state.budget.take(size);
                    break;
                }
                state.reader_waits = true;
                self.rest(state);
            }
            self.reader.notified().await;
        }
        Ok(Arc::new(Block { size, channel: Arc::clone(self) }))
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
        if let Some(chunk) = state.queue.pop_front() {
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
    pub(super) async fn pause(&self) {
        loop {
            let stopped = self.watchers.notified();
            {
                let mut state = self.lock();
                state.gate.pause(Instant::now());
                if !state.reading {
                    return;
                }
            }
            self.reader.notify_one();
            stopped.await;
        }
    }

    pub(super) fn resume(&self) {
        let waker = {
            let mut state = self.lock();
            state.gate.resume(Instant::now());
            // The end may have been waiting behind the pause.
            state.consumer.take()
        };
        self.reader.notify_one();
        wake(waker);
    }

    /// Says that nobody wants the rest: the query is stopped and the connection cleaned up.
    pub(super) fn abandon(&self) {
        let unread = {
            let mut state = self.lock();
            state.abandoned = true;
            mem::take(&mut state.queue)
        };
        drop(unread);
        self.reader.notify_one();
    }

    /// Waits until the connection can be used again, or is closed.
    pub(super) async fn settled(&self) -> Result<()> {
        loop {
            let changed = self.watchers.notified();
            if let Some(result) = &mut self.lock().settled {
                return mem::replace(result, Ok(()));
            }
            changed.await;
        }
    }

    /// The numbers of a stream that has `consumed` so much; `ended` says how and when, if it has.
    pub(super) fn stats(
        &self,
        consumed: &Consumed,
        ended: Option<(StreamState, Instant)>,
        chunk_size: usize,
    ) -> StreamStats {
        let state = self.lock();
        let now = ended.map_or_else(Instant::now, |(_, at)| at);
        let received = state.received;
        let running =
            if state.gate.is_paused() { StreamState::Paused } else { StreamState::Running };
        // What was abandoned is not buffered any more.
        let (rows, bytes) = if state.abandoned {
            (0, 0)
        } else {
            (received.rows - consumed.rows, received.bytes - consumed.bytes)
        };
        StreamStats {
            state: ended.map_or(running, |(state, _)| state),
            items_buffered: rows,
            bytes_buffered: usize::try_from(bytes).unwrap_or(usize::MAX),
            estimated_memory: state.budget.held(),
            peak_memory: state.budget.peak(),
            total_rows_yielded: consumed.yielded,
            total_rows_filtered: consumed.filtered,
            total_rows_failed: consumed.failed,
            total_rows_received: received.rows,
            total_bytes_received: received.bytes,
            chunk_size,
            chunks_received: received.chunks,
            pauses: state.gate.pauses(),
            paused_for: state.gate.paused_for(now),
            time_to_first_row: received.first_row.map(|at| at - self.started_at),
            elapsed: now.saturating_duration_since(self.started_at),
        }
    }
}

impl Received {
    fn add(&mut self, chunk: &Chunk) {
        self.first_row.get_or_insert_with(Instant::now);
        self.rows += chunk.rows as u64;
        self.bytes += chunk.value_bytes as u64;
        self.chunks += 1;
    }
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

    /// The reader waits for room with rows in its hands; room is made, and before it runs, the stream
    /// is paused.
    #[test]
    fn a_pause_waits_for_a_reader_that_has_been_woken_but_not_run() {
        let mut cx = Context::from_waker(Waker::noop());
        let channel = Arc::new(Channel::new(1 << 20, Instant::now()));
        let mut reserved = pin!(channel.reserve(1000));
        let Poll::Ready(Ok(block)) = reserved.as_mut().poll(&mut cx) else { panic!() };
        let chunk = || Chunk {
            frames: Bytes::new(),
            rows: 1,
            value_bytes: 0,
            at: 0,
            _block: Arc::clone(&block),
        };
        for _ in 0..MAX_CHUNKS {
            assert_eq!(channel.permission(), Permission::Granted);
            assert!(pin!(channel.push(chunk)).as_mut().poll(&mut cx).is_ready());
        }
        let mut push = pin!(channel.push(chunk));
        assert!(push.as_mut().poll(&mut cx).is_pending());
        assert!(channel.poll_chunk(&mut cx).is_ready());

        let mut pause = pin!(channel.pause());
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        assert!(push.as_mut().poll(&mut cx).is_ready());
        assert!(pause.as_mut().poll(&mut cx).is_pending());
        assert_eq!(channel.permission(), Permission::Paused);
        assert!(pause.as_mut().poll(&mut cx).is_ready());
    }
}
