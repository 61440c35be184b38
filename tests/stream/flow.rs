//! Flow control: pauses, handles, time, memory, chunks and bodies, with consistent statistics.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::support::{
    admin, backend_state, client, cluster, config_at,
    events::Events,
    eventually,
    random::Random,
    scripted::{self, Scripted, Step},
    sql,
    stats::assert_consistent,
};
use fraiseql_wire::{
    ConnectionConfig, Error, ErrorCategory, FraiseClient, QueryStream, RawJson, RowChunk,
    StreamControl, StreamState, TimeoutPhase,
};
use futures_util::{StreamExt, stream::FusedStream};
use serde_json::Value;

fn phase(error: &Error) -> TimeoutPhase {
    let Error::Timeout { phase, .. } = error else { panic!("{error:?}") };
    *phase
}

async fn wait_until_idle(client: &FraiseClient) {
    let admin = admin().await;
    let pid = client.backend_pid().unwrap();
    eventually("the server is idle", async || {
        backend_state(&admin, pid).await.as_deref() == Some("idle")
    })
    .await;
}

#[tokio::test]
async fn stream_control_works_from_another_task() {
    let client = client().await;
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let control = stream.control();
    let paused = tokio::spawn(async move {
        control.pause_with_reason("maintenance").await.unwrap();
        control
    });
    let control: StreamControl = paused.await.unwrap();
    assert_eq!((stream.state(), control.state()), (StreamState::Paused, StreamState::Paused));
    assert_eq!(stream.stats().pause_reason.as_deref(), Some("maintenance"));
    while stream.stats().items_buffered > 0 {
        stream.next().await.unwrap().unwrap();
    }
    assert!(futures_util::poll!(stream.next()).is_pending());
    control.resume().await.unwrap();
    assert_eq!((control.state(), control.stats().pause_reason), (StreamState::Running, None));
    let read = control.stats().total_rows_yielded;
    assert_eq!(stream.next().await.unwrap().unwrap()["id"], read + 1);
    drop(stream);
    assert_eq!(control.state(), StreamState::Cancelled);
    assert_consistent(&control.stats());
    // A caller that only resumes cannot know that the stream has ended.
    control.resume().await.unwrap();
    let error = control.pause().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::InvalidState);
    control.cancel().await.unwrap();
}

/// The consumer must not mistake the cancellation for the end of the rows. The client can be used
/// immediately, even if the stream still exists.
#[tokio::test]
async fn stream_control_cancel_is_an_error_of_the_stream() {
    let client = client().await;
    let mut stream = client.query::<Value>("v_endless").chunk_size(8).execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let control = stream.control();
    control.cancel().await.unwrap();
    assert_eq!(control.state(), StreamState::Cancelled);
    assert_consistent(&control.stats());
    assert_eq!(client.query::<u8>("v_one").fetch_one().await.unwrap(), 1);

    assert_eq!(stream.stats().items_buffered, 7, "the rest of the chunk");
    for id in 2..=8 {
        assert_eq!(stream.next().await.unwrap().unwrap()["id"], id);
    }
    assert!(!stream.is_terminated());
    assert!(matches!(stream.next().await, Some(Err(Error::Cancelled))));
    assert!(stream.next().await.is_none() && stream.is_terminated());
    assert_consistent(&stream.stats());
    assert_eq!(stream.stats().total_rows_yielded, 8);

    // Also while a consumer waits for its next row.
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    let control = stream.control();
    stream.pause().await.unwrap();
    let reading = tokio::spawn(async move {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    });
    control.cancel().await.unwrap();
    assert!(matches!(reading.await.unwrap(), Some(Err(Error::Cancelled))));
}

