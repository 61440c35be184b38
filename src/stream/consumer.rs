use std::{sync::Arc, time::Instant};

use tracing::{Instrument, Span};

use super::{
    channel::{Channel, now},
    parallel::{BeginError, end_transaction},
    request::Request,
    row::Beyond,
    settings::StreamSettings,
    span::{self, QueryText},
    stats::StreamState,
};
use crate::{
    connection::Access,
    error::{Error, Result, TimeoutPhase},
    metrics::{self, Outcome, QueryLabels, QueryMetrics},
};

/// The stream's end of the channel. Dropped before the end of the rows, it stops the query.
pub(super) struct Consumer {
    pub(super) channel: Arc<Channel>,
    called: Instant,
    /// Until the end.
    span: Span,
    /// The columns were right, and the stream is the user's.
    started: bool,
    /// The end, or the error that is the end, has been read.
    pub(super) ended: bool,
    /// Rows that were decoded.
    pub(super) deserialized: u64,
    /// When the present chunk was taken.
    chunk_since: Option<Instant>,
    flushed: Flushed,
}

/// What metrics have been told.
#[derive(Default)]
struct Flushed {
    yielded: u64,
    filtered: u64,
    failed: u64,
    bytes: u64,
    deserialized: u64,
}

impl Consumer {
    /// Runs the request on the client's connection, up to where the first row can come.
    ///
    /// A connection that turns out to have ended while it was idle is replaced, once. Dropping the
    /// future stops the query.
    pub(super) async fn open(
        access: &Access,
        request: Request,
        settings: StreamSettings,
        labels: QueryLabels<'_>,
        text: QueryText<'_>,
    ) -> Result<Self> {
        let called = now();
        let span = span::begin(access, text);
        let metrics = Arc::new(QueryMetrics::begin(&access.query_metrics, labels));
        let mut opening = Opening { metrics: Some(Arc::clone(&metrics)), called };
        let deadlines = settings.deadlines(called);
        let query = access.begin_query();
        let mut replaced = false;
        let result = loop {
            let acquired = query.unless_cancelled(deadlines.bound(access.acquire()));
            let acquired = acquired.instrument(span.clone()).await;
            let acquired = acquired.map_err(|e| access.connecting().explain(e));
            let (guard, lease, mut connection) = match acquired {
                Ok(acquired) => acquired,
                Err(e) => {
                    // Attempts to connect have been counted one by one.
                    if matches!(e, Error::ConnectionBusy)
                        || matches!(e, Error::Timeout { phase, .. } if phase != TimeoutPhase::Connect)
                    {
                        metrics::connection::error(e.category().as_str(), "query");
                    }
                    break Err(e);
                }
            };
            span::connected(&span, access);
            // A parallel query asks the server first.
            let session = query.session();
            let begin = async { Ok(request.begin(access, &mut connection, &session).await) };
            let begun = query.unless_cancelled(deadlines.bound(begin));
            let begun = begun.instrument(span.clone()).await;
            drop(session);
            let begun = begun.map_err(|e| access.connecting().explain(e));
            let work = match begun.unwrap_or_else(|e| Err(e.into())) {
                Ok(work) => work,
                Err(BeginError { error, .. })
                    if connection.reused && error.ends_session() && !replaced =>
                {
                    connection.lost_idle();
                    replaced = true;
                    continue;
                }
                Err(BeginError { error, is_counted }) => {
                    if !is_counted {
                        metrics::connection::error(error.category().as_str(), "query");
                    }
                    if matches!(error, Error::Cancelled) {
                        connection.stop().await;
                    }
                    if connection.is_answered() && end_transaction(&mut connection).await.is_ok() {
                        lease.give_back(connection);
                    }
                    break Err(error);
                }
            };
            let readers = work.readers();
            let metrics = Arc::clone(&metrics);
            let channel =
                Channel::new(readers, &settings, Some(guard), metrics, called, span.clone());
            // From here on, whatever happens to this future or the stream, the tasks are told.
            let mut consumer = Self::new(Arc::new(channel), called, span.clone());
            let owned = (connection, lease);
            work.spawn(owned, &consumer.channel, settings, deadlines, &query);
            match consumer.channel.started().await {
                Ok(()) => {
                    consumer.started = true;
                    break Ok(consumer);
                }
                Err(e) if e.stale && !replaced => replaced = true,
                Err(e) => {
                    crate::metrics::connection::error(e.error.category().as_str(), "query");
                    break Err(e.error);
                }
            }
        };
        // From here on it ends with the stream, or has ended with this error.
        opening.metrics = None;
        match &result {
            Ok(_) => {
                metrics.started(now().saturating_duration_since(called));
                metrics.chunk_size(settings.chunk_size().next());
            }
            Err(e) => {
                span::failed(&span, e);
                metrics.over(outcome(e), now().saturating_duration_since(called), 0, 0);
            }
        }
        result
    }

