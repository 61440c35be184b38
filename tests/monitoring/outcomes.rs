//! Metrics: how queries that end before their last row are counted.

use std::cell::Cell;

use crate::{
    observability::Numbers,
    support::{
        client, eventually,
        scripted::{self, Scripted, Step},
        sql,
        stats::assert_consistent,
    },
};
use fraiseql_wire::{ErrorCategory, FraiseClient, RawJson, Result, StreamState, metrics};
use futures_util::{
    FutureExt, StreamExt, TryFutureExt,
    future::{LocalBoxFuture, join},
};
use metrics_util::debugging::{DebuggingRecorder, Snapshotter};
use serde_json::Value;

type Fetch = fn(&FraiseClient) -> LocalBoxFuture<'static, Result<()>>;

/// Runs a fetch and returns what it counted for its relation.
async fn counted(
    client: &FraiseClient,
    snapshotter: &Snapshotter,
    is_shared: bool,
    fetch: Fetch,
) -> (Result<()>, Numbers) {
    Numbers::of(snapshotter);
    let fetched = if is_shared {
        // The second request is the first that is sent on the shared connection.
        let first = client.query::<u8>("v_one").fetch_one();
        let (first, second) = join(first, fetch(client)).await;
        assert_eq!(first.unwrap(), 1);
        second
    } else {
        fetch(client).await
    };
    let pid = client.backend_pid();
    eventually("the client is idle", async || !client.is_busy()).await;
    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), pid, "the connection is kept");
    (fetched, Numbers::of(snapshotter))
}

/// Asserts that the only query of this relation ended with this status.
fn assert_ended(numbers: &Numbers, entity: &str, status: &str, what: &str) {
    let entity = ("entity", entity);
    assert_eq!(numbers.sum("query_completed_total", &[entity]), 1.0, "{what}");
    assert_eq!(numbers.sum("query_completed_total", &[entity, ("status", status)]), 1.0, "{what}");
    for (name, of) in [
        ("query_success_total", "success"),
        ("query_error_total", "error"),
        ("query_cancelled_total", "cancelled"),
    ] {
        let expected = if of == status { 1.0 } else { 0.0 };
        assert_eq!(numbers.sum(name, &[entity]), expected, "{name} of {what}");
    }
    let rows = |name: &str| numbers.sum(&format!("rows_{name}_total"), &[entity]);
    let read = rows("yielded") + rows("filtered") + rows("deserialization_failed");
    assert_eq!(rows("received"), read + rows("discarded"), "{what}");
    assert_eq!(numbers.values("query_rows", &[entity]), [rows("received")], "{what}");
    assert_eq!(numbers.sum("streams_active", &[entity]), 0.0, "{what}");
}

/// A row error ends a fetch. It is the outcome of the query, also on a shared connection.
#[tokio::test]
async fn fetch_with_a_row_error_counts_as_failed() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    sql("create view v_huge as select '1e999'::json as data;
         create table t_numbers as
         select jsonb_build_object('id', i) as data from generate_series(1, 1000) i")
    .await;
    let client = client().await;
    let (invalid, other) = (ErrorCategory::JsonDecode, ErrorCategory::Deserialization);
    let fetches: [(&str, &str, ErrorCategory, Fetch); 11] = [
        ("fetch_all", "v_endless", other, |client| {
            client.query::<u8>("v_endless").fetch_all().map_ok(drop).boxed_local()
        }),
        ("fetch_all of invalid JSON", "v_huge", invalid, |client| {
            client.query::<Value>("v_huge").fetch_all().map_ok(drop).boxed_local()
        }),
        ("fetch_one", "v_endless", other, |client| {
            client.query::<u8>("v_endless").fetch_one().map_ok(drop).boxed_local()
        }),
        ("fetch_optional", "v_endless", other, |client| {
            client.query::<u8>("v_endless").fetch_optional().map_ok(drop).boxed_local()
        }),
        ("fetch_one with a predicate", "v_endless", other, |client| {
            let query = client.query::<u8>("v_endless").where_rust(|_| true);
            query.fetch_one().map_ok(drop).boxed_local()
        }),
        ("fetch_optional with a typed predicate", "v_endless", other, |client| {
            let query = client.query::<u8>("v_endless").where_typed(|_| true);
            query.fetch_optional().map_ok(drop).boxed_local()
        }),
        ("count with a typed predicate", "v_endless", other, |client| {
            let query = client.query::<u8>("v_endless").where_typed(|_| true);
            query.count().map_ok(drop).boxed_local()
        }),
        ("count with a predicate on documents", "v_huge", invalid, |client| {
            let query = client.query::<RawJson>("v_huge").where_rust(|_| true);
            query.count().map_ok(drop).boxed_local()
        }),
        ("exists with a typed predicate", "v_endless", other, |client| {
            let query = client.query::<u8>("v_endless").where_typed(|_| true);
            query.exists().map_ok(drop).boxed_local()
        }),
        ("fetch_all with parallel", "t_numbers", other, |client| {
            client.query::<u8>("t_numbers").parallel(2).fetch_all().map_ok(drop).boxed_local()
        }),
        ("fetch_all with resume_by", "t_numbers", other, |client| {
            client.query::<u8>("t_numbers").resume_by("id").fetch_all().map_ok(drop).boxed_local()
        }),
    ];
    for (what, entity, category, fetch) in fetches {
        for is_shared in [false, true] {
            // These need the connection alone.
            if is_shared && entity == "t_numbers" {
                continue;
            }
            let (fetched, numbers) = counted(&client, &snapshotter, is_shared, fetch).await;
            let what = format!("{what}, shared: {is_shared}");
            assert_eq!(fetched.unwrap_err().category(), category, "{what}");
            assert_ended(&numbers, entity, "error", &what);
            let labels = [("entity", entity), ("category", category.as_str())];
            assert_eq!(numbers.sum("query_error_total", &labels), 1.0, "{what}");
            assert!(numbers.sum("rows_received_total", &labels[..1]) >= 1.0, "{what}");
            assert_eq!(numbers.sum("errors_total", &[]), 0.0, "not for row errors: {what}");
        }
    }
}

