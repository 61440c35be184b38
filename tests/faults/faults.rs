//! Faults: servers that stop, are killed and restart, connections that are cut at every byte,
//! limits of the server, and standbys. Every received row is delivered, an incomplete result is an
//! error, and the client remains usable.

use std::{path::Path, process::Command, time::Duration};

use crate::support::{
    admin, admin_at, cluster,
    cluster::{Cluster, REQUIRE_PASSWORD, Setup},
    config_at,
    daemon::Daemon,
    eventually,
    proxy::Proxy,
    random::Random,
    scripted::{self, Scripted, Step},
    sql,
};
use fraiseql_wire::{Error, ErrorCategory, FraiseClient, QueryStream, RawJson, RetryAdvice};
use futures_util::{StreamExt, stream::FusedStream};

/// Reads to the end: numbers without a gap from `next` on, and the error if there is one.
async fn numbers_from(mut next: u64, mut stream: QueryStream<u64>) -> (u64, Option<Error>) {
    let mut error = None;
    while let Some(row) = stream.next().await {
        assert!(error.is_none(), "something follows the error");
        match row {
            Ok(number) => {
                assert_eq!(number, next, "a row is lost or doubled");
                next += 1;
            }
            Err(e) => error = Some(e),
        }
    }
    assert!(stream.is_terminated() && stream.next().await.is_none());
    (next, error)
}

/// Returns what programs act on: the category, the SQLSTATE, and whether to retry.
fn category_of(error: &Error) -> (ErrorCategory, Option<&str>, bool) {
    (error.category(), error.sqlstate().map(|code| code.code()), error.is_retriable())
}

/// The error of a connection that was closed without a message.
const LOST: (ErrorCategory, Option<&str>, bool) = (ErrorCategory::ConnectionClosed, None, true);

const NUMBERS: &str = "create view v_numbers as
    select to_json(i) as data from (select generate_series(1, 2000000000) i) numbers";

/// A server of its own, for a test that breaks it.
async fn breakable() -> Cluster {
    let cluster = Cluster::start(REQUIRE_PASSWORD).unwrap_or_else(|e| panic!("{e}"));
    // The view must survive a crash.
    let kept = format!("set synchronous_commit = on; {NUMBERS}");
    admin_at(&cluster.url()).await.batch_execute(&kept).await.unwrap();
    cluster
}

fn kill(signal: &str, pid: u32) {
    // A command of the shell, which a bare system has.
    let killed = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
    assert!(killed.unwrap().success());
}

/// The server stops or is killed while rows flow, and comes back.
#[tokio::test]
async fn server_shutdown_mid_stream_yields_rows_then_error_and_client_is_reusable() {
    let server = breakable().await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    // `None`: the server sends no error, or may have no time to send it.
    for (how, state) in [
        ("stop fast", Some("57P01")),
        ("stop immediate", Some("57P02")),
        ("kill the backend", None),
        ("kill the server", None),
    ] {
        let mut stream = client.query::<u64>("v_numbers").execute().await.unwrap();
        for i in 1..=1000 {
            assert_eq!(stream.next().await.unwrap().unwrap(), i);
        }
        match how {
            "stop fast" => server.control(&["stop", "-m", "fast"]),
            "stop immediate" => server.control(&["stop", "-m", "immediate"]),
            "kill the backend" => kill("KILL", client.backend_pid().unwrap()),
            _ => {
                let file = server.folder().join("data/postmaster.pid");
                let text = std::fs::read_to_string(file).unwrap();
                let postmaster = text.lines().next().unwrap().parse().unwrap();
                let backend = client.backend_pid().unwrap();
                kill("KILL", postmaster);
                kill("KILL", backend);
            }
        }
        let (next, error) = numbers_from(1001, stream).await;
        let error = error.unwrap_or_else(|| panic!("{how}: the end is no error"));
        assert!(next >= 1001, "{how}");
        // A backend that is blocked in send closes without a word.
        if category_of(&error) != LOST {
            assert!(state.is_some(), "{how}: {error}");
            assert_eq!(category_of(&error), (ErrorCategory::Server, state, true), "{how}: {error}");
        }
        assert!(!client.is_connected(), "{how}");
        if how != "kill the backend" {
            // While the server is down, the error is immediate.
            let error = client.ping().await.unwrap_err();
            assert_eq!(
                category_of(&error),
                (ErrorCategory::Connection, None, true),
                "{how}: {error}"
            );
            // The remaining processes of a killed server end by themselves, but block a restart
            // until then.
            eventually("it starts", async || server.try_control(&["start"])).await;
        }
        // A server in recovery reports 57P03: wait for its end too.
        eventually(&format!("it is back after {how}"), async || client.ping().await.is_ok()).await;
        assert_eq!(client.query::<u64>("v_numbers").limit(3).fetch_all().await.unwrap(), [1, 2, 3]);
    }
}

/// A restart while the client is idle has no effect.
#[tokio::test]
async fn restart_between_queries_is_invisible() {
    let server = breakable().await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    for mode in ["smart", "fast", "immediate"] {
        assert_eq!(client.query::<u64>("v_numbers").limit(1).fetch_all().await.unwrap(), [1]);
        // A smart one would wait for the client.
        let mode = if mode == "smart" { "fast" } else { mode };
        server.control(&["restart", "-m", mode]);
        assert_eq!(client.query::<u64>("v_numbers").limit(2).fetch_all().await.unwrap(), [1, 2]);
    }
}

/// A session that is cut after any of its bytes never looks complete.
#[tokio::test]
async fn session_cut_at_any_byte_yields_rows_then_error() {
    sql("create view v_five as select to_json(i) as data from generate_series(1, 5) i").await;
    let proxy = Proxy::to_port(cluster().port()).await;
    let url = format!("{}?sslmode=disable", crate::support::url_at(proxy.address));
    let session = async || {
        let client = FraiseClient::connect(&url).await?;
        let stream = client.query::<u64>("v_five").execute().await?;
        let (next, error) = numbers_from(1, stream).await;
        Ok::<_, Error>((next - 1, error))
    };
    let before = proxy.bytes_from_server();
    assert!(matches!(session().await, Ok((5, None))));
    let whole = proxy.bytes_from_server() - before;
    let (mut most, mut refused) = (0, 0);
    for bytes in 0..whole {
        proxy.cut_after(bytes);
        match session().await {
            Err(error) => {
                assert!(error.is_retriable(), "behind {bytes} bytes: {error:?}");
                refused += 1;
            }
            Ok((rows, error)) => {
                let error =
                    error.unwrap_or_else(|| panic!("cut behind {bytes} bytes, and no error"));
                assert_eq!(category_of(&error), LOST, "{error:?}");
                assert!(rows >= most, "behind {bytes} bytes there are fewer rows than before");
                most = rows;
            }
        }
    }
    assert!(most == 5 && refused > 100, "{most} rows, {refused} sessions did not begin");
}

