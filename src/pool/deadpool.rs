//! A manager for pools of the crate `deadpool`.

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

/// Connects the clients of a [`Pool`].
///
/// The pool limits the number of clients and the time to wait for one.
#[derive(Debug)]
pub struct Manager {
    config: ConnectionConfig,
    name: Arc<str>,
}

impl Manager {
    /// Creates a manager of clients that connect with this configuration.
    pub fn new(config: ConnectionConfig) -> Self {
        Self { name: default_name(&config), config }
    }

    /// Sets the name of the pool in metrics. Default: the server and the database.
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

    /// Does not contact the server.
    async fn recycle(&self, client: &mut PooledClient, _: &Metrics) -> RecycleResult<Error> {
        Ok(client.check_out()?)
    }
}

impl Sealed for Object<Manager> {}

impl Pooled for Object<Manager> {
    fn query<T: FromJsonRow>(self, entity: impl AsRef<str>) -> QueryBuilder<T> {
        PooledClient::query_of(self, entity.as_ref())
    }
}

/// Updates the metrics of a pool.
///
/// These are the number of idle and used clients, the maximum, and the number of callers that wait
/// for one.
pub fn record(pool: &Pool) {
    let status = pool.status();
    let name = &pool.manager().name;
    metrics::clients(name, status.available, status.size.saturating_sub(status.available));
    metrics::maximum(name, status.max_size);
    metrics::waiting(name, status.waiting);
}
