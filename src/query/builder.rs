//! The query builder.

use std::{borrow::Cow, fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde_json::Value;

use super::options::QueryOptions;
use crate::{
    connection::SlotHandle,
    error::Result,
    sql::{Condition, Field, Filter, Operand, Order, OrderBy, Projection, Select, ToParam},
    stream::{FromJsonRow, Pipeline, QuerySpec, SharedPredicate, SharedPredicates, StreamSettings},
};

/// Builds a query and runs it.
///
/// Created by [`FraiseClient::query`](crate::FraiseClient::query). The query is `SELECT data FROM
/// {entity} [WHERE ...] [ORDER BY ...] [LIMIT n] [OFFSET m]`, where `data` is a column of type
/// `json` or `jsonb`. Each document is decoded as a `T`: any type that serde deserializes,
/// [`serde_json::Value`], or [`RawJson`](crate::RawJson). The type never changes the SQL.
///
/// # Security
///
/// The text passed to [`where_sql`](Self::where_sql), [`order_by`](Self::order_by),
/// [`select_projection`](Self::select_projection) and [`partition_by`](Self::partition_by) is raw
/// SQL and trusted: never build it from user input. Pass values with [`bind`](Self::bind). Typed
/// filters and orders ([`filter`](Self::filter), [`order_by_field`](Self::order_by_field)) accept
/// any input.
///
/// # Which method runs the query?
///
/// | You want | Method |
/// |---|---|
/// | a stream of rows | [`execute`](Self::execute) |
/// | a stream of chunks of undecoded JSON | [`execute`](Self::execute), then [`next_chunk`](crate::QueryStream::next_chunk) |
/// | an HTTP response body | [`execute`](Self::execute), then [`into_ndjson`](crate::QueryStream::into_ndjson), [`into_json_array`](crate::QueryStream::into_json_array) or [`into_sse`](crate::QueryStream::into_sse) |
/// | all rows in a `Vec` | [`fetch_all`](Self::fetch_all) |
/// | one row | [`fetch_one`](Self::fetch_one), [`fetch_optional`](Self::fetch_optional) |
/// | a number or a yes or no | [`count`](Self::count), [`exists`](Self::exists) |
/// | the SQL or the plan | [`to_sql`](Self::to_sql), [`explain`](Self::explain) |
///
/// # Example
///
/// ```no_run
/// # use fraiseql_wire::{FraiseClient, Result, field};
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
///
/// // Clone a query to run variants of it: here the number of all rows, and one page of them.
/// let paid = client.query::<Order>("app.v_order").filter(field("status").eq("paid"));
/// let count = paid.clone().count().await?;
/// let page = paid.order_by_field("id").limit(50).fetch_all().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a query does nothing until it is executed"]
pub struct QueryBuilder<T> {
    pub(super) slot: SlotHandle,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) spec: Box<QuerySpec>,
    /// Boxed, because most queries have none, and each method moves the builder.
    pub(super) options: Option<Box<QueryOptions>>,
    pub(super) predicates: SharedPredicates<T>,
    rows: PhantomData<fn() -> T>,
}

impl<T: FromJsonRow> QueryBuilder<T> {
    pub(crate) fn new(slot: SlotHandle, pipeline: Arc<Pipeline>, entity: &str) -> Self {
        Self {
            slot,
            pipeline,
            spec: Box::new(QuerySpec {
                select: Select::new(entity),
                settings: StreamSettings::default(),
                is_persistent: true,
                has_predicates: false,
            }),
            options: None,
            predicates: SharedPredicates::default(),
            rows: PhantomData,
        }
    }

    /// Adds a condition in raw SQL.
    ///
    /// All conditions of a query must hold. Each is put in parentheses. The text is trusted: see
    /// [Security](Self#security).
    ///
    /// It may refer to the values of [`bind`](Self::bind) as `$1`, `$2` and so on. Placeholders are
    /// recognized as the server does with `standard_conforming_strings = on`, its default. A text
    /// that ends inside a string, a quoted identifier or a comment is an
    /// [`Error::Config`](crate::Error::Config) when the query is executed.
    pub fn where_sql(mut self, condition: impl Into<String>) -> Self {
        self.spec.select.conditions.push(Condition::Sql(condition.into()));
        self
    }

