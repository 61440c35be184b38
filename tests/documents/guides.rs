//! The guides, compared with the crate and a real server.

use std::{collections::BTreeMap, time::Duration};

use crate::status::status;
use crate::support::{
    admin_at, backend_state, client, cluster,
    cluster::Setup,
    cluster::{Cluster, REQUIRE_PASSWORD, free_port},
    config_at,
    daemon::Daemon,
    eventually,
    proxy::Proxy,
    sql,
};
use fraiseql_wire::{
    ConnectionConfig, Error, FraiseClient, RawJson, RetryAdvice, RetryPolicy, SslMode, sqlstate,
};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The rows of a section's first table, as cells.
fn table(document: &str, section: &str) -> Vec<Vec<String>> {
    let section = document.split("\n## ").find(|text| text.starts_with(section)).unwrap();
    let cells = |row: &str| -> Vec<String> {
        row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let rows: Vec<_> = rows.take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(rows.len() > 10, "{section}");
    rows
}

/// The texts in backticks.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn word(advice: RetryAdvice) -> &'static str {
    match advice {
        RetryAdvice::Never => "no",
        RetryAdvice::Immediately => "now",
        RetryAdvice::AfterDelay => "later",
        other => panic!("{other:?}"),
    }
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Order {
    id: u64,
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code)]
struct Line {
    price: f64,
}

