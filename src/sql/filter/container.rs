//! Arrays and objects.

use serde_json::Value;

use super::{
    Filter,
    compare::CompareOp,
    predicate::{ARRAY, Predicate, Render},
};
use crate::{
    error::Result,
    sql::{
        field::Field,
        nesting,
        operand::{Operand, OperandKind},
        param::{Param, ToParam},
    },
};

enum Containment {
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
/// | `array_contained_by` | `a <@ $1::jsonb`, with a list of the elements if a value is a container | arrays | |
/// | `array_overlaps` | `a @> $1::jsonb OR a @> $2::jsonb ...`, the same | arrays | as `contains_json` |
/// | `len_...` | `CASE WHEN jsonb_typeof(a) = 'array' THEN jsonb_array_length(a) END = $1` | arrays | on that expression |
/// | `jsonpath_exists`, `jsonpath_match` | `a @? $1::jsonpath`, `a @@ $1::jsonpath` | anything | as `contains_json` |
/// | the same, with `datetime()`, `date()`, `time()` and so on in the path | `jsonb_path_exists_tz(a, $1::jsonpath, '{}', true)`, `jsonb_path_match_tz(...)` | anything | |
///
/// A GIN index on the whole document serves `Field::column("data").contains_json(...)`. Columns are
/// of type `jsonb` or `json`.
///
/// In a column of type `json`, some documents cannot be read: see
/// [`Filter`](crate::Filter#columns-of-type-json).
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

    /// Matches an array each of whose elements equals one of the values.
    pub fn array_contained_by<V: Into<Operand>>(
        self,
        values: impl IntoIterator<Item = V>,
    ) -> Filter {
        let values = values.into_iter().map(Into::into).collect();
        self.containment(Containment::AllElementsIn(values))
    }

    /// Matches an array at least one of whose elements equals one of the values. An empty list
    /// matches nothing.
    pub fn array_overlaps<V: Into<Operand>>(self, values: impl IntoIterator<Item = V>) -> Filter {
        let values = values.into_iter().map(Into::into).collect();
        self.containment(Containment::AnyElementIn(values))
    }

    /// Matches an array of so many elements.
    pub fn len_eq(self, len: usize) -> Filter {
        self.length(CompareOp::Eq, len)
    }

    /// Matches an array of another number of elements.
    pub fn len_ne(self, len: usize) -> Filter {
        self.length(CompareOp::Ne, len)
    }

    /// Matches an array of more elements.
    pub fn len_gt(self, len: usize) -> Filter {
        self.length(CompareOp::Gt, len)
    }

    /// Matches an array of at least so many elements.
    pub fn len_gte(self, len: usize) -> Filter {
        self.length(CompareOp::Gte, len)
    }

    /// Matches an array of fewer elements.
    pub fn len_lt(self, len: usize) -> Filter {
        self.length(CompareOp::Lt, len)
    }

    /// Matches an array of at most so many elements.
    pub fn len_lte(self, len: usize) -> Filter {
        self.length(CompareOp::Lte, len)
    }

    /// Matches where an
    /// [SQL/JSON path](https://www.postgresql.org/docs/current/functions-json.html#FUNCTIONS-SQLJSON-PATH)
    /// finds something in the field. Errors of the path in a document, such as a missing key in
    /// strict mode, are unknown. Dates and times with and without a time zone are compared in the
    /// session's `TimeZone`.
    ///
    /// One exception: the recursive `.**`, in a document that is nested deeper than the server's
    /// `max_stack_depth` lets it follow (thousands of levels), fails the query (54001). With a
    /// bound, as in `.**{0 to 100}`, it does not.
    ///
    /// A path that is not valid is an error of the server. Some parts are checked only when a
    /// document reaches them: the template of `datetime("...")` (22007), and on recent versions a
    /// `$variable` (42704).
    pub fn jsonpath_exists(self, path: &str) -> Filter {
        Filter::leaf(self, JsonPath { path: path.to_owned(), exists: true })
    }

    /// Matches if an SQL/JSON path that is a predicate, such as `$.a > 1`, is true. Errors are
    /// those of [`jsonpath_exists`](Self::jsonpath_exists).
    pub fn jsonpath_match(self, path: &str) -> Filter {
        Filter::leaf(self, JsonPath { path: path.to_owned(), exists: false })
    }

    fn containment(self, containment: Containment) -> Filter {
        Filter::leaf(self, containment)
    }

    fn length(self, op: CompareOp, len: usize) -> Filter {
        Filter::leaf(self, Length { op, len })
    }
}

