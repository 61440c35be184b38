//! Metrics: their values are consistent. Spans are tested in another binary.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::support::{
    admin,
    certificates::Authority,
    client, cluster,
    cluster::{Cluster, Setup},
    eventually,
    scripted::{self, Scripted, Step},
    sql, terminate,
};
use fraiseql_wire::{ConnectionConfig, Error, FraiseClient, RawJson, SslMode, metrics};
use futures_util::StreamExt;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use serde_json::Value;

/// The numbers of this thread: by name without its prefix, and labels.
pub struct Numbers(BTreeMap<(String, Labels), Vec<f64>>);

type Labels = Vec<(String, String)>;

impl Numbers {
    pub fn of(snapshotter: &Snapshotter) -> Self {
        let mut numbers = BTreeMap::new();
        for (key, unit, help, value) in snapshotter.snapshot().into_vec() {
            let key = key.key();
            assert!(unit.is_some() && help.is_some(), "{} is not described", key.name());
            let name = key.name().strip_prefix("fraiseql_wire_").unwrap().to_owned();
            let metric = metrics::CATALOG.iter().find(|m| m.name == key.name());
            let metric = metric.unwrap_or_else(|| panic!("{name} is not in the catalog"));
            let mut labels: Labels =
                key.labels().map(|l| (l.key().to_owned(), l.value().to_owned())).collect();
            labels.sort();
            let mut keys: Vec<&str> = metric.labels.to_vec();
            keys.sort_unstable();
            assert_eq!(labels.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), keys, "{name}");
            let values = match value {
                DebugValue::Counter(n) => vec![n as f64],
                DebugValue::Gauge(n) => vec![n.into_inner()],
                DebugValue::Histogram(values) => values.into_iter().map(Into::into).collect(),
            };
            numbers.insert((name, labels), values);
        }
        Self(numbers)
    }

    /// Returns the values of a metric whose labels include these.
    pub fn values(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let matches = |has: &[(String, String)]| {
            labels.iter().all(|(k, v)| {
                has.iter().any(|(key, value)| (k, v) == (&key.as_str(), &value.as_str()))
            })
        };
        let found = self.0.iter().filter(|((n, l), _)| n == name && matches(l));
        found.flat_map(|(_, values)| values.clone()).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        self.0.keys().map(|(name, _)| name.clone()).collect()
    }

    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.values(name, labels).iter().sum()
    }
}

/// Each scenario checks the metrics that it drives. At the end, no metric may be left that no
/// scenario drives.
#[tokio::test]
async fn every_metric_counts_its_events() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let mut emitted = queries(&snapshotter).await;
    emitted.append(&mut connections(&snapshotter).await);
    emitted.append(&mut several_connections(&snapshotter).await);
    emitted.append(&mut statements(&snapshotter).await);
    emitted.append(&mut concurrent_fetches(&snapshotter).await);
    for metric in metrics::CATALOG {
        let name = metric.name.strip_prefix("fraiseql_wire_").unwrap();
        assert!(emitted.contains(name), "nothing emits {name}");
    }
}

