//! What the examples share and none of them is about: data to read, on the server of `DATABASE_URL` or on a
//! private one that is started for it.

// Each example uses a part of it.
#![allow(dead_code)]

use fraiseql_wire::FraiseClient;

pub mod cluster;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A schema of the example's own.
pub struct Place {
    /// A connection string for it: names are looked up in the schema.
    pub url: String,
    /// Another driver, for what this crate does not do: making tables, and looking from outside.
    pub admin: tokio_postgres::Client,
    schema: String,
    private: Option<cluster::Cluster>,
}

/// Makes the data, runs the example, and removes the data, however the example ends; on Ctrl-C too.
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
    /// Makes a schema, and in it what this SQL makes.
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
        // Its notice says what went with it.
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
    // Behind the schema, which stands last.
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

/// Ends the client's session from outside, as an administrator or a failing server does.
pub async fn terminate(admin: &tokio_postgres::Client, client: &FraiseClient) -> Result<()> {
    let pid = i32::try_from(client.backend_pid().ok_or("the client has no connection")?)?;
    admin.execute("select pg_terminate_backend($1)", &[&pid]).await?;
    Ok(())
}

/// A number between 0 and 1, of the randomness that hash maps are seeded with.
pub fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}
