//! Typed predicates: a tree of conditions on fields, made into SQL whose values are parameters.

use std::fmt;

use super::{
    field::Field,
    operator::{Operator, Sql},
    param::Param,
};
use crate::error::Result;

/// A condition on documents, made of [`Field`]'s operators and put together with `and`, `or` and
/// `not`.
///
/// Its values are always sent as parameters. It never makes the server raise an error because of what
/// a document holds: where a field is missing, null, or of another type than the operator is about, the
/// answer is *unknown*. A row is returned only if the answer is yes; `not` turns yes into no and no into
/// yes, and leaves unknown as it is. So neither `eq("paid")` nor its negation matches a row whose
/// status is missing: add [`is_null`](Field::is_null) to ask for those.
///
/// Two exceptions, on columns of type `json` (not `jsonb`): a document with `\u0000` in it, or a number
/// beyond Postgres's `numeric`, cannot be converted, and the server says so.
///
/// ```
/// use fraiseql_wire::{Filter, field};
///
/// let filter = field("status")
///     .eq("paid")
///     .and(field("total").gte(100))
///     .or(Filter::all([field("customer.name").istarts_with("an"), field("tags").has_key("vip").not()]));
/// ```
#[derive(Clone)]
#[must_use = "a filter does nothing until it is given to a query"]
pub struct Filter(Node);

#[derive(Clone)]
enum Node {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Leaf(Box<(Field, Operator)>),
}

impl Filter {
    pub(super) fn leaf(field: Field, operator: Operator) -> Self {
        Self(Node::Leaf(Box::new((field, operator))))
    }

    /// Matches where every one of them does; of none, everything.
    pub fn all(filters: impl IntoIterator<Item = Self>) -> Self {
        Self(Node::All(filters.into_iter().collect()))
    }

    /// Matches where at least one of them does; of none, nothing.
    pub fn any(filters: impl IntoIterator<Item = Self>) -> Self {
        Self(Node::Any(filters.into_iter().collect()))
    }

    /// Matches where both do.
    pub fn and(self, other: Self) -> Self {
        Self::all([self, other])
    }

    /// Matches where one of them does, or both.
    pub fn or(self, other: Self) -> Self {
        Self::any([self, other])
    }

    /// Matches where this one says no; where it does not know, neither matches.
    #[allow(clippy::should_implement_trait)]
    pub fn not(self) -> Self {
        Self(Node::Not(Box::new(self)))
    }

    /// Makes the condition on the JSON column `document`; its values become parameters behind those
    /// that are there.
    pub(super) fn to_sql(&self, document: &str, parameters: &mut Vec<Param>) -> Result<String> {
        let mut sql = Sql { document, parameters };
        self.render(&mut sql, false)
    }

    /// A negation goes down to the operators, so that each asks for its type in both cases: unknown
    /// stays unknown, and what the server sees has no NOT around what an index could serve.
    fn render(&self, sql: &mut Sql<'_>, negated: bool) -> Result<String> {
        match &self.0 {
            Node::Leaf(leaf) => leaf.1.render(&leaf.0, sql, negated),
            Node::Not(filter) => filter.render(sql, !negated),
            Node::All(filters) => join(filters, if negated { "OR" } else { "AND" }, sql, negated),
            Node::Any(filters) => join(filters, if negated { "AND" } else { "OR" }, sql, negated),
        }
    }
}

fn join(filters: &[Filter], word: &str, sql: &mut Sql<'_>, negated: bool) -> Result<String> {
    if filters.is_empty() {
        return Ok(if word == "AND" { "TRUE" } else { "FALSE" }.to_owned());
    }
    let parts: Vec<_> = filters.iter().map(|f| f.render(sql, negated)).collect::<Result<_>>()?;
    Ok(format!("({})", parts.join(&format!(" {word} "))))
}

/// The SQL that it makes, without the values.
impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_sql("\"data\"", &mut Vec::new()) {
            Ok(sql) => write!(f, "Filter({sql})"),
            Err(e) => write!(f, "Filter({e})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::sql::field;

    #[test]
    fn its_sql_is_shown_and_never_its_values() {
        let shown = format!("{:?}", field("status").eq("planted"));
        assert!(shown.contains("(\"data\"->>'status') = $1"), "{shown}");
        assert!(!shown.contains("planted"), "{shown}");
        let shown = format!("{:?}", field("").eq(1));
        assert!(shown.contains("path is empty"), "{shown}");
    }
}
