//! What each client does for one short query, as its documentation shows it.

pub mod minimal;
#[cfg(feature = "peers")]
pub mod sqlx;
#[cfg(feature = "peers")]
pub mod tokio_postgres;
pub mod wire;

use super::{Load, schema::Document};

/// What one task uses to run its queries.
pub trait Session: Sized + Send + 'static {
    /// One for each task of the load.
    fn open(load: &Load, url: &str) -> impl Future<Output = Vec<Self>> + Send;

    /// Runs the query, and returns the sum of its documents' keys.
    fn query<T: Document>(&mut self, key: i64) -> impl Future<Output = u64> + Send;
}
