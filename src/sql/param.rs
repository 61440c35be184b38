use std::{
    borrow::Cow,
    fmt::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

#[cfg(any(feature = "chrono", feature = "time"))]
use super::date::iso_offset;
#[cfg(feature = "time")]
use super::date::time_time;
#[cfg(feature = "chrono")]
use super::date::{chrono_local, chrono_time};
use super::{date, nesting};
use crate::error::{Error, Result};

/// The value of one parameter, in Postgres's text format.
#[derive(Clone)]
pub struct Param {
    value: ParamValue,
    /// Whether the value is an array. Inside another array, an array is not quoted.
    is_array: bool,
}

#[derive(Clone)]
enum ParamValue {
    Null,
    Value(String),
    /// A value that cannot be sent, and the reason.
    Invalid(String),
}

impl Param {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { value: ParamValue::Value(text.into()), is_array: false }
    }

    fn null() -> Self {
        Self { value: ParamValue::Null, is_array: false }
    }

    pub(super) fn invalid(why: impl Into<String>) -> Self {
        Self { value: ParamValue::Invalid(why.into()), is_array: false }
    }

    pub(super) fn json(value: &impl Serialize) -> Self {
        match nesting::to_json(value) {
            Ok(text) => Self::text(text),
            Err(e) => Self::invalid(format!("cannot be serialized as JSON: {e}")),
        }
    }

    /// Formats a list as a [Postgres array]. Every element is quoted, so none can be mistaken for
    /// NULL or for syntax.
    ///
    /// [Postgres array]: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    pub(super) fn array(elements: impl IntoIterator<Item = Self>) -> Self {
        let mut text = String::from("{");
        for element in elements {
            if text.len() > 1 {
                text.push(',');
            }
            match element.value {
                ParamValue::Null => text.push_str("NULL"),
                ParamValue::Value(value) if element.is_array => text.push_str(&value),
                ParamValue::Value(value) => {
                    text.push('"');
                    for c in value.chars() {
                        if matches!(c, '"' | '\\') {
                            text.push('\\');
                        }
                        text.push(c);
                    }
                    text.push('"');
                }
                ParamValue::Invalid(why) => return Self::invalid(why),
            }
        }
        text.push('}');
        Self { value: ParamValue::Value(text), is_array: true }
    }

    /// Converts to an element of an array of texts, even if the value is an array itself.
    pub(super) fn into_element(self) -> Self {
        Self { is_array: false, ..self }
    }

    /// Returns the text to send for parameter `number`, or `None` for NULL.
    pub(crate) fn sent(&self, number: usize) -> Result<Option<&str>> {
        match &self.value {
            ParamValue::Null => Ok(None),
            ParamValue::Value(text) => Ok(Some(text)),
            ParamValue::Invalid(why) => Err(Error::config(format!("the value of ${number} {why}"))),
        }
    }
}

/// A value that [`bind`](crate::QueryBuilder::bind) can send for `$1`, `$2`, ...
///
/// Values are always sent as parameters and never become a part of the SQL text. They are sent in
/// Postgres's text format without a type: the server infers the type from the SQL around the
/// parameter. If it infers the wrong type, add a cast to the SQL: `$1::int`.
///
/// | Rust | sent as |
/// |---|---|
/// | `bool`, integers, floats | the same text as in Rust, such as `true`, `1.5`, `NaN` or `inf` |
/// | `&str`, `String`, `Cow<str>`, `Box<str>`, `Arc<str>`, `char` | text |
/// | `Vec<u8>`, `&[u8]`, [`Bytes`] | `bytea` |
/// | [`serde_json::Value`], [`Json`] | JSON |
/// | `Option` | the value, or NULL |
/// | `Vec`, slices and arrays of these | an array: `= any($1)` |
/// | [`IpAddr`], [`Ipv4Addr`], [`Ipv6Addr`] | `inet` |
/// | [`SystemTime`] | `timestamptz`, to the microsecond, from 4713 BC to 294276 |
/// | [`Duration`] | `interval`, to the microsecond |
/// | with the features `uuid`, `rust_decimal`, `chrono`, `time`: the types of these crates | `uuid`, `numeric`, dates and times to the microsecond |
///
/// An integer must fit the type that the server infers: `n = $1` for a column of type `integer`
/// rejects a larger number (22003). Every `u128` and `i128` fits `numeric`, without rounding: write
/// `n = $1::numeric`.
///
/// Text that contains a NUL character is an error when the query is executed, because Postgres does
/// not support it.
///
/// This trait is sealed: only this crate can implement it.
///
/// ```no_run
/// # use fraiseql_wire::{FraiseClient, RawJson, Result};
/// use std::net::Ipv4Addr;
///
/// # async fn run(client: &FraiseClient) -> Result<()> {
/// let query = client.query::<RawJson>("v_login").where_sql("address = $1 and id = any($2)");
/// let logins = query.bind(Ipv4Addr::LOCALHOST).bind([1, 2, 3]).fetch_all().await?;
/// # Ok(())
/// # }
/// ```
pub trait ToParam: sealed::Sealed {
    #[doc(hidden)]
    fn to_param(&self) -> Param;