/// An answer other than a number, for example from another engine.
#[tokio::test]
async fn count_that_cannot_be_decoded_counts_as_failed() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let mut script = scripted::login();
    script.extend([Step::ExpectQuery, Step::Send(scripted::answer(&["\"3\""]))]);
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let error = client.query::<RawJson>("v").count().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Deserialization, "{error}");
    assert_ended(&Numbers::of(&snapshotter), "v", "error", "count");
    drop(client);
    server.done().await;
}

/// A fetch with Rust predicates cancels its query after the accepted row, but is complete.
#[tokio::test]
async fn fetch_with_its_accepted_row_counts_as_successful() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let client = client().await;
    let fetches: [(&str, &str, Fetch); 4] = [
        ("fetch_one", "v_endless", |client| {
            let query = client.query::<Value>("v_endless").where_rust(|row| row["id"] == 3);
            query.fetch_one().map_ok(drop).boxed_local()
        }),
        ("fetch_optional", "v_endless", |client| {
            let query = client.query::<Value>("v_endless").where_typed(|row| row["id"] == 3);
            query.fetch_optional().map_ok(|row| drop(row.unwrap())).boxed_local()
        }),
        ("exists", "v_endless", |client| {
            let query = client.query::<Value>("v_endless").where_rust(|row| row["id"] == 3);
            query.exists().map_ok(|exists| assert!(exists)).boxed_local()
        }),
        ("fetch_one of a short answer", "v_short", |client| {
            let query = client.query::<u16>("v_short").where_rust(|row| row == 3);
            query.fetch_one().map_ok(drop).boxed_local()
        }),
    ];
    for (what, entity, fetch) in fetches {
        for is_shared in [false, true] {
            let (fetched, numbers) = counted(&client, &snapshotter, is_shared, fetch).await;
            let what = format!("{what}, shared: {is_shared}");
            fetched.unwrap();
            assert_ended(&numbers, entity, "success", &what);
            let labels = [("entity", entity)];
            assert_eq!(numbers.sum("rows_yielded_total", &labels), 1.0, "{what}");
            assert_eq!(numbers.sum("rows_filtered_total", &labels), 2.0, "{what}");
            let cancels = if entity == "v_endless" { 1.0 } else { 0.0 };
            assert_eq!(numbers.sum("cancel_requests_total", &[]), cancels, "{what}");
        }
    }
}

