//! Fetches that share a connection: requests are sent without waiting for earlier answers.
//!
//! A fetch that finds the connection free uses it alone, in the caller's future. The next one that
//! comes meanwhile starts a [`driver`], a task that sends requests as they come and matches the
//! answers in order. It ends when there is nothing left to do. docs/ARCHITECTURE.md has the rules.

mod active_requests;
mod alone;
mod driver;
mod entry;
mod fetch;
mod head;
mod parked;
mod queue;
mod request;
mod tasks;

pub(super) use self::fetch::fetch;
pub(crate) use self::{queue::Pipeline, tasks::continue_fetches};
