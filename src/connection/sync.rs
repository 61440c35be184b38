//! The lock of state that several tasks share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks the state. No code that can panic may run under the lock, so that it is never half
/// changed.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
