//! Connection settings: where the server is, who logs in, and how.

mod builder;
mod environment;
mod foreign;
mod host;
mod keyword;
mod mode;
mod parse;
mod passfile;
mod require_auth;
mod retry;
mod service;
pub(crate) mod tls;

use std::{
    env::VarError,
    fmt,
    net::IpAddr,
    path::Path,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use zeroize::Zeroizing;

pub use self::{
    builder::ConnectionConfigBuilder,
    host::Target,
    mode::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs},
    retry::RetryPolicy,
    tls::{TlsConfig, TlsConfigBuilder, TlsVersion},
};
pub(crate) use self::{
    builder::PasswordProvider,
    require_auth::{Method, RequireAuth},
    tls::TlsSettings,
};
use self::{
    environment::Environment,
    host::Hosts,
    keyword::{KEYWORDS, Values},
};
pub(crate) use crate::secret::Password;
use crate::{
    error::{Error, OneLine, Result},
    secret::Key,
};

/// Where the server is, who logs in, and how: what libpq calls the connection info.
///
/// Made from a connection string, which is a URI (`postgres://user:password@host:port/database?keyword=value`)
/// or a list (`host=... user=... dbname=...`), or by a [`builder`](Self::builder). Every parameter of
/// [libpq 18] is known and means the same here; any other is an error, never ignored. What is not
/// given comes from the service file (`service`, `PGSERVICE`), then from the environment (`PGHOST`,
/// `PGUSER`, `PGPASSWORD` and so on), then from its default. Passwords are looked up in the password
/// file (`~/.pgpass`) too.
///
/// These parameters of libpq cannot apply here. They are accepted as long as they ask for nothing:
///
/// * `gssencmode`, `krbsrvname`, `gsslib`, `gssdelegation`: there is no GSSAPI; `gssencmode=require`
///   is an error.
/// * `oauth_...`: a server that asks for OAuth is refused.
/// * `replication`: anything but off is an error.
/// * `client_encoding`: `UTF8` and `auto`; it is always UTF8.
/// * `sslcompression`: nothing is ever compressed.
/// * `sslkeylogfile`: an error.
///
/// Differences from libpq:
///
/// * Settings must be valid UTF-8. An environment variable, a line of a service, or a password of a
///   password file that is not is an error.
/// * An invalid port or address is an error even if another host in the list is valid.
/// * `connect_timeout` limits the resolution of names too.
/// * In a URI, an `@` in the host or the database must be written as `%40`: an unescaped one
///   indicates that the user or the password was not escaped.
/// * A connection string in place of the name of the database is an error.
///
/// `Debug` and `Display` never show a password.
///
/// ```
/// use fraiseql_wire::ConnectionConfig;
///
/// let config: ConnectionConfig = "postgres://app:secret@db.example/shop".parse()?;
/// assert_eq!(config.to_string(), "postgresql://app@db.example:5432/shop");
/// assert_eq!(config.get("sslmode").as_deref(), Some("prefer"));
/// # Ok::<(), fraiseql_wire::Error>(())
/// ```
///
/// [libpq 18]: https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-CONNSTRING
#[derive(Debug, Clone)]
pub struct ConnectionConfig {
    values: Values,
    hosts: Hosts,
    pub(crate) startup_parameters: Vec<(String, String)>,
    pub(crate) ssl_mode: SslMode,
    pub(crate) ssl_negotiation: SslNegotiation,
    pub(crate) tls: TlsSettings,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) require_auth: Option<RequireAuth>,
    pub(crate) target_session_attrs: TargetSessionAttrs,
    pub(crate) load_balance_hosts: LoadBalanceHosts,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) sockets: SocketSettings,
    pub(crate) require_peer: Option<String>,
    pub(crate) protocol: ProtocolRange,
    pub(crate) scram_client_key: Option<Key>,
    pub(crate) scram_server_key: Option<Key>,
    /// Shared by all copies, so that every connection of a pool profits.
    pub(crate) scram_cache: ScramCache,
    pub(crate) extras: Extras,
}

/// What libpq has no keyword for.
#[derive(Debug, Clone)]
pub(crate) struct Extras {
    pub(crate) password_provider: Option<PasswordProvider>,
    /// Finer than the keyword's whole seconds.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) statement_timeout: Option<Duration>,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) max_message_size: usize,
    pub(crate) max_scram_iterations: u32,
    pub(crate) retry: RetryPolicy,
    pub(crate) cancel_timeout: Duration,
    pub(crate) drain_limit: usize,
}