/// Every kind of error, from where it comes from in earnest.
async fn errors() -> Vec<Error> {
    sql("create view v_text as select 'x'::text as data;
         create view v_order as select '{\"id\": 7, \"lines\": [{\"price\": \"12.50\"}]}'::jsonb as data;
         create view v_number as select '1e999'::json as data;
         create view v_large as select to_jsonb(repeat('x', 3000000)) as data;
         create view v_divides as select to_jsonb(1 / (3 - i)) as data from generate_series(1, 9) i;
         create role role_nothing login")
    .await;
    let url = cluster().url();
    let config = |more: &str| format!("{url}?{more}").parse::<ConnectionConfig>().unwrap();
    let second = Duration::from_secs(1);
    let client = client().await;
    let query = |entity: &str| client.query::<RawJson>(entity);
    let mut errors = vec![
        query("v_order; drop table t").fetch_all().await.unwrap_err(),
        query("v_one").chunk_size(0).fetch_all().await.unwrap_err(),
        ConnectionConfig::parse("host=db1 sslmod=require").unwrap_err(),
        query("v_missing").fetch_all().await.unwrap_err(),
        query("v_divides").fetch_all().await.unwrap_err(),
        query("v_text").fetch_all().await.unwrap_err(),
        query("v_one").limit(0).fetch_one().await.unwrap_err(),
        query("v_large").max_memory(1 << 20).fetch_all().await.unwrap_err(),
        query("v_asleep").first_row_timeout(second).fetch_all().await.unwrap_err(),
        query("v_asleep").timeout(second).fetch_all().await.unwrap_err(),
        client.query::<Order>("v_order").fetch_all().await.unwrap_err(),
        client.query::<Value>("v_number").fetch_all().await.unwrap_err(),
    ];

    // States of a client and its streams.
    let mut stream = query("v_endless").execute().await.unwrap();
    errors.push(client.ping().await.unwrap_err());
    stream.cancel().await.unwrap();
    errors.push(stream.pause().await.unwrap_err());
    let mut stream = query("v_endless").execute().await.unwrap();
    client.cancel_token().cancel().await.unwrap();
    errors.push(until_error(&mut stream).await);
    let slow = query("v_endless").max_memory(1 << 20).memory_soft_limits(0.2, 0.5);
    let mut stream = slow.execute().await.unwrap();
    let (admin, pid) = (admin_at(&url).await, client.backend_pid().unwrap());
    eventually("the server is idle", async || {
        backend_state(&admin, pid).await.as_deref() == Some("idle")
    })
    .await;
    errors.push(until_error(&mut stream).await);

    // Connecting: of what nobody listens at, the reason of the one attempt too.
    for config in [
        config_at(free_port().unwrap()).build().unwrap(),
        config_at(free_port().unwrap()).build().unwrap(),
        config("sslmode=require"),
        cluster().url_as("role_scram:wrong").parse().unwrap(),
        cluster().url_as("role_nothing").parse().unwrap(),
    ] {
        errors.push(FraiseClient::connect_with_config(config).await.unwrap_err());
    }
    let is_refused = errors.iter().position(|e| matches!(e, Error::Connection { .. })).unwrap();
    if let Error::Connection { mut attempts } = errors.remove(is_refused) {
        errors.push(*attempts.remove(0).error);
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let silent = config_at(listener.local_addr().unwrap().port()).connect_timeout(second);
    errors.push(FraiseClient::connect_with_config(silent.build().unwrap()).await.unwrap_err());

    // Settings of the connection.
    for (config, entity) in [
        (config("options=-c%20statement_timeout%3D1s"), "v_asleep"),
        (config_at(cluster().port()).read_timeout(second).build().unwrap(), "v_asleep"),
        (config_at(cluster().port()).max_message_size(1 << 20).build().unwrap(), "v_large"),
        (cluster().url_as("role_trust").parse().unwrap(), "v_one"),
    ] {
        let client = FraiseClient::connect_with_config(config).await.unwrap();
        errors.push(client.query::<RawJson>(entity).fetch_all().await.unwrap_err());
    }

    sql("alter role role_trust connection limit 0").await;
    let full = cluster().url_as("role_trust");
    errors.push(FraiseClient::connect(&full).await.unwrap_err());

    // The network.
    let proxy = Proxy::to_port(cluster().port()).await;
    let client =
        FraiseClient::connect_with_config(config_at(proxy.address.port()).build().unwrap());
    let client = client.await.unwrap();
    let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
    proxy.stall(true);
    errors.push(stream.cancel().await.unwrap_err());
    proxy.stall(false);
    let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
    proxy.cut_after(100_000);
    errors.push(until_error(&mut stream).await);
    errors
}

async fn until_error(stream: &mut fraiseql_wire::QueryStream<RawJson>) -> Error {
    loop {
        if let Err(e) = stream.next().await.expect("it ends by an error") {
            return e;
        }
    }
}

/// With 5432 in place of a port that was free.
fn with_usual_port(text: &str) -> String {
    let Some((before, behind)) = text.split_once("127.0.0.1:") else { return text.to_owned() };
    format!("{before}127.0.0.1:5432{}", behind.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// With 524288 in place of the number of buffered bytes, which depends on how rows arrive.
fn with_usual_amount(text: &str) -> String {
    let Some((before, after)) = text.split_once(" bytes are buffered") else {
        return text.to_owned();
    };
    let before = before.trim_end_matches(|c: char| c.is_ascii_digit());
    format!("{before}524288 bytes are buffered{after}")
}

/// Each error is as the guide says: its label, its advice, and word by word what it looks like.
#[tokio::test]
async fn errors_equal_those_of_the_guide() {
    let guide = read("ERROR_HANDLING_GUIDE.md");
    let messages = read("docs/error-messages.md");
    let rows = table(&guide, "Every error");
    let said: BTreeMap<&str, &str> =
        rows.iter().map(|row| (names(&row[1])[0], row[2].as_str())).collect();
    let statuses: BTreeMap<&str, &str> =
        rows.iter().map(|row| (names(&row[1])[0], row[3].as_str())).collect();
    let mut seen = BTreeMap::new();
    for error in errors().await {
        let (label, advice) = (error.category().as_str(), word(error.retry_advice()));
        let documented = said[label];
        match label {
            "server" => assert!(documented.starts_with("by [SQLSTATE]")),
            _ => assert!(documented.starts_with(advice), "{label}: {advice}, not {documented}"),
        }
        let (status, documented) = (status(&error).as_u16().to_string(), statuses[label]);
        assert!(documented.contains(&status), "{label}: {status}, not {documented}");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        for text in [Some(error.to_string()), source].into_iter().flatten() {
            // Postgres 13 has other words for it.
            let text = with_usual_port(&text).replace("SSL off", "no encryption");
            // The documented program has no modules.
            let text = with_usual_amount(&text).replace(module_path!(), "guides");
            assert!(messages.contains(&format!("`{text}")), "{label}: {text}");
        }
        *seen.entry(label).or_insert(0) += 1;
    }
    assert_eq!(seen.keys().collect::<Vec<_>>(), said.keys().collect::<Vec<_>>());
    // And there is no other.
    let source = read("src/error/advice.rs");
    let labels = source.split("fn as_str").nth(1).unwrap().split("impl ").next().unwrap();
    assert_eq!(labels.matches(" => \"").count(), said.len());
}

/// The advice for each code of Appendix A is what the crate does if a server reports the code. The
/// guide has the codes that are retried.
#[tokio::test]
async fn each_sqlstate_is_retried_as_the_guide_advises() {
    sql("create function fails(state text) returns jsonb language plpgsql as
         $$ begin raise exception 'it fails' using errcode = state; end $$")
    .await;
    let mut advice = BTreeMap::new();
    for row in table(&read("docs/error-messages.md"), "By SQLSTATE") {
        let (all, but) = row[1].split_once(", but ").unwrap_or((&row[1], ""));
        for class in names(&row[0]) {
            assert_eq!(advice.insert(class.to_owned(), all.to_owned()), None, "{class}");
        }
        let exception = but.rsplit('`').next().unwrap().trim();
        for code in names(but) {
            advice.insert(code.to_owned(), exception.to_owned());
        }
    }
    let guide = read("ERROR_HANDLING_GUIDE.md");
    let summary = guide.split("**By SQLSTATE**").nth(1).unwrap();
    for (code, advice) in advice.iter().filter(|(_, advice)| *advice != "no") {
        let part = summary.split(&format!("* *{advice}*: ")).nth(1).unwrap();
        assert!(part.split("\n* ").next().unwrap().contains(&format!("`{code}`")), "{code}");
    }
    let source = read("src/error/sqlstate.rs");
    let codes = source.lines().filter_map(|line| line.trim().split_once(" = \"")?.1.get(..5));
    let codes: Vec<_> = codes.filter(|code| *code != "00000").collect();
    assert!(codes.len() > 250, "{}", codes.len());
    let client = client().await;
    for code in codes {
        let query = client.query::<RawJson>("v_one").select_projection("fails($1)").bind(code);
        let error = query.fetch_all().await.unwrap_err();
        assert_eq!(error.sqlstate().map(|state| state.code()), Some(code), "{error}");
        let documented = advice.get(code).or_else(|| advice.get(&code[..2]));
        assert_eq!(documented.map(String::as_str), Some(word(error.retry_advice())), "{code}");
        assert_eq!(error.is_retriable(), error.retry_advice() != RetryAdvice::Never);
    }
}

/// The block of code of a section, in this language.
fn block<'a>(document: &'a str, section: &str, language: &str) -> &'a str {
    let section = document.split("\n## ").find(|text| text.starts_with(section)).unwrap();
    let fence = format!("```{language}\n");
    section.split(&fence).nth(1).unwrap().split("```").next().unwrap()
}

/// The environment and the connection string of the guide mean the same.
#[test]
fn settings_of_the_guide_exist() {
    let guide = read("PRODUCTION_DEPLOYMENT.md");
    // Variables are the process's, so it takes another one.
    if std::env::var_os("PGAPPNAME").is_none() {
        let mut process = std::process::Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "guides::settings_of_the_guide_exist"]);
        process.envs(block(&guide, "Settings", "sh").lines().filter_map(|l| l.split_once('=')));
        let output = process.output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.contains("test result: ok. 1 passed"), "{output}");
        return;
    }
    let environment = ConnectionConfig::from_env().unwrap();
    let string = ConnectionConfig::parse(block(&guide, "Settings", "text").trim()).unwrap();
    for keyword in [
        "host",
        "dbname",
        "user",
        "application_name",
        "sslmode",
        "sslrootcert",
        "channel_binding",
        "require_auth",
        "target_session_attrs",
    ] {
        let value = environment.get(keyword);
        assert!(value.as_ref().is_some_and(|value| !value.is_empty()), "{keyword}");
        assert_eq!(string.get(keyword), value, "{keyword}");
    }
    assert_eq!(environment.get("passfile").as_deref(), Some("/run/secrets/pgpass"));
    assert_eq!(string.connect_timeout(), Some(Duration::from_secs(5)));
    assert_eq!(string.keepalive_count(), Some(3));
    assert_eq!(string.tcp_user_timeout(), Some(Duration::from_secs(30)));
}