#[tokio::test]
async fn pause_ends_when_pause_timeout_expires() {
    let (events, _listening) = Events::listen();
    let client = client().await;
    let query = client.query::<Value>("v_endless").pause_timeout(Duration::from_secs(60));
    let mut stream = query.execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    tokio::time::pause();
    stream.pause().await.unwrap();
    let paused = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(stream.state(), StreamState::Paused);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stream.state(), StreamState::Running);
    assert_eq!(stream.stats().paused_for.as_secs(), 60);
    assert_eq!(events.with("cause=\"timeout\"").len(), 1);

    // The timeout can be set and removed during a pause.
    stream.pause().await.unwrap();
    stream.clear_pause_timeout();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(stream.state(), StreamState::Paused);
    stream.set_pause_timeout(Duration::from_secs(3700));
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!((stream.state(), stream.stats().pauses), (StreamState::Running, 2));
    assert!(paused.elapsed().as_secs() > 3700);

    // By a handle too, whichever of the two pauses.
    let control = stream.control();
    control.set_pause_timeout(Duration::from_secs(60));
    stream.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(stream.state(), StreamState::Paused);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stream.state(), StreamState::Running);
    control.pause().await.unwrap();
    control.clear_pause_timeout();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(stream.state(), StreamState::Paused);

    // Also if all rows have arrived, and only the end waits.
    drop(stream);
    let query = client.query::<u8>("v_one").pause_timeout(Duration::from_secs(60));
    let mut stream = query.execute().await.unwrap();
    stream.pause().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn pause_longer_than_statement_timeout_logs_one_warning() {
    let (events, _listening) = Events::listen();
    let config =
        config_at(cluster().port()).statement_timeout(Duration::from_secs(600)).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    tokio::time::pause();
    stream.pause_with_reason("lunch").await.unwrap();
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert!(events.with("statement_timeout").is_empty());
    tokio::time::sleep(Duration::from_secs(6000)).await;
    assert_eq!(events.with("statement_timeout").len(), 1);
    assert_eq!(events.with("lunch").len(), 1);
}

/// A busy consumer on the thread of the reader blocks the reader. This must be recorded, although
/// the reader never finds the queue full: it runs only after the consumer.
#[tokio::test]
async fn busy_consumer_on_the_same_thread_is_recorded_as_slow() {
    let client = client().await;
    let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
    // Without the wait for the first rows, which is long on a busy machine.
    let before = stream.stats();
    for _ in 0..5_000 {
        stream.next().await.unwrap().unwrap();
        std::thread::sleep(Duration::from_micros(50));
    }
    let stats = stream.stats();
    let consumer = stats.time_blocked_on_consumer - before.time_blocked_on_consumer;
    let server = stats.time_blocked_on_server - before.time_blocked_on_server;
    assert!(consumer > server, "{consumer:?} for the consumer, {server:?} for the server");
}

/// Every timeout cancels the query on the server and leaves the client usable. Rows that have
/// arrived are read first.
#[tokio::test]
async fn query_timeouts_cancel_it_on_the_server() {
    // The cleanup may take long on a busy machine.
    let config = config_at(cluster().port()).cancel_timeout(Duration::from_secs(60));
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    let pid = client.backend_pid();
    // Long enough for the first rows of the endless query on a busy machine.
    let short = Duration::from_secs(4);

    // The timeout expires even if the consumer does not read at all.
    let query = client.query::<Value>("v_endless").timeout(short);
    let mut stream = query.execute().await.unwrap();
    wait_until_idle(&client).await;
    let mut rows = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(row) => {
                rows += 1;
                assert_eq!(row["id"], rows);
            }
            Err(e) => break e,
        }
    };
    assert_eq!(phase(&error), TimeoutPhase::Query);
    assert!(error.is_retriable() && error.to_string().contains("4s"), "{error}");
    assert!(stream.next().await.is_none());
    let stats = stream.stats();
    assert_eq!((stats.state, stats.total_rows_yielded), (StreamState::Failed, rows));
    assert!(rows > 0 && stats.total_rows_discarded == 0);
    assert_consistent(&stats);

    // Before the first row.
    for (first_row, expected) in [(true, TimeoutPhase::FirstRow), (false, TimeoutPhase::Query)] {
        let query = client.query::<Value>("v_asleep");
        let query = if first_row { query.first_row_timeout(short) } else { query.timeout(short) };
        assert_eq!(phase(&query.execute().await.unwrap_err()), expected);
        wait_until_idle(&client).await;
    }

    // No data arrives at all.
    let config = config_at(cluster().port()).read_timeout(short).build().unwrap();
    let impatient = FraiseClient::connect_with_config(config).await.unwrap();
    let error = impatient.query::<Value>("v_asleep").execute().await.unwrap_err();
    assert_eq!(phase(&error), TimeoutPhase::Read);
    wait_until_idle(&impatient).await;

    // Rows that arrive in time are not affected.
    let query = client.query::<u64>("v_short").timeout(Duration::from_secs(60));
    let rows = query.first_row_timeout(Duration::from_secs(60)).fetch_all().await.unwrap();
    assert_eq!(rows, (1..=300).collect::<Vec<_>>());
    assert_eq!(client.backend_pid(), pid);

    // The time to connect counts.
    let server = Scripted::start(vec![vec![Step::ExpectStartup, Step::Silence]]).await;
    let client = FraiseClient::new(server.url().parse().unwrap());
    let error = client.query::<Value>("v").timeout(short).execute().await.unwrap_err();
    let Error::Connection { attempts } = &error else { panic!("{error:?}") };
    assert_eq!(phase(&attempts[0].error), TimeoutPhase::Connect);
    assert!(error.is_retriable());
}

