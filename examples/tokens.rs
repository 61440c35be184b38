//! Passwords that expire, one for each host and user, as for AWS RDS with IAM: `cargo run --example
//! tokens`.
//!
//! It always starts a private server. A local service signs the tokens and lets them expire. In
//! production, a library such as `aws-sdk-rds` signs them, and the server checks the signature.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fraiseql_wire::{ConnectionConfig, Error, FraiseClient, RawJson, Target};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

mod support;

use support::cluster::Cluster;

/// Signs tokens, each for a period of time. In AWS, a period is 15 minutes.
struct TokenService {
    key: Vec<u8>,
    period: AtomicU64,
    is_down: AtomicBool,
}

impl TokenService {
    fn token(&self, host: &str, port: u16, user: &str) -> io::Result<String> {
        if self.is_down.load(Relaxed) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "no token service"));
        }
        let claim = format!("{host}:{port}/?user={user}&period={}", self.period.load(Relaxed));
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).map_err(io::Error::other)?;
        mac.update(claim.as_bytes());
        let signature = mac.finalize().into_bytes();
        let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("  signed {claim}");
        Ok(format!("{claim}&signature={signature}"))
    }

    /// Begins the next period. The server accepts only the new token from then on.
    async fn begin_period(&self, admin: &tokio_postgres::Client, port: u16) -> support::Result<()> {
        let period = 1 + self.period.fetch_add(1, Relaxed);
        println!("Period {period}:");
        let token = self.token("127.0.0.1", port, "app")?;
        admin.batch_execute(&format!("alter role app password '{token}'")).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> support::Result<()> {
    // `password` sends the token as it is, as RDS requires: in production, only over TLS.
    let private = Cluster::start("host all postgres all md5\nhost all app all password\n")?;
    let (port, admin) = (private.port(), support::connect(&private.url()).await?);
    let data = "create view v_order as
                    select jsonb_build_object('id', i) as data from generate_series(1, 3) i;
                create role app login;
                grant select on v_order to app";
    admin.batch_execute(data).await?;
    let key = support::random().to_be_bytes().to_vec();
    let (period, is_down) = (AtomicU64::new(0), AtomicBool::new(false));
    let service = Arc::new(TokenService { key, period, is_down });

    let tokens = Arc::clone(&service);
    let config = ConnectionConfig::builder()
        .host("127.0.0.1")
        .port(port)
        .database("postgres")
        .user("app")
        .password_provider_for(move |target: &Target, user: &str| {
            let (tokens, user) = (Arc::clone(&tokens), user.to_owned());
            let (host, port) = (target.host.clone().unwrap_or_default(), target.port);
            async move {
                let token = tokens.token(&host, port, &user);
                // A retriable error, because the service may be back soon.
                token.map_err(|source| Error::Io { during: "while signing a token", source })
            }
        })
        .build()?;

    service.begin_period(&admin, port).await?;
    let client = FraiseClient::connect_with_config(config.clone()).await?;
    println!("  a connection with a token: {} orders", orders(&client).await?);

    service.begin_period(&admin, port).await?;
    println!("  the open connection: {} orders", orders(&client).await?);
    let second = FraiseClient::connect_with_config(config.clone()).await?;
    println!("  a new connection with a new token: {} orders", orders(&second).await?);

    service.begin_period(&admin, port).await?;
    lose_connection(&admin, &client).await?;
    println!("  a client that has reconnected: {} orders", orders(&client).await?);

    println!("Without the service:");
    service.is_down.store(true, Relaxed);
    if let Err(e) = FraiseClient::connect_with_config(config).await {
        println!("  retriable: {}: {e}", e.is_retriable());
    }
    // A client that reconnects survives a short failure, because of its retry policy.
    lose_connection(&admin, &second).await?;
    let repaired = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        service.is_down.store(false, Relaxed);
    };
    let (count, ()) = tokio::join!(orders(&second), repaired);
    println!("  a client that has reconnected: {} orders", count?);
    private.stop();
    Ok(())
}

async fn orders(client: &FraiseClient) -> fraiseql_wire::Result<u64> {
    client.query::<RawJson>("v_order").count().await
}

/// Ends the client's session, and waits until it has ended.
async fn lose_connection(
    admin: &tokio_postgres::Client,
    client: &FraiseClient,
) -> support::Result<()> {
    let pid = i32::try_from(client.backend_pid().ok_or("the client has no connection")?)?;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1";
    while admin.query_opt(end, &[&pid]).await?.is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
