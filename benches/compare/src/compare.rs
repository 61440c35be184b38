//! Compares clients. They take turns, so that a slow moment of the machine affects all of them.

use std::{fmt::Write, fs, path::Path, process::Command, time::Duration};

use crate::{
    HBA,
    chart::{self, Bar},
    clients::Task,
    cluster::Cluster,
    command,
    data::{COMPARED, DataSet, Shape},
    document, make_reader,
    measure::{Cost, median, noise},
    replay, run as measured, run_sql, serve, this_program,
};

/// Ways to process a row, and the clients that support each. Others are compared with the first.
const GROUPS: [(&str, &[(&str, &str)]); 3] = [
    (
        "not decoded",
        &[
            ("fraiseql-wire", "raw"),
            ("fraiseql-wire", "chunk"),
            ("minimal", "raw"),
            ("tokio-postgres", "raw"),
            ("sqlx", "raw"),
            ("libpq", "raw"),
            ("libpq", "raw, row by row"),
        ],
    ),
    (
        "typed",
        &[
            ("fraiseql-wire", "typed"),
            ("minimal", "typed"),
            ("tokio-postgres", "typed"),
            ("sqlx", "typed"),
            (EARLIER, "typed"),
        ],
    ),
    (
        "value",
        &[
            ("fraiseql-wire", "value"),
            ("minimal", "value"),
            ("tokio-postgres", "value"),
            ("sqlx", "value"),
            (EARLIER, "value"),
        ],
    ),
];

const EARLIER: &str = "fraiseql-wire 2.19.0";

/// The sources of rows, and the threads of the client's runtime (0: the current thread).
const SCENES: [(&str, bool, usize); 3] =
    [("Postgres", false, 2), ("replay", true, 0), ("replay, 2 threads", true, 2)];

/// Compares all clients. `earlier`: the program with the earlier release.
pub fn run(rounds: usize, earlier: &Path) {
    let cluster = serve(&COMPARED);
    let mut text = machine(rounds);
    for (scene, is_replay, threads) in SCENES {
        let turns = Turns { server: cluster.port(), is_replay, threads, rounds, earlier };
        let mut charts = Vec::new();
        for data in &COMPARED {
            // A second thread changes little, except for small rows.
            let changes_little = threads > 0 || data.table == "large";
            if is_replay && changes_little && data.table != "small" {
                continue;
            }
            for (group, clients) in GROUPS {
                if group == "value" && data.table != "small" {
                    continue;
                }
                let title = format!("{scene}: {} × {}, {group}", data.rows, data.table);
                eprintln!("{title}");
                let costs = turns.measure(clients, data);
                writeln!(text, "#### {title}\n\n{}", table(clients, &costs)).unwrap();
                if data.table == "small" {
                    charts.push((group.to_owned(), bars(clients, &costs)));
                }
            }
        }
        if threads == 0 || !is_replay {
            let name = if is_replay { "replay" } else { "postgres" };
            let title = format!("What a small row costs the client: {scene}");
            let svg = chart::svg(&title, "CPU time, ns a row", &charts);
            fs::write(document::folder().join(format!("benchmarks-{name}.svg")), svg).unwrap();
        }
    }
    document::replace("comparison", &text);
    document::replace("connecting", &connecting(rounds));
    print!("{}", document::read());
}

/// Measures the cost of a connection for its client: without a password, or with one that the
/// client has used before.
fn connecting(rounds: usize) -> String {
    let cluster = Cluster::start(&format!("host all scram all scram-sha-256\n{HBA}"));
    let cluster = cluster.unwrap_or_else(|e| panic!("{e}"));
    make_reader(&cluster);
    run_sql(&cluster, "create role scram login password 'secret'");
    let mut text = String::from(
        "| client | trusted, CPU µs | SCRAM, CPU µs | ratio | trusted, ms | SCRAM, ms |\n\
         |---|---|---|---|---|---|\n",
    );
    let clients = ["fraiseql-wire", "tokio-postgres"];
    let mut costs = clients.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..rounds {
        for (client, costs) in clients.iter().zip(&mut costs) {
            for (role, costs) in ["reader", "scram"].iter().zip(costs) {
                let task = Task {
                    client: (*client).into(),
                    mode: format!("connect as {role}"),
                    port: cluster.port(),
                    table: String::new(),
                    shape: Shape::Customer,
                    repeat: 500,
                };
                costs.push(measured(command(&this_program(), &task, 0)));
            }
        }
    }
    for (client, costs) in clients.iter().zip(&costs) {
        let each = |of: fn(&Cost) -> Duration| {
            costs
                .each_ref()
                .map(|costs| median(costs, of).as_secs_f64() * 1e6 / costs[0].rows as f64)
        };
        let ([trust, scram], walls) = (each(|cost| cost.cpu), each(|cost| cost.wall));
        let [wall_trust, wall_scram] = walls.map(|us| us / 1e3);
        writeln!(
            text,
            "| {client} | {trust:.0} | {scram:.0} | {:.2} | {wall_trust:.2} | {wall_scram:.2} |",
            scram / trust
        )
        .unwrap();
    }
    text
}

