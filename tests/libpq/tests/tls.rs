//! TLS with real servers: trust, negotiation, and protection.

#[path = "../../support/mod.rs"]
mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, OnceLock},
};

use fraiseql_wire::{ConnectionConfig, ErrorCategory, FraiseClient, SslMode, TlsConfig};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use support::{
    backend_state,
    certificates::{Authority, Pair, write},
    cluster::{Cluster, Setup},
    events::Events,
    eventually,
    scripted::{self, Scripted, Step, message},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Roles by how they may connect. `postgres` may use any way, with its password or through the Unix
/// socket.
const HBA: &str = "
local     all postgres trust
host      all postgres all md5
hostssl   all role_scram all scram-sha-256
hostssl   all role_cert all cert
hostssl   all role_md5 all md5
hostssl   all role_tls all trust
hostnossl all role_clear all trust
";

const ROLES: &str = "
create role role_tls login;
create role role_clear login;
create role role_cert login;
set password_encryption = 'md5';
create role role_md5 login password 'md5-secret';
set password_encryption = 'scram-sha-256';
create role role_scram login password 'scram-secret';
";

const VIEWS: &str = "
create view v_endless as
    select jsonb_build_object('id', i, 'text', repeat('x', 100)) as data
    from (select generate_series(1, 2000000000) i) as numbers;
create view v_short as select to_json(i) as data from generate_series(1, 300) i;
";

/// The authorities and their files.
struct World {
    ca: Authority,
    folder: tempfile::TempDir,
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let (ca, stranger) = (Authority::new("the authority"), Authority::new("a stranger"));
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "ca.pem", &ca.pem);
        write(folder.path(), "stranger.pem", &stranger.pem);
        World { ca, folder }
    })
}

/// Starts a server with TLS and this certificate, and with the relations and roles of the tests.
fn start(pair: &Pair, programs: Option<&Path>) -> Cluster {
    let cluster = Cluster::start_with(&Setup {
        hba: HBA,
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt \
                   -c ssl_key_file={folder}/server.key -c ssl_ca_file={folder}/ca.crt",
        files: &[
            ("server.crt", &pair.certificate),
            ("server.key", &pair.key),
            ("ca.crt", &world().ca.pem),
        ],
        programs: programs.map(|folder| (folder, "bin")),
        ..Setup::default()
    });
    let cluster = cluster.unwrap_or_else(|e| panic!("{e}"));
    let url = cluster.url();
    let made = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let admin = support::admin_at(&url).await;
            admin.batch_execute(&[&support::quick_logins(), ROLES, VIEWS].concat()).await.unwrap();
        });
    });
    made.join().unwrap();
    cluster
}

/// The server of most tests. Its certificate is valid for `localhost` and `127.0.0.1`.
fn server() -> &'static Cluster {
    static SERVER: OnceLock<Cluster> = OnceLock::new();
    SERVER.get_or_init(|| start(&world().ca.server("localhost", &["localhost", "127.0.0.1"]), None))
}

/// The same with Postgres 18.
fn server_18() -> &'static Cluster {
    static SERVER: OnceLock<Cluster> = OnceLock::new();
    SERVER.get_or_init(|| {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/postgres18");
        assert!(
            programs.join("bin/postgres").exists(),
            "Postgres 18 is not in target/postgres18: run scripts/test.sh, which fetches it"
        );
        start(&world().ca.server("localhost", &["localhost", "127.0.0.1"]), Some(&programs))
    })
}

fn text(server: &Cluster, user: &str, more: &str) -> String {
    // `postgres` needs it. For other roles, `more` contains their password, and the last one
    // counts.
    let password = support::cluster::password();
    let port = server.port();
    format!("host=localhost port={port} user={user} password={password} dbname=postgres {more}")
}

/// Returns `sslrootcert=` with the path of a file of the world.
fn root(name: &str) -> String {
    format!("sslrootcert={}", world().path(name).display())
}

