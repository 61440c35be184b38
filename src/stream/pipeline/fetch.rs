//! From a fetch to its first rows.

use std::{future::poll_fn, sync::Arc};

use super::{
    alone::Alone,
    driver::Driver,
    entry::{Entry, Job},
    queue::Pipeline,
};
use crate::{
    connection::{FetchClaim, Leased, SlotHandle},
    error::Result,
    stream::{
        consumer::Consumer,
        deadline::Deadlines,
        observer::QueryObserver,
        open::{Claim, Interrupted, OpenError, Outcome, failed, open},
        plan::QueryPlan,
    },
};

/// Runs a query up to its first rows. Shares the connection with other fetches of the client.
/// Dropping the future cancels the query.
///
/// # Errors
///
/// [`Error::ConnectionBusy`](crate::Error::ConnectionBusy) immediately, if a stream is active; the
/// errors of the query.
pub(in crate::stream) async fn fetch(
    pipeline: &Arc<Pipeline>,
    slot: SlotHandle,
    plan: QueryPlan,
) -> Result<Consumer> {
    match slot.claim_fetch() {
        Ok(FetchClaim::Shared) => {
            let entry = share(pipeline, &slot, plan);
            wait(pipeline, &slot, entry).await
        }
        Ok(FetchClaim::Alone(leased)) => {
            let run = alone(Arc::clone(pipeline), slot, plan, Ok(leased));
            Alone::new(pipeline, Box::pin(run)).await
        }
        Err(error) => Box::pin(alone(Arc::clone(pipeline), slot, plan, Err(error))).await,
    }
}

/// Runs a query on a connection that it has for itself, until other fetches need the connection.
async fn alone(
    pipeline: Arc<Pipeline>,
    slot: SlotHandle,
    plan: QueryPlan,
    leased: Result<Leased>,
) -> Result<Consumer> {
    let interrupted = match open(&slot, plan, Claim::Fetch(leased)).await? {
        Outcome::Open(channel) => return Ok(Consumer::new(channel)),
        Outcome::Interrupted(interrupted) => *interrupted,
    };
    let Interrupted { held, choice, guard, plan, observer, deadlines, query } = interrupted;
    let job = Job { plan, observer, deadlines, guard, query };
    let entry = Arc::new(Entry::new(job));
    pipeline.adopt(Arc::clone(&entry), held, choice);
    wait(&pipeline, &slot, entry).await
}

/// Adds a query to those that share the connection.
fn share(pipeline: &Arc<Pipeline>, slot: &SlotHandle, plan: QueryPlan) -> Arc<Entry> {
    let observer = QueryObserver::begin(slot, plan.labels(), plan.text());
    let deadlines = Deadlines::new(observer.started_at, &plan.spec.settings);
    let (query, guard) = (slot.begin_query(), slot.fetch_guard());
    let entry = Arc::new(Entry::new(Job { plan, observer, deadlines, guard, query }));
    if pipeline.enqueue(slot, Arc::clone(&entry)) {
        Driver::start(Arc::clone(pipeline), slot.unpooled());
    }
    entry
}

/// Waits for the answer that the driver reads.
async fn wait(pipeline: &Pipeline, slot: &SlotHandle, entry: Arc<Entry>) -> Result<Consumer> {
    let waiting = Waiting { pipeline, entry };
    let answer = poll_fn(|cx| waiting.entry.poll(cx));
    let observed = waiting.entry.with_job(|job| (job.query.clone(), job.deadlines));
    let waited = match observed {
        Some((query, deadlines)) => query.unless_cancelled(deadlines.bound(answer)).await,
        None => answer.await,
    };
    let error = match waited {
        Ok(consumer) => return Ok(consumer),
        Err(error) => error,
    };
    match waiting.abandon() {
        Some(job) => Err(failed(slot, &job.observer, OpenError::from(error))),
        // The driver has reported it.
        None => Err(error),
    }
}

/// Dropped, the caller does not want the answer any more.
struct Waiting<'a> {
    pipeline: &'a Pipeline,
    entry: Arc<Entry>,
}

impl Waiting<'_> {
    fn abandon(&self) -> Option<Job> {
        let job = self.entry.abandon();
        if job.is_some() {
            self.pipeline.changed.notify_one();
        }
        job
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.abandon();
    }
}
