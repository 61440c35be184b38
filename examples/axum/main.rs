//! A service that streams a query over HTTP, with a page to watch and control it:
//! `cargo run --release --features deadpool --example axum`, then open the address it prints.
//!
//! ```text
//! GET    /orders.ndjson?status=paid&min_total=100   one line of JSON per row
//! GET    /orders.json?customer.city=Oslo&limit=10   one JSON array
//! GET    /orders.sse                                server-sent events, resumed by Last-Event-ID
//! GET    /streams/{id}                              statistics, or why it has failed; the header
//!                                                   Stream-Id has the id
//! POST   /streams/{id}/pause                        reading stops, and the query waits
//! POST   /streams/{id}/resume
//! DELETE /streams/{id}                              cancels it, as closing its connection does
//! ```
//!
//! It reads the view named by its argument (default: `v_order`) from the server of `DATABASE_URL`
//! and changes nothing there. Without that variable, it starts a private Postgres with 300,000
//! orders. It listens on `LISTEN` (default: 127.0.0.1:3000) until Ctrl-C or SIGTERM, and accepts
//! requests for IP addresses, `localhost` and the names in `HOSTS`. Warnings and errors are logged
//! to standard error.

mod error;
mod filter_params;
mod host;
mod shutdown;
mod sse;
mod status;
mod streams;

use std::{pin::Pin, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{StatusCode, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use fraiseql_wire::{
    ConnectionConfig, QueryBuilder, QueryStream, RawJson,
    pool::{
        Pooled,
        deadpool::{self, Pool},
    },
};
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot};
use tracing::Level;

use self::{
    error::Failure,
    filter_params::FilterParams,
    streams::{Listed, Streams},
};

#[path = "../support/cluster.rs"]
mod cluster;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Maximum concurrent streams, each with a connection, if `POOL_SIZE` is not set.
const POOL_SIZE: usize = 8;
/// How long a request waits for a connection in use; then it receives status 503.
const WAIT: Duration = Duration::from_secs(2);
/// How long connecting may take; then it receives status 503, too.
const CONNECT: Duration = Duration::from_secs(5);
/// Maximum time until the first row.
const FIRST_ROW: Duration = Duration::from_secs(30);
/// Maximum time of a stream, also if its reader reads slowly or not at all.
const WHOLE: Duration = Duration::from_secs(1800);
/// Maximum time of a pause, which holds a connection and a snapshot on the server.
const PAUSE: Duration = Duration::from_secs(600);

#[derive(Clone)]
struct App {
    pool: Pool,
    view: String,
    streams: Streams,
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_max_level(Level::WARN).with_writer(std::io::stderr).init();
    let (config, private) = match std::env::var("DATABASE_URL") {
        Ok(url) => (ConnectionConfig::parse(&url)?, None),
        Err(_) => {
            let server = private_server().await?;
            (ConnectionConfig::parse(&server.url())?, Some(server))
        }
    };
    let size = std::env::var("POOL_SIZE").map_or(Ok(POOL_SIZE), |size| size.parse())?;
    let pool = deadpool::builder(config)
        .max_size(size)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(CONNECT))
        .build()?;
    let view = std::env::args().nth(1).unwrap_or_else(|| "v_order".into());

    serve(App { pool, view, streams: Streams::default() }).await?;
    if let Some(server) = private {
        server.stop();
    }
    Ok(())
}

/// Serves until the process receives a signal.
async fn serve(app: App) -> Result<()> {
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}/", listener.local_addr()?);
    let router = Router::new()
        .route("/", get(page))
        .route("/orders.ndjson", get(ndjson))
        .route("/orders.json", get(json_array))
        .route("/orders.sse", get(sse::events))
        .route("/streams/{id}", get(numbers).delete(stop))
        .route("/streams/{id}/pause", post(pause))
        .route("/streams/{id}/resume", post(resume))
        .layer(middleware::from_fn_with_state(host::names(), host::check))
        .with_state(app.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        // Dropping the sender is the signal.
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());

    shutdown::signal_received().await?;
    println!("stopping");
    drop(stop);
    shutdown::shut_down(&app, server).await;
    Ok(())
}

