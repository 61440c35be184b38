use std::{sync::Arc, time::Instant};

use super::{
    channel::{Channel, ClosedBy},
    observer::{Rows, now, outcome},
    row::Beyond,
    stats::StreamState,
};
use crate::{
    error::Error,
    metrics::{self, Outcome, RowFailure},
};

/// The stream's side of the channel. If it is dropped before the end of the rows, the query is
/// cancelled.
pub(super) struct Consumer {
    pub(super) channel: Arc<Channel>,
    /// Whether the end of the rows, or the error that ends them, has been read.
    pub(super) ended: bool,
    /// Whether that was the end of a complete result.
    pub(super) succeeded: bool,
    /// The number of rows that were decoded.
    pub(super) deserialized: u64,
    /// When the current chunk was received.
    chunk_since: Option<Instant>,
    flushed: Flushed,
}

/// What was reported to the metrics.
#[derive(Default)]
struct Flushed {
    yielded: u64,
    filtered: u64,
    failed: u64,
    bytes: u64,
    deserialized: u64,
}

impl Consumer {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self {
            channel,
            ended: false,
            succeeded: false,
            deserialized: 0,
            chunk_since: None,
            flushed: Flushed::default(),
        }
    }

    /// A chunk was received from the channel.
    pub(super) fn chunk_received(&mut self) {
        self.chunk_since = Some(now());
    }

    /// Records the rows of the current chunk in the metrics.
    pub(super) fn chunk_done(&mut self) {
        let Some(since) = self.chunk_since.take() else { return };
        let metrics = &self.channel.observer.metrics;
        metrics.chunk_processed(now().saturating_duration_since(since));
        let consumed = &self.channel.consumed;
        let seen = Flushed {
            yielded: consumed.yielded.get(),
            filtered: consumed.filtered.get(),
            failed: consumed.failed.get(),
            bytes: consumed.bytes.get(),
            deserialized: self.deserialized,
        };
        let was = &self.flushed;
        let (yielded, filtered) = (seen.yielded - was.yielded, seen.filtered - was.filtered);
        metrics.rows(yielded, filtered, seen.deserialized - was.deserialized);
        metrics.taken(yielded + filtered + seen.failed - was.failed, seen.bytes - was.bytes);
        self.flushed = seen;
    }

    /// Times the decoding of one row, from which the time of a chunk of `rows` is estimated.
    ///
    /// `decode` calls its argument after the predicates on documents, if there are any.
    #[cold]
    pub(super) fn timed<R>(&self, rows: usize, decode: impl FnOnce(&mut dyn FnMut()) -> R) -> R {
        // The row is the first of its chunk.
        let began = self.chunk_since.unwrap_or_else(now);
        let mut judged = None;
        let row = decode(&mut || judged = Some(now()));
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        let metrics = &self.channel.observer.metrics;
        metrics.decoded((now() - judged.unwrap_or(began)).saturating_mul(rows));
        if let Some(judged) = judged {
            metrics.filtered((judged - began).saturating_mul(rows));
        }
        row
    }

    /// Records a row that could not be decoded, for the caller or for a predicate.
    pub(super) fn row_failed(&self, error: &Error) {
        self.channel.consumed.failed.add(1);
        self.channel.observer.metrics.row_failed(row_failure(error));
    }

    /// Ends the stream with an error, like [`end`](Self::end).
    pub(super) fn fail(&mut self, error: &Error) {
        self.close(outcome(error), Some(error));
    }

    /// Ends the stream, which must have no current chunk. The first call counts.
    pub(super) fn end(&mut self, how: Outcome) {
        self.close(how, None);
    }

    fn close(&mut self, how: Outcome, error: Option<&Error>) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.succeeded = how == Outcome::Success;
        self.chunk_done();
        let unread = self.channel.delivered_but_unread();
        let state = match how {
            Outcome::Success => StreamState::Completed,
            Outcome::Failed { .. } => StreamState::Failed,
            Outcome::Dropped | Outcome::Cancelled => StreamState::Cancelled,
        };
        let at = now();
        let is_first = self.channel.close(state, at, ClosedBy::Consumer);
        let observer = &self.channel.observer;
        observer.metrics.taken(unread.rows, unread.bytes);
        observer.metrics.discarded(unread.rows);
        observer.metrics.stopped();
        // A handle that closed the stream before did so by cancelling.
        let how = if is_first { how } else { Outcome::Cancelled };
        // A query that its caller cancels has not failed.
        if let (Outcome::Failed { category, .. }, Some(error)) = (how, error) {
            observer.failed(error);
            if !error.is_row_error() {
                metrics::connection::error(category, metrics::connection::Phase::Stream);
            }
        }
        let (yielded, received) = self.channel.totals();
        let rows = Rows { yielded: Some(yielded), received: received.rows, bytes: received.bytes };
        observer.finish(at, how, rows);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.end(Outcome::Dropped);
    }
}

fn row_failure(error: &Error) -> RowFailure {
    match error {
        Error::JsonDecode { source, .. } => match source.downcast_ref::<serde_json::Error>() {
            Some(e) if e.is_eof() => RowFailure::Eof,
            Some(_) => RowFailure::Syntax,
            None if source.is::<Beyond>() => RowFailure::Syntax,
            None => RowFailure::Utf8,
        },
        _ => RowFailure::Data,
    }
}
