//! Comparison, sets, null.

use super::{
    Filter,
    predicate::{Operator, STRING, SqlContext},
};
use crate::{
    error::{Error, Result},
    sql::{
        field::Field,
        operand::{Operand, OperandKind},
        param::{Param, ToParam},
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompareOp {
    Eq,
    Ne,
    Gt,
    Gte,
    Lt,
    Lte,
}

impl CompareOp {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "=",
            Self::Ne => "<>",
            Self::Gt => ">",
            Self::Gte => ">=",
            Self::Lt => "<",
            Self::Lte => "<=",
        }
    }

    pub(super) fn negated(self, negated: bool) -> Self {
        match (self, negated) {
            (same, false) => same,
            (Self::Eq, true) => Self::Ne,
            (Self::Ne, true) => Self::Eq,
            (Self::Gt, true) => Self::Lte,
            (Self::Gte, true) => Self::Lt,
            (Self::Lt, true) => Self::Gte,
            (Self::Lte, true) => Self::Gt,
        }
    }
}

/// # Comparison
///
/// With a value of the field's own type; a field of another type is unknown. Numbers are compared as
/// numbers, exactly; strings as strings, for `gt` and so on in the database's order; arrays and objects
/// can only be equal or not.
///
/// | operator | SQL on a string | SQL on another type | index |
/// |---|---|---|---|
/// | `eq`, `ne`, `gt`, `gte`, `lt`, `lte`, `between` | `("data"->>'a') = $1 AND jsonb_typeof(("data"->'a')::jsonb) = 'string'` | `(("data"->'a')::jsonb) = $1::jsonb AND jsonb_typeof(...) = 'number'` | strings: `on t (("data"->>'a'))`; others: `on t (("data"->'a'))` |
/// | `in_`, `not_in` | `("data"->>'a') = ANY($1::text[]) AND ...` | `(...) = ANY($1::jsonb[]) AND ...` | the same |
/// | `is_null`, `is_not_null` | `("data"->>'a') IS NULL` | | `on t (("data"->>'a'))` |
/// | `exists` | `(("data"->'a')::jsonb) IS NOT NULL` | | `on t (("data"->'a'))` |
///
/// For equality a GIN index on the document serves more fields at once:
/// `Field::column("data").contains_json(json!({"a": 1}))`.
///
/// In a column of type `json`, some documents cannot be read: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches if the field equals the value. JSON's `null` equals only itself; with a column, it
    /// equals NULL.
    pub fn eq(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Eq, value)
    }

    /// Matches if the field is another value of the same type. A missing field, null, or a field of
    /// another type does not match: add [`is_null`](Self::is_null) to ask for those. With a column,
    /// `ne(Value::Null)` matches every value that is not NULL.
    pub fn ne(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Ne, value)
    }

    /// Matches where the field is greater.
    pub fn gt(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Gt, value)
    }

    /// Matches where the field is greater or equal.
    pub fn gte(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Gte, value)
    }

    /// Matches where the field is less.
    pub fn lt(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Lt, value)
    }

    /// Matches where the field is less or equal.
    pub fn lte(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Lte, value)
    }

    /// Matches where the field lies between two values of one type, or is one of them.
    pub fn between(self, low: impl Into<Operand>, high: impl Into<Operand>) -> Filter {
        Filter::leaf(self, Operator::Between(low.into(), high.into()))
    }

    /// Matches if the field equals one of the values. An empty list matches nothing. With a column,
    /// a null among the values equals NULL.
    pub fn in_<V: Into<Operand>>(self, values: impl IntoIterator<Item = V>) -> Filter {
        Filter::leaf(self, Operator::In(values.into_iter().map(Into::into).collect()))
    }

    /// Matches if the field is of the type of one of the values and equals none of them. An empty
    /// list matches everything. A column that is NULL does not match, whether or not a null is
    /// among the values.
    pub fn not_in<V: Into<Operand>>(self, values: impl IntoIterator<Item = V>) -> Filter {
        self.in_(values).not()
    }

    /// Matches where the field is missing or null.
    pub fn is_null(self) -> Filter {
        Filter::leaf(self, Operator::IsNull)
    }

    /// Matches where the field is there and not null.
    pub fn is_not_null(self) -> Filter {
        self.is_null().not()
    }

    /// Matches where the field is there, be it null.
    pub fn exists(self) -> Filter {
        Filter::leaf(self, Operator::Exists)
    }

    fn compare(self, comparison: CompareOp, value: impl Into<Operand>) -> Filter {
        Filter::leaf(self, Operator::Compare(comparison, value.into()))
    }
}

pub(super) fn render(
    comparison: CompareOp,
    operand: &Operand,
    field: &Field,
    sql: &mut SqlContext<'_>,
    negated: bool,
) -> Result<String> {
    let kind = operand.type_name()?;
    let has_order = matches!(kind, "string" | "number" | "boolean");
    if !has_order && !matches!(comparison, CompareOp::Eq | CompareOp::Ne) {
        return Err(Error::config(format!(
            "{} is asked of a value of type {kind}, which can only be equal or not",
            comparison.as_str()
        )));
    }
    let comparison = comparison.negated(negated);
    if field.is_column() && matches!(operand.0, OperandKind::Null) {
        return null_test(field, sql, comparison == CompareOp::Ne);
    }
    let sign = comparison.as_str();
    let test = operand_test(operand, field, sql, sign)?;
    sql.guarded(field, &[kind], &test, false)
}

