//! The examples, as a reader runs them, with a server and without one. Each prints what it should,
//! and leaves no sessions, schemas or files.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use crate::support::{
    admin,
    certificates::{Authority, write},
    cluster,
    cluster::{Cluster, Setup},
};

/// Each example has a row in the table of the README.
#[test]
fn readme_table_lists_all_examples() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let table = fs::read_to_string(folder.join("README.md")).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists() {
            assert!(table.contains(&format!("--example {name}")) || name == "quickstart", "{name}");
        }
    }
}

/// Reads an existing view, and creates none.
#[tokio::test]
async fn basic() {
    let view = "create schema basic;
                create view basic.v_order as
                select jsonb_build_object('id', i, 'total', i * 1.5,
                                          'status', (array['paid', 'open'])[1 + i % 2]) as data
                from generate_series(1, 4) i";
    crate::support::sql(view).await;
    let url = format!("{}&options=-csearch_path%3Dbasic", url_of("basic"));
    assert_eq!(run_at("basic", &url).await, "order 2: 3.00\norder 4: 6.00\n");
}

#[tokio::test]
async fn typed() {
    let said = run("typed").await;
    for part in [
        "#1 of 2026-01-05 08:30:00.250 UTC, Ada in Lyon: 23.00",
        "paid by card ...4242, delivered: 07 January, [\"gift\"]",
        "paid by transfer, not yet received from Erste, delivered: no, []",
        "row 3 does not match typed::Order at `lines[1].price`",
        "#4 of 2026-01-08 12:00:00 UTC, Ève in Gent: 36.00 for [\"C-3\"], paid in another way",
        "3 rows, 1 that cannot be decoded",
        "#3 to Oslo: None",
        "Ada (borrowed)",
        "Dmitri \"Dima\" Quist (copied)",
        "#1 has ",
    ] {
        contains(&said, part);
    }
}

#[tokio::test]
async fn filters() {
    let said = run("filters").await;
    for part in [
        "SQL sent    SELECT \"data\" FROM \"v_order\" WHERE (data->>'status' = $1) AND ",
        "parameters  [\"paid\", \"300\", \"{\\\"FR\\\",\\\"NO\\\",\\\"PL\\\"}\"]",
        "rows        20000",
        "where_sql   leaves 5000",
        "plan        Sort < ",
    ] {
        contains(&said, part);
    }
    // The server sends the rows that Rust rejects, and the ones that remain.
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
    // The other form of a connection string.
    let url = format!(
        "host=127.0.0.1 port={} user=postgres password={} dbname=postgres \
         application_name=example_errors_and_retry",
        cluster().port(),
        crate::support::cluster::password()
    );
    let said = run_at("errors_and_retry", &url).await;
    for part in [
        "category server, retriable: false, advice: Never\n    SQLSTATE 42P01",
        "category config, retriable: false, advice: Never\n    invalid configuration: \"v_reading; drop",
        "category server, retriable: true, advice: AfterDelay\n    SQLSTATE 57014",
        "category timeout, retriable: true, advice: AfterDelay",
        "category cancelled, retriable: false, advice: Never",
        "category memory_limit, retriable: false, advice: Never",
        "category connection, retriable: true, advice: AfterDelay",
        "49950 good rows, 50 bad ones; the first: row 1000 does not match \
         errors_and_retry::Reading at `celsius`",
        "result: warm",
        "no more attempts: timed out running the query after 100ms",
        "not retried: the server reported ERROR: relation \"v_missing\"",
    ] {
        contains(&said, part);
    }
    let attempts = |heading: &str| {
        let (_, section) = said.split_once(heading).unwrap();
        section.split("\n\n").next().unwrap().matches("\n  attempt ").count()
    };
    assert_eq!(attempts("A session terminated mid-stream, once:"), 1, "{said}");
    assert_eq!(attempts("A query that times out twice:"), 2, "{said}");
    assert_eq!(attempts("A query that always times out:"), 2, "{said}");
    assert_eq!(attempts("A missing view:"), 0, "{said}");
}

