//! Streams over more than one connection: parallel streams, and streams that are resumed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{
    admin, backend_state, client, cluster, config_at, eventually,
    proxy::Proxy,
    random::Random,
    scripted::{self, Scripted, Step},
    sql,
};
use fraiseql_wire::{
    Error, ErrorCategory, Field, FraiseClient, RawJson, Result, RetryPolicy, StreamState,
    TimeoutPhase, field, sqlstate,
};
use futures_util::{StreamExt, future::poll_immediate};
use tokio::sync::oneshot;

#[derive(Debug, serde::Deserialize)]
struct Numbered {
    id: u64,
}

/// Creates a table of `rows` rows, each of about 100 bytes.
async fn table(name: &str, rows: u64) {
    sql(&format!(
        "create table {name} (id bigint primary key, data jsonb not null);
         insert into {name}
         select i, jsonb_build_object('id', i, 'n', 0, 'text', repeat('x', 60 + i::int % 30))
         from generate_series(1, {rows}) i;
         analyze {name}"
    ))
    .await;
}

/// Returns the number of active backends of clients with this name.
async fn backends(admin: &tokio_postgres::Client, name: &str) -> i64 {
    let query = "select count(*) from pg_stat_activity where application_name = $1";
    admin.query_one(query, &[&name]).await.unwrap().get(0)
}

fn named(name: &str) -> String {
    format!("{}?application_name={name}", cluster().url())
}

/// Every way to divide a relation returns each row once.
#[tokio::test]
async fn parallel_parts_return_each_row_once() {
    table("t_whole", 20_000).await;
    sql("create view v_whole as select data from t_whole;
         create materialized view m_whole as select data from t_whole;
         create table p_whole (id bigint, data jsonb) partition by hash (id);
         create table p_whole_0 partition of p_whole for values with (modulus 3, remainder 0);
         create table p_whole_1 partition of p_whole for values with (modulus 3, remainder 1);
         create table p_whole_2 partition of p_whole for values with (modulus 3, remainder 2);
         insert into p_whole select id, data from t_whole;
         create table t_small (data json); insert into t_small values ('{\"id\": 1}');
         create table t_none (data json);
         create schema \"odd \"\"'names\"; create table \"odd \"\"'names\".\"t \"\"'\" as select data from t_whole")
    .await;
    let client = client().await;
    let pid = client.backend_pid();
    let all: Vec<u64> = (1..=20_000).collect();
    let odd = "\"odd \"\"'names\".\"t \"\"'\"";
    let splits: [(&str, Option<&str>, &[u64]); 9] = [
        ("t_whole", None, &all),
        ("t_whole", Some("id"), &all),
        ("m_whole", None, &all),
        ("p_whole", None, &all),
        ("v_whole", Some("data->>'id'"), &all),
        // All rows in one part, and all NULL.
        ("v_whole", Some("data->>'n' -- why not"), &all),
        ("v_whole", Some("data->'missing'"), &all),
        ("t_small", None, &[1]),
        ("t_none", None, &[]),
    ];
    for (entity, by, expected) in splits.into_iter().chain([(odd, None, &all[..])]) {
        for n in [1, 2, 5] {
            let mut query = client.query::<Numbered>(entity).parallel(n);
            if let Some(by) = by {
                query = query.partition_by(by);
            }
            let rows = query.fetch_all().await.unwrap_or_else(|e| panic!("{entity}: {e}"));
            let mut ids: Vec<u64> = rows.iter().map(|row| row.id).collect();
            ids.sort_unstable();
            assert_eq!(ids, expected, "{entity} by {by:?} in {n}");
        }
    }
    let some = client
        .query::<Numbered>("t_whole")
        .where_sql("id > $1 or id < $2")
        .bind(19_000)
        .bind(10)
        .filter(field("id").lt(19_500))
        .where_rust(|row| row["id"].as_u64() != Some(19_100))
        .where_typed(|row| row.id != 19_101)
        .select_fields(["id"])
        .parallel(3)
        .fetch_all()
        .await
        .unwrap();
    assert_eq!(some.len(), 9 + 499 - 2);
    // On the client's own connection, which is not left in a transaction.
    assert_eq!(client.backend_pid(), pid);
    assert_eq!(client.query::<u64>("t_whole").parallel(3).count().await.unwrap(), 20_000);
    assert!(client.query::<u64>("t_whole").parallel(3).exists().await.unwrap());
    let admin = admin().await;
    let pid = pid.unwrap();
    assert_eq!(backend_state(&admin, pid).await.as_deref(), Some("idle"));
}

/// The result is that of one query, whatever other sessions write meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_parts_see_one_snapshot() {
    const ROWS: u64 = 2_000_000;
    table("t_busy", ROWS).await;
    sql(&format!("create sequence s_busy start {}", ROWS + 1)).await;
    let writers = tokio::spawn(async {
        // In the first half, rows move to other blocks, in pairs whose sum is 0. In the second
        // half, rows are replaced one by one.
        let write = async |seed: u64| {
            let admin = admin().await;
            let random = &mut Random::of(seed);
            loop {
                let (a, b) = (1 + random.below(ROWS / 2), 1 + random.below(ROWS / 2));
                let add = |id: u64, n: i32| {
                    format!(
                        "update t_busy set data = jsonb_set(data, '{{n}}', to_jsonb((data->>'n')::int + {n}))
                         where id = {id};"
                    )
                };
                let text = format!(
                    "begin; {} {} commit;
                     with gone as (delete from t_busy where id = (
                         select min(id) from t_busy where id > {ROWS} / 2) returning 1)
                     insert into t_busy select i, jsonb_build_object('id', i, 'n', 0)
                     from (select nextval('s_busy') i from gone) ids",
                    add(a, 1),
                    add(b, -1)
                );
                // Two writers may deadlock.
                if admin.batch_execute(&text).await.is_err() {
                    let _ = admin.batch_execute("rollback").await;
                }
            }
        };
        tokio::join!(write(1), write(2));
    });
    #[derive(serde::Deserialize)]
    struct Row {
        n: i64,
        id: u64,
    }
    let client = client().await;
    for _ in 0..2 {
        let mut stream =
            client.query::<Row>("t_busy").parallel(4).max_memory(2 << 20).execute().await.unwrap();
        let (mut rows, mut sum, mut seen) = (0, 0, vec![false; 2 * ROWS as usize]);
        while let Some(row) = stream.next().await {
            let row = row.unwrap();
            rows += 1;
            sum += row.n;
            let id = row.id as usize;
            assert!(!std::mem::replace(&mut seen[id], true), "{id} comes twice");
        }
        assert_eq!((rows, sum), (ROWS, 0));
        // No row of the first half is ever missing.
        assert!(seen[1..=ROWS as usize / 2].iter().all(|seen| *seen));
        let stats = stream.stats();
        assert!(stats.peak_memory <= (2 << 20) + (64 << 10), "{stats:?}");
        assert_eq!(stats.total_rows_received, ROWS);
    }
    assert!(!writers.is_finished());
    writers.abort();
}

