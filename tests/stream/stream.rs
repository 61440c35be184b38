//! Streaming: rows as they arrive, backpressure, and every end of a stream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use crate::support::{
    admin, backend_state, client, cluster, eventually,
    proxy::Proxy,
    random::Random,
    scripted::{self, Scripted, Step},
    sql,
};
use fraiseql_wire::{
    Error, ErrorCategory, FraiseClient, QueryStream, RawJson, StreamState, sqlstate,
};
use futures_util::{StreamExt, TryStreamExt, stream::FusedStream};
use serde_json::Value;

/// Starts a proxy in front of the cluster, and a client that uses it.
async fn proxied() -> (Proxy, FraiseClient) {
    let proxy = Proxy::to_port(cluster().port()).await;
    let url = crate::support::url_at(proxy.address);
    let client = FraiseClient::connect(&url).await.unwrap();
    (proxy, client)
}

/// Reads to the end. Returns the rows, and the error if there is one.
async fn read_all<T: fraiseql_wire::FromJsonRow>(
    mut stream: QueryStream<T>,
) -> (Vec<T>, Option<Error>) {
    let mut rows = Vec::new();
    let mut error = None;
    while let Some(row) = stream.next().await {
        assert!(error.is_none(), "something follows the error");
        match row {
            Ok(row) => rows.push(row),
            Err(e) => error = Some(e),
        }
    }
    assert!(stream.is_terminated());
    assert!(stream.next().await.is_none(), "the stream is fused");
    (rows, error)
}

#[tokio::test]
async fn null_column_is_json_null() {
    sql("create view v_nulls as select * from (values ('1'::json), (null)) t(data)").await;
    let client = client().await;
    let rows: Vec<Option<i32>> = client
        .query::<Option<i32>>("v_nulls")
        .execute()
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(rows, [Some(1), None]);
    let rows: Vec<RawJson> =
        client.query("v_nulls").execute().await.unwrap().try_collect().await.unwrap();
    assert_eq!(rows.iter().map(RawJson::as_str).collect::<Vec<_>>(), ["1", "null"]);
}

/// `json` keeps the original text, so every byte arrives unchanged.
#[tokio::test]
async fn raw_json_returns_the_bytes_of_the_server() {
    let document = r#"{ "a":1.10,  "a":"\u00e9é", "n":12345678901234567890123.45 }"#;
    sql(&format!("create view v_raw as select '{document}'::json as data")).await;
    let client = client().await;
    let rows: Vec<RawJson> =
        client.query("v_raw").execute().await.unwrap().try_collect().await.unwrap();
    assert_eq!(rows[0].as_str(), document);
    assert_eq!(rows[0].clone().into_bytes(), document.as_bytes());
}

#[tokio::test]
async fn row_that_does_not_decode_is_an_error_item_and_the_stream_continues() {
    sql(r#"create view v_mixed as
           select * from (values ('1'::jsonb), ('"two"'), ('3')) t(data)"#)
    .await;
    let client = client().await;
    let mut stream = client.query::<u8>("v_mixed").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(error.is_row_error() && error.to_string().contains("row 2"), "{error}");
    // Only the cause quotes the document.
    assert!(!error.to_string().contains("two"), "{error}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("two"));
    assert_eq!(stream.next().await.unwrap().unwrap(), 3);
    assert!(stream.next().await.is_none());
    let stats = stream.stats();
    assert_eq!(stats.state, StreamState::Completed);
    assert_eq!(
        (stats.total_rows_received, stats.total_rows_yielded, stats.total_rows_failed),
        (3, 2, 1)
    );
}

#[tokio::test]
async fn database_in_another_encoding_is_converted_or_fails_per_row() {
    sql("create database latin1 encoding 'LATIN1' locale 'C' template template0").await;
    sql("create database sql_ascii encoding 'SQL_ASCII' locale 'C' template template0").await;
    let url = |db| format!("{}?dbname={db}", cluster().url());
    for (db, bytes) in [("latin1", "chr(233)"), ("sql_ascii", "convert_from('\\xe9', 'SQL_ASCII')")]
    {
        let admin = crate::support::admin_at(&url(db)).await;
        let view = format!(
            "create view v as select ('\"' || t || '\"')::json as data
             from (values ('a'), ({bytes}), ('b')) v(t)"
        );
        admin.batch_execute(&view).await.unwrap();
    }
    let client = FraiseClient::connect(&url("latin1")).await.unwrap();
    let rows: Vec<String> = client.query("v").execute().await.unwrap().try_collect().await.unwrap();
    assert_eq!(rows, ["a", "é", "b"]);

    // The server does not know the encoding of these bytes, and reports an error when it sends
    // them.
    let client = FraiseClient::connect(&url("sql_ascii")).await.unwrap();
    let (rows, error) = read_all(client.query::<String>("v").execute().await.unwrap()).await;
    assert_eq!(rows, ["a"]);
    let error = error.unwrap();
    assert_eq!(error.sqlstate(), Some(&sqlstate::CHARACTER_NOT_IN_REPERTOIRE));
    assert!(error.to_string().contains("JSON must be UTF-8"), "{error}");
    let stream = client.query::<String>("v").limit(1).execute().await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), ["a"]);
}

