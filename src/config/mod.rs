//! Connection settings: where the server is, who logs in, and how.

mod host;
mod parse;

use std::{fmt, str::FromStr, time::Duration};

pub(crate) use self::host::Host;
use crate::error::{Error, Result};

/// Where the server is, who logs in, and how: made from a connection string.
///
/// A connection string is a URI, `postgres://user:password@host:port/database?keyword=value`, or
/// a list, `host=... user=... dbname=...`, as [libpq reads them]. These keywords are known; any
/// other is an error, never ignored:
///
/// | keyword | meaning | default |
/// |---|---|---|
/// | `host` | a name, an IP address, or the directory of a Unix socket (it begins with `/`) | `localhost` |
/// | `port` | 1 to 65535 | 5432 |
/// | `user` | the role that logs in | the operating system's user |
/// | `password` | | none |
/// | `dbname` | the database | the user's name |
/// | `application_name` | shown in `pg_stat_activity` | none |
/// | `options` | command-line options for the server, such as `-c search_path=app` | none |
/// | `connect_timeout` | seconds for resolving, connecting and logging in together; 0 or less waits forever | 0 |
/// | `sslmode` | `disable`, `allow` or `prefer`: this build has no TLS, so the session is in the clear; the stronger modes are an error | `prefer` |
/// | `client_encoding` | only `UTF8`, which is always asked for | `UTF8` |
///
/// `Debug` and `Display` never show the password.
///
/// ```
/// use fraiseql_wire::ConnectionConfig;
///
/// let config: ConnectionConfig = "postgres://app:secret@db.example/shop".parse()?;
/// assert_eq!(config.to_string(), "postgresql://app@db.example:5432/shop");
/// # Ok::<(), fraiseql_wire::Error>(())
/// ```
///
/// [libpq reads them]: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
#[derive(Debug, Clone)]
pub struct ConnectionConfig {
    pub(crate) host: Host,
    pub(crate) port: u16,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Password>,
    pub(crate) database: Option<String>,
    pub(crate) application_name: Option<String>,
    pub(crate) options: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
}

impl ConnectionConfig {
    /// Parses a connection string. Does no I/O.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names the part that is not valid, and never shows the password.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config = Self {
            host: Host::default(),
            port: DEFAULT_PORT,
            user: None,
            password: None,
            database: None,
            application_name: None,
            options: None,
            connect_timeout: None,
        };
        for (keyword, value) in parse::parse(text)? {
            config.set(&keyword, value)?;
        }
        Ok(config)
    }

    /// The role that logs in: asked of the operating system only when it is needed, because that
    /// can be slow or fail in a container.
    pub(crate) fn user_name(&self) -> Result<String> {
        match &self.user {
            Some(user) => Ok(user.clone()),
            None => whoami::username().map_err(|e| {
                Error::config(format!(
                    "no user is given, and the operating system does not tell one ({e}): write \
                     user in the connection string"
                ))
            }),
        }
    }

    fn set(&mut self, keyword: &str, value: String) -> Result<()> {
        let set = |value: String| Some(value).filter(|v| !v.is_empty());
        match keyword {
            "host" => self.host = Host::parse(&value)?,
            "port" => self.port = parse_port(&value)?,
            "user" => self.user = set(value),
            "password" => self.password = set(value).map(Password),
            "dbname" => self.database = set(value),
            "application_name" => self.application_name = set(value),
            "options" => self.options = set(value),
            "connect_timeout" => self.connect_timeout = parse_seconds(&value)?,
            "sslmode" => check_ssl_mode(&value)?,
            "client_encoding" => check_encoding(&value)?,
            unknown => {
                return Err(Error::config(format!(
                    "{unknown:?} is not a connection parameter; known are host, port, user, \
                     password, dbname, application_name, options, connect_timeout, sslmode and \
                     client_encoding"
                )));
            }
        }
        Ok(())
    }
}

