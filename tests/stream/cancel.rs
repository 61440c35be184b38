//! Cancelling at every step of a query, and queries whose connection is lost.

use std::{
    env,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{
    admin, backend_state,
    certificates::{Authority, write},
    client, cluster,
    cluster::{Cluster, REQUIRE_PASSWORD, Setup, superuser},
    config_at, eventually,
    proxy::Proxy,
    scripted::{self, Scripted, Step},
    sql, terminate,
};
use fraiseql_wire::{
    ConnectionConfig, ConnectionConfigBuilder, Error, FraiseClient, RawJson, Result, RetryPolicy,
    SslMode, TimeoutPhase, field,
};
use futures_util::{FutureExt, StreamExt, poll};
use serde_json::Value;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    time::timeout,
};

/// Longer than any step that ends without being cancelled.
const LONG: Duration = Duration::from_secs(30);

fn at(address: SocketAddr) -> ConnectionConfigBuilder {
    config_at(address.port()).ssl_mode(SslMode::Disable)
}

fn client_at(address: SocketAddr) -> FraiseClient {
    FraiseClient::new(at(address).build().unwrap())
}

async fn within<T>(step: impl Future<Output = T>) -> T {
    timeout(LONG, step).await.expect("it ends by itself")
}

fn one_row() -> Vec<u8> {
    scripted::answer(&["1"])
}

fn cancelled() -> Vec<u8> {
    [
        scripted::error("ERROR", "57014", "canceling statement due to user request"),
        scripted::ready(),
    ]
    .concat()
}

/// Runs a query to its end.
async fn outcome(client: &FraiseClient, view: &str) -> Result<Vec<Value>> {
    client.query(view).fetch_all().await
}

#[track_caller]
fn assert_cancelled<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
}

// ---- Cancel tokens ----

/// A token cancels each kind of query, and a ping, while the client logs in. Nothing is sent after
/// that.
#[tokio::test]
async fn cancel_token_cancels_queries_that_wait_for_the_login() {
    for step in 0..7 {
        let (reached, arrived) = oneshot::channel();
        let login = vec![Step::ExpectStartup, Step::Signal(reached), Step::ExpectEnd];
        let server = Scripted::start(vec![login]).await;
        let client = client_at(server.address);
        let token = client.cancel_token();
        let query = || client.query::<Value>("v");
        let run = async {
            match step {
                0 => query().execute().await.map(drop),
                1 => query().fetch_all().await.map(drop),
                2 => query().fetch_optional().await.map(drop),
                3 => query().count().await.map(drop),
                4 => query().exists().await.map(drop),
                5 => query().explain(false).await.map(drop),
                _ => client.ping().await,
            }
        };
        let cancel = async {
            arrived.await.unwrap();
            token.cancel().await.unwrap();
        };
        let (ended, ()) = within(async { tokio::join!(run, cancel) }).await;
        assert_cancelled(ended);
        within(server.done()).await;
    }
}

/// `cancel()` resolves even if the query is not polled. When it is polled again, it sends nothing.
#[tokio::test]
async fn cancel_token_cancels_a_query_that_is_not_polled() {
    // While it connects.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let client = client_at(listener.local_addr().unwrap());
    let mut query = Box::pin(client.query::<Value>("v").execute());
    assert!(poll!(query.as_mut()).is_pending());
    within(client.cancel_token().cancel()).await.unwrap();
    assert_cancelled(query.await.map(drop));

    // While it waits for the answer: cancel requests stop it on the server.
    let (requested, answers) = oneshot::channel();
    let mut script = scripted::login();
    script.extend([Step::ExpectQuery, Step::Wait(answers), Step::Send(cancelled())]);
    script.push(Step::ExpectEnd);
    let request = || vec![Step::Expect(scripted::cancel_request())];
    let mut first = request();
    first.push(Step::Signal(requested));
    let server = Scripted::start(vec![script, first, request(), request(), request()]).await;
    let client =
        FraiseClient::connect_with_config(at(server.address).build().unwrap()).await.unwrap();
    let mut query = Box::pin(client.query::<Value>("v").execute());
    assert!(poll!(query.as_mut()).is_pending());
    within(client.cancel_token().cancel()).await.unwrap();
    assert_cancelled(query.await.map(drop));
    // The answer to the cancelled query is read, and the connection kept.
    while client.is_busy() {
        tokio::task::yield_now().await;
    }
    assert!(client.is_connected());
    drop(client);
    within(server.done()).await;
}

/// A query that waits for the cleanup of an earlier stream is cancelled without being sent.
#[tokio::test]
async fn cancel_token_cancels_a_query_that_waits_for_a_cleanup() {
    let (cancel_seen, seen) = oneshot::channel();
    let (go, wait) = oneshot::channel();
    let mut first = scripted::login();
    first.extend([
        Step::ExpectQuery,
        Step::Send(scripted::begun(&["1"])),
        Step::Wait(wait),
        Step::Send(cancelled()),
        Step::ExpectQuery,
        Step::Send(one_row()),
    ]);
    let request = vec![Step::Expect(scripted::cancel_request()), Step::Signal(cancel_seen)];
    let server = Scripted::start(vec![first, request]).await;
    let config = at(server.address).cancel_timeout(LONG).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let mut stream = client.query::<Value>("v").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    seen.await.unwrap();
    let mut second = Box::pin(client.query::<Value>("v").execute());
    assert!(poll!(second.as_mut()).is_pending());
    let token = client.cancel_token();
    let mut cancel = Box::pin(token.cancel());
    let _ = poll!(cancel.as_mut());
    assert_cancelled(within(second).await.map(drop));
    go.send(()).unwrap();
    within(cancel).await.unwrap();
    // The next one is not affected.
    assert_eq!(outcome(&client, "v").await.unwrap(), [1]);
    drop(client);
    within(server.done()).await;
}

