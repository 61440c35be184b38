//! sqlx with its statement cache, and its own pool.

use std::sync::Arc;

use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres, Row,
    postgres::{PgPoolOptions, PgRow},
    types::Json,
};

use super::{Document, Load, Session};
use crate::short::{Access, PAGE};

pub struct Sqlx {
    source: Source,
    sql: Arc<str>,
    is_page: bool,
}

enum Source {
    Connection(Box<PgConnection>),
    Pool(PgPool),
}

impl Session for Sqlx {
    async fn open(load: &Load, url: &str) -> Vec<Self> {
        let sql: Arc<str> = load.sql().into();
        let is_page = load.mode == PAGE;
        match load.access {
            Access::Own => {
                let connection = Box::new(PgConnection::connect(url).await.unwrap());
                vec![Self { source: Source::Connection(connection), sql, is_page }]
            }
            Access::Pool { tasks, size } => {
                // The other pools also send nothing when a client is taken.
                let options = PgPoolOptions::new().max_connections(size as u32);
                let pool = options.test_before_acquire(false).connect(url).await.unwrap();
                let session =
                    || Self { source: Source::Pool(pool.clone()), sql: Arc::clone(&sql), is_page };
                (0..tasks).map(|_| session()).collect()
            }
            Access::Shared { .. } => panic!("sqlx does not pipeline queries"),
        }
    }

    async fn query<T: Document>(&mut self, key: i64) -> u64 {
        let (sql, is_page) = (&self.sql, self.is_page);
        match &mut self.source {
            Source::Connection(connection) => run::<T>(&mut **connection, sql, is_page, key).await,
            Source::Pool(pool) => run::<T>(&*pool, sql, is_page, key).await,
        }
    }
}

async fn run<'c, T: Document>(
    executor: impl Executor<'c, Database = Postgres>,
    sql: &Arc<str>,
    is_page: bool,
    key: i64,
) -> u64 {
    let query = sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(key);
    match is_page {
        true => {
            let rows = query.fetch_all(executor).await.unwrap();
            let documents: Vec<T> = rows.iter().map(document).collect();
            documents.iter().map(T::weigh).sum()
        }
        false => document::<T>(&query.fetch_one(executor).await.unwrap()).weigh(),
    }
}

fn document<T: Document>(row: &PgRow) -> T {
    row.get::<Json<T>, _>(0).0
}
