use std::time::Duration;

/// The state of a stream, as its consumer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamState {
    /// Rows are being read.
    Running,
    /// The stream is paused by [`pause`](crate::QueryStream::pause): nothing is read from the
    /// server.
    Paused,
    /// The consumer has read every row and the end of the stream.
    Completed,
    /// The consumer has read an error that ended the stream.
    Failed,
    /// The stream was cancelled, or dropped before its end.
    Cancelled,
}

/// Statistics of a stream.
///
/// Counts are exact. At any time, `total_rows_received` equals the sum of `total_rows_yielded`,
/// `total_rows_filtered`, `total_rows_failed`, `total_rows_discarded` and `items_buffered`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StreamStats {
    /// The state of the stream.
    pub state: StreamState,
    /// Number of rows received and not yet read.
    pub items_buffered: u64,
    /// Bytes of JSON in these rows.
    pub bytes_buffered: usize,
    /// Memory that the stream uses, in bytes.
    ///
    /// It consists of unread rows, with their protocol overhead, and of the read buffer.
    pub estimated_memory: usize,
    /// Maximum of [`estimated_memory`](Self::estimated_memory) so far.
    pub peak_memory: usize,
    /// Number of rows returned to the consumer.
    pub total_rows_yielded: u64,
    /// Number of rows rejected by a Rust predicate.
    pub total_rows_filtered: u64,
    /// Number of rows that could not be decoded, each returned as an error.
    pub total_rows_failed: u64,
    /// Number of rows that were never read, because the stream ended before its last row.
    pub total_rows_discarded: u64,
    /// Number of rows received from the server.
    pub total_rows_received: u64,
    /// Bytes of JSON in the received rows.
    pub total_bytes_received: u64,
    /// Maximum number of rows in the next chunk.
    pub chunk_size: usize,
    /// Number of chunks received. A chunk is a batch of rows that is delivered together.
    pub chunks_received: u64,
    /// Number of times that an adaptive `chunk_size` changed.
    pub chunk_adjustments: u64,
    /// Number of pauses.
    pub pauses: u64,
    /// Total duration of all pauses.
    pub paused_for: Duration,
    /// Reason of the current pause, if one was given.
    pub pause_reason: Option<String>,
    /// Number of times the stream was resumed on a new connection: see
    /// [`resume_by`](crate::QueryBuilder::resume_by).
    pub resumptions: u64,
    /// Time from `execute()` to the arrival of the first row.
    pub time_to_first_row: Option<Duration>,
    /// Time from `execute()` until now, or until the consumer read the end of the stream.
    pub elapsed: Duration,
    /// Total time in which nothing was read because the buffers were full. In a
    /// [`parallel`](crate::QueryBuilder::parallel) stream, this is the sum over its connections, up
    /// to `n` times `elapsed`.
    pub time_blocked_on_consumer: Duration,
    /// Total time in which the stream waited for rows and the server sent none. In a
    /// [`parallel`](crate::QueryBuilder::parallel) stream, this is the sum over its connections.
    pub time_blocked_on_server: Duration,
}