/// While the client waits to connect again.
#[tokio::test]
async fn cancel_token_cancels_a_query_that_waits_to_reconnect() {
    let mut first = scripted::login();
    first.push(Step::Close);
    let server = Scripted::start(vec![first]).await;
    let address = server.address;
    let retry = RetryPolicy::default().max_attempts(3).initial_backoff(LONG * 100);
    let config = at(address).retry(retry.max_backoff(LONG * 100)).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    within(server.done()).await;
    let mut query = Box::pin(client.query::<Value>("v").execute());
    // Refused, and then it pauses for most of an hour.
    assert!(timeout(Duration::from_millis(300), query.as_mut()).await.is_err());
    within(client.cancel_token().cancel()).await.unwrap();
    assert_cancelled(within(query).await.map(drop));
}

/// While a stream is resumed.
#[tokio::test]
async fn cancel_token_cancels_a_stream_that_waits_to_resume() {
    let mut first = scripted::login();
    let row = scripted::row(r#"{"id":1}"#);
    first.extend([Step::ExpectQuery, Step::Send([scripted::begin_json(), row].concat())]);
    let server = Scripted::start(vec![first]).await;
    let retry = RetryPolicy::default().initial_backoff(LONG * 100).max_backoff(LONG * 100);
    let config = at(server.address).retry(retry).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let query = client.query::<Value>("v").resume_by(field("id"));
    let mut stream = within(query.execute()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    within(server.done()).await;
    assert!(timeout(Duration::from_millis(300), stream.next()).await.is_err());
    within(client.cancel_token().cancel()).await.unwrap();
    assert_cancelled(within(stream.next()).await.unwrap());
    assert!(stream.next().await.is_none() && !client.is_busy());
}

/// A server ignores a request that comes before it has begun, and a balancer may send it elsewhere:
/// it is repeated until the query ends, and `cancel()` resolves then.
#[tokio::test]
async fn cancel_token_repeats_the_request_until_the_query_ends() {
    let (go, wait) = oneshot::channel();
    let (begun, runs) = oneshot::channel();
    let mut session = scripted::login();
    session.extend([
        Step::ExpectQuery,
        Step::Signal(begun),
        Step::Wait(wait),
        Step::Send(cancelled()),
    ]);
    let request = || vec![Step::Expect(scripted::cancel_request())];
    let mut last = request();
    last.push(Step::Signal(go));
    let server = Scripted::start(vec![session, request(), request(), last]).await;
    let client = client_at(server.address);
    let token = client.cancel_token();
    let query = async { outcome(&client, "v").await };
    let cancel = async {
        runs.await.unwrap();
        token.cancel().await.unwrap();
    };
    let (ended, ()) = within(async { tokio::join!(query, cancel) }).await;
    assert_cancelled(ended);
    drop(client);
    within(server.done()).await;
}

/// However the token and the start of a query fall together, the query ends as cancelled, and no
/// backend works on it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_token_is_never_lost_while_a_query_starts() {
    let admin = admin().await;
    let client = Arc::new(client().await);
    for round in 0..200 {
        if round % 10 == 0 {
            // Then it connects first.
            if let Some(pid) = client.backend_pid() {
                terminate(&admin, pid).await;
            }
        }
        let starting = Arc::clone(&client);
        let query = tokio::spawn(async move { outcome(&starting, "v_asleep").await });
        let token = client.cancel_token();
        for _ in 0..round % 40 {
            tokio::task::yield_now().await;
        }
        // It is in progress from its first poll on.
        eventually("it has begun", async || client.is_busy()).await;
        let cancelled = timeout(LONG, token.cancel()).await;
        cancelled.unwrap_or_else(|_| panic!("round {round}: the token hangs")).unwrap();
        let ended = timeout(LONG, query).await;
        let ended = ended.unwrap_or_else(|_| panic!("round {round}: {client:?}"));
        assert_cancelled(ended.unwrap());
        // If the query's task does not run for 350 ms, as on a very busy machine, the token sends
        // its requests and does not wait for the cleanup.
        eventually("the cleanup has ended", async || !client.is_busy()).await;
        if let Some(pid) = client.backend_pid() {
            let state = backend_state(&admin, pid).await;
            assert_ne!(state.as_deref(), Some("active"), "round {round}");
        }
    }
}

/// A query is stopped on the server even if its stream is not read or is paused.
#[tokio::test]
async fn cancel_token_cancels_streams_that_are_not_read() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    for paused in [false, true] {
        let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
        if paused {
            stream.pause().await.unwrap();
        } else {
            // The server blocks in send.
            eventually("memory is full", async || stream.stats().estimated_memory > 900 << 10)
                .await;
        }
        within(client.cancel_token().cancel()).await.unwrap();
        assert_eq!(backend_state(&admin, pid).await.as_deref(), Some("idle"));
        stream.resume().await.unwrap();
        let received = stream.stats().total_rows_received;
        let mut rows = 0;
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) => rows += 1,
                Err(e) => break e,
            }
        };
        assert_cancelled::<()>(Err(error));
        assert_eq!(rows, received, "what had been received is delivered");
        assert!(stream.next().await.is_none());
    }
    assert_eq!(outcome(&client, "v_one").await.unwrap(), [1]);
    assert_eq!(client.backend_pid(), Some(pid));
}

