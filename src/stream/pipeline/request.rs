//! The requests of fetches that share a connection.

use std::{fmt, sync::Arc};

use super::entry::Entry;
use crate::{
    connection::{Choice, QuerySession, Session},
    metrics::connection::RequestsInFlight,
    protocol::extended_query::ExtendedQuery,
    stream_impl::{exchange::Exchange, plan::QueryPlan, settings::StreamSettings},
};

/// A request that is not sent.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) entry: Arc<Entry>,
    /// How often a connection was lost while the server worked on the request.
    pub(super) losses: u32,
    /// It was run again after a late cancel request, which happens once.
    pub(super) is_rerun: bool,
}

/// A request that was sent.
pub(super) struct Sent {
    pub(super) entry: Arc<Entry>,
    pub(super) running: QuerySession,
    pub(super) settings: StreamSettings,
    /// Whether a reader must look at each row.
    pub(super) needs_reader: bool,
    pub(super) choice: Choice,
    /// The text that it prepares.
    pub(super) prepares: Option<String>,
    pub(super) query: ExtendedQuery,
    pub(super) losses: u32,
    pub(super) is_rerun: bool,
    /// Counts it. `None` until the driver has it.
    pub(super) in_flight: Option<RequestsInFlight>,
    /// The session of a request that was sent before the driver started.
    pub(super) session: Option<Arc<Session>>,
}

impl Sent {
    /// A request that was sent before the driver started. `None`: it is not wanted any more.
    pub(super) fn adopted(
        entry: Arc<Entry>,
        running: QuerySession,
        choice: Choice,
        exchange: &Exchange,
    ) -> Option<Self> {
        let is_prepare = matches!(choice, Choice::Prepare(_));
        let (settings, needs_reader, prepares) = entry.with_job(|job| {
            let prepares = is_prepare.then(|| job.plan.query.sql().to_owned());
            (job.plan.spec.settings, needs_reader(&job.plan), prepares)
        })?;
        Some(Self {
            entry,
            running,
            settings,
            needs_reader,
            choice,
            prepares,
            query: exchange.query,
            losses: 0,
            is_rerun: exchange.is_rerun,
            in_flight: None,
            session: Some(Arc::clone(&exchange.connection.session)),
        })
    }
}

/// Whether a reader must look at each row. The read buffer of pipelined answers is large.
pub(super) fn needs_reader(plan: &QueryPlan) -> bool {
    !plan.reads_first_rows() || plan.spec.settings.is_below_read()
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent").field("query", &self.query).finish_non_exhaustive()
    }
}
