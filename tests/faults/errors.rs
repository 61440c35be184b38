//! Texts and advice of errors, each provoked by its cause; and messages of a server that must not
//! hide an error or cause a false one.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{
    admin_at,
    certificates::Authority,
    client, cluster,
    cluster::{Cluster, Setup, free_port},
    eventually,
    scripted::{self, Scripted, Step, message},
    sql,
};
use fraiseql_wire::{
    ConnectionConfig, Error, ErrorCategory, FraiseClient, QueryBuilder, QueryStream, RawJson,
    RetryAdvice, SslMode, sqlstate,
};
use futures_util::StreamExt;
use serde_json::Value;

const MIB: usize = 1 << 20;

fn guide() -> String {
    let path = format!("{}/docs/error-messages.md", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The rows of the tables of the guide's section on advice: the situation, and the last cell's
/// text.
fn advice() -> BTreeMap<String, String> {
    let guide = guide();
    let section = guide.split("\n## Advice\n").nth(1).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains("` |"));
    let cells = |row: &str| -> Vec<String> {
        row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(|row| {
        let cells = cells(row);
        let advice = cells.last().unwrap().trim_matches(['`', '|', ' ']).to_owned();
        (cells[0].replace('`', ""), advice)
    })
    .collect()
}

async fn refused(url: &str) -> Error {
    FraiseClient::connect(url).await.expect_err(url)
}

const HBA: &str = "
local all peer peer
local all postgres trust
host  all postgres all md5
host  all plain,group,missing,full,limited all trust
host  all role_scram all scram-sha-256
host  all rejected all reject
hostssl all certified all cert
";

/// A server with few connections, for rejected logins.
async fn refusing_server() -> Cluster {
    let authority = Authority::new("the authority");
    let pair = authority.server("localhost", &["localhost", "127.0.0.1"]);
    let server = Cluster::start_with(&Setup {
        hba: HBA,
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt \
                   -c ssl_key_file={folder}/server.key -c ssl_ca_file={folder}/ca.crt \
                   -c max_connections=4 -c superuser_reserved_connections=1 -c max_wal_senders=0",
        files: &[
            ("server.crt", &pair.certificate),
            ("server.key", &pair.key),
            ("ca.crt", &authority.pem),
        ],
        ..Setup::default()
    });
    let server = server.unwrap();
    let admin = admin_at(&server.url()).await;
    for statement in [
        "create role plain login",
        "create role \"group\"",
        "create role full login connection limit 0",
        "create role limited login",
        "create role role_scram login password 'scram-secret'",
        "create role rejected login",
        "create role certified login",
        "create role peer login",
        "create role owner",
        "create database no_connect",
        "revoke connect on database no_connect from public",
        "create database busy connection limit 0",
        "create view v_one as select '1'::json as data",
        "create schema ext",
        "create extension ltree schema ext",
        "create table t (data jsonb)",
        "insert into t values ('{}')",
        "alter table t enable row level security",
        "create table hidden (data jsonb)",
        "create view v_hidden as select data from hidden",
        "alter view v_hidden owner to owner",
        "create view v_column as select '1'::json as document",
        "create function f() returns json language plpgsql as \
         $$ begin return (select data from missing_in_f); end $$",
        "create view v_function as select f() as data",
        "create view v_bytes as select to_json(convert_from('\\xff', 'UTF8')) as data",
        "create view v_asleep as select to_json(pg_sleep(600)::text) as data",
        "create view \"V_Upper\" as select '1'::json as data",
        "grant select on t, v_one, v_hidden, v_function to plain",
    ] {
        admin.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
    server
}

/// Every advice of the guide, with the error that its situation provokes, ends that error's text.
#[tokio::test]
async fn each_advice_of_the_guide_is_given_for_its_cause() {
    let server = refusing_server().await;
    let port = server.port();
    let url = |user: &str, database: &str, more: &str| {
        format!("postgres://{user}@127.0.0.1:{port}/{database}?sslmode=disable{more}")
    };
    let superuser = server.url();
    let superuser = superuser.trim_start_matches("postgres://").split('@').next().unwrap();
    let mut errors: Vec<(&str, Error)> = Vec::new();

    // Queries, by a superuser and by a role with few privileges.
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let query = |entity: &str| client.query::<RawJson>(entity);
    errors.push(("no such relation", query("missing").fetch_all().await.unwrap_err()));
    errors.push(("the name in another case", query("v_upper").fetch_all().await.unwrap_err()));
    let aliased = query("v_one").where_sql("o.data is null");
    errors.push(("raw SQL names another relation", aliased.fetch_all().await.unwrap_err()));
    errors.push((
        "a function of the view names a missing relation",
        query("v_function").fetch_all().await.unwrap_err(),
    ));
    errors.push(("no column data", query("v_column").fetch_all().await.unwrap_err()));
    let column = query("v_one").where_sql("id = 1");
    errors.push(("raw SQL names a missing column", column.fetch_all().await.unwrap_err()));
    let typed = query("t").where_sql("(data->>'path')::ltree is not null");
    errors.push(("the type of an extension is not found", typed.fetch_all().await.unwrap_err()));
    errors.push((
        "a function converts bytes that are not text",
        query("v_bytes").fetch_all().await.unwrap_err(),
    ));
    let plain = FraiseClient::connect(&url("plain", "postgres", "")).await.unwrap();
    errors.push((
        "no privilege on the relation",
        plain.query::<RawJson>("hidden").fetch_all().await.unwrap_err(),
    ));
    errors.push((
        "the owner of the view has no privilege on its table",
        plain.query::<RawJson>("v_hidden").fetch_all().await.unwrap_err(),
    ));
    drop(plain);
    let secured = url("plain", "postgres", "&options=-crow_security%3Doff");
    let secured = FraiseClient::connect(&secured).await.unwrap();
    errors
        .push(("row_security = off", secured.query::<RawJson>("t").fetch_all().await.unwrap_err()));
    drop(secured);
    let hurried = url(superuser, "postgres", "&options=-cstatement_timeout%3D200");
    let hurried = FraiseClient::connect(&hurried).await.unwrap();
    let asleep = hurried.query::<RawJson>("v_asleep").fetch_all().await.unwrap_err();
    errors.push(("statement_timeout", asleep));
    hurried.close().await.unwrap();

    // Logins.
    for (situation, url) in [
        (
            "an option that only a superuser may set",
            url("plain", "postgres", "&options=-clog_statement%3Dnone"),
        ),
        ("no CONNECT on the database", url("plain", "no_connect", "")),
        ("no such database", url("plain", "nowhere", "")),
        ("the limit of the role", url("full", "postgres", "")),
        ("the limit of the database", url("plain", "busy", "")),
        ("wrong password", url("role_scram:wrong", "postgres", "")),
        ("no entry in pg_hba.conf", url("nobody", "postgres", "")),
        ("an entry that rejects", url("rejected", "postgres", "")),
        (
            "no client certificate",
            url("certified", "postgres", "").replace("sslmode=disable", "sslmode=require"),
        ),
        ("no such role", url("missing", "postgres", "")),
        ("a role without LOGIN", url("group", "postgres", "")),
        (
            "peer authentication of another user",
            format!("host={} port={port} user=peer dbname=postgres", server.folder().display()),
        ),
        ("nothing listens there", format!("postgres://u@127.0.0.1:{}/d", free_port().unwrap())),
        ("no socket in the directory", "host=/no/such/folder user=u".into()),
        ("the name does not resolve", "host=no-such-host.invalid user=u".into()),
        (
            "no server has the role of target_session_attrs",
            url(superuser, "postgres", "&target_session_attrs=standby"),
        ),
    ] {
        errors.push((situation, refused(&url).await));
    }
    let mut taken = Vec::new();
    let full = loop {
        match FraiseClient::connect(&url("plain", "postgres", "")).await {
            Ok(client) => taken.push(client),
            Err(e) => break e,
        }
        assert!(taken.len() < 5, "there are fewer connections");
    };
    errors.push(("max_connections", full));
    drop(taken);

    // Errors that no server here reports on request.
    let fatal = |code: &'static str, text: &'static str, routine: &'static str| {
        let severity = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', text)];
        let routine: &[(u8, &str)] = if routine.is_empty() { &[] } else { &[(b'R', routine)] };
        scripted::fields(b'E', &[&severity[..], routine].concat())
    };
    for (situation, answer) in [
        (
            "authentication_timeout",
            fatal("57014", "canceling authentication due to timeout", "ProcessInterrupts"),
        ),
        ("a pooler's limit", fatal("53300", "no more connections allowed (max_client_conn)", "")),
        ("a pooler refuses the login", fatal("28000", "no such user", "")),
        (
            "the session that exported the snapshot has ended",
            fatal("22023", "invalid snapshot identifier", "ImportSnapshot"),
        ),
        ("closed while logging in", Vec::new()),
        (
            "the server cannot start a process",
            b"Ecould not fork new process for connection: Resource temporarily unavailable\n\0"
                .to_vec(),
        ),
    ] {
        let server = Scripted::start(vec![vec![Step::ExpectStartup, Step::Send(answer)]]).await;
        errors.push((situation, refused(&server.url()).await));
        server.done().await;
    }
    let server = Scripted::start(vec![vec![Step::ExpectStartup]]).await;
    let newer = format!("{}&max_protocol_version=3.2", server.url());
    errors.push(("closed after max_protocol_version=3.2", refused(&newer).await));

    let mut table = advice();
    // By a process of its own: `files_unreadable_without_a_free_descriptor_are_retriable`.
    assert!(table.remove("a file cannot be read because no descriptors are left").is_some());
    for (situation, error) in errors {
        let advice =
            table.remove(situation).unwrap_or_else(|| panic!("{situation} is not in the guide"));
        let text = error.to_string();
        assert!(text.ends_with(&format!("; {advice}")), "{situation}: {text}");
        if let Some(code) = error.sqlstate() {
            let row = format!("| `{}` | `{advice}` |", code.code());
            assert!(guide().contains(&row), "{situation}: {row}");
        }
    }
    assert_eq!(table, BTreeMap::new(), "the guide has more than what is provoked");
}

/// A role that does not fit is no error of the network, of a server that is down, or of a port.
#[tokio::test]
async fn server_of_another_role_is_not_reported_as_down() {
    for attrs in ["standby", "read-only"] {
        let url = format!("{}?target_session_attrs={attrs}", cluster().url());
        let error = refused(&url).await;
        let text = error.to_string();
        for wrong in ["I/O error", "check host and port", "is running"] {
            assert!(!text.contains(wrong), "{attrs}: {text}");
        }
        assert!(text.contains("target_session_attrs"), "{attrs}: {text}");
        assert!(error.is_retriable(), "roles change");
    }
    // Beside a host that is down, both are advised about.
    let server = format!("127.0.0.1:{}", cluster().port());
    let both = format!("127.0.0.1:{},{server}", free_port().unwrap());
    let url = format!("{}?target_session_attrs=standby", cluster().url().replace(&server, &both));
    let text = refused(&url).await.to_string();
    assert!(text.contains("check host and port") && text.contains("wait until a host"), "{text}");
}

/// As psql lists them: the refusal of the way that is preferred, then that of the other.
#[tokio::test]
async fn rejections_of_several_attempts_are_listed_in_order() {
    let server = refusing_server().await;
    let url =
        format!("postgres://role_scram:wrong@127.0.0.1:{}/postgres?sslmode=prefer", server.port());
    let admin = admin_at(&server.url()).await;
    let hba = server.folder().join("data/pg_hba.conf");
    let over_tls = "hostssl all role_scram all scram-sha-256\nhost all postgres all md5\n";
    admin
        .batch_execute(&format!(
            "copy (select regexp_split_to_table('{over_tls}', '\n')) to '{}'",
            hba.display()
        ))
        .await
        .unwrap();
    server.control(&["reload"]);
    // Until the file has been read again.
    eventually("the other way is refused by another rule", async || {
        refused(&url).await.to_string().contains("28000")
    })
    .await;
    let error = refused(&url).await;
    assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_PASSWORD));
    let text = error.to_string();
    let (first, second) = (text.find("28P01").unwrap(), text.find("28000").unwrap());
    assert!(first < second && text.contains("; after that, 127.0.0.1:"), "{text}");
    let psql = Command::new("psql").args(["-At", "-c", "select 1", &url]).output().unwrap();
    let psql = String::from_utf8_lossy(&psql.stderr).into_owned();
    let place = |what: &str| psql.find(what).unwrap_or_else(|| panic!("{psql}"));
    assert!(place("password authentication failed") < place("no pg_hba.conf entry"), "{psql}");
}

