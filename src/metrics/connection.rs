//! What is counted of connections. These are rare: the handles are taken where they are used.

use std::time::Duration;

use ::metrics::{Gauge, counter, gauge, histogram};

use super::catalog::*;

/// Where an attempt to connect stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Resolve,
    Connect,
    Tls,
    Auth,
    Startup,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Startup => "startup",
        }
    }
}

/// An attempt to connect. Dropped before it is over, it was given up: by a timeout of the caller, most likely.
#[derive(Default)]
pub(crate) struct Attempt(Option<Phase>);

impl Attempt {
    /// A new one begins.
    pub(crate) fn begins(&mut self, phase: Phase) {
        self.0 = Some(phase);
    }

    pub(crate) fn comes_to(&mut self, phase: Phase) {
        self.0 = Some(phase);
    }

    pub(crate) fn succeeded(&mut self) {
        self.0 = None;
    }

    pub(crate) fn failed(&mut self, category: &'static str) {
        if let Some(phase) = self.0.take() {
            Self::count(phase, category);
            error(category, phase.as_str());
        }
    }

    fn count(phase: Phase, category: &'static str) {
        counter!(CONNECTIONS_FAILED_TOTAL, "phase" => phase.as_str(), "category" => category)
            .increment(1);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(phase) = self.0 {
            Self::count(phase, "cancelled");
        }
    }
}

/// An error has come up, which is not that of a single row. `phase`: that of an attempt to connect, or
/// `query`, `stream`, `drain`.
pub(crate) fn error(category: &'static str, phase: &'static str) {
    counter!(ERRORS_TOTAL, "category" => category, "phase" => phase).increment(1);
}

/// A message like this was malformed or out of place.
pub(crate) fn protocol_error(message: &'static str) {
    counter!(PROTOCOL_ERRORS_TOTAL, "message" => message).increment(1);
}

/// The server has something to say. Severities are few, whatever it says.
pub(crate) fn notice(severity: &str) {
    let severity = match severity {
        "WARNING" => "warning",
        "NOTICE" => "notice",
        "INFO" => "info",
        "LOG" => "log",
        debug if debug.starts_with("DEBUG") => "debug",
        _ => "other",
    };
    counter!(NOTICES_TOTAL, "severity" => severity).increment(1);
}

/// A connection has taken the place of an earlier one.
pub(crate) fn reconnected() {
    counter!(RECONNECTS_TOTAL).increment(1);
}

pub(crate) fn tls_agreed(took: Duration) {
    histogram!(TLS_HANDSHAKE_DURATION_SECONDS).record(took);
}

/// The clean-up behind a query that ended early is over, well or not.
pub(crate) fn drained(took: Duration, bytes: usize) {
    histogram!(DRAIN_DURATION_SECONDS).record(took);
    counter!(DRAINED_BYTES_TOTAL).increment(bytes as u64);
}

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginFailure {
    /// The server rejected it.
    Rejected,
    /// The settings do not allow what the server asked for.
    RefusedByPolicy,
    NoPassword,
    Malformed,
    /// The server did not prove that it knows the password.
    ServerSignature,
    /// The connection was lost, or the login was abandoned.
    Lost,
}

impl LoginFailure {
    fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RefusedByPolicy => "refused_by_policy",
            Self::NoPassword => "no_password",
            Self::Malformed => "malformed",
            Self::ServerSignature => "server_signature",
            Self::Lost => "lost",
        }
    }
}

/// A login, which is counted when this is dropped.
pub(crate) struct LoginMetrics {
    mechanism: &'static str,
    /// `None` after a success.
    failure: Option<LoginFailure>,
}

impl LoginMetrics {
    pub(crate) fn begin() -> Self {
        Self { mechanism: "trust", failure: Some(LoginFailure::Lost) }
    }

    /// Sets what the server asks for.
    pub(crate) fn set_mechanism(&mut self, mechanism: &'static str) {
        self.mechanism = mechanism;
    }

    /// Sets the reason that is counted if the login is abandoned now. Default: lost.
    pub(crate) fn if_abandoned(&mut self, reason: LoginFailure) {
        self.failure = Some(reason);
    }

    pub(crate) fn failed(mut self, reason: LoginFailure) {
        self.failure = Some(reason);
    }

    pub(crate) fn succeeded(mut self, took: Duration) {
        self.failure = None;
        histogram!(AUTH_DURATION_SECONDS, "mechanism" => self.mechanism).record(took);
    }
}

impl Drop for LoginMetrics {
    fn drop(&mut self) {
        let mechanism = self.mechanism;
        counter!(AUTHENTICATIONS_TOTAL, "mechanism" => mechanism).increment(1);
        match self.failure {
            None => {
                counter!(AUTHENTICATIONS_SUCCESSFUL_TOTAL, "mechanism" => mechanism).increment(1);
            }
            Some(reason) => {
                let reason = reason.as_str();
                counter!(AUTHENTICATIONS_FAILED_TOTAL, "mechanism" => mechanism, "reason" => reason)
                    .increment(1);
            }
        }
    }
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The client wanted it.
    Close,
    /// The server ended it while it was in use.
    Server,
    /// The server ended it while nobody used it.
    Idle,
    /// Cleaning it up took more bytes or more time than it may.
    DrainLimit,
    /// It is in a state in which it cannot be used again.
    Broken,
}

/// A connection that is open, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    open: OpenGauge,
    reason: CloseReason,
}

/// The handle that was incremented: a recorder that is installed later knows nothing of it.
struct OpenGauge(Gauge);

impl OpenConnection {
    /// `took`: from the socket to where it takes a query.
    pub(crate) fn new(is_tcp: bool, tls: bool, took: Duration) -> Self {
        let transport = if is_tcp { "tcp" } else { "unix" };
        let tls = if tls { "true" } else { "false" };
        counter!(CONNECTIONS_CREATED_TOTAL, "transport" => transport, "tls" => tls).increment(1);
        histogram!(CONNECT_DURATION_SECONDS, "transport" => transport).record(took);
        let open = gauge!(CONNECTIONS_OPEN);
        open.increment(1.0);
        Self { open: OpenGauge(open), reason: CloseReason::Broken }
    }

    /// Says why it will end; without that, it is broken.
    pub(crate) fn set_close_reason(&mut self, reason: CloseReason) {
        self.reason = reason;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let reason = match self.reason {
            CloseReason::Close => "close",
            CloseReason::Server => "server",
            CloseReason::Idle => "idle",
            CloseReason::DrainLimit => "drain_limit",
            CloseReason::Broken => "broken",
        };
        counter!(CONNECTIONS_CLOSED_TOTAL, "reason" => reason).increment(1);
        self.open.0.decrement(1.0);
    }
}

impl std::fmt::Debug for OpenGauge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenGauge")
    }
}

/// A cancel request. Dropped before it is over, it was given up.
pub(crate) struct CancelRequest {
    outcome: &'static str,
}

impl CancelRequest {
    pub(crate) fn begin() -> Self {
        Self { outcome: "timeout" }
    }

    pub(crate) fn ended(mut self, was_sent: bool) {
        self.outcome = if was_sent { "sent" } else { "failed" };
    }
}

impl Drop for CancelRequest {
    fn drop(&mut self) {
        counter!(CANCEL_REQUESTS_TOTAL, "outcome" => self.outcome).increment(1);
    }
}
