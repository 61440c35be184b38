//! The operators of fields, and the SQL each of them is.
//!
//! On a field of the document an operator is a test and a guard: the test is what is asked, and the
//! guard that the field has the type the test is about. Both together match; for a negation the test is
//! turned round and the guard stays. On a column there is no guard, for a column has one type.

use super::{
    compare::{self, CompareOp},
    container::{self, Containment},
    network::{self, NetworkTest},
    search::{self, SearchKind},
    text,
    tree::{self, TreeTest},
    vector::{self, DistanceMetric},
};
use crate::{
    error::{Error, Result},
    sql::{field::Field, operand::Operand, param::Param, parameters::Parameters},
};

#[derive(Clone)]
pub(super) enum Operator {
    Compare(CompareOp, Operand),
    Between(Operand, Operand),
    In(Vec<Operand>),
    IsNull,
    Exists,
    Like {
        pattern: String,
        ignore_case: bool,
    },
    Regex(String),
    Container(Containment),
    Length(CompareOp, usize),
    JsonPath {
        path: String,
        exists: bool,
    },
    Search(SearchKind, String),
    Network(NetworkTest),
    Tree(TreeTest),
    Distance {
        metric: DistanceMetric,
        vector: String,
        size: usize,
        below: f64,
    },
    /// What cannot be asked, and why.
    Invalid(String),
}

impl Operator {
    pub(super) fn render(
        &self,
        field: &Field,
        sql: &mut SqlContext<'_>,
        negated: bool,
    ) -> Result<String> {
        match self {
            Self::Compare(comparison, operand) => {
                compare::render(*comparison, operand, field, sql, negated)
            }
            Self::Between(low, high) => compare::render_between(low, high, field, sql, negated),
            Self::In(operands) => compare::render_in(operands, field, sql, negated),
            Self::IsNull | Self::Exists => {
                let (value, sense) = match self {
                    // The text of a JSON null is NULL too.
                    Self::IsNull => (field.text(sql.document)?, !negated),
                    _ => (field.json(sql.document)?, negated),
                };
                Ok(format!("({value} IS {}NULL)", if sense { "" } else { "NOT " }))
            }
            Self::Like { pattern, ignore_case } => {
                text::render_like(pattern, *ignore_case, field, sql, negated)
            }
            Self::Regex(pattern) => text::render_regex(pattern, field, sql, negated),
            Self::Container(containment) => container::render(containment, field, sql, negated),
            Self::Length(comparison, len) => {
                container::render_length(*comparison, *len, field, sql, negated)
            }
            Self::JsonPath { path, exists } => {
                container::render_path(path, *exists, field, sql, negated)
            }
            Self::Search(kind, query) => search::render(*kind, query, field, sql, negated),
            Self::Network(test) => network::render(test, field, sql, negated),
            Self::Tree(test) => tree::render(test, field, sql, negated),
            Self::Distance { metric, vector, size, below } => {
                vector::render(*metric, (vector, *size), *below, field, sql, negated)
            }
            Self::Invalid(why) => Err(Error::config(why.clone())),
        }
    }
}

/// SQL in the making.
pub(in crate::sql) struct SqlContext<'a> {
    /// The JSON column, quoted.
    pub(in crate::sql) document: &'a str,
    /// Whether its values are selected as documents, and so are of type `json` or `jsonb`. With a
    /// projection in SQL it may be any column.
    pub(in crate::sql) is_json: bool,
    pub(in crate::sql) parameters: &'a mut Parameters,
}

impl SqlContext<'_> {
    /// The JSON column as `jsonb`.
    pub(super) fn document_as_jsonb(&self) -> String {
        match self.is_json {
            true => format!("({}::jsonb)", self.document),
            false => format!("to_jsonb({})", self.document),
        }
    }

    /// Adds a value that the field is compared with, and returns its SQL. With a field of the
    /// document it is text, or cast by the SQL; with a column, the server may infer its type.
    pub(super) fn bind(&mut self, field: &Field, param: Param) -> String {
        match field.is_column() {
            true => self.parameters.add(param),
            false => self.parameters.add_text(param),
        }
    }

    /// A test on a field that must be of one of these types; on a column, the test alone.
    pub(super) fn guarded(
        &self,
        field: &Field,
        types: &[&str],
        test: &str,
        negated: bool,
    ) -> Result<String> {
        let test = if negated { format!("NOT {test}") } else { test.to_owned() };
        if field.is_column() || types.is_empty() {
            return Ok(format!("({test})"));
        }
        let json = field.json(self.document)?;
        let types: Vec<_> = types.iter().map(|t| format!("'{t}'")).collect();
        Ok(match types.as_slice() {
            [only] => format!("({test} AND jsonb_typeof{json} = {only})"),
            several => format!("({test} AND jsonb_typeof{json} IN ({}))", several.join(", ")),
        })
    }
}

pub(super) const STRING: &[&str] = &["string"];
pub(super) const ARRAY: &[&str] = &["array"];
