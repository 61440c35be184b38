//! What an operator sees: metrics whose numbers add up.

mod support;

use std::{collections::BTreeMap, time::Duration};

use fraiseql_wire::{Error, FraiseClient, RawJson, metrics};
use futures_util::StreamExt;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use serde_json::Value;
use support::{
    client, eventually,
    scripted::{self, Scripted, Step},
    sql,
};

/// The numbers of this thread: by name without its prefix, and labels.
struct Numbers(BTreeMap<(String, Labels), Vec<f64>>);

type Labels = Vec<(String, String)>;

impl Numbers {
    fn of(snapshotter: &Snapshotter) -> Self {
        let mut numbers = BTreeMap::new();
        for (key, unit, help, value) in snapshotter.snapshot().into_vec() {
            let key = key.key();
            assert!(unit.is_some() && help.is_some(), "{} is not described", key.name());
            let name = key.name().strip_prefix("fraiseql_wire_").unwrap().to_owned();
            let metric = metrics::CATALOG.iter().find(|m| m.name == key.name());
            let metric = metric.unwrap_or_else(|| panic!("{name} is not in the catalog"));
            let mut labels: Labels =
                key.labels().map(|l| (l.key().to_owned(), l.value().to_owned())).collect();
            labels.sort();
            let mut keys: Vec<&str> = metric.labels.to_vec();
            keys.sort_unstable();
            assert_eq!(labels.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), keys, "{name}");
            let values = match value {
                DebugValue::Counter(n) => vec![n as f64],
                DebugValue::Gauge(n) => vec![n.into_inner()],
                DebugValue::Histogram(values) => values.into_iter().map(Into::into).collect(),
            };
            numbers.insert((name, labels), values);
        }
        Self(numbers)
    }

    /// All values of a metric whose labels have these among them.
    fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let matches = |has: &[(String, String)]| {
            labels.iter().all(|(k, v)| {
                has.iter().any(|(key, value)| (k, v) == (&key.as_str(), &value.as_str()))
            })
        };
        let found = self.0.iter().filter(|((n, l), _)| n == name && matches(l));
        found.flat_map(|(_, values)| values.clone()).collect()
    }

    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.values(name, labels).iter().sum()
    }
}

