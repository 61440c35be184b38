//! The life of a connection: its information, cancelling its query, and its replacement.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{
    admin, backend_state, client, cluster, config_at,
    daemon::Daemon,
    events::Events,
    eventually,
    proxy::Proxy,
    scripted::{self, Scripted, Step, message},
    sql,
};
use fraiseql_wire::{
    ConnectionConfig, ConnectionConfigBuilder, Error, ErrorCategory, Field, FraiseClient, RawJson,
    RetryPolicy, SslMode, TimeoutPhase,
};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;

fn config() -> ConnectionConfigBuilder {
    config_at(cluster().port())
}

async fn connect(config: ConnectionConfigBuilder) -> FraiseClient {
    FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap()
}

/// Runs a query to its end, and returns its error. `execute()` returns it, or the stream if the
/// server had sent the columns before.
async fn outcome(client: &FraiseClient, view: &str) -> Option<Error> {
    match client.query::<Value>(view).execute().await {
        Ok(stream) => stream.try_collect::<Vec<_>>().await.err(),
        Err(e) => Some(e),
    }
}

#[tokio::test]
async fn connection_info_describes_the_connection() {
    let client = FraiseClient::new(config().build().unwrap());
    assert!(client.connection_info().is_none() && client.server_version().is_none());
    assert!(client.parameter("TimeZone").is_none() && !client.is_connected());
    client.ping().await.unwrap();
    let info = client.connection_info().unwrap();
    assert_eq!(info.address.unwrap().to_string(), "127.0.0.1");
    assert_eq!((info.host.as_deref(), info.port), (Some("127.0.0.1"), cluster().port()));
    assert_eq!((info.auth_method, info.protocol_version), ("md5", "3.0"));
    assert_eq!(client.parameter("TimeZone").as_deref(), Some("UTC"));
    assert_eq!(client.parameter("client_encoding").as_deref(), Some("UTF8"));
    assert_eq!(client.parameter("no such parameter"), None);
    let version: String = admin().await.query_one("show server_version", &[]).await.unwrap().get(0);
    let version = version.split(' ').next().unwrap().to_owned();
    assert_eq!(client.server_version().unwrap().to_string(), version);
    client.close().await.unwrap();
}

/// A change in the middle of a query is visible immediately.
#[tokio::test]
async fn changed_parameter_is_visible_immediately() {
    sql("create function set_zone() returns json language sql as
             $$ select to_json(set_config('TimeZone', 'Europe/Berlin', false)) $$;
         create view v_zone as select set_zone() as data")
    .await;
    let client = client().await;
    let rows: Vec<Value> =
        client.query::<Value>("v_zone").execute().await.unwrap().try_collect().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(client.parameter("TimeZone").as_deref(), Some("Europe/Berlin"));
}

#[tokio::test]
async fn settings_reach_the_session() {
    sql("create view v_settings as select to_json(array[
             current_setting('work_mem'), current_setting('statement_timeout'),
             current_setting('application_name')]) as data")
    .await;
    let client = connect(
        config()
            .param("work_mem", "64MB")
            .statement_timeout(Duration::from_millis(12_345))
            .application_name("told"),
    )
    .await;
    let rows: Vec<Vec<String>> = client
        .query::<Vec<String>>("v_settings")
        .execute()
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(rows, [["64MB", "12345ms", "told"]]);
}

#[tokio::test]
async fn notice_handler_receives_notices_of_every_query() {
    sql("create function complain(i int) returns json language plpgsql as $$
         begin raise warning 'row %', i using hint = 'look'; return to_json(i); end $$;
         create view v_complaints as select complain(i) as data from generate_series(1, 3) i")
    .await;
    let client = client().await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    client.on_notice(move |notice| {
        let text = format!("{} {} {:?}", notice.severity(), notice.message(), notice.hint());
        sink.lock().unwrap().push(text);
    });
    let rows: Vec<u8> =
        client.query::<u8>("v_complaints").execute().await.unwrap().try_collect().await.unwrap();
    assert_eq!(rows, [1, 2, 3]);
    let expected: Vec<_> = (1..=3).map(|i| format!("WARNING row {i} Some(\"look\")")).collect();
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[tokio::test]
async fn cancel_token_cancels_the_query_from_another_task() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    let token = client.cancel_token();
    // Without a running query it has no effect, also not on the next query.
    token.cancel().await.unwrap();
    let stream = client.query::<u32>("v_short").execute().await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 300);

    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let other = tokio::spawn(async move { token.clone().cancel().await });
    other.await.unwrap().unwrap();
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert!(!error.is_retriable());
    assert!(stream.next().await.is_none());
    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), Some(pid));
    assert_eq!(backend_state(&admin, pid).await.as_deref(), Some("idle"));

    // A query that still searches for its first row.
    let token = client.cancel_token();
    let (error, _) = tokio::join!(outcome(&client, "v_asleep"), async {
        eventually("the query runs", async || {
            backend_state(&admin, pid).await.as_deref() == Some("active")
        })
        .await;
        token.cancel().await.unwrap();
    });
    assert!(matches!(error, Some(Error::Cancelled)), "{error:?}");
    client.ping().await.unwrap();

    // After the client is dropped, it has no effect.
    drop(client);
    token.cancel().await.unwrap();
}