/// Returns whether connecting succeeds, and whether by TLS. It is the same with libpq.
async fn outcome(text: &str) -> Option<bool> {
    let ours = FraiseClient::connect(text).await;
    let got_in = ours.as_ref().ok().map(|c| c.connection_info().unwrap().tls_version.is_some());
    let owned = text.to_owned();
    let libpq = tokio::task::spawn_blocking(move || fraiseql_wire_libpq::connect(&owned));
    assert_eq!(got_in, libpq.await.unwrap(), "{text}: {ours:?}");
    got_in
}

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Every mode with every kind of certificate and root file has the same result as in libpq.
#[tokio::test]
async fn every_mode_trusts_the_same_roots_as_libpq() {
    let ca = &world().ca;
    let stranger = Authority::new("another stranger");
    let own = stranger.server("localhost", &["localhost"]);
    write(world().folder.path(), "own.pem", &own.certificate);
    let servers = [
        ("good", ca.server("localhost", &["localhost", "127.0.0.1"]), "ca.pem"),
        ("another name", ca.server("elsewhere", &["elsewhere"]), "ca.pem"),
        ("only a common name", ca.server("localhost", &[]), "ca.pem"),
        ("a name beside the common one", ca.server("localhost", &["elsewhere"]), "ca.pem"),
        ("a wildcard", ca.server("x", &["*.localhost", "*"]), "ca.pem"),
        ("expired", ca.expired_server(&["localhost"]), "ca.pem"),
        ("of a stranger", stranger.server("localhost", &["localhost"]), "ca.pem"),
        ("only the address", ca.server("x", &["127.0.0.1"]), "ca.pem"),
    ];
    let mut got_in = 0;
    for (what, pair, right) in &servers {
        let server = start(pair, None);
        for mode in MODES {
            for root_file in [right, "stranger.pem", "missing.pem"] {
                for host in ["localhost", "127.0.0.1"] {
                    let text = format!(
                        "host={host} port={} user=postgres password={} dbname=postgres \
                         sslmode={mode} {}",
                        server.port(),
                        support::cluster::password(),
                        root(root_file)
                    );
                    println!("{what}: {text}");
                    got_in += usize::from(outcome(&text).await.is_some());
                }
            }
        }
        server.stop();
    }
    // Both results must be frequent.
    let all = servers.len() * MODES.len() * 6;
    assert!(all / 4 < got_in && got_in < all * 3 / 4, "{got_in} of {all}");
}

/// pg_hba.conf restricts encryption: `allow` and `prefer` then try the other kind.
#[tokio::test]
async fn every_mode_connects_like_libpq() {
    let without = Cluster::start_with(&Setup { hba: HBA, ..Setup::default() }).unwrap();
    support::admin_at(&without.url()).await.batch_execute(ROLES).await.unwrap();
    for server in [server(), &without] {
        for mode in MODES {
            for role in ["postgres", "role_tls", "role_clear", "role_nobody"] {
                let more = format!("sslmode={mode} {}", root("ca.pem"));
                outcome(&text(server, role, &more)).await;
            }
        }
    }
    // Without TLS, no certificate can be sent.
    for server in [server(), &without] {
        for mode in ["disable", "allow", "prefer", "require"] {
            let more = format!("sslmode={mode} sslcertmode=require {}", root("ca.pem"));
            assert_eq!(outcome(&text(server, "postgres", &more)).await, None, "{mode}");
        }
    }
    // A Unix socket never uses TLS, whatever the mode.
    for mode in MODES {
        let text = format!(
            "host={} port={} user=postgres dbname=postgres sslmode={mode} {}",
            server().folder().display(),
            server().port(),
            root("ca.pem")
        );
        assert_eq!(outcome(&text).await, Some(false), "{mode}");
    }
    without.stop();
}