impl Default for Extras {
    fn default() -> Self {
        Self {
            password_provider: None,
            connect_timeout: None,
            read_timeout: None,
            statement_timeout: None,
            tls: None,
            params: Vec::new(),
            // Postgres builds a message in a `StringInfo`, which cannot grow beyond that.
            max_message_size: 1 << 30,
            // Some 50 ms of computing: a hostile server could ask for 2^31.
            max_scram_iterations: 100_000,
            retry: RetryPolicy::default(),
            // npgsql allows the same; on a loopback a few milliseconds are used.
            cancel_timeout: Duration::from_secs(2),
            // What socket buffers hold many times over, and is read faster than a new connection
            // with its login is made.
            drain_limit: 16 << 20,
        }
    }
}

/// What is asked of the operating system for a TCP socket.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SocketSettings {
    pub(crate) keepalive: bool,
    pub(crate) keepalive_idle: Option<Duration>,
    pub(crate) keepalive_interval: Option<Duration>,
    pub(crate) keepalive_count: Option<u32>,
    pub(crate) user_timeout: Option<Duration>,
}

/// The protocol versions that will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProtocolRange {
    pub(crate) min: ProtocolVersion,
    pub(crate) max: ProtocolVersion,
}

/// A version of the protocol. There is no 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProtocolVersion {
    V3_0,
    V3_2,
}

/// What the last SCRAM login derived, so that the next one with the same password and salt need not
/// compute it again.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScramCache(Arc<Mutex<Option<ScramCacheEntry>>>);

#[derive(Debug, Clone)]
pub(crate) struct ScramCacheEntry {
    pub(crate) password: Password,
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: u32,
    pub(crate) client_key: Key,
    pub(crate) server_key: Key,
}

impl ScramCache {
    pub(crate) fn get(&self) -> Option<ScramCacheEntry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, entry: ScramCacheEntry) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
    }
}