/// Every caller learns that the query could not be stopped, not only the first.
#[tokio::test]
async fn cancel_reports_to_every_caller_why_a_query_could_not_be_stopped() {
    let mut session = scripted::login();
    session.extend([Step::ExpectQuery, Step::Send(scripted::begun(&["1"])), Step::Silence]);
    // It accepts no cancel requests: it no longer listens.
    let server = Scripted::start(vec![session]).await;
    let client = client_at(server.address);
    let mut stream = client.query::<Value>("v").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let (token, control) = (client.cancel_token(), stream.control());
    let (one, two, three) =
        within(async { tokio::join!(token.cancel(), token.cancel(), control.cancel()) }).await;
    for result in [one, two, three, control.cancel().await, stream.cancel().await] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Connection { .. }), "{error:?}");
        assert!(error.to_string().contains("Connection refused"), "{error}");
    }
    within(server.done()).await;
}

// ---- A connection that is lost ----

/// A proxy that ends all its connections on a signal, and accepts further ones.
async fn cutting_proxy(servers: Vec<SocketAddr>) -> (SocketAddr, watch::Sender<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, _) = watch::channel(());
    let cuts = cut.clone();
    tokio::spawn(async move {
        for server in servers.iter().cycle() {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut cut = cuts.subscribe();
            let server = *server;
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    // The server's side stays open, as with a NAT that forgets a connection.
                    _ = cut.changed() => {
                        drop(client);
                        tokio::time::sleep(LONG).await;
                    }
                }
            });
        }
    });
    (address, cut)
}

fn real() -> SocketAddr {
    ([127, 0, 0, 1], cluster().port()).into()
}

async fn sleepers(admin: &tokio_postgres::Client, name: &str) -> i64 {
    let query = "select count(*) from pg_stat_activity where application_name = $1
                 and state = 'active'";
    admin.query_one(query, &[&name]).await.unwrap().get(0)
}

/// A query whose connection is lost before anything was answered may have begun: it is not sent
/// again, and what runs on the server is cancelled.
#[tokio::test]
async fn query_lost_before_its_first_row_is_not_sent_again() {
    let admin = admin().await;
    let (address, cut) = cutting_proxy(vec![real()]).await;
    let config = at(address).database("postgres").application_name("lost").build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    assert_eq!(outcome(&client, "v_one").await.unwrap(), [1]);
    let query = async { outcome(&client, "v_asleep").await };
    let lose = async {
        eventually("it runs", async || sleepers(&admin, "lost").await == 1).await;
        cut.send(()).unwrap();
    };
    let (ended, ()) = within(async { tokio::join!(query, lose) }).await;
    assert!(matches!(ended, Err(Error::ConnectionClosed { .. })), "{ended:?}");
    eventually("it was cancelled", async || sleepers(&admin, "lost").await == 0).await;
    assert_eq!(outcome(&client, "v_one").await.unwrap(), [1]);
}

/// A backend that is terminated while it works on a query: that is the error, and not another run.
#[tokio::test]
async fn query_terminated_before_its_first_row_is_not_sent_again() {
    let admin = admin().await;
    let config = at(real()).database("postgres").application_name("terminated").build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    assert_eq!(outcome(&client, "v_one").await.unwrap(), [1]);
    let pid = client.backend_pid().unwrap();
    let query = async { outcome(&client, "v_asleep").await };
    let terminate = async {
        eventually("it runs", async || sleepers(&admin, "terminated").await == 1).await;
        terminate(&admin, pid).await;
    };
    let (ended, ()) = within(async { tokio::join!(query, terminate) }).await;
    let error = ended.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&fraiseql_wire::sqlstate::ADMIN_SHUTDOWN), "{error:?}");
    assert_eq!(sleepers(&admin, "terminated").await, 0);
}

/// A session that the server has ended while it was idle is replaced: when that has arrived before
/// the query, and when the query has crossed it on the way and was not read.
#[tokio::test]
async fn session_ended_while_idle_is_replaced() {
    let fatal = |code| scripted::error("FATAL", code, "it ends");
    let warning = scripted::fields(
        b'N',
        &[(b'S', "WARNING"), (b'V', "WARNING"), (b'C', "57P02"), (b'M', "another crashed")],
    );
    // Messages that arrive unread after the query was sent.
    for late in [None, Some(fatal("57P01")), Some(fatal("57P05")), Some(warning)] {
        let mut first = scripted::login();
        first.extend([Step::ExpectQuery, Step::Send(one_row())]);
        let (go, wait) = oneshot::channel();
        match late {
            None => first.extend([Step::Send(fatal("57P01")), Step::Close]),
            // The socket is closed with the query in it, which resets the connection.
            Some(last) => first.extend([Step::Wait(wait), Step::Send(last), Step::Reset]),
        }
        let mut second = scripted::login();
        second.extend([Step::ExpectQuery, Step::Send(one_row())]);
        let server = Scripted::start(vec![first, second]).await;
        let client = client_at(server.address);
        assert_eq!(outcome(&client, "v").await.unwrap(), [1]);
        let mut query = Box::pin(outcome(&client, "v"));
        let _ = poll!(query.as_mut());
        tokio::task::yield_now().await;
        let _ = go.send(());
        assert_eq!(within(query).await.unwrap(), [1]);
        drop(client);
        within(server.done()).await;
    }
}

