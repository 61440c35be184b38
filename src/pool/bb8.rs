//! A manager for pools of the crate `bb8`.

use std::sync::Arc;

use bb8::{ManageConnection, PooledConnection};

use super::pooled::{Pooled, PooledClient, default_name, sealed::Sealed};
use crate::{
    client_impl::FraiseClient,
    config::ConnectionConfig,
    error::{Error, Result},
    metrics::pool as metrics,
    query::QueryBuilder,
    stream::FromJsonRow,
};

/// A pool of clients: `Pool::builder().max_size(8).build(manager).await?`.
///
/// bb8's builder panics on contradictory settings, such as a `min_idle` above `max_size`: check
/// sizes that come from a configuration first. deadpool has no minimum.
pub type Pool = bb8::Pool<Manager>;

/// The error of [`get_owned`](bb8::Pool::get_owned).
///
/// It is [`TimedOut`](bb8::RunError::TimedOut) for every reason, also for a wrong password: an
/// error sink receives the reason, as in the example of [`Manager`].
///
/// ```no_run
/// # use fraiseql_wire::pool::bb8::Pool;
/// use fraiseql_wire::{Error, RawJson, pool::{Pooled, bb8::PoolError}};
///
/// # async fn run(pool: &Pool) -> Result<(), Error> {
/// let client = match pool.get_owned().await {
///     Ok(client) => client,
///     Err(PoolError::TimedOut) => return Ok(()), // Answer 503: no client became free in time.
///     Err(PoolError::User(error)) => return Err(error),
/// };
/// let orders = client.query::<RawJson>("v_order").fetch_all().await?;
/// # Ok(())
/// # }
/// ```
pub type PoolError = bb8::RunError<Error>;

/// Connects the clients of a [`Pool`].
///
/// The pool limits the number of clients and the time to wait for one.
///
/// Take clients with [`get_owned`](bb8::Pool::get_owned). A query needs to own its client, and
/// [`get`](bb8::Pool::get) only borrows one from the pool.
///
/// While it cannot connect, for example while the server restarts, bb8 retries until its
/// `connection_timeout`. Then it returns `TimedOut` without the reason, also for a wrong password.
/// An error sink receives the reasons:
///
/// ```no_run
/// use std::time::Duration;
///
/// use fraiseql_wire::{ConnectionConfig, Error, FraiseClient, pool::bb8::{Manager, Pool}};
///
/// #[derive(Debug, Clone)]
/// struct Log;
///
/// impl bb8::ErrorSink<Error> for Log {
///     fn sink(&self, error: Error) {
///         tracing::warn!(%error, "cannot connect");
///     }
///
///     fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<Error>> {
///         Box::new(self.clone())
///     }
/// }
///
/// async fn pool(config: ConnectionConfig) -> Result<Pool, Error> {
///     // Reports wrong settings immediately.
///     FraiseClient::connect_with_config(config.clone()).await?.close().await?;
///     Pool::builder()
///         .max_size(16)
///         .connection_timeout(Duration::from_secs(2))
///         .error_sink(Box::new(Log))
///         .build(Manager::new(config))
///         .await
/// }
/// ```
#[derive(Debug)]
#[must_use = "a manager does nothing until a pool is built with it"]
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
    pub fn pool_name(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }
}

impl ManageConnection for Manager {
    type Connection = PooledClient;
    type Error = Error;

    async fn connect(&self) -> Result<PooledClient> {
        PooledClient::connect(FraiseClient::connect_with_config(self.config.clone()), &self.name)
            .await
    }

    /// Does not contact the server.
    async fn is_valid(&self, client: &mut PooledClient) -> Result<()> {
        client.check_out()
    }

    fn has_broken(&self, client: &mut PooledClient) -> bool {
        client.check_out().is_err()
    }
}

impl Sealed for PooledConnection<'static, Manager> {}

impl Pooled for PooledConnection<'static, Manager> {
    fn query<T: FromJsonRow>(self, entity: impl AsRef<str>) -> QueryBuilder<T> {
        PooledClient::query_of(Owned(self), entity.as_ref())
    }
}

/// A pooled client as a value that a query can own.
struct Owned(PooledConnection<'static, Manager>);

impl AsRef<PooledClient> for Owned {
    fn as_ref(&self) -> &PooledClient {
        &self.0
    }
}

/// Updates the metrics of a pool.
///
/// These are the number of idle and used clients, and of callers whose wait timed out. The number
/// of callers that wait is not available: bb8 0.9 also counts callers that stopped waiting.
///
/// `bb8` does not give access to the manager, so `name` is the name of the pool in metrics: use
/// that of [`Manager::pool_name`], or the gauges and the histograms have different labels.
pub fn record(pool: &Pool, name: &str) {
    let state = pool.state();
    let (all, idle) = (state.connections as usize, state.idle_connections as usize);
    metrics::clients(name, idle, all.saturating_sub(idle));
    // Not `pending_gets()`: bb8 counts a request as completed after its last `await`. A future that
    // is dropped before that is counted as pending forever.
    metrics::timed_out(name, state.statistics.get_timed_out);
}