/// Limits of the server: the error that the user gets, and the client remains usable.
#[tokio::test]
async fn server_limits_are_reported_by_their_sqlstates() {
    sql("create table t_locked (data json);
         insert into t_locked values ('1');
         create view v_locked as select data from t_locked;
         create function fails(i int, state text) returns json language plpgsql as $$
         begin
             if i = 3 then raise exception 'no more of it' using errcode = state; end if;
             return to_json(i);
         end $$;
         create view v_sleeps as select to_json(i) as data
             from (select i, pg_sleep(case when i > 2 then 600 else 0 end) from generate_series(1, 9) i) s
         ")
    .await;
    // Class 53, insufficient resources: the cause may be gone at the next attempt.
    const RESOURCES: [&str; 5] = ["53000", "53100", "53200", "53300", "53400"];
    for state in RESOURCES {
        let view = "as select fails(i, '53000') as data from generate_series(1, 9) i";
        sql(&format!("create view v_fails_{state} {}", view.replace("53000", state))).await;
    }
    let mut locker = admin().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("lock table t_locked").await.unwrap();
    let url = cluster().url();
    let mut limits = vec![
        ("?options=-c%20statement_timeout%3D100", "v_sleeps".to_owned(), 2, "57014"),
        ("?options=-c%20lock_timeout%3D100", "v_locked".to_owned(), 0, "55P03"),
    ];
    limits.extend(RESOURCES.map(|state| ("", format!("v_fails_{state}"), 2, state)));
    for (setting, view, rows, state) in limits {
        let client = FraiseClient::connect(&format!("{url}{setting}")).await.unwrap();
        let pid = client.backend_pid();
        let (next, error) = match client.query::<u64>(&view).execute().await {
            Ok(stream) => numbers_from(1, stream).await,
            Err(e) => (1, Some(e)),
        };
        let error = error.unwrap();
        assert_eq!(
            category_of(&error),
            (ErrorCategory::Server, Some(state), true),
            "{view}: {error}"
        );
        assert_eq!(error.retry_advice(), RetryAdvice::AfterDelay, "{view}");
        assert_eq!(next - 1, rows, "{view}: {error}");
        assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
        assert_eq!(client.backend_pid(), pid, "the session goes on");
    }
    lock.rollback().await.unwrap();
}

/// A role that has too many connections can connect again later.
#[tokio::test]
async fn role_with_too_many_connections_can_connect_again_later() {
    let full = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let admin = admin_at(&full.url()).await;
    admin
        .batch_execute(&format!(
            "create role role_few login password 'few' connection limit 0; {NUMBERS}"
        ))
        .await
        .unwrap();
    admin.batch_execute("grant select on v_numbers to role_few").await.unwrap();
    let url = full.url_as("role_few:few");
    let client = FraiseClient::new(url.parse().unwrap());
    for _ in 0..2 {
        let error = client.query::<u64>("v_numbers").limit(1).execute().await.unwrap_err();
        assert_eq!(category_of(&error), (ErrorCategory::Server, Some("53300"), true), "{error}");
    }
    admin.batch_execute("alter role role_few connection limit 1").await.unwrap();
    assert_eq!(client.query::<u64>("v_numbers").limit(1).fetch_all().await.unwrap(), [1]);
}

/// A session that was ended for being idle is replaced automatically.
#[tokio::test]
async fn session_ended_while_idle_is_replaced_automatically() {
    let url = format!("{}?options=-c%20idle_session_timeout%3D50", cluster().url());
    if cluster().version() < 14 {
        // It has no such limit.
        let error = FraiseClient::connect(&url).await.unwrap_err();
        assert_eq!(category_of(&error), (ErrorCategory::Server, Some("42704"), false), "{error}");
        return;
    }
    let client = FraiseClient::connect(&url).await.unwrap();
    let (pid, admin) = (client.backend_pid().unwrap(), admin().await);
    eventually("it is ended", async || crate::support::backend_state(&admin, pid).await.is_none())
        .await;
    assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
    assert_ne!(client.backend_pid(), Some(pid));
}

/// However slowly a query is read, it is not idle. The limits of idle sessions, idle transactions
/// and lock waits do not apply.
#[tokio::test]
async fn paused_stream_is_not_idle_for_the_server() {
    sql(&NUMBERS.replace("v_numbers", "v_unhurried_numbers")).await;
    // The last since Postgres 14.
    let limits = ["idle_in_transaction_session_timeout", "lock_timeout", "idle_session_timeout"];
    let limits = &limits[..if cluster().version() < 14 { 2 } else { 3 }];
    let options: String = limits.iter().map(|limit| format!("-c%20{limit}%3D100%20")).collect();
    let url = format!("{}?options={options}", cluster().url());
    let client = FraiseClient::connect(&url).await.unwrap();
    let admin = admin().await;
    let mut stream = client.query::<u64>("v_unhurried_numbers").execute().await.unwrap();
    let pid = client.backend_pid().unwrap();
    stream.pause().await.unwrap();
    eventually("many times that has passed", async || {
        let query = "select clock_timestamp() - query_start > '500 ms' from pg_stat_activity where pid = $1";
        admin.query_one(query, &[&i32::try_from(pid).unwrap()]).await.unwrap().get(0)
    })
    .await;
    assert_eq!(crate::support::backend_state(&admin, pid).await.as_deref(), Some("active"));
    stream.resume().await.unwrap();
    for i in 1..=100_000 {
        assert_eq!(stream.next().await.unwrap().unwrap(), i);
    }
    stream.cancel().await.unwrap();
    assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);
}

/// Since Postgres 17 the duration of a transaction can be limited, which ends the session.
#[tokio::test]
async fn transaction_timeout_ends_the_session_and_client_is_reusable() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgres18");
    assert!(programs.exists(), "Postgres 18 is not there: run scripts/test.sh, which fetches it");
    let server = Cluster::start_with(&Setup {
        hba: REQUIRE_PASSWORD,
        settings: "-c transaction_timeout=1000",
        programs: Some((&programs, "bin")),
        ..Setup::default()
    });
    let server = server.unwrap_or_else(|e| panic!("{e}"));
    admin_at(&server.url()).await.batch_execute(NUMBERS).await.unwrap();
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let stream = client.query::<u64>("v_numbers").execute().await.unwrap();
    let (next, error) = numbers_from(1, stream).await;
    let error = error.unwrap();
    // It would last as long again.
    assert_eq!(category_of(&error), (ErrorCategory::Server, Some("25P04"), false), "{error}");
    assert!(!client.is_connected());
    assert!(next > 1);
    assert_eq!(client.query::<u64>("v_numbers").limit(1).fetch_all().await.unwrap(), [1]);
}