const HOUR: Duration = Duration::from_secs(3600);

/// Advances the clock by hours, as if the machine had been suspended.
async fn hours_pass() {
    tokio::time::pause();
    tokio::time::advance(5 * HOUR).await;
    tokio::time::resume();
}

/// Returns a client whose timeouts are an hour.
async fn patient(port: u16) -> FraiseClient {
    let config = config_at(port)
        .ssl_mode(fraiseql_wire::SslMode::Disable)
        .read_timeout(HOUR)
        .cancel_timeout(HOUR);
    FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap()
}

/// A jump of the clock ends only what has a deadline.
#[tokio::test]
async fn clock_jump_ends_only_what_has_a_deadline() {
    let client = patient(cluster().port()).await;
    let pid = client.backend_pid();
    let admin = admin().await;

    // In the middle of a stream.
    for timeout in [None, Some(HOUR)] {
        let query = client.query::<Value>("v_endless").first_row_timeout(HOUR);
        let query = match timeout {
            Some(timeout) => query.timeout(timeout),
            None => query,
        };
        let mut stream = query.execute().await.unwrap();
        let mut next = 0;
        for _ in 0..1000 {
            next += 1;
            assert_eq!(stream.next().await.unwrap().unwrap()["id"], next);
        }
        // During a pause, `read_timeout` does not apply.
        stream.pause().await.unwrap();
        hours_pass().await;
        if timeout.is_none() {
            stream.resume().await.unwrap();
            for _ in 0..20_000 {
                next += 1;
                assert_eq!(stream.next().await.unwrap().unwrap()["id"], next);
            }
            assert!(stream.stats().paused_for > 4 * HOUR && stream.stats().elapsed > 4 * HOUR);
            stream.cancel().await.unwrap();
        } else {
            wait_until_idle(&client).await;
            stream.resume().await.unwrap();
            let error = loop {
                next += 1;
                match stream.next().await.unwrap() {
                    Ok(row) => assert_eq!(row["id"], next),
                    Err(e) => break e,
                }
            };
            assert_eq!(phase(&error), TimeoutPhase::Query);
            assert_eq!(error.category(), ErrorCategory::Timeout);
            assert!(error.is_retriable() && error.to_string().contains("3600s"), "{error}");
            assert!(stream.next().await.is_none());
        }
        drop(stream);
        assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
        assert_eq!(client.backend_pid(), pid);
    }

    // Before the first row. If several deadlines have expired, only one is reported, so each has a
    // client of its own.
    for expected in [TimeoutPhase::Query, TimeoutPhase::FirstRow, TimeoutPhase::Read] {
        let client = match expected {
            TimeoutPhase::Read => patient(cluster().port()).await,
            _ => crate::support::client().await,
        };
        let pid = client.backend_pid();
        let query = client.query::<Value>("v_asleep");
        let query = match expected {
            TimeoutPhase::Query => query.timeout(HOUR),
            TimeoutPhase::FirstRow => query.first_row_timeout(HOUR),
            _ => query,
        };
        let (error, ()) = tokio::join!(query.execute(), async {
            eventually("it runs", async || {
                backend_state(&admin, pid.unwrap()).await.as_deref() == Some("active")
            })
            .await;
            hours_pass().await;
        });
        let error = error.unwrap_err();
        assert_eq!(phase(&error), expected);
        assert!(error.is_retriable());
        assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
        assert_eq!(client.backend_pid(), pid);
    }

    // A pause, and a session that is idle.
    let query = client.query::<Value>("v_endless").pause_timeout(HOUR);
    let mut stream = query.execute().await.unwrap();
    stream.pause().await.unwrap();
    hours_pass().await;
    eventually("it goes on", async || stream.state() == StreamState::Running).await;
    for i in 1..=1000 {
        assert_eq!(stream.next().await.unwrap().unwrap()["id"], i);
    }
    stream.cancel().await.unwrap();
    hours_pass().await;
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
    assert_eq!(client.backend_pid(), pid);
}

