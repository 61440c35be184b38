use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::SystemTime,
};

#[cfg(feature = "chrono")]
use chrono::Datelike;
use serde_json::Value;

#[cfg(any(feature = "chrono", feature = "time"))]
use super::date::iso_offset;
#[cfg(feature = "time")]
use super::date::time_time;
#[cfg(feature = "chrono")]
use super::date::{chrono_local, chrono_time};
use super::{
    date::{self, iso_date, iso_time},
    nesting,
    param::{Param, ToParam},
};
use crate::error::{Error, Result};

/// A value that a field is compared with.
///
/// | Rust | JSON |
/// |---|---|
/// | `&str`, `String`, `Cow<str>`, `Box<str>`, `Arc<str>`, `char` | a string |
/// | integers; with the feature `rust_decimal`: `Decimal` | a number, exact: never rounded to a float |
/// | `f32`, `f64` | the shortest decimal of this float; NaN and infinities are an error |
/// | `bool` | a boolean |
/// | [`serde_json::Value`] | the value |
/// | [`IpAddr`], [`Ipv4Addr`], [`Ipv6Addr`]; with the feature `uuid`: `Uuid` | a string |
/// | [`SystemTime`]; with the features `chrono` and `time`: the dates and times of these crates | a string: see [Dates](#dates) |
/// | `Option` of these | the value, or null: see [Option](#option) |
/// | references to these | the same |
///
/// # Dates
///
/// JSON has no dates, so fields of documents are compared with the text that `to_jsonb` and
/// `row_to_json` create: `2026-01-31`, `12:30:00.5`, `2026-01-31T12:30:00.5+00:00`. Digits after
/// the microsecond are dropped. A year before 1 or after 9999 is an
/// [`Error::Config`](crate::Error::Config) when the query is executed.
///
/// * **A [`Field::column`](crate::Field::column)** of type `timestamptz` or `date` is compared by
///   time, in any time zone.
/// * **A field with another UTC offset** is not equal, and its order is not by time. [`SystemTime`]
///   and `DateTime<Utc>` have `+00:00`; other types keep their own offset. `to_jsonb` uses the
///   session's `TimeZone`, so set it to UTC:
///   [`param("TimeZone", "UTC")`](crate::ConnectionConfigBuilder::param).
/// * **A field in another format**, such as `2026-01-31T12:30:00.500Z`, must be compared with a
///   string in that format.
/// * **Times within one second** are ordered by the characters after the seconds, `+` or `.`. The
///   order is by time in the collation `C`, but not in ICU's.
///
/// # Option
///
/// | operator | `None` |
/// |---|---|
/// | `eq`, `in_` | JSON's null; a missing field does not match. NULL in a column |
/// | `ne`, `not_in` with nothing else | matches a column that is not NULL. For a field, an [`Error::Config`](crate::Error::Config), because no field can match: use [`is_not_null`](crate::Field::is_not_null) |
/// | `contains_json`, `contained_by`, `array_contains`, `array_contained_by`, `array_overlaps` | JSON's null |
/// | `gt`, `gte`, `lt`, `lte`, `between` | `Error::Config` |
///
/// `eq(None)` does not mean "any value". For an optional condition, add the filter only if there is
/// a value.
///
/// # Example
///
/// ```
/// use std::{net::Ipv4Addr, time::SystemTime};
///
/// use fraiseql_wire::field;
///
/// let (ids, parent): ([u64; 2], Option<&str>) = ([1, 2], None);
/// let filter = field("id").in_(&ids)
///     & field("parent").eq(parent)
///     & field("address").eq(Ipv4Addr::LOCALHOST)
///     & field("expires").gt(SystemTime::now());
/// ```
#[derive(Clone, PartialEq)]
pub struct Operand(pub(super) OperandKind);

#[derive(Clone, PartialEq)]
pub(super) enum OperandKind {
    Text(String),
    /// The number as JSON text.
    Number(String),
    Bool(bool),
    Null,
    /// JSON's null from an `Option`, which is an error if it can match nothing.
    None,
    /// An array or an object.
    Container(Value),
    Invalid(String),
}

/// Converts a reference to an [`Operand`].
#[diagnostic::on_unimplemented(
    message = "a field cannot be compared with `{Self}`",
    note = "the documentation of `Operand` lists the types it can be compared with"
)]
pub trait ToOperand {
    #[doc(hidden)]
    fn to_operand(&self) -> Operand;
}

/// Converts references, also to references.
impl<T: ToOperand + ?Sized> From<&T> for Operand {
    fn from(value: &T) -> Self {
        value.to_operand()
    }
}