    fn new(channel: Arc<Channel>, called: Instant, span: Span) -> Self {
        Self {
            channel,
            called,
            span,
            started: false,
            ended: false,
            deserialized: 0,
            chunk_since: None,
            flushed: Flushed::default(),
        }
    }

    /// A chunk has been taken out of the channel.
    pub(super) fn chunk_taken(&mut self) {
        self.chunk_since = Some(now());
    }

    /// The rows of the present chunk are done with: tells metrics what became of them.
    pub(super) fn chunk_done(&mut self) {
        let Some(since) = self.chunk_since.take() else { return };
        let metrics = &self.channel.metrics;
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

    /// Times the reading of one row, which stands for a chunk of `rows`. `read` calls what it is given
    /// behind the predicates on documents; `filters`: there are some.
    #[cold]
    pub(super) fn timed<R>(
        &self,
        rows: usize,
        filters: bool,
        read: impl FnOnce(&mut dyn FnMut()) -> R,
    ) -> R {
        let began = now();
        let mut judged = began;
        let row = read(&mut || judged = now());
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        self.channel.metrics.decoded((now() - judged).saturating_mul(rows));
        if filters {
            self.channel.metrics.filtered((judged - began).saturating_mul(rows));
        }
        row
    }

    /// A row does not decode, or predicates cannot be asked about it.
    pub(super) fn row_failed(&self, error: &Error) {
        self.channel.consumed.failed.add(1);
        self.channel.metrics.row_failed(row_failure(error));
    }

    /// An error has come out of the channel, which is the end.
    pub(super) fn fail(&mut self, error: &Error) {
        // Who cancels a query has not met with an error.
        if !matches!(error, Error::Cancelled) {
            metrics::connection::error(error.category().as_str(), "stream");
            span::failed(&self.span, error);
        }
        self.end(outcome(error));
    }

    /// Ends the stream, which has no rows in its hands any more; the first end counts.
    pub(super) fn end(&mut self, how: Outcome) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.chunk_done();
        let (rows, bytes) = self.channel.in_hand();
        let state = match how {
            Outcome::Success => StreamState::Completed,
            Outcome::Failed { .. } => StreamState::Failed,
            Outcome::Dropped | Outcome::Cancelled => StreamState::Cancelled,
        };
        let is_first = self.channel.end(state, true);
        let span = std::mem::replace(&mut self.span, Span::none());
        if self.started {
            let metrics = &self.channel.metrics;
            metrics.taken(rows, bytes);
            metrics.discarded(rows);
            metrics.stopped();
            let stats = self.channel.stats();
            span::ended(&span, stats.total_rows_yielded);
            let elapsed = now().saturating_duration_since(self.called);
            // A handle that ended it before did so by cancelling.
            let how = if is_first { how } else { Outcome::Cancelled };
            metrics.over(how, elapsed, stats.total_rows_received, stats.total_bytes_received);
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.end(Outcome::Dropped);
    }
}

/// A query that has no stream yet. Dropped then, it is over.
struct Opening {
    metrics: Option<Arc<QueryMetrics>>,
    called: Instant,
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics.take() {
            metrics.over(Outcome::Dropped, now().saturating_duration_since(self.called), 0, 0);
        }
    }
}

fn outcome(error: &Error) -> Outcome {
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

/// Why a row failed, as a label.
fn row_failure(error: &Error) -> &'static str {
    match error {
        Error::JsonDecode { source, .. } => match source.downcast_ref::<serde_json::Error>() {
            Some(e) if e.is_eof() => "eof",
            Some(_) => "syntax",
            None if source.is::<Beyond>() => "syntax",
            None => "utf8",
        },
        _ => "data",
    }
}
