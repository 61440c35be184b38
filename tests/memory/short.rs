//! Queries whose complete answer arrives with the first read.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use crate::support::{
    client, eventually,
    scripted::{self, Scripted, Step},
    sql,
};
use crate::{ALLOCATOR, ALONE};
use fraiseql_wire::{
    ConnectionConfig, Error, FraiseClient, QueryStream, RawJson, StreamState, TimeoutPhase, field,
};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::oneshot;

async fn documents(name: &str) {
    sql(&format!(
        "create table {name} as
         select i as id, jsonb_build_object('id', i, 'name', 'name ' || i) as data
         from generate_series(1, 1000) i;
         create unique index on {name} (id)"
    ))
    .await;
}

fn at(server: &Scripted) -> ConnectionConfig {
    let config = server.url().parse::<ConnectionConfig>().unwrap();
    config.to_builder().read_timeout(Duration::from_secs(20)).build().unwrap()
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

async fn read_all(mut stream: QueryStream<Value>) -> (Vec<Value>, Option<Error>) {
    let (mut rows, mut error) = (Vec::new(), None);
    while let Some(row) = stream.next().await {
        match row {
            Ok(row) => rows.push(row),
            Err(e) => error = Some(e),
        }
    }
    (rows, error)
}

/// A login, then this answer to a query.
fn answering(answer: Vec<u8>) -> Vec<Step> {
    let mut script = scripted::login();
    script.extend([Step::ExpectQuery, Step::Send(answer), Step::ExpectEnd]);
    script
}

#[tokio::test]
async fn execute_returns_the_connection_before_it_resolves_and_spawns_no_task() {
    let _alone = ALONE.lock().await;
    documents("tv_back").await;
    let client = client().await;
    client.ping().await.unwrap();
    let before = tasks();
    for (limit, persistent) in [(0, true), (1, true), (20, true), (20, true), (1, false)] {
        let query = client.query::<Value>("tv_back").order_by("id").limit(limit);
        let stream = query.persistent(persistent).execute().await.unwrap();
        assert_eq!(tasks(), before, "limit {limit}");
        let stats = stream.stats();
        assert_eq!((stats.state, stats.total_rows_received), (StreamState::Running, limit));
        assert_eq!(stats.items_buffered, limit);
        // One stream at a time, whether or not its rows have arrived.
        let busy = client.query::<Value>("tv_back").execute().await.unwrap_err();
        assert!(matches!(busy, Error::ConnectionBusy), "{busy}");
        // The connection is not in use, so this is all.
        let control = stream.control();
        drop(stream);
        assert!(!client.is_busy());
        assert_eq!(control.stats().total_rows_discarded, limit);
        control.cancel().await.unwrap();
    }
    assert_eq!(tasks(), before);
}

/// Wakes a task, and counts how often.
struct Counting(Waker, AtomicU32);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Relaxed);
        self.0.wake_by_ref();
    }
}

/// A query that wakes its own task at its end costs a turn of the runtime, with a system call.
#[tokio::test]
async fn short_query_does_not_wake_its_own_task() {
    let _alone = ALONE.lock().await;
    documents("tv_wakes").await;
    let client = client().await;
    client.ping().await.unwrap();
    let mut queries = pin!(async {
        for id in 1..=20 {
            let query = client.query::<Value>("tv_wakes").where_sql("id = $1").bind(id);
            assert_eq!(query.fetch_one().await.unwrap()["id"], id);
        }
    });
    // The sockets of this runtime are polled between the turns of its tasks only.
    poll_fn(|cx| {
        let counting = Arc::new(Counting(cx.waker().clone(), AtomicU32::new(0)));
        let waker = Waker::from(Arc::clone(&counting));
        let polled = queries.as_mut().poll(&mut Context::from_waker(&waker));
        assert_eq!(counting.1.load(Relaxed), 0);
        polled
    })
    .await;
}

#[tokio::test]
async fn longer_result_is_read_by_a_task_after_its_first_rows() {
    let _alone = ALONE.lock().await;
    sql("create view v_longer as select to_jsonb(i) as data from generate_series(1, 50000) i")
        .await;
    let client = client().await;
    let before = tasks();
    let mut stream = client.query::<u64>("v_longer").execute().await.unwrap();
    assert!(stream.stats().items_buffered > 0, "the first rows are there");
    assert_eq!(tasks(), before + 1);
    let mut expected = 0;
    while let Some(row) = stream.next().await {
        expected += 1;
        assert_eq!(row.unwrap(), expected);
    }
    assert_eq!(expected, 50_000);
    eventually("the task has ended", async || tasks() == before).await;
}

