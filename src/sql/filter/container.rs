//! Arrays, objects and SQL/JSON paths.

use super::{
    Filter,
    compare::CompareOp,
    predicate::{ARRAY, Predicate, Render},
};
use crate::{
    error::Result,
    sql::{
        field::Field,
        operand::{Operand, OperandKind},
        param::{Param, ToParam},
    },
};

enum Containment {
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
/// | operator | SQL, where `a` is `(("data"->'a')::jsonb)` | applies to | index |
/// |---|---|---|---|
/// | `contains_json` | `a @> $1::jsonb` | fields of the value's type | `using gin (("data"->'a'))`, also with `jsonb_path_ops` |
/// | `contained_by` | `a <@ $1::jsonb` | fields of the value's type | |
/// | `has_key`, `has_any_key`, `has_all_keys` | `a ? $1`, <code>a ?\| $1</code>, `a ?& $1` | keys of objects, strings in arrays | `using gin (("data"->'a'))` |
/// | `array_contains` | `a @> $1::jsonb`, with the value wrapped in an array | arrays | as for `contains_json` |
/// | `array_contained_by` | `a <@ $1::jsonb`; also compares each element if a value is an array or an object | arrays | |
/// | `array_overlaps` | `a @> $1::jsonb OR a @> $2::jsonb ...`; also compares each element with values that are arrays or objects | arrays | as for `contains_json` |
/// | `len_...` | `CASE WHEN jsonb_typeof(a) = 'array' THEN jsonb_array_length(a) END = $1` | arrays | on this expression |
/// | `jsonpath_exists`, `jsonpath_match` | `a @? $1::jsonpath`, `a @@ $1::jsonpath` | fields of any type | as for `contains_json` |
/// | the same, with `datetime()`, `date()`, `time()` and so on in the path | `jsonb_path_exists_tz(a, $1::jsonpath, '{}', true)`, `jsonb_path_match_tz(...)` | fields of any type | |
///
/// A GIN index on the whole document serves `Field::column("data").contains_json(...)`. Columns
/// must be of type `jsonb` or `json`.
///
/// In a column of type `json`, some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches if the field is of the value's type and [contains] the value: an object contains the
    /// value's entries, an array contains the value's elements.
    ///
    /// [contains]: https://www.postgresql.org/docs/current/datatype-json.html#JSON-CONTAINMENT
    pub fn contains_json(self, value: impl Into<Operand>) -> Filter {
        self.containment(Containment::Contains(value.into()))
    }

    /// Matches if the field is of the value's type and the value contains the field.
    pub fn contained_by(self, value: impl Into<Operand>) -> Filter {
        self.containment(Containment::ContainedBy(value.into()))
    }

    /// Matches an object that has the key, or an array that has the key as a string element.
    pub fn has_key(self, key: &str) -> Filter {
        self.containment(Containment::Key(key.to_owned()))
    }

    /// Matches if at least one of the keys is present. An empty list matches nothing.
    pub fn has_any_key<K: Into<String>>(self, keys: impl IntoIterator<Item = K>) -> Filter {
        self.containment(Containment::AnyKey(keys.into_iter().map(Into::into).collect()))
    }

    /// Matches if all of the keys are present.
    pub fn has_all_keys<K: Into<String>>(self, keys: impl IntoIterator<Item = K>) -> Filter {
        self.containment(Containment::AllKeys(keys.into_iter().map(Into::into).collect()))
    }

    /// Matches an array with an element that equals the value. If the value is an array or an
    /// object, an element that contains it is enough.
    pub fn array_contains(self, value: impl Into<Operand>) -> Filter {
        self.containment(Containment::Element(value.into()))
    }

    /// Matches an array in which each element equals one of the values.
    pub fn array_contained_by<V: Into<Operand>>(
        self,
        values: impl IntoIterator<Item = V>,
    ) -> Filter {
        let values = values.into_iter().map(Into::into).collect();
        self.containment(Containment::AllElementsIn(values))
    }

    /// Matches an array in which at least one element equals one of the values. An empty list
    /// matches nothing.
    pub fn array_overlaps<V: Into<Operand>>(self, values: impl IntoIterator<Item = V>) -> Filter {
        let values = values.into_iter().map(Into::into).collect();
        self.containment(Containment::AnyElementIn(values))
    }

    /// Matches an array of exactly `len` elements.
    pub fn len_eq(self, len: usize) -> Filter {
        self.length(CompareOp::Eq, len)
    }

    /// Matches an array whose number of elements is not `len`.
    pub fn len_ne(self, len: usize) -> Filter {
        self.length(CompareOp::Ne, len)
    }

