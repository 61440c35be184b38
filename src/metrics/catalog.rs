use super::metric::{Metric, MetricKind};

macro_rules! catalog {
    ($($constant:ident $name:literal $kind:ident $unit:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &str = concat!("fraiseql_wire_", $name);
        )*

        /// The metrics of the crate, except those of pools.
        pub const CATALOG: &[Metric] = &[$(Metric {
            name: $constant,
            kind: MetricKind::$kind,
            unit: $unit,
            labels: &[$($label),*],
            help: $help,
        }),*];
    };
}

catalog! {
    QUERIES_TOTAL "queries_total" Counter "queries"
        ["entity", "has_where_sql", "has_filter", "has_where_rust", "has_order_by"]
        "Queries executed.";
    QUERY_SUCCESS_TOTAL "query_success_total" Counter "queries" ["entity"]
        "Queries that returned their complete result.";
    QUERY_ERROR_TOTAL "query_error_total" Counter "queries" ["entity", "category"]
        "Queries that failed, before or after their first row.";
    QUERY_CANCELLED_TOTAL "query_cancelled_total" Counter "queries" ["entity", "cause"]
        "Queries that were stopped, by cause: drop, cancel, or timeout, which also counts as an \
         error.";
    QUERY_COMPLETED_TOTAL "query_completed_total" Counter "queries" ["entity", "status"]
        "Queries that have finished, each once, by status: success, error, or cancelled.";
    ROWS_RECEIVED_TOTAL "rows_received_total" Counter "rows" ["entity"]
        "Rows received from the server.";
    ROWS_YIELDED_TOTAL "rows_yielded_total" Counter "rows" ["entity"]
        "Rows delivered to the consumer.";
    ROWS_FILTERED_TOTAL "rows_filtered_total" Counter "rows" ["entity"]
        "Rows rejected by a Rust predicate.";
    ROWS_DISCARDED_TOTAL "rows_discarded_total" Counter "rows" ["entity"]
        "Rows received but never read, because their query was stopped.";
    ROWS_DESERIALIZED_TOTAL "rows_deserialized_total" Counter "rows" ["entity"]
        "Rows decoded into the requested type.";
    ROWS_DESERIALIZATION_FAILED_TOTAL "rows_deserialization_failed_total" Counter "rows"
        ["entity", "reason"]
        "Rows that could not be decoded, by reason: syntax, data, eof, or utf8.";
    JSON_PARSE_ERRORS_TOTAL "json_parse_errors_total" Counter "rows" ["entity"]
        "Rows that are not valid JSON, or valid JSON beyond the limits of the decoder.";
    BYTES_RECEIVED_TOTAL "bytes_received_total" Counter "bytes" ["entity"]
        "Bytes of JSON in the received rows.";
    ERRORS_TOTAL "errors_total" Counter "errors" ["category", "phase"]
        "Errors other than row errors, by phase: resolve, connect, tls, auth, startup, query \
         (before the first row), stream, or drain.";
    PROTOCOL_ERRORS_TOTAL "protocol_errors_total" Counter "errors" ["message"]
        "Messages from servers that were malformed or unexpected.";
    NOTICES_TOTAL "notices_total" Counter "notices" ["severity"]
        "Notices and warnings from servers.";
    CONNECTIONS_CREATED_TOTAL "connections_created_total" Counter "connections" ["transport", "tls"]
        "Connections that became ready for a query.";
    CONNECTIONS_FAILED_TOTAL "connections_failed_total" Counter "attempts" ["phase", "category"]
        "Failed attempts to connect, one per address and kind of encryption; the category of an \
         attempt that the caller abandoned is cancelled.";
    CONNECTIONS_CLOSED_TOTAL "connections_closed_total" Counter "connections" ["reason"]
        "Connections that were closed, by reason: close (by the client), server (while in use), \
         idle (by the server while idle), drain_limit (drain_limit or cancel_timeout exceeded), \
         or broken.";
    RECONNECTS_TOTAL "reconnects_total" Counter "connections" []
        "Connections that replaced an earlier connection of their client.";
    AUTHENTICATIONS_TOTAL "authentications_total" Counter "logins" ["mechanism"]
        "Logins that have finished; the mechanism is trust if the server requested no \
         authentication.";
    AUTHENTICATIONS_SUCCESSFUL_TOTAL "authentications_successful_total" Counter "logins" ["mechanism"]
        "Logins that succeeded.";
    AUTHENTICATIONS_FAILED_TOTAL "authentications_failed_total" Counter "logins"
        ["mechanism", "reason"]
        "Failed logins by reason: rejected, refused_by_policy, no_password, malformed, \
         server_signature, or lost.";
    CANCEL_REQUESTS_TOTAL "cancel_requests_total" Counter "requests" ["outcome"]
        "Cancel requests by outcome: sent, failed, or timeout (abandoned).";
    MEMORY_LIMIT_EXCEEDED_TOTAL "memory_limit_exceeded_total" Counter "queries" ["entity"]
        "Queries that ended at their memory limit.";
    MEMORY_SOFT_LIMIT_WARNED_TOTAL "memory_soft_limit_warned_total" Counter "crossings" ["entity"]
        "Crossings of a soft memory limit.";
    ADAPTIVE_CHUNK_ADJUSTED_TOTAL "adaptive_chunk_adjusted_total" Counter "changes"
        ["entity", "direction"]
        "Changes of an adaptive chunk size, up or down.";
    STREAM_PAUSED_TOTAL "stream_paused_total" Counter "pauses" ["entity", "reason"]
        "Pauses that started; the reason is empty if none was given.";
    STREAM_RESUMED_TOTAL "stream_resumed_total" Counter "pauses" ["entity", "cause"]
        "Pauses that ended, by cause: resume or timeout.";
    STREAM_PAUSE_TIMEOUT_EXPIRED_TOTAL "stream_pause_timeout_expired_total" Counter "pauses"
        ["entity"]
        "Pauses that exceeded their timeout.";
    QUERIES_RESUMED_TOTAL "queries_resumed_total" Counter "resumptions" ["entity"]
        "Queries resumed on a new connection.";
    STATEMENT_CACHE_HITS_TOTAL "statement_cache_hits_total" Counter "queries" ["entity"]
        "Queries that executed a statement that was already prepared.";
    STATEMENT_CACHE_MISSES_TOTAL "statement_cache_misses_total" Counter "queries" ["entity"]
        "Queries that could use prepared statements, but whose text was parsed.";
    STATEMENT_CACHE_EVICTIONS_TOTAL "statement_cache_evictions_total" Counter "statements"
        ["entity"]
        "Prepared statements that were closed to make room for a query on this relation.";
    STATEMENTS_REPREPARED_TOTAL "statements_reprepared_total" Counter "queries"
        ["entity", "reason"]
        "Queries that were sent again because the server's prepared statement was missing, had \
         changed, or already existed.";
    CONNECT_DURATION_SECONDS "connect_duration_seconds" Histogram "seconds" ["transport"]
        "Time from opening the socket until the connection is ready for a query.";
    TLS_HANDSHAKE_DURATION_SECONDS "tls_handshake_duration_seconds" Histogram "seconds" []
        "Duration of the TLS handshake.";
    AUTH_DURATION_SECONDS "auth_duration_seconds" Histogram "seconds" ["mechanism"]
        "Duration of successful logins.";
    QUERY_STARTUP_DURATION_SECONDS "query_startup_duration_seconds" Histogram "seconds" ["entity"]
        "Time from execute() to the server's first response.";
    TIME_TO_FIRST_ROW_SECONDS "time_to_first_row_seconds" Histogram "seconds" ["entity"]
        "Time from execute() to the arrival of the first row.";
    QUERY_DURATION_SECONDS "query_duration_seconds" Histogram "seconds" ["entity", "status"]
        "Time from execute() until the consumer sees the end.";
    QUERY_ROWS "query_rows" Histogram "rows" ["entity"]
        "Rows received per query.";
    QUERY_BYTES "query_bytes" Histogram "bytes" ["entity"]
        "Bytes of JSON received per query.";
    CHUNK_ROWS "chunk_rows" Histogram "rows" ["entity"]
        "Rows per chunk.";
    CHUNK_BYTES "chunk_bytes" Histogram "bytes" ["entity"]
        "Bytes of JSON per chunk.";
    CHUNK_PROCESSING_DURATION_SECONDS "chunk_processing_duration_seconds" Histogram "seconds"
        ["entity"]
        "Time that the consumer spends on a chunk, until it requests the next one.";
    JSON_DECODE_DURATION_SECONDS "json_decode_duration_seconds" Histogram "seconds" ["entity"]
        "Time to decode the rows of a chunk, estimated from one of its rows.";
    FILTER_DURATION_SECONDS "filter_duration_seconds" Histogram "seconds" ["entity"]
        "Time to apply Rust predicates to the rows of a chunk, estimated from one of its rows.";
    CHANNEL_SEND_WAIT_SECONDS "channel_send_wait_seconds" Histogram "seconds" ["entity"]
        "Time that the reader task was blocked on the consumer, per chunk.";
    SOCKET_WAIT_SECONDS "socket_wait_seconds" Histogram "seconds" ["entity"]
        "Time that the reader task was blocked on the server, per chunk.";
    CHANNEL_OCCUPANCY_RATIO "channel_occupancy_ratio" Histogram "ratio" ["entity"]
        "Used fraction of the stream's memory limit when a chunk is delivered.";
    STREAM_PAUSE_DURATION_SECONDS "stream_pause_duration_seconds" Histogram "seconds" ["entity"]
        "Duration of pauses.";
    DRAIN_DURATION_SECONDS "drain_duration_seconds" Histogram "seconds" []
        "Time to clean up after a query that ended early: cancelling it and draining in-flight \
         data.";
    DRAINED_BYTES_TOTAL "drained_bytes_total" Counter "bytes" []
        "Bytes drained and discarded after queries that ended early.";
    CONNECTIONS_OPEN "connections_open" Gauge "connections" []
        "Open connections.";
    REQUESTS_IN_FLIGHT "requests_in_flight" Gauge "requests" []
        "Requests on shared connections that were sent and are not answered.";
    STREAMS_ACTIVE "streams_active" Gauge "streams" ["entity"]
        "Active streams.";
    STREAM_BUFFERED_ROWS "stream_buffered_rows" Gauge "rows" ["entity"]
        "Rows received and not yet read, over all streams.";
    STREAM_BUFFERED_BYTES "stream_buffered_bytes" Gauge "bytes" ["entity"]
        "Bytes of JSON received and not yet read, over all streams.";
    CHUNK_SIZE_ROWS "chunk_size_rows" Gauge "rows" ["entity"]
        "Maximum rows per chunk, of the stream that last started or changed it.";
    READ_BUFFER_BYTES "read_buffer_bytes" Gauge "bytes" []
        "Memory of all streams, for read buffers and rows not yet read.";
}