/// Also for steps that wait for a silent server: connecting, and cancelling a query.
#[tokio::test]
async fn clock_jump_ends_connecting_and_cleanup() {
    let (told, asked) = tokio::sync::oneshot::channel();
    let silent = vec![Step::ExpectStartup, Step::Signal(told), Step::Silence];
    let server = Scripted::start(vec![silent]).await;
    let url = server.url().replace("connect_timeout=20", "connect_timeout=3600");
    let (error, ()) = tokio::join!(FraiseClient::connect(&url), async {
        asked.await.unwrap();
        hours_pass().await;
    });
    assert_eq!(phase(&error.unwrap_err()), TimeoutPhase::Connect);
    server.done().await;

    let (told, asked) = tokio::sync::oneshot::channel();
    let mut first = scripted::login();
    first.extend([Step::ExpectQuery, Step::Send(scripted::begin_json()), Step::Silence]);
    let cancel = vec![Step::Expect(scripted::cancel_request()), Step::Signal(told), Step::Silence];
    let mut second = scripted::login();
    let answer = [scripted::row("1"), scripted::complete(), scripted::ready()].concat();
    second.extend([Step::ExpectQuery, Step::Send([scripted::begin_json(), answer].concat())]);
    let server = Scripted::start(vec![first, cancel, second]).await;
    let client = patient(server.address.port()).await;
    let mut stream = client.query::<u64>("v").execute().await.unwrap();
    let (error, ()) = tokio::join!(stream.cancel(), async {
        asked.await.unwrap();
        hours_pass().await;
    });
    let error = error.unwrap_err();
    assert_eq!(phase(&error), TimeoutPhase::Cancel);
    assert!(error.is_retriable() && !client.is_connected());
    drop(stream);
    assert_eq!(client.query::<u64>("v").fetch_all().await.unwrap(), [1]);
    drop(client);
    server.done().await;
}

/// No row can arrive during a pause, so pauses do not count.
#[tokio::test]
async fn first_row_timeout_excludes_pauses() {
    let (go, wait) = tokio::sync::oneshot::channel();
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    script.push(Step::Send(scripted::begin_json()));
    script.push(Step::Wait(wait));
    script.push(Step::Send([scripted::row("1"), scripted::complete(), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let query = client.query::<u8>("v").first_row_timeout(Duration::from_secs(100));
    let mut stream = query.execute().await.unwrap();
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(90)).await;
    stream.pause().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    stream.resume().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    tokio::time::resume();
    go.send(()).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    assert!(stream.next().await.is_none());
    drop((stream, client));
    server.done().await;
}

#[tokio::test]
async fn soft_limits_warn_once_per_crossing_and_fail_once() {
    let (events, _listening) = Events::listen();
    let client = client().await;
    let query = client.query::<Value>("v_endless").max_memory(1 << 20).memory_soft_limits(0.5, 1.0);
    let mut stream = query.execute().await.unwrap();
    for round in 1..=3 {
        eventually("memory is full", async || stream.stats().estimated_memory > 950 << 10).await;
        assert_eq!(events.with("soft limit").len(), round);
        // Almost empty again.
        stream.pause().await.unwrap();
        while stream.stats().items_buffered > 0 {
            stream.next().await.unwrap().unwrap();
        }
        stream.resume().await.unwrap();
        stream.next().await.unwrap().unwrap();
    }
    drop(stream);

    let query = client.query::<Value>("v_endless").max_memory(1 << 20).memory_soft_limits(0.2, 0.5);
    let mut stream = query.execute().await.unwrap();
    wait_until_idle(&client).await;
    let mut rows = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => rows += 1,
            Err(e) => break e,
        }
    };
    // The consumer is slow, and the advice is about the consumer: no document is too large.
    let Error::ConsumerLagged { limit, buffered } = error else { panic!("{error:?}") };
    assert!(limit == 512 << 10 && buffered <= limit, "{limit}, {buffered}");
    assert!(buffered > limit / 2, "{limit}, {buffered}");
    let text = error.to_string();
    assert!(text.contains("the consumer is too slow") && !text.contains("select less"), "{text}");
    assert_eq!((error.category().as_str(), error.is_retriable()), ("consumer_lagged", false));
    assert!(stream.next().await.is_none());
    assert!(rows > 1000, "{rows} rows had come");
    assert!(stream.stats().peak_memory <= limit);
    client.ping().await.unwrap();
}