#[cfg(feature = "deadpool")]
#[tokio::test]
async fn pool_deadpool() {
    let said = run("pool_deadpool").await;
    for part in [
        "12 tasks read 240000 rows on at most 4 connections: true",
        "the next query on the same connection: 1 row",
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
        "the next query on the same connection: 1 row",
    ] {
        contains(&said, part);
    }
}

#[tokio::test]
async fn parallel() {
    let said = run("parallel").await;
    for part in [
        "tv_event on 1: 100000 rows in ",
        "tv_event on 2: 100000 rows in ",
        "tv_event on 4: 100000 rows in ",
        "same rows: true",
        "v_event on 3: 100000 rows",
        "parallel(2) cannot be combined with order_by",
        "resume_by: 100000 rows, each once and in order: true",
        "resumed 1 time, on another backend: true",
    ] {
        contains(&said, part);
    }
}

#[tokio::test]
async fn pause_resume() {
    let said = run("pause_resume").await;
    for part in [
        "Paused for maintenance: ",
        "meanwhile 0 rows received, 0 read, 0 buffered",
        "Running again\n  Cancelled\n",
        "the consumer: cancelled, so the rows are incomplete",
        "the next query has 3 rows",
        "Paused after 1000 rows\n  ",
        " buffered rows read meanwhile\n  Running automatically after ",
        "20 MiB read, at most ",
    ] {
        contains(&said, part);
    }
    let buffered = said.split(" buffered rows read").next().unwrap().rsplit("  ").next().unwrap();
    assert!(buffered.parse::<u64>().unwrap() > 0, "{said}");
    // The memory limit, and one read.
    let held = said.split("at most ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(held.parse::<u32>().unwrap() <= 128 + 64, "{said}");
}

/// Running streams finish, a second signal stops the rest, and the program exits with success.
#[tokio::test]
async fn graceful_shutdown() {
    let name = "graceful_shutdown";
    let admin = admin().await;
    let queries = "select count(*) from pg_stat_activity
                   where application_name = 'example_graceful_shutdown' and state = 'active'
                   and query like '%v_endless%'";
    for (deadline, signals) in [("600", &["TERM", "INT"][..]), ("0", &["INT"])] {
        let mut command = example(name);
        command.arg(deadline).env("DATABASE_URL", url_of(name)).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut said = String::new();
        // A line that begins and ends like this.
        let mut wait_for = |begin: &str, end: &str| {
            while !said.lines().any(|line| line.starts_with(begin) && line.ends_with(end)) {
                said += &output.next().unwrap_or_else(|| panic!("{begin:?} did not come: {said}"));
                said.push('\n');
            }
        };
        wait_for("working; process ", "");
        assert!(has_schema(&admin, process.id()).await);
        // The endless request is in progress.
        let running = async || admin.query_one(queries, &[]).await.unwrap().get::<_, i64>(0) > 0;
        crate::support::eventually("it works", running).await;
        signal(&process, signals[0]);
        wait_for("no new work", "for running streams");
        if let Some(second) = signals.get(1) {
            wait_for("worker 0: ", " times through v_feed, closed");
            wait_for("worker 1: ", " times through v_feed, closed");
            signal(&process, second);
        }
        wait_for("cancelling the rest", "");
        wait_for("worker 2: cancelled after row ", " of v_endless");
        wait_for("worker 2: 0 times through v_endless, closed", "");
        wait_for("done", "");
        assert_eq!(process.wait().unwrap().code(), Some(0));
        nothing_is_left(name, process.id()).await;
    }
}

/// On its own server, and on a server of the test, with the variables of libpq.
#[tokio::test]
async fn tls_client_cert() {
    let said = success(&example("tls_client_cert").env_remove("DATABASE_URL").output().unwrap());
    for part in [
        "TLSv1.3, TLS_AES_256_GCM_SHA384",
        "authentication: none",
        "\n  authentication failed: FATAL: connection requires a valid client certificate",
        "\n  TLS: the server's certificate is for \"localhost\", not for \"127.0.0.1\"",
        "\n  TLS: the issuer of the server's certificate (CN=an authority) is not trusted",
    ] {
        contains(&said, part);
    }
    let shown = "the server knows \"app\" by \"/CN=app\"";
    assert_eq!(said.matches(shown).count(), 2, "{said}");

    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let (server, client) = (authority.server("localhost", &["localhost"]), authority.client("app"));
    let private = Cluster::start_with(&Setup {
        hba: "host all postgres all scram-sha-256\nhostssl all app all cert\n",
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt \
                   -c ssl_key_file={folder}/server.key -c ssl_ca_file={folder}/ca.crt",
        files: &[
            ("server.crt", &server.certificate),
            ("server.key", &server.key),
            ("ca.crt", &authority.pem),
        ],
        ..Setup::default()
    })
    .unwrap();
    crate::support::admin_at(&private.url())
        .await
        .batch_execute("create role app login")
        .await
        .unwrap();
    let mut command = example("tls_client_cert");
    let url = format!("postgres://app@localhost:{}/postgres?sslmode=verify-full", private.port());
    command.env("DATABASE_URL", url);
    for (variable, name, text) in [
        ("PGSSLROOTCERT", "ca.crt", &authority.pem),
        ("PGSSLCERT", "app.crt", &client.certificate),
        ("PGSSLKEY", "app.key", &client.key),
    ] {
        command.env(variable, write(folder.path(), name, text));
    }
    contains(&success(&command.output().unwrap()), shown);
}

/// Each connection has a token of its period, and the retry policy bridges a failure of the
/// service.
#[tokio::test]
async fn tokens() {
    let said = success(&example("tokens").output().unwrap());
    for part in [
        "/?user=app&period=1\n  a connection with a token: 3 orders\nPeriod 2:\n",
        "/?user=app&period=2\n  the open connection: 3 orders\n  signed 127.0.0.1:",
        "/?user=app&period=2\n  a new connection with a new token: 3 orders\nPeriod 3:\n",
        "/?user=app&period=3\n  a client that has reconnected: 3 orders\nWithout the service:\n",
        "  retriable: true: could not connect to 127.0.0.1:",
        "the password provider has no password at the moment: no token service while signing a \
         token; wait, and check the service that issues the passwords\n  signed 127.0.0.1:",
    ] {
        contains(&said, part);
    }
    assert!(said.ends_with("/?user=app&period=3\n  a client that has reconnected: 3 orders\n"));
    assert!(!said.contains("signature="), "{said}");
}

/// Through its own stand-in for SSH. No tunnel remains.
#[tokio::test]
async fn tunnel() {
    let said = run("tunnel").await;
    for part in [
        "3 orders through 1 tunnel\n",
        "cancelled through another tunnel: true\n",
        "the connection is the same: true\n",
    ] {
        contains(&said, part);
    }
    let forwarding = format!("--forward\0127.0.0.1:{}", cluster().port());
    let remains = || {
        fs::read_dir("/proc").unwrap().any(|process| {
            let command = process.unwrap().path().join("cmdline");
            fs::read_to_string(command).is_ok_and(|command| command.contains(&forwarding))
        })
    };
    crate::support::eventually("all tunnels end", async || !remains()).await;

    let failing = example("tunnel").args(["false"]).env("DATABASE_URL", url_of("tunnel")).output();
    let failing = failing.unwrap();
    assert!(!failing.status.success());
    contains(&String::from_utf8_lossy(&failing.stderr), "could not connect to 127.0.0.1:");
}

/// Exports a whole view, plain and gzipped, and compares it with the server's own text.
#[tokio::test]
async fn export_writes_all_documents() {
    let folder = tempfile::tempdir().unwrap();
    let output = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    crate::support::sql(
        "create view v_exported as
         select jsonb_build_object('id', 5000 - i, 'text', chr(960) || E'\\n' || i % 7,
                                   'nested', jsonb_build_object('name', chr(30 + i % 70) || chr(34) || i)) as data
         from generate_series(0, 4999) i;
         create view v_not_unique as select jsonb_build_object('same', 1) as data from generate_series(1, 9)",
    )
    .await;
    let (all, some) = (output("all.ndjson"), output("some.ndjson.gz"));
    let said = success(&export(&["v_exported", &all]));
    contains(&said, ": 5000 rows, ");
    contains(&said, "from one snapshot");
    let mut lines: Vec<_> = fs::read_to_string(&all).unwrap().lines().map(str::to_owned).collect();
    let mut expected = documents("v_exported").await;
    assert_eq!(lines.len(), 5000);
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected);

    success(&export(&["--key", "id", "--where", "(data->>'id')::int <= 30", "v_exported", &some]));
    success(&Command::new("gzip").args(["-t", &some]).output().unwrap());
    let said = success(&Command::new("zcat").arg(&some).output().unwrap());
    let expected = documents("v_exported where (data->>'id')::int <= 30").await;
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);

    // An export with string keys resumes in the server's sort order.
    let named = output("named.ndjson");
    let arguments = ["--key", "nested.name", "v_exported", &named];
    success(&export(&arguments));
    let whole = fs::read_to_string(&named).unwrap();
    assert_eq!(whole.lines().count(), 5000);
    let cut = whole.match_indices('\n').nth(2499).unwrap().0 + 1;
    fs::write(format!("{named}.part"), &whole[..cut + 3]).unwrap();
    let query = r#"{"entity":"v_exported","key":"nested.name","where":null}"#;
    fs::write(format!("{named}.part.query"), query).unwrap();
    success(&export(&[&["--resume"], &arguments[..]].concat()));
    assert!(fs::read_to_string(&named).unwrap() == whole);

    // An empty result is also a file. A failed export leaves no file.
    let none = output("none.ndjson.gz");
    success(&export(&["--where", "false", "v_exported", &none]));
    success(&Command::new("gzip").args(["-t", &none]).output().unwrap());
    for (code, said, arguments) in [
        (
            1,
            "export: the server reported ERROR: relation \"v_missing\" does not exist",
            vec!["--key", "id", "v_missing", &all],
        ),
        // The same command would fail again.
        (1, "failed after 1 row", vec!["--key", "same", "v_not_unique", &all]),
        (2, "--resume needs the --key", vec!["--resume", "v_exported", &all]),
        (2, "an entity and a file are needed", vec!["v_exported"]),
        (2, "invalid option '--nothing'", vec!["--nothing"]),
    ] {
        let output = export(&arguments);
        assert_eq!(output.status.code(), Some(code));
        let error = String::from_utf8_lossy(&output.stderr);
        contains(&error, said);
        assert!(error.lines().count() <= 2 && !error.contains("to resume"), "{error}");
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 4);
}

