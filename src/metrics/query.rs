use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use ::metrics::{
    Counter, Gauge, Histogram, SharedString, counter, gauge, histogram, with_recorder,
};

use super::{catalog::*, labels::UserLabel};
use crate::sync::lock;

static ENTITIES: UserLabel = UserLabel::new();
static REASONS: UserLabel = UserLabel::new();

/// The labels of a query.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct QueryLabels<'a> {
    pub(crate) entity: &'a str,
    pub(crate) has_where_sql: bool,
    pub(crate) has_filter: bool,
    pub(crate) has_where_rust: bool,
    pub(crate) has_order_by: bool,
}

/// The metric handles of one relation, which the queries of one client share.
///
/// Looking up a handle costs a key, its labels and a hash, and a short query needs about thirty
/// handles. Rare metrics are looked up when they are updated, so that a recorder has no series
/// before its first value.
struct EntityMetrics {
    entity: SharedString,
    queries: [OnceLock<Counter>; 16],
    succeeded: OnceLock<Counter>,
    completed: OnceLock<Counter>,
    duration: OnceLock<Histogram>,
    startup: OnceLock<Histogram>,
    first_row: OnceLock<Histogram>,
    rows: OnceLock<Histogram>,
    bytes: OnceLock<Histogram>,
    rows_discarded: OnceLock<Counter>,
    chunk_size: OnceLock<Gauge>,
    statement_hits: OnceLock<Counter>,
    statement_misses: OnceLock<Counter>,
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

impl EntityMetrics {
    fn new(entity: &str) -> Self {
        let entity = ENTITIES.value(entity);
        let count = |name| counter!(name, "entity" => entity.clone());
        let histogram = |name| histogram!(name, "entity" => entity.clone());
        let gauge = |name| gauge!(name, "entity" => entity.clone());
        Self {
            queries: [const { OnceLock::new() }; 16],
            succeeded: OnceLock::new(),
            completed: OnceLock::new(),
            duration: OnceLock::new(),
            startup: OnceLock::new(),
            first_row: OnceLock::new(),
            rows: OnceLock::new(),
            bytes: OnceLock::new(),
            rows_discarded: OnceLock::new(),
            chunk_size: OnceLock::new(),
            statement_hits: OnceLock::new(),
            statement_misses: OnceLock::new(),
            rows_received: count(ROWS_RECEIVED_TOTAL),
            bytes_received: count(BYTES_RECEIVED_TOTAL),
            rows_yielded: count(ROWS_YIELDED_TOTAL),
            rows_filtered: count(ROWS_FILTERED_TOTAL),
            rows_deserialized: count(ROWS_DESERIALIZED_TOTAL),
            chunk_rows: histogram(CHUNK_ROWS),
            chunk_bytes: histogram(CHUNK_BYTES),
            chunk_processing: histogram(CHUNK_PROCESSING_DURATION_SECONDS),
            json_decode: histogram(JSON_DECODE_DURATION_SECONDS),
            filter: histogram(FILTER_DURATION_SECONDS),
            send_wait: histogram(CHANNEL_SEND_WAIT_SECONDS),
            socket_wait: histogram(SOCKET_WAIT_SECONDS),
            occupancy: histogram(CHANNEL_OCCUPANCY_RATIO),
            buffered_rows: gauge(STREAM_BUFFERED_ROWS),
            buffered_bytes: gauge(STREAM_BUFFERED_BYTES),
            read_buffer: gauge!(READ_BUFFER_BYTES),
            streams_active: gauge(STREAMS_ACTIVE),
            entity,
        }
    }

