use super::ident::quote_name;
use crate::error::{Error, Result};

/// The maximum number of keys in a path. The server, and the lookup of a key in a received
/// document, recurse once for each key.
const MAX_KEYS: usize = 256;

/// A field of the document, or a column of the relation, for filters and sort orders:
/// `field("status")`, `field("address.city")`.
///
/// Create one with [`field`], [`Field::path`] or [`Field::column`]. The operators are methods that
/// return a [`Filter`](crate::Filter).
///
/// No document makes an operator fail. [`Filter`](crate::Filter#columns-of-type-json) lists the
/// exceptions for columns of type `json` (not `jsonb`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a field does nothing until an operator is applied"]
pub struct Field {
    pub(super) place: Place,
    /// The text search configuration.
    pub(super) language: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Keys into the document, outermost first.
    Path(Vec<String>),
    /// A column of the relation, which has its own type.
    Column(String),
}

/// Returns the field at a path of keys separated by dots: `field("address.city")`.
///
/// Use [`Field::path`] for a key that contains a dot.
pub fn field(path: &str) -> Field {
    Field::path(path.split('.'))
}

impl Field {
    /// Returns the field at a path of keys, outermost first.
    ///
    /// Keys are used exactly as given. Elements of arrays have no keys, so a path cannot select
    /// them. A path has at most 256 keys; a longer path is [`Error::Config`](crate::Error::Config)
    /// when the query is executed.
    pub fn path<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        let keys = keys.into_iter().map(Into::into).collect();
        Self { place: Place::Path(keys), language: None }
    }

    /// Returns the column with this exact name.
    ///
    /// Operators use the column's own type. The server rejects values and operators that do not fit
    /// the type.
    ///
    /// The JSON column of the query ([`QueryBuilder::column`](crate::QueryBuilder::column)) is
    /// compared with JSON values: `Field::column("data").eq("abc")` matches the document `"abc"`.
    /// For any other column of type `jsonb`, a string is parsed as JSON text:
    /// `Field::column("extra").eq(r#""abc""#)`.
    pub fn column(name: impl Into<String>) -> Self {
        Self { place: Place::Column(name.into()), language: None }
    }

    /// Sets the language of full-text search: a text search configuration such as `english`.
    ///
    /// Default: `simple`. The name is sent as a literal in the SQL text.
    pub fn language(mut self, configuration: impl Into<String>) -> Self {
        self.language = Some(configuration.into());
        self
    }

    /// The field's value as `jsonb`, in the JSON column `document`. A column keeps its own type.
    pub(super) fn json(&self, document: &str) -> Result<String> {
        match &self.place {
            Place::Path(keys) => Ok(["(", &path(document, keys, "->")?, "::jsonb)"].concat()),
            Place::Column(name) => column(name),
        }
    }

    /// The field's value as `jsonb`, even if the field is a column.
    pub(super) fn jsonb(&self, document: &str) -> Result<String> {
        let value = self.json(document)?;
        Ok(if self.is_column() { format!("({value}::jsonb)") } else { value })
    }

    /// Whether the field is in the JSON column `document`, or is that column.
    pub(super) fn reads(&self, document: &str) -> bool {
        !self.is_column() || self.is_document(document)
    }

    /// Whether the field is the column `document` itself.
    pub(super) fn is_document(&self, document: &str) -> bool {
        matches!(&self.place, Place::Column(name) if quote_name(name).is_ok_and(|n| n == document))
    }

    /// The field's value as text. A column keeps its own type.
    pub(super) fn text(&self, document: &str) -> Result<String> {
        match &self.place {
            Place::Path(keys) => path(document, keys, "->>"),
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
                "{name:?} is a column, but a field of the document is required"
            ))),
        }
    }
}

/// Parses a path of keys separated by dots.
impl From<&str> for Field {
    fn from(path: &str) -> Self {
        field(path)
    }
}

/// Parses a path of keys separated by dots.
impl From<String> for Field {
    fn from(path: String) -> Self {
        field(&path)
    }
}

fn column(name: &str) -> Result<String> {
    quote_name(name).map_err(|why| Error::config(format!("invalid column name {name:?}: {why}")))
}

/// Returns `("data"->'a'->>'b')`, the form in which expression indexes are declared. `last_arrow`
/// is the operator before the last key.
fn path(document: &str, keys: &[String], last_arrow: &str) -> Result<String> {
    check_path(keys)?;
    let mut sql =
        String::with_capacity(document.len() + keys.iter().map(|k| k.len() + 8).sum::<usize>());
    sql.push('(');
    sql.push_str(document);
    for (i, key) in keys.iter().enumerate() {
        sql.push_str(if i + 1 == keys.len() { last_arrow } else { "->" });
        push_literal(key, &mut sql)?;
    }
    sql.push(')');
    Ok(sql)
}

fn check_path(keys: &[String]) -> Result<()> {
    if keys.is_empty() || keys.iter().any(String::is_empty) {
        let why = "a field path is empty or has an empty key: write field(\"a.b\")";
        return Err(Error::config(why));
    }
    if keys.len() > MAX_KEYS {
        return Err(Error::config(format!(
            "a field path has {} keys: at most {MAX_KEYS} are supported",
            keys.len()
        )));
    }
    Ok(())
}

/// Returns a string literal whose meaning does not depend on standard_conforming_strings.
pub(super) fn literal(text: &str) -> Result<String> {
    let mut sql = String::with_capacity(text.len() + 2);
    push_literal(text, &mut sql)?;
    Ok(sql)
}

/// Appends a text as a string literal: see [`literal`].
fn push_literal(text: &str, sql: &mut String) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::config(format!(
            "{text:?} contains a NUL character, which Postgres does not support"
        )));
    }
    if text.contains('\\') {
        sql.push('E');
    }
    sql.push('\'');
    for part in text.split_inclusive(['\'', '\\']) {
        sql.push_str(part);
        // Doubled.
        match part.as_bytes().last() {
            Some(b'\'') => sql.push('\''),
            Some(b'\\') => sql.push('\\'),
            _ => {}
        }
    }
    sql.push('\'');
    Ok(())
}
