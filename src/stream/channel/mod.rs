//! The bounded channel between the readers and the stream: a queue of chunks, their memory, the
//! pause, and how the rows and the stream ended.
//!
//! A query whose whole answer has arrived has no reader, other queries have one, and a parallel
//! query has one for each connection. `producer` is the readers' side, `consumer` the stream's
//! side, and `pause` what both and the stream's handles do about pauses.

mod blocked_time;
mod budget;
mod chunk_size;
mod consumer;
mod counters;
mod pause;
mod pause_state;
mod producer;
mod queue;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    task::Waker,
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::Notify};

pub(super) use self::producer::{FirstRows, Producer, ReadPermit};
use self::{
    blocked_time::{BlockedOn, BlockedTime},
    budget::Budget,
    chunk_size::ChunkSize,
    counters::{Consumed, Received, Volume},
    pause_state::PauseState,
    queue::Queue,
};
use super::{
    chunk::Chunk,
    observer::{QueryObserver, now},
    settings::StreamSettings,
    stats::StreamState,
};
use crate::{connection::StreamGuard, error::Error, sync::lock};

#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<ChannelState>,
    /// Written by the stream alone, once per row, and therefore without the lock.
    pub(super) consumed: Consumed,
    /// Each wakes one reader: room in the queue, pause, resume, close.
    wake_readers: Box<[Notify]>,
    /// Wakes the tasks that wait for the first row, a pause, its end, or the cleanup.
    watchers: Notify,
    pub(super) observer: QueryObserver,
    /// The maximum number of chunks in the queue.
    max_chunks: usize,
    /// If the stream is to fail instead of waiting for its consumer: at how many bytes.
    fail_at: Option<usize>,
    /// Where pauses are watched, and the statement timeout that a pause may exceed. Unit tests have
    /// no runtime.
    runtime: Option<Handle>,
    statement_timeout: Option<Duration>,
}

#[derive(Debug)]
struct ChannelState {
    readers: Vec<ReaderState>,
    rows: RowsState,
    /// Set when the stream is closed. The remaining rows are discarded.
    closed: Option<Closed>,
    /// Why a connection could not be cleaned up.
    cleanup_error: Option<Error>,
    queue: Queue,
    memory: Budget,
    pause: PauseState,
    chunk_size: ChunkSize,
    /// How long the query waited for the server before there was a reader.
    blocked_before: Duration,
    /// Rejects other queries of the client until the stream is closed.
    guard: Option<StreamGuard>,
    consumer: Option<Waker>,
    /// How often the query was resumed on another connection.
    resumptions: u64,
    received: Received,
    /// The part of it that the stream has taken out of the queue.
    dequeued: Volume,
}

#[derive(Debug, Default)]
struct ReaderState {
    phase: Phase,
    activity: Activity,
    blocked: BlockedTime,
}

/// The phase of a reader. It only advances.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Streaming,
    /// All its rows are in the queue, or it has failed.
    Finished,
    /// Its connection is released or closed.
    Released,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Activity {
    #[default]
    Idle,
    /// It reads the socket, or has read rows that are not in the queue yet.
    Reading,
    /// It waits for room in the queue or in the memory.
    WaitingForRoom,
}

/// Whether and how the rows have ended.
#[derive(Debug)]
enum RowsState {
    Open,
    Complete,
    /// The error, until the stream has received it.
    Failed(Option<Error>),
}

/// How the stream was closed.
#[derive(Debug, Clone, Copy)]
struct Closed {
    state: StreamState,
    at: Instant,
    by: ClosedBy,
}

/// What closes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClosedBy {
    /// The stream itself, which then has no unread chunk.
    Consumer,
    /// A handle of the stream. The consumer may still have an unread chunk.
    Control,
}

/// A chunk and its memory.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) chunk: Chunk,
    memory: ChunkMemory,
}

#[derive(Debug)]
enum ChunkMemory {
    /// Of rows that arrived before there was a reader: shared by nothing, so not allocated.
    Own { _permit: MemoryPermit },
    /// Of a read buffer, which the reader and several chunks use.
    Shared(Arc<MemoryPermit>),
}

/// Memory that chunks and a reader share. It counts until the last of them is dropped.
///
/// Chunks in the queue keep the channel alive through it. Closing the stream removes them.
#[derive(Debug)]
pub(super) struct MemoryPermit {
    size: usize,
    channel: Arc<Channel>,
}

