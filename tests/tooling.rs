//! What the tests, examples and scripts do to the machine they run on: they must be safe on one that other
//! people use.

mod support;

use std::{fs, os::unix::fs::PermissionsExt};

use fraiseql_wire::{ErrorCategory, FraiseClient};
use support::{
    cluster::{Cluster, REQUIRE_PASSWORD, Setup},
    daemon::Daemon,
};

/// A superuser runs programs as the server's user, so no other user of the machine may be one: TCP requires
/// the password, and only the server's user can enter the folder of the Unix socket.
#[tokio::test]
async fn superuser_of_a_private_cluster_needs_its_password() {
    let primary = Cluster::start(REQUIRE_PASSWORD).unwrap();
    let standby = Setup { standby_of: Some(primary.port()), ..Setup::default() };
    let standby = Cluster::start_with(&standby).unwrap();
    for cluster in [support::cluster(), &primary, &standby] {
        refuses_without_password(&cluster.url_as("postgres")).await;
        FraiseClient::connect(&cluster.url()).await.unwrap();

        let mode = |path: &str| {
            fs::metadata(cluster.folder().join(path)).unwrap().permissions().mode() & 0o777
        };
        for folder in ["", "data"] {
            assert_eq!(mode(folder), 0o700, "{folder:?}");
        }
        for file in ["password", "pgpass", "data/pg_hba.conf"] {
            assert_eq!(mode(file), 0o600, "{file}");
        }
    }
    standby.stop();
    primary.stop();
}

/// What forwards to a server as superuser requires the password itself.
#[tokio::test]
async fn superuser_behind_a_pooler_needs_its_password() {
    let server = support::cluster().port();
    for daemon in [Daemon::pgbouncer(server), Daemon::pgpool(server), Daemon::haproxy(&[server])] {
        for database in ["postgres", "pgbouncer"] {
            let url = format!("postgres://postgres@127.0.0.1:{}/{database}", daemon.port);
            refuses_without_password(&url).await;
        }
    }
}

async fn refuses_without_password(url: &str) {
    for password in ["", "postgres", "secret"] {
        let url = url.replace("postgres@", &format!("postgres:{password}@"));
        let error = FraiseClient::connect(&url).await.unwrap_err();
        let is_refused = error.category() == ErrorCategory::Authentication
            // pgpool has no SQLSTATE for it: "md5 authentication failed", "password authentication failed".
            || error.to_string().contains("authentication failed");
        assert!(is_refused, "{url}: {error}");
    }
}

/// The lines of every pg_hba.conf in the repository: none lets a superuser in by TCP without a password.
#[test]
fn no_access_rule_trusts_a_superuser_by_tcp() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut folders =
        ["tests", "examples", "benches", "scripts"].map(|f| format!("{root}/{f}")).to_vec();
    let mut rules = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.display().to_string());
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            // Rules are lines of their own, or follow an escaped line break or a quote.
            for rule in text.split(['\n', '"', '\'']).flat_map(|line| line.split("\\n")) {
                let words: Vec<_> = rule.split_whitespace().collect();
                let [kind, _, roles, .., method] = words[..] else { continue };
                if !matches!(kind, "host" | "hostssl" | "hostnossl" | "hostgssenc") {
                    continue;
                }
                rules += 1;
                let superuser = roles.split(',').any(|role| matches!(role, "all" | "postgres"));
                assert!(!(superuser && method == "trust"), "{}: {rule}", path.display());
            }
        }
    }
    assert!(rules > 10, "{rules}");
}
