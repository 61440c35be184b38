use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The pause of a stream: whether it is paused, since when, why, and its timeout.
#[derive(Debug, Default)]
pub(in crate::stream_impl) struct PauseState {
    paused_since: Option<Instant>,
    reason: Option<Arc<str>>,
    /// The maximum duration of a pause.
    timeout: Option<Duration>,
    earlier: Duration,
    pauses: u64,
    /// Whether a task watches the duration of pauses.
    is_watched: bool,
}

impl PauseState {
    /// Pauses. Returns whether the stream was running. If it is paused already, only replaces the
    /// reason.
    pub(in crate::stream_impl) fn pause(&mut self, reason: Option<Arc<str>>, now: Instant) -> bool {
        self.reason = reason.or_else(|| self.reason.take());
        if self.paused_since.is_some() {
            return false;
        }
        self.paused_since = Some(now);
        self.pauses += 1;
        true
    }

    /// Returns whether a task must be started that watches the duration of pauses.
    pub(in crate::stream_impl) fn watch(&mut self) -> bool {
        !std::mem::replace(&mut self.is_watched, true)
    }

    /// Records that the task has ended.
    pub(in crate::stream_impl) fn unwatch(&mut self) {
        self.is_watched = false;
    }

    /// Resumes. Returns the duration of the pause, or `None` if there was none.
    pub(in crate::stream_impl) fn resume(&mut self, now: Instant) -> Option<Duration> {
        let lasted = now.saturating_duration_since(self.paused_since.take()?);
        self.earlier += lasted;
        self.reason = None;
        Some(lasted)
    }

    /// Sets the maximum duration of each pause, including the current one. `None` removes it.
    pub(in crate::stream_impl) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    pub(in crate::stream_impl) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(in crate::stream_impl) fn paused_since(&self) -> Option<Instant> {
        self.paused_since
    }

    pub(in crate::stream_impl) fn is_paused(&self) -> bool {
        self.paused_since.is_some()
    }

    /// Returns the reason of the current pause, if one was given.
    pub(in crate::stream_impl) fn reason(&self) -> Option<Arc<str>> {
        self.reason.clone()
    }

    /// Returns the number of pauses.
    pub(in crate::stream_impl) fn pauses(&self) -> u64 {
        self.pauses
    }

    /// Returns the total duration of all pauses, including the current one.
    pub(in crate::stream_impl) fn paused_for(&self, now: Instant) -> Duration {
        let present = self.paused_since.map(|since| now.saturating_duration_since(since));
        self.earlier + present.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_pauses_are_counted_once() {
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

    /// The task that watches pauses uses the start of the pause.
    #[test]
    fn pause_timeout_applies_to_the_current_pause() {
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
    fn last_pause_reason_is_kept_until_the_pause_ends() {
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
