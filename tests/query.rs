//! Queries: what is asked for, how values are bound, and what is said when it cannot be.

mod support;

use std::path::PathBuf;

use fraiseql_wire::{Error, ErrorCategory, FraiseClient, RetryAdvice, SqlState, sqlstate};
use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use support::{
    client, cluster,
    cluster::find_binaries,
    scripted::{self, Scripted, Step},
    sql,
};

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

/// What goes in comes out: the server gets every value as it is, whatever it looks like.
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
async fn a_name_cannot_inject_and_is_taken_as_it_is_written() {
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
    client.query::<Value>("victim").execute().await.unwrap();
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
    ] {
        let error = query.execute().await.map(drop).unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config, "{error}");
        assert!(error.to_string().contains(names), "{error}");
        assert!(!error.is_retriable());
    }
}

#[tokio::test]
async fn the_servers_refusals_say_what_to_do_and_leave_the_client_usable() {
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
    assert!(error.to_string().contains("column called data"), "{error}");

    let error = refused(&client, "v_text").await;
    assert_eq!(error.category(), ErrorCategory::InvalidSchema);
    assert!(error.to_string().contains("\"data\" of type text"), "{error}");
    assert!(error.to_string().contains("to_jsonb()"), "{error}");

    let error =
        client.query::<Value>("v_one").where_sql("$2 = 1").bind(1).execute().await.map(drop);
    assert_eq!(error.unwrap_err().category(), ErrorCategory::Server);

    let error = client.query::<Value>("v_one").where_sql("1 / 0 = 1").execute().await.map(drop);
    assert_eq!(error.unwrap_err().sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO));

    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), pid, "on the same connection, after every refusal");
}

/// Two columns cannot be asked for, but a pooler or another engine could send them.
#[tokio::test]
async fn several_columns_are_refused_by_name_and_the_query_is_stopped() {
    let mut session = scripted::login();
    session.push(Step::ExpectQuery);
    session.push(Step::Send(scripted::begin(&[("id", 20), ("data", 3802)])));
    // The row is for the clean-up to throw away.
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
    let constants = include_str!("../src/error/sqlstate.rs");
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
async fn nothing_shows_a_value_or_a_password() {
    let url = format!("postgres://role_scram:scram-secret@127.0.0.1:{}/postgres", cluster().port());
    let client = FraiseClient::connect(&url).await.unwrap();
    let query = client.query::<Value>("v_one").where_sql("$1 = 'x'").bind("bound-secret");
    let shown = format!("{client:#?} {query:#?}");
    assert!(!shown.contains("scram-secret") && !shown.contains("bound-secret"), "{shown}");
}
