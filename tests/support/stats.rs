//! Invariants of the statistics of a stream.

use fraiseql_wire::StreamStats;

/// Each row received is counted as exactly one of these.
pub fn assert_consistent(stats: &StreamStats) {
    let parts = stats.total_rows_yielded
        + stats.total_rows_filtered
        + stats.total_rows_failed
        + stats.total_rows_discarded
        + stats.items_buffered;
    assert_eq!(stats.total_rows_received, parts, "{stats:?}");
}