/// If another session cancels the query, the error is the server's.
#[tokio::test]
async fn cancel_by_another_session_is_a_server_error() {
    let admin = admin().await;
    let client = client().await;
    let pid = i32::try_from(client.backend_pid().unwrap()).unwrap();
    let (error, _) = tokio::join!(outcome(&client, "v_asleep"), async {
        eventually("the query runs", async || {
            backend_state(&admin, pid.unsigned_abs()).await.as_deref() == Some("active")
        })
        .await;
        admin.execute("select pg_cancel_backend($1)", &[&pid]).await.unwrap();
    });
    assert_eq!(error.unwrap().sqlstate(), Some(&fraiseql_wire::sqlstate::QUERY_CANCELED));
}

/// However a token and the end of a query overlap, the next query is not cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_token_never_cancels_the_next_query() {
    // The server finishes the query long before it is read. A cancel request finds no query, or the
    // next one.
    sql("create view v_sent as select to_json(i) as data from generate_series(1, 20000) i").await;
    let client = client().await;
    let mut begun_rounds = 0;
    for round in 0..200 {
        let query = client.query::<Value>("v_sent").max_memory(16 << 10);
        let mut stream = query.execute().await.unwrap();
        for _ in 0..17_000 + round % 30 * 100 {
            stream.next().await.unwrap().unwrap();
        }
        let token = client.cancel_token();
        // It was started while the query may still run, and continues in its own task.
        let mut cancel = Box::pin(async move { token.cancel().await });
        let begun = futures_util::poll!(cancel.as_mut()).is_pending();
        let cancel = begun.then(|| tokio::spawn(cancel));
        // The end or the error: both are correct.
        let _ = stream.try_collect::<Vec<_>>().await;
        if let Some(cancel) = cancel.as_ref().filter(|_| round % 3 == 0) {
            cancel.abort();
        }
        let stream = client.query::<Value>("v_short").execute().await.unwrap();
        let rows = stream.try_collect::<Vec<_>>().await;
        assert_eq!(rows.unwrap().len(), 300, "round {round}");
        begun_rounds += usize::from(begun);
        if let Some(cancel) = cancel {
            let _ = cancel.await;
        }
    }
    assert!(begun_rounds > 50, "{begun_rounds} of 200 cancels met a query");
}

/// The server becomes available while the client retries.
#[tokio::test]
async fn retry_policy_replaces_a_lost_connection() {
    let not_now =
        || vec![Step::ExpectStartup, Step::Send(scripted::error("FATAL", "57P03", "starting up"))];
    let mut first = scripted::login();
    first.push(Step::Close);
    let mut last = scripted::login();
    last.push(Step::ExpectQuery);
    last.push(Step::Send(scripted::answer(&["1"])));
    let server = Scripted::start(vec![first, not_now(), not_now(), last]).await;
    let builder = || {
        ConnectionConfig::builder()
            .host("127.0.0.1")
            .port(server.address.port())
            .user("u")
            .ssl_mode(fraiseql_wire::SslMode::Disable)
    };
    let quick = RetryPolicy::default().initial_backoff(Duration::from_millis(5));
    let client = connect(builder().retry(quick.max_attempts(3))).await;
    let stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [1]);
    drop(client);
    server.done().await;

    // Attempts are limited, and the first connection of a client is not retried.
    let mut first = scripted::login();
    first.push(Step::Close);
    let server = Scripted::start(vec![not_now(), first, not_now(), not_now()]).await;
    let builder = || {
        ConnectionConfig::builder()
            .host("127.0.0.1")
            .port(server.address.port())
            .user("u")
            .ssl_mode(fraiseql_wire::SslMode::Disable)
            .retry(quick.max_attempts(2))
    };
    let refused = FraiseClient::connect_with_config(builder().build().unwrap()).await;
    assert_eq!(refused.unwrap_err().category(), ErrorCategory::Server);
    let client = connect(builder()).await;
    let error = client.query::<u8>("v").execute().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Server, "{error}");
    server.done().await;
}

#[tokio::test]
async fn read_timeout_counts_only_while_rows_are_wanted() {
    // Longer than a busy machine delays an answer.
    let timeout = Duration::from_secs(2);
    let proxy = Proxy::to_port(cluster().port()).await;
    let client = connect(config_at(proxy.address.port()).read_timeout(timeout)).await;
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    // While paused or with full memory, the client does not wait for the server.
    stream.pause().await.unwrap();
    tokio::time::sleep(timeout + Duration::from_secs(1)).await;
    stream.resume().await.unwrap();
    tokio::time::sleep(timeout + Duration::from_secs(1)).await;
    stream.next().await.unwrap().unwrap();
    proxy.stall(true);
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    let Error::Timeout { phase: TimeoutPhase::Read, after } = error else { panic!("{error:?}") };
    assert_eq!(after, timeout);
}

