//! Single parts: finding the rows in received bytes, delivering and decoding them, and rendering
//! filters. Run it by `cargo bench --bench micro`.

// The protocol is not public, so its source is included here. A feature that exports it would make
// it public API: Cargo enables the features that any crate of a build requests, for all of them.
#[path = "../src/error/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod error;
#[path = "../src/protocol/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod protocol;
#[path = "support/replay.rs"]
mod replay;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fraiseql_wire::{Filter, FraiseClient, RawJson, field};
use protocol::rows::{Run, value_at};
use serde::Deserialize;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

/// About 230 bytes.
const DOCUMENT: &str = r#"{"id": 4711, "name": "Customer 4711", "tags": ["retail", "north"], "email": "customer4711@example.com", "score": 71.1, "active": false, "status": "active", "address": {"zip": "04711", "city": "Springfield", "street": "111 Main Street"}}"#;

#[derive(Deserialize)]
#[allow(dead_code)]
struct Customer {
    id: u64,
    name: String,
    email: String,
    status: String,
    active: bool,
    score: f64,
    tags: Vec<String>,
    address: Address,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Address {
    street: String,
    city: String,
    zip: String,
}

/// The frames of a chunk: the reader finds and checks them, and the consumer iterates over them.
fn framing(c: &mut Criterion) {
    const ROWS: usize = 256;
    let buffer = replay::row(DOCUMENT).repeat(ROWS);
    let mut group = c.benchmark_group("framing");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("find", |b| {
        b.iter(|| {
            let mut run = Run::default();
            black_box(run.extend(black_box(&buffer), ROWS, 1 << 30));
            run.rows
        });
    });
    group.bench_function("walk", |b| {
        b.iter(|| {
            let (mut at, mut bytes) = (0, 0);
            while let Some((value, next)) = value_at(black_box(&buffer), at) {
                bytes += value.map_or(0, |range| range.len());
                at = next;
            }
            bytes
        });
    });
    group.finish();
}

/// Through socket, reader and channel, in chunks of these sizes.
fn hand_over(c: &mut Criterion) {
    const ROWS: usize = 100_000;
    let runtime = runtime();
    let client = connect(&runtime, r#"{"id": 4711}"#, ROWS);
    let mut group = c.benchmark_group("hand-over");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(20);
    for size in [1, 16, 256] {
        group.bench_function(format!("chunks of {size}"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let query = client.query::<RawJson>("v").chunk_size(size);
                    let mut stream = query.execute().await.unwrap();
                    let mut rows = 0;
                    while let Some(chunk) = stream.next_chunk().await {
                        rows += chunk.unwrap().len();
                    }
                    assert_eq!(rows, ROWS);
                });
            });
        });
    }
    group.finish();
}

fn decoding(c: &mut Criterion) {
    let runtime = runtime();
    let client = connect(&runtime, DOCUMENT, 1);
    let row = runtime.block_on(client.query::<RawJson>("v").fetch_one()).unwrap();
    let mut group = c.benchmark_group("decoding");
    group.throughput(Throughput::Bytes(DOCUMENT.len() as u64));
    group.bench_function("typed", |b| b.iter(|| row.decode::<Customer>().unwrap().id));
    group.bench_function("typed, by serde_json::from_slice", |b| {
        b.iter(|| serde_json::from_slice::<Customer>(row.as_bytes()).unwrap().id);
    });
    group.bench_function("value", |b| b.iter(|| row.decode::<Value>().unwrap()));
    group.finish();
}

fn filters(c: &mut Criterion) {
    let config = "postgres://localhost".parse().unwrap();
    let client = FraiseClient::new(config);
    let mut group = c.benchmark_group("filters");
    group.bench_function("one comparison", |b| {
        b.iter(|| client.query::<Value>("v").filter(field("id").eq(7)).to_sql().unwrap());
    });
    group.bench_function("a tree of five", |b| {
        b.iter(|| {
            let filter = Filter::all([
                field("status").eq("paid").or(field("status").eq("sent")),
                field("total").between(10, 20),
                field("customer.name").icontains("an").not(),
                field("tags").has_any_key(["vip", "new"]),
            ]);
            client.query::<Value>("v").filter(filter).to_sql().unwrap()
        });
    });
    group.finish();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn connect(runtime: &Runtime, document: &str, rows: usize) -> FraiseClient {
    let url = format!("postgres://u@{}/d?sslmode=disable", replay::start(document, rows));
    runtime.block_on(FraiseClient::connect(&url)).unwrap()
}

criterion_group!(benches, framing, hand_over, decoding, filters);
criterion_main!(benches);
