//! Shared by the integration tests: real servers, scripted ones, and faults in between.

// Each test binary uses a part of it.
#![allow(dead_code)]

#[path = "../../examples/support/certificates.rs"]
pub mod certificates;
#[path = "../../examples/support/cluster.rs"]
pub mod cluster;
pub mod daemon;
pub mod events;
pub mod example;
pub mod http;
pub mod log;
pub mod proxy;
pub mod random;
pub mod scripted;
pub mod service;
pub mod stats;
pub mod webdriver;

use std::sync::OnceLock;

use cluster::{Cluster, Setup};
use fraiseql_wire::{ConnectionConfig, ConnectionConfigBuilder, FraiseClient};

/// One role for each way to log in. Other roles are rejected. Only the superuser may use the Unix
/// socket without a password: see `cluster`.
const HBA: &str = "
local all postgres trust
host  all postgres all md5
host  all role_trust all trust
host  all role_password all password
host  all role_md5 all md5
host  all role_scram,role_unicode,role_raw,role_soft,role_changing all scram-sha-256
local all role_scram scram-sha-256
";

const ROLES: &str = "
create role role_trust login;
create role role_password login password 'password-secret';
set password_encryption = 'md5';
create role role_md5 login password 'md5-secret';
set password_encryption = 'scram-sha-256';
create role role_scram login password 'scram-secret';
-- role_trust needs no password, so any user of the machine may be it: it can only read what tests grant it.
revoke create on schema public from public;
";

/// Views that many tests read. They are created once, because replacing a view waits for its
/// readers.
const VIEWS: &str = "
create view v_one as select '1'::json as data;
create view v_short as select to_json(i) as data from generate_series(1, 300) i;
create view v_endless as
    select jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
    -- In the select list, rows are made one by one; in FROM, all of them first.
    from (select generate_series(1, 2000000000) i) as numbers;
create view v_asleep as select to_json(pg_sleep(600)::text) as data;
grant select on v_short, v_endless, v_asleep to role_trust;
";

/// The cluster of this test binary, started on first use.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    log::init();
    CLUSTER.get_or_init(|| {
        // JIT takes 50 ms of a long query, and most tests stop theirs after some rows.
        let setup = Setup { hba: HBA, settings: "-c jit=off", ..Setup::default() };
        let cluster = Cluster::start_with(&setup).unwrap_or_else(|e| panic!("{e}"));
        let url = cluster.url();
        // In its own runtime and thread, because the caller may be in a runtime.
        let made = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(run_sql(&url, &[&quick_logins(), ROLES, VIEWS].concat()));
        });
        made.join().unwrap();
        cluster
    })
}

/// Stores the superuser's password for MD5. In a test build, SCRAM takes the client some 10 ms of
/// CPU, and tests log in as superuser thousands of times. Tests of SCRAM have their own roles.
pub fn quick_logins() -> String {
    format!(
        "set client_min_messages = error; set password_encryption = 'md5';
         alter role postgres password '{}'; reset client_min_messages; reset password_encryption;",
        cluster::password()
    )
}

/// Returns a connection string for the superuser through a proxy or pooler at this address.
pub fn url_at(address: impl Into<std::net::SocketAddr>) -> String {
    format!("postgres://{}@{}/postgres", cluster::superuser(), address.into())
}

/// Returns settings for the superuser at this port, which may be that of a proxy or pooler.
pub fn config_at(port: u16) -> ConnectionConfigBuilder {
    ConnectionConfig::builder()
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password(cluster::password())
        .database("postgres")
}

/// Returns a client of this binary's cluster.
pub async fn client() -> FraiseClient {
    FraiseClient::connect(&cluster().url()).await.unwrap()
}

/// Returns another driver's connection to the cluster, to create relations and to observe sessions.
pub async fn admin() -> tokio_postgres::Client {
    admin_at(&cluster().url()).await
}

pub async fn admin_at(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A primary and its standby. The view `v_role` shows whether a server is in recovery.
pub struct Replicated {
    pub primary: Cluster,
    pub standby: Cluster,
}

impl Replicated {
    pub async fn start() -> Self {
        let primary = Cluster::start(cluster::REQUIRE_PASSWORD).unwrap();
        let view = "create view v_role as select to_json(pg_is_in_recovery()) as data";
        run_sql(&primary.url(), view).await;
        let setup = Setup { standby_of: Some(primary.port()), ..Setup::default() };
        let standby = Cluster::start_with(&setup).unwrap();
        Self { primary, standby }
    }

    /// Returns a connection string with both servers, the primary first.
    pub fn url(&self, parameters: &str) -> String {
        format!(
            "postgres://{}@127.0.0.1:{},127.0.0.1:{}/postgres?{parameters}",
            cluster::superuser(),
            self.primary.port(),
            self.standby.port()
        )
    }
}

/// Runs SQL on the cluster.
pub async fn sql(text: &str) {
    run_sql(&cluster().url(), text).await;
}

async fn run_sql(url: &str, text: &str) {
    admin_at(url).await.batch_execute(text).await.unwrap();
}

/// Returns the state of a backend, or `None` after it has ended.
pub async fn backend_state(admin: &tokio_postgres::Client, pid: u32) -> Option<String> {
    let rows = admin
        .query(
            "select coalesce(state, '') from pg_stat_activity where pid = $1",
            &[&i32::try_from(pid).unwrap()],
        )
        .await
        .unwrap();
    rows.first().map(|row| row.get(0))
}

/// Ends a backend, and waits until it has ended.
pub async fn terminate(admin: &tokio_postgres::Client, pid: u32) {
    let id = i32::try_from(pid).unwrap();
    admin.execute("select pg_terminate_backend($1)", &[&id]).await.unwrap();
    eventually("it is gone", async || backend_state(admin, pid).await.is_none()).await;
}

/// Polls a condition until it holds. Fails after a time that no correct run needs.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = std::time::Instant::now();
    while !holds().await {
        assert!(started.elapsed().as_secs() < 60, "it never came about that {what}");
        tokio::task::yield_now().await;
    }
}
