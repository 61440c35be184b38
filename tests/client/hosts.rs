//! Several hosts: which one is used, and what happens to the others.

use std::time::Duration;

use crate::support::{
    cluster,
    cluster::password,
    scripted::{self, Scripted, Step, message},
};
use fraiseql_wire::{
    ConnectionConfig, Error, ErrorCategory, FraiseClient, LoadBalanceHosts, TargetSessionAttrs,
    sqlstate,
};

/// Returns a port without a listener.
fn closed_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A connection string for several servers on the loopback.
fn url(ports: &[u16], more: &str) -> String {
    let hosts: Vec<_> = ports.iter().map(|p| format!("127.0.0.1:{p}")).collect();
    let superuser = crate::support::cluster::superuser();
    format!("postgres://{superuser}@{}/postgres?sslmode=disable&{more}", hosts.join(","))
}

/// A server that rejects the client with this error.
fn refusing(code: &str) -> Vec<Step> {
    vec![Step::ExpectStartup, Step::Send(scripted::error("FATAL", code, "no"))]
}

/// A server that reports these parameters.
fn reporting(parameters: &[(&str, &str)]) -> Vec<Step> {
    let mut answer = scripted::auth_ok();
    for (name, value) in parameters {
        answer.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    answer.extend(message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]));
    answer.extend(scripted::ready());
    vec![Step::ExpectStartup, Step::Send(answer)]
}

const PRIMARY: &[(&str, &str)] =
    &[("default_transaction_read_only", "off"), ("in_hot_standby", "off")];
const READ_ONLY_PRIMARY: &[(&str, &str)] =
    &[("default_transaction_read_only", "on"), ("in_hot_standby", "off")];
const STANDBY: &[(&str, &str)] =
    &[("default_transaction_read_only", "off"), ("in_hot_standby", "on")];

#[tokio::test]
async fn next_host_is_tried_after_an_unreachable_one() {
    let (closed, open) = (closed_port(), cluster().port());
    let client = FraiseClient::connect(&url(&[closed, open], "")).await.unwrap();
    assert_eq!(client.connection_info().unwrap().port, open);
    // A name that does not resolve, and a name with an address that does not need to.
    let text = format!(
        "host=does-not-exist.invalid,does-not-exist.invalid,127.0.0.1 hostaddr=,127.0.0.1,127.0.0.1
         port={closed},{closed},{open} user=postgres password={} dbname=postgres",
        password()
    );
    let text = text.replace("hostaddr=,", "hostaddr=127.0.0.1,");
    let client = FraiseClient::connect(&text).await.unwrap();
    assert_eq!(client.connection_info().unwrap().port, open);
}

/// If the resolver fails for one host, the next host is tried.
#[tokio::test]
async fn next_host_is_tried_after_a_name_that_does_not_resolve() {
    let open = cluster().port();
    let text = format!(
        "host=does-not-exist.invalid,127.0.0.1 port={open},{open} user=postgres password={} dbname=postgres",
        password()
    );
    let client = FraiseClient::connect(&text).await.unwrap();
    assert_eq!(client.connection_info().unwrap().host.as_deref(), Some("127.0.0.1"));
    assert_eq!(client.query::<u64>("v_one").fetch_one().await.unwrap(), 1);

    let text = "host=does-not-exist.invalid,nor-does-this.invalid port=5432,5433 user=u";
    let error = FraiseClient::connect(text).await.unwrap_err();
    let Error::Connection { attempts } = &error else { panic!("{error:?}") };
    let targets: Vec<_> = attempts.iter().map(|attempt| attempt.target.as_str()).collect();
    assert_eq!(targets, ["does-not-exist.invalid:5432", "nor-does-this.invalid:5433"]);
    for attempt in attempts {
        assert_eq!(attempt.error.category(), ErrorCategory::Io, "{attempt}");
        assert!(attempt.to_string().contains("while resolving the name: "), "{attempt}");
        assert!(error.to_string().contains(&attempt.to_string()), "{error}");
    }
    assert!(error.is_retriable() && error.sqlstate().is_none());
}

