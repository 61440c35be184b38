//! Logging in: accepted methods, the sources of passwords, and forbidden messages.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{
    admin, cluster,
    scripted::{self, Scripted, Step, message},
    sql, terminate,
};
use fraiseql_wire::{
    ConnectionConfig, ConnectionConfigBuilder, Error, ErrorCategory, FraiseClient, Target,
};

fn config(user: &str) -> ConnectionConfigBuilder {
    ConnectionConfig::builder()
        .host("127.0.0.1")
        .port(cluster().port())
        .user(user)
        .database("postgres")
}

/// A server that requests a method that is not accepted gets no answer at all.
#[tokio::test]
async fn method_that_is_not_accepted_gets_no_answer() {
    let methods: [(&str, &[u8]); 4] = [
        ("require_auth=scram-sha-256", b"\0\0\0\x03"),
        ("require_auth=scram-sha-256", b"\0\0\0\x05salt"),
        ("channel_binding=require", b"\0\0\0\x03"),
        ("require_auth=md5", b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
    ];
    for (setting, request) in methods {
        // The script fails if anything but the end of the connection arrives.
        let script = vec![Step::ExpectStartup, Step::Send(message(b'R', request)), Step::ExpectEnd];
        let server = Scripted::start(vec![script]).await;
        let url = format!("{}&{setting}", server.url());
        let error = FraiseClient::connect(&url).await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Authentication, "{error}");
        assert!(error.to_string().contains(setting.split('=').next().unwrap()), "{error}");
        server.done().await;
    }
}

#[tokio::test]
async fn password_provider_is_called_once_per_connection_if_needed() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let provider = move || {
        let count = Arc::clone(&count);
        async move {
            tokio::task::yield_now().await;
            count.fetch_add(1, Ordering::SeqCst);
            Ok("scram-secret".to_owned())
        }
    };
    let scram = config("role_scram").password("wrong").password_provider(provider.clone());
    let config_ = scram.build().unwrap();
    assert!(config_.password_provider());
    for connections in 1..=3 {
        FraiseClient::connect_with_config(config_.clone()).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), connections);
    }
    let trusted = config("role_trust").password_provider(provider).build().unwrap();
    FraiseClient::connect_with_config(trusted).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 3, "nobody asked for a password");

    let failing = config("role_scram").password_provider(|| async {
        Err(Error::Authentication { message: "the vault is sealed".into(), server: None })
    });
    let error = FraiseClient::connect_with_config(failing.build().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("the vault is sealed"), "{error}");

    let hanging = config("role_scram")
        .password_provider(std::future::pending)
        .connect_timeout(Duration::from_millis(200));
    let error = FraiseClient::connect_with_config(hanging.build().unwrap()).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Timeout, "{error}");
}

/// The provider receives the host that asks, and the user. Without a password at the moment, the
/// next host is tried.
#[tokio::test]
async fn password_provider_for_is_called_with_the_host_and_the_user() {
    let calls = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&calls);
    let config = ConnectionConfig::builder()
        .host("localhost")
        .host("127.0.0.1")
        .port(cluster().port())
        .user("role_scram")
        .database("postgres")
        .connect_timeout(Duration::from_secs(30))
        .password_provider_for(move |target: &Target, user: &str| {
            let host = target.host.clone().unwrap();
            log.lock().unwrap().push(format!("{host}:{} {user}", target.port));
            async move {
                if host == "localhost" {
                    let source = std::io::Error::other("no token for it");
                    return Err(Error::Io { during: "while signing", source });
                }
                Ok("scram-secret".to_owned())
            }
        })
        .build()
        .unwrap();
    let client = FraiseClient::connect_with_config(config.clone()).await.unwrap();
    assert_eq!(client.connection_info().unwrap().host.unwrap(), "127.0.0.1");
    let port = cluster().port();
    let asked = std::mem::take(&mut *calls.lock().unwrap());
    // Once for the first host, whatever the number of its addresses.
    assert_eq!(
        asked,
        [format!("localhost:{port} role_scram"), format!("127.0.0.1:{port} role_scram")]
    );
    // For a query on another connection too.
    sql(
        "create view v_of_login as select to_json(1) as data; grant select on v_of_login to public",
    )
    .await;
    let query = client.query::<u64>("v_of_login").parallel(2).partition_by("data::text");
    assert_eq!(query.fetch_all().await.unwrap(), [1]);
    assert_eq!(calls.lock().unwrap().last().unwrap(), &format!("127.0.0.1:{port} role_scram"));
}

