//! A manager for pools of `bb8`.

use std::sync::Arc;

use bb8::{ManageConnection, PooledConnection};

use super::pooled::{Pooled, PooledClient, default_name, sealed::Sealed};
use crate::{
    config::ConnectionConfig,
    error::{Error, Result},
    metrics::pool as metrics,
    query::QueryBuilder,
    stream::FromJsonRow,
};

/// A pool of clients: `Pool::builder().max_size(8).build(manager).await?`.
pub type Pool = bb8::Pool<Manager>;

/// Makes the clients of a [`Pool`]. The pool decides how many there are, and how long is waited for one.
///
/// Take clients by [`get_owned`](bb8::Pool::get_owned): a query keeps its client, and that of [`get`](bb8::Pool::get) is only lent.
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

impl ManageConnection for Manager {
    type Connection = PooledClient;
    type Error = Error;

    async fn connect(&self) -> Result<PooledClient> {
        PooledClient::connect(&self.config, &self.name).await
    }

    /// Sends nothing and waits for nothing.
    async fn is_valid(&self, client: &mut PooledClient) -> Result<()> {
        client.check()
    }

    fn has_broken(&self, client: &mut PooledClient) -> bool {
        client.check().is_err()
    }
}

impl Sealed for PooledConnection<'static, Manager> {}

impl Pooled for PooledConnection<'static, Manager> {
    fn query<T: FromJsonRow>(self, entity: &str) -> QueryBuilder<T> {
        PooledClient::query_of(Owned(self), entity)
    }
}

/// A client out of a pool, to be kept.
struct Owned(PooledConnection<'static, Manager>);

impl AsRef<PooledClient> for Owned {
    fn as_ref(&self) -> &PooledClient {
        &self.0
    }
}

/// Tells the recorder of metrics how many clients are idle and used, how many callers wait for one, and how many
/// have waited in vain. `name` is the pool's: it does not give its manager away.
pub fn record(pool: &Pool, name: &str) {
    let state = pool.state();
    let (all, idle) = (state.connections as usize, state.idle_connections as usize);
    metrics::clients(name, idle, all.saturating_sub(idle));
    let waiting = state.statistics.pending_gets();
    metrics::waiting(name, usize::try_from(waiting).unwrap_or(usize::MAX));
    metrics::timed_out(name, state.statistics.get_timed_out);
}
