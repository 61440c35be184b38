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
mod pooled;

pub use self::pooled::{Pooled, PooledClient};
pub use crate::metrics::pool::CATALOG;