    fn count_query(&self, labels: &QueryLabels<'_>) {
        let flags =
            [labels.has_where_sql, labels.has_filter, labels.has_where_rust, labels.has_order_by];
        let index = flags.iter().fold(0, |index, flag| index << 1 | usize::from(*flag));
        let [where_sql, filter, where_rust, order_by] =
            flags.map(|flag| if flag { "true" } else { "false" });
        let new = || {
            counter!(
                QUERIES_TOTAL,
                "entity" => self.entity.clone(),
                "has_where_sql" => where_sql,
                "has_filter" => filter,
                "has_where_rust" => where_rust,
                "has_order_by" => order_by,
            )
        };
        if let Some(queries) = self.queries.get(index) {
            queries.get_or_init(new).increment(1);
        }
    }
}

/// The handles of one client, by relation.
///
/// They belong to the recorder that was installed when they were created. If another recorder is
/// found (installed late, or by a test), they are created again.
#[derive(Debug, Default)]
pub(crate) struct QueryMetricsCache(Mutex<BTreeMap<String, (usize, Arc<EntityMetrics>)>>);

/// The maximum number of relations whose handles are kept. Names are written in code, so a client
/// has few.
const MAX_CACHED: usize = 256;

impl QueryMetricsCache {
    fn entity(&self, name: &str) -> Arc<EntityMetrics> {
        let recorder = with_recorder(|recorder| std::ptr::from_ref(recorder).cast::<()>().addr());
        let mut cached = lock(&self.0);
        match cached.get(name) {
            Some((made_for, entity)) if *made_for == recorder => return Arc::clone(entity),
            _ => {}
        }
        let entity = Arc::new(EntityMetrics::new(name));
        if cached.len() >= MAX_CACHED {
            cached.clear();
        }
        cached.insert(name.to_owned(), (recorder, Arc::clone(&entity)));
        entity
    }
}

/// The metrics of one query.
pub(crate) struct QueryMetrics {
    metrics: Arc<EntityMetrics>,
}

/// Measurements of a chunk at the time of its delivery.
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

/// Why a row could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowFailure {
    /// It is not JSON, or exceeds the limits of the decoder.
    Syntax,
    /// It is JSON, but does not match the type.
    Data,
    /// It ends in the middle of a value.
    Eof,
    Utf8,
}

impl RowFailure {
    fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Data => "data",
            Self::Eof => "eof",
            Self::Utf8 => "utf8",
        }
    }
}

/// How a pause ended, if the stream continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseEnd {
    Resume,
    Timeout,
}

impl PauseEnd {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Timeout => "timeout",
        }
    }
}

/// Why a query was sent again with another statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reprepared {
    /// The server no longer has the statement.
    Missing,
    /// The result of the statement has changed.
    Changed,
    /// The server already has the statement.
    Exists,
}

impl Reprepared {
    fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::Exists => "exists",
        }
    }
}

impl QueryMetrics {
    /// Counts a query that was executed.
    pub(crate) fn begin(cache: &QueryMetricsCache, labels: QueryLabels<'_>) -> Self {
        let metrics = cache.entity(labels.entity);
        metrics.count_query(&labels);
        Self { metrics }
    }

    fn entity(&self) -> SharedString {
        self.metrics.entity.clone()
    }

    fn count(&self, name: &'static str) -> Counter {
        counter!(name, "entity" => self.entity())
    }

    fn histogram(&self, name: &'static str) -> Histogram {
        histogram!(name, "entity" => self.entity())
    }

    fn count_by(&self, name: &'static str, key: &'static str, value: impl Into<SharedString>) {
        counter!(name, "entity" => self.entity(), key => value.into()).increment(1);
    }

    /// Records the start of the response, and counts the stream as active.
    pub(crate) fn started(&self, after: Duration) {
        let new = || self.histogram(QUERY_STARTUP_DURATION_SECONDS);
        self.metrics.startup.get_or_init(new).record(after);
        self.metrics.streams_active.increment(1);
    }

    /// Counts a resumption on a new connection.
    pub(crate) fn resumed_elsewhere(&self) {
        self.count(QUERIES_RESUMED_TOTAL).increment(1);
    }

    /// Counts the stream as no longer active.
    pub(crate) fn stopped(&self) {
        self.metrics.streams_active.decrement(1);
    }

