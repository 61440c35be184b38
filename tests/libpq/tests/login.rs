//! Who gets in, compared with libpq.

#[path = "../../support/mod.rs"]
mod support;

use fraiseql_wire::{ConnectionConfig, ConnectionConfigBuilder, ErrorCategory, FraiseClient};
use support::{cluster, sql};

fn config(user: &str) -> ConnectionConfigBuilder {
    ConnectionConfig::builder()
        .host("127.0.0.1")
        .port(cluster().port())
        .user(user)
        .database("postgres")
}

async fn libpq_gets_in(text: String) -> bool {
    let connect = move || fraiseql_wire_libpq::connect(&text).is_some();
    tokio::task::spawn_blocking(connect).await.unwrap()
}

/// Every way to log in against every demand, with the same outcome as libpq.
#[tokio::test]
async fn require_auth_lets_in_whom_libpq_lets_in() {
    let roles = [
        ("role_trust", ""),
        ("role_password", "password-secret"),
        ("role_md5", "md5-secret"),
        ("role_scram", "scram-secret"),
    ];
    let demands = [
        "none",
        "password",
        "md5",
        "scram-sha-256",
        "password,md5",
        "none,scram-sha-256",
        "!none",
        "!password",
        "!md5,!none",
        "!scram-sha-256",
        "gss,sspi",
        "oauth",
    ];
    let bindings = ["disable", "prefer", "require"];
    for (role, password) in roles {
        for demand in demands {
            for binding in bindings {
                let text = format!(
                    "host=127.0.0.1 port={} user={role} password='{password}' dbname=postgres
                     sslmode=disable require_auth='{demand}' channel_binding={binding}",
                    cluster().port()
                );
                let ours = FraiseClient::connect(&text).await;
                let libpq = libpq_gets_in(text.clone()).await;
                assert_eq!(ours.is_ok(), libpq, "{text}: {ours:?}");
                if let Err(error) = ours {
                    assert_eq!(error.category(), ErrorCategory::Authentication, "{text}: {error}");
                    assert!(!error.is_retriable());
                }
            }
        }
    }
}

/// Passwords are normalized like in Postgres: compatible forms are equal. A password that cannot be
/// normalized is used unchanged.
#[tokio::test]
async fn non_ascii_passwords_are_normalized_like_the_server() {
    sql("set password_encryption = 'scram-sha-256';
         create role role_unicode login password E'\\u2168\\u00ADpass\\u00A0word\\u00AA';
         create role role_raw login password E'a\\u0007b\\u0627x';
         create role role_soft login password E'\\u00ADx'")
    .await;
    for (role, password, right) in [
        ("role_unicode", "\u{2168}\u{AD}pass\u{A0}word\u{AA}", true),
        ("role_unicode", "IXpass worda", true),
        ("role_unicode", "IXpassworda", false),
        ("role_raw", "a\u{7}b\u{627}x", true),
        ("role_raw", "ab\u{627}x", false),
        ("role_soft", "x", true),
    ] {
        let config = config(role).password(password).require_auth("scram-sha-256");
        let ours = FraiseClient::connect_with_config(config.build().unwrap()).await;
        assert_eq!(ours.is_ok(), right, "{role} {password:?}: {ours:?}");
        let port = cluster().port();
        let text =
            format!("host=127.0.0.1 port={port} user={role} password='{password}' dbname=postgres");
        assert_eq!(libpq_gets_in(text).await, right, "libpq: {role} {password:?}");
    }
}
