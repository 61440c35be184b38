//! Metrics of pools, with the names of OpenTelemetry's conventions.

use std::time::Duration;

#[cfg(feature = "bb8")]
use metrics::counter;
use metrics::{gauge, histogram};

use super::metric::{Metric, MetricKind};

/// The metrics of pools. [`describe`](crate::metrics::describe) registers them too.
pub const CATALOG: &[Metric] = &[
    metric(
        COUNT,
        MetricKind::Gauge,
        "connections",
        &[POOL, STATE],
        "Clients, by state: idle or used.",
    ),
    metric(MAX, MetricKind::Gauge, "connections", &[POOL], "Maximum number of clients (deadpool)."),
    metric(
        PENDING,
        MetricKind::Gauge,
        "requests",
        &[POOL],
        "Callers waiting for a client (deadpool).",
    ),
    metric(
        TIMEOUTS,
        MetricKind::Counter,
        "timeouts",
        &[POOL],
        "Callers whose wait for a client timed out (bb8).",
    ),
    metric(CREATE_TIME, MetricKind::Histogram, "seconds", &[POOL], "Time to create a connection."),
    metric(
        USE_TIME,
        MetricKind::Histogram,
        "seconds",
        &[POOL],
        "Time from query() until the client is returned to the pool.",
    ),
];

const COUNT: &str = "db.client.connection.count";
const MAX: &str = "db.client.connection.max";
const PENDING: &str = "db.client.connection.pending_requests";
const TIMEOUTS: &str = "db.client.connection.timeouts";
const CREATE_TIME: &str = "db.client.connection.create_time";
const USE_TIME: &str = "db.client.connection.use_time";

const POOL: &str = "db.client.connection.pool.name";
const STATE: &str = "db.client.connection.state";

const fn metric(
    name: &'static str,
    kind: MetricKind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

pub(crate) fn created(pool: &str, took: Duration) {
    histogram!(CREATE_TIME, POOL => pool.to_owned()).record(took);
}

pub(crate) fn used(pool: &str, took: Duration) {
    histogram!(USE_TIME, POOL => pool.to_owned()).record(took);
}

pub(crate) fn clients(pool: &str, idle: usize, used: usize) {
    gauge!(COUNT, POOL => pool.to_owned(), STATE => "idle").set(idle as f64);
    gauge!(COUNT, POOL => pool.to_owned(), STATE => "used").set(used as f64);
}

#[cfg(feature = "deadpool")]
pub(crate) fn maximum(pool: &str, clients: usize) {
    gauge!(MAX, POOL => pool.to_owned()).set(clients as f64);
}

#[cfg(feature = "deadpool")]
pub(crate) fn waiting(pool: &str, callers: usize) {
    gauge!(PENDING, POOL => pool.to_owned()).set(callers as f64);
}

#[cfg(feature = "bb8")]
pub(crate) fn timed_out(pool: &str, callers: u64) {
    counter!(TIMEOUTS, POOL => pool.to_owned()).absolute(callers);
}