/// Why a reader stops reading.
#[derive(Debug)]
pub(super) enum Interrupt {
    Failed(Error),
    /// The remaining rows are discarded.
    Closed,
}

impl Channel {
    /// The channel of a query that `readers` connections answer. Tests have no guard.
    pub(super) fn new(
        readers: usize,
        settings: &StreamSettings,
        guard: Option<StreamGuard>,
        observer: QueryObserver,
    ) -> Self {
        let mut pause = PauseState::default();
        pause.set_timeout(settings.pause_timeout);
        let statement_timeout = guard.as_ref().and_then(StreamGuard::statement_timeout);
        Self {
            state: Mutex::new(ChannelState {
                readers: std::iter::repeat_with(ReaderState::default).take(readers).collect(),
                rows: if readers == 0 { RowsState::Complete } else { RowsState::Open },
                closed: None,
                cleanup_error: None,
                queue: Queue::default(),
                memory: Budget::new(settings.memory(), settings.warn_at()),
                pause,
                chunk_size: chunk_size(settings),
                blocked_before: Duration::ZERO,
                guard,
                consumer: None,
                resumptions: 0,
                received: Received::default(),
                dequeued: Volume::default(),
            }),
            consumed: Consumed::default(),
            wake_readers: std::iter::repeat_with(Notify::new).take(readers).collect(),
            watchers: Notify::new(),
            observer,
            max_chunks: settings.max_chunks(),
            fail_at: settings.fail_at(),
            runtime: Handle::try_current().ok(),
            statement_timeout,
        }
    }

    /// No code of the caller, including a metrics recorder, runs under the lock. No chunk is
    /// dropped under it, because that returns memory under the same lock.
    fn lock(&self) -> MutexGuard<'_, ChannelState> {
        lock(&self.state)
    }

    /// Wakes the readers that wait for room.
    fn room(&self, mut state: MutexGuard<'_, ChannelState>) {
        let mut woken = Vec::new();
        for (number, reader) in state.readers.iter_mut().enumerate() {
            if reader.activity == Activity::WaitingForRoom {
                // It has not run yet, but a pause that begins now must wait for what it will do.
                reader.activity = Activity::Reading;
                woken.push(number);
            }
        }
        drop(state);
        for reader in woken {
            if let Some(reader) = self.wake_readers.get(reader) {
                reader.notify_one();
            }
        }
    }

    fn wake_all_readers(&self) {
        for reader in &self.wake_readers {
            reader.notify_one();
        }
    }
}

fn chunk_size(settings: &StreamSettings) -> ChunkSize {
    let (rows, adaptive) = settings.chunk_rows();
    match adaptive {
        None => ChunkSize::fixed(rows),
        Some((min, max)) => ChunkSize::adaptive(rows, min, max),
    }
}

impl ChannelState {
    /// Returns whether the remaining rows are discarded: the stream is closed, or a reader has
    /// failed.
    fn is_over(&self) -> bool {
        self.closed.is_some() || matches!(self.rows, RowsState::Failed(_))
    }

    fn all_unblocked(&mut self, now: Instant) {
        self.readers.iter_mut().for_each(|reader| reader.blocked.end(now));
    }

    /// Whether the chunks in the queue are from at least two reads. With only one, the consumer
    /// may be fast: memory for another read may be missing only because reads are large compared
    /// with the limit.
    fn consumer_lags(&self) -> bool {
        match (self.queue.front(), self.queue.back()) {
            (Some(first), Some(last)) => match (&first.memory, &last.memory) {
                (ChunkMemory::Shared(first), ChunkMemory::Shared(last)) => {
                    !Arc::ptr_eq(first, last)
                }
                _ => self.queue.len() > 1,
            },
            _ => false,
        }
    }
}

impl ReaderState {
    /// Records that the reader is blocked, or no longer blocked.
    fn set_blocked(&mut self, on: Option<BlockedOn>) {
        match on {
            Some(on) => self.blocked.begin(on, now()),
            None => self.blocked.end(now()),
        }
    }
}

impl Delivery {
    fn volume(&self) -> Volume {
        Volume { rows: self.chunk.rows as u64, bytes: self.chunk.value_bytes as u64 }
    }
}

impl MemoryPermit {
    pub(super) fn size(&self) -> usize {
        self.size
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        let mut state = self.channel.lock();
        state.memory.release(self.size);
        self.channel.room(state);
        self.channel.observer.metrics.memory_given(self.size);
    }
}

impl From<Error> for Interrupt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Called without the lock, because a waker can run any code.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
