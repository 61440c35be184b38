use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ::metrics::{Counter, Gauge, Histogram, SharedString, counter, gauge, histogram};

use super::{bounded::Bounded, catalog::*};

static ENTITIES: Bounded = Bounded::new();
static REASONS: Bounded = Bounded::new();

/// What a query is like.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct QueryLabels<'a> {
    pub(crate) entity: &'a str,
    pub(crate) has_where_sql: bool,
    pub(crate) has_filter: bool,
    pub(crate) has_where_rust: bool,
    pub(crate) has_order_by: bool,
}

/// The numbers of one query. Handles that are used once a chunk are taken once.
pub(crate) struct QueryMetrics {
    entity: SharedString,
    over: AtomicBool,
    rows_received: Counter,
    bytes_received: Counter,
    rows_yielded: Counter,
    rows_filtered: Counter,
    rows_deserialized: Counter,
    chunk_rows: Histogram,
    chunk_bytes: Histogram,
    chunk_processing: Histogram,
    json_decode: Histogram,
    filter: Histogram,
    send_wait: Histogram,
    socket_wait: Histogram,
    occupancy: Histogram,
    buffered_rows: Gauge,
    buffered_bytes: Gauge,
    read_buffer: Gauge,
    streams_active: Gauge,
}

/// What was seen of a chunk where it was handed over.
pub(crate) struct ChunkSeen {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) waited_for_consumer: Duration,
    pub(crate) waited_for_server: Duration,
    pub(crate) occupancy: f64,
}

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failed { category: &'static str, by_timeout: bool, by_memory: bool },
    Dropped,
    Cancelled,
}

impl QueryMetrics {
    /// A query is executed.
    pub(crate) fn begin(labels: QueryLabels<'_>) -> Self {
        let entity = ENTITIES.value(labels.entity);
        let flag = |flag: bool| if flag { "true" } else { "false" };
        counter!(
            QUERIES_TOTAL,
            "entity" => entity.clone(),
            "has_where_sql" => flag(labels.has_where_sql),
            "has_filter" => flag(labels.has_filter),
            "has_where_rust" => flag(labels.has_where_rust),
            "has_order_by" => flag(labels.has_order_by),
        )
        .increment(1);
        let count = |name| counter!(name, "entity" => entity.clone());
        let spread = |name| histogram!(name, "entity" => entity.clone());
        let level = |name| gauge!(name, "entity" => entity.clone());
        Self {
            over: AtomicBool::new(false),
            rows_received: count(ROWS_RECEIVED_TOTAL),
            bytes_received: count(BYTES_RECEIVED_TOTAL),
            rows_yielded: count(ROWS_YIELDED_TOTAL),
            rows_filtered: count(ROWS_FILTERED_TOTAL),
            rows_deserialized: count(ROWS_DESERIALIZED_TOTAL),
            chunk_rows: spread(CHUNK_ROWS),
            chunk_bytes: spread(CHUNK_BYTES),
            chunk_processing: spread(CHUNK_PROCESSING_DURATION_SECONDS),
            json_decode: spread(JSON_DECODE_DURATION_SECONDS),
            filter: spread(FILTER_DURATION_SECONDS),
            send_wait: spread(CHANNEL_SEND_WAIT_SECONDS),
            socket_wait: spread(SOCKET_WAIT_SECONDS),
            occupancy: spread(CHANNEL_OCCUPANCY_RATIO),
            buffered_rows: level(STREAM_BUFFERED_ROWS),
            buffered_bytes: level(STREAM_BUFFERED_BYTES),
            read_buffer: gauge!(READ_BUFFER_BYTES),
            streams_active: level(STREAMS_ACTIVE),
            entity,
        }
    }

    fn count(&self, name: &'static str) -> Counter {
        counter!(name, "entity" => self.entity.clone())
    }

    fn spread(&self, name: &'static str) -> Histogram {
        histogram!(name, "entity" => self.entity.clone())
    }

    fn count_by(&self, name: &'static str, key: &'static str, value: impl Into<SharedString>) {
        counter!(name, "entity" => self.entity.clone(), key => value.into()).increment(1);
    }

    /// The server has begun to answer, and the stream lives.
    pub(crate) fn started(&self, after: Duration) {
        self.spread(QUERY_STARTUP_DURATION_SECONDS).record(after);
        self.streams_active.increment(1);
    }

    /// It goes on on another connection.
    pub(crate) fn resumed_elsewhere(&self) {
        self.count(QUERIES_RESUMED_TOTAL).increment(1);
    }

    /// The stream lives no more.
    pub(crate) fn stopped(&self) {
        self.streams_active.decrement(1);
    }

