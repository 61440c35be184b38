//! The password of a client key.

use std::fmt;
#[cfg(feature = "encrypted-keys")]
use std::sync::{Arc, Mutex};

use crate::secret::Password;
#[cfg(feature = "encrypted-keys")]
use crate::{secret::Key, sync::lock};

/// The password of a client key, and the last key that it has decrypted, which the clones share.
///
/// Decrypting a key can take seconds. The connections of a pool would each take them, and a cancel
/// request, which loads the key too, would be late.
#[derive(Clone)]
pub(crate) struct KeyPassword {
    password: Password,
    #[cfg(feature = "encrypted-keys")]
    decrypted: Arc<Mutex<Option<Decrypted>>>,
}

#[cfg(feature = "encrypted-keys")]
struct Decrypted {
    /// The whole encrypted key: the file may contain another one the next time.
    encrypted: Vec<u8>,
    key: Key,
}

impl KeyPassword {
    pub(crate) fn new(password: &str) -> Self {
        Self {
            password: Password::new(password),
            #[cfg(feature = "encrypted-keys")]
            decrypted: Arc::default(),
        }
    }
}

#[cfg(feature = "encrypted-keys")]
impl KeyPassword {
    pub(crate) fn password(&self) -> &Password {
        &self.password
    }

    /// Returns the key, if it is the last one that was decrypted.
    pub(crate) fn decrypted(&self, encrypted: &[u8]) -> Option<Key> {
        let last = lock(&self.decrypted);
        last.as_ref().filter(|last| last.encrypted == encrypted).map(|last| last.key.clone())
    }

    pub(crate) fn set_decrypted(&self, encrypted: &[u8], key: &[u8]) {
        let decrypted = Decrypted { encrypted: encrypted.to_vec(), key: Key::copy(key) };
        *lock(&self.decrypted) = Some(decrypted);
    }
}

impl PartialEq for KeyPassword {
    fn eq(&self, other: &Self) -> bool {
        self.password == other.password
    }
}

impl Eq for KeyPassword {}

impl fmt::Debug for KeyPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.password.fmt(f)
    }
}
