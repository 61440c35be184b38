//! Active streams by random ids. A client that knows an id can control the stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderName;
use fraiseql_wire::{StreamControl, StreamState, StreamStats};
use futures_util::{Stream, StreamExt, future::join_all, stream::poll_fn};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::error_span;

use crate::error::Failure;

/// The response header with the id of the stream.
pub const HEADER: HeaderName = HeaderName::from_static("stream-id");

#[derive(Clone, Default)]
pub struct Streams {
    list: Arc<Mutex<HashMap<String, StreamControl>>>,
    /// Whether all streams have been cancelled, and so are new ones.
    closed: watch::Sender<bool>,
}

impl Streams {
    /// Lists a stream until the result is dropped.
    pub fn list(&self, control: StreamControl) -> Result<Listed, Failure> {
        let id = random_id()?;
        let mut list = self.lock();
        // Under the lock: otherwise `cancel_all` could miss it.
        if *self.closed.borrow() {
            return Err(Failure::Stopping);
        }
        list.insert(id.clone(), control);
        drop(list);
        Ok(Listed { streams: self.clone(), id })
    }

    pub fn get(&self, id: &str) -> Option<StreamControl> {
        self.lock().get(id).cloned()
    }

    /// Cancels every query on the server, and those that have not returned a stream yet.
    pub async fn cancel_all(&self) {
        self.closed.send_replace(true);
        let controls: Vec<_> = self.lock().values().cloned().collect();
        join_all(controls.iter().map(StreamControl::cancel)).await;
    }

    /// Resolves when all streams have been cancelled.
    pub async fn closed(&self) {
        // It fails if the sender is dropped, which `self` has.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Recovers from poisoning: no code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, StreamControl>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Logs events of the body with the id of the stream, which is listed until the body is
    /// dropped.
    pub fn log<B: Stream + Unpin>(self, mut body: B) -> impl Stream<Item = B::Item> + Unpin {
        let span = error_span!("stream", id = %self.id);
        poll_fn(move |context| {
            let _listed = &self;
            span.in_scope(|| body.poll_next_unpin(context))
        })
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
