use std::{fmt, sync::Arc, time::Instant};

use crate::{
    client_impl::FraiseClient,
    config::ConnectionConfig,
    connection::{CancelToken, ConnectionInfo, ServerVersion},
    error::{DbError, Error, Result},
    metrics::pool as metrics,
    query::QueryBuilder,
    stream::FromJsonRow,
};

/// A client that was taken from a pool.
///
/// It occupies a place in the pool until it is dropped. After [`query`](Self::query), it does so
/// until the stream has ended and its cleanup has finished.
///
/// This trait is sealed: it is implemented for the pooled objects of `deadpool` and `bb8`.
pub trait Pooled: sealed::Sealed + Sized {
    /// Creates a query, like [`FraiseClient::query`].
    ///
    /// The client is returned to the pool when the stream has ended, failed or been dropped and its
    /// cleanup has finished.
    ///
    /// ```no_run
    /// # #[cfg(feature = "deadpool")]
    /// # async fn run(
    /// #     pool: fraiseql_wire::pool::deadpool::Pool,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// use fraiseql_wire::{RawJson, pool::Pooled};
    ///
    /// let stream = pool.get().await?.query::<RawJson>("v_order").execute().await?;
    /// # Ok(())
    /// # }
    /// ```
    fn query<T: FromJsonRow>(self, entity: impl AsRef<str>) -> QueryBuilder<T>;
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// A client in a pool.
///
/// It has no `query` method of its own; use [`Pooled::query`], which keeps the client out of the
/// pool for the lifetime of the stream. Dropping it closes its connection, like dropping a
/// [`FraiseClient`].
pub struct PooledClient {
    client: FraiseClient,
    /// The name of the pool.
    pool: Arc<str>,
}

impl PooledClient {
    /// Connects a client of this pool with `connect`.
    pub(super) async fn connect(
        connect: impl Future<Output = Result<FraiseClient>>,
        pool: &Arc<str>,
    ) -> Result<Self> {
        let began = Instant::now();
        let client = connect.await?;
        metrics::created(pool, began.elapsed());
        Ok(Self { client, pool: Arc::clone(pool) })
    }

    /// Makes one round trip to the server: see [`FraiseClient::ping`].
    ///
    /// # Errors
    ///
    /// Same as [`FraiseClient::ping`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection. The next query opens a new one.
    pub async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    /// Returns a token that cancels the client's query during this checkout: see
    /// [`CancelToken::cancel`].
    ///
    /// It has no effect after the client is returned to its pool, even if another task has taken
    /// the client again.
    pub fn cancel_token(&self) -> CancelToken {
        self.client.cancel_token()
    }

    /// Sets the handler for server notices: see [`FraiseClient::on_notice`].
    ///
    /// The handler stays set after the client is returned to the pool.
    pub fn on_notice(&self, handler: impl Fn(&DbError) + Send + Sync + 'static) {
        self.client.on_notice(handler);
    }

    /// Returns the value of a run-time parameter: see [`FraiseClient::parameter`].
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.client.parameter(name)
    }

    /// Returns the version of the server: see [`FraiseClient::server_version`].
    pub fn server_version(&self) -> Option<ServerVersion> {
        self.client.server_version()
    }

    /// Returns how the current connection was opened: see [`FraiseClient::connection_info`].
    pub fn connection_info(&self) -> Option<ConnectionInfo> {
        self.client.connection_info()
    }

    /// Returns the process ID of the server's backend: see [`FraiseClient::backend_pid`].
    pub fn backend_pid(&self) -> Option<u32> {
        self.client.backend_pid()
    }

    /// Returns whether there is a connection: see [`FraiseClient::is_connected`].
    pub fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    /// Checks that no query is in progress, so that the client can be lent.
    ///
    /// Called when the client is taken from its pool, and by some pools when it is returned. Each
    /// call ends the previous checkout.
    pub(super) fn check_out(&self) -> Result<()> {
        self.client.next_checkout();
        if self.client.is_busy() { Err(Error::ConnectionBusy) } else { Ok(()) }
    }

    /// Creates a query that keeps `object`, which contains the client, out of the pool.
    pub(super) fn query_of<T: FromJsonRow, O: AsRef<Self> + Send + Sync + 'static>(
        object: O,
        entity: &str,
    ) -> QueryBuilder<T> {
        let guard = Arc::new(PoolGuard { since: Instant::now(), object });
        let client = &guard.object.as_ref().client;
        let slot = client.slot_handle().with_pool_guard(guard.clone());
        client.query_with(slot, entity)
    }
}

/// Keeps a client out of its pool, and measures for how long.
struct PoolGuard<O: AsRef<PooledClient>> {
    since: Instant,
    object: O,
}

impl<O: AsRef<PooledClient>> Drop for PoolGuard<O> {
    fn drop(&mut self) {
        metrics::used(&self.object.as_ref().pool, self.since.elapsed());
    }
}

/// Returns the default name of a pool: `server.address:server.port/db.namespace`, by the
/// conventions.
pub(super) fn default_name(config: &ConnectionConfig) -> Arc<str> {
    let server = config.targets().into_iter().next().map(|target| target.to_string());
    format!("{}/{}", server.unwrap_or_default(), config.database().unwrap_or_default()).into()
}

impl fmt::Debug for PooledClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledClient")
            .field("client", &self.client)
            .field("pool", &self.pool)
            .finish()
    }
}
