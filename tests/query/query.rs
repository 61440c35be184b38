//! Queries: their SQL, bound values, and the errors of invalid ones.

use std::path::PathBuf;

use crate::support::{
    client, cluster,
    cluster::find_binaries,
    scripted::{self, Scripted, Step},
    sql,
};
use fraiseql_wire::{
    Error, ErrorCategory, Field, Filter, FraiseClient, Json, QueryBuilder, RetryAdvice, SqlState,
    field, sqlstate,
};
use futures_util::{StreamExt, TryStreamExt, future::join_all};
use serde::Deserialize;
use serde_json::{Value, json};

/// The error of running this query to its first row.
async fn refused(client: &FraiseClient, entity: &str) -> Error {
    client.query::<Value>(entity).execute().await.map(drop).unwrap_err()
}

#[tokio::test]
async fn every_clause_reaches_the_server() {
    sql("create schema app;
         create table app.tv_order as select i as id, jsonb_build_object('id', i,
             'status', case when i % 2 = 0 then 'paid' else 'open' end,
             'total', i * 1.5, 'customer', nullif('c' || i, 'c4')) as data
         from generate_series(1, 20) i;
         create materialized view app.mv_order as select data from app.tv_order")
    .await;
    #[derive(Debug, PartialEq, Deserialize)]
    struct Order {
        id: u64,
        total: f64,
        customer: Option<String>,
    }
    let client = client().await;
    for entity in ["app.tv_order", "app.mv_order", "\"app\".\"tv_order\""] {
        let query = client
            .query::<Order>(entity)
            .where_sql("data->>'status' = $1 or false")
            .bind("paid")
            .where_sql("(data->>'id')::int > $2")
            .bind(1)
            .order_by("(data->>'id')::int desc")
            .order_by("data")
            .limit(3)
            .offset(7);
        let (text, parameters) = query.to_sql().unwrap();
        assert_eq!(parameters, [Some("paid".to_owned()), Some("1".to_owned())]);
        assert!(text.ends_with("LIMIT 3 OFFSET 7"), "{text}");
        let orders: Vec<Order> = query.execute().await.unwrap().try_collect().await.unwrap();
        let ids: Vec<_> = orders.iter().map(|o| o.id).collect();
        assert_eq!(ids, [6, 4, 2], "{entity}");
        assert_eq!(orders[1], Order { id: 4, total: 6.0, customer: None });
    }
}

/// The server receives every value unchanged, whatever it contains.
#[tokio::test]
async fn values_are_bound_and_never_read_as_sql() {
    sql("create table tv_any (data jsonb); insert into tv_any values ('1')").await;
    let client = client().await;
    for text in ["plain", "", "'; drop table tv_any; --", "\\", "$1", "é🦀", "a\nb", "\"", "NULL"]
    {
        let found = client
            .query::<i32>("tv_any")
            .where_sql("to_json($1::text)::text = $2")
            .bind(text)
            .bind(json!(text).to_string())
            .execute()
            .await
            .unwrap()
            .try_collect::<Vec<_>>()
            .await
            .unwrap();
        assert_eq!(found, [1], "{text:?}");
    }
    let matches = async |condition: &str, query: fraiseql_wire::QueryBuilder<i32>| {
        let rows = query.where_sql(condition).execute().await.unwrap();
        rows.try_collect::<Vec<_>>().await.unwrap().len() == 1
    };
    let query = || client.query::<i32>("tv_any");
    assert!(matches("$1", query().bind(true)).await);
    assert!(matches("$1 = -9223372036854775808", query().bind(i64::MIN)).await);
    assert!(matches("$1::numeric = 18446744073709551615", query().bind(u64::MAX)).await);
    assert!(matches("$1::float8 = 0.1::float8", query().bind(0.1)).await);
    assert!(matches("$1::float8 = 'NaN'", query().bind(f64::NAN)).await);
    assert!(matches("$1::float8 = '-Infinity'", query().bind(f64::NEG_INFINITY)).await);
    assert!(matches("$1::text is null", query().bind(None::<i32>)).await);
    assert!(matches("$1::text = 'x'", query().bind(Some(String::from("x")))).await);
}

#[tokio::test]
async fn entity_name_cannot_inject_and_is_used_as_written() {
    sql(r#"create table "Mixed ""Case""" (data json);
           insert into "Mixed ""Case""" values ('7');
           create table victim (data json)"#)
    .await;
    let client = client().await;
    let rows = client.query::<i32>(r#""Mixed ""Case""""#).execute().await.unwrap();
    assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap(), [7]);
    let pid = client.backend_pid();
    for name in
        ["v_one; drop table victim", "v_one\"; drop table victim; --", "", "v_one where true"]
    {
        let error = refused(&client, name).await;
        assert_eq!(error.category(), ErrorCategory::Config, "{name}: {error}");
    }
    // A quoted name takes everything as part of the name.
    let error = refused(&client, "\"v_one; drop table victim\"").await;
    assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_TABLE));
    assert_eq!(client.backend_pid(), pid);
    drop(client.query::<Value>("victim").execute().await.unwrap());
}