    /// The query is over; only the first time counts.
    pub(crate) fn over(&self, outcome: Outcome, elapsed: Duration, rows: u64, bytes: u64) {
        if self.over.swap(true, Ordering::Relaxed) {
            return;
        }
        let status = match outcome {
            Outcome::Success => {
                self.count(QUERY_SUCCESS_TOTAL).increment(1);
                "success"
            }
            Outcome::Failed { category, by_timeout, by_memory } => {
                self.count_by(QUERY_ERROR_TOTAL, "category", category);
                if by_timeout {
                    self.count_by(QUERY_CANCELLED_TOTAL, "cause", "timeout");
                }
                if by_memory {
                    self.count(MEMORY_LIMIT_EXCEEDED_TOTAL).increment(1);
                }
                "error"
            }
            Outcome::Dropped => {
                self.count_by(QUERY_CANCELLED_TOTAL, "cause", "drop");
                "cancelled"
            }
            Outcome::Cancelled => {
                self.count_by(QUERY_CANCELLED_TOTAL, "cause", "cancel");
                "cancelled"
            }
        };
        self.count_by(QUERY_COMPLETED_TOTAL, "status", status);
        let entity = self.entity.clone();
        histogram!(QUERY_DURATION_SECONDS, "entity" => entity, "status" => status).record(elapsed);
        self.spread(QUERY_ROWS).record(rows as f64);
        self.spread(QUERY_BYTES).record(bytes as f64);
    }

    pub(crate) fn first_row(&self, after: Duration) {
        self.spread(TIME_TO_FIRST_ROW_SECONDS).record(after);
    }

    pub(crate) fn chunk(&self, seen: &ChunkSeen) {
        self.rows_received.increment(seen.rows);
        self.bytes_received.increment(seen.bytes);
        self.buffered_rows.increment(seen.rows as f64);
        self.buffered_bytes.increment(seen.bytes as f64);
        self.chunk_rows.record(seen.rows as f64);
        self.chunk_bytes.record(seen.bytes as f64);
        self.send_wait.record(seen.waited_for_consumer);
        self.socket_wait.record(seen.waited_for_server);
        self.occupancy.record(seen.occupancy);
    }

    /// So much was taken out of the buffer, whatever became of it.
    pub(crate) fn taken(&self, rows: u64, bytes: u64) {
        self.buffered_rows.decrement(rows as f64);
        self.buffered_bytes.decrement(bytes as f64);
    }

    pub(crate) fn rows(&self, yielded: u64, filtered: u64, deserialized: u64) {
        self.rows_yielded.increment(yielded);
        self.rows_filtered.increment(filtered);
        self.rows_deserialized.increment(deserialized);
    }

    pub(crate) fn discarded(&self, rows: u64) {
        self.count(ROWS_DISCARDED_TOTAL).increment(rows);
    }

    /// `reason`: `syntax`, `data`, `eof`, `utf8`.
    pub(crate) fn row_failed(&self, reason: &'static str) {
        self.count_by(ROWS_DESERIALIZATION_FAILED_TOTAL, "reason", reason);
        if reason != "data" {
            self.count(JSON_PARSE_ERRORS_TOTAL).increment(1);
        }
    }

    pub(crate) fn chunk_processed(&self, took: Duration) {
        self.chunk_processing.record(took);
    }

    pub(crate) fn decoded(&self, took: Duration) {
        self.json_decode.record(took);
    }

    pub(crate) fn filtered(&self, took: Duration) {
        self.filter.record(took);
    }

    pub(crate) fn chunk_size(&self, rows: usize) {
        gauge!(CHUNK_SIZE_ROWS, "entity" => self.entity.clone()).set(rows as f64);
    }

    pub(crate) fn chunk_size_adjusted(&self, up: bool) {
        let direction = if up { "up" } else { "down" };
        self.count_by(ADAPTIVE_CHUNK_ADJUSTED_TOTAL, "direction", direction);
    }

    pub(crate) fn memory_taken(&self, bytes: usize) {
        self.read_buffer.increment(bytes as f64);
    }

    pub(crate) fn memory_given(&self, bytes: usize) {
        self.read_buffer.decrement(bytes as f64);
    }

    pub(crate) fn soft_limit_crossed(&self) {
        self.count(MEMORY_SOFT_LIMIT_WARNED_TOTAL).increment(1);
    }

    pub(crate) fn paused(&self, reason: Option<&str>) {
        let reason = reason.map_or(SharedString::const_str(""), |reason| REASONS.value(reason));
        self.count_by(STREAM_PAUSED_TOTAL, "reason", reason);
    }

    /// A pause is over: by `resume()`, by its timeout, or (`None`) by the end of the stream.
    pub(crate) fn resumed(&self, cause: Option<&'static str>, lasted: Duration) {
        if let Some(cause) = cause {
            self.count_by(STREAM_RESUMED_TOTAL, "cause", cause);
        }
        if cause == Some("timeout") {
            self.count(STREAM_PAUSE_TIMEOUT_EXPIRED_TOTAL).increment(1);
        }
        self.spread(STREAM_PAUSE_DURATION_SECONDS).record(lasted);
    }
}

impl fmt::Debug for QueryMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryMetrics").field("entity", &self.entity).finish_non_exhaustive()
    }
}
