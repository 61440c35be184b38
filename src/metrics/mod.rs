//! What the crate counts and times, through the [`metrics`](https://docs.rs/metrics) facade: install
//! any recorder of it, and the numbers are there.
//!
//! Every metric stands in [`CATALOG`], with what it means; the constants are their names. They are
//! written to and never read: nothing depends on whether somebody listens. A recorder counts what
//! begins after it was installed.
//!
//! The label `entity` is the relation's name as it was given to
//! [`query`](crate::FraiseClient::query), `reason` what was given to
//! [`pause_with_reason`](crate::QueryStream::pause_with_reason). Of each, a process has at most 1,000
//! different values; what comes later is `other`.

mod catalog;
pub(crate) mod connection;
mod labels;
mod metric;
#[cfg(any(feature = "bb8", feature = "deadpool"))]
pub(crate) mod pool;
mod query;

pub(crate) use self::query::{
    ChunkSeen, Outcome, QueryLabels, QueryMetrics, QueryMetricsCache, Reprepared,
};
pub use self::{
    catalog::*,
    metric::{Metric, MetricKind},
};

/// Tells the recorder that is installed what every metric means, and its unit. Call it once, behind
/// the installation.
pub fn describe() {
    use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    for Metric { name, kind, unit, help, .. } in CATALOG.iter().copied() {
        let unit = match unit {
            "seconds" => Unit::Seconds,
            "bytes" => Unit::Bytes,
            // There is none for a share of 1.
            _ => Unit::Count,
        };
        match kind {
            MetricKind::Counter => describe_counter!(name, unit, help),
            MetricKind::Gauge => describe_gauge!(name, unit, help),
            MetricKind::Histogram => describe_histogram!(name, unit, help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// By the conventions of Prometheus.
    #[test]
    fn names_say_kind_and_unit() {
        let names: BTreeSet<_> = CATALOG.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), CATALOG.len(), "a name stands twice");
        for metric in CATALOG {
            let is_counter = metric.kind == MetricKind::Counter;
            assert_eq!(is_counter, metric.name.ends_with("_total"), "{}", metric.name);
            if metric.unit == "seconds" {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
            }
            assert!(metric.name.starts_with("fraiseql_wire_") && metric.help.ends_with('.'));
        }
    }
}
