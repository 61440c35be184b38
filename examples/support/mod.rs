//! Shared by the examples: data to read, on the server of `DATABASE_URL` or on a private one.

// Each example uses a part of this.
#![allow(dead_code)]

use fraiseql_wire::FraiseClient;

pub mod cluster;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A schema for the example.
pub struct Place {
    /// A connection string whose `search_path` is the schema.
    pub url: String,
    /// Another driver, to create tables and to look at the server's sessions.
    pub admin: tokio_postgres::Client,
    schema: String,
    private: Option<cluster::Cluster>,
}

/// Creates the data, runs the example, and removes the data, also after an error or Ctrl-C.
pub async fn with_data<F: Future<Output = Result<()>>>(
    data: &str,
    example: impl FnOnce(String, tokio_postgres::Client) -> F,
) -> Result<()> {
    let place = Place::make(data).await?;
    let running = async { example(place.url.clone(), connect(&place.url).await?).await };
    let result = tokio::select! {
        result = running => Some(result),
        _ = tokio::signal::ctrl_c() => None,
    };
    place.remove().await?;
    result.unwrap_or_else(|| std::process::exit(130))
}

impl Place {
    /// Creates a schema and runs this SQL in it.
    pub async fn make(data: &str) -> Result<Self> {
        let (server, private) = match std::env::var("DATABASE_URL") {
            Ok(url) => (url, None),
            Err(_) => {
                let private = cluster::Cluster::start(cluster::REQUIRE_PASSWORD)?;
                (private.url(), Some(private))
            }
        };
        let schema = format!("fraiseql_wire_example_{}", std::process::id());
        let url = with_setting(&server, &format!("search_path={schema}"));
        let admin = connect(&url).await?;
        admin.batch_execute(&format!("create schema {schema}")).await?;
        let place = Self { url, admin, schema, private };
        if let Err(e) = place.admin.batch_execute(data).await {
            place.remove().await?;
            return Err(e.into());
        }
        Ok(place)
    }

    /// Removes the schema, and the server if it is private.
    pub async fn remove(self) -> Result<()> {
        let drop_schema = format!("drop schema {} cascade", self.schema);
        // Without the notice that lists what was dropped.
        let quietly = format!("set client_min_messages = warning; {drop_schema}");
        self.admin.batch_execute(&quietly).await?;
        if let Some(private) = self.private {
            private.stop();
        }
        Ok(())
    }
}

/// The connection string, with a setting of the server (`statement_timeout=100`) for its sessions.
pub fn with_setting(url: &str, setting: &str) -> String {
    let option = format!("-c{setting}");
    if !url.contains("://") {
        return match url.strip_suffix("' ") {
            Some(others) => format!("{others} {option}' "),
            None => format!("{url} options='{option}' "),
        };
    }
    let option = option.replace('=', "%3D");
    // After the schema, which is last.
    match url.contains("options=-csearch_path") {
        true => format!("{url}%20{option}"),
        false if url.contains('?') => format!("{url}&options={option}"),
        false => format!("{url}?options={option}"),
    }
}

pub async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Terminates the client's session, as an administrator or a failing server does.
pub async fn terminate(admin: &tokio_postgres::Client, client: &FraiseClient) -> Result<()> {
    let pid = i32::try_from(client.backend_pid().ok_or("the client has no connection")?)?;
    admin.execute("select pg_terminate_backend($1)", &[&pid]).await?;
    Ok(())
}

/// A random number between 0 and 1, from the seed of hash maps.
pub fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}
