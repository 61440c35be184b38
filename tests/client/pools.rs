//! Clients from pools: their owners, their number, and their state after their return.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{
    Replicated, admin, backend_state, cluster,
    cluster::{Cluster, REQUIRE_PASSWORD},
    eventually,
    random::Random,
    terminate,
};
use fraiseql_wire::{
    CancelToken, ConnectionConfig, Error, QueryBuilder, RawJson, RetryPolicy,
    pool::{self, Pooled},
};
use futures_util::{
    StreamExt,
    future::{join_all, poll_immediate},
};

const CLIENTS: usize = 8;

fn config(name: &str) -> ConnectionConfig {
    format!("{}?application_name={name}", cluster().url()).parse().unwrap()
}

fn deadpool(name: &str) -> pool::deadpool::Pool {
    let manager = pool::deadpool::Manager::new(config(name)).pool_name(name);
    pool::deadpool::Pool::builder(manager).max_size(CLIENTS).build().unwrap()
}

async fn bb8(name: &str) -> pool::bb8::Pool {
    let manager = pool::bb8::Manager::new(config(name)).pool_name(name);
    // It is not fair: a caller may wait for long.
    let patience = Duration::from_secs(600);
    let builder = pool::bb8::Pool::builder().max_size(CLIENTS as u32).connection_timeout(patience);
    builder.build(manager).await.unwrap()
}

/// Checks out a client, from either pool.
trait Take: Send + Sync + 'static {
    fn take(&self) -> impl Future<Output = impl Pooled + Send> + Send;
}

impl Take for pool::deadpool::Pool {
    async fn take(&self) -> impl Pooled + Send {
        self.get().await.unwrap()
    }
}

impl Take for pool::bb8::Pool {
    async fn take(&self) -> impl Pooled + Send {
        self.get_owned().await.unwrap()
    }
}

/// Returns the number of backends of clients with this name.
async fn backends(admin: &tokio_postgres::Client, name: &str) -> i64 {
    let query = "select count(*) from pg_stat_activity where application_name = $1";
    admin.query_one(query, &[&name]).await.unwrap().get(0)
}