#[tokio::test]
async fn tls_errors_give_advice() {
    let without = Cluster::start(support::cluster::REQUIRE_PASSWORD).unwrap();
    for (server, more, category, expected) in [
        (&without, "sslmode=require".to_owned(), ErrorCategory::Tls, "switch ssl on"),
        (
            server(),
            format!("sslmode=verify-full {}", root("stranger.pem")),
            ErrorCategory::Tls,
            "sslrootcert",
        ),
        (
            server(),
            format!("sslmode=verify-ca {}", root("missing.pem")),
            ErrorCategory::Tls,
            "missing.pem",
        ),
        (
            server(),
            // A minimal machine has no root certificates.
            "sslmode=verify-full sslrootcert=system".to_owned(),
            ErrorCategory::Tls,
            "sslrootcert",
        ),
    ] {
        let error = FraiseClient::connect(&text(server, "postgres", &more)).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{more}: {error}");
        assert_eq!(error.category(), category, "{more}: {error}");
    }
    let direct = format!("sslmode=require sslnegotiation=direct {}", root("ca.pem"));
    let connected = FraiseClient::connect(&text(server(), "postgres", &direct)).await;
    if server().version() < 17 {
        // The server parses the first bytes of TLS as a startup packet, and closes the connection.
        let error = connected.unwrap_err();
        assert!(error.to_string().contains("TLS"), "{error}");
        assert_eq!(error.category(), ErrorCategory::Connection, "{error}");
    } else {
        connected.unwrap();
    }
    without.stop();
}

#[tokio::test]
async fn login_uses_channel_binding() {
    let password = "password=scram-secret sslmode=require";
    for (binding, expected) in [
        ("disable", Some("scram-sha-256")),
        ("prefer", Some("scram-sha-256-plus")),
        ("require", Some("scram-sha-256-plus")),
    ] {
        let more = format!("{password} channel_binding={binding}");
        let text = text(server(), "role_scram", &more);
        assert!(outcome(&text).await.is_some());
        let client = FraiseClient::connect(&text).await.unwrap();
        let info = client.connection_info().unwrap();
        assert_eq!(Some(info.auth_method), expected);
        assert_eq!(info.tls_version.as_deref(), Some("TLSv1.3"));
        assert!(info.tls_cipher.unwrap().starts_with("TLS_"));
    }
    // Methods that cannot be bound.
    let md5 = "password=md5-secret sslmode=require channel_binding=require";
    assert_eq!(outcome(&text(server(), "role_md5", md5)).await, None);
    assert_eq!(
        outcome(&text(server(), "postgres", "sslmode=require channel_binding=require")).await,
        None
    );
    // Without TLS there is no channel to bind to.
    let clear = "sslmode=disable channel_binding=require";
    assert_eq!(outcome(&text(server(), "role_clear", clear)).await, None);
    // With TLS 1.2 too.
    let old = format!("{password} channel_binding=require ssl_max_protocol_version=TLSv1.2");
    let text = text(server(), "role_scram", &old);
    let client = FraiseClient::connect(&text).await.unwrap();
    assert_eq!(client.connection_info().unwrap().tls_version.as_deref(), Some("TLSv1.2"));
}

#[tokio::test]
async fn client_certificates_log_in_as_with_libpq() {
    let folder = world().folder.path();
    let good = world().ca.client("role_cert");
    let other = world().ca.client("role_other");
    let strange = Authority::new("nobody").client("role_cert");
    for (name, pair) in [("good", &good), ("other", &other), ("strange", &strange)] {
        write(folder, &format!("{name}.crt"), &pair.certificate);
        write(folder, &format!("{name}.key"), &pair.key);
    }
    let path = |name: &str| folder.join(name).display().to_string();
    let with = |name: &str| {
        format!("sslcert={} sslkey={}", path(&format!("{name}.crt")), path(&format!("{name}.key")))
    };
    for (more, gets_in) in [
        (with("good"), true),
        (with("other"), false),
        (with("strange"), false),
        (format!("{} sslcertmode=require", with("good")), true),
        (format!("{} sslcertmode=disable", with("good")), false),
        ("sslcertmode=require".to_owned(), false),
        (String::new(), false),
        (format!("sslcert={} sslkey={}", path("good.crt"), path("other.key")), false),
        (format!("sslcert={} sslkey={}", path("good.crt"), path("missing.key")), false),
        (format!("sslcert={} sslkey={}", path("missing.crt"), path("good.key")), false),
    ] {
        let text =
            text(server(), "role_cert", &format!("sslmode=verify-full {} {more}", root("ca.pem")));
        assert_eq!(outcome(&text).await.is_some(), gets_in, "{more}");
        if more == with("strange") {
            let error = FraiseClient::connect(&text).await.unwrap_err();
            assert_eq!(error.category(), ErrorCategory::Tls, "{error}");
            assert!(error.to_string().contains("client certificate"), "{error}");
        }
    }
    // Without the certificate's role in pg_hba.conf it is sent, and does not matter.
    let text = text(server(), "postgres", &format!("sslmode=require {}", with("strange")));
    assert_eq!(outcome(&text).await, None, "the server does not know the authority");
}

