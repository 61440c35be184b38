//! The streams under way, by ids that nobody can guess: who knows one may steer it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderName;
use fraiseql_wire::{StreamControl, StreamState, StreamStats};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Where a response says its stream's id.
pub const HEADER: HeaderName = HeaderName::from_static("stream-id");

#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<String, StreamControl>>>);

impl Streams {
    /// Lists a stream, as long as what this returns is alive.
    pub fn list(&self, control: StreamControl) -> Result<Listed, getrandom::Error> {
        let id = random_id()?;
        self.lock().insert(id.clone(), control);
        Ok(Listed { streams: self.clone(), id })
    }

    pub fn get(&self, id: &str) -> Option<StreamControl> {
        self.lock().get(id).cloned()
    }

    /// Stops every query on the server.
    pub async fn cancel_all(&self) {
        let controls: Vec<_> = self.lock().values().cloned().collect();
        join_all(controls.iter().map(StreamControl::cancel)).await;
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, StreamControl>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream's place in the list.
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

/// What the page draws.
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
