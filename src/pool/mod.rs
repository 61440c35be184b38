//! Connection pools of the crates `deadpool` and `bb8`, each enabled by the feature of the same
//! name:
//!
//! ```toml
//! fraiseql-wire = { version = "1.1", features = ["deadpool"] }
//! ```
//!
//! Your own dependency on `deadpool` or `bb8` is needed only for their other types, such as bb8's
//! error sinks.
//!
//! A manager connects clients, and a pool lends them as [`PooledClient`]s. [`Pooled::query`] takes
//! one by value, and its stream owns it, so the stream is `'static`. The client returns to the pool
//! when the stream has ended, failed or been dropped, and its cleanup has finished. So a pool never
//! lends a connection that is still in use, and never has more connections than its size.
//!
//! Nothing is sent when a client is taken from the pool or returned to it. If the server has ended
//! the connection meanwhile, the next query replaces it.
//!
//! ```no_run
//! # #[cfg(feature = "deadpool")]
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use fraiseql_wire::{ConnectionConfig, RawJson, pool::{self, Pooled}};
//!
//! let config = ConnectionConfig::parse("postgres://app@localhost/shop")?;
//! let pool = pool::deadpool::builder(config).max_size(8).build()?;
//! let stream = pool.get().await?.query::<RawJson>("v_order").execute().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The same with bb8, whose `get` returns a client that only borrows from the pool:
//!
//! ```no_run
//! # #[cfg(feature = "bb8")]
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use fraiseql_wire::{ConnectionConfig, RawJson, pool::{self, Pooled}};
//!
//! let config = ConnectionConfig::parse("postgres://app@localhost/shop")?;
//! let pool = pool::bb8::Pool::builder().max_size(8).build(pool::bb8::Manager::new(config)).await?;
//! let stream = pool.get_owned().await?.query::<RawJson>("v_order").execute().await?;
//! # Ok(())
//! # }
//! ```
//!
//! [Pools](https://github.com/fraiseql/fraiseql-wire/blob/main/PRODUCTION_DEPLOYMENT.md#pools) in
//! the guide for production compares their sizes and timeouts.
//!
//! # Metrics
//!
//! The names are those of [OpenTelemetry's conventions], with the name of the pool as the label
//! `db.client.connection.pool.name`: see [`CATALOG`]. Gauges are updated by `record`; call it
//! before each scrape. The time spent waiting for a client is not available from the pool crates.
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
