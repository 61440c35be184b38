//! What a client reports about its session.

use std::{fmt, net::IpAddr, path::PathBuf};

/// How a session was opened: see
/// [`FraiseClient::connection_info`](crate::FraiseClient::connection_info).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The configured host; `None` if only an address or a directory was given.
    pub host: Option<String>,
    /// The IP address of the connection.
    pub address: Option<IpAddr>,
    /// The Unix socket of the connection.
    pub unix_socket: Option<PathBuf>,
    /// The port.
    pub port: u16,
    /// The version of TLS, such as `TLSv1.3`; `None` without TLS.
    pub tls_version: Option<String>,
    /// The cipher suite of TLS.
    pub tls_cipher: Option<String>,
    /// How the client logged in: `none`, `password`, `md5`, `scram-sha-256`, or
    /// `scram-sha-256-plus`, which is bound to the TLS channel.
    pub auth_method: &'static str,
    /// The version of the protocol: `3.0` or `3.2`.
    pub protocol_version: &'static str,
}

/// The version of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ServerVersion {
    /// The major version: 18 in 18.4.
    pub major: u32,
    /// The minor version: 4 in 18.4; 0 before the first release, such as in 19beta1.
    pub minor: u32,
}

impl ServerVersion {
    /// Parses the parameter `server_version`, which packagers and other engines extend: `15.18
    /// (Debian 15.18-0+deb12u1)`, `19beta1`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (major, rest) = text.split_at_checked(end)?;
        let minor: String = rest
            .strip_prefix('.')
            .unwrap_or_default()
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        Some(Self { major: major.parse().ok()?, minor: minor.parse().unwrap_or(0) })
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_write_them() {
        let version = |text| ServerVersion::parse(text).map(|v| v.to_string());
        assert_eq!(version("15.18 (Debian 15.18-0+deb12u1)").as_deref(), Some("15.18"));
        assert_eq!(version("19beta1").as_deref(), Some("19.0"));
        assert_eq!(version("9.6.24").as_deref(), Some("9.6"));
        assert_eq!(version("18").as_deref(), Some("18.0"));
        assert_eq!(version("CockroachDB"), None);
        assert_eq!(version("99999999999"), None);
        assert!(ServerVersion { major: 17, minor: 9 } < ServerVersion { major: 18, minor: 0 });
    }
}