/// The rows are exactly those of one REPEATABLE READ query. Another driver runs it in the same
/// snapshot.
#[tokio::test]
async fn parallel_query_reads_the_exported_snapshot() {
    table("t_twin", 50_000).await;
    let client = client().await;
    let stream = client.query::<RawJson>("t_twin").parallel(3).max_memory(64 << 10).execute().await;
    let mut stream = stream.unwrap();
    // It has started, and cannot end before it is read.
    sql("update t_twin set data = '{\"id\": 0}' where id % 2 = 0; delete from t_twin where id % 3 = 0").await;
    let mut sum = 0;
    let mut rows = 0;
    while let Some(row) = stream.next().await {
        sum += row.unwrap().decode::<Numbered>().unwrap().id;
        rows += 1;
    }
    assert_eq!((rows, sum), (50_000, 50_000 * 50_001 / 2));
}

/// Pauses, handles and statistics apply to the stream as a whole.
#[tokio::test]
async fn parallel_stream_is_controlled_as_one() {
    table("t_steered", 60_000).await;
    let client = FraiseClient::connect(&named("steered")).await.unwrap();
    let admin = admin().await;
    let mut stream = client
        .query::<Numbered>("t_steered")
        .parallel(4)
        .max_memory(128 << 10)
        .execute()
        .await
        .unwrap();
    assert_eq!(backends(&admin, "steered").await, 4);
    let mut ids = vec![false; 60_001];
    let mut read = 0;
    while let Some(row) = stream.next().await {
        let id = row.unwrap().id as usize;
        assert!(!std::mem::replace(&mut ids[id], true), "{id} comes twice");
        read += 1;
        if read % 20_000 == 0 {
            stream.pause().await.unwrap();
            assert_eq!(stream.state(), StreamState::Paused);
            let received = stream.stats().total_rows_received;
            let control = stream.control();
            assert_eq!(control.stats().total_rows_received, received, "nothing is read any more");
            control.resume().await.unwrap();
        }
        let stats = stream.stats();
        assert_eq!(stats.total_rows_yielded, read);
        assert!(stats.peak_memory <= (128 << 10) + (64 << 10), "{stats:?}");
    }
    assert_eq!(read, 60_000);
    assert_eq!(stream.state(), StreamState::Completed);
    drop(stream);
    // Only the client's own connection remains.
    eventually("the others are gone", async || backends(&admin, "steered").await == 1).await;
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
}

/// However a stream ends early, all its queries end, and the client's connection can be used again.
#[tokio::test]
async fn early_end_of_a_parallel_stream_ends_all_its_queries() {
    let client = FraiseClient::connect(&named("ended")).await.unwrap();
    let admin = admin().await;
    let pid = client.backend_pid().unwrap();
    let endless = || {
        client.query::<RawJson>("v_endless").parallel(3).partition_by("(data->>'id')::int / 1000")
    };
    let usable = async || {
        assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
        eventually("the others are gone", async || backends(&admin, "ended").await == 1).await;
    };
    // Dropped.
    let mut stream = endless().execute().await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    usable().await;
    // Before the first row: three backends search for a long time.
    let asleep = client.query::<RawJson>("v_asleep").parallel(3).partition_by("data::text");
    tokio::time::timeout(Duration::from_millis(300), asleep.execute()).await.unwrap_err();
    usable().await;
    // Cancelled, by the stream and by its handle.
    let mut stream = endless().execute().await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    stream.cancel().await.unwrap();
    assert!(stream.next().await.is_none());
    usable().await;
    let mut stream = endless().execute().await.unwrap();
    stream.control().cancel().await.unwrap();
    let last = async |stream: &mut fraiseql_wire::QueryStream<RawJson>| {
        while let Some(row) = stream.next().await {
            if let Err(e) = row {
                assert!(stream.next().await.is_none());
                return e;
            }
        }
        panic!("it ended without an error");
    };
    assert!(matches!(last(&mut stream).await, Error::Cancelled));
    usable().await;
    let mut stream = endless().execute().await.unwrap();
    client.cancel_token().cancel().await.unwrap();
    assert!(matches!(last(&mut stream).await, Error::Cancelled));
    usable().await;
    // By a timeout.
    let mut stream = endless().timeout(Duration::from_secs(3)).execute().await.unwrap();
    let error = last(&mut stream).await;
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }), "{error:?}");
    usable().await;
    assert_eq!(client.backend_pid(), Some(pid), "all that on one connection");
    // A backend of another connection is killed.
    let mut stream = endless().execute().await.unwrap();
    let others = "select pg_terminate_backend(pid) from pg_stat_activity
                  where application_name = 'ended' and pid <> $1 limit 1";
    admin.execute(others, &[&i32::try_from(pid).unwrap()]).await.unwrap();
    let error = last(&mut stream).await;
    assert!(error.is_retriable(), "{error:?}");
    usable().await;
    assert_eq!(client.backend_pid(), Some(pid));
    // An error in some of the rows.
    sql("create table t_faulty as
         select to_jsonb(case when i = 29000 then 0 else i end) as data from generate_series(1, 30000) i")
    .await;
    let mut stream = client
        .query::<RawJson>("t_faulty")
        .select_projection("to_jsonb(1 / data::int)")
        .parallel(3)
        .execute()
        .await
        .unwrap();
    let error = last(&mut stream).await;
    assert_eq!(error.sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO));
    usable().await;
    // The backend of the client's own connection is killed.
    let mut stream = endless().execute().await.unwrap();
    admin
        .execute("select pg_terminate_backend($1)", &[&i32::try_from(pid).unwrap()])
        .await
        .unwrap();
    assert!(last(&mut stream).await.is_retriable());
    usable().await;
}