pub(super) fn render_between(
    low: &Operand,
    high: &Operand,
    field: &Field,
    sql: &mut SqlContext<'_>,
    negated: bool,
) -> Result<String> {
    let kind = low.type_name()?;
    if high.type_name()? != kind || !matches!(kind, "string" | "number" | "boolean") {
        return Err(Error::config(format!(
            "between a value of type {kind} and one of type {}: they must be of one type that has \
             an order",
            high.type_name()?
        )));
    }
    let (from, word, to) = if negated { ("<", "OR", ">") } else { (">=", "AND", "<=") };
    let from = operand_test(low, field, sql, from)?;
    let to = operand_test(high, field, sql, to)?;
    sql.guarded(field, &[kind], &format!("({from} {word} {to})"), false)
}

/// `value = $n`, as text for strings and as `jsonb` for the rest.
fn operand_test(
    operand: &Operand,
    field: &Field,
    sql: &mut SqlContext<'_>,
    sign: &str,
) -> Result<String> {
    if field.is_column() && !field.is_document(sql.document) {
        let value = field.json(sql.document)?;
        return Ok(format!("{value} {sign} {}", sql.bind(field, operand.plain_param())));
    }
    Ok(match &operand.0 {
        OperandKind::Text(text) if !field.is_column() => {
            let value = field.text(sql.document)?;
            format!("{value} {sign} {}", sql.bind(field, text.to_param()))
        }
        _ => {
            let value = match field.is_column() {
                true => sql.document_as_jsonb(),
                false => field.json(sql.document)?,
            };
            format!("{value} {sign} {}::jsonb", sql.bind(field, operand.json_param()))
        }
    })
}

/// Whether a column is NULL, which no SQL comparison tests. The document may also be JSON's null.
fn null_test(field: &Field, sql: &SqlContext<'_>, negated: bool) -> Result<String> {
    let value = match field.is_document(sql.document) {
        true => format!("({}#>>'{{}}')", sql.document_as_jsonb()),
        false => field.json(sql.document)?,
    };
    Ok(format!("({value} IS {}NULL)", if negated { "NOT " } else { "" }))
}

pub(super) fn render_in(
    operands: &[Operand],
    field: &Field,
    sql: &mut SqlContext<'_>,
    negated: bool,
) -> Result<String> {
    if operands.is_empty() {
        return Ok(if negated { "TRUE" } else { "FALSE" }.to_owned());
    }
    // An error in any of them is one of the whole.
    let mut kinds = operands.iter().map(Operand::type_name).collect::<Result<Vec<_>>>()?;
    if field.is_column() {
        return render_in_column(operands, field, sql, negated);
    }
    let (texts, others): (Vec<&Operand>, Vec<&Operand>) =
        operands.iter().partition(|o| matches!(o.0, OperandKind::Text(_)));
    let mut groups = Vec::new();
    if !texts.is_empty() {
        let list = Param::array(texts.iter().map(|o| o.plain_param()));
        let list = sql.bind(field, list);
        let test = format!("{} = ANY({list}::text[])", field.text(sql.document)?);
        groups.push(sql.guarded(field, STRING, &test, negated)?);
    }
    if !others.is_empty() {
        let list = Param::array(others.iter().map(|o| o.json_param()));
        let list = sql.bind(field, list);
        let test = format!("{} = ANY({list}::jsonb[])", field.json(sql.document)?);
        kinds.retain(|k| *k != "string");
        kinds.sort_unstable();
        kinds.dedup();
        groups.push(sql.guarded(field, &kinds, &test, negated)?);
    }
    Ok(format!("({})", groups.join(" OR ")))
}

/// In SQL, a NULL in the list turns every answer other than yes into unknown: it is tested
/// separately.
fn render_in_column(
    operands: &[Operand],
    field: &Field,
    sql: &mut SqlContext<'_>,
    negated: bool,
) -> Result<String> {
    let (nulls, values): (Vec<&Operand>, Vec<&Operand>) =
        operands.iter().partition(|o| matches!(o.0, OperandKind::Null));
    let mut tests = Vec::new();
    if !values.is_empty() {
        let (value, list, cast) = match field.is_document(sql.document) {
            true => {
                let list = Param::array(values.iter().map(|o| o.json_param()));
                (sql.document_as_jsonb(), list, "::jsonb[]")
            }
            false => {
                let list = Param::array(values.iter().map(|o| o.plain_param()));
                (field.json(sql.document)?, list, "")
            }
        };
        let list = sql.bind(field, list);
        tests.push(sql.guarded(field, &[], &format!("{value} = ANY({list}{cast})"), negated)?);
    }
    if !nulls.is_empty() {
        tests.push(null_test(field, sql, negated)?);
    }
    Ok(format!("({})", tests.join(if negated { " AND " } else { " OR " })))
}
