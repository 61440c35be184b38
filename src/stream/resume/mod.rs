//! Resuming a query after its last row, on a new connection.

use std::{borrow::Cow, cmp::Ordering, fmt, mem};

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::plan::{encode, unnamed};
use crate::{
    error::{DbError, Error, Result, TimeoutPhase, sqlstate},
    protocol::rows::{self, Run},
    sql::{Field, Select},
};

/// The state of a query that can be resumed.
pub(super) struct ResumeState {
    select: Select,
    /// The key that orders the rows.
    key: Field,
    /// The key of the last row, as JSON.
    last: Option<String>,
    rows: u64,
    /// Whether rows without the key, which the current request omits, still have to be requested.
    check_missing_key: bool,
    /// The part of the current run that was checked.
    checked: Run,
    /// The number of resumptions since the last row.
    pub(super) attempts_without_progress: u32,
}

impl ResumeState {
    pub(super) fn new(select: &Select, key: &Field) -> Self {
        Self {
            select: select.clone(),
            key: key.clone(),
            last: None,
            rows: 0,
            check_missing_key: false,
            checked: Run::default(),
            attempts_without_progress: 0,
        }
    }

    /// Checks the keys of a run of rows, each once. Truncates the run before a row with an invalid
    /// key.
    pub(super) fn record(&mut self, buffer: &[u8], run: &mut Run) -> Result<()> {
        while self.checked.rows < run.rows {
            let Some((value, next)) = rows::value_at(buffer, self.checked.frame_bytes) else {
                break;
            };
            let bytes = value.as_ref().map_or(0, |range| range.len());
            let document = value.and_then(|range| buffer.get(range)).unwrap_or(b"null");
            match self.next_key(document) {
                Ok(key) => self.last = Some(key),
                Err(e) => {
                    *run = self.checked;
                    return Err(e);
                }
            }
            self.checked.rows += 1;
            self.checked.frame_bytes = next;
            self.checked.value_bytes += bytes;
            self.rows += 1;
            self.attempts_without_progress = 0;
        }
        Ok(())
    }

    /// Starts a new run, after the current one was enqueued.
    pub(super) fn next_run(&mut self) {
        self.checked = Run::default();
    }

    /// Returns the key of the next row.
    fn next_key(&self, document: &[u8]) -> Result<String> {
        let wrong = |what: String| {
            Error::config(format!(
                "resume_by({:?}): row {} {what}; keys must be unique numbers or strings",
                self.key.keys().unwrap_or_default().join("."),
                self.rows + 1
            ))
        };
        let mut json = serde_json::Deserializer::from_slice(document);
        let key = KeyVisitor(self.key.keys()?).deserialize(&mut json);
        let key = match key.and_then(|key| json.end().map(|()| key)) {
            Ok(Some(key)) => key.get(),
            Ok(None) => return Err(wrong("does not have this field".into())),
            Err(e) => return Err(wrong(format!("is not JSON ({e})"))),
        };
        let kind = KeyKind::of(key).ok_or_else(|| wrong(format!("has the key {key}")))?;
        let Some(last) = &self.last else { return Ok(key.to_owned()) };
        if KeyKind::of(last) != Some(kind) {
            return Err(wrong(format!("has the key {key} after {last}")));
        }
        // Only the server knows the order of strings.
        let increases = match kind {
            KeyKind::Number => compare(last, key) == Ordering::Less,
            // In `json`, the same string can have several representations.
            KeyKind::String => text(last) != text(key),
        };
        if increases {
            Ok(key.to_owned())
        } else {
            Err(wrong(format!("has the key {key} after {last}")))
        }
    }

    /// Returns the request for the rows after the last one.
    pub(super) fn next_request(&mut self) -> Result<Bytes> {
        self.check_missing_key = self.last.is_some();
        match &self.last {
            Some(last) => request(&self.select.after(&self.key, last, self.rows)),
            None => request(&self.select),
        }
    }

    /// Returns one more request after a resumed query, which checks for rows without the key. They
    /// sort last and would otherwise be missed. Such a row is an error with and without a
    /// resumption.
    pub(super) fn missing_key_request(&mut self) -> Result<Option<Bytes>> {
        if !mem::take(&mut self.check_missing_key) {
            return Ok(None);
        }
        request(&self.select.without_key(&self.key, self.rows)).map(Some)
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }
}

/// Returns whether a query can be resumed after this error.
pub(super) fn is_transient(error: &Error) -> bool {
    match error {
        Error::Timeout { phase, .. } => *phase == TimeoutPhase::Read,
        // A conflict with recovery on a standby.
        Error::Server(e) if *e.code() == sqlstate::T_R_SERIALIZATION_FAILURE => true,
        Error::Server(e) if is_pooler_error(e) => true,
        error => error.ends_session() && error.is_retriable(),
    }
}

/// Returns whether PgBouncer itself reports the error. It uses one SQLSTATE for all its errors, and
/// sends no routine.
///
/// During a response, the error means that the server is lost or that a timeout expired. At other
/// times it can also mean that a login or a transaction was rejected, so it is not retriable in
/// general.
fn is_pooler_error(error: &DbError) -> bool {
    error.severity() == "FATAL"
        && *error.code() == sqlstate::PROTOCOL_VIOLATION
        && error.routine().is_none()
}

