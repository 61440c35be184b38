use crate::{
    error::{Error, Result},
    protocol::backend::{Column, Format, Message},
};

/// Where one query by the extended protocol stands: what the server may say next.
///
/// Rows are not seen here: they may come exactly while [`takes_rows`](Self::takes_rows) says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// Nothing has been answered.
    Sent,
    Parsed,
    Bound,
    /// The columns are known and right.
    Rows,
    /// Every row was sent.
    Complete,
    /// The server reported an error and skips what is left of the query.
    Failed,
    /// ReadyForQuery: the connection can take the next query.
    Ready,
}

/// What a message means for the query.
#[derive(Debug)]
pub(crate) enum Progress {
    Going,
    /// The columns are right: rows may follow.
    Started,
    /// The query has failed; ReadyForQuery is still to come.
    Failed(Error),
    /// The query is over, without or behind an error.
    Ready,
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Self::Sent
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
    /// The message must not come here, or the columns are not what this client reads.
    pub(crate) fn on(&mut self, message: Message) -> Result<Progress> {
        let (next, progress) = match (*self, message) {
            (Self::Sent, Message::ParseComplete) => (Self::Parsed, Progress::Going),
            (Self::Parsed, Message::BindComplete) => (Self::Bound, Progress::Going),
            (Self::Bound, Message::RowDescription(columns)) => {
                check(&columns)?;
                (Self::Rows, Progress::Started)
            }
            (Self::Bound, Message::NoData) => return Err(no_columns()),
            (Self::Rows, Message::CommandComplete) => (Self::Complete, Progress::Going),
            (Self::Failed | Self::Complete, Message::ReadyForQuery) => {
                (Self::Ready, Progress::Ready)
            }
            // An error may follow the last row: the implicit transaction ends behind it.
            (Self::Failed, Message::ErrorResponse(_)) => (Self::Failed, Progress::Going),
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

const JSON: u32 = 114;
const JSONB: u32 = 3802;

/// Exactly one column, json or jsonb, as text.
fn check(columns: &[Column]) -> Result<()> {
    match columns {
        [Column { type_oid: JSON | JSONB, format: Format::Text, .. }] => Ok(()),
        [Column { type_oid: JSON | JSONB, .. }] => {
            Err(Error::protocol("the column came in binary format, though text was asked for"))
        }
        [] => Err(no_columns()),
        [only] => Err(Error::InvalidSchema {
            found: format!(
                "{}; make it json or jsonb, for example with to_jsonb() in the view",
                describe(only)
            ),
        }),
        several => {
            // The first few are enough to recognize the query by.
            let mut shown: Vec<String> = several.iter().take(4).map(describe).collect();
            if several.len() > shown.len() {
                shown.push("...".into());
            }
            Err(Error::InvalidSchema {
                found: format!(
                    "{} columns ({}); make one document of them, for example with \
                     jsonb_build_object() in the view",
                    several.len(),
                    shown.join(", ")
                ),
            })
        }
    }
}

fn no_columns() -> Error {
    Error::InvalidSchema { found: "no column".into() }
}

fn describe(column: &Column) -> String {
    // A name has at most 63 bytes; a hostile server is not believed.
    let name: String = column.name.chars().take(63).collect();
    format!("{name:?} of type {}", type_name(column.type_oid))
}

/// The names of the types one meets most, by `pg_type.dat`; of others the oid.
fn type_name(oid: u32) -> String {
    let name = match oid {
        16 => "boolean",
        17 => "bytea",
        20 => "bigint",
        21 => "smallint",
        23 => "integer",
        25 => "text",
        JSON => "json",
        142 => "xml",
        700 => "real",
        701 => "double precision",
        1042 => "char",
        1043 => "varchar",
        1082 => "date",
        1114 => "timestamp",
        1184 => "timestamptz",
        1700 => "numeric",
        2249 => "record",
        2950 => "uuid",
        JSONB => "jsonb",
        oid => return format!("with oid {oid}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_oid: u32) -> Column {
        Column { name: name.into(), type_oid, format: Format::Text }
    }

    #[test]
    fn exactly_one_json_column_is_taken() {
        assert!(check(&[column("data", JSON)]).is_ok());
        assert!(check(&[column("anything", JSONB)]).is_ok());
        let found = |columns: &[Column]| check(columns).unwrap_err().to_string();
        assert!(found(&[column("data", 25)]).contains("\"data\" of type text"));
        assert!(found(&[column("data", 99_999)]).contains("oid 99999"));
        let two = found(&[column("id", 20), column("data", JSONB)]);
        assert!(two.contains("2 columns (\"id\" of type bigint, \"data\" of type jsonb)"), "{two}");
        assert!(found(&vec![column("x", 23); 1000]).contains("..."));
        let binary = Column { format: Format::Other, ..column("data", JSONB) };
        assert!(check(&[binary]).is_err());
    }

    #[test]
    fn a_message_out_of_order_says_what_was_expected() {
        let mut exchange = Exchange::new();
        let error = exchange.on(Message::BindComplete).unwrap_err().to_string();
        assert!(error.contains("BindComplete came, where ParseComplete is expected"), "{error}");
        assert!(exchange.is_running());
    }
}
