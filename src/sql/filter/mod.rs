//! Typed filters: a tree of conditions on fields, rendered as SQL with the values as parameters.

mod compare;
mod container;
mod invalid;
mod network;
mod predicate;
mod search;
mod text;
mod tree;
mod vector;

use std::{
    collections::VecDeque,
    fmt,
    ops::{BitAnd, BitOr, Not},
    sync::Arc,
};

use self::predicate::{Predicate, Render};
use super::{field::Field, parameters::Parameters};
use crate::error::{Error, Result};

/// The maximum nesting of groups. It bounds every recursion over a filter: rendering, cloning and
/// dropping it.
const MAX_DEPTH: usize = 256;

/// A condition on documents, built from the operators of [`Field`] and combined with `and`, `or`
/// and `not`.
///
/// Values are always sent as parameters. No document makes the server raise an error, whatever it
/// contains; the exceptions are listed below and at the operators of [`Field`].
///
/// A condition is true, false or *unknown*. It is unknown if the field is missing, null, or of a
/// type that the operator does not apply to. A row is returned only if the condition is true. `not`
/// swaps true and false and leaves unknown unchanged. So neither `eq("paid")` nor its negation
/// matches a row whose status is missing: add [`is_null`](Field::is_null) to match those rows.
///
/// # Limits
///
/// * A filter can have any length: chains of `and`, and chains of `or`, do not nest, and `not` of
///   `not` cancels out.
/// * Groups within groups, such as `and` within `or` within `and`, can be nested at most 256 deep.
///   A deeper filter is [`Error::Config`](crate::Error::Config) when the query is executed.
/// * A statement has at most 65,535 parameters. If more values are compared with fields of
///   documents, they are sent in arrays. Values that are compared with columns cannot be sent in
///   arrays, so more of them are an `Error::Config`.
///
/// A value with a character that the database's encoding does not support, such as `日` in LATIN1,
/// is a server error (22P05), regardless of the documents.
///
/// # Columns of type `json`
///
/// Postgres stores any JSON text in a column of type `json` and parses it when a field is
/// extracted. The query then fails if a document contains one of the following in any of its
/// fields:
///
/// * the escape of a lone surrogate, such as `"\ud800"` (22P02);
/// * the escape `\u0000` (22P05);
/// * the escape of a character that the database's encoding does not support (22P05), in a database
///   whose encoding is not UTF-8, such as LATIN1;
/// * a number out of the range of Postgres's `numeric`, such as `1e200000` (22003), in the field or
///   in a container that is the field, if the operator reads the field as `jsonb`;
/// * a value that exceeds the limits of `jsonb` (54000): a string, or the elements of a container,
///   of more than 256 MiB.
///
/// This applies to every operator on such a column, to [`OrderBy`](crate::OrderBy),
/// [`select_fields`](crate::QueryBuilder::select_fields) and
/// [`resume_by`](crate::QueryBuilder::resume_by). A column of type `jsonb` cannot contain any of
/// these.
///
/// ```
/// use fraiseql_wire::{Filter, field};
///
/// let filter = field("status")
///     .eq("paid")
///     .and(field("total").gte(100))
///     .or(Filter::all([
///         field("customer.name").istarts_with("an"),
///         field("tags").has_key("vip").not(),
///     ]));
///
/// // The same with operators.
/// let filter = field("status").eq("paid") & field("total").gte(100)
///     | field("customer.name").istarts_with("an") & !field("tags").has_key("vip");
/// ```
#[derive(Clone)]
#[must_use = "a filter does nothing until it is passed to a query"]
pub struct Filter {
    node: Node,
    /// The number of nested groups and negations.
    depth: usize,
}

#[derive(Clone)]
enum Node {
    Group(Connective, VecDeque<Filter>),
    Not(Box<Filter>),
    Leaf(Arc<Leaf>),
    /// Replaces a node that was nested too deeply.
    TooDeep,
}

