use std::{fmt, sync::Arc, time::Instant};

use crate::{
    client::FraiseClient,
    config::ConnectionConfig,
    connection::{CancelToken, ConnectionInfo, ServerVersion},
    error::{DbError, Error, Result},
    metrics::pool as metrics,
    query::QueryBuilder,
    stream::FromJsonRow,
};

/// A client out of a pool: its place there is taken as long as this, or a query made of it, is alive.
///
/// Not for users to implement.
pub trait Pooled: sealed::Sealed + Sized {
    /// Begins a query, like [`FraiseClient::query`]. The client goes back to its pool behind the query: when the
    /// stream has ended, failed or been dropped, and what it was doing is cleaned up.
    fn query<T: FromJsonRow>(self, entity: &str) -> QueryBuilder<T>;
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// What a pool holds: a client without the means to begin a query that the pool knows nothing of; for that there
/// is [`Pooled`].
pub struct PooledClient {
    client: FraiseClient,
    /// The pool's name.
    pool: Arc<str>,
}

impl PooledClient {
    pub(super) async fn connect(config: &ConnectionConfig, pool: &Arc<str>) -> Result<Self> {
        let began = Instant::now();
        let client = FraiseClient::connect_with_config(config.clone()).await?;
        metrics::created(pool, began.elapsed());
        Ok(Self { client, pool: Arc::clone(pool) })
    }

    /// See [`FraiseClient::ping`].
    ///
    /// # Errors
    ///
    /// Those of [`FraiseClient::ping`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection; the next query opens another one.
    pub async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    /// Returns a token that cancels the client's query during this checkout: see
    /// [`CancelToken::cancel`]. It has no effect after the client is returned to its pool, even if
    /// another task has taken it out again.
    pub fn cancel_token(&self) -> CancelToken {
        self.client.cancel_token()
    }

    /// See [`FraiseClient::on_notice`]; it stays with the connection's place in the pool.
    pub fn on_notice(&self, handler: impl Fn(&DbError) + Send + Sync + 'static) {
        self.client.on_notice(handler);
    }

    /// See [`FraiseClient::parameter`].
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.client.parameter(name)
    }

    /// See [`FraiseClient::server_version`].
    pub fn server_version(&self) -> Option<ServerVersion> {
        self.client.server_version()
    }

    /// See [`FraiseClient::connection_info`].
    pub fn connection_info(&self) -> Option<ConnectionInfo> {
        self.client.connection_info()
    }

    /// See [`FraiseClient::backend_pid`].
    pub fn backend_pid(&self) -> Option<u32> {
        self.client.backend_pid()
    }

    /// See [`FraiseClient::is_connected`].
    pub fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    /// Whether the client may be handed out again: no query is in progress. Called when the client
    /// is taken out of its pool, and by some pools when it is returned. Each call ends the previous
    /// checkout.
    pub(super) fn check(&self) -> Result<()> {
        self.client.next_checkout();
        match self.client.is_busy() {
            true => Err(Error::ConnectionBusy),
            false => Ok(()),
        }
    }

    /// A query that keeps `object`, in which this is, out of the pool.
    pub(super) fn query_of<T: FromJsonRow, O: AsRef<Self> + Send + Sync + 'static>(
        object: O,
        entity: &str,
    ) -> QueryBuilder<T> {
        let guard = PoolGuard { since: Instant::now(), object };
        let client = &guard.object.as_ref().client;
        let slot = client.slot_handle();
        QueryBuilder::new(slot.with_pool_guard(Arc::new(guard)), entity)
    }
}

/// A client that is out of its pool.
struct PoolGuard<O: AsRef<PooledClient>> {
    since: Instant,
    object: O,
}

impl<O: AsRef<PooledClient>> Drop for PoolGuard<O> {
    fn drop(&mut self) {
        metrics::used(&self.object.as_ref().pool, self.since.elapsed());
    }
}

/// How a pool is called where it has no name: `server.address:server.port/db.namespace`, by the conventions.
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
