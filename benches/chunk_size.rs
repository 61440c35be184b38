//! Compares chunk sizes: fixed ones, and the adaptive one.
//!
//! A server that replays its answer from memory sends the same rows to the clients, in turns.
//! Prints medians as ratios to the adaptive size: above 1.00, a size is slower. Run it by `cargo
//! bench --bench chunk_size`.

#[path = "support/replay.rs"]
mod replay;
#[path = "support/timing.rs"]
mod timing;

use std::net::SocketAddr;

use fraiseql_wire::{FraiseClient, FromJsonRow, RawJson};
use serde::Deserialize;
use timing::{drain, median};
use tokio::runtime::{Builder, Runtime};

const SIZES: [usize; 6] = [1, 16, 64, 256, 1024, 4096];
const ROUNDS: usize = 9;

#[derive(Deserialize)]
struct Document {
    #[allow(dead_code)]
    text: String,
}

fn main() {
    let runtimes: [(&str, Runtime); 2] = [
        ("one thread", Builder::new_current_thread().enable_all().build().unwrap()),
        (
            "two threads",
            Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        ),
    ];
    print!("{:<48}{:>12}", "rows, decoding, runtime", "adaptive");
    SIZES.iter().for_each(|size| print!("{size:>8}"));
    println!("  (adaptive: ns a row; the others: ratio to it)");
    for (bytes, rows) in [(20, 1_000_000), (230, 400_000), (1800, 60_000)] {
        let document = format!("{{\"text\":\"{}\"}}", "x".repeat(bytes - 11));
        let server = replay::start(&document, rows);
        for (name, runtime) in &runtimes {
            let label = |decoding| format!("{rows} of {bytes} B, {decoding}, {name}");
            compare::<RawJson>(&label("raw"), runtime, server, rows);
            compare::<Document>(&label("typed"), runtime, server, rows);
        }
    }
}

fn compare<T: FromJsonRow + 'static>(
    label: &str,
    runtime: &Runtime,
    server: SocketAddr,
    rows: usize,
) {
    let url = format!("postgres://u@{server}/d?sslmode=disable");
    runtime.block_on(async {
        let client = FraiseClient::connect(&url).await.unwrap();
        let mut adaptive = Vec::new();
        let mut fixed = vec![Vec::new(); SIZES.len()];
        for _ in 0..ROUNDS {
            let query = client.query::<T>("v").adaptive_chunking(true);
            adaptive.push(drain(query, rows).await);
            for (times, size) in fixed.iter_mut().zip(SIZES) {
                times.push(drain(client.query::<T>("v").chunk_size(size), rows).await);
            }
        }
        let adaptive = median(adaptive).as_secs_f64();
        print!("{label:<48}{:>12.0}", adaptive * 1e9 / rows as f64);
        for times in fixed {
            print!("{:>8.2}", median(times).as_secs_f64() / adaptive);
        }
        println!();
    });
}
