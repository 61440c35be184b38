//! A fetch that has the connection for itself: it is read in the caller's future, until another
//! fetch needs the connection.

use std::{
    future::{Future, ready},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    entry::Entry,
    parked::{Run, Unparked},
    queue::Pipeline,
    tasks::run_in_task,
};
use crate::{
    error::Result,
    stream_impl::{consumer::Consumer, open::Outcome},
};

/// A fetch that has the connection for itself.
pub(super) struct Alone<'a> {
    pipeline: &'a Arc<Pipeline>,
    state: AloneState,
}

enum AloneState {
    Running(Run),
    /// Between polls, where another fetch can take it over.
    Parked(u64),
    /// A task runs it.
    TakenOver(Arc<Entry>),
    Done,
}

impl<'a> Alone<'a> {
    pub(super) fn new(pipeline: &'a Arc<Pipeline>, run: Run) -> Self {
        Self { pipeline, state: AloneState::Running(run) }
    }

    fn unpark(&mut self) -> AloneState {
        match mem::replace(&mut self.state, AloneState::Done) {
            AloneState::Parked(number) => {
                // A statement of its own, so that the waker is dropped without the lock.
                let unparked = self.pipeline.lock().parked.unpark(number);
                match unparked {
                    Some(Unparked::Run(run, caller)) => {
                        drop(caller);
                        AloneState::Running(run)
                    }
                    Some(Unparked::TakenOver(entry)) => AloneState::TakenOver(entry),
                    None => AloneState::Done,
                }
            }
            state => state,
        }
    }
}

impl Future for Alone<'_> {
    type Output = Result<Consumer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Consumer>> {
        let entry = match self.unpark() {
            AloneState::Running(mut run) => {
                let run: Run = match run.as_mut().poll(cx) {
                    Poll::Ready(Ok(Outcome::Open(channel))) => {
                        return Poll::Ready(Ok(Consumer::new(channel)));
                    }
                    Poll::Ready(interrupted @ Ok(_)) => Box::pin(ready(interrupted)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => match self.pipeline.park(run, cx.waker().clone()) {
                        Ok(number) => {
                            self.state = AloneState::Parked(number);
                            return Poll::Pending;
                        }
                        Err(run) => run,
                    },
                };
                let entry = Arc::new(Entry::taken_over(cx.waker().clone()));
                run_in_task(self.pipeline, run, Arc::clone(&entry));
                entry
            }
            AloneState::TakenOver(entry) => entry,
            AloneState::Parked(_) | AloneState::Done => return Poll::Pending,
        };
        let answer = entry.poll(cx);
        if answer.is_pending() {
            self.state = AloneState::TakenOver(entry);
        }
        answer
    }
}

/// Cancels the query.
impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // Dropped after the lock is released.
        let state = self.unpark();
        if let AloneState::TakenOver(entry) = state {
            entry.abandon(None);
        }
    }
}