impl Predicate for Containment {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        const KEYED: &[&str] = &["object", "array"];
        let value = sql.jsonb()?;
        let own = |operand: &Operand| operand.type_name().map(|t| [t]);
        match self {
            Self::Contains(operand) => {
                let test = format!("({value} @> {}::jsonb)", sql.bind(operand.json_param()));
                sql.condition(&own(operand)?, &test)
            }
            Self::ContainedBy(operand) => {
                let test = format!("({value} <@ {}::jsonb)", sql.bind(operand.json_param()));
                sql.condition(&own(operand)?, &test)
            }
            Self::Key(key) => {
                let test = format!("({value} ? {})", sql.bind(key.to_param()));
                sql.condition(KEYED, &test)
            }
            Self::AnyKey(keys) => {
                let test = format!("({value} ?| {}::text[])", sql.bind(keys.to_param()));
                sql.condition(KEYED, &test)
            }
            Self::AllKeys(keys) => {
                let test = format!("({value} ?& {}::text[])", sql.bind(keys.to_param()));
                sql.condition(KEYED, &test)
            }
            Self::Element(operand) => {
                let test = format!("({value} @> {}::jsonb)", sql.bind(list([operand])?));
                sql.condition(ARRAY, &test)
            }
            Self::AllElementsIn(operands) => {
                let values = sql.bind(list(operands)?);
                let mut test = format!("{value} <@ {values}::jsonb");
                if operands.iter().any(is_container) {
                    test.push_str(&format!(
                        " AND NOT EXISTS (SELECT FROM {} WHERE e.element NOT IN \
                         (SELECT jsonb_array_elements({values}::jsonb)))",
                        elements(&value)
                    ));
                }
                sql.condition(ARRAY, &format!("({test})"))
            }
            Self::AnyElementIn(operands) => {
                let mut tests = Vec::new();
                for operand in operands {
                    let list = sql.bind(list([operand])?);
                    let test = format!("{value} @> {list}::jsonb");
                    tests.push(if is_container(operand) {
                        format!(
                            "({test} AND EXISTS (SELECT FROM {} WHERE e.element = {list}::jsonb->0))",
                            elements(&value)
                        )
                    } else {
                        test
                    });
                }
                let test = if tests.is_empty() { "FALSE".to_owned() } else { tests.join(" OR ") };
                sql.condition(ARRAY, &format!("({test})"))
            }
        }
    }
}

/// For an array or an object, `@>` tests whether it is contained in an element, not whether it
/// equals one.
fn is_container(operand: &Operand) -> bool {
    matches!(operand.0, OperandKind::Container(_))
}

/// The elements of an array; of anything else, none.
fn elements(value: &str) -> String {
    format!(
        "jsonb_array_elements(CASE WHEN jsonb_typeof({value}) = 'array' THEN {value} END) AS e(element)"
    )
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

struct Length {
    op: CompareOp,
    len: usize,
}

impl Predicate for Length {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let value = sql.jsonb()?;
        let sign = self.op.negated_if(sql.negated).as_str();
        let len = sql.bind(Param::text(self.len.to_string()));
        // Of anything else jsonb_array_length is an error, which CASE keeps from being asked.
        Ok(format!(
            "(CASE WHEN jsonb_typeof({value}) = 'array' THEN jsonb_array_length({value}) END {sign} \
             {len}::numeric)"
        ))
    }
}

struct JsonPath {
    path: String,
    /// Whether the path must find something, or must be a predicate that is true.
    exists: bool,
}

impl Predicate for JsonPath {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let value = sql.jsonb()?;
        let path = sql.bind(self.path.to_param());
        let test = match (has_times(&self.path), self.exists) {
            (false, true) => format!("({value} @? {path}::jsonpath)"),
            (false, false) => format!("({value} @@ {path}::jsonpath)"),
            // The operators raise an error when they compare a time with a zone to one without.
            (true, true) => {
                format!("jsonb_path_exists_tz({value}, {path}::jsonpath, '{{}}', true)")
            }
            (true, false) => {
                format!("jsonb_path_match_tz({value}, {path}::jsonpath, '{{}}', true)")
            }
        };
        sql.condition(&[], &test)
    }
}

/// Whether a path has a method that makes a date or a time. Yes is safe, but no index serves it.
fn has_times(path: &str) -> bool {
    const METHODS: &[&str] = &["datetime", "date", "time", "time_tz", "timestamp", "timestamp_tz"];
    // An escape may stand for any letter.
    if path.contains('\\') && path.contains('(') {
        return true;
    }
    let mut rest = path;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let word = rest.get(start..).unwrap_or_default();
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(word.len());
        let (word, after) = word.split_at(end);
        rest = after;
        if METHODS.iter().any(|method| method.eq_ignore_ascii_case(word)) {
            // Between a method and its parenthesis there may be white space and comments.
            let mut next = after.trim_ascii_start();
            while let Some(comment) = next.strip_prefix("/*") {
                next = comment.split_once("*/").map_or("", |(_, next)| next).trim_ascii_start();
            }
            if next.starts_with('(') {
                return true;
            }
        }
    }
    false
}

/// Makes `json!` values fit where an [`Operand`] is wanted by reference.
impl From<&Value> for Operand {
    fn from(value: &Value) -> Self {
        match nesting::check_depth(value) {
            Ok(()) => value.clone().into(),
            // Not even a copy can be made of it.
            Err(_) => Self(OperandKind::Invalid(format!("a value {}", nesting::too_deep()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::has_times;

    #[test]
    fn a_path_with_times_is_found() {
        for path in [
            "$.datetime()",
            "$.a ? (@.datetime() > \"2020-01-01\".datetime())",
            "$ . DateTime ( \"YYYY\" )",
            "$.datetime/* why */ /**/\n()",
            "$.time_tz(3)",
            "$.a.timestamp()",
            "$.\\u0064atetime()",
        ] {
            assert!(has_times(path), "{path}");
        }
        for path in [
            "$.date",
            "$.time > 1",
            "$.updated ? (@ > 5)",
            "$.datetime ? (@ > 5)",
            "$.a.size() > 1",
            "$.a\\u0064",
            "$.datetimes()",
            "",
        ] {
            assert!(!has_times(path), "{path}");
        }
    }
}
