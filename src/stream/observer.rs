//! Observability of a query: its span, its metrics, and its start time.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use tracing::Span;

use super::span::{self, QueryText};
use crate::{
    connection::SlotHandle,
    error::Error,
    metrics::{Outcome, QueryLabels, QueryMetrics},
    sync::lock,
};

/// Reports one query to `tracing` and to the metrics recorder, from `execute()` to the end of the
/// stream. Dropped before [`finish`](Self::finish), it reports that the query was dropped.
#[derive(Debug)]
pub(super) struct QueryObserver {
    pub(super) metrics: QueryMetrics,
    /// When `execute()` was called.
    pub(super) started_at: Instant,
    /// Replaced by a disabled span when the query has finished: the cleanup is not part of it.
    span: Mutex<Span>,
    is_finished: AtomicBool,
}

impl QueryObserver {
    pub(super) fn begin(slot: &SlotHandle, labels: QueryLabels<'_>, text: QueryText<'_>) -> Self {
        let started_at = now();
        let span = span::begin(slot, text);
        Self::new(QueryMetrics::begin(&slot.query_metrics, labels), span, started_at)
    }

    pub(super) fn new(metrics: QueryMetrics, span: Span, started_at: Instant) -> Self {
        Self { metrics, started_at, span: Mutex::new(span), is_finished: AtomicBool::new(false) }
    }

    pub(super) fn span(&self) -> Span {
        lock(&self.span).clone()
    }

    /// Records which server runs the query.
    pub(super) fn connected(&self, slot: &SlotHandle) {
        span::connected(&self.span(), slot);
    }

    /// The stream has been ready to be read since `at`.
    pub(super) fn started(&self, at: Instant, chunk_size: usize) {
        self.metrics.started(at.saturating_duration_since(self.started_at));
        self.metrics.chunk_size(chunk_size);
    }

    /// Records an error in the span. A cancelled query has not failed.
    pub(super) fn failed(&self, error: &Error) {
        span::failed(&self.span(), error);
    }

    /// Ends the span: the query has finished at `at`. The first call counts.
    pub(super) fn finish(&self, at: Instant, outcome: Outcome, rows: Rows) {
        if self.is_finished.swap(true, Relaxed) {
            return;
        }
        let mut span = lock(&self.span);
        let span = std::mem::replace(&mut *span, Span::none());
        if let Some(yielded) = rows.yielded {
            span::ended(&span, yielded);
        }
        let elapsed = at.saturating_duration_since(self.started_at);
        self.metrics.finish(outcome, elapsed, rows.received, rows.bytes);
    }
}

impl Drop for QueryObserver {
    fn drop(&mut self) {
        if !self.is_finished.load(Relaxed) {
            self.finish(now(), Outcome::Dropped, Rows::default());
        }
    }
}

/// The number of rows of a query that has finished.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Rows {
    /// Rows that the stream yielded, if there was a stream.
    pub(super) yielded: Option<u64>,
    pub(super) received: u64,
    pub(super) bytes: u64,
}

/// Returns the outcome of a query that ended with this error.
pub(super) fn outcome(error: &Error) -> Outcome {
    match error {
        Error::Cancelled => Outcome::Cancelled,
        error => Outcome::Failed {
            category: error.category().as_str(),
            by_timeout: matches!(error, Error::Timeout { .. }),
            by_memory: matches!(
                error,
                Error::MemoryLimitExceeded { .. } | Error::ConsumerLagged { .. }
            ),
        },
    }
}

/// Returns the time of tokio's clock, which a test can pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
