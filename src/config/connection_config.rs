use std::{fmt, net::IpAddr, path::Path, time::Duration};

use super::{
    client_options::ClientOptions,
    host::{Hosts, Target},
    keyword::{self, Values},
    modes::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs},
    passfile,
    protocol_version::ProtocolRange,
    require_auth::RequireAuth,
    retry::RetryPolicy,
    scram_cache::ScramCache,
    socket::SocketSettings,
    statements_lost::StatementsLost,
    tls::{TlsConfig, TlsSettings},
};
use crate::{
    error::{Error, OneLine, Result},
    secret::{Key, Password},
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
    pub(super) values: Values,
    pub(super) hosts: Hosts,
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
    /// Shared by all copies: see [`StatementsLost`].
    pub(crate) statements_lost: StatementsLost,
    pub(crate) client_options: ClientOptions,
}

impl ConnectionConfig {
    /// Returns the effective value of any parameter of libpq, as text: `get("sslmode")`. `None` when
    /// it has none, when it is a secret, and for what is no parameter.
    pub fn get(&self, keyword: &str) -> Option<String> {
        match keyword {
            secret if keyword::is_secret(secret) => None,
            "user" => self.user(),
            "dbname" => self.database(),
            "sslmode" => Some(self.ssl_mode.as_str().to_owned()),
            "connect_timeout" if self.client_options.connect_timeout.is_some() => {
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
        self.client_options.password_provider.is_some()
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
        self.client_options.read_timeout
    }

    /// Returns the server's `statement_timeout`, if it was set here.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.client_options.statement_timeout
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
        self.client_options.tls.as_ref()
    }

    /// Returns a run-time parameter that is sent at the start of the session.
    pub fn param(&self, name: &str) -> Option<&str> {
        let found = self.startup_parameters.iter().rev().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the largest message that is read, in bytes.
    pub fn max_message_size(&self) -> usize {
        self.client_options.max_message_size
    }

    /// Returns how many SCRAM iterations a server may ask for.
    pub fn max_scram_iterations(&self) -> u32 {
        self.client_options.max_scram_iterations
    }

    /// Returns how a lost connection is replaced.
    pub fn retry(&self) -> RetryPolicy {
        self.client_options.retry
    }

    /// Returns how long stopping a query may take.
    pub fn cancel_timeout(&self) -> Duration {
        self.client_options.cancel_timeout
    }

    /// Returns how many bytes of a stopped query may be drained.
    pub fn drain_limit(&self) -> usize {
        self.client_options.drain_limit
    }

    /// Returns the maximum number of prepared statements that each connection keeps.
    pub fn statement_cache_capacity(&self) -> usize {
        self.client_options.statement_cache_capacity
    }

    /// Whether a connection of this configuration or of a copy of it has lost a prepared statement.
    /// From then on, queries use the unnamed statement.
    #[cfg_attr(not(test), expect(dead_code, reason = "no query uses prepared statements yet"))]
    pub(crate) fn prepared_statements_lost(&self) -> &StatementsLost {
        &self.statements_lost
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
