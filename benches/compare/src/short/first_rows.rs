//! The time to the first row of a query.

use std::{fmt::Write, time::Duration};

use super::Programs;
use crate::{
    clients::Task,
    cluster::Cluster,
    command,
    data::{FIRST, SLOW},
    measure::{Cost, median, noise},
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
    pub libpq: Duration,
    /// The fastest driver other than this crate. Not libpq, which blocks.
    pub best_other: Duration,
}

/// Measures each client in turns.
pub fn first_rows(cluster: &Cluster, rounds: usize, programs: &Programs) -> FirstRows {
    eprintln!("first rows");
    run_sql(cluster, &FIRST.sql());
    run_sql(cluster, &SLOW.slow_sql());
    let sets = [(&FIRST, 500), (&SLOW, 20)];
    let mut costs = CLIENTS.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..rounds {
        for ((client, mode), costs) in CLIENTS.iter().zip(&mut costs) {
            for ((data, repeat), costs) in sets.iter().zip(costs) {
                let once = Task::of(data, client, mode, cluster.port());
                let task = Task { repeat: *repeat, ..once };
                costs.push(measured(command(programs.of_client(client), &task, 0)));
            }
        }
    }
    let times = costs.each_ref().map(|sets| sets.each_ref().map(|costs| median(costs, first_row)));
    let small = || CLIENTS.into_iter().zip(times).map(|(client, [small, _])| (client, small));
    let of = |wanted| small().find(|(client, _)| *client == wanted).unwrap().1;
    let others =
        small().filter(|((client, _), _)| !["fraiseql-wire", "libpq", "minimal"].contains(client));
    FirstRows {
        table: table(&times, &costs),
        ours: of(OURS),
        libpq: of(LIBPQ),
        best_other: others.map(|(_, time)| time).min().unwrap(),
    }
}

fn table(times: &[[Duration; 2]], costs: &[[Vec<Cost>; 2]]) -> String {
    let mut table = String::from(
        "| client | of 1,000 small rows, ms | ratio | noise \
         | of rows that take 5 ms each, ms | ratio | noise |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let first = times[0].map(ms);
    for (((client, mode), times), costs) in CLIENTS.iter().zip(times).zip(costs) {
        let [small, slow] = times.map(ms);
        let [small_noise, slow_noise] = costs.each_ref().map(|costs| noise(costs, first_row));
        let [small_ratio, slow_ratio] = [small / first[0], slow / first[1]];
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
