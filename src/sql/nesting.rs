//! A nesting limit for JSON values from callers. serde recurses into a value, and a stack overflow
//! aborts the process.

use std::io;

use serde::Serialize;
use serde_json::{Value, ser::Formatter};

use crate::error::{Error, Result};

/// The maximum nesting of arrays and objects in a value. serde_json parses at most 127 levels.
const MAX_NESTING: usize = 512;

/// The reason for rejecting a value.
pub(super) fn too_deep() -> String {
    format!("is nested more than {MAX_NESTING} levels deep")
}

/// Serializes a value as JSON, up to the maximum nesting.
pub(super) fn to_json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, Limited { depth: 0 });
    value.serialize(&mut serializer)?;
    String::from_utf8(text).map_err(serde::ser::Error::custom)
}

/// Formats JSON compactly, up to the maximum nesting.
struct Limited {
    depth: usize,
}

impl Limited {
    fn enter(&mut self) -> io::Result<()> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            Err(io::Error::other(format!("it {}", too_deep())))
        } else {
            Ok(())
        }
    }
}

impl Formatter for Limited {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.enter()?;
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        writer.write_all(b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.enter()?;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        writer.write_all(b"}")
    }
}

/// Checks the nesting of a value, level by level, without recursion.
pub(super) fn check_depth(value: &Value) -> Result<()> {
    let mut level = vec![value];
    for _ in 0..=MAX_NESTING {
        level = level.into_iter().flat_map(children).collect();
        if level.is_empty() {
            return Ok(());
        }
    }
    Err(Error::config(format!("a value {}", too_deep())))
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(values) => Box::new(values.iter()),
        Value::Object(entries) => Box::new(entries.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// Drops a value of any depth without recursion.
pub(super) fn dismantle(value: Value) {
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(values) => left.extend(values),
            Value::Object(entries) => left.extend(entries.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize, wrap: impl Fn(Value) -> Value) -> Value {
        (0..depth).fold(Value::Null, |value, _| wrap(value))
    }

    #[test]
    fn values_beyond_the_maximum_nesting_are_rejected() {
        for wrap in [|v| Value::from(vec![v]), |v| serde_json::json!({ "a": v, "b": [] })] {
            let fits = nested(MAX_NESTING - 1, wrap);
            assert_eq!(to_json(&fits).unwrap(), fits.to_string());
            check_depth(&fits).unwrap();
            let value = nested(MAX_NESTING + 1, wrap);
            let error = to_json(&value).unwrap_err().to_string();
            assert!(error.contains("more than 512 levels"), "{error}");
            let error = check_depth(&value).unwrap_err().to_string();
            assert!(error.contains("more than 512 levels"), "{error}");
        }
        dismantle(nested(1_000_000, |v| Value::from(vec![v])));
    }
}