/// `main() -> Result<()>` prints the `Debug` of an error.
#[tokio::test]
async fn debug_of_an_error_is_its_message_first_and_nothing_that_is_none() {
    let client = client().await;
    let error = client.query::<Value>("v_missing").fetch_all().await.unwrap_err();
    let (display, debug) = (error.to_string(), format!("{error:?}"));
    assert!(debug.starts_with(&display), "{debug}");
    assert!(!debug.contains("None") && debug.len() < display.len() + 150, "{debug}");
    assert!(debug.contains("[Server, position: ") && !debug.contains('\n'), "{debug}");
    assert_eq!(format!("{error:#?}"), debug);
    let db = error.as_db_error().unwrap();
    let debug = format!("{db:?}");
    assert!(debug.starts_with(&db.to_string()) && !debug.contains("None"), "{debug}");

    let error =
        refused(&format!("postgres://u:planted@127.0.0.1:{}/d", free_port().unwrap())).await;
    let debug = format!("{error:?}");
    assert!(
        debug.starts_with("could not connect") && debug.contains("check host and port"),
        "{debug}"
    );
    assert!(!debug.contains("None") && !debug.contains("planted"), "{debug}");
    let Error::Connection { attempts } = error else { panic!("{error:?}") };
    let debug = format!("{:?}", attempts[0].error);
    assert!(debug.contains("Connection refused"), "the cause: {debug}");
}

