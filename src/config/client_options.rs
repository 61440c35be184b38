use std::time::Duration;

use super::{
    connector::Connector, host::Target, password::PasswordProvider, retry::RetryPolicy,
    tls::TlsConfig,
};
use crate::error::{Error, Result};

/// Settings that have no keyword in libpq.
#[derive(Debug, Clone)]
pub(crate) struct ClientOptions {
    pub(crate) password_provider: Option<PasswordProvider>,
    pub(crate) connector: Option<Connector<Target>>,
    /// More precise than the keyword, which has whole seconds.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) statement_timeout: Option<Duration>,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) max_message_size: usize,
    pub(crate) max_scram_iterations: u32,
    pub(crate) retry: RetryPolicy,
    pub(crate) cancel_timeout: Duration,
    pub(crate) drain_limit: usize,
    pub(crate) statement_cache_capacity: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            password_provider: None,
            connector: None,
            connect_timeout: None,
            read_timeout: None,
            statement_timeout: None,
            tls: None,
            params: Vec::new(),
            // The maximum size of a `StringInfo`, in which Postgres builds messages.
            max_message_size: 1 << 30,
            // About 50 ms of CPU time. A malicious server could request 2^31.
            max_scram_iterations: 100_000,
            retry: RetryPolicy::default(),
            // The default of npgsql. On a loopback it takes a few milliseconds.
            cancel_timeout: Duration::from_secs(2),
            // Many times the size of socket buffers. Reading this much is faster than connecting
            // and logging in again.
            drain_limit: 16 << 20,
            // The default of sqlx.
            statement_cache_capacity: 100,
        }
    }
}

/// The server's send buffer. Messages other than rows are smaller.
const MIN_MESSAGE_SIZE: usize = 8 << 10;

/// The maximum of `statement_cache_capacity`.
const MAX_STATEMENTS: usize = 10_000;

impl ClientOptions {
    /// Checks that each option is within its range.
    pub(super) fn validate(&self) -> Result<()> {
        for (name, value) in &self.params {
            // The names of parameters are case-insensitive.
            let problem = match name.to_ascii_lowercase().as_str() {
                "" => Some("the name is empty"),
                "user" | "database" | "options" | "application_name" => {
                    Some("use the builder's method of that name instead")
                }
                "replication" => Some("replication is not supported"),
                "client_encoding" => Some("the encoding is always UTF8"),
                protocol if protocol.starts_with("_pq_.") => {
                    Some("the name is reserved for the protocol")
                }
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(Error::config(format!("invalid param({name:?}, ...): {problem}")));
            }
            if name.contains('\0') || value.contains('\0') {
                return Err(Error::config("a param contains a NUL character"));
            }
        }
        if !(MIN_MESSAGE_SIZE..=1 << 30).contains(&self.max_message_size) {
            return Err(Error::config(format!(
                "invalid max_message_size: expected {MIN_MESSAGE_SIZE} to {} bytes",
                1 << 30
            )));
        }
        if self.statement_cache_capacity > MAX_STATEMENTS {
            return Err(Error::config(format!(
                "invalid statement_cache_capacity: expected at most {MAX_STATEMENTS}, because the \
                 server keeps this many statements for each connection"
            )));
        }
        if self.max_scram_iterations == 0 {
            return Err(Error::config("invalid max_scram_iterations: expected at least 1"));
        }
        if self.cancel_timeout.is_zero() {
            return Err(Error::config("invalid cancel_timeout: expected more than 0"));
        }
        if self.connect_timeout.is_some_and(|t| t.is_zero()) {
            return Err(Error::config(
                "invalid connect_timeout: expected more than 0; omit it for no limit",
            ));
        }
        let millis =
            |t: Duration| u128::try_from(i32::MAX).map(|max| (1..=max).contains(&t.as_millis()));
        if !self.statement_timeout.is_none_or(|t| millis(t).unwrap_or(false)) {
            return Err(Error::config(
                "invalid statement_timeout: expected 1 ms to 2147483647 ms; omit it for no limit",
            ));
        }
        if self.read_timeout.is_some_and(|t| t.is_zero()) {
            return Err(Error::config(
                "invalid read_timeout: expected more than 0; omit it for no limit",
            ));
        }
        Ok(())
    }
}
