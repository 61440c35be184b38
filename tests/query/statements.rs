//! Prepared statements: which requests a client sends, and that every answer is right whatever
//! happens to the statements on the server.

use std::{
    slice,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::support::{
    admin, cluster,
    daemon::{Daemon, prepares_nothing},
    eventually,
    proxy::Proxy,
    random::Random,
    scripted::{self, Scripted, Step},
    sql,
};
use fraiseql_wire::{
    ConnectionConfig, Error, FraiseClient, FromJsonRow, QueryBuilder, RawJson, field, sqlstate,
};
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};

/// A client whose requests are recorded on their way to the server on `port`.
struct Recorded {
    client: FraiseClient,
    config: ConnectionConfig,
    proxy: Proxy,
    is_pooled: bool,
}

impl Recorded {
    async fn new() -> Self {
        Self::with(cluster().port(), 100).await
    }

    async fn with(port: u16, capacity: usize) -> Self {
        let proxy = Proxy::start(([127, 0, 0, 1], port).into()).await;
        let url = format!("{}?sslmode=disable", crate::support::url_at(proxy.address));
        let config = ConnectionConfig::parse(&url).unwrap().to_builder();
        let config = config.statement_cache_capacity(capacity).build().unwrap();
        let client = FraiseClient::connect_with_config(config.clone()).await.unwrap();
        proxy.record();
        Self { client, config, proxy, is_pooled: port != cluster().port() }
    }

    /// The tags of the messages that were sent since the last call: `PBDES` is a query whose text
    /// is parsed.
    ///
    /// Without the question for the server's process, which is in the first request that uses a
    /// named statement.
    fn tags(&self) -> String {
        self.all_tags().replace("BDEPBES", "BDES")
    }

    fn all_tags(&self) -> String {
        messages(&self.proxy.record()).iter().map(|(tag, _)| *tag).collect()
    }

    async fn fetch(&self, entity: &str) -> Value {
        self.client.query::<Value>(entity).fetch_one().await.unwrap()
    }

    /// Uses a query so often that its statement is prepared.
    async fn prepare(&self, entity: &str) -> Value {
        self.fetch(entity).await;
        self.fetch(entity).await;
        self.proxy.record();
        let value = self.fetch(entity).await;
        assert_eq!(self.tags(), self.execution(), "{entity}");
        value
    }

    /// The request that executes a prepared statement. It describes the result if the key of the
    /// session is a pooler's.
    fn execution(&self) -> &'static str {
        if self.is_pooled { "BDES" } else { "BES" }
    }
}

/// The messages in the bytes of a client, as tags and bodies.
fn messages(mut bytes: &[u8]) -> Vec<(char, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some((&tag, rest)) = bytes.split_first() {
        if tag == 0 {
            // A cancel request, or the beginning of a session.
            let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
            bytes = &bytes[length..];
            continue;
        }
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        messages.push((char::from(tag), rest[4..length].to_vec()));
        bytes = &rest[length..];
    }
    messages
}

/// A statement on the server.
#[derive(Debug, PartialEq, Deserialize)]
struct Statement {
    text: String,
    /// Whether its name is the documented function of its text.
    is_named_by_text: bool,
}

/// The texts of the statements that a client's session has on the server.
async fn prepared(client: &FraiseClient) -> Vec<String> {
    // Each time another text, so that it is not prepared itself.
    static USES: AtomicUsize = AtomicUsize::new(0);
    let query = client
        .query::<Statement>("pg_catalog.pg_prepared_statements")
        .select_projection(
            "jsonb_build_object('text', statement, 'is_named_by_text', name = 'fw_' ||
             left(encode(sha256(convert_to(statement, 'UTF8')), 'hex'), 32))",
        )
        .where_sql(format!("{} >= 0", USES.fetch_add(1, Ordering::Relaxed)))
        .order_by("statement");
    let found = query.fetch_all().await.unwrap();
    found
        .into_iter()
        .map(|statement| {
            assert!(statement.is_named_by_text, "{statement:?}");
            statement.text
        })
        .collect()
}

fn text<T: FromJsonRow>(query: &QueryBuilder<T>) -> String {
    query.to_sql().unwrap().0
}

#[tokio::test]
async fn second_use_of_a_text_prepares_it_and_third_is_not_parsed() {
    let recorded = Recorded::new().await;
    let query = || recorded.client.query::<u64>("v_one");
    for tags in ["PBDES", "PBDES", "BES", "BES"] {
        assert_eq!(query().fetch_all().await.unwrap(), [1]);
        assert_eq!(recorded.tags(), tags);
    }
    assert_eq!(prepared(&recorded.client).await, [text(&query())]);
}

