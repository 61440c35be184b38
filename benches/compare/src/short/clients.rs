//! A short query with each client, written as in its documentation.

#[cfg(feature = "peers")]
pub mod libpq;
pub mod minimal;
#[cfg(feature = "peers")]
pub mod sqlx;
#[cfg(feature = "peers")]
pub mod tokio_postgres;
pub mod wire;

use super::{Load, schema::Document};

/// The state with which one task runs its queries.
pub trait Session: Sized + Send + 'static {
    /// Opens one session per task of the load.
    fn open(load: &Load, url: &str) -> impl Future<Output = Vec<Self>> + Send;

    /// Runs the query. Returns the sum of its documents' keys.
    fn query<T: Document>(&mut self, key: i64) -> impl Future<Output = u64> + Send;
}