/// A standby cancels a query that conflicts with replay. A promotion does not end queries.
#[tokio::test]
async fn standby_cancels_queries_that_conflict_with_replay_and_keeps_them_through_promotion() {
    let primary = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let admin = admin_at(&primary.url()).await;
    admin
        .batch_execute(
            "create table t as select i, to_json(i) as data from generate_series(1, 2000) i;
             create view v_slow as select data from t where pg_sleep(0.002)::text is not null",
        )
        .await
        .unwrap();
    let standby = Cluster::start_with(&Setup {
        standby_of: Some(primary.port()),
        settings: "-c max_standby_streaming_delay=0",
        ..Setup::default()
    });
    let standby = standby.unwrap_or_else(|e| panic!("{e}"));
    let client = FraiseClient::connect(&standby.url()).await.unwrap();
    eventually("it follows", async || client.query::<u64>("t").limit(1).fetch_one().await.is_ok())
        .await;

    let mut stream = client.query::<u64>("v_slow").chunk_size(1).execute().await.unwrap();
    admin.batch_execute("delete from t where i > 1000").await.unwrap();
    admin.batch_execute("vacuum (truncate false) t").await.unwrap();
    let mut conflict = None;
    while let Some(row) = stream.next().await {
        if let Err(e) = row {
            conflict = Some(e);
        }
    }
    let conflict = conflict.expect("replay ends the query");
    assert_eq!(category_of(&conflict), (ErrorCategory::Server, Some("40001"), true), "{conflict}");
    assert!(client.is_connected(), "the session goes on");

    let stream = client.query::<u64>("v_slow").execute().await.unwrap();
    standby.control(&["promote"]);
    let (next, error) = numbers_from(1, stream).await;
    assert!(error.is_none() && next == 1001, "{error:?} behind {next}");
    if standby.version() < 14 {
        // It does not report the parameter.
        assert_eq!(client.parameter("in_hot_standby"), None);
        return;
    }
    eventually("the parameter has been reported", async || {
        client.ping().await.unwrap();
        client.parameter("in_hot_standby").as_deref() == Some("off")
    })
    .await;
}

/// If a server does not accept connections yet, the next host is tried. With a single host, its
/// error is returned.
#[tokio::test]
async fn server_that_starts_up_is_skipped() {
    for text in [
        "the database system is starting up",
        "the database system is not yet accepting connections",
        "the database system is in recovery mode",
        "the database system is shutting down",
    ] {
        let refusing =
            || vec![Step::ExpectStartup, Step::Send(scripted::error("FATAL", "57P03", text))];
        let server = Scripted::start(vec![refusing(), refusing(), refusing()]).await;
        let url = |port: u16| {
            format!(
                "host=127.0.0.1,127.0.0.1 port={},{port} user=postgres password={} dbname=postgres \
                 sslmode=disable",
                server.address.port(),
                crate::support::cluster::password()
            )
        };
        let client = FraiseClient::connect(&url(cluster().port())).await.unwrap();
        assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);

        let error = FraiseClient::connect(&server.url()).await.unwrap_err();
        let expected = (ErrorCategory::Server, Some("57P03"), true);
        assert_eq!(category_of(&error), expected, "{error}");
        assert!(error.to_string().contains(text), "{error}");

        // With several hosts, the error has no SQLSTATE of one of them.
        let other = Scripted::start(vec![refusing()]).await;
        let error = FraiseClient::connect(&url(other.address.port())).await.unwrap_err();
        assert_eq!(category_of(&error), (ErrorCategory::Connection, None, true), "{error}");
        assert_eq!(error.to_string().matches(text).count(), 2, "{error}");
        server.done().await;
        other.done().await;
    }
}

/// A standby that accepts no connections reports the SQLSTATE of a server that starts up, until it
/// is promoted.
#[tokio::test]
async fn standby_that_rejects_connections_is_used_after_promotion() {
    let primary = Cluster::start(REQUIRE_PASSWORD).unwrap();
    admin_at(&primary.url()).await.batch_execute(NUMBERS).await.unwrap();
    let standby = Cluster::start_with(&Setup {
        standby_of: Some(primary.port()),
        settings: "-c hot_standby=off",
        ..Setup::default()
    });
    let standby = standby.unwrap_or_else(|e| panic!("{e}"));
    let client = FraiseClient::new(standby.url().parse().unwrap());
    let error = client.query::<u64>("v_numbers").execute().await.unwrap_err();
    assert_eq!(category_of(&error), (ErrorCategory::Server, Some("57P03"), true), "{error}");
    // Since Postgres 14 it reports the reason.
    let said = if standby.version() < 14 { "starting up" } else { "Hot standby mode is disabled" };
    assert!(error.to_string().contains(said), "{error}");
    standby.control(&["promote"]);
    assert_eq!(client.query::<u64>("v_numbers").limit(2).fetch_all().await.unwrap(), [1, 2]);
}

/// The administration console of a pooler.
struct Console(tokio_postgres::Client);

impl Console {
    async fn of(pooler: &Daemon) -> Self {
        let url = crate::support::url_at(([127, 0, 0, 1], pooler.port));
        Self(admin_at(&format!("{url}?dbname=pgbouncer")).await)
    }

    async fn run(&self, command: &str) {
        self.0.simple_query(command).await.unwrap();
    }

    /// Returns this column for the database `postgres`.
    async fn shows(&self, command: &str, name: &str, column: &str) -> String {
        let messages = self.0.simple_query(command).await.unwrap();
        let of_postgres = |message: &_| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) if row.get(name) == Some("postgres") => {
                Some(row.get(column).unwrap().to_owned())
            }
            _ => None,
        };
        messages.iter().find_map(of_postgres).unwrap_or_default()
    }

    async fn until_paused(&self) {
        eventually("it is paused", async || {
            self.shows("show databases", "database", "paused").await == "1"
        })
        .await;
    }

    async fn until_one_is(&self, state: &str) {
        eventually(&format!("one client is {state}"), async || {
            self.shows("show pools", "database", &format!("cl_{state}")).await == "1"
        })
        .await;
    }
}

const MODES: [&str; 2] = ["transaction", "session"];

/// Returns a client of the pooler that does not wait long if the pooler blocks.
fn client_of(pooler: &Daemon) -> FraiseClient {
    let config = config_at(pooler.port).cancel_timeout(Duration::from_millis(300));
    FraiseClient::new(config.build().unwrap())
}

