use std::time::{Duration, Instant};

/// The time that a reader was blocked on the consumer and on the server.
#[derive(Debug, Default)]
pub(in crate::stream_impl) struct BlockedTime {
    consumer: Duration,
    server: Duration,
    /// The sum of what [`since_last`](Self::since_last) has returned.
    reported: (Duration, Duration),
    present: Option<(BlockedOn, Instant)>,
}

/// What the reader was blocked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stream_impl) enum BlockedOn {
    Consumer,
    Server,
}

impl BlockedTime {
    /// Starts to wait. Has no effect during the same wait.
    pub(in crate::stream_impl) fn begin(&mut self, on: BlockedOn, now: Instant) {
        if self.present.is_none_or(|(present, _)| present != on) {
            self.end(now);
            self.present = Some((on, now));
        }
    }

    pub(in crate::stream_impl) fn end(&mut self, now: Instant) {
        match self.present.take() {
            Some((BlockedOn::Consumer, since)) => {
                self.consumer += now.saturating_duration_since(since)
            }
            Some((BlockedOn::Server, since)) => self.server += now.saturating_duration_since(since),
            None => {}
        }
    }

    /// Since when it is blocked on this side, if it is.
    pub(in crate::stream_impl) fn since(&self, on: BlockedOn) -> Option<Instant> {
        self.present.filter(|(present, _)| *present == on).map(|(_, since)| since)
    }

    /// Returns the time blocked on the consumer and on the server since the last call, without the
    /// current wait.
    pub(in crate::stream_impl) fn since_last(&mut self) -> (Duration, Duration) {
        let blocked = (self.consumer, self.server);
        let earlier = std::mem::replace(&mut self.reported, blocked);
        (blocked.0.saturating_sub(earlier.0), blocked.1.saturating_sub(earlier.1))
    }

    /// Returns the total time blocked on one of them, including the current wait.
    pub(in crate::stream_impl) fn total(&self, on: BlockedOn, now: Instant) -> Duration {
        let earlier = match on {
            BlockedOn::Consumer => self.consumer,
            BlockedOn::Server => self.server,
        };
        let present = self.present.filter(|(present, _)| *present == on);
        earlier + present.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_time_is_counted_separately_for_server_and_consumer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let total = |blocked: &BlockedTime, seconds| {
            [BlockedOn::Consumer, BlockedOn::Server]
                .map(|on| blocked.total(on, at(seconds)).as_secs())
        };
        let mut blocked = BlockedTime::default();
        blocked.end(at(1));
        blocked.begin(BlockedOn::Server, at(1));
        blocked.begin(BlockedOn::Server, at(2));
        assert_eq!(total(&blocked, 4), [0, 3]);
        blocked.begin(BlockedOn::Consumer, at(5));
        assert_eq!(total(&blocked, 7), [2, 4]);
        assert_eq!(blocked.since_last(), (Duration::ZERO, Duration::from_secs(4)));
        blocked.end(at(8));
        assert_eq!(total(&blocked, 99), [3, 4]);
        assert_eq!(blocked.since_last(), (Duration::from_secs(3), Duration::ZERO));
    }
}
