//! Parallel streams while other sessions change the relation or end the stream's own sessions:
//! exactly the rows of one query, or an error.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::support::{
    admin, admin_at, client, cluster,
    cluster::{Cluster, REQUIRE_PASSWORD, Setup, password},
    daemon::Daemon,
    eventually,
    random::Random,
    scripted::{self, Scripted, Step},
    sql, url_at,
};
use fraiseql_wire::{
    ConnectionConfig, Error, ErrorCategory, FraiseClient, QueryBuilder, RawJson, SslMode,
    TimeoutPhase, sqlstate,
};
use futures_util::{StreamExt, future::poll_immediate};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};

#[derive(Debug, serde::Deserialize)]
struct Numbered {
    id: u64,
}

/// Creates a table of `rows` rows, each of about 100 bytes.
async fn table(name: &str, rows: u64) {
    sql(&format!(
        "create table {name} (id bigint, data jsonb not null);
         insert into {name}
         select i, jsonb_build_object('id', i, 'text', repeat('x', 60 + i::int % 30))
         from generate_series(1, {rows}) i;
         analyze {name}"
    ))
    .await;
}

fn with(options: &str) -> String {
    format!("{}?{options}", cluster().url())
}

/// Sessions of a superuser whose logins take a second.
fn slow(name: &str, more: &str) -> String {
    with(&format!("application_name={name}&options=-c%20post_auth_delay%3D1{more}"))
}

fn ids(rows: Vec<Numbered>) -> Vec<u64> {
    let mut ids: Vec<_> = rows.into_iter().map(|row| row.id).collect();
    ids.sort_unstable();
    ids
}

