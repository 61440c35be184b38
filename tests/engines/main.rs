//! The checks of scripts/engines.sh: the same for every engine, pooler and proxy.
//!
//! `engines URL [--text]` prints a line for each check: its name, `works`, `error` or `wrong`, and
//! a remark. `--text` if the column `data` of the relation `documents` is text. The relation
//! contains [`ROWS`] documents with the ids from 1; `endless` contains more than can be read. The
//! function `recreate`, where there are functions, drops the table `changing` and creates it again.

#[path = "../support/random.rs"]
mod random;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fraiseql_wire::{
    ConnectionConfig, Error, FraiseClient, FromJsonRow, QueryBuilder, QueryStream, RawJson, field,
};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all};
use random::Random;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const ROWS: u64 = 20_000;

/// The maximum duration of a check.
const LIMIT: Duration = Duration::from_secs(60);

/// What a check found: a remark, or why it failed.
type Found = Result<String, Failure>;

enum Failure {
    /// The library or the server has reported an error.
    Error(Error),
    /// Something else than expected was returned. That must never happen.
    Wrong(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

struct Engine {
    config: ConnectionConfig,
    is_text: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().expect("usage: engines URL [--text]");
    let is_text = arguments.next().is_some_and(|option| option == "--text");
    let config = url.parse::<ConnectionConfig>().expect("a connection string").to_builder();
    // Poolers and engines without cancel requests send more before they stop.
    let config = config.drain_limit(128 << 20).build().expect("a configuration");
    let engine = &Engine { config, is_text };
    let mut is_wrong = false;
    let mut report = |name: &str, found: Option<Found>| {
        let (result, remark) = match found {
            Some(Ok(remark)) => ("works", remark),
            Some(Err(Failure::Error(error))) => ("error", error.to_string()),
            Some(Err(Failure::Wrong(what))) => ("wrong", what),
            None => ("wrong", format!("no result after {} s", LIMIT.as_secs())),
        };
        is_wrong |= result == "wrong";
        println!("{name}\t{result}\t{remark}");
    };
    macro_rules! check {
        ($($name:ident)*) => {$(
            report(stringify!($name), timeout(LIMIT, $name(engine)).await.ok());
        )*};
    }
    check!(connect stream where_sql where_rust order_by filter count body server_error);
    check!(dropped cancelled timeout_of_query reuse fetch statements changes);
    check!(resume parallel short_queries);
    std::process::exit(i32::from(is_wrong));
}

impl Engine {
    async fn client(&self) -> Result<FraiseClient, Error> {
        FraiseClient::connect_with_config(self.config.clone()).await
    }

    fn query<T: FromJsonRow>(&self, client: &FraiseClient, entity: &str) -> QueryBuilder<T> {
        client.query(entity).json_text(self.is_text)
    }
}

/// A condition in raw SQL with a value: bound, except for engines that support no parameters.
fn with_id<T: FromJsonRow>(
    engine: &Engine,
    query: QueryBuilder<T>,
    operator: &str,
    id: u64,
) -> QueryBuilder<T> {
    match engine.is_text {
        true => query.where_sql(format!("id {operator} {id}")),
        false => query.where_sql(format!("id {operator} $1")).bind(id),
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(Failure::Wrong(format!("{found:?} instead of {expected:?}")))
}

fn id(row: &Value) -> u64 {
    row["id"].as_u64().unwrap_or_default()
}

async fn ids(stream: QueryStream<Value>) -> Result<Vec<u64>, Error> {
    stream.map_ok(|row| id(&row)).try_collect().await
}

async fn connect(engine: &Engine) -> Found {
    let client = engine.client().await?;
    client.ping().await?;
    let version = client.parameter("server_version").unwrap_or_default();
    client.close().await?;
    Ok(format!("server_version {version}"))
}

async fn stream(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let stream = engine.query(&client, "documents").execute().await?;
    let ids = ids(stream).await?;
    expect((ids.len() as u64, ids.iter().collect::<BTreeSet<_>>().len() as u64), (ROWS, ROWS))?;
    Ok(String::new())
}

async fn where_sql(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let query = engine.query(&client, "documents").where_sql("id > $1").bind(ROWS - 10);
    expect(ids(query.execute().await?).await?.len(), 10)?;
    Ok(String::new())
}

async fn where_rust(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let query = engine.query(&client, "documents").where_rust(|row| id(row) % 1000 == 0);
    expect(ids(query.execute().await?).await?.len(), 20)?;
    Ok(String::new())
}

async fn order_by(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let query = engine.query(&client, "documents").order_by("id desc").limit(3).offset(2);
    expect(ids(query.execute().await?).await?, vec![ROWS - 2, ROWS - 3, ROWS - 4])?;
    Ok(String::new())
}

async fn filter(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let filters = [
        (field("id").gt(ROWS - 5), 5),
        (field("id").in_([1, 2, 3]) | field("name").eq("n4"), 4),
        (field("name").istarts_with("N1999"), 11),
        (!field("group").lt(9), 2000),
        (field("pad").is_null(), 0),
    ];
    for (filter, rows) in filters {
        let query = engine.query(&client, "documents").filter(filter).order_by_field("id");
        let ids = ids(query.execute().await?).await?;
        expect((ids.len(), ids.is_sorted()), (rows, true))?;
    }
    Ok(String::new())
}

async fn count(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let query = || engine.query::<Value>(&client, "documents");
    expect(query().count().await?, ROWS)?;
    expect(with_id(engine, query(), ">", 5).count().await?, ROWS - 5)?;
    expect(query().where_sql("id = 7").exists().await?, true)?;
    expect(query().where_sql("id = 0").exists().await?, false)?;
    Ok(String::new())
}

async fn body(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let mut body =
        engine.query::<RawJson>(&client, "documents").limit(1000).execute().await?.into_ndjson();
    let mut lines = 0;
    while let Some(bytes) = body.next().await {
        lines += bytes?.iter().filter(|byte| **byte == b'\n').count();
    }
    expect(lines, 1000)?;
    Ok(String::new())
}

/// An error of the server, after which the client is used.
async fn server_error(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let missing = engine.query::<Value>(&client, "missing").execute().await;
    let Err(error) = missing else { return Err(Failure::Wrong("no error".into())) };
    usable(engine, &client).await?;
    let code = error.sqlstate().map_or("none", |code| code.code());
    Ok(format!("SQLSTATE {code}"))
}

async fn usable(engine: &Engine, client: &FraiseClient) -> Result<(), Failure> {
    let query = with_id(engine, engine.query::<Value>(client, "documents"), "=", 5);
    expect(id(&query.fetch_one().await?), 5)
}

/// A stream of `endless` that has returned some rows.
async fn begun(engine: &Engine, client: &FraiseClient) -> Result<QueryStream<Value>, Failure> {
    let mut stream = engine.query::<Value>(client, "endless").execute().await?;
    for _ in 0..100 {
        if stream.next().await.transpose()?.is_none() {
            return Err(Failure::Wrong("the end of an endless result".into()));
        }
    }
    Ok(stream)
}

/// Uses the client after a query that was ended, and says how long that took.
async fn used_after(
    engine: &Engine,
    client: &FraiseClient,
    pid: Option<u32>,
    since: Instant,
) -> Found {
    usable(engine, client).await?;
    let connection = if client.backend_pid() == pid { "kept" } else { "replaced" };
    Ok(format!("connection {connection}, {} ms", since.elapsed().as_millis()))
}

async fn dropped(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let pid = client.backend_pid();
    let stream = begun(engine, &client).await?;
    let since = Instant::now();
    drop(stream);
    used_after(engine, &client, pid, since).await
}

async fn cancelled(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let pid = client.backend_pid();
    let stream = begun(engine, &client).await?;
    let since = Instant::now();
    client.cancel_token().cancel().await?;
    match ids(stream).await {
        Err(Error::Cancelled) => used_after(engine, &client, pid, since).await,
        other => Err(Failure::Wrong(format!("{other:?} instead of Cancelled"))),
    }
}

async fn timeout_of_query(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let pid = client.backend_pid();
    let query = engine.query::<Value>(&client, "endless").timeout(Duration::from_millis(200));
    let since = Instant::now();
    let ended = match query.execute().await {
        Ok(stream) => stream.try_for_each(async |_| Ok(())).await,
        Err(error) => Err(error),
    };
    match ended {
        Err(Error::Timeout { .. }) => used_after(engine, &client, pid, since).await,
        other => Err(Failure::Wrong(format!("{other:?} instead of a timeout"))),
    }
}

/// Queries one after another, on one connection.
async fn reuse(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let pid = client.backend_pid();
    for round in 1..=50u64 {
        let query = with_id(engine, engine.query::<Value>(&client, "documents"), "<=", round);
        expect(query.fetch_all().await?.len() as u64, round)?;
    }
    expect(client.backend_pid(), pid)?;
    Ok(String::new())
}

/// Queries at the same time, which share a connection.
async fn fetch(engine: &Engine) -> Found {
    let client = &engine.client().await?;
    let fetches = (1..=200u64).map(async |wanted| -> Result<(), Failure> {
        let query = with_id(engine, engine.query::<Value>(client, "documents"), "=", wanted);
        expect(id(&query.fetch_one().await?), wanted)
    });
    try_join_all(fetches).await?;
    Ok(String::new())
}

/// Several clients with few statements each. Streams occupy server connections of a pooler, so that
/// other clients get others.
async fn statements(engine: &Engine) -> Found {
    let config = engine.config.to_builder().statement_cache_capacity(2).build()?;
    let engine = &Engine { config, ..*engine };
    let clients = try_join_all((0..3).map(|_| engine.client())).await?;
    let mut held = None;
    for round in 0..60u64 {
        for (client, number) in clients.iter().zip(0..) {
            if number == 2 && round % 7 == 0 {
                held = None;
            }
            if number == 2 && round % 7 == 1 {
                held = Some(begun(engine, client).await?);
            }
            if number == 2 && held.is_some() {
                continue;
            }
            for text in [round % 3, 0] {
                let query = engine.query::<Value>(client, "documents");
                let query = query.where_sql(format!("id <> -{text}"));
                let query = with_id(engine, query, "=", round + 1);
                expect(id(&query.fetch_one().await?), round + 1)?;
            }
        }
    }
    Ok(String::new())
}

/// Several clients while a table is dropped and created with other types: the statements that a
/// server or a pooler has prepared are out of date. Every answer is right, and a column that is not
/// JSON is an error.
async fn changes(engine: &Engine) -> Found {
    if engine.is_text {
        return Ok("not applicable: its tables do not change".into());
    }
    let config = engine.config.to_builder().statement_cache_capacity(3).build()?;
    let engine = &Engine { config, ..*engine };
    let admin = engine.client().await?;
    let recreate = async |types: (&str, &str), key: &str, value: u64| -> Result<(), Error> {
        let call = "recreate($1, $2, $3, $4)";
        let query = admin.query::<Value>("documents").select_projection(call).limit(1);
        let query = query.bind(types.0).bind(types.1).bind(key).bind(value.to_string());
        query.persistent(false).fetch_one().await.map(drop)
    };
    let mut clients = try_join_all((0..3).map(|_| engine.client())).await?;
    let mut random = Random::of(7);
    let (mut key, mut expected, mut number) = ("1", 0, 0);
    let (mut is_json, mut rejected) = (true, 0);
    recreate(("int", "json"), key, expected).await?;
    let mut held = None;
    for step in 1..=600 {
        let chosen = usize::try_from(random.below(2)).unwrap_or_default();
        // A rejected query is cancelled, which takes some engines seconds.
        let what = if rejected < 2 { random.below(24) } else { 0 };
        match what {
            0 => {
                held = None;
                let column = match random.below(6) {
                    0 => "text",
                    1..=3 => "json",
                    _ => "jsonb",
                };
                (is_json, rejected) = (column != "text", 0);
                let (id, value) = match random.below(3) {
                    0 => ("int", "1"),
                    1 => ("text", "a"),
                    _ => ("numeric", "1.5"),
                };
                recreate((id, column), value, step).await?;
                (key, expected, number) = (value, step, number + 1);
            }
            // It occupies a server connection of a pooler, so that the others get another one.
            1 => {
                drop(held.take());
                held = Some(begun(engine, &clients[2]).await?);
            }
            2 => held = None,
            3 => clients[chosen] = engine.client().await?,
            text => {
                let query = engine.query::<u64>(&clients[chosen], "changing");
                let query = query.where_sql("id = $1").bind(key);
                let query = query.where_sql(format!("{} >= 0", text % 5));
                let found = match query.fetch_all().await {
                    Err(Error::InvalidSchema { .. }) => {
                        rejected += 1;
                        None
                    }
                    fetched => Some(fetched?),
                };
                expect((step, found), (step, is_json.then(|| vec![expected])))?;
            }
        }
    }
    drop(held);
    Ok(format!("{number} changes"))
}

/// A TCP proxy that cuts its first `cuts` connections after `bytes` from the server.
async fn cutting(server: (String, u16), cuts: usize, bytes: usize) -> std::io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let left = Arc::new(AtomicUsize::new(cuts));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&server).await else { continue };
            let is_cut =
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            let limit = if is_cut.is_ok() { bytes } else { usize::MAX };
            tokio::spawn(pass(client, server, limit));
        }
    });
    Ok(port)
}

