//! Active streams by random ids. A client that knows an id can control the stream.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use axum::{body::Bytes, http::HeaderName};
use fraiseql_wire::{Result, StreamControl, StreamState, StreamStats};
use futures_util::{Stream, StreamExt, future::join_all, stream::poll_fn};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::error_span;

use crate::error::{Failure, reason};

/// How many failed streams are remembered.
const MAX_FAILED: usize = 100;

/// The response header with the id of the stream.
pub const HEADER: HeaderName = HeaderName::from_static("stream-id");

#[derive(Clone, Default)]
pub struct Streams {
    list: Arc<Mutex<HashMap<String, StreamControl>>>,
    /// Why the last failed streams failed, because an aborted response contains no reason.
    failed: Arc<Mutex<VecDeque<(String, &'static str)>>>,
    /// Whether the service is stopping: all streams have been cancelled, and new ones are rejected.
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

    /// Returns why a stream has failed.
    pub fn failure(&self, id: &str) -> Option<&'static str> {
        let failed = lock(&self.failed);
        failed.iter().find(|(failed, _)| failed == id).map(|(_, reason)| *reason)
    }

    /// Cancels every query on the server, also those whose stream is not listed yet.
    pub async fn cancel_all(&self) {
        self.closed.send_replace(true);
        let controls: Vec<_> = self.lock().values().cloned().collect();
        join_all(controls.iter().map(StreamControl::cancel)).await;
    }

    /// Resolves when all streams have been cancelled.
    pub async fn closed(&self) {
        // It fails only if the sender is dropped, but `self` owns the sender.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, StreamControl>> {
        lock(&self.list)
    }
}

/// Recovers from poisoning: no code panics while it holds the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub fn log<B>(self, mut body: B) -> impl Stream<Item = Result<Bytes>> + Unpin
    where
        B: Stream<Item = Result<Bytes>> + Unpin,
    {
        let span = error_span!("stream", id = %self.id);
        poll_fn(move |context| {
            let next = span.in_scope(|| body.poll_next_unpin(context));
            if let Poll::Ready(Some(Err(error))) = &next {
                let mut failed = lock(&self.streams.failed);
                failed.truncate(MAX_FAILED - 1);
                failed.push_front((self.id.clone(), reason(error)));
            }
            next
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