/// A ping that the server answers with an error does not cost the connection.
#[tokio::test]
async fn ping_keeps_a_connection_on_which_the_server_reported_an_error() {
    let mut session = scripted::login();
    let busy = [scripted::error("ERROR", "53200", "out of memory"), scripted::ready()].concat();
    session.extend([
        Step::Expect(b"Q\0\0\0\x05\0".to_vec()),
        Step::Send(busy),
        Step::Expect(b"Q\0\0\0\x05\0".to_vec()),
        Step::Send([scripted::message(b'I', b""), scripted::ready()].concat()),
    ]);
    let server = Scripted::start(vec![session]).await;
    let client =
        FraiseClient::connect_with_config(at(server.address).build().unwrap()).await.unwrap();
    assert!(matches!(client.ping().await, Err(Error::Server(_))));
    client.ping().await.unwrap();
    drop(client);
    within(server.done()).await;
}

/// A ping that fails without a ReadyForQuery closes the connection. Otherwise a late ReadyForQuery
/// would be taken for the answer to the next query.
#[tokio::test]
async fn ping_without_ready_for_query_closes_the_connection() {
    let ping = || Step::Expect(b"Q\0\0\0\x05\0".to_vec());
    let mut first = scripted::login();
    let error = scripted::error("ERROR", "53200", "out of memory");
    first.extend([ping(), Step::Send(error), Step::Silence]);
    let mut second = scripted::login();
    let answer = [scripted::message(b'I', b""), scripted::ready()].concat();
    second.extend([ping(), Step::Send(answer)]);
    let server = Scripted::start(vec![first, second]).await;
    let config = at(server.address).read_timeout(Duration::from_millis(500));
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    assert!(matches!(within(client.ping()).await, Err(Error::Timeout { .. })));
    within(client.ping()).await.unwrap();
}

/// `statement_timeout` has the SQLSTATE of a cancelled query. It is not caused by a late cancel
/// request of an earlier query, so the query is not run again.
#[tokio::test]
async fn query_ended_by_statement_timeout_is_not_run_again() {
    sql("create view v_numbers as select to_jsonb(generate_series(1, 100000000)) as data;
         create sequence s_runs;
         create view v_runs as select to_jsonb(n) as data
         from (select nextval('s_runs') as n offset 0) one, lateral pg_sleep(60 + 0 * n)")
    .await;
    let config = at(real()).database("postgres").statement_timeout(Duration::from_millis(2500));
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    let mut stream = client.query::<Value>("v_numbers").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    drop(stream);
    let error = within(outcome(&client, "v_runs")).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&fraiseql_wire::sqlstate::QUERY_CANCELED), "{error}");
    let runs = admin().await.query_one("select last_value from s_runs", &[]).await.unwrap();
    assert_eq!(runs.get::<_, i64>(0), 1);
}

/// A proxy that delivers a cancel request after it has closed the request's connection: the query
/// it hits is run again, once, if it has had no row.
#[tokio::test]
async fn query_hit_by_a_late_cancel_of_an_earlier_one_is_run_again_once() {
    // How much of its answer the second query receives before it is cancelled.
    let (nothing, columns) = (Vec::new(), scripted::begin_json());
    let row = scripted::begun(&["1"]);
    let hits = [
        (&nothing, 1, true),
        (&nothing, 2, false),
        (&columns, 1, true),
        (&columns, 2, false),
        (&row, 1, false),
    ];
    for (begun, again, comes_again) in hits {
        let first = scripted::begun(&["1"]);
        let mut session = scripted::login();
        let (go, wait) = oneshot::channel();
        session.extend([
            Step::ExpectQuery,
            Step::Send(first.clone()),
            Step::Wait(wait),
            Step::Send(cancelled()),
        ]);
        // The second query is hit, and perhaps its second run.
        for _ in 0..again {
            session.push(Step::ExpectQuery);
            session.push(Step::Send([begun.clone(), cancelled()].concat()));
        }
        if comes_again {
            session.extend([Step::ExpectQuery, Step::Send(one_row())]);
        }
        let request = vec![Step::Expect(scripted::cancel_request()), Step::Signal(go)];
        let server = Scripted::start(vec![session, request]).await;
        let client = client_at(server.address);
        let mut stream = client.query::<Value>("v").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream.cancel().await.unwrap();
        let ended = within(outcome(&client, "v")).await;
        match comes_again {
            true => assert_eq!(ended.unwrap(), [1]),
            false => {
                let error = ended.unwrap_err();
                assert_eq!(error.sqlstate(), Some(&fraiseql_wire::sqlstate::QUERY_CANCELED));
                assert!(error.to_string().contains("earlier query"), "{error}");
            }
        }
        drop((stream, client));
        within(server.done()).await;
    }
}

