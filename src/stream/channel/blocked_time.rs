use std::time::{Duration, Instant};

/// The time that a reader was blocked on the consumer and on the server.
#[derive(Debug, Default)]
pub(in crate::stream) struct Waits {
    consumer: Duration,
    server: Duration,
    /// The sum of what [`since_last`](Self::since_last) has returned.
    reported: (Duration, Duration),
    present: Option<(On, Instant)>,
}

/// Whom the reader waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::stream) enum On {
    Consumer,
    Server,
}

impl Waits {
    /// Begins to wait; while the same wait goes on, nothing changes.
    pub(in crate::stream) fn begin(&mut self, on: On, now: Instant) {
        if self.present.is_none_or(|(present, _)| present != on) {
            self.end(now);
            self.present = Some((on, now));
        }
    }

    pub(in crate::stream) fn end(&mut self, now: Instant) {
        match self.present.take() {
            Some((On::Consumer, since)) => self.consumer += now.saturating_duration_since(since),
            Some((On::Server, since)) => self.server += now.saturating_duration_since(since),
            None => {}
        }
    }

    /// Returns the time blocked on the consumer and on the server since the last call, without the
    /// current wait.
    pub(in crate::stream) fn since_last(&mut self) -> (Duration, Duration) {
        let waits = (self.consumer, self.server);
        let earlier = std::mem::replace(&mut self.reported, waits);
        (waits.0.saturating_sub(earlier.0), waits.1.saturating_sub(earlier.1))
    }

    /// For how long in all it waited for one of them, the present wait included.
    pub(in crate::stream) fn total(&self, on: On, now: Instant) -> Duration {
        let earlier = match on {
            On::Consumer => self.consumer,
            On::Server => self.server,
        };
        let present = self.present.filter(|(present, _)| *present == on);
        earlier + present.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_add_up_each_on_its_own() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let total = |waits: &Waits, seconds| {
            [On::Consumer, On::Server].map(|on| waits.total(on, at(seconds)).as_secs())
        };
        let mut waits = Waits::default();
        waits.end(at(1));
        waits.begin(On::Server, at(1));
        waits.begin(On::Server, at(2));
        assert_eq!(total(&waits, 4), [0, 3]);
        waits.begin(On::Consumer, at(5));
        assert_eq!(total(&waits, 7), [2, 4]);
        assert_eq!(waits.since_last(), (Duration::ZERO, Duration::from_secs(4)));
        waits.end(at(8));
        assert_eq!(total(&waits, 99), [3, 4]);
        assert_eq!(waits.since_last(), (Duration::from_secs(3), Duration::ZERO));
    }
}
