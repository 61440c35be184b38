//! Secrets in memory: never shown, and overwritten when they are dropped. Overwriting is of little
//! use if copies remain. A move copies a value on the stack, so secrets are on the heap. A vector
//! or string that grows leaves its earlier buffer in freed memory, so theirs have their final size
//! from the start. Intermediate values of a function stay on the stack after it has returned, so
//! [`wipe_stack`] overwrites them.

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

/// Overwrites the stack that functions called by the caller have used.
///
/// They must not be inlined into it, and must not have used more than this.
#[inline(never)]
pub(crate) fn wipe_stack() {
    const SIZE: usize = 32 << 10;
    let mut stack = [0u8; SIZE];
    stack.zeroize();
    std::hint::black_box(&mut stack);
}