async fn queries(snapshotter: &Snapshotter) -> BTreeSet<String> {
    sql("create view v_some as select to_json(i) as data from generate_series(1, 1000) i;
         create view v_odd as select * from (values ('1'::json), ('\"x\"'), ('1e999'), ('2')) t(data);
         create view v_fails_at_once as select to_json(1 / 0) as data")
    .await;
    let client = client().await;

    // Success, through every kind of condition.
    let rows = client
        .query::<u64>("v_some")
        .where_sql("true")
        .filter(fraiseql_wire::Field::column("data").is_null().not())
        .where_rust(|n| n != 7)
        .where_typed(|n| n % 2 == 1)
        .order_by("data::text::int")
        .chunk_size(100)
        .fetch_all()
        .await
        .unwrap();
    assert_eq!(rows.len(), 499);
    let mut stream = client.query::<RawJson>("v_some").execute().await.unwrap();
    while let Some(chunk) = stream.next_chunk().await {
        chunk.unwrap();
    }
    drop(stream);

    // An error before the first row, invalid rows, and an error after rows.
    client.query::<Value>("v_fails_at_once").execute().await.unwrap_err();
    client.query::<Value>("v_missing").execute().await.unwrap_err();
    client.query::<Value>("Robert'); drop table").execute().await.unwrap_err();
    let odd: Vec<_> = client.query::<u8>("v_odd").execute().await.unwrap().collect().await;
    assert_eq!(odd.iter().filter(|row| row.is_err()).count(), 2);
    let text = client.query::<Value>("v_odd").execute().await.unwrap().collect::<Vec<_>>().await;
    assert_eq!(text.iter().filter(|row| row.is_err()).count(), 1);

    // Ended early: by a drop, by `cancel`, by a handle, by a timeout, or while starting.
    let open = async || {
        let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream
    };
    drop(open().await);
    open().await.cancel().await.unwrap();
    let stream = open().await;
    stream.control().cancel().await.unwrap();
    drop(stream);
    let query = client.query::<Value>("v_asleep").timeout(Duration::from_millis(50));
    query.execute().await.unwrap_err();
    let query = client.query::<Value>("v_asleep");
    assert!(tokio::time::timeout(Duration::from_millis(50), query.execute()).await.is_err());

    // Pauses: resumed, timed out, and cut off by the end of the stream.
    let mut stream = open().await;
    stream.pause_with_reason("lunch").await.unwrap();
    stream.resume().await.unwrap();
    stream.set_pause_timeout(Duration::from_millis(1));
    stream.pause().await.unwrap();
    eventually("it resumes", async || {
        stream.stats().paused_for > Duration::from_millis(1) && {
            stream.state() == fraiseql_wire::StreamState::Running
        }
    })
    .await;
    stream.clear_pause_timeout();
    stream.pause().await.unwrap();
    drop(stream);

    // Memory: a soft limit, and a hard one.
    let query = client.query::<Value>("v_endless").max_memory(1 << 20).memory_soft_limits(0.2, 0.5);
    let mut stream = query.execute().await.unwrap();
    eventually("it is full", async || stream.stats().peak_memory > 400 << 10).await;
    let limit = loop {
        match stream.next().await.unwrap() {
            Ok(_) => tokio::task::yield_now().await,
            Err(e) => break e,
        }
    };
    assert!(matches!(limit, Error::ConsumerLagged { .. }), "{limit}");
    drop(stream);

    // An adaptive chunk size grows.
    let query = client.query::<Value>("v_endless").adaptive_chunking(true).chunk_size(16);
    let mut stream = query.max_memory(256 << 10).execute().await.unwrap();
    while stream.stats().chunk_adjustments == 0 {
        tokio::task::yield_now().await;
        stream.next().await.unwrap().unwrap();
    }
    drop(stream);
    client.ping().await.unwrap();

    let numbers = Numbers::of(snapshotter);
    let sum = |name: &str, labels: &[(&str, &str)]| numbers.sum(name, labels);
    let some = [("entity", "v_some")];
    let all = [
        ("entity", "v_some"),
        ("has_where_sql", "true"),
        ("has_filter", "true"),
        ("has_where_rust", "true"),
        ("has_order_by", "true"),
    ];
    assert_eq!((sum("queries_total", &all), sum("queries_total", &some)), (1.0, 2.0));
    assert_eq!(
        (sum("query_success_total", &some), sum("query_completed_total", &some)),
        (2.0, 2.0)
    );
    assert_eq!(sum("rows_received_total", &some), 2000.0);
    assert_eq!(sum("rows_yielded_total", &some), 1499.0);
    assert_eq!(sum("rows_filtered_total", &some), 501.0);
    assert_eq!(sum("rows_deserialized_total", &some), 999.0);
    assert_eq!(sum("rows_discarded_total", &some), 0.0);
    let digits = (1..=1000).map(|n: u32| n.to_string().len()).sum::<usize>() as f64;
    assert_eq!(sum("bytes_received_total", &some), 2.0 * digits);
    assert_eq!(numbers.values("query_rows", &some), [1000.0, 1000.0]);
    assert_eq!(numbers.values("query_bytes", &some), [digits, digits]);
    assert_eq!((sum("chunk_rows", &some), sum("chunk_bytes", &some)), (2000.0, 2.0 * digits));
    let chunks = numbers.values("chunk_rows", &some).len();
    assert!((14..=1000).contains(&chunks), "{chunks}");
    for per_chunk in [
        "chunk_processing_duration_seconds",
        "channel_send_wait_seconds",
        "socket_wait_seconds",
        "channel_occupancy_ratio",
    ] {
        assert_eq!(numbers.values(per_chunk, &some).len(), chunks, "{per_chunk}");
    }
    assert!(numbers.values("channel_occupancy_ratio", &[]).iter().all(|r| (0.0..=1.0).contains(r)));
    let decoded = numbers.values("json_decode_duration_seconds", &some).len();
    assert!((10..chunks).contains(&decoded), "chunks of next_chunk() are not decoded: {decoded}");
    assert!(numbers.values("filter_duration_seconds", &some).len() >= 10);
    let durations = numbers.values("query_duration_seconds", &some);
    for earlier in ["query_startup_duration_seconds", "time_to_first_row_seconds"] {
        for (earlier, whole) in numbers.values(earlier, &some).iter().zip(&durations) {
            assert!(earlier <= whole && *earlier > 0.0);
        }
    }

    let odd = |name, reason| sum(name, &[("entity", "v_odd"), ("reason", reason)]);
    assert_eq!(odd("rows_deserialization_failed_total", "data"), 1.0);
    assert_eq!(odd("rows_deserialization_failed_total", "syntax"), 2.0);
    assert_eq!(sum("json_parse_errors_total", &[("entity", "v_odd")]), 2.0);
    assert_eq!(sum("query_error_total", &[("category", "server")]), 2.0);

    let cancelled = |cause| sum("query_cancelled_total", &[("cause", cause)]);
    // Dropped: one stream, one execute(), the paused one, the adaptive one.
    assert_eq!((cancelled("drop"), cancelled("cancel"), cancelled("timeout")), (4.0, 2.0, 1.0));
    assert_eq!(sum("query_error_total", &[("category", "timeout")]), 1.0);
    let completed = |status| sum("query_completed_total", &[("status", status)]);
    assert_eq!(completed("cancelled"), 6.0);
    assert_eq!(completed("error"), sum("query_error_total", &[]));
    assert_eq!(completed("success"), sum("query_success_total", &[]));
    assert_eq!(sum("query_completed_total", &[]), sum("queries_total", &[]));
    assert_eq!(
        numbers.values("query_duration_seconds", &[]).len() as f64,
        sum("queries_total", &[])
    );

    assert_eq!(sum("stream_paused_total", &[("reason", "lunch")]), 1.0);
    assert_eq!(sum("stream_paused_total", &[]), 3.0);
    assert_eq!(sum("stream_resumed_total", &[("cause", "resume")]), 1.0);
    assert_eq!(sum("stream_resumed_total", &[("cause", "timeout")]), 1.0);
    assert_eq!(sum("stream_pause_timeout_expired_total", &[]), 1.0);
    assert_eq!(numbers.values("stream_pause_duration_seconds", &[]).len(), 3);
    assert_eq!(sum("memory_limit_exceeded_total", &[]), 1.0);
    assert!(sum("memory_soft_limit_warned_total", &[]) >= 1.0);
    assert_eq!(sum("adaptive_chunk_adjusted_total", &[("direction", "up")]), 1.0);

    let rows = |name| sum(&format!("rows_{name}_total"), &[]);
    let failed = rows("deserialization_failed");
    assert_eq!(rows("received"), rows("yielded") + rows("filtered") + failed + rows("discarded"));
    for gauge in
        ["streams_active", "stream_buffered_rows", "stream_buffered_bytes", "read_buffer_bytes"]
    {
        assert!(numbers.values(gauge, &[]).iter().all(|n| *n == 0.0), "{gauge} is not back at 0");
    }
    numbers.names()
}

/// Counts each query on several connections once, both concurrent and in sequence.
async fn several_connections(snapshotter: &Snapshotter) -> BTreeSet<String> {
    sql("create table t_wide as
         select jsonb_build_object('id', i, 'text', repeat('x', 500)) as data
         from generate_series(1, 20000) i")
    .await;
    let proxy = crate::support::proxy::Proxy::to_port(cluster().port()).await;
    let url = crate::support::url_at(proxy.address);
    let client = FraiseClient::connect(&url).await.unwrap();
    Numbers::of(snapshotter);
    let rows = client.query::<RawJson>("t_wide").parallel(3).fetch_all().await.unwrap();
    assert_eq!(rows.len(), 20_000);
    let mut stream = client.query::<RawJson>("t_wide").resume_by("id").execute().await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    proxy.cut_after(0);
    while client.is_connected() {
        match futures_util::FutureExt::now_or_never(stream.next()) {
            Some(row) => drop(row.unwrap().unwrap()),
            None => tokio::task::yield_now().await,
        }
    }
    proxy.cut_after(u64::MAX);
    while let Some(row) = stream.next().await {
        row.unwrap();
    }
    let resumed = stream.stats().resumptions as f64;
    drop(stream);
    let numbers = Numbers::of(snapshotter);
    let wide = [("entity", "t_wide")];
    let sum = |name: &str| numbers.sum(name, &wide);
    assert_eq!((sum("queries_total"), sum("query_success_total")), (2.0, 2.0));
    assert_eq!((sum("rows_received_total"), sum("rows_yielded_total")), (40_000.0, 40_000.0));
    assert_eq!(numbers.values("query_rows", &wide), [20_000.0, 20_000.0]);
    assert_eq!((sum("queries_resumed_total"), resumed), (1.0, 1.0));
    // Two beside the client's, and one in place of it.
    assert_eq!(numbers.sum("connections_created_total", &[]), 3.0);
    assert_eq!(numbers.sum("connections_closed_total", &[("reason", "close")]), 2.0);
    assert_eq!(numbers.sum("connections_closed_total", &[("reason", "server")]), 1.0);
    assert_eq!(numbers.sum("reconnects_total", &[]), 1.0);
    assert_eq!(numbers.sum("read_buffer_bytes", &[]), 0.0);
    let names = numbers.names();
    // One beside the client's that cannot be made is an error of connecting, and no other one.
    sql("alter role role_trust connection limit 1; grant select on t_wide to role_trust").await;
    let client = FraiseClient::connect(&cluster().url_as("role_trust")).await.unwrap();
    Numbers::of(snapshotter);
    let error = client.query::<RawJson>("t_wide").parallel(2).execute().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&fraiseql_wire::sqlstate::TOO_MANY_CONNECTIONS), "{error}");
    sql("alter role role_trust connection limit -1").await;
    let numbers = Numbers::of(snapshotter);
    assert_eq!(numbers.sum("errors_total", &[]), 1.0);
    assert_eq!(numbers.sum("connections_failed_total", &[]), 1.0);
    assert_eq!(numbers.sum("query_error_total", &[]), 1.0);
    names
}

