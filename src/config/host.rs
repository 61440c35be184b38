use std::{fmt, path::PathBuf};

use crate::error::{Error, Result};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// A name or an IP address.
    Name(String),
    /// The directory in which a server keeps its Unix socket.
    UnixDirectory(PathBuf),
}

impl Host {
    /// By libpq's rule, what begins with a slash is the directory of a Unix socket.
    pub(super) fn parse(value: &str) -> Result<Self> {
        if value.is_empty() {
            return Ok(Self::default());
        }
        if value.starts_with('/') {
            return Ok(Self::UnixDirectory(value.into()));
        }
        // No name holds these, but a URI whose password was not escaped leads here: do not show it.
        if value.contains(['@', '/']) {
            return Err(Error::config(
                "host holds @ or /, which no name does; if the user or password of a URI holds one \
                 of / @ : write it as %2F %40 %3A",
            ));
        }
        if value.contains(',') {
            return Err(Error::config("host names several hosts, of which one is supported"));
        }
        Ok(Self::Name(value.to_owned()))
    }

    /// The path of the socket of the server on `port`, by the server's naming rule.
    pub(crate) fn socket_path(directory: &std::path::Path, port: u16) -> PathBuf {
        directory.join(format!(".s.PGSQL.{port}"))
    }

    pub(crate) fn with_port(&self, port: u16) -> impl fmt::Display {
        match self {
            Self::Name(name) if name.contains(':') => format!("[{name}]:{port}"),
            Self::Name(name) => format!("{name}:{port}"),
            Self::UnixDirectory(directory) => {
                Self::socket_path(directory, port).display().to_string()
            }
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::Name("localhost".into())
    }
}
