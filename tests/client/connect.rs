//! Connecting: addresses, logins, timeouts, and the errors.

use std::time::{Duration, Instant};

use crate::support::{
    admin,
    certificates::Authority,
    client, cluster,
    cluster::{Cluster, REQUIRE_PASSWORD, Setup},
    eventually,
    proxy::Proxy,
    scripted::{self, Scripted, Step, message},
    sql, terminate,
};
use fraiseql_wire::{ConnectionConfig, Error, ErrorCategory, FraiseClient, TimeoutPhase, sqlstate};
use futures_util::TryStreamExt;

/// A connection string for this role of the cluster.
fn url(login: &str) -> String {
    format!("postgres://{login}@127.0.0.1:{}/postgres", cluster().port())
}

#[tokio::test]
async fn every_password_method_accepts_the_right_password() {
    for login in [
        "role_trust",
        "role_password:password-secret",
        "role_md5:md5-secret",
        "role_scram:scram-secret",
    ] {
        let client = FraiseClient::connect(&url(login)).await.unwrap_or_else(|e| panic!("{e}"));
        client.ping().await.unwrap();
        assert!(client.is_connected() && !client.is_busy());
        client.close().await.unwrap();
    }
}

#[tokio::test]
async fn every_password_method_rejects_the_wrong_password() {
    for login in ["role_password:wrong", "role_md5:wrong", "role_scram:wrong"] {
        let error = FraiseClient::connect(&url(login)).await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Authentication, "{error}");
        assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_PASSWORD), "{error}");
        assert!(!error.is_retriable());
        let user = login.split(':').next().unwrap();
        assert!(error.to_string().contains(user), "{error}");
        assert!(error.to_string().contains("pg_hba.conf"), "{error}");
        assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
    }
}

#[tokio::test]
async fn missing_password_error_names_its_sources() {
    let error = FraiseClient::connect(&url("role_scram")).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Authentication);
    assert!(error.to_string().contains("write it in the connection string"), "{error}");
}

#[tokio::test]
async fn role_without_a_pg_hba_entry_is_rejected() {
    let error = FraiseClient::connect(&url("nobody_at_all")).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Authentication);
    let code = error.sqlstate();
    assert_eq!(code, Some(&sqlstate::INVALID_AUTHORIZATION_SPECIFICATION), "{error}");
}

#[tokio::test]
async fn missing_database_error_gives_advice() {
    let url = format!("{}?dbname=no_such_db", cluster().url());
    let error = FraiseClient::connect(&url).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_CATALOG_NAME));
    assert!(error.to_string().contains("create the database"), "{error}");
    assert!(!error.is_retriable());
}

#[tokio::test]
async fn refused_port_error_names_every_address_and_is_retriable() {
    let error = FraiseClient::connect("postgres://u:planted@localhost:1/d").await.unwrap_err();
    let Error::Connection { attempts } = &error else { panic!("{error:?}") };
    assert!(!attempts.is_empty());
    assert!(error.to_string().contains("localhost:1 (127.0.0.1:1)"), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert!(error.to_string().contains("check host and port"), "{error}");
    assert!(error.is_retriable());
    assert!(!format!("{error:?}").contains("planted"));
}

#[tokio::test]
async fn name_that_does_not_resolve_is_a_connection_error() {
    let error = FraiseClient::connect("host=no-such-host.invalid user=u").await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Connection);
    assert!(error.to_string().contains("resolving"), "{error}");
}

#[tokio::test]
async fn host_that_is_a_directory_is_a_unix_socket() {
    let folder = cluster().folder().display();
    let port = cluster().port();
    for url in [
        format!("postgres:///postgres?host={folder}&port={port}&user=postgres"),
        format!("host={folder} port={port} user=role_scram password=scram-secret dbname=postgres"),
    ] {
        let client = FraiseClient::connect(&url).await.unwrap();
        client.ping().await.unwrap();
    }
    let error = FraiseClient::connect("host=/no/such/dir user=u").await.unwrap_err();
    assert!(error.to_string().contains("/no/such/dir/.s.PGSQL.5432"), "{error}");
}

/// As with libpq, which does not even read the root certificate file.
#[tokio::test]
async fn sslmode_does_not_apply_to_a_unix_socket() {
    let (folder, port) = (cluster().folder().display(), cluster().port());
    for mode in ["prefer", "require", "verify-full"] {
        let url = format!(
            "host={folder} port={port} user=postgres dbname=postgres sslmode={mode} \
             sslrootcert=/no/such/file"
        );
        let client = FraiseClient::connect(&url).await.unwrap();
        assert_eq!(client.connection_info().unwrap().tls_version, None, "{mode}");
    }
}

