//! A fetch between two polls, where a task can take it over.

use std::{fmt, future::Future, pin::Pin, sync::Arc, task::Waker};

use super::entry::Entry;
use crate::{error::Result, stream_impl::open::Outcome};

/// A query that runs up to its first rows.
pub(super) type Run = Pin<Box<dyn Future<Output = Result<Outcome>> + Send>>;

/// The fetch that waits for its next poll, and those that were taken over meanwhile.
#[derive(Default)]
pub(super) struct Parked {
    run: Option<(u64, Run, Waker)>,
    taken_over: Vec<(u64, Arc<Entry>)>,
    last: u64,
}

/// What has become of a fetch between two polls.
pub(super) enum Unparked {
    /// With the waker, which the caller drops after it has released the lock.
    Run(Run, Waker),
    /// A task runs it.
    TakenOver(Arc<Entry>),
}

impl Parked {
    /// `caller` is woken when a task that took it over has the answer.
    pub(super) fn park(&mut self, run: Run, caller: Waker) -> u64 {
        self.last += 1;
        self.run = Some((self.last, run, caller));
        self.last
    }

    /// Takes a fetch out again.
    pub(super) fn unpark(&mut self, number: u64) -> Option<Unparked> {
        if let Some((_, run, waker)) = self.run.take_if(|(parked, ..)| *parked == number) {
            return Some(Unparked::Run(run, waker));
        }
        let at = self.taken_over.iter().position(|(taken, _)| *taken == number)?;
        Some(Unparked::TakenOver(self.taken_over.swap_remove(at).1))
    }

    /// Takes the fetch that waits for its next poll, for a task that runs it.
    pub(super) fn take_over(&mut self) -> Option<(Run, Arc<Entry>)> {
        let (number, run, caller) = self.run.take()?;
        let entry = Arc::new(Entry::taken_over(caller));
        self.taken_over.push((number, Arc::clone(&entry)));
        Some((run, entry))
    }
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parked").field("is_some", &self.run.is_some()).finish_non_exhaustive()
    }
}
