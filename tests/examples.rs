//! The examples, as a reader runs them: on a server of theirs and without one. Each says what it should, and leaves
//! nothing behind.

mod support;

use std::process::{Command, Output, Stdio};

use support::{admin, cluster};

#[tokio::test]
async fn typed() {
    let said = run("typed").await;
    for part in [
        "#1 of 2026-01-05 08:30:00.250 UTC, Ada in Lyon: 23.00",
        "paid by card ...4242, delivered: 07 January, [\"gift\"]",
        "paid by transfer, not yet here from Erste, delivered: no, []",
        "row 3 does not fit typed::Order at `lines[1].price`",
        "#4 of 2026-01-08 12:00:00 UTC, Ève in Gent: 36.00 for [\"C-3\"], paid in some way",
        "3 rows, 1 that do not fit",
        "#3 to Oslo: None",
        "Ada (borrowed)",
        "Dmitri \"Dima\" Quist (copied)",
        "#1 has ",
    ] {
        contains(&said, part);
    }
}

#[tokio::test]
async fn hybrid_filters() {
    let said = run("hybrid_filters").await;
    for part in [
        "SQL sent    SELECT \"data\" FROM \"v_order\" WHERE (data->>'status' = $1) AND ",
        "parameters  [\"paid\", \"300\", \"{\\\"FR\\\",\\\"NO\\\",\\\"PL\\\"}\"]",
        "rows        20000",
        "where_sql   leaves 5000",
        "plan        Sort < ",
    ] {
        contains(&said, part);
    }
    // What the server sends is what Rust rejects and what is left.
    let number = |label: &str| {
        let line = said.lines().find(|line| line.starts_with(label)).unwrap();
        let digits =
            line[label.len()..].split(|c: char| !c.is_ascii_digit()).find(|d| !d.is_empty());
        digits.unwrap().parse::<u64>().unwrap()
    };
    let [sent, rejected, left] = ["filter", "in Rust", "result"].map(number);
    assert!(sent < 5000 && rejected > 0 && left > 0 && sent == rejected + left, "{said}");
}

#[tokio::test]
async fn errors_and_retry() {
    let said = run("errors_and_retry").await;
    for part in [
        "category server, retriable: false, advice: Never\n    SQLSTATE 42P01",
        "category config, retriable: false, advice: Never\n    invalid configuration: \"v_reading; drop",
        "category server, retriable: true, advice: AfterDelay\n    SQLSTATE 57014",
        "category timeout, retriable: true, advice: AfterDelay",
        "category cancelled, retriable: false, advice: Never",
        "category memory_limit, retriable: false, advice: Never",
        "category connection, retriable: true, advice: AfterDelay",
        "49950 good rows, 50 bad ones, of which the first: row 1000 does not fit \
         errors_and_retry::Reading at `celsius`",
        "in the end: warm",
        "given up: timed out running the query after 100ms",
        "not tried again: the server reported ERROR: relation \"v_missing\"",
    ] {
        contains(&said, part);
    }
    let attempts = |heading: &str| {
        let (_, section) = said.split_once(heading).unwrap();
        section.split("\n\n").next().unwrap().matches("\n  attempt ").count()
    };
    assert_eq!(attempts("A session that is ended in mid-stream, once:"), 1, "{said}");
    assert_eq!(attempts("A query that is too slow, twice:"), 2, "{said}");
    assert_eq!(attempts("One that always is:"), 2, "{said}");
    assert_eq!(attempts("A view that is not there:"), 0, "{said}");
}

#[cfg(feature = "deadpool")]
#[tokio::test]
async fn pool_deadpool() {
    let said = run("pool_deadpool").await;
    for part in [
        "12 tasks read 240000 rows on at most 4 connections: true",
        "the same connection, the next query: 1 row",
        "db_client_connection_max{db_client_connection_pool_name=\"events\"} 4",
        "db_client_connection_create_time_count{db_client_connection_pool_name=\"events\"}",
    ] {
        contains(&said, part);
    }
}

#[cfg(feature = "bb8")]
#[tokio::test]
async fn pool_bb8() {
    let said = run("pool_bb8").await;
    for part in [
        "12 tasks read 240000 rows on at most 4 connections: true",
        "the same connection, the next query: 1 row",
    ] {
        contains(&said, part);
    }
}

/// Without `DATABASE_URL` they start a server of their own, and take it away.
#[test]
fn on_a_private_server() {
    for (name, part) in [("typed", "Ada (borrowed)")] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = example(name);
        command.env_remove("DATABASE_URL").env("TMPDIR", folder.path());
        let process = command.stdout(Stdio::piped()).spawn().unwrap();
        let servers = format!("/tmp/fraiseql-wire-{}-", process.id());
        let said = success(&process.wait_with_output().unwrap());
        contains(&said, part);
        let left = std::fs::read_dir("/tmp").unwrap().flatten().map(|entry| entry.path());
        let left: Vec<_> =
            left.filter(|p| p.to_str().is_some_and(|p| p.starts_with(&servers))).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
}

/// What an example says on this binary's server, where it leaves nothing: no schema, no session, no file.
async fn run(name: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = example(name);
    command.env("DATABASE_URL", url_of(name)).env("TMPDIR", folder.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = command.spawn().unwrap();
    let pid = process.id();
    let output = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
    let said = success(&output);
    nothing_is_left(name, pid).await;
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    said
}

/// By the name of its sessions, what an example does on the server can be told from what the others do.
fn url_of(name: &str) -> String {
    format!("{}?application_name=example_{name}", cluster().url())
}

async fn nothing_is_left(name: &str, pid: u32) {
    let admin = admin().await;
    assert!(!has_schema(&admin, pid).await);
    let sessions = "select count(*) from pg_stat_activity where application_name = $1";
    let sessions_left = async || {
        let name = format!("example_{name}");
        admin.query_one(sessions, &[&name]).await.unwrap().get::<_, i64>(0)
    };
    // A backend goes a little later than its client.
    support::eventually("its sessions are gone", async || sessions_left().await == 0).await;
}

async fn has_schema(admin: &tokio_postgres::Client, pid: u32) -> bool {
    let schema = format!("fraiseql_wire_example_{pid}");
    let found = "select from pg_namespace where nspname = $1";
    admin.query_opt(found, &[&schema]).await.unwrap().is_some()
}

fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(built.exists(), "run the whole suite, or first: cargo build --example {name}");
    let mut command = Command::new(built);
    command.current_dir("/");
    command
}

fn success(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    said
}

fn contains(said: &str, part: &str) {
    assert!(said.contains(part), "{part:?} is missing:\n{said}");
}
