//! What operators use: the documented catalog, the dashboard, the alerts, and the examples with
//! Prometheus and OpenTelemetry.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{prometheus, support::cluster};
use fraiseql_wire::metrics::{CATALOG, MetricKind};
use serde_json::Value;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");

/// `UPDATE_DOCS=1 cargo test --test monitoring` writes it.
#[test]
fn metrics_document_equals_the_catalog() {
    let mut table = String::from("\n| metric | kind | labels | what it is |\n|---|---|---|---|\n");
    for metric in CATALOG {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
            other => panic!("{other:?}"),
        };
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(
            table,
            "| `{}` | {kind}, {} | {} | {} |",
            metric.name,
            metric.unit,
            labels.join(", "),
            metric.help
        )
        .unwrap();
    }
    let path = Path::new(DOCS).join("metrics-catalog.md");
    let document = fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once("<!-- catalog -->").unwrap();
    let (written, after) = rest.split_once("<!-- end -->").unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let new = [before, "<!-- catalog -->", &table, "<!-- end -->", after].concat();
        fs::write(path, new).unwrap();
    } else {
        assert_eq!(written, table, "run UPDATE_DOCS=1 cargo test --test monitoring");
    }
}

/// Prometheus can aggregate buckets over instances, and summaries not.
#[test]
fn every_histogram_is_exported_with_buckets() {
    let recorder = prometheus::with_buckets().unwrap().build_recorder();
    let names: Vec<_> = prometheus::histograms().map(|metric| metric.name).collect();
    assert!(names.contains(&"db.client.connection.use_time") && names.len() > 15, "{names:?}");
    metrics::with_local_recorder(&recorder, || {
        names.iter().for_each(|name| metrics::histogram!(*name).record(0.3));
    });
    let exported = recorder.handle().render();
    for name in names {
        let bucket = format!("{}_bucket{{le=\"0.", name.replace('.', "_"));
        let is_count = ["_rows", "_bytes"].iter().any(|ending| name.ends_with(ending));
        let bucket = if is_count { bucket.replace("0.", "1") } else { bucket };
        assert!(exported.contains(&bucket), "{bucket} is not in {exported}");
    }
    assert!(!exported.contains("quantile"), "{exported}");
}