/// Invalid combinations are rejected before anything is sent, or without a change to the client.
#[tokio::test]
async fn invalid_combinations_are_errors() {
    sql("create view v_order as select data from (values ('{\"id\": 1}'::jsonb)) v(data)").await;
    let client = client().await;
    let query = || client.query::<RawJson>("v_order");
    let refused = async |query: fraiseql_wire::QueryBuilder<RawJson>, part: &str| {
        let error = query.execute().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        assert!(error.to_string().contains(part), "{error} says nothing of {part}");
        assert!(!error.is_retriable());
    };
    refused(query().parallel(0), "parallel(0)").await;
    refused(query().parallel(65), "parallel(65)").await;
    refused(query().parallel(2).order_by("1"), "order_by").await;
    refused(query().parallel(2).order_by_field(field("id")), "order_by").await;
    refused(query().parallel(2).limit(1), "limit").await;
    refused(query().parallel(2).offset(1), "offset").await;
    refused(query().parallel(2).resume_by("id"), "resume_by").await;
    refused(query().parallel(8).max_memory(8000), "max_memory").await;
    refused(query().partition_by("1"), "parallel()").await;
    refused(query().parallel(2).partition_by("data->>$1"), "parameters").await;
    refused(query().parallel(2), "partition_by()").await;
    refused(query().resume_by("id").order_by("1"), "order_by").await;
    refused(query().resume_by(Field::column("id")), "column").await;
    refused(query().resume_by(""), "empty").await;
    let error = query().parallel(2).fetch_one().await.unwrap_err();
    assert!(error.to_string().contains("fetch_one"), "{error}");
    let error = client.query::<RawJson>("v_missing").parallel(2).execute().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_TABLE));
    let error = client.query::<RawJson>("pg_class").parallel(2).execute().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_COLUMN), "it has no data");
    let (sql, _) = query().resume_by("id").to_sql().unwrap();
    assert!(sql.contains("ORDER BY"), "{sql}");
    assert_eq!(query().fetch_all().await.unwrap().len(), 1);
}