impl ConnectionConfig {
    /// Parses a connection string, and takes what it does not say from the service file, the
    /// environment, or its default.
    ///
    /// Reads no file but a service file, and only if a service is named: the password file and
    /// certificates are read for each connection.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the part that is not valid, and never shows the password.
    /// [`Error::Tls`] says that TLS is asked for and this build has none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut values = Values::default();
        for (keyword, value) in parse::parse(text)? {
            // From before sslmode.
            match keyword.as_str() {
                "requiressl" => {
                    let mode = if value.starts_with('1') { "require" } else { "prefer" };
                    values.set("sslmode", mode.to_owned())?;
                }
                _ => values.set(&keyword, value)?,
            }
        }
        Self::resolve(values, Extras::default())
    }

    /// Takes everything from the environment: `PGHOST`, `PGUSER`, `PGSERVICE` and so on.
    ///
    /// # Errors
    ///
    /// As of [`parse`](Self::parse).
    pub fn from_env() -> Result<Self> {
        Self::resolve(Values::default(), Extras::default())
    }

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
        ConnectionConfigBuilder::on(self.values.clone(), self.extras.clone())
    }

    fn resolve(values: Values, extras: Extras) -> Result<Self> {
        // One that cannot be read must not be taken for one that is not there.
        let of_keywords = KEYWORDS.iter().filter_map(|k| k.env);
        for name in Environment::VARIABLES.iter().copied().chain(of_keywords) {
            if let Err(VarError::NotUnicode(_)) = std::env::var(name) {
                return Err(Error::config(format!("the environment variable {name} is not UTF-8")));
            }
        }
        let environment =
            Environment { variable: &|name| std::env::var(name).ok(), home: std::env::home_dir() };
        Self::resolve_in(&environment, values, extras)
    }

    fn resolve_in(
        environment: &Environment<'_>,
        mut values: Values,
        extras: Extras,
    ) -> Result<Self> {
        environment.fill(&mut values)?;
        refuse_what_cannot_apply(&values)?;
        let word = |name| values.get(name).unwrap_or_default();
        let ssl_mode = match &extras.tls {
            Some(tls) => tls.mode(),
            None => SslMode::parse(word("sslmode"))?,
        };
        let ssl_negotiation = SslNegotiation::parse(word("sslnegotiation"))?;
        let weak = matches!(ssl_mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer);
        if ssl_negotiation == SslNegotiation::Direct && weak {
            return Err(Error::config(format!(
                "sslnegotiation=direct goes with sslmode require, verify-ca or verify-full, and not \
                 with {}, which could fall back to a session in the clear",
                ssl_mode.as_str()
            )));
        }
        let tls = match &extras.tls {
            Some(tls) => tls.settings().clone(),
            None => {
                tls::from_keywords(&|name| values.get(name), ssl_mode, environment.home.as_deref())?
            }
        };
        if !weak && cfg!(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))) {
            return Err(Error::Tls {
                message: format!(
                    "sslmode={} is asked for, but this build has no TLS: enable the feature \
                     tls-ring or tls-aws-lc-rs of fraiseql-wire",
                    ssl_mode.as_str()
                ),
            });
        }
        let seconds = |name| -> Result<Option<Duration>> {
            Ok(integer(&values, name)?.map(|s| Duration::from_secs(s.into())))
        };
        let connect_timeout = seconds("connect_timeout")?.filter(|t| !t.is_zero());
        let user_timeout = integer(&values, "tcp_user_timeout")?;
        let sockets = SocketSettings {
            keepalive: match values.get("keepalives") {
                Some("") => false,
                _ => integer(&values, "keepalives")? != Some(0),
            },
            keepalive_idle: seconds("keepalives_idle")?.filter(|t| !t.is_zero()),
            keepalive_interval: seconds("keepalives_interval")?.filter(|t| !t.is_zero()),
            keepalive_count: integer(&values, "keepalives_count")?.filter(|n| *n > 0),
            user_timeout: user_timeout
                .filter(|ms| *ms > 0)
                .map(|ms| Duration::from_millis(ms.into())),
        };
        let require_auth = values.non_empty("require_auth").map(RequireAuth::parse).transpose()?;
        check_extras(&extras)?;
        let mut startup_parameters = environment.startup_parameters();
        startup_parameters.extend(extras.params.iter().cloned());
        if let Some(timeout) = extras.statement_timeout {
            startup_parameters.push(("statement_timeout".into(), timeout.as_millis().to_string()));
        }
        Ok(Self {
            hosts: Hosts::parse(&values)?,
            startup_parameters,
            ssl_mode,
            ssl_negotiation,
            tls,
            channel_binding: ChannelBinding::parse(word("channel_binding"))?,
            require_auth,
            target_session_attrs: TargetSessionAttrs::parse(word("target_session_attrs"))?,
            load_balance_hosts: LoadBalanceHosts::parse(word("load_balance_hosts"))?,
            connect_timeout: extras.connect_timeout.or(connect_timeout),
            sockets,
            require_peer: values.non_empty("requirepeer").map(str::to_owned),
            protocol: protocol_range(&values)?,
            scram_client_key: scram_key(&values, "scram_client_key")?,
            scram_server_key: scram_key(&values, "scram_server_key")?,
            scram_cache: ScramCache::default(),
            extras,
            values,
        })
    }

    /// Returns the effective value of any parameter of libpq, as text: `get("sslmode")`. `None` when
    /// it has none, when it is a secret, and for what is no parameter.
    pub fn get(&self, keyword: &str) -> Option<String> {
        match keyword {
            secret if keyword::is_secret(secret) => None,
            "user" => self.user(),
            "dbname" => self.database(),
            "sslmode" => Some(self.ssl_mode.as_str().to_owned()),
            "connect_timeout" if self.extras.connect_timeout.is_some() => {
                self.connect_timeout.map(|t| t.as_secs_f64().ceil().to_string())
            }
            _ => self.values.get(keyword).map(str::to_owned),
        }
    }

    /// Returns the places that are tried, in order; with
    /// [`load_balance_hosts`](Self::load_balance_hosts), before they are shuffled.
    ///
    /// Where no host is given, it looks for the socket of a local server, and else takes `localhost`.
    pub fn targets(&self) -> Vec<Target> {
        self.hosts.targets()
    }

    /// Returns the password for one of the [`targets`](Self::targets): the one that was given, or
    /// that of the password file, which is read each time. A password provider is not asked.
    /// `None` also if the file cannot be read.
    pub fn password_for(&self, target: &Target) -> Option<String> {
        self.find_password(target).ok()?.map(|p| p.reveal().to_owned())
    }

    /// # Errors
    ///
    /// The password file, or the user's name, cannot be read.
    pub(crate) fn find_password(&self, target: &Target) -> Result<Option<Password>> {
        if let Some(password) = self.password() {
            return Ok(Some(Password::new(password)));
        }
        let Some(file) = self.values.non_empty("passfile") else { return Ok(None) };
        let user = self.user_name()?;
        let wanted = passfile::Wanted {
            host: &target.passfile_host(),
            port: target.port,
            database: self.values.non_empty("dbname").unwrap_or(&user),
            user: &user,
        };
        passfile::look_up(Path::new(file), &wanted)
    }

    /// The role that logs in: asked of the operating system only when it is needed, because that
    /// can be slow or fail in a container.
    pub(crate) fn user_name(&self) -> Result<String> {
        match self.values.non_empty("user") {
            Some(user) => Ok(user.to_owned()),
            None => whoami::username().map_err(|e| {
                let e = std::io::Error::from(e);
                Error::unreadable("the name of the operating system's user", e).unwrap_or_else(|e| {
                    Error::config(format!(
                        "no user is given, and the operating system returns none ({e}): write user in \
                         the connection string"
                    ))
                })
            }),
        }
    }

    /// The password file that is looked into.
    pub(crate) fn passfile(&self) -> Option<&str> {
        self.values.non_empty("passfile")
    }
}