#[tokio::test]
async fn every_number_is_what_happened() {
    sql("create view v_some as select to_json(i) as data from generate_series(1, 1000) i;
         create view v_odd as select * from (values ('1'::json), ('\"x\"'), ('1e999'), ('2')) t(data);
         create view v_fails_at_once as select to_json(1 / 0) as data")
    .await;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let client = client().await;

    // Success, through every kind of condition.
    let rows = client
        .query::<u64>("v_some")
        .where_sql("true")
        .filter(fraiseql_wire::Field::column("data").is_null().not())
        .where_rust(|n| n != 7)
        .where_typed(|n| n % 2 == 1)
        .order_by("data::text::int")
        .chunk_size(100)
        .fetch_all()
        .await
        .unwrap();
    assert_eq!(rows.len(), 499);
    let mut stream = client.query::<RawJson>("v_some").execute().await.unwrap();
    while let Some(chunk) = stream.next_chunk().await {
        chunk.unwrap();
    }
    drop(stream);

    // An error before the first row, bad rows, and an error behind rows.
    client.query::<Value>("v_fails_at_once").execute().await.unwrap_err();
    client.query::<Value>("v_missing").execute().await.unwrap_err();
    client.query::<Value>("Robert'); drop table").execute().await.unwrap_err();
    let odd: Vec<_> = client.query::<u8>("v_odd").execute().await.unwrap().collect().await;
    assert_eq!(odd.iter().filter(|row| row.is_err()).count(), 2);
    let text = client.query::<Value>("v_odd").execute().await.unwrap().collect::<Vec<_>>().await;
    assert_eq!(text.iter().filter(|row| row.is_err()).count(), 1);

    // Stopped: by a drop, by itself, by a handle, by a timeout, before it began.
    let open = async || {
        let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream
    };
    drop(open().await);
    open().await.cancel().await.unwrap();
    let stream = open().await;
    stream.control().cancel().await.unwrap();
    drop(stream);
    let query = client.query::<Value>("v_asleep").timeout(Duration::from_millis(50));
    query.execute().await.unwrap_err();
    let query = client.query::<Value>("v_asleep");
    assert!(tokio::time::timeout(Duration::from_millis(50), query.execute()).await.is_err());

    // Pauses: resumed, timed out, and cut off by the end of the stream.
    let mut stream = open().await;
    stream.pause_with_reason("lunch").await.unwrap();
    stream.resume().await.unwrap();
    stream.set_pause_timeout(Duration::from_millis(1));
    stream.pause().await.unwrap();
    eventually("it resumes", async || {
        stream.stats().paused_for > Duration::from_millis(1) && {
            stream.state() == fraiseql_wire::StreamState::Running
        }
    })
    .await;
    stream.clear_pause_timeout();
    stream.pause().await.unwrap();
    drop(stream);

    // Memory: a soft limit, and a hard one.
    let query = client.query::<Value>("v_endless").max_memory(1 << 20).memory_soft_limits(0.2, 0.5);
    let mut stream = query.execute().await.unwrap();
    eventually("it is full", async || stream.stats().peak_memory > 400 << 10).await;
    let limit = loop {
        match stream.next().await.unwrap() {
            Ok(_) => tokio::task::yield_now().await,
            Err(e) => break e,
        }
    };
    assert!(matches!(limit, Error::MemoryLimitExceeded { .. }), "{limit}");
    drop(stream);

    // An adaptive size goes up.
    let query = client.query::<Value>("v_endless").adaptive_chunking(true).chunk_size(16);
    let mut stream = query.max_memory(256 << 10).execute().await.unwrap();
    while stream.stats().chunk_adjustments == 0 {
        tokio::task::yield_now().await;
        stream.next().await.unwrap().unwrap();
    }
    drop(stream);
    client.ping().await.unwrap();

    let numbers = Numbers::of(&snapshotter);
    let sum = |name: &str, labels: &[(&str, &str)]| numbers.sum(name, labels);
    for metric in metrics::CATALOG {
        let name = metric.name.strip_prefix("fraiseql_wire_").unwrap();
        assert!(!numbers.values(name, &[]).is_empty(), "nothing emits {name}");
    }

    let some = [("entity", "v_some")];
    let all = [
        ("entity", "v_some"),
        ("has_where_sql", "true"),
        ("has_filter", "true"),
        ("has_where_rust", "true"),
        ("has_order_by", "true"),
    ];
    assert_eq!((sum("queries_total", &all), sum("queries_total", &some)), (1.0, 2.0));
    assert_eq!(
        (sum("query_success_total", &some), sum("query_completed_total", &some)),
        (2.0, 2.0)
    );
    assert_eq!(sum("rows_received_total", &some), 2000.0);
    assert_eq!(sum("rows_yielded_total", &some), 1499.0);
    assert_eq!(sum("rows_filtered_total", &some), 501.0);
    assert_eq!(sum("rows_deserialized_total", &some), 999.0);
    assert_eq!(sum("rows_discarded_total", &some), 0.0);
    let digits = (1..=1000).map(|n: u32| n.to_string().len()).sum::<usize>() as f64;
    assert_eq!(sum("bytes_received_total", &some), 2.0 * digits);
    assert_eq!(numbers.values("query_rows", &some), [1000.0, 1000.0]);
    assert_eq!(numbers.values("query_bytes", &some), [digits, digits]);
    assert_eq!((sum("chunk_rows", &some), sum("chunk_bytes", &some)), (2000.0, 2.0 * digits));
    let chunks = numbers.values("chunk_rows", &some).len();
    assert!((14..=1000).contains(&chunks), "{chunks}");
    for per_chunk in [
        "chunk_processing_duration_seconds",
        "channel_send_wait_seconds",
        "socket_wait_seconds",
        "channel_occupancy_ratio",
    ] {
        assert_eq!(numbers.values(per_chunk, &some).len(), chunks, "{per_chunk}");
    }
    assert!(numbers.values("channel_occupancy_ratio", &[]).iter().all(|r| (0.0..=1.0).contains(r)));
    let decoded = numbers.values("json_decode_duration_seconds", &some).len();
    assert!((10..chunks).contains(&decoded), "chunks of next_chunk() are not decoded: {decoded}");
    assert!(numbers.values("filter_duration_seconds", &some).len() >= 10);
    let durations = numbers.values("query_duration_seconds", &some);
    for earlier in ["query_startup_duration_seconds", "time_to_first_row_seconds"] {
        for (earlier, whole) in numbers.values(earlier, &some).iter().zip(&durations) {
            assert!(earlier <= whole && *earlier > 0.0);
        }
    }

    let odd = |name, reason| sum(name, &[("entity", "v_odd"), ("reason", reason)]);
    assert_eq!(odd("rows_deserialization_failed_total", "data"), 1.0);
    assert_eq!(odd("rows_deserialization_failed_total", "syntax"), 2.0);
    assert_eq!(sum("json_parse_errors_total", &[("entity", "v_odd")]), 2.0);
    assert_eq!(sum("query_error_total", &[("category", "server")]), 2.0);

    let cancelled = |cause| sum("query_cancelled_total", &[("cause", cause)]);
    // Dropped: one stream, one execute(), the paused one, the adaptive one.
    assert_eq!((cancelled("drop"), cancelled("cancel"), cancelled("timeout")), (4.0, 2.0, 1.0));
    assert_eq!(sum("query_error_total", &[("category", "timeout")]), 1.0);
    let completed = |status| sum("query_completed_total", &[("status", status)]);
    assert_eq!(completed("cancelled"), 6.0);
    assert_eq!(completed("error"), sum("query_error_total", &[]));
    assert_eq!(completed("success"), sum("query_success_total", &[]));
    assert_eq!(sum("query_completed_total", &[]), sum("queries_total", &[]));
    assert_eq!(
        numbers.values("query_duration_seconds", &[]).len() as f64,
        sum("queries_total", &[])
    );

    assert_eq!(sum("stream_paused_total", &[("reason", "lunch")]), 1.0);
    assert_eq!(sum("stream_paused_total", &[]), 3.0);
    assert_eq!(sum("stream_resumed_total", &[("cause", "resume")]), 1.0);
    assert_eq!(sum("stream_resumed_total", &[("cause", "timeout")]), 1.0);
    assert_eq!(sum("stream_pause_timeout_expired_total", &[]), 1.0);
    assert_eq!(numbers.values("stream_pause_duration_seconds", &[]).len(), 3);
    assert_eq!(sum("memory_limit_exceeded_total", &[]), 1.0);
    assert!(sum("memory_soft_limit_warned_total", &[]) >= 1.0);
    assert_eq!(sum("adaptive_chunk_adjusted_total", &[("direction", "up")]), 1.0);

    let rows = |name| sum(&format!("rows_{name}_total"), &[]);
    let failed = rows("deserialization_failed");
    assert_eq!(rows("received"), rows("yielded") + rows("filtered") + failed + rows("discarded"));
    for gauge in
        ["streams_active", "stream_buffered_rows", "stream_buffered_bytes", "read_buffer_bytes"]
    {
        assert!(numbers.values(gauge, &[]).iter().all(|n| *n == 0.0), "{gauge} is not back at 0");
    }
}

/// A connection that was lost while it was idle, and is replaced, makes no second query.
#[tokio::test]
async fn a_query_that_moves_to_another_connection_counts_once() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let answer =
        || [scripted::begin_json(), scripted::row("1"), scripted::complete(), scripted::ready()];
    let (mut first, mut second) = (scripted::login(), scripted::login());
    first.push(Step::ExpectQuery);
    second.extend([Step::ExpectQuery, Step::Send(answer().concat())]);
    let server = Scripted::start(vec![first, second]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    assert_eq!(client.query::<u8>("v").fetch_all().await.unwrap(), [1]);
    let numbers = Numbers::of(&snapshotter);
    for name in
        ["queries_total", "query_completed_total", "query_success_total", "rows_yielded_total"]
    {
        assert_eq!(numbers.sum(name, &[]), 1.0, "{name}");
    }
    assert_eq!(numbers.sum("streams_active", &[]), 0.0);
    drop(client);
    server.done().await;
}
