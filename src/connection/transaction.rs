use std::mem;

use tokio::time::timeout;

use super::{Connection, cancel::timed_out};
use crate::{error::Result, protocol::frontend};

/// A transaction of this client's own: it holds one snapshot for the queries of several connections.
impl Connection {
    /// Runs statements that begin one, and returns the last value that they give.
    ///
    /// # Errors
    ///
    /// Behind an error of the server the connection is in the transaction all the same, and can be used when that
    /// has [ended](Self::end_transaction).
    pub(crate) async fn begin(&mut self, sql: &str) -> Result<Option<String>> {
        self.in_transaction = true;
        let answer = self.run(sql).await.map_err(|e| self.explain(e))?;
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