/// Tries again by the retry policy if the error of the provider is retriable, and ends otherwise.
#[tokio::test]
async fn password_provider_without_a_password_at_the_moment_is_asked_again() {
    let (asked, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, remaining) = (Arc::clone(&asked), Arc::clone(&fails));
    let config = config("role_scram").password_provider_for(move |_: &Target, _: &str| {
        count.fetch_add(1, Ordering::SeqCst);
        let fail = remaining
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok();
        async move {
            if fail {
                let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "the vault sleeps");
                return Err(Error::Io { during: "while reading the vault", source });
            }
            Ok("scram-secret".to_owned())
        }
    });
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    let pid = client.backend_pid().unwrap();
    terminate(&admin().await, pid).await;
    fails.store(2, Ordering::SeqCst);
    client.ping().await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 4, "one connection, two failures, one connection");

    let pid = client.backend_pid().unwrap();
    terminate(&admin().await, pid).await;
    fails.store(usize::MAX, Ordering::SeqCst);
    let error = client.ping().await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Connection);
    assert!(error.is_retriable());
    let part = "has no password at the moment: the vault sleeps while reading the vault; wait";
    assert!(error.to_string().contains(part), "{error}");
}

#[tokio::test]
async fn password_file_is_read_for_each_connection() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passwords");
    let write = |password: &str| {
        std::fs::write(&file, format!("127.0.0.1:*:*:role_scram:{password}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let text = format!(
        "host=127.0.0.1 port={} user=role_scram dbname=postgres passfile='{}'",
        cluster().port(),
        file.display()
    );
    let config = ConnectionConfig::parse(&text).unwrap();
    let error = FraiseClient::connect_with_config(config.clone()).await.unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "it says where it looked: {error}");
    write("wrong");
    FraiseClient::connect_with_config(config.clone()).await.unwrap_err();
    write("scram-secret");
    FraiseClient::connect_with_config(config).await.unwrap();
}

