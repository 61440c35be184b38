//! Comparison, sets and null.

use std::slice;

use super::{
    Filter,
    predicate::{Predicate, Render, STRING},
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

    /// Returns the operator, or its inverse if `negated`.
    pub(super) fn negated_if(self, negated: bool) -> Self {
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
/// A field is compared with a value of its own type; if their types differ, the result is unknown.
/// Numbers are compared exactly. Strings are compared as strings, and ordered by the database's
/// collation. Arrays and objects support only `eq`, `ne`, `in_` and `not_in`.
///
/// | operator | SQL on a string | SQL on another type | index |
/// |---|---|---|---|
/// | `eq`, `ne`, `gt`, `gte`, `lt`, `lte`, `between` | `("data"->>'a') = $1 AND jsonb_typeof(("data"->'a')::jsonb) = 'string'` | `(("data"->'a')::jsonb) = $1::jsonb AND jsonb_typeof(...) = 'number'` | strings: `on t (("data"->>'a'))`; others: `on t (("data"->'a'))` |
/// | `in_`, `not_in` | `("data"->>'a') = ANY($1::text[]) AND ...` | `(...) = ANY($1::jsonb[]) AND ...` | the same |
/// | `is_null`, `is_not_null` | `("data"->>'a') IS NULL` | | `on t (("data"->>'a'))` |
/// | `exists` | `(("data"->'a')::jsonb) IS NOT NULL` | | `on t (("data"->'a'))` |
///
/// For equality, one GIN index on the document serves all fields:
/// `Field::column("data").contains_json(json!({"a": 1}))`.
///
/// In a column of type `json`, some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches if the field equals the value. JSON's `null` equals only itself. In a comparison
    /// with a column, it equals NULL, and in the JSON column itself also JSON's null.
    pub fn eq(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Eq, value)
    }

    /// Matches if the field is of the value's type and differs from the value. A field that is
    /// missing, null or of another type does not match: add [`is_null`](Self::is_null) to match
    /// fields that are missing or null. With a column, `ne(Value::Null)` matches every value that
    /// is not NULL. The JSON column itself also matches if its document is of another type.
    pub fn ne(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Ne, value)
    }

    /// Matches if the field is greater than the value.
    pub fn gt(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Gt, value)
    }

    /// Matches if the field is greater than or equal to the value.
    pub fn gte(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Gte, value)
    }

    /// Matches if the field is less than the value.
    pub fn lt(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Lt, value)
    }

    /// Matches if the field is less than or equal to the value.
    pub fn lte(self, value: impl Into<Operand>) -> Filter {
        self.compare(CompareOp::Lte, value)
    }

    /// Matches if the field is between `low` and `high`, inclusive. Both must be of the same type.
    pub fn between(self, low: impl Into<Operand>, high: impl Into<Operand>) -> Filter {
        Filter::leaf(self, Between { low: low.into(), high: high.into() })
    }

    /// Matches if the field equals one of the values. An empty list matches nothing. With a column,
    /// a null in the list equals NULL.
    pub fn in_<V: Into<Operand>>(self, values: impl IntoIterator<Item = V>) -> Filter {
        Filter::leaf(self, In(values.into_iter().map(Into::into).collect()))
    }

    /// Matches if the field has the type of at least one of the values and equals none of them. An
    /// empty list matches everything. A column that is NULL does not match, whether or not the list
    /// contains a null. The JSON column itself also matches if its document is of another type.
    pub fn not_in<V: Into<Operand>>(self, values: impl IntoIterator<Item = V>) -> Filter {
        self.in_(values).not()
    }

    /// Matches if the field is missing or null. The JSON column itself is null if it is NULL or its
    /// document is JSON's null.
    pub fn is_null(self) -> Filter {
        Filter::leaf(self, IsNull)
    }

    /// Matches if the field exists and is not null.
    pub fn is_not_null(self) -> Filter {
        self.is_null().not()
    }

    /// Matches if the field exists, even if it is null.
    pub fn exists(self) -> Filter {
        Filter::leaf(self, Exists)
    }

    fn compare(self, op: CompareOp, value: impl Into<Operand>) -> Filter {
        Filter::leaf(self, Compare { op, value: value.into() })
    }
}

struct Compare {
    op: CompareOp,
    value: Operand,
}

impl Predicate for Compare {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let kind = self.value.type_name()?;
        let has_order = matches!(kind, "string" | "number" | "boolean");
        if !has_order && !matches!(self.op, CompareOp::Eq | CompareOp::Ne) {
            return Err(Error::config(format!(
                "{} cannot compare a value of type {kind}, which supports only eq() and ne()",
                self.op.as_str()
            )));
        }
        let op = self.op.negated_if(sql.negated);
        if sql.is_column() && self.value.is_null() {
            return null_test(sql, op == CompareOp::Eq);
        }
        if op == CompareOp::Ne {
            check_some(slice::from_ref(&self.value))?;
        }
        let test = operand_test(&self.value, sql, op.as_str())?;
        match op {
            CompareOp::Eq | CompareOp::Ne => sql.guarded(&[kind], &test),
            _ => sql.guarded_order(kind, &test),
        }
    }
}

