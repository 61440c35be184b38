use std::fmt;

use serde_json::Value;

use super::{
    nesting,
    param::{Param, ToParam},
};
use crate::error::{Error, Result};

/// A value that a field is compared with: a string, a number, a boolean or any JSON value.
///
/// Numbers are exact: integers and decimals are never rounded to floats.
#[derive(Clone, PartialEq)]
pub struct Operand(pub(super) OperandKind);

#[derive(Clone, PartialEq)]
pub(super) enum OperandKind {
    Text(String),
    /// The number as JSON text.
    Number(String),
    Bool(bool),
    Null,
    /// An array or an object.
    Container(Value),
    Invalid(String),
}

macro_rules! number {
    ($($ty:ty),*) => {$(
        impl From<$ty> for Operand {
            fn from(number: $ty) -> Self {
                Self(OperandKind::Number(number.to_string()))
            }
        }
    )*};
}

number!(i8, i16, i32, i64, i128, u8, u16, u32, u64, u128, isize, usize);

/// NaN and infinities are errors when the query is executed, because JSON does not support them.
impl From<f64> for Operand {
    fn from(number: f64) -> Self {
        Self(if number.is_finite() {
            OperandKind::Number(number.to_string())
        } else {
            OperandKind::Invalid(format!("{number} is not a valid JSON number"))
        })
    }
}

/// Converts to the shortest decimal that parses to the same `f32`: 0.1 becomes 0.1.
/// NaN and infinities are errors when the query is executed.
impl From<f32> for Operand {
    fn from(number: f32) -> Self {
        Self(if number.is_finite() {
            OperandKind::Number(number.to_string())
        } else {
            OperandKind::Invalid(format!("{number} is not a valid JSON number"))
        })
    }
}

/// Keeps every digit.
#[cfg(feature = "rust_decimal")]
impl From<rust_decimal::Decimal> for Operand {
    fn from(number: rust_decimal::Decimal) -> Self {
        Self(OperandKind::Number(number.to_string()))
    }
}

/// Converts to text, because JSON has no UUIDs.
#[cfg(feature = "uuid")]
impl From<uuid::Uuid> for Operand {
    fn from(id: uuid::Uuid) -> Self {
        Self(OperandKind::Text(id.to_string()))
    }
}

impl From<bool> for Operand {
    fn from(value: bool) -> Self {
        Self(OperandKind::Bool(value))
    }
}

impl From<&str> for Operand {
    fn from(text: &str) -> Self {
        Self(OperandKind::Text(text.to_owned()))
    }
}

impl From<String> for Operand {
    fn from(text: String) -> Self {
        Self(OperandKind::Text(text))
    }
}

impl From<&String> for Operand {
    fn from(text: &String) -> Self {
        Self(OperandKind::Text(text.clone()))
    }
}

impl From<char> for Operand {
    fn from(c: char) -> Self {
        Self(OperandKind::Text(c.to_string()))
    }
}

impl From<Value> for Operand {
    fn from(value: Value) -> Self {
        Self(match value {
            Value::Null => OperandKind::Null,
            Value::Bool(value) => OperandKind::Bool(value),
            Value::Number(number) => OperandKind::Number(number.to_string()),
            Value::String(text) => OperandKind::Text(text),
            container => match nesting::check_depth(&container) {
                Ok(()) => OperandKind::Container(container),
                Err(_) => {
                    nesting::dismantle(container);
                    OperandKind::Invalid(format!("a value {}", nesting::too_deep()))
                }
            },
        })
    }
}

impl Operand {
    /// The name of its type, as returned by `jsonb_typeof`.
    pub(super) fn type_name(&self) -> Result<&'static str> {
        match &self.0 {
            OperandKind::Text(_) => Ok("string"),
            OperandKind::Number(_) => Ok("number"),
            OperandKind::Bool(_) => Ok("boolean"),
            OperandKind::Null => Ok("null"),
            OperandKind::Container(Value::Array(_)) => Ok("array"),
            OperandKind::Container(_) => Ok("object"),
            OperandKind::Invalid(why) => Err(Error::config(why.clone())),
        }
    }

    /// Its JSON value, except for numbers.
    pub(super) fn json(&self) -> Value {
        match &self.0 {
            OperandKind::Text(text) => text.as_str().into(),
            OperandKind::Bool(value) => (*value).into(),
            OperandKind::Container(value) => value.clone(),
            // `json_text` writes numbers itself, to keep every digit.
            OperandKind::Number(_) | OperandKind::Null | OperandKind::Invalid(_) => Value::Null,
        }
    }

    /// Its JSON text. Numbers keep every digit.
    pub(super) fn json_text(&self) -> String {
        match &self.0 {
            OperandKind::Number(digits) => digits.clone(),
            _ => self.json().to_string(),
        }
    }

    /// Converts to a parameter of type `jsonb`.
    pub(super) fn json_param(&self) -> Param {
        let contains_nul = match &self.0 {
            OperandKind::Text(text) => text.contains('\0'),
            OperandKind::Container(value) => contains_nul(value),
            _ => false,
        };
        if contains_nul {
            Param::invalid("contains a NUL character, which jsonb does not support")
        } else {
            Param::text(self.json_text())
        }
    }

    /// Converts to a parameter of a column's type.
    pub(super) fn plain_param(&self) -> Param {
        match &self.0 {
            OperandKind::Text(text) => text.to_param(),
            OperandKind::Null => None::<String>.to_param(),
            _ => self.json_param(),
        }
    }
}

fn contains_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(contains_nul),
        Value::Object(entries) => entries.iter().any(|(k, v)| k.contains('\0') || contains_nul(v)),
        _ => false,
    }
}

/// Shows only the type, because values are user data.
impl fmt::Debug for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operand({})", self.type_name().unwrap_or("invalid"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_param_rejects_nul_anywhere_in_a_value() {
        let sent = |value: Value| Operand::from(value).json_param().sent(1).map(|_| ());
        for value in [
            json!("a\0"),
            json!(["a", "\0"]),
            json!({"\0": "a"}),
            json!({"a": "\0"}),
            json!({"a": [{"b": ["\0"]}]}),
        ] {
            let error = sent(value).unwrap_err().to_string();
            assert!(error.contains("$1 contains a NUL"), "{error}");
        }
        for value in [json!("\\u0000"), json!(["0", 0, null, false]), json!({"a": {"b": "c"}})] {
            sent(value).unwrap();
        }
    }

    /// For a column, JSON's null becomes SQL's NULL.
    #[test]
    fn plain_param_sends_values_without_json_syntax() {
        let sent =
            |value: Value| Operand::from(value).plain_param().sent(1).unwrap().map(str::to_owned);
        assert_eq!(sent(json!(null)), None);
        assert_eq!(sent(json!("null")).as_deref(), Some("null"));
        assert_eq!(sent(json!("a\"b")).as_deref(), Some("a\"b"));
        assert_eq!(sent(json!(1.5)).as_deref(), Some("1.5"));
    }

    #[test]
    fn debug_shows_the_type_and_never_the_value() {
        for (value, shown) in [
            (json!("planted"), "Operand(string)"),
            (json!(["planted"]), "Operand(array)"),
            (json!({"planted": 1}), "Operand(object)"),
        ] {
            assert_eq!(format!("{:?}", Operand::from(value)), shown);
        }
        assert_eq!(format!("{:?}", Operand::from(f64::NAN)), "Operand(invalid)");
    }
}
