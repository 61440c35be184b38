use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Whether the stream is paused, why, for how long it has been, and until when at most.
#[derive(Debug, Default)]
pub(in crate::stream) struct PauseState {
    paused_since: Option<Instant>,
    reason: Option<Arc<str>>,
    /// How long a pause may last.
    timeout: Option<Duration>,
    earlier: Duration,
    pauses: u64,
    /// A task watches its time.
    is_watched: bool,
}

impl PauseState {
    /// Pauses, and returns whether it was running. In a second pause only a reason counts, which
    /// replaces the first one's.
    pub(in crate::stream) fn pause(&mut self, reason: Option<Arc<str>>, now: Instant) -> bool {
        self.reason = reason.or_else(|| self.reason.take());
        if self.paused_since.is_some() {
            return false;
        }
        self.paused_since = Some(now);
        self.pauses += 1;
        true
    }

    /// Returns whether a task must begin to watch the time of pauses.
    pub(in crate::stream) fn watch(&mut self) -> bool {
        !std::mem::replace(&mut self.is_watched, true)
    }

    /// The task that watches has ended.
    pub(in crate::stream) fn unwatch(&mut self) {
        self.is_watched = false;
    }

    /// Resumes, and returns for how long the pause was; without one nothing changes.
    pub(in crate::stream) fn resume(&mut self, now: Instant) -> Option<Duration> {
        let lasted = now.saturating_duration_since(self.paused_since.take()?);
        self.earlier += lasted;
        self.reason = None;
        Some(lasted)
    }

    /// Bounds every pause, the present one included; `None` bounds none.
    pub(in crate::stream) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    pub(in crate::stream) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(in crate::stream) fn paused_since(&self) -> Option<Instant> {
        self.paused_since
    }

    pub(in crate::stream) fn is_paused(&self) -> bool {
        self.paused_since.is_some()
    }

    /// Why it is paused, if that was said.
    pub(in crate::stream) fn reason(&self) -> Option<Arc<str>> {
        self.reason.clone()
    }

    /// How often it was paused.
    pub(in crate::stream) fn pauses(&self) -> u64 {
        self.pauses
    }

    /// For how long it was paused in all, the present pause included.
    pub(in crate::stream) fn paused_for(&self, now: Instant) -> Duration {
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
        let mut pause = PauseState::default();
        assert_eq!(pause.resume(at(0)), None);
        assert!(!pause.is_paused());
        assert!(pause.pause(None, at(1)));
        assert!(!pause.pause(None, at(2)));
        assert!(pause.is_paused());
        assert_eq!((pause.pauses(), pause.paused_for(at(4))), (1, Duration::from_secs(3)));
        assert_eq!(pause.resume(at(5)), Some(Duration::from_secs(4)));
        pause.resume(at(9));
        pause.pause(None, at(10));
        assert_eq!((pause.pauses(), pause.paused_for(at(11))), (2, Duration::from_secs(5)));
    }

    /// From when on it counts is what a watcher of pauses goes by.
    #[test]
    fn a_bound_holds_for_the_pause_that_is_going_on() {
        let start = Instant::now();
        let mut pause = PauseState::default();
        pause.pause(None, start);
        pause.pause(None, start + Duration::from_secs(1));
        pause.set_timeout(Some(Duration::from_secs(5)));
        assert_eq!(pause.paused_since(), Some(start));
        assert_eq!(pause.timeout(), Some(Duration::from_secs(5)));
        pause.resume(start);
        assert_eq!(pause.paused_since(), None);
    }

    #[test]
    fn the_last_reason_counts_until_the_pause_ends() {
        let now = Instant::now();
        let mut pause = PauseState::default();
        pause.pause(Some("a".into()), now);
        pause.pause(None, now);
        assert_eq!(pause.reason().as_deref(), Some("a"));
        pause.pause(Some("b".into()), now);
        assert_eq!(pause.reason().as_deref(), Some("b"));
        pause.resume(now);
        pause.pause(None, now);
        assert_eq!(pause.reason(), None);
    }
}
