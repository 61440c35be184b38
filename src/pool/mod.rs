//! Pools of clients, by the crates that exist for that: `deadpool` and `bb8`, each behind the feature of
//! its name.
//!
//! A manager connects; a pool hands out [`PooledClient`]s. [`Pooled::query`] takes one whole: the stream owns it, is
//! `'static`, and gives it back when it has ended, failed or been dropped, and its connection is clean again or gone.
//! So a pool never hands out a connection on which something is still under way, and never has more of them than
//! its size.
//!
//! Nothing is sent when a client is given back or taken out: a connection that the server has ended meanwhile is
//! found at the next query, and replaced.
//!
//! ```no_run
//! # #[cfg(feature = "deadpool")]
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use fraiseql_wire::{ConnectionConfig, RawJson, pool::{self, Pooled}};
//!
//! let config = ConnectionConfig::parse("postgres://app@localhost/shop")?;
//! let manager = pool::deadpool::Manager::new(config);
//! let pool = pool::deadpool::Pool::builder(manager).max_size(8).build()?;
//! let stream = pool.get().await?.query::<RawJson>("v_order").execute().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Metrics
//!
//! By the names of [OpenTelemetry's conventions], with the pool's name as the label
//! `db.client.connection.pool.name`: see [`CATALOG`]. Levels are told when `record` is called, which a
//! program does before it is scraped. How long is waited for a client, only the pool's own crate could tell.
//!
//! [OpenTelemetry's conventions]: https://opentelemetry.io/docs/specs/semconv/database/database-metrics/

#[cfg(feature = "bb8")]
#[cfg_attr(docsrs, doc(cfg(feature = "bb8")))]
pub mod bb8;
#[cfg(feature = "deadpool")]
#[cfg_attr(docsrs, doc(cfg(feature = "deadpool")))]
pub mod deadpool;

use std::{fmt, sync::Arc, time::Instant};

pub use crate::metrics::pool::CATALOG;
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

mod sealed {
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
    async fn connect(config: &ConnectionConfig, pool: &Arc<str>) -> Result<Self> {
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
    fn check(&self) -> Result<()> {
        self.client.next_checkout();
        match self.client.is_busy() {
            true => Err(Error::ConnectionBusy),
            false => Ok(()),
        }
    }

    /// A query that keeps `object`, in which this is, out of the pool.
    fn query_of<T: FromJsonRow, O: AsRef<Self> + Send + Sync + 'static>(
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
fn default_name(config: &ConnectionConfig) -> Arc<str> {
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