/// While the other connections log in, no lock is held and no transaction is open. So the table can
/// be filled again, and no session is ended for being idle in a transaction.
#[tokio::test]
async fn no_lock_is_held_while_other_connections_log_in() {
    table("t_login", 5000).await;
    table("t_login_source", 5000).await;
    let url = slow("login", "%20-c%20idle_in_transaction_session_timeout%3D900");
    let client = FraiseClient::connect(&url).await.unwrap();
    let pid = i32::try_from(client.backend_pid().unwrap()).unwrap();
    let admin = admin().await;
    let query = client.query::<Numbered>("t_login").parallel(3).fetch_all();
    let filled = async {
        // The first session knows what the relation is; the others take a second to log in.
        let described = "select count(*) from pg_stat_activity
                         where pid = $1 and state = 'idle' and query like '%relkind%'";
        eventually("it is described", async || {
            admin.query_one(described, &[&pid]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        let fill = "begin; set local lock_timeout = '300ms'; truncate t_login;
                    insert into t_login select id + 10000, jsonb_build_object('id', id + 10000)
                    from t_login_source; commit";
        admin.batch_execute(fill).await.unwrap();
    };
    let (rows, ()) = tokio::join!(query, filled);
    assert_eq!(ids(rows.unwrap()), (10_001..=15_000).collect::<Vec<_>>());
}

/// What other sessions do to a relation, repeatedly.
struct Change {
    entity: &'static str,
    partition_by: Option<&'static str>,
    /// Each in its own transaction.
    steps: &'static [&'static str],
    /// A query may see one of these.
    allowed: &'static [RangeInclusive<u64>],
}

const CHANGES: [Change; 16] = [
    Change {
        entity: "d_truncate",
        partition_by: None,
        steps: &["begin; truncate d_truncate; insert into d_truncate select * from d_source; commit"],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_drop",
        partition_by: None,
        steps: &["begin; drop table d_drop; create table d_drop as select * from d_source; commit"],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_alter",
        partition_by: Some("id"),
        steps: &[
            "alter table d_alter alter id type numeric",
            "alter table d_alter alter id type bigint",
        ],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_vacuum",
        partition_by: None,
        steps: &["vacuum full d_vacuum"],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_cluster",
        partition_by: None,
        steps: &["cluster d_cluster using d_cluster_id"],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_refresh",
        partition_by: None,
        steps: &["refresh materialized view d_refresh"],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_concurrently",
        partition_by: None,
        steps: &[
            "update d_concurrently_source set data = data || '{\"n\": 1}'",
            "refresh materialized view concurrently d_concurrently",
        ],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_attach",
        partition_by: None,
        steps: &[
            "alter table d_attach attach partition d_attach_2 for values from (201) to (301)",
            "alter table d_attach detach partition d_attach_2",
        ],
        allowed: &[1..=200, 1..=300],
    },
    Change {
        entity: "d_detach",
        partition_by: Some("data->>'id'"),
        steps: &[
            "alter table d_detach attach partition d_detach_2 for values from (201) to (301)",
            "alter table d_detach detach partition d_detach_2 concurrently",
        ],
        allowed: &[1..=200, 1..=300],
    },
    Change {
        entity: "d_attach_view",
        partition_by: Some("data->>'id'"),
        steps: &[
            "alter table d_viewed attach partition d_viewed_2 for values from (201) to (301)",
            "alter table d_viewed detach partition d_viewed_2",
        ],
        allowed: &[1..=200, 1..=300],
    },
    Change {
        entity: "d_inherit",
        partition_by: None,
        steps: &[
            "begin; create table d_child () inherits (d_inherit);
             insert into d_child select * from d_source where id > 200; commit",
            "drop table d_child",
        ],
        allowed: &[1..=200, 1..=300],
    },
    Change {
        entity: "d_adopt",
        partition_by: Some("id"),
        steps: &["alter table d_orphan inherit d_adopt", "alter table d_orphan no inherit d_adopt"],
        allowed: &[1..=200, 1..=300],
    },
    Change {
        entity: "d_rename",
        partition_by: None,
        steps: &[
            "begin; alter table d_rename rename to d_rename_old; alter table d_rename_new rename to d_rename;
             alter table d_rename_old rename to d_rename_new; commit",
        ],
        allowed: &[1..=300, 1001..=1300],
    },
    Change {
        entity: "d_replace",
        partition_by: Some("data->>'id'"),
        steps: &[
            "create or replace view d_replace as select data from d_source where id <= 200",
            "create or replace view d_replace as select data from d_source",
        ],
        allowed: &[1..=200, 1..=300],
    },
    Change {
        entity: "d_refresh_view",
        partition_by: Some("data->>'id'"),
        steps: &["refresh materialized view d_refreshed"],
        allowed: &[1..=300],
    },
    Change {
        entity: "d_recreate",
        partition_by: None,
        steps: &[
            "begin; drop materialized view d_recreate;
             create materialized view d_recreate as select data from d_source; commit",
        ],
        allowed: &[1..=300],
    },
];

const CHANGED: &str = "
    create table d_source as select i::bigint as id, jsonb_build_object('id', i) as data from generate_series(1, 300) i;
    create table d_truncate as select * from d_source; create table d_drop as select * from d_source;
    create table d_alter as select * from d_source; create table d_vacuum as select * from d_source;
    create table d_cluster as select * from d_source; create index d_cluster_id on d_cluster (id);
    create materialized view d_refresh as select data from d_source;
    create table d_concurrently_source as select * from d_source;
    create materialized view d_concurrently as select id, data from d_concurrently_source;
    create unique index on d_concurrently (id);
    create table d_attach (id bigint, data jsonb) partition by range (id);
    create table d_attach_1 partition of d_attach for values from (1) to (201);
    create table d_attach_2 as select * from d_source where id > 200;
    create table d_detach (id bigint, data jsonb) partition by range (id);
    create table d_detach_1 partition of d_detach for values from (1) to (201);
    create table d_detach_2 as select * from d_source where id > 200;
    create table d_viewed (id bigint, data jsonb) partition by range (id);
    create table d_viewed_1 partition of d_viewed for values from (1) to (201);
    create table d_viewed_2 as select * from d_source where id > 200;
    create view d_attach_view as select data from d_viewed;
    insert into d_attach select * from d_source where id <= 200;
    insert into d_detach select * from d_source where id <= 200;
    insert into d_viewed select * from d_source where id <= 200;
    create table d_inherit as select * from d_source where id <= 200;
    create table d_adopt as select * from d_source where id <= 200;
    create table d_orphan as select * from d_source where id > 200;
    create table d_rename as select * from d_source;
    create table d_rename_new as select id + 1000 as id, jsonb_build_object('id', id + 1000) as data from d_source;
    create view d_replace as select data from d_source;
    create materialized view d_refreshed as select data from d_source;
    create view d_refresh_view as select data from d_refreshed;
    create materialized view d_recreate as select data from d_source";

/// How often each kind of change overlapped with rows.
#[derive(Debug, Default)]
struct Met {
    whole: u32,
    refused: u32,
    slowest: Duration,
    /// The slowest read of a session that is not involved.
    slowest_beside: Duration,
}

fn changed<T: fraiseql_wire::FromJsonRow>(
    client: &FraiseClient,
    change: &Change,
    n: usize,
) -> QueryBuilder<T> {
    let query = client.query::<T>(change.entity).parallel(n);
    match change.partition_by {
        Some(expression) => query.partition_by(expression),
        None => query,
    }
}

/// Runs one query during a change.
async fn meet(client: &FraiseClient, change: &Change, met: &mut Met) {
    let began = Instant::now();
    let result = changed::<Numbered>(client, change, 4).fetch_all().await;
    met.slowest = met.slowest.max(began.elapsed());
    match result {
        Ok(rows) => {
            let rows = ids(rows);
            let is_allowed =
                |allowed: &RangeInclusive<u64>| rows.iter().copied().eq(allowed.clone());
            assert!(
                change.allowed.iter().any(is_allowed),
                "{}: {} rows from {:?} to {:?}",
                change.entity,
                rows.len(),
                rows.first(),
                rows.last()
            );
            met.whole += 1;
        }
        // A single query could also find that the relation does not exist at that moment.
        Err(e) if e.is_retriable() || e.sqlstate() == Some(&sqlstate::UNDEFINED_TABLE) => {
            met.refused += 1;
        }
        Err(e) => panic!("{}: {e}", change.entity),
    }
}

/// A step of a change. Before 14, a partition is detached with a lock only.
fn on_this_server(step: &'static str) -> &'static str {
    match step.strip_suffix(" concurrently") {
        Some(with_lock) if cluster().version() < 14 => with_lock,
        _ => step,
    }
}

/// During each kind of change, every query ends with exactly the rows of one query, or with an
/// error that can be retried.
///
/// `CHANGE_QUERIES=200` runs more queries for each change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn query_during_each_kind_of_change_is_complete_or_fails() {
    let queries = std::env::var("CHANGE_QUERIES").map_or(12, |n| n.parse().unwrap());
    sql(CHANGED).await;
    let client = client().await;
    let mut all = Vec::new();
    for change in &CHANGES {
        let changing = tokio::spawn(async {
            let session = admin().await;
            loop {
                for step in change.steps {
                    // A deadlock may end this session.
                    if let Err(e) = session.batch_execute(on_this_server(step)).await {
                        let _ = session.batch_execute("rollback").await;
                        assert!(
                            e.code().is_some_and(|code| code.code() == "40P01"),
                            "{step}: {e:?}"
                        );
                    }
                }
            }
        });
        let slowest_beside = Arc::new(AtomicUsize::new(0));
        let beside = Arc::clone(&slowest_beside);
        let reading = tokio::spawn(async move {
            let session = admin().await;
            let read = format!("select data from {} limit 1", change.entity);
            loop {
                let began = Instant::now();
                // The relation may be missing for a moment.
                let _ = session.execute(&read, &[]).await;
                let took = usize::try_from(began.elapsed().as_millis()).unwrap();
                beside.fetch_max(took, SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let mut met = Met::default();
        for _ in 0..queries {
            meet(&client, change, &mut met).await;
        }
        reading.abort();
        met.slowest_beside =
            Duration::from_millis(u64::try_from(slowest_beside.load(SeqCst)).unwrap());
        assert!(!changing.is_finished(), "{}", change.entity);
        changing.abort();
        all.push((change.entity, met));
    }
    println!("{all:#?}");
    let whole: u32 = all.iter().map(|(_, met)| met.whole).sum();
    assert!(whole > 60, "most queries win in time");
}

/// Sessions of the query end at random moments, also while rows are read, and another session fills
/// the table again. The result is exactly the rows of one query, or an error that can be retried.
///
/// `LOSSES=5000` runs more of them, and `LOSS_SEED=7` starts with another seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_end_at_random_lose_no_row() {
    let number = |name, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (losses, seed) = (number("LOSSES", 60), number("LOSS_SEED", 1));
    table("p_random", 20_000).await;
    sql("create table p_random_source as select * from p_random").await;
    let filling = tokio::spawn(async {
        let session = admin().await;
        loop {
            let filled = "begin; truncate p_random; insert into p_random select * from p_random_source; commit";
            session.batch_execute(filled).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let admin = admin().await;
    let client = FraiseClient::connect(&with("application_name=p_random")).await.unwrap();
    let (mut whole, mut refused) = (0, 0);
    for seed in seed..seed + losses {
        let mut random = Random::of(seed);
        // Some queries keep their sessions.
        let ends = if random.below(4) == 0 { 0 } else { 1 + random.below(2) };
        let after = Duration::from_micros(random.below(40_000));
        let (before, memory) = (random.below(25_000), 64 << (10 + random.below(5)));
        let ending = async {
            tokio::time::sleep(after).await;
            for _ in 0..ends {
                let chosen = i64::try_from(random.below(4)).unwrap();
                let end = "select pg_terminate_backend(pid) from pg_stat_activity
                           where application_name = 'p_random' order by backend_start, pid limit 1 offset $1";
                admin.execute(end, &[&chosen]).await.unwrap();
            }
        };
        let reading = async {
            let query = client.query::<Numbered>("p_random").parallel(4).max_memory(memory);
            let mut rows = query.execute().await?;
            let mut read = Vec::new();
            while let Some(row) = rows.next().await {
                if read.len() as u64 == before {
                    // The rest stays in the sockets meanwhile.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                read.push(row?);
            }
            Ok::<_, Error>(ids(read))
        };
        let ((), result) = tokio::join!(ending, reading);
        match result {
            Ok(rows) => {
                assert!(rows.into_iter().eq(1..=20_000), "seed {seed}: not the rows of one query");
                whole += 1;
            }
            Err(e) => {
                assert!(e.is_retriable(), "seed {seed}: {e}");
                refused += 1;
            }
        }
    }
    assert!(!filling.is_finished());
    filling.abort();
    println!("{whole} whole, {refused} refused");
    assert!(losses < 60 || whole > 10 && refused > 10, "{whole} whole, {refused} refused");
}

/// A network that ends one connection at one message of the client. It then delivers no message of
/// any client until the test continues: the longest window that a lost session can leave.
struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// The number of the connection, in the order of arrival, and of its message.
    at: (usize, usize),
    /// The server receives nothing more, and the client does not notice.
    is_silent: bool,
    connections: AtomicUsize,
    /// It has ended that connection.
    hit: Notify,
    stopped: watch::Sender<bool>,
}

impl Gate {
    async fn start(server: SocketAddr, at: (usize, usize)) -> Self {
        Self::listen(server, at, false).await
    }

    /// A network that only stops delivering the client's messages on that connection.
    async fn silent(server: SocketAddr, at: (usize, usize)) -> Self {
        Self::listen(server, at, true).await
    }

    async fn listen(server: SocketAddr, at: (usize, usize), is_silent: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            at,
            is_silent,
            connections: AtomicUsize::new(0),
            hit: Notify::new(),
            stopped: watch::Sender::new(false),
        });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = accepting.connections.fetch_add(1, SeqCst);
                tokio::spawn(pass(client, server, number, Arc::clone(&accepting)));
            }
        });
        Self { address, shared }
    }
}

async fn pass(client: TcpStream, server: SocketAddr, number: usize, shared: Arc<Shared>) {
    let server = TcpStream::connect(server).await.unwrap();
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let upstream = async {
        let mut stopped = shared.stopped.subscribe();
        for message in 0.. {
            let mut frame = Vec::new();
            // The first message has no tag.
            if message > 0 {
                frame.push(from_client.read_u8().await?);
            }
            let len = from_client.read_u32().await?;
            frame.extend(len.to_be_bytes());
            let start = frame.len();
            frame.resize(start + len as usize - 4, 0);
            from_client.read_exact(&mut frame[start..]).await?;
            if shared.at == (number, message) && shared.is_silent {
                std::future::pending::<()>().await;
            }
            if shared.at == (number, message) {
                shared.stopped.send_replace(true);
                shared.hit.notify_one();
                break;
            }
            let _ = stopped.wait_for(|stopped| !stopped).await;
            to_server.write_all(&frame).await?;
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        _ = upstream => {}
        _ = copy(&mut from_server, &mut to_client) => {}
    }
}

#[derive(Debug, serde::Deserialize)]
struct Made {
    id: u64,
    /// Rows of the same version have the same value.
    by: u64,
}

/// Each session is lost before each of its messages, and the relation is then rewritten, if no lock
/// prevents it. The result is complete, from before or after the change, or an error that can be
/// retried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_lost_at_any_step_leaves_no_gap() {
    sql("create sequence g_made; select nextval('g_made'); grant select on g_made to public;
         create table g_source as select i::bigint as id from generate_series(1, 300) i;
         create table g_table as
             select id, jsonb_build_object('id', id, 'by', 0) as data from g_source;
         create table g_viewed as select * from g_table; create table g_columns as select * from g_table;
         create view g_select as select data from g_viewed;
         create materialized view g_view as
             select jsonb_build_object('id', id, 'by', (select last_value from g_made)) as data from g_source;
         create role role_columns login; grant select (data) on g_columns to role_columns")
    .await;
    let fill = |table: &str| {
        format!(
            "begin; set local lock_timeout = '50ms'; truncate {table};
             insert into {table}
             select id, jsonb_build_object('id', id, 'by', (select nextval('g_made'))) from g_source; commit"
        )
    };
    let refresh =
        "select nextval('g_made'); set lock_timeout = '50ms'; refresh materialized view g_view";
    let cases = [
        ("g_table", "postgres", None, fill("g_table")),
        ("g_view", "postgres", None, refresh.to_owned()),
        ("g_select", "postgres", Some("data->>'id'"), fill("g_viewed")),
        // LOCK TABLE is denied.
        ("g_columns", "role_columns", Some("data->>'id'"), fill("g_columns")),
    ];
    let server = ([127, 0, 0, 1], cluster().port()).into();
    let admin = admin().await;
    let mut met = HashMap::<_, u32>::new();
    for (entity, role, by, rewrite) in cases {
        for number in 0..3 {
            for message in 0.. {
                let gate = Gate::start(server, (number, message)).await;
                let url = url_at(gate.address);
                let url = format!("{url}?sslmode=disable&options=-c%20role%3D{role}");
                let mut run = tokio::spawn(async move {
                    let client = FraiseClient::connect(&url).await?;
                    let query = client.query::<Made>(entity).parallel(3);
                    let query = match by {
                        Some(expression) => query.partition_by(expression),
                        None => query,
                    };
                    query.fetch_all().await
                });
                tokio::select! {
                    biased;
                    () = gate.shared.hit.notified() => {}
                    result = &mut run => {
                        // No connection was lost: there is no such message.
                        assert_eq!(result.unwrap().unwrap().len(), 300);
                        assert!(message > 1, "each session has messages");
                        break;
                    }
                }
                let rewritten = admin.batch_execute(&rewrite).await.is_ok();
                if !rewritten {
                    let _ = admin.batch_execute("rollback").await;
                }
                gate.shared.stopped.send_replace(false);
                let result = tokio::time::timeout(Duration::from_secs(60), run).await;
                let result = result.expect("it ends").unwrap();
                *met.entry((rewritten, result.is_ok())).or_default() += 1;
                let lost = format!("{entity}: connection {number} before message {message}");
                match result {
                    Ok(mut rows) => {
                        rows.sort_unstable_by_key(|row| row.id);
                        assert!(rows.iter().map(|row| row.id).eq(1..=300), "{lost}");
                        assert!(rows.iter().all(|row| row.by == rows[0].by), "{lost}");
                    }
                    Err(e) => assert!(e.is_retriable(), "{lost}: {e}"),
                }
            }
        }
    }
    println!("rewritten, whole: {met:?}");
    assert!(met.len() >= 3, "{met:?}");
}

/// The same changes on a primary, while its standby is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn query_on_a_standby_is_complete_or_fails() {
    let primary = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let setup = Setup {
        standby_of: Some(primary.port()),
        settings: "-c max_standby_streaming_delay=100ms",
        ..Setup::default()
    };
    let standby = Cluster::start_with(&setup).unwrap();
    let session = admin_at(&primary.url()).await;
    session.batch_execute(CHANGED).await.unwrap();
    let reader = admin_at(&standby.url()).await;
    eventually("it is there", async || {
        let there = reader.query_one("select to_regclass('d_recreate') is not null", &[]).await;
        there.unwrap().get::<_, bool>(0)
    })
    .await;
    let client = FraiseClient::connect(&standby.url()).await.unwrap();
    let mut all = Met::default();
    for change in &CHANGES {
        let primary = primary.url();
        let changing = tokio::spawn(async move {
            let session = admin_at(&primary).await;
            loop {
                for step in change.steps {
                    session.batch_execute(on_this_server(step)).await.unwrap();
                }
            }
        });
        for _ in 0..4 {
            meet(&client, change, &mut all).await;
        }
        assert!(!changing.is_finished(), "{}", change.entity);
        changing.abort();
    }
    println!("{all:#?}");
    assert!(all.whole > 0);
    standby.stop();
    primary.stop();
}

/// Another session waits for an exclusive lock. No session of the stream holds a lock while it
/// waits for one, so the stream does not make other readers wait longer.
#[tokio::test]
async fn session_that_waits_for_a_lock_holds_none() {
    table("t_wanted", 300).await;
    let client = FraiseClient::connect(&with("application_name=wanted")).await.unwrap();
    let (holder, wants, reader) = (admin().await, admin().await, admin().await);
    // A reader holds the table, and another session waits for an exclusive lock: every further
    // session waits.
    holder.batch_execute("begin; select from t_wanted limit 1").await.unwrap();
    let wanting = async { wants.batch_execute("alter table t_wanted add column more int").await };
    let querying = async {
        eventually("it waits", async || {
            let query = "select count(*) from pg_locks where relation = 't_wanted'::regclass
                         and not granted and mode = 'AccessExclusiveLock'";
            reader.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        let mut query = std::pin::pin!(client.query::<RawJson>("t_wanted").parallel(3).fetch_all());
        // It waits like any other query.
        let waited = tokio::time::timeout(Duration::from_millis(1500), &mut query).await;
        assert!(waited.is_err(), "{waited:?}");
        let held = "select count(*) from pg_locks l join pg_stat_activity using (pid)
                    where application_name = 'wanted' and relation = 't_wanted'::regclass and granted";
        assert_eq!(reader.query_one(held, &[]).await.unwrap().get::<_, i64>(0), 0);
        holder.batch_execute("rollback").await.unwrap();
        assert_eq!(query.await.unwrap().len(), 300);
    };
    let (altered, ()) = tokio::join!(wanting, querying);
    altered.unwrap();
    // The server's own limit applies as to a single query.
    let url = with("options=-c%20lock_timeout%3D1500");
    let client = FraiseClient::connect(&url).await.unwrap();
    holder.batch_execute("begin; lock table t_wanted").await.unwrap();
    let error = client.query::<RawJson>("t_wanted").parallel(3).execute().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::LOCK_NOT_AVAILABLE), "{error}");
    assert!(error.is_retriable() && error.to_string().contains("exclusive lock"), "{error}");
}

/// A lock that is never released: the limits of a single query also end a parallel one, although it
/// waits in shorter attempts.
#[tokio::test]
async fn lock_wait_is_limited_like_that_of_a_single_query() {
    table("t_held", 300).await;
    let holder = admin().await;
    holder.batch_execute("begin; lock table t_held").await.unwrap();
    let config = || {
        ConnectionConfig::builder()
            .host("127.0.0.1")
            .port(cluster().port())
            .ssl_mode(SslMode::Disable)
            .user("postgres")
            .password(password())
            .database("postgres")
    };
    let limit = Duration::from_millis(2500);
    for (config, of_client) in
        [(config().read_timeout(limit), true), (config().statement_timeout(limit), false)]
    {
        let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
        for parts in [1, 3] {
            let query = client.query::<RawJson>("t_held").parallel(parts).fetch_all();
            let ended = tokio::time::timeout(Duration::from_secs(60), query).await;
            match ended.expect("it ends").unwrap_err() {
                Error::Timeout { phase: TimeoutPhase::Read, after } if of_client => {
                    assert_eq!(after, limit);
                }
                Error::Server(_) if !of_client => {}
                error => panic!("{parts} {of_client}: {error}"),
            }
        }
    }
    holder.batch_execute("rollback").await.unwrap();
}

/// A relation may be created after the snapshot of the statement that looks it up: its name is
/// known, but its row is not visible. The next statement sees it.
#[tokio::test]
async fn relation_just_created_is_looked_up_again() {
    let message = || Step::Echo(Box::new(|_| Vec::new()));
    let no_row =
        [scripted::begin(&[("concat_ws", 25)]), scripted::complete(), scripted::ready()].concat();
    let error = [scripted::error("ERROR", "42501", "permission denied"), scripted::ready()];
    let mut first = scripted::login();
    first.extend([message(), Step::Send(no_row), message(), Step::Send(error.concat())]);
    let mut second = scripted::login();
    second.push(Step::Silence);
    let server = Scripted::start(vec![first, second]).await;
    let client = scripted_client(&server).await;
    let error = client.query::<RawJson>("t").parallel(2).fetch_all().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::INSUFFICIENT_PRIVILEGE), "{error}");
}

/// LOCK TABLE looks up children before it locks them, and fails with XX000 if one was just dropped.
#[tokio::test]
async fn child_dropped_while_locking_is_retried() {
    let answers = |with: Vec<u8>| Step::Echo(Box::new(move |_| with.clone()));
    let ended = |status: &[u8]| [scripted::complete(), scripted::message(b'Z', status)].concat();
    let failed =
        |code: &str| [scripted::error("ERROR", code, "no"), scripted::message(b'Z', b"E")].concat();
    let relation = [
        scripted::begin(&[("concat_ws", 25)]),
        scripted::row("r\u{1f}0\u{1f}f\u{1f}f"),
        scripted::complete(),
        scripted::ready(),
    ];
    let mut first = scripted::login();
    first.extend([
        answers(relation.concat()),
        answers(ended(b"T")),
        answers(failed("XX000")),
        answers(ended(b"I")),
        answers(ended(b"T")),
        answers(failed("53200")),
        answers(ended(b"I")),
    ]);
    let mut second = scripted::login();
    second.extend([b"T", b"I", b"T", b"I"].map(|status| answers(ended(status))));
    let server = Scripted::start(vec![first, second]).await;
    let client = scripted_client(&server).await;
    let error = client.query::<RawJson>("t").parallel(2).fetch_all().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::OUT_OF_MEMORY), "{error}");
}