/// The other tests leave the question out.
#[tokio::test]
async fn first_use_of_a_named_statement_asks_for_the_process_of_the_server() {
    let recorded = Recorded::new().await;
    let fetch = async |entity: &str| {
        recorded.client.query::<Value>(entity).fetch_all().await.unwrap();
        recorded.all_tags()
    };
    for tags in ["PBDES", "PBDEPBES", "BES"] {
        assert_eq!(fetch("v_one").await, tags);
    }
    for tags in ["PBDES", "PBDES", "BES"] {
        assert_eq!(fetch("v_short").await, tags);
    }
}

#[tokio::test]
async fn each_use_binds_its_own_values() {
    let recorded = Recorded::new().await;
    let with = |value: Option<i32>| {
        let query = recorded.client.query::<i32>("v_short");
        query.where_sql("data::text::int = $1 or $2::text = 'x'").bind(value).bind("y").fetch_all()
    };
    for value in 1..=5 {
        assert_eq!(with(Some(value)).await.unwrap(), [value]);
    }
    assert_eq!(with(None).await.unwrap(), [0; 0]);
    assert_eq!(with(Some(300)).await.unwrap(), [300]);
    assert!(recorded.tags().ends_with("BESBESBES"));
}

#[tokio::test]
async fn result_of_a_prepared_statement_is_streamed() {
    let client = crate::support::client().await;
    for _ in 0..4 {
        let stream = client.query::<u64>("v_short").chunk_size(7).execute().await.unwrap();
        let rows: Vec<u64> = stream.try_collect().await.unwrap();
        assert!(rows.into_iter().eq(1..=300));
        let none = client.query::<u64>("v_short").where_sql("false").fetch_all().await.unwrap();
        assert!(none.is_empty());
    }
}

#[tokio::test]
async fn least_recently_used_statement_is_closed() {
    let recorded = Recorded::with(cluster().port(), 2).await;
    let query = |n: u32| recorded.client.query::<u64>("v_one").where_sql(format!("{n} > 0"));
    let run = async |n| assert_eq!(query(n).fetch_all().await.unwrap(), [1]);
    for n in [1, 1, 2, 2, 1] {
        run(n).await;
    }
    assert_eq!(prepared(&recorded.client).await, [text(&query(1)), text(&query(2))]);
    run(3).await;
    recorded.proxy.record();
    run(3).await;
    assert_eq!(recorded.tags(), "CPBDES");
    assert_eq!(prepared(&recorded.client).await, [text(&query(1)), text(&query(3))]);
    recorded.proxy.record();
    for n in [1, 3, 2] {
        run(n).await;
    }
    assert_eq!(recorded.tags(), "BESBESPBDES");
}

#[tokio::test]
async fn texts_that_are_used_once_leave_nothing_on_the_server() {
    let client = crate::support::client().await;
    for n in 0..300 {
        let query = client.query::<u64>("v_one").where_sql(format!("{n} >= 0"));
        assert_eq!(query.fetch_all().await.unwrap(), [1]);
    }
    assert!(prepared(&client).await.is_empty());
}

#[tokio::test]
async fn capacity_of_0_prepares_nothing() {
    let recorded = Recorded::with(cluster().port(), 0).await;
    for _ in 0..4 {
        assert_eq!(recorded.fetch("v_one").await, json!(1));
    }
    assert_eq!(recorded.tags(), "PBDES".repeat(4));
    assert!(prepared(&recorded.client).await.is_empty());
}

#[tokio::test]
async fn persistent_false_neither_prepares_nor_uses_a_statement() {
    let recorded = Recorded::new().await;
    let query = || recorded.client.query::<u64>("v_one");
    let run = async |query: QueryBuilder<u64>| {
        assert_eq!(query.fetch_all().await.unwrap(), [1]);
        recorded.tags()
    };
    for _ in 0..4 {
        assert_eq!(run(query().persistent(false)).await, "PBDES");
    }
    assert!(prepared(&recorded.client).await.is_empty());
    recorded.proxy.record();
    // These uses did not count.
    for tags in ["PBDES", "PBDES", "BES"] {
        assert_eq!(run(query().persistent(true)).await, tags);
    }
    assert_eq!(run(query().persistent(false)).await, "PBDES");
    assert_eq!(run(query()).await, "BES");
}

#[tokio::test]
async fn long_texts_are_not_prepared() {
    let recorded = Recorded::new().await;
    let condition = format!("'{}' <> ''", "x".repeat(32 << 10));
    for _ in 0..4 {
        let query = recorded.client.query::<u64>("v_one").where_sql(&condition);
        assert_eq!(query.fetch_all().await.unwrap(), [1]);
    }
    assert_eq!(recorded.tags(), "PBDES".repeat(4));
}

