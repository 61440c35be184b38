//! The methods of [`QueryBuilder`] that run its query.

use std::{future::poll_fn, pin::Pin, sync::Arc};

use futures_core::Stream;
use serde_json::Value;
use tracing::debug;

use super::builder::QueryBuilder;
use crate::{
    connection::{SlotHandle, TARGET},
    error::{DbError, Error, OneLine, Result, sqlstate},
    sql::{Select, Statement, TYPE_TEST},
    stream_impl::{
        Execution, FromJsonRow, Pipeline, Predicates, QueryPlan, QuerySpec, QueryStream, encode,
    },
};

impl<T: FromJsonRow> QueryBuilder<T> {
    /// Sends the query and returns the stream of its rows.
    ///
    /// The future resolves when the server starts to respond, after one round trip. It reads the
    /// rows that have arrived by then. If these are all rows, the stream is complete: its
    /// connection is free again, and no task is started. Otherwise a background task reads the
    /// rest.
    ///
    /// A server starts to respond when it has 8 KiB of rows or all of them. So this method waits
    /// for a query that takes long to find its first rows;
    /// [`first_row_timeout`](Self::first_row_timeout) limits that time.
    ///
    /// The client connects first if it has no connection. A connection that ended while it was idle
    /// is replaced. This method waits for fetches of the client that are in progress, and for the
    /// cleanup of a stream that was just dropped.
    ///
    /// # Errors
    ///
    /// * [`Error::Config`]: a name, a setting or a parameter is invalid. The query was not sent.
    /// * [`Error::ConnectionBusy`]: another stream of the client is active or being opened, or a
    ///   ping is in progress. Returned immediately.
    /// * Errors of [`FraiseClient::connect`](crate::FraiseClient::connect), if the client has to
    ///   connect.
    /// * [`Error::Server`]: the server rejected the query.
    /// * [`Error::InvalidSchema`]: the relation's column is not JSON (nor text, with
    ///   [`json_text`](Self::json_text)).
    /// * [`Error::Timeout`]: `timeout`, `first_row_timeout`, or the configuration's `read_timeout`
    ///   expired after the client was connected.
    /// * [`Error::ConnectionClosed`] or [`Error::Io`]: the connection was lost, and the server may
    ///   have begun the query.
    /// * [`Error::Cancelled`]: a [`CancelToken`](crate::CancelToken) cancelled the query.
    /// * [`Error::Protocol`]: the server violated the protocol, or changed `client_encoding`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the query on the server, like dropping the stream.
    pub async fn execute(self) -> Result<QueryStream<T>> {
        let Prepared { slot, pipeline, plan, predicates } = self.prepare()?;
        QueryStream::open(&pipeline, slot, plan, predicates).await
    }

    /// Runs the query like [`execute`](Self::execute), but shares the connection with other fetches.
    async fn fetch(self) -> Result<QueryStream<T>> {
        let Prepared { slot, pipeline, plan, predicates } = self.prepare()?;
        match plan.execution {
            Execution::Single => QueryStream::fetch(&pipeline, slot, plan, predicates).await,
            _ => QueryStream::open(&pipeline, slot, plan, predicates).await,
        }
    }

    /// Checks and encodes the query.
    fn prepare(self) -> Result<Prepared<T>> {
        let Self { slot, pipeline, mut spec, options, predicates, .. } = self;
        let QuerySpec { select, settings, .. } = &mut *spec;
        settings.validate()?;
        if let Some(options) = &options {
            options.apply(select, settings)?;
        }
        settings.row_limit = select.limit;
        settings.json_text = select.json_text;
        let query = encode(select.rows()?)?;
        let predicates = predicates.into_predicates();
        spec.has_predicates = !predicates.is_empty();
        let execution = options.map_or(Ok(Execution::Single), |options| options.execution())?;
        let plan = QueryPlan { spec, query, execution };
        Ok(Prepared { slot, pipeline, plan, predicates })
    }

