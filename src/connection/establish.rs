use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Connection, handshake::handshake};
use crate::{
    config::ConnectionConfig,
    error::{ConnectAttempt, Error, Result, TimeoutPhase},
    transport::{Address, Transport, resolve},
};

/// Opens a session: resolves the name and tries one address after the other until one accepts.
///
/// As in libpq, an address that cannot be reached or stays silent is followed by the next one;
/// a server that answers has the last word. `connect_timeout` covers everything up to the first
/// address, name resolution included, and starts again for each further one.
///
/// Cancel-safe: dropping the future closes what it opened.
pub(crate) async fn connect(config: &ConnectionConfig) -> Result<Connection> {
    let target = config.host.with_port(config.port).to_string();
    let mut deadline = deadline(config);
    let addresses = match within(config, deadline, resolve(config)).await? {
        Ok(addresses) => addresses,
        Err(e) => return Err(unreachable(target, Error::io("while resolving the name", e))),
    };

    let mut attempts = Vec::new();
    for address in addresses {
        let attempt = within(config, deadline, attempt(&address, config)).await;
        let error = match attempt.and_then(|tried| tried) {
            Ok(connection) => return Ok(connection),
            Err(
                e @ (Error::Timeout { .. } | Error::Io { .. } | Error::ConnectionClosed { .. }),
            ) => e,
            Err(e) => return Err(e),
        };
        let address = address.to_string();
        let target =
            if address == target { target.clone() } else { format!("{target} ({address})") };
        attempts.push(ConnectAttempt { target, error: Box::new(error) });
        deadline = self::deadline(config);
    }
    match attempts.pop() {
        None => Err(Error::config(format!("{target} has no address"))),
        // A timeout with no alternative is just that.
        Some(ConnectAttempt { error, .. })
            if attempts.is_empty() && matches!(*error, Error::Timeout { .. }) =>
        {
            Err(*error)
        }
        Some(last) => {
            attempts.push(last);
            Err(Error::Connection { attempts })
        }
    }
}

async fn attempt(address: &Address, config: &ConnectionConfig) -> Result<Connection> {
    let transport = Transport::connect(address)
        .await
        .map_err(|e| Error::Io { during: CONNECTING, source: e })?;
    handshake(transport, address, config).await
}

/// Runs one step within the deadline.
async fn within<T>(
    config: &ConnectionConfig,
    deadline: Option<Instant>,
    step: impl Future<Output = T>,
) -> Result<T> {
    let Some(deadline) = deadline else { return Ok(step.await) };
    timeout_at(deadline, step).await.map_err(|_| Error::Timeout {
        phase: TimeoutPhase::Connect,
        after: config.connect_timeout.unwrap_or_default(),
    })
}

fn deadline(config: &ConnectionConfig) -> Option<Instant> {
    let after: Duration = config.connect_timeout?;
    Instant::now().checked_add(after)
}

fn unreachable(target: String, error: Error) -> Error {
    Error::Connection { attempts: vec![ConnectAttempt { target, error: Box::new(error) }] }
}

const CONNECTING: &str = "while connecting";
