//! From a fetch to its first rows.

use std::sync::Arc;

use super::{
    alone::Alone,
    entry::Entry,
    queue::Pipeline,
    tasks::{start_driver, wait},
};
use crate::{
    connection::{FetchClaim, RunningQuery, SlotHandle},
    error::Result,
    stream_impl::{
        consumer::Consumer,
        deadline::Deadlines,
        observer::QueryObserver,
        open::{Claim, Job, OpenError, failed, open},
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
pub(in crate::stream_impl) async fn fetch(
    pipeline: &Arc<Pipeline>,
    slot: SlotHandle,
    plan: QueryPlan,
) -> Result<Consumer> {
    let query = slot.begin_query();
    let leased = match slot.claim_fetch() {
        Ok(FetchClaim::Shared) => {
            let entry = share(pipeline, &slot, plan, query)?;
            // Boxed: a fetch that is alone does without it, and its callers copy the future.
            return Box::pin(wait(pipeline, &slot, entry)).await;
        }
        Ok(FetchClaim::Alone(leased)) => Ok(leased),
        Err(error) => Err(error),
    };
    Alone::new(pipeline, Box::pin(open(slot, plan, query, Claim::Fetch(leased)))).await
}

/// Adds a query to those that share the connection.
fn share(
    pipeline: &Arc<Pipeline>,
    slot: &SlotHandle,
    plan: QueryPlan,
    query: RunningQuery,
) -> Result<Arc<Entry>> {
    let observer = QueryObserver::begin(slot, plan.labels(), plan.text());
    let deadlines = Deadlines::new(observer.started_at, &plan.spec.settings);
    let guard = slot.fetch_guard();
    let entry = Arc::new(Entry::new(Job { plan, observer, deadlines, guard, query }));
    match pipeline.enqueue(slot, Arc::clone(&entry)) {
        Ok(enqueued) => start_driver(pipeline, slot, enqueued),
        Err(error) => {
            let Some(job) = entry.take_job() else { return Err(error) };
            return Err(failed(slot, &job.observer, OpenError::of_acquire(error)));
        }
    }
    Ok(entry)
}
