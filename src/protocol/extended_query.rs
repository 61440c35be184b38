//! The order of messages in one query of the extended protocol.

use super::backend::{Column, Message};
use crate::error::{Error, Result};

/// The messages of a request in addition to Execute and Sync, which every request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Close messages, which come first.
    pub(crate) closes: usize,
    /// Whether it has a Parse. Otherwise the server already has the statement.
    pub(crate) parses: bool,
    /// Whether it has a Describe. Otherwise the columns are already known.
    pub(crate) describes: bool,
    /// Whether it asks for the server's process after Execute. The answer is a row if the process
    /// has the expected id.
    pub(crate) asks_process: bool,
}

impl Steps {
    /// Parse, Bind, Describe.
    pub(crate) const WHOLE: Self =
        Self { closes: 0, parses: true, describes: true, asks_process: false };
}

/// The state of a query in the extended protocol: which message the server may send next.
///
/// Rows are not handled here: they may arrive exactly while [`takes_rows`](Self::takes_rows)
/// returns true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExtendedQuery {
    state: Stage,
    /// The number of Close messages without a response.
    closes: usize,
    describes: bool,
    asks_process: bool,
    has_parsed: bool,
    has_bound: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Expects ParseComplete, after a CloseComplete for each Close.
    Sent,
    /// Expects BindComplete, after a CloseComplete for each Close.
    Parsed,
    Bound,
    /// The columns are known.
    Rows,
    /// All rows have arrived. Expects ParseComplete for the question.
    Asked,
    /// Expects BindComplete for it.
    AskedParsed,
    /// Expects DataRow or CommandComplete for it.
    AskedBound,
    /// Expects CommandComplete for it.
    AskedRow,
    /// All rows have arrived, and the answer to the question.
    Complete,
    /// The server reported an error and skips the rest of the query.
    Failed,
    /// ReadyForQuery: the connection is ready for the next query.
    Ready,
}

/// The meaning of a message for the query.
#[derive(Debug)]
pub(crate) enum Progress {
    Continue,
    /// The columns of the result. Rows may follow.
    Columns(Vec<Column>),
    /// The answer to the question: whether the server's process has the expected id.
    Process(bool),
    /// The query has failed. ReadyForQuery has not arrived yet.
    Failed(Error),
    /// The query has ended, successfully or after an error.
    Ready,
}

impl ExtendedQuery {
    /// Creates the state of a query that is parsed, bound and described.
    pub(crate) fn new() -> Self {
        Self::with(Steps::WHOLE)
    }

    /// Creates the state of a query whose request has these steps.
    ///
    /// Without a Describe, rows may follow BindComplete directly, and there is no
    /// [`Progress::Columns`].
    pub(crate) fn with(steps: Steps) -> Self {
        let Steps { closes, parses, describes, asks_process } = steps;
        let state = if parses { Stage::Sent } else { Stage::Parsed };
        let (has_parsed, has_bound) = (false, false);
        Self { state, closes, describes, asks_process, has_parsed, has_bound }
    }

    /// Creates the state of a query whose portal is bound, before it is described and executed.
    pub(crate) fn bound() -> Self {
        Self { state: Stage::Bound, has_bound: true, ..Self::new() }
    }

    /// Returns whether rows may arrive now.
    pub(crate) fn takes_rows(self) -> bool {
        self.state == Stage::Rows
    }

    /// Returns whether the server may still be running the query.
    pub(crate) fn is_running(self) -> bool {
        !matches!(self.state, Stage::Complete | Stage::Failed | Stage::Ready)
    }

    /// Returns whether the connection is ready for the next query.
    pub(crate) fn is_ready(self) -> bool {
        self.state == Stage::Ready
    }

    /// Returns whether the request asks for the server's process.
    pub(crate) fn asks_process(self) -> bool {
        self.asks_process
    }

    /// Returns whether all rows have arrived, and a row would answer the question.
    pub(crate) fn is_asking(self) -> bool {
        matches!(
            self.state,
            Stage::Asked | Stage::AskedParsed | Stage::AskedBound | Stage::AskedRow
        )
    }

    fn after_rows(self) -> Stage {
        if self.asks_process { Stage::Asked } else { Stage::Complete }
    }

    /// Returns whether the server has parsed the text.
    pub(crate) fn has_parsed(self) -> bool {
        self.has_parsed
    }

    /// Returns whether the server has bound the portal. A later error is not about the statement.
    pub(crate) fn has_bound(self) -> bool {
        self.has_bound
    }

