//! Compares clients, in turns.

use std::{fmt::Write, time::Duration};

use super::{
    Access, Load, PAGE, Programs, command, first_rows::first_rows, measure::Cost, serve, url,
};
use crate::{
    document,
    measure::{median, noise, ratio, turns},
};

/// How long each client runs in each round, in milliseconds, after a warm-up of a third of that
/// time.
const RUN: usize = 400;

/// A client, and its mode. The others of a list are compared with the first.
type Client = (&'static str, &'static str);

const PEERS: [Client; 2] = [("tokio-postgres", "by key"), ("sqlx", "by key")];
pub const OURS: Client = ("fraiseql-wire", "by key");
const FILTER: Client = ("fraiseql-wire", "by key, filter");
const INSTRUMENTED: Client = ("fraiseql-wire", "by key, instrumented");
const BESIDE: Client = ("fraiseql-wire", "by key, beside sqlx");
/// Blocks, so it is not compared with the drivers.
const LIBPQ: Client = ("libpq", "by key");
const MINIMAL: Client = ("minimal", "by key");

const ONE_TASK: &[Client] =
    &[OURS, FILTER, INSTRUMENTED, BESIDE, PEERS[0], PEERS[1], LIBPQ, MINIMAL];
const SERVERS_TASK: &[Client] = &[OURS, PEERS[0], PEERS[1], MINIMAL];
const POOLED: &[Client] = &[OURS, INSTRUMENTED, PEERS[0], PEERS[1]];
const PAGES: &[Client] = &[("fraiseql-wire", PAGE), ("tokio-postgres", PAGE), ("sqlx", PAGE)];
/// A client of sqlx runs one query at a time.
const SHARED: &[Client] = &[OURS, PEERS[0]];

const RELATIONS: [&str; 3] = ["v_simple", "tv_user", "v_deep"];
const TASKS: usize = 32;

/// Clients that take turns.
struct Scene {
    title: String,
    clients: &'static [Client],
    loads: Vec<Load>,
}

fn scenes() -> Vec<Scene> {
    let scene = |what: &str, relation: &str, clients: &'static [Client], access, threads| Scene {
        title: format!("`{relation}`, {what}"),
        clients,
        loads: clients
            .iter()
            .map(|(client, mode)| Load::new(client, mode, relation).with(access, threads))
            .collect(),
    };
    let pool = Access::Pool { tasks: TASKS, size: 8 };
    let shared = Access::Shared { tasks: TASKS, clients: 1 };
    let mut scenes = Vec::new();
    for relation in RELATIONS {
        scenes.push(scene("one task", relation, ONE_TASK, Access::Own, 0));
    }
    scenes.push(scene("one task, 2 threads", "v_simple", SERVERS_TASK, Access::Own, 2));
    scenes.push(scene("one task, pages of 20", "v_simple", PAGES, Access::Own, 0));
    for relation in RELATIONS {
        scenes.push(scene("32 tasks, pool of 8", relation, POOLED, pool, 2));
    }
    for relation in ["v_simple", "tv_user"] {
        scenes.push(scene("32 tasks, one client", relation, SHARED, shared, 2));
        scenes.push(scene("32 tasks, one client, one thread", relation, SHARED, shared, 0));
    }
    scenes
}

/// Runs every client, and writes the tables into the document.
pub fn run(rounds: usize, programs: &Programs) {
    let cluster = serve();
    let url = url(cluster.folder(), cluster.port());
    let mut summary = String::from(
        "| | fraiseql-wire, µs | best other driver, µs | ratio |\n|---|---|---|---|\n",
    );
    // A short answer is one read: its first row is there when all of it is.
    let mut blocking = String::new();
    let mut tables = String::new();
    for Scene { title, clients, loads } in scenes() {
        eprintln!("{title}");
        let mut costs = vec![Vec::new(); loads.len()];
        for round in 0..rounds {
            for i in turns(loads.len(), round) {
                costs[i].push(run_load(&loads[i], programs, &url));
            }
        }
        writeln!(tables, "#### {title}\n\n{}", table(clients, &costs)).unwrap();
        let wall = |i: usize| median(&costs[i], wall_of_query);
        let peers = (0..clients.len()).filter(|i| PEERS.iter().any(|peer| peer.0 == clients[*i].0));
        let best = peers.min_by_key(|i| wall(*i)).unwrap();
        let beside = |what: &str, other: usize| {
            let ratio = ratio(&costs[0], &costs[other], wall_of_query);
            let (ours, other) = (us(wall(0)), us(wall(other)));
            format!("| {title}{what} | {ours:.1} | {other:.1} | {ratio:.2} |\n")
        };
        summary.push_str(&beside("", best));
        if let Some(libpq) = clients.iter().position(|client| *client == LIBPQ) {
            blocking.push_str(&beside(", beside libpq row by row", libpq));
        }
    }
    summary.push_str(&blocking);
    let first = first_rows(&cluster, rounds, programs);
    let what = "first of 1,000 rows";
    for (title, (other, ratio)) in [
        (what.to_owned(), first.best_other),
        (format!("{what}, beside libpq row by row"), first.libpq),
    ] {
        let (ours, other) = (us(first.ours), us(other));
        writeln!(summary, "| {title} | {ours:.1} | {other:.1} | {ratio:.2} |").unwrap();
    }
    let machine = crate::compare::machine(rounds);
    document::replace("short queries", &format!("{machine}{summary}"));
    document::replace("short queries, each client", &tables);
    document::replace("first rows", &first.table);
    print!("{machine}{summary}\n{tables}{}", first.table);
}

pub fn run_load(load: &Load, programs: &Programs, url: &str) -> Cost {
    let mut command = command(programs.of(load), "time", load, url, RUN);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(Cost::from_line).unwrap_or_else(|| {
        panic!("{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn table(clients: &[Client], costs: &[Vec<Cost>]) -> String {
    let mut table = String::from(
        "| client | wall, µs a query | ratio | noise | CPU, µs a query | ratio | p50, µs | p99, µs |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let first = costs.first().unwrap();
    for ((client, mode), costs) in clients.iter().zip(costs) {
        let (wall, cpu) = (us(median(costs, wall_of_query)), us(median(costs, cpu_of_query)));
        writeln!(
            table,
            "| {client}, {mode} | {wall:.1} | {:.2} | {:.0} % | {cpu:.1} | {:.2} | {:.0} | {:.0} |",
            ratio(costs, first, wall_of_query),
            noise(costs, wall_of_query),
            ratio(costs, first, cpu_of_query),
            us(median(costs, |cost| cost.p50)),
            us(median(costs, |cost| cost.p99)),
        )
        .unwrap();
    }
    table
}

pub fn wall_of_query(cost: &Cost) -> Duration {
    cost.wall.div_f64(cost.queries as f64)
}

fn cpu_of_query(cost: &Cost) -> Duration {
    cost.cpu.div_f64(cost.queries as f64)
}

pub fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
