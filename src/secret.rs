//! Secrets in memory: never shown, and zeroized on drop.
//!
//! Zeroizing is of little use if copies remain:
//!
//! * A move copies a value on the stack, so secrets are on the heap.
//! * A growing vector or string leaves its old buffer in freed memory, so buffers of secrets are
//!   allocated at their final size.
//! * Intermediate values of a function remain on the stack after it returns, so [`wipe_stack`]
//!   overwrites them.

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
    /// Copies a key. The caller must zeroize the original.
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

/// Overwrites the stack that was used by functions the caller has called.
///
/// These functions must not be inlined into the caller, and must use at most `SIZE` bytes.
#[inline(never)]
pub(crate) fn wipe_stack() {
    const SIZE: usize = 32 << 10;
    let mut stack = [0u8; SIZE];
    stack.zeroize();
    std::hint::black_box(&mut stack);
}
