//! The order of messages in one query of the extended protocol.

use super::backend::{Column, Message};
use crate::error::{Error, Result};

/// Where a query by the extended protocol stands: which message the server may send next.
///
/// Rows are not handled here: they may arrive exactly while [`takes_rows`](Self::takes_rows)
/// returns true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExtendedQuery {
    /// Nothing has been answered.
    Sent,
    Parsed,
    Bound,
    /// The columns are known.
    Rows,
    /// Every row was sent.
    Complete,
    /// The server reported an error and skips what is left of the query.
    Failed,
    /// ReadyForQuery: the connection can take the next query.
    Ready,
}

/// The meaning of a message for the query.
#[derive(Debug)]
pub(crate) enum Progress {
    Continue,
    /// The columns of the result. Rows may follow.
    Columns(Vec<Column>),
    /// The query has failed; ReadyForQuery is still to come.
    Failed(Error),
    /// The query has ended, successfully or after an error.
    Ready,
}

impl ExtendedQuery {
    pub(crate) fn new() -> Self {
        Self::Sent
    }

    /// A query whose portal has been bound: the server is to describe and execute it.
    pub(crate) fn bound() -> Self {
        Self::Bound
    }

    /// Whether rows may come now.
    pub(crate) fn takes_rows(self) -> bool {
        self == Self::Rows
    }

    /// Whether the server may still be working on the query.
    pub(crate) fn is_running(self) -> bool {
        matches!(self, Self::Sent | Self::Parsed | Self::Bound | Self::Rows)
    }

    /// Takes the next message.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: the message must not come here.
    pub(crate) fn advance(&mut self, message: Message) -> Result<Progress> {
        let (next, progress) = match (*self, message) {
            (Self::Sent, Message::ParseComplete) => (Self::Parsed, Progress::Continue),
            (Self::Parsed, Message::BindComplete) => (Self::Bound, Progress::Continue),
            (Self::Bound, Message::RowDescription(columns)) => {
                (Self::Rows, Progress::Columns(columns))
            }
            (Self::Bound, Message::NoData) => (Self::Rows, Progress::Columns(Vec::new())),
            (Self::Rows, Message::CommandComplete) => (Self::Complete, Progress::Continue),
            (Self::Failed | Self::Complete, Message::ReadyForQuery) => {
                (Self::Ready, Progress::Ready)
            }
            // An error may follow the last row: the implicit transaction ends after it.
            (Self::Failed, Message::ErrorResponse(_)) => (Self::Failed, Progress::Continue),
            (Self::Ready, message) => return Err(message.unexpected("nothing")),
            (_, Message::ErrorResponse(e)) => (Self::Failed, Progress::Failed(Error::Server(e))),
            (state, message) => return Err(message.unexpected(state.expected())),
        };
        *self = next;
        Ok(progress)
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Sent => "ParseComplete",
            Self::Parsed => "BindComplete",
            Self::Bound => "RowDescription",
            Self::Rows => "DataRow or CommandComplete",
            Self::Complete | Self::Failed => "ReadyForQuery",
            Self::Ready => "nothing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_out_of_order_says_what_was_expected() {
        let mut query = ExtendedQuery::new();
        let error = query.advance(Message::BindComplete).unwrap_err().to_string();
        assert!(error.contains("BindComplete came, where ParseComplete is expected"), "{error}");
        assert!(query.is_running());
    }
}
