//! Many concurrent streams through a pool of `deadpool`:
//! `cargo run --example pool_deadpool --features deadpool`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use std::time::Duration;

use fraiseql_wire::{
    ConnectionConfig, RawJson,
    pool::{self, Pooled},
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;

#[path = "support/prometheus.rs"]
mod prometheus;
mod support;

const DATA: &str = "
    create view v_event as
    select jsonb_build_object('id', i, 'text', repeat('x', 200)) as data
    from (select generate_series(1, 20000) i) as numbers;

    create view v_endless as
    select jsonb_build_object('id', i, 'text', repeat('x', 200)) as data
    from (select generate_series(1, 2000000000) i) as numbers;
";

#[tokio::main]
async fn main() -> support::Result<()> {
    support::with_data(DATA, run).await
}

async fn run(url: String, _: tokio_postgres::Client) -> support::Result<()> {
    // Before the pool: nothing is counted without a recorder.
    let metrics = prometheus::with_buckets()?.install_recorder()?;

    let manager = pool::deadpool::Manager::new(ConnectionConfig::parse(&url)?).pool_name("events");
    // A longer wait for a client is an error of the pool.
    let pool = pool::deadpool::Pool::builder(manager)
        .max_size(4)
        .wait_timeout(Some(Duration::from_secs(30)))
        .runtime(deadpool::Runtime::Tokio1)
        .build()?;

    let mut tasks = JoinSet::new();
    for _ in 0..12 {
        let pool = pool.clone();
        tasks.spawn(async move {
            // The stream keeps the guard, so it is `'static`; the end of the stream releases it.
            let client = pool.get().await?;
            let pid = client.backend_pid();
            let events = client.query::<RawJson>("v_event").execute().await?;
            let rows = events.try_fold(0, async |rows, _| Ok(rows + 1)).await?;
            support::Result::Ok((pid, rows))
        });
    }
    let (mut backends, mut rows) = (std::collections::BTreeSet::new(), 0);
    for done in tasks.join_all().await {
        let (pid, read) = done?;
        backends.insert(pid);
        rows += read;
    }
    println!("12 tasks read {rows} rows on at most 4 connections: {}", backends.len() <= 4);

    // Dropping a stream cancels its query on the server. The client returns to the pool after the
    // cleanup of its connection.
    let client = pool.get().await?;
    let pid = client.backend_pid();
    let mut endless = client.query::<RawJson>("v_endless").execute().await?;
    endless.next().await.transpose()?;
    drop(endless);
    // Take all clients: one of them has that connection.
    let mut clients = Vec::new();
    for _ in 0..pool.status().size {
        clients.push(pool.get().await?);
    }
    let same = clients.into_iter().find(|client| client.backend_pid() == pid);
    let client = same.ok_or("the connection was closed")?;
    let last = client.query::<RawJson>("v_event").where_sql("(data->>'id')::int = 20000");
    println!("the next query on the same connection: {} row", last.count().await?);

    // A service does this before each scrape.
    pool::deadpool::record(&pool);
    for line in metrics.render().lines().filter(|line| line.starts_with("db_client")) {
        // Of histograms, only the count and the sum.
        if !line.contains("_bucket") {
            println!("  {line}");
        }
    }
    pool.close();
    Ok(())
}
