use std::{fmt, pin::Pin, sync::Arc};

use super::host::Target;
use crate::error::Result;

/// A callback that returns the password of a user for a new connection to a target.
#[derive(Clone)]
pub(crate) struct PasswordProvider(Arc<Provider>);

type Provider = dyn Fn(&Target, &str) -> Answer + Send + Sync;
type Answer = Pin<Box<dyn Future<Output = Result<String>> + Send>>;

impl PasswordProvider {
    pub(super) fn new<F, P>(provider: F) -> Self
    where
        F: Fn(&Target, &str) -> P + Send + Sync + 'static,
        P: Future<Output = Result<String>> + Send + 'static,
    {
        Self(Arc::new(move |target, user| Box::pin(provider(target, user))))
    }

    pub(crate) fn get(&self, target: &Target, user: &str) -> Answer {
        (self.0)(target, user)
    }
}

impl fmt::Debug for PasswordProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordProvider")
    }
}