/// Each address is named. `localhost` has one or two; the server listens on one of them.
#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    let (closed, open) = (closed_port(), cluster().port());
    let addresses: Vec<_> = tokio::net::lookup_host(("localhost", closed)).await.unwrap().collect();
    let text = |port| {
        format!("host=localhost port={port} user=postgres password={} dbname=postgres", password())
    };
    let error = FraiseClient::connect(&text(closed)).await.unwrap_err();
    let Error::Connection { attempts } = &error else { panic!("{error:?}") };
    let targets: Vec<_> = attempts.iter().map(|attempt| attempt.target.clone()).collect();
    let expected: Vec<_> =
        addresses.iter().map(|address| format!("localhost:{closed} ({address})")).collect();
    assert_eq!(targets, expected);
    assert!(attempts.iter().all(|a| a.error.category() == ErrorCategory::Io), "{error}");

    let client = FraiseClient::connect(&text(open)).await.unwrap();
    let info = client.connection_info().unwrap();
    assert_eq!((info.host.as_deref(), info.port), (Some("localhost"), open));
    assert_eq!(info.address, Some(std::net::Ipv4Addr::LOCALHOST.into()));
}

#[tokio::test]
async fn connection_error_lists_every_attempt_with_its_reason() {
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let not_now = Scripted::start(vec![refusing("57P03")]).await;
    let ports = [closed_port(), silent.local_addr().unwrap().port(), not_now.address.port()];
    let hosts = ports.iter().fold(ConnectionConfig::builder(), |b, p| b.host("127.0.0.1").port(*p));
    let config = hosts
        .user("u")
        .ssl_mode(fraiseql_wire::SslMode::Disable)
        .connect_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let error = FraiseClient::connect_with_config(config).await.unwrap_err();
    let Error::Connection { attempts } = &error else { panic!("{error:?}") };
    assert_eq!(attempts.len(), 3);
    for (attempt, (port, category)) in attempts.iter().zip(ports.iter().zip([
        ErrorCategory::Io,
        ErrorCategory::Timeout,
        ErrorCategory::Server,
    ])) {
        assert!(attempt.target.ends_with(&port.to_string()), "{attempt}");
        assert_eq!(attempt.error.category(), category, "{attempt}");
        assert!(error.to_string().contains(&attempt.target), "{error}");
    }
    assert!(error.is_retriable());
    not_now.done().await;
}

/// 57P03 is about this server at this moment. Another error is about the user, and final.
#[tokio::test]
async fn server_that_cannot_accept_connections_now_is_skipped() {
    let not_now = Scripted::start(vec![refusing("57P03")]).await;
    let ports = [not_now.address.port(), cluster().port()];
    let client = FraiseClient::connect(&url(&ports, "")).await.unwrap();
    assert_eq!(client.connection_info().unwrap().port, ports[1]);
    not_now.done().await;

    for code in ["28P01", "28000", "3D000", "53300"] {
        let refuses = Scripted::start(vec![refusing(code)]).await;
        let ports = [refuses.address.port(), cluster().port()];
        let error = FraiseClient::connect(&url(&ports, "")).await.unwrap_err();
        assert_eq!(error.sqlstate().map(|c| c.code().to_owned()).as_deref(), Some(code), "{error}");
        refuses.done().await;
    }
}

/// The server's error is returned, even if another address was tried before: `localhost` often has
/// two.
#[tokio::test]
async fn rejection_after_an_unreachable_address_is_returned() {
    let closed = closed_port();
    let refuses = Scripted::start(vec![refusing("28P01")]).await;
    let text = url(&[closed, refuses.address.port()], "");
    let error = FraiseClient::connect(&text).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Authentication, "{error}");
    assert!(!error.is_retriable());
    assert_eq!(error.sqlstate(), Some(&sqlstate::INVALID_PASSWORD));
    assert!(error.to_string().contains(&closed.to_string()), "every attempt is listed: {error}");
    refuses.done().await;
}

/// Unlike libpq: a server that closes the connection during the login may be a proxy whose own
/// server is lost.
#[tokio::test]
async fn server_that_disconnects_during_the_login_is_skipped() {
    for end in [Step::Close, Step::Reset] {
        let gone = Scripted::start(vec![vec![Step::ExpectStartup, end]]).await;
        let ports = [gone.address.port(), cluster().port()];
        let client = FraiseClient::connect(&url(&ports, "")).await.unwrap();
        assert_eq!(client.connection_info().unwrap().port, ports[1]);
        gone.done().await;
    }
}