struct Leaf {
    field: Field,
    predicate: Box<dyn Predicate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connective {
    And,
    Or,
}

/// The statement that a filter is rendered into.
pub(super) struct SqlContext<'a> {
    /// The JSON column, quoted.
    pub(super) document: &'a str,
    /// Whether the JSON column is selected, and so must be of type `json` or `jsonb`. With a
    /// projection in raw SQL it may be a column of any type.
    pub(super) is_json: bool,
    pub(super) parameters: &'a mut Parameters,
}

impl Filter {
    fn leaf(field: Field, predicate: impl Predicate + 'static) -> Self {
        let leaf = Leaf { field, predicate: Box::new(predicate) };
        Self { node: Node::Leaf(Arc::new(leaf)), depth: 0 }
    }

    /// Matches if all of the filters match. An empty list matches everything.
    pub fn all(filters: impl IntoIterator<Item = Self>) -> Self {
        Self::group(Connective::And, filters)
    }

    /// Matches if at least one of the filters matches. An empty list matches nothing.
    pub fn any(filters: impl IntoIterator<Item = Self>) -> Self {
        Self::group(Connective::Or, filters)
    }

    /// Matches if both filters match.
    pub fn and(self, other: Self) -> Self {
        Self::all([self, other])
    }

    /// Matches if at least one of the two filters matches.
    pub fn or(self, other: Self) -> Self {
        Self::any([self, other])
    }

    /// Matches if this filter is false. If it is unknown, its negation is unknown too.
    #[allow(clippy::should_implement_trait)]
    pub fn not(self) -> Self {
        match self.node {
            Node::Not(filter) => *filter,
            _ => {
                // The negation of a leaf counts as a leaf.
                let depth = self.depth + usize::from(self.depth > 0);
                Self::nested(Node::Not(Box::new(self)), depth)
            }
        }
    }

    /// Builds a group. Inner groups with the same connective are merged into it.
    fn group(connective: Connective, filters: impl IntoIterator<Item = Self>) -> Self {
        let mut parts = VecDeque::new();
        let mut depth = 0;
        for filter in filters {
            match filter.node {
                Node::Group(same, inner) if same == connective => {
                    depth = depth.max(filter.depth.saturating_sub(1));
                    append(&mut parts, inner);
                }
                node => {
                    depth = depth.max(filter.depth);
                    parts.push_back(Self { node, ..filter });
                }
            }
        }
        match parts.len() {
            1 => parts.pop_front().unwrap_or(Self { node: Node::Group(connective, parts), depth }),
            _ => Self::nested(Node::Group(connective, parts), depth + 1),
        }
    }

    /// Builds a node, or drops it if it is too deep, before any function recurses into it.
    fn nested(node: Node, depth: usize) -> Self {
        if depth > MAX_DEPTH {
            Self { node: Node::TooDeep, depth: 0 }
        } else {
            Self { node, depth }
        }
    }

    /// Returns the SQL of the filter, and adds its values to the parameters.
    pub(super) fn to_sql(&self, sql: &mut SqlContext<'_>) -> Result<String> {
        self.render(sql, false)
    }

    /// Whether it needs the JSON column `document`.
    pub(super) fn reads(&self, document: &str) -> bool {
        match &self.node {
            Node::Leaf(leaf) => leaf.field.reads(document),
            Node::Not(filter) => filter.reads(document),
            Node::Group(_, filters) => filters.iter().any(|filter| filter.reads(document)),
            Node::TooDeep => false,
        }
    }

    /// Pushes negations down to the predicates. So each predicate keeps the guard for its type,
    /// unknown stays unknown, and no NOT surrounds a condition that an index could serve.
    fn render(&self, sql: &mut SqlContext<'_>, negated: bool) -> Result<String> {
        match &self.node {
            Node::Leaf(leaf) => leaf.predicate.render(&mut Render {
                field: &leaf.field,
                document: sql.document,
                is_json: sql.is_json,
                parameters: sql.parameters,
                negated,
            }),
            Node::Not(filter) => filter.render(sql, !negated),
            Node::Group(connective, filters) => {
                let (separator, if_empty) = match (connective, negated) {
                    (Connective::And, false) | (Connective::Or, true) => (" AND ", "TRUE"),
                    (Connective::Or, false) | (Connective::And, true) => (" OR ", "FALSE"),
                };
                if filters.is_empty() {
                    return Ok(if_empty.to_owned());
                }
                let parts = filters.iter().map(|f| f.render(sql, negated));
                Ok(format!("({})", parts.collect::<Result<Vec<_>>>()?.join(separator)))
            }
            Node::TooDeep => Err(Error::config(format!(
                "a filter has and() and or() nested more than {MAX_DEPTH} deep: only a chain of \
                 one of them can have any length"
            ))),
        }
    }
}

