//! A stream that is paused, watched, slowed down and cancelled from another task: `cargo run --example pause_resume`.
//!
//! With `DATABASE_URL` set it uses that server, in a schema of its own; without, it starts a private one.

use std::time::Duration;

use fraiseql_wire::{
    Error, FraiseClient, QueryStream, RawJson, StreamControl, StreamState, StreamStats,
};
use futures_util::StreamExt;
use tokio::{task::JoinSet, time::sleep};

mod support;

/// Of more rows than anybody reads.
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

    println!("Steered from another task:");
    let events = client.query::<RawJson>("v_event").execute().await?;
    // A handle. It keeps nothing alive but the numbers.
    let control = events.control();
    let mut reader = JoinSet::new();
    reader.spawn(read(events));
    steer(&control).await?;
    println!("  the reader: {}", reader.join_next().await.ok_or("no task")??);
    // The client can be used at once.
    let next = client.query::<RawJson>("v_event").limit(3).fetch_all().await?;
    println!("  the next query has {} rows", next.len());

    println!("A pause that nobody ends:");
    // A pause holds a snapshot on the server, which keeps vacuum waiting. This is for all pauses of the stream.
    let bounded = client.query::<RawJson>("v_event").pause_timeout(Duration::from_millis(200));
    let mut events = bounded.execute().await?;
    events.pause().await?;
    println!("  {:?}", events.state());
    // What had come is there, then nothing is until the pause has ended.
    while events.state() == StreamState::Paused {
        events.next().await.transpose()?;
    }
    println!("  {:?} by itself, after {:.1?}", events.state(), events.stats().paused_for);
    drop(events);

    println!("A reader that takes its time:");
    // Nobody has to pause for this: a stream reads ahead as far as its memory goes, and then the server waits.
    let bounded = client.query::<RawJson>("v_event").max_memory(128 << 10);
    let mut events = bounded.execute().await?;
    let mut bytes = 0;
    while bytes < 20 << 20 {
        let Some(chunk) = events.next_chunk().await else { break };
        bytes += chunk?.rows().map(<[u8]>::len).sum::<usize>();
        sleep(Duration::from_millis(5)).await;
    }
    let stats = events.stats();
    println!("  {} MiB read, at most {} KiB of it held", bytes >> 20, stats.peak_memory >> 10);
    println!(
        "  held up by the reader for {:.1?}, by the server for {:.1?}",
        stats.time_blocked_on_consumer, stats.time_blocked_on_server
    );
    Ok(())
}

/// Reads to the end, whatever that is.
async fn read(mut events: QueryStream<RawJson>) -> String {
    while let Some(event) = events.next().await {
        match event {
            Ok(_) => {}
            // Another task has cancelled the stream: this must not be taken for the end of the rows.
            Err(Error::Cancelled) => return "cancelled, so there would be more".into(),
            Err(e) => return e.to_string(),
        }
    }
    "all rows".into()
}

async fn steer(control: &StreamControl) -> support::Result<()> {
    until(control, |stats| stats.total_rows_yielded > 1000).await;
    // Resolves when nothing is read from the server any more.
    control.pause_with_reason("maintenance").await?;
    // The reader takes what had come, and waits.
    until(control, |stats| stats.items_buffered == 0).await;
    let before = control.stats();
    sleep(Duration::from_millis(200)).await;
    let stats = control.stats();
    let reason = stats.pause_reason.unwrap_or_default();
    println!("  {:?} for {reason}: {:.1?}", stats.state, stats.paused_for);
    println!(
        "  meanwhile {} rows came, {} were read, {} wait",
        stats.total_rows_received - before.total_rows_received,
        stats.total_rows_yielded - before.total_rows_yielded,
        stats.items_buffered
    );

    control.resume().await?;
    until(control, |stats| stats.total_rows_yielded > before.total_rows_yielded + 1000).await;
    println!("  {:?} again", control.state());

    // Resolves when the query is stopped on the server.
    control.cancel().await?;
    println!("  {:?}", control.state());
    Ok(())
}

/// Waits until the numbers say so.
async fn until(control: &StreamControl, holds: impl Fn(&StreamStats) -> bool) {
    while !holds(&control.stats()) {
        sleep(Duration::from_millis(1)).await;
    }
}
