use super::{field::Field, ident::quote_collation};
use crate::error::{Error, Result};

/// How to sort by a field: `field("total").desc().nulls_last()`.
///
/// Values are compared as `jsonb`: numbers as numbers, strings as strings in the database's order,
/// and different types one after the other: the empty array, null, strings, numbers, booleans,
/// other arrays, objects. (That the empty array is the smallest value is a peculiarity of
/// Postgres.) With [`collate`](Self::collate) they are compared as text, and null is NULL. Rows
/// without the field are NULL, which by default comes last, and first with `desc`.
///
/// In a column of type `json` (not `jsonb`), some documents cannot be read and fail the query: see
/// [`Filter`](crate::Filter#columns-of-type-json).
///
/// The index that serves it is `create index on t ((("data"->'total')))`, or with `collate`,
/// `create index on t ((("data"->>'name') collate "C"))`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderBy {
    field: Field,
    descending: bool,
    collation: Option<String>,
    nulls: Option<&'static str>,
}

impl Field {
    /// Sorts by the field, the smallest first.
    pub fn asc(self) -> OrderBy {
        OrderBy { field: self, descending: false, collation: None, nulls: None }
    }

    /// Sorts by the field, the largest first.
    pub fn desc(self) -> OrderBy {
        OrderBy { descending: true, ..self.asc() }
    }
}

/// The smallest first.
impl From<Field> for OrderBy {
    fn from(field: Field) -> Self {
        field.asc()
    }
}

impl OrderBy {
    /// Compares as text in a collation, by its exact name: `C`, `de-x-icu`, `en_US.utf8`, or with
    /// its schema: `app.german`.
    ///
    /// A part in double quotes is one name, whatever is in it: `"app"."a.b"`. Without quotes, a dot
    /// separates the schema, unless a character set follows it, as in the names that the operating
    /// system gives: `C.UTF-8`, `de_DE.iso88591`.
    #[must_use]
    pub fn collate(self, collation: impl Into<String>) -> Self {
        Self { collation: Some(collation.into()), ..self }
    }

    /// Puts rows without the field first.
    #[must_use]
    pub fn nulls_first(self) -> Self {
        Self { nulls: Some("FIRST"), ..self }
    }

    /// Puts rows without the field last.
    #[must_use]
    pub fn nulls_last(self) -> Self {
        Self { nulls: Some("LAST"), ..self }
    }

    pub(super) fn to_sql(&self, document: &str) -> Result<String> {
        let mut sql = match &self.collation {
            None => self.field.json(document)?,
            Some(collation) => {
                let name = quote_collation(collation)
                    .map_err(|why| Error::config(format!("the collation {collation:?}: {why}")))?;
                format!("{} COLLATE {name}", self.field.text(document)?)
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
