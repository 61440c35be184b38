//! Saying what to read.

mod options;

use std::{borrow::Cow, fmt, marker::PhantomData, pin::Pin, time::Duration};

use futures_core::Stream;
use serde_json::Value;
use tracing::debug;

use self::options::QueryOptions;
use crate::{
    connection::{SlotHandle, TARGET},
    error::{DbError, Error, OneLine, Result, sqlstate},
    sql::{
        Condition, Field, Filter, Order, OrderBy, Projection, Select, Statement, TYPE_TEST, ToParam,
    },
    stream::{
        Execution, FromJsonRow, Predicates, QueryPlan, QuerySpec, QueryStream, StreamSettings,
        encode,
    },
};

/// A query, put together step by step and run by [`execute`](Self::execute).
///
/// Made by [`FraiseClient::query`](crate::FraiseClient::query). It reads
/// `SELECT data FROM {entity} [WHERE ...] [ORDER BY ...] [LIMIT n] [OFFSET m]`, where `data` is a
/// column of type `json` or `jsonb`, and yields each document as a `T`: any type that serde
/// deserializes, [`serde_json::Value`], or [`RawJson`](crate::RawJson). `T` never changes the SQL.
///
/// Text given to `where_sql`, `order_by`, `select_projection` and `partition_by` is SQL and trusted: never build it from
/// what a user typed. Values belong in [`bind`](Self::bind). Typed filters and orders
/// ([`filter`](Self::filter), [`order_by_field`](Self::order_by_field)) take anything.
///
/// ```no_run
/// # use fraiseql_wire::{FraiseClient, Result};
/// # #[derive(serde::Deserialize)]
/// # struct Order;
/// # async fn run(client: &FraiseClient, status: String) -> Result<()> {
/// let orders = client
///     .query::<Order>("app.v_order")
///     .where_sql("data->>'status' = $1")
///     .bind(status)
///     .where_rust(|order| order["lines"].as_array().is_some_and(|lines| lines.len() > 1))
///     .order_by("data->>'placed_at' desc")
///     .limit(100)
///     .execute()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a query does nothing until it is executed"]
pub struct QueryBuilder<T> {
    slot: SlotHandle,
    spec: Box<QuerySpec>,
    options: QueryOptions,
    predicates: Predicates<T>,
    rows: PhantomData<fn() -> T>,
}

impl<T: FromJsonRow> QueryBuilder<T> {
    pub(crate) fn new(slot: SlotHandle, entity: &str) -> Self {
        Self {
            slot,
            spec: Box::new(QuerySpec {
                select: Select::new(entity),
                settings: StreamSettings::default(),
                is_persistent: true,
                has_predicates: false,
            }),
            options: QueryOptions::default(),
            predicates: Predicates::default(),
            rows: PhantomData,
        }
    }

    /// Adds a condition in trusted SQL; several must all hold. Each stands in parentheses.
    ///
    /// It may use `$1`, `$2`, ... for the values given to [`bind`](Self::bind). They are found as
    /// the server finds them with `standard_conforming_strings = on`, its default. A text that ends
    /// within a string, a quoted identifier or a comment is
    /// [`Error::Config`](crate::Error::Config).
    pub fn where_sql(mut self, condition: impl Into<String>) -> Self {
        self.spec.select.conditions.push(Condition::Sql(condition.into()));
        self
    }

    /// Gives the value of the next parameter: the first call that of `$1`, the second of `$2`, over
    /// the text of all `where_sql`, `order_by` and `select_projection`. There must be as many as the
    /// text uses.
    pub fn bind(mut self, value: impl ToParam) -> Self {
        self.spec.select.parameters.push(value.to_param());
        self
    }

    /// Adds a typed condition, which the server checks; several must all hold. Its values are always
    /// parameters, behind those of `bind`.
    pub fn filter(mut self, filter: impl Into<Filter>) -> Self {
        self.spec.select.conditions.push(Condition::Filter(filter.into()));
        self
    }

    /// Adds a condition in Rust on the document; several must all hold. Rows that do not meet them
    /// are skipped by the stream, after they were sent.
    ///
    /// The document is read into a [`Value`] for it, and `T` is made of that: of keys that are repeated
    /// (which `json` allows and `jsonb` does not) both see the last. A document of which there is no
    /// `Value` (a number beyond `f64`) is a row error. A predicate that panics does so in whoever polls
    /// the stream; the client can be used afterwards.
    pub fn where_rust(mut self, predicate: impl Fn(&Value) -> bool + Send + 'static) -> Self {
        self.predicates.on_documents.push(Box::new(predicate));
        self
    }