/// The defaults in the guide's table are those of the crate.
#[test]
fn production_guide_has_the_defaults() {
    let defaults = ConnectionConfig::parse("host=localhost user=u").unwrap();
    assert_eq!(defaults.ssl_mode(), SslMode::Prefer);
    assert_eq!((defaults.connect_timeout(), defaults.read_timeout()), (None, None));
    assert_eq!((defaults.keepalive_idle(), defaults.tcp_user_timeout()), (None, None));
    assert!(defaults.keepalive());
    let retry = RetryPolicy::default().max_attempts(5).initial_backoff(Duration::from_millis(100));
    assert_eq!(defaults.retry(), retry.max_backoff(Duration::from_secs(2)));
    let guide = read("PRODUCTION_DEPLOYMENT.md");
    for (setting, default) in [
        ("connect_timeout", "none".to_owned()),
        ("read_timeout", "none".to_owned()),
        ("statement_timeout", "the server's".to_owned()),
        ("retry", "5 attempts, up to 1.5 s of pauses".to_owned()),
        ("max_message_size", format!("{} GiB", defaults.max_message_size() >> 30)),
        ("statement_cache_capacity", defaults.statement_cache_capacity().to_string()),
    ] {
        let row = format!("| `{setting}` | {default} |");
        assert!(guide.contains(&row), "{row}");
    }
    assert_eq!(defaults.statement_timeout(), None);
}

