use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::keyword::Values;
use crate::error::{Error, OneLine, Result};

/// Where servers keep their sockets: Debian's and Fedora's place, or else Postgres's own default.
///
/// The directory decides and not the socket in it: where only Postgres may put a socket, nobody else
/// must be asked while it is away. For the same reason it is never followed by TCP.
fn default_directory() -> Option<&'static str> {
    const PACKAGED: &str = "/var/run/postgresql";
    match (cfg!(unix), Path::new(PACKAGED).is_dir()) {
        (false, _) => None,
        (true, true) => Some(PACKAGED),
        (true, false) => Some("/tmp"),
    }
}

/// One place to connect to: a host of the configuration, before its name is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// The name, for which a certificate is checked and a password looked up. `None` when only an
    /// address or a directory was given.
    pub host: Option<String>,
    /// The address, when one was given: then the name is not resolved.
    pub hostaddr: Option<IpAddr>,
    /// The socket's path, when it is a Unix socket; in Linux's abstract namespace, it begins with
    /// `@`.
    pub unix_socket: Option<PathBuf>,
    /// The port, which for a Unix socket is part of its name.
    pub port: u16,
}

impl Target {
    fn new(host: &str, hostaddr: Option<IpAddr>, port: u16) -> Self {
        let named = Some(host).filter(|h| !h.is_empty());
        // An address has the last word, whatever the name looks like.
        if hostaddr.is_some() {
            return Self { host: named.map(str::to_owned), hostaddr, unix_socket: None, port };
        }
        let (host, directory) = match named {
            Some(host) if host.starts_with(['/', '@']) => (None, Some(PathBuf::from(host))),
            Some(host) => (Some(host.to_owned()), None),
            None => match default_directory() {
                Some(directory) => (None, Some(PathBuf::from(directory))),
                None => (Some("localhost".to_owned()), None),
            },
        };
        let unix_socket = directory.map(|d| socket_path(&d, port));
        Self { host, hostaddr, unix_socket, port }
    }

    /// What a password file knows it by.
    pub(super) fn passfile_host(&self) -> String {
        let directory = self.unix_socket.as_ref().and_then(|p| p.parent()).and_then(Path::to_str);
        match (&self.host, self.hostaddr, directory) {
            (Some(host), ..) => host.clone(),
            (None, Some(address), _) => address.to_string(),
            (None, None, Some(directory)) if default_directory() != Some(directory) => {
                directory.to_owned()
            }
            _ => "localhost".to_owned(),
        }
    }
}

/// As in a URI, or the path of the socket.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match (&self.unix_socket, &self.host, self.hostaddr) {
            (Some(path), ..) => write!(f, "{}", path.display()),
            // A name may come from outside, and this is shown in errors and logs.
            (None, Some(host), _) if host.contains(':') => {
                write!(f, "[{}]:{port}", OneLine::name(host))
            }
            (None, Some(host), _) => write!(f, "{}:{port}", OneLine::name(host)),
            (None, None, Some(IpAddr::V6(address))) => write!(f, "[{address}]:{port}"),
            (None, None, Some(address)) => write!(f, "{address}:{port}"),
            (None, None, None) => write!(f, "port {port}"),
        }
    }
}

/// The path of the socket of the server on `port`, by the server's naming rule.
fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// Hosts, addresses and ports as lists of the same length.
#[derive(Debug, Clone)]
pub(super) struct Hosts(Vec<(String, Option<IpAddr>, u16)>);

impl Hosts {
    /// Reads `host`, `hostaddr` and `port`, by libpq's rules: the address list, or else the list of
    /// names, says how many there are; one port is for all.
    pub(super) fn parse(values: &Values) -> Result<Self> {
        let list = |name| values.non_empty(name).map(|v| v.split(',').collect::<Vec<_>>());
        let (names, addresses) = (list("host"), list("hostaddr"));
        let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
        if let Some(names) = names.as_ref().filter(|names| names.len() != count) {
            return Err(Error::config(format!(
                "host has {} elements and hostaddr {count}: give one for each",
                names.len()
            )));
        }
        let ports = list("port").unwrap_or_default();
        if ports.len() > 1 && ports.len() != count {
            return Err(Error::config(format!(
                "port has {} elements for {count} hosts: give one for all, or one for each",
                ports.len()
            )));
        }
        let hosts = (0..count).map(|i| {
            let element = |list: &Option<Vec<&str>>| {
                list.as_ref().and_then(|l| l.get(i).copied()).unwrap_or_default().to_owned()
            };
            let port = ports.get(i).or(ports.first()).copied().unwrap_or_default();
            Ok((
                check_name(element(&names))?,
                parse_address(&element(&addresses))?,
                parse_port(port)?,
            ))
        });
        hosts.collect::<Result<_>>().map(Self)
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        self.0.iter().map(|(host, address, port)| Target::new(host, *address, *port)).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, ..)| name.as_str())
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().filter_map(|(_, address, _)| *address)
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.iter().map(|(.., port)| *port)
    }
}

fn check_name(name: String) -> Result<String> {
    // No name holds these, but a URI whose password was not escaped leads here: do not show it.
    if !name.starts_with(['/', '@']) && name.contains(['@', '/']) {
        return Err(Error::config(
            "host holds @ or /, which no name does; if the user or password of a URI holds one \
             of / @ : write it as %2F %40 %3A",
        ));
    }
    Ok(name)
}

fn parse_address(value: &str) -> Result<Option<IpAddr>> {
    if value.is_empty() {
        return Ok(None);
    }
    let address = value.parse().map_err(|_| {
        Error::config("hostaddr is not an IP address: names belong in host, which resolves them")
    })?;
    Ok(Some(address))
}

/// `DEF_PGPORT` of libpq.
const DEFAULT_PORT: u16 = 5432;

fn parse_port(value: &str) -> Result<u16> {
    match value.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b').parse() {
        _ if value.is_empty() => Ok(DEFAULT_PORT),
        Ok(port) if port > 0 => Ok(port),
        // The value is not shown: behind an unescaped / it is part of the password.
        _ => Err(Error::config(
            "port is not a number from 1 to 65535; if the user or password of a URI holds one of \
             / @ : write it as %2F %40 %3A",
        )),
    }
}