#[tokio::test]
async fn message_larger_than_the_limit_is_rejected_before_it_is_read() {
    sql("create view v_two_sizes as
         select to_json(repeat('x', i)) as data from (values (10), (100000)) t(i)")
    .await;
    let client = connect(config().max_message_size(50_000)).await;
    let mut stream = client.query::<RawJson>("v_two_sizes").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Protocol);
    assert!(error.to_string().contains("max_message_size"), "{error}");
    client.ping().await.unwrap();
}

/// A cleanup that exceeds its limits closes the connection, and the next query opens another one.
#[tokio::test]
async fn cleanup_limits_are_configurable() {
    // Full sockets exceed the limit.
    let admin = admin().await;
    let client = connect(config().drain_limit(0)).await;
    let pid = client.backend_pid();
    let query = client.query::<Value>("v_endless").max_memory(16 << 10);
    let mut stream = query.execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    eventually("the server waits for its client", async || {
        let waits = "select count(*) from pg_stat_activity where pid = $1
                     and wait_event = 'ClientWrite'";
        let pid = i32::try_from(pid.unwrap()).unwrap();
        admin.query_one(waits, &[&pid]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    let error = stream.cancel().await.unwrap_err();
    assert!(error.to_string().contains("drain_limit"), "{error}");
    client.ping().await.unwrap();
    assert_ne!(client.backend_pid(), pid);

    // The server cannot be reached in time.
    let proxy = Proxy::to_port(cluster().port()).await;
    let bounded = config_at(proxy.address.port()).cancel_timeout(Duration::from_millis(200));
    let client = connect(bounded).await;
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    proxy.stall(true);
    let error = stream.cancel().await.unwrap_err();
    let Error::Timeout { phase: TimeoutPhase::Cancel, after } = error else { panic!("{error:?}") };
    assert_eq!(after, Duration::from_millis(200));
    proxy.stall(false);
    client.ping().await.unwrap();
}

/// Until the cancel request is delivered, nothing is read. Otherwise the server would continue, and
/// might send more than may be drained.
#[tokio::test]
async fn drain_starts_after_the_cancel_request_is_delivered() {
    const FLOOD: usize = 64 << 20;
    let (begun, wait) = tokio::sync::oneshot::channel();
    let (blocked, is_blocked) = tokio::sync::oneshot::channel();
    let mut session = scripted::login();
    session.push(Step::ExpectQuery);
    session.push(Step::Send(scripted::begun(&["1"])));
    session.push(Step::Wait(wait));
    session.push(Step::Flood(scripted::row(&"1".repeat(1 << 20)), FLOOD, blocked));
    session.push(Step::Send(
        [scripted::error("ERROR", "57014", "canceling"), scripted::ready()].concat(),
    ));
    session.push(Step::Silence);
    let cancel = vec![
        Step::Expect(scripted::cancel_request()),
        Step::Signal(begun),
        Step::Wait(is_blocked),
        Step::Close,
    ];
    let server = Scripted::start(vec![session, cancel]).await;
    let config = ConnectionConfig::builder()
        .host("127.0.0.1")
        .port(server.address.port())
        .user("u")
        .ssl_mode(fraiseql_wire::SslMode::Disable)
        .cancel_timeout(Duration::from_secs(20))
        .drain_limit(FLOOD / 2);
    let client = connect(config).await;
    let mut stream = client.query::<Value>("v").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    assert!(client.is_connected());
    drop((stream, client));
    server.done().await;
}

/// A server without a cancel key can be used. Cancelling a query closes the connection.
#[tokio::test]
async fn without_a_cancel_key_a_dropped_stream_closes_the_connection() {
    let login =
        || vec![Step::ExpectStartup, Step::Send([scripted::auth_ok(), scripted::ready()].concat())];
    let mut first = login();
    first.push(Step::ExpectQuery);
    first.push(Step::Send(scripted::begun(&["1"])));
    first.push(Step::Silence);
    let mut second = login();
    second.push(Step::ExpectQuery);
    second.push(Step::Send(scripted::answer(&["2"])));
    let server = Scripted::start(vec![first, second]).await;
    let url = server.url();
    let client = FraiseClient::connect(&url).await.unwrap();
    assert!(client.is_connected() && client.backend_pid().is_none());
    let mut stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    assert_eq!(
        client.cancel_token().cancel().await.unwrap_err().category(),
        ErrorCategory::InvalidState
    );
    drop(stream);
    let stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [2]);
    drop(client);
    server.done().await;
}

/// Protocol 3.2: a long cancel key, and a server that supports only 3.0.
#[tokio::test]
async fn protocol_3_2_is_used_if_configured() {
    let key: Vec<u8> = (0..=255).collect();
    let mut start = vec![Step::Expect(
        b"\0\0\0\x26\0\x03\0\x02user\0u\0database\0u\0client_encoding\0UTF8\0\0".to_vec(),
    )];
    let len = u32::try_from(
        start
            .iter()
            .map(|s| match s {
                Step::Expect(b) => b.len(),
                _ => 0,
            })
            .sum::<usize>(),
    )
    .unwrap();
    if let Some(Step::Expect(bytes)) = start.first_mut() {
        bytes[..4].copy_from_slice(&len.to_be_bytes());
    }
    let body = [&[0, 0, 0, 77][..], &key].concat();
    start.push(Step::Send([scripted::auth_ok(), message(b'K', &body), scripted::ready()].concat()));
    start.push(Step::ExpectQuery);
    start.push(Step::Send(scripted::begun(&["1"])));
    let (cancelled, wait) = tokio::sync::oneshot::channel();
    start.push(Step::Wait(wait));
    start.push(Step::Send(
        [scripted::error("ERROR", "57014", "cancelled"), scripted::ready()].concat(),
    ));
    let request = [&268u32.to_be_bytes()[..], &80_877_102u32.to_be_bytes(), &body].concat();
    let cancel = vec![Step::Expect(request), Step::Signal(cancelled)];
    let server = Scripted::start(vec![start, cancel]).await;
    let url = format!("postgres://u@{}?sslmode=disable&max_protocol_version=3.2", server.address);
    let client = FraiseClient::connect(&url).await.unwrap();
    assert_eq!(client.connection_info().unwrap().protocol_version, "3.2");
    let mut stream = client.query::<u8>("v").execute().await.unwrap();
    stream.cancel().await.unwrap();
    drop(client);
    server.done().await;

    let older = || {
        let negotiate = message(b'v', b"\0\x03\0\0\0\0\0\0");
        let key = message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
        vec![
            Step::ExpectStartup,
            Step::Send([negotiate, scripted::auth_ok(), key, scripted::ready()].concat()),
        ]
    };
    let server = Scripted::start(vec![older(), older()]).await;
    let url = format!("postgres://u@{}?sslmode=disable&max_protocol_version=3.2", server.address);
    let client = FraiseClient::connect(&url).await.unwrap();
    assert_eq!(client.connection_info().unwrap().protocol_version, "3.0");
    drop(client);
    let error =
        FraiseClient::connect(&format!("{url}&min_protocol_version=3.2")).await.unwrap_err();
    assert!(error.to_string().contains("min_protocol_version"), "{error}");
    // A real server older than 3.2 reports the same.
    let url = format!("{}?max_protocol_version=latest", cluster().url());
    let client = FraiseClient::connect(&url).await.unwrap();
    let expected = if client.server_version().unwrap().major >= 18 { "3.2" } else { "3.0" };
    assert_eq!(client.connection_info().unwrap().protocol_version, expected);
}

/// The kernel shows that the keepalive timer of the connection runs.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn keepalives_are_on_by_default() {
    let timer = |port: u16| {
        let local = format!(":{port:04X} ");
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let server = format!(":{:04X} ", cluster().port());
        // sl local_address rem_address st tx:rx tr:tm->when: timer 2 is keepalive.
        let line = table.lines().find(|l| {
            let fields: Vec<_> = l.split_whitespace().collect();
            fields.len() > 5
                && format!("{} ", fields[1]).ends_with(&local)
                && format!("{} ", fields[2]).ends_with(&server)
        });
        line.unwrap().split_whitespace().nth(5).unwrap().split(':').next().unwrap().to_owned()
    };
    let admin = admin().await;
    for (config, expected) in [
        (config(), "02"),
        (
            config()
                .keepalive_idle(Duration::from_secs(60))
                .keepalive_interval(Duration::from_secs(5))
                .keepalive_count(3)
                .tcp_user_timeout(Duration::from_secs(20)),
            "02",
        ),
        (config().keepalive(false), "00"),
    ] {
        let client = connect(config).await;
        client.ping().await.unwrap();
        let pid = i32::try_from(client.backend_pid().unwrap()).unwrap();
        let port: i32 = admin
            .query_one("select client_port from pg_stat_activity where pid = $1", &[&pid])
            .await
            .unwrap()
            .get(0);
        let port = u16::try_from(port).unwrap();
        eventually("only that timer runs", async || timer(port) == expected).await;
    }
}

/// A host that has lost its power acknowledges nothing more. Keepalive probes without an answer end
/// a stream that waits for rows; `tcp_user_timeout` ends a session that sends. The query is not
/// sent again, because the host may have received it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn keepalives_and_tcp_user_timeout_end_sessions_with_a_dead_host() {
    if !scripted::can_drop_segments() {
        return run_in_network_namespace(
            "session::keepalives_and_tcp_user_timeout_end_sessions_with_a_dead_host",
        );
    }
    let second = Duration::from_secs(1);
    let row = || scripted::begun(&["1"]);
    let cases = [(true, true), (true, false), (false, true), (false, false)];
    let trials = cases.map(async |(in_mid_result, is_set)| {
        let (dies, is_dead) = tokio::sync::oneshot::channel();
        let (read, is_read) = tokio::sync::oneshot::channel();
        let (release, until) = tokio::sync::oneshot::channel();
        let mut dying = scripted::login();
        if in_mid_result {
            dying.extend([Step::ExpectQuery, Step::Send(row())]);
            // After that nothing is sent again: otherwise the client would detect the dead host.
            dying.push(Step::Wait(is_read));
        }
        dying.push(Step::Dead(dies, until));
        let mut other = scripted::login();
        let whole = [row(), scripted::complete(), scripted::ready()].concat();
        other.extend([Step::ExpectQuery, Step::Send(whole)]);
        let server = Scripted::start(vec![dying, other]).await;
        let mut config = ConnectionConfig::builder()
            .host(server.address.ip().to_string())
            .port(server.address.port())
            .user("u")
            .database("d")
            .ssl_mode(SslMode::Disable)
            .cancel_timeout(Duration::from_millis(10));
        config = match (is_set, in_mid_result) {
            (true, true) => {
                config.keepalive_idle(second).keepalive_interval(second).keepalive_count(2)
            }
            (true, false) => config.keepalive_idle(second * 600).tcp_user_timeout(second),
            // Without keepalives there is no tcp_user_timeout either, as in libpq.
            (false, _) => config.keepalive(false).tcp_user_timeout(second),
        };
        let client = connect(config).await;
        // The work of the client until it detects the dead host, if it does.
        let noticed = async {
            if in_mid_result {
                let mut stream = client.query::<u8>("v").execute().await.unwrap();
                assert_eq!(stream.next().await.unwrap().unwrap(), 1);
                read.send(()).unwrap();
                return stream.next().await.unwrap().err();
            }
            is_dead.await.unwrap();
            // The host may have received the query before it died.
            let error = client.query::<u8>("v").fetch_all().await.err();
            assert_eq!(client.query::<u8>("v").fetch_all().await.unwrap(), [1]);
            error
        };
        match (is_set, tokio::time::timeout(second * if is_set { 60 } else { 5 }, noticed).await) {
            (true, Ok(Some(error))) => {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                let text = format!("{error}; {}", reason.unwrap_or_default());
                assert!(text.contains("timed out") && error.is_retriable(), "{text}");
            }
            // Without them the client waits for longer than they would take.
            (false, Err(_)) => {}
            (_, other) => panic!("mid-result: {in_mid_result}, set: {is_set}: {other:?}"),
        }
        let _ = release.send(());
    });
    futures_util::future::join_all(trials).await;
}