async fn rows_and_error(mut stream: QueryStream<RawJson>) -> (usize, Option<Error>) {
    let mut rows = 0;
    while let Some(row) = stream.next().await {
        match row {
            Ok(_) => rows += 1,
            Err(e) => return (rows, Some(e)),
        }
    }
    (rows, None)
}

/// Texts of 17 MiB, of a value and by `raise`: the error that it is, in bounded memory, and the
/// connection stays.
#[tokio::test]
async fn errors_and_notices_of_any_length_are_handled() {
    sql("create view v_long_value as
           select to_jsonb(case when i < 500 then i else repeat(chr(i - 380), 17825792)::int end) as data
           from generate_series(1, 1000) i;
         create function raises(level text, size int) returns jsonb language plpgsql as $$
           begin
             if level = 'notice' then raise notice '%', repeat('n', size);
             else raise exception '%', repeat('e', size) using detail = repeat('d', size), errcode = '22012'; end if;
             return '1';
           end $$;
         create view v_long_notice as
           select case when i = 500 then raises('notice', 17825792) else to_jsonb(i) end as data
           from generate_series(1, 1000) i;
         create view v_long_error as select raises('exception', 17825792) as data")
    .await;
    let client = client().await;
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    client.on_notice(move |notice| heard.lock().unwrap().push(notice.message().len()));
    let pid = client.backend_pid();
    for memory in [4096] {
        let query = |entity: &str| client.query::<RawJson>(entity).max_memory(memory);
        // Rows before it are delivered.
        let stream = query("v_long_value").execute().await.unwrap();
        let (rows, error) = rows_and_error(stream).await;
        assert_eq!(rows, 499);
        let error = error.unwrap();
        assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_TEXT_REPRESENTATION), "{error}");
        assert!(error.to_string().len() < 20_000);

        let mut stream = query("v_long_notice").execute().await.unwrap();
        let mut rows = Vec::new();
        while let Some(row) = stream.next().await {
            rows.push(row.unwrap().decode::<usize>().unwrap());
        }
        let expected: Vec<_> = (1..=1000).map(|i| if i == 500 { 1 } else { i }).collect();
        assert_eq!(rows, expected);
        let peak = stream.stats().peak_memory;
        assert!(peak <= memory + (64 << 10), "{peak} of {memory}");
        assert_eq!(*notices.lock().unwrap(), [8192]);
        notices.lock().unwrap().clear();

        let error = query("v_long_error").fetch_all().await.unwrap_err();
        let db = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
        assert_eq!((db.message().len(), db.detail().unwrap().len()), (8192, 8192));
        assert_eq!(error.sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO));
    }
    assert_eq!(client.backend_pid(), pid, "the connection is not lost by it");

    // While a dropped stream is drained: the notice comes when the query has been stopped, or
    // before.
    let config = ConnectionConfig::parse(&cluster().url()).unwrap().to_builder();
    let config = config.drain_limit(256 * MIB).cancel_timeout(Duration::from_secs(60)).build();
    let client = FraiseClient::connect_with_config(config.unwrap()).await.unwrap();
    let pid = client.backend_pid();
    for _ in 0..3 {
        let mut stream = client.query::<RawJson>("v_long_notice").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        client.ping().await.unwrap();
    }
    assert_eq!(client.backend_pid(), pid);
}