/// With SQL_ASCII, the server sends bytes that it does not check.
#[tokio::test]
async fn row_that_is_not_utf8_is_a_row_error() {
    let not_utf8 = scripted::message(b'D', b"\0\x01\0\0\0\x03\"\xe9\"");
    let answer = [
        scripted::begin_json(),
        scripted::row("\"a\""),
        not_utf8,
        scripted::row("\"b\""),
        scripted::complete(),
        scripted::ready(),
    ];
    let mut script = scripted::login();
    for _ in 0..2 {
        script.extend([Step::ExpectQuery, Step::Send(answer.concat())]);
    }
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<String>("v").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!((error.category(), error.is_row_error()), (ErrorCategory::JsonDecode, true));
    assert_eq!(stream.next().await.unwrap().unwrap(), "b");
    drop(stream);
    let raw: Vec<_> = client.query::<RawJson>("v").execute().await.unwrap().collect().await;
    assert!(raw[0].is_ok() && raw[1].as_ref().is_err_and(Error::is_row_error) && raw[2].is_ok());
    drop(client);
    server.done().await;
}

/// A function raises a notice, changes a parameter and fails, between rows.
#[tokio::test]
async fn messages_between_rows_do_not_affect_rows() {
    sql("create function talk(i int) returns json language plpgsql as $$
         begin
             raise notice 'row %', i;
             perform set_config('application_name', 'row ' || i, false);
             if i = 50 then raise exception 'enough' using errcode = 'P0001', detail = 'd',
                 hint = 'h'; end if;
             return to_json(i);
         end $$;
         create view v_talk as select talk(i) as data from generate_series(1, 49) i;
         create view v_fails as select talk(i) as data from generate_series(1, 60) i")
    .await;
    let client = client().await;
    let (rows, error) = read_all(client.query::<u32>("v_talk").execute().await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(rows, (1..50).collect::<Vec<_>>());

    // Every row before the error arrives, the error is complete, the stream ends, and the client
    // can be used again.
    let pid = client.backend_pid();
    let (rows, error) = read_all(client.query::<u32>("v_fails").execute().await.unwrap()).await;
    assert_eq!(rows, (1..50).collect::<Vec<_>>());
    let error = error.unwrap();
    assert_eq!(error.sqlstate(), Some(&sqlstate::RAISE_EXCEPTION));
    let db = error.as_db_error().unwrap();
    assert_eq!(
        (db.severity(), db.message(), db.detail(), db.hint()),
        ("ERROR", "enough", Some("d"), Some("h"))
    );
    assert!(db.where_().unwrap().contains("talk(integer)"));
    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), pid);
}

