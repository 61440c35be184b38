//! The example `axum`, as its clients see it: bodies, filters, rejections, and the end of the
//! query.

use std::time::{Duration, Instant};

use crate::support::{
    admin, cluster, eventually,
    http::{self, get, send},
    service::{Service, active, waits_for_client},
    sql,
};

/// A status that would be more than data in SQL made of text, and one that JSON escapes.
const ODD: [&str; 2] = ["x' or 'a'='a", "a \"b\"\n\\ é"];

/// Creates orders in `view`, and documents that are no orders.
async fn make_orders(view: &str) {
    let [injection, escaped] = ODD.map(|text| text.replace('\'', "''"));
    sql(&format!(
        "create table t_{view} as
         select i, jsonb_build_object('id', i, 'total', i * 1.25,
             'status', (array['open', 'paid', 'shipped', '{injection}', E'{escaped}'])[1 + i % 5],
             'customer', jsonb_build_object('city', (array['Kraków', 'Oslo'])[1 + i % 2], 'name', 'Ada'),
             'tags', to_jsonb((array['gift', 'vip'])[1 : i % 3])) as data
         from generate_series(1, 1000) i;
         insert into t_{view} values (0, 'null'), (1001, '[1]'), (1002, '{{\"status\": 5, \"total\": \"9\"}}');
         create view {view} as select data from t_{view} order by i;",
        escaped = escaped.replace('\\', "\\\\").replace('\n', "\\n"),
    ))
    .await;
}