    #[doc(hidden)]
    fn list_to_param(list: &[Self]) -> Param
    where
        Self: Sized,
    {
        Param::array(list.iter().map(Self::to_param))
    }
}

mod sealed {
    pub trait Sealed {}
}

/// Sends any value that serde can serialize as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

macro_rules! to_param {
    ($($ty:ty),* => |$value:ident| $param:expr) => {$(
        impl sealed::Sealed for $ty {}
        impl ToParam for $ty {
            fn to_param(&self) -> Param {
                let $value = self;
                $param
            }
        }
    )*};
}

// Postgres accepts the text that Rust prints for these types. Floats are printed in the shortest
// form that parses to the same value, NaN as NaN and infinity as inf.
to_param!(
    bool, i8, i16, i32, i64, i128, isize, u16, u32, u64, u128, usize, f32, f64, char,
    IpAddr, Ipv4Addr, Ipv6Addr
    => |v| Param::text(v.to_string())
);
to_param!(
    str, String, Cow<'_, str>, Box<str>, Arc<str> => |v| Param::text(AsRef::<str>::as_ref(v))
);
to_param!(Bytes => |v| bytea(v));
to_param!(Value => |v| Param::json(v));
to_param!(SystemTime => |v| timestamp(*v));
to_param!(Duration => |v| Param::text(format!("{}.{:06} seconds", v.as_secs(), v.subsec_micros())));

#[cfg(feature = "uuid")]
to_param!(uuid::Uuid => |v| Param::text(v.to_string()));
#[cfg(feature = "rust_decimal")]
to_param!(rust_decimal::Decimal => |v| Param::text(v.to_string()));
#[cfg(feature = "chrono")]
to_param!(chrono::NaiveDate => |v| dated(v, ""));
#[cfg(feature = "chrono")]
to_param!(chrono::NaiveTime => |v| Param::text(chrono_time(v)));
#[cfg(feature = "chrono")]
to_param!(chrono::NaiveDateTime => |v| dated(v.date(), &format!(" {}", chrono_time(v))));
#[cfg(feature = "chrono")]
impl<Tz: chrono::TimeZone> sealed::Sealed for chrono::DateTime<Tz> {}
#[cfg(feature = "chrono")]
impl<Tz: chrono::TimeZone> ToParam for chrono::DateTime<Tz> {
    fn to_param(&self) -> Param {
        let (local, offset) = chrono_local(self);
        dated(local.date(), &format!("T{}{}", chrono_time(&local), iso_offset(offset)))
    }
}
#[cfg(feature = "time")]
to_param!(time::Date => |v| dated(v, ""));
#[cfg(feature = "time")]
to_param!(time::Time => |v| Param::text(time_time(*v)));
#[cfg(feature = "time")]
to_param!(time::PrimitiveDateTime => |v| dated(v.date(), &format!(" {}", time_time(v.time()))));
#[cfg(feature = "time")]
to_param!(time::OffsetDateTime => |v| {
    let (time, offset) = (time_time(v.time()), iso_offset(v.offset().whole_seconds()));
    dated(v.date(), &format!(" {time}{offset}"))
});