    /// Adds a condition in Rust on the decoded row; several must all hold, and they are asked after
    /// those of [`where_rust`](Self::where_rust). The row is decoded once.
    pub fn where_typed(mut self, predicate: impl Fn(&T) -> bool + Send + 'static) -> Self {
        self.predicates.on_rows.push(Box::new(predicate));
        self
    }

    /// Adds an expression of trusted SQL to sort by, such as `data->>'name' desc`; the first sorts
    /// first.
    pub fn order_by(mut self, expression: impl Into<String>) -> Self {
        self.spec.select.order.push(Order::Sql(expression.into()));
        self
    }

    /// Adds a field to sort by: `field("total").desc()`; the first sorts first.
    pub fn order_by_field(mut self, order: impl Into<OrderBy>) -> Self {
        self.spec.select.order.push(Order::Field(order.into()));
        self
    }

    /// Limits the result to at most `rows` rows, before Rust predicates are applied. If more rows
    /// arrive, from a proxy that queries several servers, the stream ends with [`Error::Protocol`].
    pub fn limit(mut self, rows: u64) -> Self {
        self.spec.select.limit = Some(rows);
        self
    }

    /// Skips so many rows at the beginning.
    pub fn offset(mut self, rows: u64) -> Self {
        self.spec.select.offset = Some(rows);
        self
    }

    /// Selects an expression of trusted SQL of type `json` or `jsonb` in place of the document, under
    /// the name `data`.
    pub fn select_projection(mut self, expression: impl Into<String>) -> Self {
        self.spec.select.projection = Projection::Sql(expression.into());
        self
    }