/// Returns the documents of the view, read by another driver.
async fn documents(view: &str, condition: &str) -> Vec<String> {
    let sql = format!("select data::text from {view} where {condition}");
    let rows = admin().await.query(&sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn bodies_are_the_documents_of_the_view() {
    make_orders("v_bodies").await;
    let service = Service::on("bodies", "v_bodies");
    let documents = documents("v_bodies", "true").await;
    assert_eq!(documents.len(), 1003);

    let answer = get(&service.address, "/orders.ndjson").await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let lines: String = documents.iter().map(|document| format!("{document}\n")).collect();
    assert_eq!(answer.text(), lines);

    let answer = get(&service.address, "/orders.json").await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.text(), format!("[{}]", documents.join(",")));

    for (target, body) in [("/orders.ndjson?status=none", ""), ("/orders.json?limit=0", "[]")] {
        let answer = get(&service.address, target).await;
        assert_eq!((answer.status, answer.complete, answer.text()), (200, true, body), "{target}");
    }
    assert_eq!(service.log(), "");
}

/// Each parameter has the same result as this SQL, whatever its text.
#[tokio::test]
async fn filters_are_bound() {
    make_orders("v_filters").await;
    let service = Service::on("filters", "v_filters");
    let status = |text: &str| format!("data->>'status' = '{}'", text.replace('\'', "''"));
    let number = "jsonb_typeof(data->'total') = 'number' and (data->>'total')::numeric";
    let mut queries = vec![
        ("status=paid".to_owned(), status("paid")),
        ("customer.city=Krak%C3%B3w".to_owned(), "data#>>'{customer,city}' = 'Kraków'".to_owned()),
        ("customer.name=Ada".to_owned(), "data#>>'{customer,name}' = 'Ada'".to_owned()),
        ("tag=vip".to_owned(), "data->'tags' ? 'vip'".to_owned()),
        // Both limits are inclusive.
        ("min_total=1248.75&max_total=1248.75".to_owned(), format!("{number} = 1248.75")),
        ("min_total=1.2e3".to_owned(), format!("{number} >= 1200")),
        ("limit=3".to_owned(), "data->'id' in ('1', '2') or data = 'null'".to_owned()),
        (
            "max_total=500&tag=gift&customer.city=Oslo&status=open".to_owned(),
            format!(
                "{number} <= 500 and data->'tags' ? 'gift' and data#>>'{{customer,city}}' = 'Oslo' and {}",
                status("open")
            ),
        ),
    ];
    for text in ODD {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        queries.push((format!("status={encoded}"), status(text)));
        queries.push((format!("customer.name={encoded}"), "false".to_owned()));
        queries.push((format!("tag={encoded}"), "false".to_owned()));
    }
    for (query, condition) in queries {
        let expected = documents("v_filters", &condition).await;
        assert!(condition == "false" || !expected.is_empty(), "{condition}");
        let answer = get(&service.address, &format!("/orders.ndjson?{query}")).await;
        assert_eq!(answer.status, 200, "{query}");
        assert_eq!(answer.text().lines().collect::<Vec<_>>(), expected, "{query}");
    }
}

/// An invalid request is rejected before anything is sent to the database.
#[tokio::test]
async fn invalid_parameters_are_rejected() {
    let service = Service::on("refused", "v_short");
    for (query, said) in [
        ("color=red", "unknown parameter \"color\": expected status, "),
        ("data-%3E%3E'id'=1", "unknown parameter \"data->>'id'\""),
        ("min_total=lots", "invalid min_total \"lots\": expected a number"),
        ("min_total=", "invalid min_total \"\""),
        ("max_total=99.5&min_total=100", "min_total is 100, above max_total, which is 99.5"),
        ("max_total=NaN", "invalid max_total \"NaN\""),
        ("max_total=inf", "invalid max_total \"inf\""),
        ("max_total=1e999", "invalid max_total \"1e999\""),
        ("limit=-1", "invalid limit \"-1\": expected a whole number from 0 to 4294967295"),
        ("limit=1;select", "invalid limit \"1;select\""),
        ("limit=18446744073709551616", "invalid limit \"18446744073709551616\""),
        ("limit=1&limit=2", "limit is given more than once"),
        ("status=a%00b", "status contains a NUL character"),
        ("tag=%00", "tag contains a NUL character"),
    ] {
        for path in ["/orders.ndjson", "/orders.json"] {
            let answer = get(&service.address, &format!("{path}?{query}")).await;
            assert_eq!(answer.status, 400, "{query}: {}", answer.text());
            assert!(answer.text().starts_with(said), "{query}: {}", answer.text());
            assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        }
    }
    let sessions = "select count(*) from pg_stat_activity where application_name = 'refused'";
    assert_eq!(admin().await.query_one(sessions, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(service.log(), "");
}

/// In the middle of the rows, while it is paused, and before the first row.
#[tokio::test]
async fn disconnecting_client_cancels_its_query() {
    let admin = admin().await;
    let one = |command: &mut std::process::Command, view: &str| {
        command.env("POOL_SIZE", "1").arg(view);
    };
    let service = Service::with("leaving", |command| one(command, "v_endless"));
    let session = async || {
        let sql = "select pid from pg_stat_activity where application_name = 'leaving'";
        admin.query_one(sql, &[]).await.unwrap().get::<_, i32>(0)
    };
    for paused in [false, true] {
        let mut rows = http::open(&service.address, "GET", "/orders.ndjson", "").await;
        assert_eq!(rows.status(), 200);
        assert!(rows.more().await);
        assert_eq!(active(&admin, "leaving").await, 1);
        let stream = format!("/streams/{}", rows.header("stream-id").unwrap());
        if paused {
            send(&service.address, "POST", &format!("{stream}/pause"), "").await;
        }
        assert_eq!(get(&service.address, &stream).await.status, 200);
        let before = session().await;
        drop(rows);
        eventually("the query ends", async || active(&admin, "leaving").await == 0).await;
        eventually("the stream is off the list", async || {
            get(&service.address, &stream).await.status == 204
        })
        .await;
        // The one connection there is, is used again.
        let answer = get(&service.address, "/orders.json?limit=1").await;
        assert_eq!((answer.status, answer.complete), (200, true), "{}", answer.text());
        assert_eq!(session().await, before);
    }
    assert_eq!(service.log(), "");

    let service = Service::with("waiting", |command| one(command, "v_asleep"));
    let request = http::ask(&service.address, "GET", "/orders.ndjson", "").await;
    eventually("the query runs", async || active(&admin, "waiting").await == 1).await;
    drop(request);
    eventually("the query ends", async || active(&admin, "waiting").await == 0).await;
}

#[tokio::test]
async fn stream_is_controlled_by_its_id() {
    let admin = admin().await;
    let service = Service::on("steering", "v_endless");
    let numbers = async |stream: &str| {
        let answer = get(&service.address, stream).await;
        assert_eq!(answer.status, 200);
        serde_json::from_str::<serde_json::Value>(answer.text()).unwrap()
    };
    let mut rows = http::open(&service.address, "GET", "/orders.ndjson", "").await;
    let id = rows.header("stream-id").unwrap().to_owned();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let stream = format!("/streams/{id}");
    assert_eq!(numbers(&stream).await["state"], "running");
    let another = http::open(&service.address, "GET", "/orders.json", "").await;
    assert_ne!(another.header("stream-id").unwrap(), id);
    drop(another);
    eventually("only one is left", async || active(&admin, "steering").await == 1).await;

    let answer = send(&service.address, "POST", &format!("{stream}/pause"), "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("\"state\":\"paused\""), "{}", answer.text());
    // After the in-flight data, the client receives no more of it.
    let before = numbers(&stream).await;
    let reading = async { while rows.more().await {} };
    tokio::select! {
        () = reading => panic!("it has ended"),
        () = eventually("the query waits", async || waits_for_client(&admin, "steering").await) => {}
    }
    let after = numbers(&stream).await;
    assert_eq!(after["bytes"], before["bytes"]);
    assert_eq!(after["state"], "paused");
    assert!(after["memory"].as_u64().unwrap() <= (1 << 20) + (64 << 10), "{after}");

    assert_eq!(send(&service.address, "POST", &format!("{stream}/resume"), "").await.status, 200);
    let wanted = after["rows"].as_u64().unwrap() + 100_000;
    while numbers(&stream).await["rows"].as_u64().unwrap() < wanted {
        for _ in 0..100 {
            assert!(rows.more().await);
        }
    }

    assert_eq!(send(&service.address, "DELETE", &stream, "").await.status, 204);
    assert_eq!(active(&admin, "steering").await, 0);
    assert!(!rows.came_whole().await, "not all rows came");
    eventually("it is off the list", async || get(&service.address, &stream).await.status == 410)
        .await;
    assert_eq!(get(&service.address, &stream).await.text(), "the query was cancelled");
    assert_eq!(send(&service.address, "DELETE", &stream, "").await.status, 204);
    for how in ["pause", "resume"] {
        let answer = send(&service.address, "POST", &format!("{stream}/{how}"), "").await;
        assert_eq!(answer.status, 404);
    }
    // It has not failed.
    assert_eq!(service.log(), "");
}

/// Before the first row, errors change the status. The body of an error reveals no details.
#[tokio::test]
async fn errors_before_the_first_row_set_the_status() {
    sql("create table t_fails (i int); insert into t_fails values (1), (2);
         create view v_fails as select to_jsonb(i / (i - i)) as data from t_fails")
    .await;
    let port = cluster().port();
    let at = |user: &str, port: u16, rest: &str| {
        format!("postgres://{user}@127.0.0.1:{port}/postgres{rest}")
    };
    let superuser = cluster::superuser();
    let nobody = cluster::free_port().unwrap();
    let timeout = "?options=-c%20statement_timeout%3D200";
    for (url, view, status, logged) in [
        (at(&superuser, nobody, ""), "v_one", 503, "could not connect"),
        (at(&superuser, port, timeout), "v_asleep", 504, "57014"),
        (at(&superuser, port, ""), "v_missing", 500, "42P01"),
        (at(&superuser, port, ""), "v_fails", 500, "22012"),
        (at("role_scram:planted-secret", port, ""), "v_one", 500, "28P01"),
    ] {
        let service = Service::start(|command| {
            command.env("DATABASE_URL", &url).arg(view);
        });
        for path in ["/orders.ndjson", "/orders.json?status=planted-value"] {
            let answer = get(&service.address, path).await;
            let said = answer.text();
            assert_eq!(answer.status, status, "{view}: {said}");
            assert_eq!(answer.header("retry-after").is_some(), status == 503);
            for secret in ["planted", "SELECT", "v_", "SQLSTATE", "127.0.0.1", "role_"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
        let log = service.log();
        assert!(log.contains(logged), "{view}: {log}");
        assert!(!log.contains("planted"), "{log}");
    }
}

#[tokio::test]
async fn error_after_the_first_row_aborts_the_body() {
    sql("create view v_breaks as
         select jsonb_build_object('id', i, 'text', repeat('x', 100), 'n', 1 / (20000 - i)) as data
         from (select generate_series(1, 30000) i) as numbers")
    .await;
    let service = Service::on("breaking", "v_breaks");
    let answer = get(&service.address, "/orders.ndjson").await;
    assert_eq!((answer.status, answer.complete), (200, false));
    // Unsent data is lost with the connection.
    let before = documents("v_breaks", "true limit 19999").await.join("\n");
    assert!(!answer.body.is_empty() && before.starts_with(answer.text().trim_end()));
    let log = service.log();
    assert!(log.contains("WARN stream{id=") && log.contains("22012"), "{log}");

    let answer = get(&service.address, "/orders.json").await;
    assert_eq!((answer.status, answer.complete), (200, false));
    assert!(serde_json::from_slice::<serde_json::Value>(&answer.body).is_err());
    // The connection is as good as before.
    assert!(get(&service.address, "/orders.json?limit=10").await.complete);
}

#[tokio::test]
async fn without_a_free_connection_the_status_is_503() {
    let service = Service::with("full", |command| {
        command.env("POOL_SIZE", "2").arg("v_endless");
    });
    let first = http::open(&service.address, "GET", "/orders.ndjson", "").await;
    let second = http::open(&service.address, "GET", "/orders.json", "").await;
    assert_eq!((first.status(), second.status()), (200, 200));
    let third = get(&service.address, "/orders.json?limit=1").await;
    assert_eq!(third.status, 503);
    assert_eq!(third.header("retry-after"), Some("1"));
    assert!(third.text().starts_with("no connection is available"), "{}", third.text());
    drop(second);
    eventually("there is one again", async || {
        get(&service.address, "/orders.json?limit=1").await.status == 200
    })
    .await;
    drop(first);
}

/// A stream that would never end is stopped in time, on the server too.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_in_order() {
    let admin = admin().await;
    let mut service = Service::on("ending", "v_endless");
    let mut rows = http::open(&service.address, "GET", "/orders.ndjson", "").await;
    assert!(rows.more().await);
    service.interrupt();
    let (status, text) = service.ended();
    assert!(status.success(), "{status}: {text}");
    assert!(!rows.came_whole().await);
    eventually("the query ends", async || active(&admin, "ending").await == 0).await;
}

/// A service manager sends SIGTERM, and kills what is still there after a while. Clients that read
/// nothing, or still wait for their first row, must not keep the service or its queries that long.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_in_bounded_time_with_slow_readers() {
    let admin = admin().await;
    sql("create table t_slow as
         select jsonb_build_object('id', i, 'text', repeat('x', 1000)) as data
         from generate_series(1, 40000) i;
         create index on t_slow ((data->'id'));
         analyze t_slow")
    .await;
    let mut service = Service::on("slow", "t_slow");
    let ndjson = http::open(&service.address, "GET", "/orders.ndjson", "").await;
    let events = http::open(&service.address, "GET", "/orders.sse", "").await;
    assert_eq!((ndjson.status(), events.status()), (200, 200));
    let waits = "select count(*) from pg_stat_activity
                 where application_name = 'slow' and state = 'active' and wait_event = 'ClientWrite'";
    eventually("both queries wait for their clients", async || {
        admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 2
    })
    .await;
    let mut waiting = Service::on("slow_first", "v_asleep");
    let request = http::ask(&waiting.address, "GET", "/orders.json", "").await;
    eventually("the query runs", async || active(&admin, "slow_first").await == 1).await;

    let began = Instant::now();
    service.terminate();
    waiting.terminate();
    for service in [&mut service, &mut waiting] {
        let (status, text) = service.ended();
        assert!(status.success(), "{status}: {text}");
    }
    // 5 + 3 seconds, where Kubernetes waits for 30.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    for name in ["slow", "slow_first"] {
        assert_eq!(active(&admin, name).await, 0, "{name}");
    }
    assert!(!ndjson.came_whole().await && !events.came_whole().await);
    let answer = http::Opened::of(request).await;
    assert_eq!(answer.status(), 503);
}

/// A browser connects again, to the next instance of the service.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_sse_without_an_error_event() {
    make_events("v_sse_stopped", 500_000).await;
    let mut service = Service::on("sse_stopped", "v_sse_stopped");
    let events = http::open(&service.address, "GET", "/orders.sse", "").await;
    let stream = format!("/streams/{}/pause", events.header("stream-id").unwrap());
    assert_eq!(send(&service.address, "POST", &stream, "").await.status, 200);
    let rest = tokio::spawn(events.rest());
    service.terminate();
    let (status, text) = service.ended();
    assert!(status.success(), "{status}: {text}");
    let answer = rest.await.unwrap();
    assert!(answer.complete && answer.text().contains("\nid: 1\n"));
    assert!(!answer.text().contains("event: "), "neither an error nor the end");
}

/// Orders with these ids, and nothing else.
async fn make_events(view: &str, rows: u64) {
    sql(&format!(
        "create view {view} as
         select jsonb_build_object('id', i, 'status', (array['open', 'paid'])[1 + i % 2]) as data
         from generate_series(1, {rows}) i"
    ))
    .await;
}

#[tokio::test]
async fn sse_continues_after_last_event_id() {
    make_events("v_sse", 1000).await;
    let service = Service::on("sse", "v_sse");
    let events = async |target: &str, after: &str| {
        let header = format!("Host: 127.0.0.1\r\nLast-Event-ID: {after}");
        let header = if after.is_empty() { "Host: 127.0.0.1" } else { &header };
        http::get_as(&service.address, target, header).await
    };
    let expected = |ids: &mut dyn Iterator<Item = u64>| {
        let mut body = "retry: 1000\n\n".to_owned();
        let mut rows = 0;
        for id in ids {
            let status = ["open", "paid"][id as usize % 2];
            body += &format!("id: {id}\ndata: {{\"id\": {id}, \"status\": \"{status}\"}}\n\n");
            rows += 1;
        }
        body + &format!("event: end\ndata: {{\"rows\":{rows}}}\n\n")
    };
    let answer = events("/orders.sse", "").await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.text() == expected(&mut (1..=1000)));
    assert_eq!(events("/orders.sse", "997").await.text(), expected(&mut (998..=1000)));
    assert_eq!(events("/orders.sse", "1000").await.text(), expected(&mut (0..0)));
    let filtered = events("/orders.sse?status=paid&limit=2", "400").await;
    assert_eq!(filtered.text(), expected(&mut [401, 403].into_iter()));
    for wrong in ["x", "1.5", "1e3", "99999999999999999999", "é"] {
        assert_eq!(events("/orders.sse", wrong).await.status, 400, "{wrong}");
    }
    assert_eq!(events("/orders.sse?color=red", "").await.status, 400);
    assert_eq!(service.log(), "");
}

/// A browser stops at any status other than 200. Temporary errors are therefore events.
#[tokio::test]
async fn sse_reports_temporary_errors_as_events() {
    make_events("v_sse_full", 10).await;
    let service = Service::with("sse_full", |command| {
        command.env("POOL_SIZE", "1").arg("v_endless");
    });
    let first = http::open(&service.address, "GET", "/orders.ndjson", "").await;
    let answer = get(&service.address, "/orders.sse").await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.text(), "retry: 5000\nevent: error\ndata: {\"retriable\":true}\n\n");
    assert!(service.log().contains("Timeout occurred"), "{}", service.log());
    drop(first);

    sql("create view v_sse_breaks as
         select jsonb_build_object('id', i, 'n', 1 / (2000 - i)) as data
         from (select generate_series(1, 3000) i) as numbers")
    .await;
    // Another request would fail too, and the event reports that.
    let service = Service::on("sse_breaks", "v_sse_breaks");
    let answer = get(&service.address, "/orders.sse").await;
    let last = "event: error\ndata: {\"category\":\"server\",\"retriable\":false}\n\n";
    assert!(answer.text().ends_with(last) && answer.complete, "{}", answer.text());
    assert!(service.log().contains("WARN stream{id=") && service.log().contains("22012"));
}

/// Without settings, the service starts a server.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_it_starts_one() {
    let mut service = Service::start(|_| {});
    let answer = get(&service.address, "/orders.ndjson?status=paid&min_total=100&limit=5").await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.text().lines().count(), 5);
    for line in answer.text().lines() {
        let order: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(order["status"], "paid");
        assert!(order["total"].as_f64().unwrap() >= 100.0);
    }
    let whole = get(&service.address, "/orders.ndjson").await;
    assert_eq!(whole.body.iter().filter(|byte| **byte == b'\n').count(), 300_000);
    service.interrupt();
    let (status, text) = service.ended();
    assert!(status.success(), "{status}: {text}");
}

