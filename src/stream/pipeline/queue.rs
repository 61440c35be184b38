//! The fetches of a client that share its connection.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    task::Waker,
};

use tokio::sync::Notify;

use super::{
    entry::Entry,
    parked::{Parked, Run},
    request::{Queued, Sent},
};
use crate::{
    connection::{Choice, SlotHandle},
    error::{Error, Result},
    stream_impl::teardown::{Held, give_back},
    sync::lock,
};

/// The fetches of one client that share its connection.
#[derive(Debug, Default)]
pub(crate) struct Pipeline {
    /// No code of the caller runs under this lock: wakers are cloned before it is acquired, and
    /// wakers, futures and jobs are dropped after it is released. The locks of entries and of the
    /// slot may be acquired under it, but not the reverse.
    state: Mutex<PipelineState>,
    /// Wakes the driver.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct PipelineState {
    /// Requests that are not sent, the oldest first.
    queue: VecDeque<Queued>,
    pub(super) has_driver: bool,
    /// The driver's handle, while it opens a connection.
    connecting: Option<SlotHandle>,
    /// A request that was sent before the driver started.
    adopted: Option<Sent>,
    pub(super) parked: Parked,
}

/// What a request that was added needs.
pub(super) enum Enqueued {
    /// The driver runs it.
    ToDriver,
    /// A driver must be started, and a task for the fetch that has the connection and waits for its
    /// next poll: its caller may not poll it.
    First { taken_over: Option<(Run, Arc<Entry>)> },
}

impl Pipeline {
    /// Adds a request.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionBusy`](crate::Error::ConnectionBusy), if a stream has come since the
    /// request was admitted.
    pub(super) fn enqueue(&self, slot: &SlotHandle, entry: Arc<Entry>) -> Result<Enqueued> {
        let mut state = self.lock();
        if !state.has_driver {
            slot.share_with_fetch()?;
        }
        if state.queue.len() == state.queue.capacity() {
            // Without this, requests that are dropped before they are sent would accumulate.
            state.queue.retain(|queued| queued.entry.is_wanted());
            let length = state.queue.len();
            state.queue.reserve(length.max(4));
        }
        state.queue.push_back(Queued { entry, losses: 0, is_rerun: false });
        let enqueued = state.begin_driver(slot);
        drop(state);
        self.changed.notify_one();
        Ok(enqueued)
    }

    /// Keeps a fetch until its next poll, unless others need its connection: then it is returned.
    pub(super) fn park(&self, run: Run, caller: Waker) -> Result<u64, Run> {
        let mut state = self.lock();
        if state.has_driver {
            return Err(run);
        }
        Ok(state.parked.park(run, caller))
    }

    /// Gives the driver a request that was sent before it started, and the connection. The driver
    /// may have ended meanwhile.
    pub(super) fn adopt(
        &self,
        slot: &SlotHandle,
        entry: Arc<Entry>,
        held: Held,
        choice: Choice,
    ) -> Enqueued {
        let Held { mut exchange, lease, running } = held;
        let unsent = exchange.take_unsent();
        exchange.connection.pipeline(&unsent);
        exchange.connection.followers = 1;
        let sent = Sent::adopted(entry, running, choice, &exchange);
        let enqueued = {
            let mut state = self.lock();
            state.adopted = sent;
            state.begin_driver(slot)
        };
        give_back(exchange.connection, lease);
        enqueued
    }

    pub(super) fn set_connecting(&self, slot: Option<SlotHandle>) {
        // Dropped after the lock is released.
        let _earlier = std::mem::replace(&mut self.lock().connecting, slot);
    }

    /// Returns the error to report for the deadline of a fetch that waits for the driver.
    pub(super) fn deadline_error(&self, error: Error) -> Error {
        let connecting = self.lock().connecting.clone();
        match connecting {
            Some(slot) => slot.connecting().deadline_error(error),
            None => error,
        }
    }

    pub(super) fn take_adopted(&self) -> Option<Sent> {
        self.lock().adopted.take()
    }

    /// Takes the next request that is not sent.
    pub(super) fn next(&self) -> Option<Queued> {
        self.lock().queue.pop_front()
    }

    /// Puts requests back to the front, in their order.
    pub(super) fn requeue(&self, queued: Vec<Queued>) {
        let mut state = self.lock();
        queued.into_iter().rev().for_each(|queued| state.queue.push_front(queued));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }

    /// Whether no request that is not sent is wanted.
    pub(super) fn is_unwanted(&self) -> bool {
        let state = self.lock();
        state.adopted.is_none() && !state.queue.iter().any(|queued| queued.entry.is_wanted())
    }

