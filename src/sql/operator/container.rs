//! Arrays and objects.

use serde_json::Value;

use super::{ARRAY, Operator, Sql, compare::Comparison};
use crate::{
    error::Result,
    sql::{
        field::Field,
        filter::Filter,
        operand::Operand,
        param::{Param, ToParam},
    },
};

#[derive(Clone)]
pub(crate) enum Containment {
    /// The field contains the value.
    Contains(Operand),
    ContainedBy(Operand),
    Key(String),
    AnyKey(Vec<String>),
    AllKeys(Vec<String>),
    Element(Operand),
    AllElementsIn(Vec<Operand>),
    AnyElementIn(Vec<Operand>),
}

/// # Containers
///
/// | operator | SQL, where `a` is `(("data"->'a')::jsonb)` | asked of | index |
/// |---|---|---|---|
/// | `contains_json` | `a @> $1::jsonb` | the value's type | `using gin (("data"->'a'))`, also with `jsonb_path_ops` |
/// | `contained_by` | `a <@ $1::jsonb` | the value's type | |
/// | `has_key`, `has_any_key`, `has_all_keys` | `a ? $1`, <code>a ?\| $1</code>, `a ?& $1` | objects; arrays, for their strings | `using gin (("data"->'a'))` |
/// | `array_contains` | `a @> $1::jsonb`, with the value in an array | arrays | as `contains_json` |
/// | `array_contained_by` | `a <@ $1::jsonb` | arrays | |
/// | `array_overlaps` | `a @> $1::jsonb OR a @> $2::jsonb ...` | arrays | as `contains_json` |
/// | `len_...` | `CASE WHEN jsonb_typeof(a) = 'array' THEN jsonb_array_length(a) END = $1` | arrays | on that expression |
/// | `jsonpath_exists`, `jsonpath_match` | `a @? $1::jsonpath`, `a @@ $1::jsonpath` | anything | as `contains_json` |
///
/// A GIN index on the whole document serves `Field::column("data").contains_json(...)`.
impl Field {
    /// Matches where the field [contains](https://www.postgresql.org/docs/current/datatype-json.html#JSON-CONTAINMENT)
    /// the value, of the same type: an object with these entries, an array with these elements.
    pub fn contains_json(self, value: impl Into<Operand>) -> Filter {
        self.containment(Containment::Contains(value.into()))
    }

    /// Matches where the value contains the field, of the same type.
    pub fn contained_by(self, value: impl Into<Operand>) -> Filter {
        self.containment(Containment::ContainedBy(value.into()))
    }

    /// Matches an object with this key, or an array with this string.
    pub fn has_key(self, key: &str) -> Filter {
        self.containment(Containment::Key(key.to_owned()))
    }

    /// Matches where there is one of these keys; of none, nowhere.
    pub fn has_any_key<K: Into<String>>(self, keys: impl IntoIterator<Item = K>) -> Filter {
        self.containment(Containment::AnyKey(keys.into_iter().map(Into::into).collect()))
    }

    /// Matches where there are all of these keys.
    pub fn has_all_keys<K: Into<String>>(self, keys: impl IntoIterator<Item = K>) -> Filter {
        self.containment(Containment::AllKeys(keys.into_iter().map(Into::into).collect()))
    }

    /// Matches an array with an element that equals the value, or contains it, if that is an array or
    /// an object.
    pub fn array_contains(self, value: impl Into<Operand>) -> Filter {
        self.containment(Containment::Element(value.into()))
    }

    /// Matches an array all of whose elements are among the values.
    pub fn array_contained_by<V: Into<Operand>>(
        self,
        values: impl IntoIterator<Item = V>,
    ) -> Filter {
        let values = values.into_iter().map(Into::into).collect();
        self.containment(Containment::AllElementsIn(values))
    }

    /// Matches an array one of whose elements is among the values; of none, nowhere.
    pub fn array_overlaps<V: Into<Operand>>(self, values: impl IntoIterator<Item = V>) -> Filter {
        let values = values.into_iter().map(Into::into).collect();
        self.containment(Containment::AnyElementIn(values))
    }

    /// Matches an array of so many elements.
    pub fn len_eq(self, len: usize) -> Filter {
        self.length(Comparison::Eq, len)
    }

    /// Matches an array of another number of elements.
    pub fn len_ne(self, len: usize) -> Filter {
        self.length(Comparison::Ne, len)
    }

    /// Matches an array of more elements.
    pub fn len_gt(self, len: usize) -> Filter {
        self.length(Comparison::Gt, len)
    }

    /// Matches an array of at least so many elements.
    pub fn len_gte(self, len: usize) -> Filter {
        self.length(Comparison::Gte, len)
    }

    /// Matches an array of fewer elements.
    pub fn len_lt(self, len: usize) -> Filter {
        self.length(Comparison::Lt, len)
    }

