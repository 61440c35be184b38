//! Rust predicates on documents and on decoded rows.

use serde_json::Value;

use super::row::{FromJsonRow, Row};
use crate::error::Result;

/// Rust predicates. All must hold.
pub(crate) struct Predicates<T> {
    pub(crate) on_documents: Vec<Predicate<Value>>,
    pub(crate) on_rows: Vec<Predicate<T>>,
}

pub(super) type Predicate<V> = Box<dyn Fn(&V) -> bool + Send>;

impl<T> Predicates<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.on_documents.is_empty() && self.on_rows.is_empty()
    }
}

impl<T> Default for Predicates<T> {
    fn default() -> Self {
        Self { on_documents: Vec::new(), on_rows: Vec::new() }
    }
}

/// Returns whether all predicates accept a row that is returned undecoded.
pub(super) fn passes<T: FromJsonRow>(
    row: &Row<'_>,
    predicates: &Predicates<T>,
    as_text: bool,
) -> Result<bool> {
    if as_text {
        row.check_utf8()?;
    }
    let judged = apply_predicates(row, &predicates.on_documents)?;
    if predicates.on_rows.is_empty() {
        return Ok(!matches!(judged, Verdict::Skip));
    }
    let decoded = match judged {
        Verdict::NoPredicates => T::from_row(row)?,
        Verdict::Keep(document) => T::from_document(row, &document)?,
        Verdict::Skip => return Ok(false),
    };
    Ok(predicates.on_rows.iter().all(|accepts| accepts(&decoded)))
}

/// Decodes a row, unless a predicate on documents rejects it. Calls `judged` after these
/// predicates.
pub(super) fn decode_selected<T: FromJsonRow>(
    row: &Row<'_>,
    predicates: &[Predicate<Value>],
    judged: &mut dyn FnMut(),
) -> Option<Result<T>> {
    let verdict = apply_predicates(row, predicates);
    judged();
    match verdict {
        Ok(Verdict::NoPredicates) => Some(T::from_row(row)),
        Ok(Verdict::Keep(document)) => Some(T::from_document(row, &document)),
        Ok(Verdict::Skip) => None,
        Err(e) => Some(Err(e)),
    }
}

/// The result of the predicates on documents for a row.
enum Verdict {
    /// There are none.
    NoPredicates,
    Keep(Value),
    Skip,
}

/// Applies the predicates. A document that they cannot be applied to is an error, even if the
/// requested type could be decoded.
fn apply_predicates(row: &Row<'_>, predicates: &[Predicate<Value>]) -> Result<Verdict> {
    if predicates.is_empty() {
        return Ok(Verdict::NoPredicates);
    }
    let document = Value::from_row(row)?;
    let is_kept = predicates.iter().all(|accepts| accepts(&document));
    Ok(if is_kept { Verdict::Keep(document) } else { Verdict::Skip })
}