    pub(super) fn waiting(&self) -> Vec<Arc<Entry>> {
        self.lock().queue.iter().map(|queued| Arc::clone(&queued.entry)).collect()
    }

    /// The driver ends, unless there are further requests.
    pub(super) fn finish(&self, slot: &SlotHandle) -> bool {
        let mut state = self.lock();
        state.queue.retain(|queued| queued.entry.is_wanted());
        let is_last = state.queue.is_empty() && state.adopted.is_none();
        let unwanted = if is_last {
            state.has_driver = false;
            slot.unshare()
        } else {
            None
        };
        drop(state);
        drop(unwanted);
        is_last
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, PipelineState> {
        lock(&self.state)
    }
}

impl PipelineState {
    /// Begins to share the connection.
    pub(super) fn begin_driver(&mut self, slot: &SlotHandle) -> Enqueued {
        if self.has_driver {
            return Enqueued::ToDriver;
        }
        self.has_driver = true;
        slot.share();
        Enqueued::First { taken_over: self.parked.take_over() }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Future, pending},
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        task::{Context, Wake, Waker},
    };

    use super::*;
    use crate::{
        config::ConnectionConfig,
        connection::{FetchClaim, Slot},
        error::Error,
        stream_impl::pipeline::alone::Alone,
    };

    /// A waker whose drop uses the client, as the drop of a task that it owns can.
    struct UsesClient {
        pipeline: Arc<Pipeline>,
        was_locked: Arc<AtomicBool>,
    }

    impl Wake for UsesClient {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for UsesClient {
        fn drop(&mut self) {
            self.was_locked.store(self.pipeline.state.try_lock().is_err(), Relaxed);
        }
    }

    /// Passes such a waker to `step`. Returns whether it was dropped while the pipeline was locked.
    fn drops_waker_under_lock(step: impl FnOnce(&Arc<Pipeline>, Waker)) -> bool {
        let pipeline = Arc::new(Pipeline::default());
        let was_locked = Arc::new(AtomicBool::new(false));
        let (used, is_locked) = (Arc::clone(&pipeline), Arc::clone(&was_locked));
        step(
            &pipeline,
            Waker::from(Arc::new(UsesClient { pipeline: used, was_locked: is_locked })),
        );
        was_locked.load(Relaxed)
    }

    #[test]
    fn the_waker_of_a_parked_fetch_is_dropped_without_the_lock() {
        assert!(!drops_waker_under_lock(|pipeline, waker| {
            let mut fetch = Box::pin(Alone::new(pipeline, Box::pin(pending())));
            assert!(fetch.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            drop(fetch);
        }));
    }

    #[test]
    fn the_waker_of_an_abandoned_fetch_is_dropped_without_the_lock() {
        assert!(!drops_waker_under_lock(|pipeline, waker| {
            let config = ConnectionConfig::parse("postgres://h/d").unwrap();
            let slot = Arc::new(Slot::new(config)).handle();
            let entry = Arc::new(Entry::taken_over(waker));
            pipeline.enqueue(&slot, Arc::clone(&entry)).unwrap();
            entry.abandon(None);
            drop(entry);
            assert!(pipeline.finish(&slot));
        }));
    }

    fn entry() -> Arc<Entry> {
        Arc::new(Entry::taken_over(Waker::noop().clone()))
    }

    #[tokio::test]
    async fn a_fetch_does_not_share_the_connection_with_a_stream_that_has_overtaken_it() {
        let config = ConnectionConfig::parse("postgres://h/d").unwrap();
        let slot = Arc::new(Slot::new(config)).handle();
        let pipeline = Pipeline::default();
        let Ok(FetchClaim::Alone(first)) = slot.claim_fetch() else { panic!() };
        assert!(matches!(slot.claim_fetch(), Ok(FetchClaim::Shared)));
        drop(first);
        let stream = slot.claim_alone(|| panic!("no fetch has the connection")).await.unwrap();
        let refused = pipeline.enqueue(&slot, entry());
        assert!(matches!(refused, Err(Error::ConnectionBusy)));
        assert!(pipeline.is_empty() && !slot.is_shared());
        drop(stream);
        let enqueued = pipeline.enqueue(&slot, entry()).unwrap();
        assert!(matches!(enqueued, Enqueued::First { taken_over: None }));
    }

    #[test]
    fn requests_that_are_not_wanted_do_not_accumulate() {
        let config = ConnectionConfig::parse("postgres://h/d").unwrap();
        let slot = Arc::new(Slot::new(config)).handle();
        let pipeline = Pipeline::default();
        // An entry without a job is not wanted.
        for _ in 0..10_000 {
            pipeline.enqueue(&slot, entry()).unwrap();
        }
        assert!(pipeline.lock().queue.len() < 100);
    }
}
