use std::{mem, sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::timeout};

use super::{Connection, Session, cancel::timed_out};
use crate::{error::Result, protocol::frontend};

/// A transaction of this client's own: it holds one snapshot for the queries of several connections.
impl Connection {
    /// Runs statements that begin one, and returns the last value that they give.
    ///
    /// They may wait for a lock, and a server that does so sees nothing of what becomes of the connection: dropping
    /// the future stops them, and the connection must be dropped too.
    ///
    /// # Errors
    ///
    /// Behind an error of the server the connection is in the transaction all the same, and can be used when that
    /// has [ended](Self::end_transaction).
    pub(crate) async fn begin(&mut self, sql: &str) -> Result<Option<String>> {
        self.in_transaction = true;
        let mut unanswered = Unanswered {
            session: Some(Arc::clone(&self.session)),
            cancel_timeout: self.bounds.cancel_timeout,
        };
        let answer = self.run(sql).await;
        unanswered.session = None;
        let answer = answer.map_err(|e| self.explain(e))?;
        // It is alive: what happens from here on did not happen while it was idle.
        self.reused = false;
        Ok(answer)
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Ends it, whether it has failed or not: it has only read. Without one, nothing happens.
    ///
    /// # Errors
    ///
    /// The connection cannot be used again and must be dropped.
    pub(crate) async fn end_transaction(&mut self) -> Result<()> {
        if !mem::take(&mut self.in_transaction) {
            return Ok(());
        }
        let after = self.bounds.cancel_timeout;
        let ended = timeout(after, self.run("COMMIT")).await;
        ended.map_err(|_| timed_out(after))?.map(drop)
    }

    /// Runs statements by the simple protocol.
    async fn run(&mut self, sql: &str) -> Result<Option<String>> {
        let query = frontend::simple_query(sql)?;
        self.exchange(query.into()).await
    }
}

/// Statements on a session that are stopped when this is dropped.
struct Unanswered {
    /// Until there is an answer.
    session: Option<Arc<Session>>,
    cancel_timeout: Duration,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // Without a runtime nothing can be sent.
        if let Ok(runtime) = Handle::try_current() {
            let cancel = session.begin_cancel();
            let cancel_timeout = self.cancel_timeout;
            // The server may be gone: then there is nothing to stop.
            runtime.spawn(async move { drop(cancel.send(cancel_timeout).await) });
        }
    }
}
