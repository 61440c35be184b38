//! Pauses: what the stream and its handles do, and what limits their time.

use std::{
    future::pending,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use tokio::{select, time::sleep_until};
use tracing::{debug, warn};

use super::{Activity, Channel, ChannelState, RowsState, now, wake};
use crate::{
    connection::TARGET,
    error::{Error, Result},
    metrics::PauseEnd,
};

impl Channel {
    /// Pauses, and waits until no reader reads its socket.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidState`]: the stream has ended.
    pub(in crate::stream_impl) async fn pause(
        self: &Arc<Self>,
        reason: Option<&str>,
    ) -> Result<()> {
        {
            let mut state = self.lock();
            if state.closed.is_some() {
                return Err(Error::InvalidState { message: "pause() on a stream that has ended" });
            }
            let now = now();
            if state.pause.pause(reason.map(Into::into), now) {
                state.all_unblocked(now);
                let watch = state.pause.watch();
                drop(state);
                if let Some(runtime) = self.runtime.as_ref().filter(|_| watch) {
                    runtime.spawn(watch_pauses(Arc::clone(self)));
                }
                let span = self.observer.span();
                span.in_scope(|| debug!(target: TARGET, reason, "paused a stream"));
                self.observer.metrics.paused(reason);
                self.watchers.notify_waiters();
            }
        }
        let mut has_woken = false;
        loop {
            let stopped = self.watchers.notified();
            {
                let state = self.lock();
                let is_reading = |r: &super::ReaderState| r.activity == Activity::Reading;
                // If it was resumed meanwhile, or has ended, there is nothing to wait for.
                let is_paused = state.pause.is_paused() && !state.is_over();
                if !is_paused || !state.readers.iter().any(is_reading) {
                    return Ok(());
                }
            }
            // Once: a reader that has stopped notifies the watchers each time it is woken, so they
            // would wake each other until the last reader has stopped.
            if !std::mem::replace(&mut has_woken, true) {
                self.wake_all_readers();
            }
            stopped.await;
        }
    }

    /// Resumes. Has no effect after the end: a task that only resumes a stream cannot know that it
    /// has ended.
    pub(in crate::stream_impl) fn resume(&self) {
        self.end_pause(self.lock(), PauseEnd::Resume);
    }

    /// Resumes because the pause that began at `since` has lasted too long.
    fn expire_pause(&self, since: Instant) {
        let state = self.lock();
        if state.pause.paused_since() == Some(since) {
            self.end_pause(state, PauseEnd::Timeout);
        }
    }

    fn end_pause(&self, mut state: MutexGuard<'_, ChannelState>, cause: PauseEnd) {
        let Some(lasted) = state.pause.resume(now()) else { return };
        // The end of the rows is not reported during a pause.
        let waker = state.consumer.take();
        drop(state);
        let span = self.observer.span();
        span.in_scope(
            || debug!(target: TARGET, cause = cause.as_str(), ?lasted, "resumed a stream"),
        );
        self.observer.metrics.resumed(Some(cause), lasted);
        self.wake_all_readers();
        self.watchers.notify_waiters();
        wake(waker);
    }

    pub(in crate::stream_impl) fn set_pause_timeout(&self, timeout: Option<Duration>) {
        self.lock().pause.set_timeout(timeout);
        self.watchers.notify_waiters();
    }

    /// Waits for the end of a pause. If the first row is still missing and can come, returns the
    /// total time of all pauses.
    pub(in crate::stream_impl) async fn first_row_missing(&self) -> Option<Duration> {
        loop {
            let changed = self.watchers.notified();
            {
                let state = self.lock();
                let is_open = matches!(state.rows, RowsState::Open) && state.closed.is_none();
                if !is_open || state.received.first_row.is_some() {
                    return None;
                }
                if !state.pause.is_paused() {
                    return Some(state.pause.paused_for(now()));
                }
            }
            changed.await;
        }
    }
}

/// Ends a pause that exceeds its timeout, and warns of one that exceeds the server's
/// `statement_timeout`. Returns when the stream is not paused.
async fn watch_pauses(channel: Arc<Channel>) {
    // The pause that the warning was for.
    let mut warned = None;
    loop {
        let changed = channel.watchers.notified();
        let (since, timeout) = {
            let mut state = channel.lock();
            match state.pause.paused_since() {
                Some(since) if state.closed.is_none() => (since, state.pause.timeout()),
                _ => return state.pause.unwatch(),
            }
        };
        let after = |time: Option<Duration>| async move {
            match time.and_then(|time| since.checked_add(time)) {
                Some(at) => sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        let statement_timeout = channel.statement_timeout;
        select! {
            biased;
            () = changed => {}
            () = after(timeout) => channel.expire_pause(since),
            () = after(statement_timeout.filter(|_| warned != Some(since))) => {
                warned = Some(since);
                channel.observer.span().in_scope(|| {
                    warn!(
                        target: TARGET,
                        ?statement_timeout,
                        "a stream has been paused for longer than the server's statement_timeout, \
                         which is not suspended by the pause: the query may fail when it is resumed"
                    );
                });
            }
        }
    }
}
