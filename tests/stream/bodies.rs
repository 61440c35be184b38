//! Bodies: NDJSON, JSON arrays and server-sent events.

use crate::support::{
    admin, client,
    events::Events,
    scripted::{self, Scripted, Step},
    sql,
};
use fraiseql_wire::{ErrorCategory, FraiseClient, RawJson};
use futures_util::{Stream, StreamExt, stream::FusedStream};

async fn body(
    mut parts: impl FusedStream<Item = fraiseql_wire::Result<bytes::Bytes>> + Unpin,
) -> String {
    let mut text = Vec::new();
    while let Some(part) = parts.next().await {
        text.extend_from_slice(&part.unwrap());
    }
    assert!(parts.is_terminated() && parts.next().await.is_none());
    String::from_utf8(text).unwrap()
}

/// The server can also make one text of many rows.
#[tokio::test]
async fn bodies_equal_the_text_made_by_the_server() {
    sql("create view v_lines as select to_jsonb(t) as data
         from (select i, repeat('ü', i % 50) as text, null as none from generate_series(1, 5000) i) t;
         create view v_broken_lines as
         select E'{\n \"a\" :\r\n\t\"\\\\n\"}'::json as data from generate_series(1, 2);
         create view v_no_rows as select '1'::json as data where false")
    .await;
    let admin = admin().await;
    let made = async |text: &str| -> String { admin.query_one(text, &[]).await.unwrap().get(0) };
    let client = client().await;
    let lines = client.query::<RawJson>("v_lines").execute().await.unwrap();
    let expected = made("select string_agg(data::text || E'\\n', '') from v_lines").await;
    assert_eq!(body(lines.into_ndjson()).await, expected);
    // No row is decoded, so any type will do.
    let array = client.query::<u8>("v_lines").execute().await.unwrap();
    let expected = made("select '[' || string_agg(data::text, ',') || ']' from v_lines").await;
    assert_eq!(body(array.into_json_array()).await, expected);

    let broken = client.query::<RawJson>("v_broken_lines").execute().await.unwrap();
    assert_eq!(body(broken.into_ndjson()).await, "{  \"a\" :  \t\"\\n\"}\n".repeat(2));
    let none = async || client.query::<RawJson>("v_no_rows").execute().await.unwrap();
    assert_eq!(body(none().await.into_ndjson()).await, "");
    assert_eq!(body(none().await.into_json_array()).await, "[]");

    let some = client.query::<RawJson>("v_short").where_rust(|n| n == 7 || n == 9);
    assert_eq!(body(some.execute().await.unwrap().into_json_array()).await, "[7,9]");
}

/// An event, as a browser reads it.
#[derive(Debug, Default, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    data: String,
}

/// Parses events as the HTML standard does, except for comments and `retry`.
fn events(body: &str) -> Vec<Event> {
    let body = body.replace("\r\n", "\n").replace('\r', "\n");
    let mut events = Vec::new();
    let mut event = Event::default();
    assert!(body.is_empty() || body.ends_with("\n\n"), "the last event is incomplete");
    for line in body.lines() {
        if line.is_empty() {
            assert!(event.data.pop() == Some('\n'), "an event without data is ignored");
            events.push(std::mem::take(&mut event));
            continue;
        }
        let (field, value) = line.split_once(':').unwrap();
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event.name = value.into(),
            "id" => event.id = Some(value.into()),
            "data" => event.data = format!("{}{value}\n", event.data),
            _ => panic!("{line}"),
        }
    }
    assert_eq!(event, Event::default());
    events
}