/// The effective values of the builder's settings.
impl ConnectionConfig {
    /// Returns the hosts, in order; an empty name stands for the default.
    pub fn host(&self) -> Vec<&str> {
        self.hosts.names().collect()
    }

    /// Returns the addresses that were given.
    pub fn hostaddr(&self) -> Vec<IpAddr> {
        self.hosts.addresses().collect()
    }

    /// Returns the port of each host.
    pub fn port(&self) -> Vec<u16> {
        self.hosts.ports().collect()
    }

    /// Returns the role that logs in.
    pub fn user(&self) -> Option<String> {
        self.user_name().ok()
    }

    /// Returns the database.
    pub fn database(&self) -> Option<String> {
        self.values.non_empty("dbname").map(str::to_owned).or_else(|| self.user())
    }

    /// Returns the password that was given. See [`password_for`](Self::password_for) for that of the
    /// password file.
    pub fn password(&self) -> Option<&str> {
        self.values.non_empty("password")
    }

    /// Returns whether a password provider is set.
    pub fn password_provider(&self) -> bool {
        self.extras.password_provider.is_some()
    }

    /// Returns the name shown in `pg_stat_activity`.
    pub fn application_name(&self) -> Option<&str> {
        // An empty one is a name too: none, and no other instead.
        match self.values.get("application_name") {
            Some(name) => Some(name).filter(|n| !n.is_empty()),
            None => self.values.non_empty("fallback_application_name"),
        }
    }

    /// Returns the command-line options for the server.
    pub fn options(&self) -> Option<&str> {
        self.values.non_empty("options")
    }

    /// Returns the time for one address; `None` is without limit.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// Returns how long a stream may hear nothing; `None` is without limit.
    pub fn read_timeout(&self) -> Option<Duration> {
        self.extras.read_timeout
    }