/// Appends the rest to a date in ISO 8601, which Postgres accepts with any `DateStyle`. It accepts
/// no sign before the year.
#[cfg(any(feature = "chrono", feature = "time"))]
fn dated(date: impl fmt::Display, rest: &str) -> Param {
    let date = date.to_string();
    // The year 0 is 1 BC, and Postgres has none.
    if date.starts_with('-') || date.starts_with("0000-") {
        return Param::invalid("is before the year 1: bind it as text with BC");
    }
    Param::text(format!("{}{rest}", date.trim_start_matches('+')))
}

/// A list of bytes is one value of type `bytea`, not an array of numbers.
impl sealed::Sealed for u8 {}
impl ToParam for u8 {
    fn to_param(&self) -> Param {
        Param::text(self.to_string())
    }

    fn list_to_param(list: &[Self]) -> Param {
        bytea(list)
    }
}

impl<T: Serialize> sealed::Sealed for Json<T> {}
impl<T: Serialize> ToParam for Json<T> {
    fn to_param(&self) -> Param {
        Param::json(&self.0)
    }
}

/// `None` is NULL. In SQL, `= NULL` matches nothing: use `is not distinct from $1`.
impl<T: ToParam> sealed::Sealed for Option<T> {}
impl<T: ToParam> ToParam for Option<T> {
    fn to_param(&self) -> Param {
        self.as_ref().map_or(Param::null(), T::to_param)
    }
}

impl<T: ToParam + ?Sized> sealed::Sealed for &T {}
impl<T: ToParam + ?Sized> ToParam for &T {
    fn to_param(&self) -> Param {
        T::to_param(self)
    }
}

impl<T: ToParam> sealed::Sealed for [T] {}
impl<T: ToParam> ToParam for [T] {
    fn to_param(&self) -> Param {
        T::list_to_param(self)
    }
}

impl<T: ToParam, const N: usize> sealed::Sealed for [T; N] {}
impl<T: ToParam, const N: usize> ToParam for [T; N] {
    fn to_param(&self) -> Param {
        T::list_to_param(self)
    }
}

impl<T: ToParam> sealed::Sealed for Vec<T> {}
impl<T: ToParam> ToParam for Vec<T> {
    fn to_param(&self) -> Param {
        T::list_to_param(self)
    }
}

fn bytea(bytes: &[u8]) -> Param {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Param::text(text)
}

/// Postgres accepts years of up to six digits, and BC.
fn timestamp(time: SystemTime) -> Param {
    /// The first and the last day of `timestamptz`.
    const RANGE: RangeInclusive<(i128, u32, u32)> = (-4713, 11, 24)..=(294_276, 12, 31);
    let utc = date::utc(time).filter(|utc| RANGE.contains(&(utc.year, utc.month, utc.day)));
    let Some(utc) = utc else {
        return Param::invalid("is out of the range of timestamptz");
    };
    let (year, era) = if utc.year > 0 { (utc.year, "") } else { (1 - utc.year, " BC") };
    Param::text(format!(
        "{year:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00{era}",
        utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.micros
    ))
}