/// The roles of the guide read what there is and what will be, and nothing else.
#[tokio::test]
async fn roles_of_the_guide_can_only_read() {
    let server = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let setup = "create role shop_owner login; create database shop owner shop_owner";
    for statement in setup.split(';') {
        admin_at(&server.url()).await.batch_execute(statement).await.unwrap();
    }
    // The roles of the guide have no password here: only the Unix socket requires none.
    let (folder, port) = (server.folder().display(), server.port());
    let url = |role: &str| format!("postgres://{role}@/shop?host={folder}&port={port}");
    let owner = admin_at(&url("shop_owner")).await;
    let documents = "as select to_jsonb(i) as data from generate_series(1, 100000) i";
    owner
        .batch_execute(&format!(
            "create schema app; create table app.tv_order {documents}; create schema hidden;
             create view app.v_order as select data from app.tv_order;
             create table hidden.t {documents}"
        ))
        .await
        .unwrap();
    let guide = read("PRODUCTION_DEPLOYMENT.md");
    let roles = block(&guide, "The role", "sql");
    let superuser = admin_at(&url("postgres")).await;
    superuser.batch_execute(roles).await.unwrap();
    let errors = read("ERROR_HANDLING_GUIDE.md");
    superuser.batch_execute(block(&errors, "Find out", "sql")).await.unwrap();
    owner.batch_execute("create view app.v_new as select data from hidden.t").await.unwrap();

    for (role, limit) in [("shop_api", "30s"), ("shop_body", "6min"), ("shop_export", "2h")] {
        let client = FraiseClient::connect(&url(role)).await.unwrap();
        for entity in ["v_order", "app.v_new", "tv_order"] {
            assert_eq!(client.query::<u64>(entity).count().await.unwrap(), 100_000, "{entity}");
        }
        let rows = client.query::<u64>("tv_order").parallel(2).fetch_all().await.unwrap();
        assert_eq!(rows.len(), 100_000);
        let error = client.query::<u64>("hidden.t").execute().await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(&sqlstate::INSUFFICIENT_PRIVILEGE), "{error}");
        let session = admin_at(&url(role)).await;
        let shown = session.query_one("show statement_timeout", &[]).await.unwrap();
        assert_eq!(shown.get::<_, String>(0), limit);
        // Also when it takes its guard off.
        session.batch_execute("set default_transaction_read_only = off").await.unwrap();
        for refused in [
            "create table app.t (i int)",
            "create table public.t (i int)",
            "create temporary table t (i int)",
            "insert into app.tv_order values ('1')",
        ] {
            let error = session.batch_execute(refused).await.unwrap_err();
            let code = error.code().map(|code| code.code());
            assert_eq!(code, Some(sqlstate::INSUFFICIENT_PRIVILEGE.code()), "{role}: {refused}");
        }
        // Where a stream that waits is seen.
        let large =
            client.query::<RawJson>("tv_order").select_projection("to_jsonb(repeat('x', 1000))");
        let mut stream = large.execute().await.unwrap();
        stream.pause().await.unwrap();
        let holds = block(&guide, "Long streams and vacuum", "sql").trim().trim_end_matches(';');
        let of_client = format!("select * from ({holds}) s where pid = $1 and state = 'active'");
        let pid = i32::try_from(client.backend_pid().unwrap()).unwrap();
        assert_eq!(superuser.query(&of_client, &[&pid]).await.unwrap().len(), 1);
        stream.cancel().await.unwrap();
        assert_eq!(superuser.query(&of_client, &[&pid]).await.unwrap().len(), 0);
        let read_write = format!("{}&target_session_attrs=read-write", url(role));
        FraiseClient::connect(&read_write).await.unwrap_err();
        let primary = format!("{}&target_session_attrs=primary", url(role));
        FraiseClient::connect(&primary).await.unwrap();
    }
    server.stop();
}

