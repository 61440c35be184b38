//! A manager for pools of the crate `deadpool`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use deadpool::{
    Runtime,
    managed::{self, Metrics, Object, RecycleResult},
};

use super::pooled::{Pooled, PooledClient, default_name, sealed::Sealed};
use crate::{
    client_impl::FraiseClient,
    config::ConnectionConfig,
    error::{Error, Result},
    metrics::pool as metrics,
    query::QueryBuilder,
    stream::FromJsonRow,
};

/// A pool of clients, made by [`builder`].
pub type Pool = managed::Pool<Manager>;

/// The error of [`get`](managed::Pool::get): the pool's own, or
/// [`Backend`](managed::PoolError::Backend) with the error of connecting.
///
/// ```
/// use fraiseql_wire::pool::deadpool::PoolError;
///
/// fn can_be_retried(error: &PoolError) -> bool {
///     match error {
///         PoolError::Backend(error) => error.is_retriable(),
///         // The pool is full, or was too slow to connect: waiting was the attempt.
///         _ => false,
///     }
/// }
/// ```
pub type PoolError = managed::PoolError<Error>;

/// Returns a builder of a [`Pool`] whose clients connect with this configuration, on tokio.
///
/// Same as `Pool::builder(Manager::new(config)).runtime(Runtime::Tokio1)`. Without a runtime, a
/// pool with a timeout cannot be built. Defaults: at most two clients for each CPU, and no
/// timeouts.
///
/// ```no_run
/// use std::time::Duration;
///
/// use fraiseql_wire::{ConnectionConfig, pool};
///
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ConnectionConfig::parse("postgres://app@localhost/shop")?;
/// let pool = pool::deadpool::builder(config)
///     .max_size(16)
///     .wait_timeout(Some(Duration::from_secs(2)))
///     .create_timeout(Some(Duration::from_secs(5)))
///     .build()?;
/// # Ok(())
/// # }
/// ```
pub fn builder(config: ConnectionConfig) -> managed::PoolBuilder<Manager> {
    Pool::builder(Manager::new(config)).runtime(Runtime::Tokio1)
}

/// Connects the clients of a [`Pool`].
///
/// The pool limits the number of clients and the time to wait for one.
///
/// # If a client cannot connect
///
/// Until the pool has connected once, `get` returns the error immediately, so that a wrong
/// configuration is reported. After that, for example while the server restarts, a
/// [retriable](Error::is_retriable) error is retried by the configuration's
/// [`RetryPolicy`](crate::RetryPolicy): by default five attempts with pauses of up to 1.5 s in all.
/// The pool's `create_timeout` limits all attempts together; `wait_timeout` does not include them.
#[derive(Debug)]
#[must_use = "a manager does nothing until a pool is built with it"]
pub struct Manager {
    config: ConnectionConfig,
    name: Arc<str>,
    has_connected: AtomicBool,
}

impl Manager {
    /// Creates a manager of clients that connect with this configuration.
    pub fn new(config: ConnectionConfig) -> Self {
        Self { name: default_name(&config), config, has_connected: AtomicBool::new(false) }
    }

    /// Sets the name of the pool in metrics. Default: the server and the database.
    pub fn pool_name(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }
}

impl managed::Manager for Manager {
    type Type = PooledClient;
    type Error = Error;

    async fn create(&self) -> Result<PooledClient> {
        let config = self.config.clone();
        let client = if self.has_connected.load(Relaxed) {
            PooledClient::connect(FraiseClient::connect_with_retries(config), &self.name).await?
        } else {
            PooledClient::connect(FraiseClient::connect_with_config(config), &self.name).await?
        };
        self.has_connected.store(true, Relaxed);
        Ok(client)
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