#[tokio::test]
async fn scram_iterations_have_a_configurable_maximum() {
    let challenge = |text: &str| message(b'R', &[b"\0\0\0\x0b", text.as_bytes()].concat());
    let sasl = || message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    // The nonce must continue the client's, which the script does not know. The client checks the
    // iterations first.
    for (max, count, expected) in [
        (None, "100001", "at most 100000"),
        (Some(5000), "5001", "at most 5000"),
        (None, "2147483648", "at most 100000"),
        (None, "0", "positive number"),
        (None, "-1", "positive number"),
        (None, "99999999999999999999", "positive number"),
    ] {
        let script = vec![
            Step::ExpectStartup,
            Step::Send(sasl()),
            Step::Echo(Box::new(move |first: &[u8]| {
                let first = String::from_utf8_lossy(first);
                let nonce = first.split("r=").nth(1).unwrap();
                challenge(&format!("r={nonce}server,s=QQ==,i={count}"))
            })),
            Step::ExpectEnd,
        ];
        let server = Scripted::start(vec![script]).await;
        let mut builder = ConnectionConfig::builder()
            .host("127.0.0.1")
            .port(server.address.port())
            .user("u")
            .password("planted-secret")
            .ssl_mode(fraiseql_wire::SslMode::Disable);
        if let Some(max) = max {
            builder = builder.max_scram_iterations(max);
        }
        let error = FraiseClient::connect_with_config(builder.build().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{count}: {error}");
        server.done().await;
    }
}

/// 18 random bytes in base64. A recorded login is worthless for another nonce.
#[tokio::test]
async fn every_scram_login_has_its_own_nonce() {
    let nonces = Arc::new(std::sync::Mutex::new(Vec::new()));
    let script = || {
        let recorded = Arc::clone(&nonces);
        vec![
            Step::ExpectStartup,
            Step::Send(message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")),
            Step::Echo(Box::new(move |first: &[u8]| {
                let first = String::from_utf8_lossy(first);
                let nonce = first.split("r=").nth(1).unwrap().to_owned();
                recorded.lock().unwrap().push(nonce);
                scripted::error("FATAL", "28P01", "no")
            })),
        ]
    };
    let server = Scripted::start(vec![script(), script()]).await;
    // Both logins of one client configuration.
    let config = ConnectionConfig::parse(&server.url()).unwrap();
    for _ in 0..2 {
        FraiseClient::connect_with_config(config.clone()).await.unwrap_err();
    }
    server.done().await;
    let nonces = std::mem::take(&mut *nonces.lock().unwrap());
    let [one, two] = &nonces[..] else { panic!("{nonces:?}") };
    assert_ne!(one, two);
    for nonce in [one, two] {
        let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
        assert!(nonce.len() == 24 && nonce.chars().all(is_base64), "{nonce}");
    }
}

/// A server may use one iteration, which makes the proof weak.
#[tokio::test]
async fn server_that_does_not_know_the_password_is_detected() {
    let signature_of_nobody =
        message(b'R', b"\0\0\0\x0cv=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    for (last, expected) in [
        (signature_of_nobody, "signature is wrong"),
        (message(b'R', b"\0\0\0\x0ce=other-error"), "other-error"),
        (message(b'R', b"\0\0\0\x0c"), "malformed"),
        (scripted::auth_ok(), "before it had proved"),
        (message(b'R', b"\0\0\0\x03"), "in the middle"),
    ] {
        let script = vec![
            Step::ExpectStartup,
            Step::Send(message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")),
            Step::Echo(Box::new(|first: &[u8]| {
                let first = String::from_utf8_lossy(first);
                let nonce = first.split("r=").nth(1).unwrap();
                let text = format!("r={nonce}server,s=QQ==,i=1");
                message(b'R', &[b"\0\0\0\x0b", text.as_bytes()].concat())
            })),
            Step::Echo(Box::new(move |_: &[u8]| last.clone())),
            Step::ExpectEnd,
        ];
        let server = Scripted::start(vec![script]).await;
        let url = server.url();
        let error = FraiseClient::connect(&url).await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Authentication);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        server.done().await;
    }
}

/// On an unencrypted connection, this means that an attacker has removed TLS.
#[tokio::test]
async fn channel_binding_offered_in_plaintext_is_rejected() {
    let offer = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let script = vec![Step::ExpectStartup, Step::Send(offer), Step::ExpectEnd];
    let server = Scripted::start(vec![script]).await;
    let url = server.url();
    let error = FraiseClient::connect(&url).await.unwrap_err();
    assert!(error.to_string().contains("not encrypted"), "{error}");
    server.done().await;
}

/// The keys of one login are reused only for the same password.
#[tokio::test]
async fn cached_scram_keys_are_used_only_for_the_same_password() {
    sql(
        "set password_encryption = 'scram-sha-256'; create role role_changing login password 'one'",
    )
    .await;
    let password = Arc::new(std::sync::Mutex::new("one"));
    let given = Arc::clone(&password);
    let config = config("role_changing").password_provider(move || {
        let password = given.lock().unwrap().to_string();
        async move { Ok(password) }
    });
    let config = config.build().unwrap();
    let gets_in = async || FraiseClient::connect_with_config(config.clone()).await.is_ok();
    assert!(gets_in().await && gets_in().await);
    *password.lock().unwrap() = "two";
    assert!(!gets_in().await, "another password with the same salt");
    sql("set password_encryption = 'scram-sha-256'; alter role role_changing password 'two'").await;
    assert!(gets_in().await);
    sql("set password_encryption = 'scram-sha-256'; alter role role_changing password 'two'").await;
    assert!(gets_in().await, "the same password with another salt");
    *password.lock().unwrap() = "one";
    assert!(!gets_in().await);
}

/// At every step of the startup, any data and any silence results in an error, soon.
#[tokio::test]
async fn malformed_startup_never_panics_or_hangs() {
    let sasl = || Step::Send(message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
    let challenge = || {
        Step::Echo(Box::new(|first: &[u8]| {
            let first = String::from_utf8_lossy(first);
            let nonce = first.split("r=").nth(1).unwrap();
            let text = format!("r={nonce}server,s=QQ==,i=1");
            message(b'R', &[b"\0\0\0\x0b", text.as_bytes()].concat())
        }))
    };
    // The number of steps before the fault.
    let steps: [&dyn Fn() -> Vec<Step>; 5] = [
        &|| vec![Step::ExpectStartup],
        &|| vec![Step::ExpectStartup, Step::Send(message(b'R', b"\0\0\0\x03"))],
        &|| vec![Step::ExpectStartup, sasl()],
        &|| vec![Step::ExpectStartup, sasl(), challenge()],
        &|| vec![Step::ExpectStartup, Step::Send(scripted::auth_ok())],
    ];
    // The data that follows. Each run uses the same random bytes.
    let mut seed = 7u32;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        (0..len).map(|_| next()).collect()
    };
    let mut attacks: Vec<Vec<u8>> = vec![
        vec![],
        b"R".to_vec(),
        b"R\0\0\0\x04".to_vec(),
        b"R\xff\xff\xff\xff".to_vec(),
        b"R\x7f\xff\xff\xff\0\0\0\0".to_vec(),
        b"E\x7f\xff\xff\xffSFATAL\0".to_vec(),
        message(b'R', b"\0\0\0\x0b"),
        message(b'R', b"\0\0\0\x0br=,s=,i="),
        message(b'R', b"\0\0\0\x0ar=\xff\xfe\0"),
        message(b'E', b""),
        message(b'E', b"S"),
        message(b'E', b"\0"),
        message(b'T', b"\x7f\xff"),
        message(b'v', b"\0\x03\0\x02\x7f\xff\xff\xff"),
        message(b'K', b"1234"),
        message(b'Z', b"T"),
        message(b'D', b"\0\x01\0\0\0\x011"),
    ];
    attacks.extend((0..20).map(|i| noise(1 + i * 37)));
    for (i, steps) in steps.iter().enumerate() {
        for attack in &attacks {
            let mut script = steps();
            script.push(Step::Send(attack.clone()));
            let server = Scripted::start(vec![script]).await;
            let started = std::time::Instant::now();
            let error = FraiseClient::connect(&server.url()).await.expect_err("it is not a server");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("planted-secret"), "step {i}, {attack:?}: {shown}");
            // The timeout is 20 s, so it does not end this.
            assert_ne!(error.category(), ErrorCategory::Timeout, "step {i}, {attack:?}");
            assert!(started.elapsed() < Duration::from_secs(20));
        }
    }
}

/// Before the server has proved its identity, its other messages are not trusted and not forwarded.
#[tokio::test]
async fn only_login_messages_are_trusted_before_the_login_ends() {
    for early in [
        scripted::fields(
            b'N',
            &[(b'S', "WARNING"), (b'V', "WARNING"), (b'C', "01000"), (b'M', "visit evil.example")],
        ),
        message(b'S', b"TimeZone\0Nowhere\0"),
        message(b'A', b"\0\0\0\x01jobs\0payload\0"),
    ] {
        let script = vec![Step::ExpectStartup, Step::Send(early), Step::ExpectEnd];
        let server = Scripted::start(vec![script]).await;
        let client = FraiseClient::new(server.url().parse().unwrap());
        client.on_notice(|notice| panic!("{notice}"));
        let error = client.ping().await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Protocol, "{error}");
        server.done().await;
    }
}