/// A session becomes silent after an error of one request, and its other answers may still arrive.
/// Nothing more is sent to it: those answers would be taken for the answers to later requests.
#[tokio::test]
async fn session_silent_after_an_error_is_not_used_again() {
    let answers = |with: Vec<u8>| Step::Echo(Box::new(move |_| with.clone()));
    let ended = |status: &[u8]| [scripted::complete(), scripted::message(b'Z', status)].concat();
    let value = |fields: &[&str], status: &[u8]| {
        let columns = scripted::begin(&[("concat_ws", 25)]);
        [columns, scripted::row(&fields.join("\u{1f}")), ended(status)].concat()
    };
    let failed =
        |code: &str| [scripted::error("ERROR", code, "no"), scripted::message(b'Z', b"E")].concat();
    let mut sight = ["same"; 16];
    (sight[0], sight[1]) = ("f", "");
    // Parse and Bind are answered together with Sync.
    let mut first = scripted::login();
    first.extend([
        answers(value(&["r", "0", "f", "f"], b"I")),
        answers(ended(b"T")),
        answers(value(&["00000003-1", "", "10"], b"T")),
        answers(Vec::new()),
        answers(Vec::new()),
        answers(ended(b"T")),
        answers(value(&sight, b"T")),
        answers(ended(b"I")),
    ]);
    let mut second = scripted::login();
    second.extend([
        answers(ended(b"T")),
        answers(failed("55P03")),
        answers(Vec::new()),
        answers(Vec::new()),
        answers(failed("25P02")),
        answers(Vec::new()),
        Step::ExpectEnd,
    ]);
    let server = Scripted::start(vec![first, second]).await;
    let config = ConnectionConfig::builder()
        .host("127.0.0.1")
        .port(server.address.port())
        .ssl_mode(SslMode::Disable)
        .user("postgres")
        .read_timeout(Duration::from_secs(1))
        .build();
    let client = FraiseClient::connect_with_config(config.unwrap()).await.unwrap();
    let error = client.query::<RawJson>("t").parallel(2).fetch_all().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Read, .. }), "{error:?}");
    drop(client);
    server.done().await;
}