    /// Records the end of the query. Called once.
    pub(crate) fn finish(&self, outcome: Outcome, elapsed: Duration, rows: u64, bytes: u64) {
        let status = match outcome {
            Outcome::Success => {
                let new = || self.count(QUERY_SUCCESS_TOTAL);
                self.metrics.succeeded.get_or_init(new).increment(1);
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
        let completed =
            || counter!(QUERY_COMPLETED_TOTAL, "entity" => self.entity(), "status" => status);
        let duration =
            || histogram!(QUERY_DURATION_SECONDS, "entity" => self.entity(), "status" => status);
        if status == "success" {
            self.metrics.completed.get_or_init(completed).increment(1);
            self.metrics.duration.get_or_init(duration).record(elapsed);
        } else {
            completed().increment(1);
            duration().record(elapsed);
        }
        self.metrics.rows.get_or_init(|| self.histogram(QUERY_ROWS)).record(rows as f64);
        self.metrics.bytes.get_or_init(|| self.histogram(QUERY_BYTES)).record(bytes as f64);
    }

    pub(crate) fn first_row(&self, after: Duration) {
        let new = || self.histogram(TIME_TO_FIRST_ROW_SECONDS);
        self.metrics.first_row.get_or_init(new).record(after);
    }

    pub(crate) fn chunk(&self, seen: &ChunkSeen) {
        self.metrics.rows_received.increment(seen.rows);
        self.metrics.bytes_received.increment(seen.bytes);
        self.metrics.buffered_rows.increment(seen.rows as f64);
        self.metrics.buffered_bytes.increment(seen.bytes as f64);
        self.metrics.chunk_rows.record(seen.rows as f64);
        self.metrics.chunk_bytes.record(seen.bytes as f64);
        self.metrics.send_wait.record(seen.waited_for_consumer);
        self.metrics.socket_wait.record(seen.waited_for_server);
        self.metrics.occupancy.record(seen.occupancy);
    }

    /// Records rows that left the buffer, whether they were read or discarded.
    pub(crate) fn taken(&self, rows: u64, bytes: u64) {
        self.metrics.buffered_rows.decrement(rows as f64);
        self.metrics.buffered_bytes.decrement(bytes as f64);
    }

    pub(crate) fn rows(&self, yielded: u64, filtered: u64, deserialized: u64) {
        self.metrics.rows_yielded.increment(yielded);
        self.metrics.rows_filtered.increment(filtered);
        self.metrics.rows_deserialized.increment(deserialized);
    }

    pub(crate) fn discarded(&self, rows: u64) {
        let new = || self.count(ROWS_DISCARDED_TOTAL);
        self.metrics.rows_discarded.get_or_init(new).increment(rows);
    }

    pub(crate) fn row_failed(&self, reason: RowFailure) {
        self.count_by(ROWS_DESERIALIZATION_FAILED_TOTAL, "reason", reason.as_str());
        if reason != RowFailure::Data {
            self.count(JSON_PARSE_ERRORS_TOTAL).increment(1);
        }
    }

    pub(crate) fn chunk_processed(&self, took: Duration) {
        self.metrics.chunk_processing.record(took);
    }

    pub(crate) fn decoded(&self, took: Duration) {
        self.metrics.json_decode.record(took);
    }

    pub(crate) fn filtered(&self, took: Duration) {
        self.metrics.filter.record(took);
    }

    pub(crate) fn chunk_size(&self, rows: usize) {
        let new = || gauge!(CHUNK_SIZE_ROWS, "entity" => self.entity());
        self.metrics.chunk_size.get_or_init(new).set(rows as f64);
    }

    pub(crate) fn chunk_size_adjusted(&self, up: bool) {
        let direction = if up { "up" } else { "down" };
        self.count_by(ADAPTIVE_CHUNK_ADJUSTED_TOTAL, "direction", direction);
    }

    pub(crate) fn memory_taken(&self, bytes: usize) {
        self.metrics.read_buffer.increment(bytes as f64);
    }

    pub(crate) fn memory_given(&self, bytes: usize) {
        self.metrics.read_buffer.decrement(bytes as f64);
    }

    pub(crate) fn soft_limit_crossed(&self) {
        self.count(MEMORY_SOFT_LIMIT_WARNED_TOTAL).increment(1);
    }

    pub(crate) fn paused(&self, reason: Option<&str>) {
        let reason = reason.map_or(SharedString::const_str(""), |reason| REASONS.value(reason));
        self.count_by(STREAM_PAUSED_TOTAL, "reason", reason);
    }

    /// Records the end of a pause. `cause` is `None` if the stream ended.
    pub(crate) fn resumed(&self, cause: Option<PauseEnd>, lasted: Duration) {
        if let Some(cause) = cause {
            self.count_by(STREAM_RESUMED_TOTAL, "cause", cause.as_str());
        }
        if cause == Some(PauseEnd::Timeout) {
            self.count(STREAM_PAUSE_TIMEOUT_EXPIRED_TOTAL).increment(1);
        }
        self.histogram(STREAM_PAUSE_DURATION_SECONDS).record(lasted);
    }
}

/// Metrics of prepared statements.
impl QueryMetrics {
    /// Counts a query whose statement was already prepared.
    pub(crate) fn statement_hit(&self) {
        let new = || self.count(STATEMENT_CACHE_HITS_TOTAL);
        self.metrics.statement_hits.get_or_init(new).increment(1);
    }

    /// Counts a query whose text has to be parsed although statements are cached.
    pub(crate) fn statement_missed(&self) {
        let new = || self.count(STATEMENT_CACHE_MISSES_TOTAL);
        self.metrics.statement_misses.get_or_init(new).increment(1);
    }

    pub(crate) fn statements_evicted(&self, statements: u64) {
        if statements > 0 {
            self.count(STATEMENT_CACHE_EVICTIONS_TOTAL).increment(statements);
        }
    }

    pub(crate) fn statement_reprepared(&self, reason: Reprepared) {
        self.count_by(STATEMENTS_REPREPARED_TOTAL, "reason", reason.as_str());
    }
}

impl fmt::Debug for QueryMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryMetrics").field("entity", &self.entity()).finish_non_exhaustive()
    }
}

