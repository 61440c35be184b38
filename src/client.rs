use std::{fmt, sync::Arc};

use crate::{
    config::{ConnectionConfig, TlsConfig},
    connection::{CancelToken, ConnectionInfo, ServerVersion, Slot, SlotHandle},
    error::{DbError, Result},
    query::QueryBuilder,
    stream::{FromJsonRow, Pipeline, continue_fetches},
};

#[cfg(doc)]
use crate::error::{Error, TimeoutPhase};

/// A client of a Postgres server, with at most one connection and one active stream.
///
/// The connection is reused by one query after another, whether their streams ended, failed or were
/// dropped. A lost connection is replaced at the next query. To run several streams concurrently,
/// use several clients or a pool (module `pool`).
///
/// # Concurrent fetches
///
/// [`fetch_all`](QueryBuilder::fetch_all), [`fetch_one`](QueryBuilder::fetch_one),
/// [`fetch_optional`](QueryBuilder::fetch_optional), [`count`](QueryBuilder::count),
/// [`exists`](QueryBuilder::exists) and [`explain`](QueryBuilder::explain) of one client can be
/// called concurrently from any number of tasks. They share the connection by pipelining: requests
/// are sent in the order of the calls, without waiting for earlier answers, at most 128 at a time.
///
/// * The server answers one request after the other, so a slow query delays those after it.
/// * An error, a timeout or a drop of one fetch affects no other. If the connection is lost or has
///   to be replaced, requests without rows are sent again, although the server may have begun them:
///   a view with side effects may have them more than once.
/// * [`execute`](QueryBuilder::execute) waits for the fetches in progress. From its call until its
///   stream has ended, a fetch is [`Error::ConnectionBusy`]. The same holds for
///   [`ping`](Self::ping), and for fetches with [`parallel`](QueryBuilder::parallel) or
///   [`resume_by`](QueryBuilder::resume_by).
/// * A fetch with a long answer must be polled: if its rows are left unread for 2 seconds while
///   others wait, it ends with [`Error::Timeout`] ([`TimeoutPhase::Consumer`]).
///
/// ```no_run
/// # use fraiseql_wire::{FraiseClient, Result};
/// # #[derive(serde::Deserialize)]
/// # struct User;
/// # async fn run(client: &FraiseClient, ids: &[String]) -> Result<()> {
/// let user = |id: &String| {
///     client.query::<User>("v_user").where_sql("data->>'id' = $1").bind(id.clone()).fetch_one()
/// };
/// // One connection, and about one round trip for all of them.
/// let users: Vec<User> = futures_util::future::try_join_all(ids.iter().map(user)).await?;
/// # Ok(())
/// # }
/// ```
///
/// The methods must be called within a tokio runtime with the I/O and time drivers enabled.
///
/// Dropping the client closes its connection. If a stream or fetches are active, the connection is
/// closed when they end.
pub struct FraiseClient {
    slot: Arc<Slot>,
    pipeline: Arc<Pipeline>,
}

impl FraiseClient {
    /// Creates a client without connecting. The first query connects.
    pub fn new(config: ConnectionConfig) -> Self {
        Self { slot: Arc::new(Slot::new(config)), pipeline: Arc::default() }
    }