/// Fetches that share a connection: each is counted as if it were alone.
async fn concurrent_fetches(snapshotter: &Snapshotter) -> BTreeSet<String> {
    let client = FraiseClient::connect(&cluster().url()).await.unwrap();
    Numbers::of(snapshotter);
    let fetches = (0..20).map(|number| {
        let client = &client;
        async move {
            match number % 4 {
                // Dropped after it was sent.
                0 => {
                    let fetch = client.query::<RawJson>("v_one").fetch_all();
                    let _ = futures_util::future::poll_immediate(Box::pin(fetch)).await;
                }
                1 => drop(client.query::<RawJson>("v_one_missing").fetch_all().await.unwrap_err()),
                _ => drop(client.query::<RawJson>("v_one").fetch_one().await.unwrap()),
            }
        }
    });
    futures_util::future::join_all(fetches).await;
    crate::support::eventually("the client is idle", async || !client.is_busy()).await;
    let numbers = Numbers::of(snapshotter);
    let one = [("entity", "v_one")];
    assert_eq!(numbers.sum("queries_total", &one), 15.0);
    assert_eq!(numbers.sum("query_success_total", &one), 10.0);
    assert_eq!(numbers.sum("query_cancelled_total", &one), 5.0);
    assert_eq!(numbers.sum("rows_yielded_total", &one), 10.0);
    assert_eq!(numbers.sum("query_completed_total", &[]), 20.0);
    assert_eq!(numbers.sum("query_error_total", &[]), 5.0);
    assert_eq!(numbers.sum("requests_in_flight", &[]), 0.0);
    assert_eq!(numbers.sum("streams_active", &[]), 0.0);
    numbers.names()
}

