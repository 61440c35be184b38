//! A stream that is paused, resumed and cancelled from another task: `cargo run --example
//! pause_resume`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use std::time::Duration;

use fraiseql_wire::{Error, FraiseClient, QueryStream, RawJson, StreamControl, StreamStats};
use futures_util::StreamExt;
use tokio::{task::JoinSet, time::sleep};

mod support;

/// A view with two billion rows.
const DATA: &str = "
    create view v_event as
    select jsonb_build_object('id', i, 'text', repeat('x', 1000)) as data
    from (select generate_series(1, 2000000000) i) as numbers;
";

#[tokio::main]
async fn main() -> support::Result<()> {
    support::with_data(DATA, run).await
}

async fn run(url: String, _: tokio_postgres::Client) -> support::Result<()> {
    let client = FraiseClient::connect(&url).await?;

    println!("Controlled from another task:");
    let events = client.query::<RawJson>("v_event").execute().await?;
    // The handle keeps only the statistics in memory.
    let control = events.control();
    let mut reader = JoinSet::new();
    reader.spawn(read(events));
    control_stream(&control).await?;
    println!("  the consumer: {}", reader.join_next().await.ok_or("no task")??);
    // The client can be used immediately.
    let next = client.query::<RawJson>("v_event").limit(3).fetch_all().await?;
    println!("  the next query has {} rows", next.len());

    println!("A pause with a timeout:");
    // A pause holds a snapshot on the server, which delays vacuum. The timeout is for all pauses of
    // the stream.
    let bounded = client.query::<RawJson>("v_event").pause_timeout(Duration::from_millis(200));
    let mut events = bounded.execute().await?;
    for _ in 0..1000 {
        events.next().await.transpose()?;
    }
    // On a busy machine, the stream may not have read ahead yet.
    until(&events.control(), |stats| stats.items_buffered > 0).await;
    events.pause().await?;
    println!("  {:?} after {} rows", events.state(), events.stats().total_rows_yielded);
    // Buffered rows can be read; then the stream is pending until the pause ends.
    let mut buffered = 0;
    while events.stats().items_buffered > 0 {
        events.next().await.transpose()?;
        buffered += 1;
    }
    println!("  {buffered} buffered rows read meanwhile");
    events.next().await.transpose()?;
    println!("  {:?} automatically after {:.1?}", events.state(), events.stats().paused_for);
    drop(events);

    println!("A slow consumer:");
    // No pause is needed: a stream reads ahead up to its memory limit, then the server waits.
    let bounded = client.query::<RawJson>("v_event").max_memory(128 << 10);
    let mut events = bounded.execute().await?;
    let mut bytes = 0;
    while bytes < 20 << 20 {
        let Some(chunk) = events.next_chunk().await else { break };
        bytes += chunk?.rows().map(<[u8]>::len).sum::<usize>();
        sleep(Duration::from_millis(5)).await;
    }
    let stats = events.stats();
    println!("  {} MiB read, at most {} KiB buffered", bytes >> 20, stats.peak_memory >> 10);
    println!(
        "  blocked on the consumer for {:.1?}, on the server for {:.1?}",
        stats.time_blocked_on_consumer, stats.time_blocked_on_server
    );
    Ok(())
}

/// Reads until the stream ends.
async fn read(mut events: QueryStream<RawJson>) -> String {
    while let Some(event) = events.next().await {
        match event {
            Ok(_) => {}
            // Another task has cancelled the stream: this is not the end of the rows.
            Err(Error::Cancelled) => return "cancelled, so the rows are incomplete".into(),
            Err(e) => return e.to_string(),
        }
    }
    "all rows".into()
}

async fn control_stream(control: &StreamControl) -> support::Result<()> {
    until(control, |stats| stats.total_rows_yielded > 1000).await;
    // Resolves when reading from the server has stopped.
    control.pause_with_reason("maintenance").await?;
    // The consumer reads the buffered rows, then waits.
    until(control, |stats| stats.items_buffered == 0).await;
    let before = control.stats();
    sleep(Duration::from_millis(200)).await;
    let stats = control.stats();
    let reason = stats.pause_reason.unwrap_or_default();
    println!("  {:?} for {reason}: {:.1?}", stats.state, stats.paused_for);
    println!(
        "  meanwhile {} rows received, {} read, {} buffered",
        stats.total_rows_received - before.total_rows_received,
        stats.total_rows_yielded - before.total_rows_yielded,
        stats.items_buffered
    );

    control.resume().await?;
    until(control, |stats| stats.total_rows_yielded > before.total_rows_yielded + 1000).await;
    println!("  {:?} again", control.state());

    // Resolves when the server has stopped the query.
    control.cancel().await?;
    println!("  {:?}", control.state());
    Ok(())
}

/// Waits until the statistics fulfil a condition.
async fn until(control: &StreamControl, holds: impl Fn(&StreamStats) -> bool) {
    while !holds(&control.stats()) {
        sleep(Duration::from_millis(1)).await;
    }
}