/// Like the previous test, with every message that may come at any time, divided at every byte.
#[tokio::test]
async fn async_messages_between_rows_are_handled_at_every_split() {
    let notice = scripted::fields(
        b'N',
        &[(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', "hi")],
    );
    let parameter = scripted::message(b'S', b"TimeZone\0UTC\0");
    let notification = scripted::message(b'A', b"\0\0\0\x01jobs\0payload\0");
    let answer = [
        notice.clone(),
        scripted::begin_json(),
        notice.clone(),
        scripted::row("1"),
        parameter.clone(),
        scripted::row("2"),
        notification,
        notice,
        scripted::row("3"),
        scripted::complete(),
        parameter,
        scripted::ready(),
    ]
    .concat();
    // One script for each byte at which the messages are divided.
    let script = |cut: usize| {
        let mut steps = scripted::login();
        steps.push(Step::ExpectQuery);
        steps.push(Step::Send(answer[..cut].to_vec()));
        steps.push(Step::Send(answer[cut..].to_vec()));
        steps
    };
    let server = Scripted::start((0..answer.len()).map(script).collect()).await;
    for _ in 0..answer.len() {
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let rows: Vec<u8> =
            client.query::<u8>("v").execute().await.unwrap().try_collect().await.unwrap();
        assert_eq!(rows, [1, 2, 3]);
    }
    server.done().await;
}

/// The first row does not wait for a second one, whatever the chunk size.
#[tokio::test]
async fn first_row_arrives_before_the_server_computes_the_second() {
    let (go, wait) = tokio::sync::oneshot::channel();
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    script.push(Step::Send(scripted::begun(&["1"])));
    script.push(Step::Wait(wait));
    script.push(Step::Send([scripted::row("2"), scripted::complete(), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<u8>("v").chunk_size(10_000).execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    assert!(stream.stats().time_to_first_row.is_some());
    go.send(()).unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [2]);
    drop(client);
    server.done().await;
}

/// In a flow of rows, the reader waits for many bytes. It must not wait for bytes that do not come:
/// between rows, at their end, and in the next query.
#[tokio::test]
async fn row_after_many_others_does_not_wait_for_more() {
    let text = format!("\"{}\"", "x".repeat(1000));
    let many = scripted::row(&text).repeat(20_000);
    let mut script = scripted::login();
    let mut signals = Vec::new();
    for _ in 0..2 {
        script.push(Step::ExpectQuery);
        script.push(Step::Send(scripted::begin_json()));
        for _ in 0..3 {
            let (go, wait) = tokio::sync::oneshot::channel();
            signals.push(go);
            script.push(Step::Send([&many[..], &scripted::row("\"last\"")].concat()));
            script.push(Step::Wait(wait));
        }
        script.push(Step::Send([scripted::complete(), scripted::ready()].concat()));
    }
    let mut signals = signals.into_iter();
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    for _ in 0..2 {
        let mut stream = client.query::<String>("v").execute().await.unwrap();
        for _ in 0..3 {
            for _ in 0..20_000 {
                assert_eq!(stream.next().await.unwrap().unwrap().len(), 1000);
            }
            let last = stream.next();
            let last = tokio::time::timeout(Duration::from_secs(60), last).await.unwrap();
            assert_eq!(last.unwrap().unwrap(), "last");
            signals.next().unwrap().send(()).unwrap();
        }
        let end = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.unwrap();
        assert!(end.is_none());
    }
    drop(client);
    server.done().await;
}

/// A connection lost in the middle is an error after the received rows, never an early end. The
/// client connects again.
#[tokio::test]
async fn connection_lost_mid_stream_yields_rows_then_error() {
    for reset in [false, true] {
        let (proxy, client) = proxied().await;
        match reset {
            true => proxy.reset_after(1_000_000),
            false => proxy.cut_after(1_000_000),
        }
        let stream = client.query::<Value>("v_endless").execute().await.unwrap();
        let (rows, error) = read_all(stream).await;
        let error = error.unwrap();
        assert_eq!(error.category(), ErrorCategory::ConnectionClosed, "{error}");
        assert!(error.is_retriable());
        if !reset {
            // A row has 11 bytes of protocol, and about 120 of JSON.
            assert!(rows.len() > 6_000, "{} rows", rows.len());
        }
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row["id"], i + 1);
        }
        proxy.cut_after(u64::MAX);
        client.ping().await.unwrap();
    }
}

/// A slow network delivers frames in pieces of every size, and then stalls.
#[tokio::test]
async fn slow_or_stalled_network_loses_no_rows() {
    let (proxy, client) = proxied().await;
    for piece in [1, 7, 4096] {
        proxy.piece(piece);
        let stream = client.query::<u64>("v_short").execute().await.unwrap();
        let rows: Vec<_> = stream.try_collect().await.unwrap();
        assert_eq!(rows, (1..=300).collect::<Vec<_>>());
    }
    proxy.piece(64 << 10);
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    proxy.stall(true);
    let mut expected = 0;
    // The rows that were forwarded are read; then the proxy stalls.
    let still = Duration::from_millis(200);
    while let Ok(row) = tokio::time::timeout(still, stream.next()).await {
        expected += 1;
        assert_eq!(row.unwrap().unwrap()["id"], expected);
    }
    proxy.stall(false);
    for _ in 0..10_000 {
        expected += 1;
        assert_eq!(stream.next().await.unwrap().unwrap()["id"], expected);
    }
}

/// A connection that was never idle is not replaced automatically. Its loss is reported.
#[tokio::test]
async fn connection_lost_at_the_first_query_is_an_error() {
    for end in [Step::Close, Step::Reset] {
        let mut script = scripted::login();
        script.push(Step::ExpectQuery);
        script.push(Step::Send(scripted::begin_json()));
        script.push(Step::Send(scripted::row("1")[..12].to_vec()));
        script.push(end);
        let server = Scripted::start(vec![script]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let error = match client.query::<u8>("v").execute().await {
            Ok(stream) => read_all(stream).await.1.unwrap(),
            Err(error) => error,
        };
        assert_eq!(error.category(), ErrorCategory::ConnectionClosed, "{error}");
        assert!(!client.is_connected());
        server.done().await;
    }
}

/// The server's error for the end of the session also comes after the rows.
#[tokio::test]
async fn terminated_backend_yields_rows_then_error_with_sqlstate() {
    sql("create view v_sleepy as
         select to_json(repeat('x', 9000)) as data from generate_series(1, 3) i
         union all select to_json(pg_sleep(600)::text)")
    .await;
    let admin = admin().await;
    let client = client().await;
    let mut stream = client.query::<Value>("v_sleepy").execute().await.unwrap();
    let pid = i32::try_from(client.backend_pid().unwrap()).unwrap();
    admin.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let mut rows = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => rows += 1,
            Err(e) => break e,
        }
    };
    assert!((1..=3).contains(&rows), "{rows} rows");
    assert_eq!(error.sqlstate(), Some(&sqlstate::ADMIN_SHUTDOWN), "{error}");
    assert_eq!(error.category(), ErrorCategory::Server);
    assert!(error.is_retriable());
    assert!(stream.next().await.is_none());
    client.ping().await.unwrap();
}

/// The query ends on the server, and the client keeps its connection.
#[tokio::test]
async fn dropped_stream_is_cancelled_and_its_connection_reused() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    for read in [0, 1, 10_000] {
        let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
        for _ in 0..read {
            stream.next().await.unwrap().unwrap();
        }
        let dropped = std::time::Instant::now();
        drop(stream);
        eventually("the backend is idle", async || {
            backend_state(&admin, pid).await.as_deref() == Some("idle")
        })
        .await;
        // Much less than the 2 s after which the connection would be closed.
        assert!(dropped.elapsed() < Duration::from_secs(1), "{:?}", dropped.elapsed());

        let stream = client.query::<u8>("v_one").execute().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [1]);
        assert_eq!(client.backend_pid(), Some(pid));
    }
}