    /// Selects an object with these fields only, which the server builds: `["id", "address.city"]`
    /// yields `{"id": ..., "address": {"city": ...}}`. A field that is missing is null in it.
    ///
    /// In a column of type `json` (not `jsonb`), some documents cannot be read and fail the query:
    /// see [`Filter`](crate::Filter#columns-of-type-json).
    pub fn select_fields<F: Into<Field>>(mut self, fields: impl IntoIterator<Item = F>) -> Self {
        self.spec.select.projection =
            Projection::Fields(fields.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the name of the JSON column, exactly as it is: `data` unless set.
    pub fn column(mut self, name: impl Into<String>) -> Self {
        self.spec.select.column = Cow::Owned(name.into());
        self
    }

    /// Sets the most rows that are handed over in one piece: 256 unless set.
    ///
    /// Rows never wait for a chunk to fill: a chunk goes as soon as no more rows have arrived, or
    /// at 64 KiB.
    pub fn chunk_size(mut self, rows: usize) -> Self {
        self.spec.settings.chunk_size = Some(rows);
        self
    }

    /// Lets the chunk size adapt, beginning with [`chunk_size`](Self::chunk_size): it doubles while
    /// the consumer is the slow one and halves while the consumer waits for rows. Off unless set.
    pub fn adaptive_chunking(mut self, on: bool) -> Self {
        self.spec.settings.adaptive = on;
        self
    }

    /// Sets the smallest size that an adaptive chunk size may take, in rows: 16 unless set.
    pub fn adaptive_min_size(mut self, rows: usize) -> Self {
        self.spec.settings.adaptive_min = Some(rows);
        self
    }

    /// Sets the largest size that an adaptive chunk size may take, in rows: 4,096 unless set.
    pub fn adaptive_max_size(mut self, rows: usize) -> Self {
        self.spec.settings.adaptive_max = Some(rows);
        self
    }

    /// Sets the most bytes of rows and read buffer that the stream holds, plus one read of at most
    /// 64 KiB; then it leaves rows in the sockets until there is room.
    ///
    /// One row beyond it is [`Error::MemoryLimitExceeded`], before it is read. Unless set, the
    /// stream holds at most 1 MiB, or one row if that is larger.
    ///
    /// Rows that were taken out of the stream are not counted any more, though a
    /// [`RawJson`](crate::RawJson) or [`RowChunk`](crate::RowChunk) keeps its part of the read buffer
    /// alive.
    pub fn max_memory(mut self, bytes: usize) -> Self {
        self.spec.settings.max_memory = Some(bytes);
        self
    }

    /// Sets shares of the memory limit, from 0.0 to 1.0: above `warn`, `tracing` gets a warning, once
    /// a crossing; above `fail`, when that is below 1.0, the stream ends with
    /// [`Error::ConsumerLagged`] instead of waiting for its consumer.
    ///
    /// A stream fills its memory whenever its consumer is slower than the server. Set `fail` if the
    /// stream should end rather than wait for a slow consumer. A consumer counts as slow if at
    /// least two reads are buffered; a read is a quarter of `fail` (1 KiB to 64 KiB). With less
    /// than that, the stream waits for the consumer, up to `max_memory`.
    pub fn memory_soft_limits(mut self, warn: f32, fail: f32) -> Self {
        self.spec.settings.soft_limits = Some((warn, fail));
        self
    }

    /// Bounds the time from [`execute`](Self::execute) to the arrival of the last row, pauses and a
    /// slow consumer included. Beyond it the query is stopped on the server, and the stream ends with
    /// [`Error::Timeout`], behind the rows that had arrived.
    ///
    /// It bounds the server's work, not how long the stream is kept: one that nobody reads keeps its client, and that
    /// its place in a pool, until it is dropped.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.settings.timeout = Some(timeout);
        self
    }

    /// Bounds the time from [`execute`](Self::execute) to the arrival of the first row, connecting
    /// included and pauses not. Beyond it the query is stopped on the server, with [`Error::Timeout`].
    pub fn first_row_timeout(mut self, timeout: Duration) -> Self {
        self.spec.settings.first_row_timeout = Some(timeout);
        self
    }

    /// Bounds every pause of the stream, as
    /// [`set_pause_timeout`](crate::QueryStream::set_pause_timeout) does.
    pub fn pause_timeout(mut self, timeout: Duration) -> Self {
        self.spec.settings.pause_timeout = Some(timeout);
        self
    }

    /// Reads with `n` connections at once. Together they return exactly the rows of one query, in
    /// no order, or an error.
    ///
    /// It is for large results of tables, whose server is busy making text of them: with two
    /// processors for server and client together, `parallel(2)` takes 0.67 of the time, and more do
    /// not help
    /// ([figures](https://github.com/fraiseql/fraiseql-wire/blob/main/docs/benchmarks.md)). At most
    /// 64; with 1, the query is a plain one.
    ///
    /// Tables, tables in partitions or with children, and materialized views are split by their
    /// blocks (each backend reads its own since Postgres 14, and before that all of them); views by
    /// [`partition_by`](Self::partition_by). The stream is one: its memory, statistics, pauses and
    /// end are those of all connections together, and the first error ends it. One connection is
    /// the client's. The others are opened to the same server when the query is executed, and
    /// closed after it. `count`, `exists` and `explain` use only the client's connection.
    ///
    /// # How the connections agree
    ///
    /// Each connection runs its part in a transaction (`REPEATABLE READ`, `READ ONLY`) with the
    /// same snapshot and with its own locks. The query is executed when all connections have
    /// planned it and see the same relations. That takes five round trips, and the time to connect.
    /// If another session changes the relation or wants an exclusive lock in that time, all
    /// connections release it and try again, for up to 3 seconds.
    ///
    /// Values that each connection computes for itself are not part of a snapshot: `now()`,
    /// `random()`, sequences, the server's statistics views, and settings that a view changes. They
    /// must not decide which rows the result contains. The same applies to a view that selects rows
    /// by LIMIT without a complete ORDER BY, and to functions that read tables, because those
    /// tables are not locked before the functions run.
    ///
    /// Through a pooler, `n` connections to one server must be free at once: (streams at once) x
    /// `n` must not exceed the pool. The query waits for them for `connect_timeout` (10 seconds if
    /// it is not set).
    ///
    /// # Errors
    /// From [`execute`](Self::execute):
    ///
    /// * [`Error::Config`]: 0 or more than 64; with `order_by`, `limit` (also that of `fetch_one`),
    ///   `offset` or `resume_by`; a view without `partition_by`; a `max_memory` of less than 4 KiB
    ///   for each connection; a relation that the snapshot does not cover (a foreign, Citus or
    ///   temporary table), also under a view; connections that differ in their user or settings.
    /// * [`Error::Timeout`] of [`TimeoutPhase::Parallel`](crate::TimeoutPhase::Parallel): not all
    ///   connections could begin, or others kept changing the relation.
    /// * [`Error::Server`] 55P03: other sessions kept it locked; 22023 or 42704: the connections
    ///   reached different servers; 42501: splitting a table by its blocks needs SELECT on the
    ///   whole table, not only on columns.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result};
    /// # async fn run(client: &FraiseClient) -> Result<()> {
    /// let stream = client.query::<RawJson>("tv_order").parallel(4).execute().await?;
    /// let query = client.query::<RawJson>("v_order").parallel(4).partition_by("data->>'id'");
    /// # Ok(())
    /// # }
    /// ```
    pub fn parallel(mut self, n: usize) -> Self {
        self.options.parallel = Some(n);
        self
    }

    /// Splits a [`parallel`](Self::parallel) query by the hash of an expression in trusted SQL,
    /// without parameters: `data->>'id'`. It should distinguish most rows, and must not be
    /// volatile: each connection evaluates it on every row, and a row with different values is lost
    /// or returned twice. Every backend reads all rows to find its own, so a view gains only where
    /// making its documents' text costs more than that.
    pub fn partition_by(mut self, expression: impl Into<String>) -> Self {
        self.options.partition_by = Some(expression.into());
        self
    }

    /// Sorts by a field of the document, a key that no two rows share, and when the connection is lost, goes on
    /// behind the last row on another one: nothing is lost and nothing comes twice.
    ///
    /// The key is a number or a string, and must be in what is selected, at its place and unchanged: behind a
    /// [`select_projection`](Self::select_projection) with another value there, it would go on at the wrong row.
    ///
    /// The connection is replaced by the configuration's [`RetryPolicy`](crate::RetryPolicy), on another of its hosts
    /// if need be; when that is used up without a row in between, the error is the stream's. It goes on behind lost
    /// connections, servers that shut down or crash, or of which PgBouncer says so, `read_timeout`, and a standby's
    /// conflicts with replay; not behind the other errors, and not before [`execute`](Self::execute) has resolved.
    /// `timeout` is for all of it.
    ///
    /// What comes behind a resumption is a new query's, with a new snapshot: rows that were deleted meanwhile are
    /// not in it, rows that were added are if their key is behind the last, and one whose key has changed may be
    /// missing or come again. On a standby it may be an older snapshot than before.
    /// At the end of a resumed query a further one asks for a row without the key, which would have come last.
    ///
    /// The server's order of strings is not checked, because only the server knows its collation.
    /// Through a proxy that merges the rows of several servers, a resumption loses rows unless all
    /// servers sort alike. Numbers that do not increase are an error.
    ///
    /// The keys are looked at as rows arrive, which is not seen beside what the server does. Numbers are compared exactly.
    /// The index that serves it is `create index on t (((data->'id')))`.
    ///
    /// In a column of type `json` (not `jsonb`), some documents cannot be read and fail the query:
    /// see [`Filter`](crate::Filter#columns-of-type-json).
    ///
    /// # Errors
    ///
    /// Of [`execute`](Self::execute), [`Error::Config`]: with `order_by`, `parallel`, or a
    /// [`Field::column`]. Of the stream, [`Error::Config`]: a row without the field, or with the key of the row
    /// before it. [`StreamStats::resumptions`](crate::StreamStats) counts.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result, field};
    /// # async fn run(client: &FraiseClient) -> Result<()> {
    /// let stream = client.query::<RawJson>("v_order").resume_by(field("id")).execute().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume_by(mut self, key: impl Into<Field>) -> Self {
        self.options.resume_by = Some(key.into());
        self
    }

