//! Streams typed JSON rows out of Postgres: at once, in bounded memory, and stopped on the server
//! the moment nobody wants them.
//!
//! ```no_run
//! use fraiseql_wire::FraiseClient;
//! use futures_util::StreamExt;
//! use serde::Deserialize;
//!
//! #[derive(Debug, Deserialize)]
//! struct User {
//!     id: u64,
//!     name: String,
//! }
//!
//! #[tokio::main]
//! async fn main() -> fraiseql_wire::Result<()> {
//!     let client = FraiseClient::connect("postgres://app:secret@localhost/shop").await?;
//!     let mut users = client
//!         .query::<User>("v_user")
//!         .where_sql("data->>'status' = $1")
//!         .bind("active")
//!         .order_by("data->>'name'")
//!         .execute()
//!         .await?;
//!     while let Some(user) = users.next().await {
//!         let user = user?;
//!         println!("{} {}", user.id, user.name);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # What it is for
//!
//! One kind of query, `SELECT data FROM {entity} [WHERE ...] [ORDER BY ...] [LIMIT n] [OFFSET m]`,
//! over views and tables with one `json` or `jsonb` column called `data`. A first row does not wait
//! for a second, memory is bounded in bytes whatever the size of the result, and what is not read is
//! stopped on the server.
//!
//! # Features
//!
//! * `tls-ring` (on by default) and `tls-aws-lc-rs`: TLS by rustls, with that cryptography; with both,
//!   aws-lc-rs. With neither, `sslmode=require` and the stronger modes are errors, and `prefer` connects in
//!   the clear.
//! * `bb8` and `deadpool`: managers for these pools, in the module `pool`.
//! * `chrono`, `rust_decimal`, `time`, `uuid`: values of these crates as parameters.
//! * `webpki-roots`: Mozilla's authorities, for `TlsConfigBuilder::webpki_roots`.
//!
//! # What may surprise
//!
//! * `sslmode` is `prefer` unless set, as in libpq: nobody is verified, and the session may be in the
//!   clear. Write `sslmode=verify-full`.
//! * The environment (`PGPASSWORD`, `PGSSLMODE`, ...), a service file and `~/.pgpass` fill in what the
//!   string or the builder leaves open, as in libpq.
//! * One client runs one stream at a time; a second one is [`Error::ConnectionBusy`].
//! * A name is taken as it is written: `query("V_User")` is `"V_User"`, not `v_user`.
//! * A bad document is an `Err` item and the stream goes on: see [`Error::is_row_error`].
//! * A paused stream holds its snapshot on the server, which keeps vacuum waiting.
//!
//! # What it is not
//!
//! A general driver: no writes, no transactions, no rows of several columns, no mapping of tables
//! to structs. Use `tokio-postgres` or `sqlx` for those, beside this crate.
//!
//! # Cancel safety
//!
//! An async method is *cancel-safe* when its future can be dropped before it resolves, as
//! `tokio::select!` does, and nothing is lost: calling it again goes on as if the first call had
//! not been made. Each async method says what dropping its future does.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(unreachable_pub)]
#![deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
#![cfg_attr(
    test,
    allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)
)]

mod auth;
mod client;
mod config;
mod connection;
mod error;
pub mod metrics;
#[cfg(any(feature = "bb8", feature = "deadpool"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "bb8", feature = "deadpool"))))]
pub mod pool;
mod protocol;
mod query;
mod secret;
mod sql;
mod stream;
mod transport;

pub use client::FraiseClient;
pub use config::{
    ChannelBinding, ConnectionConfig, ConnectionConfigBuilder, LoadBalanceHosts, RetryPolicy,
    SslMode, SslNegotiation, Target, TargetSessionAttrs, TlsConfig, TlsConfigBuilder, TlsVersion,
};
pub use connection::{CancelToken, ConnectionInfo, ServerVersion};
pub use error::{
    ConnectAttempt, DbError, Error, ErrorCategory, Result, RetryAdvice, TimeoutPhase, sqlstate,
};
pub use query::QueryBuilder;
pub use sql::{Field, Filter, Json, Operand, OrderBy, ToParam, field};
pub use sqlstate::SqlState;
pub use stream::{
    FromJsonRow, QueryStream, RawJson, RowChunk, StreamControl, StreamState, StreamStats,
};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The guides' programs compile.
#[cfg(doctest)]
#[doc = include_str!("../ERROR_HANDLING_GUIDE.md")]
struct ErrorHandlingGuide;

#[cfg(doctest)]
#[doc = include_str!("../PRODUCTION_DEPLOYMENT.md")]
struct ProductionDeployment;
