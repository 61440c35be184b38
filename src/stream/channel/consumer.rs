//! The stream's side of the channel.

use std::{
    mem,
    task::{Context, Poll},
    time::Instant,
};

use super::{BlockedOn, Channel, Closed, ClosedBy, Delivery, Phase, RowsState, Volume, now, wake};
use crate::{
    error::{Error, Result},
    stream_impl::stats::{StreamState, StreamStats},
};

impl Channel {
    /// Returns the next chunk, the error that ends the rows, or their end.
    pub(in crate::stream_impl) fn poll_chunk(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Delivery>>> {
        // Cloned and dropped without the lock: an executor's waker may own a task, whose drop can
        // run arbitrary code.
        let mut waker = None;
        loop {
            let mut state = self.lock();
            if state.closed.is_some() {
                return Poll::Ready(Some(Err(Error::Cancelled)));
            }
            if let Some(delivery) = state.queue.pop_front() {
                state.dequeued.add(delivery.volume());
                self.room(state);
                return Poll::Ready(Some(Ok(delivery)));
            }
            if !state.pause.is_paused() {
                match &mut state.rows {
                    RowsState::Open => {}
                    RowsState::Complete => return Poll::Ready(None),
                    RowsState::Failed(error) => return Poll::Ready(error.take().map(Err)),
                }
            }
            if state.consumer.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            if waker.is_some() {
                let earlier = mem::replace(&mut state.consumer, waker);
                drop(state);
                drop(earlier);
                return Poll::Pending;
            }
            drop(state);
            waker = Some(cx.waker().clone());
        }
    }

    /// Ends the rows of a query without readers with an error.
    pub(in crate::stream_impl) fn fail(&self, error: Error) {
        self.lock().rows = RowsState::Failed(Some(error));
    }

    /// Closes the stream at `at`: if the query still runs, it is cancelled, and its connection is
    /// cleaned up.
    ///
    /// Returns whether this is the first call, which decides the state.
    pub(in crate::stream_impl) fn close(
        &self,
        how: StreamState,
        at: Instant,
        by: ClosedBy,
    ) -> bool {
        let (queue, guard, waker, pause, is_first) = {
            let mut state = self.lock();
            let state = &mut *state;
            let mut pause = None;
            let is_first = state.closed.is_none();
            match &mut state.closed {
                Some(closed) if by == ClosedBy::Consumer => closed.by = by,
                Some(_) => {}
                None => {
                    state.closed = Some(Closed { state: how, at, by });
                    pause = state.pause.resume(at);
                    state.all_unblocked(at);
                }
            }
            let (queue, guard) = (mem::take(&mut state.queue), state.guard.take());
            (queue, guard, state.consumer.take(), pause, is_first)
        };
        let mut unread = Volume::default();
        queue.iter().for_each(|delivery| unread.add(delivery.volume()));
        drop((queue, guard));
        let metrics = &self.observer.metrics;
        metrics.taken(unread.rows, unread.bytes);
        metrics.discarded(unread.rows);
        if let Some(lasted) = pause {
            metrics.resumed(None, lasted);
        }
        self.wake_all_readers();
        self.watchers.notify_waiters();
        wake(waker);
        is_first
    }

    /// Waits until every connection is released or closed.
    ///
    /// # Errors
    ///
    /// Why a connection was closed; each caller gets it.
    pub(in crate::stream_impl) async fn released(&self) -> Result<()> {
        loop {
            let changed = self.watchers.notified();
            {
                let state = self.lock();
                if state.readers.iter().all(|reader| reader.phase == Phase::Released) {
                    return state.cleanup_error.as_ref().map_or(Ok(()), |error| Err(error.copy()));
                }
            }
            changed.await;
        }
    }

    /// Returns the unread rows of the stream's current chunk.
    pub(in crate::stream_impl) fn delivered_but_unread(&self) -> Volume {
        let dequeued = self.lock().dequeued;
        dequeued.since(self.consumed.volume())
    }

    /// Returns the number of yielded rows, and all that was received.
    pub(in crate::stream_impl) fn totals(&self) -> (u64, Volume) {
        (self.consumed.yielded.get(), self.lock().received.volume)
    }

    pub(in crate::stream_impl) fn stats(&self) -> StreamStats {
        let consumed = &self.consumed;
        // Under the lock no chunk is dequeued, so this is at most what was received, and nothing of
        // a stream that has ended is missing. Each is read once, so that they add up.
        let state = self.lock();
        let [yielded, filtered, failed] =
            [&consumed.yielded, &consumed.filtered, &consumed.failed].map(|count| count.get());
        let consumed = Volume { rows: yielded + filtered + failed, bytes: consumed.bytes.get() };
        let now = state.closed.map_or_else(now, |closed| closed.at);
        let started_at = self.observer.started_at;
        let received = state.received;
        let running =
            if state.pause.is_paused() { StreamState::Paused } else { StreamState::Running };
        // After a cancellation by a handle, the stream may still read its current chunk.
        let readable = match state.closed {
            None => received.volume,
            Some(Closed { by: ClosedBy::Control, .. }) => state.dequeued,
            Some(Closed { by: ClosedBy::Consumer, .. }) => consumed,
        };
        let buffered = readable.since(consumed);
        let blocked = |on| state.readers.iter().map(move |r| r.blocked.total(on, now)).sum();
        let blocked_on_server: std::time::Duration = blocked(BlockedOn::Server);
        StreamStats {
            state: state.closed.map_or(running, |closed| closed.state),
            items_buffered: buffered.rows,
            bytes_buffered: usize::try_from(buffered.bytes).unwrap_or(usize::MAX),
            estimated_memory: state.memory.held(),
            peak_memory: state.memory.peak(),
            total_rows_yielded: yielded,
            total_rows_filtered: filtered,
            total_rows_failed: failed,
            total_rows_discarded: received.volume.rows - consumed.rows - buffered.rows,
            total_rows_received: received.volume.rows,
            total_bytes_received: received.volume.bytes,
            chunk_size: state.chunk_size.next(),
            chunks_received: received.chunks,
            chunk_adjustments: state.chunk_size.adjustments(),
            pauses: state.pause.pauses(),
            paused_for: state.pause.paused_for(now),
            pause_reason: state.pause.reason().map(|reason| reason.as_ref().to_owned()),
            resumptions: state.resumptions,
            time_to_first_row: received.first_row.map(|at| at - started_at),
            elapsed: now.saturating_duration_since(started_at),
            time_blocked_on_consumer: blocked(BlockedOn::Consumer),
            time_blocked_on_server: state.blocked_before + blocked_on_server,
        }
    }
}
