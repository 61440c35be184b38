//! Secrets in memory: never shown, and overwritten when they are dropped.
//!
//! Overwriting is worth little if copies are left behind. A value on the stack is copied wherever it is
//! moved, so secrets are on the heap; a vector or string that grows leaves its earlier buffer behind, so
//! theirs have their final size from the start; and what a function computes with stays on the stack
//! after it has returned, so [`wipe_stack`] follows.

use std::{fmt, ops::Deref, sync::Arc};

use zeroize::{Zeroize, Zeroizing};

/// A password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Password(Zeroizing<String>);

impl Password {
    pub(crate) fn new(password: impl Into<String>) -> Self {
        Self(Zeroizing::new(password.into()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A key. Clones share its bytes.
#[derive(Clone)]
pub(crate) struct Key(Arc<Zeroizing<Vec<u8>>>);

impl Key {
    /// Copies a key. The caller overwrites the original.
    pub(crate) fn copy(bytes: &[u8]) -> Self {
        Self(Arc::new(Zeroizing::new(bytes.to_vec())))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Overwrites the stack that functions have used which the caller has called.
///
/// They must not be inlined into it, and must not have used more than this.
#[inline(never)]
pub(crate) fn wipe_stack() {
    const SIZE: usize = 32 << 10;
    let mut stack = [0u8; SIZE];
    stack.zeroize();
    std::hint::black_box(&mut stack);
}