/// Alerts and metrics that the guides name are there.
#[test]
fn guides_name_only_existing_items() {
    let there =
        ["docs/metrics-catalog.md", "docs/prometheus-alerts.yml", "docs/METRICS.md"].map(read);
    for guide in ["ERROR_HANDLING_GUIDE.md", "PRODUCTION_DEPLOYMENT.md"].map(read) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let named: Vec<_> = names(&guide)
            .into_iter()
            .map(|name| name.split(|c| !is_name(c)).next().unwrap())
            .filter(|name| {
                ["FraiseqlWire", "fraiseql_wire_", "db."].iter().any(|p| name.starts_with(p))
            })
            .collect();
        assert!(named.len() > 3, "{named:?}");
        for name in named {
            assert!(there.iter().any(|text| text.contains(name)), "{name}");
        }
    }
    // And every alert is in the one for those who are on call.
    let guide = read("PRODUCTION_DEPLOYMENT.md");
    for alert in there[1].split("- alert: ").skip(1).map(|text| text.lines().next().unwrap()) {
        assert!(guide.contains(&format!("`{alert}`")), "{alert}");
    }
}

/// Of time limits on the way: which end a stream that is paused beyond them, and which do not.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn paused_stream_is_ended_by_the_settings_of_the_guide() {
    let server = cluster().port();
    let poolers = [
        ("transaction", "query_timeout = 5", true),
        ("transaction", "client_idle_timeout = 1\nserver_idle_timeout = 1", false),
        ("session", "client_idle_timeout = 1\nidle_transaction_timeout = 1", false),
        ("transaction", "idle_transaction_timeout = 1", false),
        ("transaction", "server_lifetime = 1", false),
    ];
    let poolers = poolers
        .map(|(mode, settings, ends)| (Daemon::pgbouncer_with(mode, settings, server), ends));
    let second = Duration::from_secs(1);
    let mut configs: Vec<_> =
        poolers.iter().map(|(pooler, ends)| (config_at(pooler.port), *ends)).collect();
    configs.push((config_at(server).param("tcp_user_timeout", "5000"), true));
    configs.push((config_at(server).tcp_user_timeout(second), false));
    let every_second = config_at(server).keepalive_idle(second).keepalive_interval(second);
    configs.push((every_second.keepalive_count(1), false));
    // While the client reads nothing, only `timeout client` of HAProxy counts.
    let proxies = [("2s", "1h", true), ("1h", "2s", false)]
        .map(|(client, back, ends)| (Daemon::haproxy_with(client, back, &[server]), ends));
    configs.extend(proxies.iter().map(|(proxy, ends)| (config_at(proxy.port), *ends)));
    let mut streams = Vec::new();
    for (i, (config, ends)) in configs.into_iter().enumerate() {
        let name = format!("paused_{i}_{}", if ends { "ends" } else { "stays" });
        let config = config.application_name(name).build().unwrap();
        let client = FraiseClient::connect_with_config(config).await.unwrap();
        let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream.pause().await.unwrap();
        streams.push((i, ends, client, stream));
    }
    let admin = admin_at(&cluster().url()).await;
    let query =
        "select count(*) from pg_stat_activity where state = 'active' and application_name like $1";
    let at_work = async |names| admin.query_one(query, &[&names]).await.unwrap().get::<_, i64>(0);
    let stay = at_work("paused_%_stays").await;
    assert_eq!(stay as usize, streams.iter().filter(|(_, ends, ..)| !ends).count());
    eventually("those that end have ended", async || at_work("paused_%_ends").await == 0).await;
    assert_eq!(at_work("paused_%_stays").await, stay);
    for (i, ends, client, mut stream) in streams {
        stream.resume().await.unwrap();
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) if stream.stats().total_rows_received > 200_000 => break None,
                Ok(_) => {}
                Err(e) => break Some(e),
            }
        };
        assert_eq!(error.is_some(), ends, "{i}: {error:?}");
        // PgBouncer says why, where it may be in the middle of a row.
        let is_lost = error.as_ref().is_none_or(|e| matches!(e, Error::ConnectionClosed { .. }));
        assert!(is_lost || i == 0, "{i}: {error:?}");
        drop(stream);
        assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1, "{i}");
    }
}

