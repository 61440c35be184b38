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
use crate::data::{Customer, Order, Shape};

/// What is read, and how.
#[derive(Debug, Clone)]
pub struct Task {
    pub client: String,
    /// What becomes of a row: `raw`, `chunk`, `typed`, `value`, `where` ...
    pub mode: String,
    pub port: u16,
    pub table: String,
    pub shape: Shape,
}

impl Task {
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    pub fn sql(&self) -> String {
        format!("select data from {}", self.table)
    }
}

/// What a client reports.
pub struct Tally {
    begun: Instant,
    pub first_row: Option<Duration>,
    pub rows: u64,
    /// Keeps the rows from being optimized away.
    pub sum: u64,
}

impl Tally {
    pub fn begin() -> Self {
        Self { begun: Instant::now(), first_row: None, rows: 0, sum: 0 }
    }

    #[inline]
    pub fn row(&mut self, weight: u64) {
        if self.rows == 0 {
            self.first_row = Some(self.begun.elapsed());
        }
        self.rows += 1;
        self.sum = self.sum.wrapping_add(weight);
    }
}

/// What is taken out of a decoded row.
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
pub async fn run(task: &Task, connected: &mut (dyn FnMut() -> Tally + Send)) -> Tally {
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
