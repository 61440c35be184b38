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
    system_user::SystemUser,
    tls::{TlsConfig, TlsSettings},
};
use crate::{
    error::{Error, OneLine, Result},
    secret::{Key, Password},
};

/// The settings of a connection: server, login and options.
///
/// Create one from a connection string ([`parse`](Self::parse)), from the environment
/// ([`from_env`](Self::from_env)), or in code ([`builder`](Self::builder)).
///
/// A connection string is a URI (`postgres://user:password@host:port/database?keyword=value`) or a
/// list (`host=... user=... dbname=...`).
///
/// Every parameter of [libpq 18] is supported and has the same meaning. Any other parameter is an
/// error. Settings that are not given come from, in this order:
///
/// 1. the service file (`service`, `PGSERVICE`),
/// 2. the environment (`PGHOST`, `PGUSER`, `PGPASSWORD` and so on),
/// 3. their defaults.
///
/// A password that is not given is also looked up in the password file (`~/.pgpass`).
///
/// Some parameters of libpq have no effect here. They are accepted with these values:
///
/// * `gssencmode`: `disable` and `prefer`. `require` is an error, because GSSAPI is not supported.
/// * `krbsrvname`, `gsslib`, `gssdelegation`: any.
/// * `oauth_...`: any. A server that requests OAuth is rejected.
/// * `replication`: off. Anything else is an error.
/// * `client_encoding`: `UTF8` and `auto`. The encoding is always UTF-8.
/// * `sslcompression`: any. Nothing is ever compressed.
/// * `sslkeylogfile`: empty. Anything else is an error.
///
/// Differences from libpq:
///
/// * An environment variable, a line of the service or a password in the password file that is not
///   valid UTF-8 is an error.
/// * An invalid port or address is an error even if another host in the list is valid.
/// * `connect_timeout` also limits name resolution.
/// * In a URI, an `@` in the host or the database must be written as `%40`. An unescaped one
///   indicates that the user or the password was not escaped.
/// * A URI in place of the database name is an error.
/// * A value that contains the assignment of a password or another secret is an error, unless it is
///   a secret itself. An example is `host= password=x`: the password would be the host's name.
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
    /// Shared by all clones, so that all connections of a pool benefit.
    pub(crate) scram_cache: ScramCache,
    /// Shared by all copies: see [`StatementsLost`].
    pub(crate) statements_lost: StatementsLost,
    /// Used if no user is set.
    pub(super) system_user: SystemUser,
    pub(crate) client_options: ClientOptions,
}

impl ConnectionConfig {
    /// Returns the effective value of a libpq parameter as text, for example `get("sslmode")`.
    ///
    /// Returns `None` if the parameter has no value, is a secret, or does not exist.
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

    /// Returns the targets in the order in which they are tried. With
    /// [`load_balance_hosts`](Self::load_balance_hosts), this is the order before shuffling.
    ///
    /// If no host is given, the target is the default Unix socket, or `localhost` on systems
    /// without Unix sockets.
    pub fn targets(&self) -> Vec<Target> {
        self.hosts.targets()
    }

    /// Returns the password for one of the [`targets`](Self::targets).
    ///
    /// This is the configured password; otherwise the one in the password file, which is read on
    /// each call. The password provider is not called. Also returns `None` if the file cannot be
    /// read.
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

    /// Returns the role that logs in. The operating system is queried only when the name is needed,
    /// because the query can be slow, or fail in a container.
    pub(crate) fn user_name(&self) -> Result<String> {
        match self.values.non_empty("user") {
            Some(user) => Ok(user.to_owned()),
            None => {
                let name = self.system_user.get(|| Ok(whoami::username()?));
                name.map(str::to_owned).map_err(|e| {
                    let what = "the name of the operating system's user";
                    Error::unreadable(what, e).unwrap_or_else(|e| {
                        Error::config(format!(
                            "user is not set, and the operating system does not report a name \
                             ({e}): set user in the connection string"
                        ))
                    })
                })
            }
        }
    }

    /// Returns the path of the password file.
    pub(crate) fn passfile(&self) -> Option<&str> {
        self.values.non_empty("passfile")
    }
}

/// Effective values of the settings of the builder.
impl ConnectionConfig {
    /// Returns the hosts in order. An empty name means the default host.
    pub fn host(&self) -> Vec<&str> {
        self.hosts.names().collect()
    }

    /// Returns the configured addresses.
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

