use std::{fmt, io, net::IpAddr, time::Duration};

use zeroize::Zeroizing;

use super::{
    client_options::ClientOptions,
    connection_config::ConnectionConfig,
    connector::{AsyncRead, AsyncWrite, Connector},
    host::Target,
    keyword::{self, Values},
    modes::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs},
    password::PasswordProvider,
    retry::RetryPolicy,
    tls::TlsConfig,
};
use crate::error::{Error, Result};

impl ConnectionConfig {
    /// Returns a builder for a configuration in code.
    pub fn builder() -> ConnectionConfigBuilder {
        ConnectionConfigBuilder::default()
    }

    /// Returns a builder initialized from this configuration, for settings that a connection string
    /// cannot express.
    ///
    /// ```
    /// use std::time::Duration;
    /// use fraiseql_wire::ConnectionConfig;
    ///
    /// # fn main() -> fraiseql_wire::Result<()> {
    /// let config = ConnectionConfig::parse("postgres://app@db1/shop")?
    ///     .to_builder()
    ///     .read_timeout(Duration::from_secs(30))
    ///     .build()?;
    /// assert_eq!(config.host(), ["db1"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_builder(&self) -> ConnectionConfigBuilder {
        ConnectionConfigBuilder::from_config(self.values.clone(), self.client_options.clone())
    }
}

/// A builder for a [`ConnectionConfig`].
///
/// Created by [`ConnectionConfig::builder`], or by [`ConnectionConfig::to_builder`] from an
/// existing configuration. As with a connection string, settings that are not set come from the
/// environment (`PGHOST`, `PGSERVICE` and so on) or their defaults. [`build`](Self::build)
/// validates all settings.
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until it is built"]
pub struct ConnectionConfigBuilder {
    /// The values of the base configuration.
    base: Values,
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<String>,
    /// By keyword of libpq.
    settings: Vec<(&'static str, Zeroizing<String>)>,
    client_options: ClientOptions,
}

impl ConnectionConfigBuilder {
    fn from_config(base: Values, client_options: ClientOptions) -> Self {
        Self { base, client_options, ..Self::default() }
    }

    /// Adds a host: a name, an IP address, or the directory of a Unix socket. A directory begins
    /// with `/`, or with `@` in the abstract namespace of Linux.
    ///
    /// Several hosts are tried in order. They replace any hosts, addresses and ports of the base
    /// configuration. Each call adds one host; [`build`](Self::build) rejects a host that contains
    /// a comma. Default: a local Unix socket, or `localhost` where there are none.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Adds an address to connect to, instead of resolving the host at the same position. Like
    /// [`host`](Self::host), it replaces the values of the base configuration.
    pub fn hostaddr(mut self, address: impl Into<IpAddr>) -> Self {
        self.addresses.push(address.into().to_string());
        self
    }

