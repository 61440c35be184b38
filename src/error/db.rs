use std::fmt;

use super::{OneLine, sqlstate::SqlState};

/// An error or notice as the server reported it, with every field it sent.
///
/// The fields are those of [Error and Notice Message Fields] in the Postgres manual. Texts are in
/// the language the server is set to (`lc_messages`); decide by [`code`](Self::code). Of a text beyond
/// 8 KiB the beginning is kept, up to the last character that is whole.
///
/// [Error and Notice Message Fields]: https://www.postgresql.org/docs/current/protocol-error-fields.html
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DbError {
    pub(crate) severity: String,
    pub(crate) code: SqlState,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    pub(crate) position: Option<u32>,
    pub(crate) internal_position: Option<u32>,
    pub(crate) internal_query: Option<String>,
    pub(crate) where_: Option<String>,
    pub(crate) schema: Option<String>,
    pub(crate) table: Option<String>,
    pub(crate) column: Option<String>,
    pub(crate) data_type: Option<String>,
    pub(crate) constraint: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) routine: Option<String>,
}

impl DbError {
    /// Returns the severity, never translated: `ERROR`, `FATAL` or `PANIC` in an error; `WARNING`,
    /// `NOTICE`, `DEBUG`, `INFO` or `LOG` in a notice.
    pub fn severity(&self) -> &str {
        &self.severity
    }

    /// Returns the SQLSTATE.
    pub fn code(&self) -> &SqlState {
        &self.code
    }

    /// Returns the primary message, usually one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the detail: more about the problem, possibly several lines.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Returns the server's suggestion what to do about the problem.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns where in the statement the error is: a count of characters, not bytes, from 1.
    pub fn position(&self) -> Option<u32> {
        self.position
    }

    /// Returns the position in [`internal_query`](Self::internal_query), counted like
    /// [`position`](Self::position).
    pub fn internal_position(&self) -> Option<u32> {
        self.internal_position
    }

    /// Returns the text of the failed command that the server made itself, for example a query
    /// inside a PL/pgSQL function.
    pub fn internal_query(&self) -> Option<&str> {
        self.internal_query.as_deref()
    }

    /// Returns the context of the error: a call stack, one entry a line, the newest first.
    pub fn where_(&self) -> Option<&str> {
        self.where_.as_deref()
    }

    /// Returns the schema the error is about.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// Returns the table the error is about.
    pub fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    /// Returns the column the error is about.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// Returns the data type the error is about.
    pub fn data_type(&self) -> Option<&str> {
        self.data_type.as_deref()
    }

    /// Returns the constraint the error is about.
    pub fn constraint(&self) -> Option<&str> {
        self.constraint.as_deref()
    }

    /// Returns the file of the server's source code that reported the error.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Returns the line in [`file`](Self::file).
    pub fn line(&self) -> Option<u32> {
        self.line
    }

    /// Returns the function of the server's source code that reported the error.
    pub fn routine(&self) -> Option<&str> {
        self.routine.as_deref()
    }
}

impl DbError {
    /// Writes the fields that `Display` leaves out, as far as the server sent them.
    pub(super) fn write_rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [
            ("position", self.position),
            ("internal_position", self.internal_position),
            ("line", self.line),
        ];
        let texts = [
            ("internal_query", &self.internal_query),
            ("where", &self.where_),
            ("schema", &self.schema),
            ("table", &self.table),
            ("column", &self.column),
            ("data_type", &self.data_type),
            ("constraint", &self.constraint),
            ("file", &self.file),
            ("routine", &self.routine),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                write!(f, ", {name}: {number}")?;
            }
        }
        for (name, text) in texts {
            if let Some(text) = text {
                write!(f, ", {name}: {text:?}")?;
            }
        }
        Ok(())
    }
}

/// The line of `Display`, then the other fields that the server sent.
impl fmt::Debug for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [DbError")?;
        self.write_rest(f)?;
        f.write_str("]")
    }
}

/// One line: severity, message, detail, hint and SQLSTATE. Control characters, marks of direction
/// and invisible characters become blanks.
impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", one_line(&self.severity), one_line(&self.message))?;
        for (label, text) in [("detail", &self.detail), ("hint", &self.hint)] {
            if let Some(text) = text {
                write!(f, "; {label}: {}", one_line(text))?;
            }
        }
        write!(f, " (SQLSTATE {})", self.code)
    }
}

/// A text of the server's, which must not forge lines in a log. It is in bounds already.
fn one_line(text: &str) -> OneLine<'_> {
    OneLine { text, max: usize::MAX }
}