async fn scripted_client(server: &Scripted) -> FraiseClient {
    let config = ConnectionConfig::builder()
        .host("127.0.0.1")
        .port(server.address.port())
        .ssl_mode(SslMode::Disable)
        .user("postgres")
        .build();
    FraiseClient::connect_with_config(config.unwrap()).await.unwrap()
}

/// A token also waits for the sessions that plan their parts. Here a later cancel request stops
/// them.
#[tokio::test]
async fn cancel_token_waits_for_sessions_that_plan_their_parts() {
    table("t_planned", 300).await;
    sql("create function survives_cancel() returns int immutable language plpgsql as $$ begin
             begin perform pg_sleep(60); exception when query_canceled then null; end;
             begin perform pg_sleep(60); exception when query_canceled then null; end;
             perform pg_sleep(60);
             return 1;
         end $$")
    .await;
    let client = FraiseClient::connect(&with("application_name=planned")).await.unwrap();
    let admin = admin().await;
    let active = async || {
        let query = "select count(*) from pg_stat_activity
                     where application_name = 'planned' and state = 'active' and wait_event = 'PgSleep'";
        admin.query_one(query, &[]).await.unwrap().get::<_, i64>(0)
    };
    let token = client.cancel_token();
    // Immutable, so it is called by planning.
    let query = client.query::<RawJson>("t_planned").where_sql("survives_cancel() = 1");
    let cancelling = async {
        eventually("all plan", async || active().await == 3).await;
        token.cancel().await.unwrap();
        assert_eq!(active().await, 0);
    };
    let (ended, ()) = tokio::join!(query.parallel(3).fetch_all(), cancelling);
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    assert_eq!(client.query::<RawJson>("t_planned").fetch_all().await.unwrap().len(), 300);
}

/// Relations that the snapshot does not cover are rejected, also inside of views.
#[tokio::test]
async fn relations_outside_of_the_snapshot_are_rejected() {
    // A separate database: every parallel query in it reads the list of Citus tables.
    sql("create database d_refused").await;
    let url = format!("{}/d_refused", cluster().url().strip_suffix("/postgres").unwrap());
    let admin = admin_at(&url).await;
    let setup = format!(
        "create extension postgres_fdw;
         create server s_far foreign data wrapper postgres_fdw
             options (host '127.0.0.1', port '{}', dbname 'd_refused');
         create user mapping for postgres server s_far options (user 'postgres', password '{}');
         create table t_near as
             select i as id, jsonb_build_object('id', i) as data from generate_series(1, 100) i;
         create foreign table f_far (id int, data jsonb) server s_far options (table_name 't_near');
         create view v_far as select n.data from t_near n join f_far using (id);
         create view v_far_far as select data from v_far where true;
         create table p_far (id int, data jsonb) partition by range (id);
         create foreign table p_far_1 partition of p_far for values from (1) to (1001)
             server s_far options (table_name 't_near');
         create view v_far_part as select data from p_far;
         create table t_shard as select * from t_near; create view v_shard as select data from t_shard;
         create sequence s_one;
         set allow_system_table_mods = on;
         create table pg_catalog.pg_dist_partition (logicalrelid regclass, partmethod char);
         insert into pg_catalog.pg_dist_partition values ('t_shard', 'h')",
        cluster().port(),
        password()
    );
    admin.batch_execute(&setup).await.unwrap();
    let client = FraiseClient::connect(&url).await.unwrap();
    let near = || client.query::<RawJson>("t_near").parallel(2);
    let by = |entity: &str| client.query::<RawJson>(entity).parallel(2).partition_by("data->>'id'");
    let in_far = "exists (select from f_far f where f.id = t_near.id)";
    for (query, part) in [
        (by("f_far"), "foreign table f_far"),
        (client.query("f_far").parallel(2), "foreign table f_far"),
        (client.query("p_far").parallel(2), "foreign table p_far_1"),
        (by("p_far"), "foreign table p_far_1"),
        (by("v_far"), "foreign table f_far"),
        (by("v_far_far"), "foreign table f_far"),
        (by("v_far_part"), "foreign table p_far_1"),
        (near().where_sql(in_far), "foreign table f_far"),
        (client.query("t_shard").parallel(2), "Citus table t_shard"),
        (by("t_shard"), "Citus table t_shard"),
        (by("v_shard"), "Citus table t_shard"),
        (near().where_sql("id in (select id from t_shard)"), "Citus table t_shard"),
        (by("s_one"), "this kind of relation"),
    ] {
        let error = query.execute().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        assert!(error.to_string().contains(part), "{error} says nothing of {part}");
    }
    assert_eq!(near().fetch_all().await.unwrap().len(), 100);
    assert_eq!(client.query::<RawJson>("f_far").parallel(1).fetch_all().await.unwrap().len(), 100);
    let drop_list = "set allow_system_table_mods = on; drop table pg_catalog.pg_dist_partition";
    admin.batch_execute(drop_list).await.unwrap();
    assert_eq!(by("v_shard").fetch_all().await.unwrap().len(), 100);
    // A pooler may provide a session with another client's temporary table.
    let pooler = Daemon::pgbouncer(cluster().port());
    let url = url_at(([127, 0, 0, 1], pooler.port));
    let other = admin_at(&url).await;
    other.batch_execute("create temp table t_temp as select '1'::jsonb as data").await.unwrap();
    let client = FraiseClient::connect(&url).await.unwrap();
    let error = client.query::<RawJson>("t_temp").parallel(2).execute().await.unwrap_err();
    assert!(error.to_string().contains("temporary"), "{error}");
}

/// Sessions that would compute different rows, or belong to another server, are rejected.
#[tokio::test]
async fn sessions_that_differ_are_rejected() {
    table("t_differ", 300).await;
    let admin = admin().await;
    sql("grant select on t_differ to role_trust").await;
    let url = cluster().url_as("role_trust");
    let client = FraiseClient::connect(&url).await.unwrap();
    // Later sessions have another search_path.
    let alter = "alter role role_trust set search_path = pg_catalog, public";
    admin.batch_execute(alter).await.unwrap();
    let result = client.query::<RawJson>("public.t_differ").parallel(2).execute().await;
    admin.batch_execute("alter role role_trust reset search_path").await.unwrap();
    let error = result.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Config, "{error}");
    assert!(error.to_string().contains("search_path"), "{error}");
    let rows = client.query::<RawJson>("t_differ").parallel(2).fetch_all().await.unwrap();
    assert_eq!(rows.len(), 300);

    // A balancer spreads the connections over two servers that look the same.
    let second = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let same = "create table t_differ (id bigint, data jsonb)";
    admin_at(&second.url()).await.batch_execute(same).await.unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let balancer = listener.local_addr().unwrap();
    let ports = [cluster().port(), second.port()];
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(("127.0.0.1", ports[number % 2])).await.unwrap();
            tokio::spawn(
                async move { tokio::io::copy_bidirectional(&mut client, &mut server).await },
            );
        }
    });
    let client = FraiseClient::connect(&url_at(balancer)).await.unwrap();
    let error = client.query::<RawJson>("t_differ").parallel(2).execute().await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
    assert!(error.to_string().contains("balancer"), "{error}");
    second.stop();
}

