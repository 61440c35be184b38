//! What ends by time: the whole query, the wait for its first row, and pauses.

use std::{
    future::{Future, pending},
    time::{Duration, Instant},
};

use tokio::{select, task::unconstrained, time::sleep_until};
use tracing::warn;

use super::channel::{Channel, PauseWatch};
use crate::{
    connection::TARGET,
    error::{Error, TimeoutPhase},
};

/// When the query, and its first row, must be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    query: Option<Deadline>,
    first_row: Option<Deadline>,
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    phase: TimeoutPhase,
    after: Duration,
}

impl Deadlines {
    /// `called` is when the query was executed; a time that no clock reaches is none.
    pub(super) fn new(
        called: Instant,
        query: Option<Duration>,
        first_row: Option<Duration>,
    ) -> Self {
        let deadline = |after: Option<Duration>, phase| {
            let after = after?;
            Some(Deadline { at: called.checked_add(after)?, phase, after })
        };
        Self {
            query: deadline(query, TimeoutPhase::Query),
            first_row: deadline(first_row, TimeoutPhase::FirstRow),
        }
    }

    /// Runs what must be done before there can be a row.
    pub(super) async fn bound<T>(
        &self,
        step: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        select! {
            biased;
            done = step => done,
            error = expired(self.query, Duration::ZERO) => Err(error),
            error = expired(self.first_row, Duration::ZERO) => Err(error),
        }
    }

    /// Resolves when time is up. The time of a pause does not count for the first row: it cannot
    /// come then.
    pub(super) async fn expired(&self, channel: &Channel) -> Error {
        let first_row = async {
            let mut paused = Duration::ZERO;
            loop {
                let error = expired(self.first_row, paused).await;
                match channel.first_row_missing().await {
                    Some(now) if now == paused => return error,
                    Some(now) => paused = now,
                    None => pending().await,
                }
            }
        };
        select! {
            // Of two that pass at once, the same one is named every time.
            biased;
            error = expired(self.query, Duration::ZERO) => error,
            error = first_row => error,
        }
    }
}

async fn expired(deadline: Option<Deadline>, later: Duration) -> Error {
    let Some(Deadline { at, phase, after }) = deadline else { return pending().await };
    match at.checked_add(later) {
        // A reader that always finds bytes uses up its task's budget; the timer must fire
        // nevertheless.
        Some(at) => unconstrained(sleep_until(at.into())).await,
        None => pending().await,
    }
    Error::Timeout { phase, after }
}

/// Ends pauses that last too long, and warns of those that outlast the server's `statement_timeout`.
/// Returns when the stream has ended.
pub(super) async fn watch_pauses(channel: &Channel, statement_timeout: Option<Duration>) {
    // The pause that was warned of.
    let mut warned = None;
    loop {
        let changed = channel.changed_for_watchers();
        let (since, timeout) = match channel.pause_watch() {
            PauseWatch::Ended => return,
            PauseWatch::Running => {
                changed.await;
                continue;
            }
            PauseWatch::Paused { since, timeout } => (since, timeout),
        };
        let after = |time: Option<Duration>| async move {
            match time.and_then(|time| since.checked_add(time)) {
                Some(at) => sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        select! {
            biased;
            () = changed => {}
            () = after(timeout) => channel.resume_late(since),
            () = after(statement_timeout.filter(|_| warned != Some(since))) => {
                warned = Some(since);
                channel.span().in_scope(|| {
                    warn!(
                        target: TARGET,
                        ?statement_timeout,
                        "a stream has been paused for longer than the server's statement_timeout, which \
                         goes on meanwhile: the query may fail when it is resumed"
                    );
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::Span;

    use super::*;
    use crate::{
        metrics::{QueryLabels, QueryMetrics, QueryMetricsCache},
        stream::{channel::now, settings::StreamSettings},
    };

    #[tokio::test(start_paused = true)]
    async fn of_two_deadlines_at_once_that_of_the_query_counts() {
        let (settings, second) = (StreamSettings::default(), Some(Duration::from_secs(1)));
        for _ in 0..32 {
            let metrics = Arc::new(QueryMetrics::begin(
                &QueryMetricsCache::default(),
                QueryLabels::default(),
            ));
            let channel = Channel::new(1, &settings, None, metrics, now(), Span::none());
            let error = Deadlines::new(now(), second, second).expired(&channel).await;
            assert!(
                matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }),
                "{error:?}"
            );
        }
    }
}
