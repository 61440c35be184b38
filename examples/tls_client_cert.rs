//! TLS with server verification, and login by client certificate: `cargo run --example
//! tls_client_cert`.
//!
//! It connects to the server of `DATABASE_URL`, with the files named by `PGSSLROOTCERT`,
//! `PGSSLCERT` and `PGSSLKEY` or by the string, as psql does. Otherwise it starts a private server
//! with new certificates.

use fraiseql_wire::{ConnectionConfig, FraiseClient, SslMode, TlsConfig};
use serde_json::Value;

#[path = "support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
mod support;

use certificates::Authority;
use support::cluster::{Cluster, Setup};

#[tokio::main]
async fn main() -> support::Result<()> {
    let Ok(url) = std::env::var("DATABASE_URL") else { return on_a_private_server().await };
    let config = ConnectionConfig::parse(&url)?;
    if config.ssl_mode() != SslMode::VerifyFull {
        println!("sslmode is {:?}: the server's name is not verified", config.ssl_mode());
    }
    show(&FraiseClient::connect_with_config(config).await?).await
}

async fn on_a_private_server() -> support::Result<()> {
    // In production a CA does this: it signs a certificate with the server's name, and one with the
    // role `app` as common name.
    let (authority, folder) = (Authority::new("an authority"), tempfile::tempdir()?);
    let (server, client) = (authority.server("localhost", &["localhost"]), authority.client("app"));
    let file = |name, text| certificates::write(folder.path(), name, text);
    let ca = file("ca.crt", &authority.pem);
    let (cert, key) = (file("app.crt", &client.certificate), file("app.key", &client.key));

    // `cert` in pg_hba.conf requires the client certificate.
    let private = Cluster::start_with(&Setup {
        hba: "host all postgres all scram-sha-256\nhostssl all app all cert\n",
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt -c ssl_key_file={folder}/server.key \
                   -c ssl_ca_file={folder}/ca.crt",
        files: &[
            ("server.crt", &server.certificate),
            ("server.key", &server.key),
            ("ca.crt", &authority.pem),
        ],
        ..Setup::default()
    })?;
    support::connect(&private.url()).await?.batch_execute("create role app login").await?;
    let port = private.port();

    println!("With a connection string:");
    let url = format!(
        "postgres://app@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
        ca.display(),
        cert.display(),
        key.display()
    );
    let client = FraiseClient::connect(&url).await?;
    show(&client).await?;
    client.close().await?;

    // Settings in code override the string and the environment. Certificates can also be given as
    // text.
    println!("In code:");
    let url = format!("postgres://app@localhost:{port}/postgres");
    let tls = || TlsConfig::builder().ca_cert_path(&ca);
    let with_certificate = tls().client_cert_path(&cert).client_key_path(&key).build()?;
    let client = FraiseClient::connect_tls(&url, with_certificate).await?;
    show(&client).await?;
    client.close().await?;

    println!("Without the certificate:");
    refused(FraiseClient::connect_tls(&url, tls().build()?).await);
    println!("With a name that is not in the server's certificate:");
    let by_address = url.replace("localhost", "127.0.0.1");
    refused(FraiseClient::connect_tls(&by_address, tls().build()?).await);
    println!("With a CA that has not signed it:");
    let stranger = TlsConfig::builder().ca_cert_pem(Authority::new("a stranger").pem).build()?;
    refused(FraiseClient::connect_tls(&url, stranger).await);

    private.stop();
    Ok(())
}

/// Prints the connection, as the client and as the server see it.
async fn show(client: &FraiseClient) -> support::Result<()> {
    let info = client.connection_info().ok_or("the client has no connection")?;
    let host = info.host.unwrap_or_default();
    println!("  {host}, port {}, protocol {}", info.port, info.protocol_version);
    match (info.tls_version, info.tls_cipher) {
        (Some(version), Some(cipher)) => println!("  {version}, {cipher}"),
        _ => println!("  unencrypted"),
    }
    // The certificate is sent in the TLS handshake, so the login itself requires nothing.
    println!("  authentication: {}", info.auth_method);
    let session = client
        .query::<Value>("pg_catalog.pg_stat_ssl")
        .select_projection("jsonb_build_object('role', current_user, 'certificate', client_dn)")
        .where_sql("pid = pg_backend_pid()");
    let session = session.fetch_one().await?;
    println!("  the server knows {} by {}", session["role"], session["certificate"]);
    Ok(())
}

fn refused(attempt: fraiseql_wire::Result<FraiseClient>) {
    match attempt {
        Ok(_) => println!("  connected, which is wrong"),
        Err(e) => println!("  {e}"),
    }
}