#[tokio::test]
async fn settings_that_make_no_sense_are_errors_before_anything_is_sent() {
    // Nobody listens there: an attempt to connect would be another error.
    let client = FraiseClient::new("postgres://u@127.0.0.1:1/d".parse().unwrap());
    let query = || client.query::<Value>("v");
    for (query, names) in [
        (query().chunk_size(0), "chunk_size"),
        (query().max_memory(0), "max_memory"),
        (query().limit(u64::MAX), "LIMIT"),
        (query().where_sql("a = '\0'"), "NUL"),
        (query().where_sql("a = $1").bind("x\0y"), "parameter $1"),
        (query().where_sql("a = $1"), "bind()"),
        (query().where_sql("a = 1").bind(1), "bind()"),
        (query().order_by("$2").bind(1), "bind()"),
        (query().column(""), "column"),
        (query().column("x".repeat(64)), "63 bytes"),
        (query().select_fields(["a", "a.b"]), "select_fields"),
        (query().select_fields(Vec::<String>::new()), "select_fields"),
        (query().resume_by(["a"; 128].join(".")), "128 keys"),
    ] {
        let error = query.execute().await.map(drop).unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        assert!(error.to_string().contains(names), "{error}");
        assert!(!error.is_retriable());
    }
}

#[tokio::test]
async fn server_errors_give_advice_and_client_is_reusable() {
    sql("create view v_no_data as select 1 as id;
         create view v_text as select 'x'::text as data;
         create role stranger login")
    .await;
    let client = client().await;
    let pid = client.backend_pid();

    let error = refused(&client, "v_missing").await;
    assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_TABLE));
    assert!(error.to_string().contains("schema.view"), "{error}");
    assert_eq!(error.as_db_error().unwrap().position(), Some(20));

    let error = refused(&client, "v_no_data").await;
    assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_COLUMN));
    assert!(error.to_string().contains("column named data"), "{error}");

    let error = refused(&client, "v_text").await;
    assert_eq!(error.category(), ErrorCategory::InvalidSchema);
    assert!(error.to_string().contains("\"data\" of type text"), "{error}");
    assert!(error.to_string().contains("to_jsonb()"), "{error}");

    let error =
        client.query::<Value>("v_one").where_sql("$1 = 1").bind("x").execute().await.map(drop);
    assert_eq!(error.unwrap_err().category(), ErrorCategory::Server);

    let error = client.query::<Value>("v_one").where_sql("1 / 0 = 1").execute().await.map(drop);
    assert_eq!(error.unwrap_err().sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO));

    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), pid, "on the same connection, after every refusal");
}

