//! The span of a query, by [OpenTelemetry's conventions for databases].
//!
//! [OpenTelemetry's conventions for databases]: https://opentelemetry.io/docs/specs/semconv/database/postgresql/

use tracing::{Span, field::Empty, info_span};

use crate::{
    connection::{Slot, TARGET},
    error::Error,
};

/// What a query is, for those who trace it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryText<'a> {
    /// The relation, as it was given.
    pub(crate) entity: &'a str,
    pub(crate) sql: &'a str,
    /// Whether the values are apart from the text, so that it may be shown.
    pub(crate) is_parameterized: bool,
}

/// Begins the span. It ends with the stream, as who reads it sees it: not with the clean-up behind it.
pub(super) fn begin(slot: &Slot, query: QueryText<'_>) -> Span {
    // Nothing of this is worked out where nobody listens.
    if !tracing::span_enabled!(target: TARGET, tracing::Level::INFO, "query") {
        return Span::none();
    }
    let QueryText { entity, sql, is_parameterized } = query;
    let database = slot.config().database().unwrap_or_default();
    let namespace = match entity.rsplit_once('.') {
        // Without the quotes of names that are written in them.
        Some((schema, _)) => format!("{database}|{}", schema.replace('"', "")),
        None => database,
    };
    let summary = format!("{OPERATION} {entity}");
    let span = info_span!(
        target: TARGET,
        "query",
        otel.name = summary,
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "postgresql",
        db.namespace = namespace,
        db.collection.name = entity,
        db.operation.name = OPERATION,
        db.query.summary = summary,
        db.query.text = is_parameterized.then_some(sql),
        db.response.status_code = Empty,
        db.response.returned_rows = Empty,
        server.address = Empty,
        server.port = Empty,
        network.peer.address = Empty,
        "error.type" = Empty,
    );
    if let Some(target) = slot.config().targets().first() {
        server(&span, target.host.as_deref(), target.unix_socket.as_deref(), target.port);
    }
    span
}

/// Says where the query runs, which of several hosts may be another than was thought.
pub(super) fn connected(span: &Span, slot: &Slot) {
    if span.is_disabled() {
        return;
    }
    let Some(session) = slot.session() else { return };
    let info = session.info();
    server(span, info.host.as_deref(), info.unix_socket.as_deref(), info.port);
    if let Some(address) = info.address {
        span.record("network.peer.address", address.to_string());
        if info.host.is_none() {
            span.record("server.address", address.to_string());
        }
    }
}

fn server(span: &Span, host: Option<&str>, socket: Option<&std::path::Path>, port: u16) {
    match (socket, host) {
        (Some(path), _) => drop(span.record("server.address", path.display().to_string())),
        (None, Some(host)) => {
            span.record("server.address", host);
            // The conventions leave the usual port out.
            if port != DEFAULT_PORT {
                span.record("server.port", port);
            }
        }
        (None, None) => {}
    }
}

const OPERATION: &str = "SELECT";

const DEFAULT_PORT: u16 = 5432;

/// Says how many rows were delivered.
pub(super) fn delivered(span: &Span, rows: u64) {
    span.record("db.response.returned_rows", rows);
}

/// Says why the query failed: the SQLSTATE, or the error's category.
pub(super) fn failed(span: &Span, error: &Error) {
    let state = error.sqlstate().map(|state| state.code());
    span.record("otel.status_code", "ERROR");
    span.record("error.type", state.unwrap_or(error.category().as_str()));
    if let Some(state) = state {
        span.record("db.response.status_code", state);
    }
}