/// An answer that arrives in two parts, divided at every byte, has always the same rows and the
/// same error.
#[tokio::test]
async fn answer_divided_at_any_byte_is_the_same_answer() {
    let _alone = ALONE.lock().await;
    let error = scripted::error("ERROR", "22012", "division by zero");
    let notice = scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "x")]);
    let broken = [scripted::begin_json(), scripted::row("1"), error, scripted::ready()].concat();
    let noisy = [
        notice.clone(),
        scripted::begin_json(),
        scripted::row("1"),
        notice.clone(),
        scripted::row("2"),
        scripted::complete(),
        notice,
        scripted::ready(),
    ]
    .concat();
    for (answer, rows, fails) in [
        (scripted::answer(&["1", "2"]), 2, false),
        (scripted::answer(&[]), 0, false),
        (broken, 1, true),
        (noisy, 2, false),
    ] {
        for cut in 0..answer.len() {
            let (go, wait) = oneshot::channel();
            let mut script = scripted::login();
            script.push(Step::ExpectQuery);
            script.push(Step::Send(answer[..cut].to_vec()));
            script.push(Step::Wait(wait));
            script.push(Step::Send(answer[cut..].to_vec()));
            script.push(Step::ExpectQuery);
            script.push(Step::Send(scripted::answer(&["3"])));
            let server = Scripted::start(vec![script]).await;
            let client = FraiseClient::connect_with_config(at(&server)).await.unwrap();
            let mut query = Box::pin(client.query::<Value>("v").execute());
            let mut stream = None;
            for _ in 0..3 {
                tokio::task::yield_now().await;
                if stream.is_none()
                    && let std::task::Poll::Ready(opened) = futures_util::poll!(query.as_mut())
                {
                    stream = Some(opened.unwrap());
                }
            }
            let _ = go.send(());
            let stream = match stream {
                Some(stream) => stream,
                None => query.await.unwrap(),
            };
            let (read, error) = read_all(stream).await;
            assert_eq!((read.len(), error.is_some()), (rows, fails), "cut at {cut}: {error:?}");
            assert_eq!(client.query::<u8>("v").fetch_all().await.unwrap(), [3], "cut at {cut}");
        }
    }
}

/// The same answers, but the server closes the connection: no result looks complete.
#[tokio::test]
async fn answer_that_ends_at_any_byte_is_an_error_after_its_rows() {
    let _alone = ALONE.lock().await;
    let answer = scripted::answer(&["1", "2"]);
    for cut in 0..answer.len() {
        let mut script = scripted::login();
        script.extend([Step::ExpectQuery, Step::Send(answer[..cut].to_vec())]);
        let server = Scripted::start(vec![script]).await;
        let client = FraiseClient::connect_with_config(at(&server)).await.unwrap();
        match client.query::<Value>("v").execute().await {
            Ok(stream) => {
                let (rows, error) = read_all(stream).await;
                assert!(error.is_some_and(|e| e.is_retriable()), "cut at {cut}: {rows:?}");
            }
            Err(error) => assert!(error.is_retriable(), "cut at {cut}: {error}"),
        }
    }
}

#[tokio::test]
async fn rows_beyond_the_limit_are_an_error_though_they_arrive_at_once() {
    let _alone = ALONE.lock().await;
    let server = Scripted::start(vec![answering(scripted::answer(&["1", "2", "3"]))]).await;
    let client = FraiseClient::connect_with_config(at(&server)).await.unwrap();
    let stream = client.query::<Value>("v").limit(2).execute().await.unwrap();
    let (rows, error) = read_all(stream).await;
    assert_eq!(rows.len(), 2);
    assert!(matches!(error, Some(Error::Protocol { .. })), "{error:?}");
}

#[tokio::test]
async fn pause_of_a_complete_stream_delays_its_end_until_pause_timeout() {
    let _alone = ALONE.lock().await;
    let server = Scripted::start(vec![answering(scripted::answer(&["1"]))]).await;
    let client = FraiseClient::connect_with_config(at(&server)).await.unwrap();
    let query = client.query::<Value>("v").pause_timeout(Duration::from_secs(60));
    let mut stream = query.execute().await.unwrap();
    stream.pause().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    assert!(futures_util::poll!(stream.next()).is_pending());
    tokio::time::pause();
    assert!(stream.next().await.is_none());
    assert_eq!(stream.stats().pauses, 1);
}