/// The rows arrive before the error: in one read, or in more than fit into the read buffer.
#[tokio::test]
async fn query_hit_by_a_late_cancel_after_its_rows_is_not_run_again() {
    let large = format!("\"{}\"", "x".repeat(16 << 10));
    for rows in [vec!["1"], vec![large.as_str(); 20]] {
        let (go, wait) = oneshot::channel();
        let (send_rows, rows_due) = oneshot::channel();
        let (rows_are_read, error_due) = oneshot::channel();
        let mut session = scripted::login();
        session.extend([
            Step::ExpectQuery,
            Step::Send(scripted::begun(&["1"])),
            Step::Wait(wait),
            Step::Send(cancelled()),
            Step::ExpectQuery,
            Step::Send(scripted::begin_json()),
            Step::Wait(rows_due),
            Step::Send(rows.iter().flat_map(|value| scripted::row(value)).collect()),
            Step::Wait(error_due),
            Step::Send(cancelled()),
        ]);
        let request = vec![Step::Expect(scripted::cancel_request()), Step::Signal(go)];
        let server = Scripted::start(vec![session, request]).await;
        let client = client_at(server.address);
        let mut stream = client.query::<Value>("v").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream.cancel().await.unwrap();
        let mut stream = within(client.query::<RawJson>("v").execute()).await.unwrap();
        send_rows.send(()).unwrap();
        for value in &rows {
            assert_eq!(within(stream.next()).await.unwrap().unwrap().as_str(), *value);
        }
        rows_are_read.send(()).unwrap();
        let error = within(stream.next()).await.unwrap().unwrap_err();
        assert_eq!(error.sqlstate(), Some(&fraiseql_wire::sqlstate::QUERY_CANCELED), "{error}");
        drop((stream, client));
        within(server.done()).await;
    }
}

/// The request for rows without the key is hit, after an answer without rows.
#[tokio::test]
async fn request_for_rows_without_the_key_hit_by_a_late_cancel_is_run_again() {
    let (go, wait) = oneshot::channel();
    let mut session = scripted::login();
    session.extend([
        Step::ExpectQuery,
        Step::Send(scripted::begun(&["1"])),
        Step::Wait(wait),
        Step::Send(cancelled()),
        Step::ExpectQuery,
        Step::Send(scripted::answer(&[])),
        Step::ExpectQuery,
        Step::Send([scripted::begin_json(), cancelled()].concat()),
    ]);
    // The text of the request decides, as on a server.
    let text = Box::new(|parse: &[u8]| {
        let is_missing_key = parse.windows(7).any(|part| part == b"IS NULL");
        let rows: &[&str] = if is_missing_key { &["{}"] } else { &[] };
        scripted::answer(rows)
    });
    session.push(Step::Echo(text));
    let request = vec![Step::Expect(scripted::cancel_request()), Step::Signal(go)];
    let server = Scripted::start(vec![session, request]).await;
    let client = client_at(server.address);
    let mut stream = client.query::<Value>("v").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    let query = client.query::<Value>("v").resume_by(field("id")).resume_after("5");
    let error = within(query.fetch_all()).await.unwrap_err();
    assert!(error.to_string().contains("does not have this field"), "{error}");
    drop((stream, client));
    within(server.done()).await;
}

// ---- How a cancel request is sent ----

/// A balancer with two servers gives every other cancel request to the wrong one.
#[tokio::test]
async fn cancel_finds_its_server_through_a_balancer() {
    let other = Scripted::start((0..40).map(|_| vec![Step::Silence]).collect()).await;
    let dead = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let elsewhere = dead.local_addr().unwrap();
    drop(other);
    // It reads the request, and closes: it knows no such session.
    tokio::spawn(async move {
        loop {
            let (socket, _) = dead.accept().await.unwrap();
            socket.readable().await.unwrap();
            let _ = socket.try_read(&mut [0; 16]);
        }
    });
    let admin = admin().await;
    let (address, _cut) = cutting_proxy(vec![real(), elsewhere]).await;
    let config = at(address).database("postgres").build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let pid = client.backend_pid().unwrap();
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    within(client.cancel_token().cancel()).await.unwrap();
    assert_eq!(backend_state(&admin, pid).await.as_deref(), Some("idle"));
}

