//! Clients that use poolers and proxies, and a standby in place of a primary.

use std::time::Duration;

use crate::support::{Replicated, admin, config_at, daemon::Daemon, eventually, sql};
use fraiseql_wire::{
    ConnectionConfig, Error, ErrorCategory, FraiseClient, RawJson, TimeoutPhase, sqlstate,
};
use futures_util::{StreamExt, TryStreamExt, future::join_all};
use serde_json::Value;

/// Checks what must work through `name`, at `url`: complete streams, other ends of streams, errors,
/// and the use of the same client after each of them.
async fn assert_supported(name: &str, url: &str) {
    sql(&format!(
        "create table t_{name} as select to_jsonb(i) as data from generate_series(1, 100000) i;
         create view v_{name} as select data from v_endless;
         create view v_{name}_fails as select to_jsonb(1 / (5000 - i)) as data from generate_series(1, 10000) i"
    ))
    .await;
    let (table, endless, fails) =
        (format!("t_{name}"), format!("v_{name}"), format!("v_{name}_fails"));
    let admin = admin().await;
    let query = "select count(*) from pg_stat_activity
                 where state = 'active' and query like $1 and pid <> pg_backend_pid()";
    let pattern = format!("%\"{endless}\"%");
    let at_work = async || admin.query_one(query, &[&pattern]).await.unwrap().get::<_, i64>(0);
    let config = url.parse::<ConnectionConfig>().unwrap().to_builder();
    // pgpool 4.6 takes longer than the default to forward a cancel request.
    let config = config.cancel_timeout(Duration::from_secs(60)).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let pid = client.backend_pid();
    let usable = async || {
        eventually("the server's work has ended", async || at_work().await == 0).await;
        assert_eq!(client.query::<u64>("v_one").fetch_all().await.unwrap(), [1]);
        client.ping().await.unwrap();
        // pgpool may take so long to forward a cancel request that the cleanup closes the
        // connection.
        if name != "pgpool" {
            assert_eq!(client.backend_pid(), pid, "all on one connection");
        }
    };
    let begun = async || {
        let mut stream = client.query::<Value>(&endless).execute().await.unwrap();
        for _ in 0..1000 {
            stream.next().await.unwrap().unwrap();
        }
        assert_eq!(at_work().await, 1);
        stream
    };
    let all: Vec<u64> = (1..=100_000).collect();

    // Read completely.
    let rows = client.query::<u64>(&table).order_by("data").fetch_all().await.unwrap();
    assert!(rows == all);
    let query = client.query::<u64>(&table).where_sql("data::int > $1").bind(99_990);
    assert_eq!(query.fetch_all().await.unwrap().len(), 10);
    usable().await;
    // Dropped.
    drop(begun().await);
    usable().await;
    // Cancelled, by the stream and by its handle.
    let mut stream = begun().await;
    stream.cancel().await.unwrap();
    assert!(stream.next().await.is_none());
    usable().await;
    let stream = begun().await;
    client.cancel_token().cancel().await.unwrap();
    let error = stream.try_for_each(async |_| Ok(())).await.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    usable().await;
    // Errors: of the statement, and after rows.
    let error = client.query::<Value>("v_missing").execute().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::UNDEFINED_TABLE), "{error}");
    usable().await;
    let mut stream = client.query::<RawJson>(&fails).execute().await.unwrap();
    for _ in 1..5000 {
        stream.next().await.unwrap().unwrap();
    }
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::DIVISION_BY_ZERO), "{error}");
    assert!(stream.next().await.is_none());
    drop(stream);
    usable().await;
    // With three connections, in one snapshot.
    let mut rows = client.query::<u64>(&table).parallel(3).fetch_all().await.unwrap();
    rows.sort_unstable();
    assert!(rows == all);
    let query = client.query::<Value>(&endless).parallel(3).partition_by("data->>'id'");
    let mut stream = query.execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(at_work().await, 3);
    drop(stream);
    usable().await;
    client.close().await.unwrap();
}

#[tokio::test]
async fn pgbouncer_in_transaction_mode_is_supported() {
    let pooler = Daemon::pgbouncer(crate::support::cluster().port());
    let url = crate::support::url_at(([127, 0, 0, 1], pooler.port));
    assert_supported("pgbouncer", &url).await;

    // More clients than server connections, each used repeatedly.
    let clients = (0..8).map(|_| async {
        let client = FraiseClient::connect(&url).await.unwrap();
        for round in 0..10u64 {
            let query =
                client.query::<u64>("v_short").where_sql("(data)::text::int > $1").bind(round);
            let rows = query.execute().await.unwrap().try_collect::<Vec<_>>().await.unwrap();
            assert_eq!(rows.len() as u64, 300 - round);
            client.ping().await.unwrap();
        }
    });
    join_all(clients).await;

    // The pooler rejects startup parameters that it does not know, and its error is returned.
    let config = config_at(pooler.port).statement_timeout(Duration::from_secs(1));
    let error = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Server, "{error}");
    assert!(error.to_string().contains("statement_timeout"), "{error}");
}

