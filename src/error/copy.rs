use std::io;

use super::variants::{ConnectAttempt, Error};

impl Error {
    /// Returns a copy for another caller that waits for the same operation. A source from a decoder
    /// or the operating system is copied as text.
    pub(crate) fn copy(&self) -> Self {
        match self {
            Self::Config { message } => Self::Config { message: message.clone() },
            Self::Connection { attempts } => {
                Self::Connection { attempts: attempts.iter().map(ConnectAttempt::copy).collect() }
            }
            Self::ConnectionClosed { during, source } => {
                Self::ConnectionClosed { during, source: source.as_ref().map(copy_io) }
            }
            Self::ConnectionBusy => Self::ConnectionBusy,
            Self::Tls { message } => Self::Tls { message: message.clone() },
            Self::Authentication { message, server } => {
                Self::Authentication { message: message.clone(), server: server.clone() }
            }
            Self::Protocol { message } => Self::Protocol { message: message.clone() },
            Self::Server(error) => Self::Server(error.clone()),
            Self::Cancelled => Self::Cancelled,
            Self::Timeout { phase, after } => Self::Timeout { phase: *phase, after: *after },
            Self::InvalidSchema { found } => Self::InvalidSchema { found: found.clone() },
            Self::JsonDecode { type_name, row, path, source } => Self::JsonDecode {
                type_name,
                row: *row,
                path: path.clone(),
                source: source.to_string().into(),
            },
            Self::Deserialization { type_name, row, path, source } => Self::Deserialization {
                type_name,
                row: *row,
                path: path.clone(),
                source: source.to_string().into(),
            },
            Self::MemoryLimitExceeded { limit, required } => {
                Self::MemoryLimitExceeded { limit: *limit, required: *required }
            }
            Self::ConsumerLagged { limit, buffered } => {
                Self::ConsumerLagged { limit: *limit, buffered: *buffered }
            }
            Self::InvalidState { message } => Self::InvalidState { message },
            Self::Io { during, source } => Self::Io { during, source: copy_io(source) },
        }
    }
}

impl ConnectAttempt {
    pub(crate) fn copy(&self) -> Self {
        Self { target: self.target.clone(), error: Box::new(self.error.copy()) }
    }
}

fn copy_io(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