/// A pooler that stops sends no error. Received rows are delivered, the rest is lost, and a loss
/// between queries has no effect.
#[tokio::test]
async fn pooler_restart_mid_stream_is_an_error_and_between_queries_invisible() {
    sql(&NUMBERS.replace("v_numbers", "v_pooled_numbers")).await;
    for mode in MODES {
        let mut pooler = Daemon::pgbouncer_in(mode, cluster().port());
        let client = client_of(&pooler);
        let mut stream = client.query::<u64>("v_pooled_numbers").execute().await.unwrap();
        for i in 1..=1000 {
            assert_eq!(stream.next().await.unwrap().unwrap(), i);
        }
        pooler.stop();
        let (next, error) = numbers_from(1001, stream).await;
        assert!(next >= 1001);
        assert_eq!(category_of(&error.unwrap()), LOST, "{mode}");
        let error = client.ping().await.unwrap_err();
        assert_eq!(category_of(&error), (ErrorCategory::Connection, None, true), "{mode}: {error}");
        pooler.start_again();
        for _ in 0..2 {
            assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1], "{mode}");
            pooler.stop();
            pooler.start_again();
        }
        assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1], "{mode}");
    }
}

/// PAUSE waits for running queries, and new queries wait for RESUME.
#[tokio::test]
async fn paused_pooler_completes_a_stream_and_blocks_the_next_query() {
    // More than all sockets can buffer, so that the server is still busy.
    sql(
        "create view v_wide_numbers as
         select (repeat(' ', 10000) || i)::json as data from (select generate_series(1, 6000) i) n",
    )
    .await;
    for mode in MODES {
        let pooler = Daemon::pgbouncer_in(mode, cluster().port());
        let (console, pauses) = (Console::of(&pooler).await, Console::of(&pooler).await);
        let client = client_of(&pooler);
        let mut stream = client.query::<u64>("v_wide_numbers").execute().await.unwrap();
        stream.pause().await.unwrap();
        let pausing = tokio::spawn(async move { pauses.run("pause postgres").await });
        console.until_paused().await;
        stream.resume().await.unwrap();
        assert!(!pausing.is_finished(), "{mode}: the stream runs");
        let (next, error) = numbers_from(1, stream).await;
        assert!(error.is_none() && next == 6001, "{mode}: {error:?} behind {next}");

        let other = client_of(&pooler);
        match mode {
            // The session belongs to its client. It is not blocked, and PAUSE waits for its end.
            "session" => {
                assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
                assert!(!pausing.is_finished());
                client.close().await.unwrap();
                pausing.await.unwrap();
            }
            // A query with a timeout ends by it, even if the pooler forwards no cancel request.
            _ => {
                pausing.await.unwrap();
                let query = client.query::<u64>("v_one").timeout(Duration::from_millis(300));
                let error = query.execute().await.unwrap_err();
                assert_eq!(category_of(&error), (ErrorCategory::Timeout, None, true), "{error}");
                eventually("it is cleaned up", async || !client.is_busy()).await;
                assert!(!client.is_connected(), "nobody knows what would still come");
                drop(client);
            }
        }
        let (rows, ()) = tokio::join!(other.query::<u64>("v_one").fetch_all(), async {
            console.until_one_is("waiting").await;
            console.run("resume postgres").await;
        });
        assert_eq!(rows.unwrap(), [1], "{mode}");
    }
}

/// KILL ends the sessions of a database, with the pooler's error where it can send one.
#[tokio::test]
async fn pooler_kill_ends_streams_and_clients_are_reusable() {
    sql(&NUMBERS.replace("v_numbers", "v_killed_numbers")).await;
    for mode in MODES {
        let pooler = Daemon::pgbouncer_in(mode, cluster().port());
        let (console, client) = (Console::of(&pooler).await, client_of(&pooler));
        let (error, ()) = tokio::join!(client.query::<u64>("v_asleep").execute(), async {
            console.until_one_is("active").await;
            console.run("kill postgres").await;
        });
        let error = error.unwrap_err();
        // PgBouncer has one SQLSTATE for all its own errors.
        assert_eq!(
            category_of(&error),
            (ErrorCategory::Server, Some("08P01"), false),
            "{mode}: {error}"
        );
        assert!(error.to_string().contains("FATAL: database removed"), "{error}");
        assert!(!client.is_connected());
        let (rows, ()) = tokio::join!(client.query::<u64>("v_one").fetch_all(), async {
            console.until_one_is("waiting").await;
            console.run("resume postgres").await;
        });
        assert_eq!(rows.unwrap(), [1], "{mode}");

        // While rows are forwarded, it sends the error in the middle of one: that is neither a row
        // nor a message.
        for _ in 0..5 {
            let mut stream = client.query::<u64>("v_killed_numbers").execute().await.unwrap();
            let mut next = 1;
            assert_eq!(stream.next().await.unwrap().unwrap(), next);
            console.run("kill postgres").await;
            let mut errors = Vec::new();
            while let Some(row) = stream.next().await {
                match row {
                    Ok(number) => {
                        next += 1;
                        assert!(
                            errors.is_empty() && number == next,
                            "{mode}: {errors:?}, {number}"
                        );
                    }
                    Err(e) => errors.push(e),
                }
            }
            let error = errors.pop().unwrap();
            match category_of(&error) {
                (ErrorCategory::Server, Some("08P01"), false)
                | (ErrorCategory::Protocol, None, false)
                | LOST => {}
                other => panic!("{mode}: {other:?}, {error}"),
            }
            // The bytes of the error may look like the end of a row.
            assert!(errors.len() <= 1 && errors.iter().all(Error::is_row_error), "{errors:?}");
            console.run("resume postgres").await;
            assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1], "{mode}");
        }
    }
}

/// A pooler reports a lost server with the SQLSTATE of all its own errors. A stream that can be
/// resumed continues after it. During a login, the error is final.
#[tokio::test]
async fn resumable_stream_resumes_after_a_pooler_error() {
    const ROWS: u64 = 100_000;
    sql(&format!(
        "create table t_pooled as
         select jsonb_build_object('id', i, 'text', repeat('x', 50)) as data from generate_series(1, {ROWS}) i"
    ))
    .await;
    let waiting = "select count(*) from pg_stat_activity
                   where wait_event_type = 'Lock' and query like $1 and pid <> pg_backend_pid()";
    for mode in MODES {
        let pooler = Daemon::pgbouncer_in(mode, cluster().port());
        let (console, admin, locker) = (Console::of(&pooler).await, admin().await, admin().await);
        let waits = async |pattern: &str| {
            eventually(pattern, async || {
                admin.query_one(waiting, &[&pattern]).await.unwrap().get::<_, i64>(0) == 1
            })
            .await;
        };
        let proxy = Proxy::to_port(pooler.port).await;
        let config = config_at(proxy.address.port());
        let client = FraiseClient::new(config.build().unwrap());
        let query = client.query::<RawJson>("t_pooled").resume_by("id").max_memory(64 << 10);
        let mut stream = query.execute().await.unwrap();
        // The resumed query will wait for this.
        let lock = locker.batch_execute("begin; lock table t_pooled");
        let mut lock = std::pin::pin!(lock);
        tokio::select! {
            result = &mut lock => panic!("{result:?}"),
            () = waits("%lock table t_pooled%") => {}
        }
        proxy.cut_after(0);
        let control = stream.control();
        let reading = async {
            let mut next = 1;
            while let Some(row) = stream.next().await {
                let row: serde_json::Value = row.unwrap().decode().unwrap();
                assert_eq!(row["id"], next, "{mode}: a row is lost or doubled");
                next += 1;
            }
            assert_eq!(next, ROWS + 1, "{mode}");
        };
        let breaking = async {
            eventually("the client has seen the cut", async || !client.is_connected()).await;
            proxy.cut_after(u64::MAX);
            lock.await.unwrap();
            waits("%\"t_pooled\"%").await;
            console.run("kill postgres").await;
            console.until_one_is("waiting").await;
            console.run("resume postgres").await;
            locker.batch_execute("rollback").await.unwrap();
        };
        tokio::join!(reading, breaking);
        assert!(control.stats().resumptions >= 2, "{mode}: {:?}", control.stats());
    }
}

