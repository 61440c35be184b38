use std::{fmt, net::IpAddr, time::Duration};

use zeroize::Zeroizing;

use super::{
    client_options::ClientOptions,
    connection_config::ConnectionConfig,
    keyword::{self, Values},
    modes::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs},
    password::PasswordProvider,
    retry::RetryPolicy,
    tls::TlsConfig,
};
use crate::error::{Error, Result};

impl ConnectionConfig {
    /// Begins a configuration in code.
    pub fn builder() -> ConnectionConfigBuilder {
        ConnectionConfigBuilder::default()
    }

    /// Goes on from this configuration in code: to give a connection string what no string can say.
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

/// Puts a [`ConnectionConfig`] together, setting by setting.
///
/// Made by [`ConnectionConfig::builder`], or by [`ConnectionConfig::to_builder`] of one that is there. What is
/// not set comes from the environment (`PGHOST`, `PGSERVICE` and so on) or its default, as in a connection string.
/// Everything is checked by [`build`](Self::build).
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until it is built"]
pub struct ConnectionConfigBuilder {
    /// Those of the configuration that it began with.
    base: Values,
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<String>,
    /// By libpq's keywords.
    settings: Vec<(&'static str, Zeroizing<String>)>,
    client_options: ClientOptions,
}

impl ConnectionConfigBuilder {
    fn from_config(base: Values, client_options: ClientOptions) -> Self {
        Self { base, client_options, ..Self::default() }
    }

    /// Adds a host: a name, an IP address, or the directory of a Unix socket (it begins with `/`,
    /// or with `@` for Linux's abstract namespace). Several are tried in order. The
    /// hosts, addresses and ports of a configuration that was begun with are gone then.
    ///
    /// One call adds one host: a comma in it, which separates hosts in a connection string, is an
    /// error of [`build`](Self::build).
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Adds an address to connect to without resolving the name of the same position. Like
    /// [`host`](Self::host), it takes the place of what was begun with.
    pub fn hostaddr(mut self, address: impl Into<IpAddr>) -> Self {
        self.addresses.push(address.into().to_string());
        self
    }

    /// Adds a port: one for all hosts, or one for each, in order. 5432 by default.
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port.to_string());
        self
    }

    /// Sets the database. The user's name by default.
    pub fn database(self, name: impl Into<String>) -> Self {
        self.set("dbname", name)
    }

    /// Sets the role that logs in. The operating system's user by default.
    pub fn user(self, name: impl Into<String>) -> Self {
        self.set("user", name)
    }

    /// Sets the password. By default it is looked up in the password file.
    pub fn password(self, password: impl Into<String>) -> Self {
        self.set("password", password)
    }

    /// Sets where to ask for the password: once for each connection that the server asks one for,
    /// for tokens that expire. It comes before [`password`](Self::password) and the password file.
    ///
    /// It is called within `connect_timeout`. If the server refuses the password, it is called once
    /// more for that host, for a new connection. The same password is not sent again. Its error
    /// ends the attempt; return [`Error::Authentication`], whose message is shown.
    pub fn password_provider<F, P>(mut self, provider: F) -> Self
    where
        F: Fn() -> P + Send + Sync + 'static,
        P: Future<Output = Result<String>> + Send + 'static,
    {
        self.client_options.password_provider = Some(PasswordProvider::new(provider));
        self
    }

    /// Sets the name shown in `pg_stat_activity`.
    pub fn application_name(self, name: impl Into<String>) -> Self {
        self.set("application_name", name)
    }

    /// Sets command-line options for the server, such as `-c search_path=app`. A pooler may refuse
    /// them.
    pub fn options(self, options: impl Into<String>) -> Self {
        self.set("options", options)
    }