/// `sslpassword` in the connection string decrypts the client's key, as in libpq.
#[tokio::test]
async fn encrypted_client_keys_log_in_as_with_libpq() {
    let folder = world().folder.path();
    let pair = world().ca.client("role_cert");
    write(folder, "encrypted.crt", &pair.certificate);
    write(folder, "plain.key", &pair.key);
    let encrypt = |name: &str, options: &str| {
        let command = format!("{options} -in plain.key -out {name} -passout pass:key-secret");
        let mut openssl = Command::new("openssl");
        openssl.args(command.split(' ')).current_dir(folder).stderr(Stdio::null());
        assert!(openssl.status().unwrap().success(), "openssl {command}");
    };
    encrypt("default.key", "pkcs8 -topk8");
    encrypt("scrypt.key", "pkcs8 -topk8 -scrypt");
    encrypt("des3.key", "pkcs8 -topk8 -v2 des3");
    encrypt("sha1.key", "pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWithSHA1");
    let text = |key: &str, more: &str| {
        let path = |name: &str| folder.join(name).display().to_string();
        let certificate = path("encrypted.crt");
        let more = format!(
            "sslmode=verify-full {} sslcert={certificate} sslkey={} {more}",
            root("ca.pem"),
            path(key)
        );
        text(server(), "role_cert", &more)
    };
    for key in ["default.key", "scrypt.key", "des3.key", "sha1.key"] {
        assert_eq!(outcome(&text(key, "sslpassword=key-secret")).await, Some(true), "{key}");
        let wrong = text(key, "sslpassword='key-secret '");
        assert_eq!(outcome(&wrong).await, None, "{key}");
        // Without a password, libpq asks for one at the terminal.
        for (text, advice) in [
            (wrong, "correct sslpassword"),
            (text(key, "sslpassword=''"), "set sslpassword"),
            (text(key, ""), "set sslpassword"),
        ] {
            let error = FraiseClient::connect(&text).await.unwrap_err();
            assert_eq!(error.category(), ErrorCategory::Tls, "{error}");
            assert!(error.to_string().contains(advice), "{error}");
            assert!(!error.to_string().contains("key-secret"), "{error}");
        }
    }
    assert_eq!(outcome(&text("plain.key", "sslpassword=ignored")).await, Some(true));
}

#[tokio::test]
async fn revoked_certificate_is_rejected() {
    let folder = world().folder.path();
    let pair = world().ca.server("localhost", &["localhost"]);
    write(folder, "revoked.crl", &world().ca.crl(&[&pair]));
    write(folder, "empty.crl", &world().ca.crl(&[]));
    for (crl, gets_in) in [("empty.crl", true), ("revoked.crl", false)] {
        let more = format!(
            "sslmode=verify-full {} sslcrl={}",
            root("ca.pem"),
            world().path(crl).display()
        );
        let text = text(server(), "postgres", &more);
        assert_eq!(outcome(&text).await.is_some(), gets_in, "{crl}");
    }
}

#[tokio::test]
async fn tls_in_code_wins_over_what_the_string_says() {
    let url = format!(
        "postgres://{}@localhost:{}/postgres?sslmode=disable",
        support::cluster::superuser(),
        server().port()
    );
    let ca = || TlsConfig::builder().ca_cert_path(world().path("ca.pem"));
    let pem = TlsConfig::builder().ca_cert_pem(world().ca.pem.clone()).build().unwrap();
    let client = FraiseClient::connect_tls(&url, pem).await.unwrap();
    assert!(client.connection_info().unwrap().tls_version.is_some());
    client.ping().await.unwrap();

    // Another name is rejected, unless the check is disabled.
    for (builder, gets_in) in [
        (ca().server_name("elsewhere"), false),
        (ca().server_name("localhost"), true),
        (ca().server_name("elsewhere").verify_hostname(false), true),
        (TlsConfig::builder().danger_accept_invalid_certs(true), true),
        (TlsConfig::builder(), false),
        (TlsConfig::builder().ca_cert_path(world().path("stranger.pem")), false),
    ] {
        let tls = builder.build().unwrap();
        let result = FraiseClient::connect_tls(&url, tls.clone()).await;
        assert_eq!(result.is_ok(), gets_in, "{tls:?}: {result:?}");
        let config = ConnectionConfig::parse(&url).unwrap();
        let result = FraiseClient::connect_with_config_tls(config, tls).await;
        assert_eq!(result.is_ok(), gets_in);
    }
    let config = ConnectionConfig::builder()
        .host("localhost")
        .port(server().port())
        .user("postgres")
        .password(support::cluster::password())
        .ssl_mode(SslMode::Disable)
        .tls(ca().build().unwrap());
    let client = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    assert!(client.connection_info().unwrap().tls_version.is_some());
}