#[tokio::test]
async fn view_whose_column_changes_its_type_is_prepared_again_or_rejected() {
    sql("create view v_changing as select '1'::json as data").await;
    let recorded = Recorded::new().await;
    assert_eq!(recorded.prepare("v_changing").await, json!(1));
    // The statement fails and its text is parsed. The next use closes it and prepares it again.
    for expression in ["'2'::jsonb", "'3'::json"] {
        sql(&format!(
            "drop view v_changing; create view v_changing as select {expression} as data"
        ))
        .await;
        let value = recorded.fetch("v_changing").await;
        assert_eq!(format!("'{value}'"), expression.split("::").next().unwrap());
        assert_eq!(recorded.tags(), "BESPBDES");
        assert_eq!(recorded.fetch("v_changing").await, value);
        assert_eq!(recorded.fetch("v_changing").await, value);
        assert_eq!(recorded.tags(), "CPBDESBES");
        assert_eq!(prepared(&recorded.client).await.len(), 1);
        recorded.proxy.record();
    }
    sql("drop view v_changing; create view v_changing as select '{\"a\": 4}'::text as data").await;
    for _ in 0..4 {
        let error = recorded.client.query::<Value>("v_changing").fetch_one().await.unwrap_err();
        assert!(matches!(error, Error::InvalidSchema { .. }), "{error}");
    }
    assert_eq!(recorded.tags(), "BESPBDESCPBDESPBDESPBDES", "it is not prepared");
    assert!(prepared(&recorded.client).await.is_empty());
    sql("drop view v_changing; create view v_changing as select '5'::json as data").await;
    assert_eq!(recorded.prepare("v_changing").await, json!(5));
}

/// Text of a view whose columns become two, then none that is JSON, then one again.
#[tokio::test]
async fn function_whose_result_is_no_longer_json_is_rejected() {
    let recorded = Recorded::new().await;
    let replace = async |body: &str| {
        sql(&format!(
            "drop function if exists f_changing cascade;
             create function f_changing() returns {body};
             create view v_function as select f_changing() as data"
        ))
        .await;
    };
    replace("json language sql as $$ select '1'::json $$").await;
    assert_eq!(recorded.prepare("v_function").await, json!(1));
    replace("int language sql as $$ select 2 $$").await;
    let error = recorded.client.query::<Value>("v_function").fetch_one().await.unwrap_err();
    assert!(error.to_string().contains("integer"), "{error}");
    replace("jsonb language sql as $$ select '3'::jsonb $$").await;
    assert_eq!(recorded.prepare("v_function").await, json!(3));
}

#[tokio::test]
async fn table_recreated_with_another_type_of_key_is_read_correctly() {
    let recorded = Recorded::new().await;
    let create = async |id: &str, value: &str| {
        sql(&format!(
            "drop table if exists t_again;
             create table t_again (id {id}, data jsonb);
             insert into t_again values ({value}, to_jsonb({value}))"
        ))
        .await;
    };
    let find = |id: &str| {
        let query = recorded.client.query::<Value>("t_again").where_sql("id = $1").bind(id);
        query.fetch_all()
    };
    create("int", "1").await;
    for _ in 0..3 {
        assert_eq!(find("1").await.unwrap(), [json!(1)]);
    }
    assert_eq!(prepared(&recorded.client).await.len(), 1);
    // The statement has a parameter of type int: no operator compares it with text.
    create("text", "'x'::text").await;
    assert_eq!(find("x").await.unwrap(), [json!("x")]);
    for _ in 0..3 {
        assert_eq!(find("x").await.unwrap(), [json!("x")]);
    }
    // No text is a valid int, unless it is one.
    create("int", "2").await;
    assert_eq!(find("2").await.unwrap(), [json!(2)]);
    for _ in 0..3 {
        let error = find("x").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_TEXT_REPRESENTATION), "{error}");
        assert_eq!(find("2").await.unwrap(), [json!(2)]);
    }
    // Numbers compare with int, but their text is not always one.
    for _ in 0..3 {
        assert_eq!(find("2").await.unwrap(), [json!(2)]);
    }
    create("numeric", "2.5").await;
    assert_eq!(find("2.5").await.unwrap(), [json!(2.5)]);
    for _ in 0..3 {
        assert_eq!(find("2.5").await.unwrap(), [json!(2.5)]);
        assert!(find("2").await.unwrap().is_empty());
    }
    // Nothing is left, and then something is.
    sql("drop table t_again").await;
    for _ in 0..3 {
        let error = find("2").await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_TABLE), "{error}");
    }
    create("int", "7").await;
    for _ in 0..3 {
        assert_eq!(find("7").await.unwrap(), [json!(7)]);
    }
}