/// Streams that share a pool wait for each other for a bounded time, without a lock, and the error
/// names the rule.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_that_is_too_small_is_an_error_that_names_the_rule() {
    table("t_pool", 300).await;
    let pooler = Daemon::pgbouncer(cluster().port());
    let url = format!("{}?connect_timeout=2", url_at(([127, 0, 0, 1], pooler.port)));
    // The pool has four connections.
    let client = FraiseClient::connect(&url).await.unwrap();
    let error = client.query::<RawJson>("t_pool").parallel(5).execute().await.unwrap_err();
    let phase = TimeoutPhase::Parallel;
    assert!(matches!(error, Error::Timeout { phase: p, .. } if p == phase), "{error:?}");
    assert!(error.is_retriable());
    let message = error.to_string();
    assert!(
        message.contains("all of its connections") && message.contains("the pool"),
        "{message}"
    );
    // They are free again.
    let rows = client.query::<RawJson>("t_pool").parallel(4).fetch_all().await.unwrap();
    assert_eq!(rows.len(), 300);
    let streams = (0..6).map(|_| async {
        let client = FraiseClient::connect(&url).await.unwrap();
        client.query::<RawJson>("t_pool").parallel(2).fetch_all().await
    });
    let streams = futures_util::future::join_all(streams);
    for result in tokio::time::timeout(Duration::from_secs(60), streams).await.unwrap() {
        match result {
            Ok(rows) => assert_eq!(rows.len(), 300),
            Err(e) => assert!(e.is_retriable(), "{e}"),
        }
    }
}