/// Rows, pauses and cancellation work with TLS as without it.
#[tokio::test]
async fn streams_pass_through_tls() {
    for server in [server(), server_18()] {
        let more = format!("sslmode=verify-full {}", root("ca.pem"));
        let client = FraiseClient::connect(&text(server, "postgres", &more)).await.unwrap();
        let admin = support::admin_at(&server.url()).await;
        let pid = client.backend_pid().unwrap();
        for _ in 0..3 {
            let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
            for id in 1..=20_000 {
                assert_eq!(stream.next().await.unwrap().unwrap()["id"], id);
            }
            stream.pause().await.unwrap();
            stream.resume().await.unwrap();
            stream.next().await.unwrap().unwrap();
            drop(stream);
            eventually("the backend is idle", async || {
                backend_state(&admin, pid).await.as_deref() == Some("idle")
            })
            .await;
        }
        let stream = client.query::<u32>("v_short").execute().await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 300);
        assert_eq!(client.backend_pid(), Some(pid));
        client.close().await.unwrap();
        eventually("the backend is gone", async || backend_state(&admin, pid).await.is_none())
            .await;
        // A client that is dropped, not closed, also sends Terminate.
        let client = FraiseClient::connect(&text(server, "postgres", &more)).await.unwrap();
        let pid = client.backend_pid().unwrap();
        drop(client);
        eventually("the backend is gone", async || backend_state(&admin, pid).await.is_none())
            .await;
    }
}

/// On the wire, only the request for TLS is plaintext, also on connections of cancel requests.
#[tokio::test]
async fn cancel_requests_are_encrypted_as_their_session_is() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let first_bytes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&first_bytes);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let address = ("127.0.0.1", server().port());
                let mut upstream = tokio::net::TcpStream::connect(address).await.unwrap();
                let mut first = [0; 8];
                client.read_exact(&mut first).await.unwrap();
                seen.lock().unwrap().push(first);
                upstream.write_all(&first).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            });
        }
    });
    let text = format!(
        "host=localhost port={port} user=postgres password={} dbname=postgres sslmode=require",
        support::cluster::password()
    );
    let client = FraiseClient::connect(&text).await.unwrap();
    let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    let stream = client.query::<Value>("v_endless").execute().await.unwrap();
    client.cancel_token().cancel().await.unwrap();
    drop(stream);
    client.ping().await.unwrap();
    let seen = first_bytes.lock().unwrap().clone();
    assert!(seen.len() >= 3, "a session, and a connection for each cancel request: {seen:?}");
    for first in seen {
        assert_eq!(first, *b"\0\0\0\x08\x04\xd2\x16\x2f", "an SSLRequest");
    }
}

/// Postgres 18: TLS from the first byte, and protocol 3.2 with its longer cancel keys.
#[tokio::test]
async fn direct_tls_and_protocol_3_2_with_postgres_18() {
    for (more, version) in [
        ("sslnegotiation=direct", "3.0"),
        ("max_protocol_version=3.2", "3.2"),
        ("sslnegotiation=direct min_protocol_version=3.2", "3.2"),
    ] {
        let more = format!("sslmode=verify-full {} {more}", root("ca.pem"));
        let text = text(server_18(), "postgres", &more);
        assert_eq!(outcome(&text).await, Some(true));
        let client = FraiseClient::connect(&text).await.unwrap();
        let info = client.connection_info().unwrap();
        assert_eq!(info.protocol_version, version);
        assert_eq!(client.server_version().unwrap().major, 18);
        // The cancel request uses the same kind of connection.
        let pid = client.backend_pid();
        let mut stream = client.query::<Value>("v_endless").execute().await.unwrap();
        stream.next().await.unwrap().unwrap();
        stream.cancel().await.unwrap();
        client.ping().await.unwrap();
        assert_eq!(client.backend_pid(), pid);
    }
    let scram = "password=scram-secret sslmode=require channel_binding=require";
    let client = FraiseClient::connect(&text(server_18(), "role_scram", scram)).await.unwrap();
    assert_eq!(client.connection_info().unwrap().auth_method, "scram-sha-256-plus");
}

