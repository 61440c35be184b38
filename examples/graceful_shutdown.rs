//! A worker that ends well: `cargo run --example graceful_shutdown`, and then Ctrl-C or SIGTERM.
//!
//! It takes no new work, gives what is running a deadline (in seconds, the first argument; 5 unless given), stops the
//! rest on the server, closes its connections and exits with 0. A second signal is a deadline that has passed.
//!
//! With `DATABASE_URL` set it uses that server, in a schema of its own; without, it starts a private one.

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

/// A feed that takes a second or so to go through, and one that does not end.
const DATA: &str = "
    create view v_feed as
    select jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
    from (select generate_series(1, 500) i) as numbers;

    create view v_endless as
    select jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
    from (select generate_series(1, 2000000000) i) as numbers;
";

/// What the workers are told.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Work,
    /// Finish what is running.
    Finish,
    /// Stop it.
    Stop,
}

#[tokio::main]
async fn main() -> support::Result<()> {
    let deadline = std::env::args().nth(1).map_or(Ok(5), |seconds| seconds.parse())?;
    // Before any work: from here on a signal does not end the process.
    let mut signals = Signals::new()?;
    let place = support::Place::make(DATA).await?;
    let result = serve(&place.url, &mut signals, Duration::from_secs(deadline)).await;
    place.remove().await?;
    println!("done");
    result
}

async fn serve(url: &str, signals: &mut Signals, deadline: Duration) -> support::Result<()> {
    let (phase, told) = watch::channel(Phase::Work);
    let mut workers = JoinSet::new();
    for (number, feed) in ["v_feed", "v_feed", "v_endless"].into_iter().enumerate() {
        workers.spawn(work(number, FraiseClient::connect(url).await?, feed, told.clone()));
    }
    println!("working; process {}", std::process::id());

    tokio::select! {
        () = signals.next() => println!("no new work, and {deadline:?} for what is running"),
        // None ends by itself, unless it fails: then the others are dropped, and their streams with them.
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
            println!("stopping the rest");
            phase.send_replace(Phase::Stop);
            all_ended.await
        }
    }
}

/// Goes through its feed, again and again.
async fn work(
    number: usize,
    client: FraiseClient,
    feed: &str,
    mut told: watch::Receiver<Phase>,
) -> support::Result<()> {
    let mut feeds = 0;
    while *told.borrow() == Phase::Work {
        let mut rows = client.query::<RawJson>(feed).execute().await?;
        let mut handled = 0;
        let finished = loop {
            let row = tokio::select! {
                // In this order: a stream that always has rows would else be asked first now and then.
                biased;
                _ = told.wait_for(|phase| *phase == Phase::Stop) => break false,
                row = rows.next() => row,
            };
            match row {
                // Not in the select: what was taken is handled.
                Some(row) => handle(row?).await,
                None => break true,
            }
            handled += 1;
        };
        if !finished {
            // Resolves when the server has stopped. Dropping the stream would stop it as well, but in the
            // background, where the end of the process is in the way.
            rows.cancel().await?;
            println!("worker {number}: stopped behind row {handled} of {feed}");
            break;
        }
        feeds += 1;
    }
    // In order, so that the server's log is silent about it.
    client.close().await?;
    println!("worker {number}: {feeds} times through {feed}, closed");
    Ok(())
}

async fn handle(_row: RawJson) {
    sleep(Duration::from_millis(2)).await;
}

/// Ctrl-C, and what service managers and containers send.
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