    /// Returns the configured password. [`password_for`](Self::password_for) also reads the
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
        // An explicitly empty name disables the fallback.
        match self.values.get("application_name") {
            Some(name) => Some(name).filter(|n| !n.is_empty()),
            None => self.values.non_empty("fallback_application_name"),
        }
    }

    /// Returns the command-line options for the server.
    pub fn options(&self) -> Option<&str> {
        self.values.non_empty("options")
    }

    /// Returns the time limit for connecting to one address. `None`: no limit.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// Returns the maximum time to wait for the server while reading a result. `None`: no limit.
    pub fn read_timeout(&self) -> Option<Duration> {
        self.client_options.read_timeout
    }

    /// Returns the `statement_timeout` of the server, if it is set here.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.client_options.statement_timeout
    }

    /// Returns whether TCP keepalives are sent.
    pub fn keepalive(&self) -> bool {
        self.sockets.keepalive
    }

    /// Returns the idle time before the first keepalive. `None`: the operating system's default.
    pub fn keepalive_idle(&self) -> Option<Duration> {
        self.sockets.keepalive_idle
    }

    /// Returns the time between keepalives. `None`: the operating system's default.
    pub fn keepalive_interval(&self) -> Option<Duration> {
        self.sockets.keepalive_interval
    }

    /// Returns the number of keepalives that can be lost. `None`: the operating system's default.
    pub fn keepalive_count(&self) -> Option<u32> {
        self.sockets.keepalive_count
    }

    /// Returns how long sent data can stay unacknowledged. `None`: the operating system's default.
    pub fn tcp_user_timeout(&self) -> Option<Duration> {
        self.sockets.user_timeout
    }

    /// Returns whether the session is encrypted and how the server is verified.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// Returns how encryption is negotiated.
    pub fn ssl_negotiation(&self) -> SslNegotiation {
        self.ssl_negotiation
    }

    /// Returns whether the login is bound to the encrypted channel.
    pub fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    /// Returns the accepted authentication methods. `None`: any method.
    pub fn require_auth(&self) -> Option<&str> {
        self.require_auth.as_ref().map(RequireAuth::as_str)
    }

    /// Returns which servers are accepted if there are several.
    pub fn target_session_attrs(&self) -> TargetSessionAttrs {
        self.target_session_attrs
    }

    /// Returns the order in which several hosts are tried.
    pub fn load_balance_hosts(&self) -> LoadBalanceHosts {
        self.load_balance_hosts
    }

    /// Returns the TLS settings, if they are set in code.
    pub fn tls(&self) -> Option<&TlsConfig> {
        self.client_options.tls.as_ref()
    }

    /// Returns a run-time parameter that is sent at the start of the session.
    pub fn param(&self, name: &str) -> Option<&str> {
        let found = self.startup_parameters.iter().rev().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the maximum size of a message from the server, in bytes.
    pub fn max_message_size(&self) -> usize {
        self.client_options.max_message_size
    }

    /// Returns the maximum number of SCRAM iterations.
    pub fn max_scram_iterations(&self) -> u32 {
        self.client_options.max_scram_iterations
    }

    /// Returns the policy for replacing a lost connection.
    pub fn retry(&self) -> RetryPolicy {
        self.client_options.retry
    }

    /// Returns the maximum time for stopping a query.
    pub fn cancel_timeout(&self) -> Duration {
        self.client_options.cancel_timeout
    }

    /// Returns the maximum number of bytes that are drained from a stopped query.
    pub fn drain_limit(&self) -> usize {
        self.client_options.drain_limit
    }

    /// Returns the maximum number of prepared statements that each connection keeps.
    pub fn statement_cache_capacity(&self) -> usize {
        self.client_options.statement_cache_capacity
    }

    /// Whether a connection of this configuration or of a copy of it has lost a prepared statement.
    /// From then on, queries use the unnamed statement.
    pub(crate) fn prepared_statements_lost(&self) -> &StatementsLost {
        &self.statements_lost
    }
}

/// Like a URI without the password. For logs; it is not a valid connection string.
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

    /// The span of each query contains the database.
    #[test]
    fn system_user_is_not_looked_up_again() {
        let config = ConnectionConfig::builder().host("h").user("").database("").build().unwrap();
        config.system_user.get(|| Ok("looked up before".to_owned())).unwrap();
        for config in [config.clone(), config] {
            assert_eq!(config.user().as_deref(), Some("looked up before"));
            assert_eq!(config.database().as_deref(), Some("looked up before"));
            assert_eq!(config.user_name().unwrap(), "looked up before");
        }
    }

    #[test]
    fn display_shows_untrusted_names_on_one_line() {
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