/// The same where a client reads without rows: in a login that is over, in a ping, and in a drain.
#[tokio::test]
async fn long_messages_are_read_wherever_they_may_come() {
    let long = "x".repeat(17 * MIB);
    let notice = scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', &long)]);
    let parameter = message(b'S', format!("search_path\0{long}\0").as_bytes());
    let notification = message(b'A', format!("\0\0\0\x01jobs\0{long}\0").as_bytes());
    let all = [notice, parameter, notification].concat();
    let key = message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
    let known = message(b'S', b"search_path\0app\0");
    let failure = |severity: &str| {
        let fields = [(b'S', severity), (b'V', severity), (b'C', "P0001"), (b'M', &*long)];
        scripted::fields(b'E', &fields)
    };
    let script = vec![
        Step::ExpectStartup,
        Step::Send([scripted::auth_ok(), known, all.clone(), key, scripted::ready()].concat()),
        // The ping.
        Step::Expect(b"Q\0\0\0\x05\0".to_vec()),
        Step::Send([all.clone(), message(b'I', b""), all.clone(), scripted::ready()].concat()),
        // Between the rows. One of them looks like a part of a message, and the other way round.
        Step::ExpectQuery,
        Step::Send(
            [
                scripted::begin_json(),
                scripted::row("1"),
                all.clone(),
                scripted::row("2"),
                scripted::complete(),
                scripted::ready(),
            ]
            .concat(),
        ),
        // At the end of the session.
        Step::ExpectQuery,
        Step::Send([scripted::begin_json(), scripted::row("1"), failure("FATAL")].concat()),
    ];
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    assert_eq!(client.parameter("search_path"), None, "rather none than one that is out of date");
    client.ping().await.unwrap();
    let stream = client.query::<RawJson>("v").execute().await.unwrap();
    let (rows, error) = rows_and_error(stream).await;
    assert!(rows == 2 && error.is_none(), "{rows}, {error:?}");
    let stream = client.query::<RawJson>("v").execute().await.unwrap();
    let (rows, error) = rows_and_error(stream).await;
    assert_eq!((rows, error.unwrap().sqlstate()), (1, Some(&sqlstate::RAISE_EXCEPTION)));
    server.done().await;

    // A ping that fails.
    let mut script = scripted::login();
    script.push(Step::Expect(b"Q\0\0\0\x05\0".to_vec()));
    script.push(Step::Send([failure("ERROR"), scripted::ready()].concat()));
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    let failed = client.ping().await.unwrap_err();
    assert_eq!(failed.sqlstate(), Some(&sqlstate::RAISE_EXCEPTION), "{}", failed.category());
    // A ping that the server answers keeps its connection.
    drop(client);
    server.done().await;

    // An error that ends the login, after a notice.
    let mut script = vec![Step::ExpectStartup];
    let refusal = {
        let fields = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', "P0001"), (b'M', &*long)];
        scripted::fields(b'E', &fields)
    };
    script.push(Step::Send([scripted::auth_ok(), all, refusal].concat()));
    let server = Scripted::start(vec![script]).await;
    let error = refused(&server.url()).await;
    assert_eq!(error.sqlstate(), Some(&sqlstate::RAISE_EXCEPTION), "{}", error.to_string().len());
    server.done().await;
}

/// A stream that is dropped in the middle of such a message is drained from there.
#[tokio::test]
async fn stream_dropped_within_a_long_message_is_drained() {
    let long = "D\0\0\0\x0c\0\x01\0\0\0\x021".repeat(MIB / 4);
    let notice =
        scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', &"x".repeat(MIB))]);
    // A text that is full of rows; without the NULs that would end it.
    let text = long.replace('\0', "y");
    let rows = scripted::fields(b'N', &[(b'S', "NOTICE"), (b'C', "00000"), (b'M', &text)]);
    for message in [notice, rows] {
        for cut in [6, 100, 70_000, message.len() - 1] {
            let (reached, reaches) = tokio::sync::oneshot::channel();
            let (go, wait) = tokio::sync::oneshot::channel();
            let mut script = scripted::login();
            script.extend([
                Step::ExpectQuery,
                Step::Send(scripted::begun(&["1"])),
                Step::Send(message[..cut].to_vec()),
                Step::Signal(reached),
                Step::Wait(wait),
                Step::Send(message[cut..].to_vec()),
                Step::Send([scripted::row("2"), scripted::complete(), scripted::ready()].concat()),
                Step::Expect(b"Q\0\0\0\x05\0".to_vec()),
                Step::Send([message_empty(), scripted::ready()].concat()),
            ]);
            let cancel = vec![Step::Expect(scripted::cancel_request())];
            let server = Scripted::start(vec![script, cancel]).await;
            let config: ConnectionConfig = server.url().parse().unwrap();
            // Draining 1 MiB can take longer than 2 s on a busy machine.
            let config = config.to_builder().cancel_timeout(Duration::from_secs(60)).build();
            let client = FraiseClient::connect_with_config(config.unwrap()).await.unwrap();
            let mut stream = client.query::<RawJson>("v").execute().await.unwrap();
            stream.next().await.unwrap().unwrap();
            reaches.await.unwrap();
            drop(stream);
            go.send(()).unwrap();
            client.ping().await.unwrap();
            drop(client);
            server.done().await;
        }
    }
}

fn message_empty() -> Vec<u8> {
    message(b'I', b"")
}

