//! Compares the costs of the same rows with this crate and with other clients.
//!
//! `scripts/bench.sh` and `scripts/bench-instructions.sh` run it; docs/benchmarks.md has the
//! results.

#[path = "../../../examples/support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
mod chart;
mod clients;
#[path = "../../../examples/support/cluster.rs"]
#[allow(dead_code)]
mod cluster;
mod compare;
mod data;
mod document;
mod instructions;
mod measure;
mod replay;
mod short;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use clients::Task;
use cluster::Cluster;
use data::{COMPARED, DataSet, Shape};
use measure::{Cost, measure};
use short::{Load, Programs};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["measure", client, mode, port, table, lines, threads, repeat] => {
            let shape = match lines.parse().unwrap() {
                0 => Shape::Customer,
                lines => Shape::Order { lines },
            };
            let [client, mode, table] = [client, mode, table].map(str::to_owned);
            let (port, repeat) = (port.parse().unwrap(), repeat.parse().unwrap());
            let task = Task { client, mode, port, table, shape, repeat };
            println!("{}", measure(task, threads.parse().unwrap()).to_line());
        }
        ["compare", rounds, earlier] => compare::run(rounds.parse().unwrap(), Path::new(earlier)),
        ["replay", client, mode, table] => replay_for(client, mode, table),
        ["instructions", "write"] => instructions::write(),
        // Both, so that one run reports every increase.
        ["instructions", "check"] => finish_check(&[instructions::check(), short_check()]),
        ["short", "check"] => finish_check(&[short_check()]),
        ["short", "time", url, limit, ref load @ ..] => {
            short::time(Load::from_args(load), url, Duration::from_millis(limit.parse().unwrap()));
        }
        ["short", "count", url, queries, ref load @ ..] => {
            short::count(Load::from_args(load), url, queries.parse().unwrap());
        }
        ["short", "compare", rounds, plain] => {
            short::compare(rounds.parse().unwrap(), &Programs::with(Path::new(plain)));
        }
        ["short", "share", rounds, plain] => {
            short::share(rounds.parse().unwrap(), &Programs::with(Path::new(plain)));
        }
        ["short", "write", plain] => short::write(&Programs::with(Path::new(plain))),
        _ => {
            eprintln!("use scripts/bench.sh or scripts/bench-instructions.sh");
            std::process::exit(2);
        }
    }
}

fn short_check() -> bool {
    short::check(&this_program())
}

fn finish_check(passed: &[bool]) {
    if passed.contains(&false) {
        println!(
            "A figure exceeds docs/benchmarks.md by more than the margin. If that is intended, run \
             scripts/bench-instructions.sh and give the reason in the commit."
        );
        std::process::exit(1);
    }
}

/// Replays the answers for a client until it is interrupted, for a profiler.
fn replay_for(client: &str, mode: &str, table: &str) {
    let data = COMPARED.iter().find(|data| data.table == table).unwrap();
    let cluster = serve([data]);
    let mut task = Task::of(data, client, mode, 0);
    let answers = replay::record(cluster.port(), |port| {
        task.port = port;
        run(command(&this_program(), &task, 0));
    });
    task.port = replay::play(&answers);
    println!("{:?}", command(&this_program(), &task, 0));
    loop {
        std::thread::park();
    }
}

/// The role of the clients has no password, because not every client supports SCRAM. It can only
/// read.
const HBA: &str = "local all postgres,reader trust\nhost all reader all trust\n";

/// Creates the role, which can read every table that is created later.
fn make_reader(cluster: &Cluster) {
    run_sql(
        cluster,
        "revoke create on schema public from public; create role reader login; \
         alter default privileges grant select on tables to reader",
    );
}

/// Starts a server with these tables.
fn serve<'a>(tables: impl IntoIterator<Item = &'a DataSet>) -> Cluster {
    let cluster = Cluster::start(HBA).unwrap_or_else(|e| panic!("{e}"));
    make_reader(&cluster);
    for table in tables {
        run_sql(&cluster, &table.sql());
    }
    cluster
}

/// Runs one statement at a time, because VACUUM does not run in a transaction.
fn run_sql(cluster: &Cluster, sql: &str) {
    for statement in sql.split(';') {
        let socket = format!(".s.PGSQL.{}", cluster.port());
        clients::run_sql(&cluster.folder().join(socket), statement);
    }
}

/// Returns the command that measures in its own process.
fn command(program: &Path, task: &Task, threads: usize) -> Command {
    let lines = match task.shape {
        Shape::Customer => 0,
        Shape::Order { lines } => lines,
    };
    let mut command = Command::new(program);
    command.args(["measure", &task.client, &task.mode, &task.port.to_string(), &task.table]);
    command.args([lines, threads, task.repeat].map(|number| number.to_string()));
    command
}

fn run(mut command: Command) -> Cost {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(Cost::from_line).unwrap_or_else(|| {
        panic!("{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}
