use std::sync::{Arc, Mutex};

use crate::{
    secret::{Key, Password},
    sync::lock,
};

/// The keys derived by the last SCRAM login, for the next login with the same password and salt.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScramCache(Arc<Mutex<Option<ScramCacheEntry>>>);

#[derive(Debug, Clone)]
pub(crate) struct ScramCacheEntry {
    pub(crate) password: Password,
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: u32,
    pub(crate) client_key: Key,
    pub(crate) server_key: Key,
}

impl ScramCache {
    pub(crate) fn get(&self) -> Option<ScramCacheEntry> {
        lock(&self.0).clone()
    }

    pub(crate) fn set(&self, entry: ScramCacheEntry) {
        *lock(&self.0) = Some(entry);
    }
}
