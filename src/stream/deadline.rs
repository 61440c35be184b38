//! The deadlines of a query and of its first row.

use std::{
    future::{Future, pending},
    time::{Duration, Instant},
};

use tokio::{select, task::unconstrained, time::sleep_until};

use super::{channel::Channel, settings::StreamSettings};
use crate::error::{Error, TimeoutPhase};

/// The deadlines of a query.
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
    /// Computes the deadlines. A timeout beyond the range of the clock is no deadline.
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

    /// Runs `step`, before which no row can arrive, and fails when a deadline expires.
    pub(super) async fn bound<T, E: From<Error>>(
        &self,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if self.query.is_none() && self.first_row.is_none() {
            return step.await;
        }
        select! {
            biased;
            done = step => done,
            error = expired(self.query, Duration::ZERO) => Err(error.into()),
            error = expired(self.first_row, Duration::ZERO) => Err(error.into()),
        }
    }

    /// Resolves when a deadline expires. Pauses do not count towards the deadline of the first row,
    /// because it cannot arrive then.
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
            // If both expire at the same time, always report the same one.
            biased;
            error = expired(self.query, Duration::ZERO) => error,
            error = first_row => error,
        }
    }
}

async fn expired(deadline: Option<Deadline>, later: Duration) -> Error {
    let Some(Deadline { at, phase, after }) = deadline else { return pending().await };
    match at.checked_add(later) {
        // Unconstrained: the timer must fire even if a reader that always finds data has used up
        // the budget of its task. Boxed: most queries have no deadline, but would move the timer.
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
        stream_impl::observer::{QueryObserver, now},
    };

    #[tokio::test(start_paused = true)]
    async fn simultaneous_deadlines_report_that_of_the_query() {
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