    /// Returns the server's `statement_timeout`, if it was set here.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.extras.statement_timeout
    }

    /// Returns whether TCP keepalives are sent.
    pub fn keepalive(&self) -> bool {
        self.sockets.keepalive
    }

    /// Returns the time before the first keepalive; `None` is the operating system's.
    pub fn keepalive_idle(&self) -> Option<Duration> {
        self.sockets.keepalive_idle
    }

    /// Returns the time between keepalives; `None` is the operating system's.
    pub fn keepalive_interval(&self) -> Option<Duration> {
        self.sockets.keepalive_interval
    }

    /// Returns how many keepalives may be lost; `None` is the operating system's.
    pub fn keepalive_count(&self) -> Option<u32> {
        self.sockets.keepalive_count
    }

    /// Returns how long what was sent may stay unacknowledged; `None` is the operating system's.
    pub fn tcp_user_timeout(&self) -> Option<Duration> {
        self.sockets.user_timeout
    }

    /// Returns whether the session is encrypted.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// Returns how encryption is agreed upon.
    pub fn ssl_negotiation(&self) -> SslNegotiation {
        self.ssl_negotiation
    }

    /// Returns whether the login is bound to the encrypted channel.
    pub fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    /// Returns which ways to log in are acceptable; `None` is any.
    pub fn require_auth(&self) -> Option<&str> {
        self.require_auth.as_ref().map(RequireAuth::as_str)
    }

    /// Returns which servers of several will do.
    pub fn target_session_attrs(&self) -> TargetSessionAttrs {
        self.target_session_attrs
    }

    /// Returns in which order several hosts are tried.
    pub fn load_balance_hosts(&self) -> LoadBalanceHosts {
        self.load_balance_hosts
    }

    /// Returns how TLS is done, if that was set in code.
    pub fn tls(&self) -> Option<&TlsConfig> {
        self.extras.tls.as_ref()
    }

    /// Returns a run-time parameter that is sent at the start of the session.
    pub fn param(&self, name: &str) -> Option<&str> {
        let found = self.startup_parameters.iter().rev().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the largest message that is read, in bytes.
    pub fn max_message_size(&self) -> usize {
        self.extras.max_message_size
    }

    /// Returns how many SCRAM iterations a server may ask for.
    pub fn max_scram_iterations(&self) -> u32 {
        self.extras.max_scram_iterations
    }

    /// Returns how a lost connection is replaced.
    pub fn retry(&self) -> RetryPolicy {
        self.extras.retry
    }

    /// Returns how long stopping a query may take.
    pub fn cancel_timeout(&self) -> Duration {
        self.extras.cancel_timeout
    }

    /// Returns how many bytes of a stopped query may be drained.
    pub fn drain_limit(&self) -> usize {
        self.extras.drain_limit
    }

    /// The same with TLS as given, in place of what was said about it.
    pub(crate) fn with_tls(mut self, tls: TlsConfig) -> Result<Self> {
        self.extras.tls = Some(tls);
        Self::resolve(self.values, self.extras)
    }
}

/// Parses a connection string, like [`ConnectionConfig::parse`].
impl FromStr for ConnectionConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// For people: like a URI, without the password; not to be parsed again.
impl fmt::Display for ConnectionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgresql://")?;
        if let Some(user) = self.values.non_empty("user") {
            write!(f, "{}@", OneLine::name(user))?;
        }
        for (i, target) in self.targets().iter().enumerate() {
            write!(f, "{}{target}", if i > 0 { "," } else { "" })?;
        }
        match self.values.non_empty("dbname") {
            Some(database) => write!(f, "/{}", OneLine::name(database)),
            None => Ok(()),
        }
    }
}

/// Parameters of libpq that ask for something this crate does not do.
fn refuse_what_cannot_apply(values: &Values) -> Result<()> {
    let refuse = |what: &str| Err(Error::config(what));
    match values.get("gssencmode") {
        Some("disable" | "prefer") | None => {}
        Some("require") => {
            return refuse("gssencmode=require is asked for, but there is no GSSAPI here");
        }
        Some(_) => return refuse("invalid gssencmode: expected disable, prefer or require"),
    }
    if !matches!(values.get("replication"), None | Some("" | "false" | "off" | "no" | "0")) {
        return refuse("replication is asked for, but this client only reads rows: leave it out");
    }
    if values.non_empty("sslkeylogfile").is_some() {
        return refuse(
            "sslkeylogfile would write the keys of sessions to a file, which is not done here",
        );
    }
    let database = values.get("dbname").unwrap_or_default();
    let is_string = ["postgres://", "postgresql://"].iter().any(|p| database.starts_with(p));
    if is_string || database.contains("password=") {
        // Not shown: it holds a password, which a name is not checked for.
        return refuse(
            "dbname (or PGDATABASE) is a connection string, not the name of a database: pass it to \
             ConnectionConfig::parse",
        );
    }
    let encoding = values.get("client_encoding").unwrap_or_default();
    if !(encoding.is_empty() || encoding.eq_ignore_ascii_case("auto") || is_utf8(encoding)) {
        return refuse(
            "client_encoding (or PGCLIENTENCODING) can only be UTF8: JSON is decoded as UTF-8",
        );
    }
    Ok(())
}