    /// Runs the query and collects all rows in a `Vec`, which has no memory limit.
    ///
    /// Fetches of one client can run [concurrently](crate::FraiseClient#concurrent-fetches).
    ///
    /// # Errors
    ///
    /// Errors of [`execute`](Self::execute) and of the stream. The first row that cannot be decoded
    /// ends the query. [`Error::Timeout`] also if the future is not polled while rows are waiting
    /// and other fetches of the client need the connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the query, unless other fetches share the connection.
    pub async fn fetch_all(self) -> Result<Vec<T>> {
        let mut stream = self.fetch().await?;
        let mut rows = Vec::new();
        while let Some(row) = next(&mut stream).await? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// Runs the query and returns its first row.
    ///
    /// Only one row is requested: see [`fetch_optional`](Self::fetch_optional).
    ///
    /// # Errors
    ///
    /// Errors of [`fetch_optional`](Self::fetch_optional); also [`Error::InvalidState`] if there is
    /// no row.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the query, unless other fetches share the connection.
    pub async fn fetch_one(self) -> Result<T> {
        self.fetch_optional().await?.ok_or(Error::InvalidState {
            message: "fetch_one() found no row; use fetch_optional() if there may be none",
        })
    }

    /// Runs the query and returns its first row, or `None` if there is none.
    ///
    /// The statement requests only one row. With Rust predicates, the query is cancelled after the
    /// first accepted row.
    ///
    /// # Errors
    ///
    /// Errors of [`execute`](Self::execute) and of the stream. If cancelling the query after the
    /// row fails, the row is still returned, and the connection is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the query, unless other fetches share the connection.
    pub async fn fetch_optional(mut self) -> Result<Option<T>> {
        // The server cannot apply Rust predicates, so a LIMIT of 1 could miss the row.
        let is_limited = self.predicates.is_empty();
        if is_limited {
            self.spec.select.limit = Some(self.spec.select.limit.unwrap_or(1).min(1));
        }
        let mut stream = self.fetch().await?;
        let row = next(&mut stream).await?;
        if is_limited {
            while next(&mut stream).await?.is_some() {}
        } else if !stream.has_ended() {
            // The result is complete. A failed cleanup loses the connection, not the row.
            if let Err(error) = stream.complete().await {
                debug!(target: TARGET, %error, "cleanup failed after the row was found");
            }
        }
        Ok(row)
    }

    /// Returns the number of rows that the query would return.
    ///
    /// The server counts them, unless there are Rust predicates. Then the rows are read and counted
    /// by the client.
    ///
    /// * **Conditions, `limit` and `offset`** apply. For the size of a whole result, count a query
    ///   without `limit` and `offset`.
    /// * **The order** applies if there is a `limit` or an `offset`.
    /// * **`timeout`, `first_row_timeout` and `persistent`** apply.
    /// * **The projection** is checked, but not computed.
    /// * **Chunk sizes, `parallel` and `resume_by`** have no effect without Rust predicates.
    ///
    /// # Errors
    ///
    /// Errors of [`execute`](Self::execute) and of the stream. Also [`Error::Protocol`] if more
    /// than one count arrives, for example from a proxy that queries several servers.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the query, unless other fetches share the connection.
    pub async fn count(self) -> Result<u64> {
        if self.predicates.is_empty() {
            return self.fetch_scalar(Select::count).await;
        }
        let mut stream = self.fetch().await?;
        let mut rows = 0;
        while next(&mut stream).await?.is_some() {
            rows += 1;
        }
        Ok(rows)
    }

    /// Returns whether the query returns at least one row.
    ///
    /// The server decides it, without sending documents, unless there are Rust predicates.
    ///
    /// # Errors
    ///
    /// Errors of [`execute`](Self::execute) and of the stream.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the query, unless other fetches share the connection.
    pub async fn exists(self) -> Result<bool> {
        if self.predicates.is_empty() {
            return self.fetch_scalar(Select::exists).await;
        }
        Ok(self.fetch_optional().await?.is_some())
    }

    /// Returns the server's plan for the query, an array of one object.
    ///
    /// The server formats it with [`EXPLAIN (FORMAT JSON)`]. With `analyze`, the server also runs
    /// the query and measures it. Rust predicates are ignored.
    ///
    /// # Errors
    ///
    /// Errors of [`execute`](Self::execute).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the query, unless other fetches share the connection.
    ///
    /// [`EXPLAIN (FORMAT JSON)`]: https://www.postgresql.org/docs/current/sql-explain.html
    pub async fn explain(mut self, analyze: bool) -> Result<Value> {
        let QuerySpec { select, settings, .. } = &mut *self.spec;
        if let Some(options) = &self.options {
            options.apply(select, settings)?;
        }
        self.spec.is_persistent = false;
        self.fetch_scalar(|select| select.explain(analyze)).await
    }

    /// Runs a statement that returns one document.
    async fn fetch_scalar<A: FromJsonRow>(
        self,
        statement: impl FnOnce(&Select) -> Result<Statement<'_>>,
    ) -> Result<A> {
        let Self { slot, pipeline, mut spec, options, .. } = self;
        if let Some(options) = options {
            options.set_position(&mut spec.select)?;
        }
        let statement = statement(&spec.select)?;
        spec.settings.validate()?;
        let sql = statement.sql.clone();
        let query = encode(statement)?;
        spec.settings.row_limit = Some(1);
        spec.settings.json_text = spec.select.json_text;
        let plan = QueryPlan { spec, query, execution: Execution::Single };
        let opened = QueryStream::fetch(&pipeline, slot, plan, Predicates::default()).await;
        let mut stream = opened.map_err(|e| not_json(e, &sql))?;
        let answer = next(&mut stream).await?;
        // Read to the end, so that the connection is free immediately. Another row (from another
        // server of a proxy) is an error: this row alone is not the answer.
        while next(&mut stream).await?.is_some() {}
        answer.ok_or(Error::InvalidState { message: "the server returned no row" })
    }
}

/// A query that can be sent.
struct Prepared<T> {
    slot: SlotHandle,
    pipeline: Arc<Pipeline>,
    plan: QueryPlan,
    predicates: Predicates<T>,
}

/// Replaces the server's error for a document that is not JSON by [`Error::InvalidSchema`].
///
/// Such a document is tested and not selected, so the RowDescription does not show its column.
fn not_json(error: Error, sql: &str) -> Error {
    let is_test = |e: &DbError| {
        let position = e.position().and_then(|from_1| usize::try_from(from_1).ok()?.checked_sub(1));
        let at = position.and_then(|characters| sql.char_indices().nth(characters));
        let rest = at.and_then(|(at, _)| sql.get(at..));
        *e.code() == sqlstate::UNDEFINED_FUNCTION && rest.is_some_and(|r| r.starts_with(TYPE_TEST))
    };
    match error {
        Error::Server(e) if is_test(&e) => Error::InvalidSchema {
            found: format!(
                "one of another type ({}); make it json or jsonb, for example with to_jsonb() in \
                 the view",
                OneLine::name(e.message())
            ),
        },
        error => error,
    }
}

/// Returns the next row of a fetch. A row error ends the stream, because it ends the fetch.
async fn next<T: FromJsonRow>(stream: &mut QueryStream<T>) -> Result<Option<T>> {
    let row = poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await.transpose();
    if let Err(error) = &row {
        stream.fail(error);
    }
    row
}
