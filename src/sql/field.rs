use std::fmt::Write;

use super::ident::quote_name;
use crate::error::{Error, Result};

/// The maximum number of keys in a path. The server, and the reader of a document, recurse into
/// each.
const MAX_KEYS: usize = 256;

/// A part of the document, or a column beside it, to make filters and orders of: `field("status")`,
/// `field("address.city")`.
///
/// The operators are methods; each returns a [`Filter`](crate::Filter). Made by [`field`],
/// [`Field::path`] or [`Field::column`].
///
/// A document does not make an operator fail. The exceptions, in columns of type `json` (not
/// `jsonb`), are in [`Filter`](crate::Filter#columns-of-type-json).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub(super) place: Place,
    /// The language of full text search.
    pub(super) language: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Keys into the document, outermost first.
    Path(Vec<String>),
    /// A column of the relation, with a type of its own.
    Column(String),
}

/// Returns the field at a path of keys with dots in between: `field("address.city")`.
///
/// Use [`Field::path`] for a key that holds a dot.
pub fn field(path: &str) -> Field {
    Field::path(path.split('.'))
}

impl Field {
    /// Returns the field at a path of keys, outermost first. Keys are taken as they are; an element of
    /// an array has none. A path has at most 256 keys; a longer one is
    /// [`Error::Config`](crate::Error::Config) when the query is executed.
    pub fn path<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        let keys = keys.into_iter().map(Into::into).collect();
        Self { place: Place::Path(keys), language: None }
    }

    /// Returns a column, by its exact name. Operators then use the column's own type; the server
    /// rejects a value or an operator that does not fit the type.
    ///
    /// The column that holds the documents ([`QueryBuilder::column`](crate::QueryBuilder::column))
    /// is compared with JSON: `Field::column("data").eq("abc")` matches the document `"abc"`. In
    /// another column of type `jsonb`, a string is read as JSON text:
    /// `Field::column("extra").eq(r#""abc""#)`.
    pub fn column(name: impl Into<String>) -> Self {
        Self { place: Place::Column(name.into()), language: None }
    }

    /// Sets the language of full text search: a text search configuration such as `english`.
    /// Default: `simple`. It becomes a part of the SQL text, as a literal.
    #[must_use]
    pub fn language(mut self, configuration: impl Into<String>) -> Self {
        self.language = Some(configuration.into());
        self
    }

    /// The field's value as `jsonb`, in the JSON column `document`; a column as it is.
    pub(super) fn json(&self, document: &str) -> Result<String> {
        match &self.place {
            Place::Path(keys) => Ok(format!("({}::jsonb)", path(document, keys, false)?)),
            Place::Column(name) => column(name),
        }
    }

    /// The field's value as `jsonb`, also where it is a column.
    pub(super) fn jsonb(&self, document: &str) -> Result<String> {
        let value = self.json(document)?;
        Ok(if self.is_column() { format!("({value}::jsonb)") } else { value })
    }

    /// Whether it is the column `document` itself.
    pub(super) fn is_document(&self, document: &str) -> bool {
        matches!(&self.place, Place::Column(name) if quote_name(name).is_ok_and(|n| n == document))
    }

    /// The field's value as text.
    pub(super) fn text(&self, document: &str) -> Result<String> {
        match &self.place {
            Place::Path(keys) => path(document, keys, true),
            Place::Column(name) => column(name),
        }
    }

    pub(super) fn is_column(&self) -> bool {
        matches!(self.place, Place::Column(_))
    }

    /// The keys of a path.
    pub(crate) fn keys(&self) -> Result<&[String]> {
        match &self.place {
            Place::Path(keys) => check_path(keys).map(|()| keys.as_slice()),
            Place::Column(name) => Err(Error::config(format!(
                "{name:?} is a column, where a field of the document is needed"
            ))),
        }
    }
}

/// A string is a path with dots in between.
impl From<&str> for Field {
    fn from(path: &str) -> Self {
        field(path)
    }
}

/// A string is a path with dots in between.
impl From<String> for Field {
    fn from(path: String) -> Self {
        field(&path)
    }
}

fn column(name: &str) -> Result<String> {
    quote_name(name).map_err(|why| Error::config(format!("the column {name:?}: {why}")))
}

/// `("data"->'a'->>'b')`: the form that expression indexes are made with.
fn path(document: &str, keys: &[String], as_text: bool) -> Result<String> {
    check_path(keys)?;
    let mut sql = format!("({document}");
    for (i, key) in keys.iter().enumerate() {
        let last = i + 1 == keys.len();
        let arrow = if last && as_text { "->>" } else { "->" };
        // Writing to a String does not fail.
        let _ = write!(sql, "{arrow}{}", literal(key)?);
    }
    sql.push(')');
    Ok(sql)
}

fn check_path(keys: &[String]) -> Result<()> {
    if keys.is_empty() || keys.iter().any(String::is_empty) {
        let why = "a field's path is empty, or has an empty key: write field(\"a.b\")";
        return Err(Error::config(why));
    }
    if keys.len() > MAX_KEYS {
        return Err(Error::config(format!(
            "a field's path has {} keys: at most {MAX_KEYS}",
            keys.len()
        )));
    }
    Ok(())
}

/// A string literal whose meaning does not depend on standard_conforming_strings.
pub(super) fn literal(text: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::config(format!(
            "{text:?} holds a NUL character, which Postgres has not"
        )));
    }
    let doubled = text.replace('\'', "''");
    Ok(if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    })
}
