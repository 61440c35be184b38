use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether a server has lost a prepared statement. This happens with a pooler that uses another
/// server connection for each transaction and does not support prepared statements.
///
/// It is never reset. Copies of a configuration share it, because they connect to the same place. A
/// configuration that is built from another one has its own: it may have another host.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatementsLost(Arc<AtomicBool>);

impl StatementsLost {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns whether it is the first time.
    pub(crate) fn set(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}
