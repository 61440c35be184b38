//! A Prometheus exporter whose histograms have buckets.

use fraiseql_wire::metrics::{CATALOG, Metric, MetricKind};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

/// OpenTelemetry's buckets for durations.
const SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];
const RATIOS: [f64; 6] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0];

/// Returns a builder with buckets for every histogram of the crate and of its pools, which
/// Prometheus can aggregate over instances.
pub fn with_buckets() -> Result<PrometheusBuilder, BuildError> {
    // Powers of four, for rows and bytes.
    let counts: Vec<f64> = (0..13).map(|n| f64::from(4u32.pow(n))).collect();
    histograms().try_fold(PrometheusBuilder::new(), |builder, metric| {
        let buckets = match metric.unit {
            "seconds" => &SECONDS[..],
            "ratio" => &RATIOS,
            _ => &counts,
        };
        builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)
    })
}

/// Every histogram of the crate and of its pools.
pub fn histograms() -> impl Iterator<Item = &'static Metric> {
    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    let pools = fraiseql_wire::pool::CATALOG;
    #[cfg(not(any(feature = "bb8", feature = "deadpool")))]
    let pools: &[Metric] = &[];
    CATALOG.iter().chain(pools).filter(|metric| metric.kind == MetricKind::Histogram)
}