/// Whether a name of an encoding stands for UTF-8. Postgres ignores case and everything but letters
/// and digits (`clean_encoding_name`), and knows the old name `UNICODE`.
pub(crate) fn is_utf8(encoding: &str) -> bool {
    let cleaned = || encoding.chars().filter(char::is_ascii_alphanumeric);
    let is = |name: &str| cleaned().map(|c| c.to_ascii_lowercase()).eq(name.chars());
    is("utf8") || is("unicode")
}

fn check_extras(extras: &Extras) -> Result<()> {
    for (name, value) in &extras.params {
        // As the server sees it, whatever its case.
        let own = match name.to_ascii_lowercase().as_str() {
            "" => Some("a name"),
            "user" | "database" | "options" | "application_name" => Some("the setter of that name"),
            "replication" => Some("nothing: this client only reads rows"),
            "client_encoding" => Some("nothing: it is always UTF8"),
            protocol if protocol.starts_with("_pq_.") => Some("nothing: it is the protocol's"),
            _ => None,
        };
        if let Some(instead) = own {
            return Err(Error::config(format!("param({name:?}, ...): use {instead} instead")));
        }
        if name.contains('\0') || value.contains('\0') {
            return Err(Error::config("a param holds a NUL character"));
        }
    }
    if !(MIN_MESSAGE_SIZE..=1 << 30).contains(&extras.max_message_size) {
        return Err(Error::config(format!(
            "max_message_size is not from {MIN_MESSAGE_SIZE} to {} bytes",
            1 << 30
        )));
    }
    if extras.max_scram_iterations == 0 {
        return Err(Error::config(
            "max_scram_iterations is 0, so no password could ever be proved",
        ));
    }
    if extras.cancel_timeout.is_zero() {
        return Err(Error::config("cancel_timeout is 0, so no query could ever be stopped"));
    }
    if extras.connect_timeout.is_some_and(|t| t.is_zero()) {
        return Err(Error::config("connect_timeout is 0: leave it out for no limit"));
    }
    let millis =
        |t: Duration| u128::try_from(i32::MAX).map(|max| (1..=max).contains(&t.as_millis()));
    if !extras.statement_timeout.is_none_or(|t| millis(t).unwrap_or(false)) {
        return Err(Error::config(
            "statement_timeout is not from 1 ms to 2147483647 ms: leave it out for no limit",
        ));
    }
    if extras.read_timeout.is_some_and(|t| t.is_zero()) {
        return Err(Error::config("read_timeout is 0, so no row could ever be read"));
    }
    Ok(())
}

/// The server flushes 8 KiB at a time, and its own messages fit well into that.
const MIN_MESSAGE_SIZE: usize = 8 << 10;

/// A whole number by libpq's rules; a negative one counts as 0.
fn integer(values: &Values, name: &str) -> Result<Option<u32>> {
    let Some(text) = values.get(name) else { return Ok(None) };
    let number = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b').parse::<i32>();
    let number = number.map_err(|_| Error::config(format!("{name} is not a whole number")))?;
    Ok(Some(u32::try_from(number).unwrap_or(0)))
}

fn protocol_range(values: &Values) -> Result<ProtocolRange> {
    let version = |name| match values.get(name) {
        None => Ok(None),
        Some("3.0") => Ok(Some(ProtocolVersion::V3_0)),
        Some("3.2" | "latest") => Ok(Some(ProtocolVersion::V3_2)),
        Some(_) => Err(Error::config(format!("invalid {name}: expected 3.0, 3.2 or latest"))),
    };
    let min = version("min_protocol_version")?.unwrap_or(ProtocolVersion::V3_0);
    // 3.0 unless more is asked for: older poolers fail on a newer one.
    let max = version("max_protocol_version")?.unwrap_or(min);
    if min > max {
        return Err(Error::config("min_protocol_version is greater than max_protocol_version"));
    }
    Ok(ProtocolRange { min, max })
}