/// A late cancel request would cancel the next query.
#[tokio::test]
async fn cancel_never_affects_the_next_query() {
    let client = client().await;
    let pid = client.backend_pid();
    for i in 0..200 {
        let view = if i % 2 == 0 { "v_endless" } else { "v_short" };
        let mut stream = client.query::<Value>(view).execute().await.unwrap();
        for _ in 0..i % 7 {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        let stream = client.query::<Value>("v_short").execute().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 300, "round {i}");
    }
    assert_eq!(client.backend_pid(), pid, "and the connection was never given up");
}

/// The future of `execute()` is dropped at each of its await points.
#[tokio::test]
async fn dropped_execute_cancels_the_query() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    for polls in 0..4 {
        let mut query = Box::pin(client.query::<Value>("v_asleep").execute());
        for _ in 0..polls {
            let _ = futures_util::poll!(query.as_mut());
            tokio::task::yield_now().await;
        }
        drop(query);
        let stream = client.query::<u8>("v_one").execute().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [1], "after {polls} polls");
        assert_eq!(client.backend_pid(), Some(pid));
        assert_eq!(backend_state(&admin, pid).await.as_deref(), Some("idle"));
    }
}

/// Nothing is sent before the first poll, so no cleanup is necessary.
#[tokio::test]
async fn execute_dropped_before_its_first_poll_keeps_the_connection() {
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    script.push(Step::Send(scripted::answer(&["1"])));
    // The script would reject a second connection and a cancel request.
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    drop(client.query::<u8>("never_sent").execute());
    let stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [1]);
    drop(client);
    server.done().await;
}

/// A request that was sent in part must be completed before anything else is sent.
#[tokio::test]
async fn execute_dropped_while_sending_keeps_the_connection() {
    let (read, wait_to_read) = tokio::sync::oneshot::channel();
    let (cancelled, wait_for_end) = tokio::sync::oneshot::channel();
    let mut script = scripted::login();
    script.push(Step::Wait(wait_to_read));
    script.push(Step::ExpectQuery);
    script.push(Step::Send(
        [scripted::error("ERROR", "57014", "cancelled"), scripted::ready()].concat(),
    ));
    script.push(Step::Signal(cancelled));
    script.push(Step::ExpectQuery);
    script.push(Step::Send(scripted::answer(&["1"])));
    let cancel = vec![Step::Expect(scripted::cancel_request()), Step::Wait(wait_for_end)];
    let server = Scripted::start(vec![script, cancel]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    // More than the sockets' buffers.
    let large = "x".repeat(30 << 20);
    let query = client.query::<u8>("v").where_sql("data->>'a' = $1").bind(large);
    let mut query = Box::pin(query.execute());
    assert!(futures_util::poll!(query.as_mut()).is_pending());
    // The task runs once, and fills the sockets.
    tokio::task::yield_now().await;
    drop(query);
    read.send(()).unwrap();
    let stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [1]);
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn cancel_resolves_when_the_client_is_usable() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    assert_eq!(backend_state(&admin, pid).await.as_deref(), Some("idle"));
    assert_eq!(stream.state(), StreamState::Cancelled);
    assert_eq!(stream.stats().items_buffered, 0);
    assert!(stream.next().await.is_none());
    assert!(!client.is_busy());
    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), Some(pid));
    stream.cancel().await.unwrap();
}

