//! A fetch whose answer the driver reads.

use std::{future::poll_fn, pin::pin, sync::Arc};

use super::{
    driver::Driver,
    entry::{Entry, FinishOnDrop},
    parked::Run,
    queue::{Enqueued, Pipeline},
};
use crate::{
    connection::SlotHandle,
    error::{Error, Result},
    stream_impl::{
        consumer::Consumer,
        open::{Interrupted, Job, OpenError, Outcome, failed, taken_twice},
    },
};

/// Lets a task continue the fetch that has the connection, because others wait for it and its
/// caller may not poll it.
pub(crate) fn continue_fetches(pipeline: &Arc<Pipeline>, slot: &SlotHandle) {
    let enqueued = pipeline.lock().begin_driver(slot);
    start_driver(pipeline, slot, enqueued);
}

/// Starts what a request that was added needs.
pub(super) fn start_driver(pipeline: &Arc<Pipeline>, slot: &SlotHandle, enqueued: Enqueued) {
    let Enqueued::First { taken_over } = enqueued else { return };
    // Made before anything is spawned, which panics outside of a runtime.
    let driver = Driver::new(Arc::clone(pipeline), slot.renewed());
    if let Some((run, entry)) = taken_over {
        run_in_task(pipeline, run, entry);
    }
    driver.start();
}

/// Runs a fetch that was taken over in a task, until its answer is abandoned.
pub(super) fn run_in_task(pipeline: &Arc<Pipeline>, run: Run, entry: Arc<Entry>) {
    let pipeline = Arc::clone(pipeline);
    // Made here, because a runtime that shuts down drops tasks that have never run, and none can be
    // spawned outside of a runtime.
    let finish = FinishOnDrop(Arc::clone(&entry));
    let task = tokio::spawn(async move {
        let answer = match run.await {
            Ok(Outcome::Open(channel)) => Ok(Consumer::new(channel)),
            Ok(Outcome::Interrupted(interrupted)) => resume(pipeline, interrupted).await,
            Err(error) => Err(error),
        };
        finish.0.finish(answer);
    });
    entry.abort_with(task.abort_handle());
}

/// Continues a fetch that was interrupted: the driver reads its answer.
async fn resume(pipeline: Arc<Pipeline>, interrupted: Box<Interrupted>) -> Result<Consumer> {
    let Interrupted { slot, mut in_flight, choice, job } = *interrupted;
    let held = in_flight.take_held().ok_or_else(taken_twice)?;
    let entry = Arc::new(Entry::new(job));
    start_driver(&pipeline, &slot, pipeline.adopt(&slot, Arc::clone(&entry), held, choice));
    wait(&pipeline, &slot, entry).await
}

/// Waits for the answer that the driver reads.
pub(super) async fn wait(
    pipeline: &Pipeline,
    slot: &SlotHandle,
    entry: Arc<Entry>,
) -> Result<Consumer> {
    let waiting = Waiting { pipeline, entry };
    let answer = pin!(poll_fn(|cx| waiting.entry.poll(cx)));
    let observed = waiting.entry.with_job(|job| (job.query.clone(), job.deadlines));
    let waited = match observed {
        Some((query, deadlines)) => {
            // Passed by reference: a future that takes another by value reserves its size twice.
            let bound = pin!(deadlines.bound(answer));
            query.unless_cancelled(bound).await
        }
        None => answer.await,
    };
    let error = match waited {
        Ok(consumer) => return Ok(consumer),
        Err(error) => error,
    };
    match waiting.abandon(Some(&error)) {
        Some(job) => {
            let error = pipeline.deadline_error(error);
            Err(failed(slot, &job.observer, OpenError::from(error)))
        }
        // The driver or the stream has reported it.
        None => Err(error),
    }
}

/// Dropped, the caller does not want the answer any more.
struct Waiting<'a> {
    pipeline: &'a Pipeline,
    entry: Arc<Entry>,
}

impl Waiting<'_> {
    fn abandon(&self, error: Option<&Error>) -> Option<Job> {
        let job = self.entry.abandon(error);
        if job.is_some() {
            self.pipeline.changed.notify_one();
        }
        job
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.abandon(None);
    }
}
