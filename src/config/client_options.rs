use std::time::Duration;

use super::{password::PasswordProvider, retry::RetryPolicy, tls::TlsConfig};
use crate::error::{Error, Result};

/// What libpq has no keyword for.
#[derive(Debug, Clone)]
pub(crate) struct ClientOptions {
    pub(crate) password_provider: Option<PasswordProvider>,
    /// Finer than the keyword's whole seconds.
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
            connect_timeout: None,
            read_timeout: None,
            statement_timeout: None,
            tls: None,
            params: Vec::new(),
            // Postgres builds a message in a `StringInfo`, which cannot grow beyond that.
            max_message_size: 1 << 30,
            // Some 50 ms of computing: a hostile server could ask for 2^31.
            max_scram_iterations: 100_000,
            retry: RetryPolicy::default(),
            // npgsql allows the same; on a loopback a few milliseconds are used.
            cancel_timeout: Duration::from_secs(2),
            // What socket buffers hold many times over, and is read faster than a new connection
            // with its login is made.
            drain_limit: 16 << 20,
            // sqlx keeps the same number.
            statement_cache_capacity: 100,
        }
    }
}

/// The server flushes 8 KiB at a time, and its own messages fit well into that.
const MIN_MESSAGE_SIZE: usize = 8 << 10;

impl ClientOptions {
    /// Checks that each option is within its range.
    pub(super) fn validate(&self) -> Result<()> {
        for (name, value) in &self.params {
            // As the server sees it, whatever its case.
            let own = match name.to_ascii_lowercase().as_str() {
                "" => Some("a name"),
                "user" | "database" | "options" | "application_name" => {
                    Some("the setter of that name")
                }
                "replication" => Some("nothing: this client only reads rows"),
                "client_encoding" => Some("nothing: it is always UTF8"),
                protocol if protocol.starts_with("_pq_.") => Some("nothing: it is the protocol's"),
                _ => None,
            };
            if let Some(instead) = own {
                return Err(Error::config(format!("param({name:?}, ...): use {instead} instead")));
            }
            if name.contains('\0') || value.contains('\0') {
                return Err(Error::config("a param holds a NUL character"));
            }
        }
        if !(MIN_MESSAGE_SIZE..=1 << 30).contains(&self.max_message_size) {
            return Err(Error::config(format!(
                "max_message_size is not from {MIN_MESSAGE_SIZE} to {} bytes",
                1 << 30
            )));
        }
        if self.max_scram_iterations == 0 {
            return Err(Error::config(
                "max_scram_iterations is 0, so no password could ever be proved",
            ));
        }
        if self.cancel_timeout.is_zero() {
            return Err(Error::config("cancel_timeout is 0, so no query could ever be stopped"));
        }
        if self.connect_timeout.is_some_and(|t| t.is_zero()) {
            return Err(Error::config("connect_timeout is 0: leave it out for no limit"));
        }
        let millis =
            |t: Duration| u128::try_from(i32::MAX).map(|max| (1..=max).contains(&t.as_millis()));
        if !self.statement_timeout.is_none_or(|t| millis(t).unwrap_or(false)) {
            return Err(Error::config(
                "statement_timeout is not from 1 ms to 2147483647 ms: leave it out for no limit",
            ));
        }
        if self.read_timeout.is_some_and(|t| t.is_zero()) {
            return Err(Error::config("read_timeout is 0, so no row could ever be read"));
        }
        Ok(())
    }
}
