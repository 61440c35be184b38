//! Metrics, written through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! Before the first query, install any recorder of that facade, for example an exporter for
//! Prometheus, and then call [`describe`]. What started before the recorder was installed is not
//! recorded. The crate only writes metrics and never reads them back.
//!
//! [`CATALOG`] describes every metric; the constants are the names of the metrics:
//!
//! ```
//! use fraiseql_wire::metrics::{CATALOG, REQUESTS_IN_FLIGHT};
//!
//! let metric = CATALOG.iter().find(|metric| metric.name == REQUESTS_IN_FLIGHT).unwrap();
//! println!("{} ({}): {}", metric.name, metric.unit, metric.help);
//! ```
//!
//! Two labels have values that come from your code: `entity` is the name passed to
//! [`query`](crate::FraiseClient::query), and `reason` is the text passed to
//! [`pause_with_reason`](crate::QueryStream::pause_with_reason). A process records at most 1,000
//! values of each. Later values, and values of more than 133 bytes, are recorded as `other`.

mod catalog;
pub(crate) mod connection;
mod labels;
mod metric;
#[cfg(any(feature = "bb8", feature = "deadpool"))]
pub(crate) mod pool;
mod query;

pub(crate) use self::query::{
    ChunkSeen, Outcome, PauseEnd, QueryLabels, QueryMetrics, QueryMetricsCache, Reprepared,
    RowFailure,
};
pub use self::{
    catalog::*,
    metric::{Metric, MetricKind},
};

/// Registers the description and unit of every metric with the installed recorder, also those of
/// pools.
///
/// Call it once, after installing the recorder.
pub fn describe() {
    use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    let pools = pool::CATALOG;
    #[cfg(not(any(feature = "bb8", feature = "deadpool")))]
    let pools: &[Metric] = &[];
    for Metric { name, kind, unit, help, .. } in CATALOG.iter().chain(pools).copied() {
        let unit = match unit {
            "seconds" => Unit::Seconds,
            "bytes" => Unit::Bytes,
            // There is no unit for a ratio.
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

    /// These are the conventions of Prometheus.
    #[test]
    fn metric_names_contain_kind_and_unit() {
        let names: BTreeSet<_> = CATALOG.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), CATALOG.len(), "a name is used twice");
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
