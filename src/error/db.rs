use std::fmt;

use super::{sqlstate::SqlState, text::OneLine};

/// An error or notice reported by the server, with all its fields.
///
/// The fields are those of [Error and Notice Message Fields] in the Postgres manual. Texts are in
/// the language of the server (`lc_messages`), so match on [`code`](Self::code). Texts of more than
/// 8 KiB are truncated at a character boundary.
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
    /// Returns the severity, which is never translated. It is `ERROR`, `FATAL` or `PANIC` for an
    /// error; `WARNING`, `NOTICE`, `DEBUG`, `INFO` or `LOG` for a notice.
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

    /// Returns the details of the problem, possibly several lines.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Returns the server's suggestion for solving the problem.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the position of the error in the statement, in characters, starting at 1.
    pub fn position(&self) -> Option<u32> {
        self.position
    }

    /// Returns the position in [`internal_query`](Self::internal_query), counted like
    /// [`position`](Self::position).
    pub fn internal_position(&self) -> Option<u32> {
        self.internal_position
    }

    /// Returns the text of an internally generated command that failed.
    ///
    /// For example, this is a query inside a PL/pgSQL function.
    pub fn internal_query(&self) -> Option<&str> {
        self.internal_query.as_deref()
    }

    /// Returns the context of the error.
    ///
    /// This is a call stack with one entry per line, most recent first.
    pub fn where_(&self) -> Option<&str> {
        self.where_.as_deref()
    }

    /// Returns the schema that the error refers to.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// Returns the table that the error refers to.
    pub fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    /// Returns the column that the error refers to.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// Returns the data type that the error refers to.
    pub fn data_type(&self) -> Option<&str> {
        self.data_type.as_deref()
    }

    /// Returns the constraint that the error refers to.
    pub fn constraint(&self) -> Option<&str> {
        self.constraint.as_deref()
    }

    /// Returns the source file of the server that reported the error.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Returns the line in [`file`](Self::file).
    pub fn line(&self) -> Option<u32> {
        self.line
    }

    /// Returns the function in the server's source code that reported the error.
    pub fn routine(&self) -> Option<&str> {
        self.routine.as_deref()
    }
}

impl DbError {
    /// Writes the fields that the server sent and `Display` omits.
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

/// The output of `Display`, then the other fields that the server sent.
impl fmt::Debug for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [DbError")?;
        self.write_rest(f)?;
        f.write_str("]")
    }
}

/// One line: severity, message, detail, hint and SQLSTATE. Control characters, bidirectional
/// controls and invisible characters become spaces.
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

/// Displays text of the server so that it cannot forge log lines. Its length is already limited.
fn one_line(text: &str) -> OneLine<'_> {
    OneLine { text, max: usize::MAX }
}