/// Two columns cannot be asked for, but a pooler or another engine could send them.
#[tokio::test]
async fn several_columns_are_rejected_by_name_and_the_query_is_cancelled() {
    let mut session = scripted::login();
    session.push(Step::ExpectQuery);
    session.push(Step::Send(scripted::begin(&[("id", 20), ("data", 3802)])));
    // The cleanup discards this row.
    let (cancelled, stop) = tokio::sync::oneshot::channel();
    session.push(Step::Wait(stop));
    let end = [scripted::error("ERROR", "57014", "canceled"), scripted::ready()].concat();
    session.push(Step::Send(end));
    session.push(Step::Expect(b"Q\0\0\0\x05\0".to_vec()));
    session.push(Step::Send([scripted::message(b'I', b""), scripted::ready()].concat()));
    let cancel = vec![Step::Expect(scripted::cancel_request())];
    let server = Scripted::start(vec![session, cancel]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let error = refused(&client, "v").await;
    assert_eq!(error.category(), ErrorCategory::InvalidSchema);
    let text = error.to_string();
    assert!(text.contains("2 columns (\"id\" of type bigint, \"data\" of type jsonb)"), "{text}");
    assert!(text.contains("jsonb_build_object"), "{text}");
    cancelled.send(()).unwrap();
    client.ping().await.unwrap();
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn advice_to_retry_follows_the_sqlstate() {
    sql("create function fail(state text) returns json language plpgsql as
         $$ begin raise exception using errcode = state; end $$")
    .await;
    let client = client().await;
    for (code, advice) in [
        ("40001", RetryAdvice::Immediately),
        ("40P01", RetryAdvice::Immediately),
        ("53300", RetryAdvice::AfterDelay),
        ("57P03", RetryAdvice::AfterDelay),
        ("08006", RetryAdvice::AfterDelay),
        ("57014", RetryAdvice::AfterDelay),
        ("08P01", RetryAdvice::Never),
        ("22012", RetryAdvice::Never),
        ("42501", RetryAdvice::Never),
        ("XX000", RetryAdvice::Never),
    ] {
        let query = client.query::<Value>("v_one").where_sql("fail($1) is null").bind(code);
        // It fails while it runs: an item of the stream.
        let rows = query.execute().await.unwrap().try_collect::<Vec<_>>().await;
        let error = rows.unwrap_err();
        assert_eq!(error.sqlstate().map(SqlState::code), Some(code));
        assert_eq!(error.retry_advice(), advice, "{error}");
        assert_eq!(error.is_retriable(), advice != RetryAdvice::Never);
    }
}

/// The server's own list of codes, as installed: each has its constant, by name and code.
#[test]
fn every_code_of_the_server_has_a_constant() {
    let bin = find_binaries().unwrap();
    let places = ["../share/errcodes.txt", "../share/postgresql/errcodes.txt"];
    let debian = bin
        .parent()
        .and_then(|d| d.file_name())
        .map(|version| PathBuf::from("/usr/share/postgresql").join(version).join("errcodes.txt"));
    let list = places.iter().map(|p| bin.join(p)).chain(debian);
    let list = list.filter_map(|path| std::fs::read_to_string(path).ok()).next().unwrap();
    let constants = include_str!("../../src/error/sqlstate.rs");
    let mut codes = std::collections::HashSet::new();
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let (Some(code), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some(name) = name.strip_prefix("ERRCODE_").filter(|_| codes.insert(code)) else {
            continue;
        };
        assert!(constants.contains(&format!("    {name} = \"{code}\", ")), "{name} = {code}");
    }
    assert!(codes.len() > 200, "{} codes", codes.len());
}

/// No secret and no value shows where it could be logged.
#[tokio::test]
async fn debug_shows_no_value_and_no_password() {
    let url = format!("postgres://role_scram:scram-secret@127.0.0.1:{}/postgres", cluster().port());
    let client = FraiseClient::connect(&url).await.unwrap();
    let query = client.query::<Value>("v_one").where_sql("$1 = 'x'").bind("bound-secret");
    let shown = format!("{client:#?} {query:#?}");
    assert!(!shown.contains("scram-secret") && !shown.contains("bound-secret"), "{shown}");
}

/// Fetches, counts, existence checks and plans return complete answers.
#[tokio::test]
async fn whole_answers_come_without_a_stream() {
    sql(r#"create table tv_people (data jsonb);
           insert into tv_people select jsonb_build_object('id', i, 'name', 'n' || i, 'city',
               jsonb_build_object('name', 'c' || i % 3, 'zip', i)) from generate_series(1, 30) i"#)
    .await;
    let client = client().await;
    let pid = client.backend_pid();
    let query = || client.query::<Value>("tv_people");
    let even = |v: &Value| v["id"].as_u64().unwrap() % 2 == 0;
    assert_eq!(query().fetch_all().await.unwrap().len(), 30);
    assert_eq!(query().where_rust(even).fetch_all().await.unwrap().len(), 15);
    assert_eq!(query().order_by("(data->>'id')::int desc").fetch_one().await.unwrap()["id"], 30);
    assert_eq!(
        query().where_rust(even).order_by_field(field("id")).fetch_one().await.unwrap()["id"],
        2
    );
    assert_eq!(query().limit(0).fetch_optional().await.unwrap(), None);
    let error = query().filter(field("id").eq(99)).fetch_one().await.unwrap_err();
    assert!(error.to_string().contains("no row"), "{error}");

    assert_eq!(query().count().await.unwrap(), 30);
    assert_eq!(query().limit(7).offset(3).count().await.unwrap(), 7);
    assert_eq!(query().offset(25).count().await.unwrap(), 5);
    assert_eq!(query().where_rust(even).count().await.unwrap(), 15);
    assert_eq!(query().where_sql("(data->>'id')::int > $1").bind(20).count().await.unwrap(), 10);
    let ordered = query().order_by("data->>$1").bind("id").limit(5);
    assert_eq!(ordered.count().await.unwrap(), 5);
    assert!(query().exists().await.unwrap());
    assert!(!query().filter(field("id").gt(30)).exists().await.unwrap());
    assert!(query().where_rust(even).exists().await.unwrap());
    let plan = query().filter(field("id").eq(1)).explain(false).await.unwrap();
    assert!(plan[0]["Plan"]["Node Type"].is_string(), "{plan}");
    assert_eq!(client.backend_pid(), pid, "all on one connection");
}

#[tokio::test]
async fn projection_replaces_the_document() {
    sql(r#"create table tv_wide (doc jsonb);
           insert into tv_wide values ('{"id": 1, "name": "a", "city": {"name": "c", "zip": 5}}'), ('{"id": 2}');
           create view v_wide as select doc as data from tv_wide"#)
    .await;
    let client = client().await;
    let query = || client.query::<Value>("v_wide").order_by_field(field("id"));
    let rows = query().select_fields(["id", "city.zip"]).fetch_all().await.unwrap();
    assert_eq!(
        rows,
        [json!({"id": 1, "city": {"zip": 5}}), json!({"id": 2, "city": {"zip": null}})]
    );
    let rows = query()
        .select_projection("jsonb_build_object('x', data->$1)")
        .bind("id")
        .fetch_all()
        .await
        .unwrap();
    assert_eq!(rows, [json!({"x": 1}), json!({"x": 2})]);
    let rows =
        client.query::<Value>("tv_wide").column("doc").filter(field("id").eq(2)).fetch_all().await;
    assert_eq!(rows.unwrap(), [json!({"id": 2})]);
    let many: Vec<String> = (0..120).map(|i| format!("f{i}")).collect();
    let row = query().select_fields(many).fetch_one().await.unwrap();
    assert_eq!(row.as_object().unwrap().len(), 120);
}

/// Numbers are sorted as numbers, text by a collation, and missing fields as requested.
#[tokio::test]
async fn typed_order_is_that_of_the_server() {
    sql(r#"create view v_sorted as select data from (values
               ('{"id": 1, "n": 10}'::jsonb), ('{"id": 2}'), ('{"id": 3, "n": 9}')) as t (data)"#)
    .await;
    let client = client().await;
    let n = || field("n");
    for (order, expected) in [
        (n().into(), [3, 1, 2]),
        (n().asc().nulls_first(), [2, 3, 1]),
        (n().desc(), [2, 1, 3]),
        (n().desc().nulls_last(), [1, 3, 2]),
        (n().asc().collate("C"), [1, 3, 2]),
        (n().desc().collate("C").nulls_last(), [3, 1, 2]),
    ] {
        let asked = format!("{order:?}");
        let rows = client.query::<Value>("v_sorted").order_by_field(order).fetch_all().await;
        let ids: Vec<_> = rows.unwrap().iter().map(|row| row["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, expected, "{asked}");
    }
}

/// Numbering is right however SQL text and typed filters are mixed.
#[tokio::test]
async fn parameters_of_text_and_filters_do_not_get_mixed_up() {
    let client = client().await;
    let query = client
        .query::<u64>("v_short")
        .filter(Field::column("data").is_not_null())
        .where_sql("(data)::text::int > $1")
        .filter(Field::column("data").is_null().not())
        .bind(290)
        .where_sql("(data)::text::int <> all($2::int[])")
        .bind(vec![293, 295])
        .filter(Filter::any([]).not());
    assert_eq!(query.fetch_all().await.unwrap(), [291, 292, 294, 296, 297, 298, 299, 300]);
    let query = client
        .query::<Value>("v_one")
        .filter(field("a").eq("x"))
        .where_sql("$1 = 'b'")
        .bind("b")
        .filter(field("c").between(1, 2));
    let (sql, parameters) = query.to_sql().unwrap();
    assert!(
        sql.contains("= $2 AND") && sql.contains(">= $3::jsonb") && sql.contains("<= $4::jsonb"),
        "{sql}"
    );
    assert_eq!(
        parameters,
        [Some("b"), Some("x"), Some("1"), Some("2")].map(|p| p.map(str::to_owned))
    );
}

/// Each type arrives as the value it is: the server casts and shows it.
#[tokio::test]
async fn every_type_of_value_arrives_unchanged() {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};
    let client = client().await;
    let echo = async |cast: &str, query: QueryBuilder<Value>| {
        let query = query.select_projection(format!("to_jsonb($1::{cast})"));
        query.fetch_one().await.unwrap_or_else(|e| panic!("{cast}: {e}"))
    };
    let query = || client.query::<Value>("v_one");
    assert_eq!(echo("bool", query().bind(true)).await, json!(true));
    assert_eq!(echo("smallint", query().bind(i8::MIN)).await, json!(-128));
    assert_eq!(echo("bigint", query().bind(i64::MIN)).await, json!(i64::MIN));
    assert_eq!(echo("numeric", query().bind(u64::MAX)).await, json!(u64::MAX));
    assert_eq!(echo("numeric::text", query().bind(i128::MIN)).await, json!(i128::MIN.to_string()));
    assert_eq!(echo("float8", query().bind(0.1)).await, json!(0.1));
    assert_eq!(echo("float8::text", query().bind(f64::NEG_INFINITY)).await, json!("-Infinity"));
    assert_eq!(echo("float4::text", query().bind(f32::NAN)).await, json!("NaN"));
    assert_eq!(echo("text", query().bind("it's \"\\")).await, json!("it's \"\\"));
    assert_eq!(echo("text", query().bind(std::borrow::Cow::Borrowed("c"))).await, json!("c"));
    assert_eq!(echo("text", query().bind('é')).await, json!("é"));
    assert_eq!(echo("bytea", query().bind(vec![0u8, 255])).await, json!("\\x00ff"));
    assert_eq!(echo("bytea", query().bind(bytes::Bytes::from_static(b"a"))).await, json!("\\x61"));
    assert_eq!(echo("jsonb", query().bind(json!({"a": [1, null]}))).await, json!({"a": [1, null]}));
    assert_eq!(echo("jsonb", query().bind(Json((1, "x")))).await, json!([1, "x"]));
    assert_eq!(echo("text", query().bind(None::<&str>)).await, json!(null));
    assert_eq!(
        echo("text[]", query().bind(vec![Some("a,\"}{\\"), None])).await,
        json!(["a,\"}{\\", null])
    );
    assert_eq!(echo("int[]", query().bind(Vec::<i32>::new())).await, json!([]));
    assert_eq!(echo("int[]", query().bind([[1, 2], [3, 4]])).await, json!([[1, 2], [3, 4]]));
    let large: Vec<i32> = (0..100_000).collect();
    assert_eq!(echo("int[]", query().bind(&large[..])).await.as_array().unwrap().len(), 100_000);
    let address: std::net::IpAddr = "2001:db8::1".parse().unwrap();
    assert_eq!(echo("inet", query().bind(address)).await, json!("2001:db8::1"));
    assert_eq!(
        echo("interval::text", query().bind(Duration::from_micros(90_000_001))).await,
        json!("00:01:30.000001")
    );
    for (time, expected) in [
        (UNIX_EPOCH, "1970-01-01 00:00:00+00"),
        (
            UNIX_EPOCH + Duration::from_micros(1_772_323_199_000_001),
            "2026-02-28 23:59:59.000001+00",
        ),
        (UNIX_EPOCH + Duration::from_secs(951_782_400), "2000-02-29 00:00:00+00"),
        (UNIX_EPOCH - Duration::from_secs(1), "1969-12-31 23:59:59+00"),
        (UNIX_EPOCH - Duration::from_secs(62_135_596_801), "0001-12-31 23:59:59+00 BC"),
        (UNIX_EPOCH + Duration::from_secs(253_402_300_800), "10000-01-01 00:00:00+00"),
    ] {
        assert_eq!(echo("timestamptz::text", query().bind(time)).await, json!(expected));
    }
    let _ = SystemTime::now();
    let error = query().select_projection("to_jsonb($1::text)").bind("a\0").fetch_one().await;
    assert!(error.unwrap_err().to_string().contains("NUL"));
}

/// A predicate on the decoded row; what it rejects is counted, and other tasks run meanwhile.
#[tokio::test]
async fn typed_predicates_see_the_decoded_row() {
    let client = client().await;
    let query = client.query::<u64>("v_short").where_typed(|n| n % 2 == 0);
    let mut stream = query.where_typed(|n| n % 3 == 0).execute().await.unwrap();
    let mut rows = Vec::new();
    while let Some(row) = stream.next().await {
        rows.push(row.unwrap());
    }
    assert_eq!(rows, (1..=300).filter(|n| n % 6 == 0).collect::<Vec<_>>());
    assert_eq!(stream.stats().total_rows_filtered, 250);
    drop(stream);

    // A long run of rejected rows leaves room for others, on one thread.
    sql("create view v_rejected as select to_json(i) as data from generate_series(1, 200000) i")
        .await;
    let ticks = std::rc::Rc::new(std::cell::Cell::new(0));
    let local = tokio::task::LocalSet::new();
    let counter = std::rc::Rc::clone(&ticks);
    local.spawn_local(async move {
        loop {
            counter.set(counter.get() + 1);
            tokio::task::yield_now().await;
        }
    });
    let count = client.query::<u64>("v_rejected").where_typed(|_| false).count();
    assert_eq!(local.run_until(count).await.unwrap(), 0);
    assert!(ticks.get() > 50, "{} turns", ticks.get());
}

/// A predicate that panics does so in the task that polls, and does not affect the client.
#[tokio::test]
async fn panic_in_a_predicate_keeps_the_client_usable() {
    let client = std::sync::Arc::new(client().await);
    let pid = client.backend_pid();
    for typed in [false, true] {
        let used = std::sync::Arc::clone(&client);
        let task = tokio::spawn(async move {
            let query = used.query::<u64>("v_short");
            let query = match typed {
                true => query.where_typed(|n| if *n == 7 { panic!("typed") } else { true }),
                false => query.where_rust(|v| if v == 7 { panic!("rust") } else { true }),
            };
            query.fetch_all().await.map(|rows| rows.len())
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(client.query::<u64>("v_short").fetch_all().await.unwrap().len(), 300);
        assert_eq!(client.backend_pid(), pid);
    }
}

/// The types of other crates, each as the value it is.
#[cfg(all(feature = "chrono", feature = "rust_decimal", feature = "time", feature = "uuid"))]
#[tokio::test]
async fn values_of_other_crates_arrive_unchanged() {
    let client = client().await;
    let echo = async |cast: &str, query: QueryBuilder<Value>| {
        let query = query.select_projection(format!("to_jsonb($1::{cast}::text)"));
        query.fetch_one().await.unwrap_or_else(|e| panic!("{cast}: {e}"))
    };
    let query = || client.query::<Value>("v_one");
    let id = uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    assert_eq!(echo("uuid", query().bind(id)).await, json!("01234567-89ab-cdef-0123-456789abcdef"));
    assert_eq!(echo("uuid[]", query().bind(vec![id])).await, json!(format!("{{{id}}}")));
    let decimal = rust_decimal::Decimal::from_i128_with_scale(-12_345_678_901_234_567_890, 5);
    assert_eq!(echo("numeric", query().bind(decimal)).await, json!("-123456789012345.67890"));

    let date = chrono::NaiveDate::from_ymd_opt(2026, 2, 28).unwrap();
    assert_eq!(echo("date", query().bind(date)).await, json!("2026-02-28"));
    let at = date.and_hms_micro_opt(23, 59, 59, 1).unwrap();
    assert_eq!(echo("timestamp", query().bind(at)).await, json!("2026-02-28 23:59:59.000001"));
    assert_eq!(
        echo("timestamptz", query().bind(at.and_utc())).await,
        json!("2026-02-28 23:59:59.000001+00")
    );
    let east = chrono::FixedOffset::east_opt(5400).unwrap();
    let there = at.and_utc().with_timezone(&east);
    assert_eq!(
        echo("timestamptz", query().bind(there)).await,
        json!("2026-02-28 23:59:59.000001+00")
    );
    let far = chrono::NaiveDate::from_ymd_opt(12_026, 1, 1).unwrap();
    assert_eq!(echo("date", query().bind(far)).await, json!("12026-01-01"));
    let before = chrono::NaiveDate::from_ymd_opt(-1, 1, 1).unwrap();
    let error = query().select_projection("to_jsonb($1::date)").bind(before).fetch_one().await;
    assert!(error.unwrap_err().to_string().contains("BC"));

    let date = time::Date::from_calendar_date(2026, time::Month::February, 28).unwrap();
    assert_eq!(echo("date", query().bind(date)).await, json!("2026-02-28"));
    let at = date.with_hms_micro(23, 59, 59, 1).unwrap();
    assert_eq!(echo("timestamp", query().bind(at)).await, json!("2026-02-28 23:59:59.000001"));
    let there = at.assume_utc().to_offset(time::UtcOffset::from_hms(-3, -30, 0).unwrap());
    assert_eq!(
        echo("timestamptz", query().bind(there)).await,
        json!("2026-02-28 23:59:59.000001+00")
    );
}

/// A row that was read for a predicate decodes as it would without one, and fails as it would.
#[tokio::test]
async fn predicate_does_not_change_the_decoded_row() {
    #[derive(Debug, Deserialize)]
    struct Exact {
        id: i128,
        part: Box<serde_json::value::RawValue>,
        name: Option<String>,
    }
    let id = i128::MAX;
    sql(&format!(
        r#"create view v_exact as select * from (values
           ('{{"id":{id},"part":{{"b": 1.10,  "a":[]}},"name":"\u00e9"}}'::json),
           ('{{"id":1,"part":null,"name":[7]}}')) t(data)"#
    ))
    .await;
    let client = client().await;
    for asked in [false, true] {
        let query = client.query::<Exact>("v_exact");
        let query = if asked { query.where_rust(|row| row["id"].is_number()) } else { query };
        let mut rows = query.execute().await.unwrap();
        let row = rows.next().await.unwrap().unwrap();
        assert_eq!((row.id, row.part.get()), (id, r#"{"b": 1.10,  "a":[]}"#));
        assert_eq!(row.name.as_deref(), Some("é"));
        let error = rows.next().await.unwrap().unwrap_err();
        let Error::Deserialization { row: 2, path, .. } = &error else { panic!("{error:?}") };
        assert_eq!(path, "name");
        assert!(rows.next().await.is_none());
    }
}

/// The server's lexer decides which parameters a text has. So thousands of conditions, made of
/// ambiguous pieces, are prepared by another driver.
///
/// `SCANNER_COUNT=100000` makes more of them.
#[tokio::test]
async fn placeholders_of_trusted_sql_are_those_that_the_server_finds() {
    // Quoted text may contain anything.
    const NOISE: &[&str] = &[
        "$1", "$2", "$9", "\\", "--", "/*", "*/", "$$", "$a$", "\"", "''", " ", "\n", "\r", "e",
        "E", "é", "$", "(", ";", "\\\\", "\t", "u&", "0x", "\u{a0}",
    ];
    const SPACE: &[&str] = &[
        " ",
        "\n",
        "\t",
        "\r",
        "\u{c}",
        " -- $8 ' \" /*\n",
        "--\r",
        "/* $7 ' /* -- */ $$ \" */",
        "/**/",
        "/*$6*/",
        " /*/ $9 */ */ ",
        "--$1\\\n",
    ];
    // Column names that look like other tokens.
    const NAMES: &[&str] = &[
        "a$1",
        "e",
        "x$2y",
        "_$3",
        "é$4",
        "\u{a0}$5",
        "\"$6\"",
        "\"a\"\"$7\"",
        "\"e'\"",
        "u&\"$8\"",
        "\"--\"",
        "e$$",
    ];
    sql(r#"create table tv_lexer (data jsonb, a$1 text, e text, x$2y text, _$3 text, "é$4" text,
               "$5" text, "$6" text, "a""$7" text, "e'" text, "$8" text, "--" text, e$$ text)"#
        .replace("\"$5\"", "\"\u{a0}$5\"")
        .as_str())
    .await;
    let server = crate::support::admin().await;
    let client = client().await;
    let mut random = crate::support::random::Random::of(11);
    let count = std::env::var("SCANNER_COUNT").map_or(3000, |n| n.parse().unwrap());
    let (mut compared, mut highest) = (0, [0; 5]);
    for _ in 0..count {
        let mut below = |n: usize| usize::try_from(random.below(n as u64)).unwrap();
        let mut pick = |from: &[&'static str]| from[below(from.len())];
        let mut text = String::from("num_nulls(");
        let mut used = 0;
        let items = pick(&["1", "2", "3", "4", "5", "7"]).parse().unwrap();
        for _ in 0..items {
            let noise: String = (0..items).map(|_| pick(NOISE)).collect();
            let plain = noise.replace('\'', "''");
            let item = match pick(&[
                "plain",
                "escape",
                "dollar",
                "tagged",
                "parameter",
                "parameter",
                "parameter",
                "parameter",
                "parameter",
                "name",
                "case",
                "like",
                "fixed",
                "fixed",
                "continued",
                "unicode",
                "soup",
            ]) {
                "plain" => format!("'{plain}'"),
                "escape" => {
                    let end = pick(&["", "\\'", "''", "\\\\", "\\\\\\'"]);
                    let noise = noise.replace(['\\', '\''], "\\'");
                    format!("{}'{noise}{end}'", pick(&["e", "E"]))
                }
                "dollar" => format!("$${}$$", noise.replace('$', "+")),
                "tagged" => {
                    let tag = pick(&["x", "_", "é", "x1", "€", "\u{a0}", "E"]);
                    format!("${tag}${noise}${tag}$")
                }
                "parameter" => {
                    // Without a gap: the server takes no parameter that has no type.
                    let number =
                        pick(&["1", "2", "3", "4"]).parse::<usize>().unwrap().min(used + 1);
                    used = used.max(number);
                    let cast = pick(&["::int", "/**/::int", "\n:: int"]);
                    format!("{}${number}{cast}", pick(&["", "", "@-", "-", "+", "1-", "1 *"]))
                }
                "name" => pick(NAMES).into(),
                "case" => format!("case when true then'\\' else'{plain}\\'end"),
                "like" => format!("e {}'{plain}'escape'\\'", pick(&["like", "ilike", "not like"])),
                "fixed" => pick(&[
                    "b'01'",
                    "B''",
                    "x'1F'",
                    "X'e'",
                    "n'\\'",
                    "N'$1'",
                    "1",
                    "1.5",
                    "1e5",
                    ".5",
                    "1.",
                    "1.5e-3",
                    "-1",
                    "1e+5",
                    "@-1",
                    "$1::int-/*$9*/1",
                    "$1::int*--$9\n 2",
                    "1-$1::int",
                    "1 +$1::int",
                    "$1::text||'\\'",
                    "e||$1::text",
                    "e'\\''||$1::text",
                    "array[$1::text,'\\'][1]",
                    "(select $1::text)",
                    "e=$1",
                    "\"e\"=$1",
                    "'a'=e",
                ])
                .into(),
                "continued" => {
                    let gap =
                        pick(&["\n", " -- '\n", "\n\n\t", " \r--\n\n", "\u{c}\n", "\n-- '\n"]);
                    pick(&["'a'~'\\$9'", "e'a'~'\\'$9'", "E'\\''~''~'\\'$9'", "'\\'~'\\'~'$9'"])
                        .replace('~', gap)
                }
                "unicode" => format!("u&'{}'", plain.replace('\\', "\\\\")),
                // Mostly rejected by the server.
                _ => noise,
            };
            text.push_str(pick(SPACE));
            text.push_str(&item);
            text.push_str(pick(SPACE));
            text.push(',');
        }
        text.push_str("'') > 0");
        let Ok(statement) =
            server.prepare(&format!("select data from tv_lexer where ({text}\n)")).await
        else {
            continue;
        };
        compared += 1;
        let expected = statement.params().len();
        highest[expected.min(4)] += 1;
        for bound in 0..=9 {
            let mut query = client.query::<Value>("tv_lexer").where_sql(&text);
            for _ in 0..bound {
                query = query.bind("x");
            }
            assert_eq!(query.to_sql().is_ok(), bound == expected, "{bound} of {expected}: {text}");
        }
    }
    assert!(compared > count / 4, "the server accepts {compared} of {count}");
    assert!(highest.iter().take(4).all(|n| *n > compared / 200), "{highest:?}");
}

/// One statement is prepared, whatever raw SQL there is in it.
#[tokio::test]
async fn raw_sql_cannot_append_a_statement() {
    sql("create table t_kept as select '1'::jsonb as data").await;
    let client = client().await;
    let query = || client.query::<Value>("t_kept");
    for text in
        ["true); drop table t_kept; --", "true); drop table t_kept; select (true", "1; select 1"]
    {
        let queries = [
            query().where_sql(text),
            query().order_by(text.trim_start_matches("true)")),
            query().select_projection(text),
        ];
        for query in queries {
            let error = query.fetch_all().await.unwrap_err();
            let code = error.sqlstate().expect("the server's error").code().to_owned();
            assert_eq!(code, "42601", "{text}: {error}");
        }
    }
    assert_eq!(query().count().await.unwrap(), 1);
}

/// For engines without a JSON type; on Postgres, a view with a text column.
#[tokio::test]
async fn json_text_reads_documents_from_a_text_column() {
    sql("create view v_json_text as select i as id, jsonb_build_object('id', i)::text as data,
             jsonb_build_object('id', i)::text::varchar(50) as short, i::text::bpchar as fixed
         from generate_series(1, 1000) i;
         create view v_not_json as select case i when 2 then 'no' else i::text end as data
         from generate_series(1, 3) i")
    .await;
    let client = client().await;
    let text = || client.query::<Value>("v_json_text").json_text(true);
    let ids = async |query: QueryBuilder<Value>| {
        let rows: Vec<_> = query.execute().await.unwrap().try_collect().await.unwrap();
        rows.iter().map(|row| row["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };

    let all: Vec<u64> = (1..=1000).collect();
    assert_eq!(ids(text().order_by("id")).await, all);
    assert_eq!(ids(text().column("short").order_by_field(Field::column("id"))).await, all);
    let query = text().where_sql("id > $1").bind(900).where_rust(|row| row["id"] != 950);
    let query = query.order_by("id desc").limit(60).offset(10);
    assert_eq!(ids(query).await, (931..=990).rev().filter(|id| *id != 950).collect::<Vec<_>>());
    assert_eq!(ids(text().filter(Field::column("id").lte(2)).order_by("id")).await, [1, 2]);
    assert_eq!(ids(text().select_projection("'{\"id\": 7}'::text").limit(1)).await, [7]);
    assert_eq!(text().where_sql("id > 900").count().await.unwrap(), 100);
    assert!(text().exists().await.unwrap());
    assert!(!text().where_sql("id > 1000").exists().await.unwrap());
    assert_eq!(text().where_sql("id = 5").fetch_one().await.unwrap()["id"], 5);
    let mut parallel = ids(text().parallel(2).partition_by("id")).await;
    parallel.sort_unstable();
    assert_eq!(parallel, all);

    // A value that is not JSON is the error of its row.
    let stream = client.query::<u64>("v_not_json").json_text(true).execute().await.unwrap();
    let rows: Vec<_> = stream.collect().await;
    let decoded: Vec<_> = rows.iter().map(|row| row.as_ref().ok().copied()).collect();
    assert_eq!(decoded, [Some(1), None, Some(3)]);
    assert!(rows[1].as_ref().unwrap_err().is_row_error());

    // Neither another type, nor a query without the setting, also if the texts are the same and
    // their statement could have been prepared.
    let error = text().column("fixed").execute().await.unwrap_err();
    assert!(matches!(error, Error::InvalidSchema { .. }), "{error}");
    for _ in 0..4 {
        assert_eq!(ids(text().limit(1).order_by("id")).await, [1]);
        let query = client.query::<Value>("v_json_text").limit(1).order_by("id");
        let error = query.fetch_all().await.unwrap_err();
        assert!(error.to_string().contains("json_text(true)"), "{error}");
    }
    // Fetches that share the connection.
    let fetches = (1..50u64).map(|id| {
        let query = client.query::<Value>("v_json_text").json_text(id % 2 == 0);
        let query = query.where_sql("id = $1").bind(id).fetch_one();
        async move { (id, query.await) }
    });
    for (id, row) in join_all(fetches).await {
        assert_eq!(row.ok().map(|row| row["id"].as_u64()), (id % 2 == 0).then_some(Some(id)));
    }

    let unsupported = [
        text().filter(field("id").eq(1)),
        text().order_by_field("id"),
        text().select_fields(["id"]),
        text().resume_by("id"),
        text().resume_by("id").resume_after(5),
    ];
    for query in unsupported {
        let error = query.execute().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        assert!(error.to_string().contains("json_text(true) cannot be combined"), "{error}");
    }
}