    /// Binds the value of the next parameter.
    ///
    /// The first call binds `$1`, the second `$2`, and so on, for the text of all `where_sql`,
    /// `order_by` and `select_projection` calls together. The number of values must equal the
    /// number of parameters in the text. Otherwise executing the query is an
    /// [`Error::Config`](crate::Error::Config).
    pub fn bind(mut self, value: impl ToParam) -> Self {
        self.spec.select.parameters.push(value.to_param());
        self
    }

    /// Adds a typed condition, evaluated by the server.
    ///
    /// All conditions of a query must hold. Values in the filter are always sent as parameters,
    /// after those of [`bind`](Self::bind). The operators, with their SQL and their indexes, are
    /// documented at [`Field`].
    pub fn filter(mut self, filter: impl Into<Filter>) -> Self {
        self.spec.select.conditions.push(Condition::Filter(filter.into()));
        self
    }

    /// Adds a Rust predicate on the document, evaluated by the client.
    ///
    /// All predicates must hold. The server sends every row, and the stream skips those that a
    /// predicate rejects.
    ///
    /// The document is parsed into a [`Value`], and `T` is decoded from that `Value`:
    ///
    /// * If a key is repeated, which `json` allows and `jsonb` does not, both see its last value.
    /// * A document that `Value` cannot represent, for example a number beyond `f64`, is a row
    ///   error.
    ///
    /// A predicate runs in the task that polls the stream. If it panics, that task panics, and the
    /// client can still be used.
    pub fn where_rust(mut self, predicate: impl Fn(&Value) -> bool + Send + 'static) -> Self {
        self.predicates.on_documents.push(SharedPredicate::new(predicate));
        self
    }

    /// Adds a Rust predicate on the decoded row, evaluated by the client.
    ///
    /// All predicates must hold. These run after those of [`where_rust`](Self::where_rust). Each
    /// row is decoded once.
    pub fn where_typed(mut self, predicate: impl Fn(&T) -> bool + Send + 'static) -> Self {
        self.predicates.on_rows.push(SharedPredicate::new(predicate));
        self
    }

    /// Adds a sort expression in raw SQL, such as `data->>'name' desc`.
    ///
    /// The first expression is the primary sort key. The text is trusted: see
    /// [Security](Self#security).
    pub fn order_by(mut self, expression: impl Into<String>) -> Self {
        self.spec.select.order.push(Order::Sql(expression.into()));
        self
    }

    /// Adds a sort field, such as `field("total").desc()` or, in ascending order, `"total"`.
    ///
    /// The first is the primary sort key.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result, field};
    /// # async fn run(client: &FraiseClient) -> Result<()> {
    /// let query = client.query::<RawJson>("v_order");
    /// let query = query.order_by_field(field("total").desc()).order_by_field("id").limit(20);
    /// # Ok(())
    /// # }
    /// ```
    pub fn order_by_field(mut self, order: impl Into<OrderBy>) -> Self {
        self.spec.select.order.push(Order::Field(order.into()));
        self
    }

    /// Limits the result to at most `rows` rows. Default: no limit.
    ///
    /// The server applies the limit, before Rust predicates. If it sends more rows, as a proxy that
    /// queries several servers may, the stream ends with
    /// [`Error::Protocol`](crate::Error::Protocol).
    pub fn limit(mut self, rows: u64) -> Self {
        self.spec.select.limit = Some(rows);
        self
    }

    /// Skips the first `rows` rows of the result. Default: 0.
    ///
    /// The server skips them, before Rust predicates.
    pub fn offset(mut self, rows: u64) -> Self {
        self.spec.select.offset = Some(rows);
        self
    }

    /// Selects a raw SQL expression instead of the whole document.
    ///
    /// The expression must be of type `json` or `jsonb`. The text is trusted: see
    /// [Security](Self#security).
    pub fn select_projection(mut self, expression: impl Into<String>) -> Self {
        self.spec.select.projection = Projection::Sql(expression.into());
        self
    }