/// Other engines leave fields out. That is no reason to lose the error, or the connection.
#[tokio::test]
async fn error_without_a_sqlstate_keeps_the_connection() {
    let mut script = scripted::login();
    for fields in [&[(b'S', "ERROR"), (b'M', "no code")][..], &[(b'M', "only a message")], &[]] {
        script.extend([
            Step::ExpectQuery,
            Step::Send([scripted::fields(b'E', fields), scripted::ready()].concat()),
        ]);
    }
    let server = Scripted::start(vec![script]).await;
    let client = FraiseClient::connect(&server.url()).await.unwrap();
    for text in ["no code", "only a message", "without a message"] {
        let error = client.query::<Value>("v").fetch_all().await.unwrap_err();
        assert_eq!(error.sqlstate(), Some(&sqlstate::INTERNAL_ERROR), "{error}");
        assert!(error.to_string().contains(text) && !error.is_retriable(), "{error}");
    }
    drop(client);
    server.done().await;
}

/// The postmaster's error when it cannot start a process: in the answer to a start-up message, in
/// pieces, and in that to the request for TLS.
#[tokio::test]
async fn server_that_cannot_start_a_process_is_skipped() {
    let text = "could not fork new process for connection: Cannot allocate memory";
    let error = format!("E{text}\n\0").into_bytes();
    let tls_request = Step::Expect(b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec());
    let whole = || vec![Step::ExpectStartup, Step::Send(error.clone())];
    let pieces = || {
        let (go, wait) = tokio::sync::oneshot::channel();
        let steps = [
            Step::ExpectStartup,
            Step::Send(error[..7].to_vec()),
            Step::Signal(go),
            Step::Wait(wait),
            Step::Send(error[7..].to_vec()),
        ];
        Vec::from(steps)
    };
    let unterminated = || vec![Step::ExpectStartup, Step::Send(error[..20].to_vec())];
    let over_tls = || vec![tls_request, Step::Send(error.clone())];
    let mut cases: Vec<(Vec<Step>, &str, Option<&str>)> = vec![
        (whole(), "disable", Some(text)),
        (pieces(), "disable", Some(text)),
        (unterminated(), "disable", Some("could not fork new")),
        (over_tls(), "prefer", None),
    ];
    let next = || cluster().port();
    for (script, mode, shown) in cases.drain(..) {
        let server = Scripted::start(vec![script]).await;
        let url = |ports: &[u16]| {
            let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            format!("postgres://role_trust@{}/postgres?sslmode={mode}", hosts.join(","))
        };
        let port = server.address.port();
        let both = FraiseClient::connect(&url(&[port, next()])).await.unwrap();
        assert_eq!(both.connection_info().unwrap().port, next(), "{mode}");
        server.done().await;

        // Alone it can be tried again. (Nothing listens there any more: then it is another error.)
        let again = match mode {
            "disable" => vec![Step::ExpectStartup, Step::Send(error.clone())],
            _ => {
                let request = Step::Expect(b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec());
                vec![request, Step::Send(error.clone())]
            }
        };
        let server = Scripted::start(vec![again]).await;
        let failed = refused(&url(&[server.address.port()])).await;
        server.done().await;
        assert_eq!(failed.category(), ErrorCategory::Connection, "{failed}");
        assert_eq!(failed.retry_advice(), RetryAdvice::AfterDelay, "{failed}");
        let line = failed.to_string();
        assert!(line.contains("could not start a session"), "{line}");
        // The text of an unauthenticated answer about TLS is not shown.
        assert_eq!(line.contains("could not fork"), shown.is_some(), "{line}");
    }
}

/// If the peer does not know the protocol version, the error names the version, whether the peer
/// closes the connection or stays silent.
#[tokio::test]
async fn unsupported_protocol_version_is_named_in_the_error() {
    for (step, mode) in [
        (Step::Close, "max_protocol_version=latest"),
        (Step::Reset, "max_protocol_version=3.2"),
        (Step::Silence, "max_protocol_version=latest&connect_timeout=1"),
    ] {
        let server = Scripted::start(vec![vec![Step::ExpectStartup, step]]).await;
        let url = format!("postgres://u@{}/d?sslmode=disable&{mode}", server.address);
        let error = tokio::time::timeout(Duration::from_secs(30), FraiseClient::connect(&url));
        let error = error.await.expect("it is bounded").unwrap_err();
        let line = error.to_string();
        assert!(line.contains("3.2") && line.contains("max_protocol_version"), "{mode}: {line}");
        assert!(error.is_retriable(), "{mode}: {line}");
        server.done().await;
        // With the usual version the text is about something else.
        let server = Scripted::start(vec![vec![Step::ExpectStartup]]).await;
        let line = refused(&server.url()).await.to_string();
        assert!(!line.contains("max_protocol_version"), "{line}");
        server.done().await;
    }
    // Neither is it when the server has answered.
    let asks = vec![Step::ExpectStartup, Step::Send(message(b'R', b"\0\0\0\x03"))];
    let server = Scripted::start(vec![asks]).await;
    let line = refused(&format!("{}&max_protocol_version=3.2", server.url())).await.to_string();
    assert!(line.contains("closed the connection") && !line.contains("max_protocol"), "{line}");
}

