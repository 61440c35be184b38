//! Saying what to read.

use std::{fmt, marker::PhantomData, sync::Arc};

use serde_json::Value;

use crate::{
    connection::Slot,
    error::{Error, Result},
    protocol::frontend,
    sql::{Param, Select, ToParam},
    stream::{FromJsonRow, Limits, Predicate, QueryStream},
};

/// The most rows in a chunk, unless set otherwise: about one read of small documents.
const DEFAULT_CHUNK_SIZE: usize = 256;

/// The memory of a stream, unless set otherwise: 2 MiB, or one row if that is larger.
const DEFAULT_MAX_MEMORY: usize = 2 << 20;

/// A query, put together step by step and run by [`execute`](Self::execute).
///
/// Made by [`FraiseClient::query`](crate::FraiseClient::query). It reads
/// `SELECT data FROM {entity} [WHERE ...] [ORDER BY ...] [LIMIT n] [OFFSET m]`, where `data` is a
/// column of type `json` or `jsonb`, and yields each document as a `T`: any type that serde
/// deserializes, [`serde_json::Value`], or [`RawJson`](crate::RawJson). `T` never changes the SQL.
///
/// Text given to `where_sql` and `order_by` is SQL and trusted: never build it from what a user
/// typed. Values belong in [`bind`](Self::bind).
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
    slot: Arc<Slot>,
    select: Select,
    parameters: Vec<Param>,
    predicates: Vec<Predicate>,
    chunk_size: usize,
    max_memory: Option<usize>,
    rows: PhantomData<fn() -> T>,
}

impl<T: FromJsonRow> QueryBuilder<T> {
    pub(crate) fn new(slot: Arc<Slot>, entity: &str) -> Self {
        Self {
            slot,
            select: Select { entity: entity.to_owned(), ..Select::default() },
            parameters: Vec::new(),
            predicates: Vec::new(),
            chunk_size: DEFAULT_CHUNK_SIZE,
            max_memory: None,
            rows: PhantomData,
        }
    }

    /// Adds a condition in trusted SQL; several must all hold. Each stands in parentheses.
    ///
    /// It may use `$1`, `$2`, ... for the values given to [`bind`](Self::bind).
    pub fn where_sql(mut self, condition: impl Into<String>) -> Self {
        self.select.conditions.push(condition.into());
        self
    }

    /// Gives the value of the next parameter: the first call that of `$1`, the second of `$2`, over
    /// the text of all `where_sql` and `order_by`.
    pub fn bind(mut self, value: impl ToParam) -> Self {
        self.parameters.push(value.to_param());
        self
    }

    /// Adds a condition in Rust on the document; several must all hold. Rows that do not meet them
    /// are skipped by the stream, after they were sent.
    ///
    /// The document is decoded a second time for it, into a [`Value`].
    pub fn where_rust(mut self, predicate: impl Fn(&Value) -> bool + Send + 'static) -> Self {
        self.predicates.push(Box::new(predicate));
        self
    }

    /// Adds an expression of trusted SQL to sort by, such as `data->>'name' desc`; the first sorts
    /// first.
    pub fn order_by(mut self, expression: impl Into<String>) -> Self {
        self.select.order.push(expression.into());
        self
    }

    /// Reads at most so many rows. Rust predicates come after it.
    pub fn limit(mut self, rows: u64) -> Self {
        self.select.limit = Some(rows);
        self
    }

    /// Skips so many rows at the beginning.
    pub fn offset(mut self, rows: u64) -> Self {
        self.select.offset = Some(rows);
        self
    }

    /// Sets the most rows that are handed over in one piece: 256 unless set.
    ///
    /// Rows never wait for a chunk to fill: a chunk goes as soon as no more rows have arrived, or
    /// at 64 KiB.
    pub fn chunk_size(mut self, rows: usize) -> Self {
        self.chunk_size = rows;
        self
    }

    /// Sets the most bytes of rows and read buffer that the stream holds, plus one read of at most
    /// 64 KiB; then it leaves rows in the sockets until there is room.
    ///
    /// One row beyond it is [`Error::MemoryLimitExceeded`], before it is read. Unless set, the
    /// stream holds at most 2 MiB, or one row if that is larger.
    pub fn max_memory(mut self, bytes: usize) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Returns what would be sent: the SQL text, and the parameters as text (`None` is NULL).
    ///
    /// # Errors
    ///
    /// [`Error::Config`], as of [`execute`](Self::execute).
    pub fn to_sql(&self) -> Result<(String, Vec<Option<String>>)> {
        Ok((self.select.to_sql()?, self.parameters.iter().map(|p| p.0.clone()).collect()))
    }

    /// Sends the query; resolves when the server has begun to answer with the right kind of column.
    ///
    /// A server begins to answer when it has 8 KiB of rows or is at their end, so this waits for a
    /// query that is slow to find its first rows.
    ///
    /// One round trip, and a connection before it if the client has none. A connection that ended
    /// while it was idle is replaced. When an earlier stream of the client has just been dropped,
    /// its clean-up is waited for.
    ///
    /// # Errors
    ///
    /// * [`Error::Config`], before anything is sent: a name, a setting or a parameter is not valid.
    /// * [`Error::ConnectionBusy`] at once, when another stream of the client is alive.
    /// * Those of [`FraiseClient::connect`](crate::FraiseClient::connect), if it has to.
    /// * [`Error::Server`]: the server refuses the query.
    /// * [`Error::InvalidSchema`]: the relation's column is not JSON.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the query, as dropping the stream does.
    pub async fn execute(self) -> Result<QueryStream<T>> {
        let limits = self.limits()?;
        let sql = self.select.to_sql()?;
        let parameters: Vec<Option<&str>> =
            self.parameters.iter().map(|p| p.0.as_deref()).collect();
        let request = frontend::extended_query(&sql, &parameters)?;
        QueryStream::open(&self.slot, request, limits, self.predicates).await
    }

    fn limits(&self) -> Result<Limits> {
        if self.chunk_size == 0 {
            return Err(Error::config(
                "chunk_size is 0, so no row could ever be handed over: set at least 1",
            ));
        }
        if self.max_memory == Some(0) {
            return Err(Error::config(
                "max_memory is 0, so no row could ever be read: set at least the size of the \
                 largest row in bytes",
            ));
        }
        Ok(Limits {
            chunk_size: self.chunk_size,
            memory: self.max_memory.unwrap_or(DEFAULT_MAX_MEMORY),
            strict: self.max_memory.is_some(),
        })
    }
}

/// The query, without the values of its parameters.
impl<T> fmt::Debug for QueryBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryBuilder")
            .field("select", &self.select)
            .field("parameters", &self.parameters.len())
            .field("predicates", &self.predicates.len())
            .finish_non_exhaustive()
    }
}