    /// Matches an array of more than `len` elements.
    pub fn len_gt(self, len: usize) -> Filter {
        self.length(CompareOp::Gt, len)
    }

    /// Matches an array of at least `len` elements.
    pub fn len_gte(self, len: usize) -> Filter {
        self.length(CompareOp::Gte, len)
    }

    /// Matches an array of fewer than `len` elements.
    pub fn len_lt(self, len: usize) -> Filter {
        self.length(CompareOp::Lt, len)
    }

    /// Matches an array of at most `len` elements.
    pub fn len_lte(self, len: usize) -> Filter {
        self.length(CompareOp::Lte, len)
    }

    /// Matches if an [SQL/JSON path] returns at least one item for the field.
    ///
    /// The result is unknown if the path fails for a document, for example because a key is missing
    /// in strict mode. Dates and times with and without a time zone are compared in the session's
    /// `TimeZone`.
    ///
    /// There is one exception: the recursive `.**` makes the query fail (54001) if a document is
    /// nested too deeply for the server's `max_stack_depth` (thousands of levels). With a bound, as
    /// in `.**{0 to 100}`, it does not.
    ///
    /// An invalid path is a server error. The server checks some parts of a path only when
    /// it evaluates them: the template of `datetime("...")` (22007), and in recent versions a
    /// `$variable` (42704).
    ///
    /// [SQL/JSON path]: https://www.postgresql.org/docs/current/functions-json.html#FUNCTIONS-SQLJSON-PATH
    pub fn jsonpath_exists(self, path: &str) -> Filter {
        Filter::leaf(self, JsonPath { path: path.to_owned(), exists: true })
    }

    /// Matches if an SQL/JSON path that is a predicate, such as `$.a > 1`, is true. The errors are
    /// the same as for [`jsonpath_exists`](Self::jsonpath_exists).
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
        let own_type = |operand: &Operand| operand.type_name().map(|t| [t]);
        match self {
            Self::Contains(operand) => {
                let test = format!("({value} @> {}::jsonb)", sql.bind(operand.json_param()));
                sql.condition(&own_type(operand)?, &test)
            }
            Self::ContainedBy(operand) => {
                let test = format!("({value} <@ {}::jsonb)", sql.bind(operand.json_param()));
                sql.condition(&own_type(operand)?, &test)
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
                            "({test} AND EXISTS (SELECT FROM {} WHERE e.element = \
                             {list}::jsonb->0))",
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

/// Whether the value is an array or an object. For these, `@>` tests whether an element contains
/// the value, not whether an element equals it.
fn is_container(operand: &Operand) -> bool {
    matches!(operand.0, OperandKind::Container(_))
}

/// Returns the elements of an array as a relation, which is empty for other types.
fn elements(value: &str) -> String {
    format!(
        "jsonb_array_elements(CASE WHEN jsonb_typeof({value}) = 'array' THEN {value} END) \
         AS e(element)"
    )
}

/// Returns a JSON array of the values. Numbers keep all of their digits.
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
        // Of a type that an index on this expression, an integer, can be compared with. No array is
        // longer than its maximum.
        let len = i64::try_from(self.len).unwrap_or(i64::MAX);
        let len = sql.bind(Param::text(len.to_string()));
        // jsonb_array_length fails for other types, and CASE prevents its evaluation.
        Ok(format!(
            "(CASE WHEN jsonb_typeof({value}) = 'array' THEN jsonb_array_length({value}) END \
             {sign} {len}::bigint)"
        ))
    }
}

struct JsonPath {
    path: String,
    /// Whether the path must return an item. Otherwise it is a predicate that must be true.
    exists: bool,
}

impl Predicate for JsonPath {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let value = sql.jsonb()?;
        let path = sql.bind(self.path.to_param());
        let test = match (has_times(&self.path), self.exists) {
            (false, true) => format!("({value} @? {path}::jsonpath)"),
            (false, false) => format!("({value} @@ {path}::jsonpath)"),
            // The operators fail if they compare a time with a time zone and one without.
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

/// Whether a path calls a method that returns a date or a time. A wrong `true` is safe, but
/// prevents the use of an index.
fn has_times(path: &str) -> bool {
    const METHODS: &[&str] = &["datetime", "date", "time", "time_tz", "timestamp", "timestamp_tz"];
    // An escape can encode any letter of a method's name.
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
            // White space and comments are allowed before the parenthesis.
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

#[cfg(test)]
mod tests {
    use super::has_times;

    #[test]
    fn has_times_finds_methods_that_return_times() {
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
