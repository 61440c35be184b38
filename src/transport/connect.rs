use std::io;

use super::Address;
use crate::config::{ConnectionConfig, Host};

/// The addresses of the configured host, in the order in which they are to be tried.
pub(crate) async fn resolve(config: &ConnectionConfig) -> io::Result<Vec<Address>> {
    match &config.host {
        Host::Name(name) => {
            let addresses = tokio::net::lookup_host((name.as_str(), config.port)).await?;
            Ok(addresses.map(Address::Tcp).collect())
        }
        #[cfg(unix)]
        Host::UnixDirectory(directory) => {
            Ok(vec![Address::Unix(Host::socket_path(directory, config.port))])
        }
        #[cfg(not(unix))]
        Host::UnixDirectory(_) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets"))
        }
    }
}
