//! Metrics of connections. They are updated rarely, so each update looks up its handle.

use std::time::Duration;

use ::metrics::{Gauge, counter, gauge, histogram};

use super::catalog::*;

/// The phase in which an error occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Resolve,
    Connect,
    Tls,
    Auth,
    Startup,
    /// A query before its stream is returned.
    Query,
    Stream,
    /// The cleanup of a query that ended early.
    Drain,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Startup => "startup",
            Self::Query => "query",
            Self::Stream => "stream",
            Self::Drain => "drain",
        }
    }
}

/// An attempt to connect. If it is dropped before it has succeeded or failed, it is counted as
/// cancelled: most likely by a timeout of the caller.
#[derive(Default)]
pub(crate) struct Attempt(Option<Phase>);

impl Attempt {
    /// Starts a new attempt, or the next phase of the current one.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.0 = Some(phase);
    }

    pub(crate) fn succeeded(&mut self) {
        self.0 = None;
    }

    pub(crate) fn failed(&mut self, category: &'static str) {
        if let Some(phase) = self.0.take() {
            Self::count(phase, category);
            error(category, phase);
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

/// Counts an error, except row errors.
pub(crate) fn error(category: &'static str, phase: Phase) {
    counter!(ERRORS_TOTAL, "category" => category, "phase" => phase.as_str()).increment(1);
}

/// Counts a malformed or unexpected message of this name.
pub(crate) fn protocol_error(message: &'static str) {
    counter!(PROTOCOL_ERRORS_TOTAL, "message" => message).increment(1);
}

/// Counts a notice. The label has a fixed set of values, whatever severity the server sends.
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

/// Counts a connection that replaced an earlier one.
pub(crate) fn reconnected() {
    counter!(RECONNECTS_TOTAL).increment(1);
}

pub(crate) fn tls_agreed(took: Duration) {
    histogram!(TLS_HANDSHAKE_DURATION_SECONDS).record(took);
}

/// Records the cleanup of a query that ended early, whether it succeeded or failed.
pub(crate) fn drained(took: Duration, bytes: usize) {
    histogram!(DRAIN_DURATION_SECONDS).record(took);
    counter!(DRAINED_BYTES_TOTAL).increment(bytes as u64);
}

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginFailure {
    /// The server rejected it.
    Rejected,
    /// The settings do not allow the method that the server requested.
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

/// A login. It is counted when this is dropped.
pub(crate) struct LoginMetrics {
    mechanism: &'static str,
    /// `None` after a success.
    failure: Option<LoginFailure>,
}

impl LoginMetrics {
    pub(crate) fn begin() -> Self {
        Self { mechanism: "trust", failure: Some(LoginFailure::Lost) }
    }

    /// Sets the authentication method that the server requested.
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

/// Why a connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The client closed it.
    Close,
    /// The server closed it while it was in use.
    Server,
    /// The server closed it while it was idle.
    Idle,
    /// Its cleanup exceeded `drain_limit` or `cancel_timeout`.
    DrainLimit,
    /// Its state does not allow reusing it.
    Broken,
}

impl CloseReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Server => "server",
            Self::Idle => "idle",
            Self::DrainLimit => "drain_limit",
            Self::Broken => "broken",
        }
    }
}

/// An open connection. It is counted as closed when this is dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    open: OpenGauge,
    reason: CloseReason,
}

/// The handle that was incremented. A recorder that is installed later has another one, which must
/// not be decremented.
struct OpenGauge(Gauge);

impl OpenConnection {
    /// Counts a connection that became ready for a query `took` after its socket was opened.
    pub(crate) fn new(transport: &'static str, tls: bool, took: Duration) -> Self {
        let tls = if tls { "true" } else { "false" };
        counter!(CONNECTIONS_CREATED_TOTAL, "transport" => transport, "tls" => tls).increment(1);
        histogram!(CONNECT_DURATION_SECONDS, "transport" => transport).record(took);
        let open = gauge!(CONNECTIONS_OPEN);
        open.increment(1.0);
        Self { open: OpenGauge(open), reason: CloseReason::Broken }
    }

    /// Sets the reason that is counted when the connection is dropped. Default: broken.
    pub(crate) fn set_close_reason(&mut self, reason: CloseReason) {
        self.reason = reason;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        counter!(CONNECTIONS_CLOSED_TOTAL, "reason" => self.reason.as_str()).increment(1);
        self.open.0.decrement(1.0);
    }
}

impl std::fmt::Debug for OpenGauge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenGauge")
    }
}

/// A pipelined request that is not answered, until it is dropped.
pub(crate) struct RequestsInFlight {
    gauge: Gauge,
    count: f64,
}

impl RequestsInFlight {
    /// No request, but a handle to count others.
    pub(crate) fn new() -> Self {
        Self { gauge: gauge!(REQUESTS_IN_FLIGHT), count: 0.0 }
    }

    /// Counts another request.
    pub(crate) fn another(&self) -> Self {
        self.gauge.increment(1.0);
        Self { gauge: self.gauge.clone(), count: 1.0 }
    }
}

impl Drop for RequestsInFlight {
    fn drop(&mut self) {
        self.gauge.decrement(self.count);
    }
}

/// A cancel request. It is counted when this is dropped: if it has not finished, as abandoned.
pub(crate) struct CancelRequest {
    outcome: CancelOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CancelOutcome {
    Sent,
    Failed,
    /// Abandoned, usually after a timeout.
    Timeout,
}

impl CancelOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
    }
}

impl CancelRequest {
    pub(crate) fn begin() -> Self {
        Self { outcome: CancelOutcome::Timeout }
    }

    pub(crate) fn finish(mut self, was_sent: bool) {
        self.outcome = if was_sent { CancelOutcome::Sent } else { CancelOutcome::Failed };
    }
}

impl Drop for CancelRequest {
    fn drop(&mut self) {
        counter!(CANCEL_REQUESTS_TOTAL, "outcome" => self.outcome.as_str()).increment(1);
    }
}