    /// Sets the time for one address: connecting, TLS and logging in together, and for the first
    /// address of a host resolving its name. It starts again for each further address. Without it
    /// an attempt can take as long as the operating system lets it.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.connect_timeout = Some(timeout);
        self
    }

    /// Sets the maximum time that a query, a stream or a ping waits while the server neither sends
    /// a byte nor accepts one of the request. After that it ends with [`Error::Timeout`]. A paused
    /// stream, or one whose memory is full, does not wait. Default: none, because a query may take
    /// long to find its first row.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.read_timeout = Some(timeout);
        self
    }

    /// Sets the server's `statement_timeout`, in whole milliseconds; sent as a start-up parameter,
    /// which PgBouncer refuses unless it is in its `ignore_startup_parameters`. The server counts
    /// the time in which nobody reads the stream too.
    ///
    /// Some poolers and engines (PgCat, PGlite) ignore start-up parameters silently. To check this,
    /// run `show statement_timeout` through them; or set the limit for the role.
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.statement_timeout = Some(timeout);
        self
    }

    /// Sets whether TCP keepalives are sent. On by default.
    pub fn keepalive(self, on: bool) -> Self {
        self.set("keepalives", if on { "1" } else { "0" })
    }

    /// Sets how long a connection is idle before the first keepalive; in seconds, rounded up. The
    /// operating system's default otherwise, often two hours.
    pub fn keepalive_idle(self, idle: Duration) -> Self {
        self.set("keepalives_idle", ceil_seconds(idle))
    }

    /// Sets the time between keepalives; in seconds, rounded up.
    pub fn keepalive_interval(self, interval: Duration) -> Self {
        self.set("keepalives_interval", ceil_seconds(interval))
    }

    /// Sets how many keepalives may be lost before the connection counts as dead.
    pub fn keepalive_count(self, count: u32) -> Self {
        self.set("keepalives_count", count.to_string())
    }

    /// Sets how long what was sent may stay unacknowledged (`TCP_USER_TIMEOUT`, where the system
    /// has it); in milliseconds.
    pub fn tcp_user_timeout(self, timeout: Duration) -> Self {
        self.set("tcp_user_timeout", timeout.as_nanos().div_ceil(1_000_000).to_string())
    }

    /// Sets whether the session is encrypted.
    pub fn ssl_mode(self, mode: SslMode) -> Self {
        self.set("sslmode", mode.as_str())
    }

    /// Sets how encryption is agreed upon.
    pub fn ssl_negotiation(self, negotiation: SslNegotiation) -> Self {
        self.set("sslnegotiation", negotiation.as_str())
    }

    /// Sets whether the login is bound to the encrypted channel.
    pub fn channel_binding(self, binding: ChannelBinding) -> Self {
        self.set("channel_binding", binding.as_str())
    }

    /// Sets which ways to log in are acceptable, as libpq's
    /// [`require_auth`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-REQUIRE-AUTH):
    /// `scram-sha-256`, or `!password,!none`.
    pub fn require_auth(self, methods: impl Into<String>) -> Self {
        self.set("require_auth", methods)
    }

    /// Sets which servers of several will do.
    pub fn target_session_attrs(self, attrs: TargetSessionAttrs) -> Self {
        self.set("target_session_attrs", attrs.as_str())
    }

    /// Sets in which order several hosts are tried.
    pub fn load_balance_hosts(self, order: LoadBalanceHosts) -> Self {
        self.set("load_balance_hosts", order.as_str())
    }

    /// Sets how TLS is done, in place of every `ssl...` setting but
    /// [`ssl_negotiation`](Self::ssl_negotiation): the session is always encrypted then, but over a Unix
    /// socket, which never is.
    pub fn tls(mut self, tls: TlsConfig) -> Self {
        self.client_options.tls = Some(tls);
        self
    }

    /// Adds a run-time parameter that is sent at the start of the session, such as `work_mem`. A
    /// pooler may refuse it.
    pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.client_options.params.push((name.into(), value.into()));
        self
    }

    /// Sets the largest message that is read from the server, in bytes, up to 1 GiB, which is the
    /// default. A larger row ends its stream with [`Error::Protocol`] before it is read.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.client_options.max_message_size = bytes;
        self
    }

    /// Sets how many SCRAM iterations a server may ask for. 100,000 by default, some 50 ms of
    /// computing.
    pub fn max_scram_iterations(mut self, iterations: u32) -> Self {
        self.client_options.max_scram_iterations = iterations;
        self
    }

    /// Sets how a lost connection is replaced.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.client_options.retry = policy;
        self
    }

    /// Sets the maximum time for stopping a query: the cancel requests and draining together. After
    /// that the connection is closed. It also bounds `FraiseClient::close` and the end of the
    /// transaction of a parallel query. Default: 2 seconds.
    pub fn cancel_timeout(mut self, timeout: Duration) -> Self {
        self.client_options.cancel_timeout = timeout;
        self
    }

    /// Sets how many bytes of a stopped query may be drained to keep the connection. 16 MiB by
    /// default.
    pub fn drain_limit(mut self, bytes: usize) -> Self {
        self.client_options.drain_limit = bytes;
        self
    }

    /// Sets the maximum number of prepared statements that each connection keeps. Default: 100.
    /// 0 disables prepared statements.
    ///
    /// A query whose text is used for the second time on a connection is prepared there, so that
    /// later uses need no parsing. When there are more, the least recently used one is closed.
    /// Texts of more than 32 KiB are never prepared.
    ///
    /// Prepared statements work behind poolers that support them, such as PgBouncer from 1.21 with
    /// `max_prepared_statements`. If a pooler does not, the first statement that is missing
    /// disables them for this configuration and its clones. The query itself is sent again without
    /// a prepared statement.
    pub fn statement_cache_capacity(mut self, n: usize) -> Self {
        self.client_options.statement_cache_capacity = n;
        self
    }

    /// Checks everything, and takes what is not set from the service file, the environment, or its
    /// default.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the setting that is not valid; [`Error::Tls`] says that TLS is asked
    /// for and this build has none.
    pub fn build(self) -> Result<ConnectionConfig> {
        // Several hosts would receive the password, though the caller named one.
        if self.hosts.iter().any(|host| host.contains([',', '\0'])) {
            return Err(Error::config(
                "host(...) adds one host, without a comma: call it for each",
            ));
        }
        let mut values = self.base;
        // A name with the address of another would go to the other.
        if !(self.hosts.is_empty() && self.addresses.is_empty()) {
            ["host", "hostaddr", "port"].into_iter().for_each(|name| values.remove(name));
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
                return Err(Error::config(format!("{name} holds a NUL character")));
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

/// Not one of the secrets.
impl fmt::Debug for ConnectionConfigBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self
            .settings
            .iter()
            .map(|(k, v)| (*k, if keyword::is_secret(k) { "(secret)" } else { v.as_str() }));
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
