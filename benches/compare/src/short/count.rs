//! Counts the cost of a short query: the same on every run, whatever the load.
//!
//! Each figure is the difference between many queries and few, so that connecting, preparing and
//! the first queries do not count.

use std::{collections::BTreeMap, fmt::Write, path::Path, process::Command, thread};

use super::{Access, INSTRUMENTED, Load, Programs, delay::Delay, serve, url};
use crate::document;

/// The numbers of queries. A statement is prepared within the first few.
const QUERIES: [usize; 2] = [100, 400];

/// The maximum increase above the document that is not reported.
const MARGIN: f64 = 0.05;

const POOL: Access = Access::Pool { tasks: 1, size: 8 };

/// This crate's queries that [`check`] counts.
const CHECKED: [(&str, &str); 2] = [("v_simple", "by key"), ("v_simple", "page of 20")];

/// This crate's queries that only [`write`] counts. Figures with metrics depend on how often the
/// exporter collects its histograms, which depends on time.
const MORE: [(&str, &str); 5] = [
    ("v_simple", "by key, instrumented"),
    ("v_simple", "by key, stream"),
    ("v_simple", "page of 20, instrumented"),
    ("tv_user", "by key, filter"),
    ("tv_user", "by key, filter, instrumented"),
];

const PEERS: [(&str, &str, &str); 5] = [
    ("minimal", "v_simple", "by key"),
    ("tokio-postgres", "v_simple", "by key"),
    ("tokio-postgres", "v_simple", "page of 20"),
    ("sqlx", "v_simple", "by key"),
    ("sqlx", "v_simple", "page of 20"),
];

/// Relation, client and mode.
type Key = [String; 3];

/// Counts for every client, and writes the figures into the document.
pub fn write(programs: &Programs) {
    let cluster = serve();
    let delay = Delay::before(cluster.folder(), cluster.port());
    let url = url(delay.folder(), cluster.port());
    let mut text = String::from(
        "| relation | client | mode | instructions | bytes copied | allocations | bytes allocated |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let ours =
        CHECKED.iter().chain(&MORE).map(|(relation, mode)| ("fraiseql-wire", *relation, *mode));
    let pooled = ["fraiseql-wire", "tokio-postgres", "sqlx"];
    let loads = ours
        .chain(PEERS)
        .map(|(client, relation, mode)| Load::new(client, mode, relation))
        .chain(pooled.map(|client| Load::new(client, "by key", "v_simple").with(POOL, 0)));
    let mut rows: Vec<(Key, String)> = loads
        .map(|load| {
            let program = programs.of(&load);
            let [instructions] = each(|queries| instructions(program, &load, &url, queries));
            let [copied, _] = each(|queries| dhat(program, &load, &url, queries, "copy"));
            let [bytes, blocks] = each(|queries| dhat(program, &load, &url, queries, "heap"));
            let figures = format!("{instructions:.0} | {copied:.0} | {blocks:.1} | {bytes:.0}");
            (key(&load), figures)
        })
        .collect();
    rows.sort();
    for ([relation, client, mode], figures) in &rows {
        writeln!(text, "| {relation} | {client} | {mode} | {figures} |").unwrap();
    }
    document::replace("short queries, counted", &text);
    document::replace("short queries, instructions", &summary(&rows));
    print!("{text}");
}

/// Returns the table of instructions for `v_simple`, with a column per client.
fn summary(rows: &[(Key, String)]) -> String {
    let clients = ["fraiseql-wire", "tokio-postgres", "sqlx", "minimal"];
    let mut text = format!("| `v_simple` | {} |\n|---|---|---|---|---|\n", clients.join(" | "));
    for mode in ["by key", "by key, pool", "page of 20"] {
        let cells = clients.map(|client| {
            let row = rows.iter().find(|(key, _)| *key == ["v_simple", client, mode]);
            row.and_then(|(_, figures)| figures.split(" | ").next()).unwrap_or_default()
        });
        writeln!(text, "| {mode} | {} |", cells.join(" | ")).unwrap();
    }
    text
}

/// Counts this crate's queries, and compares with the document. Returns whether all figures are
/// within the margin.
pub fn check(program: &Path) -> bool {
    let document = document::read();
    let written: BTreeMap<Key, [f64; 2]> = document::part(&document, "short queries, counted")
        .lines()
        .filter_map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let [_, relation, client, mode, instructions, copied, ..] = cells[..] else {
                return None;
            };
            let key = [relation, client, mode].map(str::to_owned);
            Some((key, [instructions.parse().ok()?, copied.parse().ok()?]))
        })
        .collect();
    let cluster = serve();
    let delay = Delay::before(cluster.folder(), cluster.port());
    let url = url(delay.folder(), cluster.port());
    let mut passed = true;
    for (relation, mode) in CHECKED {
        let load = Load::new("fraiseql-wire", mode, relation);
        let key = key(&load);
        let was = written.get(&key).unwrap_or_else(|| panic!("{key:?} is not in the document"));
        let [instructions] = each(|queries| instructions(program, &load, &url, queries));
        let [copied, _] = each(|queries| dhat(program, &load, &url, queries, "copy"));
        for (what, count, was) in
            [("instructions", instructions, was[0]), ("bytes copied", copied, was[1])]
        {
            let change = (count / was - 1.0) * 100.0;
            println!("{relation} {mode:<22} {what} {count:>7.0}, was {was:>7.0}: {change:+.1} %");
            passed &= count <= was * (1.0 + MARGIN);
        }
    }
    passed
}

