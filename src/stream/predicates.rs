//! Rust predicates on documents and on decoded rows.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::row::{FromJsonRow, Row};
use crate::{error::Result, sync::lock};

/// The Rust predicates of a query and of its clones.
pub(crate) struct SharedPredicates<T> {
    pub(crate) on_documents: Vec<SharedPredicate<Value>>,
    pub(crate) on_rows: Vec<SharedPredicate<T>>,
}

/// A predicate that queries share. It need not be `Sync`, so they take turns.
pub(crate) struct SharedPredicate<V>(Arc<Mutex<Function<V>>>);

type Function<V> = Box<dyn Fn(&V) -> bool + Send>;

impl<T> SharedPredicates<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.on_documents.is_empty() && self.on_rows.is_empty()
    }

    pub(crate) fn into_predicates(self) -> Predicates<T> {
        Predicates {
            on_documents: self.on_documents.into_iter().map(SharedPredicate::into_inner).collect(),
            on_rows: self.on_rows.into_iter().map(SharedPredicate::into_inner).collect(),
        }
    }
}

impl<V> SharedPredicate<V> {
    pub(crate) fn new(predicate: impl Fn(&V) -> bool + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(predicate))))
    }

    /// Returns the predicate, without a lock if no other query shares it.
    fn into_inner(self) -> Predicate<V> {
        match Arc::try_unwrap(self.0) {
            Ok(only) => Predicate::Own(only.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Err(shared) => Predicate::Shared(shared),
        }
    }
}

impl<T> Default for SharedPredicates<T> {
    fn default() -> Self {
        Self { on_documents: Vec::new(), on_rows: Vec::new() }
    }
}

impl<T> Clone for SharedPredicates<T> {
    fn clone(&self) -> Self {
        Self { on_documents: self.on_documents.clone(), on_rows: self.on_rows.clone() }
    }
}

impl<V> Clone for SharedPredicate<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Rust predicates. All must hold.
pub(crate) struct Predicates<T> {
    pub(super) on_documents: Vec<Predicate<Value>>,
    pub(super) on_rows: Vec<Predicate<T>>,
}

pub(super) enum Predicate<V> {
    Own(Function<V>),
    Shared(Arc<Mutex<Function<V>>>),
}

impl<V> Predicate<V> {
    pub(super) fn accepts(&self, value: &V) -> bool {
        match self {
            Self::Own(predicate) => predicate(value),
            // A predicate that has panicked is called again, as by another poll of its stream.
            Self::Shared(predicate) => lock(predicate)(value),
        }
    }
}

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

/// The encoding that is required of rows that are returned undecoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Unchecked,
    /// A row that is not UTF-8 is an error.
    Utf8,
}

/// Returns whether all predicates accept a row that is returned undecoded.
pub(super) fn passes<T: FromJsonRow>(
    row: &Row<'_>,
    predicates: &Predicates<T>,
    encoding: Encoding,
) -> Result<bool> {
    if encoding == Encoding::Utf8 {
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
    Ok(predicates.on_rows.iter().all(|predicate| predicate.accepts(&decoded)))
}

/// Decodes a row, unless a predicate on documents rejects it. Calls `judged` after these
/// predicates, if there are any.
pub(super) fn decode_selected<T: FromJsonRow>(
    row: &Row<'_>,
    predicates: &[Predicate<Value>],
    judged: &mut dyn FnMut(),
) -> Option<Result<T>> {
    let verdict = apply_predicates(row, predicates);
    if !predicates.is_empty() {
        judged();
    }
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
    let is_kept = predicates.iter().all(|predicate| predicate.accepts(&document));
    Ok(if is_kept { Verdict::Keep(document) } else { Verdict::Skip })
}