/// Names in the dashboard and the alerts are in the catalog, with the suffixes of Prometheus for
/// histograms.
#[test]
fn dashboard_and_alerts_name_only_what_there_is() {
    let files = ["grafana-dashboard.json", "prometheus-alerts.yml"]
        .map(|name| fs::read_to_string(Path::new(DOCS).join(name)).unwrap());
    let mut series = BTreeSet::new();
    for metric in CATALOG {
        match metric.kind {
            MetricKind::Histogram => {
                for ending in ["_bucket", "_sum", "_count"] {
                    series.insert(format!("{}{ending}", metric.name));
                }
            }
            _ => drop(series.insert(metric.name.to_owned())),
        }
    }
    for file in &files {
        let mut names = 0;
        for (at, _) in file.match_indices("fraiseql_wire_") {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let name: String = file[at..].chars().take_while(|c| is_name(*c)).collect();
            assert!(series.contains(&name), "{name} is no series of the catalog");
            names += 1;
        }
        assert!(names > 10);
    }
    let dashboard: Value = serde_json::from_str(&files[0]).unwrap();
    let rows: Vec<_> = dashboard["panels"].as_array().unwrap().iter().collect();
    let titles: Vec<_> =
        rows.iter().filter(|p| p["type"] == "row").map(|p| p["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["Traffic", "Latency", "Back-pressure", "Memory", "Errors", "Connections"]);
}

/// Prometheus's own tool reads the rules, and runs their tests.
#[test]
fn alerts_are_valid_and_fire_as_tested() {
    for args in [
        ["check", "rules", "prometheus-alerts.yml"],
        ["test", "rules", "prometheus-alerts.test.yml"],
    ] {
        let mut promtool = Command::new(program("promtool"));
        let output = promtool.args(args).current_dir(DOCS).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

/// The example's numbers, by way of a Prometheus that scrapes it.
#[test]
fn prometheus_counts_what_the_example_did() {
    let mut example = Running::start(example("metrics").arg("127.0.0.1:0"));
    let address = example.line_with("listening on").split("http://").nth(1).unwrap().to_owned();
    let address = address.strip_suffix("/metrics").unwrap();
    example.line_with("read 19800 rows, 200 more cannot be decoded");
    example.line_with("division by zero (SQLSTATE 22012)");
    example.line_with("ready");

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    let target = format!(
        "scrape_configs: [{{job_name: example, scrape_interval: 1s, scrape_timeout: 1s, \
         static_configs: [{{targets: ['{address}']}}]}}]"
    );
    fs::write(&config, target).unwrap();
    let listen = format!("127.0.0.1:{}", cluster::free_port().unwrap());
    let mut prometheus = Command::new(program("prometheus"));
    prometheus.arg(format!("--config.file={}", config.display()));
    prometheus.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    prometheus.arg(format!("--web.listen-address={listen}"));
    let _prometheus = Running::start(&mut prometheus);

    let wire = |name: &str| format!("fraiseql_wire_{name}");
    let sum = |name: &str| format!("sum({})", wire(name));
    for (query, expected) in [
        (sum("queries_total"), 4.0),
        (format!("{} - {}", sum("queries_total"), sum("query_completed_total")), 0.0),
        (sum("query_completed_total{status='success'}"), 2.0),
        (sum("query_error_total{category='server'}"), 1.0),
        (sum("query_cancelled_total{cause='drop'}"), 1.0),
        (sum("rows_deserialization_failed_total{reason='data'}"), 200.0),
        // Two complete reads except for the rows that did not fit, one row of a third, and the rows
        // before the error.
        (sum("rows_yielded_total"), 19_800.0 + 20_000.0 + 1.0 + 999.0),
        (
            format!(
                "{} - {} - {} - {} - {}",
                sum("rows_received_total"),
                sum("rows_yielded_total"),
                sum("rows_filtered_total"),
                sum("rows_deserialization_failed_total"),
                sum("rows_discarded_total")
            ),
            0.0,
        ),
        (sum("stream_paused_total{reason='maintenance'}"), 1.0),
        (sum("streams_active"), 0.0),
        (sum("connections_open"), 1.0),
        // Back-pressure: a consumer that sleeps 5 ms a chunk is what the reader waited for.
        (
            format!(
                "{} > bool {}",
                sum("channel_send_wait_seconds_sum"),
                sum("socket_wait_seconds_sum")
            ),
            1.0,
        ),
        (format!("{} > bool 0.2", sum("stream_pause_duration_seconds_bucket{le='+Inf'}")), 1.0),
    ] {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let value = ask(&listen, &query);
            if value == Some(expected) {
                break;
            }
            assert!(Instant::now() < deadline, "{query} is {value:?}, not {expected}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The value of an expression, once Prometheus has one.
fn ask(server: &str, query: &str) -> Option<f64> {
    let mut socket = TcpStream::connect(server).ok()?;
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    write!(socket, "GET /api/v1/query?query={encoded} HTTP/1.0\r\nHost: {server}\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let body: Value = serde_json::from_str(body).ok()?;
    body["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

#[test]
fn spans_of_the_example_follow_the_conventions() {
    let output = example("tracing").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let span = |name: &str| {
        let spans = said.split("Span #");
        let named = format!("Name         : {name}\n");
        spans
            .filter(|span| span.contains(&named))
            .last()
            .unwrap_or_else(|| panic!("{name}: {said}"))
    };
    let trace =
        |span: &str| span.split("TraceId").nth(1).unwrap().lines().next().unwrap().to_owned();
    let request = span("GET /settings");
    let query = span("SELECT pg_catalog.pg_settings");
    assert_eq!(trace(query), trace(request));
    assert!(query.contains("Kind         : Client"));
    assert!(query.contains("db.namespace: String(Owned(\"postgres|pg_catalog\"))"));
    assert!(query.contains("WHERE (name like $1)") && !said.contains("log%"), "{query}");
    let failed = span("SELECT v_missing");
    assert!(failed.contains("Status       : Error"));
    assert!(failed.contains("error.type: String(Owned(\"42P01\"))"), "{failed}");
    assert!(said.contains("the other query failed as expected: true"));
}

/// Returns the command of an example, with the server of this binary.
fn example(name: &str) -> Command {
    let mut command = Command::new(crate::support::example::path(name));
    command.env("DATABASE_URL", crate::support::cluster().url());
    command
}

fn program(name: &str) -> PathBuf {
    ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]
        .map(|folder| Path::new(folder).join(name))
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is missing: run scripts/test.sh, which installs it"))
}

/// A process, until it is dropped.
struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next line with this text in it.
    fn line_with(&mut self, part: &str) -> String {
        let mut before = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "{part:?} did not come: {before}");
            if line.contains(part) {
                return line.trim_end().to_owned();
            }
            before += &line;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