/// Parses a connection string, like [`ConnectionConfig::parse`].
impl FromStr for ConnectionConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// A URI of the server and the database, without the password.
impl fmt::Display for ConnectionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgresql://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{}", self.host.with_port(self.port))?;
        match &self.database {
            Some(database) => write!(f, "/{database}"),
            None => Ok(()),
        }
    }
}

/// A password, which is never shown.
#[derive(Clone)]
pub(crate) struct Password(String);

impl Password {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// `DEF_PGPORT` of libpq.
const DEFAULT_PORT: u16 = 5432;

fn parse_port(value: &str) -> Result<u16> {
    match value.trim().parse() {
        _ if value.is_empty() => Ok(DEFAULT_PORT),
        Ok(port) if port > 0 => Ok(port),
        // The value is not shown: behind an unescaped / it is part of the password.
        _ => Err(Error::config(
            "port is not a number from 1 to 65535; if the user or password of a URI holds one of \
             / @ : write it as %2F %40 %3A",
        )),
    }
}

/// Whole seconds, where 0 or less stands for no limit, as in libpq.
fn parse_seconds(value: &str) -> Result<Option<Duration>> {
    let seconds: i32 = value.trim().parse().map_err(|_| {
        Error::config("connect_timeout is not a whole number of seconds; 0 waits forever")
    })?;
    Ok(u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs))
}

/// A build without TLS does what libpq does without SSL: the modes that allow a clear session are
/// taken, the others are an error.
fn check_ssl_mode(value: &str) -> Result<()> {
    match value {
        "disable" | "allow" | "prefer" => Ok(()),
        "require" | "verify-ca" | "verify-full" => Err(Error::Tls {
            message: format!("sslmode={value} is asked for, but this build has no TLS"),
        }),
        _ => Err(Error::config(
            "sslmode is none of disable, allow, prefer, require, verify-ca, verify-full",
        )),
    }
}

fn check_encoding(value: &str) -> Result<()> {
    let name: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
    if name.eq_ignore_ascii_case("utf8") || name.eq_ignore_ascii_case("unicode") {
        return Ok(());
    }
    Err(Error::config("client_encoding can only be UTF8: JSON is decoded as UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_keyword_is_taken() {
        let config = ConnectionConfig::parse(
            "host=db port=6432 user=u password=p dbname=d application_name=a options='-c x=y' \
             connect_timeout=7 sslmode=disable client_encoding=utf-8",
        )
        .unwrap();
        assert_eq!(config.host, Host::Name("db".into()));
        assert_eq!(config.port, 6432);
        assert_eq!(config.user_name().unwrap(), "u");
        assert_eq!(config.password.as_ref().map(Password::reveal), Some("p"));
        assert_eq!(config.database.as_deref(), Some("d"));
        assert_eq!(config.application_name.as_deref(), Some("a"));
        assert_eq!(config.options.as_deref(), Some("-c x=y"));
        assert_eq!(config.connect_timeout, Some(Duration::from_secs(7)));
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = ConnectionConfig::parse("postgres://").unwrap();
        assert_eq!(config.to_string(), "postgresql://localhost:5432");
        assert_eq!(config.connect_timeout, None);
        assert_eq!(ConnectionConfig::parse("connect_timeout=-1").unwrap().connect_timeout, None);
    }

    #[test]
    fn the_password_is_never_shown() {
        let config = ConnectionConfig::parse("postgres://u:hunter2@h/d").unwrap();
        assert!(!format!("{config:?} {config:#?} {config}").contains("hunter2"));
        for text in ["postgres://u:hunter2/x@h/d", "postgres://u:x@hunter2@h/d"] {
            let error = ConnectionConfig::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn errors_say_which_setting_is_wrong() {
        for (text, part) in [
            ("port=0", "port"),
            ("port=65536", "port"),
            ("connect_timeout=soon", "connect_timeout"),
            ("sslmode=bogus", "sslmode"),
            ("sslmode=verify-full", "no TLS"),
            ("client_encoding=LATIN1", "client_encoding"),
            ("hosts=a", "\"hosts\""),
            ("host=a,b", "several hosts"),
        ] {
            let error = ConnectionConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