/// The network accepts all data and delivers nothing, and no side closes the connection.
#[tokio::test]
async fn read_timeout_on_blackholed_connection_delivers_buffered_rows_first() {
    sql(&NUMBERS.replace("v_numbers", "v_endless_numbers")).await;
    let proxy = Proxy::to_port(cluster().port()).await;
    let config = config_at(proxy.address.port())
        .ssl_mode(fraiseql_wire::SslMode::Disable)
        .read_timeout(Duration::from_secs(2))
        .cancel_timeout(Duration::from_millis(300));
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    let stream = client.query::<u64>("v_endless_numbers").execute().await.unwrap();
    proxy.stall(true);
    let (next, error) = numbers_from(1, stream).await;
    let error = error.unwrap();
    assert!(
        matches!(error, Error::Timeout { phase: fraiseql_wire::TimeoutPhase::Read, .. }),
        "{error:?}"
    );
    assert_eq!(category_of(&error), (ErrorCategory::Timeout, None, true));
    assert!(next > 1);
    proxy.stall(false);
    eventually("the connection is given up", async || !client.is_busy()).await;
    assert!(client.query::<RawJson>("v_one").fetch_one().await.is_ok());
}

/// The pooler reports faults of the server: with the server's error if there is one, and otherwise
/// with its own.
#[tokio::test]
async fn pooler_reports_a_server_that_ends() {
    let server = breakable().await;
    let sleep = "set synchronous_commit = on;
                 create view v_asleep as select to_json(pg_sleep(600)::text) as data";
    admin_at(&server.url()).await.batch_execute(sleep).await.unwrap();
    for mode in MODES {
        let pooler = Daemon::pgbouncer_in(mode, server.port());
        for (how, state, retriable) in [("terminate", "57P01", true), ("kill", "08P01", false)] {
            let admin = admin_at(&server.url()).await;
            let client = client_of(&pooler);
            let (rows, ()) = tokio::join!(client.query::<u64>("v_asleep").fetch_all(), async {
                let at_work = "select pid from pg_stat_activity where state = 'active'
                               and query like '%v_asleep%' and pid <> pg_backend_pid()";
                eventually("it runs", async || {
                    admin.query_opt(at_work, &[]).await.unwrap().is_some()
                })
                .await;
                let pid: i32 = admin.query_one(at_work, &[]).await.unwrap().get(0);
                if how == "kill" {
                    kill("KILL", pid.unsigned_abs());
                } else {
                    admin.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
                }
            });
            let error = rows.unwrap_err();
            let expected = (ErrorCategory::Server, Some(state), retriable);
            assert_eq!(category_of(&error), expected, "{mode}, {how}: {error}");
            let by_pooler = error.to_string().contains("FATAL: server conn crashed?");
            assert_eq!(by_pooler, how == "kill", "{mode}, {how}: {error}");
            assert!(!client.is_connected());
            eventually(&format!("it is back after {how}"), async || client.ping().await.is_ok())
                .await;
            let rows = client.query::<u64>("v_numbers").limit(1).fetch_all().await;
            assert_eq!(rows.unwrap(), [1], "{mode}, {how}");
        }
    }
}

/// Data is delayed in both directions: everything takes longer, with the same results.
#[tokio::test]
async fn network_delays_do_not_change_results() {
    sql(&NUMBERS.replace("v_numbers", "v_late_numbers")).await;
    let proxy = Proxy::to_port(cluster().port()).await;
    let config = config_at(proxy.address.port())
        // In-flight data is also delayed.
        .cancel_timeout(Duration::from_secs(30));
    proxy.delay(Duration::from_millis(5));
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    let pid = client.backend_pid();
    let whole = async || {
        let stream = client.query::<u64>("v_short").execute().await.unwrap();
        let (next, error) = numbers_from(1, stream).await;
        assert!(error.is_none() && next == 301, "{error:?} behind {next}");
        assert_eq!(client.backend_pid(), pid);
    };
    for piece in [1 << 10, 64 << 10] {
        proxy.piece(piece);
        whole().await;

        let mut stream = client.query::<u64>("v_late_numbers").execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        stream.pause().await.unwrap();
        let received = stream.stats().total_rows_received;
        for i in 2..=received {
            assert_eq!(stream.next().await.unwrap().unwrap(), i);
        }
        assert!(futures_util::poll!(stream.next()).is_pending());
        assert_eq!(stream.stats().total_rows_received, received);
        stream.resume().await.unwrap();
        for i in received + 1..=received + 500 {
            assert_eq!(stream.next().await.unwrap().unwrap(), i);
        }
        // In small pieces, the rest of the buffered data would take long.
        proxy.piece(64 << 10);
        stream.cancel().await.unwrap();
        whole().await;

        let mut stream = client.query::<u64>("v_late_numbers").execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        drop(stream);
        whole().await;

        // Before any answer has arrived.
        let mut execute = Box::pin(client.query::<u64>("v_late_numbers").execute());
        assert!(futures_util::poll!(&mut execute).is_pending());
        drop(execute);
        whole().await;
    }
}