async fn ndjson(
    State(app): State<App>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Failure> {
    let rows = open(&app, parameters, |query| query).await?;
    let listed = app.streams.list(rows.control())?;
    respond("application/x-ndjson", listed, rows.into_ndjson()).await
}

async fn json_array(
    State(app): State<App>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Failure> {
    let rows = open(&app, parameters, |query| query).await?;
    let listed = app.streams.list(rows.control())?;
    respond("application/json", listed, rows.into_json_array()).await
}

/// Runs the query on a connection that returns to the pool when the stream has ended.
async fn open(
    app: &App,
    parameters: Vec<(String, String)>,
    more: impl FnOnce(QueryBuilder<RawJson>) -> QueryBuilder<RawJson>,
) -> Result<QueryStream<RawJson>, Failure> {
    let params = FilterParams::parse(parameters).map_err(Failure::BadRequest)?;
    let client = app.pool.get().await.map_err(Failure::Pool)?;
    let query = client
        .query::<RawJson>(&app.view)
        .first_row_timeout(FIRST_ROW)
        .timeout(WHOLE)
        .pause_timeout(PAUSE);
    tokio::select! {
        rows = more(params.apply(query)).execute() => rows.map_err(Failure::Query),
        // Dropping the query cancels it on the server.
        () = app.streams.closed() => Err(Failure::Stopping),
    }
}

/// Returns the bytes of the rows as the body of the response.
///
/// If the client disconnects, the body is dropped with its stream, which cancels the query.
async fn respond<B>(
    content_type: &'static str,
    listed: Listed,
    body: B,
) -> Result<Response, Failure>
where
    B: Stream<Item = fraiseql_wire::Result<Bytes>> + Send + Unpin + 'static,
{
    let id = listed.id().to_owned();
    let mut body = listed.log(body).peekable();
    // An error before the first row can still set the status. A later error aborts the connection,
    // so the client sees that the rows are incomplete. The library logs it.
    if let Some(Err(error)) = Pin::new(&mut body).next_if(Result::is_err).await {
        return Err(Failure::Query(error));
    }
    let headers = [
        (header::CONTENT_TYPE, content_type.to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (streams::HEADER, id),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// An ended stream has no statistics. If it has failed, the response is the reason.
async fn numbers(State(app): State<App>, Path(id): Path<String>) -> Response {
    if let Some(stream) = app.streams.get(&id) {
        return Json(streams::numbers(&stream.stats())).into_response();
    }
    match app.streams.failure(&id) {
        Some(reason) => (StatusCode::GONE, reason).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn pause(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    let stream = app.streams.get(&id).ok_or(Failure::NoStream)?;
    stream.pause_with_reason("client").await.map_err(Failure::Query)?;
    Ok(Json(streams::numbers(&stream.stats())))
}

async fn resume(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    let stream = app.streams.get(&id).ok_or(Failure::NoStream)?;
    stream.resume().await.map_err(Failure::Query)?;
    Ok(Json(streams::numbers(&stream.stats())))
}

async fn stop(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    if let Some(stream) = app.streams.get(&id) {
        stream.cancel().await.map_err(Failure::Query)?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The page. Its style and script need a new nonce each time, and it can request only this service.
async fn page() -> Result<Response, Failure> {
    let nonce = streams::random_id()?;
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, Html(include_str!("page.html").replace("{nonce}", &nonce))).into_response())
}

async fn private_server() -> Result<cluster::Cluster> {
    println!(
        "starting a private Postgres and creating 300,000 orders, which takes some seconds ..."
    );
    let server = cluster::Cluster::start(cluster::REQUIRE_PASSWORD)?;
    let (admin, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    admin.batch_execute(include_str!("orders.sql")).await?;
    Ok(server)
}
