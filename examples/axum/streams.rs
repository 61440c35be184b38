//! Active streams by random ids. A client that knows an id can control the stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderName;
use fraiseql_wire::{StreamControl, StreamState, StreamStats};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// The response header with the id of the stream.
pub const HEADER: HeaderName = HeaderName::from_static("stream-id");

#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<String, StreamControl>>>);

impl Streams {
    /// Lists a stream until the result is dropped.
    pub fn list(&self, control: StreamControl) -> Result<Listed, getrandom::Error> {
        let id = random_id()?;
        self.lock().insert(id.clone(), control);
        Ok(Listed { streams: self.clone(), id })
    }

    pub fn get(&self, id: &str) -> Option<StreamControl> {
        self.lock().get(id).cloned()
    }

    /// Cancels every query on the server.
    pub async fn cancel_all(&self) {
        let controls: Vec<_> = self.lock().values().cloned().collect();
        join_all(controls.iter().map(StreamControl::cancel)).await;
    }

    /// Recovers from poisoning: no code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, StreamControl>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry of the list, which is removed on drop.
pub struct Listed {
    streams: Streams,
    id: String,
}

impl Listed {
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.id);
    }
}

/// The statistics that the page shows.
pub fn numbers(stats: &StreamStats) -> Value {
    let state = match stats.state {
        StreamState::Running => "running",
        StreamState::Paused => "paused",
        StreamState::Completed => "completed",
        StreamState::Failed => "failed",
        StreamState::Cancelled => "cancelled",
        _ => "unknown",
    };
    json!({
        "state": state,
        "rows": stats.total_rows_yielded,
        "bytes": stats.total_bytes_received,
        "memory": stats.estimated_memory,
        "peak_memory": stats.peak_memory,
        "chunk_size": stats.chunk_size,
    })
}

/// 128 bits, in hexadecimal.
pub fn random_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
