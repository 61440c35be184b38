//! tokio-postgres with prepared statements; deadpool-postgres for the pool.

use std::sync::Arc;

use deadpool_postgres::{Manager, Pool};
use tokio_postgres::{Client, NoTls, Row, Statement, types::Json};

use super::{Document, Load, Session};
use crate::short::{Access, PAGE};

pub struct TokioPostgres {
    source: Source,
    sql: Arc<str>,
    is_page: bool,
}

#[derive(Clone)]
enum Source {
    Client(Arc<Client>, Statement),
    Pool(Pool),
}

impl Session for TokioPostgres {
    async fn open(load: &Load, url: &str) -> Vec<Self> {
        let sql: Arc<str> = load.sql().into();
        let (sources, tasks) = match load.access {
            Access::Own => (vec![prepare(url, &sql).await], 1),
            Access::Shared { tasks, clients } => {
                let mut sources = Vec::new();
                for _ in 0..clients {
                    sources.push(prepare(url, &sql).await);
                }
                (sources, tasks)
            }
            Access::Pool { tasks, size } => {
                let manager = Manager::new(url.parse().unwrap(), NoTls);
                let pool = Pool::builder(manager).max_size(size).build().unwrap();
                (vec![Source::Pool(pool)], tasks)
            }
        };
        let is_page = load.mode == PAGE;
        let session =
            |source: &Source| Self { source: source.clone(), sql: Arc::clone(&sql), is_page };
        sources.iter().cycle().take(tasks).map(session).collect()
    }

    async fn query<T: Document>(&mut self, key: i64) -> u64 {
        match &self.source {
            Source::Client(client, statement) => self.run::<T>(client, statement, key).await,
            Source::Pool(pool) => {
                let client = pool.get().await.unwrap();
                let statement = client.prepare_cached(&self.sql).await.unwrap();
                self.run::<T>(&client, &statement, key).await
            }
        }
    }
}

impl TokioPostgres {
    async fn run<T: Document>(&self, client: &Client, statement: &Statement, key: i64) -> u64 {
        match self.is_page {
            true => {
                let rows = client.query(statement, &[&key]).await.unwrap();
                let documents: Vec<T> = rows.iter().map(document).collect();
                documents.iter().map(T::weigh).sum()
            }
            false => document::<T>(&client.query_one(statement, &[&key]).await.unwrap()).weigh(),
        }
    }
}

fn document<T: Document>(row: &Row) -> T {
    row.get::<_, Json<T>>(0).0
}

async fn prepare(url: &str, sql: &str) -> Source {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let statement = client.prepare(sql).await.unwrap();
    Source::Client(Arc::new(client), statement)
}