impl fmt::Debug for EntityMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntityMetrics").field("entity", &self.entity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ::metrics::{NoopRecorder, with_local_recorder};
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;

    #[test]
    fn handles_are_shared_until_another_recorder_is_found() {
        let cache = QueryMetricsCache::default();
        let first = cache.entity("v");
        assert!(Arc::ptr_eq(&first, &cache.entity("v")));
        assert!(!Arc::ptr_eq(&first, &cache.entity("w")));
        // A zero-sized recorder has no unique address.
        let recorder = (NoopRecorder, 7_u64);
        with_local_recorder(&recorder.0, || assert!(!Arc::ptr_eq(&first, &cache.entity("v"))));
    }

    #[test]
    fn statements_are_counted_by_relation() {
        let recorder = DebuggingRecorder::new();
        with_local_recorder(&recorder, || {
            let labels = QueryLabels { entity: "v", ..QueryLabels::default() };
            let metrics = QueryMetrics::begin(&QueryMetricsCache::default(), labels);
            metrics.statement_hit();
            metrics.statement_hit();
            metrics.statement_missed();
            metrics.statements_evicted(0);
            metrics.statement_reprepared(Reprepared::Missing);
            metrics.statement_reprepared(Reprepared::Changed);
            metrics.statement_reprepared(Reprepared::Exists);
        });
        let mut counted: Vec<_> = recorder
            .snapshotter()
            .snapshot()
            .into_vec()
            .into_iter()
            .filter_map(|(key, _, _, value)| {
                let name = key.key().name().strip_prefix("fraiseql_wire_statement")?.to_owned();
                let labels: Vec<_> = key.key().labels().map(|l| l.value().to_owned()).collect();
                Some((name, labels.join(" "), value))
            })
            .collect();
        counted.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let expected = [
            ("_cache_hits_total", "v", 2),
            ("_cache_misses_total", "v", 1),
            ("s_reprepared_total", "v changed", 1),
            ("s_reprepared_total", "v exists", 1),
            ("s_reprepared_total", "v missing", 1),
        ];
        let expected =
            expected.map(|(name, labels, n)| (name.into(), labels.into(), DebugValue::Counter(n)));
        assert_eq!(counted, expected);
    }

    #[test]
    fn cached_handles_are_bounded() {
        let cache = QueryMetricsCache::default();
        for i in 0..2 * MAX_CACHED {
            cache.entity(&i.to_string());
        }
        assert!(cache.0.lock().unwrap().len() <= MAX_CACHED);
    }
}
