//! The interface between filters and predicates, and what the predicates have in common.
//!
//! On a field of the document, a predicate consists of a test and a guard: the test is the
//! condition, and the guard checks that the field has the type that the test applies to. A document
//! matches if both hold. A negated predicate negates the test and keeps the guard. On a column
//! there is no guard, because a column has only one type. The exception is the order of the JSON
//! column itself: see [`Render::guarded_order`].

use std::panic::{RefUnwindSafe, UnwindSafe};

use crate::{
    error::Result,
    sql::{field::Field, param::Param, parameters::Parameters},
};

/// JSON types that a test applies to.
pub(super) const STRING: &[&str] = &["string"];
pub(super) const ARRAY: &[&str] = &["array"];

/// A condition on one field: the leaf of a [`Filter`](super::Filter).
pub(super) trait Predicate: Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Returns the SQL of the condition, or of its negation if [`Render::negated`] is set.
    fn render(&self, sql: &mut Render<'_>) -> Result<String>;
}

/// The context in which a predicate is rendered.
pub(super) struct Render<'a> {
    pub(super) field: &'a Field,
    /// The JSON column, quoted.
    pub(super) document: &'a str,
    /// Whether the JSON column is known to be of type `json` or `jsonb`.
    pub(super) is_json: bool,
    pub(super) parameters: &'a mut Parameters,
    pub(super) negated: bool,
}

impl Render<'_> {
    /// The field's value as text.
    pub(super) fn text(&self) -> Result<String> {
        self.field.text(self.document)
    }

    /// The field's value as `jsonb`; a column keeps its own type.
    pub(super) fn json(&self) -> Result<String> {
        self.field.json(self.document)
    }

    /// The field's value as `jsonb`, even if the field is a column.
    pub(super) fn jsonb(&self) -> Result<String> {
        self.field.jsonb(self.document)
    }

    /// Whether the field is a column.
    pub(super) fn is_column(&self) -> bool {
        self.field.is_column()
    }

    /// Whether the field is the JSON column itself.
    pub(super) fn is_document(&self) -> bool {
        self.field.is_document(self.document)
    }

    /// The JSON column as `jsonb`.
    pub(super) fn document_as_jsonb(&self) -> String {
        if self.is_json {
            format!("({}::jsonb)", self.document)
        } else {
            format!("to_jsonb({})", self.document)
        }
    }

    /// Adds a value that the field is compared with, and returns its SQL. For a field of the
    /// document, the SQL casts the value or uses it as text; for a column, the server may infer the
    /// value's type.
    pub(super) fn bind(&mut self, param: Param) -> String {
        if self.is_column() { self.parameters.add(param) } else { self.parameters.add_text(param) }
    }

    /// Returns the test, or its negation, with a guard for `types`.
    pub(super) fn condition(&self, types: &[&str], test: &str) -> Result<String> {
        if self.negated {
            self.guarded(types, &["NOT ", test].concat())
        } else {
            self.guarded(types, test)
        }
    }

    /// Returns the test as it is, with a guard for `types`. A column has no guard, and neither has
    /// a test without types.
    pub(super) fn guarded(&self, types: &[&str], test: &str) -> Result<String> {
        if self.is_column() || types.is_empty() {
            return Ok(["(", test, ")"].concat());
        }
        let json = self.json()?;
        if let [only] = types {
            return Ok(["(", test, " AND jsonb_typeof", &json, " = '", only, "')"].concat());
        }
        Ok(format!("({test} AND jsonb_typeof{json} IN ('{}'))", types.join("', '")))
    }

    /// Returns a test that orders values of `kind`, with its guard. The JSON column has a guard
    /// too, because `jsonb` orders values of different types.
    pub(super) fn guarded_order(&self, kind: &str, test: &str) -> Result<String> {
        if self.is_document() {
            let json = self.document_as_jsonb();
            return Ok(format!("({test} AND jsonb_typeof({json}) = '{kind}')"));
        }
        self.guarded(&[kind], test)
    }
}

#[cfg(test)]
mod tests {
    use crate::sql::{Field, Filter, field};

    fn sql(filter: Filter) -> String {
        format!("{filter:?}")
    }

    #[test]
    fn negation_negates_the_test_and_keeps_the_guard() {
        let is_string = "jsonb_typeof((\"data\"->'a')::jsonb) = 'string'";
        let like = "((\"data\"->>'a') LIKE $1)";
        let filter = field("a").contains("x");
        assert_eq!(sql(filter.clone()), format!("Filter(({like} AND {is_string}))"));
        assert_eq!(sql(filter.clone().not()), format!("Filter((NOT {like} AND {is_string}))"));
        assert_eq!(sql(filter.clone().not().not()), sql(filter));
        let is_keyed = "jsonb_typeof((\"data\"->'a')::jsonb) IN ('object', 'array')";
        assert_eq!(
            sql(field("a").has_key("x").not()),
            format!("Filter((NOT (((\"data\"->'a')::jsonb) ? $1) AND {is_keyed}))")
        );
    }

    /// Comparisons and null tests invert their operator instead.
    #[test]
    fn negation_inverts_comparisons() {
        for (filter, inverse) in [
            (field("a").eq(1), field("a").ne(1)),
            (field("a").gt(1), field("a").lte(1)),
            (field("a").lt("x"), field("a").gte("x")),
            (field("a").len_gte(2), field("a").len_lt(2)),
            (field("a").is_null(), field("a").is_not_null()),
            (field("a").in_([1, 2]), field("a").not_in([1, 2])),
        ] {
            assert_eq!(sql(filter.clone().not()), sql(inverse.clone()));
            assert_eq!(sql(filter), sql(inverse.not()));
        }
        assert_eq!(sql(field("a").is_null()), "Filter(((\"data\"->>'a') IS NULL))");
        assert_eq!(sql(field("a").exists()), "Filter((((\"data\"->'a')::jsonb) IS NOT NULL))");
    }

    #[test]
    fn predicate_on_a_column_has_no_guard() {
        let filter = Field::column("c").contains("x");
        assert_eq!(sql(filter.clone()), "Filter(((\"c\" LIKE $1)))");
        assert_eq!(sql(filter.not()), "Filter((NOT (\"c\" LIKE $1)))");
    }

    #[test]
    fn invalid_arguments_are_an_error_with_their_reason() {
        let shown = sql(field("a").l2_distance([], 1.0).and(field("b").eq(1)).not());
        assert!(shown.contains("vector is empty"), "{shown}");
    }
}