    /// Sets whether the server may keep the statement prepared. Default: true.
    ///
    /// The second use of a text on a connection prepares it; later uses are sent by its name and
    /// neither parsed nor, in most cases, planned again. See
    /// [`statement_cache_capacity`](crate::ConnectionConfigBuilder::statement_cache_capacity).
    ///
    /// With false, the query is parsed and planned for its values on each use. Use it if the best
    /// plan depends on the values. After five executions the server may choose one plan for all
    /// values. For a status of ten rows among a million, a page that takes 0.3 ms then took 330 ms
    /// ([figures](https://github.com/fraiseql/fraiseql-wire/blob/main/docs/benchmarks.md)). To
    /// prevent this for a whole session, set `plan_cache_mode` to `force_custom_plan`, for example
    /// with [`param`](crate::ConnectionConfigBuilder::param) or for the role: the statement is still
    /// prepared, but planned for its values each time.
    ///
    /// Use it too if the type of a column may be altered while the client is connected: Postgres
    /// infers the type of a parameter only once. A cast in the text (`$1::date`) prevents that.
    ///
    /// Queries with [`parallel`](Self::parallel) or [`resume_by`](Self::resume_by) and
    /// [`explain`](Self::explain) are never prepared.
    pub fn persistent(mut self, on: bool) -> Self {
        self.spec.is_persistent = on;
        self
    }

