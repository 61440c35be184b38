//! The clients: each reads every row of a table once.

#[cfg(feature = "earlier")]
mod earlier;
#[cfg(feature = "peers")]
mod libpq;
mod minimal;
#[cfg(feature = "peers")]
mod sqlx;
#[cfg(feature = "peers")]
mod tokio_postgres;
mod wire;

use std::time::{Duration, Instant};

pub use self::minimal::run_sql;
use crate::data::{Customer, DataSet, Order, Shape};

/// A table to read, and how.
#[derive(Debug, Clone)]
pub struct Task {
    pub client: String,
    /// How a row is processed: `raw`, `chunk`, `typed`, `value`, `where` ...
    pub mode: String,
    pub port: u16,
    pub table: String,
    pub shape: Shape,
    /// The number of queries on one connection.
    pub repeat: usize,
}

impl Task {
    /// Reads a table once.
    pub fn of(data: &DataSet, client: &str, mode: &str, port: u16) -> Self {
        let (client, mode, table) = (client.into(), mode.into(), data.table.into());
        Self { client, mode, port, table, shape: data.shape, repeat: 1 }
    }

    /// Returns the connection string of a role that has no password and can only read.
    pub fn url(&self) -> String {
        let security = match self.mode.as_str() {
            "raw, TLS" => format!("sslmode=verify-full&sslrootcert={}", authority()),
            _ => "sslmode=disable".to_owned(),
        };
        format!("postgres://reader@127.0.0.1:{}/postgres?{security}", self.port)
    }

    pub fn sql(&self) -> String {
        format!("select data from {}", self.table)
    }
}

/// Returns the file with the certificate of the server's authority.
pub fn authority() -> String {
    std::env::var(AUTHORITY).unwrap()
}

/// The environment variable with the name of that file.
pub const AUTHORITY: &str = "COMPARE_AUTHORITY";

/// The result of a client.
#[derive(Default)]
pub struct Tally {
    /// The start of the query whose first row has not arrived.
    begun: Option<Instant>,
    /// One time per query.
    pub first_rows: Vec<Duration>,
    pub rows: u64,
    /// Keeps the rows from being optimized away.
    pub sum: u64,
}

impl Tally {
    /// Begins a query.
    pub fn query(&mut self) {
        self.begun = Some(Instant::now());
    }

    #[inline]
    pub fn row(&mut self, weight: u64) {
        if let Some(begun) = self.begun.take() {
            self.first_rows.push(begun.elapsed());
        }
        self.rows += 1;
        self.sum = self.sum.wrapping_add(weight);
    }
}

/// Reads a value from a decoded row.
pub trait Weigh {
    fn weigh(&self) -> u64;
}

impl Weigh for Customer {
    fn weigh(&self) -> u64 {
        self.id
    }
}

impl Weigh for Order {
    fn weigh(&self) -> u64 {
        self.id
    }
}

impl Weigh for serde_json::Value {
    fn weigh(&self) -> u64 {
        self["id"].as_u64().unwrap_or_default()
    }
}

/// Runs the task, and calls `connected` between logging in and the query.
pub async fn run(task: &Task, connected: &mut (dyn FnMut() + Send)) -> Tally {
    match task.client.as_str() {
        "fraiseql-wire" => wire::run(task, connected).await,
        "minimal" => minimal::run(task, connected),
        #[cfg(feature = "peers")]
        "tokio-postgres" => tokio_postgres::run(task, connected).await,
        #[cfg(feature = "peers")]
        "sqlx" => sqlx::run(task, connected).await,
        #[cfg(feature = "peers")]
        "libpq" => libpq::run(task, connected),
        #[cfg(feature = "earlier")]
        "fraiseql-wire 2.19.0" => earlier::run(task, connected).await,
        other => panic!("this build has no client {other:?}"),
    }
}