/// Runs a test as the root of its own network namespace. Some kernels allow socket filters only
/// there, except to root.
#[cfg(target_os = "linux")]
fn run_in_network_namespace(test: &str) {
    let mut namespace = std::process::Command::new("unshare");
    namespace.args(["--map-root-user", "--net"]);
    namespace.args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
    namespace.arg(std::env::current_exe().unwrap()).args(["--exact", test]);
    let output = namespace.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
}

#[test]
fn invalid_settings_are_errors_of_build() {
    let base = || ConnectionConfig::builder().host("h");
    for (builder, part) in [
        (base().host("i").port(1).port(2).port(3), "port"),
        (base().param("user", "x"), "param"),
        (base().param("", "x"), "param"),
        (base().param("_pq_.x", "x"), "param"),
        (base().param("a", "b\0"), "NUL"),
        (base().user("a\0b"), "user"),
        (base().max_message_size(1), "max_message_size"),
        (base().max_message_size(usize::MAX), "max_message_size"),
        (base().statement_cache_capacity(10_001), "statement_cache_capacity"),
        (base().max_scram_iterations(0), "max_scram_iterations"),
        (base().cancel_timeout(Duration::ZERO), "cancel_timeout"),
        (base().read_timeout(Duration::ZERO), "read_timeout"),
        (base().require_auth("md5,!none"), "require_auth"),
        (base().ssl_negotiation(fraiseql_wire::SslNegotiation::Direct), "sslnegotiation"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config);
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// Services run futures in tasks that move between threads.
#[test]
fn every_future_is_send() {
    fn send<T: Send>(_: T) {}
    let client = FraiseClient::new(config().build().unwrap());
    send(FraiseClient::connect(""));
    send(client.ping());
    let query = || client.query::<Value>("v");
    send(query().execute());
    send(query().fetch_all());
    send(query().fetch_one());
    send(query().fetch_optional());
    send(query().count());
    send(query().exists());
    send(query().explain(false));
    send(client.cancel_token().cancel());
    send(client.close());
}

/// An unexpected answer would be taken for the answer to the next query.
#[tokio::test]
async fn connection_with_unread_data_is_not_reused() {
    let mut first = scripted::login();
    first.push(Step::ExpectQuery);
    first.push(Step::Send([scripted::answer(&["1"]), scripted::answer(&["13"])].concat()));
    first.push(Step::Silence);
    let mut second = scripted::login();
    second.push(Step::ExpectQuery);
    second.push(Step::Send(scripted::answer(&["2"])));
    let server = Scripted::start(vec![first, second]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    for expected in [1, 2] {
        let stream = client.query::<u8>("v").execute().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [expected]);
    }
    drop(client);
    server.done().await;
}

/// The last client encoding that a server reports must be UTF-8, however it spells that: in any
/// other one, it would silently compare with other values than the ones that were bound.
#[tokio::test]
async fn login_with_another_client_encoding_fails() {
    let login = |reports: &[(&str, &str)]| {
        let mut bytes = scripted::auth_ok();
        for (name, value) in reports {
            bytes.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
        }
        bytes.extend(message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]));
        bytes.extend(scripted::ready());
        vec![Step::ExpectStartup, Step::Send(bytes), Step::Silence]
    };
    let (long, name) = ("LATIN1".repeat(2000), "client_encoding");
    let many: Vec<_> = (0..300).map(|i| format!("p{i}")).collect();
    let mut many: Vec<_> = many.iter().map(|name| (name.as_str(), "on")).collect();
    many.push((name, "LATIN1"));
    let cases: &[(&[(&str, &str)], bool)] = &[
        (&[], true),
        (&[(name, "UTF8")], true),
        (&[(name, "UTF-8")], true),
        (&[(name, "utf8")], true),
        (&[(name, "UNICODE")], true),
        // From the pooler's own connection, then from the client's.
        (&[(name, "SQL_ASCII"), (name, "UTF8")], true),
        (&[("server_encoding", "LATIN1")], true),
        (&[(name, "LATIN1")], false),
        (&[(name, "SQL_ASCII")], false),
        (&[(name, "UTF8"), (name, "WIN1252")], false),
        (&[("Client_Encoding", "LATIN1")], false),
        (&[(name, "UTF16")], false),
        (&[(name, "UTF8\u{202e}LATIN1")], false),
        (&[(name, "")], false),
        (&[(name, &long)], false),
        (&many, false),
    ];
    for (reports, accepted) in cases {
        let server = Scripted::start(vec![login(reports)]).await;
        let connected = FraiseClient::connect(&server.url()).await;
        match (connected, accepted) {
            (Ok(_), true) => {}
            (Err(error), false) => {
                let text = error.to_string();
                assert!(text.contains("client_encoding") && text.len() < 1000, "{text}");
                assert!(!text.contains('\u{202e}'), "{text}");
                assert!(!error.is_retriable(), "{error:?}");
            }
            (connected, _) => panic!("{reports:?}: {connected:?}"),
        }
        server.done().await;
    }
}