    /// Returns what would be sent: the SQL text, and the parameters as text (`None` is NULL).
    ///
    /// # Errors
    ///
    /// [`Error::Config`], as of [`execute`](Self::execute).
    pub fn to_sql(&self) -> Result<(String, Vec<Option<String>>)> {
        let mut select = self.spec.select.clone();
        self.options.apply(&mut select, &self.spec.settings)?;
        let statement = select.rows()?;
        let parameters = statement.parameters.iter().zip(1..);
        let parameters =
            parameters.map(|(parameter, number)| Ok(parameter.sent(number)?.map(str::to_owned)));
        let parameters = parameters.collect::<Result<_>>()?;
        Ok((statement.sql, parameters))
    }

    /// Sends the query, and resolves when the server has begun to answer.
    ///
    /// The rows that arrive by then are read in this future. If they are all of them, the stream is
    /// complete: its connection is free again, and there is no task. Otherwise a task reads the
    /// rest. A server begins to answer when it has 8 KiB of rows or all of them, so this waits for a
    /// query that is slow to find its first rows.
    ///
    /// It takes one round trip, and connects first if the client has no connection. A connection
    /// that ended while it was idle is replaced. If an earlier stream of the client was just dropped,
    /// this waits for its cleanup.
    ///
    /// # Errors
    ///
    /// * [`Error::Config`], before anything is sent: a name, a setting or a parameter is not valid.
    /// * [`Error::ConnectionBusy`] at once, when another stream of the client is alive.
    /// * Those of [`FraiseClient::connect`](crate::FraiseClient::connect), if it has to.
    /// * [`Error::Server`]: the server refuses the query.
    /// * [`Error::InvalidSchema`]: the relation's column is not JSON.
    /// * [`Error::Timeout`]: `timeout`, `first_row_timeout`, or the configuration's `read_timeout`
    ///   passed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query, as dropping the stream does.
    pub async fn execute(self) -> Result<QueryStream<T>> {
        let Self { slot, mut spec, options, predicates, .. } = self;
        let QuerySpec { select, settings, .. } = &mut *spec;
        settings.check()?;
        options.apply(select, settings)?;
        settings.row_limit = select.limit;
        let query = encode(select.rows()?)?;
        spec.has_predicates = !predicates.is_empty();
        let plan = QueryPlan { spec, query, execution: options.execution()? };
        QueryStream::open(&slot, plan, predicates).await
    }

    /// Runs the query and collects its rows, whatever memory they take.
    ///
    /// # Errors
    ///
    /// Those of [`execute`](Self::execute) and of the stream; the first row that does not decode ends
    /// it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query.
    pub async fn fetch_all(self) -> Result<Vec<T>> {
        let mut stream = self.execute().await?;
        let mut rows = Vec::new();
        while let Some(row) = next(&mut stream).await {
            rows.push(row?);
        }
        Ok(rows)
    }

    /// Runs the query and returns its first row. More rows are not asked for.
    ///
    /// # Errors
    ///
    /// Those of [`fetch_optional`](Self::fetch_optional), and [`Error::InvalidState`] when there is no
    /// row.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query.
    pub async fn fetch_one(self) -> Result<T> {
        self.fetch_optional().await?.ok_or(Error::InvalidState {
            message: "fetch_one() found no row; fetch_optional() returns None then",
        })
    }

