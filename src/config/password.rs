use std::{fmt, pin::Pin, sync::Arc};

use crate::error::Result;

/// A callback that returns the password for a new connection.
#[derive(Clone)]
pub(crate) struct PasswordProvider(Arc<Provider>);

type Provider = dyn Fn() -> Pin<Box<dyn Future<Output = Result<String>> + Send>> + Send + Sync;

impl PasswordProvider {
    pub(super) fn new<F, P>(provider: F) -> Self
    where
        F: Fn() -> P + Send + Sync + 'static,
        P: Future<Output = Result<String>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(provider())))
    }

    pub(crate) fn get(&self) -> impl Future<Output = Result<String>> + Send + use<> {
        (self.0)()
    }
}

impl fmt::Debug for PasswordProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordProvider")
    }
}