async fn pass(client: TcpStream, server: TcpStream, mut limit: usize) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
        if read > limit || to_client.write_all(&buffer[..read]).await.is_err() {
            break;
        }
        limit -= read;
    }
    requests.abort();
}

async fn resume(engine: &Engine) -> Found {
    let target = engine.config.targets().remove(0);
    let host = target.host.unwrap_or_else(|| "127.0.0.1".into());
    let port = cutting((host, target.port), 2, 1 << 20)
        .await
        .map_err(|e| Failure::Wrong(format!("no proxy: {e}")))?;
    let config = engine.config.to_builder().host("127.0.0.1").port(port).build()?;
    let client = FraiseClient::connect_with_config(config).await?;
    let query = engine.query::<Value>(&client, "documents").resume_by("id");
    let mut stream = query.execute().await?;
    let mut next = 1;
    while let Some(row) = stream.next().await {
        expect(id(&row?), next)?;
        next += 1;
    }
    expect((next, stream.stats().resumptions > 0), (ROWS + 1, true))?;
    Ok(format!("{} resumptions", stream.stats().resumptions))
}

async fn parallel(engine: &Engine) -> Found {
    let client = engine.client().await?;
    let stream = engine.query(&client, "documents").parallel(2).execute().await?;
    let mut ids = ids(stream).await?;
    ids.sort_unstable();
    expect(ids.into_iter().eq(1..=ROWS), true)?;
    Ok(String::new())
}

