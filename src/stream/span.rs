//! The span of a query, with the fields of [OpenTelemetry's conventions for databases].
//!
//! [OpenTelemetry's conventions for databases]: https://opentelemetry.io/docs/specs/semconv/database/postgresql/

use std::path::Path;

use tracing::{Span, field::Empty, info_span};

use crate::{
    connection::{Slot, TARGET},
    error::Error,
};

/// What the span shows of a query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryText<'a> {
    /// The relation, as passed by the caller.
    pub(crate) entity: &'a str,
    pub(crate) sql: &'a str,
    /// Whether all values are parameters, so that the text can be shown.
    pub(crate) is_parameterized: bool,
}

/// Starts the span. It ends when the consumer sees the end of the stream, and does not include the
/// cleanup.
pub(super) fn begin(slot: &Slot, query: QueryText<'_>) -> Span {
    let QueryText { entity, sql, is_parameterized } = query;
    // The macro evaluates the fields only if the span is enabled.
    info_span!(
        target: TARGET,
        "query",
        otel.name = summary(entity),
        otel.kind = "client",
        otel.status_code = Empty,
        db.system.name = "postgresql",
        db.namespace = namespace(slot, entity),
        db.collection.name = entity,
        db.operation.name = OPERATION,
        db.query.summary = summary(entity),
        db.query.text = is_parameterized.then_some(sql),
        db.response.status_code = Empty,
        db.response.returned_rows = Empty,
        server.address = first_server(slot).0,
        server.port = first_server(slot).1,
        network.peer.address = Empty,
        network.peer.port = Empty,
        "error.type" = Empty,
    )
}

fn summary(entity: &str) -> String {
    format!("{OPERATION} {entity}")
}

/// Returns `{database}|{schema}`, or only the database if the schema is unknown.
fn namespace(slot: &Slot, entity: &str) -> String {
    let database = slot.config().database().unwrap_or_default();
    match entity.rsplit_once('.') {
        // A dot within quotes is part of a name.
        Some((schema, _)) if !entity.contains('"') => format!("{database}|{schema}"),
        _ => database,
    }
}

/// Returns the address and the port of the server that is tried first.
fn first_server(slot: &Slot) -> (Option<String>, Option<i64>) {
    slot.first_target().map_or((None, None), |target| {
        server(target.host.as_deref(), target.unix_socket.as_deref(), target.port)
    })
}

/// Records where the query runs, if that is not the first host.
pub(super) fn connected(span: &Span, slot: &Slot) {
    if span.is_disabled() {
        return;
    }
    let Some(session) = slot.session() else { return };
    let info = session.info();
    let is_first = slot.first_target().is_some_and(|first| {
        first.host == info.host && first.unix_socket == info.unix_socket && first.port == info.port
    });
    if !is_first {
        let (address, _) = server(info.host.as_deref(), info.unix_socket.as_deref(), info.port);
        let numeric = info.address.map(|address| address.to_string());
        span.record("server.address", address.or(numeric));
        // Also the default port, because it may replace another.
        span.record("server.port", i64::from(info.port));
    }
    if let Some(address) = info.address {
        span.record("network.peer.address", address.to_string());
        span.record("network.peer.port", i64::from(info.port));
    }
}

/// Returns the address and the port as the conventions define them. The address is the path of a
/// socket or the name of a host. The default port is omitted.
fn server(host: Option<&str>, socket: Option<&Path>, port: u16) -> (Option<String>, Option<i64>) {
    match (socket, host) {
        (Some(path), _) => (Some(path.display().to_string()), None),
        (None, Some(host)) => {
            (Some(host.to_owned()), (port != DEFAULT_PORT).then_some(i64::from(port)))
        }
        // There is only a numeric address, which is recorded as that of the peer.
        (None, None) => (None, None),
    }
}

/// Records the number of delivered rows and the end of the span. Exporters use the last time that a
/// span was exited as its end, so the span is entered once more.
pub(super) fn ended(span: &Span, rows: u64) {
    span.in_scope(|| {
        span.record("db.response.returned_rows", i64::try_from(rows).unwrap_or(i64::MAX));
    });
}

/// Records why the query failed: the SQLSTATE or the category of the error.
pub(super) fn failed(span: &Span, error: &Error) {
    span.in_scope(|| {
        let state = error.sqlstate().map(|state| state.code());
        span.record("otel.status_code", "ERROR");
        span.record("error.type", state.unwrap_or(error.category().as_str()));
        if let Some(state) = state {
            span.record("db.response.status_code", state);
        }
    });
}

const OPERATION: &str = "SELECT";

const DEFAULT_PORT: u16 = 5432;
