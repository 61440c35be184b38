//! Many concurrent streams through a pool of `bb8`: `cargo run --example pool_bb8 --features bb8`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use std::time::Duration;

use fraiseql_wire::{
    ConnectionConfig, RawJson,
    pool::{self, Pooled},
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;

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
    let manager = pool::bb8::Manager::new(ConnectionConfig::parse(&url)?).pool_name("events");
    // A longer wait for a client is an error of the pool.
    let pool = pool::bb8::Pool::builder()
        .max_size(4)
        .connection_timeout(Duration::from_secs(30))
        .build(manager)
        .await?;

    let mut tasks = JoinSet::new();
    for _ in 0..12 {
        let pool = pool.clone();
        tasks.spawn(async move {
            // An owned guard, because the stream keeps it. It is released when the stream has
            // ended.
            let client = pool.get_owned().await?;
            let events = client.query::<RawJson>("v_event").execute().await?;
            let rows = events.try_fold(0, async |rows, _| Ok(rows + 1)).await?;
            support::Result::Ok(rows)
        });
    }
    let mut rows = 0;
    for read in tasks.join_all().await {
        rows += read?;
    }
    let state = pool.state();
    println!("12 tasks read {rows} rows on at most 4 connections: {}", state.connections <= 4);

    // Dropping a stream cancels its query on the server. The client returns to the pool after the
    // cleanup of its connection.
    let client = pool.get_owned().await?;
    let pid = client.backend_pid();
    let mut endless = client.query::<RawJson>("v_endless").execute().await?;
    endless.next().await.transpose()?;
    drop(endless);
    // Take all clients: one of them has that connection.
    let mut clients = Vec::new();
    for _ in 0..pool.state().connections {
        clients.push(pool.get_owned().await?);
    }
    let same = clients.into_iter().find(|client| client.backend_pid() == pid);
    let client = same.ok_or("the connection was closed")?;
    let last = client.query::<RawJson>("v_event").where_sql("(data->>'id')::int = 20000");
    println!("the next query on the same connection: {} row", last.count().await?);
    Ok(())
}
