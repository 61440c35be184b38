//! A load, in its own process.

use std::{
    mem,
    time::{Duration, Instant},
};

#[cfg(feature = "peers")]
use super::clients::{libpq::Libpq, sqlx::Sqlx, tokio_postgres::TokioPostgres};
use super::{
    Load,
    clients::{Session, minimal::Minimal, wire::Wire},
    schema::{Deep, Document, ROWS, User},
};
use crate::measure::{cpu, runtime};

/// The costs of the queries of a load.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub queries: u64,
    pub wall: Duration,
    /// CPU time of all threads of the process, in user and kernel mode.
    pub cpu: Duration,
    /// Median latency from the call to the decoded result, including the wait for a pooled
    /// connection.
    pub p50: Duration,
    pub p99: Duration,
}

impl Cost {
    fn to_line(self) -> String {
        let Self { queries, wall, cpu, p50, p99 } = self;
        let [wall, cpu, p50, p99] = [wall, cpu, p50, p99].map(|time| time.as_nanos());
        format!("short {queries} {wall} {cpu} {p50} {p99}")
    }

    pub fn from_line(line: &str) -> Option<Self> {
        let fields: Vec<u64> =
            line.strip_prefix("short ")?.split(' ').map_while(|field| field.parse().ok()).collect();
        let [queries, wall, cpu, p50, p99] = fields[..] else { return None };
        let [wall, cpu, p50, p99] = [wall, cpu, p50, p99].map(Duration::from_nanos);
        Some(Self { queries, wall, cpu, p50, p99 })
    }
}

/// Runs queries for this time, after a third of it as warm-up.
pub fn time(load: Load, url: &str, limit: Duration) {
    let cost = runtime(load.threads, run(load, url.to_owned(), Limit::Time(limit)));
    println!("{}", cost.unwrap().to_line());
}

/// Runs a number of queries in sequence, without measuring, for a counter of instructions.
pub fn count(load: Load, url: &str, queries: usize) {
    runtime(load.threads, run(load, url.to_owned(), Limit::Queries(queries)));
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    Queries(usize),
    Time(Duration),
}

async fn run(load: Load, url: String, limit: Limit) -> Option<Cost> {
    // Without the features `ansi` and `time` of the subscriber; what it writes is discarded.
    if load.instrumented {
        metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
        tracing_subscriber::fmt().with_writer(std::io::sink).without_time().init();
    }
    match load.client.as_str() {
        "fraiseql-wire" => by_client::<Wire>(&load, &url, limit).await,
        "minimal" => by_client::<Minimal>(&load, &url, limit).await,
        #[cfg(feature = "peers")]
        "tokio-postgres" => by_client::<TokioPostgres>(&load, &url, limit).await,
        #[cfg(feature = "peers")]
        "libpq" => by_client::<Libpq>(&load, &url, limit).await,
        #[cfg(feature = "peers")]
        "sqlx" => by_client::<Sqlx>(&load, &url, limit).await,
        other => panic!("this build has no client {other:?}"),
    }
}

async fn by_client<S: Session>(load: &Load, url: &str, limit: Limit) -> Option<Cost> {
    match load.relation.as_str() {
        "v_deep" => by_document::<S, Deep>(load, url, limit).await,
        _ => by_document::<S, User>(load, url, limit).await,
    }
}

async fn by_document<S: Session, T: Document>(
    load: &Load,
    url: &str,
    limit: Limit,
) -> Option<Cost> {
    let mut sessions = S::open(load, url).await;
    match limit {
        Limit::Queries(queries) => {
            let session = sessions.first_mut().unwrap();
            for key in keys(0).take(queries) {
                check(session.query::<T>(key).await);
            }
            None
        }
        Limit::Time(time) => {
            all::<S, T>(&mut sessions, time / 3).await;
            let (cpu_before, begun) = (cpu(), Instant::now());
            let mut latencies = all::<S, T>(&mut sessions, time).await;
            let (wall, cpu) = (begun.elapsed(), cpu() - cpu_before);
            latencies.sort_unstable();
            let queries = latencies.len();
            let percentile = |percent: usize| {
                Duration::from_nanos(latencies[(queries * percent / 100).min(queries - 1)].into())
            };
            let (p50, p99) = (percentile(50), percentile(99));
            Some(Cost { queries: queries as u64, wall, cpu, p50, p99 })
        }
    }
}

/// Runs queries in every session for this time. Returns their durations, in nanoseconds.
async fn all<S: Session, T: Document>(sessions: &mut Vec<S>, time: Duration) -> Vec<u32> {
    let end = Instant::now() + time;
    // A single task runs its queries itself.
    if let [session] = &mut sessions[..] {
        return one::<S, T>(session, 0, end).await;
    }
    let tasks: Vec<_> = mem::take(sessions)
        .into_iter()
        .enumerate()
        .map(|(i, mut session)| {
            tokio::spawn(async move {
                let latencies = one::<S, T>(&mut session, i as i64, end).await;
                (session, latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        let (session, of_task) = task.await.unwrap();
        sessions.push(session);
        latencies.extend(of_task);
    }
    latencies
}

async fn one<S: Session, T: Document>(session: &mut S, first: i64, end: Instant) -> Vec<u32> {
    let mut latencies = Vec::new();
    let mut now = Instant::now();
    for key in keys(first) {
        check(session.query::<T>(key).await);
        let done = Instant::now();
        latencies.push((done - now).as_nanos() as u32);
        now = done;
        if now > end {
            break;
        }
    }
    latencies
}

fn check(sum: u64) {
    assert!(sum > 0, "a query returned nothing");
}

/// Returns keys from the whole relation, in a fixed order.
fn keys(first: i64) -> impl Iterator<Item = i64> {
    (first * 31..).map(|i| i * 7919 % ROWS + 1)
}