/// A row error ends a body, and is its outcome. A body that is dropped or cancelled has not failed.
#[tokio::test]
async fn body_with_a_row_error_counts_as_failed() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    // Only predicates decode the rows of a body. The last row of the first chunk does not fit.
    sql("create view v_misfit as
         select to_json(i) as data from (select generate_series(1, 2000000000) i) as numbers")
    .await;
    let client = client().await;
    let open = async || {
        let query = client.query::<u8>("v_misfit").where_typed(|_| true).chunk_size(256);
        let stream = query.execute().await.unwrap();
        let control = stream.control();
        (stream, control)
    };
    let settled = async || {
        client.ping().await.unwrap();
        Numbers::of(&snapshotter)
    };
    let labels = [("entity", "v_misfit"), ("category", "deserialization")];

    let (stream, control) = open().await;
    let parts: Vec<_> = stream.into_ndjson().collect().await;
    assert!(matches!(&parts[..], [Ok(_), Err(e)] if e.is_row_error()), "{parts:?}");
    let stats = control.stats();
    assert_eq!((stats.state, stats.total_rows_failed), (StreamState::Failed, 1));
    assert_eq!((stats.total_rows_yielded, stats.items_buffered), (255, 0));
    assert_consistent(&stats);
    let numbers = settled().await;
    assert_ended(&numbers, "v_misfit", "error", "lines");
    assert_eq!(numbers.sum("query_error_total", &labels), 1.0);

    let (stream, control) = open().await;
    let parts: Vec<_> = stream.into_sse().collect().await;
    assert!(parts.last().unwrap().as_ref().unwrap().starts_with(b"event: error\n"), "{parts:?}");
    assert_eq!(control.state(), StreamState::Failed);
    let numbers = settled().await;
    assert_ended(&numbers, "v_misfit", "error", "events");
    assert_eq!(numbers.sum("query_error_total", &labels), 1.0);

    let cancelled = |cause| [("entity", "v_misfit"), ("cause", cause)];
    let (stream, control) = open().await;
    let mut body = stream.into_ndjson();
    body.next().await.unwrap().unwrap();
    drop(body);
    assert_eq!(control.state(), StreamState::Cancelled);
    let numbers = settled().await;
    assert_ended(&numbers, "v_misfit", "cancelled", "dropped");
    assert_eq!(numbers.sum("query_cancelled_total", &cancelled("drop")), 1.0);

    // The row error is in the current chunk, which is still read after a cancellation.
    let (stream, control) = open().await;
    let mut body = stream.into_json_array();
    body.next().await.unwrap().unwrap();
    control.cancel().await.unwrap();
    assert!(body.next().await.unwrap().unwrap_err().is_row_error());
    assert_eq!(control.state(), StreamState::Cancelled);
    assert_consistent(&control.stats());
    let numbers = settled().await;
    assert_ended(&numbers, "v_misfit", "cancelled", "cancelled before");
    assert_eq!(numbers.sum("query_cancelled_total", &cancelled("cancel")), 1.0);
}

/// The caller of a plain stream decides what a row error means.
#[tokio::test]
async fn stream_with_a_row_error_counts_as_its_caller_ends_it() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    sql("create view v_misfits as select to_json(i) as data from generate_series(250, 260) i")
        .await;
    let client = client().await;
    for (rows, status) in [(usize::MAX, "success"), (7, "cancelled")] {
        let stream = client.query::<u8>("v_misfits").execute().await.unwrap();
        let read: Vec<_> = stream.take(rows).collect().await;
        assert!(read[6].as_ref().unwrap_err().is_row_error());
        assert_ended(&Numbers::of(&snapshotter), "v_misfits", status, status);
    }
}

/// A cancel token ends a fetch whose answer has arrived, until its caller has received it.
#[tokio::test]
async fn fetch_cancelled_after_its_answer_arrived_counts_as_cancelled() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let client = client().await;
    let first = client.query::<u8>("v_one").fetch_one();
    let second = client.query::<u16>("v_short").fetch_all();
    let mut fetches = Box::pin(join(first, second));
    assert!(futures_util::poll!(&mut fetches).is_pending());
    let answered = Cell::new(0);
    eventually("both are answered", async || {
        let numbers = Numbers::of(&snapshotter);
        answered.set(answered.get() + numbers.values("query_startup_duration_seconds", &[]).len());
        answered.get() == 2
    })
    .await;
    client.cancel_token().cancel().await.unwrap();
    let (_, second) = fetches.await;
    assert_eq!(second.unwrap_err().category(), ErrorCategory::Cancelled);
    let numbers = Numbers::of(&snapshotter);
    let labels = [("entity", "v_short"), ("cause", "cancel")];
    assert_eq!(numbers.sum("query_cancelled_total", &labels), 1.0);
}
