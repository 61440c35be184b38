use std::{fmt, sync::Arc};

use crate::{
    config::{ConnectionConfig, TlsConfig},
    connection::{CancelToken, ConnectionInfo, ServerVersion, Slot, SlotHandle},
    error::{DbError, Result},
    query::QueryBuilder,
    stream::FromJsonRow,
};

#[cfg(doc)]
use crate::error::Error;

/// A client of a Postgres server: at most one connection, and one stream at a time.
///
/// The connection is used again for query after query, whatever became of the stream before; one
/// that was lost is replaced at the next query. For several streams at once, use several clients.
///
/// A tokio runtime with its I/O and time drivers must be running where its methods are called.
///
/// Dropping the client ends its connection; a stream that is still alive goes on to its end first.
pub struct FraiseClient {
    slot: Arc<Slot>,
}

impl FraiseClient {
    /// Makes a client without connecting: the first query does that.
    pub fn new(config: ConnectionConfig) -> Self {
        Self { slot: Arc::new(Slot::new(config)) }
    }

    /// Connects to the server of a connection string; see [`ConnectionConfig`].
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
    /// * [`Error::Config`]: the string is not valid.
    /// * [`Error::Connection`]: no address accepts, each with its reason.
    /// * [`Error::Timeout`]: `connect_timeout` passed.
    /// * [`Error::Authentication`]: the login is refused, or the server cannot be trusted.
    /// * [`Error::Tls`]: TLS is asked for and cannot be had, or the certificate is not trusted.
    /// * [`Error::Server`]: the server refuses the session, for example for want of the database.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the connection up.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with_config(ConnectionConfig::parse(url)?).await
    }

    /// Connects to the server of a configuration, like [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the connection up.
    pub async fn connect_with_config(config: ConnectionConfig) -> Result<Self> {
        let client = Self::new(config);
        let (_alone, lease, connection) = client.slot_handle().acquire().await?;
        lease.give_back(connection);
        Ok(client)
    }

    /// Connects like [`connect`](Self::connect), by TLS as `tls` says, whatever the string says about it.
    /// A Unix socket is never encrypted: see [`ConnectionInfo::tls_version`].
    ///
    /// # Errors
    ///
    /// As of [`connect`](Self::connect), and [`Error::Tls`] when TLS cannot be had.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the connection up.
    pub async fn connect_tls(url: &str, tls: TlsConfig) -> Result<Self> {
        Self::connect_with_config_tls(ConnectionConfig::parse(url)?, tls).await
    }

    /// Connects to the server of a configuration, by TLS as `tls` says.
    ///
    /// # Errors
    ///
    /// As of [`connect_tls`](Self::connect_tls).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the connection up.
    pub async fn connect_with_config_tls(config: ConnectionConfig, tls: TlsConfig) -> Result<Self> {
        Self::connect_with_config(config.with_tls(tls)?).await
    }

    /// Begins a query on a table, view or materialized view, optionally with its schema:
    /// `v_user`, `app.v_user`.
    ///
    /// The name is an identifier, never SQL. It is quoted part by part and taken exactly as it is
    /// written, upper case included; a part already in double quotes is taken as it stands. A name
    /// that is not valid is an error of [`execute`](QueryBuilder::execute).
    ///
    /// The builder and its stream do not borrow from the client.
    pub fn query<T: FromJsonRow>(&self, entity: &str) -> QueryBuilder<T> {
        QueryBuilder::new(self.slot_handle(), entity)
    }

    /// See [`Slot::next_checkout`].
    #[cfg(any(feature = "bb8", feature = "deadpool"))]
    pub(crate) fn next_checkout(&self) {
        self.slot.next_checkout();
    }

    pub(crate) fn slot_handle(&self) -> SlotHandle {
        self.slot.handle()
    }

    /// Makes one round trip to the server, and connects first if there is no connection.
    ///
    /// Each wait for the server is bounded by the configuration's `connect_timeout` and
    /// `read_timeout`, which have no default. `tokio::time::timeout` bounds the whole call.
    ///
    /// # Errors
    ///
    /// * [`Error::ConnectionBusy`] while a stream is active.
    /// * Errors of [`connect`](Self::connect), if the client has to connect.
    /// * [`Error::ConnectionClosed`] or [`Error::Io`]: a new connection was lost during the round
    ///   trip. A connection that has been used before is replaced instead.
    /// * [`Error::Timeout`]: `read_timeout` passed. The connection is closed.
    /// * [`Error::Server`]: the server reported an error. The connection stays, unless the server
    ///   has ended the session.
    /// * [`Error::Cancelled`] by a [`CancelToken`]. The connection is closed if the round trip had
    ///   begun on it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection; the next query opens another one.
    pub async fn ping(&self) -> Result<()> {
        let slot = self.slot_handle();
        let query = slot.begin_query();
        loop {
            let acquired = query.unless_cancelled(slot.acquire()).await?;
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
                    if connection.is_answered() && !e.ends_session() {
                        lease.give_back(connection);
                    }
                    return Err(e);
                }
            }
        }
    }

    /// Closes the connection in order: sends Terminate, then shuts down the socket. Waits at most
    /// `cancel_timeout` for the cleanup of an earlier stream, and at most `cancel_timeout` for the
    /// server to read.
    ///
    /// # Errors
    ///
    /// * [`Error::ConnectionBusy`] while a stream is active: it continues, and its connection is
    ///   closed after it.
    /// * [`Error::Timeout`]: `cancel_timeout` passed and the server had not read the message. The
    ///   connection is closed without it.
    /// * [`Error::Io`] if the operating system reports an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection all the same.
    pub async fn close(self) -> Result<()> {
        match self.slot_handle().take_idle().await? {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }

    /// Returns a token that cancels the client's query from any task: the query that is being
    /// started or runs when [`cancel`](CancelToken::cancel) is called.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::new(&self.slot)
    }

    /// Sets who hears what the server has to say besides: notices and warnings, from now on, on
    /// later connections too. Without a handler they are events of `tracing`.
    ///
    /// It is called where the connection is read, so it must be quick and must not block.
    pub fn on_notice(&self, handler: impl Fn(&DbError) + Send + Sync + 'static) {
        self.slot.notices.set(handler);
    }

    /// Returns a parameter as the server last reported it: `server_version`, `TimeZone`,
    /// `in_hot_standby` and [some more](https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC).
    /// `None` without a connection.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.slot.session()?.parameter(name)
    }

    /// Returns the version of the server, while there is a connection.
    pub fn server_version(&self) -> Option<ServerVersion> {
        self.slot.session()?.server_version()
    }

    /// Returns how the present connection was made.
    pub fn connection_info(&self) -> Option<ConnectionInfo> {
        self.slot.session().map(|session| session.info().clone())
    }

    /// Returns whether there is a connection, as far as is known without asking the server.
    pub fn is_connected(&self) -> bool {
        self.slot.session().is_some()
    }

    /// Returns whether a stream is alive, or one is being cleaned up.
    pub fn is_busy(&self) -> bool {
        self.slot.is_busy()
    }

    /// Returns the process id of the server's backend, as in `pg_stat_activity`, while there is a
    /// connection and the server gave one.
    pub fn backend_pid(&self) -> Option<u32> {
        self.slot.session()?.backend_pid()
    }
}

/// Where it is connected to, and whether; no secrets.
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