#[tokio::test]
async fn into_sse_sends_an_event_per_row_then_end() {
    sql(r#"create view v_events as
         select format(E'{\n "id" :\r\n%s,\r\r"text": "a\\nb"}\n', i)::json as data
         from generate_series(1, 1000) i;
         create table t_event_keys as
         select jsonb_build_object('id', id, 'in', jsonb_build_object('n', n)) as data
         from (values ('', 3.10), (E'a\tb', 2), (' a', -1e-30), ('a ', 5), ('a b', 7),
                      (E'\u00e9"\\', 8), (E'x\ny', 9), (E'x\ry', 1e40),
                      (E'\u0080', 12345678901234567890123)) t(id, n)"#)
    .await;
    let client = client().await;
    let sent = async |query: fraiseql_wire::QueryBuilder<RawJson>| {
        events(&body(query.execute().await.unwrap().into_sse()).await)
    };
    let event = |id: Option<&str>, data: &str| Event {
        id: id.map(Into::into),
        data: data.into(),
        ..Event::default()
    };
    let end = |rows: u64| Event {
        name: "end".into(),
        data: format!("{{\"rows\":{rows}}}"),
        ..Event::default()
    };

    // Without resume_by there are no ids. A client joins the lines with LF.
    let document = "{\n \"id\" :\n7,\n\n\"text\": \"a\\nb\"}\n";
    let query = client.query::<RawJson>("v_events").where_rust(|row| row["id"] == 7);
    assert_eq!(sent(query).await, [event(None, document), end(1)]);
    assert_eq!(sent(client.query("v_events").limit(0)).await, [end(0)]);
    let all = sent(client.query::<RawJson>("v_events")).await;
    assert_eq!((all.len(), all.last()), (1001, Some(&end(1000))));

    // The id is the key, which is found in the document and can be that of a nested field.
    let ids = |events: Vec<Event>| -> Vec<Option<String>> {
        events.into_iter().map(|event| event.id).collect()
    };
    let numbers = sent(client.query("v_events").resume_by("id").limit(300)).await;
    let expected: Vec<_> = (1..=300).map(|i| Some(i.to_string())).chain([None]).collect();
    assert_eq!(ids(numbers), expected);
    let exact = sent(client.query("t_event_keys").resume_by("in.n")).await;
    let expected = [
        "-0.000000000000000000000000000001",
        "2",
        "3.10",
        "5",
        "7",
        "8",
        "9",
        "12345678901234567890123",
        "10000000000000000000000000000000000000000",
    ];
    let expected: Vec<_> = expected.iter().map(|n| Some((*n).to_owned())).chain([None]).collect();
    assert_eq!(ids(exact), expected);
    // Keys that cannot be in a header have no id.
    let texts = sent(client.query("t_event_keys").resume_by("id")).await;
    let mut texts: Vec<_> = ids(texts).into_iter().flatten().collect();
    texts.sort();
    assert_eq!(texts, ["a b", "\u{80}", "\u{e9}\"\\"]);
}

/// What a client sees of an error is its category. The rest is in the log.
#[tokio::test]
async fn into_sse_ends_with_an_error_event_and_logs_the_error() {
    let (log, _listening) = Events::listen();
    sql("create view v_event_breaks as
         select jsonb_build_object('id', i, 'n', 1 / (2000 - i)) as data
         from (select generate_series(1, 3000) i) as numbers;
         create view v_event_bad as select '1e999'::json as data")
    .await;
    let client = client().await;
    let failed = |category: &str, retriable: bool| Event {
        name: "error".into(),
        data: format!("{{\"category\":\"{category}\",\"retriable\":{retriable}}}"),
        ..Event::default()
    };
    let rows = client.query::<RawJson>("v_event_breaks").execute().await.unwrap();
    let sent = events(&body(rows.into_sse()).await);
    assert_eq!((sent.len(), sent.last()), (2000, Some(&failed("server", false))));
    let warned = log.with("a response body failed");
    assert!(warned.len() == 1 && warned[0].contains("22012"), "{warned:?}");
    assert!(warned[0].contains("WARN") && warned[0].contains("rows=1999"), "{warned:?}");

    let bad = client.query::<RawJson>("v_event_bad").where_rust(|_| true).execute().await.unwrap();
    assert_eq!(events(&body(bad.into_sse()).await), [failed("json_decode", false)]);
    assert_eq!(log.with("a response body failed").len(), 2);

    // A query that its service cancels has not failed.
    let endless = client.query::<RawJson>("v_endless").execute().await.unwrap();
    let control = endless.control();
    let mut sent = endless.into_sse();
    sent.next().await.unwrap().unwrap();
    control.cancel().await.unwrap();
    let mut last = String::new();
    while let Some(part) = sent.next().await {
        last = String::from_utf8(part.unwrap().to_vec()).unwrap();
    }
    assert_eq!(events(&last), [failed("cancelled", false)]);
    assert_eq!(log.with("a response body failed").len(), 2);
}

/// An HTTP server drops the error of a body.
#[tokio::test]
async fn failed_body_is_logged_as_a_warning() {
    let (log, _listening) = Events::listen();
    sql("create view v_body_breaks as
         select jsonb_build_object('n', 1 / (2000 - i)) as data
         from (select generate_series(1, 3000) i) as numbers")
    .await;
    let client = client().await;
    let rows = async || client.query::<RawJson>("v_body_breaks").execute().await.unwrap();
    async fn drain(mut body: impl Stream<Item = fraiseql_wire::Result<bytes::Bytes>> + Unpin) {
        while body.next().await.is_some() {}
    }
    drain(rows().await.into_ndjson()).await;
    drain(rows().await.into_json_array()).await;
    let warned = log.with("a response body failed");
    assert!(warned.len() == 2 && warned.iter().all(|w| w.contains("22012")), "{warned:?}");
    // Without a body, the error is the caller's.
    let mut rows = rows().await;
    while rows.next().await.is_some() {}
    assert_eq!(log.with("a response body failed").len(), 2);
}

/// A body that ends early must not look complete.
#[tokio::test]
async fn body_ends_at_its_first_error() {
    let (go, wait) = tokio::sync::oneshot::channel();
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    script.push(Step::Send(scripted::begun(&["1"])));
    script.push(Step::Wait(wait));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut array = client.query::<RawJson>("v").execute().await.unwrap().into_json_array();
    assert_eq!(array.next().await.unwrap().unwrap(), "[1");
    go.send(()).unwrap();
    let error = array.next().await.unwrap().unwrap_err();
    assert_eq!(error.category(), ErrorCategory::ConnectionClosed);
    assert!(array.next().await.is_none());

    // The error of a single row ends it too: otherwise the row would be missing without notice.
    let client = crate::support::client().await;
    sql("create view v_one_bad as
         select case when i = 3 then '1e999' else to_json(i) end as data
         from generate_series(1, 100000) i")
    .await;
    let bad = client.query::<RawJson>("v_one_bad").where_rust(|_| true).execute().await.unwrap();
    let mut lines = bad.into_ndjson();
    assert_eq!(lines.next().await.unwrap().unwrap(), "1\n2\n");
    assert!(lines.next().await.unwrap().unwrap_err().is_row_error());
    assert!(lines.next().await.is_none());
    client.ping().await.unwrap();
}

/// Its end would look like that of a complete result.
#[tokio::test]
async fn body_of_a_stream_that_had_failed_or_was_cancelled_is_an_error() {
    sql("create view v_no_rows_2 as select '1'::json as data where false;
         create view v_fails_at_3 as select to_jsonb(1 / (3 - i)) as data from generate_series(1, 9) i")
        .await;
    let client = client().await;
    for is_cancelled in [false, true] {
        let query = || client.query::<RawJson>("v_fails_at_3").execute();
        let mut stream = query().await.unwrap();
        if is_cancelled {
            stream.cancel().await.unwrap();
        } else {
            while let Some(Ok(_)) = stream.next().await {}
        }
        let mut array = stream.into_json_array();
        assert!(array.next().await.unwrap().is_err() && array.next().await.is_none());
    }
    let mut stream = client.query::<RawJson>("v_no_rows_2").execute().await.unwrap();
    assert!(stream.next().await.is_none());
    assert_eq!(body(stream.into_json_array()).await, "[]");
}
