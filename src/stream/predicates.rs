//! Conditions in Rust on documents and on decoded rows.

use serde_json::Value;

use super::row::{FromJsonRow, Row};
use crate::error::Result;

/// Conditions in Rust, all of which must hold.
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

/// Whether a row passes that is not to be decoded.
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

/// What a row is, unless a predicate rejects it; `judged` is called behind the predicates.
pub(super) fn read<T: FromJsonRow>(
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

/// What predicates on documents say of a row.
enum Verdict {
    /// There are none.
    NoPredicates,
    Keep(Value),
    Skip,
}

/// Asks the predicates. What they cannot be asked about must not pass: it is an error, even where
/// the type asked for would take it.
fn apply_predicates(row: &Row<'_>, predicates: &[Predicate<Value>]) -> Result<Verdict> {
    if predicates.is_empty() {
        return Ok(Verdict::NoPredicates);
    }
    let document = Value::from_row(row)?;
    Ok(match predicates.iter().all(|accepts| accepts(&document)) {
        true => Verdict::Keep(document),
        false => Verdict::Skip,
    })
}