/// Does not show the value, because values are user data.
impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.value {
            ParamValue::Null => "Param(NULL)",
            _ => "Param(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn sent(value: impl ToParam) -> Option<String> {
        value.to_param().sent(1).unwrap().map(str::to_owned)
    }

    #[test]
    fn array_quotes_each_element() {
        assert_eq!(
            sent(vec!["a", "b\"\\{},", "NULL", ""]).unwrap(),
            r#"{"a","b\"\\{},","NULL",""}"#
        );
        assert_eq!(sent(vec![Some(1), None]).unwrap(), r#"{"1",NULL}"#);
        assert_eq!(sent(Vec::<i32>::new()).unwrap(), "{}");
        assert_eq!(sent(vec![vec![1, 2], vec![3, 4]]).unwrap(), r#"{{"1","2"},{"3","4"}}"#);
        assert_eq!(sent([true, false]).unwrap(), r#"{"true","false"}"#);
        assert_eq!(sent(&["x"][..]).unwrap(), r#"{"x"}"#);
    }

    #[test]
    fn bytes_are_sent_as_one_bytea_value() {
        assert_eq!(sent(vec![0u8, 255]).unwrap(), r"\x00ff");
        assert_eq!(sent(&b"\x01"[..]).unwrap(), r"\x01");
        assert_eq!(sent(vec![vec![1u8], vec![]]).unwrap(), r#"{"\\x01","\\x"}"#);
    }

    /// The expected dates are from GNU date, for which 1 BC is the year 0.
    #[test]
    fn system_time_before_and_after_1970_and_year_1_has_the_correct_date() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_827_696, "2000-02-29 12:34:56"),
            (-62_135_596_801, "0001-12-31 23:59:59 BC"),
            (-62_162_035_200, "0001-03-01 00:00:00 BC"),
            (-77_841_475_200, "0498-04-22 00:00:00 BC"),
        ] {
            let distance = Duration::from_secs(i64::unsigned_abs(seconds));
            let time = if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            let (date, era) = expected.split_at(19);
            assert_eq!(sent(time).unwrap(), format!("{date}.000000+00{era}"));
        }
        let before = UNIX_EPOCH - Duration::from_micros(1);
        assert_eq!(sent(before).unwrap(), "1969-12-31 23:59:59.999999+00");
    }

    /// The last and the first moment of timestamptz, and the moments after and before them. The
    /// `SystemTime` of Windows ends before the last one.
    #[test]
    #[cfg(not(windows))]
    fn system_time_beyond_timestamptz_is_an_error() {
        let last = UNIX_EPOCH + Duration::from_secs(9_224_318_015_999);
        assert_eq!(sent(last).unwrap(), "294276-12-31 23:59:59.000000+00");
        let first = UNIX_EPOCH - Duration::from_secs(210_866_803_200);
        assert_eq!(sent(first).unwrap(), "4714-11-24 00:00:00.000000+00 BC");
        for beyond in [last + Duration::from_secs(1), first - Duration::from_micros(1)] {
            let error = beyond.to_param().sent(3).unwrap_err().to_string();
            assert!(error.contains("$3 is out of the range of timestamptz"), "{error}");
        }
    }

    /// Counts months one by one for more than 400 years, after which the calendar repeats.
    #[test]
    fn system_time_has_the_correct_date_on_the_first_and_last_day_of_every_month() {
        let mut day = 0;
        for year in 1970..=2410 {
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let february = if is_leap { 29 } else { 28 };
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (month, length) in (1..).zip(lengths) {
                for of_month in [1, length] {
                    let time = UNIX_EPOCH + Duration::from_secs(86_400 * (day + of_month - 1));
                    let expected = format!("{year}-{month:02}-{of_month:02} 00:00:00.000000+00");
                    assert_eq!(sent(time).unwrap(), expected);
                }
                day += length;
            }
        }
    }

    #[test]
    fn debug_never_shows_the_value() {
        assert_eq!(format!("{:?}", "planted".to_param()), "Param(..)");
        assert_eq!(format!("{:?}", None::<i32>.to_param()), "Param(NULL)");
    }

    #[test]
    fn json_that_does_not_serialize_is_an_error() {
        let map = std::collections::HashMap::from([((1, 2), 3)]);
        let error = Json(map).to_param().sent(2).unwrap_err().to_string();
        assert!(error.contains("$2 cannot be serialized"), "{error}");
    }

    #[cfg(feature = "chrono")]
    #[test]
    fn date_before_the_year_1_is_an_error() {
        for year in [0, -1] {
            let date = chrono::NaiveDate::from_ymd_opt(year, 1, 1).unwrap();
            assert!(date.to_param().sent(1).is_err(), "{year}");
            assert!(date.and_hms_opt(0, 0, 0).unwrap().and_utc().to_param().sent(1).is_err());
        }
        let first = chrono::NaiveDate::from_ymd_opt(1, 1, 1).unwrap();
        assert_eq!(sent(first).unwrap(), "0001-01-01");
    }
}