/// A proxy in front of several servers may send more rows than the statement can return.
#[tokio::test]
async fn more_rows_than_a_statement_asks_for_are_an_error() {
    let serve = async |rows: &[&str]| {
        let mut script = scripted::login();
        script.extend([Step::ExpectQuery, Step::Send(scripted::answer(rows))]);
        // It may be stopped, or not: the rest of the answer has arrived.
        let server = Scripted::start(vec![script]).await;
        let client = FraiseClient::connect(&server.url()).await.unwrap();
        (client, server)
    };
    let too_many = |error: Error| {
        assert_eq!(error.category(), ErrorCategory::Protocol, "{error}");
        assert!(error.to_string().contains("received more rows"), "{error}");
    };
    let (client, _server) = serve(&["10", "20"]).await;
    too_many(client.query::<u64>("v").count().await.unwrap_err());
    let (client, _server) = serve(&["true", "false"]).await;
    too_many(client.query::<u64>("v").exists().await.unwrap_err());
    let (client, _server) = serve(&["[1]", "[2]"]).await;
    too_many(client.query::<u64>("v").explain(false).await.unwrap_err());
    let (client, _server) = serve(&["1", "2"]).await;
    too_many(client.query::<u64>("v").fetch_one().await.unwrap_err());
    let (client, _server) = serve(&["1", "2"]).await;
    too_many(client.query::<u64>("v").fetch_optional().await.unwrap_err());
    let (client, _server) = serve(&["1"]).await;
    too_many(client.query::<u64>("v").limit(0).fetch_all().await.unwrap_err());

    // The rows within the limit come first, in chunks of any size.
    for chunk in [1, 2, 3, 4, 256] {
        let (client, _server) = serve(&["1", "2", "3", "4", "5", "6"]).await;
        let mut stream =
            client.query::<u64>("v").limit(3).chunk_size(chunk).execute().await.unwrap();
        for expected in 1..=3 {
            assert_eq!(stream.next().await.unwrap().unwrap(), expected);
        }
        too_many(stream.next().await.unwrap().unwrap_err());
        assert!(stream.next().await.is_none());
    }
    for rows in [&["1", "2", "3"][..], &["1"], &[]] {
        let (client, _server) = serve(rows).await;
        assert_eq!(client.query::<u64>("v").limit(3).fetch_all().await.unwrap().len(), rows.len());
    }
}

/// A count is of documents: what `execute()` refuses, `count()` and `exists()` do too.
#[tokio::test]
async fn rows_without_a_document_are_neither_counted_nor_found() {
    sql("create view v_not_json as select 'x'::text as data from generate_series(1, 3);
         create view v_no_data as select '1'::jsonb as doc, 2 as number from generate_series(1, 3);
         create domain docs as jsonb; create domain order_docs as docs;
         create table t_domain (data order_docs); insert into t_domain values ('1'), ('2');
         create view v_counted as
           select jsonb_build_object('a', 1 / (i - i)) as data, i from generate_series(1, 5) i;
         create view v_json as select to_json(i) as data from generate_series(1, 5) i")
    .await;
    let client = client().await;
    let query = |entity: &str| client.query::<RawJson>(entity);
    let cases: [(&str, &dyn Fn() -> QueryBuilder<RawJson>); 6] = [
        ("text", &|| query("v_not_json")),
        ("limited", &|| query("v_not_json").limit(1)),
        ("sorted", &|| query("v_not_json").order_by("data").offset(1)),
        ("a number", &|| query("v_no_data").column("number")),
        ("an expression", &|| query("v_no_data").select_projection("number + 1")),
        ("conditions", &|| query("v_not_json").where_sql("data = $1").bind("x")),
    ];
    for (what, query) in cases {
        let of_count = query().count().await.unwrap_err();
        let of_exists = query().exists().await.unwrap_err();
        let of_rows = query().fetch_all().await.unwrap_err();
        for error in [of_count, of_exists, of_rows] {
            assert_eq!(error.category(), ErrorCategory::InvalidSchema, "{what}: {error}");
        }
    }
    for error in [
        query("v_no_data").count().await.unwrap_err(),
        query("v_no_data").exists().await.unwrap_err(),
        query("v_one").column("nowhere").count().await.unwrap_err(),
        query("v_no_data").select_fields(["a"]).count().await.unwrap_err(),
    ] {
        assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_COLUMN), "{error}");
    }
    // An operator that is the user's own mistake is the server's error.
    let own = query("v_json").where_sql("data #> 1 is null").count().await.unwrap_err();
    assert_eq!(own.sqlstate(), Some(&sqlstate::UNDEFINED_FUNCTION), "{own}");

    assert_eq!(query("v_json").count().await.unwrap(), 5);
    assert_eq!(query("t_domain").count().await.unwrap(), 2);
    assert!(query("t_domain").exists().await.unwrap());
    let projected = query("v_json").select_projection("to_json($1::int)").bind(1);
    assert_eq!(projected.limit(2).count().await.unwrap(), 2);
    // Counting does not compute the documents: it would divide by zero.
    assert_eq!(query("v_counted").count().await.unwrap(), 5);
    assert_eq!(query("v_counted").limit(4).offset(1).count().await.unwrap(), 4);
    assert_eq!(query("v_counted").order_by("i").limit(4).count().await.unwrap(), 4);
    assert!(query("v_counted").exists().await.unwrap());
}

/// Postgres's limit of a message: measured by the header alone, which it answers before the rest
/// has come.
#[tokio::test]
async fn request_that_is_too_long_is_rejected_before_it_is_sent() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let largest: u32 = 0x3fff_fffe;
    for (tag, length, reads) in [
        (b'P', largest, true),
        (b'P', largest + 1, false),
        (b'B', largest, true),
        (b'B', largest + 1, false),
    ] {
        let mut socket =
            tokio::net::TcpStream::connect(("127.0.0.1", cluster().port())).await.unwrap();
        let startup = b"\0\0\0\x23\0\x03\0\0user\0role_trust\0database\0postgres"[..].to_vec();
        let mut startup = [startup, b"\0\0".to_vec()].concat();
        let len = u32::try_from(startup.len()).unwrap().to_be_bytes();
        startup[..4].copy_from_slice(&len);
        socket.write_all(&startup).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"Z\0\0\0\x05I") {
            assert!(socket.read_buf(&mut seen).await.unwrap() > 0, "{seen:?}");
        }
        socket.write_all(&[&[tag][..], &length.to_be_bytes()].concat()).await.unwrap();
        // Before 14, the server reads a message before it refuses its length.
        let reads = reads || cluster().version() < 14;
        // A Terminate is a part of the message that it waits for, and a close of its own otherwise.
        let mut rest = [0; 1];
        let wait = if reads { Duration::from_millis(500) } else { Duration::from_secs(60) };
        let answer = tokio::time::timeout(wait, socket.read(&mut rest)).await;
        assert_eq!(answer.is_err(), reads, "{length}: {answer:?}");
    }

    // A startup message of 10,004 bytes: the server reads all of it or nothing.
    let name = |len: usize| "x".repeat(len);
    let config = |len: usize| {
        let config = ConnectionConfig::builder().host("127.0.0.1").port(cluster().port());
        config
            .user("role_trust")
            .database("postgres")
            .ssl_mode(SslMode::Disable)
            .application_name(name(len))
            .build()
            .unwrap()
    };
    let fixed = 8
        + "user\0role_trust\0database\0postgres\0client_encoding\0UTF8\0application_name\0\0\0"
            .len();
    let fits = FraiseClient::connect_with_config(config(10_004 - fixed)).await.unwrap();
    fits.ping().await.unwrap();
    let error = FraiseClient::connect_with_config(config(10_005 - fixed)).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Config, "{error}");
    assert!(error.to_string().contains("10004") && !error.to_string().contains("xxx"), "{error}");

    // More values than a Bind has room to count.
    let mut query = fits.query::<Value>("v_one");
    let condition: Vec<_> = (1..=65_536).map(|i| format!("${i}")).collect();
    query = query.where_sql(format!("1 in ({})", condition.join(", ")));
    for i in 0..65_536 {
        query = query.bind(i);
    }
    let error = query.fetch_all().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Config, "{error}");
}

