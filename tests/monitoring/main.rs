//! Metrics: their values, the catalog, the dashboard and the alerts.

mod monitoring;
mod observability;
mod outcomes;
#[path = "../../examples/support/prometheus.rs"]
mod prometheus;
#[path = "../support/mod.rs"]
mod support;