/// Nobody free at a pooler is its own error, which is not retriable here.
#[tokio::test]
async fn pooler_without_a_free_connection_reports_the_error_of_the_guide() {
    let settings = "transaction\nquery_wait_timeout = 3\nmax_db_connections = 1";
    let pooler = Daemon::pgbouncer_in(settings, cluster().port());
    let url = crate::support::url_at(([127, 0, 0, 1], pooler.port));
    // What is in flight through a pooler may be more than the default.
    let busy = config_at(pooler.port).drain_limit(256 << 20).build().unwrap();
    let busy = FraiseClient::connect_with_config(busy).await.unwrap();
    let mut stream = busy.query::<RawJson>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    let waits = FraiseClient::connect(&url).await.unwrap();
    let error = waits.query::<u64>("v_one").fetch_all().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::PROTOCOL_VIOLATION), "{error}");
    assert!(error.to_string().contains("query_wait_timeout") && !error.is_retriable(), "{error}");
    stream.cancel().await.unwrap();
    assert_eq!(waits.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
}

/// A query can be stopped when the server takes no more connections.
#[tokio::test]
async fn cancel_request_needs_no_connection_slot() {
    let setup = Setup {
        hba: REQUIRE_PASSWORD,
        settings: "-c max_connections=2 -c superuser_reserved_connections=0 -c max_wal_senders=0",
        ..Setup::default()
    };
    let server = Cluster::start_with(&setup).unwrap();
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let admin = admin_at(&server.url()).await;
    let endless = "create view v_endless as select to_jsonb(i) as data from (select generate_series(1, 2000000000) i) n";
    admin.batch_execute(endless).await.unwrap();
    let error = FraiseClient::connect(&server.url()).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::TOO_MANY_CONNECTIONS), "{error}");
    let pid = client.backend_pid();
    let mut stream = client.query::<RawJson>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), pid, "it was stopped, and not closed");
    server.stop();
}