/// Every user of the machine can read the arguments of a program.
#[test]
fn export_rejects_passwords_in_arguments() {
    for url in [
        "postgres://u:Pl4nted@127.0.0.1/d",
        "postgresql://:Pl4nted@127.0.0.1",
        "postgres://u:a@Pl4nted@127.0.0.1",
        "postgres://127.0.0.1?password=Pl4nted",
        "postgres://127.0.0.1?user=u&sslpassword=Pl4nted",
        "host=127.0.0.1 password=Pl4nted",
        "host=127.0.0.1 password = 'Pl4nted'",
        "host=127.0.0.1 scram_client_key=Pl4nted",
        "host=127.0.0.1 oauth_client_secret=Pl4nted",
    ] {
        let output = example("export").args(["--url", url, "v", "o"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{url}: {said}");
        assert!(said.contains("contains a password") && !said.contains("Pl4nted"), "{url}: {said}");
    }
}

/// Ctrl-C in the middle, and a file that is truncated as if the program had been killed. In the end
/// each row is there once.
#[tokio::test]
async fn export_resumes_after_an_interruption() {
    let gate = Gate::make("interrupted", 1).await;
    for name in ["rows.ndjson", "rows.ndjson.gz"] {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join(name);
        let process = gate.export_up_to_there(&["--key", "id"], &output).await;
        signal(&process, "INT");
        let said =
            tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(said.status.code(), Some(130), "{said:?}");
        assert_eq!(gate.active().await, 0, "its query is stopped");
        let resume = format!("--resume --key 'id' 'interrupted.v' '{}'", output.display());
        contains(&String::from_utf8_lossy(&said.stderr), &resume);

        // Whole lines, and whole gzip members.
        let part = folder.path().join(format!("{name}.part"));
        let bytes = fs::read(&part).unwrap();
        let text = if name.ends_with("gz") { unzip(&part) } else { bytes.clone() };
        assert!(text.ends_with(b"\n"));
        assert_eq!(gate.expected[..text.len()], text[..], "what there is, is right");

        gate.open().await;
        let arguments = ["--key", "id", "interrupted.v", output.to_str().unwrap()];
        let refused = export(&arguments);
        contains(&String::from_utf8_lossy(&refused.stderr), "use --resume, or remove it");
        let other = [&["--resume", "--where", "true"], &arguments[..]].concat();
        contains(&String::from_utf8_lossy(&export(&other).stderr), "is of another query");
        assert_eq!(fs::read(&part).unwrap(), bytes, "neither has touched it");

        // The last member is truncated, and followed by more data than the rest of the export.
        let cut = [&bytes[..bytes.len() - 5], &vec![b'x'; 20 << 20]].concat();
        fs::write(&part, cut).unwrap();
        let said = success(&export(&[&["--resume"], &arguments[..]].concat()));
        contains(&said, ": 40000 rows, ");
        contains(&said, "from several snapshots");
        let text = if name.ends_with("gz") { unzip(&output) } else { fs::read(&output).unwrap() };
        assert!(text == gate.expected, "each row once");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "it alone");
        gate.close().await;
    }
    // Without a key, the export cannot be resumed.
    let folder = tempfile::tempdir().unwrap();
    let process = gate.export_up_to_there(&[], &folder.path().join("rows.ndjson")).await;
    signal(&process, "TERM");
    let said = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(said.status.code(), Some(143), "{said:?}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(gate.active().await, 0);
}

#[tokio::test]
async fn export_survives_a_lost_connection() {
    let gate = Gate::make("lost", 2).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("rows.ndjson");
    let process = gate.export_up_to_there(&["--key", "id"], &output).await;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
               where application_name = 'example_export' and query like '%lost%' and pid <> pg_backend_pid()";
    assert_eq!(gate.admin.query(end, &[]).await.unwrap().len(), 1);
    gate.open().await;
    let said = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
    contains(&success(&said), ": 40000 rows, ");
    contains(&success(&said), "from several snapshots");
    assert!(fs::read(&output).unwrap() == gate.expected, "each row once");
}

/// A view of 40,000 rows, ordered by key, that stops after 30,000 rows while a lock is held.
struct Gate {
    admin: tokio_postgres::Client,
    schema: &'static str,
    lock: i32,
    /// As lines.
    expected: Vec<u8>,
}

impl Gate {
    async fn make(schema: &'static str, lock: i32) -> Self {
        let admin = admin().await;
        let made = format!(
            "create schema {schema};
             create table {schema}.t as
             select i as id, jsonb_build_object('id', i, 'text', repeat('abc ', 250)) as data
             from generate_series(1, 40000) i;
             create index on {schema}.t ((data->'id'));
             analyze {schema}.t;
             create function {schema}.gate(id int) returns bool language plpgsql as $$
             begin
                 if id = 30000 then
                     perform pg_advisory_lock_shared({lock});
                     perform pg_advisory_unlock_shared({lock});
                 end if;
                 return true;
             end $$;
             create view {schema}.v as select data from {schema}.t where {schema}.gate(id)"
        );
        admin.batch_execute(&made).await.unwrap();
        let lines = documents(&format!("{schema}.t")).await;
        let expected = lines.iter().flat_map(|line| [line, "\n"].concat().into_bytes()).collect();
        let gate = Self { admin, schema, lock, expected };
        gate.close().await;
        gate
    }

    async fn close(&self) {
        self.admin.execute("select pg_advisory_lock($1)", &[&i64::from(self.lock)]).await.unwrap();
    }

    async fn open(&self) {
        self.admin
            .execute("select pg_advisory_unlock($1)", &[&i64::from(self.lock)])
            .await
            .unwrap();
    }

    /// Starts an export that has written some rows, and whose query has reached the lock. Then the
    /// program has taken 30 MB but for the buffers: more than the first member of a gzipped file.
    async fn export_up_to_there(&self, more: &[&str], output: &Path) -> Child {
        let mut command = example("export");
        let url =
            format!("{}&options=-cenable_sort%3Doff%20-cenable_seqscan%3Doff", url_of("export"));
        command.env("DATABASE_URL", url);
        command.args(more).arg(format!("{}.v", self.schema)).arg(output);
        let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let part = format!("{}.part", output.display());
        crate::support::eventually("it is in the middle", async || {
            let has_begun = fs::metadata(&part).is_ok_and(|part| part.len() > 0);
            has_begun && self.sessions("wait_event_type = 'Lock'").await == 1
        })
        .await;
        process
    }

    /// Returns how many queries of the view are running.
    async fn active(&self) -> i64 {
        self.sessions("state = 'active'").await
    }

    async fn sessions(&self, that: &str) -> i64 {
        let query = format!(
            "select count(*) from pg_stat_activity
             where application_name = 'example_export' and query like '%{}%' and {that}",
            self.schema
        );
        self.admin.query_one(&query, &[]).await.unwrap().get(0)
    }
}

/// Returns the documents, ordered by id, as another driver reads them.
async fn documents(what: &str) -> Vec<String> {
    let query = format!("select data::text from {what} order by (data->>'id')::int");
    let rows = admin().await.query(&query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn export(arguments: &[&str]) -> Output {
    let mut command = example("export");
    command.env("DATABASE_URL", url_of("export")).args(arguments).output().unwrap()
}

fn unzip(path: &Path) -> Vec<u8> {
    let output =
        Command::new("gzip").arg("-dc").stdin(fs::File::open(path).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Sends a signal with the shell's own `kill`: a minimal system has no such program.
fn signal(process: &Child, name: &str) {
    let kill = format!("kill -{name} {}", process.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
}

/// Without `DATABASE_URL`, an example starts its own server and removes it.
#[test]
fn examples_run_on_a_private_server() {
    for (name, arguments, part) in
        [("typed", &[][..], "Ada (borrowed)"), ("export", &["--demo"], "200000 rows, 22.18 MiB")]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut command = example(name);
        command.args(arguments).env_remove("DATABASE_URL").env("TMPDIR", folder.path());
        let process = command.stdout(Stdio::piped()).spawn().unwrap();
        let servers = format!("/tmp/fraiseql-wire-{}-", process.id());
        let said = success(&process.wait_with_output().unwrap());
        contains(&said, part);
        let left = fs::read_dir("/tmp").unwrap().flatten().map(|entry| entry.path());
        let left: Vec<_> =
            left.filter(|p| p.to_str().is_some_and(|p| p.starts_with(&servers))).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

/// Returns the output of an example on this binary's server. It must leave no schema, session or
/// file.
async fn run(name: &str) -> String {
    run_at(name, &url_of(name)).await
}

async fn run_at(name: &str, url: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = example(name);
    command.env("DATABASE_URL", url).env("TMPDIR", folder.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = command.spawn().unwrap();
    let pid = process.id();
    let output = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
    let said = success(&output);
    nothing_is_left(name, pid).await;
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    said
}

/// Names the sessions of an example, which distinguishes them from those of other tests.
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
    // A backend ends a little later than its client.
    crate::support::eventually("its sessions are gone", async || sessions_left().await == 0).await;
}

async fn has_schema(admin: &tokio_postgres::Client, pid: u32) -> bool {
    let schema = format!("fraiseql_wire_example_{pid}");
    let found = "select from pg_namespace where nspname = $1";
    admin.query_opt(found, &[&schema]).await.unwrap().is_some()
}

fn example(name: &str) -> Command {
    let mut command = Command::new(crate::support::example::path(name));
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
