//! Measures what users see when a cluster changes its primary. `scripts/failover.sh` makes the
//! cluster and runs it.

use std::{
    collections::BTreeMap,
    env,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use fraiseql_wire::{
    ConnectionConfig, Error, FraiseClient, QueryBuilder, RetryPolicy, TargetSessionAttrs, pool,
    pool::{Pooled, deadpool::Pool},
};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

const ROWS: u64 = 400_000;

#[derive(Deserialize)]
struct Row {
    id: u64,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let [patroni, password, ports @ ..] = &arguments[..] else {
        return println!("scripts/failover.sh runs this");
    };
    let password = std::fs::read_to_string(password).unwrap().trim().to_owned();
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let url = |attrs: &str| {
        format!(
            "host={hosts} port={} user=postgres password={password} dbname=postgres connect_timeout=2 \
             target_session_attrs={attrs}",
            ports.join(",")
        )
    };
    let cluster = Cluster {
        patroni: patroni.clone(),
        password: password.clone(),
        ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
        url: url("read-write"),
        any: url("prefer-standby"),
    };
    cluster.prepare(ports.len()).await;
    println!(
        "| event | a plain stream | a resumed stream | its longest gap | queries of the primary fail for | of a standby |"
    );
    println!("|---|---|---|---|---|---|");
    cluster.during("switchover", "switchover").await;
    cluster.during("crash of the primary", "crash").await;
}

struct Cluster {
    patroni: String,
    password: String,
    ports: Vec<u16>,
    url: String,
    any: String,
}

impl Cluster {
    /// A table on all nodes.
    async fn prepare(&self, nodes: usize) {
        let (client, connection) = loop {
            match tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await {
                Ok(connected) => break connected,
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        };
        tokio::spawn(connection);
        let table = format!(
            "create table t_failover as select jsonb_build_object('id', i, 'text', repeat('x', 500)) as data
             from generate_series(1, {ROWS}) i;
             create index on t_failover ((data->'id')); analyze t_failover"
        );
        client.batch_execute(&table).await.unwrap();
        let replayed =
            "select count(*) from pg_stat_replication where replay_lsn >= pg_current_wal_lsn()";
        while client.query_one(replayed, &[]).await.unwrap().get::<_, i64>(0) < nodes as i64 - 1 {
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Runs streams and queries while this happens to the primary.
    async fn during(&self, event: &str, command: &str) {
        let config: ConnectionConfig = self.url.parse().unwrap();
        let primary = FraiseClient::connect_with_config(config).await.unwrap();
        let port = primary.connection_info().unwrap().port;
        let node = format!("node{}", port % 10);
        let over = Arc::new(AtomicBool::new(false));
        let (patroni, command, name) = (self.patroni.clone(), command.to_owned(), node.clone());
        let happens = async move {
            sleep(Duration::from_secs(3)).await;
            let run = move || Command::new(patroni).args([&command, &name]).output();
            tokio::task::spawn_blocking(run).await.unwrap().unwrap();
        };
        let streams = async {
            let both = tokio::join!(self.plain(primary), self.resumed());
            over.store(true, SeqCst);
            both
        };
        let (streams, of_primary, of_standby, ()) =
            tokio::join!(streams, queries(&self.url, &over), queries(&self.any, &over), happens);
        let (plain, (resumed, gap)) = streams;
        println!(
            "| {event} | {plain} | {resumed} | {gap:.1} s | {:.1} s | {:.1} s |",
            of_primary.as_secs_f64(),
            of_standby.as_secs_f64()
        );
        let run = Command::new(&self.patroni).args(["return", &node]).output();
        run.unwrap();
        // The next event needs a standby that can be promoted.
        sleep(Duration::from_secs(30)).await;
    }

    async fn plain(&self, client: FraiseClient) -> String {
        let (rows, error, _, _) = read(client.query("t_failover").order_by("data->'id'")).await;
        match error {
            Some(e) => format!(
                "{rows} rows, then `{}` {}, {}",
                e.category(),
                e.sqlstate().map_or("", |state| state.code()),
                if e.is_retriable() { "retriable" } else { "not retriable" }
            ),
            None => format!("all {rows} rows"),
        }
    }

    async fn resumed(&self) -> (String, f64) {
        // A failover takes longer than all attempts of the default policy.
        let retry = RetryPolicy::default().max_attempts(1000).max_backoff(Duration::from_secs(1));
        let mut builder = ConnectionConfig::builder()
            .user("postgres")
            .password(&self.password)
            .database("postgres")
            .connect_timeout(Duration::from_secs(2))
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .retry(retry);
        for port in &self.ports {
            builder = builder.host("127.0.0.1").port(*port);
        }
        let client = FraiseClient::connect_with_config(builder.build().unwrap()).await.unwrap();
        let (rows, error, resumptions, gap) =
            read(client.query("t_failover").resume_by("id")).await;
        let ended = match error {
            Some(e) => format!("then {e}"),
            None => "each once, in order".into(),
        };
        (format!("{rows} rows, {ended}, resumed {resumptions} time(s)"), gap.as_secs_f64())
    }
}

/// Reads slowly, so that the event happens in the middle, and checks the numbers.
async fn read(query: QueryBuilder<Row>) -> (u64, Option<Error>, u64, Duration) {
    let mut stream = query.max_memory(256 << 10).execute().await.unwrap();
    let (mut rows, mut gap, mut last) = (0, Duration::ZERO, Instant::now());
    while let Some(row) = stream.next().await {
        gap = gap.max(last.elapsed());
        match row {
            Ok(row) => {
                rows += 1;
                assert_eq!(row.id, rows);
            }
            Err(e) => return (rows, Some(e), stream.stats().resumptions, gap),
        }
        if rows % 400 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        last = Instant::now();
    }
    (rows, None, stream.stats().resumptions, gap)
}

/// Queries through a pool repeatedly. Returns the longest time without an answer.
async fn queries(url: &str, over: &AtomicBool) -> Duration {
    let config: ConnectionConfig = url.parse().unwrap();
    let pool = Pool::builder(pool::deadpool::Manager::new(config)).max_size(4).build().unwrap();
    let (mut answered, mut longest) = (Instant::now(), Duration::ZERO);
    let mut by_port = BTreeMap::new();
    while !over.load(SeqCst) {
        let ask = async {
            let client = pool.get().await.ok()?;
            let port = client.connection_info().map(|info| info.port);
            let row = client.query::<Row>("t_failover").limit(1).fetch_one().await.ok()?;
            Some((port, row))
        };
        if let Ok(Some((port, _))) = timeout(Duration::from_secs(5), ask).await {
            longest = longest.max(answered.elapsed());
            answered = Instant::now();
            *by_port.entry(port).or_insert(0) += 1;
        }
        sleep(Duration::from_millis(20)).await;
    }
    eprintln!("answers by port: {by_port:?}");
    longest
}
