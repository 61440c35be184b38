#[cfg(unix)]
use std::path::PathBuf;
use std::{fmt, net::SocketAddr};

use crate::config::{Connector, Target};

/// One address of a server, with no name left to resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
    /// Whatever the connector opens for the target.
    Custom(Connector<Target>, Target),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            #[cfg(unix)]
            Self::Unix(path) => path.display().fmt(f),
            Self::Custom(_, target) => target.fmt(f),
        }
    }
}
