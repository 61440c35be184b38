//! Which chunk size is best, and whether one that adapts is better than each fixed one.
//!
//! A server that plays its answer from memory sends the same rows to one client after the other, in
//! turns; printed are medians, as ratios to the adaptive size's: above 1.00 a size is slower. Run it
//! by `cargo bench --bench chunk_size`.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use fraiseql_wire::{FraiseClient, FromJsonRow, QueryBuilder, RawJson};
use futures_util::StreamExt;
use serde::Deserialize;
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
        let server = replay(bytes, rows);
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

async fn drain<T: FromJsonRow + 'static>(query: QueryBuilder<T>, rows: usize) -> Duration {
    let began = Instant::now();
    let mut stream = query.execute().await.unwrap();
    let mut count = 0;
    while let Some(row) = stream.next().await {
        row.unwrap();
        count += 1;
    }
    assert_eq!(count, rows);
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A server that answers every query with the same rows.
fn replay(bytes: usize, rows: usize) -> SocketAddr {
    let document = format!("{{\"text\":\"{}\"}}", "x".repeat(bytes - 11));
    let len = u32::try_from(document.len()).unwrap().to_be_bytes();
    let row = message(b'D', &[&[0, 1], &len[..], document.as_bytes()].concat());
    let column = b"\0\x01data\0\0\0\0\0\0\0\0\0\x0e\xda\xff\xff\xff\xff\xff\xff\0\0";
    let answer = [
        message(b'1', b""),
        message(b'2', b""),
        message(b'T', column),
        row.repeat(rows),
        message(b'C', b"SELECT\0"),
        message(b'Z', b"I"),
    ];
    let answer = Arc::new(answer.concat());
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || serve(socket.unwrap(), &answer));
        }
    });
    address
}

fn serve(mut socket: TcpStream, answer: &[u8]) -> Option<()> {
    skip(&mut socket, 0)?;
    let login = [message(b'R', &[0; 4]), message(b'K', &[0; 8]), message(b'Z', b"I")].concat();
    socket.write_all(&login).ok()?;
    loop {
        while skip(&mut socket, 1)? != b'S' {}
        // As a server does: 8 KiB at a time.
        for part in answer.chunks(8 << 10) {
            socket.write_all(part).ok()?;
        }
    }
}

/// Reads a message with so many bytes of tag.
fn skip(socket: &mut TcpStream, tag: usize) -> Option<u8> {
    let mut head = [0; 5];
    socket.read_exact(&mut head[..4 + tag]).ok()?;
    let len = u32::from_be_bytes(head[tag..tag + 4].try_into().ok()?);
    socket.read_exact(&mut vec![0; len as usize - 4]).ok()?;
    Some(head[0])
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &len[..], body].concat()
}