/// Plaintext after the answer to the request for TLS is rejected (CVE-2021-23222), and an error in
/// its place is not shown (CVE-2024-10977).
#[tokio::test]
async fn plaintext_before_tls_is_never_trusted() {
    let login = || {
        let key = message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
        [scripted::auth_ok(), key, scripted::ready()].concat()
    };
    let request = || Step::Expect(b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec());
    let shown = || scripted::error("FATAL", "28000", "visit evil.example");
    for answer in [
        [b"S".to_vec(), login()].concat(),
        [b"S".to_vec(), message(b'R', b"\0\0\0\x03")].concat(),
        [b"S".to_vec(), vec![b'x'; 8 << 20]].concat(),
        [b"S".to_vec(), vec![0x16; 8 << 20]].concat(),
        shown(),
        b"X".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        vec![],
        b"S".to_vec(),
    ] {
        let script = vec![request(), Step::Send(answer.clone())];
        let server = Scripted::start(vec![script]).await;
        let text = format!(
            "host=127.0.0.1 port={} user=u password=planted-secret sslmode=require connect_timeout=20",
            server.address.port()
        );
        let error = FraiseClient::connect(&text).await.unwrap_err();
        let start: String = answer.iter().take(12).map(|b| char::from(*b)).collect();
        assert!(!format!("{error} {error:?}").contains("evil"), "{start:?}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("planted"), "{start:?}: {error:?}");
        assert!(!error.to_string().contains("timed out"), "{start:?}: {error}");
        drop(server);
    }
    // With a server without TLS, and a mode that accepts plaintext, the same socket is used.
    let script =
        vec![request(), Step::Send(b"N".to_vec()), Step::ExpectStartup, Step::Send(login())];
    let server = Scripted::start(vec![script]).await;
    let text = format!("host=127.0.0.1 port={} user=u sslmode=prefer", server.address.port());
    FraiseClient::connect(&text).await.unwrap();
    server.done().await;
}

/// Silence at every step of TLS ends with the timeout.
#[tokio::test]
async fn connect_timeout_covers_tls() {
    let request = || Step::Expect(b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec());
    for script in [
        vec![Step::Silence],
        vec![request(), Step::Silence],
        vec![request(), Step::Send(b"S".to_vec()), Step::Silence],
        vec![request(), Step::Send(b"S\x16\x03\x03".to_vec()), Step::Silence],
    ] {
        let server = Scripted::start(vec![script]).await;
        let text = format!(
            "host=127.0.0.1 port={} user=u sslmode=require connect_timeout=1",
            server.address.port()
        );
        let error = FraiseClient::connect(&text).await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Timeout, "{error}");
        server.done().await;
    }
}

