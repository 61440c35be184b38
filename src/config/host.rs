use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{address, keyword::Values};
use crate::error::{Error, OneLine, Result};

/// The directory of the server's socket: that of Debian's and Fedora's packages if it exists;
/// otherwise the default of Postgres.
///
/// It is chosen by directory, not by socket: if the packaged directory exists, the client must not
/// fall back to `/tmp`, where any user could create a socket. For the same reason it never falls
/// back to TCP.
fn default_directory() -> Option<&'static str> {
    const PACKAGED: &str = "/var/run/postgresql";
    match (cfg!(unix), Path::new(PACKAGED).is_dir()) {
        (false, _) => None,
        (true, true) => Some(PACKAGED),
        (true, false) => Some("/tmp"),
    }
}

/// A host of the configuration, before its name is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// The host name, which the certificate must contain and by which the password is looked up.
    /// `None` if only an address or a directory is configured.
    pub host: Option<String>,
    /// The configured address. If it is set, the name is not resolved.
    pub hostaddr: Option<IpAddr>,
    /// The address as it was written, by which libpq looks up the password if there is no host.
    pub(crate) hostaddr_text: String,
    /// The path of the Unix socket. It begins with `@` in the abstract namespace of Linux.
    pub unix_socket: Option<PathBuf>,
    /// The port. It is part of the name of a Unix socket.
    pub port: u16,
}

impl Target {
    fn new(host: &Host) -> Self {
        let &Host { hostaddr, ref hostaddr_text, port, .. } = host;
        let hostaddr_text = hostaddr_text.clone();
        let named = Some(host.name.as_str()).filter(|h| !h.is_empty());
        // An address takes precedence, whatever the name looks like.
        if hostaddr.is_some() {
            let host = named.map(str::to_owned);
            return Self { host, hostaddr, hostaddr_text, unix_socket: None, port };
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
        Self { host, hostaddr, hostaddr_text, unix_socket, port }
    }

    /// The host name by which a password file refers to this target.
    pub(super) fn passfile_host(&self) -> String {
        let directory = self.unix_socket.as_ref().and_then(|p| p.parent()).and_then(Path::to_str);
        match (&self.host, self.hostaddr, directory) {
            (Some(host), ..) => host.clone(),
            (None, Some(_), _) => self.hostaddr_text.clone(),
            (None, None, Some(directory)) if default_directory() != Some(directory) => {
                directory.to_owned()
            }
            _ => "localhost".to_owned(),
        }
    }
}

/// As in a URI, or the path of the Unix socket.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match (&self.unix_socket, &self.host, self.hostaddr) {
            (Some(path), ..) => write!(f, "{}", path.display()),
            // A name may be untrusted input, and errors and logs show it.
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

/// Returns the path of the socket of the server on `port`.
fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// A host as it is configured. Without a name it is the default host.
#[derive(Debug, Clone)]
struct Host {
    name: String,
    hostaddr: Option<IpAddr>,
    /// The address as it was written.
    hostaddr_text: String,
    port: u16,
}

#[derive(Debug, Clone)]
pub(super) struct Hosts(Vec<Host>);

impl Hosts {
    /// Parses `host`, `hostaddr` and `port` by libpq's rules: the list of addresses, or otherwise
    /// the list of names, determines the number of hosts. A single port applies to all of them.
    pub(super) fn parse(values: &Values) -> Result<Self> {
        let list = |name| values.non_empty(name).map(|v| v.split(',').collect::<Vec<_>>());
        let (names, addresses) = (list("host"), list("hostaddr"));
        let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
        if let Some(names) = names.as_ref().filter(|names| names.len() != count) {
            return Err(Error::config(format!(
                "host has {} elements and hostaddr has {count}: they must have the same number",
                names.len()
            )));
        }
        let ports = list("port").unwrap_or_default();
        if ports.len() > 1 && ports.len() != count {
            return Err(Error::config(format!(
                "port has {} elements for {count} hosts: set one port for all hosts or one for each",
                ports.len()
            )));
        }
        let hosts = (0..count).map(|i| {
            let element = |list: &Option<Vec<&str>>| {
                list.as_ref().and_then(|l| l.get(i).copied()).unwrap_or_default().to_owned()
            };
            let port = ports.get(i).or(ports.first()).copied().unwrap_or_default();
            let hostaddr_text = element(&addresses);
            Ok(Host {
                name: check_name(element(&names))?,
                hostaddr: parse_address(&hostaddr_text)?,
                hostaddr_text,
                port: parse_port(port)?,
            })
        });
        hosts.collect::<Result<_>>().map(Self)
    }

    pub(super) fn targets(&self) -> Vec<Target> {
        self.0.iter().map(Target::new).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|host| host.name.as_str())
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().filter_map(|host| host.hostaddr)
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.iter().map(|host| host.port)
    }
}

fn check_name(name: String) -> Result<String> {
    // No host name contains these. An unescaped password in a URI can end up here: do not show it.
    if !name.starts_with(['/', '@']) && name.contains(['@', '/']) {
        return Err(Error::config(
            "invalid host: it contains @ or /; if the user or password of a URI contains / @ or :, \
             write %2F %40 or %3A",
        ));
    }
    Ok(name)
}

fn parse_address(value: &str) -> Result<Option<IpAddr>> {
    if value.is_empty() {
        return Ok(None);
    }
    let address = address::parse_address(value).ok_or_else(|| {
        Error::config("hostaddr is not an IP address: set host to the name instead")
    })?;
    Ok(Some(address))
}

/// `DEF_PGPORT` of libpq.
const DEFAULT_PORT: u16 = 5432;

fn parse_port(value: &str) -> Result<u16> {
    match value.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b').parse() {
        _ if value.is_empty() => Ok(DEFAULT_PORT),
        Ok(port) if port > 0 => Ok(port),
        // The value is not shown: after an unescaped / it is part of the password.
        _ => Err(Error::config(
            "port is not a number from 1 to 65535; if the user or password of a URI contains / @ \
             or :, write %2F %40 or %3A",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostaddr_accepts_the_forms_of_inet_aton() {
        let parse = |text: &str| {
            let mut values = Values::default();
            values.set("hostaddr", text.to_owned()).unwrap();
            Hosts::parse(&values)
        };
        let hosts = parse("127.1,0x7f000001,017700000001,0::1").unwrap();
        let shown: Vec<_> = hosts.addresses().map(|address| address.to_string()).collect();
        assert_eq!(shown, ["127.0.0.1", "127.0.0.1", "127.0.0.1", "::1"]);
        // A password file contains the address as it was written.
        let in_file: Vec<_> = hosts.targets().iter().map(Target::passfile_host).collect();
        assert_eq!(in_file, ["127.1", "0x7f000001", "017700000001", "0::1"]);
        for text in ["127.0.0.256", "1.2.3.4.5", "0x", "08.1", "db", "127.1 "] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    /// A fallback to TCP could send the password to the server of another user.
    #[cfg(unix)]
    #[test]
    fn without_a_host_the_target_is_a_socket_and_never_tcp() {
        for host in [None, Some("")] {
            let mut values = Values::default();
            values.set("port", "7".to_owned()).unwrap();
            if let Some(host) = host {
                values.set("host", host.to_owned()).unwrap();
            }
            let targets = Hosts::parse(&values).unwrap().targets();
            let [Target { host: None, hostaddr: None, unix_socket: Some(path), port: 7, .. }] =
                &targets[..]
            else {
                panic!("{targets:?}")
            };
            assert!(path.is_absolute() && path.ends_with(".s.PGSQL.7"), "{}", path.display());
        }
    }
}