    /// Matches an array of at most so many elements.
    pub fn len_lte(self, len: usize) -> Filter {
        self.length(Comparison::Lte, len)
    }

    /// Matches where an [SQL/JSON path](https://www.postgresql.org/docs/current/functions-json.html#FUNCTIONS-SQLJSON-PATH)
    /// finds something in the field. A path that is not valid is an error of the server.
    pub fn jsonpath_exists(self, path: &str) -> Filter {
        Filter::leaf(self, Operator::JsonPath { path: path.to_owned(), exists: true })
    }

    /// Matches where an SQL/JSON path that is a predicate, such as `$.a > 1`, says yes.
    pub fn jsonpath_match(self, path: &str) -> Filter {
        Filter::leaf(self, Operator::JsonPath { path: path.to_owned(), exists: false })
    }

    fn containment(self, containment: Containment) -> Filter {
        Filter::leaf(self, Operator::Container(containment))
    }

    fn length(self, comparison: Comparison, len: usize) -> Filter {
        Filter::leaf(self, Operator::Length(comparison, len))
    }
}

pub(super) fn render(
    containment: &Containment,
    field: &Field,
    sql: &mut Sql<'_>,
    negated: bool,
) -> Result<String> {
    const KEYED: &[&str] = &["object", "array"];
    let value = field.json(sql.document)?;
    let own = |operand: &Operand| operand.type_name().map(|t| [t]);
    match containment {
        Containment::Contains(operand) => {
            let test = format!("({value} @> {}::jsonb)", sql.bind(operand.json_param()));
            sql.guarded(field, &own(operand)?, &test, negated)
        }
        Containment::ContainedBy(operand) => {
            let test = format!("({value} <@ {}::jsonb)", sql.bind(operand.json_param()));
            sql.guarded(field, &own(operand)?, &test, negated)
        }
        Containment::Key(key) => {
            let test = format!("({value} ? {})", sql.bind(key.to_param()));
            sql.guarded(field, KEYED, &test, negated)
        }
        Containment::AnyKey(keys) => {
            let test = format!("({value} ?| {}::text[])", sql.bind(keys.to_param()));
            sql.guarded(field, KEYED, &test, negated)
        }
        Containment::AllKeys(keys) => {
            let test = format!("({value} ?& {}::text[])", sql.bind(keys.to_param()));
            sql.guarded(field, KEYED, &test, negated)
        }
        Containment::Element(operand) => {
            let test = format!("({value} @> {}::jsonb)", sql.bind(list([operand])?));
            sql.guarded(field, ARRAY, &test, negated)
        }
        Containment::AllElementsIn(operands) => {
            let test = format!("({value} <@ {}::jsonb)", sql.bind(list(operands)?));
            sql.guarded(field, ARRAY, &test, negated)
        }
        Containment::AnyElementIn(operands) => {
            let mut tests = Vec::new();
            for operand in operands {
                tests.push(format!("{value} @> {}::jsonb", sql.bind(list([operand])?)));
            }
            let test = if tests.is_empty() { "FALSE".to_owned() } else { tests.join(" OR ") };
            sql.guarded(field, ARRAY, &format!("({test})"), negated)
        }
    }
}

/// A JSON array of the values, digit by digit.
fn list<'a>(operands: impl IntoIterator<Item = &'a Operand>) -> Result<Param> {
    let mut texts = Vec::new();
    for operand in operands {
        operand.type_name()?;
        operand.json_param().sent(0)?;
        texts.push(operand.json_text());
    }
    Ok(Param::text(format!("[{}]", texts.join(","))))
}

pub(super) fn render_length(
    comparison: Comparison,
    len: usize,
    field: &Field,
    sql: &mut Sql<'_>,
    negated: bool,
) -> Result<String> {
    let value = field.json(sql.document)?;
    let sign = comparison.negated(negated).as_str();
    let len = sql.bind(Param::text(len.to_string()));
    // Of anything else jsonb_array_length is an error, which CASE keeps from being asked.
    Ok(format!(
        "(CASE WHEN jsonb_typeof({value}) = 'array' THEN jsonb_array_length({value}) END {sign} \
         {len}::numeric)"
    ))
}

pub(super) fn render_path(
    path: &str,
    exists: bool,
    field: &Field,
    sql: &mut Sql<'_>,
    negated: bool,
) -> Result<String> {
    let sign = if exists { "@?" } else { "@@" };
    let value = field.json(sql.document)?;
    let test = format!("({value} {sign} {}::jsonpath)", sql.bind(path.to_param()));
    sql.guarded(field, &[], &test, negated)
}

/// Makes `json!` values fit where an [`Operand`] is wanted by reference.
impl From<&Value> for Operand {
    fn from(value: &Value) -> Self {
        value.clone().into()
    }
}
