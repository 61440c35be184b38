use std::time::{Duration, Instant};

/// Whether the stream is paused, and for how long it has been.
#[derive(Debug, Default)]
pub(super) struct Gate {
    paused_since: Option<Instant>,
    earlier: Duration,
    pauses: u64,
}

impl Gate {
    /// Pauses; a second pause changes nothing.
    pub(super) fn pause(&mut self, now: Instant) {
        if self.paused_since.is_none() {
            self.paused_since = Some(now);
            self.pauses += 1;
        }
    }

    /// Resumes; without a pause nothing changes.
    pub(super) fn resume(&mut self, now: Instant) {
        if let Some(since) = self.paused_since.take() {
            self.earlier += now.saturating_duration_since(since);
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused_since.is_some()
    }

    /// How often it was paused.
    pub(super) fn pauses(&self) -> u64 {
        self.pauses
    }

    /// For how long it was paused in all, the present pause included.
    pub(super) fn paused_for(&self, now: Instant) -> Duration {
        let present = self.paused_since.map(|since| now.saturating_duration_since(since));
        self.earlier + present.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_add_up_and_repeats_do_not_count() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut gate = Gate::default();
        gate.resume(at(0));
        assert!(!gate.is_paused());
        gate.pause(at(1));
        gate.pause(at(2));
        assert!(gate.is_paused());
        assert_eq!((gate.pauses(), gate.paused_for(at(4))), (1, Duration::from_secs(3)));
        gate.resume(at(5));
        gate.resume(at(9));
        gate.pause(at(10));
        assert_eq!((gate.pauses(), gate.paused_for(at(11))), (2, Duration::from_secs(5)));
    }
}
