//! One query on several connections, and a stream that resumes after a lost connection:
//! `cargo run --example parallel`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use std::time::Instant;

use fraiseql_wire::{FraiseClient, RawJson, field};
use futures_util::StreamExt;
use serde::Deserialize;

mod support;

#[derive(Debug, Deserialize)]
struct Event {
    id: u64,
}

/// 100,000 events, 50 MB.
const DATA: &str = "
    create table tv_event as
    select jsonb_build_object('id', i, 'text', repeat('abcd ', 100)) as data
    from generate_series(1, 100000) i;
    create index on tv_event ((data->'id'));
    analyze tv_event;
    create view v_event as select data from tv_event where data ? 'id';
";

#[tokio::main]
async fn main() -> support::Result<()> {
    support::with_data(DATA, run).await
}

async fn run(url: String, admin: tokio_postgres::Client) -> support::Result<()> {
    let client = FraiseClient::connect(&url).await?;

    // A table, partitioned or not, or a materialized view: each connection reads a part of the
    // blocks, in one snapshot. It is faster if the server is limited by converting documents to
    // text and has idle CPUs.
    let mut sums = Vec::new();
    for connections in [1, 2, 4] {
        let began = Instant::now();
        let mut events = client.query::<Event>("tv_event").parallel(connections).execute().await?;
        let mut sum = 0;
        while let Some(event) = events.next().await {
            sum += event?.id;
        }
        let (stats, took) = (events.stats(), began.elapsed());
        println!("tv_event on {connections}: {} rows in {took:.0?}", stats.total_rows_yielded);
        sums.push(sum);
    }
    println!("same rows: {}", sums.iter().all(|sum| *sum == sums[0]));

    // A view has no blocks, so it needs an expression to split by. Every backend reads all rows and
    // sends its part.
    let by_id = client.query::<Event>("v_event").parallel(3).partition_by("data->>'id'");
    println!("v_event on 3: {} rows", by_id.fetch_all().await?.len());

    // The rows have no order: a query that needs one is rejected before anything is sent.
    let sorted = client.query::<Event>("tv_event").parallel(2).order_by("data->'id'");
    if let Err(e) = sorted.execute().await {
        println!("{e}");
    }

    // Sorted by a unique key. If the connection is lost, the stream resumes after the last row on
    // another one, in a new snapshot; the consumer does not notice.
    let query = client.query::<RawJson>("v_event").resume_by(field("id"));
    let mut events = query.execute().await?;
    let before = client.backend_pid();
    let (mut last, mut is_complete) = (0, true);
    while let Some(event) = events.next().await {
        let Event { id } = event?.decode()?;
        is_complete &= id == last + 1;
        last = id;
        if id == 1000 {
            support::terminate(&admin, &client).await?;
        }
    }
    println!("resume_by: {last} rows, each once and in order: {is_complete}");
    println!(
        "resumed {} time, on another backend: {}",
        events.stats().resumptions,
        before != client.backend_pid()
    );
    Ok(())
}
