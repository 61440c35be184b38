//! Streams JSON documents from Postgres as typed Rust values, in bounded memory.
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
//! The crate runs one kind of query, `SELECT data FROM {entity} [WHERE ...] [ORDER BY ...] [LIMIT
//! n] [OFFSET m]`. The entity is a view or table with one `json` or `jsonb` column, by default
//! called `data`. Use it for large results, for slow or many consumers, and for clients that
//! disconnect early:
//!
//! * The first row is delivered as soon as it arrives.
//! * By default, a stream buffers at most 1 MiB or one row, regardless of the size of the result.
//! * A query that is no longer needed is cancelled on the server.
//!
//! It is not a general driver: no writes, no transactions, no rows of several columns, and no
//! mapping of tables to structs. Use `tokio-postgres` or `sqlx` for those, alongside this crate.
//!
//! # How it works
//!
//! [`QueryBuilder::execute`] sends the query and reads the rows that arrive with the first
//! response. If there are more, a background *reader task* reads them from the socket. It sends
//! them in chunks over a *bounded channel* to the [`QueryStream`], which decodes one row at a time.
//!
//! * **Backpressure.** The channel is limited in bytes ([`max_memory`]; default: 1 MiB). When it is
//!   full, the reader task stops reading. TCP flow control then blocks the server.
//! * **Cancellation.** Dropping a [`QueryStream`] early sends a cancel request to the server,
//!   drains the in-flight data in the background, and keeps the connection for the next query. To
//!   cancel from another task, use a [`StreamControl`] or a [`CancelToken`].
//! * **Complete or error.** A stream that ends without an error has returned every row. Every error
//!   except a row error ends the stream, after the rows already received.
//! * **Reconnecting.** A connection that was lost is replaced when the next query is executed.
//!   [`resume_by`] also resumes a stream whose connection is lost.
//! * **Prepared statements.** Each connection caches the statements of repeated queries: see
//!   [`statement_cache_capacity`].
//!
//! [`max_memory`]: QueryBuilder::max_memory
//! [`resume_by`]: QueryBuilder::resume_by
//! [`statement_cache_capacity`]: ConnectionConfigBuilder::statement_cache_capacity
//!
//! # Which method do I want?
//!
//! | You want | Method |
//! |---|---|
//! | to process rows one by one | [`execute`](QueryBuilder::execute), then [`next`] |
//! | to process chunks of undecoded JSON | [`execute`](QueryBuilder::execute), then [`next_chunk`](QueryStream::next_chunk) |
//! | an HTTP response body | [`execute`](QueryBuilder::execute), then [`into_ndjson`](QueryStream::into_ndjson), [`into_json_array`](QueryStream::into_json_array) or [`into_sse`](QueryStream::into_sse) |
//! | a short result in a `Vec` | [`fetch_all`](QueryBuilder::fetch_all) |
//! | one row | [`fetch_one`](QueryBuilder::fetch_one), [`fetch_optional`](QueryBuilder::fetch_optional) |
//! | only the number of rows | [`count`](QueryBuilder::count), [`exists`](QueryBuilder::exists) |
//! | a large table faster | [`parallel`](QueryBuilder::parallel) |
//! | to pause, cancel or observe a stream from another task | [`control`](QueryStream::control) |
//!
//! [`next`]: https://docs.rs/futures-util/latest/futures_util/stream/trait.StreamExt.html#method.next
//!
//! # Filters
//!
//! [`where_sql`](QueryBuilder::where_sql) adds a condition in raw SQL.
//! [`filter`](QueryBuilder::filter) adds a typed one, built from the operators of [`Field`]:
//!
//! ```
//! use fraiseql_wire::field;
//!
//! let filter = field("status")
//!     .eq("paid")
//!     .and(field("total").gte(100))
//!     .and(field("customer.name").istarts_with("an"));
//! ```
//!
//! For each operator, [`Field`] documents the SQL that is sent and the index that supports it:
//! [comparison](Field#comparison), [strings](Field#strings), [arrays and
//! objects](Field#containers), [full-text search](Field#full-text-search), and
//! [networks](Field#networks), [label paths](Field#label-paths) and [vectors](Field#vectors).
//!
//! # What may surprise you
//!
//! * **The server is not authenticated by default.** The default `sslmode` is `prefer`, as in
//!   libpq: the session may be unencrypted, and the certificate is not verified. Set
//!   `sslmode=verify-full`: see [`SslMode`].
//! * **The environment supplies settings.** `PGPASSWORD`, `PGSSLMODE` and others, a service file
//!   and `~/.pgpass` supply settings that are not given, as in libpq: see [`ConnectionConfig`].
//! * **A client runs one stream at a time.** Another query is [`Error::ConnectionBusy`] until the
//!   stream has ended. Use several clients, or a pool (module `pool`). Fetches
//!   ([`fetch_all`](QueryBuilder::fetch_all), [`fetch_one`](QueryBuilder::fetch_one) and others) of
//!   one client can run concurrently: they share its connection.
//! * **Names are case-sensitive.** [`query("V_User")`](FraiseClient::query) is the relation
//!   `"V_User"`, not `v_user`.
//! * **A row that cannot be decoded does not end the stream.** It is an `Err` item, and the stream
//!   continues: see [`Error::is_row_error`].
//! * **A paused stream keeps its snapshot on the server**, which prevents vacuum from removing dead
//!   rows: see [`pause`](QueryStream::pause).
//!
//! # Guides
//!
//! Write `fraiseql-wire = "1.1"`: `cargo add` takes 2.19, an earlier crate of this name. The
//! example needs `futures-util`, `serde` (`derive`) and `tokio` (`macros`, `rt-multi-thread`) too.
//! There are [examples], and guides to [errors] and to [production].
//!
//! [examples]: https://github.com/fraiseql/fraiseql-wire/blob/main/examples/README.md
//! [errors]: https://github.com/fraiseql/fraiseql-wire/blob/main/ERROR_HANDLING_GUIDE.md
//! [production]: https://github.com/fraiseql/fraiseql-wire/blob/main/PRODUCTION_DEPLOYMENT.md
//!
//! # Cargo features
//!
//! | Feature | Default | Description |
//! |---|---|---|
//! | `tls-ring` | yes | TLS with rustls and ring |
//! | `tls-aws-lc-rs` | no | TLS with rustls and aws-lc-rs, which is used if both are enabled |
//! | `webpki-roots` | no | Mozilla's root certificates, for `TlsConfigBuilder::webpki_roots` |
//! | `encrypted-keys` | no | client keys that are encrypted with a password (`sslpassword`) |
//! | `bb8`, `deadpool` | no | connection pools of these crates, in the module `pool` |
//! | `chrono`, `rust_decimal`, `time`, `uuid` | no | values of these crates as parameters: see [`ToParam`]; `time` needs Rust 1.88 |
//!
//! Without a TLS feature, `sslmode=prefer` connects unencrypted, and `require` and the stronger
//! modes are errors.
//!
//! # Cancel safety
//!
//! An async method is *cancel-safe* if its future can be dropped before it completes, as
//! `tokio::select!` does, without losing anything. Calling the method again then continues as if
//! the first call had not been made. The documentation of each async method says what dropping its
//! future does.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(unreachable_pub)]
#![deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
#![cfg_attr(
    test,
    allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)
)]

