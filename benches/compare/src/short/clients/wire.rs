//! This crate.

use std::sync::Arc;

use fraiseql_wire::{
    ConnectionConfig, Field, FraiseClient, FromJsonRow, QueryBuilder, field,
    pool::{
        Pooled,
        deadpool::{Manager, Pool},
    },
};
use futures_util::StreamExt;

use super::{Document, Load, Session};
use crate::short::{Access, PAGE};

pub struct Wire {
    source: Source,
    relation: String,
    mode: String,
    /// The key `id`: a field of the document in a table of documents, a column in a view.
    key: Field,
}

#[derive(Clone)]
enum Source {
    Client(Arc<FraiseClient>),
    Pool(Pool),
}

impl Session for Wire {
    async fn open(load: &Load, url: &str) -> Vec<Self> {
        let config: ConnectionConfig = url.parse().unwrap();
        let (sources, tasks) = match load.access {
            Access::Own => (vec![Source::Client(connect(config).await)], 1),
            Access::Shared { tasks, clients } => {
                let mut sources = Vec::new();
                for _ in 0..clients {
                    sources.push(Source::Client(connect(config.clone()).await));
                }
                (sources, tasks)
            }
            Access::Pool { tasks, size } => {
                let pool = Pool::builder(Manager::new(config)).max_size(size).build().unwrap();
                (vec![Source::Pool(pool)], tasks)
            }
        };
        let key = match load.relation.as_str() {
            "tv_user" => field("id"),
            _ => Field::column("id"),
        };
        let session = |source: &Source| Self {
            source: source.clone(),
            relation: load.relation.clone(),
            mode: load.mode.clone(),
            key: key.clone(),
        };
        sources.iter().cycle().take(tasks).map(session).collect()
    }

    async fn query<T: Document>(&mut self, key: i64) -> u64 {
        let query = self.begin::<T>().await;
        match self.mode.as_str() {
            "by key" => query.where_sql("id = $1").bind(key).fetch_one().await.unwrap().weigh(),
            "by key, filter" => {
                let found = query.filter(self.key.clone().eq(key)).fetch_optional().await;
                found.unwrap().unwrap().weigh()
            }
            "by key, stream" => {
                let query = query.where_sql("id = $1").bind(key);
                let mut stream = query.execute().await.unwrap();
                let mut sum = 0;
                while let Some(document) = stream.next().await {
                    sum += document.unwrap().weigh();
                }
                sum
            }
            PAGE => {
                let query = query.where_sql("id >= $1").bind(key).order_by("id").limit(20);
                query.fetch_all().await.unwrap().iter().map(T::weigh).sum()
            }
            other => panic!("no mode {other:?}"),
        }
    }
}

impl Wire {
    async fn begin<T: FromJsonRow>(&self) -> QueryBuilder<T> {
        match &self.source {
            Source::Client(client) => client.query(&self.relation),
            Source::Pool(pool) => pool.get().await.unwrap().query(&self.relation),
        }
    }
}

async fn connect(config: ConnectionConfig) -> Arc<FraiseClient> {
    Arc::new(FraiseClient::connect_with_config(config).await.unwrap())
}