/// The CPU time that a query by key takes on the server and the pooler, with and without a prepared
/// statement, in alternation. The time of day says little on a machine that does other work.
async fn short_queries(engine: &Engine) -> Found {
    const QUERIES: u64 = 200;
    const ROUNDS: u64 = 16;
    let client = engine.client().await?;
    let mut used = [Duration::ZERO; 2];
    let (mut rounds, since) = (0, Instant::now());
    while rounds < ROUNDS && since.elapsed() < LIMIT / 4 {
        rounds += 1;
        for is_persistent in [true, false] {
            let before = others_cpu();
            for wanted in 1..=QUERIES {
                let query = engine.query::<Value>(&client, "documents").persistent(is_persistent);
                let query = with_id(engine, query, "=", wanted);
                expect(id(&query.fetch_one().await?), wanted)?;
            }
            used[usize::from(!is_persistent)] += others_cpu().saturating_sub(before);
        }
    }
    let [prepared, parsed] = used.map(|time| time.as_micros() / u128::from(QUERIES * rounds));
    Ok(format!("{prepared} µs of CPU, without the statement cache {parsed} µs"))
}

/// The CPU time that all other processes have used: in a namespace, the servers.
fn others_cpu() -> Duration {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::process::id().to_string();
    let ticks = processes
        .filter(|process| process.file_name().to_str() != Some(&own))
        .filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok())
        .filter_map(|stat| {
            // After the name, which ends with the last parenthesis: the 12th and 13th.
            let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        });
    Duration::from_millis(ticks.sum::<u64>() * 10)
}
