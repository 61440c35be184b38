//! The attempts to connect that a query is waiting for.

use std::sync::{Mutex, MutexGuard};

use crate::{
    error::{ConnectAttempt, Error, TimeoutPhase},
    sync::lock,
};

/// The attempts to connect of one query, for the error of a deadline that passes during them.
#[derive(Debug, Default)]
pub(crate) struct Connecting(Mutex<ConnectingState>);

#[derive(Debug, Default)]
struct ConnectingState {
    /// Connections that are being opened.
    wanted: usize,
    /// The address that is being tried.
    trying: Option<String>,
    /// The failures of the current round through the hosts; until it has one, those of the previous
    /// round.
    failed: Vec<ConnectAttempt>,
    is_new_round: bool,
}

impl Connecting {
    /// A connection is needed.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        state.wanted += 1;
        state.is_new_round = true;
    }

    /// The connection was opened, or the error is being returned. Not called if the future that
    /// connects is dropped: [`deadline_error`](Self::deadline_error) is called after that.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.wanted -= 1;
        state.trying = None;
    }

    /// The next round through the hosts begins.
    pub(super) fn begin_round(&self) {
        self.lock().is_new_round = true;
    }

    pub(super) fn tries(&self, target: String) {
        self.lock().trying = Some(target);
    }

    pub(super) fn failed(&self, attempt: &ConnectAttempt) {
        let mut state = self.lock();
        if std::mem::take(&mut state.is_new_round) {
            state.failed.clear();
        }
        state.failed.push(attempt.copy());
        state.trying = None;
    }

    /// Returns the error to report for a query's deadline. If a connection is being opened, it is
    /// the connection's error: a server that is down must not look like a slow query.
    pub(crate) fn deadline_error(&self, error: Error) -> Error {
        let Error::Timeout { phase: TimeoutPhase::Query | TimeoutPhase::FirstRow, after } = error
        else {
            return error;
        };
        let state = self.lock();
        if state.wanted == 0 {
            return error;
        }
        // Copied, because several fetches may wait for the same connection.
        let mut attempts: Vec<_> = state.failed.iter().map(ConnectAttempt::copy).collect();
        if let Some(target) = state.trying.clone() {
            let error = Box::new(Error::Timeout { phase: TimeoutPhase::Connect, after });
            attempts.push(ConnectAttempt { target, error });
        }
        if attempts.is_empty() { error } else { Error::Connection { attempts } }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectingState> {
        lock(&self.0)
    }
}
