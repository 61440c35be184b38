//! Compares one client, several clients, and pools of several sizes, in turns.

use std::fmt::Write;

use super::{
    Access, Load, Programs,
    compare::{OURS, run_load, us, wall_of_query},
    serve, url,
};
use crate::{
    document,
    measure::{median, noise},
};

const TASKS: [usize; 5] = [1, 8, 32, 128, 256];
const CONNECTIONS: [usize; 4] = [1, 2, 4, 8];
const RELATIONS: [&str; 2] = ["v_simple", "v_deep"];

/// One way to share connections, with each number of tasks.
struct Row {
    relation: &'static str,
    name: String,
    loads: [Load; TASKS.len()],
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for relation in RELATIONS {
        for (connections, is_pool) in
            [false, true].into_iter().flat_map(|is_pool| CONNECTIONS.map(|n| (n, is_pool)))
        {
            let name = match (connections, is_pool) {
                (1, false) => "one client".to_owned(),
                (n, false) => format!("{n} clients"),
                (n, true) => format!("pool of {n}"),
            };
            let loads = TASKS.map(|tasks| {
                let access = match is_pool {
                    false => Access::Shared { tasks, clients: connections },
                    true => Access::Pool { tasks, size: connections },
                };
                Load::new(OURS.0, OURS.1, relation).with(access, 2)
            });
            rows.push(Row { relation, name, loads });
        }
    }
    rows
}

/// Runs every load, and writes the tables into the document.
pub fn share(rounds: usize, programs: &Programs) {
    let cluster = serve();
    let url = url(cluster.folder(), cluster.port());
    let rows = rows();
    let mut costs: Vec<_> = rows.iter().map(|_| TASKS.map(|_| Vec::new())).collect();
    for round in 1..=rounds {
        eprintln!("sharing connections, round {round}");
        for (row, costs) in rows.iter().zip(&mut costs) {
            for (load, costs) in row.loads.iter().zip(costs) {
                costs.push(run_load(load, programs, &url));
            }
        }
    }
    let mut text = crate::compare::machine(rounds);
    for relation in RELATIONS {
        let header = TASKS.map(|tasks| format!(" {tasks} |")).concat();
        let line = "---|".repeat(TASKS.len() + 2);
        writeln!(text, "`{relation}`, tasks:\n\n| |{header} noise, up to |\n|{line}").unwrap();
        for (row, costs) in rows.iter().zip(&costs).filter(|(row, _)| row.relation == relation) {
            write!(text, "| {} |", row.name).unwrap();
            for costs in costs {
                write!(text, " {:.1} |", us(median(costs, wall_of_query))).unwrap();
            }
            let noises = costs.iter().map(|costs| noise(costs, wall_of_query));
            writeln!(text, " {:.0} % |", noises.fold(0.0, f64::max)).unwrap();
        }
        text.push('\n');
    }
    document::replace("shared clients", &text);
    print!("{text}");
}
