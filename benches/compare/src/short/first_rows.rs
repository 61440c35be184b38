//! The time to the first row of a query.

use std::{fmt::Write, time::Duration};

use super::Programs;
use crate::{
    clients::Task,
    cluster::Cluster,
    command,
    data::{FIRST, SLOW},
    measure::{Cost, median, noise, ratio, turns},
    run as measured, run_sql,
};

/// The others are compared with the first.
const CLIENTS: [(&str, &str); 8] = [
    LIBPQ,
    OURS,
    ("fraiseql-wire", "raw, chunks of 1"),
    ("fraiseql-wire", "raw, chunks of 10000"),
    ("fraiseql-wire", "typed"),
    ("minimal", "raw"),
    ("tokio-postgres", "raw"),
    ("sqlx", "raw"),
];

const OURS: (&str, &str) = ("fraiseql-wire", "raw");
const LIBPQ: (&str, &str) = ("libpq", "raw, row by row");

/// The times to the first of 1,000 small rows, and the table of all clients.
pub struct FirstRows {
    pub table: String,
    pub ours: Duration,
    /// With the ratio of this crate to it.
    pub libpq: (Duration, f64),
    /// The same of the fastest driver other than this crate. Not libpq, which blocks.
    pub best_other: (Duration, f64),
}

/// Measures each client in turns.
pub fn first_rows(cluster: &Cluster, rounds: usize, programs: &Programs) -> FirstRows {
    eprintln!("first rows");
    run_sql(cluster, &FIRST.sql());
    run_sql(cluster, &SLOW.slow_sql());
    let sets = [(&FIRST, 500), (&SLOW, 20)];
    let mut costs = CLIENTS.map(|_| [Vec::new(), Vec::new()]);
    for round in 0..rounds {
        for i in turns(CLIENTS.len(), round) {
            let (client, mode) = CLIENTS[i];
            for ((data, repeat), costs) in sets.iter().zip(&mut costs[i]) {
                let once = Task::of(data, client, mode, cluster.port());
                let task = Task { repeat: *repeat, ..once };
                costs.push(measured(command(programs.of_client(client), &task, 0)));
            }
        }
    }
    let small = |i: usize| median(&costs[i][0], first_row);
    let of = |wanted| CLIENTS.iter().position(|client| *client == wanted).unwrap();
    let beside = |i: usize| (small(i), ratio(&costs[of(OURS)][0], &costs[i][0], first_row));
    let others = (0..CLIENTS.len())
        .filter(|i| !["fraiseql-wire", "libpq", "minimal"].contains(&CLIENTS[*i].0));
    FirstRows {
        table: table(&costs),
        ours: small(of(OURS)),
        libpq: beside(of(LIBPQ)),
        best_other: beside(others.min_by_key(|i| small(*i)).unwrap()),
    }
}

fn table(costs: &[[Vec<Cost>; 2]]) -> String {
    let mut table = String::from(
        "| client | of 1,000 small rows, ms | ratio | noise \
         | of rows that take 5 ms each, ms | ratio | noise |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let first = &costs[0];
    for ((client, mode), costs) in CLIENTS.iter().zip(costs) {
        let [small, slow] =
            costs.each_ref().map(|costs| median(costs, first_row).as_secs_f64() * 1e3);
        let [small_noise, slow_noise] = costs.each_ref().map(|costs| noise(costs, first_row));
        let [small_ratio, slow_ratio] = [0, 1].map(|i| ratio(&costs[i], &first[i], first_row));
        writeln!(
            table,
            "| {client}, {mode} | {small:.3} | {small_ratio:.2} | {small_noise:.0} % \
             | {slow:.2} | {slow_ratio:.2} | {slow_noise:.0} % |",
        )
        .unwrap();
    }
    table
}

fn first_row(cost: &Cost) -> Duration {
    cost.first_row
}
