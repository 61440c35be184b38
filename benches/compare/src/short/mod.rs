//! Short queries: one document by its key, or a page of 20.
//!
//! They measure the cost of a query apart from its rows. The documents are small.

mod clients;
mod compare;
mod count;
mod delay;
mod first_rows;
mod measure;
mod schema;
mod share;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

pub use self::{
    compare::run as compare,
    count::{check, write},
    measure::{count, time},
    share::share,
};
use crate::{cluster::Cluster, this_program};

/// One client with one kind of query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    pub client: String,
    /// `by key`, `by key, filter`, `by key, stream` or `page of 20`.
    pub mode: String,
    /// Whether a Prometheus recorder and a `tracing` subscriber at INFO are installed.
    pub instrumented: bool,
    /// Whether this crate runs in the build with the other drivers.
    pub beside_sqlx: bool,
    /// `v_simple`, `tv_user` or `v_deep`.
    pub relation: String,
    pub access: Access,
    /// Threads of the runtime; 0 is the current thread.
    pub threads: usize,
}

/// How tasks share connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// One task, which owns one connection.
    Own,
    /// `tasks` tasks take a connection from a pool of `size` for each query.
    Pool { tasks: usize, size: usize },
    /// `tasks` tasks use `clients` clients at the same time, each always the same one.
    Shared { tasks: usize, clients: usize },
}

impl Load {
    pub fn new(client: &str, mode: &str, relation: &str) -> Self {
        let (mode, instrumented) = match mode.strip_suffix(INSTRUMENTED) {
            Some(mode) => (mode, true),
            None => (mode, false),
        };
        let (mode, beside_sqlx) = match mode.strip_suffix(BESIDE_SQLX) {
            Some(mode) => (mode, true),
            None => (mode, false),
        };
        let [client, mode, relation] = [client, mode, relation].map(str::to_owned);
        let access = Access::Own;
        Self { client, mode, instrumented, beside_sqlx, relation, access, threads: 0 }
    }

    pub fn with(self, access: Access, threads: usize) -> Self {
        Self { access, threads, ..self }
    }

    /// Returns the statement for the clients that use SQL.
    fn sql(&self) -> String {
        let relation = &self.relation;
        match self.mode.as_str() {
            PAGE => format!("select data from {relation} where id >= $1 order by id limit 20"),
            _ => format!("select data from {relation} where id = $1"),
        }
    }

    /// Returns the arguments that [`from_args`](Self::from_args) parses. `beside_sqlx` is not among
    /// them, because it only selects the program.
    fn to_args(&self) -> [String; 6] {
        [
            self.client.clone(),
            self.mode.clone(),
            self.instrumented.to_string(),
            self.relation.clone(),
            self.access.to_string(),
            self.threads.to_string(),
        ]
    }

    pub fn from_args(args: &[&str]) -> Self {
        let [client, mode, instrumented, relation, access, threads] = args[..] else {
            panic!("not a load: {args:?}");
        };
        Self {
            instrumented: instrumented.parse().unwrap(),
            access: access.parse().unwrap(),
            threads: threads.parse().unwrap(),
            ..Self::new(client, mode, relation)
        }
    }
}

pub const PAGE: &str = "page of 20";
pub const INSTRUMENTED: &str = ", instrumented";
pub const BESIDE_SQLX: &str = ", beside sqlx";

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Pool { tasks, size } => write!(f, "pool {tasks} {size}"),
            Self::Shared { tasks, clients } => write!(f, "shared {tasks} {clients}"),
        }
    }
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<_> = text.split(' ').collect();
        let number = |word: &str| word.parse().map_err(|e| format!("{text:?}: {e}"));
        match words[..] {
            ["own"] => Ok(Self::Own),
            ["pool", tasks, size] => Ok(Self::Pool { tasks: number(tasks)?, size: number(size)? }),
            ["shared", tasks, clients] => {
                Ok(Self::Shared { tasks: number(tasks)?, clients: number(clients)? })
            }
            _ => Err(format!("not an access: {text:?}")),
        }
    }
}

/// Starts a server with the relations.
fn serve() -> Cluster {
    let cluster = crate::serve([]);
    crate::run_sql(&cluster, schema::SQL);
    cluster
}

/// Returns the connection string. Every client connects through the Unix socket in this folder.
fn url(folder: &Path, port: u16) -> String {
    let folder = folder.display().to_string().replace('/', "%2F");
    format!("postgres://reader@{folder}:{port}/postgres")
}

/// Returns the command that runs a load in its own process. `limit`: queries or milliseconds.
fn command(program: &Path, kind: &str, load: &Load, url: &str, limit: usize) -> Command {
    let mut command = Command::new(program);
    command.args(["short", kind, url, &limit.to_string()]).args(load.to_args());
    command
}

/// The programs that run the loads.
///
/// sqlx enables a feature of `tracing` that makes the spans of every crate in the same program more
/// expensive, so this crate is measured in a build without the other drivers. One row measures it
/// in the build with them.
#[derive(Debug, Clone)]
pub struct Programs {
    plain: PathBuf,
    peers: PathBuf,
}

impl Programs {
    /// `plain` is the build without the other drivers; this program is the one with them.
    pub fn with(plain: &Path) -> Self {
        Self { plain: plain.to_owned(), peers: this_program() }
    }

    fn of(&self, load: &Load) -> &Path {
        if load.beside_sqlx { &self.peers } else { self.of_client(&load.client) }
    }

    fn of_client(&self, client: &str) -> &Path {
        match client {
            "fraiseql-wire" | "minimal" => &self.plain,
            _ => &self.peers,
        }
    }
}
