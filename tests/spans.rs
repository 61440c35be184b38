//! Spans and events, as a subscriber receives them.
//!
//! One test, in its own process: `tracing` caches per process which call sites are enabled. Another
//! thread that reaches one first, while this test starts, would change that.

mod support;

use fraiseql_wire::FraiseClient;
use futures_util::StreamExt;
use serde_json::Value;
use support::{
    cluster,
    events::{Events, SpanSeen},
    sql,
};

/// Each query and each attempt to connect has a span with the attributes of the conventions, and
/// without values.
#[tokio::test]
async fn spans_follow_the_conventions() {
    sql("create schema app;
         grant usage on schema app to role_password;
         create view app.v_order as select to_json(i) as data from generate_series(1, 3) i;
         create view v_breaks as select to_json(1 / (3 - i)) as data from generate_series(1, 3) i;
         create view v_misfit as
         select to_json(i) as data from (select generate_series(1, 2000000000) i) as numbers;
         grant select on app.v_order, v_breaks, v_endless, v_misfit to role_password")
    .await;
    let port = cluster().port();
    let (events, _listening) = Events::listen();
    let url = format!("postgres://role_password:password-secret@127.0.0.1:{port}/postgres");
    let client = FraiseClient::new(url.parse().unwrap());

    let query =
        client.query::<u8>("app.v_order").where_sql("data::text <> $1").bind("planted-value");
    let mut stream = query.execute().await.unwrap();
    let spans = events.spans("connect");
    let [connect] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((connect.parent, connect.level.as_str()), (Some("query"), "INFO"));
    assert!(connect.has_ended() && connect.field("error.type").is_none());
    stream.pause_with_reason("maintenance").await.unwrap();
    stream.resume().await.unwrap();
    for i in 1..=3 {
        assert_eq!(stream.next().await.unwrap().unwrap(), i);
    }
    let before = events.spans("query").remove(0);
    assert!(!before.has_ended(), "nobody has seen the end yet");
    assert!(stream.next().await.is_none());
    let [query] = &events.spans("query")[..] else { panic!() };
    assert!(query.has_ended());
    assert!(query.entries > before.entries, "OpenTelemetry takes the last exit for the end");
    let port = port.to_string();
    for (field, value) in [
        ("otel.name", "SELECT app.v_order"),
        ("otel.kind", "client"),
        ("db.system.name", "postgresql"),
        ("db.namespace", "postgres|app"),
        ("db.collection.name", "app.v_order"),
        ("db.operation.name", "SELECT"),
        ("db.query.summary", "SELECT app.v_order"),
        ("db.query.text", "SELECT \"data\" FROM \"app\".\"v_order\" WHERE (data::text <> $1)"),
        ("db.response.returned_rows", "3"),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
        ("network.peer.address", "127.0.0.1"),
    ] {
        assert_eq!(query.field(field), Some(value), "{field}");
    }
    assert!(query.field("error.type").is_none() && query.field("otel.status_code").is_none());
    let logged = query.events.join("\n");
    assert!(logged.contains("paused a stream") && logged.contains("resumed a stream"), "{logged}");

    // Raw SQL without bound values may contain values itself.
    client.query::<u8>("app.v_order").where_sql("'planted' <> 'value'").fetch_all().await.unwrap();
    assert_eq!(events.spans("query")[1].field("db.query.text"), None);

    // Failed before the first row and after it, cancelled, dropped: the span never includes the
    // drain.
    client.query::<u8>("v_missing").execute().await.unwrap_err();
    client.query::<f64>("v_breaks").fetch_all().await.unwrap_err();
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let spans = events.spans("query");
    assert!(spans.iter().all(|span| span.has_ended()), "before the connection is cleaned up");
    assert!(client.is_busy());
    let failed = |i: usize| {
        let span: &SpanSeen = &spans[i];
        let field = |name| span.field(name).map(str::to_owned);
        (field("error.type"), field("db.response.status_code"), field("otel.status_code"))
    };
    let error = |state: &str| (Some(state.into()), Some(state.into()), Some("ERROR".into()));
    assert_eq!(failed(2), error("42P01"));
    assert_eq!(failed(3), error("22012"));
    assert_eq!(failed(4), (None, None, None));
    assert_eq!(spans[4].field("db.response.returned_rows"), Some("1"));
    client.ping().await.unwrap();

    // A row error fails a fetch, and the early end of a fetch that has its row is no failure.
    client.query::<bool>("app.v_order").fetch_all().await.unwrap_err();
    client.query::<bool>("app.v_order").where_typed(|_| true).count().await.unwrap_err();
    client.query::<u8>("app.v_order").where_rust(|i| i == 2).fetch_one().await.unwrap();
    let spans = events.spans("query");
    let failed = |i: usize| ["error.type", "otel.status_code"].map(|name| spans[i].field(name));
    assert_eq!(failed(5), [Some("deserialization"), Some("ERROR")]);
    assert_eq!(failed(6), [Some("deserialization"), Some("ERROR")]);
    assert_eq!(failed(7), [None, None]);
    assert_eq!(spans[7].field("db.response.returned_rows"), Some("1"));

    let nobody = cluster::free_port().unwrap();
    FraiseClient::connect(&format!("host=127.0.0.1 port={nobody} user=u")).await.unwrap_err();
    let last = events.spans("connect").pop().unwrap();
    assert_eq!(last.field("error.type"), Some("io"));

    // Successful queries emit nothing above DEBUG, and no event has a secret.
    let all = events.with("");
    assert!(
        all.iter().all(|event| event.starts_with("DEBUG") || event.starts_with("TRACE")),
        "{all:?}"
    );
    let everything = format!("{all:?} {:?} {:?}", events.spans("query"), events.spans("connect"));
    assert!(!everything.contains("planted"), "{everything}");

    // A row error fails a body, unless its query was cancelled before. It is also logged.
    let open = async || {
        let query = client.query::<u8>("v_misfit").where_typed(|_| true).chunk_size(256);
        query.execute().await.unwrap()
    };
    let parts: Vec<_> = open().await.into_ndjson().collect().await;
    assert!(parts[1].as_ref().unwrap_err().is_row_error());
    let stream = open().await;
    let control = stream.control();
    let mut body = stream.into_ndjson();
    body.next().await.unwrap().unwrap();
    control.cancel().await.unwrap();
    assert!(body.next().await.unwrap().unwrap_err().is_row_error());
    let spans = events.spans("query");
    let failed = |i: usize| ["error.type", "otel.status_code"].map(|name| spans[i].field(name));
    assert_eq!(failed(8), [Some("deserialization"), Some("ERROR")]);
    assert_eq!(failed(9), [None, None]);
}
