//! Instructions per row, counted by callgrind: the same on every run, whatever the load.

use std::{collections::BTreeMap, fmt::Write, path::Path, process::Command};

use crate::{
    HBA,
    certificates::Authority,
    clients::{AUTHORITY, Task},
    cluster::{Cluster, Setup},
    command,
    data::{COUNTED, Shape},
    document, make_reader, replay, run, run_sql, serve, this_program,
};

const MODES: [(&str, &str, usize); 14] = [
    ("fraiseql-wire", "chunk", 0),
    ("fraiseql-wire", "raw", 0),
    ("fraiseql-wire", "typed", 0),
    ("fraiseql-wire", "typed, metrics", 0),
    ("fraiseql-wire", "value", 0),
    ("fraiseql-wire", "where_rust, typed", 0),
    ("fraiseql-wire", "typed", 1),
    ("minimal", "raw", 0),
    ("minimal", "typed", 0),
    ("minimal", "value", 0),
    ("minimal", "typed", 1),
    ("tokio-postgres", "raw", 0),
    ("tokio-postgres", "typed", 0),
    ("tokio-postgres", "typed", 1),
];

const MORE: [(&str, &str, usize); 7] = [
    ("tokio-postgres", "value", 0),
    ("tokio-postgres", "typed, simple query", 0),
    ("sqlx", "raw", 0),
    ("sqlx", "typed", 0),
    ("sqlx", "value", 0),
    ("sqlx", "typed", 1),
    ("libpq", "raw", 0),
];

/// With TLS, from the server itself: an encrypted answer cannot be replayed to another client.
const ENCRYPTED: [(&str, &str); 2] = [("fraiseql-wire", "raw, TLS"), ("minimal", "raw, TLS")];

/// The maximum increase that is not reported.
const MARGIN: f64 = 0.05;

/// Counts by data set, client and mode.
type Counts = BTreeMap<(String, String, String), f64>;

/// Counts for every client, and writes the figures into the document.
pub fn write() {
    let mut counts = count(MODES.iter().chain(&MORE));
    counts.append(&mut count_encrypted(ENCRYPTED.iter()));
    let mut table = String::from("| of | client | mode | instructions each |\n|---|---|---|---|\n");
    for ((rows, client, mode), count) in &counts {
        writeln!(table, "| {rows} | {client} | {mode} | {count:.0} |").unwrap();
    }
    document::replace("instructions", &table);
    document::replace("instructions, side by side", &side_by_side(&counts));
    print!("{table}");
}

/// Returns the table of the modes that most clients have, with a column per client.
fn side_by_side(counts: &Counts) -> String {
    let clients = ["fraiseql-wire", "tokio-postgres", "sqlx", "libpq", "minimal"];
    let mut table = format!("| | {} |\n|---|---|---|---|---|---|\n", clients.join(" | "));
    for (rows, mode) in
        [("small", "raw"), ("small", "typed"), ("small", "value"), ("medium", "typed")]
    {
        let cells = clients.map(|client| {
            let count = counts.get(&(rows.into(), client.into(), mode.into()));
            count.map(|count| format!("{count:.0}")).unwrap_or_default()
        });
        writeln!(table, "| {rows}, {mode} | {} |", cells.join(" | ")).unwrap();
    }
    table
}

/// Counts this crate's instructions, and compares with the document. Returns whether all figures
/// are within the margin.
pub fn check() -> bool {
    let document = document::read();
    let written: Counts = document::part(&document, "instructions")
        .lines()
        .filter_map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let [_, rows, client, mode, count, _] = cells[..] else { return None };
            let [rows, client, mode] = [rows, client, mode].map(str::to_owned);
            Some(((rows, client, mode), count.parse().ok()?))
        })
        .collect();
    let mut failed = false;
    let is_ours = |client: &str| client == "fraiseql-wire";
    let mut counts = count(MODES.iter().filter(|(client, ..)| is_ours(client)));
    counts.append(&mut count_encrypted(ENCRYPTED.iter().filter(|(client, _)| is_ours(client))));
    for (key, count) in counts {
        let was = written.get(&key).unwrap_or_else(|| panic!("{key:?} is not in the document"));
        let change = count / was - 1.0;
        println!(
            "{:<8} {:<20} {count:>7.0}, was {was:>7.0}: {:+.1} %",
            key.0,
            key.2,
            change * 100.0
        );
        failed |= change > MARGIN;
    }
    !failed
}

fn count<'a>(modes: impl Iterator<Item = &'a (&'a str, &'a str, usize)>) -> Counts {
    let cluster = serve(COUNTED.as_flattened());
    let mut counts = Counts::new();
    for (client, mode, size) in modes {
        let [few, many] = COUNTED[*size].map(|data| {
            let task = |port| Task::of(&data, client, mode, port);
            let answers = replay::record(cluster.port(), |port| {
                let cost = run(command(&this_program(), &task(port), 0));
                assert_eq!(cost.rows, data.rows as u64);
            });
            (data.rows as f64, instructions(&task(replay::play(&answers))))
        });
        let rows = match COUNTED[*size][0].shape {
            Shape::Customer => "small",
            Shape::Order { .. } => "medium",
        };
        let count = (many.1 - few.1) / (many.0 - few.0);
        counts.insert((rows.into(), (*client).into(), (*mode).into()), count);
    }
    counts
}

/// Counts with a server that uses TLS.
fn count_encrypted<'a>(modes: impl Iterator<Item = &'a (&'a str, &'a str)>) -> Counts {
    let authority = Authority::new("benchmarks");
    let pair = authority.server("127.0.0.1", &["127.0.0.1"]);
    let cluster = Cluster::start_with(&Setup {
        hba: HBA,
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt -c ssl_key_file={folder}/server.key",
        files: &[("server.crt", &pair.certificate), ("server.key", &pair.key)],
        ..Setup::default()
    });
    let cluster = cluster.unwrap_or_else(|e| panic!("{e}"));
    make_reader(&cluster);
    let file = this_program().with_file_name("authority.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    let sizes = COUNTED[0];
    sizes.iter().for_each(|data| run_sql(&cluster, &data.sql()));
    let mut counts = Counts::new();
    for (client, mode) in modes {
        let [few, many] = sizes.map(|data| {
            let task = Task::of(&data, client, mode, cluster.port());
            (data.rows as f64, instructions_with(&task, &file))
        });
        let count = (many.1 - few.1) / (many.0 - few.0);
        counts.insert(("small".into(), (*client).into(), (*mode).into()), count);
    }
    std::fs::remove_file(&file).unwrap();
    counts
}

/// Counts the instructions of a process.
fn instructions(task: &Task) -> f64 {
    instructions_with(task, Path::new(""))
}

fn instructions_with(task: &Task, authority: &Path) -> f64 {
    let plain = command(&this_program(), task, 0);
    let profile = this_program().with_file_name("callgrind").display().to_string();
    let name = format!("{} {} {}", task.client, task.mode, task.table).replace([' ', ','], "-");
    let mut valgrind = Command::new("valgrind");
    // For callgrind_annotate, which shows their functions.
    valgrind.arg(format!("--callgrind-out-file={profile}.{name}"));
    valgrind.args(["--tool=callgrind", "--dump-instr=no"]).arg(plain.get_program());
    valgrind.env(AUTHORITY, authority);
    let output = valgrind.args(plain.get_args()).output().expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{valgrind:?}: {text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    collected.unwrap_or_else(|| panic!("{valgrind:?}: {text}")).1.trim().parse().unwrap()
}
