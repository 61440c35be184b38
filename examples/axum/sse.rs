//! Rows as server-sent events. A browser's `EventSource` resumes them after a lost connection.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::{
    Stream, StreamExt,
    stream::{once, unfold},
};
use tokio::time::timeout;

use crate::{App, error::Failure, open, streams};

/// The field of the documents that orders the events and is their id.
const KEY: &str = "id";
/// Maximum silence on the connection: proxies often close it after 60 seconds.
const SILENCE: Duration = Duration::from_secs(15);
/// The browser waits for this time before it connects again.
const RETRY: &str = "retry: 1000\n\n";

/// `GET /orders.sse`: continues after the last event that the browser has received.
pub async fn events(
    State(app): State<App>,
    headers: HeaderMap,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Failure> {
    let last = last_event_id(&headers)?;
    let opened = open(&app, parameters, |query| {
        let query = query.resume_by(KEY);
        match last {
            Some(id) => query.resume_after(id),
            None => query,
        }
    });
    let no_headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    let rows = match opened.await {
        Ok(rows) => rows,
        // An EventSource gives up if the status is not 200.
        Err(failure) if failure.is_temporary() => {
            failure.log();
            let event = "retry: 5000\nevent: error\ndata: {\"retriable\":true}\n\n";
            return Ok((no_headers, event).into_response());
        }
        Err(failure) => return Err(failure),
    };
    let listed = app.streams.list(rows.control())?;
    let id = [(streams::HEADER, listed.id().to_owned())];
    let first = once(async { Ok(Bytes::from_static(RETRY.as_bytes())) }).boxed();
    // When the service stops, the response just ends: an event `error` would tell the browser not
    // to connect again.
    let streams = app.streams.clone();
    let stopped = Box::pin(async move { streams.closed().await });
    let body = keep_alive(first.chain(listed.log(rows.into_sse()).take_until(stopped)));
    Ok((no_headers, id, Body::from_stream(body)).into_response())
}

/// Returns the key in the header `Last-Event-ID`, where it is text.
fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, Failure> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    match id {
        Some(id) => Ok(Some(id)),
        None => Err(Failure::BadRequest("Last-Event-ID is not the id of an order".into())),
    }
}

/// Sends a comment if there is nothing else to send.
fn keep_alive<B>(body: B) -> impl Stream<Item = fraiseql_wire::Result<Bytes>>
where
    B: Stream<Item = fraiseql_wire::Result<Bytes>> + Unpin,
{
    unfold(body, |mut body| async {
        match timeout(SILENCE, body.next()).await {
            Ok(item) => item.map(|item| (item, body)),
            Err(_) => Some((Ok(Bytes::from_static(b":\n\n")), body)),
        }
    })
}
