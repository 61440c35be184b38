//! Releasing or closing a connection when its query has ended.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;
use tracing::debug;

use super::{exchange::Exchange, parallel::end_transaction};
use crate::{
    connection::{Connection, Lease, QuerySession, Session, TARGET, cancel_and_drain, stop_lost},
    error::{Error, Result},
};

/// A running request, held by a future of the caller. If it is dropped, the query is cancelled, and
/// a task cleans up its connection.
pub(super) struct InFlight {
    held: Option<Held>,
    runtime: Handle,
}

pub(super) struct Held {
    pub(super) exchange: Exchange,
    /// The right to return the connection to the client. The further connections of a parallel
    /// query have none.
    pub(super) lease: Option<Lease>,
    pub(super) running: QuerySession,
}

impl InFlight {
    pub(super) fn new() -> Self {
        Self { held: None, runtime: Handle::current() }
    }

    // Inlined, like `take_held`: a call copies the exchange several times.
    #[inline]
    pub(super) fn hold(&mut self, held: Held) -> &mut Held {
        held.running.in_future(&held.exchange.connection.session);
        self.held.insert(held)
    }

    pub(super) fn held(&mut self) -> Option<&mut Held> {
        self.held.as_mut()
    }

    #[inline]
    pub(super) fn take_held(&mut self) -> Option<Held> {
        let held = self.held.take()?;
        held.running.left_future(&held.exchange.connection.session);
        Some(held)
    }

    /// The query has failed before its first row. If the session has ended, so has the connection
    /// when this returns; otherwise it is cleaned up in a task.
    pub(super) fn failed(mut self, error: Error) -> StartError {
        let Some(held) = self.take_held() else { return error.into() };
        if held.exchange.is_stale(&error) {
            held.exchange.connection.discard_stale();
            return StartError { stale: held.lease, ..error.into() };
        }
        if error.ends_session() {
            held.close_ended(&error);
        } else {
            held.abandon(&self.runtime);
        }
        error.into()
    }
}

/// Why a query did not start on a connection.
pub(super) struct StartError {
    pub(super) error: Error,
    /// Already counted as a failed attempt to connect.
    pub(super) is_counted: bool,
    /// Set if the connection had ended while it was idle: the right to replace it.
    pub(super) stale: Option<Lease>,
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self { error, is_counted: false, stale: None }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(held) = self.take_held() {
            held.abandon(&self.runtime);
        }
    }
}

impl Held {
    /// Cancels the query if the server may have started it, and releases the connection. Uses a
    /// task unless there is nothing to wait for.
    pub(super) fn abandon(self, runtime: &Handle) {
        let Self { mut exchange, lease, running } = self;
        if !exchange.is_sent() && !exchange.connection.is_in_transaction() {
            exchange.connection.statements.restore_closes(exchange.closes);
            return give_back(exchange.connection, lease);
        }
        runtime.spawn(Box::pin(async move {
            if let Err(error) = cancel_and_release(exchange, lease).await {
                cleanup_failed(&error, &running);
            }
        }));
    }
}

impl Held {
    /// Closes a connection whose session has ended. If the server did not end it, a task cancels
    /// its query, because the server may not have noticed.
    pub(super) fn close_ended(self, error: &Error) {
        let Self { mut exchange, lease, running } = self;
        exchange.connection.set_lost(error);
        let may_run = is_lost(error) && !exchange.has_not_begun(error);
        let lost = may_run.then(|| LostSession::new(&exchange.connection));
        // Before the caller learns of the error and uses the client again.
        drop((exchange, lease));
        if let Some(lost) = lost {
            lost.cancel(&running);
        }
    }
}

/// The client's connection while a parallel query starts on it. If it is dropped, a task cancels
/// the statement that it waits for and ends the transaction.
pub(super) struct StartingTransaction {
    held: Option<(Box<Connection>, Lease, QuerySession)>,
    runtime: Handle,
}

impl StartingTransaction {
    pub(super) fn new() -> Self {
        Self { held: None, runtime: Handle::current() }
    }

    pub(super) fn hold(
        &mut self,
        connection: Box<Connection>,
        lease: Lease,
        running: QuerySession,
    ) -> &mut Connection {
        &mut self.held.insert((connection, lease, running)).0
    }

    pub(super) fn take_connection(&mut self) -> Option<(Box<Connection>, Lease)> {
        self.held.take().map(|(connection, lease, _)| (connection, lease))
    }

    /// The parallel query has failed. If the connection can be used, it is returned to the client.
    pub(super) async fn failed(mut self, error: Error, is_counted: bool) -> StartError {
        let is_stale = match &mut self.held {
            Some((connection, ..)) if connection.reused && error.ends_session() => true,
            Some((connection, ..)) => {
                let is_usable =
                    connection.is_answered() && end_transaction(connection).await.is_ok();
                if !is_usable {
                    self.held = None;
                }
                false
            }
            None => false,
        };
        let mut stale = None;
        if let Some((connection, lease)) = self.take_connection() {
            if is_stale {
                connection.discard_stale();
                stale = Some(lease);
            } else {
                lease.give_back(connection);
            }
        }
        StartError { error, is_counted, stale }
    }
}

impl Drop for StartingTransaction {
    fn drop(&mut self) {
        let Some((mut connection, lease, running)) = self.held.take() else { return };
        self.runtime.spawn(Box::pin(async move {
            connection.stop().await;
            if connection.is_answered() && end_transaction(&mut connection).await.is_ok() {
                lease.give_back(connection);
            }
            drop(running);
        }));
    }
}

/// Logs that a connection was closed because its query could not be cancelled.
pub(super) fn cleanup_failed(error: &Error, running: &QuerySession) {
    debug!(target: TARGET, %error, "closed a connection that could not be cleaned up");
    running.failed_to_stop(error);
}

/// Cancels the query if the server may have started it, and releases the connection.
pub(super) async fn cancel_and_release(mut exchange: Exchange, lease: Option<Lease>) -> Result<()> {
    if exchange.is_sent() {
        let unsent = exchange.take_unsent();
        cancel_and_drain(&mut exchange.connection, Some(&mut exchange.query), unsent).await?;
    }
    release(exchange.connection, lease).await
}

/// Releases a connection whose query is answered, after ending its transaction, if there is one.
pub(super) async fn release(mut connection: Box<Connection>, lease: Option<Lease>) -> Result<()> {
    end_transaction(&mut connection).await?;
    // The next query may be short and need a smaller buffer.
    connection.release_read_buffer();
    give_back(connection, lease);
    Ok(())
}

/// Returns the connection to the client. A further connection of a parallel query is closed.
pub(super) fn give_back(connection: Box<Connection>, lease: Option<Lease>) {
    match lease {
        Some(lease) => lease.give_back(connection),
        None => connection.finished(),
    }
}

/// The session of a connection that was lost during a query.
pub(super) struct LostSession {
    session: Arc<Session>,
    cancel_timeout: Duration,
}

impl LostSession {
    pub(super) fn new(connection: &Connection) -> Self {
        let session = Arc::clone(&connection.session);
        Self { session, cancel_timeout: connection.limits.cancel_timeout }
    }

    /// Cancels its query in a task: the server may not have noticed that the connection is lost.
    pub(super) fn cancel(self, running: &QuerySession) {
        let running = running.clone();
        tokio::spawn(async move {
            stop_lost(self.session, self.cancel_timeout).await;
            drop(running);
        });
    }
}

/// Returns whether the connection was lost without a message from the server that ends the session.
pub(super) fn is_lost(error: &Error) -> bool {
    matches!(error, Error::ConnectionClosed { .. } | Error::Io { .. })
}