/// Ten seconds, in virtual time.
#[tokio::test]
async fn parallel_without_connect_timeout_waits_ten_seconds_for_its_connections() {
    table("t_ten", 300).await;
    let pooler = Daemon::pgbouncer(cluster().port());
    let client = FraiseClient::connect(&url_at(([127, 0, 0, 1], pooler.port))).await.unwrap();
    // The pool has four connections. Waiting for the network advances the clock to the next
    // deadline, which is the one of the transactions.
    tokio::time::pause();
    let error = client.query::<RawJson>("t_ten").parallel(5).execute().await.unwrap_err();
    let Error::Timeout { phase: TimeoutPhase::Parallel, after } = error else {
        panic!("{error:?}")
    };
    assert_eq!(after, Duration::from_secs(10));
}

/// The error is the one that ended the query, not a consequence on another connection.
#[tokio::test]
async fn parallel_error_is_the_original_cause() {
    sql("create table t_cause as
         select jsonb_build_object('name', 'x' || i) as data from generate_series(1, 20000) i")
    .await;
    let client = client().await;
    for _ in 0..20 {
        let query = client.query::<RawJson>("t_cause").where_sql("(data->>'name')::int = 1");
        let error = query.parallel(2).fetch_all().await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_TEXT_REPRESENTATION), "{error}");
    }
    // A table with only some readable columns is split by them.
    sql("create role role_one; grant select (data) on t_cause to role_one").await;
    let client = FraiseClient::connect(&with("options=-c%20role%3Drole_one")).await.unwrap();
    let query = || client.query::<RawJson>("t_cause").parallel(2);
    let error = query().execute().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::INSUFFICIENT_PRIVILEGE), "{error}");
    assert!(error.to_string().contains("partition_by()"), "{error}");
    assert_eq!(query().partition_by("data").fetch_all().await.unwrap().len(), 20_000);
}

