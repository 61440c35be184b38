use super::metric::{Metric, MetricKind};

macro_rules! catalog {
    ($($constant:ident $name:literal $kind:ident $unit:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &str = concat!("fraiseql_wire_", $name);
        )*

        /// Every metric of the crate.
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
        "Queries that were executed.";
    QUERY_SUCCESS_TOTAL "query_success_total" Counter "queries" ["entity"]
        "Queries whose last row was delivered.";
    QUERY_ERROR_TOTAL "query_error_total" Counter "queries" ["entity", "category"]
        "Queries that failed, before or after their first row.";
    QUERY_CANCELLED_TOTAL "query_cancelled_total" Counter "queries" ["entity", "cause"]
        "Queries that were stopped: by a drop, by a cancel, or by a timeout, which is an error too.";
    QUERY_COMPLETED_TOTAL "query_completed_total" Counter "queries" ["entity", "status"]
        "Queries that are over, each once, by success, error, or cancelled.";
    ROWS_RECEIVED_TOTAL "rows_received_total" Counter "rows" ["entity"]
        "Rows that came from the server.";
    ROWS_YIELDED_TOTAL "rows_yielded_total" Counter "rows" ["entity"]
        "Rows that were delivered.";
    ROWS_FILTERED_TOTAL "rows_filtered_total" Counter "rows" ["entity"]
        "Rows that a Rust predicate rejected.";
    ROWS_DISCARDED_TOTAL "rows_discarded_total" Counter "rows" ["entity"]
        "Rows that nobody read, because their query was stopped.";
    ROWS_DESERIALIZED_TOTAL "rows_deserialized_total" Counter "rows" ["entity"]
        "Rows that were decoded into the type asked for.";
    ROWS_DESERIALIZATION_FAILED_TOTAL "rows_deserialization_failed_total" Counter "rows"
        ["entity", "reason"]
        "Rows that could not be decoded: by syntax, data, eof, or utf8.";
    JSON_PARSE_ERRORS_TOTAL "json_parse_errors_total" Counter "rows" ["entity"]
        "Rows that are not JSON.";
    BYTES_RECEIVED_TOTAL "bytes_received_total" Counter "bytes" ["entity"]
        "Bytes of JSON in the rows that came.";
    ERRORS_TOTAL "errors_total" Counter "errors" ["category", "phase"]
        "Errors but those of single rows, by where they came up: an attempt to connect (resolve, connect, tls, auth, startup), the query before its first row, the stream behind that, or the drain.";
    PROTOCOL_ERRORS_TOTAL "protocol_errors_total" Counter "errors" ["message"]
        "Messages of servers that were malformed or out of place.";
    NOTICES_TOTAL "notices_total" Counter "notices" ["severity"]
        "Notices and warnings of servers.";
    CONNECTIONS_CREATED_TOTAL "connections_created_total" Counter "connections" ["transport", "tls"]
        "Connections that were made, up to where they take a query.";
    CONNECTIONS_FAILED_TOTAL "connections_failed_total" Counter "attempts" ["phase", "category"]
        "Attempts to connect that failed, one for each address and way to encrypt; cancelled are those that the caller gave up.";
    CONNECTIONS_CLOSED_TOTAL "connections_closed_total" Counter "connections" ["reason"]
        "Connections that ended: closed by the client, ended by the server while in use or while idle, left because of drain_limit or cancel_timeout, or broken.";
    RECONNECTS_TOTAL "reconnects_total" Counter "connections" []
        "Connections that replaced an earlier one of their client.";
    AUTHENTICATIONS_TOTAL "authentications_total" Counter "logins" ["mechanism"]
        "Logins that are over; trust is what asks for nothing.";
    AUTHENTICATIONS_SUCCESSFUL_TOTAL "authentications_successful_total" Counter "logins" ["mechanism"]
        "Logins that succeeded.";
    AUTHENTICATIONS_FAILED_TOTAL "authentications_failed_total" Counter "logins"
        ["mechanism", "reason"]
        "Logins that failed: rejected by the server, refused by this client's policy, for want of a password, malformed, by a wrong signature of the server, or lost with the connection.";
    CANCEL_REQUESTS_TOTAL "cancel_requests_total" Counter "requests" ["outcome"]
        "Cancel requests: sent, failed, or given up, after a timeout as a rule.";
    MEMORY_LIMIT_EXCEEDED_TOTAL "memory_limit_exceeded_total" Counter "queries" ["entity"]
        "Queries that ended at their memory limit.";
    MEMORY_SOFT_LIMIT_WARNED_TOTAL "memory_soft_limit_warned_total" Counter "crossings" ["entity"]
        "Crossings of a soft memory limit.";
    ADAPTIVE_CHUNK_ADJUSTED_TOTAL "adaptive_chunk_adjusted_total" Counter "changes"
        ["entity", "direction"]
        "Changes of an adaptive chunk size, up or down.";
    STREAM_PAUSED_TOTAL "stream_paused_total" Counter "pauses" ["entity", "reason"]
        "Pauses that began; the reason is empty where none was given.";
    STREAM_RESUMED_TOTAL "stream_resumed_total" Counter "pauses" ["entity", "cause"]
        "Pauses that ended by resume or by timeout.";
    STREAM_PAUSE_TIMEOUT_EXPIRED_TOTAL "stream_pause_timeout_expired_total" Counter "pauses"
        ["entity"]
        "Pauses that lasted longer than they may.";
    QUERIES_RESUMED_TOTAL "queries_resumed_total" Counter "resumptions" ["entity"]
        "Times that a query went on behind its last row on another connection.";
    STATEMENT_CACHE_HITS_TOTAL "statement_cache_hits_total" Counter "queries" ["entity"]
        "Queries that executed a statement that was already prepared.";
    STATEMENT_CACHE_MISSES_TOTAL "statement_cache_misses_total" Counter "queries" ["entity"]
        "Queries that could use prepared statements, but whose text was parsed.";
    STATEMENT_CACHE_EVICTIONS_TOTAL "statement_cache_evictions_total" Counter "statements"
        ["entity"]
        "Prepared statements that were closed because a query on this relation needed their place.";
    STATEMENTS_REPREPARED_TOTAL "statements_reprepared_total" Counter "queries"
        ["entity", "reason"]
        "Queries that were sent again because the server's prepared statement was missing, had changed, or existed already.";
    CONNECT_DURATION_SECONDS "connect_duration_seconds" Histogram "seconds" ["transport"]
        "Making a connection, from the socket to where it takes a query.";
    TLS_HANDSHAKE_DURATION_SECONDS "tls_handshake_duration_seconds" Histogram "seconds" []
        "Agreeing upon TLS.";
    AUTH_DURATION_SECONDS "auth_duration_seconds" Histogram "seconds" ["mechanism"]
        "Logging in, where it succeeded.";
    QUERY_STARTUP_DURATION_SECONDS "query_startup_duration_seconds" Histogram "seconds" ["entity"]
        "From execute() to the server's first answer.";
    TIME_TO_FIRST_ROW_SECONDS "time_to_first_row_seconds" Histogram "seconds" ["entity"]
        "From execute() to the arrival of the first row.";
    QUERY_DURATION_SECONDS "query_duration_seconds" Histogram "seconds" ["entity", "status"]
        "From execute() to the end, as the consumer saw it.";
    QUERY_ROWS "query_rows" Histogram "rows" ["entity"]
        "Rows received by a query.";
    QUERY_BYTES "query_bytes" Histogram "bytes" ["entity"]
        "Bytes of JSON received by a query.";
    CHUNK_ROWS "chunk_rows" Histogram "rows" ["entity"]
        "Rows in a chunk.";
    CHUNK_BYTES "chunk_bytes" Histogram "bytes" ["entity"]
        "Bytes of JSON in a chunk.";
    CHUNK_PROCESSING_DURATION_SECONDS "chunk_processing_duration_seconds" Histogram "seconds"
        ["entity"]
        "The consumer's time with a chunk, from taking it to asking for the next.";
    JSON_DECODE_DURATION_SECONDS "json_decode_duration_seconds" Histogram "seconds" ["entity"]
        "Decoding the rows of a chunk: that of one of them, times their number.";
    FILTER_DURATION_SECONDS "filter_duration_seconds" Histogram "seconds" ["entity"]
        "Asking Rust predicates about the rows of a chunk: about one of them, times their number.";
    CHANNEL_SEND_WAIT_SECONDS "channel_send_wait_seconds" Histogram "seconds" ["entity"]
        "For how long the consumer held the reader up, per chunk.";
    SOCKET_WAIT_SECONDS "socket_wait_seconds" Histogram "seconds" ["entity"]
        "For how long the reader waited for the server, per chunk.";
    CHANNEL_OCCUPANCY_RATIO "channel_occupancy_ratio" Histogram "ratio" ["entity"]
        "Memory held of that allowed, when a chunk was handed over.";
    STREAM_PAUSE_DURATION_SECONDS "stream_pause_duration_seconds" Histogram "seconds" ["entity"]
        "How long pauses lasted.";
    DRAIN_DURATION_SECONDS "drain_duration_seconds" Histogram "seconds" []
        "Cleaning up behind a query that ended early: stopping it and reading what was in flight.";
    DRAINED_BYTES_TOTAL "drained_bytes_total" Counter "bytes" []
        "Bytes that were read and thrown away behind queries that ended early.";
    CONNECTIONS_OPEN "connections_open" Gauge "connections" []
        "Connections that are open.";
    STREAMS_ACTIVE "streams_active" Gauge "streams" ["entity"]
        "Streams that are alive.";
    STREAM_BUFFERED_ROWS "stream_buffered_rows" Gauge "rows" ["entity"]
        "Rows received and not yet read, of all streams together.";
    STREAM_BUFFERED_BYTES "stream_buffered_bytes" Gauge "bytes" ["entity"]
        "Bytes of JSON received and not yet read, of all streams together.";
    CHUNK_SIZE_ROWS "chunk_size_rows" Gauge "rows" ["entity"]
        "The most rows in a chunk, of the stream that last began or changed it.";
    READ_BUFFER_BYTES "read_buffer_bytes" Gauge "bytes" []
        "Memory that streams hold, read buffers and rows not yet read, of all together.";
}
