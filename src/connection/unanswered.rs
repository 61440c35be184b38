//! Statements whose future may be dropped while they wait for a lock.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    running_query::QuerySession,
    session::{Session, stop_lost},
};

/// Cancels the statements of a session when it is dropped.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// `None` after the answer.
    pub(super) session: Option<(Arc<Session>, QuerySession)>,
    pub(super) cancel_timeout: Duration,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some((session, running)) = self.session.take() else { return };
        let cancel_timeout = self.cancel_timeout;
        // Without a runtime nothing can be sent.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                stop_lost(session, cancel_timeout).await;
                drop(running);
            });
        }
    }
}