/// The host of a request is that of the page in the browser. Another one is a page whose owner has
/// made its name resolve to this address.
#[tokio::test]
async fn another_host_header_is_rejected() {
    make_orders("v_hosts").await;
    let service = Service::with("hosts", |command| {
        command.arg("v_hosts").env("HOSTS", "shop.example, api.example");
    });
    for host in [
        "Host: evil.example",
        "Host: localhost.evil.example",
        "Host: 127.0.0.1.evil.example",
        "Host: shop.example.evil.example",
        "Host: evil@127.0.0.1",
        "Host: 2130706433",
        "Host:",
        "X-Forwarded-Host: 127.0.0.1",
        "Host: 127.0.0.1\r\nHost: evil.example",
        "Host: evil.example\r\nHost: 127.0.0.1",
    ] {
        for target in ["/", "/orders.ndjson?limit=1", "http://127.0.0.1/orders.ndjson?limit=1"] {
            let answer = http::get_as(&service.address, target, host).await;
            assert!([400, 421].contains(&answer.status), "{host:?} {target}: {}", answer.status);
            assert!(!answer.text().contains("customer"), "{host:?} {target}");
        }
    }
    let target = "http://evil.example/orders.ndjson?limit=1";
    assert_eq!(http::get_as(&service.address, target, "Host: 127.0.0.1").await.status, 421);
    for name in ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "shop.example", "API.example"] {
        for port in ["", ":3000"] {
            let host = format!("Host: {name}{port}");
            let answer = http::get_as(&service.address, "/orders.ndjson?limit=1", &host).await;
            assert_eq!((answer.status, answer.text().lines().count()), (200, 1), "{host}");
        }
    }
}