/// How clients are compared.
struct Turns<'a> {
    /// The port of the server.
    server: u16,
    is_replay: bool,
    threads: usize,
    rounds: usize,
    /// The program with the earlier release.
    earlier: &'a Path,
}

impl Turns<'_> {
    /// Measures each client in turns. Returns the costs per client.
    fn measure(&self, clients: &[(&str, &str)], data: &DataSet) -> Vec<Vec<Cost>> {
        let this = this_program();
        let runs: Vec<_> = clients
            .iter()
            .map(|(client, mode)| {
                let program = if *client == EARLIER { self.earlier } else { &this };
                let task = |port| Task::of(data, client, mode, port);
                let answers = self.is_replay.then(|| {
                    replay::record(self.server, |port| {
                        measured(command(program, &task(port), self.threads));
                    })
                });
                let port = answers.as_ref().map_or(self.server, replay::play);
                (program, task(port), answers)
            })
            .collect();
        let mut costs = vec![Vec::new(); clients.len()];
        for _ in 0..self.rounds {
            for ((program, task, _), costs) in runs.iter().zip(&mut costs) {
                let cost = measured(command(program, task, self.threads));
                assert_eq!(cost.rows, data.rows as u64, "{task:?}");
                costs.push(cost);
            }
        }
        costs
    }
}

fn table(clients: &[(&str, &str)], costs: &[Vec<Cost>]) -> String {
    let mut table = String::from(
        "| client | wall, ms | ratio | noise | CPU, ns a row | ratio | first row, ms | peak memory, MiB |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let ours = costs.first().unwrap();
    let (our_wall, our_cpu) = (median(ours, |c| c.wall), median(ours, |c| c.cpu));
    for ((client, mode), costs) in clients.iter().zip(costs) {
        let (wall, cpu) = (median(costs, |c| c.wall), median(costs, |c| c.cpu));
        writeln!(
            table,
            "| {client}, {mode} | {:.0} | {:.2} | {:.0} % | {:.0} | {:.2} | {:.1} | {:.1} |",
            wall.as_secs_f64() * 1e3,
            wall.as_secs_f64() / our_wall.as_secs_f64(),
            noise(costs, |c| c.wall),
            ns_a_row(cpu, costs),
            cpu.as_secs_f64() / our_cpu.as_secs_f64(),
            median(costs, |c| c.first_row).as_secs_f64() * 1e3,
            median(costs, |c| c.memory) as f64 / 1024.0,
        )
        .unwrap();
    }
    table
}

fn bars(clients: &[(&str, &str)], costs: &[Vec<Cost>]) -> Vec<Bar> {
    let bar = |((client, mode), costs): (&(&str, &str), &Vec<Cost>)| Bar {
        label: format!("{client}, {mode}"),
        value: ns_a_row(median(costs, |cost| cost.cpu), costs),
        is_ours: *client == "fraiseql-wire",
    };
    clients.iter().zip(costs).map(bar).collect()
}

fn ns_a_row(cpu: Duration, costs: &[Cost]) -> f64 {
    cpu.as_secs_f64() * 1e9 / costs.first().unwrap().rows as f64
}

pub fn machine(rounds: usize) -> String {
    let first = |program: &str, arg: &str| {
        let output = Command::new(program).arg(arg).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name")).collect();
    let model =
        models.first().map_or("an unknown processor", |m| m.trim_start_matches([' ', '\t', ':']));
    let postgres = crate::cluster::find_binaries()
        .map(|folder| first(&folder.join("postgres").display().to_string(), "--version"));
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let behind = lock.split(&format!("name = \"{name}\"\nversion = \"")).nth(1).unwrap_or("?");
        format!("{name} {}", behind.split('"').next().unwrap_or_default())
    };
    let text = format!(
        "{} cores of {model}; {}; {}; {}; {}; libpq of {}; medians of {rounds} rounds; noise: the slowest \
         round above the fastest.",
        models.len(),
        postgres.unwrap_or_default(),
        first("rustc", "--version"),
        version("tokio-postgres"),
        version("sqlx"),
        version("pq-src"),
    );
    wrapped(&text) + "\n\n"
}

/// Breaks a paragraph into lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= 100 => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}