impl<T: ToOperand + ?Sized> ToOperand for &T {
    fn to_operand(&self) -> Operand {
        T::to_operand(self)
    }
}

/// `None` is JSON's null: see [`Option`](Operand#option).
impl<T: Into<Operand>> From<Option<T>> for Operand {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self(OperandKind::None), T::into)
    }
}

impl<T: ToOperand> ToOperand for Option<T> {
    fn to_operand(&self) -> Operand {
        self.as_ref().into()
    }
}

/// Implements both conversions: of a value and of a reference.
macro_rules! operand {
    (#[doc = $doc:literal] $($ty:ty),* => |$value:ident| $kind:expr) => {$(
        #[doc = $doc]
        impl From<$ty> for Operand {
            fn from(value: $ty) -> Self {
                value.to_operand()
            }
        }

        impl ToOperand for $ty {
            fn to_operand(&self) -> Operand {
                let $value = self;
                Operand($kind)
            }
        }
    )*};
}

operand!(
    /// Keeps every digit.
    i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize
    => |number| OperandKind::Number(number.to_string())
);

operand!(
    /// Converts to the shortest decimal of the same float; NaN and infinities are `Error::Config`.
    f32, f64 => |number| if number.is_finite() {
        OperandKind::Number(number.to_string())
    } else {
        OperandKind::Invalid(format!("{number} is not a valid JSON number"))
    }
);

#[cfg(feature = "rust_decimal")]
operand!(
    /// Keeps every digit.
    rust_decimal::Decimal => |number| OperandKind::Number(number.to_string())
);

#[cfg(feature = "uuid")]
operand!(
    /// Converts to text, because JSON has no UUIDs.
    uuid::Uuid => |id| OperandKind::Text(id.to_string())
);

operand!(
    /// Converts to text, because JSON has no addresses.
    IpAddr, Ipv4Addr, Ipv6Addr => |address| OperandKind::Text(address.to_string())
);

operand!(
    /// Converts to a JSON boolean.
    bool => |value| OperandKind::Bool(*value)
);

operand!(
    /// Converts to text of one character.
    char => |c| OperandKind::Text(c.to_string())
);

operand!(
    /// Copies the text.
    Cow<'_, str>, Box<str>, Arc<str> => |text| OperandKind::Text(text.as_ref().to_owned())
);

impl From<String> for Operand {
    fn from(text: String) -> Self {
        Self(OperandKind::Text(text))
    }
}

impl ToOperand for String {
    fn to_operand(&self) -> Operand {
        self.as_str().to_operand()
    }
}

impl ToOperand for str {
    fn to_operand(&self) -> Operand {
        Operand(OperandKind::Text(self.to_owned()))
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

impl ToOperand for Value {
    fn to_operand(&self) -> Operand {
        match nesting::check_depth(self) {
            Ok(()) => self.clone().into(),
            // Cloning a value recurses into it, and would overflow the stack.
            Err(_) => Operand(OperandKind::Invalid(format!("a value {}", nesting::too_deep()))),
        }
    }
}

operand!(
    /// Converts to text: see [Dates](Operand#dates).
    SystemTime => |time| match date::utc(*time) {
        Some(utc) => dated(iso_date(utc.year, utc.month, utc.day), || {
            let time = iso_time(utc.hour, utc.minute, utc.second, 1000 * utc.micros);
            format!("T{time}+00:00")
        }),
        None => OperandKind::Invalid("a SystemTime is out of the range of dates".into()),
    }
);

/// Appends the rest to a date.
fn dated(date: Result<String, &str>, rest: impl FnOnce() -> String) -> OperandKind {
    match date {
        Ok(date) => OperandKind::Text(date + &rest()),
        Err(why) => OperandKind::Invalid(why.to_owned()),
    }
}

#[cfg(feature = "chrono")]
fn chrono_date(date: &impl Datelike) -> Result<String, &'static str> {
    iso_date(date.year().into(), date.month(), date.day())
}

#[cfg(feature = "chrono")]
operand!(
    /// Converts to text: see [Dates](Operand#dates).
    chrono::NaiveDate => |v| dated(chrono_date(v), String::new)
);

#[cfg(feature = "chrono")]
operand!(
    /// Converts to text: see [Dates](Operand#dates).
    chrono::NaiveTime => |v| OperandKind::Text(chrono_time(v))
);

#[cfg(feature = "chrono")]
operand!(
    /// Converts to text: see [Dates](Operand#dates).
    chrono::NaiveDateTime => |v| dated(chrono_date(v), || format!("T{}", chrono_time(v)))
);

/// Converts to text: see [Dates](Operand#dates).
#[cfg(feature = "chrono")]
impl<Tz: chrono::TimeZone> From<chrono::DateTime<Tz>> for Operand {
    fn from(value: chrono::DateTime<Tz>) -> Self {
        value.to_operand()
    }
}

#[cfg(feature = "chrono")]
impl<Tz: chrono::TimeZone> ToOperand for chrono::DateTime<Tz> {
    fn to_operand(&self) -> Operand {
        let (local, offset) = chrono_local(self);
        let time = || format!("T{}{}", chrono_time(&local), iso_offset(offset));
        Operand(dated(chrono_date(&local), time))
    }
}

#[cfg(feature = "time")]
fn time_date(date: time::Date) -> Result<String, &'static str> {
    iso_date(date.year().into(), u8::from(date.month()).into(), date.day().into())
}