    /// Selects an object with only these fields, built by the server.
    ///
    /// For example, `["id", "address.city"]` returns `{"id": ..., "address": {"city": ...}}`. A
    /// missing field is null.
    ///
    /// If the column is of type `json` (not `jsonb`), some documents cannot be parsed and fail the
    /// query: see [`Filter`](crate::Filter#columns-of-type-json).
    pub fn select_fields<F: Into<Field>>(mut self, fields: impl IntoIterator<Item = F>) -> Self {
        self.spec.select.projection =
            Projection::Fields(fields.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the name of the JSON column, which is case-sensitive. Default: `data`.
    pub fn column(mut self, name: impl Into<String>) -> Self {
        self.spec.select.column = Cow::Owned(name.into());
        self
    }

    /// Sets whether a column of type `text` or `varchar` that contains JSON is accepted. Default:
    /// false.
    ///
    /// It is for engines that have no JSON type, such as DataFusion. The values are decoded like
    /// those of a `json` column, and one that is not JSON is a row error. A
    /// [`RawJson`](crate::RawJson) and the bodies of a stream are not checked, as always: with
    /// text, they can contain anything.
    ///
    /// The server does not look into text. So [`execute`](Self::execute) and the other methods that
    /// run the query return [`Error::Config`](crate::Error::Config) if one of these needs the
    /// document: [`filter`](Self::filter), [`order_by_field`](Self::order_by_field),
    /// [`select_fields`](Self::select_fields), [`resume_by`](Self::resume_by). Use
    /// [`where_sql`](Self::where_sql), [`where_rust`](Self::where_rust) and
    /// [`order_by`](Self::order_by), or filters and orders on a [`Field::column`]. `count` and
    /// `exists` accept a column of any type. With a server that has `json`, prefer a view that
    /// casts the column.
    ///
    /// The query is never prepared, like one with [`persistent(false)`](Self::persistent).
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, Result};
    /// # use serde_json::Value;
    /// # async fn run(client: &FraiseClient) -> Result<()> {
    /// let query = client.query::<Value>("orders").column("document").json_text(true);
    /// let stream = query.where_sql("year = 2026").order_by("id").limit(100).execute().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn json_text(mut self, on: bool) -> Self {
        self.spec.select.json_text = on;
        self
    }

    /// Sets the maximum number of rows per chunk. Default: 256.
    ///
    /// A chunk is delivered when it is full, when it reaches 64 KiB, or when no more data is
    /// available. Rows are never delayed to fill a chunk. 0 is an
    /// [`Error::Config`](crate::Error::Config) when the query is executed.
    pub fn chunk_size(mut self, rows: usize) -> Self {
        self.spec.settings.chunk_size = Some(rows);
        self
    }

    /// Enables adaptive chunk sizes. Default: off.
    ///
    /// The size starts at [`chunk_size`](Self::chunk_size). It doubles while the consumer is slower
    /// than the server, and halves while the consumer waits for rows. This is an expert setting: in
    /// benchmarks it was not faster than the default, a fixed size.
    pub fn adaptive_chunking(mut self, on: bool) -> Self {
        self.spec.settings.adaptive = on;
        self
    }

    /// Sets the minimum adaptive chunk size, in rows: at least 1, and at most
    /// [`adaptive_max_size`](Self::adaptive_max_size). Default: 16, or the maximum if that is less.
    pub fn adaptive_min_size(mut self, rows: usize) -> Self {
        self.spec.settings.adaptive_min = Some(rows);
        self
    }

    /// Sets the maximum adaptive chunk size, in rows. Default: 4,096, or the minimum if that is
    /// more.
    pub fn adaptive_max_size(mut self, rows: usize) -> Self {
        self.spec.settings.adaptive_max = Some(rows);
        self
    }

    /// Sets the maximum memory for buffered rows and the read buffer, in bytes.
    ///
    /// The stream may exceed it by one read of at most 64 KiB. When the limit is reached, the
    /// stream stops reading, and TCP backpressure stops the server. A row that is larger than the
    /// limit is [`Error::MemoryLimitExceeded`](crate::Error::MemoryLimitExceeded) and is not read.
    ///
    /// By default the stream buffers at most 1 MiB, or one row if that is larger. 0 is an
    /// [`Error::Config`](crate::Error::Config) when the query is executed.
    ///
    /// Rows that the consumer has received are not counted, although a [`RawJson`](crate::RawJson)
    /// or [`RowChunk`](crate::RowChunk) keeps its part of the read buffer in memory.
    pub fn max_memory(mut self, bytes: usize) -> Self {
        self.spec.settings.max_memory = Some(bytes);
        self
    }