/// `read_timeout` ends the query if a server becomes silent at any step before the rows.
#[tokio::test]
async fn read_timeout_ends_silence_before_the_rows() {
    table("t_silent", 300).await;
    let server: SocketAddr = ([127, 0, 0, 1], cluster().port()).into();
    let (mut timeouts, mut whole) = (0, 0);
    // The first two log in.
    for at in (2..17).flat_map(|message| [(0, message), (1, message)]) {
        let gate = Gate::silent(server, at).await;
        let config = ConnectionConfig::builder()
            .hostaddr([127, 0, 0, 1])
            .port(gate.address.port())
            .ssl_mode(SslMode::Disable)
            .user("postgres")
            .password(password())
            .database("postgres")
            .connect_timeout(Duration::from_secs(20))
            .cancel_timeout(Duration::from_millis(200))
            .read_timeout(Duration::from_millis(200));
        let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
        let result = client.query::<RawJson>("t_silent").parallel(2).fetch_all();
        let result = tokio::time::timeout(Duration::from_secs(60), result).await.expect("it ends");
        match result {
            Ok(rows) => {
                assert_eq!(rows.len(), 300);
                whole += 1;
            }
            Err(Error::Timeout { phase: TimeoutPhase::Read, .. }) => timeouts += 1,
            Err(e) => panic!("{at:?}: {e:?}"),
        }
    }
    assert!(timeouts >= 16 && whole > 0, "{timeouts} {whole}");
}

