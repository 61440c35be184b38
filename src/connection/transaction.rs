//! Transactions of this client's own, in which several sessions share a snapshot.

use std::{mem, sync::Arc};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    cancel::timed_out, drain::cancel_and_drain, running_query::QuerySession,
    server_connection::Connection, unanswered::Unanswered,
};
use crate::{
    error::{Error, Result},
    protocol::frontend,
};

impl Connection {
    /// Runs a statement outside of a transaction, and returns its value, if there is a row.
    ///
    /// # Errors
    ///
    /// See [`transact`](Self::transact).
    pub(crate) async fn query_value(
        &mut self,
        sql: &str,
        running: &QuerySession,
    ) -> Result<Option<String>> {
        self.run(frontend::simple_query(sql)?.into(), 1, running).await
    }

    /// Begins a transaction, or continues one. Sends requests that are answered up to a
    /// ReadyForQuery each, and returns the value of the last row.
    ///
    /// They may wait for a lock, and a backend that waits for a lock does not notice that its
    /// connection is closed. If the future is dropped, the connection must be [stopped](Self::stop)
    /// or dropped, which stops them. The query is in progress until they are stopped.
    ///
    /// # Errors
    ///
    /// The first error of the server; [`Error::Timeout`](crate::Error::Timeout) if it sends nothing
    /// for `read_timeout`. If the connection [is answered](Self::is_answered), it is still in the
    /// transaction, and can be used when that has [ended](Self::end_transaction).
    pub(crate) async fn transact(
        &mut self,
        requests: Bytes,
        answers: usize,
        running: &QuerySession,
    ) -> Result<Option<String>> {
        self.in_transaction = true;
        self.run(requests, answers, running).await
    }

    /// Whether all requests of these functions are answered completely.
    pub(crate) fn is_answered(&self) -> bool {
        !self.is_awaited
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Ends the transaction, which has only read, whether it has failed or not. Without a
    /// transaction, nothing happens.
    ///
    /// # Errors
    ///
    /// The connection cannot be used again and must be dropped.
    pub(crate) async fn end_transaction(&mut self, statement: &str) -> Result<()> {
        if !mem::take(&mut self.in_transaction) {
            return Ok(());
        }
        let after = self.limits.cancel_timeout;
        let ended = self.round_trip(frontend::simple_query(statement)?.into(), 1);
        timeout(after, ended).await.map_err(|_| timed_out(after))?.map(drop)
    }

    /// Cancels the unanswered requests of these functions after one of their futures was dropped.
    /// If the connection [is answered](Self::is_answered) after that, it can be used; otherwise it
    /// must be dropped.
    pub(crate) async fn stop(&mut self) {
        if self.is_awaited && self.due == 0 {
            // Sent in part, or the connection is lost. Dropping the connection stops the session.
            return;
        }
        match (self.try_stop().await, &self.unanswered) {
            (Ok(()), _) => self.is_stopped(),
            (Err(error), Some(Unanswered { session: Some((_, running)), .. })) => {
                running.failed_to_stop(&error);
            }
            (Err(_), _) => {}
        }
    }

    async fn try_stop(&mut self) -> Result<()> {
        while self.is_awaited {
            cancel_and_drain(self, None, Bytes::new()).await?;
            self.due -= 1;
            self.is_awaited = self.due > 0;
        }
        Ok(())
    }

    /// Dropping the connection need not cancel anything any more.
    fn is_stopped(&mut self) {
        if let Some(mut unanswered) = self.unanswered.take() {
            unanswered.session = None;
        }
    }

    async fn run(
        &mut self,
        requests: Bytes,
        answers: usize,
        running: &QuerySession,
    ) -> Result<Option<String>> {
        self.unanswered = Some(Unanswered {
            session: Some((Arc::clone(&self.session), running.clone())),
            cancel_timeout: self.limits.cancel_timeout,
        });
        let answer = self.round_trip(requests, answers).await;
        // Kept if the connection is lost: the server may not have noticed, and may be waiting for a
        // lock.
        if matches!(answer, Ok(_) | Err(Error::Server(_))) {
            self.is_stopped();
        }
        let answer = answer?;
        // The connection works: a later failure did not happen while it was idle.
        self.reused = false;
        Ok(answer)
    }
}