mod auth;
#[path = "client.rs"]
mod client_impl;
mod config;
#[path = "connection/mod.rs"]
mod connection_impl;
#[path = "error/mod.rs"]
mod error_impl;
pub mod metrics;
#[cfg(any(feature = "bb8", feature = "deadpool"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "bb8", feature = "deadpool"))))]
pub mod pool;
mod protocol;
mod query;
mod secret;
mod sql;
#[path = "stream/mod.rs"]
mod stream_impl;
mod sync;
mod transport;

pub use client_impl::FraiseClient;
pub use config::{
    ChannelBinding, ConnectionConfig, ConnectionConfigBuilder, LoadBalanceHosts, RetryPolicy,
    SslMode, SslNegotiation, Target, TargetSessionAttrs, TlsConfig, TlsConfigBuilder, TlsVersion,
};
pub use connection_impl::{CancelToken, ConnectionInfo, ServerVersion};
pub use error_impl::{
    ConnectAttempt, DbError, Error, ErrorCategory, Result, RetryAdvice, TimeoutPhase, sqlstate,
};
pub use query::QueryBuilder;
pub use sql::{Field, Filter, Json, Operand, OrderBy, ToParam, field};
pub use sqlstate::SqlState;
pub use stream_impl::{
    FromJsonRow, QueryStream, RawJson, RowChunk, StreamControl, StreamState, StreamStats,
};

// The paths of the earlier crate of this name, for its users. The private modules have other names,
// because rustdoc omits what is re-exported from a hidden module. For this crate, each module also
// has the items of the private one, so that their paths are those of the files.

#[doc(hidden)]
pub mod client {
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::FraiseClient`")]
    pub type FraiseClient = crate::FraiseClient;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::QueryBuilder`")]
    pub type QueryBuilder<T = serde_json::Value> = crate::QueryBuilder<T>;
}

#[doc(hidden)]
pub mod connection {
    pub(crate) use crate::connection_impl::*;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::ConnectionConfig`")]
    pub type ConnectionConfig = crate::ConnectionConfig;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::ConnectionConfigBuilder`")]
    pub type ConnectionConfigBuilder = crate::ConnectionConfigBuilder;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::TlsConfig`")]
    pub type TlsConfig = crate::TlsConfig;
}

#[doc(hidden)]
pub mod error {
    pub use crate::error_impl::Result;
    pub(crate) use crate::error_impl::*;
    #[deprecated(since = "1.1.0", note = "renamed to `fraiseql_wire::Error`")]
    pub type WireError = crate::Error;
}

#[doc(hidden)]
pub mod stream {
    pub(crate) use crate::stream_impl::*;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::QueryStream`")]
    pub type QueryStream<T> = crate::QueryStream<T>;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::RowChunk`")]
    pub type RowChunk = crate::RowChunk;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::StreamState`")]
    pub type StreamState = crate::StreamState;
    #[deprecated(since = "1.1.0", note = "use `fraiseql_wire::StreamStats`")]
    pub type StreamStats = crate::StreamStats;
}

#[doc(hidden)]
#[allow(deprecated)]
pub use error::WireError;

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the programs in the guide. One of them uses a pool.
#[cfg(all(doctest, feature = "deadpool"))]
#[doc = include_str!("../ERROR_HANDLING_GUIDE.md")]
struct ErrorHandlingGuide;

#[cfg(doctest)]
#[doc = include_str!("../PRODUCTION_DEPLOYMENT.md")]
struct ProductionDeployment;
