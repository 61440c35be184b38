//! A service's `/metrics`, for Prometheus: `cargo run --release --example metrics`.
//!
//! It runs a fast, a slow, a paused, a dropped and a failing stream, then serves the metrics until
//! Ctrl-C. The argument is the address to listen on. It uses the server of `DATABASE_URL`, in a
//! schema of its own, or starts a private one.

use std::time::Duration;

use axum::{Router, routing::get};
use fraiseql_wire::{FraiseClient, RawJson};
use futures_util::StreamExt;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/prometheus.rs"]
mod prometheus;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Reading {
    id: u64,
    celsius: f64,
}

/// Every hundredth reading has no value.
const DATA: &str = "
    create table tv_reading as
    select jsonb_build_object('id', i, 'celsius', case when i % 100 <> 0 then i % 40 end,
                              'text', repeat('x', 100)) as data
    from generate_series(1, 20000) i;
    create view v_reading as select data from tv_reading;
    create view v_fails as
    select to_jsonb(1000 / (1000 - (data->>'id')::int)) as data from tv_reading;
";

#[tokio::main]
async fn main() -> Result<()> {
    // Before the first query: nothing is counted without a recorder.
    let metrics = install()?;

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9184".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on http://{}/metrics", listener.local_addr()?);
    let app = Router::new().route("/metrics", get(move || async move { metrics.render() }));
    tokio::spawn(async { axum::serve(listener, app).await });

    let (url, private) = match std::env::var("DATABASE_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = cluster::Cluster::start(cluster::REQUIRE_PASSWORD)?;
            (server.url(), Some(server))
        }
    };
    let schema = format!("fraiseql_wire_metrics_{}", std::process::id());
    let (admin, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    admin
        .batch_execute(&format!("create schema {schema}; set search_path = {schema}; {DATA}"))
        .await?;

    let result = tokio::select! {
        result = work(&url, &schema) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    admin.batch_execute(&format!("drop schema {schema} cascade")).await?;
    if let Some(server) = private {
        server.stop();
    }
    result
}

/// A recorder with histograms that Prometheus can aggregate over instances.
fn install() -> Result<PrometheusHandle> {
    let handle = prometheus::with_buckets()?.install_recorder()?;
    fraiseql_wire::metrics::describe();
    Ok(handle)
}

async fn work(url: &str, schema: &str) -> Result<()> {
    let client = FraiseClient::connect(url).await?;
    let (readings, fails) = (format!("{schema}.v_reading"), format!("{schema}.v_fails"));

    // At full speed. Every hundredth row cannot be decoded.
    let (mut good, mut bad) = (0, 0);
    let mut stream = client.query::<Reading>(&readings).execute().await?;
    while let Some(row) = stream.next().await {
        match row {
            Ok(_) => good += 1,
            Err(e) if e.is_row_error() => bad += 1,
            Err(e) => return Err(e.into()),
        }
    }
    println!("read {good} rows, {bad} more cannot be decoded");

    // A slow consumer with little memory: the server waits.
    let mut stream = client.query::<RawJson>(&readings).max_memory(64 << 10).execute().await?;
    while let Some(chunk) = stream.next_chunk().await {
        chunk?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let mut stream = client.query::<RawJson>(&readings).execute().await?;
    stream.pause_with_reason("maintenance").await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.resume().await?;
    stream.next().await.transpose()?;
    drop(stream);

    let failed = client.query::<RawJson>(&fails).fetch_all().await.unwrap_err();
    println!("failed as expected: {failed}");

    println!("ready; look for:");
    for line in [
        "fraiseql_wire_rows_yielded_total            rows delivered, by entity",
        "fraiseql_wire_rows_deserialization_failed_total  rows that cannot be decoded",
        "fraiseql_wire_channel_send_wait_seconds_sum time blocked on the consumer",
        "fraiseql_wire_socket_wait_seconds_sum       time blocked on the server",
        "fraiseql_wire_stream_paused_total           pauses, by reason",
        "fraiseql_wire_query_error_total             failed queries, by category",
    ] {
        println!("  {line}");
    }
    // Serves until Ctrl-C.
    std::future::pending().await
}
