//! A fetch that has the connection for itself: it is read in the caller's future, until another
//! fetch needs the connection.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    entry::Entry,
    parked::{Run, Unparked, take_over},
    queue::Pipeline,
};
use crate::{error::Result, stream::consumer::Consumer};

/// A fetch that has the connection for itself.
pub(super) struct Alone<'a> {
    pipeline: &'a Pipeline,
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
    pub(super) fn new(pipeline: &'a Pipeline, run: Run) -> Self {
        Self { pipeline, state: AloneState::Running(run) }
    }

    fn unpark(&mut self) -> AloneState {
        match mem::replace(&mut self.state, AloneState::Done) {
            AloneState::Parked(number) => match self.pipeline.lock().parked.unpark(number) {
                Some(Unparked::Run(run)) => AloneState::Running(run),
                Some(Unparked::TakenOver(entry)) => AloneState::TakenOver(entry),
                None => AloneState::Done,
            },
            state => state,
        }
    }
}

impl Future for Alone<'_> {
    type Output = Result<Consumer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Consumer>> {
        let entry = match self.unpark() {
            AloneState::Running(mut run) => match run.as_mut().poll(cx) {
                Poll::Ready(opened) => return Poll::Ready(opened),
                Poll::Pending => {
                    let mut state = self.pipeline.lock();
                    if !state.has_driver {
                        let number = state.parked.park(run, cx.waker().clone());
                        drop(state);
                        self.state = AloneState::Parked(number);
                        return Poll::Pending;
                    }
                    drop(state);
                    take_over(run, cx.waker().clone())
                }
            },
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
            entry.abandon();
        }
    }
}