    /// Runs the query and returns its first row, if there is one. The statement requests only one
    /// row; with Rust predicates, the query is stopped after the first accepted row.
    ///
    /// # Errors
    ///
    /// Those of [`execute`](Self::execute) and of the stream. If stopping the query after the row
    /// fails, the row is still returned, and the connection is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query.
    pub async fn fetch_optional(mut self) -> Result<Option<T>> {
        // What Rust predicates let pass, the server does not know.
        let is_limited = self.predicates.is_empty();
        if is_limited {
            self.spec.select.limit = Some(self.spec.select.limit.unwrap_or(1).min(1));
        }
        let mut stream = self.execute().await?;
        let row = next(&mut stream).await.transpose()?;
        if is_limited {
            while let Some(more) = next(&mut stream).await {
                more?;
            }
        } else if !stream.has_ended() {
            // The row is the whole answer. A cleanup that fails costs the connection, not the row.
            if let Err(error) = stream.cancel().await {
                debug!(target: TARGET, %error, "cleanup failed after the row was found");
            }
        }
        Ok(row)
    }

    /// Returns how many rows the query has. The server counts them, unless there are Rust predicates:
    /// then they are read.
    ///
    /// # Errors
    ///
    /// Those of [`execute`](Self::execute) and of the stream; [`Error::Protocol`] if more than one
    /// count arrives, from a proxy that queries several servers.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query.
    pub async fn count(self) -> Result<u64> {
        if self.predicates.is_empty() {
            let statement = self.spec.select.count()?;
            return self.fetch_scalar(statement).await;
        }
        let mut stream = self.execute().await?;
        let mut rows = 0;
        while let Some(row) = next(&mut stream).await {
            row?;
            rows += 1;
        }
        Ok(rows)
    }

    /// Returns whether the query has a row.
    ///
    /// # Errors
    ///
    /// Those of [`execute`](Self::execute) and of the stream.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query.
    pub async fn exists(self) -> Result<bool> {
        if self.predicates.is_empty() {
            let statement = self.spec.select.exists()?;
            return self.fetch_scalar(statement).await;
        }
        Ok(self.fetch_optional().await?.is_some())
    }

    /// Returns the server's plan for the query, as [`EXPLAIN (FORMAT JSON)`] has it: an array of one
    /// object. With `analyze` the server runs the query and measures it.
    ///
    /// # Errors
    ///
    /// Those of [`execute`](Self::execute).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query.
    ///
    /// [`EXPLAIN (FORMAT JSON)`]: https://www.postgresql.org/docs/current/sql-explain.html
    pub async fn explain(mut self, analyze: bool) -> Result<Value> {
        let QuerySpec { select, settings, .. } = &mut *self.spec;
        self.options.apply(select, settings)?;
        let statement = select.explain(analyze)?;
        self.spec.is_persistent = false;
        self.fetch_scalar(statement).await
    }

    /// Runs a statement that returns one document.
    ///
    /// By value: predicates need not be `Sync`, so a future that borrows them is not `Send`.
    async fn fetch_scalar<A: FromJsonRow>(self, statement: Statement) -> Result<A> {
        let Self { slot, mut spec, .. } = self;
        spec.settings.check()?;
        spec.settings.row_limit = Some(1);
        let sql = statement.sql.clone();
        let plan = QueryPlan { spec, query: encode(statement)?, execution: Execution::Single };
        let opened = QueryStream::open(&slot, plan, Predicates::default()).await;
        let mut stream = opened.map_err(|e| not_json(e, &sql))?;
        let answer = next(&mut stream).await;
        // Read to the end, so that the connection is free immediately. Another row (from another
        // server of a proxy) is an error: this row alone is not the answer.
        while let Some(more) = next(&mut stream).await {
            more?;
        }
        answer.unwrap_or(Err(Error::InvalidState { message: "the server answered without a row" }))
    }
}

/// The error of a statement that the server refuses because the document is not JSON. Such a
/// document is tested and not selected, so its column is not in the answer.
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
                "one of another type ({}); make it json or jsonb, for example with to_jsonb() in the \
                 view",
                OneLine::name(e.message())
            ),
        },
        error => error,
    }
}

/// The next item of a stream.
async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

/// The query, without the values of its parameters.
impl<T> fmt::Debug for QueryBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryBuilder").field("select", &self.spec.select).finish_non_exhaustive()
    }
}
