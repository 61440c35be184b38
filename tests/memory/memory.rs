//! Memory as the allocator and the operating system see it.

use crate::support::{client, eventually, sql};
use crate::{ALLOCATOR, ALONE};
use fraiseql_wire::{Error, QueryStream, RawJson};
use futures_util::StreamExt;

const MIB: usize = 1 << 20;

/// Bytes that are allocated at the moment.
fn live() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Checks `estimated_memory`, within 10 % and a constant for the tasks, the queue and the
/// parameters of a session.
fn agrees(stream: &QueryStream<RawJson>, before: usize, when: &str) {
    const CONSTANT: usize = 32 << 10;
    let counted = live().saturating_sub(before);
    let estimated = stream.stats().estimated_memory;
    let difference = counted.abs_diff(estimated);
    assert!(
        difference <= counted / 10 + CONSTANT,
        "{when}: {counted} bytes are allocated, {estimated} estimated"
    );
}

#[tokio::test]
async fn estimated_memory_equals_allocated_memory() {
    let _alone = ALONE.lock().await;
    sql("create view v_sizes as
         select to_json(repeat('x', size)) as data
         from (values (20, 400000), (2000, 20000), (300000, 100)) shapes(size, rows),
              generate_series(1, rows)")
    .await;
    let client = client().await;
    client.ping().await.unwrap();
    for cap in [256 << 10, MIB, 8 * MIB] {
        for first in ["20", "2000", "300000"] {
            // A row that is larger than the cap is another matter.
            if first == "300000" && cap < MIB {
                continue;
            }
            let before = live();
            let mut stream = client
                .query::<RawJson>("v_sizes")
                .where_sql("length(data #>> '{}') = $1::int")
                .bind(first)
                .max_memory(cap)
                .execute()
                .await
                .unwrap();
            let full = async |stream: &QueryStream<RawJson>| {
                eventually("the stream is full or at its end", async || {
                    let (now, held) = (stream.stats(), stream.stats().estimated_memory);
                    now.time_blocked_on_consumer > std::time::Duration::ZERO
                        || held + 400_000 > cap
                        || now.items_buffered == 100
                })
                .await;
            };
            full(&stream).await;
            stream.pause().await.unwrap();
            agrees(&stream, before, &format!("full, rows of {first}, cap {cap}"));
            let half = stream.stats().items_buffered / 2;
            for _ in 0..half {
                stream.next().await.unwrap().unwrap();
            }
            agrees(&stream, before, &format!("half full, rows of {first}, cap {cap}"));
            stream.cancel().await.unwrap();
            eventually("the reader is done", async || stream.stats().estimated_memory == 0).await;
            agrees(&stream, before, &format!("cancelled, rows of {first}, cap {cap}"));
        }
    }
}

/// The memory of one huge row is released while the stream continues. Other allocations are few:
/// chunks, read buffers, and the values of the rows.
#[tokio::test]
async fn row_allocates_only_its_own_value() {
    #[derive(serde::Deserialize)]
    #[allow(dead_code)]
    struct Number {
        id: u64,
    }
    #[derive(serde::Deserialize)]
    #[allow(dead_code)]
    struct Named {
        id: u64,
        name: String,
    }
    let _alone = ALONE.lock().await;
    sql("create view v_named as
         select jsonb_build_object('id', i, 'name', 'a name of ' || i, 'more', repeat('x', 150)) as data
         from (select generate_series(1, 220000) i) numbers")
    .await;
    let client = client().await;
    let read = async |rows: u64, how: &str| {
        let before = ALLOCATOR.stats().allocations;
        let mut seen = 0;
        match how {
            "raw" => {
                let query = client.query::<RawJson>("v_named").limit(rows);
                let mut stream = query.execute().await.unwrap();
                while let Some(row) = stream.next().await {
                    row.unwrap();
                    seen += 1;
                }
            }
            "chunk" => {
                let query = client.query::<RawJson>("v_named").limit(rows);
                let mut stream = query.execute().await.unwrap();
                while let Some(chunk) = stream.next_chunk().await {
                    seen += chunk.unwrap().rows().count() as u64;
                }
            }
            "number" => {
                let query = client.query::<Number>("v_named").limit(rows);
                let mut stream = query.execute().await.unwrap();
                while let Some(row) = stream.next().await {
                    row.unwrap();
                    seen += 1;
                }
            }
            _ => {
                let query = client.query::<Named>("v_named").limit(rows);
                let mut stream = query.execute().await.unwrap();
                while let Some(row) = stream.next().await {
                    row.unwrap();
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, rows);
        ALLOCATOR.stats().allocations - before
    };
    for (how, own) in [("raw", 0.0), ("chunk", 0.0), ("number", 0.0), ("named", 1.0)] {
        // Once for what is made the first time.
        read(1_000, how).await;
        let (few, many) = (read(20_000, how).await, read(220_000, how).await);
        let a_row = many.abs_diff(few) as f64 / 200_000.0;
        assert!((a_row - own).abs() < 0.1, "{how}: {a_row} allocations a row");
    }
    // The same with a metrics recorder.
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);
    read(1_000, "number").await;
    let (few, many) = (read(20_000, "number").await, read(220_000, "number").await);
    let a_row = many.abs_diff(few) as f64 / 200_000.0;
    assert!(a_row < 0.1, "{a_row} allocations a row, with a recorder");
    assert!(recorder.handle().render().contains("fraiseql_wire_rows_yielded_total"));
}

/// An allocator takes longer for a buffer of 64 KiB between small pieces than for all of these.
#[tokio::test]
async fn fast_consumer_reads_every_row_from_one_buffer() {
    let _alone = ALONE.lock().await;
    sql("create view v_steady as
         select to_json(repeat('x', 1000)) as data from generate_series(1, 20000)")
    .await;
    let client = client().await;
    let mut stream = client.query::<RawJson>("v_steady").execute().await.unwrap();
    let before = ALLOCATOR.stats().bytes_allocated;
    let mut bytes = 0;
    while let Some(row) = stream.next().await {
        bytes += row.unwrap().as_bytes().len();
    }
    let allocated = ALLOCATOR.stats().bytes_allocated - before;
    assert!(allocated < bytes / 10, "{allocated} bytes allocated for {bytes} of rows");
}

#[tokio::test]
async fn read_buffer_shrinks_after_a_huge_row() {
    let _alone = ALONE.lock().await;
    sql("create view v_one_huge as
         select to_json(repeat('x', case i when 3 then 50000000 else 1000 end)) as data
         from generate_series(1, 100000) i")
    .await;
    let client = client().await;
    client.ping().await.unwrap();
    let before = live();
    let mut stream = client.query::<RawJson>("v_one_huge").execute().await.unwrap();
    for _ in 0..2 {
        stream.next().await.unwrap().unwrap();
    }
    let huge = stream.next().await.unwrap().unwrap();
    assert_eq!(huge.as_bytes().len(), 50_000_002);
    assert!(live() - before >= 49_000_000, "{} bytes", live() - before);
    drop(huge);
    for _ in 0..10_000 {
        stream.next().await.unwrap().unwrap();
    }
    assert!(live().saturating_sub(before) < 3 * MIB, "{} bytes", live() - before);
    assert!(stream.stats().estimated_memory < 3 * MIB);
}

/// A new buffer for each would be mapped and cleared by the system each time.
#[tokio::test]
async fn large_rows_use_the_memory_of_those_that_were_dropped() {
    const ROWS: usize = 300;
    let _alone = ALONE.lock().await;
    sql(&format!(
        "create view v_large_rows as
         select to_json(repeat('x', 200000 + i * 37 % 5000)) as data
         from generate_series(1, {ROWS}) i"
    ))
    .await;
    let client = client().await;
    let mut stream = client.query::<RawJson>("v_large_rows").execute().await.unwrap();
    let (mut rows, mut before) = (0, 0);
    while let Some(row) = stream.next().await {
        drop(row.unwrap());
        rows += 1;
        if rows == ROWS / 2 {
            before = ALLOCATOR.stats().bytes_allocated;
        }
    }
    let allocated = ALLOCATOR.stats().bytes_allocated - before;
    assert_eq!(rows, ROWS);
    assert!(allocated < ROWS / 2 * 200_000 / 4, "{allocated} bytes");
}

#[tokio::test]
async fn document_of_256_mib_is_limited_by_max_memory() {
    const SIZE: usize = 256 * MIB;
    let _alone = ALONE.lock().await;
    sql(&format!(
        "create view v_256_mib as
         select json_build_object('text', repeat('x', case i when 2 then {SIZE} else 1 end)) as data
         from generate_series(1, 3) i"
    ))
    .await;
    let client = client().await;
    let sizes = async |cap: usize| {
        let query = client.query::<RawJson>("v_256_mib").max_memory(cap);
        let mut stream = query.execute().await.unwrap();
        let mut sizes = Vec::new();
        loop {
            match stream.next().await {
                Some(Ok(row)) => sizes.push(row.as_bytes().len()),
                Some(Err(e)) => return (sizes, Some(e), stream.stats().peak_memory),
                None => return (sizes, None, stream.stats().peak_memory),
            }
        }
    };
    let around = r#"{"text" : ""}"#.len();
    let (passed, error, peak) = sizes(300 * MIB).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(passed, [around + 1, around + SIZE, around + 1]);
    assert!(peak <= 300 * MIB);

    let before = live();
    let (passed, error, peak) = sizes(200 * MIB).await;
    assert_eq!(passed, [around + 1]);
    let Some(Error::MemoryLimitExceeded { limit, required }) = error else { panic!("{error:?}") };
    assert_eq!((limit, required), (200 * MIB, around + SIZE));
    assert!(peak < MIB && live().saturating_sub(before) < MIB, "it was not buffered");
    assert_eq!(client.query::<u8>("v_one").fetch_one().await.unwrap(), 1);
}

/// 10 GiB pass through 1 MiB, read by fits and starts.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_gibibytes_pass_through_one_mebibyte() {
    const ROWS: u64 = 10 * 1024 * 16;
    let _alone = ALONE.lock().await;
    // The document is made once: to make it for each row would take most of the time.
    sql("create view v_10_gib as
         with t as materialized (select to_json(repeat('0123456789abcdef', 4096)) as data)
         select data from t, generate_series(1, 163840)")
    .await;
    let client = client().await;
    client.ping().await.unwrap();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    let start = resident();
    let query = client.query::<RawJson>("v_10_gib").max_memory(MIB);
    let mut stream = query.execute().await.unwrap();
    let (mut rows, mut bytes, mut peak) = (0, 0, 0);
    while let Some(chunk) = stream.next_chunk().await {
        let chunk = chunk.unwrap();
        rows += chunk.len() as u64;
        bytes += chunk.rows().map(<[u8]>::len).sum::<usize>();
        if rows % 64 == 0 {
            peak = peak.max(resident());
        }
        if rows % 1024 == 0 {
            // The stream is full, and the server waits.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    let stats = stream.stats();
    assert_eq!((rows, stats.total_rows_received), (ROWS, ROWS));
    assert_eq!(bytes, ROWS as usize * (65_536 + 2));
    assert!(stats.peak_memory <= MIB + (64 << 10) + 2, "{stats:?}");
    let grown = peak.saturating_sub(start);
    assert!(grown < 40 * MIB, "the process grew by {grown} bytes");
    println!("the process grew by {} KiB", grown >> 10);
}