/// With one connection, the query runs as without `parallel`.
#[tokio::test]
async fn parallel_with_one_connection_is_a_plain_query() {
    table("t_single", 300).await;
    let client = client().await;
    let one = || client.query::<Numbered>("t_single").parallel(1);
    let rows = one().order_by("id desc").limit(3).offset(1).fetch_all().await.unwrap();
    assert!(rows.iter().map(|row| row.id).eq([299, 298, 297]));
    assert!(one().fetch_one().await.is_ok() && one().fetch_optional().await.unwrap().is_some());
    assert_eq!(one().resume_by("id").fetch_all().await.unwrap().len(), 300);
    let rows = one().partition_by("id").max_memory(1024).fetch_all().await.unwrap();
    assert_eq!(rows.len(), 300);
}

/// A connection that needs much memory gets it in its turn, not only after the others are done.
#[tokio::test]
async fn large_row_does_not_wait_for_the_end_of_other_parts() {
    const ROWS: u64 = 200_000;
    // In the first part, and as large on the wire as in the table.
    sql(&format!(
        "create table t_large (id bigint, data jsonb);
         alter table t_large alter data set storage external;
         insert into t_large
         select i, jsonb_build_object('id', i, 'text', repeat('x', case i when 2000 then 700000 else 80 end))
         from generate_series(1, {ROWS}) i"
    ))
    .await;
    let client = client().await;
    let query = client.query::<RawJson>("t_large").parallel(4).max_memory(2 << 20);
    let mut stream = query.execute().await.unwrap();
    let (mut read, mut came) = (0, None);
    while let Some(row) = stream.next().await {
        read += 1;
        if row.unwrap().as_str().len() > 700_000 {
            came = Some(read);
        }
    }
    assert_eq!(read, ROWS);
    let came = came.unwrap();
    assert!(came < ROWS / 2, "it came as row {came}");
    let stats = stream.stats();
    assert!(stats.peak_memory <= (2 << 20) + (64 << 10), "{stats:?}");
}

/// A reader that has had a large row keeps no memory for another one while its server is silent.
#[tokio::test]
async fn reader_of_a_silent_server_leaves_its_memory_to_the_others() {
    let row = |id: &str, length: u64| {
        format!("jsonb_build_object('id', {id}, 'text', repeat('x', {length}))")
    };
    // More than 8 KiB, which the server sends at once, follow row 1. The second block begins with
    // row 4, because of the padding. That is as large, so that the answer is sent before row 5.
    sql(&format!(
        "create table t_answered (id bigint, data jsonb, padding text);
         alter table t_answered alter padding set storage plain;
         insert into t_answered values (1, {}, ''), (2, {}, ''), (3, {}, repeat('x', 7000));
         insert into t_answered values (4, {}, repeat('x', 2000));
         insert into t_answered select i, {}, repeat('x', 1000) from generate_series(5, 7) i;
         create function answered(id bigint) returns bool language plpgsql as $$ begin
             -- The sessions have a lock_timeout.
             while id in (3, 5) and not pg_try_advisory_xact_lock_shared(id) loop
                 perform pg_sleep(0.01);
             end loop;
             return true;
         end $$",
        row("1", 600_000),
        row("2", 9_000),
        row("3", 1),
        row("4", 9_000),
        row("i", 500_000),
    ))
    .await;
    let admin = admin().await;
    admin.batch_execute("select pg_advisory_lock(3), pg_advisory_lock(5)").await.unwrap();
    let client = client().await;
    let query = client.query::<Numbered>("t_answered").parallel(2).where_sql("answered(id)");
    let mut stream = query.execute().await.unwrap();
    let mut ids = vec![stream.next().await.unwrap().unwrap().id];
    // The first part has nothing more. After this its reader waits for the server.
    let next = poll_immediate(stream.next()).await;
    assert!(next.is_none());
    admin.batch_execute("select pg_advisory_unlock(5)").await.unwrap();
    while ids.len() < 5 {
        let next = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        ids.push(next.expect("the second part is read").unwrap().unwrap().id);
    }
    admin.batch_execute("select pg_advisory_unlock(3)").await.unwrap();
    while let Some(row) = stream.next().await {
        ids.push(row.unwrap().id);
    }
    ids.sort_unstable();
    assert!(ids.into_iter().eq(1..=7));
}

/// Trees whose parent has no rows, and tables of very different sizes, are divided as evenly as one
/// table.
#[tokio::test]
async fn uneven_trees_are_divided_evenly() {
    sql("create table u_parent (id bigint, data jsonb);
         create table u_large () inherits (u_parent); create table u_small () inherits (u_parent);
         create table u_smaller () inherits (u_small);
         insert into u_large select i, '{}' from generate_series(1, 90000) i;
         insert into u_small select i, '{}' from generate_series(90001, 99000) i;
         insert into u_smaller select i, '{}' from generate_series(99001, 100000) i")
    .await;
    #[derive(serde::Deserialize)]
    struct By {
        id: u64,
        pid: u64,
    }
    let client = client().await;
    let query = client.query::<By>("u_parent").parallel(3);
    let query = query.select_projection("jsonb_build_object('id', id, 'pid', pg_backend_pid())");
    let mut rows = query.fetch_all().await.unwrap();
    let mut by = HashMap::<_, u64>::new();
    for row in &rows {
        *by.entry(row.pid).or_default() += 1;
    }
    rows.sort_unstable_by_key(|row| row.id);
    assert!(rows.iter().map(|row| row.id).eq(1..=100_000));
    assert_eq!(by.len(), 3, "{by:?}");
    assert!(by.values().all(|rows| (30_000..37_000).contains(rows)), "{by:?}");
}