    /// Handles the next message if it is the usual one at this point, has arrived completely, and
    /// has no relevant content. Returns its size.
    ///
    /// All other messages must be passed to [`advance`](Self::advance). This saves a short query a
    /// fifth of the work of reading its response.
    pub(crate) fn take_usual(&mut self, buffer: &[u8]) -> Option<usize> {
        match (self.state, buffer) {
            (Stage::Sent, [b'1', 0, 0, 0, 4, ..]) if self.closes == 0 => {
                self.has_parsed = true;
                self.state = Stage::Parsed;
                Some(5)
            }
            (Stage::Parsed, [b'2', 0, 0, 0, 4, ..]) if self.closes == 0 => {
                self.has_bound = true;
                self.state = if self.describes { Stage::Bound } else { Stage::Rows };
                Some(5)
            }
            (
                Stage::Rows,
                [b'C', 0, 0, 0, length, b'S', b'E', b'L', b'E', b'C', b'T', b' ', rest @ ..],
            ) => {
                let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
                let size = 12 + digits + 1;
                let is_whole = digits > 0 && rest.get(digits) == Some(&0);
                if !is_whole || 1 + usize::from(*length) != size {
                    return None;
                }
                self.state = self.after_rows();
                Some(size)
            }
            _ => None,
        }
    }

    /// Takes ReadyForQuery if it is the next message, reports no transaction, and has arrived.
    /// Returns its size.
    pub(crate) fn take_ready(&mut self, buffer: &[u8]) -> Option<usize> {
        match (self.state, buffer) {
            (Stage::Complete, [b'Z', 0, 0, 0, 5, b'I', ..]) => {
                self.state = Stage::Ready;
                Some(6)
            }
            _ => None,
        }
    }

    /// Handles the next message.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`]: the message is not allowed at this point.
    pub(crate) fn advance(&mut self, message: Message) -> Result<Progress> {
        let (next, progress) = match (self.state, message) {
            (state @ (Stage::Sent | Stage::Parsed), Message::CloseComplete) if self.closes > 0 => {
                self.closes -= 1;
                (state, Progress::Continue)
            }
            (Stage::Sent, Message::ParseComplete) if self.closes == 0 => {
                self.has_parsed = true;
                (Stage::Parsed, Progress::Continue)
            }
            (Stage::Parsed, Message::BindComplete) if self.closes == 0 => {
                self.has_bound = true;
                (if self.describes { Stage::Bound } else { Stage::Rows }, Progress::Continue)
            }
            (Stage::Bound, Message::RowDescription(columns)) => {
                (Stage::Rows, Progress::Columns(columns))
            }
            (Stage::Bound, Message::NoData) => (Stage::Rows, Progress::Columns(Vec::new())),
            (Stage::Rows, Message::CommandComplete) => (self.after_rows(), Progress::Continue),
            (Stage::Asked, Message::ParseComplete) => (Stage::AskedParsed, Progress::Continue),
            (Stage::AskedParsed, Message::BindComplete) => (Stage::AskedBound, Progress::Continue),
            (Stage::AskedBound, Message::DataRow) => (Stage::AskedRow, Progress::Continue),
            (state @ (Stage::AskedBound | Stage::AskedRow), Message::CommandComplete) => {
                (Stage::Complete, Progress::Process(state == Stage::AskedRow))
            }
            // The question may have no answer.
            (Stage::Failed | Stage::Complete | Stage::Asked, Message::ReadyForQuery) => {
                (Stage::Ready, Progress::Ready)
            }
            // An error may follow the last row: the implicit transaction ends after it.
            (Stage::Failed, Message::ErrorResponse(_)) => (Stage::Failed, Progress::Continue),
            (Stage::Ready, message) => return Err(message.unexpected("nothing")),
            (_, Message::ErrorResponse(e)) => {
                let is_asking = self.is_asking();
                // All rows have arrived. An engine may not have the function, and report this with
                // any code. The transaction of the request is then rolled back, which only a view
                // that writes could notice. Others would have ended the query too: conflicts of
                // transactions, exhausted resources, and statement_timeout.
                let ends_query = matches!(e.code().class(), "25" | "40" | "53" | "57");
                let error = Error::Server(e);
                let progress = match is_asking && !ends_query && !error.ends_session() {
                    true => Progress::Process(false),
                    false => Progress::Failed(error),
                };
                (Stage::Failed, progress)
            }
            (_, message) => return Err(message.unexpected(self.expected())),
        };
        self.state = next;
        Ok(progress)
    }