/// `!filter` is [`filter.not()`](Filter::not).
impl Not for Filter {
    type Output = Self;

    fn not(self) -> Self {
        Self::not(self)
    }
}

/// `a & b` is [`a.and(b)`](Filter::and). `&` binds tighter than `|`.
impl BitAnd for Filter {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        self.and(other)
    }
}

/// `a | b` is [`a.or(b)`](Filter::or).
impl BitOr for Filter {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.or(other)
    }
}

/// Appends `more`, and moves the shorter list. So a chain is built in linear time from either end.
fn append(parts: &mut VecDeque<Filter>, mut more: VecDeque<Filter>) {
    if parts.len() < more.len() {
        for part in parts.drain(..).rev() {
            more.push_front(part);
        }
        *parts = more;
    } else {
        parts.append(&mut more);
    }
}

/// The SQL of the filter, without the values.
impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = &mut Parameters::default();
        match self.to_sql(&mut SqlContext { document: "\"data\"", is_json: true, parameters }) {
            Ok(sql) => write!(f, "Filter({sql})"),
            Err(e) => write!(f, "Filter({e})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MAX_DEPTH;
    use crate::sql::{Filter, field};

    #[test]
    fn debug_shows_the_sql_without_values() {
        let shown = format!("{:?}", field("status").eq("planted"));
        assert!(shown.contains("(\"data\"->>'status') = $1"), "{shown}");
        assert!(!shown.contains("planted"), "{shown}");
        let shown = format!("{:?}", field("").eq(1));
        assert!(shown.contains("path is empty"), "{shown}");
    }

    /// At and just beyond the documented limits.
    #[test]
    fn only_groups_with_different_connectives_nest() {
        let leaf = || field("a").is_null();
        let alternating = |depth| {
            (0..depth).fold(leaf(), |filter: Filter, i| match i % 2 {
                0 => filter.and(leaf()),
                _ => filter.or(leaf()),
            })
        };
        let negated = |depth| (0..depth).fold(leaf(), |f: Filter, _| f.and(leaf()).not());
        assert_eq!(alternating(MAX_DEPTH).depth, MAX_DEPTH);
        assert_eq!(negated(MAX_DEPTH / 2).depth, MAX_DEPTH);
        for filter in [alternating(MAX_DEPTH + 1), negated(MAX_DEPTH / 2 + 1)] {
            assert!(format!("{filter:?}").contains("more than 256 deep"));
        }
        for filter in [
            (0..1000).fold(leaf(), |f, _| f.and(leaf())),
            (0..1000).fold(leaf(), |f, _| leaf().or(f)),
            (0..1000).fold(leaf(), |f, _| Filter::all([leaf(), Filter::any([f]), leaf()])),
            (0..1000).fold(leaf(), |f, _| f.not().and(leaf()).not()),
            (0..1001).fold(leaf(), |f, _| f.not()),
        ] {
            assert!(filter.depth <= 3, "{}", filter.depth);
        }
    }

    #[test]
    fn chain_keeps_the_order_of_its_parts() {
        let leaf = |i| field(&format!("f{i}")).is_null();
        let group = |from, to| Filter::all((from..to).map(leaf));
        let shown = format!("{:?}", group(0, 9));
        for filter in [
            group(0, 2).and(group(2, 9)),
            group(0, 7).and(group(7, 9)),
            leaf(0).and(group(1, 9)),
            group(0, 8).and(leaf(8)),
        ] {
            assert_eq!(format!("{filter:?}"), shown);
        }
    }
}