/// The certificates of both sides are renewed during a session, and then TLS is switched off. A
/// query of the session can be cancelled as long as a new session could be opened.
#[tokio::test]
async fn cancel_uses_renewed_certificates() {
    let (old, new) = (Authority::new("Old"), Authority::new("New"));
    let folder = tempfile::tempdir().unwrap();
    let (server, user) = (old.server("s", &["127.0.0.1"]), old.client("postgres"));
    let cluster = Cluster::start_with(&Setup {
        hba: REQUIRE_PASSWORD,
        // Not `ssl` itself: a setting of this file cannot be changed later.
        settings: "-c ssl_cert_file={folder}/server.crt \
                   -c ssl_key_file={folder}/server.key -c ssl_ca_file={folder}/ca.crt",
        files: &[
            ("server.crt", &server.certificate),
            ("server.key", &server.key),
            ("ca.crt", &old.pem),
        ],
        ..Setup::default()
    })
    .unwrap();
    let renew = |authority: &Authority| {
        let user = authority.client("postgres");
        write(folder.path(), "root.crt", &authority.pem);
        write(folder.path(), "client.crt", &user.certificate);
        write(folder.path(), "client.key", &user.key);
    };
    drop(user);
    renew(&old);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let url = |mode: &str| {
        format!(
            "postgres://{}@127.0.0.1:{}/postgres?sslmode={mode}&sslrootcert={}&sslcert={}&sslkey={}",
            superuser(),
            cluster.port(),
            path("root.crt"),
            path("client.crt"),
            path("client.key")
        )
    };
    let admin = crate::support::admin_at(&cluster.url()).await;
    admin
        .batch_execute(
            "create view v_endless as select to_jsonb(i) as data
             from (select generate_series(1, 2000000000) i) n",
        )
        .await
        .unwrap();
    admin.batch_execute("alter system set ssl = on").await.unwrap();
    cluster.control(&["reload"]);
    eventually("TLS is on", async || FraiseClient::connect(&url("require")).await.is_ok()).await;
    let verified = FraiseClient::connect(&url("verify-full")).await.unwrap();
    let verified_again = FraiseClient::connect(&url("verify-full")).await.unwrap();
    let preferred = FraiseClient::connect(&url("prefer")).await.unwrap();
    assert!(preferred.connection_info().unwrap().tls_version.is_some());
    let proxy = Proxy::to_port(cluster.port()).await;
    let (port, recorded) = (format!(":{}/", cluster.port()), format!(":{}/", proxy.address.port()));
    let recorded = url("verify-full").replace(&port, &recorded);
    let strict = FraiseClient::connect(&recorded).await.unwrap();

    let stop = async |client: &FraiseClient| {
        let pid = client.backend_pid().unwrap();
        let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        within(client.cancel_token().cancel()).await.unwrap();
        assert_eq!(backend_state(&admin, pid).await.as_deref(), Some("idle"));
    };
    stop(&verified).await;

    renew(&new);
    let server = new.server("s", &["127.0.0.1"]);
    cluster.replace("server.crt", &server.certificate);
    cluster.replace("server.key", &server.key);
    cluster.replace("ca.crt", &new.pem);
    cluster.control(&["reload"]);
    eventually("the new certificate is used", async || {
        FraiseClient::connect(&url("verify-full")).await.is_ok()
    })
    .await;
    stop(&verified).await;

    // A stream that is dropped, too.
    let pid = verified_again.backend_pid().unwrap();
    let mut stream = verified_again.query::<RawJson>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    eventually("it is stopped", async || {
        backend_state(&admin, pid).await.as_deref() == Some("idle")
    })
    .await;

    admin.batch_execute("alter system set ssl = off").await.unwrap();
    cluster.control(&["reload"]);
    eventually("TLS is off", async || FraiseClient::connect(&url("require")).await.is_err()).await;
    stop(&preferred).await;

    // With `verify-full`, the request is not sent without TLS.
    proxy.record();
    let mut stream = strict.query::<RawJson>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let error = within(strict.cancel_token().cancel()).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    let sent = proxy.record();
    let has = |start: [u32; 2]| {
        let start = start.map(u32::to_be_bytes).concat();
        sent.windows(8).any(|bytes| bytes == start)
    };
    assert!(has([8, 80_877_103]), "TLS was not requested");
    assert!(!has([16, 80_877_102]), "a cancel request was sent");
}

/// A process without a free descriptor can stop a query: the session's own is closed for it.
#[tokio::test]
async fn cancel_works_without_a_free_descriptor() {
    const URL: &str = "FRAISEQL_WIRE_TEST_WITHOUT_DESCRIPTORS";
    if let Ok(url) = env::var(URL) {
        return without_descriptors(&url).await;
    }
    let admin = admin().await;
    let url = format!("{}&application_name=full", cluster().url());
    let url = if cluster().url().contains('?') { url } else { url.replacen('&', "?", 1) };
    // Only the view must be there.
    drop(client().await);
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -n 64; exec \"$0\" --exact cancel::cancel_works_without_a_free_descriptor",
    ]);
    let output = command.arg(env::current_exe().unwrap()).env(URL, url).output();
    let output = tokio::task::spawn_blocking(move || output).await.unwrap().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.contains("test result: ok. 1 passed"), "{output}");
    eventually("it is stopped", async || sleepers(&admin, "full").await == 0).await;
}

async fn without_descriptors(url: &str) {
    let client = FraiseClient::connect(url).await.unwrap();
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let mut files = Vec::new();
    let error = loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(e) => break e,
        }
    };
    assert_eq!(error.raw_os_error(), Some(24), "{error}");
    within(client.cancel_token().cancel()).await.unwrap();
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert_cancelled::<()>(Err(error));
    drop(files);
    client.ping().await.unwrap();
}

// ---- Rows that were found ----

/// A row that a Rust predicate has found is the answer, whatever becomes of the cleanup.
#[tokio::test]
async fn fetch_optional_returns_the_row_if_the_cleanup_fails() {
    let config = at(real()).database("postgres").drain_limit(0).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    for _ in 0..3 {
        let query = || client.query::<Value>("v_endless").where_rust(|row| row["id"] == 3);
        assert_eq!(query().fetch_optional().await.unwrap().unwrap()["id"], 3);
        assert_eq!(query().fetch_one().await.unwrap()["id"], 3);
        assert!(query().exists().await.unwrap());
        assert!(client.query::<Value>("v_one").fetch_optional().await.unwrap().is_some());
    }
}

// ---- Deadlines ----

/// A server that reads nothing counts as silent, like one that sends nothing.
#[tokio::test]
async fn read_timeout_covers_sending_the_query() {
    let (_keep, never) = oneshot::channel();
    let mut session = scripted::login();
    session.push(Step::Wait(never));
    let server = Scripted::start(vec![session]).await;
    let short = Duration::from_millis(300);
    let config = at(server.address).read_timeout(short).cancel_timeout(short).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let query = client.query::<Value>("v").where_sql("data = $1").bind("x".repeat(32 << 20));
    let error = within(query.execute()).await.unwrap_err();
    assert!(
        matches!(error, Error::Timeout { phase: TimeoutPhase::Read, after } if after == short),
        "{error:?}"
    );
    eventually("it is given up", async || !client.is_busy()).await;
}