/// A provider is called again after its password was rejected, because it may just have changed. A
/// password that was rejected is not sent again.
#[tokio::test]
async fn password_provider_is_called_again_after_a_rejection() {
    check_refused_passwords("", 1).await;
}

/// `sslmode=prefer` tries the passwords with TLS. None is sent in plaintext after that, but the one
/// that cannot change, as libpq does.
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
#[tokio::test]
async fn refused_password_of_a_provider_is_not_sent_without_tls() {
    let tls = "-c ssl=on -c ssl_cert_file={folder}/server.crt -c ssl_key_file={folder}/server.key";
    check_refused_passwords(tls, 2).await;
}

/// `kinds`: how often a password that cannot change is sent.
async fn check_refused_passwords(settings: &str, kinds: usize) {
    let pair = Authority::new("an authority").server("db", &["db"]);
    let hba = "host all postgres all md5\nhost all role_rotated_plain all password\nhost all all all scram-sha-256\n";
    let server = Cluster::start_with(&Setup {
        hba,
        settings,
        files: &[("server.crt", &pair.certificate), ("server.key", &pair.key)],
        ..Setup::default()
    })
    .unwrap();
    let admin = admin_at(&server.url()).await;
    for role in ["scram", "plain"] {
        let role = if role == "plain" { "role_rotated_plain" } else { "role_rotated" };
        admin.batch_execute(&format!("create role {role} login password 'new'")).await.unwrap();
        for (answers, asked, succeeds) in [
            (&["new"][..], 1, true),
            (&["old", "new"], 2, true),
            // Not a third time.
            (&["old", "older", "new"], 2, false),
            // The same password again would count as another failure, where failures lock accounts.
            (&["old", "old", "new"], 2, false),
        ] {
            let count = Arc::new(AtomicUsize::new(0));
            let provider = {
                let count = Arc::clone(&count);
                let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
                move || {
                    let answer = answers[count.fetch_add(1, SeqCst)].clone();
                    async move { Ok(answer) }
                }
            };
            let config = ConnectionConfig::builder().host("127.0.0.1").port(server.port());
            let config = config.user(role).database("postgres").password_provider(provider);
            let result = FraiseClient::connect_with_config(config.build().unwrap()).await;
            assert_eq!(result.is_ok(), succeeds, "{role}, {answers:?}: {result:?}");
            assert_eq!(count.load(SeqCst), asked, "{role}, {answers:?}");
            if let Err(error) = result {
                assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_PASSWORD), "{error}");
                assert!(!error.is_retriable());
                let shown = format!("{error} {error:?}");
                assert!(!shown.contains("old") && !shown.contains("new\""), "{shown}");
            }
        }
    }
    // The number of wrong passwords that the server has logged: one for each case above.
    let log = std::fs::read_to_string(server.folder().join("log")).unwrap();
    for (role, refusals) in [("role_rotated", 4), ("role_rotated_plain", 4)] {
        let refused = format!("password authentication failed for user \"{role}\"");
        assert_eq!(log.matches(&refused).count(), refusals, "{log}");
    }
    let url = format!("postgres://role_rotated:wrong@127.0.0.1:{}/postgres", server.port());
    refused(&url).await;
    let log = std::fs::read_to_string(server.folder().join("log")).unwrap();
    assert_eq!(log.matches("failed for user \"role_rotated\"").count(), 4 + kinds);
}