    /// Connects to the server of a connection string.
    ///
    /// [`ConnectionConfig`] documents connection strings and defaults. There is no time limit by
    /// default: set `connect_timeout`.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, Result};
    /// # async fn run() -> Result<()> {
    /// let client = FraiseClient::connect("postgres://app:secret@localhost:5432/shop").await?;
    /// let local = FraiseClient::connect("postgres:///shop?host=/var/run/postgresql").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// * [`Error::Config`]: the connection string is invalid.
    /// * [`Error::Io`]: the service file cannot be read at the moment.
    /// * [`Error::Connection`]: no address could be connected to. It contains the error of each
    ///   attempt.
    /// * [`Error::Timeout`]: `connect_timeout` expired, and only one address was tried. With
    ///   several, the result is [`Error::Connection`].
    /// * [`Error::Authentication`]: the server rejected the login, or the client rejected the
    ///   server.
    /// * [`Error::Tls`]: TLS is required and could not be established, or the certificate is not
    ///   trusted.
    /// * [`Error::Server`]: the server rejected the session, for example because the database does
    ///   not exist.
    /// * [`Error::Protocol`]: the server violated the protocol.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the connection attempt.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with_config(ConnectionConfig::parse(url)?).await
    }

    /// Connects to the server of a configuration, like [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// Same as [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the connection attempt.
    pub async fn connect_with_config(config: ConnectionConfig) -> Result<Self> {
        let client = Self::new(config);
        client.connect_now().await?;
        Ok(client)
    }

    /// Connects like [`connect_with_config`](Self::connect_with_config), but by the retry policy.
    #[cfg(feature = "deadpool")]
    pub(crate) async fn connect_with_retries(config: ConnectionConfig) -> Result<Self> {
        let client = Self::new(config);
        client.slot.retry_first();
        client.connect_now().await?;
        Ok(client)
    }

    async fn connect_now(&self) -> Result<()> {
        let (_alone, lease, connection) = self.slot_handle().acquire(|| {}).await?;
        lease.give_back(connection);
        Ok(())
    }

    /// Connects like [`connect`](Self::connect), with the given TLS settings.
    ///
    /// They replace all TLS settings of the connection string except `sslnegotiation` and
    /// `sslpassword`, and TLS is required. A connection over a Unix socket is never encrypted: see
    /// [`ConnectionInfo::tls_version`].
    ///
    /// # Errors
    ///
    /// Same as [`connect`](Self::connect); also [`Error::Tls`] if TLS cannot be established.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the connection attempt.
    pub async fn connect_tls(url: &str, tls: TlsConfig) -> Result<Self> {
        Self::connect_with_config_tls(ConnectionConfig::parse(url)?, tls).await
    }

    /// Connects to the server of a configuration, with the given TLS settings.
    ///
    /// See [`connect_tls`](Self::connect_tls).
    ///
    /// # Errors
    ///
    /// Same as [`connect_tls`](Self::connect_tls).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the connection attempt.
    pub async fn connect_with_config_tls(config: ConnectionConfig, tls: TlsConfig) -> Result<Self> {
        Self::connect_with_config(config.with_tls(tls)?).await
    }

    /// Creates a query on a table, view or materialized view.
    ///
    /// The name may include a schema: `v_user`, `app.v_user`. It is an identifier, never SQL:
    ///
    /// * Each part is quoted and used exactly as given, so it is case-sensitive.
    /// * A part in double quotes is used as it is.
    /// * An invalid name is an [`Error::Config`] when the query is executed.
    ///
    /// Nothing is sent before the query is executed. The builder and its stream do not borrow from
    /// the client.
    ///
    /// ```no_run
    /// # use fraiseql_wire::{FraiseClient, RawJson, Result};
    /// # async fn run(client: &FraiseClient, tenant: u32) -> Result<()> {
    /// let users = client.query::<RawJson>("app.v_user").fetch_all().await?;
    /// let own = client.query::<RawJson>(format!("tenant_{tenant}.v_user")).fetch_all().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn query<T: FromJsonRow>(&self, entity: impl AsRef<str>) -> QueryBuilder<T> {
        self.query_with(self.slot_handle(), entity.as_ref())
    }

    /// Begins a query that has this handle.
    pub(crate) fn query_with<T: FromJsonRow>(
        &self,
        slot: SlotHandle,
        entity: &str,
    ) -> QueryBuilder<T> {
        QueryBuilder::new(slot, Arc::clone(&self.pipeline), entity)
    }

    /// See [`Slot::next_checkout`].
    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    pub(crate) fn next_checkout(&self) {
        self.slot.next_checkout();
    }

    fn continue_fetches(&self, slot: &SlotHandle) {
        continue_fetches(&self.pipeline, slot);
    }

    pub(crate) fn slot_handle(&self) -> SlotHandle {
        self.slot.handle()
    }

    /// Makes one round trip to the server. Connects first if there is no connection. Waits for the
    /// fetches in progress.
    ///
    /// Each wait for the server is limited by the configuration's `connect_timeout` and
    /// `read_timeout`, which have no default. To limit the whole call, use `tokio::time::timeout`.
    ///
    /// # Errors
    ///
    /// * [`Error::ConnectionBusy`]: a stream is active or being opened, or another ping is in
    ///   progress.
    /// * Errors of [`connect`](Self::connect), if the client has to connect.
    /// * [`Error::ConnectionClosed`] or [`Error::Io`]: a new connection was lost during the round
    ///   trip. A connection that has been used before is replaced instead.
    /// * [`Error::Timeout`]: `read_timeout` expired. The connection is closed.
    /// * [`Error::Server`]: the server reported an error. The connection is kept, unless the server
    ///   has ended the session.
    /// * [`Error::Cancelled`]: a [`CancelToken`] cancelled the call. The connection is closed if
    ///   the round trip had started.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection. The next query opens a new one.
    pub async fn ping(&self) -> Result<()> {
        let slot = self.slot_handle();
        let query = slot.begin_query();
        loop {
            let acquired =
                query.unless_cancelled(slot.acquire(|| self.continue_fetches(&slot))).await?;
            let (_alone, lease, mut connection) = acquired;
            match query.unless_cancelled(connection.ping()).await {
                Ok(()) => {
                    lease.give_back(connection);
                    return Ok(());
                }
                // The next round opens a new connection, so there is no third. Nothing is lost if
                // the server sees both.
                Err(e) if connection.reused && e.ends_session() => connection.discard_stale(),
                Err(e) => {
                    if e.ends_session() {
                        connection.set_lost(&e);
                    } else if connection.is_answered() {
                        lease.give_back(connection);
                    }
                    return Err(e);
                }
            }
        }
    }

    /// Closes the connection gracefully: sends Terminate, then shuts down the socket.
    ///
    /// Waits for the fetches in progress. Then it waits at most `cancel_timeout` (default: 2
    /// seconds) for the cleanup of an earlier stream, and as long again for the server to read the
    /// message.
    ///
    /// # Errors
    ///
    /// * [`Error::ConnectionBusy`]: a stream is active. The stream continues, and its connection is
    ///   closed after it ends.
    /// * [`Error::Timeout`]: `cancel_timeout` expired before the server had read the message. The
    ///   connection is closed without it.
    /// * [`Error::Io`]: the operating system reported an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future also closes the connection, but not gracefully.
    pub async fn close(self) -> Result<()> {
        let slot = self.slot_handle();
        match slot.take_idle(|| self.continue_fetches(&slot)).await? {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }

    /// Returns a token that can cancel the client's queries from another task or thread.
    ///
    /// It cancels the queries that are starting or running when [`cancel`](CancelToken::cancel) is
    /// called. Dropping the token has no effect.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::new(&self.slot)
    }

    /// Sets the handler for server notices and warnings on this and all later connections.
    ///
    /// It replaces an earlier handler. Default: they are emitted as `tracing` events.
    ///
    /// The handler runs on the task that reads the connection, so it must not block.
    pub fn on_notice(&self, handler: impl Fn(&DbError) + Send + Sync + 'static) {
        self.slot.notices.set(handler);
    }

    /// Returns the value of a run-time parameter, as last reported by the server.
    ///
    /// The server reports `server_version`, `TimeZone`, `in_hot_standby` and
    /// [others](https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC). `None`
    /// if there is no connection, or if the server does not report the parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.slot.session()?.parameter(name)
    }

    /// Returns the version of the server, or `None` if there is no connection.
    pub fn server_version(&self) -> Option<ServerVersion> {
        self.slot.session()?.server_version()
    }

    /// Returns how the current connection was opened, or `None` if there is no connection.
    pub fn connection_info(&self) -> Option<ConnectionInfo> {
        self.slot.session().map(|session| session.info().clone())
    }

    /// Returns whether there is a connection. Does not contact the server, so it may already be
    /// lost.
    pub fn is_connected(&self) -> bool {
        self.slot.session().is_some()
    }

    /// Returns whether a stream is active or the connection is in use.
    ///
    /// The connection is in use by fetches, a ping, the cleanup of a stream, or an attempt to
    /// connect. While only fetches use it, further fetches are accepted.
    pub fn is_busy(&self) -> bool {
        self.slot.is_busy()
    }

    /// Returns the process ID of the server's backend, as in `pg_stat_activity`.
    ///
    /// `None` if there is no connection, or if the server did not send one.
    pub fn backend_pid(&self) -> Option<u32> {
        self.slot.session()?.backend_pid()
    }
}

/// Shows the configuration and the connection, without secrets.
impl fmt::Debug for FraiseClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FraiseClient")
            .field("config", &format_args!("{}", self.slot.config()))
            .field("connection", &self.connection_info())
            .field("busy", &self.is_busy())
            .finish_non_exhaustive()
    }
}

impl Drop for FraiseClient {
    fn drop(&mut self) {
        self.slot.close();
    }
}