fn key(load: &Load) -> Key {
    let mode = match load.access {
        Access::Pool { .. } => format!("{}, pool", load.mode),
        _ => load.mode.clone(),
    };
    let instrumented = if load.instrumented { INSTRUMENTED } else { "" };
    [load.relation.clone(), load.client.clone(), mode + instrumented]
}

/// Returns the figures per query.
fn each<const N: usize>(count: impl Fn(usize) -> [f64; N] + Sync) -> [f64; N] {
    let [few, many] = thread::scope(|scope| {
        let count = &count;
        QUERIES.map(|queries| scope.spawn(move || count(queries))).map(|run| run.join().unwrap())
    });
    let queries = (QUERIES[1] - QUERIES[0]) as f64;
    std::array::from_fn(|i| (many[i] - few[i]) / queries)
}

/// Counts the instructions of a process.
fn instructions(program: &Path, load: &Load, url: &str, queries: usize) -> [f64; 1] {
    let name = format!("{}-{queries}", key(load).join("-")).replace([' ', ','], "-");
    // For callgrind_annotate, which shows their functions.
    let profile = program.with_file_name(format!("callgrind.short-{name}"));
    let tool = ["--tool=callgrind".into(), format!("--callgrind-out-file={}", profile.display())];
    let text = valgrind(&tool, program, load, url, queries);
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    [collected.unwrap_or_else(|| panic!("{text}")).1.trim().parse().unwrap()]
}

/// Counts bytes and blocks of a process. `heap`: allocated ones. `copy`: those that `memcpy` and
/// similar functions copy.
fn dhat(program: &Path, load: &Load, url: &str, queries: usize, mode: &str) -> [f64; 2] {
    let tool = ["--tool=dhat".into(), format!("--mode={mode}"), "--dhat-out-file=/dev/null".into()];
    let text = valgrind(&tool, program, load, url, queries);
    let total = text.lines().find_map(|line| line.split_once("Total: ")).unwrap_or_else(|| {
        panic!("{text}");
    });
    let numbers = total.1.replace(',', "");
    let mut numbers = numbers.split_whitespace().filter_map(|word| word.parse().ok());
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

/// Runs a load with valgrind. Returns its report.
fn valgrind(tool: &[String], program: &Path, load: &Load, url: &str, queries: usize) -> String {
    let plain = super::command(program, "count", load, url, queries);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(tool).arg(plain.get_program()).args(plain.get_args());
    let output = valgrind.output().expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{valgrind:?}: {text}");
    text
}
