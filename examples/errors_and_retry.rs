//! Errors, their retry advice, and a retry loop: `cargo run --example errors_and_retry`.
//!
//! It uses the server of `DATABASE_URL`, in a schema of its own, or starts a private one.

use std::time::Duration;

use fraiseql_wire::{Error, FraiseClient, RawJson, RetryAdvice};
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;

mod support;

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Reading {
    id: u64,
    celsius: f64,
}

const DATA: &str = "
    -- 50,000 readings, 50 MB. Every thousandth has no value.
    create view v_reading as
    select jsonb_build_object('id', i, 'celsius', case when i % 1000 <> 0 then i % 40 end,
                              'trace', repeat('x', 1000)) as data
    from (select generate_series(1, 50000) i) as numbers;

    create view v_large as select to_jsonb(repeat('x', 1000000)) as data;
    create view v_asleep as select to_jsonb(pg_sleep(600)::text) as data;

    -- The first two queries wait for ten minutes.
    create sequence asked;
    create view v_cold as
    select to_jsonb(case when nextval('asked') < 3 then pg_sleep(600)::text else 'warm' end) as data;
";

#[tokio::main]
async fn main() -> support::Result<()> {
    support::with_data(DATA, run).await
}

async fn run(url: String, admin: tokio_postgres::Client) -> support::Result<()> {
    let client = FraiseClient::connect(&url).await?;
    println!("Errors and their advice:");
    what_goes_wrong(&client, &url).await?;

    println!("\nA session terminated mid-stream, once:");
    let mut to_be_ended = true;
    let counts = with_retry(5, async || {
        let mut readings = client.query::<Reading>("v_reading").execute().await?;
        // Starts at zero in each attempt, because the query starts at its first row.
        let mut counts = Counts::default();
        while let Some(reading) = readings.next().await {
            match reading {
                Ok(_) => counts.good += 1,
                // One bad document: the stream continues.
                Err(e) if e.is_row_error() => {
                    counts.bad += 1;
                    counts.first_bad.get_or_insert_with(|| e.to_string());
                }
                // Any other error ends the stream, after the rows already received.
                Err(e) => {
                    println!("  {} rows, then an error", counts.good + counts.bad);
                    return Err(e);
                }
            }
            if counts.good == 2000 && std::mem::take(&mut to_be_ended) {
                let ended = support::terminate(&admin, &client).await;
                ended.expect("the example terminates the session");
            }
        }
        Ok(counts)
    });
    let Counts { good, bad, first_bad } = counts.await?;
    println!("  {good} good rows, {bad} bad ones; the first: {}", first_bad.unwrap_or_default());

    println!("\nA query that times out twice:");
    let cold = async || {
        client.query::<String>("v_cold").timeout(Duration::from_millis(300)).fetch_one().await
    };
    println!("  result: {}", with_retry(5, cold).await?);

    println!("\nA query that always times out:");
    let asleep = async || {
        client.query::<String>("v_asleep").timeout(Duration::from_millis(100)).fetch_one().await
    };
    println!("  no more attempts: {}", with_retry(3, asleep).await.unwrap_err());

    println!("\nA missing view:");
    let missing = async || client.query::<String>("v_missing").fetch_all().await;
    println!("  not retried: {}", with_retry(5, missing).await.unwrap_err());
    Ok(())
}

#[derive(Default)]
struct Counts {
    good: u64,
    bad: u64,
    first_bad: Option<String>,
}

/// Runs a job at most `attempts` times, while the advice of its errors is to retry.
///
/// The client replaces a lost connection when the next query begins.
async fn with_retry<T>(
    attempts: u32,
    mut job: impl AsyncFnMut() -> fraiseql_wire::Result<T>,
) -> fraiseql_wire::Result<T> {
    let mut attempt = 1;
    loop {
        let error = match job().await {
            Ok(done) => return Ok(done),
            Err(e) => e,
        };
        let pause = match error.retry_advice() {
            RetryAdvice::Never => return Err(error),
            _ if attempt == attempts => return Err(error),
            RetryAdvice::Immediately => Duration::ZERO,
            _ => backoff(attempt),
        };
        println!("  attempt {attempt} of {attempts}, retrying in {pause:.0?}: {error}");
        tokio::time::sleep(pause).await;
        attempt += 1;
    }
}

/// Full jitter: a random part of a limit that doubles from 100 ms to 5 s, so that clients that
/// failed together do not retry together.
fn backoff(failures: u32) -> Duration {
    let doubled = Duration::from_millis(100).saturating_mul(2u32.saturating_pow(failures - 1));
    doubled.min(Duration::from_secs(5)).mul_f64(support::random())
}

async fn what_goes_wrong(client: &FraiseClient, url: &str) -> fraiseql_wire::Result<()> {
    let missing = client.query::<RawJson>("v_missing").fetch_all().await;
    show("a missing view", missing.unwrap_err());

    let injected = client.query::<RawJson>("v_reading; drop table users").fetch_all().await;
    show("an invalid name: nothing is sent", injected.unwrap_err());

    let limited = support::with_setting(url, "statement_timeout=100");
    let limited = FraiseClient::connect(&limited).await?;
    let stopped = limited.query::<RawJson>("v_asleep").fetch_all().await;
    show("a timeout of the server", stopped.unwrap_err());

    let asleep = client.query::<RawJson>("v_asleep").timeout(Duration::from_millis(100));
    show("a timeout of the client", asleep.fetch_all().await.unwrap_err());

    let stream = client.query::<RawJson>("v_reading").execute().await?;
    client.cancel_token().cancel().await?;
    show("a cancelled query", stream.try_for_each(async |_| Ok(())).await.unwrap_err());

    let large = client.query::<RawJson>("v_large").max_memory(64 << 10).fetch_all().await;
    show("a row above max_memory", large.unwrap_err());

    let refused = FraiseClient::connect("postgres://app@127.0.0.1:1/shop").await;
    show("a port without a server", refused.unwrap_err());
    Ok(())
}

fn show(what: &str, error: Error) {
    println!("  {what}");
    println!(
        "    category {}, retriable: {}, advice: {:?}",
        error.category(),
        error.is_retriable(),
        error.retry_advice()
    );
    // With an error of the server: code, message, hint, position and so on.
    if let Some(e) = error.as_db_error() {
        println!("    SQLSTATE {}, message {:?}", e.code(), e.message());
    }
    println!("    {error}");
}