#[tokio::test]
async fn target_session_attrs_accepts_only_servers_with_the_role() {
    use TargetSessionAttrs::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    let cases = [
        (Any, [true, true, true]),
        (ReadWrite, [true, false, false]),
        (ReadOnly, [false, true, true]),
        (Primary, [true, true, false]),
        (Standby, [false, false, true]),
        // With a single host, the second pass accepts any role.
        (PreferStandby, [true, true, true]),
    ];
    for (attrs, expected) in cases {
        let servers = [PRIMARY, READ_ONLY_PRIMARY, STANDBY];
        for (parameters, takes) in servers.into_iter().zip(expected) {
            let twice = vec![reporting(parameters), reporting(parameters)];
            let server = Scripted::start(twice).await;
            let text =
                url(&[server.address.port()], &format!("target_session_attrs={}", attrs.as_str()));
            let result = FraiseClient::connect(&text).await;
            assert_eq!(result.is_ok(), takes, "{attrs:?} with {parameters:?}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.category(), ErrorCategory::Connection, "{error}");
                assert!(error.is_retriable(), "roles change: {error}");
                assert!(error.to_string().contains("target_session_attrs"), "{error}");
            }
        }
    }
}

/// Servers before Postgres 14 do not report their role.
#[tokio::test]
async fn server_that_does_not_report_its_role_is_queried() {
    let answer = |value: &str| {
        let len = u32::try_from(value.len()).unwrap().to_be_bytes();
        let row = [b"\0\x01", &len[..], value.as_bytes()].concat();
        let description =
            message(b'T', b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
        [description, message(b'D', &row), message(b'C', b"SHOW\0"), scripted::ready()].concat()
    };
    for (attrs, question, value, takes) in [
        ("read-write", "show transaction_read_only", "off", true),
        ("read-write", "show transaction_read_only", "on", false),
        ("read-only", "show transaction_read_only", "on", true),
        ("primary", "select pg_catalog.pg_is_in_recovery()", "f", true),
        ("primary", "select pg_catalog.pg_is_in_recovery()", "t", false),
        ("standby", "select pg_catalog.pg_is_in_recovery()", "t", true),
    ] {
        // Divided at every byte.
        for cut in 0..answer(value).len() {
            let (first, second) = (answer(value)[..cut].to_vec(), answer(value)[cut..].to_vec());
            let mut script = scripted::login();
            script.push(Step::Expect(message(b'Q', format!("{question}\0").as_bytes())));
            script.extend([Step::Send(first), Step::Send(second)]);
            let server = Scripted::start(vec![script]).await;
            let text = url(&[server.address.port()], &format!("target_session_attrs={attrs}"));
            let result = FraiseClient::connect(&text).await;
            assert_eq!(result.is_ok(), takes, "{attrs}, {value}: {result:?}");
            drop(result);
            server.done().await;
        }
    }
    // The real server gives the same answer in both ways.
    let text = url(&[cluster().port()], "target_session_attrs=read-write");
    FraiseClient::connect(&text).await.unwrap();
}

/// If the answer has no value, the role is unknown, and the next host is tried.
#[tokio::test]
async fn server_with_an_unknown_role_is_skipped() {
    let description = message(b'T', b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    let null = message(b'D', b"\0\x01\xff\xff\xff\xff");
    let end = [message(b'C', b"SHOW\0"), scripted::ready()].concat();
    for (answer, what) in [
        (scripted::ready(), "nothing"),
        ([message(b'I', b""), scripted::ready()].concat(), "an empty query"),
        ([description.clone(), end.clone()].concat(), "no row"),
        ([description, null, end].concat(), "NULL"),
    ] {
        for attrs in ["read-write", "read-only", "primary", "standby"] {
            let mut script = scripted::login();
            script.extend([
                Step::Echo(Box::new({
                    let answer = answer.clone();
                    move |_| answer.clone()
                })),
                Step::ExpectEnd,
            ]);
            let server = Scripted::start(vec![script]).await;
            let text = url(&[server.address.port()], &format!("target_session_attrs={attrs}"));
            let error = FraiseClient::connect(&text).await.unwrap_err();
            assert_eq!(error.category(), ErrorCategory::Protocol, "{attrs}, {what}: {error}");
            assert!(error.sqlstate().is_none() && !error.is_retriable());
            server.done().await;
        }
        let mut script = scripted::login();
        script.push(Step::Echo(Box::new(move |_| answer.clone())));
        let server = Scripted::start(vec![script]).await;
        let ports = [server.address.port(), cluster().port()];
        let client =
            FraiseClient::connect(&url(&ports, "target_session_attrs=read-write")).await.unwrap();
        assert_eq!(client.connection_info().unwrap().port, ports[1], "{what}");
        server.done().await;
    }
}

/// The first pass looks for a standby on every host; the second uses the first host that is
/// available.
#[tokio::test]
async fn prefer_standby_tries_every_host_before_a_primary() {
    let primary = Scripted::start(vec![reporting(PRIMARY)]).await;
    let standby = Scripted::start(vec![reporting(STANDBY)]).await;
    let ports = [primary.address.port(), standby.address.port()];
    let text = url(&ports, "target_session_attrs=prefer-standby");
    let client = FraiseClient::connect(&text).await.unwrap();
    assert_eq!(client.connection_info().unwrap().port, ports[1]);
    assert_eq!(client.parameter("in_hot_standby").as_deref(), Some("on"));
    drop(client);
    primary.done().await;
    standby.done().await;

    let primary = Scripted::start(vec![reporting(PRIMARY), reporting(PRIMARY)]).await;
    let ports = [closed_port(), primary.address.port()];
    let text = url(&ports, "target_session_attrs=prefer-standby");
    let client = FraiseClient::connect(&text).await.unwrap();
    assert_eq!(client.connection_info().unwrap().port, ports[1]);
    drop(client);
    primary.done().await;
}

#[tokio::test]
async fn load_balance_hosts_spreads_clients_over_hosts() {
    // The port in the error shows which of the two was tried.
    let rounds = 40;
    let (a, b) = tokio::join!(
        Scripted::start((0..rounds).map(|_| scripted::login()).collect()),
        Scripted::start((0..rounds).map(|_| scripted::login()).collect()),
    );
    let config = ConnectionConfig::builder()
        .host("127.0.0.1")
        .host("127.0.0.1")
        .port(a.address.port())
        .port(b.address.port())
        .user("u")
        .load_balance_hosts(LoadBalanceHosts::Random)
        .ssl_mode(fraiseql_wire::SslMode::Disable)
        .build()
        .unwrap();
    let mut first = 0;
    for _ in 0..rounds {
        let client = FraiseClient::connect_with_config(config.clone()).await.unwrap();
        first += usize::from(client.connection_info().unwrap().port == a.address.port());
    }
    // This fails by chance in one of 2^39 runs.
    assert!(0 < first && first < rounds, "{first} of {rounds}");
}

#[tokio::test]
async fn connect_timeout_applies_to_each_address() {
    // Both are silent. The third one answers after a time that exceeds a single timeout for all of
    // them.
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let silent_too = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = |l: &tokio::net::TcpListener| l.local_addr().unwrap().port();
    let (go, wait) = tokio::sync::oneshot::channel();
    let mut script = vec![Step::ExpectStartup, Step::Wait(wait)];
    script.extend(reporting(PRIMARY).into_iter().skip(1));
    let slow = Scripted::start(vec![script]).await;
    let config = ConnectionConfig::builder()
        .host("127.0.0.1")
        .host("127.0.0.1")
        .host("127.0.0.1")
        .port(port(&silent))
        .port(port(&silent_too))
        .port(slow.address.port())
        .user("u")
        .ssl_mode(fraiseql_wire::SslMode::Disable)
        .connect_timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let started = std::time::Instant::now();
    let (client, ()) = tokio::join!(FraiseClient::connect_with_config(config), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        go.send(()).unwrap();
    });
    assert!(client.is_ok() && started.elapsed() > Duration::from_secs(4), "{client:?}");
    drop(client);
    slow.done().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn host_with_an_at_sign_is_an_abstract_socket() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("@fraiseql-wire-{}/.s.PGSQL.6543", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..]).unwrap();
    let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let bridge = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server =
            tokio::net::TcpStream::connect(("127.0.0.1", cluster().port())).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    let host = name.split('/').next().unwrap();
    let text =
        format!("host={host} port=6543 user=postgres password={} dbname=postgres", password());
    let client = FraiseClient::connect(&text).await.unwrap();
    assert_eq!(client.connection_info().unwrap().unix_socket.unwrap().to_str(), Some(&*name));
    client.ping().await.unwrap();
    client.close().await.unwrap();
    bridge.await.unwrap();
}

#[tokio::test]
async fn requirepeer_checks_the_user_of_the_server() {
    let folder = cluster().folder().display();
    let port = cluster().port();
    let text = |user: &str| format!("host={folder} port={port} user=postgres requirepeer={user}");
    let error = FraiseClient::connect(&text("somebody")).await.unwrap_err();
    assert_eq!(error.category(), ErrorCategory::Authentication);
    let message = error.to_string();
    let runs_as = message.split("as the user \"").nth(1).unwrap().split('"').next().unwrap();
    FraiseClient::connect(&text(runs_as)).await.unwrap();
    // The setting applies only to Unix sockets, as in libpq.
    FraiseClient::connect(&url(&[port], "requirepeer=somebody")).await.unwrap();
    assert_eq!(error.sqlstate(), None::<&sqlstate::SqlState>);
}