/// A pooler that ignores startup parameters answers as if the server had them. Only the server's
/// own setting shows that. Limits that the client applies itself hold.
#[tokio::test]
async fn statement_timeout_ignored_by_a_pooler_does_not_limit_queries_and_timeout_does() {
    sql("create view v_limit as select to_json(current_setting('statement_timeout')) as data;
         create view v_nap as select to_json(pg_sleep(0.5)::text) as data")
    .await;
    let server = crate::support::cluster().port();
    let ignored = "ignore_startup_parameters = statement_timeout";
    let pooler = Daemon::pgbouncer_with("transaction", ignored, server);
    let client_at = async |port| {
        let config = config_at(port).statement_timeout(Duration::from_millis(50));
        FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap()
    };
    let limit =
        async |client: &FraiseClient| client.query::<String>("v_limit").fetch_one().await.unwrap();

    let direct = client_at(server).await;
    assert_eq!(limit(&direct).await, "50ms");
    let error = direct.query::<Value>("v_nap").fetch_all().await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::QUERY_CANCELED), "{error}");

    let client = client_at(pooler.port).await;
    assert_eq!(limit(&client).await, "0");
    assert_eq!(client.query::<Value>("v_nap").fetch_all().await.unwrap().len(), 1);
    let query = client.query::<Value>("v_asleep").timeout(Duration::from_millis(50));
    let error = query.fetch_all().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { phase: TimeoutPhase::Query, .. }), "{error:?}");
    // The same session: the server has ended the query.
    let pid = client.backend_pid();
    assert_eq!(limit(&client).await, "0");
    assert_eq!(client.backend_pid(), pid);
}

#[tokio::test]
async fn pgpool_is_supported() {
    let pooler = Daemon::pgpool(crate::support::cluster().port());
    let url = crate::support::url_at(([127, 0, 0, 1], pooler.port));
    assert_supported("pgpool", &url).await;
}

#[tokio::test]
async fn haproxy_is_supported() {
    // The first server does not exist.
    let closed =
        std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let proxy = Daemon::haproxy(&[closed, crate::support::cluster().port()]);
    let url = crate::support::url_at(([127, 0, 0, 1], proxy.port));
    // Until its checks have found the available server, it rejects or closes connections.
    let found = async || FraiseClient::connect(&url).await.is_ok();
    eventually("the proxy has found the server", found).await;
    assert_supported("haproxy", &url).await;
}

/// Clients read from the standby while it is available, and otherwise from the primary.
#[tokio::test]
async fn prefer_standby_reads_from_the_standby_and_then_the_primary() {
    let servers = Replicated::start().await;
    let url = |attrs: &str| servers.url(&format!("target_session_attrs={attrs}"));
    for (attrs, in_recovery) in [
        ("any", false),
        ("primary", false),
        ("read-write", false),
        ("standby", true),
        ("read-only", true),
        ("prefer-standby", true),
    ] {
        let client = FraiseClient::connect(&url(attrs)).await.unwrap();
        assert_eq!(is_in_recovery(&client).await, in_recovery, "{attrs}");
        let query = client.query::<bool>("v_role").parallel(2).partition_by("data::text");
        assert_eq!(query.fetch_all().await.unwrap(), [in_recovery], "{attrs}");
    }

    // The clients remain usable when their server stops.
    let prefers = FraiseClient::connect(&url("prefer-standby")).await.unwrap();
    let demands = FraiseClient::connect(&url("standby")).await.unwrap();
    assert!(is_in_recovery(&prefers).await && is_in_recovery(&demands).await);
    servers.standby.stop();
    assert!(!is_in_recovery(&prefers).await, "on the primary now");
    let error = demands.query::<bool>("v_role").execute().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Connection, "{error}");
    assert!(error.is_retriable());
    assert!(error.to_string().contains("it is a primary"), "{error}");
    servers.primary.stop();
}

/// After a standby is promoted, the next connection uses it as the primary.
#[tokio::test]
async fn promoted_standby_is_used_as_the_primary() {
    let servers = Replicated::start().await;
    let url = servers.url("target_session_attrs=primary");
    let Replicated { primary, standby } = servers;
    let client = FraiseClient::connect(&url).await.unwrap();
    assert_eq!(client.connection_info().unwrap().port, primary.port());
    primary.stop();
    let promoted = crate::support::admin_at(&standby.url()).await;
    promoted.query_one("select pg_promote()", &[]).await.unwrap();
    assert!(!is_in_recovery(&client).await);
    assert_eq!(client.connection_info().unwrap().port, standby.port());
    standby.stop();
}

async fn is_in_recovery(client: &FraiseClient) -> bool {
    let stream = client.query::<bool>("v_role").execute().await.unwrap();
    stream.try_collect::<Vec<_>>().await.unwrap()[0]
}