/// Counts connections: opened, failed in each phase, closed for each reason, and their notices.
async fn connections(snapshotter: &Snapshotter) -> BTreeSet<String> {
    // Each look begins to count anew.
    Numbers::of(snapshotter);
    let port = cluster().port();
    let at = |more: &str| {
        format!("host=127.0.0.1 port={port} dbname=postgres connect_timeout=20 {more}")
    };
    let connect = async |more: &str| FraiseClient::connect(&at(more)).await;

    // Logging in, in each way.
    for (role, password) in [
        ("role_trust", ""),
        ("role_password", "password-secret"),
        ("role_md5", "md5-secret"),
        ("role_scram", "scram-secret"),
    ] {
        let client = connect(&format!("user={role} password='{password}'")).await.unwrap();
        client.close().await.unwrap();
    }
    let authority = Authority::new("the authority");
    let pair = authority.server("localhost", &["127.0.0.1"]);
    let encrypted = Cluster::start_with(&Setup {
        hba: "local all postgres trust\nhost all postgres all scram-sha-256\n",
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt -c ssl_key_file={folder}/server.key",
        files: &[("server.crt", &pair.certificate), ("server.key", &pair.key)],
        ..Setup::default()
    })
    .unwrap();
    let socket =
        format!("host={} port={} user=postgres", encrypted.folder().display(), encrypted.port());
    let by_socket = FraiseClient::connect(&socket).await.unwrap();
    let url = format!(
        "host=127.0.0.1 port={} user=postgres password={} sslmode=require",
        encrypted.port(),
        cluster::password()
    );
    drop(FraiseClient::connect(&url).await.unwrap());
    drop(by_socket);

    // Failing, in each phase.
    let refused = async |url: &str| FraiseClient::connect(url).await.unwrap_err();
    refused("host=a..b user=u dbname=d").await;
    let nobody = cluster::free_port().unwrap();
    refused(&format!("host=127.0.0.1 port={nobody} user=u dbname=d")).await;
    refused(&at("user=role_trust sslmode=require")).await;
    refused(&at("user=role_scram password=wrong")).await;
    refused(&at("user=role_trust require_auth=scram-sha-256")).await;
    refused(&format!("host=127.0.0.1 port={port} user=role_trust dbname=missing")).await;
    let sasl = scripted::message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let answering = |answer: Vec<u8>| {
        let answer: scripted::Answer = Box::new(move |_| answer.clone());
        vec![Step::ExpectStartup, Step::Send(sasl.clone()), Step::Echo(answer)]
    };
    let imposters = Scripted::start(vec![
        answering(scripted::message(b'R', b"\0\0\0\x0bnonsense")),
        answering(scripted::auth_ok()),
        vec![Step::ExpectStartup, Step::Close],
    ])
    .await;
    for _ in 0..3 {
        refused(&imposters.url()).await;
    }
    imposters.done().await;

    // Ending: while it is idle, and while it is read.
    sql("grant select on v_one to role_trust").await;
    let client = connect("user=role_trust").await.unwrap();
    let admin = crate::support::admin().await;
    terminate(&admin, client.backend_pid().unwrap()).await;
    client.query::<Value>("v_one").fetch_one().await.unwrap();
    let stream = client.query::<Value>("v_endless").execute().await.unwrap();
    terminate(&admin, client.backend_pid().unwrap()).await;
    assert!(stream.collect::<Vec<_>>().await.last().unwrap().is_err());

    // Notices.
    sql("create function noisy() returns json language plpgsql as
             'begin raise notice ''a''; raise warning ''b''; return 1; end';
         create view v_noisy as select noisy() as data;
         grant select on v_noisy to role_trust")
    .await;
    client.query::<Value>("v_noisy").fetch_one().await.unwrap();

    // Drained data.
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    drop(stream);
    drop(client);

    // Unexpected messages, and servers that do not stop. Two of them accept no cancel request, and
    // one ignores it.
    let mut wrong = scripted::login();
    wrong.extend([Step::ExpectQuery, Step::Send(scripted::message(b'2', b"")), Step::ExpectEnd]);
    let silent = || {
        let mut script = scripted::login();
        let rows = scripted::begun(&["1"]);
        script.extend([Step::ExpectQuery, Step::Send(rows), Step::Silence]);
        script
    };
    for (scripts, fails) in [
        (vec![wrong], true),
        (vec![silent()], false),
        (vec![silent(), vec![Step::Expect(scripted::cancel_request()), Step::Silence]], false),
    ] {
        let server = Scripted::start(scripts).await;
        let config = ConnectionConfig::builder()
            .host(server.address.ip().to_string())
            .port(server.address.port())
            .user("u")
            .database("d")
            .ssl_mode(SslMode::Disable)
            .cancel_timeout(Duration::from_millis(50));
        let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
        let stream = client.query::<Value>("v").execute().await;
        assert_eq!(stream.is_err(), fails);
        drop(stream);
        eventually("it is cleaned up", async || !client.is_connected()).await;
        server.done().await;
    }

    let numbers = Numbers::of(snapshotter);
    let sum = |name: &str, labels: &[(&str, &str)]| numbers.sum(name, labels);
    let login = |name: &str, mechanism| {
        sum(&format!("authentications{name}_total"), &[("mechanism", mechanism)])
    };
    for (mechanism, successful, failed) in [
        // The role, the socket, the missing database, three of one client, three by scripts, those
        // rejected by policy, and lost ones.
        ("trust", 9.0, 2.0),
        ("cleartext", 1.0, 0.0),
        ("md5", 1.0, 0.0),
        ("scram_sha_256", 1.0, 3.0),
        ("scram_sha_256_plus", 1.0, 0.0),
    ] {
        let counts = (login("_successful", mechanism), login("_failed", mechanism));
        assert_eq!(counts, (successful, failed), "{mechanism}");
        assert_eq!(login("", mechanism), successful + failed);
        let timed = numbers.values("auth_duration_seconds", &[("mechanism", mechanism)]).len();
        assert_eq!(timed as f64, successful);
    }
    for reason in ["rejected", "refused_by_policy", "malformed", "server_signature", "lost"] {
        assert_eq!(sum("authentications_failed_total", &[("reason", reason)]), 1.0, "{reason}");
    }
    for (phase, category, count) in [
        ("resolve", "io", 1.0),
        ("connect", "io", 1.0),
        ("tls", "tls", 1.0),
        ("auth", "authentication", 4.0),
        ("auth", "connection_closed", 1.0),
        ("startup", "server", 1.0),
    ] {
        let labels = [("phase", phase), ("category", category)];
        assert_eq!(sum("connections_failed_total", &labels), count, "{labels:?}");
        assert_eq!(sum("errors_total", &labels), count, "{labels:?}");
    }
    assert_eq!(sum("connections_failed_total", &[]), 9.0);
    assert_eq!(sum("errors_total", &[("phase", "query"), ("category", "protocol")]), 1.0);
    assert_eq!(sum("errors_total", &[("phase", "stream"), ("category", "server")]), 1.0);
    assert_eq!(sum("errors_total", &[("phase", "drain")]), 3.0);
    assert_eq!(sum("protocol_errors_total", &[("message", "BindComplete")]), 1.0);
    assert_eq!(sum("protocol_errors_total", &[]), 1.0);
    for severity in ["notice", "warning"] {
        assert_eq!(sum("notices_total", &[("severity", severity)]), 1.0);
    }

    let created = |transport, tls| {
        sum("connections_created_total", &[("transport", transport), ("tls", tls)])
    };
    assert_eq!((created("unix", "false"), created("tcp", "true")), (1.0, 1.0));
    // Four logins, the one that was replaced twice, and three that scripts let in.
    assert_eq!(created("tcp", "false"), 4.0 + 3.0 + 3.0);
    let timed = |name| numbers.values(name, &[]).len() as f64;
    assert_eq!(timed("connect_duration_seconds"), sum("connections_created_total", &[]));
    assert_eq!(timed("tls_handshake_duration_seconds"), 1.0);
    assert_eq!(sum("reconnects_total", &[]), 2.0);
    for (reason, count) in
        // Four were closed, three dropped.
        [
            ("close", 7.0),
            ("idle", 1.0),
            ("server", 1.0),
            ("drain_limit", 1.0),
            ("broken", 2.0),
        ]
    {
        assert_eq!(sum("connections_closed_total", &[("reason", reason)]), count, "{reason}");
    }
    assert_eq!(sum("connections_closed_total", &[]), sum("connections_created_total", &[]));
    assert_eq!(sum("connections_open", &[]), 0.0);
    assert!(sum("cancel_requests_total", &[("outcome", "sent")]) >= 1.0);
    // The request for a query that was lost with its connection is repeated.
    assert!(sum("cancel_requests_total", &[("outcome", "failed")]) >= 2.0);
    assert_eq!(sum("cancel_requests_total", &[("outcome", "timeout")]), 1.0);
    assert!(numbers.values("drain_duration_seconds", &[]).len() >= 3);
    assert!(sum("drained_bytes_total", &[]) > 0.0);
    numbers.names()
}

async fn statements(snapshotter: &Snapshotter) -> BTreeSet<String> {
    sql("create view v_prepared as select '1'::json as data;
         create function f_deallocate() returns jsonb language plpgsql as
             $$ begin deallocate all; return 'true'; end $$;
         create view v_deallocate as select f_deallocate() as data")
    .await;
    let config = ConnectionConfig::parse(&cluster().url()).unwrap().to_builder();
    let config = config.statement_cache_capacity(1).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let fetch = async |entity: &str, times| {
        for _ in 0..times {
            client.query::<Value>(entity).fetch_all().await.unwrap();
        }
    };
    // Two misses and a hit each; the second is prepared in place of the first.
    fetch("v_prepared", 3).await;
    fetch("v_one", 3).await;
    // Two misses in place of the other, and two hits. The second one is a miss for the server.
    fetch("v_prepared", 3).await;
    sql("drop view v_prepared; create view v_prepared as select '1'::jsonb as data").await;
    fetch("v_prepared", 1).await;
    // Prepared again, and then deallocated.
    fetch("v_prepared", 2).await;
    fetch("v_deallocate", 1).await;
    fetch("v_prepared", 3).await;

    let numbers = Numbers::of(snapshotter);
    let sum = |name: &str, entity| numbers.sum(name, &[("entity", entity)]);
    let cache = |entity| {
        ["hits", "misses", "evictions"]
            .map(|name| sum(&format!("statement_cache_{name}_total"), entity))
    };
    assert_eq!(cache("v_prepared"), [5.0, 5.0, 1.0]);
    assert_eq!(cache("v_one"), [1.0, 2.0, 1.0]);
    assert_eq!(cache("v_deallocate"), [0.0, 1.0, 0.0]);
    let reprepared = |reason| numbers.sum("statements_reprepared_total", &[("reason", reason)]);
    assert_eq!(["changed", "missing", "exists"].map(reprepared), [1.0, 1.0, 0.0]);
    numbers.names()
}

/// Pipelined fetches: no more than the documented number is in flight, and each is a hit or a miss.
#[tokio::test]
async fn pipelined_requests_are_limited_and_counted_as_hits_or_misses() {
    const LOCK: i64 = 4712;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    sql("create view v_counted as select '1'::json as data, 1 as id").await;
    let admin = admin().await;
    admin.execute("select pg_advisory_lock($1)", &[&LOCK]).await.unwrap();
    let client = client().await;
    let first =
        client.query::<u64>("v_counted").where_sql("pg_advisory_lock_shared($1) is not null");
    let first = first.bind(LOCK).fetch_all();
    let others = (0..300).map(|_| client.query::<u64>("v_counted").fetch_all());
    let fetches = futures_util::future::join(first, futures_util::future::join_all(others));
    let mut fetches = Box::pin(fetches);
    let locked = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    let waits = eventually("the first waits", async || {
        admin.query_one(locked, &[]).await.unwrap().get::<_, i64>(0) == 1
    });
    tokio::select! {
        _ = &mut fetches => panic!("the first waits for the lock"),
        () = waits => {}
    }
    // Reading the counters resets them.
    let sent = Numbers::of(&snapshotter);
    assert_eq!(sent.sum("requests_in_flight", &[]), 128.0);
    admin.execute("select pg_advisory_unlock($1)", &[&LOCK]).await.unwrap();
    let (first, others) = fetches.await;
    assert!(first.is_ok() && others.iter().all(Result::is_ok));
    let later = Numbers::of(&snapshotter);
    let counted = [sent, later].map(|numbers| {
        ["hits", "misses"].map(|name| numbers.sum(&format!("statement_cache_{name}_total"), &[]))
    });
    assert_eq!(counted.as_flattened().iter().sum::<f64>(), 301.0, "{counted:?}");
}

/// A caller that stops waiting for a connection counts as a failure, also in the dashboard.
#[tokio::test]
async fn abandoned_attempt_counts_as_failed() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let server = Scripted::start(vec![vec![Step::ExpectStartup, Step::Silence]]).await;
    let url = server.url();
    let connecting = FraiseClient::connect(&url);
    assert!(tokio::time::timeout(Duration::from_millis(300), connecting).await.is_err());
    let numbers = Numbers::of(&snapshotter);
    let labels = [("phase", "auth"), ("category", "cancelled")];
    assert_eq!(numbers.sum("connections_failed_total", &labels), 1.0);
    assert_eq!(numbers.sum("authentications_failed_total", &[("reason", "lost")]), 1.0);
    server.done().await;
}

/// Names that users and servers choose cannot make series without end.
#[tokio::test]
async fn labels_have_a_bounded_set_of_values() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let notice = scripted::fields(b'N', &[(b'S', "EVIL-1"), (b'C', "00000"), (b'M', "x")]);
    let mut script = scripted::login();
    let error = scripted::error("EVIL-2", "ZZZZ9", "evil-3");
    script.extend([Step::ExpectQuery, Step::Send([notice, error, scripted::ready()].concat())]);
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let hostile = format!("\"{}\"", "evil".repeat(50));
    client.query::<Value>(&hostile).execute().await.unwrap_err();
    client.query::<Value>("v").execute().await.unwrap_err();
    let numbers = Numbers::of(&snapshotter);
    assert_eq!(numbers.sum("notices_total", &[("severity", "other")]), 1.0);
    let labels: Vec<_> = numbers.0.keys().flat_map(|(_, labels)| labels).collect();
    assert!(!labels.iter().any(|(_, value)| value.to_lowercase().contains("evil")), "{labels:?}");
    drop(client);
    server.done().await;
}

/// A connection that was lost while it was idle, and is replaced, makes no second query.
#[tokio::test]
async fn query_that_moves_to_another_connection_counts_once() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let answer =
        || [scripted::begin_json(), scripted::row("1"), scripted::complete(), scripted::ready()];
    let (mut first, mut second) = (scripted::login(), scripted::login());
    let ended =
        scripted::error("FATAL", "57P05", "terminating connection due to idle-session timeout");
    first.extend([Step::ExpectQuery, Step::Send(ended)]);
    second.extend([Step::ExpectQuery, Step::Send(answer().concat())]);
    let server = Scripted::start(vec![first, second]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    assert_eq!(client.query::<u8>("v").fetch_all().await.unwrap(), [1]);
    let numbers = Numbers::of(&snapshotter);
    for name in
        ["queries_total", "query_completed_total", "query_success_total", "rows_yielded_total"]
    {
        assert_eq!(numbers.sum(name, &[]), 1.0, "{name}");
    }
    assert_eq!(numbers.sum("streams_active", &[]), 0.0);
    drop(client);
    server.done().await;
}