/// Rejects a list of nothing but nulls, one of them from an `Option`, for a field that must equal
/// none of them. No field is both null and different from null.
fn check_some(operands: &[Operand]) -> Result<()> {
    let is_none = |operand: &Operand| matches!(operand.0, OperandKind::None);
    if operands.iter().all(Operand::is_null) && operands.iter().any(is_none) {
        return Err(Error::config(
            "no field differs from None, which is null: use is_not_null(), or add the condition \
             only if there is a value",
        ));
    }
    Ok(())
}

struct Between {
    low: Operand,
    high: Operand,
}

impl Predicate for Between {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let kind = self.low.type_name()?;
        if self.high.type_name()? != kind || !matches!(kind, "string" | "number" | "boolean") {
            return Err(Error::config(format!(
                "between() needs two strings, two numbers or two booleans, not values of type \
                 {kind} and {}",
                self.high.type_name()?
            )));
        }
        let (from, word, to) = if sql.negated { ("<", "OR", ">") } else { (">=", "AND", "<=") };
        let from = operand_test(&self.low, sql, from)?;
        let to = operand_test(&self.high, sql, to)?;
        sql.guarded_order(kind, &format!("({from} {word} {to})"))
    }
}

/// Returns `value = $n`, compared as text for strings and as `jsonb` for other types.
fn operand_test(operand: &Operand, sql: &mut Render<'_>, sign: &str) -> Result<String> {
    if sql.is_column() && !sql.is_document() {
        let value = sql.json()?;
        return Ok([value.as_str(), " ", sign, " ", &sql.bind(operand.plain_param())].concat());
    }
    Ok(match &operand.0 {
        OperandKind::Text(text) if !sql.is_column() => {
            let value = sql.text()?;
            [value.as_str(), " ", sign, " ", &sql.bind(text.to_param())].concat()
        }
        _ => {
            let value = if sql.is_column() { sql.document_as_jsonb() } else { sql.json()? };
            [value.as_str(), " ", sign, " ", &sql.bind(operand.json_param()), "::jsonb"].concat()
        }
    })
}

/// Returns a test of whether a column is NULL, which SQL's comparison operators cannot express. The
/// JSON column also counts as NULL if the document is JSON's null.
fn null_test(sql: &Render<'_>, is_null: bool) -> Result<String> {
    if sql.is_document() {
        let sign = if is_null { "=" } else { "<>" };
        let json = sql.document_as_jsonb();
        return Ok(format!("(coalesce(jsonb_typeof({json}), 'null') {sign} 'null')"));
    }
    Ok(is_null_sql(&sql.json()?, is_null))
}

fn is_null_sql(value: &str, is_null: bool) -> String {
    format!("({value} IS {}NULL)", if is_null { "" } else { "NOT " })
}

struct IsNull;

impl Predicate for IsNull {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        if sql.is_column() {
            return null_test(sql, !sql.negated);
        }
        // `->>` returns NULL for a JSON null as well as for a missing field.
        Ok(is_null_sql(&sql.text()?, !sql.negated))
    }
}

struct Exists;

impl Predicate for Exists {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        Ok(is_null_sql(&sql.json()?, sql.negated))
    }
}

struct In(Vec<Operand>);

impl Predicate for In {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let Self(operands) = self;
        if operands.is_empty() {
            return Ok(if sql.negated { "TRUE" } else { "FALSE" }.to_owned());
        }
        // One invalid value makes the whole list invalid.
        let mut kinds = operands.iter().map(Operand::type_name).collect::<Result<Vec<_>>>()?;
        if sql.is_column() {
            return self.render_column(sql);
        }
        if sql.negated {
            check_some(operands)?;
        }
        let (texts, others): (Vec<&Operand>, Vec<&Operand>) =
            operands.iter().partition(|o| matches!(o.0, OperandKind::Text(_)));
        let mut groups = Vec::new();
        if !texts.is_empty() {
            let list = sql.bind(Param::array(texts.iter().map(|o| o.plain_param())));
            let test = format!("{} = ANY({list}::text[])", sql.text()?);
            groups.push(sql.condition(STRING, &test)?);
        }
        if !others.is_empty() {
            let list = sql.bind(Param::array(others.iter().map(|o| o.json_param())));
            let test = format!("{} = ANY({list}::jsonb[])", sql.json()?);
            kinds.retain(|k| *k != "string");
            kinds.sort_unstable();
            kinds.dedup();
            groups.push(sql.condition(&kinds, &test)?);
        }
        Ok(format!("({})", groups.join(" OR ")))
    }
}

impl In {
    /// In SQL, a NULL in the list makes every result unknown that is not true. So nulls are tested
    /// separately.
    fn render_column(&self, sql: &mut Render<'_>) -> Result<String> {
        let (nulls, values): (Vec<&Operand>, Vec<&Operand>) =
            self.0.iter().partition(|o| o.is_null());
        let mut tests = Vec::new();
        if !values.is_empty() {
            let (value, list, cast) = if sql.is_document() {
                let list = Param::array(values.iter().map(|o| o.json_param()));
                (sql.document_as_jsonb(), list, "::jsonb[]")
            } else {
                let list = Param::array(values.iter().map(|o| o.plain_param()));
                (sql.json()?, list, "")
            };
            let list = sql.bind(list);
            tests.push(sql.condition(&[], &format!("{value} = ANY({list}{cast})"))?);
        }
        if !nulls.is_empty() {
            tests.push(null_test(sql, !sql.negated)?);
        }
        Ok(format!("({})", tests.join(if sql.negated { " AND " } else { " OR " })))
    }
}