/// A limit of prepared statements in Postgres, whatever the client: see docs/ARCHITECTURE.md. The
/// type of a parameter is inferred when the text is parsed, and stays.
#[tokio::test]
async fn parameter_keeps_its_inferred_type_unless_the_text_casts_it() {
    sql("create table t_at (at date, data jsonb); insert into t_at values ('2024-01-02', '1')")
        .await;
    let client = crate::support::client().await;
    let find = |condition: &str, at: &str| {
        client.query::<Value>("t_at").where_sql(condition).bind(at).fetch_all()
    };
    let (inferred, cast) = ("at >= $1", "at >= $1::timestamptz");
    for condition in [inferred, cast] {
        for _ in 0..3 {
            assert_eq!(find(condition, "2024-01-01").await.unwrap(), [json!(1)]);
        }
    }
    sql("alter table t_at alter column at type timestamptz").await;
    // As a date, this is midnight.
    let noon = "2024-01-02 12:00";
    assert_eq!(find(inferred, noon).await.unwrap(), [json!(1)], "Postgres has fixed this");
    assert!(find(cast, noon).await.unwrap().is_empty());
    assert!(
        crate::support::client()
            .await
            .query::<Value>("t_at")
            .where_sql(inferred)
            .bind(noon)
            .fetch_all()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn changed_search_path_selects_the_other_relation() {
    sql("create schema path_a; create schema path_b; create schema path_c;
         create view path_a.v_path as select '\"a\"'::json as data;
         create view path_b.v_path as select '\"b\"'::json as data;
         create view path_c.v_path as select '\"c\"'::jsonb as data;
         create function f_path(text) returns jsonb language sql as
             $$ select to_jsonb(set_config('search_path', $1, false)) $$;
         create view v_path_a as select public.f_path('path_a, public') as data;
         create view v_path_b as select public.f_path('path_b, public') as data;
         create view v_path_c as select public.f_path('path_c, public') as data")
    .await;
    let recorded = Recorded::new().await;
    for round in 0..3 {
        for name in ["a", "b", "c", "b", "a"] {
            recorded.fetch(&format!("public.v_path_{name}")).await;
            for _ in 0..3 {
                assert_eq!(recorded.fetch("v_path").await, json!(name), "round {round}");
            }
        }
    }
}

#[tokio::test]
async fn changed_role_sees_only_the_rows_of_its_policies() {
    sql("create table t_policies (owner text, data jsonb);
         insert into t_policies values ('postgres', '1'), ('role_trust', '2');
         alter table t_policies enable row level security;
         create policy own on t_policies using (owner = current_user);
         grant select on t_policies to role_trust;
         create function f_role(text) returns jsonb language sql as
             $$ select to_jsonb(set_config('role', $1, false)) $$;
         create view v_role_trust as select f_role('role_trust') as data;
         create view v_role_none as select f_role('none') as data;
         grant select on v_role_none to role_trust")
    .await;
    let recorded = Recorded::new().await;
    let rows = || {
        let query = recorded.client.query::<u64>("t_policies");
        query.order_by("data").fetch_all()
    };
    for _ in 0..3 {
        for _ in 0..3 {
            assert_eq!(rows().await.unwrap(), [1, 2]);
        }
        recorded.fetch("v_role_trust").await;
        for _ in 0..3 {
            assert_eq!(rows().await.unwrap(), [2]);
        }
        recorded.fetch("v_role_none").await;
    }
    assert!(recorded.tags().ends_with("BESBESBESBES"));
}

/// Functions can deallocate what the session has prepared.
#[tokio::test]
async fn deallocated_statement_disables_preparing_for_the_configuration() {
    sql("create function f_deallocate() returns jsonb language plpgsql as
             $$ begin deallocate all; return 'true'; end $$;
         create view v_deallocate as select f_deallocate() as data")
    .await;
    let recorded = Recorded::new().await;
    recorded.prepare("v_one").await;
    recorded.fetch("v_deallocate").await;
    assert!(prepared(&recorded.client).await.is_empty());
    recorded.proxy.record();
    // The statement is missing, so the text is parsed.
    assert_eq!(recorded.fetch("v_one").await, json!(1));
    assert_eq!(recorded.tags(), "BESPBDES");
    for _ in 0..4 {
        assert_eq!(recorded.fetch("v_one").await, json!(1));
    }
    assert_eq!(recorded.tags(), "PBDES".repeat(4));
    // A clone of the configuration knows. One that is built from it begins anew.
    let clone = FraiseClient::connect_with_config(recorded.config.clone()).await.unwrap();
    let built = recorded.config.to_builder().build().unwrap();
    let built = FraiseClient::connect_with_config(built).await.unwrap();
    for _ in 0..3 {
        for client in [&clone, &built] {
            assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
        }
    }
    assert!(prepared(&clone).await.is_empty());
    assert_eq!(prepared(&built).await.len(), 1);
}

#[tokio::test]
async fn value_that_does_not_fit_keeps_the_statement_prepared() {
    let recorded = Recorded::new().await;
    let with = |value: &str| {
        let query = recorded.client.query::<u64>("v_one").where_sql("$1::int > 0").bind(value);
        query.fetch_all()
    };
    for _ in 0..3 {
        assert_eq!(with("1").await.unwrap(), [1]);
    }
    for value in ["x", "99999999999999"] {
        let error = with(value).await.unwrap_err();
        assert_eq!(error.sqlstate().map(|code| code.class()), Some("22"), "{error}");
    }
    recorded.proxy.record();
    assert_eq!(with("1").await.unwrap(), [1]);
    assert_eq!(recorded.tags(), "BES");
    // Also when the first value that is bound does not fit.
    let with = |value: &str| {
        let query = recorded.client.query::<u64>("v_one").where_sql("$1::int > 1").bind(value);
        query.fetch_all()
    };
    for value in ["x", "x", "2", "2", "2"] {
        assert_eq!(with(value).await.is_ok(), value == "2");
    }
    assert!(recorded.tags().ends_with("BES"));
}

#[tokio::test]
async fn errors_while_rows_are_sent_keep_the_statement_prepared() {
    sql("create view v_late_error as
         select to_json(1 / (5000 - i)) as data from generate_series(1, 10000) i")
    .await;
    let recorded = Recorded::new().await;
    for round in 0..4 {
        recorded.proxy.record();
        let stream = recorded.client.query::<RawJson>("v_late_error").execute().await.unwrap();
        let results: Vec<_> = stream.collect().await;
        assert_eq!(results.len(), 5000);
        let error = results.last().unwrap().as_ref().unwrap_err();
        assert_eq!(error.sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO), "{error}");
        // The answer to the question is never sent.
        assert_eq!(recorded.all_tags(), ["PBDES", "PBDEPBES", "BDEPBES"][round.min(2)]);
    }
}

#[tokio::test]
async fn cancelled_stream_keeps_the_statement_prepared() {
    let recorded = Recorded::new().await;
    for round in 0..5 {
        recorded.proxy.record();
        let query = recorded.client.query::<Value>("v_endless");
        let mut stream = query.execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        // The answer to the question has never been read.
        assert_eq!(recorded.all_tags(), ["PBDES", "PBDEPBES", "BDEPBES"][round.min(2)]);
        if round % 2 == 0 {
            drop(stream);
        } else {
            stream.cancel().await.unwrap();
        }
    }
    assert_eq!(prepared(&recorded.client).await.len(), 1);
}

/// The server has parsed the statement, and the client does not know it.
#[tokio::test]
async fn query_dropped_while_preparing_is_closed_before_it_is_prepared_again() {
    sql("create view v_slow as select to_json(pg_sleep(0.1)::text) as data").await;
    let recorded = Recorded::new().await;
    let query = || recorded.client.query::<String>("v_slow").where_sql("pg_sleep(600) is null");
    let admin = admin().await;
    let found = "select 1 from pg_stat_activity
                 where query like '%v_slow%pg_sleep(600)%' and wait_event = 'PgSleep'";
    let is_running = async || !admin.query(found, &[]).await.unwrap().is_empty();
    for (tags, statements) in [("PBDES", 0), ("PBDES", 1), ("CPBDES", 1)] {
        recorded.proxy.record();
        let executing = tokio::spawn(query().execute());
        eventually("the query runs", is_running).await;
        assert_eq!(recorded.tags(), tags);
        executing.abort();
        assert!(executing.await.unwrap_err().is_cancelled());
        // The next query waits until this one has been stopped.
        assert_eq!(prepared(&recorded.client).await.len(), statements);
    }
}

#[tokio::test]
async fn new_connection_starts_with_nothing_prepared() {
    let recorded = Recorded::new().await;
    recorded.prepare("v_one").await;
    crate::support::terminate(&admin().await, recorded.client.backend_pid().unwrap()).await;
    for _ in 0..3 {
        assert_eq!(recorded.fetch("v_one").await, json!(1));
    }
    assert_eq!(prepared(&recorded.client).await.len(), 1);
    // Its login is recorded too.
    assert!(String::from_utf8_lossy(&recorded.proxy.record()).contains("fw_"));
}

#[tokio::test]
async fn parallel_queries_and_counts_do_not_disturb_the_statements() {
    sql("create table t_statements as select to_jsonb(i) as data from generate_series(1, 1000) i")
        .await;
    let client = crate::support::client().await;
    for _ in 0..4 {
        let query = || client.query::<u64>("t_statements");
        assert_eq!(query().fetch_all().await.unwrap().len(), 1000);
        assert_eq!(query().parallel(2).fetch_all().await.unwrap().len(), 1000);
        assert_eq!(query().count().await.unwrap(), 1000);
        assert!(query().where_sql("data = $1::jsonb").bind("7").exists().await.unwrap());
    }
}

#[tokio::test]
async fn resumable_query_continues_on_another_connection() {
    sql("create table t_resumable as select jsonb_build_object('id', i, 'text', repeat('x', 200))
         as data from generate_series(1, 20000) i")
    .await;
    let recorded = Recorded::new().await;
    let read = async || {
        recorded.proxy.record();
        let query = recorded.client.query::<Value>("t_resumable").resume_by(field("id"));
        let mut stream = query.execute().await.unwrap();
        let tags = recorded.tags();
        let mut ids = Vec::new();
        while let Some(row) = stream.next().await {
            ids.push(row.unwrap()["id"].as_u64().unwrap());
        }
        assert!(ids.into_iter().eq(1..=20_000));
        (tags, stream.stats().resumptions)
    };
    assert_eq!(read().await, ("PBDES".to_owned(), 0));
    assert_eq!(read().await, ("PBDES".to_owned(), 0));
    recorded.proxy.cut_after(1 << 20);
    let repair = async {
        eventually("the connection is cut", async || recorded.proxy.is_cut()).await;
        recorded.proxy.cut_after(u64::MAX);
    };
    let (result, ()) = tokio::join!(read(), repair);
    assert_eq!(result, ("PBDES".to_owned(), 1));
    // Nothing was prepared, on neither connection.
    assert!(prepared(&recorded.client).await.is_empty());
    assert_eq!(read().await, ("PBDES".to_owned(), 0));
}

/// The statement of the other client has the same name, because it has the same text.
#[tokio::test]
async fn pgbouncer_in_transaction_mode_hands_out_a_connection_that_has_the_statement() {
    let settings = prepares_nothing().to_owned() + "default_pool_size = 1";
    let pooler = Daemon::pgbouncer_with("transaction", &settings, cluster().port());
    let first = Recorded::with(pooler.port, 100).await;
    let second = Recorded::with(pooler.port, 100).await;
    first.prepare("v_one").await;
    second.fetch("v_one").await;
    second.proxy.record();
    assert_eq!(second.fetch("v_one").await, json!(1));
    assert_eq!(second.tags(), "PBDESBDES", "it exists, so it is described and executed");
    for recorded in [&first, &second] {
        recorded.proxy.record();
        assert_eq!(recorded.fetch("v_one").await, json!(1));
        assert_eq!(recorded.tags(), recorded.execution());
    }
}

#[tokio::test]
async fn pgbouncer_in_transaction_mode_loses_statements_which_disables_preparing() {
    let pooler = Daemon::pgbouncer_with("transaction", prepares_nothing(), cluster().port());
    let recorded = Recorded::with(pooler.port, 100).await;
    recorded.prepare("v_one").await;
    // Another client has the server connection with the statement.
    let other = FraiseClient::connect_with_config(recorded.config.clone()).await.unwrap();
    let mut stream = other.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    recorded.proxy.record();
    assert_eq!(recorded.fetch("v_one").await, json!(1));
    assert_eq!(recorded.tags(), recorded.execution().to_owned() + "PBDES");
    drop(stream);
    for _ in 0..4 {
        assert_eq!(recorded.fetch("v_one").await, json!(1));
    }
    assert!(recorded.tags().ends_with(&"PBDES".repeat(4)));
}

/// `server_reset_query` after each transaction: DISCARD ALL.
#[tokio::test]
async fn pgbouncer_that_discards_everything_after_each_transaction_gives_right_answers() {
    let settings = "server_reset_query = DISCARD ALL\nserver_reset_query_always = 1";
    let settings = prepares_nothing().to_owned() + settings;
    let pooler = Daemon::pgbouncer_with("transaction", &settings, cluster().port());
    let recorded = Recorded::with(pooler.port, 100).await;
    for _ in 0..6 {
        assert_eq!(recorded.fetch("v_one").await, json!(1));
    }
    let execution = recorded.execution();
    assert_eq!(
        recorded.tags(),
        ["PBDES", "PBDES", execution, "PBDES", "PBDES", "PBDES", "PBDES"].concat()
    );
}

#[tokio::test]
async fn pgbouncer_in_session_mode_keeps_statements_for_a_session() {
    let settings = "default_pool_size = 1\nserver_reset_query = DISCARD ALL";
    let pooler = Daemon::pgbouncer_with("session", settings, cluster().port());
    for _ in 0..2 {
        let recorded = Recorded::with(pooler.port, 100).await;
        for _ in 0..4 {
            assert_eq!(recorded.fetch("v_one").await, json!(1));
        }
        let execution = recorded.execution();
        assert_eq!(recorded.tags(), ["PBDES", "PBDES", execution, execution].concat());
        recorded.client.close().await.unwrap();
    }
}

#[tokio::test]
async fn pgpool_gives_right_answers_whatever_it_does_with_statements() {
    let pooler = Daemon::pgpool(cluster().port());
    sql("create view v_pgpool as select '1'::json as data").await;
    let clients = [Recorded::with(pooler.port, 2).await, Recorded::with(pooler.port, 2).await];
    for round in 0..20 {
        for recorded in &clients {
            for n in [round % 3, 0] {
                let query = recorded.client.query::<u64>("v_pgpool");
                let query = query.where_sql(format!("{n} >= 0 and $1::int > 0")).bind(1);
                assert_eq!(query.fetch_all().await.unwrap(), [1]);
            }
            let query = recorded.client.query::<u64>("v_pgpool").where_sql("$1::int > 0");
            query.bind("x").fetch_all().await.unwrap_err();
        }
        if round == 10 {
            sql("drop view v_pgpool; create view v_pgpool as select '1'::jsonb as data").await;
        }
    }
}

/// Several clients of a pooler, while relations change: every answer is right.
#[tokio::test]
async fn random_queries_give_right_answers_while_relations_change() {
    for mode in ["transaction", "session"] {
        sql("drop table if exists t_random; create table t_random (id int, data json);
             insert into t_random values (1, '1')")
        .await;
        let settings = prepares_nothing().to_owned() + "default_pool_size = 3";
        let pooler = Daemon::pgbouncer_with(mode, &settings, cluster().port());
        // A configuration of its own, which knows nothing of statements that were lost.
        let connect = || Recorded::with(pooler.port, 3);
        let mut clients = futures_util::future::join_all((0..3).map(|_| connect())).await;
        let mut random = Random::of(7);
        let (mut id, mut value, mut expected) = ("int", "1", 1);
        // Holds a server connection, so that the others get another one.
        let mut held = None;
        let (mut uses, mut lost, mut existing) = (0, 0, 0);
        for step in 0..600 {
            let context = format!("{mode}, step {step}, {id}");
            let chosen = usize::try_from(random.below(2)).unwrap();
            match random.below(24) {
                0 => {
                    held = None;
                    let column = ["json", "jsonb"][usize::try_from(random.below(2)).unwrap()];
                    (id, value) = [("int", "1"), ("text", "a"), ("numeric", "1.5")]
                        [usize::try_from(random.below(3)).unwrap()];
                    sql(&format!(
                        "drop table t_random; create table t_random (id {id}, data {column});
                         insert into t_random values ('{value}', '{step}')"
                    ))
                    .await;
                    expected = step;
                }
                1 => held = None,
                2 if mode == "transaction" => {
                    drop(held.take());
                    let stream = clients[2].client.query::<Value>("v_endless").execute().await;
                    held = Some(stream.unwrap());
                }
                3 => {
                    clients[chosen] = connect().await;
                }
                n => {
                    let client = &clients[chosen];
                    let query = client.client.query::<u64>("t_random").where_sql("id = $1");
                    let query = query.bind(value).where_sql(format!("{} >= 0", n % 5));
                    assert_eq!(query.fetch_all().await.unwrap(), [expected], "{context}");
                    let tags = client.tags();
                    uses += usize::from(tags == client.execution());
                    lost += usize::from(tags == client.execution().to_owned() + "PBDES");
                    existing += usize::from(tags.contains("PBDESBDES"));
                }
            }
        }
        drop(held);
        assert!(uses > 50 && lost > 2, "{mode}: {uses}, {lost}");
        assert_eq!(existing > 2, mode == "transaction", "{mode}: {existing}");
    }
}

/// Answers of a server to the uses of one text; each is followed by ReadyForQuery.
async fn scripted(answers: &[Vec<u8>]) -> (FraiseClient, Scripted) {
    scripted_after(scripted::login(), answers).await
}

async fn scripted_after(mut session: Vec<Step>, answers: &[Vec<u8>]) -> (FraiseClient, Scripted) {
    for answer in answers {
        session.push(Step::ExpectQuery);
        session.push(Step::Send([answer.clone(), scripted::ready()].concat()));
    }
    let server = Scripted::start(vec![session]).await;
    (FraiseClient::connect(&server.url()).await.unwrap(), server)
}

const JSONB: &[(&str, u32)] = &[("data", 3802)];

fn one_row() -> Vec<u8> {
    [scripted::begin_json(), scripted::row("1"), scripted::complete()].concat()
}

/// The answer to a Bind and a Describe without Parse.
fn described(columns: &[(&str, u32)], row: &str) -> Vec<u8> {
    let parsed_too = scripted::begin(columns);
    let parse_complete = scripted::message(b'1', b"").len();
    [&parsed_too[parse_complete..], &scripted::row(row), &scripted::complete()].concat()
}

/// The answer to a Bind without Parse and Describe.
fn bound(row: &[u8]) -> Vec<u8> {
    [&scripted::message(b'2', b""), row, &scripted::complete()].concat()
}

#[tokio::test]
async fn repeated_statement_errors_end_at_the_unnamed_statement() {
    let error = |code| scripted::error("ERROR", code, "made up");
    let parsed = |error: Vec<u8>| [scripted::message(b'1', b""), error].concat();
    let closed_and_row = [scripted::message(b'3', b""), one_row()].concat();
    type Answers<'a> = &'a [Vec<u8>];
    let cases: [(Answers<'_>, Answers<'_>); 7] = [
        // It exists, and has gone when it is executed.
        (&[error("42P05"), error("26000"), one_row()], &[one_row()]),
        // It exists, and exists again; or has another type. It is closed and prepared again.
        (&[error("42P05"), error("42P05"), one_row()], slice::from_ref(&closed_and_row)),
        (&[error("42P05"), error("0A000"), one_row()], slice::from_ref(&closed_and_row)),
        // No statement can have a name.
        (&[error("0A000"), one_row()], &[error("0A000"), one_row()]),
        (&[error("42P05"), described(JSONB, "1")], &[bound(&scripted::row("1"))]),
        // A pooler answers the Parse itself, and its statement is out of date.
        (&[parsed(error("22P02")), one_row()], slice::from_ref(&closed_and_row)),
        (&[parsed(error("0A000")), one_row()], slice::from_ref(&closed_and_row)),
    ];
    for (second, third) in cases {
        let answers = [&[one_row()], second, third].concat();
        let (client, server) = scripted(&answers).await;
        for _ in 0..3 {
            assert_eq!(client.query::<u64>("v").fetch_all().await.unwrap(), [1]);
        }
        drop(client);
        server.done().await;
    }
    // A server that refuses everything is not asked for ever.
    let answers = [one_row(), error("42P05"), error("42P05"), error("42P05")];
    let (client, server) = scripted(&answers).await;
    assert_eq!(client.query::<u64>("v").fetch_all().await.unwrap(), [1]);
    let refused = client.query::<u64>("v").fetch_all().await.unwrap_err();
    assert_eq!(refused.sqlstate(), Some(&sqlstate::DUPLICATE_PSTATEMENT), "{refused}");
    drop(client);
    server.done().await;
}

/// As PgBouncer with `max_prepared_statements` does: it prepares the statement again on another
/// server connection, where the view has another column by then, without an error.
#[tokio::test]
async fn pooler_that_prepares_a_statement_again_delivers_no_values_that_are_not_json() {
    let key = scripted::message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
    let [refused, unable] = [("42883", "no such function"), ("XX000", "not supported")]
        .map(|(code, message)| scripted::error("ERROR", code, message));
    let other = scripted::process_answer(false).concat();
    let [parsed, bound] = [b'1', b'2'].map(|tag| scripted::message(tag, b""));
    // Another process than that of the key, an engine that refuses to say which, and one that has
    // issued no key.
    for (key, second) in [
        (&key, other),
        (&key, refused.clone()),
        (&key, [parsed, bound, refused].concat()),
        (&key, unable),
        (&Vec::new(), Vec::new()),
    ] {
        let answers = [
            one_row(),
            [one_row(), second].concat(),
            described(JSONB, "1"),
            described(&[("data", 25)], "2"),
            [scripted::message(b'3', b""), one_row()].concat(),
            one_row(),
            described(JSONB, "1"),
        ];
        let login = [&scripted::auth_ok()[..], key, &scripted::ready()].concat();
        let login = vec![Step::ExpectStartup, Step::Send(login)];
        let (client, server) = scripted_after(login, &answers).await;
        for use_of_text in 1..=answers.len() {
            let fetched = client.query::<u64>("v").fetch_all().await;
            match use_of_text {
                4 => assert!(matches!(fetched, Err(Error::InvalidSchema { .. })), "{fetched:?}"),
                _ => assert_eq!(fetched.unwrap(), [1], "{use_of_text}"),
            }
        }
        drop(client);
        server.done().await;
    }
}

#[tokio::test]
async fn prepared_statement_that_returns_other_columns_is_a_protocol_error() {
    let two = scripted::message(b'D', b"\0\x02\0\0\0\x011\0\0\0\x012");
    for row in [two, scripted::message(b'D', b"\0\0"), scripted::begin_json()] {
        let (client, server) = scripted(&[one_row(), one_row(), bound(&row)]).await;
        for _ in 0..2 {
            assert_eq!(client.query::<u64>("v").fetch_all().await.unwrap(), [1]);
        }
        let error = client.query::<u64>("v").fetch_all().await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        drop(client);
        server.done().await;
    }
}
