//! Fetches that share a connection: each gets its own answer or an error, whatever becomes of the
//! others, and no query is cancelled that its caller did not stop. docs/ARCHITECTURE.md has the
//! rules as a table, whose rows are tested here.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::{
    admin, backend_state, client, cluster,
    daemon::{Daemon, prepares_nothing},
    eventually,
    proxy::Proxy,
    random::Random,
    scripted::{self, Scripted, Step, answer},
    sql, terminate, url_at,
};
use fraiseql_wire::{
    ConnectionConfig, ConnectionConfigBuilder, Error, FraiseClient, RawJson, RetryPolicy,
    TimeoutPhase, sqlstate,
};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, join, join_all, poll_immediate, select},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

fn builder(url: &str) -> ConnectionConfigBuilder {
    ConnectionConfig::parse(url).unwrap().to_builder()
}

async fn connect(config: ConnectionConfigBuilder) -> FraiseClient {
    FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap()
}

fn script(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    scripted::login().into_iter().chain(steps).collect()
}

/// Each kind of fetch, with an answer that no other one has.
async fn fetch_and_check(client: &FraiseClient, number: u64) {
    let query = || client.query::<u64>("v_short");
    let at_least = (number % 300).max(1);
    match number % 6 {
        0 => {
            let rows = query().where_sql("data::text::int >= $1::int").bind(at_least as i32);
            let rows = rows.order_by("data::text::int").limit(20).fetch_all().await.unwrap();
            let expected: Vec<u64> = (at_least..=300).take(20).collect();
            assert_eq!(rows, expected);
        }
        1 => {
            let one = query().where_sql("data::text = $1::text").bind(at_least.to_string());
            assert_eq!(one.fetch_one().await.unwrap(), at_least);
        }
        2 => {
            let one = query().where_sql("data::text = $1::text").bind(format!("-{number}"));
            assert_eq!(one.fetch_optional().await.unwrap(), None);
        }
        3 => {
            let counted = query().where_sql("data::text::int >= $1::int").bind(at_least as i32);
            assert_eq!(counted.count().await.unwrap(), 301 - at_least);
        }
        4 => {
            let all = query().where_sql("data::text::int = $1::int").bind(at_least as i32);
            assert!(all.exists().await.unwrap());
        }
        _ => {
            let plan = query().explain(false).await.unwrap();
            assert!(plan[0]["Plan"].is_object(), "{plan}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_fetches_share_one_connection_and_get_their_own_answers() {
    let client = Arc::new(client().await);
    let pid = client.backend_pid();
    let tasks = (0..16).map(|task| {
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            for number in 0..50 {
                fetch_and_check(&client, task * 50 + number).await;
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!(client.backend_pid(), pid);
    assert!(!client.is_busy());
}

#[tokio::test]
async fn concurrent_fetches_of_one_task_get_their_own_answers() {
    let client = client().await;
    join_all((0..300).map(|number| fetch_and_check(&client, number))).await;
    // One after the other again.
    for number in 0..12 {
        fetch_and_check(&client, number).await;
    }
}

#[tokio::test]
async fn requests_are_sent_before_earlier_answers() {
    let answers = [answer(&["1"]), answer(&["2"]), answer(&["3"])].concat();
    let steps = [Step::ExpectQuery, Step::ExpectQuery, Step::ExpectQuery, Step::Send(answers)];
    let server = Scripted::start(vec![script(steps)]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let fetch = || client.query::<u64>("v").fetch_all();
    let rows = join_all([fetch(), fetch(), fetch()]).await;
    let rows: Vec<_> = rows.into_iter().map(Result::unwrap).collect();
    assert_eq!(rows, [[1], [2], [3]]);
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn answers_that_are_cut_anywhere_are_matched_in_order() {
    let answers = [answer(&["1", "2"]), answer(&[]), answer(&["3"])].concat();
    for cut in 0..answers.len() {
        let (go, wait) = oneshot::channel();
        let steps = [
            Step::ExpectQuery,
            Step::ExpectQuery,
            Step::ExpectQuery,
            Step::Send(answers[..cut].to_vec()),
            Step::Wait(wait),
            Step::Send(answers[cut..].to_vec()),
        ];
        let server = Scripted::start(vec![script(steps)]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let fetch = || client.query::<u64>("v").fetch_all();
        let mut rows = Box::pin(join_all([fetch(), fetch(), fetch()]));
        assert!(poll_immediate(&mut rows).await.is_none());
        for _ in 0..20 {
            tokio::task::yield_now().await;
            assert!(poll_immediate(&mut rows).await.is_none());
        }
        go.send(()).unwrap();
        let rows: Vec<_> = rows.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(rows, [vec![1, 2], vec![], vec![3]], "cut at {cut}");
        drop(client);
        server.done().await;
    }
}

#[tokio::test]
async fn a_fetch_that_is_not_polled_does_not_block_others() {
    let client = client().await;
    let mut first = Box::pin(client.query::<u64>("v_short").fetch_all());
    assert!(poll_immediate(&mut first).await.is_none());
    // Sent, and not polled again until the end.
    let second = Box::pin(client.query::<u64>("v_one").fetch_one());
    assert_eq!(second.await.unwrap(), 1);
    let mut third = Box::pin(client.query::<u64>("v_one").fetch_one());
    assert!(poll_immediate(&mut third).await.is_none());
    for number in 0..30 {
        fetch_and_check(&client, number).await;
    }
    assert_eq!(third.await.unwrap(), 1);
    assert_eq!(first.await.unwrap().len(), 300);
}

#[tokio::test]
async fn an_error_of_one_fetch_touches_no_other() {
    let client = client().await;
    let fetch = |number: u64| {
        let client = &client;
        async move {
            match number % 4 {
                0 => fetch_and_check(client, number).await,
                1 => {
                    let error = client.query::<u64>("v_missing").fetch_all().await.unwrap_err();
                    assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_TABLE), "{error}");
                }
                2 => {
                    let error = client.query::<String>("v_short").fetch_all().await.unwrap_err();
                    assert!(error.is_row_error(), "{error}");
                }
                _ => {
                    let fails = client.query::<u64>("v_short").where_sql("1 / ($1::int - 5) = 0");
                    let error = fails.bind(5).fetch_all().await.unwrap_err();
                    assert_eq!(error.sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO), "{error}");
                }
            }
        }
    };
    join_all((0..200).map(fetch)).await;
}

#[tokio::test]
async fn a_panic_in_a_predicate_touches_no_other_fetch() {
    let client = Arc::new(client().await);
    let others = join_all((0..50).map(|number| fetch_and_check(&client, number)));
    let panics = (0..5).map(|_| {
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            let query = client.query::<u64>("v_short").where_rust(|_| panic!("planted"));
            query.fetch_all().await
        })
    });
    let (panicked, _) = join(join_all(panics), others).await;
    assert!(panicked.iter().all(Result::is_err));
    fetch_and_check(&client, 1).await;
}

#[tokio::test]
async fn rows_before_an_error_do_not_make_a_fetch_whole() {
    let client = client().await;
    sql("create view v_pipeline_fails as
         select to_jsonb(1 / (50 - i)) as data from generate_series(1, 100) i")
    .await;
    let fails = || client.query::<i64>("v_pipeline_fails").fetch_all();
    for result in join_all((0..20).map(|_| fails())).await {
        let error = result.unwrap_err();
        assert_eq!(error.sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO), "{error}");
    }
}

/// Long answers are read by a task of their own, between short ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_and_short_answers_share_a_connection() {
    let client = client().await;
    let pid = client.backend_pid();
    let fetch = |number: u64| {
        let client = &client;
        async move {
            if number % 5 == 0 {
                let rows = client.query::<Value>("v_endless").limit(5_000 + number);
                let rows = rows.fetch_all().await.unwrap();
                assert_eq!(rows.len() as u64, 5_000 + number);
                assert!(rows.iter().zip(1..).all(|(row, id)| row["id"] == id));
            } else {
                fetch_and_check(client, number).await;
            }
        }
    };
    join_all((0..60).map(fetch)).await;
    assert_eq!(client.backend_pid(), pid);
}

#[tokio::test]
async fn a_stopped_long_answer_between_others_costs_none_of_them() {
    let client = client().await;
    let fetch = |number: u64| {
        let client = &client;
        async move {
            if number % 5 == 0 {
                // Stops after the first row that the predicate accepts.
                let found = client.query::<Value>("v_endless").limit(20_000);
                let found = found.where_rust(|row| row["id"] == 400).fetch_optional();
                assert_eq!(found.await.unwrap().unwrap()["id"], 400);
            } else {
                fetch_and_check(client, number).await;
            }
        }
    };
    join_all((0..30).map(fetch)).await;
}

#[tokio::test]
async fn execute_waits_for_fetches_and_then_has_the_connection_alone() {
    let client = client().await;
    let fetches = join_all((0..50).map(|number| fetch_and_check(&client, number)));
    let mut fetches = Box::pin(fetches);
    assert!(poll_immediate(&mut fetches).await.is_none());
    let mut execute = Box::pin(client.query::<u64>("v_short").execute());
    assert!(poll_immediate(&mut execute).await.is_none());
    // The stream is next.
    let error = client.query::<u64>("v_one").fetch_one().await.unwrap_err();
    assert!(matches!(error, Error::ConnectionBusy), "{error}");
    let (_, stream) = join(fetches, execute).await;
    let stream = stream.unwrap();
    let error = client.query::<u64>("v_one").count().await.unwrap_err();
    assert!(matches!(error, Error::ConnectionBusy), "{error}");
    assert_eq!(stream.count().await, 300);
    fetch_and_check(&client, 1).await;
}

/// Dropped before it is sent.
#[tokio::test]
async fn dropping_a_queued_fetch_sends_nothing() {
    let (go, wait) = oneshot::channel();
    let steps = [
        Step::Wait(wait),
        Step::ExpectQuery,
        Step::Send(answer(&["1"])),
        Step::ExpectQuery,
        Step::Send(answer(&["3"])),
        Step::ExpectEnd,
    ];
    // Nothing is sent before the login has ended.
    let mut login = scripted::login();
    let Some(Step::Send(welcome)) = login.pop() else { panic!() };
    let mut steps = steps.into_iter();
    let first = steps.next().unwrap();
    let server = Scripted::start(vec![
        login.into_iter().chain([first, Step::Send(welcome)]).chain(steps).collect(),
    ])
    .await;
    let client = FraiseClient::new(ConnectionConfig::parse(&server.url()).unwrap());
    let fetch = || Box::pin(client.query::<u64>("v").fetch_one());
    let (mut first, mut second, mut third) = (fetch(), fetch(), fetch());
    for fetch in [&mut first, &mut second, &mut third] {
        assert!(poll_immediate(fetch).await.is_none());
    }
    drop(second);
    go.send(()).unwrap();
    let (first, third) = join(first, third).await;
    assert_eq!((first.unwrap(), third.unwrap()), (1, 3));
    drop(client);
    server.done().await;
}

/// Dropped after it was sent, before its turn or during it.
#[tokio::test]
async fn dropping_a_sent_fetch_discards_its_answer_and_cancels_nothing() {
    for dropped in 0..3 {
        let (go, wait) = oneshot::channel();
        let (is_sent, sent) = oneshot::channel();
        let steps = [
            Step::ExpectQuery,
            Step::ExpectQuery,
            Step::ExpectQuery,
            Step::Signal(is_sent),
            Step::Wait(wait),
            Step::Send([answer(&["0"]), answer(&["1"]), answer(&["2"])].concat()),
            Step::ExpectEnd,
        ];
        let server = Scripted::start(vec![script(steps)]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let mut fetches: Vec<_> =
            (0..3).map(|_| Some(Box::pin(client.query::<u64>("v").fetch_one()))).collect();
        for fetch in fetches.iter_mut().flatten() {
            assert!(poll_immediate(fetch).await.is_none());
        }
        sent.await.unwrap();
        fetches[dropped] = None;
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        for (fetch, number) in fetches.into_iter().zip(0..) {
            if let Some(fetch) = fetch {
                assert_eq!(fetch.await.unwrap(), number);
            }
        }
        drop(client);
        // A cancel request would be an unexpected connection, which panics.
        server.done().await;
    }
}

#[tokio::test]
async fn dropping_the_only_fetch_cancels_it() {
    let client = client().await;
    let admin = admin().await;
    // Through the shared path: another fetch starts and ends.
    let mut slow = Box::pin(client.query::<Value>("v_asleep").fetch_one());
    assert!(poll_immediate(&mut slow).await.is_none());
    let mut other = Box::pin(client.query::<u64>("v_one").fetch_one());
    assert!(poll_immediate(&mut other).await.is_none());
    drop(other);
    let pid = client.backend_pid().unwrap();
    eventually("it runs", async || backend_state(&admin, pid).await.as_deref() == Some("active"))
        .await;
    drop(slow);
    fetch_and_check(&client, 3).await;
    eventually("it was stopped", async || {
        backend_state(&admin, pid).await.as_deref() != Some("active")
    })
    .await;
}

/// The head is slow and dropped while others wait: they are run on another connection.
#[tokio::test]
async fn dropping_a_slow_fetch_moves_the_others_to_another_connection() {
    let admin = admin().await;
    let config = builder(&cluster().url()).cancel_timeout(Duration::from_millis(300));
    let client = connect(config).await;
    let pid = client.backend_pid().unwrap();
    let mut slow = Box::pin(client.query::<Value>("v_asleep").fetch_one());
    assert!(poll_immediate(&mut slow).await.is_none());
    let mut others = Box::pin(join_all((0..12).map(|number| fetch_and_check(&client, number))));
    assert!(poll_immediate(&mut others).await.is_none());
    eventually("it runs", async || backend_state(&admin, pid).await.as_deref() == Some("active"))
        .await;
    drop(slow);
    others.await;
    assert_ne!(client.backend_pid(), Some(pid));
    // The server does not continue the one that was dropped.
    eventually("the old backend is gone", async || backend_state(&admin, pid).await.is_none())
        .await;
}

#[tokio::test]
async fn an_answer_beyond_drain_limit_moves_the_others_to_another_connection() {
    let config = builder(&cluster().url()).drain_limit(100_000);
    let client = connect(config).await;
    let pid = client.backend_pid();
    let mut long = Box::pin(client.query::<RawJson>("v_endless").limit(2_000_000).fetch_all());
    assert!(poll_immediate(&mut long).await.is_none());
    let mut others = Box::pin(join_all((0..12).map(|number| fetch_and_check(&client, number))));
    assert!(poll_immediate(&mut others).await.is_none());
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    drop(long);
    others.await;
    assert_ne!(client.backend_pid(), pid);
}

#[tokio::test]
async fn a_timeout_of_one_fetch_touches_no_other() {
    let config = builder(&cluster().url()).cancel_timeout(Duration::from_millis(300));
    let client = connect(config).await;
    let slow = client.query::<Value>("v_asleep").timeout(Duration::from_millis(100)).fetch_one();
    let others = join_all((0..30).map(|number| fetch_and_check(&client, number)));
    let (slow, _) = join(slow, others).await;
    let error = slow.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }), "{error}");
}

#[tokio::test]
async fn a_silent_server_fails_the_fetch_that_waits_for_it_and_no_other() {
    let short = Duration::from_millis(200);
    let silent = script([Step::ExpectQuery, Step::ExpectQuery, Step::Silence]);
    let second = script([Step::ExpectQuery, Step::Send(answer(&["2"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![silent, second]).await;
    let client = connect(builder(&server.url()).read_timeout(short).cancel_timeout(short)).await;
    let fetch = || client.query::<u64>("v").fetch_one();
    let (first, second) = join(fetch(), fetch()).await;
    let error = first.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Read, .. }), "{error}");
    assert_eq!(second.unwrap(), 2);
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn a_lost_connection_fails_what_was_answered_in_part_and_reruns_the_rest() {
    let part = [answer(&["1"]), scripted::begun(&["2"])].concat();
    let first = script([
        Step::ExpectQuery,
        Step::ExpectQuery,
        Step::ExpectQuery,
        Step::ExpectQuery,
        Step::Send(part),
        Step::Close,
    ]);
    let again = [answer(&["3"]), answer(&["4"])].concat();
    let second = script([Step::ExpectQuery, Step::ExpectQuery, Step::Send(again), Step::ExpectEnd]);
    let server = Scripted::start(vec![first, second]).await;
    let client = connect(builder(&server.url())).await;
    let fetch = || client.query::<u64>("v").fetch_all();
    let results = join_all([fetch(), fetch(), fetch(), fetch()]).await;
    let error = results[1].as_ref().unwrap_err();
    assert!(matches!(error, Error::ConnectionClosed { .. }), "{error}");
    for (at, expected) in [(0, 1), (2, 3), (3, 4)] {
        assert_eq!(results[at].as_ref().unwrap(), &[expected]);
    }
    drop(client);
    server.done().await;
}

/// The end of an answer that a reader continues is wrong: it must not take the end of the next one
/// for it.
#[tokio::test]
async fn a_wrong_end_of_a_long_answer_moves_the_others_to_another_connection() {
    let rows: Vec<_> = (0..300).map(|row| row.to_string()).collect();
    let rows: Vec<_> = rows.iter().map(String::as_str).collect();
    let in_transaction = scripted::message(b'Z', b"T");
    let wrong_ends = [
        scripted::ready(),
        [scripted::complete(), in_transaction].concat(),
        [scripted::complete(), scripted::complete(), scripted::ready()].concat(),
        [scripted::message(b'2', b""), scripted::complete(), scripted::ready()].concat(),
    ];
    for wrong_end in wrong_ends {
        let whole = [scripted::begun(&rows), wrong_end, answer(&["20"]), answer(&["30"])].concat();
        let queries = [Step::ExpectQuery, Step::ExpectQuery, Step::ExpectQuery];
        let first = script(queries.into_iter().chain([Step::Send(whole), Step::Silence]));
        let again = [answer(&["2"]), answer(&["3"])].concat();
        let second =
            script([Step::ExpectQuery, Step::ExpectQuery, Step::Send(again), Step::ExpectEnd]);
        let server = Scripted::start(vec![first, second]).await;
        let client = connect(builder(&server.url())).await;
        let fetch = || client.query::<u64>("v").fetch_all();
        let results = join_all([fetch(), fetch(), fetch()]).await;
        let error = results[0].as_ref().unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        for (at, expected) in [(1, 2), (2, 3)] {
            assert_eq!(results[at].as_ref().unwrap(), &[expected]);
        }
        drop(client);
        server.done().await;
    }
}

/// The answer of a dropped fetch is discarded. A ReadyForQuery too many or too few must not move
/// the later answers.
#[tokio::test]
async fn a_wrong_end_of_a_discarded_answer_moves_the_others_to_another_connection() {
    let part = scripted::begun(&["10"]);
    let unfinished = [part.clone(), scripted::complete()].concat();
    let discarded_answers = [
        [scripted::ready(), answer(&["10"])].concat(),
        unfinished,
        [part, scripted::ready()].concat(),
        [scripted::complete(), scripted::ready(), answer(&["10"])].concat(),
    ];
    for discarded in discarded_answers {
        let whole = [answer(&["1"]), discarded, answer(&["20"]), answer(&["30"])].concat();
        let (received, are_received) = oneshot::channel();
        let (dropped, is_dropped) = oneshot::channel();
        let queries = (0..4).map(|_| Step::ExpectQuery);
        let steps = [Step::Signal(received), Step::Wait(is_dropped), Step::Send(whole)];
        let first = script(queries.chain(steps).chain([Step::Silence]));
        let again = [answer(&["2"]), answer(&["3"])].concat();
        let second =
            script([Step::ExpectQuery, Step::ExpectQuery, Step::Send(again), Step::ExpectEnd]);
        let server = Scripted::start(vec![first, second]).await;
        let client = connect(builder(&server.url())).await;
        let fetch = || client.query::<u64>("v").fetch_all();
        let mut fetches: Vec<_> = (0..4).map(|_| Box::pin(fetch())).collect();
        for fetch in &mut fetches {
            assert!(poll_immediate(fetch).await.is_none());
        }
        are_received.await.unwrap();
        drop(fetches.remove(1));
        dropped.send(()).unwrap();
        let results = join_all(fetches).await;
        for (result, expected) in results.into_iter().zip(1..) {
            assert_eq!(result.unwrap(), [expected]);
        }
        drop(client);
        server.done().await;
    }
}

/// A subscriber that panics when the first error of a query is recorded.
#[derive(Default)]
struct Panics(AtomicU64);

impl tracing::Subscriber for Panics {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        if format!("{values:?}").contains("ERROR") {
            assert!(self.0.fetch_add(1, Ordering::Relaxed) > 0, "planted");
        }
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_subscriber_that_panics_lets_no_fetch_wait_for_ever() {
    let client = client().await;
    let _guard = tracing::subscriber::set_default(Panics::default());
    let failing = client.query::<u64>("v_one").where_sql("1 / (data::text::int - 1) > 0");
    let (one, two) = (client.query::<u64>("v_one"), client.query::<u64>("v_one"));
    let all = join_all([one.fetch_all(), failing.fetch_all(), two.fetch_all()]);
    let results = tokio::time::timeout(Duration::from_secs(20), all).await;
    let results = results.expect("each fetch ends");
    assert_eq!(results[0].as_ref().unwrap(), &[1]);
    for result in &results[1..] {
        assert!(matches!(result, Err(Error::ConnectionClosed { .. })), "{result:?}");
    }
    assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
}

/// What is left of its request must not reach the server after the next one.
#[tokio::test]
async fn a_connection_with_a_request_that_is_not_sent_whole_is_not_used_again() {
    let answers = [answer(&["1"]), answer(&["2"])].concat();
    let (answered, is_answered) = oneshot::channel();
    let first = [Step::ExpectQuery, Step::Send(answers), Step::Wait(is_answered)];
    let second = script([Step::ExpectQuery, Step::Send(answer(&["3"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![script(first), second]).await;
    let client = connect(builder(&server.url())).await;
    let large = client.query::<u64>("v").where_sql("length($1) > 0").bind("x".repeat(64 << 20));
    let (one, two) = tokio::join!(client.query::<u64>("v").fetch_one(), large.fetch_one());
    assert_eq!([one.unwrap(), two.unwrap()], [1, 2]);
    assert_eq!(client.query::<u64>("v").fetch_one().await.unwrap(), 3);
    answered.send(()).unwrap();
    drop(client);
    server.done().await;
}

/// A fetch that a stream waits for is taken over. Nothing of its request is left to be sent then.
#[tokio::test]
async fn a_fetch_whose_answer_has_arrived_keeps_its_connection_when_it_is_taken_over() {
    let notice = scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "slow")]);
    let whole = [notice, answer(&["1"])].concat();
    let steps = [Step::ExpectQuery, Step::Send(whole), Step::ExpectQuery];
    let steps = steps.into_iter().chain([Step::Send(answer(&["2"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![script(steps)]).await;
    let noticed = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&noticed);
    let client = connect(builder(&server.url())).await;
    client.on_notice(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
    });
    let mut fetch = Box::pin(client.query::<u64>("v").fetch_one());
    while noticed.load(Ordering::Relaxed) == 0 {
        assert!(poll_immediate(&mut fetch).await.is_none());
        tokio::task::yield_now().await;
    }
    let mut stream = client.query::<u64>("v").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 2);
    assert!(stream.next().await.is_none());
    assert_eq!(fetch.await.unwrap(), 1);
    drop((stream, client));
    server.done().await;
}

/// Such a warning can also come from a function. A later loss of the connection would look as if
/// the server had not begun the query.
#[tokio::test]
async fn a_connection_whose_end_was_announced_is_not_used_again() {
    let warning = scripted::fields(b'N', &[(b'S', "WARNING"), (b'C', "57P01"), (b'M', "soon")]);
    let whole = [scripted::begun(&["1"]), warning, scripted::complete(), scripted::ready()];
    let first = [Step::ExpectQuery, Step::Send(whole.concat()), Step::ExpectEnd];
    let second = script([Step::ExpectQuery, Step::Send(answer(&["2"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![script(first), second]).await;
    let client = connect(builder(&server.url())).await;
    for expected in [1, 2] {
        assert_eq!(client.query::<u64>("v").fetch_one().await.unwrap(), expected);
    }
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn a_notice_before_the_rows_does_not_end_the_reruns_of_a_query() {
    let notice = scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', "slow")]);
    let row = scripted::row("1");
    let part = [scripted::begin_json(), notice, row[..row.len() - 1].to_vec()].concat();
    let first = script([Step::ExpectQuery, Step::ExpectQuery, Step::Send(part), Step::Close]);
    let second = script([
        Step::ExpectQuery,
        Step::Send(answer(&["1"])),
        Step::ExpectQuery,
        Step::Send(answer(&["2"])),
        Step::ExpectEnd,
    ]);
    let server = Scripted::start(vec![first, second]).await;
    let client = connect(builder(&server.url())).await;
    let fetch = || client.query::<u64>("v").fetch_one();
    let (first, second) = join(fetch(), fetch()).await;
    assert_eq!((first.unwrap(), second.unwrap()), (1, 2));
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn a_query_that_ends_each_session_is_given_up_and_the_others_are_answered() {
    let client = client().await;
    sql("create view v_pipeline_ends as
         select to_jsonb(pg_terminate_backend(pg_backend_pid())) as data")
    .await;
    let ends = client.query::<Value>("v_pipeline_ends").fetch_one();
    let others = join_all((0..12).map(|number| fetch_and_check(&client, number)));
    let (ended, _) = join(ends, others).await;
    let error = ended.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::ADMIN_SHUTDOWN), "{error}");
}

#[tokio::test]
async fn without_retries_a_lost_connection_fails_the_query_in_progress_only() {
    let first = script([Step::ExpectQuery, Step::ExpectQuery, Step::Close]);
    let second = script([Step::ExpectQuery, Step::Send(answer(&["2"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![first, second]).await;
    let client = connect(builder(&server.url()).retry(RetryPolicy::none())).await;
    let fetch = || client.query::<u64>("v").fetch_one();
    let (first, second) = join(fetch(), fetch()).await;
    let error = first.unwrap_err();
    assert!(matches!(error, Error::ConnectionClosed { .. }), "{error}");
    assert_eq!(second.unwrap(), 2);
    drop(client);
    server.done().await;
}

/// The driver waits a moment for the next fetch, and the connection ends meanwhile.
#[tokio::test]
async fn a_connection_that_ended_between_fetches_is_replaced() {
    let answers = [answer(&["1"]), answer(&["2"])].concat();
    let first = script([Step::ExpectQuery, Step::ExpectQuery, Step::Send(answers), Step::Close]);
    let second = script([Step::ExpectQuery, Step::Send(answer(&["3"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![first, second]).await;
    let client = connect(builder(&server.url()).retry(RetryPolicy::none())).await;
    let fetch = || client.query::<u64>("v").fetch_one();
    let (one, two) = join(fetch(), fetch()).await;
    assert_eq!((one.unwrap(), two.unwrap()), (1, 2));
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fetch().await.unwrap(), 3);
    drop(client);
    server.done().await;
}

fn ended_idle() -> Vec<u8> {
    scripted::error("FATAL", "57P05", "terminating connection due to idle-session timeout")
}

/// The next fetch waits for the cleanup, so it was not sent to the session.
#[tokio::test]
async fn a_session_that_ends_during_a_cleanup_costs_no_fetch() {
    let (are_sent, sent) = oneshot::channel();
    let (answer_first, first_due) = oneshot::channel();
    let (end_session, end_due) = oneshot::channel();
    let (is_requested, requested) = oneshot::channel();
    let (end_request, request_due) = oneshot::channel();
    let shared = script([
        Step::ExpectQuery,
        Step::ExpectQuery,
        Step::Signal(are_sent),
        Step::Wait(first_due),
        Step::Send(answer(&["1"])),
        Step::Wait(end_due),
        Step::Send([answer(&["2"]), ended_idle()].concat()),
        Step::Close,
    ]);
    let cancel = [
        Step::Expect(scripted::cancel_request()),
        Step::Signal(is_requested),
        Step::Wait(request_due),
    ];
    let next = script([Step::ExpectQuery, Step::Send(answer(&["3"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![shared, cancel.into(), next]).await;
    let client = connect(builder(&server.url()).retry(RetryPolicy::none())).await;
    let fetch = || Box::pin(client.query::<u64>("v").fetch_one());
    let (mut first, mut dropped, mut next) = (fetch(), fetch(), fetch());
    assert!(poll_immediate(&mut first).await.is_none());
    assert!(poll_immediate(&mut dropped).await.is_none());
    sent.await.unwrap();
    drop(dropped);
    answer_first.send(()).unwrap();
    assert_eq!(first.await.unwrap(), 1);
    requested.await.unwrap();
    assert!(poll_immediate(&mut next).await.is_none());
    end_session.send(()).unwrap();
    // The end of the session arrives first, and then that of the cancel request.
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    end_request.send(()).unwrap();
    assert_eq!(next.await.unwrap(), 3);
    drop(client);
    server.done().await;
}

/// The server was idle, so it has begun none of the requests. They are sent again even without
/// retries.
#[tokio::test]
async fn a_session_that_was_ended_because_it_was_idle_costs_no_fetch() {
    let first = script([
        Step::ExpectQuery,
        Step::Send(answer(&["1"])),
        Step::ExpectQuery,
        Step::ExpectQuery,
        Step::Send(ended_idle()),
        Step::Close,
    ]);
    let answers = [answer(&["2"]), answer(&["3"])].concat();
    let second =
        script([Step::ExpectQuery, Step::ExpectQuery, Step::Send(answers), Step::ExpectEnd]);
    let server = Scripted::start(vec![first, second]).await;
    let client = connect(builder(&server.url()).retry(RetryPolicy::none())).await;
    let fetch = || client.query::<u64>("v").fetch_one();
    assert_eq!(fetch().await.unwrap(), 1);
    let (two, three) = join(fetch(), fetch()).await;
    assert_eq!((two.unwrap(), three.unwrap()), (2, 3));
    drop(client);
    server.done().await;
}

/// Each session that ends costs at most one answer: that of a fetch without followers, or whose
/// rows have begun to arrive. All others are answered, on one connection after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_end_at_random_cost_one_answer_each_at_most() {
    let admin = admin().await;
    let client = client().await;
    let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let fetch = async |number: u64| loop {
        let one = client.query::<u64>("v_short").where_sql("data::text = $1::text");
        match one.bind(number.to_string()).fetch_one().await {
            Ok(found) => break assert_eq!(found, number),
            Err(error) => {
                let is_ended = error.sqlstate() == Some(&sqlstate::ADMIN_SHUTDOWN)
                    || matches!(error, Error::ConnectionClosed { .. });
                assert!(is_ended, "{error}");
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let fetches = async {
        let (fetch, done) = (&fetch, &done);
        let tasks = (0..8).map(|task| async move {
            for number in 0..60 {
                fetch(1 + (task * 60 + number) % 300).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        join_all(tasks).await;
    };
    let ends = async {
        let mut random = Random::of(7);
        let mut ended = 0;
        while done.load(Ordering::Relaxed) < 8 * 60 - 80 {
            let until = done.load(Ordering::Relaxed) + 5 + random.below(40);
            eventually("some are done", async || done.load(Ordering::Relaxed) >= until.min(400))
                .await;
            if let Some(pid) = client.backend_pid() {
                terminate(&admin, pid).await;
                ended += 1;
            }
        }
        ended
    };
    let ((), ended) = join(fetches, ends).await;
    let failed = failed.into_inner();
    assert!(failed <= ended, "{failed} of {ended}");
}

/// The caller of a long fetch does not read it: it fails, and the others are answered.
#[tokio::test]
async fn a_fetch_whose_rows_are_not_read_times_out_and_others_go_on() {
    let client = client().await;
    let mut long = Box::pin(client.query::<RawJson>("v_endless").limit(1_000_000).fetch_all());
    assert!(poll_immediate(&mut long).await.is_none());
    // Not polled: its reader fills its memory and waits.
    fetch_and_check(&client, 1).await;
    fetch_and_check(&client, 4).await;
    let error = long.await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Consumer, .. }), "{error}");
}

/// A server that is down must not look like a slow query.
#[tokio::test]
async fn timeout_while_the_shared_connection_is_replaced_names_the_attempts() {
    let lost = script([Step::ExpectQuery, Step::ExpectQuery, Step::Close]);
    let server = Scripted::start(vec![lost]).await;
    let long = Duration::from_secs(600);
    let retry = RetryPolicy::default().max_attempts(1_000).initial_backoff(long).max_backoff(long);
    let client = connect(builder(&server.url()).retry(retry)).await;
    let fetch = || client.query::<u64>("v").timeout(Duration::from_millis(400)).fetch_one();
    for result in join_all([fetch(), fetch(), fetch()]).await {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Connection { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_cancel_token_stops_fetches_that_are_not_polled() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    let mut fetches: Vec<_> =
        (0..3).map(|_| Box::pin(client.query::<Value>("v_asleep").fetch_one())).collect();
    for fetch in &mut fetches {
        assert!(poll_immediate(fetch).await.is_none());
    }
    eventually("it runs", async || backend_state(&admin, pid).await.as_deref() == Some("active"))
        .await;
    client.cancel_token().cancel().await.unwrap();
    assert_ne!(backend_state(&admin, pid).await.as_deref(), Some("active"));
    for fetch in fetches {
        let error = fetch.await.unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
    }
    fetch_and_check(&client, 1).await;
}

#[tokio::test]
async fn dropping_the_client_does_not_stop_its_fetches() {
    let client = client().await;
    let fetches: Vec<_> =
        (0..20).map(|_| Box::pin(client.query::<u64>("v_short").fetch_all())).collect();
    let mut all = Box::pin(join_all(fetches));
    assert!(poll_immediate(&mut all).await.is_none());
    let pid = client.backend_pid().unwrap();
    drop(client);
    for rows in all.await {
        assert_eq!(rows.unwrap().len(), 300);
    }
    let admin = admin().await;
    eventually("its connection is closed", async || backend_state(&admin, pid).await.is_none())
        .await;
}

#[test]
fn a_runtime_that_shuts_down_ends_fetches_with_an_error() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (one, other) = (runtime(), runtime());
    let url = cluster().url();
    let client = one.block_on(FraiseClient::connect(&url)).unwrap();
    let fetch = || Box::pin(client.query::<Value>("v_asleep").fetch_one());
    let (mut first, mut second) = (fetch(), fetch());
    one.block_on(async {
        assert!(poll_immediate(&mut first).await.is_none());
        assert!(poll_immediate(&mut second).await.is_none());
        tokio::task::yield_now().await;
    });
    drop(one);
    for fetch in [first, second] {
        let error = other.block_on(fetch).unwrap_err();
        assert!(matches!(error, Error::ConnectionClosed { .. }), "{error}");
    }
}

/// Statements are prepared, lost and prepared again while many requests are in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_that_change_cost_no_answer() {
    let client = client().await;
    let admin = admin().await;
    sql("create table t_pipeline (data jsonb); insert into t_pipeline values ('7');
         create view v_pipeline as select data from t_pipeline")
    .await;
    let done = AtomicU64::new(0);
    let fetches = join_all((0..8).map(|_| async {
        for _ in 0..100 {
            let seven = client.query::<u64>("v_pipeline").fetch_one().await.unwrap();
            assert_eq!(seven, 7);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let changes = async {
        let mut types = ["json", "jsonb"].iter().cycle();
        while done.load(Ordering::Relaxed) < 700 {
            let other = types.next().unwrap();
            let change = format!(
                "begin; drop view v_pipeline; create view v_pipeline as select data::{other} as data
                 from t_pipeline; commit"
            );
            admin.batch_execute(&change).await.unwrap();
            let until = done.load(Ordering::Relaxed) + 20;
            eventually("some are done", async || done.load(Ordering::Relaxed) >= until.min(750))
                .await;
        }
    };
    join(fetches, changes).await;
}

/// Statements are closed on the server without the client's knowledge.
#[tokio::test]
async fn prepared_statements_that_are_gone_cost_no_answer() {
    let client = client().await;
    sql("create function gone() returns jsonb language plpgsql as
         $$ begin deallocate all; return '0'; end $$;
         create view v_pipeline_gone as select gone() as data")
    .await;
    for round in 0..5 {
        let gone = async {
            if round % 2 == 0 {
                // Not prepared itself.
                let query = client.query::<u64>("v_pipeline_gone").persistent(false);
                assert_eq!(query.fetch_one().await.unwrap(), 0);
            }
        };
        let others = join_all((0..40).map(|number| fetch_and_check(&client, number)));
        join(others, gone).await;
    }
}

/// The request that is sent again follows one that has closed its statement.
#[tokio::test]
async fn a_statement_that_exists_and_was_closed_meanwhile_is_not_used() {
    let exists = scripted::error("ERROR", "42P05", "it exists already");
    let closed = scripted::message(b'3', b"");
    let answers = [exists, scripted::ready(), closed, answer(&["2"])].concat();
    let is_parsed: scripted::Answer = Box::new(|body| {
        assert!(body.starts_with(b"\0SELECT"), "not a Parse: {}", body.escape_ascii());
        Vec::new()
    });
    let first_uses = ["1", "2"].map(|row| [Step::ExpectQuery, Step::Send(answer(&[row]))]);
    let again = [
        Step::ExpectQuery,
        Step::ExpectQuery,
        Step::Send(answers),
        Step::Echo(is_parsed),
        Step::ExpectQuery,
        Step::Send(answer(&["1"])),
        Step::ExpectEnd,
    ];
    let steps = first_uses.into_iter().flatten().chain(again);
    let server = Scripted::start(vec![script(steps)]).await;
    let client = connect(builder(&server.url()).statement_cache_capacity(1)).await;
    let fetch = |entity| client.query::<u64>(entity).fetch_one();
    assert_eq!((fetch("one").await.unwrap(), fetch("two").await.unwrap()), (1, 2));
    let (one, two) = join(fetch("one"), fetch("two")).await;
    assert_eq!((one.unwrap(), two.unwrap()), (1, 2));
    drop(client);
    server.done().await;
}

async fn share_through(url: &str) {
    let client = connect(builder(url)).await;
    let long = async {
        let rows = client.query::<Value>("v_endless").limit(5_000).fetch_all().await.unwrap();
        assert_eq!(rows.len(), 5_000);
    };
    let shorts = join_all((0..200).map(|number| fetch_and_check(&client, number)));
    join(shorts, long).await;
    // Dropped in between.
    for _ in 0..5 {
        let mut slow = Box::pin(client.query::<Value>("v_short").fetch_all());
        assert!(poll_immediate(&mut slow).await.is_none());
        let mut others = Box::pin(join_all((0..12).map(|n| fetch_and_check(&client, n))));
        assert!(poll_immediate(&mut others).await.is_none());
        drop(slow);
        others.await;
    }
}

#[tokio::test]
async fn fetches_share_a_connection_behind_poolers_and_proxies() {
    let port = cluster().port();
    let at = |port: u16| url_at(([127, 0, 0, 1], port));
    for mode in ["transaction", "session"] {
        let pgbouncer = Daemon::pgbouncer_with(mode, prepares_nothing(), port);
        share_through(&at(pgbouncer.port)).await;
    }
    let pgpool = Daemon::pgpool(port);
    share_through(&at(pgpool.port)).await;
    let haproxy = Daemon::haproxy(&[port]);
    share_through(&at(haproxy.port)).await;
}

/// As a service does: more tasks than requests may be in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_fetches_than_may_be_in_flight_are_answered_in_order() {
    let client = client().await;
    sql("create sequence s_pipeline;
         create view v_pipeline_next as select to_jsonb(nextval('s_pipeline')) as data")
    .await;
    let fetches = (0..400).map(|_| client.query::<u64>("v_pipeline_next").fetch_one());
    let numbers: Vec<_> = join_all(fetches).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(numbers, (1..=400).collect::<Vec<u64>>(), "first come, first served");
}

/// A request that takes longer than `read_timeout` to send is not a silent server.
#[tokio::test]
async fn a_large_request_among_others_may_take_longer_to_send_than_read_timeout() {
    let port = cluster().port();
    let config = builder(&cluster().url()).read_timeout(Duration::from_secs(2));
    let config = config.connector(move |_| async move {
        let server = TcpStream::connect(("127.0.0.1", port)).await?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (mut from_client, mut to_client) = tokio::io::split(theirs);
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        tokio::spawn(async move {
            let mut piece = vec![0; 64 << 10];
            while let Ok(size @ 1..) = from_client.read(&mut piece).await {
                if to_server.write_all(&piece[..size]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_micros(size as u64)).await;
            }
        });
        Ok(ours)
    });
    let client = connect(config).await;
    let large = client.query::<u64>("v_one").where_sql("length($1) > 0").bind("x".repeat(4 << 20));
    let small = || client.query::<u64>("v_one").fetch_all();
    let (first, large, last) = tokio::join!(small(), large.fetch_all(), small());
    assert_eq!([first.unwrap().len(), large.unwrap().len(), last.unwrap().len()], [1, 1, 1]);
}

#[tokio::test]
async fn a_connection_is_opened_once_for_fetches_that_wait_for_it() {
    let proxy = Proxy::to_port(cluster().port()).await;
    let url = format!("{}?sslmode=disable", url_at(proxy.address));
    let client = FraiseClient::new(ConnectionConfig::parse(&url).unwrap());
    join_all((0..50).map(|number| fetch_and_check(&client, number))).await;
    assert_eq!(proxy.connections(), 1);
    // No server: each fetch gets the reason.
    let dead = scripted::login();
    let server = Scripted::start(vec![dead]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let fetch = || client.query::<u64>("v").fetch_one();
    for result in join_all([fetch(), fetch(), fetch()]).await {
        let error = result.unwrap_err();
        let is_reason = matches!(error, Error::Connection { .. } | Error::ConnectionClosed { .. });
        assert!(is_reason, "{error:?}");
    }
}

#[tokio::test]
async fn a_server_error_before_the_end_of_the_connection_is_that_of_its_fetch() {
    let error = scripted::message(b'E', b"SERROR\0VERROR\0C22012\0Mdivision by zero\0\0");
    let first = script([
        Step::ExpectQuery,
        Step::ExpectQuery,
        Step::Send([scripted::message(b'1', b""), error].concat()),
        Step::Close,
    ]);
    let second = script([Step::ExpectQuery, Step::Send(answer(&["2"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![first, second]).await;
    let client = connect(builder(&server.url())).await;
    let fetch = || client.query::<u64>("v").fetch_one();
    let (first, second) = join(fetch(), fetch()).await;
    let error = first.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO), "{error}");
    assert_eq!(second.unwrap(), 2);
    drop(client);
    server.done().await;
}

/// The query would end the next session in the same way, for example by a timeout.
#[tokio::test]
async fn an_error_that_is_not_retriable_ends_its_fetch_with_the_session() {
    for (begun, code) in [
        (scripted::begin_json(), "25P04"),
        (scripted::begin_json(), "57P04"),
        // PgBouncer's `query_timeout`.
        (Vec::new(), "08P01"),
    ] {
        let first = script([
            Step::ExpectQuery,
            Step::ExpectQuery,
            Step::Send([begun, scripted::error("FATAL", code, "the session ends")].concat()),
            Step::Close,
        ]);
        let second = script([Step::ExpectQuery, Step::Send(answer(&["2"]))]);
        let server = Scripted::start(vec![first, second]).await;
        let client = connect(builder(&server.url())).await;
        let fetch = || client.query::<u64>("v").fetch_one();
        let (first, second) = join(fetch(), fetch()).await;
        let error = first.unwrap_err();
        assert_eq!(error.sqlstate().map(|code| code.code()), Some(code), "{error}");
        assert_eq!(second.unwrap(), 2);
        drop(client);
        server.done().await;
    }
}

/// The error is read, and whether the server has begun the query is not known yet, when another
/// fetch comes.
#[tokio::test]
async fn an_error_that_ends_the_session_is_not_lost_to_the_next_fetch() {
    let (is_sent, sent) = oneshot::channel();
    let first = script([
        Step::ExpectQuery,
        Step::Send(answer(&["1"])),
        Step::ExpectQuery,
        Step::Send(scripted::error("FATAL", "57P01", "terminating connection")),
        Step::Signal(is_sent),
        Step::Silence,
    ]);
    let second = script([Step::ExpectQuery, Step::Send(answer(&["3"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![first, second]).await;
    let config = builder(&server.url()).retry(RetryPolicy::none());
    let client = connect(config.cancel_timeout(Duration::from_millis(300))).await;
    let fetch = || Box::pin(client.query::<u64>("v").fetch_one());
    assert_eq!(fetch().await.unwrap(), 1);
    let (mut first, mut second) = (fetch(), fetch());
    assert!(poll_immediate(&mut first).await.is_none());
    sent.await.unwrap();
    for _ in 0..20 {
        assert!(poll_immediate(&mut first).await.is_none());
        tokio::task::yield_now().await;
    }
    assert!(poll_immediate(&mut second).await.is_none());
    let (first, second) = join(first, second).await;
    assert_eq!(first.unwrap_err().sqlstate(), Some(&sqlstate::ADMIN_SHUTDOWN));
    assert_eq!(second.unwrap(), 3);
    drop(client);
    server.done().await;
}

/// A driver cannot be started there. The fetch that it would have continued ends with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_outside_of_a_runtime_blocks_no_other() {
    let client = client().await;
    let mut first = Box::pin(client.query::<Value>("v_asleep").fetch_all());
    assert!(poll_immediate(&mut first).await.is_none());
    let other = client.query::<u64>("v_one").fetch_one();
    let other = std::thread::spawn(move || drop(other.now_or_never()));
    tokio::task::spawn_blocking(|| other.join()).await.unwrap().expect_err("no runtime");
    let error = first.await.unwrap_err();
    assert!(matches!(error, Error::ConnectionClosed { .. }), "{error}");
    assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
}

/// The beginning of an answer is handed over in time, however many requests come meanwhile.
#[tokio::test]
async fn further_requests_do_not_delay_the_first_rows_of_a_slow_answer() {
    let begun = scripted::begun(&["1"]);
    let noticed = [&begun[..], &scripted::message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mx\0\0")];
    for begun in [noticed.concat(), begun.clone()] {
        further_requests_do_not_delay(begun).await;
    }
}

async fn further_requests_do_not_delay(begun: Vec<u8>) {
    let steps = [Step::ExpectQuery, Step::ExpectQuery, Step::Send(begun), Step::Silence];
    let server = Scripted::start(vec![script(steps)]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let first = client.query::<u64>("v").where_rust(|row| *row == 1).fetch_optional();
    let mut others = Vec::new();
    let further = async {
        for _ in 0..400 {
            let mut other = Box::pin(client.query::<u64>("v").fetch_one());
            assert!(poll_immediate(&mut other).await.is_none());
            others.push(other);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match select(Box::pin(first), Box::pin(further)).await {
        Either::Left((first, _)) => assert_eq!(first.unwrap(), Some(1)),
        Either::Right(_) => panic!("the row that had arrived was not delivered"),
    }
}

#[tokio::test]
async fn long_answers_use_prepared_statements() {
    let proxy = Proxy::to_port(cluster().port()).await;
    let url = format!("{}?sslmode=disable", url_at(proxy.address));
    let client = FraiseClient::connect(&url).await.unwrap();
    let mut sent = Vec::new();
    for _ in 0..4 {
        proxy.record();
        let short = client.query::<u64>("v_one").fetch_one();
        let long = client.query::<Value>("v_endless").limit(3_000).fetch_all();
        let (one, rows) = join(short, long).await;
        assert_eq!((one.unwrap(), rows.unwrap().len()), (1, 3_000));
        let bytes = proxy.record();
        sent.push(bytes.windows(9).any(|bytes| bytes == b"v_endless"));
    }
    assert_eq!(sent, [true, true, false, false]);
}

#[tokio::test]
async fn a_row_beyond_max_memory_fails_its_fetch() {
    let client = client().await;
    sql("create view v_pipeline_large as select to_jsonb(repeat('x', 40000)) as data").await;
    let large = || client.query::<Value>("v_pipeline_large").max_memory(10_000).fetch_all();
    for result in join_all((0..5).map(|_| large())).await {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::MemoryLimitExceeded { limit: 10_000, .. }), "{error}");
    }
    join_all((0..10).map(|number| fetch_and_check(&client, number))).await;
}

#[tokio::test]
async fn dropping_all_fetches_cancels_each_and_keeps_the_connection() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    let mut slow: Vec<_> =
        (0..5).map(|_| Box::pin(client.query::<Value>("v_asleep").fetch_one())).collect();
    for slow in &mut slow {
        assert!(poll_immediate(slow).await.is_none());
    }
    eventually("it runs", async || backend_state(&admin, pid).await.as_deref() == Some("active"))
        .await;
    drop(slow);
    fetch_and_check(&client, 1).await;
    assert_eq!(client.backend_pid(), Some(pid));
}

#[tokio::test]
async fn a_fetch_that_follows_a_drop_waits_until_the_dropped_one_is_cancelled() {
    let admin = admin().await;
    let client = client().await;
    let pid = client.backend_pid().unwrap();
    let mut first = Box::pin(client.query::<u64>("v_one").fetch_one());
    assert!(poll_immediate(&mut first).await.is_none());
    let mut slow = Box::pin(client.query::<Value>("v_asleep").fetch_one());
    assert!(poll_immediate(&mut slow).await.is_none());
    assert_eq!(first.await.unwrap(), 1);
    eventually("it runs", async || backend_state(&admin, pid).await.as_deref() == Some("active"))
        .await;
    drop(slow);
    fetch_and_check(&client, 1).await;
    assert_eq!(client.backend_pid(), Some(pid));
}

/// Rows that are sent immediately, and then one that takes long.
const THEN_ASLEEP: &str = "create or replace view v_then_asleep as
    select case when i <= 100 then to_jsonb(repeat('x', 300)) else to_jsonb(pg_sleep(600)::text) end
    as data from (select generate_series(1, 101) i) as numbers";

/// A fetch from `v_then_asleep` that a reader has taken over, and others whose requests are sent
/// after it.
async fn slow_with_followers<'a>(
    client: &'a FraiseClient,
    others: usize,
) -> (
    impl Future<Output = Result<Vec<Value>, Error>> + use<>,
    Vec<impl Future<Output = Result<u64, Error>> + use<'a>>,
) {
    sql(THEN_ASLEEP).await;
    let has_rows = Arc::new(AtomicU64::new(0));
    let rows = Arc::clone(&has_rows);
    let slow = client.query::<Value>("v_then_asleep").where_rust(move |_| {
        rows.fetch_add(1, Ordering::Relaxed);
        true
    });
    let mut slow = Box::pin(slow.fetch_all());
    assert!(poll_immediate(&mut slow).await.is_none());
    let mut followers: Vec<_> =
        (0..others).map(|_| Box::pin(client.query::<u64>("v_one").fetch_one())).collect();
    for follower in &mut followers {
        assert!(poll_immediate(follower).await.is_none());
    }
    while has_rows.load(Ordering::Relaxed) == 0 {
        assert!(poll_immediate(&mut slow).await.is_none());
        tokio::task::yield_now().await;
    }
    (slow, followers)
}

#[tokio::test]
async fn dropping_a_slow_fetch_that_has_rows_stops_it_and_moves_the_others() {
    let admin = admin().await;
    let config = builder(&cluster().url()).cancel_timeout(Duration::from_millis(300));
    let client = connect(config).await;
    let pid = client.backend_pid().unwrap();
    let (slow, followers) = slow_with_followers(&client, 5).await;
    drop(slow);
    for one in join_all(followers).await {
        assert_eq!(one.unwrap(), 1);
    }
    assert_ne!(client.backend_pid(), Some(pid));
    eventually("the old backend is gone", async || backend_state(&admin, pid).await.is_none())
        .await;
}

#[tokio::test]
async fn dropping_a_slow_fetch_that_has_rows_and_all_others_keeps_the_connection() {
    let client = client().await;
    let pid = client.backend_pid();
    let (slow, followers) = slow_with_followers(&client, 5).await;
    drop(slow);
    drop(followers);
    fetch_and_check(&client, 1).await;
    assert_eq!(client.backend_pid(), pid);
}

#[tokio::test]
async fn a_cancel_token_stops_a_slow_fetch_that_has_rows_and_the_others() {
    let client = client().await;
    let pid = client.backend_pid();
    let (slow, followers) = slow_with_followers(&client, 5).await;
    client.cancel_token().cancel().await.unwrap();
    assert!(matches!(slow.await, Err(Error::Cancelled)));
    for follower in followers {
        assert!(matches!(follower.await, Err(Error::Cancelled)));
    }
    fetch_and_check(&client, 1).await;
    assert_eq!(client.backend_pid(), pid);
}

/// A runtime may shut down between the parts of a hand-over. The connection must then have no
/// answer that another fetch would take for its own.
#[test]
fn no_answer_is_left_on_the_connection_by_a_runtime_that_shuts_down() {
    // Its own thread polls the sockets.
    let mut lasting = tokio::runtime::Builder::new_multi_thread();
    let lasting = lasting.worker_threads(1).enable_all().build().unwrap();
    let mut brief = tokio::runtime::Builder::new_current_thread();
    // Runs one task at a time.
    brief.enable_all().event_interval(1);
    for tasks in 0..6 {
        let client = lasting.block_on(FraiseClient::connect(&cluster().url())).unwrap();
        // Not answered before the second one comes.
        let slow = client.query::<u64>("v_short").where_sql("pg_sleep(0.05)::text is not null");
        let mut first = Box::pin(slow.limit(3).fetch_all());
        lasting.block_on(async { assert!(poll_immediate(&mut first).await.is_none()) });
        let mut second = Box::pin(client.query::<u64>("v_short").fetch_all());
        let runtime = brief.build().unwrap();
        runtime.block_on(async {
            assert!(poll_immediate(&mut second).await.is_none());
            for _ in 0..tasks {
                tokio::task::yield_now().await;
            }
        });
        drop(runtime);
        let one = lasting.block_on(client.query::<u64>("v_one").fetch_all());
        assert_eq!(one.unwrap(), [1], "after {tasks} tasks");
        for fetch in [first, second] {
            match lasting.block_on(fetch) {
                Ok(rows) => assert!([3, 300].contains(&rows.len())),
                Err(error) => assert!(matches!(error, Error::ConnectionClosed { .. }), "{error}"),
            }
        }
    }
}

#[tokio::test]
async fn fetches_that_are_dropped_while_connecting_block_nothing() {
    let (is_first, first_connects) = oneshot::channel();
    let (is_second, second_connects) = oneshot::channel();
    let silent = |signal| vec![Step::ExpectStartup, Step::Signal(signal), Step::Silence];
    let third = script([Step::ExpectQuery, Step::Send(answer(&["1"])), Step::ExpectEnd]);
    let server = Scripted::start(vec![silent(is_first), silent(is_second), third]).await;
    let url = server.url().replace("connect_timeout=20&", "");
    let client = FraiseClient::new(ConnectionConfig::parse(&url).unwrap());
    let fetch = || Box::pin(client.query::<u64>("v").fetch_one());
    let (mut first, mut second) = (fetch(), fetch());
    for fetch in [&mut first, &mut second] {
        assert!(poll_immediate(fetch).await.is_none());
    }
    first_connects.await.unwrap();
    drop(first);
    // The second one connects for itself.
    second_connects.await.unwrap();
    drop(second);
    assert_eq!(client.query::<u64>("v").execute().await.unwrap().count().await, 1);
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn a_fetch_that_is_not_polled_does_not_block_a_stream_or_a_ping() {
    let client = client().await;
    for round in 0..3 {
        let mut fetch = Box::pin(client.query::<u64>("v_short").fetch_all());
        assert!(poll_immediate(&mut fetch).await.is_none());
        match round {
            0 => assert_eq!(client.query::<u64>("v_one").execute().await.unwrap().count().await, 1),
            1 => client.ping().await.unwrap(),
            // Long, and its caller does not read it.
            _ => {
                let mut long =
                    Box::pin(client.query::<RawJson>("v_endless").limit(1_000_000).fetch_all());
                assert!(poll_immediate(&mut long).await.is_none());
                assert_eq!(client.query::<u64>("v_one").execute().await.unwrap().count().await, 1);
                let error = long.await.unwrap_err();
                let is_stalled =
                    matches!(error, Error::Timeout { phase: TimeoutPhase::Consumer, .. });
                assert!(is_stalled, "{error}");
            }
        }
        assert_eq!(fetch.await.unwrap().len(), 300);
    }
}
