use std::time::Duration;

/// Where a stream stands, as its reader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamState {
    /// Rows come as fast as they are read.
    Running,
    /// [`pause`](crate::QueryStream::pause) was called: nothing is read from the server.
    Paused,
    /// Every row was read, and the end after it.
    Completed,
    /// An error that ends the stream was read.
    Failed,
    /// It was cancelled, or dropped before its end.
    Cancelled,
}

/// What a stream has done and holds at the moment.
///
/// Counts are exact, and at any moment `total_rows_received` is the sum of `total_rows_yielded`,
/// `total_rows_filtered`, `total_rows_failed`, `total_rows_discarded` and `items_buffered`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StreamStats {
    /// Where the stream stands.
    pub state: StreamState,
    /// Rows that were received and not yet read.
    pub items_buffered: u64,
    /// Bytes of JSON in these rows.
    pub bytes_buffered: usize,
    /// Every byte of buffer the stream holds: rows not yet read, what the protocol puts around
    /// them, and the buffer that is read into.
    pub estimated_memory: usize,
    /// The most that [`estimated_memory`](Self::estimated_memory) ever was.
    pub peak_memory: usize,
    /// Rows given to the reader of the stream as a `T`.
    pub total_rows_yielded: u64,
    /// Rows that a Rust predicate rejected.
    pub total_rows_filtered: u64,
    /// Rows that could not be decoded, each given as an error.
    pub total_rows_failed: u64,
    /// Rows that nobody has read, because the stream was cancelled or dropped.
    pub total_rows_discarded: u64,
    /// Rows received from the server.
    pub total_rows_received: u64,
    /// Bytes of JSON in the rows received.
    pub total_bytes_received: u64,
    /// The most rows the next chunk holds.
    pub chunk_size: usize,
    /// Chunks received: rows that came together and were handed over in one piece.
    pub chunks_received: u64,
    /// How often `chunk_size` has changed.
    pub chunk_adjustments: u64,
    /// How often the stream was paused.
    pub pauses: u64,
    /// For how long it was paused in all.
    pub paused_for: Duration,
    /// Why it is paused at the moment, if that was said.
    pub pause_reason: Option<String>,
    /// How often the stream has gone on behind its last row on another connection: see
    /// [`resume_by`](crate::QueryBuilder::resume_by).
    pub resumptions: u64,
    /// From `execute()` to the arrival of the first row.
    pub time_to_first_row: Option<Duration>,
    /// From `execute()` until now, or until the end was read.
    pub elapsed: Duration,
    /// Total time in which nothing was read because the buffers were full. In a
    /// [`parallel`](crate::QueryBuilder::parallel) stream, the sum over its connections: up to `n`
    /// times `elapsed`.
    pub time_blocked_on_consumer: Duration,
    /// Total time in which the stream wanted rows and the server sent none. In a
    /// [`parallel`](crate::QueryBuilder::parallel) stream, the sum over its connections.
    pub time_blocked_on_server: Duration,
}
