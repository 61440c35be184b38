use super::{
    field::{Field, field},
    ident::quote_collation,
};
use crate::error::{Error, Result};

/// A sort order by a field: `field("total").desc().nulls_last()`.
///
/// Values are compared as `jsonb`: numbers as numbers, and strings as strings in the database's
/// collation. Values of different types are sorted in this order: the empty array, null, strings,
/// numbers, booleans, other arrays, objects. (That the empty array sorts first is a peculiarity of
/// Postgres.) With [`collate`](Self::collate), values are compared as text, and JSON's null is
/// NULL. A missing field is NULL. By default, NULL comes last, and with `desc` first. A column
/// other than the JSON column is sorted in the order of its own type.
///
/// In a column of type `json` (not `jsonb`), some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
///
/// An index on `t ((("data"->'total')))` serves this order; with `collate`, an index on
/// `t ((("data"->>'name') collate "C"))`. For `desc().nulls_last()`, declare the index with
/// `desc nulls last`, because a plain index has NULL at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a sort order does nothing until it is passed to a query"]
pub struct OrderBy {
    field: Field,
    descending: bool,
    collation: Option<String>,
    nulls: Option<&'static str>,
}

impl Field {
    /// Sorts by the field in ascending order.
    pub fn asc(self) -> OrderBy {
        OrderBy { field: self, descending: false, collation: None, nulls: None }
    }

    /// Sorts by the field in descending order.
    pub fn desc(self) -> OrderBy {
        OrderBy { descending: true, ..self.asc() }
    }
}

/// Sorts in ascending order.
impl From<Field> for OrderBy {
    fn from(field: Field) -> Self {
        field.asc()
    }
}

/// Parses a path of keys separated by dots, and sorts by that field in ascending order. The path is
/// data, not SQL: no text can add `desc` or anything else.
impl From<&str> for OrderBy {
    fn from(path: &str) -> Self {
        field(path).asc()
    }
}

/// Same as for `&str`.
impl From<String> for OrderBy {
    fn from(path: String) -> Self {
        field(&path).asc()
    }
}

impl OrderBy {
    /// Compares values as text in the given collation.
    ///
    /// The name must be exact, such as `C`, `de-x-icu` or `en_US.utf8`, and can have a schema:
    /// `app.german`. A part in double quotes is one name, whatever characters it contains:
    /// `"app"."a.b"`. Outside quotes, a dot separates the schema from the name. If a character set
    /// follows the dot, it is a part of the name, as in the operating system's collations:
    /// `C.UTF-8`, `de_DE.iso88591`.
    pub fn collate(self, collation: impl Into<String>) -> Self {
        Self { collation: Some(collation.into()), ..self }
    }

    /// Puts rows without the field first.
    pub fn nulls_first(self) -> Self {
        Self { nulls: Some("FIRST"), ..self }
    }

    /// Puts rows without the field last.
    pub fn nulls_last(self) -> Self {
        Self { nulls: Some("LAST"), ..self }
    }

    /// Whether it needs the JSON column `document`.
    pub(super) fn reads(&self, document: &str) -> bool {
        self.field.reads(document)
    }

    /// `is_json` is whether the JSON column is known to be of type `json` or `jsonb`. Otherwise it
    /// is sorted like any other column.
    pub(super) fn to_sql(&self, document: &str, is_json: bool) -> Result<String> {
        let is_json_column = is_json && self.field.is_document(document);
        let mut sql = match &self.collation {
            // The type `json` has no order.
            None if is_json_column => self.field.jsonb(document)?,
            None => self.field.json(document)?,
            Some(collation) => {
                let name = quote_collation(collation).map_err(|why| {
                    Error::config(format!("invalid collation name {collation:?}: {why}"))
                })?;
                let text = if is_json_column {
                    format!("({}#>>'{{}}')", self.field.jsonb(document)?)
                } else {
                    self.field.text(document)?
                };
                format!("{text} COLLATE {name}")
            }
        };
        if self.descending {
            sql.push_str(" DESC");
        }
        if let Some(nulls) = self.nulls {
            sql.push_str(" NULLS ");
            sql.push_str(nulls);
        }
        Ok(sql)
    }
}