/// The other connections are opened like the client's, and their errors fail the query.
#[tokio::test]
async fn too_many_connections_is_an_error_of_execute() {
    table("t_narrow", 100).await;
    sql("alter role role_password connection limit 3; grant select on t_narrow to role_password")
        .await;
    let url = cluster().url_as("role_password:password-secret");
    let client = FraiseClient::connect(&url).await.unwrap();
    let error = client.query::<RawJson>("t_narrow").parallel(8).execute().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::TOO_MANY_CONNECTIONS), "{error}");
    assert!(error.is_retriable());
    let admin = admin().await;
    let query = "select count(*) from pg_stat_activity where usename = 'role_password'";
    eventually("those that had connected are gone", async || {
        admin.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    assert_eq!(
        client.query::<RawJson>("t_narrow").parallel(3).fetch_all().await.unwrap().len(),
        100
    );
}

/// Every row arrives once, in order, although the network fails repeatedly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_stream_loses_and_repeats_no_row() {
    const ROWS: u64 = 1_000_000;
    table("t_resumed", ROWS).await;
    // With statistics. Otherwise the server sorts a million rows again each time.
    sql("create index on t_resumed ((data->'id')); analyze t_resumed").await;
    let proxy = Arc::new(Proxy::to_port(cluster().port()).await);
    let lifted = Arc::new(AtomicU64::new(0));
    let lifting = tokio::spawn({
        let (proxy, lifted) = (Arc::clone(&proxy), Arc::clone(&lifted));
        async move {
            loop {
                if proxy.is_cut() {
                    proxy.cut_after(u64::MAX);
                    lifted.fetch_add(1, SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let url = format!("{}?application_name=resumed", crate::support::url_at(proxy.address));
    let client = FraiseClient::connect(&url).await.unwrap();
    let random = &mut Random::of(1);
    let mut stream = client
        .query::<Numbered>("t_resumed")
        .resume_by(field("id"))
        .max_memory(256 << 10)
        .execute()
        .await
        .unwrap();
    let (mut read, mut cuts) = (0, 0);
    while let Some(row) = stream.next().await {
        read += 1;
        assert_eq!(row.unwrap().id, read);
        if cuts < 50 && read >= cuts * ROWS / 52 && lifted.load(SeqCst) == cuts {
            cuts += 1;
            // Anywhere in the next data: within rows, and sometimes within the next login.
            match cuts % 2 {
                0 => proxy.cut_after(random.below(300_000)),
                _ => proxy.reset_after(random.below(300_000)),
            }
        }
    }
    lifting.abort();
    assert_eq!((read, cuts), (ROWS, 50));
    let stats = stream.stats();
    assert_eq!(stats.state, StreamState::Completed);
    assert_eq!(stats.total_rows_received, ROWS);
    assert!(stats.resumptions >= 50, "{stats:?}");
    assert!(stats.peak_memory <= (256 << 10) + (64 << 10));
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
}

/// Cuts the connection after its first rows, repeatedly, and reads the stream.
async fn read_through_cuts(
    proxy: &Proxy,
    stream: &mut fraiseql_wire::QueryStream<RawJson>,
) -> (Vec<String>, Option<Error>) {
    let (mut rows, mut error) = (Vec::new(), None);
    loop {
        match tokio::time::timeout(Duration::from_millis(1), stream.next()).await {
            Ok(Some(Ok(row))) => {
                rows.push(row.decode::<serde_json::Value>().unwrap()["id"].to_string());
            }
            Ok(Some(Err(e))) => error = Some(e),
            Ok(None) => return (rows, error),
            // No more data arrives: the next connection is cut after this number of bytes.
            Err(_) if proxy.is_cut() => proxy.cut_after(20_000),
            Err(_) => {}
        }
    }
}

/// Returns a proxy in front of the cluster, and a client through it that never stops retrying.
async fn persistent() -> (Proxy, FraiseClient) {
    let proxy = Proxy::to_port(cluster().port()).await;
    let retry = RetryPolicy::default().max_attempts(u32::MAX).max_backoff(Duration::from_millis(5));
    let client = through(&proxy, retry).await;
    (proxy, client)
}

async fn through(proxy: &Proxy, retry: RetryPolicy) -> FraiseClient {
    let builder =
        config_at(proxy.address.port()).read_timeout(Duration::from_secs(60)).retry(retry);
    FraiseClient::connect_with_config(builder.build().unwrap()).await.unwrap()
}

/// For keys of every kind, the result is the same as without a cut.
#[tokio::test]
async fn resume_by_works_with_keys_of_every_kind() {
    sql(r#"
        create table t_keys as
        select jsonb_build_object('id', i, 'text', repeat('x', 50)) as integers,
               jsonb_build_object('id', (i::numeric - 1500) * 12345678901234567890.000000001) as decimals,
               jsonb_build_object('id', case when i % 3 = 0 then E'\u00e9"\\' else 'Z' end || md5(i::text)) as strings,
               jsonb_build_object('id', jsonb_build_object('b', i)) as nested,
               json_build_object('text', E'a\nb', 'id', i) as texts
        from generate_series(1, 3000) i"#)
    .await;
    let direct = client().await;
    let (proxy, client) = persistent().await;
    for (column, key) in [
        ("integers", "id"),
        ("decimals", "id"),
        ("strings", "id"),
        ("nested", "id.b"),
        ("texts", "id"),
    ] {
        let query = |client: &FraiseClient| {
            client.query::<RawJson>("t_keys").column(column).max_memory(16 << 10)
        };
        let expected: Vec<_> = query(&direct).order_by_field(field(key)).fetch_all().await.unwrap();
        let id = |row: &RawJson| row.decode::<serde_json::Value>().unwrap()["id"].to_string();
        let expected: Vec<_> = expected.iter().map(id).collect();
        proxy.cut_after(20_000);
        let mut stream = query(&client).resume_by(field(key)).execute().await.unwrap();
        let (rows, error) = read_through_cuts(&proxy, &mut stream).await;
        assert!(error.is_none(), "{column}: {error:?}");
        assert_eq!(rows, expected, "{column}");
        assert!(stream.stats().resumptions > 2, "{column}: {:?}", stream.stats());
        proxy.cut_after(u64::MAX);
    }
    // With limits, filters and a projection.
    let query = |client: &FraiseClient| {
        client
            .query::<RawJson>("t_keys")
            .column("integers")
            .max_memory(16 << 10)
            .where_sql("(integers->>'id')::int % $1 = 0")
            .bind(2)
            .filter(field("id").gt(10))
            .where_rust(|row| row["id"] != 100)
            .select_fields(["id", "text"])
            .offset(7)
            .limit(1200)
    };
    let expected = query(&direct).order_by_field(field("id")).fetch_all().await.unwrap();
    proxy.cut_after(20_000);
    let mut stream = query(&client).resume_by("id").execute().await.unwrap();
    let (rows, error) = read_through_cuts(&proxy, &mut stream).await;
    assert!(error.is_none(), "{error:?}");
    assert!(stream.stats().resumptions > 1);
    assert_eq!(rows.len(), 1199);
    let ids: Vec<_> = expected
        .iter()
        .map(|r| r.decode::<serde_json::Value>().unwrap()["id"].to_string())
        .collect();
    assert_eq!(rows, ids);
}

/// The rows after each key are the rest of the whole result, also through cuts.
#[cfg(feature = "rust_decimal")]
#[tokio::test]
async fn resume_after_returns_the_rows_after_a_key() {
    sql(r#"
        create table t_positions as
        select jsonb_build_object('id', i, 'text', repeat('x', 50)) as integers,
               jsonb_build_object('id', (i::numeric - 500) * 1234567890.000000000001) as decimals,
               jsonb_build_object('id', case i % 4 when 0 then E'\u00e9"\\' when 1 then 'Z' when 2 then 'z' else ' ' end || i) as strings,
               json_build_object('text', E'a\nb', 'in', json_build_object('id', i)) as texts
        from generate_series(1, 1000) i"#)
    .await;
    let direct = client().await;
    let (proxy, client) = persistent().await;
    for (column, path) in
        [("integers", "id"), ("decimals", "id"), ("strings", "id"), ("texts", "in.id")]
    {
        let query = |client: &FraiseClient| {
            let query = client.query::<RawJson>("t_positions").column(column);
            query.max_memory(16 << 10).resume_by(path)
        };
        // As text: the number of a row is that in its own stream.
        let texts = |rows: Vec<RawJson>| rows.iter().map(|row| row.to_string()).collect::<Vec<_>>();
        let whole = texts(query(&direct).fetch_all().await.unwrap());
        assert_eq!(whole.len(), 1000);
        // With every digit. A Value would round the decimals.
        let key = |row: &str| -> fraiseql_wire::Operand {
            let (_, key) = row.rsplit_once("\"id\"").unwrap();
            let key = key.split(", \"text\"").next().unwrap().trim_matches([':', ' ', '}']);
            match key.starts_with('"') {
                true => serde_json::from_str::<String>(key).unwrap().into(),
                false => key.parse::<rust_decimal::Decimal>().unwrap().into(),
            }
        };
        for at in [0, 1, 499, 998, 999] {
            let after = || query(&direct).resume_after(key(&whole[at]));
            let rest = &whole[at + 1..];
            assert!(texts(after().fetch_all().await.unwrap()) == rest, "{column} after {at}");
            assert_eq!(after().count().await.unwrap(), rest.len() as u64);
            assert_eq!(after().exists().await.unwrap(), !rest.is_empty());
            let first = after().fetch_optional().await.unwrap();
            assert_eq!(first.as_ref().map(RawJson::as_str), rest.first().map(String::as_str));
            let some: Vec<_> = rest.iter().skip(3).take(200).cloned().collect();
            let page = || after().offset(3).limit(200);
            assert!(texts(page().fetch_all().await.unwrap()) == some, "{column} after {at}");
            assert_eq!(page().count().await.unwrap(), some.len() as u64);
        }
        // After a lost connection too, which must not start at the position again.
        for offset in [0, 3] {
            proxy.cut_after(20_000);
            let after = query(&client).resume_after(key(&whole[99])).offset(offset as u64);
            let mut stream = after.execute().await.unwrap();
            let mut rows = Vec::new();
            loop {
                match tokio::time::timeout(Duration::from_millis(1), stream.next()).await {
                    Ok(Some(row)) => rows.push(row.unwrap()),
                    Ok(None) => break,
                    Err(_) if proxy.is_cut() => proxy.cut_after(20_000),
                    Err(_) => {}
                }
            }
            assert!(stream.stats().resumptions > 0, "{column}");
            assert!(texts(rows) == whole[100 + offset..], "{column}");
            proxy.cut_after(u64::MAX);
        }
    }
    // The key need not exist, and filters and projections apply.
    let query = direct
        .query::<RawJson>("t_positions")
        .column("integers")
        .where_sql("(integers->>'id')::int % $1 = 0")
        .bind(2)
        .filter(field("id").lt(20))
        .where_rust(|row| row["id"] != 14)
        .select_fields(["id"])
        .resume_after(10.5)
        .resume_by("id");
    assert!(query.to_sql().unwrap().0.contains("> $3::jsonb"));
    let ids: Vec<_> = query.fetch_all().await.unwrap();
    let ids: Vec<_> = ids.iter().map(RawJson::as_str).collect();
    assert_eq!(ids, [r#"{"id": 12}"#, r#"{"id": 16}"#, r#"{"id": 18}"#]);
}

/// A saved position is usually text. If the keys are numbers, it would start at the first row.
#[tokio::test]
async fn resume_after_with_a_wrong_key_is_an_error() {
    sql("create table t_misplaced as
         select jsonb_build_object('id', i) as numbers,
                jsonb_build_object('id', i::text) as texts,
                case when i = 7 then '{}' else jsonb_build_object('id', i) end as keyless
         from generate_series(1, 10) i")
    .await;
    let client = client().await;
    let query = |column: &str| client.query::<RawJson>("t_misplaced").column(column);
    for (query, part) in [
        (query("numbers").resume_after(5), "resume_by()"),
        (query("numbers").resume_by("id").resume_after(true), "boolean"),
        (query("numbers").resume_by("id").resume_after(serde_json::Value::Null), "null"),
        (query("numbers").resume_by("id").resume_after(serde_json::json!([5])), "array"),
        (query("numbers").resume_by("id").resume_after(f64::NAN), "NaN"),
        (query("numbers").resume_by("id").resume_after("a\0"), "NUL"),
        (query("numbers").resume_by(Field::column("id")).resume_after(5), "column"),
        (query("numbers").resume_by("id").resume_after("5"), "row 1 has the key 1 after \"5\""),
        // As without a position.
        (query("keyless").resume_by("id").resume_after(5), "row 5 does not have this field"),
    ] {
        let error = query.fetch_all().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        assert!(error.to_string().contains(part), "{error} does not contain {part}");
        assert!(!error.to_string().contains("planted"));
    }
    let error = query("numbers").resume_after(5).count().await.unwrap_err();
    assert!(error.to_string().contains("resume_by()"), "{error}");
    let shown = format!("{:?}", query("texts").resume_by("id").resume_after("planted"));
    assert!(!shown.contains("planted"), "{shown}");
    // The last key: no rows, and no error.
    assert_eq!(query("numbers").resume_by("id").resume_after(10).fetch_all().await.unwrap(), []);
    // All strings are before all numbers.
    assert_eq!(query("texts").resume_by("id").resume_after(5).fetch_all().await.unwrap(), []);
}

/// An invalid key ends the stream after the rows before it.
#[tokio::test]
async fn invalid_key_ends_the_stream_after_earlier_rows() {
    sql("create table t_unkeyed as
         select to_jsonb(i) as id, jsonb_build_object('id', i) as good,
                jsonb_build_object('id', case when i = 700 then 699 else i end) as twice,
                case when i = 700 then '{\"a\": 1}' else jsonb_build_object('id', i) end as missing,
                case when i = 700 then null else jsonb_build_object('id', i) end as none,
                jsonb_build_object('id', case when i = 700 then 'true'::jsonb else to_jsonb(i) end) as truth
         from generate_series(1, 1000) i")
    .await;
    let client = client().await;
    for (column, rows, part) in [
        ("twice", 699, "row 700 has the key 699 after 699"),
        ("missing", 999, "row 1000 does not have this field"),
        ("none", 999, "row 1000 does not have this field"),
        ("truth", 999, "row 1000 has the key true"),
    ] {
        let mut stream = client
            .query::<RawJson>("t_unkeyed")
            .column(column)
            .resume_by("id")
            .execute()
            .await
            .unwrap();
        let mut read = 0;
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) => read += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(read, rows, "{column}: {error}");
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.category(), ErrorCategory::Config);
        assert!(stream.next().await.is_none());
    }
    // The selected document must contain it.
    let query = client.query::<RawJson>("t_unkeyed").column("good").select_fields(["id2"]);
    let mut stream = query.resume_by("id").execute().await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("row 1"), "{error}");
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
}

/// In a flow of rows, the reader waits for many bytes. The response to the request after the last
/// row is short.
#[tokio::test]
async fn resumed_stream_receives_a_short_response_after_many_rows() {
    const ROWS: u64 = 2500;
    let text = "x".repeat(4000);
    let rows = |ids: std::ops::RangeInclusive<u64>| -> Vec<u8> {
        ids.flat_map(|id| scripted::row(&format!(r#"{{"id":{id},"text":"{text}"}}"#))).collect()
    };
    let mut lost = scripted::login();
    lost.extend([
        Step::ExpectQuery,
        Step::Send([scripted::begin_json(), rows(1..=1)].concat()),
        Step::Close,
    ]);
    let mut resumed = scripted::login();
    resumed.extend([
        // Whether the key of the last row is repeated.
        Step::ExpectQuery,
        Step::Send([scripted::begin_json(), scripted::complete(), scripted::ready()].concat()),
        Step::ExpectQuery,
        Step::Send(
            [scripted::begin_json(), rows(2..=ROWS), scripted::complete(), scripted::ready()]
                .concat(),
        ),
        Step::ExpectQuery,
        Step::Send([scripted::begin_json(), scripted::complete(), scripted::ready()].concat()),
        Step::Silence,
    ]);
    let server = Scripted::start(vec![lost, resumed]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let query = client.query::<Numbered>("v").resume_by("id");
    let mut stream = query.execute().await.unwrap();
    for id in 1..=ROWS {
        assert_eq!(stream.next().await.unwrap().unwrap().id, id);
    }
    let end = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
    assert!(end.expect("the short response is received").is_none());
    assert_eq!(stream.stats().resumptions, 1);
    drop((stream, client));
    server.done().await;
}

/// The rest begins after the key of the last row, so another row with it would be missing.
#[tokio::test]
async fn resumed_stream_with_a_repeated_key_at_the_cut_fails() {
    let row = |id| scripted::row(&format!(r#"{{"id":{id}}}"#));
    let mut lost = scripted::login();
    lost.extend([
        Step::ExpectQuery,
        Step::Send([scripted::begin_json(), row(4), row(5)].concat()),
        Step::Close,
    ]);
    let another = [scripted::begin_json(), row(5), scripted::complete(), scripted::ready()];
    let mut resumed = scripted::login();
    resumed.extend([Step::ExpectQuery, Step::Send(another.concat()), Step::ExpectEnd]);
    let server = Scripted::start(vec![lost, resumed]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let query = client.query::<Numbered>("v").resume_by("id");
    let mut stream = query.execute().await.unwrap();
    for id in [4, 5] {
        assert_eq!(stream.next().await.unwrap().unwrap().id, id);
    }
    let error = stream.next().await.unwrap().unwrap_err();
    let expected = "row 3 has the key 5 of another row; keys must be unique";
    assert!(error.to_string().contains(expected), "{error}");
    assert!(stream.next().await.is_none());
    drop((stream, client));
    server.done().await;
}

/// The server may take long to answer the request that continues the query.
#[tokio::test]
async fn pause_does_not_wait_for_the_answer_of_a_resumed_query() {
    let row = |id| scripted::row(&format!(r#"{{"id":{id}}}"#));
    let (asked, is_asked) = oneshot::channel();
    let (paused, is_paused) = oneshot::channel();
    let mut lost = scripted::login();
    lost.extend([
        Step::ExpectQuery,
        Step::Send([scripted::begin_json(), row(1)].concat()),
        Step::Close,
    ]);
    let whole = [scripted::begin_json(), row(2), scripted::complete(), scripted::ready()];
    let none = [scripted::begin_json(), scripted::complete(), scripted::ready()];
    let mut resumed = scripted::login();
    resumed.extend([
        Step::ExpectQuery,
        Step::Send(none.concat()),
        Step::ExpectQuery,
        Step::Signal(asked),
        Step::Wait(is_paused),
        Step::Send(whole.concat()),
        Step::ExpectQuery,
        Step::Send(none.concat()),
        Step::Silence,
    ]);
    let server = Scripted::start(vec![lost, resumed]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let query = client.query::<Numbered>("v").resume_by("id");
    let mut stream = query.execute().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().id, 1);
    is_asked.await.unwrap();
    let pause = tokio::time::timeout(Duration::from_secs(20), stream.pause()).await;
    pause.expect("the pause resolves before the server answers").unwrap();
    paused.send(()).unwrap();
    assert!(poll_immediate(stream.next()).await.is_none());
    stream.resume().await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().id, 2);
    assert!(stream.next().await.is_none());
    assert_eq!(stream.stats().resumptions, 1);
    drop((stream, client));
    server.done().await;
}

/// If a host is lost, the stream resumes on the next one. If all are lost, it ends with an error
/// after the received rows.
#[tokio::test]
async fn stream_is_resumed_on_the_next_host_or_ends() {
    table("t_hosts", 200_000).await;
    let server = ([127, 0, 0, 1], cluster().port()).into();
    let (first, second) = (Proxy::start(server).await, Proxy::start(server).await);
    let client = FraiseClient::connect_with_config(
        fraiseql_wire::ConnectionConfig::parse(&format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres password={} dbname=postgres",
            first.address.port(),
            second.address.port(),
            crate::support::cluster::password()
        ))
        .unwrap(),
    )
    .await
    .unwrap();
    let mut stream = client
        .query::<Numbered>("t_hosts")
        .resume_by("id")
        .max_memory(64 << 10)
        .execute()
        .await
        .unwrap();
    let mut read = 0;
    let next = async |stream: &mut fraiseql_wire::QueryStream<Numbered>| -> Option<Result<u64>> {
        Some(stream.next().await?.map(|row| row.id))
    };
    while read < 1000 {
        read += 1;
        assert_eq!(next(&mut stream).await.unwrap().unwrap(), read);
    }
    // On the first host, unless a busy machine has rejected the connection.
    let (first, second) = match client.connection_info().unwrap().port == first.address.port() {
        true => (first, second),
        false => (second, first),
    };
    let resumed = stream.stats().resumptions;
    drop(first);
    // In-flight data may still be read.
    while stream.stats().resumptions == resumed {
        read += 1;
        assert_eq!(next(&mut stream).await.unwrap().unwrap(), read);
    }
    assert_eq!(client.connection_info().unwrap().port, second.address.port());
    assert_eq!(stream.stats().resumptions, resumed + 1);
    drop(second);
    let error = loop {
        match next(&mut stream).await.unwrap() {
            Ok(id) => {
                read += 1;
                assert_eq!(id, read);
            }
            Err(e) => break e,
        }
    };
    assert!(matches!(error, Error::Connection { .. }), "{error:?}");
    assert!(error.is_retriable() && read < 200_000);
    assert!(next(&mut stream).await.is_none());
}

/// While no server is available, the stream can be paused, cancelled and dropped.
#[tokio::test]
async fn stream_without_a_server_can_be_controlled() {
    table("t_away", 30_000).await;
    let server = ([127, 0, 0, 1], cluster().port()).into();
    for ending in 0..4 {
        let proxy = Proxy::start(server).await;
        let patient = RetryPolicy::default()
            .max_attempts(1_000_000)
            .initial_backoff(Duration::from_millis(1))
            .max_backoff(Duration::from_millis(5));
        let client = through(&proxy, patient).await;
        let mut stream = client
            .query::<Numbered>("t_away")
            .resume_by("id")
            .max_memory(64 << 10)
            .timeout(Duration::from_secs(if ending == 2 { 2 } else { 600 }))
            .execute()
            .await
            .unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().id, 1);
        drop(proxy);
        let mut read = 1;
        // The reader continues when there is room, and then finds no server.
        while client.is_connected() {
            match futures_util::FutureExt::now_or_never(stream.next()) {
                Some(row) => {
                    read += 1;
                    assert_eq!(row.unwrap().unwrap().id, read);
                }
                None => tokio::task::yield_now().await,
            }
        }
        stream.pause().await.unwrap();
        stream.resume().await.unwrap();
        match ending {
            0 => {
                // There may be nothing to clean up, or no server to cancel on.
                let _ = stream.cancel().await;
                assert!(stream.next().await.is_none());
            }
            1 => drop(stream),
            3 => {
                client.cancel_token().cancel().await.unwrap();
                let error = loop {
                    match stream.next().await.unwrap() {
                        Ok(_) => {}
                        Err(e) => break e,
                    }
                };
                assert!(matches!(error, Error::Cancelled), "{error:?}");
            }
            _ => {
                let error = loop {
                    match stream.next().await.unwrap() {
                        Ok(_) => {}
                        Err(e) => break e,
                    }
                };
                // The timeout expires while the client reconnects, which is reported as the cause.
                assert!(matches!(error, Error::Connection { .. }), "{error:?}");
            }
        }
        eventually("it is given up", async || !client.is_busy()).await;
    }
}

/// Returns whether a session of clients with this name waits for a lock.
async fn waits_for_a_lock(admin: &tokio_postgres::Client, name: &str) -> bool {
    let query = "select count(*) from pg_stat_activity
                 where application_name = $1 and wait_event_type = 'Lock'";
    admin.query_one(query, &[&name]).await.unwrap().get::<_, i64>(0) > 0
}

/// If a table is truncated and filled in one transaction, it is empty in every earlier snapshot. A
/// parallel query must wait and read the new rows, like a single query.
#[tokio::test]
async fn truncated_and_refilled_table_is_read_with_its_new_rows() {
    table("t_anew", 5000).await;
    sql("create view v_anew as select data from t_anew;
         create materialized view m_anew as select data from t_anew;
         create table p_anew (id bigint, data jsonb) partition by hash (id);
         create table p_anew_0 partition of p_anew for values with (modulus 2, remainder 0);
         create table p_anew_1 partition of p_anew for values with (modulus 2, remainder 1);
         insert into p_anew select id, data from t_anew;
         create role role_column;
         grant select (data) on t_anew to role_column")
    .await;
    let (admin, writer) = (admin().await, admin().await);
    let fill = |table: &str| {
        format!(
            "truncate {table};
             insert into {table} select i, jsonb_build_object('id', i) from generate_series(1, 700) i"
        )
    };
    let client = FraiseClient::connect(&named("anew")).await.unwrap();
    for (entity, by, rewrite) in [
        ("t_anew", None, fill("t_anew")),
        ("t_anew", Some("id"), fill("t_anew")),
        ("v_anew", Some("data->>'id'"), fill("t_anew")),
        ("p_anew", None, fill("p_anew")),
        ("m_anew", None, "refresh materialized view m_anew".to_owned()),
    ] {
        let mut query = client.query::<Numbered>(entity).parallel(3);
        if let Some(by) = by {
            query = query.partition_by(by);
        }
        writer.batch_execute(&format!("begin; {rewrite}")).await.unwrap();
        let (rows, ()) = tokio::join!(query.fetch_all(), async {
            eventually("it waits", async || waits_for_a_lock(&admin, "anew").await).await;
            writer.batch_execute("commit").await.unwrap();
        });
        assert_eq!(rows.unwrap().len(), 700, "{entity} by {by:?}");
    }
    // A role that may read only some columns can use this.
    let url = format!("{}?options=-c%20role%3Drole_column", cluster().url());
    let client = FraiseClient::connect(&url).await.unwrap();
    let query = client.query::<Numbered>("t_anew").parallel(2).partition_by("data->>'id'");
    assert_eq!(query.fetch_all().await.unwrap().len(), 700);
}

/// A query that waits for a lock before its parts have started can be cancelled in every way. Its
/// sessions do not keep waiting.
#[tokio::test]
async fn parallel_query_that_waits_for_a_lock_can_be_cancelled() {
    table("t_locked", 100).await;
    let (admin, locker) = (admin().await, admin().await);
    let client = FraiseClient::connect(&named("locked")).await.unwrap();
    let pid = client.backend_pid();
    let query = || client.query::<RawJson>("t_locked").parallel(2);
    locker.batch_execute("begin; lock table t_locked").await.unwrap();
    let waits = async || {
        eventually("it waits", async || waits_for_a_lock(&admin, "locked").await).await;
    };
    let waits_no_more = async || {
        let gone = async || !waits_for_a_lock(&admin, "locked").await;
        eventually("the server has stopped it", gone).await;
        eventually("the client is free", async || !client.is_busy()).await;
    };
    // By its cancel token.
    let (result, ()) = tokio::join!(query().execute(), async {
        waits().await;
        client.cancel_token().cancel().await.unwrap();
    });
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    waits_no_more().await;
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
    assert_eq!(client.backend_pid(), pid);
    // Dropped.
    tokio::select! {
        result = query().execute() => panic!("{result:?}"),
        () = waits() => {}
    }
    waits_no_more().await;
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
    // By a timeout.
    let error = query().timeout(Duration::from_secs(1)).execute().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }), "{error:?}");
    waits_no_more().await;
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
    locker.batch_execute("rollback").await.unwrap();
    assert_eq!(query().fetch_all().await.unwrap().len(), 100);
}

/// The part on the client's own connection may finish long before the others.
#[tokio::test]
async fn cancel_token_cancels_all_parts() {
    table("t_uneven", 10_000).await;
    let admin = admin().await;
    let client = FraiseClient::connect(&named("uneven")).await.unwrap();
    let pid = client.backend_pid().unwrap();
    // The second half, on another connection, starts and takes hours.
    let query = client
        .query::<RawJson>("t_uneven")
        .where_sql("id <= 6000 or pg_sleep(1)::text = ''")
        .parallel(2);
    let mut stream = query.execute().await.unwrap();
    while stream.stats().total_rows_yielded < 5500 {
        stream.next().await.unwrap().unwrap();
    }
    eventually("its own part is done", async || {
        backend_state(&admin, pid).await.as_deref() == Some("idle")
    })
    .await;
    client.cancel_token().cancel().await.unwrap();
    let ended = async {
        loop {
            if let Err(error) = stream.next().await.unwrap() {
                break error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert!(stream.next().await.is_none());
    eventually("the other is gone", async || backends(&admin, "uneven").await == 1).await;
    assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
}

/// A row without a key is also an error after a resumption. It is not skipped.
#[tokio::test]
async fn row_without_a_key_is_an_error_after_a_resumption() {
    sql("create table t_keyless as
         select case when i = 700 then '{\"a\": 1}'
                else jsonb_build_object('id', i, 'text', repeat('x', 50)) end as data
         from generate_series(1, 3000) i")
    .await;
    let (proxy, client) = persistent().await;
    for limit in [None, Some(2999), Some(5000)] {
        proxy.cut_after(20_000);
        let mut query = client.query::<RawJson>("t_keyless").max_memory(16 << 10).resume_by("id");
        if let Some(limit) = limit {
            query = query.limit(limit);
        }
        let mut stream = query.execute().await.unwrap();
        let (rows, error) = read_through_cuts(&proxy, &mut stream).await;
        assert_eq!(rows.len(), 2999);
        assert!(stream.stats().resumptions > 2);
        let error = error.map(|e| e.to_string());
        let expected = limit != Some(2999);
        assert_eq!(
            error.as_deref().is_some_and(|e| e.contains("row 3000 does not have this field")),
            expected,
            "{error:?}"
        );
        proxy.cut_after(u64::MAX);
    }
}

/// While the stream reconnects, its earlier connection needs no cleanup.
#[tokio::test]
async fn stream_between_two_connections_is_cancelled_immediately() {
    table("t_between", 30_000).await;
    let server = ([127, 0, 0, 1], cluster().port()).into();
    let proxy = Proxy::start(server).await;
    let config = config_at(proxy.address.port())
        .read_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_secs(600))
        .cancel_timeout(Duration::from_secs(2))
        .retry(RetryPolicy::default().max_attempts(u32::MAX));
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    let query = client.query::<Numbered>("t_between").resume_by("id").max_memory(64 << 10);
    let mut stream = query.execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    proxy.stall(true);
    let before = proxy.connections();
    // The received rows are read. Then nothing arrives: no answer to a cancel request, and nothing
    // on the next connection.
    let control = stream.control();
    let reading = tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
    eventually("it is given up", async || client.backend_pid().is_none()).await;
    assert!(proxy.connections() > before);
    control.cancel().await.unwrap();
    reading.await.unwrap();
    eventually("the client is free", async || !client.is_busy()).await;
}

/// Rows of another server are not part of a snapshot: they may move to other blocks between two
/// queries.
#[tokio::test]
async fn relation_with_foreign_tables_is_not_divided() {
    sql(&format!(
        "create extension postgres_fdw;
         create server s_far foreign data wrapper postgres_fdw
             options (host '127.0.0.1', port '{}', dbname 'postgres');
         create user mapping for postgres server s_far options (user 'postgres', password '{}');
         create table t_far as
             select i as id, jsonb_build_object('id', i) as data from generate_series(1001, 3000) i;
         create table p_far (id int, data jsonb) partition by range (id);
         create table p_far_0 partition of p_far for values from (1) to (1001);
         create foreign table p_far_1 partition of p_far for values from (1001) to (3001)
             server s_far options (table_name 't_far');
         create table i_far (id int, data jsonb);
         create foreign table i_far_1 () inherits (i_far) server s_far options (table_name 't_far');
         insert into p_far select i, jsonb_build_object('id', i) from generate_series(1, 1000) i;
         insert into i_far select * from p_far_0",
        cluster().port(),
        crate::support::cluster::password()
    ))
    .await;
    let client = client().await;
    for entity in ["p_far", "i_far", "p_far_1"] {
        let query = || client.query::<Numbered>(entity).parallel(2);
        let error = query().execute().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{entity}: {error}");
        assert!(error.to_string().contains("partition_by()"), "{error}");
        // An expression does not make them part of the snapshot.
        let error = query().partition_by("id").execute().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{entity}: {error}");
        let rows = client.query::<Numbered>(entity).fetch_all().await.unwrap();
        assert_eq!(rows.len(), if entity == "p_far_1" { 2000 } else { 3000 });
    }
}

/// Data before the rows may also fill the memory. A connection that has started leaves memory to
/// those that have not.
#[tokio::test]
async fn large_notice_does_not_block_the_other_parts() {
    table("t_loud", 2000).await;
    sql("create function f_loud() returns bool language plpgsql immutable as
         $$ begin raise notice '%', repeat('x', 8000); return true; end $$")
    .await;
    let client = client().await;
    client.on_notice(|_| {});
    let query = client.query::<RawJson>("t_loud").where_sql("f_loud()");
    let rows = query.parallel(2).max_memory(8192).fetch_all();
    let rows = tokio::time::timeout(Duration::from_secs(60), rows).await.unwrap().unwrap();
    assert_eq!(rows.len(), 2000);
}
