//! Spans by OpenTelemetry's conventions, written to standard output: `cargo run --example tracing`.
//!
//! It uses the server of `DATABASE_URL`, or starts a private one.

use fraiseql_wire::FraiseClient;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;
use tracing::{Instrument, info_span};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

#[path = "support/cluster.rs"]
mod cluster;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A service would use an OTLP exporter with batches.
    let exporter = opentelemetry_stdout::SpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter).build();
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("example"));
    tracing_subscriber::registry().with(LevelFilter::INFO).with(spans).init();

    let private = match std::env::var("DATABASE_URL") {
        Ok(_) => None,
        Err(_) => Some(cluster::Cluster::start(cluster::REQUIRE_PASSWORD)?),
    };
    let url = match &private {
        Some(server) => server.url(),
        None => std::env::var("DATABASE_URL")?,
    };
    let request = async {
        let client = FraiseClient::connect(&url).await?;
        let settings = client
            .query::<Value>("pg_catalog.pg_settings")
            .select_projection("jsonb_build_object('name', name, 'value', setting)")
            .where_sql("name like $1")
            .bind("log%")
            .fetch_all()
            .await?;
        // The span of a failed query has its SQLSTATE.
        let missing = client.query::<Value>("v_missing").fetch_all().await;
        Ok::<_, fraiseql_wire::Error>((settings.len(), missing.is_err()))
    };
    // Spans of queries are children of the current span.
    let (settings, failed) = request.instrument(info_span!("GET /settings")).await?;
    println!("{settings} settings; the other query failed as expected: {failed}");

    provider.shutdown()?;
    if let Some(server) = private {
        server.stop();
    }
    Ok(())
}
