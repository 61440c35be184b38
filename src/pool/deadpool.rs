//! A manager for pools of `deadpool`.

use std::sync::Arc;

use deadpool::managed::{self, Metrics, Object, RecycleResult};

use super::pooled::{Pooled, PooledClient, default_name, sealed::Sealed};
use crate::{
    config::ConnectionConfig,
    error::{Error, Result},
    metrics::pool as metrics,
    query::QueryBuilder,
    stream::FromJsonRow,
};

/// A pool of clients: `Pool::builder(manager).max_size(8).build()?`.
pub type Pool = managed::Pool<Manager>;

/// Makes the clients of a [`Pool`]. The pool decides how many there are, and how long is waited for one.
#[derive(Debug)]
pub struct Manager {
    config: ConnectionConfig,
    name: Arc<str>,
}

impl Manager {
    /// Makes a manager of clients that connect by this configuration.
    pub fn new(config: ConnectionConfig) -> Self {
        Self { name: default_name(&config), config }
    }

    /// Sets the pool's name in metrics; unless set, it is made of the server and the database.
    #[must_use]
    pub fn pool_name(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }
}

impl managed::Manager for Manager {
    type Type = PooledClient;
    type Error = Error;

    async fn create(&self) -> Result<PooledClient> {
        PooledClient::connect(&self.config, &self.name).await
    }

    /// Sends nothing and waits for nothing.
    async fn recycle(&self, client: &mut PooledClient, _: &Metrics) -> RecycleResult<Error> {
        Ok(client.check()?)
    }
}

impl Sealed for Object<Manager> {}

impl Pooled for Object<Manager> {
    fn query<T: FromJsonRow>(self, entity: &str) -> QueryBuilder<T> {
        PooledClient::query_of(self, entity)
    }
}

/// Tells the recorder of metrics how many clients are idle and used, how many there may be, and how many callers
/// wait for one.
pub fn record(pool: &Pool) {
    let status = pool.status();
    let name = &pool.manager().name;
    metrics::clients(name, status.available, status.size.saturating_sub(status.available));
    metrics::most(name, status.max_size);
    metrics::waiting(name, status.waiting);
}