/// Runs 10,000 checkouts over 8 connections, dropped at random. There are never more than 8
/// backends, every query is answered, and with its own rows.
async fn ten_thousand_checkouts(name: &str, pool: &(impl Take + Clone)) {
    const CHECKOUTS: u64 = 10_000;
    let (next, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let most = AtomicI64::new(0);
    let done = AtomicBool::new(false);
    let admin = admin().await;
    let watch = async {
        while !done.load(SeqCst) {
            most.fetch_max(backends(&admin, name).await, SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let work = async {
        let mut workers = tokio::task::JoinSet::new();
        for seed in 0..CLIENTS as u64 * 2 {
            let (next, answered, pool) = (Arc::clone(&next), Arc::clone(&answered), pool.clone());
            workers.spawn(async move {
                let random = &mut Random::of(seed);
                loop {
                    let number = next.fetch_add(1, SeqCst);
                    if number >= CHECKOUTS {
                        break;
                    }
                    check_out(pool.take().await, number, random).await;
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
        }
        done.store(true, SeqCst);
    };
    tokio::join!(watch, work);
    assert_eq!(answered.load(SeqCst), CHECKOUTS);
    let most = most.load(SeqCst);
    assert!((1..=CLIENTS as i64).contains(&most), "{most} backends");
}

/// Uses a client once. All rows of its query contain `number`.
async fn check_out(client: impl Pooled, number: u64, random: &mut Random) {
    let number = number as i64;
    let tagged = |query: QueryBuilder<(i64, u64)>| {
        query.select_projection("jsonb_build_array($1::bigint, data)").bind(number)
    };
    let fate = random.below(20);
    let wanted = 1 + random.below(60);
    let mut stream = match fate {
        0 => return drop(client),
        1 => return drop(client.query::<RawJson>("v_one")),
        2 => {
            let error = client.query::<RawJson>("v_missing").execute().await.unwrap_err();
            assert!(error.as_db_error().is_some());
            return;
        }
        3 => {
            // Dropped anywhere between the checkout and the first row.
            let execute = client.query::<RawJson>("v_asleep").execute();
            let patience = Duration::from_micros(random.below(3000));
            return drop(tokio::time::timeout(patience, execute).await);
        }
        4 => tagged(client.query("v_endless"))
            .select_projection("jsonb_build_array($1::bigint, data->'id')")
            .execute()
            .await
            .unwrap(),
        _ => tagged(client.query("v_short")).limit(40).execute().await.unwrap(),
    };
    let mut read = 0;
    while let Some(row) = stream.next().await {
        read += 1;
        assert_eq!(row.unwrap(), (number, read));
        if read == wanted {
            return;
        }
    }
    assert_eq!(read, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_checkouts_of_deadpool_need_eight_backends() {
    let pool = deadpool("ten_thousand_of_deadpool");
    ten_thousand_checkouts("ten_thousand_of_deadpool", &pool).await;
    eventually("all are back", async || pool.status().available == pool.status().size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_checkouts_of_bb8_need_eight_backends() {
    let pool = bb8("ten_thousand_of_bb8").await;
    ten_thousand_checkouts("ten_thousand_of_bb8", &pool).await;
    eventually("all are back", async || pool.state().idle_connections == pool.state().connections)
        .await;
}

/// Two queries of one checkout share its connection. Its client returns to the pool when neither
/// runs on the server any more.
#[tokio::test]
async fn fetches_that_share_a_connection_keep_its_place_in_the_pool() {
    let manager = pool::deadpool::Manager::new(config("shared"));
    let pool = pool::deadpool::Pool::builder(manager).max_size(1).build().unwrap();
    let client = pool.get().await.unwrap();
    let pid = client.backend_pid().unwrap();
    let query = client.query::<RawJson>("v_asleep");
    let mut fetches = Box::pin(join_all([query.clone().fetch_all(), query.fetch_all()]));
    assert!(poll_immediate(&mut fetches).await.is_none());
    let admin = admin().await;
    eventually("it runs", async || {
        // The second request is sent by a task.
        backend_state(&admin, pid).await.as_deref() == Some("active")
    })
    .await;
    drop(fetches);
    assert_eq!(pool.status().available, 0, "answers are being discarded");
    let client = pool.get().await.unwrap();
    assert_eq!(client.backend_pid(), Some(pid), "the same connection");
    assert_eq!(backends(&admin, "shared").await, 1);
    assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
}

/// A stream keeps its place in the pool until it has ended and its cleanup has finished, wherever
/// it is.
#[tokio::test]
async fn stream_keeps_its_place_in_the_pool() {
    let pool = deadpool("kept");
    let used = || pool.status().size - pool.status().available;
    assert_eq!(used(), 0);
    let query = pool.get().await.unwrap().query::<u64>("v_short");
    assert_eq!(used(), 1);
    let mut stream = query.execute().await.unwrap();
    while stream.next().await.is_some() {
        assert_eq!(used(), 1);
    }
    // Its end has been read. That the stream still exists has no effect.
    eventually("it is back", async || used() == 0).await;
    drop(stream);
    // An error that keeps the connection.
    let query = pool.get().await.unwrap().query::<RawJson>("v_short");
    let mut stream =
        query.select_projection("to_jsonb(1 / (data::text::int - 200))").execute().await.unwrap();
    while let Some(row) = stream.next().await {
        if row.is_err() {
            break;
        }
        assert_eq!(used(), 1);
    }
    eventually("it is back", async || used() == 0).await;
    // Dropped in the middle: returned only when the connection is clean.
    let client = pool.get().await.unwrap();
    let pid = client.backend_pid();
    let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    assert_eq!(used(), 1);
    drop(stream);
    assert_eq!(used(), 1, "it is being cleaned up");
    eventually("it is back", async || used() == 0).await;
    let client = pool.get().await.unwrap();
    assert_eq!(client.backend_pid(), pid, "the same connection");
    assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
    assert_eq!(used(), 0, "and behind a query that was collected");
    // Dropping the pool does not end its streams.
    let mut stream = pool.get().await.unwrap().query::<u64>("v_short").execute().await.unwrap();
    drop(pool);
    let mut rows = 0;
    while let Some(row) = stream.next().await {
        row.unwrap();
        rows += 1;
    }
    assert_eq!(rows, 300);
}

/// A token belongs to one checkout. It cancels what runs on the client until the client is
/// returned, also a stream that keeps the client. After that it has no effect.
#[tokio::test]
async fn cancel_token_of_a_pooled_client_is_void_when_the_client_is_returned() {
    use ::deadpool::managed::Object;
    let manager = pool::deadpool::Manager::new(config("tokens"));
    let deadpool = pool::deadpool::Pool::builder(manager).max_size(1).build().unwrap();
    let bb8 = ::bb8::Pool::builder()
        .max_size(1)
        // With this, nothing is called when a client is checked out.
        .test_on_check_out(false)
        .build(pool::bb8::Manager::new(config("tokens")))
        .await
        .unwrap();
    let of_deadpool = async || {
        let client: Object<_> = deadpool.get().await.unwrap();
        (client.cancel_token(), client)
    };
    let of_bb8 = async || {
        let client = bb8.get_owned().await.unwrap();
        (client.cancel_token(), client)
    };
    void_when_returned(of_deadpool).await;
    void_when_returned(of_bb8).await;
}

async fn void_when_returned<C: Pooled>(take: impl AsyncFn() -> (CancelToken, C)) {
    // Returned without a query, after a query, and after a dropped query.
    for end in 0..3 {
        let (void, client) = take().await;
        match end {
            0 => drop(client),
            1 => assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]),
            _ => {
                let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
                stream.next().await.unwrap().unwrap();
            }
        }
        let (token, client) = take().await;
        let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
        for _ in 0..1000 {
            stream.next().await.unwrap().unwrap();
        }
        void.cancel().await.unwrap();
        // More time than a request could need.
        for _ in 0..100_000 {
            stream.next().await.unwrap().unwrap();
        }
        // The client's own token is valid.
        token.clone().cancel().await.unwrap();
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        assert!(matches!(error, Error::Cancelled), "{error:?}");
        token.cancel().await.unwrap();
    }
}

/// A lost connection is replaced, and not counted twice.
#[tokio::test]
async fn lost_pooled_connection_is_replaced() {
    let pool = deadpool("lost");
    let admin = admin().await;
    let client = pool.get().await.unwrap();
    let pid = client.backend_pid().unwrap();
    terminate(&admin, pid).await;
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
    let client = pool.get().await.unwrap();
    client.ping().await.unwrap();
    assert_ne!(client.backend_pid(), Some(pid));
    assert_eq!(backends(&admin, "lost").await, 1);
    assert_eq!(pool.status().size, 1);
    // In the middle of a stream: the stream ends with the error.
    let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    let end =
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'lost'";
    admin.execute(end, &[]).await.unwrap();
    let error = loop {
        if let Err(e) = stream.next().await.unwrap() {
            break e;
        }
    };
    assert!(error.is_retriable(), "{error:?}");
    assert_eq!(pool.get().await.unwrap().query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
}

/// A caller that waits too long gets the pool's error; one that cannot connect gets the server's.
#[tokio::test]
async fn pool_and_server_errors_are_distinguished() {
    let manager = pool::deadpool::Manager::new(config("errors"));
    let pool = pool::deadpool::Pool::builder(manager)
        .max_size(1)
        .wait_timeout(Some(Duration::from_millis(50)))
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .unwrap();
    let stream = pool.get().await.unwrap().query::<u64>("v_short").execute().await.unwrap();
    let error = pool.get().await.unwrap_err();
    assert!(matches!(error, deadpool::managed::PoolError::Timeout(_)), "{error:?}");
    drop(stream);
    eventually("there is room again", async || pool.get().await.is_ok()).await;
    let nowhere: ConnectionConfig = "postgres://postgres@127.0.0.1:1/postgres".parse().unwrap();
    let manager = pool::deadpool::Manager::new(nowhere);
    let pool = pool::deadpool::Pool::builder(manager).max_size(1).build().unwrap();
    match pool.get().await.unwrap_err() {
        deadpool::managed::PoolError::Backend(Error::Connection { .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// A pool that grows while the server restarts waits for it. Its first connection does not.
#[tokio::test]
async fn growing_pool_connects_when_the_server_is_back() {
    let server = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let config = || {
        let config: ConnectionConfig = server.url().parse().unwrap();
        let policy = RetryPolicy::default().max_attempts(u32::MAX).max_backoff(MAX_BACKOFF);
        config.to_builder().retry(policy).build().unwrap()
    };
    let pool = pool::deadpool::builder(config()).max_size(2).build().unwrap();
    let impatient = pool::deadpool::builder(config()).max_size(2);
    let impatient = impatient.create_timeout(Some(Duration::from_secs(3))).build().unwrap();
    let few = RetryPolicy::default().max_attempts(2).max_backoff(MAX_BACKOFF);
    let few = config().to_builder().retry(few).build().unwrap();
    let giving_up = pool::deadpool::builder(few).max_size(2).build().unwrap();
    let manager = pool::bb8::Manager::new(config());
    let other = pool::bb8::Pool::builder().max_size(2).build(manager).await.unwrap();
    let _held = (
        pool.get().await.unwrap(),
        impatient.get().await.unwrap(),
        giving_up.get().await.unwrap(),
        other.get_owned().await.unwrap(),
    );
    server.control(&["stop", "-m", "fast"]);

    let error = impatient.get().await.unwrap_err();
    assert!(matches!(error, pool::deadpool::PoolError::Timeout(_)), "{error:?}");
    let error = giving_up.get().await.unwrap_err();
    let pool::deadpool::PoolError::Backend(Error::Connection { .. }) = error else {
        panic!("{error:?}")
    };
    let new = pool::deadpool::builder(config()).build().unwrap();
    let error = new.get().await.unwrap_err();
    assert!(matches!(error, pool::deadpool::PoolError::Backend(_)), "the first: {error:?}");

    let growing = tokio::spawn({
        let (pool, other) = (pool.clone(), other.clone());
        async move {
            let client = pool.get().await.unwrap();
            client.ping().await.unwrap();
            other.get_owned().await.unwrap().ping().await.unwrap();
        }
    });
    // It has failed at least once by then.
    tokio::time::sleep(10 * MAX_BACKOFF).await;
    assert!(!growing.is_finished());
    server.control(&["start"]);
    growing.await.unwrap();
    assert_eq!(pool.status().size, 2);
    server.stop();
}

const MAX_BACKOFF: Duration = Duration::from_millis(20);

/// bb8 retries until its timeout, and its error has no reason. Its sink receives the reason.
#[tokio::test]
async fn bb8_sink_receives_the_reason_why_it_cannot_connect() {
    #[derive(Debug, Clone, Default)]
    struct Sink(Arc<Mutex<Vec<Error>>>);
    impl bb8::ErrorSink<Error> for Sink {
        fn sink(&self, error: Error) {
            self.0.lock().unwrap().push(error);
        }
        fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<Error>> {
            Box::new(self.clone())
        }
    }
    let nowhere: ConnectionConfig = "postgres://postgres@127.0.0.1:1/postgres".parse().unwrap();
    for retry in [true, false] {
        let sink = Sink::default();
        let pool = pool::bb8::Pool::builder()
            .max_size(1)
            .retry_connection(retry)
            .connection_timeout(Duration::from_millis(500))
            .error_sink(Box::new(sink.clone()))
            .build(pool::bb8::Manager::new(nowhere.clone()))
            .await
            .unwrap();
        let error = pool.get_owned().await.unwrap_err();
        assert!(matches!(error, pool::bb8::PoolError::TimedOut), "{error:?}");
        let told = sink.0.lock().unwrap();
        assert!(matches!(told.as_slice(), [Error::Connection { .. }, ..]), "{told:?}");
    }
}

/// The metrics of pools have the names of OpenTelemetry.
#[test]
fn pool_metrics_follow_the_conventions() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        fraiseql_wire::metrics::describe();
        runtime.block_on(async {
            let pool = deadpool("measured");
            let client = pool.get().await.unwrap();
            assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
            let _used = pool.get().await.unwrap();
            let _other = pool.get().await.unwrap();
            drop(pool.get().await.unwrap());
            pool::deadpool::record(&pool);
            let manager = pool::bb8::Manager::new(config("measured_too")).pool_name("measured_too");
            let pool = pool::bb8::Pool::builder().max_size(1).build(manager).await.unwrap();
            let _used = pool.get_owned().await.unwrap();
            // A caller that stops waiting: bb8 never counts its request as completed.
            assert!(poll_immediate(Box::pin(pool.get_owned())).await.is_none());
            assert_eq!(pool.state().statistics.pending_gets(), 1);
            pool::bb8::record(&pool, "measured_too");
        });
    });
    let mut told: Vec<String> = Vec::new();
    for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        if !key.name().starts_with("db.client") {
            continue;
        }
        let metric = pool::CATALOG.iter().find(|metric| metric.name == key.name());
        assert_eq!(description.as_deref(), metric.map(|metric| metric.help), "{}", key.name());
        assert!(unit.is_some(), "{}", key.name());
        let labels: Vec<_> = key.labels().map(|l| l.value()).collect();
        let value = match value {
            DebugValue::Gauge(value) => value.to_string(),
            DebugValue::Counter(value) => value.to_string(),
            DebugValue::Histogram(values) => format!("{} times", values.len()),
        };
        told.push(format!("{} {} {value}", key.name(), labels.join(" ")));
    }
    let document = std::fs::read_to_string("docs/metrics-catalog.md").unwrap();
    for metric in pool::CATALOG {
        assert!(document.contains(&format!("`{}`", metric.name)), "{}", metric.name);
    }
    told.sort();
    assert_eq!(
        told,
        [
            "db.client.connection.count measured idle 1",
            "db.client.connection.count measured used 2",
            "db.client.connection.count measured_too idle 0",
            "db.client.connection.count measured_too used 1",
            "db.client.connection.create_time measured 3 times",
            "db.client.connection.create_time measured_too 1 times",
            "db.client.connection.max measured 8",
            "db.client.connection.pending_requests measured 0",
            "db.client.connection.timeouts measured_too 0",
            "db.client.connection.use_time measured 1 times",
        ]
    );
}

/// A pool reads from a standby while one is available, and from it again later. If configured, it
/// spreads over all hosts.
#[tokio::test]
async fn pool_reads_from_standbys_and_spreads_over_hosts() {
    let servers = Replicated::start().await;
    let pool = |more: &str| {
        let manager = pool::deadpool::Manager::new(servers.url(more).parse().unwrap());
        pool::deadpool::Pool::builder(manager).max_size(16).build().unwrap()
    };
    let in_recovery = async |pool: &pool::deadpool::Pool| {
        let query = pool.get().await.unwrap().query::<bool>("v_role");
        query.fetch_one().await.unwrap()
    };

    let random = pool("load_balance_hosts=random");
    let mut seen = [0, 0];
    let clients: Vec<_> = join_all((0..16).map(|_| random.get())).await;
    for client in clients {
        let row = client.unwrap().query::<bool>("v_role").fetch_one().await.unwrap();
        seen[usize::from(row)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?} of the primary and the standby");

    let prefers = pool("target_session_attrs=prefer-standby");
    assert!(in_recovery(&prefers).await);
    servers.standby.control(&["stop", "-m", "fast"]);
    assert!(!in_recovery(&prefers).await, "the same client, on the primary now");
    servers.standby.control(&["start"]);
    // A client keeps its server. A new one connects to the standby, once that accepts connections.
    let away = prefers.get().await.unwrap();
    eventually("there is a standby again", async || {
        in_recovery(&prefers).await || {
            prefers.retain(|_, _| false);
            false
        }
    })
    .await;
    assert!(!away.query::<bool>("v_role").fetch_one().await.unwrap());
    servers.primary.stop();
}