/// If the cancel request fails, the connection is closed, and the client opens another one.
#[tokio::test]
async fn failed_cancel_closes_only_the_connection() {
    // The session, a cancel request without an answer, and a second session.
    let mut first = scripted::login();
    first.push(Step::ExpectQuery);
    first.push(Step::Send(scripted::begun(&["1"])));
    first.push(Step::Silence);
    let cancel = vec![Step::Expect(scripted::cancel_request()), Step::Silence];
    let mut second = scripted::login();
    second.push(Step::ExpectQuery);
    second.push(Step::Send(scripted::answer(&["2"])));
    let server = Scripted::start(vec![first, cancel, second]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    let error = stream.cancel().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Timeout, "{error}");
    let stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [2]);
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn second_stream_of_a_client_is_rejected_immediately() {
    let client = client().await;
    let stream = client.query::<Value>("v_endless").execute().await.unwrap();
    let busy = |r: Result<_, Error>| matches!(r, Err(Error::ConnectionBusy));
    assert!(busy(client.query::<Value>("v_endless").execute().await.map(drop)));
    assert!(busy(client.ping().await));
    assert!(client.is_busy());
    drop(stream);
    client.ping().await.unwrap();
    assert!(!client.is_busy());
}

/// The client may be dropped before its stream.
#[tokio::test]
async fn stream_outlives_its_client_and_then_closes_the_session() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    let stream = client.query::<u32>("v_short").execute().await.unwrap();
    drop(client);
    let rows = tokio::spawn(stream.try_collect::<Vec<_>>()).await.unwrap().unwrap();
    assert_eq!(rows.len(), 300);
    eventually("the backend is gone", async || backend_state(&admin, pid).await.is_none()).await;
}