/// A server that is down is not reported as a slow query: not at first, not between queries, and
/// not during a resumption.
#[tokio::test]
async fn deadline_while_connecting_reports_the_connection() {
    let short = Duration::from_millis(500);
    let check = |error: Error, reason: &str| {
        assert!(matches!(error, Error::Connection { .. }), "{error:?}");
        assert!(error.is_retriable() && error.to_string().contains(reason), "{error}");
    };
    // Its address accepts connections and stays silent.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let client = client_at(listener.local_addr().unwrap());
    let query = || client.query::<Value>("v");
    check(query().first_row_timeout(short).fetch_all().await.unwrap_err(), "timed out connecting");
    check(query().timeout(short).count().await.unwrap_err(), "timed out connecting");

    let retry = RetryPolicy::default().max_attempts(50).initial_backoff(LONG).max_backoff(LONG);
    for resumes in [false, true] {
        let mut session = scripted::login();
        if resumes {
            let row = scripted::row(r#"{"id":1}"#);
            session.extend([Step::ExpectQuery, Step::Send([scripted::begin_json(), row].concat())]);
        }
        session.push(Step::Close);
        let server = Scripted::start(vec![session]).await;
        let config = at(server.address).retry(retry).build().unwrap();
        let client = FraiseClient::connect_with_config(config).await.unwrap();
        let query = client.query::<Value>("v").timeout(short);
        if resumes {
            let mut stream = query.resume_by(field("id")).execute().await.unwrap();
            assert_eq!(stream.next().await.unwrap().unwrap()["id"], 1);
            check(within(stream.next()).await.unwrap().unwrap_err(), "Connection refused");
            assert!(stream.next().await.is_none());
        } else {
            within(server.done()).await;
            check(query.fetch_all().await.unwrap_err(), "Connection refused");
        }
    }
}

/// A copy of a query does not inherit the attempts to connect of another copy.
#[tokio::test]
async fn copy_of_a_query_that_could_not_connect_reports_its_own_timeout() {
    let is_down = Arc::new(AtomicBool::new(true));
    let (down, port) = (Arc::clone(&is_down), cluster().port());
    let config = cluster().url().parse::<ConnectionConfig>().unwrap().to_builder();
    let config = config.connector(move |_| {
        let is_down = down.load(SeqCst);
        async move {
            if is_down {
                std::future::pending::<()>().await;
            }
            TcpStream::connect(("127.0.0.1", port)).await
        }
    });
    let client = FraiseClient::new(config.build().unwrap());
    let query = client.query::<RawJson>("v_asleep").timeout(Duration::from_millis(500));
    let error = query.clone().fetch_all().await.unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error:?}");
    is_down.store(false, SeqCst);
    client.ping().await.unwrap();
    let error = query.clone().fetch_all().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }), "{error:?}");
}

/// Deadlines hold however slow the handler of notices is, and however many have arrived.
#[tokio::test]
async fn deadlines_are_checked_between_notices() {
    let notice = scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "slow")]);
    let flood = notice.repeat(4000);
    let slow = || {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let handler = move |_: &fraiseql_wire::DbError| {
            counted.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_millis(2));
        };
        (calls, handler)
    };
    let short = Duration::from_millis(200);

    // During the answer, and then during the drain: both end before 4000 notices.
    let mut session = scripted::login();
    session.extend([Step::ExpectQuery, Step::Send(flood.clone()), Step::Send(one_row())]);
    let server = Scripted::start(vec![session]).await;
    let config = at(server.address).cancel_timeout(short).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let (calls, handler) = slow();
    client.on_notice(handler);
    let error = client.query::<Value>("v").timeout(short).execute().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }), "{error:?}");
    eventually("it is given up", async || !client.is_busy()).await;
    assert!(calls.load(SeqCst) < 4000);

    // While pinging, with a deadline of the caller; while logging in.
    let mut session = scripted::login();
    session.extend([
        Step::Expect(b"Q\0\0\0\x05\0".to_vec()),
        Step::Send([&flood[..], &scripted::message(b'I', b""), &scripted::ready()].concat()),
    ]);
    let server = Scripted::start(vec![session]).await;
    let client =
        FraiseClient::connect_with_config(at(server.address).build().unwrap()).await.unwrap();
    let (calls, handler) = slow();
    client.on_notice(handler);
    assert!(timeout(short, client.ping()).await.is_err());
    assert!(calls.load(SeqCst) < 4000);
    drop(server);
    let login = [scripted::auth_ok(), flood, scripted::ready()].concat();
    let server = Scripted::start(vec![vec![Step::ExpectStartup, Step::Send(login)]]).await;
    let client = FraiseClient::new(at(server.address).connect_timeout(short).build().unwrap());
    let (calls, handler) = slow();
    client.on_notice(handler);
    let error = client.ping().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Connect, .. }), "{error:?}");
    assert!(calls.load(SeqCst) < 4000);
}

// ---- Handlers that panic ----

