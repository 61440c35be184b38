//! Counts of rows, bytes and chunks.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

#[derive(Debug, Default, Clone, Copy)]
pub(in crate::stream_impl) struct Volume {
    pub(in crate::stream_impl) rows: u64,
    pub(in crate::stream_impl) bytes: u64,
}

impl Volume {
    pub(super) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
    }

    pub(super) fn since(self, earlier: Self) -> Self {
        let rows = self.rows.saturating_sub(earlier.rows);
        Self { rows, bytes: self.bytes.saturating_sub(earlier.bytes) }
    }
}

/// Counts of what was enqueued.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Received {
    pub(super) volume: Volume,
    pub(super) chunks: u64,
    pub(super) first_row: Option<Instant>,
}

impl Received {
    /// Adds a chunk that arrived at `now`. Returns whether it is the first one.
    pub(super) fn add(&mut self, chunk: Volume, now: impl FnOnce() -> Instant) -> bool {
        let is_first = self.first_row.is_none();
        self.first_row.get_or_insert_with(now);
        self.volume.add(chunk);
        self.chunks += 1;
        is_first
    }
}

/// Counts of what the stream has read from chunks. Only the stream writes them, so additions need
/// not be atomic.
#[derive(Debug, Default)]
pub(in crate::stream_impl) struct Consumed {
    pub(in crate::stream_impl) yielded: Count,
    pub(in crate::stream_impl) filtered: Count,
    pub(in crate::stream_impl) failed: Count,
    /// Bytes of JSON in all these rows.
    pub(in crate::stream_impl) bytes: Count,
}

impl Consumed {
    pub(super) fn volume(&self) -> Volume {
        let rows = self.yielded.get() + self.filtered.get() + self.failed.get();
        Volume { rows, bytes: self.bytes.get() }
    }
}

#[derive(Debug, Default)]
pub(in crate::stream_impl) struct Count(AtomicU64);

impl Count {
    #[inline]
    pub(in crate::stream_impl) fn add(&self, n: u64) {
        self.0.store(self.get() + n, Relaxed);
    }

    pub(in crate::stream_impl) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
