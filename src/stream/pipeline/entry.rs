//! A fetch whose answer is read by a task.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    thread::panicking,
};

use tokio::task::AbortHandle;

use crate::{
    error::{Error, Result},
    stream_impl::{consumer::Consumer, open::Job},
    sync::lock,
};

/// A fetch whose answer is read by a task.
///
/// The driver reports to the metrics recorder and the `tracing` subscriber of the program under
/// this lock, in [`with_job`](Self::with_job). Reporting after it would need a copy of the observer
/// for each request. The only others that acquire it are the caller of this fetch and the fetches
/// and cancel tokens of the same client. So there is no deadlock unless a recorder or a subscriber
/// uses the client, or waits for a thread that does. A waker is also cloned under the lock.
/// Answers, wakers and jobs are dropped without it, because a drop can run any code.
pub(super) struct Entry(Mutex<EntryState>);

#[derive(Default)]
struct EntryState {
    /// Taken by the side that ends the fetch: the driver with an answer, or the caller without one.
    job: Option<Job>,
    answer: Option<Result<Consumer>>,
    /// It was answered, or the caller does not wait any more.
    is_ended: bool,
    caller: Option<Waker>,
    /// Stops the task that runs a fetch which was taken over.
    task: Option<AbortHandle>,
}

impl Entry {
    pub(super) fn new(job: Job) -> Self {
        Self(Mutex::new(EntryState { job: Some(job), ..EntryState::default() }))
    }

    /// A fetch that a task of its own runs.
    pub(super) fn taken_over(caller: Waker) -> Self {
        Self(Mutex::new(EntryState { caller: Some(caller), ..EntryState::default() }))
    }

    /// Sets the task that runs the fetch.
    pub(super) fn abort_with(&self, task: AbortHandle) {
        let mut state = self.lock();
        if state.is_ended {
            // Abandoned before the task was known, or answered already.
            drop(state);
            return task.abort();
        }
        state.task = Some(task);
    }

    /// Waits for the answer.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Result<Consumer>> {
        let mut state = self.lock();
        if let Some(answer) = state.answer.take() {
            return Poll::Ready(answer);
        }
        if !state.caller.as_ref().is_some_and(|caller| caller.will_wake(cx.waker())) {
            let earlier = state.caller.replace(cx.waker().clone());
            // What a waker drops is not known.
            drop(state);
            drop(earlier);
        }
        Poll::Pending
    }

    /// Whether the caller waits for an answer that it does not have.
    pub(super) fn is_wanted(&self) -> bool {
        self.lock().job.is_some()
    }

    /// Looks at the job, if the answer is wanted.
    pub(super) fn with_job<R>(&self, look: impl FnOnce(&Job) -> R) -> Option<R> {
        self.lock().job.as_ref().map(look)
    }

    /// Takes the job to end the fetch. `None`: it has been ended.
    pub(super) fn take_job(&self) -> Option<Job> {
        self.lock().job.take()
    }

    /// Hands the answer to the caller.
    pub(super) fn finish(&self, answer: Result<Consumer>) {
        let mut state = self.lock();
        if state.is_ended {
            drop(state);
            // Stops the query.
            drop(answer);
            return;
        }
        state.is_ended = true;
        state.answer = Some(answer);
        let caller = state.caller.take();
        drop(state);
        if let Some(caller) = caller {
            caller.wake();
        }
    }

    /// The caller does not want the answer any more, because of this error or because it was
    /// dropped. Returns the job if the driver has not ended it.
    pub(super) fn abandon(&self, error: Option<&Error>) -> Option<Job> {
        let mut state = self.lock();
        state.is_ended = true;
        let (job, answer, task) = (state.job.take(), state.answer.take(), state.task.take());
        // The queue, which may have the last reference, drops it under its own lock.
        let caller = state.caller.take();
        drop(state);
        drop(caller);
        // Stops a query that has begun to answer.
        if let (Some(Ok(mut consumer)), Some(error)) = (answer, error) {
            consumer.fail(error);
        }
        if let Some(task) = task {
            task.abort();
        }
        job
    }

    fn lock(&self) -> MutexGuard<'_, EntryState> {
        lock(&self.0)
    }
}

/// Ends a fetch with an error when it is dropped, unless it has ended.
pub(super) struct FinishOnDrop(pub(super) Arc<Entry>);

impl Drop for FinishOnDrop {
    fn drop(&mut self) {
        self.0.finish(Err(task_ended()));
    }
}

/// Ends a fetch with an error if a recorder or a subscriber panics while its answer is reported.
/// Its caller would wait for ever.
pub(super) struct FinishOnPanic<'a> {
    entry: &'a Entry,
    /// A destructor that runs because of another panic can run a runtime.
    was_panicking: bool,
}

impl<'a> FinishOnPanic<'a> {
    pub(super) fn new(entry: &'a Entry) -> Self {
        Self { entry, was_panicking: panicking() }
    }
}

impl Drop for FinishOnPanic<'_> {
    fn drop(&mut self) {
        if panicking() && !self.was_panicking {
            self.entry.finish(Err(task_ended()));
        }
    }
}

/// The error of a fetch whose task ended before it.
pub(super) fn task_ended() -> Error {
    Error::ConnectionClosed {
        during: "because the task that read from it ended (its runtime was shut down, or a handler of \
                 notices, a metrics recorder or a tracing subscriber panicked)",
        source: None,
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}