    fn expected(self) -> &'static str {
        match self.state {
            Stage::Sent | Stage::Parsed if self.closes > 0 => "CloseComplete",
            Stage::Sent | Stage::Asked => "ParseComplete",
            Stage::Parsed | Stage::AskedParsed => "BindComplete",
            Stage::Bound => "RowDescription",
            Stage::Rows | Stage::AskedBound => "DataRow or CommandComplete",
            Stage::AskedRow => "CommandComplete",
            Stage::Complete | Stage::Failed => "ReadyForQuery",
            Stage::Ready => "nothing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bind alone.
    const BARE: Steps = Steps { parses: false, describes: false, ..Steps::WHOLE };
    const ASKING: Steps = Steps { asks_process: true, ..Steps::WHOLE };

    #[test]
    fn unexpected_message_is_named_with_the_expected_one() {
        let mut query = ExtendedQuery::new();
        let error = query.advance(Message::BindComplete).unwrap_err().to_string();
        assert!(error.contains("unexpected BindComplete: expected ParseComplete"), "{error}");
        assert!(query.is_running());
    }

    fn after(steps: Steps, messages: &[Message]) -> Result<ExtendedQuery> {
        let mut query = ExtendedQuery::with(steps);
        for message in messages {
            query.advance(message.clone())?;
        }
        Ok(query)
    }

    #[test]
    fn ready_is_taken_after_the_last_row_and_outside_a_transaction() {
        let described = [
            Message::ParseComplete,
            Message::BindComplete,
            Message::RowDescription(Vec::new()),
            Message::CommandComplete,
        ];
        let ready = b"Z\0\0\0\x05I";
        let mut query = after(Steps::WHOLE, &described).unwrap();
        for other in [&b"Z\0\0\0\x05T"[..], b"Z\0\0\0\x05E", b"Z\0\0\0\x06I", &ready[..5], b""] {
            assert_eq!(query.take_ready(other), None, "{other:?}");
        }
        assert_eq!(query.take_ready(ready), Some(6));
        assert!(!query.is_running());
        assert!(query.advance(Message::ReadyForQuery).is_err());
        let mut open = after(Steps::WHOLE, &described[..3]).unwrap();
        assert_eq!(open.take_ready(ready), None);
    }

    #[test]
    fn advance_requires_a_response_to_each_step() {
        use Message::{BindComplete, CloseComplete, CommandComplete, NoData, ParseComplete};
        let answers = [
            (Steps::WHOLE, vec![ParseComplete, BindComplete, NoData]),
            (
                Steps { closes: 2, ..Steps::WHOLE },
                vec![CloseComplete, CloseComplete, ParseComplete, BindComplete, NoData],
            ),
            (Steps { parses: false, ..Steps::WHOLE }, vec![BindComplete, NoData]),
            (BARE, vec![BindComplete]),
            (Steps { closes: 1, ..BARE }, vec![CloseComplete, BindComplete]),
        ];
        for (steps, messages) in answers {
            for count in 0..=messages.len() {
                let query = after(steps, &messages[..count]).unwrap();
                assert!(query.is_running());
                assert_eq!(query.takes_rows(), count == messages.len(), "{steps:?} {count}");
                let seen = |message| messages[..count].contains(&message);
                assert_eq!(query.has_bound(), seen(BindComplete), "{steps:?} {count}");
                // No message can be left out, repeated, or replaced by the end of the rows.
                for wrong in [CloseComplete, ParseComplete, BindComplete, NoData, CommandComplete] {
                    let is_next = messages.get(count).unwrap_or(&CommandComplete) == &wrong;
                    let taken = query.clone().advance(wrong.clone()).is_ok();
                    assert_eq!(taken, is_next, "{steps:?}, {count} messages, then {wrong:?}");
                }
            }
        }
    }

    /// `take_usual` and `advance` lead to the same state. Other messages are left to `advance`.
    #[test]
    fn take_usual_agrees_with_advance() {
        use Message::{BindComplete, CommandComplete, ParseComplete};

        let select = b"C\0\0\0\x0dSELECT 1\0";
        let usual: [(&[u8], Message); 3] = [
            (b"1\0\0\0\x04", ParseComplete),
            (b"2\0\0\0\x04", BindComplete),
            (select, CommandComplete),
        ];
        for steps in [Steps::WHOLE, BARE] {
            let mut query = ExtendedQuery::with(steps);
            for (bytes, message) in &usual {
                let mut general = query;
                let expected = general.advance(message.clone()).is_ok().then_some(bytes.len());
                assert_eq!(query.clone().take_usual(bytes), expected, "{query:?}, {message:?}");
                let followed = [bytes, &b"Z\0\0\0\x05I"[..]].concat();
                assert_eq!(query.take_usual(&followed), expected);
                if expected.is_some() {
                    assert_eq!(query, general);
                }
                for cut in 0..bytes.len() {
                    assert_eq!(query.clone().take_usual(&bytes[..cut]), None);
                }
            }
        }
        let mut rows = after(BARE, &[BindComplete]).unwrap();
        let unusual: [&[u8]; 5] = [
            b"C\0\0\0\x0cSELECT 1\0",
            b"C\0\0\0\x0eSELECT 1\0\0",
            b"C\0\0\0\x0cSELECT \0",
            b"C\0\0\0\x0dSELECT x\0",
            b"C\0\0\0\x0dEXPLAIN\0\0",
        ];
        for bytes in unusual {
            assert_eq!(rows.take_usual(bytes), None, "{bytes:?}");
        }
        let mut closing = ExtendedQuery::with(Steps { closes: 1, ..Steps::WHOLE });
        assert_eq!(closing.take_usual(b"1\0\0\0\x04"), None);
    }

    /// At each point, only the next message and errors are accepted.
    #[test]
    fn question_for_the_process_is_answered_after_the_rows() {
        use Message::{
            BindComplete, CommandComplete, DataRow, NoData, ParseComplete, ReadyForQuery,
        };

        let rows = [ParseComplete, BindComplete, NoData, CommandComplete];
        let answer = [ParseComplete, BindComplete, DataRow, CommandComplete];
        let error = |severity: &str, code: &str| {
            let fields = format!("S{severity}\0V{severity}\0C{code}\0Mno\0\0");
            Message::parse(b'E', fields.as_bytes()).unwrap()
        };
        for count in 0..=answer.len() {
            let query = after(ASKING, &[&rows[..], &answer[..count]].concat()).unwrap();
            assert!(!query.takes_rows() && query.has_bound());
            assert_eq!((query.is_asking(), query.is_running()), (count < 4, count < 4));
            for wrong in [ParseComplete, BindComplete, DataRow, NoData, CommandComplete] {
                let is_next =
                    answer.get(count) == Some(&wrong) || count == 2 && wrong == CommandComplete;
                assert_eq!(
                    query.clone().advance(wrong.clone()).is_ok(),
                    is_next,
                    "{count} {wrong:?}"
                );
            }
            let ended = query.clone().advance(ReadyForQuery).is_ok();
            assert_eq!(ended, count == 0 || count == 4, "{count}");
            for code in ["42883", "0A000", "XX000", "26000", "08P01", "58000", "HY000"] {
                let refused = query.clone().advance(error("ERROR", code)).unwrap();
                let is_refused = matches!(refused, Progress::Process(false));
                assert_eq!(is_refused, count < 4, "{count}: {refused:?}");
            }
            for (severity, code) in
                [("ERROR", "57014"), ("ERROR", "40001"), ("ERROR", "53200"), ("FATAL", "XX000")]
            {
                let stopped = query.clone().advance(error(severity, code)).unwrap();
                assert!(matches!(stopped, Progress::Failed(_)), "{stopped:?}");
            }
        }
        for (length, is_same) in [(2, false), (3, true)] {
            let mut query = after(ASKING, &[&rows[..], &answer[..length]].concat()).unwrap();
            let answered = query.advance(CommandComplete).unwrap();
            assert!(matches!(answered, Progress::Process(is) if is == is_same), "{answered:?}");
            assert_eq!(query.take_ready(b"Z\0\0\0\x05I"), Some(6));
        }
        // Its end is the usual one.
        let mut query = after(ASKING, &rows[..3]).unwrap();
        assert_eq!(query.take_usual(b"C\0\0\0\x0dSELECT 1\0"), Some(14));
        assert!(query.is_asking());
    }

    #[test]
    fn missing_close_complete_is_named_in_the_error() {
        let steps = Steps { closes: 2, ..Steps::WHOLE };
        let error = after(steps, &[Message::CloseComplete, Message::ParseComplete]).unwrap_err();
        let text = "unexpected ParseComplete: expected CloseComplete";
        assert!(error.to_string().contains(text), "{error}");
    }

    #[test]
    fn failed_parse_or_bind_is_not_bound() {
        let error = || Message::parse(b'E', b"SERROR\0C26000\0Mgone\0\0").unwrap();
        let failed = after(BARE, &[error()]).unwrap();
        assert!(!failed.is_running() && !failed.has_bound() && !failed.takes_rows());
        let failed = after(Steps::WHOLE, &[Message::ParseComplete, error()]).unwrap();
        assert!(!failed.has_bound());
        let rows = after(BARE, &[Message::BindComplete, error()]).unwrap();
        assert!(rows.has_bound());
    }
}