/// After a failure of TLS, in a mode that accepts plaintext: like libpq, the client tries plaintext
/// if TLS itself failed, but not if the server reported an error. Plaintext is logged as a warning.
#[tokio::test]
async fn prefer_falls_back_to_plaintext_only_like_libpq() {
    let request = || Step::Expect(b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec());
    let login = || {
        let key = message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]);
        let answer = [scripted::auth_ok(), key, scripted::ready()].concat();
        vec![Step::ExpectStartup, Step::Send(answer)]
    };
    for (answer, goes_on) in [
        (scripted::error("FATAL", "28000", "visit evil.example"), false),
        (b"X".to_vec(), false),
        (Vec::new(), false),
        (b"Sthis is not TLS".to_vec(), true),
        (b"S\x15\x03\x03\0\x02\x02\x28".to_vec(), true),
        (b"S".to_vec(), true),
    ] {
        for libpq in [false, true] {
            let first = vec![request(), Step::Send(answer.clone()), Step::Close];
            let server = Scripted::start(vec![first, login()]).await;
            let text =
                format!("host=127.0.0.1 port={} user=u sslmode=prefer", server.address.port());
            let got_in = match libpq {
                false => {
                    let (events, _guard) = Events::listen();
                    let got_in = FraiseClient::connect(&text).await.is_ok();
                    let warnings = events.with("WARN");
                    assert_eq!(warnings.len(), usize::from(goes_on), "{answer:?}: {warnings:?}");
                    let plaintext = "TLS failed, and the session continues in plaintext";
                    assert!(warnings.iter().all(|w| w.contains(plaintext)), "{warnings:?}");
                    got_in
                }
                true => {
                    let connect = move || fraiseql_wire_libpq::connect(&text).is_some();
                    tokio::task::spawn_blocking(connect).await.unwrap()
                }
            };
            assert_eq!(got_in, goes_on, "{answer:?}, libpq: {libpq}");
        }
    }
}

/// A connection without protection is logged as a warning, like in libpq. It does not fail.
#[tokio::test]
async fn sessions_without_protection_are_warned_of() {
    let missing = world().path("missing.pem");
    let unverified = "the server's certificate is not verified";
    let plaintext = "the session continues in plaintext";
    for (more, warning) in [
        (format!("sslmode=require {}", root("missing.pem")), unverified),
        (format!("sslmode=prefer {}", root("missing.pem")), unverified),
        // Not verified, as configured.
        ("sslmode=require".to_owned(), ""),
        ("sslmode=prefer".to_owned(), ""),
        (format!("sslmode=require {}", root("ca.pem")), ""),
        (format!("sslmode=prefer {}", root("ca.pem")), ""),
        ("sslmode=disable".to_owned(), ""),
        // Rejected, and the password is sent in plaintext.
        (format!("sslmode=prefer {}", root("stranger.pem")), plaintext),
        (format!("sslmode=prefer {} sslcrl={}", root("ca.pem"), missing.display()), plaintext),
    ] {
        let (events, _guard) = Events::listen();
        let text = text(server(), "postgres", &more);
        FraiseClient::connect(&text).await.unwrap();
        let warnings = events.with("WARN");
        match warning {
            "" => assert!(warnings.is_empty(), "{more}: {warnings:?}"),
            part => {
                assert_eq!(warnings.len(), 1, "{more}: {warnings:?}");
                assert!(warnings[0].contains(part), "{more}: {warnings:?}");
            }
        }
        if warning == plaintext {
            let reason = if more.contains("sslcrl") { "missing.pem" } else { "is not trusted" };
            assert!(warnings[0].contains(reason), "{warnings:?}");
        }
    }
    // `prefer` accepts a server without TLS.
    let without = Cluster::start(support::cluster::REQUIRE_PASSWORD).unwrap();
    let (events, _guard) = Events::listen();
    FraiseClient::connect(&text(&without, "postgres", "sslmode=prefer")).await.unwrap();
    assert_eq!(events.with("WARN"), [""; 0]);
    without.stop();
}

/// A certificate whose signature has no hash: an attacker could choose one, so it must not weaken
/// the login.
#[tokio::test]
async fn certificate_without_a_hash_does_not_weaken_the_login() {
    let pair = Authority::ed25519("of another kind").server("localhost", &["localhost"]);
    let cluster = Cluster::start_with(&Setup {
        hba: HBA,
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt -c ssl_key_file={folder}/server.key",
        files: &[("server.crt", &pair.certificate), ("server.key", &pair.key)],
        ..Setup::default()
    });
    let cluster = cluster.unwrap_or_else(|e| panic!("{e}"));
    support::admin_at(&cluster.url()).await.batch_execute(ROLES).await.unwrap();
    for binding in ["disable", "prefer", "require"] {
        let more = format!("password=scram-secret sslmode=require channel_binding={binding}");
        let text = text(&cluster, "role_scram", &more);
        assert_eq!(outcome(&text).await.is_some(), binding == "disable", "{binding}");
    }
    cluster.stop();
}