/// If a server reports another encoding at any point of a session, its connection is not used
/// again. Rows already received are delivered first.
#[tokio::test]
async fn client_encoding_changed_in_a_session_is_an_error_and_closes_the_connection() {
    let changed = message(b'S', b"client_encoding\0LATIN1\0");
    let back = message(b'S', b"client_encoding\0UTF8\0");
    let answer = |rows: &[&str]| {
        let rows = rows.iter().flat_map(|value| scripted::row(value));
        let end = [scripted::complete(), scripted::ready()].concat();
        [scripted::begin_json(), rows.collect(), end].concat()
    };
    let failed =
        [scripted::error("ERROR", "22012", "division by zero"), scripted::ready()].concat();
    let whole = answer(&["1", "2"]);
    let before_rows = scripted::begin_json().len();
    let before_end = whole.len() - scripted::ready().len();
    let before_complete = before_end - scripted::complete().len();
    let insert = |at: usize, what: &[u8]| [&whole[..at], what, &whole[at..]].concat();
    for (case, bytes, rows) in [
        ("before the query", insert(0, &changed), 0),
        ("before the rows", insert(before_rows, &changed), 0),
        ("before the end, as Postgres 13 does", insert(before_complete, &changed), 2),
        ("before ReadyForQuery, as Postgres 14 does", insert(before_end, &changed), 2),
        ("and back", insert(before_end, &[&changed[..], &back].concat()), 2),
        ("in front of an error", [&changed[..], &failed].concat(), 0),
    ] {
        let mut first = scripted::login();
        first.extend([Step::ExpectQuery, Step::Send(bytes), Step::ExpectEnd]);
        let mut second = scripted::login();
        second.extend([Step::ExpectQuery, Step::Send(answer(&["3"]))]);
        let server = Scripted::start(vec![first, second]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let (mut received, mut error) = (0, None);
        match client.query::<u8>("v").execute().await {
            Ok(mut stream) => {
                while let Some(row) = stream.next().await {
                    match row {
                        Ok(_) => received += 1,
                        Err(e) => error = Some(e),
                    }
                }
            }
            Err(e) => error = Some(e),
        }
        let error = error.unwrap_or_else(|| panic!("{case}: no error"));
        assert_eq!(error.category(), ErrorCategory::Protocol, "{case}: {error}");
        assert!(error.to_string().contains("LATIN1"), "{case}: {error}");
        assert_eq!(received, rows, "{case}");
        let stream = client.query::<u8>("v").execute().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [3], "{case}");
        drop(client);
        server.done().await;
    }
}

