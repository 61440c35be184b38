//! The answer at the front of a shared connection.

use std::time::{Duration, Instant};

use super::{
    entry::{Entry, FinishOnPanic},
    request::Sent,
};
use crate::{
    connection::Choice,
    error::Error,
    protocol::{
        backend::DATA_ROW,
        rows::{Run, Stop},
    },
    stream_impl::{
        channel::FirstRows,
        consumer::Consumer,
        exchange::Exchange,
        observer::now,
        open::{Job, Opened, Start},
        settings::MAX_READ,
    },
};

/// How long the beginning of an answer may wait for the rest before a reader continues it.
const HANDOFF_AFTER: Duration = Duration::from_millis(10);

/// The request whose answer is being read.
pub(super) struct Head {
    pub(super) sent: Sent,
    /// Rows at the front of the read buffer.
    pub(super) run: Run,
    /// The rows, after the last of them has been received.
    pub(super) first: Option<FirstRows>,
    are_rows_complete: bool,
    /// Since when rows have waited for more of the answer.
    rows_since: Option<Instant>,
    pub(super) error: Option<Error>,
}

/// What to do when no more can be read.
pub(super) enum Step {
    /// Wait for the server.
    Wait,
    /// Let other tasks run.
    Yield,
    /// Everything is answered.
    Idle,
    /// The answer is long: a reader continues it.
    HandOver,
    /// The rest of the answer is not wanted.
    Discard,
}

impl Head {
    pub(super) fn new(sent: Sent) -> Self {
        let (run, first) = (Run::default(), None);
        Self { sent, run, first, are_rows_complete: false, rows_since: None, error: None }
    }

    /// When a reader is to continue the answer, if rows wait for more of it.
    pub(super) fn slow_at(&mut self, exchange: &Exchange) -> Option<Instant> {
        if (self.run.rows == 0 && self.first.is_none()) || !may_read_rows(exchange) {
            return None;
        }
        self.rows_since.get_or_insert_with(now).checked_add(HANDOFF_AFTER)
    }

    fn is_slow(&self) -> bool {
        self.rows_since.is_some_and(|since| now().saturating_duration_since(since) >= HANDOFF_AFTER)
    }

    /// Looks for rows in the read buffer. `None`: a message of another kind is next.
    pub(super) fn read_rows(&mut self, exchange: &mut Exchange) -> Option<Step> {
        if !may_read_rows(exchange) {
            return None;
        }
        let connection = &mut exchange.connection;
        if self.are_rows_complete {
            // More rows than the statement requests are an error, which the reader reports. If the
            // end is late, more rows may follow too, after a notice.
            let is_row = connection.buffer.first() == Some(&DATA_ROW);
            return (is_row || self.is_slow()).then_some(Step::HandOver);
        }
        if self.sent.needs_reader {
            return Some(Step::HandOver);
        }
        let row_limit = self.sent.settings.row_limit.unwrap_or(u64::MAX);
        let max_rows = self.sent.settings.chunk_rows().0;
        let max_rows = max_rows.min(row_limit.try_into().unwrap_or(usize::MAX));
        let max_bytes = connection.limits.max_message_size;
        let is_long = match self.run.extend(&connection.buffer, max_rows, max_bytes) {
            Stop::Full if self.run.rows as u64 == row_limit => false,
            Stop::Other => false,
            Stop::Full | Stop::Malformed(_) => true,
            Stop::Incomplete(row) => {
                let needed = self.run.frame_bytes + row.frame_bytes;
                if needed <= MAX_READ && !self.is_slow() {
                    connection.reserve(needed);
                    return Some(Step::Wait);
                }
                true
            }
        };
        exchange.take_rows(&mut self.run, &mut self.first);
        // Before the first row, this may be a notice.
        self.are_rows_complete = !is_long && self.first.is_some();
        is_long.then_some(Step::HandOver)
    }
}

/// Whether a row may be next. After the last row and in the middle of another message, there is
/// nothing that a reader could continue.
fn may_read_rows(exchange: &Exchange) -> bool {
    exchange.query.takes_rows() && !exchange.connection.is_in_message()
}

/// The columns of the result were described, and are as expected.
pub(super) fn confirm(exchange: &mut Exchange, job: &Job, choice: &Choice) {
    if !matches!(choice, Choice::Prepared(_)) {
        exchange.connection.statements.confirm(job.plan.query.sql(), choice);
    }
}

/// Hands an answer, or its beginning, to the caller.
pub(super) fn deliver(entry: &Entry, job: Job, start: Start) {
    let _guard = FinishOnPanic::new(entry);
    let Job { plan, observer, deadlines, guard, .. } = job;
    let channel = Opened { guard, start }.into_channel(plan, observer, deadlines);
    entry.finish(Ok(Consumer::new(channel)));
}