    /// Sets thresholds below the memory limit, as fractions from 0.0 to 1.0. Default: none.
    ///
    /// `warn` is at most `fail`, which is above 0.0.
    ///
    /// * Above `warn`, a warning is logged with `tracing`, once per crossing.
    /// * Above `fail`, if it is less than 1.0, the stream ends with
    ///   [`Error::ConsumerLagged`](crate::Error::ConsumerLagged) instead of applying backpressure.
    ///
    /// Any stream fills its memory while its consumer is slower than the server. So set `fail`
    /// below 1.0 only if a slow consumer should lose its stream.
    ///
    /// The stream ends only if the rows of at least two reads are buffered. Otherwise it waits for
    /// the consumer, and may use up to [`max_memory`](Self::max_memory). The size of a read is a
    /// quarter of the `fail` limit, from 1 KiB to 64 KiB.
    pub fn memory_soft_limits(mut self, warn: f32, fail: f32) -> Self {
        self.spec.settings.soft_limits = Some((warn, fail));
        self
    }

    /// Sets the maximum time from [`execute`](Self::execute) to the arrival of the last row.
    /// Default: none.
    ///
    /// Pauses and the time of a slow consumer count. When the timeout expires, the query is
    /// cancelled on the server, and the stream ends with
    /// [`Error::Timeout`](crate::Error::Timeout) after the rows already received. If it expires
    /// while the client connects or resumes, the error is
    /// [`Error::Connection`](crate::Error::Connection) with the attempts so far. 0 is an
    /// [`Error::Config`](crate::Error::Config) when the query is executed.
    ///
    /// The timeout limits the query, not the lifetime of the stream. A stream that is never polled
    /// keeps its client, and its place in a pool, until it is dropped.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.settings.timeout = Some(timeout);
        self
    }

    /// Sets the maximum time from [`execute`](Self::execute) to the arrival of the first row.
    /// Default: none.
    ///
    /// The time to connect counts; pauses do not. When the timeout expires, the query is cancelled
    /// on the server, and the result is [`Error::Timeout`](crate::Error::Timeout), or
    /// [`Error::Connection`](crate::Error::Connection) if the client was still connecting. 0 is an
    /// [`Error::Config`](crate::Error::Config) when the query is executed.
    pub fn first_row_timeout(mut self, timeout: Duration) -> Self {
        self.spec.settings.first_row_timeout = Some(timeout);
        self
    }

    /// Sets the maximum duration of each pause of the stream. Default: none.
    ///
    /// See [`set_pause_timeout`](crate::QueryStream::set_pause_timeout). 0 is an
    /// [`Error::Config`](crate::Error::Config) when the query is executed.
    pub fn pause_timeout(mut self, timeout: Duration) -> Self {
        self.spec.settings.pause_timeout = Some(timeout);
        self
    }

    /// Runs the query on `n` connections in parallel, which all read the same snapshot. Default: 1.
    ///
    /// Together they return each row exactly once, in no particular order, or the stream ends with
    /// an error. `n` is at most 64. With 1, the query runs as usual.
    ///
    /// Use it for large results of tables, where the server is busy converting rows to text. With
    /// two processors for server and client together, `parallel(2)` takes 0.7 of the time, typed
    /// 0.8 to 0.95, and more connections do not help
    /// ([benchmarks](https://github.com/fraiseql/fraiseql-wire/blob/main/docs/benchmarks.md)).
    ///
    /// * **How the rows are divided.** Tables, partitioned tables, tables with children, and
    ///   materialized views are divided by their blocks. Before Postgres 14, each backend still
    ///   reads all blocks. Views are divided by [`partition_by`](Self::partition_by).
    /// * **One stream.** Memory, statistics and pauses are those of all connections together, and
    ///   the first error ends the stream.
    /// * **Connections.** The client's own connection is one of them. The others are opened to the
    ///   same server when the query is executed, and closed after it.
    /// * `count` and `exists` without Rust predicates, and `explain`, use only the client's
    ///   connection.
    ///
    /// # How the connections agree
    ///
    /// Each connection runs its part in a transaction (`REPEATABLE READ`, `READ ONLY`) with the
    /// same snapshot and its own locks. The query starts when all connections have planned it and
    /// see the same relations. That takes five round trips, and the time to connect. If another
    /// session changes the relation or waits for an exclusive lock in that time, all connections
    /// release it and try again, for up to 3 seconds.
    ///
    /// A snapshot does not include values that each connection computes for itself. The following
    /// must not decide which rows the result contains:
    ///
    /// * `now()`, `random()`, sequences, the server's statistics views, and settings that a view
    ///   changes;
    /// * a view that selects rows by LIMIT without a complete ORDER BY;
    /// * functions that read tables, because those tables are not locked before the functions run.
    ///
    /// A pooler in front of the server must have `n` free connections to one server at the same
    /// time. So (concurrent streams) × `n` must not exceed the size of its pool. The query waits
    /// for the connections for `connect_timeout`, or 10 seconds if that is not set.
    ///
    /// # Errors
    ///
    /// [`execute`](Self::execute) also returns:
    ///
    /// * [`Error::Config`](crate::Error::Config):
    ///   - `n` is 0 or more than 64;
    ///   - `order_by`, `limit` (also that of `fetch_one`), `offset` or `resume_by` is used;
    ///   - a view is queried without `partition_by`;
    ///   - `max_memory` is less than 4 KiB for each connection;
    ///   - the snapshot does not cover a relation (a foreign, Citus or temporary table), also in a
    ///     view;
    ///   - the connections differ in their user or settings.
    /// * [`Error::Timeout`](crate::Error::Timeout) with
    ///   [`TimeoutPhase::Parallel`](crate::TimeoutPhase::Parallel): not all connections could
    ///   start. With [`TimeoutPhase::Contention`](crate::TimeoutPhase::Contention): other sessions
    ///   kept changing the relation.
    /// * [`Error::Server`](crate::Error::Server):
    ///   - 55P03: other sessions kept the relation locked;
    ///   - 22023 or 42704: the connections reached different servers;
    ///   - 42501: dividing a table by its blocks needs SELECT on the whole table, not only on
    ///     columns.
    ///
    /// # Example
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
        self.options.get_or_insert_default().parallel = Some(n);
        self
    }

    /// Sets the expression that divides the rows of a [`parallel`](Self::parallel) query, in raw
    /// SQL. Without `parallel` it is an [`Error::Config`](crate::Error::Config).
    ///
    /// The rows are divided by the hash of the expression, for example `data->>'id'`. It must
    /// distinguish most rows, must not use parameters, and must not be volatile. Each connection
    /// evaluates it for every row; a row with different values is lost or returned twice. The text
    /// is trusted: see [Security](Self#security).
    ///
    /// Every backend reads all rows to find its own. So a view gains only if converting its
    /// documents to text costs more than reading them.
    pub fn partition_by(mut self, expression: impl Into<String>) -> Self {
        self.options.get_or_insert_default().partition_by = Some(expression.into());
        self
    }

    /// Orders the query by a unique key, and resumes it if the connection is lost.
    ///
    /// The stream resumes after the last received row on a new connection. No row is skipped or
    /// repeated unless it changes meanwhile. The key is a field of the document, a number or a
    /// string. [`StreamStats::resumptions`](crate::StreamStats) counts the resumptions.
    ///
    /// # When it resumes
    ///
    /// * It resumes after a lost connection, a server shutdown or crash (also if PgBouncer reports
    ///   it), `read_timeout`, and a conflict with recovery on a standby.
    /// * It does not resume after other errors, or before [`execute`](Self::execute) has returned.
    /// * It connects again as the configuration's [`RetryPolicy`](crate::RetryPolicy) specifies, to
    ///   another of its hosts if necessary. If all attempts fail without receiving a row, the
    ///   stream ends with the last error.
    /// * [`timeout`](Self::timeout) limits the whole stream, with all resumptions.
    ///
    /// # What the rest of the stream contains
    ///
    /// Each resumption is a new query with a new snapshot:
    ///
    /// * Rows that were deleted meanwhile are missing. Rows that were added are included if their
    ///   key is greater than the last one.
    /// * A row whose key has changed may be missing or repeated.
    /// * On a standby, the new snapshot may be older than the previous one.
    ///
    /// A resumption sends two more queries, for rows that would otherwise be missed: at first for
    /// another row with the key of the last one, at the end for rows without the key, which sort
    /// last. Such a row is an error.
    ///
    /// # Requirements
    ///
    /// The key must be in the selected document, at its place and unchanged. If
    /// [`select_projection`](Self::select_projection) puts another value there, the stream resumes
    /// at the wrong row.
    ///
    /// The client checks that numbers increase and compares them exactly. It does not check the
    /// order of strings, because only the server knows their collation. Through a proxy that merges
    /// the rows of several servers, a resumption loses rows unless all servers sort alike. Checking
    /// the keys has no measurable cost.
    ///
    /// If the column is of type `json` (not `jsonb`), some documents cannot be parsed and fail the
    /// query: see [`Filter`](crate::Filter#columns-of-type-json).
    ///
    /// # Index
    ///
    /// The matching index is `create index on t (((data->'id')))`, on a table or a materialized
    /// view that stores the documents.
    ///
    /// A view that builds the documents, for example with `to_jsonb(o)`, cannot use an index: the
    /// server sorts all rows each time the stream starts or resumes. (The expression is not
    /// immutable, so it cannot be indexed either.) For such a view, read pages instead of resuming:
    /// [`filter`](Self::filter) and [`order_by_field`](Self::order_by_field) on a
    /// [`Field::column`] of the view use the index of the table's column. Add
    /// [`limit`](Self::limit).
    ///
    /// # Errors
    ///
    /// * [`execute`](Self::execute) also returns [`Error::Config`](crate::Error::Config) if
    ///   `order_by`, `parallel`, a [`Field::column`] or a path of more than 127 keys is used.
    /// * The stream ends with [`Error::Config`](crate::Error::Config) if a row does not have
    ///   the field, or has the same key as the row before it.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result, field};
    /// # async fn run(client: &FraiseClient) -> Result<()> {
    /// let stream = client.query::<RawJson>("v_order").resume_by(field("id")).execute().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume_by(mut self, key: impl Into<Field>) -> Self {
        self.options.get_or_insert_default().resume_by = Some(key.into());
        self
    }

    /// Starts after this key of [`resume_by`](Self::resume_by): only rows with a greater key are
    /// returned. Default: from the first row.
    ///
    /// The key is a saved position, such as the `Last-Event-ID` of a client that reads
    /// [`into_sse`](crate::QueryStream::into_sse), or the key of the last row that was written to a
    /// file.
    ///
    /// * The order is that of `resume_by`: numbers are compared exactly, strings in the database's
    ///   collation. The row with this key need not exist.
    /// * [`filter`](Self::filter), [`limit`](Self::limit) and [`offset`](Self::offset) apply to the
    ///   rows after the key. So do [`count`](Self::count), [`exists`](Self::exists) and
    ///   [`explain`](Self::explain).
    /// * If the connection is lost, the stream resumes as usual, also before its first row.
    /// * At the end, one more query checks for rows without the key.
    ///
    /// # The type of the key
    ///
    /// It must be that of the keys in the documents. A saved position is usually text, so parse it
    /// if the keys are numbers: `text.parse::<i64>()`, or as `i128` or `rust_decimal::Decimal` if
    /// `i64` cannot represent every key exactly.
    ///
    /// A key of the other type is not a position, because `jsonb` sorts all strings before all
    /// numbers:
    ///
    /// * After a string, the first row whose key is a number ends the stream with
    ///   [`Error::Config`](crate::Error::Config).
    /// * After a number, there are no rows whose keys are strings: the result is empty.
    ///
    /// # Errors
    ///
    /// [`execute`](Self::execute) also returns [`Error::Config`](crate::Error::Config) if
    /// `resume_by` is missing, or if the key is neither a number nor a string.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result, field};
    /// # async fn run(client: &FraiseClient, last_event_id: Option<i64>) -> Result<()> {
    /// let mut query = client.query::<RawJson>("v_order").resume_by(field("id"));
    /// if let Some(id) = last_event_id {
    ///     query = query.resume_after(id);
    /// }
    /// let rest = query.execute().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn resume_after(mut self, key: impl Into<Operand>) -> Self {
        self.options.get_or_insert_default().resume_after = Some(key.into());
        self
    }

    /// Sets whether the server may keep the statement prepared. Default: true.
    ///
    /// The statement is prepared when a connection runs the same SQL text for the second time.
    /// Later executions refer to it by name, so that it is not parsed and, in most cases, not
    /// planned again. See
    /// [`statement_cache_capacity`](crate::ConnectionConfigBuilder::statement_cache_capacity).
    ///
    /// With false, the query is parsed and planned for its values each time. Use false in these
    /// cases:
    ///
    /// * **The best plan depends on the values.** After five executions the server may choose one
    ///   plan for all values. For a status of ten rows among a million, a page that takes 0.2 ms
    ///   then took 190 ms
    ///   ([benchmarks](https://github.com/fraiseql/fraiseql-wire/blob/main/docs/benchmarks.md)).
    ///   Alternatively, set `plan_cache_mode` to `force_custom_plan` for the role, or for the
    ///   session with [`param`](crate::ConnectionConfigBuilder::param). The statement is then still
    ///   prepared, but planned for its values each time.
    /// * **The type of a column may be altered while the client is connected.** Postgres infers the
    ///   type of a parameter only when it prepares the statement. After `date` has become
    ///   `timestamptz`, a value is still converted to a date, so other rows match, without an
    ///   error. A cast in the text (`$1::timestamptz`) prevents this too.
    ///
    /// A pooler may prepare statements again by itself. Through one, the server also describes the
    /// column each time, because it may not be JSON any more. The client detects a pooler by its
    /// [`backend_pid`](crate::FraiseClient::backend_pid): it is missing, too large, or differs from
    /// `pg_backend_pid()`, which is queried with the first prepared statement.
    ///
    /// Queries with [`parallel`](Self::parallel) or [`resume_by`](Self::resume_by), and
    /// [`explain`](Self::explain), are never prepared.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result};
    /// # async fn run(client: &FraiseClient, status: &str) -> Result<()> {
    /// let query = client.query::<RawJson>("v_order").where_sql("status = $1").bind(status);
    /// let page = query.order_by("id").limit(20).persistent(false).fetch_all().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn persistent(mut self, on: bool) -> Self {
        self.spec.is_persistent = on;
        self
    }

    /// Returns the SQL text and the parameters that the query would send.
    ///
    /// Parameters are text; `None` is NULL. Nothing is sent.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config): a name, a setting or a parameter is invalid.
    pub fn to_sql(&self) -> Result<(String, Vec<Option<String>>)> {
        let mut select = self.spec.select.clone();
        if let Some(options) = &self.options {
            options.apply(&mut select, &self.spec.settings)?;
        }
        let statement = select.rows()?;
        let parameters = statement.parameters.iter().zip(1..);
        let parameters =
            parameters.map(|(parameter, number)| Ok(parameter.sent(number)?.map(str::to_owned)));
        let parameters = parameters.collect::<Result<_>>()?;
        Ok((statement.sql, parameters))
    }
}

/// Copies the query, to run it again or to run a variant of it, such as a count and a page.
///
/// Copies share the client and, if it is from a pool, keep it out of the pool. They also share Rust
/// predicates: two streams at a time apply them one after the other, so a predicate must not wait
/// for another stream of the same query.
impl<T> Clone for QueryBuilder<T> {
    fn clone(&self) -> Self {
        Self {
            slot: self.slot.renewed(),
            pipeline: Arc::clone(&self.pipeline),
            spec: self.spec.clone(),
            options: self.options.clone(),
            predicates: self.predicates.clone(),
            rows: PhantomData,
        }
    }
}

/// Shows the query without the values of its parameters.
impl<T> fmt::Debug for QueryBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryBuilder").field("select", &self.spec.select).finish_non_exhaustive()
    }
}
