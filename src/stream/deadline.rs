//! The deadlines of a query: for the whole of it, and for its first row.

use std::{
    future::{Future, pending},
    time::{Duration, Instant},
};

use tokio::{select, task::unconstrained, time::sleep_until};

use super::{channel::Channel, settings::StreamSettings};
use crate::error::{Error, TimeoutPhase};

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
    /// A time that no clock reaches is no deadline.
    pub(super) fn new(started_at: Instant, settings: &StreamSettings) -> Self {
        let deadline = |after: Option<Duration>, phase| {
            let after = after?;
            Some(Deadline { at: started_at.checked_add(after)?, phase, after })
        };
        Self {
            query: deadline(settings.timeout, TimeoutPhase::Query),
            first_row: deadline(settings.first_row_timeout, TimeoutPhase::FirstRow),
        }
    }

    /// Runs the step up to which there can be no row.
    pub(super) async fn bound<T, E: From<Error>>(
        &self,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        select! {
            biased;
            done = step => done,
            error = expired(self.query, Duration::ZERO) => Err(error.into()),
            error = expired(self.first_row, Duration::ZERO) => Err(error.into()),
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
        // On the heap: most queries have no deadline, and each would move its timer.
        Some(at) => Box::pin(unconstrained(sleep_until(at.into()))).await,
        None => pending().await,
    }
    Error::Timeout { phase, after }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::Span;

    use super::*;
    use crate::{
        metrics::{QueryLabels, QueryMetrics, QueryMetricsCache},
        stream::observer::{QueryObserver, now},
    };

    #[tokio::test(start_paused = true)]
    async fn of_two_deadlines_at_once_that_of_the_query_counts() {
        let second = Some(Duration::from_secs(1));
        let settings =
            StreamSettings { timeout: second, first_row_timeout: second, ..Default::default() };
        for _ in 0..32 {
            let metrics =
                QueryMetrics::begin(&QueryMetricsCache::default(), QueryLabels::default());
            let observer = QueryObserver::new(metrics, Span::none(), now());
            let channel = Arc::new(Channel::new(1, &settings, None, observer));
            let error = Deadlines::new(now(), &settings).expired(&channel).await;
            assert!(
                matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }),
                "{error:?}"
            );
        }
    }
}
