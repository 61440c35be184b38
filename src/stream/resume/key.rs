//! The key of a row, found in its document.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Returns the key at a path of a document, as JSON. `None`: the document has no such field.
pub(super) fn find<'d>(path: &[String], document: &'d [u8]) -> serde_json::Result<Option<&'d str>> {
    let mut json = serde_json::Deserializer::from_slice(document);
    let key = KeyVisitor(path).deserialize(&mut json)?;
    json.end()?;
    Ok(key.map(RawValue::get))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    Number,
    String,
}

impl KeyKind {
    pub(super) fn of(key: &str) -> Option<Self> {
        match key.bytes().next()? {
            b'"' => Some(Self::String),
            b'-' | b'0'..=b'9' => Some(Self::Number),
            _ => None,
        }
    }
}

/// Returns the text of a JSON string.
pub(super) fn text(string: &str) -> Cow<'_, str> {
    if string.contains('\\') {
        serde_json::from_str(string).map_or(Cow::Borrowed(string), Cow::Owned)
    } else {
        Cow::Borrowed(string.trim_matches('"'))
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

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn key_is_found_as_in_postgres() {
        let key = |path: &str, document: &str| {
            let path: Vec<String> = path.split('.').map(Into::into).collect();
            find(&path, document.as_bytes()).unwrap().map(str::to_owned)
        };
        assert_eq!(key("id", r#"{"a": [1, {"id": 9}], "id": 1.50}"#).as_deref(), Some("1.50"));
        assert_eq!(key("a.b", r#"{"a": {"b": "x\n"}, "b": 2}"#).as_deref(), Some(r#""x\n""#));
        assert_eq!(key("id", r#"{"id": 1, "id": 2}"#).as_deref(), Some("2"));
        assert_eq!(key("\u{e9}", r#"{"\u00e9": 1}"#).as_deref(), Some("1"));
        // The maximum of `resume_by`.
        let deep = format!("{}1{}", r#"{"a":"#.repeat(127), "}".repeat(127));
        assert_eq!(key(&vec!["a"; 127].join("."), &deep).as_deref(), Some("1"));
        for document in ["{}", "[1]", "null", "true", "-1", "1", "1.5", r#""id""#, r#"{"a": 1}"#] {
            assert_eq!(key("id", document), None);
            assert_eq!(key("a.b", document), None);
        }
    }
}