/// The chunk size follows the speed of the consumer, and no row waits for a chunk to fill.
#[tokio::test]
async fn adaptive_chunk_size_follows_the_consumer() {
    let adaptive = |client: &FraiseClient| {
        let query = client.query::<Value>("v_endless").adaptive_chunking(true).chunk_size(4);
        query.adaptive_min_size(2).adaptive_max_size(64).max_memory(4 << 20)
    };
    let client = client().await;
    let mut stream = adaptive(&client).execute().await.unwrap();
    // If the server is slow for a moment, the size may decrease in between.
    for row in 0.. {
        // The reader runs as far as it can before every row.
        tokio::task::yield_now().await;
        stream.next().await.unwrap().unwrap();
        if stream.stats().chunk_size == 64 {
            break;
        }
        assert!(row < 400_000, "{:?}", stream.stats());
    }
    assert!(stream.stats().chunk_adjustments >= 4);
    drop(stream);

    // The consumer waits for each row.
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    script.push(Step::Send(scripted::begin_json()));
    let mut goes = VecDeque::new();
    for _ in 0..20 {
        let (go, wait) = tokio::sync::oneshot::channel();
        goes.push_back(go);
        script.push(Step::Wait(wait));
        script.push(Step::Send(scripted::row("1")));
    }
    script.push(Step::Send([scripted::complete(), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = adaptive(&client).execute().await.unwrap();
    while let Some(go) = goes.pop_front() {
        assert!(futures_util::poll!(stream.next()).is_pending());
        go.send(()).unwrap();
        stream.next().await.unwrap().unwrap();
    }
    assert!(stream.next().await.is_none());
    let stats = stream.stats();
    assert_eq!((stats.chunk_size, stats.chunk_adjustments), (2, 1));
    drop((stream, client));
    server.done().await;
}

#[tokio::test]
async fn blocked_time_is_attributed_to_server_or_consumer() {
    let client = client().await;
    let began = Instant::now();
    let mut stream =
        client.query::<Value>("v_endless").max_memory(64 << 10).execute().await.unwrap();
    // This also lets the consumer run. The reader then continues: it waits for room until no more
    // data arrives.
    eventually("the reader waits for room", async || {
        let before = stream.stats();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let after = stream.stats();
        after.time_blocked_on_consumer > before.time_blocked_on_consumer
            && after.time_blocked_on_server == before.time_blocked_on_server
            && after.total_rows_received == before.total_rows_received
    })
    .await;
    let before = stream.stats();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let after = stream.stats();
    let blocked = after.time_blocked_on_consumer - before.time_blocked_on_consumer;
    assert!(blocked >= Duration::from_millis(45), "{before:?} {after:?}");
    assert_eq!(after.time_blocked_on_server, before.time_blocked_on_server);
    // The time of a pause counts for neither side.
    stream.pause().await.unwrap();
    let before = stream.stats();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let after = stream.stats();
    assert_eq!(after.time_blocked_on_consumer, before.time_blocked_on_consumer);
    stream.cancel().await.unwrap();
    let stats = stream.stats();
    let blocked = stats.time_blocked_on_consumer + stats.time_blocked_on_server;
    assert!(blocked + stats.paused_for <= began.elapsed());

    let (go, wait) = tokio::sync::oneshot::channel();
    let mut script = scripted::login();
    script.push(Step::ExpectQuery);
    script.push(Step::Send(scripted::begin_json()));
    script.push(Step::Wait(wait));
    script.push(Step::Send([scripted::complete(), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<u8>("v").execute().await.unwrap();
    eventually("it waits for the server", async || {
        stream.stats().time_blocked_on_server > Duration::ZERO
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    go.send(()).unwrap();
    assert!(stream.next().await.is_none());
    let stats = stream.stats();
    assert!(stats.time_blocked_on_server >= Duration::from_millis(45), "{stats:?}");
    assert_eq!(stats.time_blocked_on_consumer, Duration::ZERO);
}

#[tokio::test]
async fn next_chunk_returns_many_rows() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Named<'a> {
        name: &'a str,
    }
    sql("create view v_named as
         select case when i % 10 = 0 then null else jsonb_build_object('name', 'n' || i) end as data
         from generate_series(1, 5000) i")
    .await;
    let client = client().await;
    let mut stream = client.query::<RawJson>("v_named").execute().await.unwrap();
    // Reading chunks can begin in the middle of a chunk.
    assert_eq!(stream.next().await.unwrap().unwrap().as_str(), r#"{"name": "n1"}"#);
    let (mut number, mut chunks) = (1, 0);
    while let Some(chunk) = stream.next_chunk().await {
        let chunk: RowChunk = chunk.unwrap();
        chunks += 1;
        assert!((1..=256).contains(&chunk.len()), "{chunk:?}");
        assert_eq!(chunk.rows().count(), chunk.len());
        let copy = chunk.clone();
        for (row, decoded) in copy.rows().zip(chunk.decode::<Option<Named<'_>>>()) {
            number += 1;
            let (expected, name) = match number % 10 {
                0 => ("null".to_owned(), None),
                _ => (format!("{{\"name\": \"n{number}\"}}"), Some(format!("n{number}"))),
            };
            assert_eq!(row, expected.as_bytes());
            assert_eq!(decoded.unwrap().map(|row| row.name.to_owned()), name);
        }
        // Errors name the number of the row in the stream.
        let first = number - chunk.len() as u64 + 1;
        for (row, error) in (first..).zip(chunk.decode::<u8>()) {
            assert!(error.unwrap_err().to_string().contains(&format!("row {row} ")));
        }
        assert_consistent(&stream.stats());
    }
    assert!(chunks >= 5000 / 256 && number == 5000);
    let stats = stream.stats();
    assert_eq!((stats.total_rows_yielded, stats.state), (5000, StreamState::Completed));
    assert_eq!(stats.bytes_buffered, 0);
}

/// Predicates apply to chunks too. A row that they cannot be applied to is an error in its place.
#[tokio::test]
async fn chunks_contain_only_rows_that_predicates_accept() {
    sql("create view v_judged as
         select case when i % 100 = 50 then '1e999' else to_json(i) end as data
         from generate_series(1, 300) i")
    .await;
    let client = client().await;
    let mut stream = client
        .query::<RawJson>("v_judged")
        .where_rust(|n| n.as_u64().is_some_and(|n| n % 3 == 0))
        .where_typed(|n| n.as_str().len() < 3 || n.as_str() > "2")
        .execute()
        .await
        .unwrap();
    let mut rows: Vec<Result<u64, u64>> = Vec::new();
    while let Some(chunk) = stream.next_chunk().await {
        match chunk {
            Ok(chunk) => rows.extend(chunk.decode::<u64>().map(|n| Ok(n.unwrap()))),
            Err(Error::JsonDecode { row, .. }) => rows.push(Err(row)),
            Err(other) => panic!("{other}"),
        }
    }
    let expected: Vec<_> = (1..=300)
        .filter_map(|n| match n {
            n if n % 100 == 50 => Some(Err(n)),
            n if n % 3 == 0 && !(100..200).contains(&n) => Some(Ok(n)),
            _ => None,
        })
        .collect();
    assert_eq!(rows, expected);
    let stats = stream.stats();
    assert_eq!(stats.total_rows_failed, 3);
    assert_consistent(&stats);
}

/// serde_json decodes an unusual document to a value, or fails for that row alone. `RawJson`
/// returns all of them unchanged.
#[tokio::test]
async fn unusual_documents_are_raw_unchanged_and_decode_or_fail_per_row() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let documents = [
        deep.as_str(),
        "1e999",
        "123456789012345678901234567890",
        r#""\ud800""#,
        r#"{"a":1,"a":2}"#,
        r#""\u0000""#,
        "-0",
        "1.10",
    ];
    let values: Vec<_> =
        documents.iter().enumerate().map(|(i, d)| format!("({i}, '{d}'::json)")).collect();
    sql(&format!(
        "create view v_unusual as select data from (values {}) t(i, data) order by i",
        values.join(", ")
    ))
    .await;
    let client = client().await;
    let raw: Vec<RawJson> = client.query("v_unusual").fetch_all().await.unwrap();
    assert_eq!(raw.iter().map(RawJson::as_str).collect::<Vec<_>>(), documents);

    let mut rows = client.query::<Value>("v_unusual").execute().await.unwrap();
    let mut next = async || rows.next().await.unwrap().map_err(|e| e.to_string());
    let nested_too_deeply = next().await.unwrap_err();
    assert!(nested_too_deeply.contains("valid JSON"), "{nested_too_deeply}");
    assert!(nested_too_deeply.contains("recursion limit exceeded"), "{nested_too_deeply}");
    assert!(next().await.is_err(), "no f64 is so large");
    // Exact only for a type that keeps the digits, and for `RawJson`.
    assert_eq!(next().await.unwrap().as_f64().unwrap(), 123_456_789_012_345_680_000_000_000_000.0);
    assert!(next().await.is_err(), "half of a character is no Unicode text");
    assert_eq!(next().await.unwrap(), serde_json::json!({"a": 2}), "the last one counts");
    assert_eq!(next().await.unwrap(), "\0");
    assert_eq!(next().await.unwrap().to_string(), "-0.0");
    assert_eq!(next().await.unwrap().as_f64(), Some(1.1));
    assert!(rows.next().await.is_none());

    #[derive(Debug, serde::Deserialize)]
    struct A {
        #[allow(dead_code)]
        a: u8,
    }
    let twice = client.query::<A>("v_unusual").offset(4).limit(1).fetch_one().await.unwrap_err();
    assert!(twice.is_row_error() && matches!(twice, Error::Deserialization { .. }), "{twice:?}");
}

/// Streams that are dropped one after another use one connection, and one more for the cancel
/// request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_of_dropped_streams_does_not_accumulate_connections() {
    let admin = admin().await;
    let others = "select count(*) from pg_stat_activity
                  where backend_type = 'client backend' and application_name = 'burst'";
    let url = format!("{}?application_name=burst", cluster().url());
    // On a busy machine, the default is not enough to keep every connection.
    let config = url.parse::<ConnectionConfig>().unwrap().to_builder();
    let config = config.cancel_timeout(Duration::from_secs(60)).build().unwrap();
    let burst = async |streams: usize| {
        let client = FraiseClient::connect_with_config(config.clone()).await.unwrap();
        let pid = client.backend_pid();
        for _ in 0..streams {
            let stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
            drop(stream);
        }
        client.ping().await.unwrap();
        assert_eq!(client.backend_pid(), pid, "no drop cost the connection");
        client
    };
    let clients = futures_util::future::join_all((0..8).map(|_| burst(25))).await;
    let open: i64 = admin.query_one(others, &[]).await.unwrap().get(0);
    assert_eq!(open, 8);
    drop(clients);

    // With many clients in parallel.
    let connect = async || {
        let client = FraiseClient::connect_with_config(config.clone()).await.unwrap();
        let stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
        (client, stream)
    };
    let (clients, streams): (Vec<_>, Vec<_>) =
        futures_util::future::join_all((0..40).map(|_| connect())).await.into_iter().unzip();
    drop(streams);
    for client in &clients {
        client.ping().await.unwrap();
    }
    drop(clients);
    eventually("every connection is gone", async || {
        admin.query_one(others, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

/// No task outlives its stream, however it ends, except for the cleanup.
#[tokio::test]
async fn no_task_outlives_its_stream() {
    let client = client().await;
    client.ping().await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let endless = async || {
        let query = client.query::<Value>("v_endless").pause_timeout(Duration::from_secs(3600));
        let mut stream = query.timeout(Duration::from_secs(3600)).execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream
    };
    let gone = async |ending: &str| {
        eventually(&format!("no task is left: {ending}"), async || tasks() == before).await;
    };
    client.query::<u64>("v_short").fetch_all().await.unwrap();
    gone("read to the end").await;
    drop(endless().await);
    gone("dropped").await;
    let mut stream = endless().await;
    stream.pause().await.unwrap();
    drop(stream);
    gone("dropped in a pause").await;
    endless().await.cancel().await.unwrap();
    gone("cancelled").await;
    let stream = endless().await;
    let control = stream.control();
    control.cancel().await.unwrap();
    gone("cancelled by a handle that is still there, like the stream").await;
    drop(stream);
    let short = client.query::<Value>("v_asleep").timeout(Duration::from_millis(50));
    short.execute().await.unwrap_err();
    gone("timed out").await;
    drop(control);
}

/// Random operations on a stream, in random order, lose and repeat no row, and the statistics are
/// consistent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_lose_and_repeat_no_row() {
    const ROWS: u64 = 3000;
    sql("create view v_numbered as
         select jsonb_build_object('id', i, 'text', repeat('x', i % 100)) as data
         from generate_series(1, 3000) i")
    .await;
    let lives = async |seeds: std::ops::Range<u64>| {
        let client = client().await;
        let pid = client.backend_pid();
        for seed in seeds {
            let random = &mut Random::of(seed);
            let query = client
                .query::<Value>("v_numbered")
                .chunk_size(1 + random.below(300) as usize)
                .adaptive_chunking(random.below(2) == 0)
                .max_memory(2048 << random.below(8));
            live(query.execute().await.unwrap(), random, ROWS)
                .await
                .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(client.backend_pid(), pid, "seed {seed}");
        }
    };
    tokio::join!(lives(0..500), lives(500..1000));
}

/// Runs random operations against a model of two values: the rows read, and whether the stream is
/// paused.
async fn live(
    mut stream: QueryStream<Value>,
    random: &mut Random,
    rows: u64,
) -> Result<(), String> {
    let control = stream.control();
    let (mut read, mut paused) = (0, false);
    loop {
        let before = stream.stats();
        assert_consistent(&before);
        if (before.state == StreamState::Paused) != paused {
            return Err(format!("paused is {paused}, but {before:?}"));
        }
        match random.below(20) {
            0 => {
                control.pause().await.map_err(|e| e.to_string())?;
                paused = true;
            }
            1 => {
                stream.pause().await.map_err(|e| e.to_string())?;
                paused = true;
            }
            2 | 3 => {
                control.resume().await.map_err(|e| e.to_string())?;
                paused = false;
            }
            4 => tokio::task::yield_now().await,
            5 if random.below(10) == 0 => {
                stream.cancel().await.map_err(|e| e.to_string())?;
                assert_consistent(&stream.stats());
                let ended = stream.next().await.is_none();
                return ended.then_some(()).ok_or("a row behind cancel()".into());
            }
            6 if random.below(20) == 0 => return Ok(()),
            7 => {
                let Some(chunk) = futures_util::FutureExt::now_or_never(stream.next_chunk()) else {
                    continue;
                };
                let Some(chunk) = chunk else { break };
                for row in chunk.map_err(|e| e.to_string())?.decode::<Value>() {
                    read += 1;
                    let row = row.map_err(|e| e.to_string())?;
                    if row["id"] != read {
                        return Err(format!("{row} came as row {read}"));
                    }
                }
            }
            n => {
                // At most this number of rows, or the buffered ones.
                for _ in 0..1 + random.below(n * 20) {
                    let next = match paused || random.below(2) == 0 {
                        true => futures_util::FutureExt::now_or_never(stream.next()),
                        false => Some(stream.next().await),
                    };
                    let Some(next) = next else { break };
                    let Some(row) = next else {
                        let all = !paused && read == rows;
                        return all.then_some(()).ok_or(format!("it ended behind row {read}"));
                    };
                    read += 1;
                    let row = row.map_err(|e| e.to_string())?;
                    if row["id"] != read {
                        return Err(format!("{row} came as row {read}"));
                    }
                }
            }
        }
        let stats = stream.stats();
        if stats.total_rows_yielded != read || stats.total_rows_received > rows {
            return Err(format!("{read} were read, but {stats:?}"));
        }
    }
    (!paused && read == rows).then_some(()).ok_or(format!("it ended behind row {read}"))
}