fn scram_key(values: &Values, name: &str) -> Result<Option<Key>> {
    let Some(text) = values.get(name) else { return Ok(None) };
    // 44 characters of base64 are decoded in blocks.
    let mut bytes = Zeroizing::new([0; 48]);
    match BASE64.decode_slice(text, &mut *bytes) {
        Ok(32) => Ok(bytes.get(..32).map(Key::copy)),
        _ => Err(Error::config(format!("{name} is not 32 bytes in base64"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libpq without SSL: the modes that allow a session in the clear are taken.
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
    #[test]
    fn without_tls_the_modes_that_demand_it_are_errors() {
        for mode in ["disable", "allow", "prefer"] {
            ConnectionConfig::parse(&format!("host=h sslmode={mode}")).unwrap();
        }
        for mode in ["require", "verify-ca", "verify-full"] {
            let error = ConnectionConfig::parse(&format!("host=h sslmode={mode}")).unwrap_err();
            let Error::Tls { message } = error else { panic!("{error:?}") };
            assert!(message.contains("tls-ring"), "{message}");
        }
    }

    fn resolve(text: &str, variables: &[(&str, &str)]) -> ConnectionConfig {
        let variable = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        let environment = Environment { variable: &variable, home: None };
        let mut values = Values::default();
        for (keyword, value) in parse::parse(text).unwrap() {
            values.set(&keyword, value).unwrap();
        }
        ConnectionConfig::resolve_in(&environment, values, Extras::default()).unwrap()
    }

    /// libpq's `EnvironmentOptions`; `default` leaves it to the server.
    #[test]
    fn the_environment_can_set_parameters_of_the_session() {
        let config = resolve("host=h", &[("PGTZ", "Asia/Tokyo"), ("PGDATESTYLE", "DEFAULT")]);
        assert_eq!(config.param("timezone"), Some("Asia/Tokyo"));
        assert_eq!(config.param("datestyle"), None);
    }

    #[test]
    fn a_configuration_goes_on_as_it_was_but_for_what_is_set() {
        let begun = resolve(
            "host=a,b hostaddr=127.0.0.1,127.0.0.2 port=1,2 user=u password=Pl4nted connect_timeout=7",
            &[("PGAPPNAME", "app"), ("PGTZ", "Asia/Tokyo")],
        );
        let again = begun.to_builder().read_timeout(Duration::from_secs(3));
        assert!(!format!("{again:?}").contains("Pl4nted"));
        let again = again.build().unwrap();
        assert_eq!(again.targets(), begun.targets());
        assert_eq!((again.user(), again.password()), (begun.user(), begun.password()));
        assert_eq!(again.application_name(), Some("app"));
        assert_eq!(again.connect_timeout(), Some(Duration::from_secs(7)));
        assert_eq!(again.read_timeout(), Some(Duration::from_secs(3)));
        // What has no keyword stays too, and what is set last counts.
        let third = again.to_builder().connect_timeout(Duration::from_millis(1)).user("v").build();
        let third = third.unwrap();
        assert_eq!(third.read_timeout(), Some(Duration::from_secs(3)));
        assert_eq!(third.connect_timeout(), Some(Duration::from_millis(1)));
        assert_eq!(third.user().as_deref(), Some("v"));

        // Another host is not looked for at the address of the first.
        let other = begun.to_builder().host("c").build().unwrap();
        let [target] = &other.targets()[..] else { panic!() };
        assert_eq!((target.host.as_deref(), target.hostaddr), (Some("c"), None));
        assert_eq!(other.user(), begun.user());
        let port = begun.to_builder().port(9).build().unwrap();
        assert_eq!(port.port(), [9, 9]);
        assert_eq!(port.host(), ["a", "b"]);
    }

    #[test]
    fn a_timeout_of_nothing_is_none() {
        for text in ["connect_timeout=0", "connect_timeout=-1", ""] {
            assert_eq!(resolve(text, &[]).connect_timeout(), None);
        }
        let config = resolve("", &[("PGCONNECT_TIMEOUT", "7")]);
        assert_eq!(config.connect_timeout(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn names_from_outside_are_shown_on_one_line() {
        let config = ConnectionConfig::builder()
            .host("a\u{202e}b\nc")
            .port(5432)
            .user("u\u{2028}v")
            .database("d\re");
        let config = config.build().unwrap();
        assert_eq!(config.to_string(), "postgresql://u v@a b c:5432/d e");
        assert_eq!(config.targets()[0].to_string(), "a b c:5432");
    }

    #[test]
    fn secrets_are_not_shown() {
        let config =
            resolve("host=h password=planted sslpassword=planted oauth_client_secret=planted", &[]);
        assert!(!format!("{config:?} {config:#?} {config}").contains("planted"));
        assert_eq!(config.get("password"), None);
    }
}