/// Also when no rows are read: after the end of a query, while a cancelled query is drained, and in
/// a round trip.
#[tokio::test]
async fn client_encoding_changed_outside_of_rows_closes_the_connection() {
    let changed = message(b'S', b"client_encoding\0LATIN1\0");
    let last = || {
        let mut last = scripted::login();
        last.extend([Step::ExpectQuery, Step::Send(scripted::answer(&["1"]))]);
        last
    };
    let expect_row = async |client: &FraiseClient| {
        let stream = client.query::<u8>("v").execute().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [1]);
    };

    // With the last bytes of an answer.
    let mut first = scripted::login();
    let answer = [scripted::answer(&["1"]), changed.clone()].concat();
    first.extend([Step::ExpectQuery, Step::Send(answer), Step::ExpectEnd]);
    let server = Scripted::start(vec![first, last()]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    expect_row(&client).await;
    expect_row(&client).await;
    drop(client);
    server.done().await;

    // In the remaining messages of a cancelled query.
    let (cancelled, cancel) = tokio::sync::oneshot::channel();
    let mut first = scripted::login();
    first.extend([Step::ExpectQuery, Step::Send(scripted::begun(&["1"])), Step::Wait(cancel)]);
    let stopped = scripted::error("ERROR", "57014", "canceling statement due to user request");
    first.push(Step::Send([&changed[..], &stopped, &scripted::ready()].concat()));
    first.push(Step::ExpectEnd);
    let request = vec![Step::Expect(scripted::cancel_request()), Step::Signal(cancelled)];
    let server = Scripted::start(vec![first, request, last()]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<u8>("v").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    drop(stream);
    expect_row(&client).await;
    drop(client);
    server.done().await;

    // In the answer to a ping.
    let mut first = scripted::login();
    first.push(Step::Expect(b"Q\0\0\0\x05\0".to_vec()));
    first.push(Step::Send([message(b'I', b""), changed.clone(), scripted::ready()].concat()));
    first.push(Step::ExpectEnd);
    let server = Scripted::start(vec![first, last()]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let error = client.ping().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Protocol, "{error}");
    expect_row(&client).await;
    drop(client);
    server.done().await;
}

/// A function on a real server changes the encoding. The query that ran it fails, and the next one
/// compares in UTF-8 again.
#[tokio::test]
async fn view_that_changes_client_encoding_closes_the_connection() {
    sql("create view v_green as select to_jsonb('grün'::text) as data;
         create function set_latin() returns text volatile language sql as
             $$ select set_config('client_encoding', 'LATIN1', false) $$;
         create view v_latin as
             select to_jsonb(i) as data from (select set_latin(), generate_series(1, 3) i) as x;
         create view v_latin_endless as
             select data from (select set_latin(), data from v_endless) as x")
    .await;
    let client = client().await;
    let find = async || {
        let query = client.query::<String>("v_green").where_sql("data #>> '{}' = $1").bind("grün");
        query.fetch_all().await.unwrap()
    };
    assert_eq!(find().await, ["grün"]);
    let backend = client.backend_pid();
    // Before 14, the server reports a setting at once, not at the end of the query.
    if cluster().version() >= 14 {
        let mut stream = client.query::<RawJson>("v_latin_endless").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        // A cancelled query reverts its settings, so the connection can be used again.
        assert_eq!(find().await, ["grün"]);
        assert_eq!(client.backend_pid(), backend);
    }
    let error = outcome(&client, "v_latin").await.expect("an error");
    assert!(error.to_string().contains("client_encoding to \"LATIN1\""), "{error}");
    assert_eq!(find().await, ["grün"]);
    assert_ne!(client.backend_pid(), backend);
}

/// Keys of filters are literals in SQL. They have the same meaning if backslashes are escapes,
/// which the server, a role or another client of a pooler may have set.
#[tokio::test]
async fn filter_keys_do_not_depend_on_standard_conforming_strings() {
    sql(r#"create view v_backslash as select data::jsonb from (values
             ('{"a\\b": "both", "it''s": "quoted", "a\b": "control"}')) x(data)"#)
    .await;
    // Postgres 19 has no other setting than on.
    let settings = if cluster().version() < 19 { &["on", "off"][..] } else { &["on"] };
    for setting in settings {
        let client = connect(config().param("standard_conforming_strings", *setting)).await;
        assert_eq!(client.parameter("standard_conforming_strings").as_deref(), Some(*setting));
        for (key, value) in [(r"a\b", "both"), ("it's", "quoted"), ("a\u{8}", "control")] {
            let found = client
                .query::<Value>("v_backslash")
                .filter(Field::path([key]).eq(value))
                .order_by_field(Field::path([key]).asc())
                .fetch_all()
                .await
                .unwrap();
            assert_eq!(found.len(), 1, "{key:?} with {setting}");
        }
    }
}

/// A transaction that this client has not begun is foreign: its snapshot and its end are unknown.
#[tokio::test]
async fn connection_left_in_a_transaction_is_not_reused() {
    for status in [b"T", b"E"] {
        let mut first = scripted::login();
        let answer =
            [scripted::begun(&["1"]), scripted::complete(), message(b'Z', status)].concat();
        first.extend([Step::ExpectQuery, Step::Send(answer), Step::ExpectEnd]);
        let mut second = scripted::login();
        second.extend([Step::ExpectQuery, Step::Send(scripted::answer(&["1"]))]);
        let login = [scripted::auth_ok(), message(b'Z', status)].concat();
        let third = vec![Step::ExpectStartup, Step::Send(login), Step::ExpectEnd];
        let server = Scripted::start(vec![first, second, third]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let mut stream = client.query::<u8>("v").execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Protocol, "{error}");
        drop(stream);
        assert_eq!(client.query::<u8>("v").fetch_all().await.unwrap(), [1]);
        // A session that begins in a transaction is not used either.
        FraiseClient::connect(&server.url()).await.unwrap_err();
        drop(client);
        server.done().await;
    }
}

/// A real pooler restores the encoding of each client. The client that changed it gets the error;
/// another client on the same server connection is not affected.
#[tokio::test]
async fn client_encoding_of_another_pooler_client_has_no_effect() {
    sql("create view v_green_pooled as select to_jsonb('grün'::text) as data;
         create function set_latin_pooled() returns text volatile language sql as
             $$ select set_config('client_encoding', 'LATIN1', false) $$;
         create view v_latin_pooled as select to_jsonb(set_latin_pooled()) as data")
    .await;
    let pooler = Daemon::pgbouncer_in("transaction", cluster().port());
    for _ in 0..8 {
        let (one, other) =
            (connect(config_at(pooler.port)).await, connect(config_at(pooler.port)).await);
        let error = outcome(&one, "v_latin_pooled").await.expect("an error");
        assert!(error.to_string().contains("LATIN1"), "{error}");
        for client in [&one, &other] {
            let query = client.query::<String>("v_green_pooled");
            let query = query.where_sql("data #>> '{}' = $1").bind("grün");
            assert_eq!(query.fetch_all().await.unwrap(), ["grün"]);
        }
    }
}

/// TRACE events show each protocol message except rows: its direction, name and size, but no
/// contents.
#[tokio::test]
async fn messages_except_rows_are_trace_events_without_contents() {
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    let answer = [
        scripted::begin_json(),
        scripted::row("\"planted-row\""),
        scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "planted-notice")]),
        scripted::complete(),
        scripted::ready(),
    ];
    script.push(Step::Send(answer.concat()));
    let server = Scripted::start(vec![script]).await;
    let (events, _listening) = Events::listen();
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    client.on_notice(|_| {});
    let query = client.query::<String>("v").where_sql("data::text <> $1").bind("planted-value");
    assert_eq!(query.fetch_all().await.unwrap(), ["planted-row"]);
    client.close().await.unwrap();

    let sql = "SELECT \"data\" FROM \"v\" WHERE (data::text <> $1)";
    let value = "planted-value";
    let startup = events.with("StartupMessage").join("");
    let startup: usize = startup.rsplit('=').next().unwrap().parse().unwrap();
    let expected = [
        ("sent", "StartupMessage", startup),
        ("received", "Authentication", 9),
        ("received", "BackendKeyData", 13),
        ("received", "ReadyForQuery", 6),
        ("sent", "Parse", 5 + 1 + sql.len() + 1 + 2),
        ("sent", "Bind", 5 + 1 + 1 + 2 + 2 + 4 + value.len() + 4),
        ("sent", "Describe", 7),
        ("sent", "Execute", 10),
        ("sent", "Sync", 5),
        ("received", "ParseComplete", 5),
        ("received", "BindComplete", 5),
        ("received", "RowDescription", scripted::begin_json().len() - 10),
        ("received", "NoticeResponse", answer[2].len()),
        ("received", "CommandComplete", scripted::complete().len()),
        ("received", "ReadyForQuery", 6),
        ("sent", "Terminate", 5),
    ];
    let expected = expected.map(|(direction, name, bytes)| {
        format!(
            "TRACE message=protocol message direction={direction:?} name={name:?} bytes={bytes}"
        )
    });
    assert_eq!(events.with("protocol message"), expected);
    assert!(startup > "user\0u\0database\0d\0".len() + 8);
    assert!(events.with("planted").is_empty(), "{:?}", events.with(""));
}