#[tokio::test]
async fn settings_reach_the_server() {
    let url = format!(
        "host=127.0.0.1 port={} user=postgres password={} dbname=postgres application_name='my app' \
         options='-c work_mem=5MB'",
        cluster().port(),
        crate::support::cluster::password()
    );
    sql("create view v_login_settings as select jsonb_build_array(
            current_setting('application_name'), current_setting('work_mem'),
            current_setting('client_encoding')) as data")
    .await;
    let client = FraiseClient::connect(&url).await.unwrap();
    let rows: Vec<[String; 3]> =
        client.query("v_login_settings").execute().await.unwrap().try_collect().await.unwrap();
    assert_eq!(rows, [["my app", "5MB", "UTF8"]]);
}

/// The timeout covers a server that accepts the connection and is then silent, at any step.
#[tokio::test]
async fn connect_timeout_ends_silence_at_every_step() {
    let salt = || message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]);
    let scripts: Vec<Vec<Step>> = vec![
        vec![Step::Silence],
        vec![Step::ExpectStartup, Step::Silence],
        vec![Step::ExpectStartup, Step::Send(salt()), Step::Silence],
        vec![Step::ExpectStartup, Step::Send(scripted::auth_ok()), Step::Silence],
        vec![Step::ExpectStartup, Step::Send(scripted::auth_ok()[..5].to_vec()), Step::Silence],
    ];
    for script in scripts {
        let server = Scripted::start(vec![script]).await;
        let url = format!("postgres://u:p@{}/d?connect_timeout=1&sslmode=disable", server.address);
        let started = Instant::now();
        let error = FraiseClient::connect(&url).await.unwrap_err();
        assert!(error.is_retriable() && error.sqlstate().is_none());
        let Error::Timeout { phase: TimeoutPhase::Connect, after } = error else {
            panic!("{error:?}");
        };
        assert_eq!(after, Duration::from_secs(1));
        assert!(started.elapsed() >= after);
        server.done().await;
    }
}

/// The same within the handshakes of TLS and SCRAM, at every byte.
#[tokio::test]
async fn connect_timeout_ends_silence_within_tls_and_sasl() {
    let authority = Authority::new("the authority");
    let pair = authority.server("localhost", &["127.0.0.1"]);
    let encrypted = Cluster::start_with(&Setup {
        hba: REQUIRE_PASSWORD,
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt -c ssl_key_file={folder}/server.key",
        files: &[("server.crt", &pair.certificate), ("server.key", &pair.key)],
        ..Setup::default()
    })
    .unwrap();
    let url = |port: u16, more: &str| {
        format!(
            "postgres://{}@127.0.0.1:{port}/postgres?channel_binding=prefer&{more}",
            crate::support::cluster::superuser()
        )
    };
    for mode in ["disable", "require"] {
        // The number of bytes that the server sends until a client is logged in.
        let proxy = Proxy::to_port(encrypted.port()).await;
        let more = format!("sslmode={mode}");
        let client = FraiseClient::connect(&url(proxy.address.port(), &more)).await.unwrap();
        let all = proxy.bytes_from_server();
        drop(client);
        // After each of the first bytes, then within each message. Signatures differ in length.
        let stops = (0..20).chain((20..all - 16).step_by(usize::try_from(all / 40).unwrap()));
        let silent = stops.map(async |stop| {
            let proxy = Proxy::to_port(encrypted.port()).await;
            proxy.stall_after(stop);
            let more = format!("sslmode={mode}&connect_timeout=2");
            let error = FraiseClient::connect(&url(proxy.address.port(), &more)).await.unwrap_err();
            assert!(
                matches!(error, Error::Timeout { phase: TimeoutPhase::Connect, .. }),
                "{mode}, {stop} of {all} bytes: {error:?}"
            );
            assert!(error.is_retriable());
        });
        futures_util::future::join_all(silent).await;
    }
    encrypted.stop();
}

#[tokio::test]
async fn new_client_connects_on_first_use() {
    let client = FraiseClient::new(ConnectionConfig::parse(&cluster().url()).unwrap());
    assert!(!client.is_connected());
    client.ping().await.unwrap();
    assert!(client.is_connected() && client.backend_pid().is_some());
}

#[tokio::test]
async fn connection_that_ended_while_idle_is_replaced() {
    let admin = admin().await;
    let client = client().await;
    for use_it in [true, false] {
        let pid = client.backend_pid().unwrap();
        terminate(&admin, pid).await;
        if use_it {
            let stream = client.query::<i32>("v_one").execute().await.unwrap();
            assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [1]);
        } else {
            client.ping().await.unwrap();
        }
        assert_ne!(client.backend_pid(), Some(pid));
    }
}