fn request(select: &Select) -> Result<Bytes> {
    unnamed(&encode(select.rows()?)?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Number,
    String,
}

impl KeyKind {
    fn of(key: &str) -> Option<Self> {
        match key.bytes().next()? {
            b'"' => Some(Self::String),
            b'-' | b'0'..=b'9' => Some(Self::Number),
            _ => None,
        }
    }
}

/// Finds the value at a path of keys. If a key is repeated, this is the last value, as in Postgres.
struct KeyVisitor<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for KeyVisitor<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.0 {
            [] => serde::Deserialize::deserialize(deserializer).map(Some),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for KeyVisitor<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some((first, rest)) = self.0.split_first() else { return Ok(None) };
        let mut found = None;
        while let Some(is_key) = map.next_key_seed(KeyEq(first))? {
            if is_key {
                found = map.next_value_seed(KeyVisitor(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Compares a key of an object with this one.
struct KeyEq<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for KeyEq<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyEq<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// Returns the text of a JSON string.
fn text(string: &str) -> Cow<'_, str> {
    if string.contains('\\') {
        serde_json::from_str(string).map_or(Cow::Borrowed(string), Cow::Owned)
    } else {
        Cow::Borrowed(string.trim_matches('"'))
    }
}

/// Compares two JSON numbers exactly, for any size.
fn compare(a: &str, b: &str) -> Ordering {
    if let (Ok(a), Ok(b)) = (a.parse::<i64>(), b.parse::<i64>()) {
        return a.cmp(&b);
    }
    let (a, b) = (Decimal::parse(a), Decimal::parse(b));
    let size = |a: &Decimal, b: &Decimal| (a.exponent, &a.digits).cmp(&(b.exponent, &b.digits));
    match (a.sign(), b.sign()) {
        (1, 1) => size(&a, &b),
        (-1, -1) => size(&b, &a),
        (a, b) => a.cmp(&b),
    }
}

/// The number `0.{digits} * 10^exponent`, without leading and trailing zeros.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

impl Decimal {
    fn parse(number: &str) -> Self {
        let negative = number.starts_with('-');
        let number = number.trim_start_matches('-');
        let (number, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = whole.bytes().chain(fraction.bytes());
        let zeros = digits.clone().take_while(|d| *d == b'0').count();
        let mut digits: Vec<u8> = digits.skip(zeros).collect();
        digits.truncate(digits.iter().rposition(|d| *d != b'0').map_or(0, |last| last + 1));
        // This exceeds every number of Postgres.
        let exponent: i64 = exponent.parse().unwrap_or(i64::from(i32::MAX));
        Self { negative, exponent: exponent + whole.len() as i64 - zeros as i64, digits }
    }

    fn sign(&self) -> i8 {
        match (self.digits.is_empty(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::field;

    #[test]
    fn numbers_are_compared_exactly() {
        let sorted = [
            "-123456789012345678901234567891",
            "-123456789012345678901234567890",
            "-2e3",
            "-1.5",
            "-1.25",
            "-0.01",
            "0",
            "1e-7",
            "0.01",
            "0.1",
            "0.10000000000000000000001",
            "1",
            "9",
            "10",
            "9223372036854775807",
            "9223372036854775808",
            "1e30",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        for (a, b) in [("1", "1.00"), ("100", "1e2"), ("0", "-0.0"), ("0.5", "5e-1"), ("0e5", "0")]
        {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} and {b}");
        }
    }

    #[test]
    fn strings_with_different_escapes_are_the_same_key() {
        let key = |last: &str, next: &str| {
            let mut state = ResumeState::new(&Select::new("v"), &field("id"));
            state.last = Some(last.to_owned());
            state.next_key(format!("{{\"id\": {next}}}").as_bytes())
        };
        for (last, next) in
            [(r#""\u00e9""#, "\"\u{e9}\""), (r#""a\/b""#, r#""a/b""#), (r#""a""#, r#""a""#)]
        {
            let error = key(last, next).unwrap_err().to_string();
            assert!(error.contains("keys must be unique"), "{error}");
        }
        assert_eq!(key(r#""a\"""#, r#""a""#).unwrap(), r#""a""#);
    }

    #[test]
    fn key_is_found_as_in_postgres() {
        let find = |path: &str, document: &str| {
            let path: Vec<String> = path.split('.').map(Into::into).collect();
            let mut json = serde_json::Deserializer::from_str(document);
            let found = KeyVisitor(&path).deserialize(&mut json).unwrap();
            found.map(|key| key.get().to_owned())
        };
        assert_eq!(find("id", r#"{"a": [1, {"id": 9}], "id": 1.50}"#).as_deref(), Some("1.50"));
        assert_eq!(find("a.b", r#"{"a": {"b": "x\n"}, "b": 2}"#).as_deref(), Some(r#""x\n""#));
        assert_eq!(find("id", r#"{"id": 1, "id": 2}"#).as_deref(), Some("2"));
        assert_eq!(find("\u{e9}", r#"{"\u00e9": 1}"#).as_deref(), Some("1"));
        for document in ["{}", "[1]", "null", "true", "-1", "1", "1.5", r#""id""#, r#"{"a": 1}"#] {
            assert_eq!(find("id", document), None);
            assert_eq!(find("a.b", document), None);
        }
    }
}
