//! Metrics: their values, the catalog, the dashboard and the alerts.

mod monitoring;
mod observability;
#[path = "../support/mod.rs"]
mod support;