/// The first write to a Unix socket reports the end, so nothing looks for it before the write. The
/// socket may still be open for a moment after the backend is gone.
#[tokio::test]
async fn unix_socket_connection_that_ended_while_idle_is_replaced() {
    let admin = admin().await;
    let (folder, port) = (cluster().folder().display(), cluster().port());
    let url = format!("postgres:///postgres?host={folder}&port={port}&user=postgres");
    let client = FraiseClient::connect(&url).await.unwrap();
    for use_it in [true, false].repeat(10) {
        let pid = client.backend_pid().unwrap();
        terminate(&admin, pid).await;
        if use_it {
            assert_eq!(client.query::<i32>("v_one").fetch_one().await.unwrap(), 1);
        } else {
            client.ping().await.unwrap();
        }
        assert_ne!(client.backend_pid(), Some(pid));
    }
}

/// The server receives Terminate, and the backend ends.
#[tokio::test]
async fn close_and_drop_end_the_session() {
    let admin = admin().await;
    for close in [true, false] {
        let client = client().await;
        let pid = client.backend_pid().unwrap();
        match close {
            true => client.close().await.unwrap(),
            false => drop(client),
        }
        eventually("the backend is gone", async || {
            crate::support::backend_state(&admin, pid).await.is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn terminate_is_the_last_message() {
    let mut script = scripted::login();
    script.push(Step::Expect(b"X\0\0\0\x04".to_vec()));
    let server = Scripted::start(vec![script]).await;
    FraiseClient::connect(&server.url()).await.unwrap().close().await.unwrap();
    server.done().await;
}

/// Messages that a server must not send before it has accepted the user. Each is an error without a
/// panic, without waiting for the timeout, and without the password.
#[tokio::test]
async fn forbidden_message_during_the_login_is_an_error() {
    let sasl = || message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("closed the connection", vec![]),
        ("closed the connection", vec![scripted::auth_ok()]),
        ("30000", vec![b"R\x7f\xff\xff\xff".to_vec()]),
        ("30000", vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()]),
        ("4 bytes", vec![b"R\0\0\0\x03".to_vec()]),
        ("ends in the middle", vec![message(b'R', b"\0\0")]),
        ("extra bytes", vec![message(b'R', b"\0\0\0\0x")]),
        ("expected an authentication request", vec![scripted::ready()]),
        ("GSSAPI", vec![message(b'R', b"\0\0\0\x07")]),
        ("an unknown method", vec![message(b'R', b"\0\0\0\x63")]),
        (
            "invalid cancel key of 5 bytes",
            vec![scripted::auth_ok(), message(b'K', b"\0\0\0\x0112345"), scripted::ready()],
        ),
        ("unexpected negotiation", vec![message(b'v', b"\0\x03\0\0\0\0\0\0")]),
        ("could not fork", vec![b"Ecould not fork new process for connection\n\0".to_vec()]),
        ("offers [\"SCRAM-X\"]", vec![message(b'R', b"\0\0\0\x0aSCRAM-X\0\0")]),
        // Before it has proved that it knows the password.
        ("before it had proved", vec![sasl(), scripted::auth_ok()]),
        ("malformed", vec![sasl(), message(b'R', b"\0\0\0\x0br=evil,s=QQ==,i=1")]),
        // A weaker method, requested in the middle.
        ("in the middle", vec![sasl(), message(b'R', b"\0\0\0\x03")]),
        ("in the middle", vec![message(b'R', b"\0\0\0\x03"), message(b'R', b"\0\0\0\x03")]),
        ("in the middle", vec![message(b'R', b"\0\0\0\x0cv=AAAA")]),
    ];
    for (expected, answers) in cases {
        let mut script = vec![Step::ExpectStartup];
        script.extend(answers.into_iter().map(Step::Send));
        let server = Scripted::start(vec![script]).await;
        let error = FraiseClient::connect(&server.url()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(!format!("{error} {error:?}").contains("planted-secret"), "{error:?}");
        server.done().await;
    }
}

#[tokio::test]
async fn unknown_parameter_is_an_error_before_anything_is_sent() {
    let error = FraiseClient::connect("postgres://u:planted@h/d?retries=3").await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Config);
    assert!(error.to_string().contains("connection parameter"), "{error}");
    let error = FraiseClient::connect("postgres://u@h/d?conect_timeout=3").await.unwrap_err();
    assert!(error.to_string().contains("\"conect_timeout\""), "{error}");
    let error = FraiseClient::connect("postgres://u@h/d?connect_timout=3").await.unwrap_err();
    assert!(error.to_string().contains("\"connect_timout\""), "{error}");
    assert!(!error.to_string().contains("planted"));
}