/// The proxy sees that a paused stream reads nothing. Buffered rows can still be read. Then the
/// stream is pending until it is resumed.
#[tokio::test]
async fn paused_stream_stops_reading() {
    let admin = admin().await;
    let (proxy, client) = proxied().await;
    let pid = client.backend_pid().unwrap();
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.pause().await.unwrap();
    stream.pause().await.unwrap();
    assert_eq!(stream.state(), StreamState::Paused);
    let received = stream.stats().total_rows_received;

    // The sockets fill up, and backpressure stops the server.
    eventually("the server waits", async || {
        let waits = "select count(*) from pg_stat_activity where pid = $1
                     and wait_event = 'ClientWrite'";
        let pid = i32::try_from(pid).unwrap();
        admin.query_one(waits, &[&pid]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    let passed = proxy.bytes_from_server();
    let buffered = stream.stats().items_buffered;
    for _ in 0..buffered {
        stream.next().await.unwrap().unwrap();
    }
    assert!(futures_util::poll!(stream.next()).is_pending());
    let stats = stream.stats();
    assert_eq!(stats.total_rows_received, received);
    assert_eq!((stats.items_buffered, stats.bytes_buffered), (0, 0));
    assert_eq!(proxy.bytes_from_server(), passed);

    stream.resume().await.unwrap();
    stream.resume().await.unwrap();
    assert_eq!(stream.state(), StreamState::Running);
    let next = stream.next().await.unwrap().unwrap();
    assert_eq!(next["id"], stats.total_rows_yielded + 1, "no row is lost or doubled");
    assert_eq!(stream.stats().pauses, 1);
}

/// Rows that were read before the pause are delivered before the pause resolves, even if the reader
/// is on another thread and not running at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn no_row_is_received_after_a_pause_resolves() {
    let pauses = async || {
        let client = client().await;
        for round in 0..40 {
            let query = client.query::<Value>("v_endless").max_memory(8 << 20);
            let mut stream = query.execute().await.unwrap();
            for _ in 0..round {
                stream.next().await.unwrap().unwrap();
            }
            stream.pause().await.unwrap();
            let received = stream.stats().total_rows_received;
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(stream.stats().total_rows_received, received, "round {round}");
        }
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(pauses())).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// A resume also wakes a reader that waits for room at that moment.
#[tokio::test]
async fn resume_while_the_queue_is_full_is_not_lost() {
    let (go, wait) = tokio::sync::oneshot::channel();
    // The queue holds one chunk per 4 KiB of memory: here 64 chunks of 128 rows. Three more are
    // read before the reader waits.
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    script.push(Step::Send([scripted::begin_json(), scripted::row("1").repeat(131)].concat()));
    script.push(Step::Wait(wait));
    script.push(Step::Send([scripted::row("2"), scripted::complete(), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream =
        client.query::<u8>("v").chunk_size(2).max_memory(256 << 10).execute().await.unwrap();
    eventually("the queue is full", async || stream.stats().total_rows_received == 128).await;
    stream.pause().await.unwrap();
    stream.next().await.unwrap().unwrap();
    eventually("a chunk follows", async || stream.stats().total_rows_received == 130).await;
    stream.resume().await.unwrap();
    // The reader checks the state: there is still no room.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    for _ in 1..131 {
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    }
    go.send(()).unwrap();
    let last = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
    assert_eq!(last.expect("the reader reads on").unwrap().unwrap(), 2);
    assert!(stream.next().await.is_none());
    drop((stream, client));
    server.done().await;
}

/// The end also waits for the pause, so that the result does not depend on timing.
#[tokio::test]
async fn end_of_a_paused_stream_waits_for_resume() {
    let client = client().await;
    let mut stream = client.query::<u8>("v_one").execute().await.unwrap();
    stream.pause().await.unwrap();
    let stats = stream.stats();
    assert!(stats.bytes_buffered <= stats.estimated_memory);
    if stats.items_buffered == 1 {
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    }
    assert!(futures_util::poll!(stream.next()).is_pending());
    stream.resume().await.unwrap();
    while let Some(row) = stream.next().await {
        assert_eq!(row.unwrap(), 1);
    }
    assert_eq!(stream.stats().total_rows_yielded, 1);
    assert_eq!(stream.pause().await.unwrap_err().category(), ErrorCategory::InvalidState);
    // A caller that only resumes cannot know that the stream has ended.
    stream.resume().await.unwrap();
}

#[tokio::test]
async fn paused_stream_can_be_dropped_and_cancelled() {
    let client = client().await;
    let pid = client.backend_pid();
    for cancel in [true, false] {
        let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
        stream.pause().await.unwrap();
        if cancel {
            stream.cancel().await.unwrap();
        }
        drop(stream);
        client.ping().await.unwrap();
        assert_eq!(client.backend_pid(), pid);
    }
}

/// The memory is at most the limit and one read, whatever the consumer does, and no row is lost.
#[tokio::test]
async fn slow_consumer_applies_backpressure_to_the_server() {
    const ROWS: u64 = 1_000_000;
    const READ: usize = 64 << 10;
    sql("create view v_million as
         select jsonb_build_object('id', i, 'name', 'n' || i) as data
         from generate_series(1, 1000000) i")
    .await;
    let client = client().await;
    for cap in [16 << 10, 1 << 20] {
        let mut stream =
            client.query::<RawJson>("v_million").max_memory(cap).execute().await.unwrap();
        let mut rows = 0;
        while let Some(row) = stream.next().await {
            row.unwrap();
            rows += 1;
            if rows % 20_000 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let stats = stream.stats();
                assert!(stats.estimated_memory <= cap + READ, "{stats:?}");
                assert!(stats.bytes_buffered <= stats.estimated_memory, "{stats:?}");
                assert_eq!(stats.items_buffered, stats.total_rows_received - rows);
            }
        }
        let stats = stream.stats();
        assert_eq!((rows, stats.total_rows_yielded, stats.total_rows_received), (ROWS, ROWS, ROWS));
        assert!(stats.peak_memory <= cap + READ, "{stats:?}");
        assert_eq!((stats.estimated_memory, stats.items_buffered), (0, 0));
    }
}

#[tokio::test]
async fn row_larger_than_max_memory_is_an_error_after_earlier_rows() {
    sql("create view v_growing as
         select to_json(repeat('x', (10 ^ i)::int)) as data from generate_series(1, 6) i")
    .await;
    let client = client().await;
    let stream = client.query::<String>("v_growing").max_memory(50_000).execute().await.unwrap();
    let (rows, error) = read_all(stream).await;
    assert_eq!(rows.iter().map(String::len).collect::<Vec<_>>(), [10, 100, 1000, 10_000]);
    let Some(Error::MemoryLimitExceeded { limit: 50_000, required: 100_002 }) = error else {
        panic!("{error:?}");
    };
    client.ping().await.unwrap();

    // Without a limit, a row larger than the default is buffered alone.
    sql("create view v_huge as
         select to_json(repeat('x', i * 10000000)) as data from generate_series(0, 2) i")
    .await;
    let mut stream = client.query::<String>("v_huge").execute().await.unwrap();
    let mut sizes = Vec::new();
    while let Some(row) = stream.next().await {
        sizes.push(row.unwrap().len());
        let held = stream.stats().estimated_memory;
        assert!(held <= 20_000_100 + (1 << 20) + (64 << 10), "{held}");
    }
    assert_eq!(sizes, [0, 10_000_000, 20_000_000]);
    // The large read buffer is not kept for the next query.
    let stream = client.query::<RawJson>("v_huge").limit(1).execute().await.unwrap();
    assert!(stream.stats().peak_memory <= 64 << 10);
}

/// Large rows are delivered one after another, each when the memory of the previous one is
/// released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_rows_wait_for_memory_without_deadlock() {
    sql("create view v_large as
         select to_json(repeat('x', (array[1300000, 1, 3000000, 900000])[i % 4 + 1])) as data
         from generate_series(1, 40) i;
         create view v_900k as
         select to_json(repeat('x', 900000)) as data from generate_series(1, 40)")
    .await;
    let client = client().await;
    let rows = async {
        let stream = client.query::<Value>("v_large").execute().await.unwrap();
        stream.try_fold(0, async |n, _| Ok(n + 1)).await.unwrap()
    };
    let rows = tokio::time::timeout(Duration::from_secs(60), rows).await;
    assert_eq!(rows.expect("the reader reads on"), 40);

    // Two of these rows exceed the limit.
    let mut stream = client.query::<Value>("v_900k").max_memory(1_000_000).execute().await.unwrap();
    while let Some(row) = stream.next().await {
        row.unwrap();
    }
    let stats = stream.stats();
    assert_eq!(stats.total_rows_yielded, 40);
    assert!((900_000..=1_000_000 + (64 << 10)).contains(&stats.peak_memory), "{stats:?}");
}

/// Rust predicates are applied to every document. Rejected rows are counted and not returned.
#[tokio::test]
async fn all_rust_predicates_are_applied() {
    let client = client().await;
    let mut stream = client
        .query::<u64>("v_short")
        .where_rust(|v| v.as_u64().is_some_and(|n| n % 2 == 0))
        .where_rust(|v| v.as_u64().is_some_and(|n| n % 3 == 0))
        .chunk_size(7)
        .execute()
        .await
        .unwrap();
    let mut rows = Vec::new();
    while let Some(row) = stream.next().await {
        rows.push(row.unwrap());
    }
    assert_eq!(rows, (1..=300).filter(|n| n % 6 == 0).collect::<Vec<_>>());
    let stats = stream.stats();
    assert_eq!((stats.total_rows_yielded, stats.total_rows_filtered), (50, 250));
    assert!(stats.chunks_received >= 300 / 7);
}

/// A row that a predicate cannot be applied to is never returned: the predicate may separate
/// tenants.
#[tokio::test]
async fn row_that_a_predicate_cannot_be_applied_to_is_an_error() {
    sql(r#"create view v_tenants as
           select ('{"tenant":' || i || ',"x":' || x || '}')::json as data
           from (values (1, '1'), (2, '2'), (2, '1e999'), (1, '3')) t(i, x)"#)
    .await;
    #[derive(Debug, serde::Deserialize)]
    struct Row {
        tenant: u8,
    }
    let client = client().await;
    let query = client.query::<Row>("v_tenants").where_rust(|v| v["tenant"] == 1);
    let mut stream = query.execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().tenant, 1);
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(error.is_row_error() && error.to_string().contains("row 3"), "{error}");
    assert_eq!(stream.next().await.unwrap().unwrap().tenant, 1);
    assert!(stream.next().await.is_none());
    let stats = stream.stats();
    assert_eq!(
        (stats.total_rows_yielded, stats.total_rows_filtered, stats.total_rows_failed),
        (2, 1, 1)
    );
    let query = client.query::<RawJson>("v_tenants").where_rust(|v| v["tenant"] == 1);
    let rows: Vec<_> = query.execute().await.unwrap().collect().await;
    assert_eq!(rows.iter().filter(|r| r.is_ok()).count(), 2);
}

/// `next()` in `select!` loses no row.
#[tokio::test]
async fn next_is_cancel_safe() {
    sql("create view v_many as
         select to_json(i) as data from generate_series(1, 100000) i")
    .await;
    let client = client().await;
    let mut stream = client.query::<u64>("v_many").chunk_size(10).execute().await.unwrap();
    let (mut expected, mut ticks) = (0, 0);
    let mut timer = tokio::time::interval(Duration::from_millis(1));
    loop {
        tokio::select! {
            biased;
            _ = timer.tick() => ticks += 1,
            () = tokio::task::yield_now() => {}
            row = stream.next() => match row {
                Some(row) => {
                    expected += 1;
                    assert_eq!(row.unwrap(), expected);
                }
                None => break,
            },
        }
    }
    assert_eq!(expected, 100_000);
    assert!(ticks > 0);
}

/// The reader task ends with its runtime. The consumer then gets an error.
#[test]
fn runtime_shutdown_ends_the_stream_with_an_error() {
    // On one thread, the reader task has not run when the runtime is shut down.
    for mut builder in
        [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()]
    {
        let mut runtime = || builder.enable_all().build().unwrap();
        runtime_is_shut_down(runtime(), runtime());
    }
}

fn runtime_is_shut_down(first: tokio::runtime::Runtime, second: tokio::runtime::Runtime) {
    let (client, mut stream) = first.block_on(async {
        let client = client().await;
        let stream = client.query::<Value>("v_endless").execute().await.unwrap();
        (client, stream)
    });
    let pid = client.backend_pid().unwrap();
    drop(first);
    second.block_on(async {
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        assert!(error.to_string().contains("runtime"), "{error}");
        assert_eq!(error.category(), ErrorCategory::ConnectionClosed);
        assert!(error.is_retriable() && error.sqlstate().is_none());
        assert!(stream.next().await.is_none());
        drop(stream);
        // The query cannot be cancelled, but its socket is closed. The server notices when it
        // sends.
        let admin = admin().await;
        eventually("the query has ended on the server", async || {
            backend_state(&admin, pid).await.is_none()
        })
        .await;
        client.ping().await.unwrap();
    });
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A stream wakes only the task that polled it last.
#[tokio::test]
async fn stream_wakes_only_the_last_waker() {
    // The tasks that poll, one after another, before each row.
    let orders: [&[usize]; 5] = [&[0], &[0, 1], &[0, 1, 0], &[0, 1, 2, 2], &[2, 0, 0, 1]];
    let (signals, waits): (Vec<_>, Vec<_>) =
        orders.iter().map(|_| tokio::sync::oneshot::channel()).unzip();
    let mut script = scripted::login();
    script.extend([Step::ExpectQuery, Step::Send(scripted::begin_json())]);
    for wait in waits {
        script.extend([Step::Wait(wait), Step::Send(scripted::row("1"))]);
    }
    script.push(Step::Send([scripted::complete(), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<u8>("v").execute().await.unwrap();
    for (order, go) in orders.iter().zip(signals) {
        let wakers: [Arc<Woken>; 3] = Default::default();
        let ask = |stream: &mut QueryStream<u8>, who: usize| {
            let waker = Waker::from(Arc::clone(&wakers[who]));
            stream.poll_next_unpin(&mut Context::from_waker(&waker))
        };
        for who in *order {
            assert!(ask(&mut stream, *who).is_pending(), "{order:?}");
        }
        go.send(()).unwrap();
        let last = *order.last().unwrap();
        eventually("it is woken", async || wakers[last].0.load(SeqCst) > 0).await;
        let woken = |who: usize| wakers[who].0.load(SeqCst);
        assert!((0..3).all(|who| who == last || woken(who) == 0), "{order:?}");
        // A task that was not woken may also poll, and gets the buffered rows.
        let row = ask(&mut stream, (last + 1) % 3);
        assert!(matches!(row, Poll::Ready(Some(Ok(1)))), "{order:?}: {row:?}");
    }
    assert!(stream.next().await.is_none());
    drop((stream, client));
    server.done().await;
}

/// A pending stream moves from task to task, and each of them continues it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pending_stream_moves_between_tasks() {
    const ROWS: usize = 300;
    let (signals, waits): (Vec<_>, Vec<_>) =
        (0..ROWS).map(|_| tokio::sync::oneshot::channel()).unzip();
    let mut script = scripted::login();
    script.extend([Step::ExpectQuery, Step::Send(scripted::begin_json())]);
    for (i, wait) in waits.into_iter().enumerate() {
        script.extend([Step::Wait(wait), Step::Send(scripted::row(&i.to_string()))]);
    }
    script.push(Step::Send([scripted::complete(), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<usize>("v").execute().await.unwrap();
    for (i, go) in signals.into_iter().enumerate() {
        // The waker of the first task stays registered, and the row may arrive while the stream
        // moves.
        let first = tokio::spawn(async move {
            assert!(futures_util::poll!(stream.next()).is_pending());
            stream
        });
        stream = first.await.unwrap();
        let (moved, sent) = tokio::join!(
            tokio::spawn(async move {
                let row = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
                (stream, row.expect("the task is woken"))
            }),
            tokio::spawn(async move { go.send(()) }),
        );
        sent.unwrap().unwrap();
        let row;
        (stream, row) = moved.unwrap();
        assert_eq!(row.unwrap().unwrap(), i);
    }
    assert!(stream.next().await.is_none());
    drop((stream, client));
    server.done().await;
}

/// Many streams in parallel, whose readers yield at random, on one thread and on several.
#[test]
fn streams_are_complete_in_any_order_of_tasks() {
    let one = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let several =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    for (first_seed, runtime) in [(0, one), (100, several)] {
        runtime.unwrap().block_on(async {
            let tasks: Vec<_> =
                (0..16).map(|i| tokio::spawn(read_with_random_yields(first_seed + i))).collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    }
}

async fn read_with_random_yields(seed: u64) {
    let mut random = Random::of(seed);
    let client = client().await;
    let pid = client.backend_pid();
    for _ in 0..5 {
        let query = client.query::<u64>("v_short").chunk_size(1 + random.below(40) as usize);
        let mut stream = query.max_memory(16 << 10).execute().await.unwrap();
        for i in 1..=300 {
            for _ in 0..random.below(3) {
                tokio::task::yield_now().await;
            }
            match random.below(40) {
                0 => stream = tokio::spawn(async move { stream }).await.unwrap(),
                1 => {
                    // A pause that was polled once and dropped is in effect until it is ended.
                    let _ = futures_util::poll!(std::pin::pin!(stream.pause()));
                    stream.resume().await.unwrap();
                }
                2 => {
                    let _ = futures_util::poll!(stream.next()).map(|row| {
                        assert_eq!(row.unwrap().unwrap(), i, "seed {seed}");
                    });
                }
                _ => {}
            }
            if stream.stats().total_rows_yielded < i {
                assert_eq!(stream.next().await.unwrap().unwrap(), i, "seed {seed}");
            }
        }
        assert!(stream.next().await.is_none(), "seed {seed}");
    }
    assert_eq!(client.backend_pid(), pid);
    client.close().await.unwrap();
}
