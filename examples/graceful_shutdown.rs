//! A worker with a graceful shutdown: `cargo run --example graceful_shutdown`, then Ctrl-C or
//! SIGTERM.
//!
//! It starts no new work, waits for running streams, cancels the rest on the server, closes its
//! connections and exits with 0. The first argument limits the wait, in seconds. Default: 5. A
//! second signal ends the wait.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use std::time::Duration;

use fraiseql_wire::{FraiseClient, RawJson};
use futures_util::StreamExt;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

mod support;

/// A feed that takes about a second, and an endless one.
const DATA: &str = "
    create view v_feed as
    select jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
    from (select generate_series(1, 500) i) as numbers;

    create view v_endless as
    select jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
    from (select generate_series(1, 2000000000) i) as numbers;
";

/// What the workers should do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Work,
    /// Finish running streams.
    Finish,
    /// Cancel them.
    Stop,
}

#[tokio::main]
async fn main() -> support::Result<()> {
    let deadline = std::env::args().nth(1).map_or(Ok(5), |seconds| seconds.parse())?;
    // Before any work: from here on, signals do not end the process.
    let mut signals = Signals::new()?;
    let place = support::Place::make(DATA).await?;
    let result = serve(&place.url, &mut signals, Duration::from_secs(deadline)).await;
    place.remove().await?;
    println!("done");
    result
}

async fn serve(url: &str, signals: &mut Signals, deadline: Duration) -> support::Result<()> {
    let (phase, current) = watch::channel(Phase::Work);
    let mut workers = JoinSet::new();
    for (number, feed) in ["v_feed", "v_feed", "v_endless"].into_iter().enumerate() {
        workers.spawn(work(number, FraiseClient::connect(url).await?, feed, current.clone()));
    }
    println!("working; process {}", std::process::id());

    tokio::select! {
        () = signals.next() => println!("no new work, waiting {deadline:?} for running streams"),
        // A worker only ends here if it fails. The others are then dropped with their streams.
        Some(ended) = workers.join_next() => ended??,
    }
    phase.send_replace(Phase::Finish);
    let all_ended = async {
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        support::Result::Ok(())
    };
    let mut all_ended = std::pin::pin!(all_ended);
    let in_time = tokio::select! {
        ended = timeout(deadline, &mut all_ended) => ended.ok(),
        () = signals.next() => None,
    };
    match in_time {
        Some(ended) => ended,
        None => {
            println!("cancelling the rest");
            phase.send_replace(Phase::Stop);
            all_ended.await
        }
    }
}

/// Reads its feed repeatedly.
async fn work(
    number: usize,
    client: FraiseClient,
    feed: &str,
    mut current: watch::Receiver<Phase>,
) -> support::Result<()> {
    let mut feeds = 0;
    while *current.borrow() == Phase::Work {
        let mut rows = client.query::<RawJson>(feed).execute().await?;
        let mut handled = 0;
        let finished = loop {
            let row = tokio::select! {
                // In this order, so that a stream that always has rows does not delay the stop.
                biased;
                _ = current.wait_for(|phase| *phase == Phase::Stop) => break false,
                row = rows.next() => row,
            };
            match row {
                // Not in the select: a received row is always handled.
                Some(row) => handle(row?).await,
                None => break true,
            }
            handled += 1;
        };
        if !finished {
            // Resolves when the server has stopped the query. Dropping the stream would cancel it
            // in the background, which the end of the process could prevent.
            rows.cancel().await?;
            println!("worker {number}: cancelled after row {handled} of {feed}");
            break;
        }
        feeds += 1;
    }
    // Sends Terminate, so that the server logs no lost connection.
    client.close().await?;
    println!("worker {number}: {feeds} times through {feed}, closed");
    Ok(())
}

async fn handle(_row: RawJson) {
    sleep(Duration::from_millis(2)).await;
}

/// SIGINT (Ctrl-C) and SIGTERM, which service managers and containers send.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