#[tokio::test]
async fn read_timeout_bounds_the_wait_for_the_first_bytes() {
    let _alone = ALONE.lock().await;
    let mut script = scripted::login();
    script.extend([Step::ExpectQuery, Step::Silence]);
    let server = Scripted::start(vec![script]).await;
    let config = at(&server).to_builder().read_timeout(Duration::from_millis(100));
    let config = config.cancel_timeout(Duration::from_millis(100)).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let error = client.query::<Value>("v").execute().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Read, .. }), "{error}");
}

/// Rows of a short answer are copied out of the connection's buffer, so that one row that is kept
/// does not keep the buffer.
#[tokio::test]
async fn small_row_keeps_only_its_own_memory() {
    let _alone = ALONE.lock().await;
    documents("tv_kept").await;
    let client = client().await;
    let live = || {
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated - stats.bytes_deallocated
    };
    let mut kept: Vec<RawJson> = Vec::with_capacity(1000);
    let fetch = async |id: i32| {
        let query = client.query::<RawJson>("tv_kept").where_sql("id = $1").bind(id);
        query.fetch_one().await.unwrap()
    };
    drop(fetch(1).await);
    drop(fetch(1).await);
    let before = live();
    for id in 1..=1000 {
        kept.push(fetch(id).await);
    }
    let each = live().saturating_sub(before) / kept.len();
    assert!(each < 512, "{each} bytes for each row");
}

/// The memory of requests is used again, but not that of a large one.
#[tokio::test]
async fn large_request_leaves_no_memory_in_its_connection() {
    let _alone = ALONE.lock().await;
    documents("tv_asked").await;
    let client = client().await;
    let live = || {
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated - stats.bytes_deallocated
    };
    let fetch = async |text: String| {
        let query = client.query::<RawJson>("tv_asked").where_sql("id::text = $1").bind(text);
        assert!(query.fetch_all().await.unwrap().is_empty());
    };
    for _ in 0..3 {
        fetch("small".into()).await;
    }
    let before = live();
    fetch("x".repeat(4 << 20)).await;
    let kept = live().saturating_sub(before);
    assert!(kept < 64 << 10, "{kept} bytes");
}

/// A short query may allocate for the parts of the builder, the SQL text, its parameters, the
/// request, the state of the query and of the stream, and the row.
#[tokio::test]
async fn short_query_allocates_a_bounded_number_of_times() {
    let _alone = ALONE.lock().await;
    documents("tv_counted").await;
    let client = client().await;
    let mut counts = BTreeMap::new();
    for round in 0..20 {
        let before = ALLOCATOR.stats().allocations;
        let query = client.query::<RawJson>("tv_counted").where_sql("id = $1").bind(7);
        let row = query.fetch_one().await.unwrap();
        let by_sql = ALLOCATOR.stats().allocations - before;
        drop(row);
        let before = ALLOCATOR.stats().allocations;
        let query = client.query::<RawJson>("tv_counted").filter(field("id").eq(7));
        drop(query.fetch_one().await.unwrap());
        let by_filter = ALLOCATOR.stats().allocations - before;
        if round >= 3 {
            counts.insert("sql", by_sql);
            counts.insert("filter", by_filter);
            assert!(by_sql <= MAX_ALLOCATIONS, "{by_sql} allocations");
            assert!(by_filter <= MAX_WITH_FILTER, "{by_filter} allocations with a filter");
        }
    }
    println!("{counts:?}");
}

const MAX_ALLOCATIONS: usize = 11;

/// A filter has a path, a value, and a text that is built of both.
const MAX_WITH_FILTER: usize = 25;

/// Futures are moved, by callers and by `spawn`: what is rare is on the heap.
#[tokio::test]
async fn futures_of_short_queries_are_small() {
    let _alone = ALONE.lock().await;
    let client = FraiseClient::new("host=localhost".parse().unwrap());
    let query = || client.query::<RawJson>("v");
    let sizes = [
        ("execute", size_of_val(&query().execute())),
        ("fetch_one", size_of_val(&query().fetch_one())),
        ("fetch_optional", size_of_val(&query().fetch_optional())),
        ("fetch_all", size_of_val(&query().fetch_all())),
        ("count", size_of_val(&query().count())),
        ("exists", size_of_val(&query().exists())),
        ("the builder", size_of_val(&query())),
        ("the stream", size_of::<QueryStream<RawJson>>()),
    ];
    println!("{sizes:?}");
    for (name, size) in sizes {
        assert!(size <= MAX_FUTURE, "{name} has {size} bytes");
    }
}

const MAX_FUTURE: usize = 2048;
