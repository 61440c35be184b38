//! The lock of state that several tasks share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks the state, even if an earlier holder of the lock has panicked. So no code that can panic
/// may run under the lock while the state is half changed.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
