use std::time::Duration;

/// The policy for reconnecting after a connection was lost.
///
/// It applies when the next query replaces the connection, and when a stream is
/// [resumed](crate::QueryBuilder::resume_by).
///
/// An attempt that fails with a [retriable](crate::Error::is_retriable) error is repeated after a
/// pause. The pause is random, between zero and a bound. The bound starts at
/// [`initial_backoff`](Self::initial_backoff) and doubles up to [`max_backoff`](Self::max_backoff).
/// The randomness keeps many clients from reconnecting at the same time.
///
/// The first connection of a client is never retried, so that a wrong configuration is reported
/// immediately. In a pool of `deadpool`, that is the first connection of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a policy does nothing until it is passed to a configuration"]
pub struct RetryPolicy {
    pub(crate) max_attempts: u32,
    pub(crate) initial_backoff: Duration,
    pub(crate) max_backoff: Duration,
}

impl RetryPolicy {
    /// Returns a policy of a single attempt.
    pub fn none() -> Self {
        Self { max_attempts: 1, ..Self::default() }
    }

    /// Sets the maximum number of attempts, at least 1. Default: 5.
    pub fn max_attempts(self, attempts: u32) -> Self {
        Self { max_attempts: attempts.max(1), ..self }
    }

    /// Sets the upper bound of the first pause. Default: 100 ms.
    pub fn initial_backoff(self, backoff: Duration) -> Self {
        Self { initial_backoff: backoff, ..self }
    }

    /// Sets the upper bound of each pause. Default: 2 s.
    pub fn max_backoff(self, backoff: Duration) -> Self {
        Self { max_backoff: backoff, ..self }
    }

    /// Returns the pause after this many failures, or `None` after the last attempt. `random` is in
    /// `0..1`.
    pub(crate) fn pause(&self, failures: u32, random: f64) -> Option<Duration> {
        if failures >= self.max_attempts {
            return None;
        }
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        let bound = self.initial_backoff.saturating_mul(doubled).min(self.max_backoff);
        Some(bound.mul_f64(random.clamp(0.0, 1.0)))
    }
}

/// Five attempts, with pauses of at most 1.5 s in total.
impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_pauses_double_up_to_max_backoff() {
        let policy = RetryPolicy::default().max_backoff(Duration::from_millis(300));
        let pauses: Vec<_> = (1..=5).map(|n| policy.pause(n, 1.0)).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(pauses, [ms(100), ms(200), ms(300), ms(300), None]);
        assert_eq!(policy.pause(1, 0.0), ms(0));
        assert_eq!(RetryPolicy::none().pause(1, 1.0), None);
        assert!(RetryPolicy::default().max_attempts(u32::MAX).pause(4_000_000_000, 1.0).is_some());
    }
}