    /// Adds a port: either one for all hosts, or one for each in order. Default: 5432.
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port.to_string());
        self
    }

    /// Sets the database. Default: the name of the user.
    pub fn database(self, name: impl Into<String>) -> Self {
        self.set("dbname", name)
    }

    /// Sets the role that logs in. Default: the user of the operating system.
    pub fn user(self, name: impl Into<String>) -> Self {
        self.set("user", name)
    }

    /// Sets the password. Default: looked up in the password file.
    pub fn password(self, password: impl Into<String>) -> Self {
        self.set("password", password)
    }

    /// Sets a callback that returns the password. Same as
    /// [`password_provider_for`](Self::password_provider_for), for a password that depends neither
    /// on the host nor on the user.
    pub fn password_provider<F, P>(self, provider: F) -> Self
    where
        F: Fn() -> P + Send + Sync + 'static,
        P: Future<Output = Result<String>> + Send + 'static,
    {
        self.password_provider_for(move |_, _| provider())
    }

    /// Sets a callback that returns the password of a user on a host, for tokens that expire. It
    /// takes precedence over [`password`](Self::password) and the password file.
    ///
    /// The callback runs once for each connection for which the server requests a password, within
    /// `connect_timeout`. Sessions of [`parallel`](crate::QueryBuilder::parallel) and resumed
    /// streams have connections of their own. If the server rejects the password, the callback runs
    /// once more, for a new connection to that host. A password that was rejected is not sent
    /// again. If connecting is abandoned, the callback's future is dropped.
    ///
    /// # Errors of the callback
    ///
    /// * **No password at the moment:** return a [retriable](Error::is_retriable) error, such as
    ///   [`Error::Io`]. The next host is tried. If no host is left, the result is
    ///   [`Error::Connection`], which is retriable too: the [`retry`](Self::retry) policy applies
    ///   to reconnecting clients and resumed streams.
    /// * **No password at all:** return any other error, such as [`Error::Authentication`]. It ends
    ///   the attempt, and its message is shown.
    ///
    /// # Example
    ///
    /// ```
    /// # use fraiseql_wire::{ConnectionConfig, Error, Result, Target};
    /// # async fn sign(host: String, port: u16, user: String) -> std::io::Result<String> {
    /// #     Ok(format!("{host}:{port}/?Action=connect&DBUser={user}&..."))
    /// # }
    /// # fn main() -> Result<()> {
    /// let config = ConnectionConfig::builder()
    ///     .host("shop.abc.eu-west-1.rds.amazonaws.com")
    ///     .user("app")
    ///     .password_provider_for(|target: &Target, user: &str| {
    ///         // The future cannot borrow the arguments.
    ///         let (host, port, user) = (target.host.clone(), target.port, user.to_owned());
    ///         async move {
    ///             let token = sign(host.unwrap_or_default(), port, user).await;
    ///             token.map_err(|source| Error::Io { during: "while signing a token", source })
    ///         }
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn password_provider_for<F, P>(mut self, provider: F) -> Self
    where
        F: Fn(&Target, &str) -> P + Send + Sync + 'static,
        P: Future<Output = Result<String>> + Send + 'static,
    {
        self.client_options.password_provider = Some(PasswordProvider::new(provider));
        self
    }

    /// Sets a callback that opens the byte streams to the server, in place of sockets: for SSH
    /// tunnels, connectors of cloud providers, proxies, vsock, and servers in memory.
    ///
    /// It is called with one of the [`targets`](ConnectionConfig::targets) for each connection:
    ///
    /// * for the client's connection, and for each further host if that fails;
    /// * for reconnecting, for resuming a stream, and for each session of
    ///   [`parallel`](crate::QueryBuilder::parallel);
    /// * for each cancel request, which must reach the same server.
    ///
    /// The future is limited by [`connect_timeout`](Self::connect_timeout) or, for a cancel
    /// request, by [`cancel_timeout`](Self::cancel_timeout), and dropped after that. An error tries
    /// the next host.
    ///
    /// TLS, the login and everything above work as usual, with the host of the target. `sslmode`
    /// applies to every target, even if it is the directory of a Unix socket. A tunnel that ends at
    /// the server's Unix socket has no TLS: use `sslmode=disable` if the tunnel is encrypted.
    ///
    /// # What it replaces
    ///
    /// * Name resolution: the target's host is a name for the callback, the certificate and the
    ///   password file.
    /// * Unix sockets, and the TCP settings: `keepalive...`, `tcp_user_timeout` and `TCP_NODELAY`.
    ///   Set `TCP_NODELAY` on a TCP socket.
    /// * `requirepeer`, which is an [`Error::Config`].
    /// * Reads of 64 KiB (`SO_RCVLOWAT`, on Linux): the stream is read as soon as it has data.
    /// * The check whether the server has closed an idle connection (`MSG_PEEK`): the stream is
    ///   polled instead. If it does not report the end then, the next query fails with
    ///   [`Error::ConnectionClosed`] or [`Error::Io`].
    ///
    /// # What the stream must do
    ///
    /// * Report the end of the stream (EOF) when the server closes the connection. The cleanup of a
    ///   cancelled query waits for it, up to [`cancel_timeout`](Self::cancel_timeout); without it,
    ///   the client's connection is closed too.
    /// * Close the connection to the server when it is dropped.
    ///
    /// # Example
    ///
    /// ```
    /// # use fraiseql_wire::{ConnectionConfig, Target};
    /// # use tokio::net::TcpStream;
    /// # fn main() -> fraiseql_wire::Result<()> {
    /// // Through a proxy that expects the name of the server in a first line.
    /// let config = ConnectionConfig::builder()
    ///     .host("db.internal")
    ///     .connector(|target: Target| async move {
    ///         use tokio::io::AsyncWriteExt;
    ///         let mut stream = TcpStream::connect("proxy.internal:9000").await?;
    ///         stream.set_nodelay(true)?;
    ///         stream.write_all(format!("{target}\n").as_bytes()).await?;
    ///         Ok(stream)
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connector<F, C, S>(mut self, connect: F) -> Self
    where
        F: Fn(Target) -> C + Send + Sync + 'static,
        C: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.client_options.connector = Some(Connector::new(connect));
        self
    }

    /// Sets the name shown in `pg_stat_activity`. Default: none.
    pub fn application_name(self, name: impl Into<String>) -> Self {
        self.set("application_name", name)
    }

    /// Sets command-line options for the server, such as `-c search_path=app`. Some poolers reject
    /// them.
    pub fn options(self, options: impl Into<String>) -> Self {
        self.set("options", options)
    }

    /// Sets the maximum time for one address: connecting, TLS and login together. For the first
    /// address of a host it includes name resolution. It restarts for each further address.
    /// Default: none; the operating system limits the attempt. 0 is an [`Error::Config`].
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.connect_timeout = Some(timeout);
        self
    }

    /// Sets the maximum time that a query, a stream or a ping waits for the server without sending
    /// or receiving a byte. When it expires, the result is [`Error::Timeout`]. Default: none,
    /// because a query may take long to find its first row. 0 is an [`Error::Config`].
    ///
    /// Time in which the stream does not read, because it is paused or its memory is full, does not
    /// count.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.read_timeout = Some(timeout);
        self
    }

    /// Sets the `statement_timeout` of the server, in whole milliseconds, from 1 to 2,147,483,647.
    /// Default: that of the server. The server also counts the time during which the stream is not
    /// read.
    ///
    /// It is sent as a startup parameter. PgBouncer rejects it, or silently ignores it if it is
    /// listed in `ignore_startup_parameters`. Some poolers and engines (PgCat, PGlite) silently
    /// ignore startup parameters: run `show statement_timeout` through them to check, or set the
    /// limit for the role.
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.statement_timeout = Some(timeout);
        self
    }

    /// Sets whether TCP keepalives are sent. Default: on.
    pub fn keepalive(self, on: bool) -> Self {
        self.set("keepalives", if on { "1" } else { "0" })
    }

    /// Sets the idle time before the first keepalive, rounded up to seconds. Default: the operating
    /// system's, often two hours.
    pub fn keepalive_idle(self, idle: Duration) -> Self {
        self.set("keepalives_idle", ceil_seconds(idle))
    }

    /// Sets the time between keepalives, rounded up to seconds. Default: the operating system's.
    pub fn keepalive_interval(self, interval: Duration) -> Self {
        self.set("keepalives_interval", ceil_seconds(interval))
    }

    /// Sets how many keepalives can be lost before the connection is considered dead. Default: the
    /// operating system's.
    pub fn keepalive_count(self, count: u32) -> Self {
        self.set("keepalives_count", count.to_string())
    }

    /// Sets how long sent data can stay unacknowledged, rounded up to milliseconds. Default: the
    /// operating system's. It has an effect only on systems that support `TCP_USER_TIMEOUT`.
    pub fn tcp_user_timeout(self, timeout: Duration) -> Self {
        self.set("tcp_user_timeout", timeout.as_nanos().div_ceil(1_000_000).to_string())
    }

    /// Sets whether the session is encrypted and how the server is verified. Default:
    /// [`SslMode::Prefer`].
    pub fn ssl_mode(self, mode: SslMode) -> Self {
        self.set("sslmode", mode.as_str())
    }

    /// Sets how encryption is negotiated. Default: [`SslNegotiation::Postgres`].
    pub fn ssl_negotiation(self, negotiation: SslNegotiation) -> Self {
        self.set("sslnegotiation", negotiation.as_str())
    }

    /// Sets whether the login is bound to the encrypted channel. Default:
    /// [`ChannelBinding::Prefer`].
    pub fn channel_binding(self, binding: ChannelBinding) -> Self {
        self.set("channel_binding", binding.as_str())
    }

    /// Sets the accepted authentication methods, for example `scram-sha-256` or `!password,!none`.
    /// The syntax is that of
    /// [`require_auth`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-REQUIRE-AUTH)
    /// of libpq. Default: all methods.
    pub fn require_auth(self, methods: impl Into<String>) -> Self {
        self.set("require_auth", methods)
    }

    /// Sets which servers are accepted. Default: [`TargetSessionAttrs::Any`].
    pub fn target_session_attrs(self, attrs: TargetSessionAttrs) -> Self {
        self.set("target_session_attrs", attrs.as_str())
    }

    /// Sets the order in which several hosts are tried. Default: [`LoadBalanceHosts::Disable`].
    pub fn load_balance_hosts(self, order: LoadBalanceHosts) -> Self {
        self.set("load_balance_hosts", order.as_str())
    }

    /// Sets the TLS settings. They replace all `ssl...` settings except
    /// [`ssl_negotiation`](Self::ssl_negotiation) and the `sslpassword` of the base configuration.
    /// The session is then always encrypted, except over a Unix socket.
    pub fn tls(mut self, tls: TlsConfig) -> Self {
        self.client_options.tls = Some(tls);
        self
    }

    /// Adds a run-time parameter that is sent at the start of the session, such as `work_mem`. Some
    /// poolers reject it.
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.client_options.params.push((name.into(), value.into()));
        self
    }

    /// Sets the maximum size of a message from the server, in bytes: at least 8 KiB. Maximum and
    /// default: 1 GiB. A larger row ends its stream with [`Error::Protocol`] before it is read.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.client_options.max_message_size = bytes;
        self
    }

    /// Sets the maximum number of SCRAM iterations that a server can request, at least 1. Default:
    /// 100,000, about 50 ms of CPU time.
    pub fn max_scram_iterations(mut self, iterations: u32) -> Self {
        self.client_options.max_scram_iterations = iterations;
        self
    }

    /// Sets the policy for replacing a lost connection. Default: 5 attempts with pauses of at most
    /// 1.5 seconds in all.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.client_options.retry = policy;
        self
    }

    /// Sets the maximum time for stopping a query: the cancel requests and draining together. After
    /// that the connection is closed. It also bounds `FraiseClient::close` and the end of the
    /// transaction of a parallel query. Default: 2 seconds. 0 is an [`Error::Config`].
    pub fn cancel_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.cancel_timeout = timeout;
        self
    }

    /// Sets the maximum number of bytes that are drained from a stopped query to keep its
    /// connection. Default: 16 MiB.
    pub fn drain_limit(mut self, bytes: usize) -> Self {
        self.client_options.drain_limit = bytes;
        self
    }

    /// Sets the maximum number of prepared statements that each connection keeps, at most 10,000.
    /// Default: 100. 0 disables prepared statements.
    ///
    /// A statement is prepared when its text is used for the second time on a connection, so that
    /// later uses need no parsing. When the cache is full, the least recently used statement is
    /// closed. Texts of more than 32 KiB are never prepared.
    ///
    /// LIMIT and OFFSET are a part of the text, so each page of `limit(20).offset(20 * n)` is a
    /// statement of its own. Read such pages with
    /// [`persistent(false)`](crate::QueryBuilder::persistent), or pages after a key: the text of
    /// `filter(field("id").gt(last)).limit(20)` is the same for all of them.
    ///
    /// Prepared statements work through poolers that support them, such as PgBouncer from 1.21 with
    /// `max_prepared_statements`. If a pooler does not, the first statement that is missing
    /// disables them for this configuration and its clones. The query itself is sent again without
    /// a prepared statement. The same happens if a pooler keeps a statement that is out of date.
    ///
    /// ```
    /// # fn main() -> fraiseql_wire::Result<()> {
    /// use fraiseql_wire::ConnectionConfig;
    ///
    /// let config = ConnectionConfig::builder().host("db").user("shop").database("shop");
    /// let config = config.statement_cache_capacity(50).build()?;
    /// assert_eq!(config.statement_cache_capacity(), 50);
    /// # Ok(())
    /// # }
    /// ```
    pub fn statement_cache_capacity(mut self, n: usize) -> Self {
        self.client_options.statement_cache_capacity = n;
        self
    }

    /// Validates all settings. Settings that are not set come from the service file, the
    /// environment, or their defaults.
    ///
    /// # Errors
    ///
    /// * [`Error::Config`] names the invalid setting.
    /// * [`Error::Io`]: the service file cannot be read at the moment.
    /// * [`Error::Tls`]: TLS is required, and this build does not support it.
    pub fn build(self) -> Result<ConnectionConfig> {
        // A comma would send the password to several hosts although the caller named one.
        if self.hosts.iter().any(|host| host.contains([',', '\0'])) {
            return Err(Error::config("a host contains a comma: call host() once for each host"));
        }
        let mut values = self.base;
        // Otherwise a new host would be combined with the address of an old one.
        if !(self.hosts.is_empty() && self.addresses.is_empty()) {
            let is_new = values.is_empty();
            ["host", "hostaddr", "port"].into_iter().for_each(|name| values.remove(name));
            if !is_new {
                // Otherwise the environment or the service file would set them again. An empty
                // value counts as set.
                values.set("host", String::new())?;
                values.set("hostaddr", String::new())?;
            }
        }
        for (name, list) in
            [("host", self.hosts), ("hostaddr", self.addresses), ("port", self.ports)]
        {
            if !list.is_empty() {
                values.set(name, list.join(","))?;
            }
        }
        for (name, value) in self.settings {
            if value.contains('\0') {
                return Err(Error::config(format!("{name} contains a NUL character")));
            }
            values.set(name, value)?;
        }
        ConnectionConfig::resolve(values, self.client_options)
    }

    fn set(mut self, keyword: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((keyword, Zeroizing::new(value.into())));
        self
    }
}

/// Shows no secrets.
impl fmt::Debug for ConnectionConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.settings.iter().map(|(k, v)| (*k, keyword::shown(k, v)));
        f.debug_struct("ConnectionConfigBuilder")
            .field("base", &self.base)
            .field("hosts", &self.hosts)
            .field("settings", &shown.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

fn ceil_seconds(duration: Duration) -> String {
    let part = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(part).to_string()
}