/// A server that has closed its side but still reads: received rows are delivered, the end is an
/// error, and the client sends Terminate.
#[tokio::test]
async fn server_that_closes_its_side_receives_terminate() {
    let goodbye = || Step::Expect(b"X\0\0\0\x04".to_vec());
    let whole = scripted::answer(&["1"]);

    // In the middle of the result, between rows and within one.
    let mut cut = scripted::begun(&["1", "2", "3"]);
    cut.truncate(cut.len() - 3);
    for (sent, rows) in [(scripted::begun(&["1", "2"]), 2), (cut, 2)] {
        let mut first = scripted::login();
        first.extend([
            Step::ExpectQuery,
            Step::Send(sent),
            Step::HalfClose,
            goodbye(),
            Step::ExpectEnd,
        ]);
        let mut second = scripted::login();
        second.extend([Step::ExpectQuery, Step::Send(whole.clone())]);
        let server = Scripted::start(vec![first, second]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        let (next, error) = match client.query::<u64>("v").execute().await {
            Ok(stream) => numbers_from(1, stream).await,
            Err(e) => (1, Some(e)),
        };
        assert_eq!(category_of(&error.unwrap()), LOST);
        assert_eq!(next - 1, rows);
        assert_eq!(client.query::<u64>("v").fetch_all().await.unwrap(), [1]);
        drop(client);
        server.done().await;
    }

    // Between two queries: the client replaces the connection.
    let mut between = scripted::login();
    between.extend([Step::ExpectQuery, Step::Send(whole.clone()), Step::HalfClose]);
    // The next query may already have been sent.
    between.push(Step::Silence);
    let mut second = scripted::login();
    second.extend([Step::ExpectQuery, Step::Send(whole.clone())]);
    let server = Scripted::start(vec![between, second]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(client.query::<u64>("v").fetch_all().await.unwrap(), [1]);
    }
    drop(client);
    server.done().await;

    // After the query and before any answer: the server may have started it.
    let mut before = scripted::login();
    before.extend([Step::ExpectQuery, Step::HalfClose, goodbye(), Step::ExpectEnd]);
    let server = Scripted::start(vec![before]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    assert_eq!(category_of(&client.query::<u64>("v").execute().await.unwrap_err()), LOST);
    drop(client);
    server.done().await;
}

/// One direction of a connection ends in the middle of a result, and the other does not.
#[tokio::test]
async fn half_closed_connection_delivers_rows_and_is_not_reused() {
    sql(&format!(
        "{};
         create view v_half_numbers as
             select (repeat(' ', 10000) || i)::json as data from (select generate_series(1, 3000) i) n",
        NUMBERS.replace("v_numbers", "v_gone_numbers")
    ))
    .await;
    let proxy = Proxy::to_port(cluster().port()).await;
    let url = format!("{}?sslmode=disable", crate::support::url_at(proxy.address));
    let client = FraiseClient::connect(&url).await.unwrap();
    let admin = admin().await;

    // The client's data no longer arrives. The server completes its answer, and closes.
    let pid = client.backend_pid().unwrap();
    let mut stream = client.query::<u64>("v_half_numbers").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    stream.pause().await.unwrap();
    proxy.shut_clients(true);
    stream.resume().await.unwrap();
    let (next, error) = numbers_from(stream.stats().total_rows_yielded + 1, stream).await;
    assert!(error.is_none() && next == 3001, "{error:?} behind {next}");
    eventually("it is gone", async || crate::support::backend_state(&admin, pid).await.is_none())
        .await;
    proxy.shut_clients(false);
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
    assert_ne!(client.backend_pid(), Some(pid));

    // The server's data no longer arrives. The client closes, and the server after it.
    let pid = client.backend_pid().unwrap();
    let stream = client.query::<u64>("v_gone_numbers").execute().await.unwrap();
    proxy.half_cut_after(1_000_000);
    let (next, error) = numbers_from(1, stream).await;
    assert_eq!(category_of(&error.unwrap()), LOST);
    assert!(next > 10_000, "{next}");
    eventually("it is gone", async || crate::support::backend_state(&admin, pid).await.is_none())
        .await;
    proxy.cut_after(u64::MAX);
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
}

/// Networks fail at random while streams are read, paused, dropped and cancelled at random. No row
/// is lost or repeated, no incomplete result looks complete, no unclean connection is reused, and
/// no backend is left.
#[tokio::test]
async fn random_faults_lose_no_row_and_leave_no_backend() {
    const ROWS: u64 = 2000;
    sql("create view v_few_thousand as
         select jsonb_build_object('id', i, 'text', repeat('x', i % 200)) as data
         from generate_series(1, 2000) i")
    .await;
    #[derive(serde::Deserialize)]
    struct Numbered {
        id: u64,
    }
    let (mut whole, mut broken, mut left) = (0, 0, 0);
    for seed in 0..250 {
        let random = &mut Random::of(seed);
        let proxy = Proxy::to_port(cluster().port()).await;
        let url = format!(
            "postgres://{}@{}/postgres?application_name=random_faults",
            crate::support::cluster::superuser(),
            proxy.address
        );
        let client = FraiseClient::connect(&url).await.unwrap();
        proxy.piece(64 << random.below(11));
        let at = random.below(900_000);
        match random.below(3) {
            0 => proxy.cut_after(at),
            1 => proxy.reset_after(at),
            _ => {}
        }
        for _ in 0..1 + random.below(3) {
            let query = client
                .query::<Numbered>("v_few_thousand")
                .chunk_size(1 + random.below(300) as usize)
                .max_memory(4096 << random.below(8));
            let mut stream = match query.execute().await {
                Ok(stream) => stream,
                Err(e) => {
                    assert!(e.is_retriable(), "seed {seed}: {e:?}");
                    broken += 1;
                    proxy.cut_after(u64::MAX);
                    break;
                }
            };
            let mut read = 0;
            let end = loop {
                match random.below(6000) {
                    0 => break None,
                    1 => drop(stream.cancel().await),
                    2 => {
                        let paused = stream.pause().await;
                        if paused.is_ok() {
                            tokio::task::yield_now().await;
                            let _ = stream.resume().await;
                        }
                    }
                    _ => {}
                }
                match stream.next().await {
                    Some(Ok(row)) => {
                        read += 1;
                        assert_eq!(row.id, read, "seed {seed}");
                    }
                    Some(Err(e)) => break Some(Err(e)),
                    None => break Some(Ok(())),
                }
            };
            match end {
                Some(Ok(())) if stream.state() == fraiseql_wire::StreamState::Completed => {
                    assert_eq!(read, ROWS, "seed {seed}: an early end");
                    whole += 1;
                }
                Some(Err(e)) => {
                    assert_eq!(category_of(&e), LOST, "seed {seed}: {e:?}");
                    assert!(stream.next().await.is_none(), "seed {seed}");
                    broken += 1;
                    // Otherwise the client would try to connect repeatedly, with pauses.
                    proxy.cut_after(u64::MAX);
                }
                _ => left += 1,
            }
        }
        proxy.cut_after(u64::MAX);
        // On the same connection or a new one, the answer belongs to this query.
        let rows = client.query::<u64>("v_one").fetch_all().await;
        assert_eq!(rows.unwrap_or_else(|e| panic!("seed {seed}: {e}")), [1]);
    }
    assert!(whole > 25 && broken > 25 && left > 25, "{whole} whole, {broken} broken, {left} left");
    let admin = admin().await;
    eventually("nothing stays behind", async || {
        let count =
            "select count(*) from pg_stat_activity where application_name = 'random_faults'";
        admin.query_one(count, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

/// A view of more documents of 300 bytes than sockets and buffers hold.
async fn endless_numbers(url: &str) {
    let admin = admin_at(url).await;
    let exists = "select from pg_views where viewname = 'v_numbers'";
    if admin.query_opt(exists, &[]).await.unwrap().is_none() {
        admin.batch_execute(NUMBERS).await.unwrap();
    }
}

async fn is_blocked_in_send(admin: &tokio_postgres::Client, pid: u32) -> bool {
    let query = "select wait_event = 'ClientWrite' from pg_stat_activity where pid = $1";
    let row = admin.query_one(query, &[&i32::try_from(pid).unwrap()]).await.unwrap();
    row.get::<_, Option<bool>>(0).unwrap_or_default()
}

async fn blocked_in_send(admin: &tokio_postgres::Client, pid: u32) {
    eventually("the backend is blocked in send", async || is_blocked_in_send(admin, pid).await)
        .await;
}

/// The client does not read, so the server cannot announce the end of the session: it closes the
/// connection.
#[tokio::test]
async fn backend_terminated_while_blocked_in_send_yields_rows_then_error() {
    let server = breakable().await;
    let admin = admin_at(&server.url()).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    for mode in ["terminated", "killed"] {
        let mut stream = client.query::<u64>("v_numbers").execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        stream.pause().await.unwrap();
        let pid = client.backend_pid().unwrap();
        blocked_in_send(&admin, pid).await;
        let received = stream.stats().total_rows_received;
        match mode {
            "terminated" => crate::support::terminate(&admin, pid).await,
            // The server's crash ends the other sessions too, so this one cannot be queried any
            // more.
            _ => kill("KILL", pid),
        }
        stream.resume().await.unwrap();
        let (next, error) = numbers_from(2, stream).await;
        // Data in the sockets is delivered.
        assert!(next > received, "{mode}: {next} of {received}");
        assert_eq!(category_of(&error.unwrap()), LOST, "{mode}");
        let again = async || client.query::<u64>("v_numbers").limit(1).fetch_all().await.is_ok();
        eventually("the client is usable", again).await;
    }
}

/// A crash of one backend ends every session. While the server recovers, it refuses with a reason
/// that passes.
#[tokio::test]
async fn crash_of_another_backend_ends_the_stream_and_recovery_rejects_connections() {
    let server = breakable().await;
    let admin = admin_at(&server.url()).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let bystander = FraiseClient::connect(&server.url()).await.unwrap();
    let stopped = bystander.backend_pid().unwrap();
    let other = FraiseClient::connect(&server.url()).await.unwrap();
    let mut stream = client.query::<u64>("v_numbers").execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), 1);
    drop(admin);

    let config = config_at(server.port()).retry(fraiseql_wire::RetryPolicy::none());
    let once = FraiseClient::new(config.build().unwrap());
    let refusal = std::cell::RefCell::new(None);
    let until_refused = eventually("recovery refuses", async || {
        let error = once.ping().await.err();
        let is_refusal =
            error.as_ref().and_then(|e| e.sqlstate()).is_some_and(|s| s.code() == "57P03");
        refusal.replace(error);
        is_refusal
    });
    // The server waits up to 5 s for a backend that does not end, and recovers only then.
    kill("STOP", stopped);
    kill("KILL", other.backend_pid().unwrap());
    let ((next, error), ()) = tokio::join!(numbers_from(2, stream), until_refused);
    let error = error.unwrap();
    assert!(next > 2);
    if category_of(&error) != LOST {
        assert_eq!(category_of(&error), (ErrorCategory::Server, Some("57P02"), true), "{error}");
    }
    let error = refusal.take().unwrap();
    assert_eq!(category_of(&error), (ErrorCategory::Server, Some("57P03"), true), "{error}");
    // By now the server may have killed it.
    let resumed = format!("kill -CONT {stopped} 2>/dev/null || true");
    Command::new("sh").args(["-c", &resumed]).status().unwrap();
    eventually("it has recovered", async || client.ping().await.is_ok()).await;
    assert_eq!(client.query::<u64>("v_numbers").limit(2).fetch_all().await.unwrap(), [1, 2]);
}

/// Replay of DROP TABLE ends the queries that read the table; of DROP DATABASE, the sessions in it.
#[tokio::test]
async fn standby_that_replays_a_drop_ends_conflicting_queries() {
    let primary = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let admin = admin_at(&primary.url()).await;
    // Each row fills the server's buffer, and so is sent when it is made.
    let make = "create table t as
                select (repeat(' ', 9000) || i)::json as data from generate_series(1, 2000) i";
    admin.batch_execute(make).await.unwrap();
    admin.batch_execute("create database doomed").await.unwrap();
    let doomed = |url: String| format!("{url}?dbname=doomed");
    admin_at(&doomed(primary.url())).await.batch_execute(make).await.unwrap();
    let standby = Cluster::start_with(&Setup {
        standby_of: Some(primary.port()),
        settings: "-c max_standby_streaming_delay=0",
        ..Setup::default()
    });
    let standby = standby.unwrap_or_else(|e| panic!("{e}"));
    let slow = |client: &FraiseClient| {
        // Its rows come one by one, and last for longer than replay needs.
        client.query::<u64>("t").where_sql("pg_sleep(0.02)::text is not null").chunk_size(1)
    };
    for (url, drop, expected, stays) in [
        (standby.url(), "drop table t", (ErrorCategory::Server, Some("40001"), true), true),
        (
            doomed(standby.url()),
            "drop database doomed",
            // The database is gone: the same query cannot succeed.
            (ErrorCategory::Server, Some("57P04"), false),
            false,
        ),
    ] {
        let client = FraiseClient::connect(&url).await.unwrap();
        eventually("it follows", async || slow(&client).limit(1).fetch_one().await.is_ok()).await;
        let mut stream = slow(&client).execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        admin.batch_execute(drop).await.unwrap();
        let (next, error) = numbers_from(2, stream).await;
        let error = error.unwrap_or_else(|| panic!("{drop}: the end is no error"));
        assert!(next < 2001);
        assert_eq!(category_of(&error), expected, "{drop}: {error}");
        assert_eq!(client.is_connected(), stays, "{drop}");
        let gone = if stays { "42P01" } else { "3D000" };
        let refused = async || slow(&client).fetch_all().await.unwrap_err();
        // Until it is removed, the database is there and invalid: 55000.
        eventually("it is gone", async || refused().await.sqlstate().unwrap().code() != "55000")
            .await;
        let error = refused().await;
        assert_eq!(
            category_of(&error),
            (ErrorCategory::Server, Some(gone), false),
            "{drop}: {error}"
        );
    }
}

/// DROP DATABASE ... WITH (FORCE) ends the sessions in it, whether they send, wait, or are idle.
#[tokio::test]
async fn database_dropped_by_force_ends_its_sessions() {
    let admin = admin().await;
    for state in ["sending", "blocked in send", "idle"] {
        admin.batch_execute("create database forced").await.unwrap();
        let url = format!("{}?dbname=forced", cluster().url());
        endless_numbers(&url).await;
        let client = FraiseClient::connect(&url).await.unwrap();
        let mut stream = client.query::<u64>("v_numbers").execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        match state {
            "blocked in send" => {
                stream.pause().await.unwrap();
                blocked_in_send(&admin, client.backend_pid().unwrap()).await;
            }
            "idle" => stream.cancel().await.unwrap(),
            _ => {}
        }
        let force = "drop database forced with (force)";
        match state {
            "sending" => {
                let dropping = admin.batch_execute(force);
                let ((next, error), dropped) = tokio::join!(numbers_from(2, stream), dropping);
                dropped.unwrap();
                let error = error.unwrap();
                assert!(next > 2);
                let terminated = (ErrorCategory::Server, Some("57P01"), true);
                // A backend that is blocked in send closes without a word.
                assert!(
                    category_of(&error) == terminated || category_of(&error) == LOST,
                    "{error}"
                );
            }
            "blocked in send" => {
                admin.batch_execute(force).await.unwrap();
                stream.resume().await.unwrap();
                assert_eq!(category_of(&numbers_from(2, stream).await.1.unwrap()), LOST);
            }
            _ => {
                drop(stream);
                admin.batch_execute(force).await.unwrap();
            }
        }
        let error = client.query::<u64>("v_numbers").fetch_all().await.unwrap_err();
        assert_eq!(
            category_of(&error),
            (ErrorCategory::Server, Some("3D000"), false),
            "{state}: {error}"
        );
    }
}

/// A large document is on its way when something ends the query: a cancel lets it arrive whole
/// before the error, and a lost backend leaves a part of it, which is no row.
#[tokio::test]
async fn end_in_the_middle_of_a_large_document_is_not_a_row() {
    const LARGE: usize = 40 << 20;
    sql(&format!(
        "create view v_large_numbers as
         select case i when 2 then to_json(repeat('x', {LARGE})) else to_json(i::text) end as data
         from (select generate_series(1, 2000000000) i) numbers"
    ))
    .await;
    let admin = admin().await;
    for how in ["canceled", "terminated", "cut", "reset"] {
        let proxy = Proxy::to_port(cluster().port()).await;
        let url = format!("{}?sslmode=disable", crate::support::url_at(proxy.address));
        let client = FraiseClient::connect(&url).await.unwrap();
        let pid = client.backend_pid().unwrap();
        let mut stream = client.query::<String>("v_large_numbers").execute().await.unwrap();
        // Only a consumer that waits for it lets a document of this size in.
        let reading = tokio::spawn(async move {
            let mut rows = Vec::new();
            loop {
                match stream.next().await.unwrap() {
                    Ok(row) => rows.push(row.len()),
                    Err(e) => {
                        assert!(stream.next().await.is_none());
                        return (rows, e);
                    }
                }
            }
        });
        // The network stands still within the document, and the server cannot send the rest of it.
        eventually("a part has passed", async || proxy.bytes_from_server() > (4 << 20)).await;
        proxy.stall(true);
        blocked_in_send(&admin, pid).await;
        assert!(proxy.bytes_from_server() < LARGE as u64);
        let id = i32::try_from(pid).unwrap();
        match how {
            "canceled" => {
                admin.execute("select pg_cancel_backend($1)", &[&id]).await.unwrap();
            }
            "terminated" => crate::support::terminate(&admin, pid).await,
            "cut" => proxy.cut_after(1 << 20),
            _ => proxy.reset_after(1 << 20),
        }
        proxy.stall(false);
        let (rows, error) = reading.await.unwrap();
        if how == "canceled" {
            assert_eq!(rows[..2], [1, LARGE]);
            // Somebody else canceled it, or the server did.
            assert_eq!(error.sqlstate().unwrap().code(), "57014", "{error}");
            client.ping().await.unwrap();
            assert_eq!(client.backend_pid(), Some(pid), "the session continues");
        } else {
            assert_eq!(rows, [1], "{how}");
            assert_eq!(category_of(&error), LOST, "{how}");
            proxy.cut_after(u64::MAX);
            client.ping().await.unwrap();
        }
    }
}

/// RECONNECT replaces the server's connections once they are free: a stream is not disturbed.
#[tokio::test]
async fn pooler_reconnect_does_not_affect_a_stream() {
    sql("create view v_many_numbers as
         select to_json(i) as data from (select generate_series(1, 300000) i) numbers")
    .await;
    let admin = admin().await;
    for mode in MODES {
        let pooler = Daemon::pgbouncer_in(mode, cluster().port());
        let console = Console::of(&pooler).await;
        let client = client_of(&pooler);
        let mut stream = client.query::<u64>("v_many_numbers").execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        console.run("reconnect").await;
        let (next, error) = numbers_from(2, stream).await;
        assert!(error.is_none() && next == 300_001, "{mode}: {error:?} after {next}");
        assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1], "{mode}");
    }
    drop(admin);
}

/// A new process of PgBouncer takes over the sockets (`-R`): idle clients keep their connections,
/// and of a stream nothing is missing unless there is an error.
#[tokio::test]
async fn pooler_replaced_online_loses_no_rows() {
    sql("create view v_more_numbers as
         select to_json(i) as data from (select generate_series(1, 300000) i) numbers")
    .await;
    for mode in MODES {
        let mut pooler = Daemon::pgbouncer_in(mode, cluster().port());
        let (idle, client) = (client_of(&pooler), client_of(&pooler));
        idle.ping().await.unwrap();
        let mut stream = client.query::<u64>("v_more_numbers").execute().await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        let replacing = tokio::task::spawn_blocking(move || {
            pooler.replace_online();
            pooler
        });
        let (next, error) = numbers_from(2, stream).await;
        let pooler = replacing.await.unwrap();
        match error {
            None => assert_eq!(next, 300_001, "{mode}"),
            Some(error) => assert_eq!(category_of(&error), LOST, "{mode}: {error}"),
        }
        for client in [&idle, &client] {
            assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1], "{mode}");
        }
        drop(pooler);
    }
}