/// A handler of notices that panics costs the connection, wherever it is called, and not the
/// client.
#[tokio::test]
async fn panicking_notice_handler_never_leaves_the_client_busy() {
    let warning =
        scripted::fields(b'N', &[(b'S', "WARNING"), (b'C', "01000"), (b'M', "it panics")]);
    let begun = scripted::begun(&["1"]);
    let ping = || Step::Expect(b"Q\0\0\0\x05\0".to_vec());
    // While the answer is read, while the connection is returned, while it is drained, while it is
    // idle, while pinging.
    for place in 0..5 {
        let mut session = scripted::login();
        let (go, wait) = oneshot::channel();
        let mut request = vec![Step::Expect(scripted::cancel_request()), Step::Signal(go)];
        match place {
            0 => session.extend([
                Step::ExpectQuery,
                Step::Send(
                    [&begun[..], &warning, &scripted::complete(), &scripted::ready()].concat(),
                ),
            ]),
            1 => {
                session.extend([Step::ExpectQuery, Step::Send([&one_row()[..], &warning].concat())])
            }
            2 => session.extend([
                Step::ExpectQuery,
                Step::Send(begun.clone()),
                Step::Wait(wait),
                Step::Send([&warning[..], &cancelled()].concat()),
            ]),
            3 => session.extend([
                Step::ExpectQuery,
                Step::Send(one_row()),
                Step::Wait(wait),
                Step::Send(warning.clone()),
            ]),
            _ => session.extend([
                ping(),
                Step::Send(
                    [&warning[..], &scripted::message(b'I', b""), &scripted::ready()].concat(),
                ),
            ]),
        }
        let mut scripts = vec![session];
        let signal = match place {
            2 => {
                scripts.push(request);
                None
            }
            3 => request.pop(),
            _ => None,
        };
        let mut next = scripted::login();
        next.extend([Step::ExpectQuery, Step::Send(one_row())]);
        scripts.push(next);
        let server = Scripted::start(scripts).await;
        let config = at(server.address).cancel_timeout(LONG).build().unwrap();
        let client = FraiseClient::connect_with_config(config).await.unwrap();
        client.on_notice(|_| panic!("a handler of notices"));
        let first = async {
            match place {
                2 => {
                    let mut stream = client.query::<Value>("v").execute().await?;
                    stream.next().await.unwrap()?;
                    stream.cancel().await
                }
                3 => {
                    outcome(&client, "v").await?;
                    if let Some(Step::Signal(go)) = signal {
                        go.send(()).unwrap();
                    }
                    // Where it panics depends on when the notice arrives.
                    loop {
                        outcome(&client, "v").await?;
                    }
                }
                4 => client.ping().await,
                _ => outcome(&client, "v").await.map(drop),
            }
        };
        let first = within(AssertUnwindSafe(first).catch_unwind()).await;
        assert!(!matches!(first, Ok(Ok(()))), "{place}: {first:?}");
        eventually("it is not busy", async || !client.is_busy()).await;
        client.on_notice(|_| {});
        if place != 3 {
            assert_eq!(within(outcome(&client, "v")).await.unwrap(), [1], "{place}");
        }
        drop(client);
        drop(server);
    }
}

// ---- Small memory ----

/// `fail` is about a consumer that lags, however small the memory is.
#[tokio::test]
async fn soft_limits_of_a_small_memory_fail_only_for_a_consumer_that_lags() {
    sql("create view v_small_rows as select to_json(repeat('x', 50)) as data
         from generate_series(1, 3000)")
    .await;
    let client = client().await;
    for (memory, fail) in [(4 << 10, 0.1), (8 << 10, 0.3), (16 << 10, 0.05), (1 << 20, 0.01)] {
        let query = || {
            client.query::<Value>("v_small_rows").max_memory(memory).memory_soft_limits(0.0, fail)
        };
        let mut stream = query().execute().await.unwrap();
        let mut rows = 0;
        while let Some(row) = stream.next().await {
            row.unwrap_or_else(|e| panic!("{memory}, {fail}, behind {rows}: {e}"));
            rows += 1;
        }
        assert_eq!(rows, 3000);
        // The stream is not read.
        let mut stream = query().execute().await.unwrap();
        eventually("it fails", async || !client.is_busy() || stream.stats().items_buffered > 0)
            .await;
        let stats = async || stream.stats().estimated_memory;
        eventually("it has read on", async || stats().await > 0).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let error = loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(e)) => break e,
                None => panic!("{memory}, {fail}: a consumer that lags is waited for"),
            }
        };
        assert!(matches!(error, Error::ConsumerLagged { .. }), "{error:?}");
    }
}

/// A row larger than `max_memory` is an error wherever it lies in a read.
#[tokio::test]
async fn max_memory_of_a_few_bytes_rejects_every_larger_row() {
    sql("create view v_longer as select to_json(repeat('x', i)) as data
         from generate_series(1, 200) i")
    .await;
    let client = client().await;
    for limit in [1, 2, 10, 100] {
        let mut stream =
            client.query::<RawJson>("v_longer").max_memory(limit).execute().await.unwrap();
        let mut rows = 0;
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(row) => {
                    rows += 1;
                    assert!(row.as_bytes().len() <= limit);
                }
                Err(e) => break e,
            }
        };
        let expected = limit.saturating_sub(2);
        assert_eq!(rows, expected, "{error}");
        assert!(
            matches!(error, Error::MemoryLimitExceeded { limit: l, required }
                if l == limit && required == limit + 1 || limit == 1 && required == 3),
            "{error:?}"
        );
    }
}