#[cfg(feature = "time")]
operand!(
    /// Converts to text: see [Dates](Operand#dates).
    time::Date => |v| dated(time_date(*v), String::new)
);

#[cfg(feature = "time")]
operand!(
    /// Converts to text: see [Dates](Operand#dates).
    time::Time => |v| OperandKind::Text(time_time(*v))
);

#[cfg(feature = "time")]
operand!(
    /// Converts to text: see [Dates](Operand#dates).
    time::PrimitiveDateTime
        => |v| dated(time_date(v.date()), || format!("T{}", time_time(v.time())))
);

#[cfg(feature = "time")]
operand!(
    /// Converts to text: see [Dates](Operand#dates).
    time::OffsetDateTime => |v| dated(time_date(v.date()), || {
        format!("T{}{}", time_time(v.time()), iso_offset(v.offset().whole_seconds()))
    })
);

impl Operand {
    /// The name of its type, as returned by `jsonb_typeof`.
    pub(super) fn type_name(&self) -> Result<&'static str> {
        match &self.0 {
            OperandKind::Text(_) => Ok("string"),
            OperandKind::Number(_) => Ok("number"),
            OperandKind::Bool(_) => Ok("boolean"),
            OperandKind::Null | OperandKind::None => Ok("null"),
            OperandKind::Container(Value::Array(_)) => Ok("array"),
            OperandKind::Container(_) => Ok("object"),
            OperandKind::Invalid(why) => Err(Error::config(why.clone())),
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.0, OperandKind::Null | OperandKind::None)
    }

    /// Its JSON value, except for numbers.
    pub(super) fn json(&self) -> Value {
        match &self.0 {
            OperandKind::Text(text) => text.as_str().into(),
            OperandKind::Bool(value) => (*value).into(),
            OperandKind::Container(value) => value.clone(),
            // `json_text` writes numbers itself, to keep every digit.
            OperandKind::Number(_)
            | OperandKind::Null
            | OperandKind::None
            | OperandKind::Invalid(_) => Value::Null,
        }
    }

    /// Its JSON text. Numbers keep every digit.
    pub(super) fn json_text(&self) -> String {
        match &self.0 {
            OperandKind::Number(digits) => digits.clone(),
            _ => self.json().to_string(),
        }
    }

    /// Its JSON text as a key of `resume_by`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: it is not a number or a string, or `jsonb` does not support it.
    pub(crate) fn as_key(&self) -> Result<String> {
        match (&self.0, self.type_name()?) {
            (OperandKind::Text(text), _) if text.contains('\0') => Err(Error::config(
                "the key of resume_after() contains a NUL character, which jsonb does not support",
            )),
            (OperandKind::Text(_) | OperandKind::Number(_), _) => Ok(self.json_text()),
            (_, other) => Err(Error::config(format!(
                "the key of resume_after() is of type {other}: expected a number or a string"
            ))),
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
            OperandKind::Null | OperandKind::None => None::<String>.to_param(),
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

    #[cfg(feature = "chrono")]
    #[test]
    fn date_beyond_the_range_of_chrono_is_an_error() {
        use chrono::{DateTime, FixedOffset, Utc};
        let at = |time: DateTime<Utc>, hours: i32| {
            Operand::from(time.with_timezone(&FixedOffset::east_opt(hours * 3600).unwrap()))
        };
        for operand in [at(DateTime::<Utc>::MAX_UTC, 1), at(DateTime::<Utc>::MIN_UTC, -1)] {
            assert!(matches!(operand.0, OperandKind::Invalid(_)), "{operand:?}");
        }
    }
}