/// A process that has no descriptor left may have one later: what it could not read is no mistake
/// in its settings.
#[test]
fn files_unreadable_without_a_free_descriptor_are_retriable() {
    const CHILD: &str = "FRAISEQL_WIRE_TEST_FOLDER";
    let Some(folder) = std::env::var_os(CHILD).map(std::path::PathBuf::from) else {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("the authority");
        let pair = authority.client("u");
        for (name, text) in [
            ("ca.crt", &*authority.pem),
            ("client.crt", &*pair.certificate),
            ("client.key", &*pair.key),
            ("list.crl", &authority.crl(&[])),
            ("passwords", "*:*:*:*:found"),
            ("services", "[app]\nhost=127.0.0.1\n"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let test = std::thread::current().name().unwrap().to_owned();
        let mut process = Command::new("/bin/sh");
        process.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""]);
        process.arg(std::env::current_exe().unwrap()).args(["--exact", &test, "--nocapture"]);
        let services = folder.path().join("services");
        process.env(CHILD, folder.path()).env("PGSERVICEFILE", services);
        let output = process.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    runtime.block_on(async {
        // The thread that reads certificates is there before.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        let mut open = Vec::new();
        let mut exhaust = |left: usize| {
            while let Ok(file) = std::fs::File::open("/dev/null") {
                open.push(file);
            }
            open.truncate(open.len() - left);
        };
        let asking = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let password = format!(
            "postgres://u@{}/d?sslmode=disable&passfile={}",
            asking.local_addr().unwrap(),
            file("passwords")
        );
        let mut asking = Some(asking);
        // A server that accepts connections and stays silent: certificates are read first.
        let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let encrypted = |more: &str| {
            format!("postgres://u@{}/d?sslmode=require{more}", silent.local_addr().unwrap())
        };
        let pair = format!("&sslcert={}&sslkey={}", file("client.crt"), file("client.key"));
        let list = format!("&sslrootcert={}&sslcrl={}", file("ca.crt"), file("list.crl"));
        let directory = format!("&sslrootcert={}&sslcrldir={}", file("ca.crt"), file("lists"));
        // The client's socket takes one, and a server's another.
        for (what, url, left) in [
            ("the password file", password, 2),
            ("root certificate file", encrypted(&format!("&sslrootcert={}", file("ca.crt"))), 1),
            ("certificate file", encrypted(&pair), 1),
            (
                "trusted certificates",
                encrypted("&sslrootcert=system").replace("require", "verify-full"),
                1,
            ),
        ] {
            let config: ConnectionConfig = url.parse().unwrap();
            exhaust(left);
            // Not earlier: accept() takes its descriptor before it waits.
            if let Some(asking) = asking.take() {
                std::thread::spawn(move || ask_for_a_password(asking));
            }
            let error = FraiseClient::connect_with_config(config).await.unwrap_err();
            check_out_of_descriptors(what, &error);
        }
        let _ = (list, directory);
        exhaust(0);
        let error = "service=app user=u".parse::<ConnectionConfig>().unwrap_err();
        check_out_of_descriptors("the service file", &error);
    });
}

/// Asks for a password, and keeps both sockets and their descriptors until the process ends.
fn ask_for_a_password(listener: std::net::TcpListener) {
    use std::io::{Read, Write};
    let (mut socket, _) = listener.accept().unwrap();
    socket.read_exact(&mut [0; 8]).unwrap();
    socket.write_all(b"R\0\0\0\x08\0\0\0\x03").unwrap();
    std::mem::forget((socket, listener));
}

#[track_caller]
fn check_out_of_descriptors(what: &str, error: &Error) {
    let line = format!("{error:?}");
    assert!(line.contains(what) && line.contains("Too many open files"), "{line}");
    assert!(line.contains("could not be read"), "{line}");
    assert_eq!(error.retry_advice(), RetryAdvice::AfterDelay, "{line}");
    if let Error::Connection { .. } = error {
        let advice = &advice()["a file cannot be read because no descriptors are left"];
        assert!(error.to_string().ends_with(&format!("; {advice}")), "{error}");
    }
}

/// Parameters of other drivers are answered with a replacement; no value is ever shown.
#[test]
fn parameter_of_another_driver_gives_advice() {
    for (parameters, name, advice) in [
        ("schema=planted", "schema", "search_path"),
        ("pgbouncer=true&connection_limit=1", "pgbouncer", "remove it"),
        ("connect_timeout=3&connection_limit=planted", "connection_limit", "in code"),
        ("pool_timeout=planted", "pool_timeout", "in code"),
        ("search_path=planted", "search_path", "options=-csearch_path"),
        ("currentSchema=planted", "currentSchema", "search_path"),
        ("sslmode=require&channelBinding=planted", "channelBinding", "channel_binding"),
        ("sslaccept=planted", "sslaccept", "sslmode"),
        ("ssl=planted", "ssl", "sslmode"),
        ("ssl=false", "ssl", "sslmode"),
        ("sslmode=require&uselibpqcompat=planted", "uselibpqcompat", "remove it"),
        ("supa=planted", "supa", "remove it"),
        ("statement_cache_size=planted", "statement_cache_size", "statement_cache_capacity"),
        ("socket_timeout=planted", "socket_timeout", "read_timeout"),
        ("options%5Bsearch_path%5D=planted", "options[search_path]", "options=-c"),
        ("retries=planted", "retries", "libpq-connect"),
        ("sslmode=require&foo-bar=planted", "foo-bar", "libpq-connect"),
    ] {
        let url = format!("postgres://u:planted@h/d?{parameters}");
        let error = ConnectionConfig::parse(&url).unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Config);
        let line = error.to_string();
        assert!(
            line.contains(&format!("{name:?}")) && line.contains(advice),
            "{parameters}: {line}"
        );
        assert!(!line.contains("planted"), "{parameters}: {line}");
    }
    let error = ConnectionConfig::parse("host=h user=u schema=planted").unwrap_err().to_string();
    assert!(error.contains("\"schema\"") && !error.contains("planted"), "{error}");
    // Text that may be a part of a password is not shown.
    for url in [
        "postgres://u:p/w?planted=x@h/d",
        "postgres://u@h/d?password=a&planted=b",
        "postgres://u@h/d?sslpassword=a&planted=b",
        "postgres://u@h/d?pass=a&planted=b",
        "postgres://u@h/d?a%20planted=b",
        "user=u password=my planted=x",
    ] {
        let error = ConnectionConfig::parse(url).unwrap_err().to_string();
        assert!(!error.contains("planted"), "{url}: {error}");
    }
    let error =
        ConnectionConfig::parse("postgres://u@h/d?sslmode=planted").unwrap_err().to_string();
    assert!(error.contains("invalid sslmode: expected disable, allow,"), "{error}");
    assert!(!error.contains("planted"), "{error}");
}
