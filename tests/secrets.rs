//! No secret is shown: in no `Debug` and no `Display`, in no cause of an error, and in no event,
//! span or metric, with and without errors.
//!
//! Every secret contains the same few letters, and all output is searched for them. Texts of the
//! server are not searched for values, but copies of them are.

mod support;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fmt::{Debug, Display},
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use fraiseql_wire::{
    ConnectionConfig, ConnectionConfigBuilder, Error, ErrorCategory, Field, Filter, FraiseClient,
    Json, Operand, QueryBuilder, RawJson, RetryPolicy, SslMode, TlsConfig, field,
};
use futures_util::StreamExt;
use metrics_util::debugging::{DebuggingRecorder, Snapshotter};
use serde_json::{Value, json};
use support::{
    admin, admin_at,
    certificates::{Authority, write},
    cluster,
    cluster::{Cluster, Setup},
    eventually,
    proxy::Proxy,
    scripted::{self, Scripted, Step, message},
    sql,
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field as TracedField, Visit},
    span,
};

/// A part of every secret.
const PLANTED: &str = "Pl4nted";

/// A cancel key has no more than 4 bytes before protocol 3.2.
const KEY: [u8; 4] = *b"Pl4n";

/// 32 bytes, as a key of SCRAM has.
const SCRAM_KEY: &[u8; 32] = b"Pl4nted-key-of-scram-of-32-bytes";

/// The texts that output is searched for.
static FORMS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The output of tracing.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Starts to capture the events of every crate on every thread, including the threads that read
/// keys and certificates.
fn listen() -> &'static Snapshotter {
    static METRICS: OnceLock<Snapshotter> = OnceLock::new();
    METRICS.get_or_init(|| {
        plant(PLANTED);
        plant(KEY);
        tracing::subscriber::set_global_default(Everything).unwrap();
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().unwrap();
        fraiseql_wire::metrics::describe();
        snapshotter
    })
}

/// Makes a secret of it: it is searched for in each form that a text may have it in.
fn plant(secret: impl AsRef<[u8]>) {
    let secret = secret.as_ref();
    let list: Vec<_> = secret.iter().map(u8::to_string).collect();
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![String::from_utf8_lossy(secret).into_owned(), list.join(","), hex];
    if let Ok(number) = <[u8; 4]>::try_from(secret) {
        forms.push(u32::from_be_bytes(number).to_string());
        forms.push(u32::from_le_bytes(number).to_string());
    } else {
        // Wherever it begins in what is encoded, these letters are its own.
        for before in 0..3 {
            let encoded = BASE64.encode([&vec![0; before][..], secret].concat());
            let own = (before * 8).div_ceil(6)..(before + secret.len()) * 8 / 6;
            forms.push(encoded[own].to_owned());
        }
    }
    FORMS.lock().unwrap().extend(forms.iter().map(|form| plain(form)));
}

/// As texts are compared: `{:#?}` breaks lists into lines, hexadecimal digits may be large.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}

/// The form of a secret that is in the text.
fn found_in(text: &str) -> Option<String> {
    let text = plain(text);
    FORMS.lock().unwrap().iter().find(|form| text.contains(*form)).cloned()
}

#[track_caller]
fn look(text: &str) {
    if let Some(form) = found_in(text) {
        panic!("{form} is shown: {text}");
    }
}

#[track_caller]
fn look_at(shown: &dyn Debug) {
    look(&format!("{shown:?} {shown:#?}"));
}

#[track_caller]
fn look_at_text(shown: &dyn Display) {
    look(&format!("{shown} {shown:#}"));
}

/// An error with all that it is made of.
#[track_caller]
fn look_at_error(error: &Error) {
    look_at(error);
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        look_at(&error);
        look_at_text(&error);
        cause = error.source();
    }
    if let Error::Connection { attempts } = error {
        for attempt in attempts {
            look_at_text(attempt);
            look_at_error(&attempt.error);
        }
    }
}

#[track_caller]
fn look_at_config(config: &ConnectionConfig) {
    look_at(config);
    look_at_text(config);
    look_at(&config.tls());
    for target in config.targets() {
        look_at(&target);
        look_at_text(&target);
    }
    for secret in
        ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"]
    {
        assert_eq!(config.get(secret), None);
    }
}

#[track_caller]
fn look_at_client(client: &FraiseClient) {
    look_at(client);
    look_at(&client.connection_info());
    look_at(&client.cancel_token());
    look_at(&client.server_version());
}

/// Looks at what operators have seen up to now, and returns it.
fn look_at_logs() -> String {
    let logged = LOGGED.lock().unwrap().join("\n");
    logged.lines().for_each(look);
    let mut all = logged;
    for (key, unit, help, _) in listen().snapshot().into_vec() {
        let line = format!("{key:?} {unit:?} {help:?}");
        look(&line);
        all.push_str(&line);
    }
    all
}

/// Every event and span of every crate, with its fields.
struct Everything;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &TracedField, value: &dyn Debug) {
        self.0.push_str(&format!(" {field}={value:?}"));
    }
}

impl Everything {
    fn tell(what: &str, record: impl FnOnce(&mut Line)) {
        let mut line = Line(what.to_owned());
        record(&mut line);
        LOGGED.lock().unwrap().push(line.0);
    }
}

impl Subscriber for Everything {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        Self::tell(span.metadata().name(), |line| span.record(line));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        Self::tell("recorded", |line| values.record(line));
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        Self::tell(event.metadata().target(), |line| event.record(line));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The passwords of this binary's server are secrets, and so are the stored verifiers: with these,
/// an attacker can log in by MD5, or impersonate a SCRAM server.
async fn plant_passwords() {
    static DONE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    listen();
    let make = async || {
        sql("alter role role_password password 'Pl4nted-in-clear-and-longer-than-what-an-allocator-writes';
             set password_encryption = 'md5';
             alter role role_md5 password 'Pl4nted-by-md5-and-longer-than-what-an-allocator-writes';
             set password_encryption = 'scram-sha-256';
             alter role role_scram password 'Pl4nted-by-scram-and-longer-than-what-an-allocator-writes'")
        .await;
        let kept = "select rolname, rolpassword from pg_authid where rolname in ('role_md5', 'role_scram')";
        for row in admin().await.query(kept, &[]).await.unwrap() {
            let (role, kept): (&str, &str) = (row.get(0), row.get(1));
            match role {
                "role_md5" => plant(kept.strip_prefix("md5").unwrap()),
                // SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>
                _ => kept.rsplit('$').next().unwrap().split(':').for_each(|key| {
                    plant(BASE64.decode(key.trim_end_matches('=')).unwrap());
                }),
            }
        }
    };
    DONE.get_or_init(make).await;
}

const LOGINS: [(&str, &str); 3] = [
    ("role_password", "Pl4nted-in-clear-and-longer-than-what-an-allocator-writes"),
    ("role_md5", "Pl4nted-by-md5-and-longer-than-what-an-allocator-writes"),
    ("role_scram", "Pl4nted-by-scram-and-longer-than-what-an-allocator-writes"),
];

fn builder(port: u16, user: &str) -> ConnectionConfigBuilder {
    ConnectionConfig::builder().host("127.0.0.1").port(port).user(user).database("postgres")
}

/// A search that finds nothing must be one that finds something.
#[test]
fn search_finds_a_secret_in_each_form() {
    listen();
    plant(SCRAM_KEY);
    for text in [
        "a Pl4nted word".to_owned(),
        format!("{:?} {:?}", "x", PLANTED.to_uppercase()),
        format!("{:?}", PLANTED.as_bytes()),
        format!("{:#?}", PLANTED.as_bytes()),
        format!("{KEY:x?}").replace(", ", ""),
        format!("{:?}", u32::from_be_bytes(KEY)),
        BASE64.encode(SCRAM_KEY),
        BASE64.encode(format!("user:{PLANTED}!")),
        BASE64.encode(format!("a:{PLANTED}!")),
        BASE64.encode(format!("{PLANTED}!")),
    ] {
        assert!(found_in(&text).is_some(), "{text}");
    }
    assert_eq!(found_in("implanted [80, 108, 52, 111] 506c346f planted"), None);
}

/// By every method and from every place that a password can come from, right and wrong.
#[tokio::test]
async fn logging_in_shows_no_password() {
    plant_passwords().await;
    let port = cluster().port();
    let folder = tempfile::tempdir().unwrap();
    let (mut got_in, mut refused) = (0, 0);
    for (role, right) in LOGINS {
        for password in [right, "Pl4nted-and-wrong"] {
            let passfile =
                write(folder.path(), "passwords", &format!("*:{port}:*:{role}:{password}\n"));
            let by_builder = builder(port, role).password(password);
            let by_provider =
                builder(port, role).password_provider(async move || Ok(password.to_owned()));
            look_at(&by_builder);
            look_at(&by_provider);
            let text = format!("host=127.0.0.1 port={port} user={role} dbname=postgres");
            for config in [
                ConnectionConfig::parse(&format!(
                    "postgres://{role}:{password}@127.0.0.1:{port}/postgres"
                )),
                ConnectionConfig::parse(&format!("{text} password='{password}'")),
                ConnectionConfig::parse(&format!("{text} passfile='{}'", passfile.display())),
                ConnectionConfig::parse(&format!("{text} require_auth=none password={password}")),
                ConnectionConfig::parse(&format!(
                    "{text} channel_binding=require password={password}"
                )),
                by_builder.build(),
                by_provider.build(),
            ] {
                let config = config.unwrap();
                look_at_config(&config);
                let client = FraiseClient::new(config.clone());
                match client.ping().await {
                    Ok(()) => got_in += 1,
                    Err(error) => {
                        refused += 1;
                        look_at_error(&error);
                    }
                }
                look_at_client(&client);
                // Now it remembers what SCRAM's keys were.
                look_at_config(&config);
            }
        }
    }
    assert_eq!((got_in, refused), (3 * 5, 3 * (2 + 7)));

    // The keys in place of the password, which are not the right ones.
    let key = BASE64.encode(SCRAM_KEY) + "=";
    let config = ConnectionConfig::parse(&format!(
        "host=127.0.0.1 port={port} user=role_scram scram_client_key={key} scram_server_key={key} \
         sslpassword=Pl4nted oauth_client_secret=Pl4nted"
    ))
    .unwrap();
    look_at_config(&config);
    look_at_error(&FraiseClient::connect_with_config(config).await.unwrap_err());

    let logged = look_at_logs();
    for part in [
        "connect otel.name",
        "authentications_failed_total",
        "an attempt to connect failed",
        "28P01",
    ] {
        assert!(logged.contains(part), "{part} is not in {logged}");
    }
}

/// A password with invalid syntax is split at unexpected places. An error shows no part of it.
#[test]
fn errors_of_connection_strings_show_no_part_of_a_password() {
    listen();
    let mut texts = vec![
        // Not escaped, or escaped incorrectly.
        "postgres://u:Pl4nted%zz@h".to_owned(),
        "postgres://u:Pl4nted%@h".into(),
        "postgres://u:Pl4nted%00@h".into(),
        "postgres://u:Pl4nted%ff@h".into(),
        "postgres://u:my Pl4nted@h".into(),
        "postgres://u:a@Pl4nted@h".into(),
        "postgres://u:Pl4nted@a@h/d".into(),
        "postgres://u:a/Pl4nted@h".into(),
        "postgres://u:Pl4nted/a@h".into(),
        "postgres://u:a:Pl4nted/b@h".into(),
        "postgres://u:a/b?Pl4nted=c@h".into(),
        // Taken for a host, which would be looked up, or for a database, which would be shown.
        "postgres://us/er:Pl4nted@h/db".into(),
        "postgres://us/er:a@Pl4nted@h/db".into(),
        "postgres://us@er:Pl4nted@h/db".into(),
        "postgres://us:er:Pl4nted/a@h/db".into(),
        "postgres://u:,/Pl4nted@h".into(),
        "postgres://u:Pl4nted,/a@h".into(),
        "postgres://u:1/Pl4nted@h".into(),
        "postgres://u:/Pl4nted@h/db".into(),
        "postgres://u:/Pl4nted@h:1/db?sslmode=disable".into(),
        "postgres://u:a@Pl4nted:1/x@h".into(),
        "postgres://u:a@Pl4nted/x@h".into(),
        "postgres://u:a@Pl4nted,b@h".into(),
        "postgres://u:a@Pl4nted,@h".into(),
        "postgres://u:a@Pl4nted,[::1]@h".into(),
        "postgres://u:Pl4nted@@h/db".into(),
        "postgres://u:a@b/Pl4nted?c@h".into(),
        "postgres://u:1/Pl4nted?c@h".into(),
        "postgres://u:1/Pl4nted#c@h".into(),
        "postgres://u:1/Pl4nted%@h".into(),
        "postgres://u:1/Pl4nted%40@h".into(),
        "postgres://u:a@Pl4nted?c=d@h/db".into(),
        "postgres://u:[a]/Pl4nted@h".into(),
        "postgres://[::1]/Pl4nted@h".into(),
        "dbname=postgres://u:Pl4nted@h/db".into(),
        "postgres:///postgres:%2F%2Fu:Pl4nted%40h?sslmode=disable".into(),
        "postgres://h?dbname=postgresql://u:Pl4nted%40h/db".into(),
        "dbname='host=h password=Pl4nted'".into(),
        " postgres://u:Pl4nted@h".into(),
        "postgres:u:Pl4nted@h".into(),
        "postgres://u:Pl4nted@[::1".into(),
        "postgres://u:Pl4nted@[]".into(),
        "postgres://u:Pl4nted@[::1]x".into(),
        "postgres://u:[Pl4nted/a@h".into(),
        "postgres://u:Pl4nted@h:x".into(),
        "postgres://u:Pl4nted@h:Pl4nted".into(),
        "postgres://u:Pl4nted@h?retries=3".into(),
        "postgres://h?password=Pl4nted=a".into(),
        "postgres://h?password=a&Pl4nted".into(),
        "postgres://h?password=a&Pl4nted=b".into(),
        "postgres://h?password=a&Pl4nted%zz=b".into(),
        "postgres://h?password=Pl4nted%zz".into(),
        "postgres://h?Pl4nted".into(),
        "user:Pl4nted@h/db?sslmode=require".into(),
        "replicator:Pl4nted@db/x?sslmode=require".into(),
        "host=h password:Pl4nted=".into(),
        "postgres://h/d?password%3DPl4nted=".into(),
        "postgres://h/d?passwordPl4nted=".into(),
        "postgres://h/d?PassPl4nted=a".into(),
        "password=my userPl4nted=a".into(),
        "POSTGRES://u:Pl4nted@h".into(),
        "http://u:Pl4nted@h".into(),
        "u:Pl4nted@h/d".into(),
        // Not quoted, or without a closing quote.
        "host=h password=my Pl4nted".into(),
        "host=h password=my Pl4nted=a".into(),
        "host=h password=my Pl4nted='a".into(),
        "host=h password=my 'Pl4nted' =a".into(),
        "host=h password='Pl4nted".into(),
        r"host=h password='Pl4nted\'".into(),
        "host=h password:Pl4nted".into(),
        "host=h pasword Pl4nted".into(),
        "host=h, password=Pl4nted, user".into(),
    ];
    // In the place of something else.
    for keyword in [
        "port",
        "hostaddr",
        "channel_binding",
        "connect_timeout",
        "client_encoding",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "sslmode",
        "sslnegotiation",
        "sslcertmode",
        "require_auth",
        "min_protocol_version",
        "max_protocol_version",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "gssencmode",
        "replication",
        "target_session_attrs",
        "load_balance_hosts",
        "scram_client_key",
        "scram_server_key",
        "sslkeylogfile",
    ] {
        texts.push(format!("host=h {keyword}=Pl4nted"));
        texts.push(format!("postgres://u:Pl4nted@h?{keyword}=Pl4nted"));
    }
    texts.push("host=h require_auth=md5,Pl4nted".into());
    texts.push("host=h require_auth=!Pl4nted".into());
    for text in texts {
        let error = ConnectionConfig::parse(&text).expect_err(&text);
        assert_eq!(error.category(), ErrorCategory::Config);
        look_at_error(&error);
    }
    // Taken, and kept.
    for text in [
        "postgres://u:Pl4nted#a@h",
        "postgres://u:a?Pl4nted@h",
        "postgres://u:a:Pl4nted@h",
        "postgres://u:%50l4nted@h",
        "postgres://h?password=Pl4nted&sslpassword=Pl4nted",
        "host=h password=Pl4nted'",
        r"host=h password=my\ Pl4nted",
    ] {
        look_at_config(&ConnectionConfig::parse(text).unwrap());
    }
    let base = || ConnectionConfig::builder().host("h").password("Pl4nted");
    for builder in [
        base().password("Pl4nted\0"),
        base().database("postgres://u:Pl4nted@h/db"),
        base().database("user=u password=Pl4nted"),
        base().host("postgres://u:Pl4nted@h/db"),
        base().host("a,Pl4nted"),
        base().host("Pl4nted\0"),
        base().user("\0"),
        base().port(1).port(2),
        base().param("a", "Pl4nted\0"),
        base().param("user", "Pl4nted"),
        base().require_auth("Pl4nted"),
        base().max_message_size(1),
    ] {
        look_at_error(&builder.build().unwrap_err());
    }
}

/// Every failure of a login.
#[tokio::test]
async fn failed_login_shows_no_password() {
    listen();
    let ask = |method: &[u8]| Step::Send(message(b'R', method));
    let sasl = || ask(b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let challenge = || {
        Step::Echo(Box::new(|first: &[u8]| {
            let first = String::from_utf8_lossy(first);
            let nonce = first.split("r=").nth(1).unwrap();
            let text = format!("r={nonce}server,s=QQ==,i=1");
            message(b'R', &[b"\0\0\0\x0b", text.as_bytes()].concat())
        }))
    };
    let key = |bytes: &[u8]| message(b'K', &[&[0, 0, 0, 77], bytes].concat());
    let steps: [&dyn Fn() -> Vec<Step>; 5] = [
        &|| vec![ask(b"\0\0\0\x03")],
        &|| vec![ask(b"\0\0\0\x05salt")],
        &|| vec![sasl()],
        &|| vec![sasl(), challenge()],
        &|| vec![Step::Send([scripted::auth_ok(), key(&KEY)].concat())],
    ];
    let ends: [&dyn Fn() -> Step; 10] = [
        &|| Step::Close,
        &|| Step::Reset,
        &|| Step::Silence,
        &|| Step::Send(scripted::error("FATAL", "28P01", "refused")),
        &|| Step::Send(scripted::error("FATAL", "57P03", "starting up")),
        &|| Step::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        &|| Step::Send(message(b'R', b"\0\0\0\x0br=evil,s=QQ==,i=1")),
        &|| Step::Send(message(b'R', b"\0\0\0\x0cv=QQ==")),
        &|| Step::Send(message(b'R', b"\0\0\0\x07")),
        // Longer than it may be, and what is no way to begin a session.
        &|| Step::Send([scripted::auth_ok(), key(b"Pl4nted-cancel-key"), key(b"")].concat()),
    ];
    for (step, begin) in steps.iter().enumerate() {
        for (end, last) in ends.iter().enumerate() {
            let mut script = vec![Step::ExpectStartup];
            script.extend(begin());
            script.push(last());
            let server = Scripted::start(vec![script]).await;
            let config = builder(server.address.port(), "u")
                .password("Pl4nted")
                .ssl_mode(SslMode::Disable)
                .connect_timeout(Duration::from_millis(if end == 2 { 100 } else { 20_000 }))
                .build()
                .unwrap();
            let client = FraiseClient::new(config);
            let error = client.ping().await.expect_err("it is not a server");
            assert_eq!(error.category() == ErrorCategory::Timeout, end == 2, "{step}: {error}");
            look_at_error(&error);
            look_at_client(&client);
        }
    }
    // No server, several of them, and a provider that fails.
    let nobody = cluster::free_port().unwrap();
    let provider = builder(nobody, "u").host("127.0.0.2").password("Pl4nted");
    look_at_error(&FraiseClient::connect_with_config(provider.build().unwrap()).await.unwrap_err());
    look_at_logs();
}

/// Who has the key of a session can stop its queries.
#[tokio::test]
async fn streams_and_cancel_requests_show_no_cancel_key() {
    listen();
    for (key, version) in [(&KEY[..], "3.0"), (b"Pl4nted-key-of-a-session-of-protocol-3.2", "3.2")]
    {
        let key = [&[0, 0, 0, 77], key].concat();
        let session = |mut end: Vec<Step>| {
            let login = [scripted::auth_ok(), message(b'K', &key), scripted::ready()].concat();
            let rows = scripted::begun(&["1"]);
            let mut script = vec![Step::ExpectStartup, Step::Send(login)];
            script.extend([Step::ExpectQuery, Step::Send(rows)]);
            script.append(&mut end);
            script
        };
        let request = || {
            let body = [&80_877_102u32.to_be_bytes()[..], &key].concat();
            let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
            Step::Expect([&length[..], &body].concat())
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let end = [scripted::error("ERROR", "57014", "stopped"), scripted::ready()].concat();
        let silent = || session(vec![Step::Silence]);
        for (how, scripts) in [
            (
                "heard",
                vec![
                    session(vec![Step::Wait(stopped), Step::Send(end)]),
                    vec![request(), Step::Signal(stop)],
                ],
            ),
            ("not answered", vec![silent(), vec![request(), Step::Silence]]),
            ("hung up on, and not taken again", vec![silent(), vec![request(), Step::Reset]]),
            ("not taken", vec![silent()]),
        ] {
            let server = Scripted::start(scripts).await;
            let url = server.url().replace("planted-secret", PLANTED);
            let url = format!("{url}&max_protocol_version={version}");
            let client = FraiseClient::new(ConnectionConfig::parse(&url).unwrap());
            let mut stream = client.query::<RawJson>("v").execute().await.unwrap();
            assert_eq!(client.connection_info().unwrap().protocol_version, version);
            stream.next().await.unwrap().unwrap();
            look_at(&stream);
            look_at(&stream.control());
            look_at(&stream.stats());
            look_at_client(&client);
            if how == "heard" {
                client.cancel_token().cancel().await.unwrap();
                let error = stream.next().await.unwrap().unwrap_err();
                assert!(matches!(error, Error::Cancelled), "{error:?}");
                look_at_error(&error);
            } else {
                look_at_error(&stream.cancel().await.expect_err(how));
            }
            drop(stream);
            look_at_client(&client);
            drop(client);
            server.done().await;
        }
    }
    let logged = look_at_logs();
    for part in ["sent a cancel request", "could not be cleaned up", "cancel_requests_total"] {
        assert!(logged.contains(part), "{part} is not in {logged}");
    }
}

/// Values are apart from the SQL, wherever they come in and however the query ends.
#[tokio::test]
async fn queries_show_no_value() {
    listen();
    sql("create view v_many as
         select jsonb_build_object('id', i, 'text', repeat('x', 1000)) as data
         from generate_series(1, 20000) i;
         create view v_odd as select * from (values ('1'::json), ('\"x\"'), ('1e999')) t(data)")
    .await;
    let client = support::client().await;
    let bound = |view: &str| {
        let query = client.query::<Value>(view).where_sql("$1 <> ''").bind("Pl4nted");
        look_at(&query);
        query
    };

    // Every kind of value, and every operator.
    let secret = json!({"Pl4nted": ["Pl4nted"]});
    let many = client
        .query::<Value>("v_one")
        .bind("Pl4nted".to_owned())
        .bind(Some("Pl4nted"))
        .bind(b"Pl4nted".to_vec())
        .bind(bytes::Bytes::from_static(b"Pl4nted"))
        .bind(vec!["Pl4nted", "Pl4nted"])
        .bind([["Pl4nted"]])
        .bind(secret.clone())
        .bind(Json(vec!["Pl4nted"]))
        .bind(u32::from_be_bytes(KEY));
    look_at(&many);
    let types = ["text", "text", "bytea", "bytea", "text[]", "text[]", "jsonb", "jsonb", "bigint"];
    let all: Vec<_> = (1..).zip(types).map(|(n, kind)| format!("${n}::{kind}")).collect();
    let many = many.where_sql(format!("num_nulls({}) = 0", all.join(", ")));
    assert_eq!(many.fetch_all().await.unwrap(), [1]);
    for filter in filters() {
        look_at(&filter);
        let query = client.query::<Value>("v_one").filter(filter.clone().not());
        look_at(&query);
        // Some are not valid here, or of an extension that is not there: the server's word.
        if let Err(error) = query.fetch_all().await {
            assert!(error.as_db_error().is_some(), "{error}");
        }
        look_at(&client.query::<Value>("v_one").filter(filter.or(field("a").eq(&*KEY_TEXT))));
    }
    look_at(&[Operand::from("Pl4nted"), Operand::from(secret.clone()), Operand::from(1)]);

    // Rejected by the client.
    for query in [
        bound("v_one").bind("Pl4nted"),
        bound("v_one").where_sql("$2 = $3").bind("Pl4nted\0").bind(1),
        bound("v_one").limit(u64::MAX),
        bound("v_one").filter(field("a").eq("Pl4nted\0")),
        bound("v_one").filter(Field::column("a").contains_json(json!("Pl4nted\0"))),
        bound("v_one").filter(field("a").gt(secret.clone())),
        bound("v_one").filter(field("a").between("Pl4nted", 1)),
        bound("v_one").filter(field("a").in_([f64::NAN])),
        bound("v_one").filter(field("a").like("Pl4nted\\")),
        bound("v_one").filter(field("a").hamming_distance("Pl4nted", 1.0)),
        bound("v_one").filter(field("").eq("Pl4nted")),
        bound("not a name"),
        bound("v_one").max_memory(0),
    ] {
        look_at(&query);
        let error = query.to_sql().err();
        error.iter().for_each(look_at_error);
        let error = query.execute().await.expect_err("it is refused");
        assert_eq!(error.category(), ErrorCategory::Config);
        look_at_error(&error);
    }

    // Rejected by the server, without the value: a relation, a column, its type.
    for query in [
        bound("v_missing"),
        bound("v_one").column("missing"),
        bound("v_one").select_projection("1"),
        bound("v_one").where_sql("1 / 0 = 1"),
    ] {
        look_at_error(&query.execute().await.unwrap_err());
    }
    // And with the value, in the server's message, which is not repeated elsewhere.
    let error =
        bound("v_one").where_sql("1 = $2::int").bind("Pl4nted").execute().await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("Pl4nted"), "{error}");

    // Rows that are no such type, too large, too late, and too many.
    for query in [bound("v_odd"), bound("v_short"), bound("v_many").limit(2)] {
        let mut stream = query.execute().await.unwrap();
        look_at(&stream);
        while let Some(row) = stream.next().await {
            row.err().iter().for_each(look_at_error);
        }
        look_at(&stream);
    }
    let mut stream = bound("v_many").max_memory(500).execute().await.unwrap();
    look_at_error(&stream.next().await.unwrap().unwrap_err());
    drop(stream);
    let late = |query: QueryBuilder<Value>| async { query.execute().await.unwrap_err() };
    look_at_error(&late(bound("v_asleep").timeout(Duration::from_millis(50))).await);
    look_at_error(&late(bound("v_asleep").first_row_timeout(Duration::from_millis(50))).await);
    let query = bound("v_many").memory_soft_limits(0.1, 0.2).max_memory(1 << 20);
    let mut stream = query.execute().await.unwrap();
    look_at_error(&loop {
        match stream.next().await.unwrap() {
            Ok(_) => tokio::time::sleep(Duration::from_micros(100)).await,
            Err(error) => break error,
        }
    });
    drop(stream);

    // Paused, looked at, stopped.
    let mut stream = bound("v_endless").execute().await.unwrap();
    let chunk = stream.next_chunk().await.unwrap().unwrap();
    look_at(&chunk);
    stream.pause_with_reason("maintenance").await.unwrap();
    look_at(&stream);
    look_at(&stream.control());
    look_at_error(&bound("v_one").execute().await.unwrap_err());
    look_at_error(&client.ping().await.unwrap_err());
    stream.resume().await.unwrap();
    stream.control().cancel().await.unwrap();
    while let Some(row) = stream.next().await {
        row.err().iter().for_each(look_at_error);
    }
    look_at_error(&stream.pause().await.unwrap_err());
    drop(bound("v_endless").execute().await.unwrap());
    drop(bound("v_one").explain(true).await.unwrap());
    assert_eq!(bound("v_short").count().await.unwrap(), 300);

    // The connection is lost: while it is idle, in the middle, and for good.
    let terminate = async || {
        support::terminate(&admin().await, client.backend_pid().unwrap()).await;
    };
    terminate().await;
    bound("v_one").fetch_one().await.unwrap();
    let mut stream = bound("v_endless").execute().await.unwrap();
    terminate().await;
    look_at_error(&loop {
        if let Err(error) = stream.next().await.unwrap() {
            break error;
        }
    });
    drop(stream);
    let proxy = Proxy::to_port(cluster().port()).await;
    let quick = RetryPolicy::default().max_attempts(2).initial_backoff(Duration::from_millis(1));
    let config = builder(proxy.address.port(), "role_trust").retry(quick).password("Pl4nted");
    let lost = FraiseClient::connect_with_config(config.build().unwrap()).await.unwrap();
    drop(proxy);
    eventually("it is noticed", async || lost.ping().await.is_err()).await;
    let query = lost.query::<Value>("v_one").where_sql("$1 = ''").bind("Pl4nted");
    look_at_error(&query.execute().await.unwrap_err());
    look_at_client(&lost);

    look_at_client(&client);
    let logged = look_at_logs();
    for part in [
        "db.query.text=\"SELECT",
        "paused a stream",
        "soft limit",
        "drained a query",
        "will try again to connect",
        "error.type=\"22P02\"",
        "rows_deserialization_failed_total",
    ] {
        assert!(logged.contains(part), "{part} is not in {logged}");
    }
}

static KEY_TEXT: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| String::from_utf8_lossy(&KEY).into_owned());

/// A filter of each operator that takes a value.
fn filters() -> Vec<Filter> {
    let text = "Pl4nted";
    let a = || field("a");
    vec![
        a().eq(text),
        a().ne(text),
        a().gte(text),
        a().between(text, text),
        a().in_([text, text]),
        a().not_in([json!(text), json!([text]), json!(1)]),
        a().contains(text),
        a().istarts_with(text),
        a().ends_with(text),
        a().ilike(text),
        a().matches_regex(text),
        a().contains_json(json!({ text: text })),
        a().contained_by(json!([text])),
        a().has_key(text),
        a().has_any_key([text]),
        a().has_all_keys([text]),
        a().array_contains(text),
        a().array_contained_by([text]),
        a().array_overlaps([text, text]),
        a().jsonpath_exists("$.a ? (@ == \"Pl4nted\")"),
        a().jsonpath_match("$.a == \"Pl4nted\""),
        a().matches(text),
        a().plain_query(text),
        a().phrase_query(text),
        a().websearch_query(text),
        a().in_subnet(text),
        a().contains_ip(text),
        a().ip_range_overlaps(text),
        a().ancestor_of(text),
        a().matches_lquery(text),
        a().matches_ltxtquery(text),
        a().matches_any_lquery([text]),
        a().lca_of([text]),
        a().eq(u32::from_be_bytes(KEY)),
        Field::column("data").contains_json(json!(text)),
    ]
}

/// The key of a certificate, the password that encrypts it, and the login password over TLS.
#[tokio::test]
async fn tls_shows_no_key_and_no_password() {
    listen();
    let authority = Authority::new("the authority");
    let stranger = Authority::new("a stranger");
    let pair = authority.server("localhost", &["localhost", "127.0.0.1"]);
    let (own, other) = (authority.client("role_scram"), authority.client("role_other"));
    for key in [&own.key, &other.key] {
        // Not the first line, which is the same in all keys.
        key.lines().skip(2).filter(|line| !line.starts_with('-')).for_each(plant);
    }
    let server = Cluster::start_with(&Setup {
        hba: "local all postgres trust\nhost all role_scram all scram-sha-256\n",
        settings: "-c ssl=on -c ssl_cert_file={folder}/server.crt \
                   -c ssl_key_file={folder}/server.key -c ssl_ca_file={folder}/ca.crt",
        files: &[
            ("server.crt", &pair.certificate),
            ("server.key", &pair.key),
            ("ca.crt", &authority.pem),
        ],
        ..Setup::default()
    });
    let server = server.unwrap_or_else(|e| panic!("{e}"));
    let socket = format!("host={} port={} user=postgres", server.folder().display(), server.port());
    let roles = "create role role_scram login password 'Pl4nted-by-scram-and-longer-than-what-an-allocator-writes'";
    admin_at(&socket).await.batch_execute(roles).await.unwrap();

    let text = |more: &str| {
        format!(
            "host=127.0.0.1 port={} user=role_scram dbname=postgres password=Pl4nted-by-scram-and-longer-than-what-an-allocator-writes {more}",
            server.port()
        )
    };
    // In code.
    let trusting = || TlsConfig::builder().ca_cert_pem(authority.pem.clone());
    for (tls, gets_in) in [
        (trusting(), true),
        (trusting().client_cert_pem(own.certificate.clone()).client_key_pem(own.key.clone()), true),
        (TlsConfig::builder().ca_cert_pem(stranger.pem.clone()), false),
        (trusting().server_name("elsewhere"), false),
        (
            trusting().client_cert_pem(own.certificate.clone()).client_key_pem(other.key.clone()),
            false,
        ),
        (
            trusting().client_cert_pem(own.key.clone()).client_key_pem(own.certificate.clone()),
            false,
        ),
        (trusting().client_cert_pem(own.certificate.clone()).client_key_pem("Pl4nted"), false),
        (TlsConfig::builder().ca_cert_pem(own.key.clone()), false),
    ] {
        look_at(&tls);
        let tls = tls.build().unwrap();
        look_at(&tls);
        let config = ConnectionConfig::parse(&text("")).unwrap();
        let by_builder = builder(server.port(), "role_scram").tls(tls.clone()).password("Pl4nted");
        look_at(&by_builder);
        look_at_config(&by_builder.build().unwrap());
        match FraiseClient::connect_with_config_tls(config, tls).await {
            Ok(client) => {
                assert!(gets_in, "{client:?}");
                look_at_client(&client);
            }
            Err(error) => {
                assert!(!gets_in, "{error}");
                look_at_error(&error);
            }
        }
    }
    for tls in [
        trusting().client_key_pem(own.key.clone()),
        trusting().client_key_path("key").client_key_pem(own.key.clone()),
    ] {
        look_at(&tls);
        look_at_error(&tls.build().unwrap_err());
    }

    // In files: encrypted, open to others, another's, and no key at all.
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(folder.path(), name, text);
    let malformed = own.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    file("plain.key", &own.key);
    let open = file("open.key", &own.key);
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    file("ca.crt", &authority.pem);
    for (key, part) in [
        (encrypt_key(folder.path(), "encrypted.key", "Pl4nted"), ""),
        (encrypt_key(folder.path(), "otherwise.key", "other"), "correct sslpassword"),
        (file("malformed.key", &malformed), "is malformed"),
        (open, "group or world access"),
        (file("other.key", &other.key), "does not match"),
        (file("no.key", "Pl4nted, and no key"), "no private key"),
        (folder.path().to_owned(), "not a regular file"),
        (file("own.key", &own.key), ""),
    ] {
        let more = format!(
            "sslmode=verify-full sslrootcert='{}' sslcert='{}' sslkey='{}' sslpassword=Pl4nted",
            folder.path().join("ca.crt").display(),
            file("own.crt", &own.certificate).display(),
            key.display()
        );
        let config = ConnectionConfig::parse(&text(&more)).unwrap();
        look_at_config(&config);
        let client = FraiseClient::new(config);
        match client.ping().await {
            Ok(()) => assert_eq!(part, ""),
            Err(error) => {
                assert!(!part.is_empty() && error.to_string().contains(part), "{part}: {error}");
                look_at_error(&error);
            }
        }
        look_at_client(&client);
    }
    server.stop();

    // Servers that have no TLS, or something else.
    let request = || Step::Expect(b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec());
    for (answer, mode) in [
        (Step::Send(b"N".to_vec()), "require"),
        (Step::Send(b"X".to_vec()), "require"),
        (Step::Send(scripted::error("FATAL", "28000", "no")), "prefer"),
        (Step::Send(b"Sthis is not TLS".to_vec()), "require"),
        (Step::Close, "require"),
        (Step::Silence, "verify-ca"),
    ] {
        let scripted = Scripted::start(vec![vec![request(), answer]]).await;
        let config = ConnectionConfig::parse(&format!(
            "host=127.0.0.1 port={} user=u password=Pl4nted sslmode={mode} sslrootcert='{}' \
             connect_timeout=1",
            scripted.address.port(),
            folder.path().join("ca.crt").display()
        ));
        let client = FraiseClient::new(config.unwrap());
        look_at_error(&client.ping().await.unwrap_err());
        look_at_client(&client);
    }
    look_at_logs();
}

/// Encrypts `plain.key` in a folder.
fn encrypt_key(folder: &Path, name: &str, password: &str) -> PathBuf {
    let mut openssl = Command::new("openssl");
    openssl.args(["pkcs8", "-topk8", "-in", "plain.key", "-out", name, "-passout"]);
    let status = openssl.arg(format!("pass:{password}")).current_dir(folder).status();
    assert!(status.unwrap().success());
    folder.join(name)
}

/// Set for the processes that this test starts: itself, in other environments.
const CHILD: &str = "FRAISEQL_WIRE_SECRETS_CHILD";

/// Variables, a service file and the default password file, each in a process of its own.
#[tokio::test]
async fn secrets_of_the_environment_are_not_shown() {
    if std::env::var_os(CHILD).is_some() {
        return println!("it was {}.", try_environment().await);
    }
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(home.path(), name, text).into_os_string();
    let services = file("services", "[good]\nuser=u\npassword=Pl4nted\n[bad]\nuser=u\nPl4nted\n");
    let odd = file("odd", "[good]\nPl4nted=Pl4nted\n[bad]\npassword = Pl4nted\n");
    let open = file("open", "*:*:*:*:Pl4nted\n");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    file(".pgpass", "*:*:*:*:Pl4nted\n");
    let text = OsString::from;
    let not_utf8 = OsString::from_vec(b"Pl4nted\xff".to_vec());
    let service =
        |name, file: &OsString| vec![("PGSERVICE", text(name)), ("PGSERVICEFILE", file.to_owned())];
    for (expected, environment) in [
        ("sent", vec![]),
        ("sent", vec![("PGPASSWORD", text("Pl4nted"))]),
        ("an error", vec![("PGPASSWORD", not_utf8)]),
        ("nowhere", vec![("PGPASSFILE", open)]),
        ("sent", service("good", &services)),
        ("an error", service("bad", &services)),
        ("an error", service("good", &odd)),
        ("an error", service("bad", &odd)),
        ("an error", vec![("PGPORT", text("Pl4nted"))]),
        ("an error", vec![("PGSSLMODE", text("Pl4nted"))]),
    ] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = "secrets_of_the_environment_are_not_shown";
        child.args(["--exact", name, "--nocapture"]);
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("PG"))
        {
            child.env_remove(name);
        }
        child.env("HOME", home.path()).env(CHILD, "").envs(environment.iter().cloned());
        let output = child.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{environment:?}: {said}");
        assert!(said.contains(&format!("it was {expected}.")), "{environment:?}: {said}");
    }
}

/// Returns where the password of this environment was sent.
async fn try_environment() -> &'static str {
    listen();
    let script = vec![
        Step::ExpectStartup,
        Step::Send(message(b'R', b"\0\0\0\x03")),
        Step::Echo(Box::new(|password: &[u8]| {
            assert_eq!(password, b"Pl4nted\0");
            scripted::error("FATAL", "28P01", "refused")
        })),
    ];
    let server = Scripted::start(vec![script]).await;
    let is_set = |name| std::env::var_os(name).is_some();
    let mut text = "host=127.0.0.1 dbname=d".to_owned();
    if !is_set("PGPORT") {
        text.push_str(&format!(" port={}", server.address.port()));
    }
    if !is_set("PGSSLMODE") {
        text.push_str(" sslmode=disable");
    }
    let config = match ConnectionConfig::parse(&text) {
        Ok(config) => config,
        Err(error) => {
            look_at_error(&error);
            look_at_error(&ConnectionConfig::from_env().unwrap_err());
            return "an error";
        }
    };
    look_at_config(&config);
    let client = FraiseClient::new(config);
    let error = client.ping().await.unwrap_err();
    look_at_error(&error);
    look_at_client(&client);
    look_at_logs();
    // With the server's rejection, the password was sent.
    if error.sqlstate().is_some() { "sent" } else { "nowhere" }
}

/// Reads the memory of another process, which Linux allows.
#[cfg(target_os = "linux")]
mod memory {
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::fs::FileExt,
        process::Stdio,
    };

    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Digest, Sha256};
    use zeroize::Zeroizing;

    use super::*;

    /// The sources of a password for the process whose memory is searched.
    const WAYS: [&str; 7] =
        ["builder", "uri", "list", "passfile", "provider", "keys", "encrypted_key"];

    /// A login leaves no secret in the memory of its process after its client is dropped: no
    /// password, no SCRAM keys, and no MD5 response. Another process logs in, and this one reads
    /// its memory. What the server stores is the evidence.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn login_leaves_no_secret_in_memory() {
        const CHILD: &str = "FRAISEQL_WIRE_LOGIN_AND_WAIT";
        if std::env::var_os(CHILD).is_some() {
            // On a worker's stack.
            return tokio::spawn(log_in_and_wait()).await.unwrap();
        }
        plant_passwords().await;
        let port = cluster().port();
        let mut left = Vec::new();
        for (role, password) in LOGINS {
            let kept = "select coalesce(rolpassword, '') from pg_authid where rolname = $1";
            let kept: String = admin().await.query_one(kept, &[&role]).await.unwrap().get(0);
            let mut secrets = vec![("the password", password.as_bytes().to_vec())];
            let mut keys = None;
            match role {
                "role_md5" => {
                    let digits = kept.strip_prefix("md5").unwrap();
                    secrets.push(("the hash", digits.as_bytes().to_vec()));
                    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
                    secrets.push(("the hash in bytes", (0..32).step_by(2).map(byte).collect()));
                }
                "role_scram" => {
                    let derived = ScramSecrets::of(password, &kept);
                    keys = Some([derived.client.clone(), derived.server.clone()]);
                    secrets.extend([
                        ("the salted password", derived.salted),
                        ("the client key", derived.client),
                        ("the server key", derived.server),
                    ]);
                }
                _ => {}
            }
            // HMAC begins with its key in this form, filled up to 64 bytes.
            for (name, mask) in [("in HMAC, inner", 0x36), ("in HMAC, outer", 0x5c)] {
                let masked = |(_, secret): &(_, Vec<u8>)| {
                    (name, secret.iter().map(|byte| byte ^ mask).collect())
                };
                secrets.extend(
                    secrets.clone().iter().filter(|(n, _)| n.starts_with("the")).map(masked),
                );
            }
            // An allocator writes its pointers over the first bytes of what is freed.
            let end = |(_, secret): &(_, Vec<u8>)| {
                ("an end", secret[16.min(secret.len() - 12)..].to_vec())
            };
            secrets.extend(secrets.clone().iter().map(end));
            for way in WAYS {
                // Parsing of a password does not depend on how it is sent.
                let Some(given) = (match (way, &keys) {
                    ("keys" | "uri" | "list" | "provider", None) => None,
                    ("keys", Some(keys)) => {
                        Some(keys.clone().map(|k| BASE64.encode(k) + "=").join(" "))
                    }
                    ("passfile", _) => Some(format!("*:*:*:{role}:{password}\n")),
                    _ => Some(password.to_owned()),
                }) else {
                    continue;
                };
                let folder = tempfile::tempdir().unwrap();
                let passfile = write(folder.path(), "passwords", &given);
                if way == "encrypted_key" {
                    let pair = Authority::new("the authority").client(role);
                    write(folder.path(), "client.crt", &pair.certificate);
                    write(folder.path(), "plain.key", &pair.key);
                    encrypt_key(folder.path(), "client.key", password);
                }
                let mut child = Command::new(std::env::current_exe().unwrap());
                child.args(["--exact", "memory::login_leaves_no_secret_in_memory", "--nocapture"]);
                child.env(CHILD, way).stdin(Stdio::piped()).stdout(Stdio::piped());
                let mut child = child.spawn().unwrap();
                let mut answers = BufReader::new(child.stdout.take().unwrap());
                let mut wait_for = |answer: &str| {
                    let mut line = String::new();
                    while !line.contains(answer) {
                        line.clear();
                        assert!(answers.read_line(&mut line).unwrap() > 0, "no {answer} by {way}");
                    }
                };
                // Masked, so that it is only where the client has it.
                let masked: Vec<_> =
                    given.bytes().map(|byte| format!("{:02x}", byte ^ MASK)).collect();
                let mut stdin = child.stdin.take().unwrap();
                writeln!(stdin, "{port} {role} {} {}", passfile.display(), masked.concat())
                    .unwrap();

                wait_for("connected");
                let found = search(child.id(), &secrets);
                let expected = match (way, role) {
                    ("keys", _) => &["the client key", "the server key"][..],
                    (_, "role_scram") => &["the password", "the client key", "the server key"],
                    // The file and the provider keep the password themselves.
                    ("passfile" | "provider", _) => &[],
                    _ => &["the password"],
                };
                let missing: Vec<_> =
                    expected.iter().filter(|name| !found.contains(*name)).collect();
                assert!(
                    missing.is_empty(),
                    "{missing:?} of {role} by {way} should have been found"
                );
                writeln!(stdin).unwrap();
                wait_for("gone");
                let found = search(child.id(), &secrets);
                drop(stdin);
                assert!(child.wait().unwrap().success());
                left.extend(found.iter().map(|name| format!("{name} of {role} by {way}")));
            }
        }
        assert!(left.is_empty(), "still in memory: {left:#?}");
    }

    /// The secrets that SCRAM derives from a password.
    struct ScramSecrets {
        salted: Vec<u8>,
        client: Vec<u8>,
        server: Vec<u8>,
    }

    impl ScramSecrets {
        /// With the salt in what the server keeps, which proves the result.
        fn of(password: &str, kept: &str) -> Self {
            let decode = |text: &str| BASE64.decode(text.trim_end_matches('=')).unwrap();
            let parts: Vec<_> = kept.split(['$', ':']).collect();
            let ["SCRAM-SHA-256", iterations, salt, stored, server] = parts[..] else {
                panic!("{kept}")
            };
            let hmac = |key: &[u8], data: &[u8]| {
                let mut hmac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
                hmac.update(data);
                hmac.finalize().into_bytes().to_vec()
            };
            let mut salted = vec![0; 32];
            let iterations = iterations.parse().unwrap();
            pbkdf2::pbkdf2_hmac::<Sha256>(
                password.as_bytes(),
                &decode(salt),
                iterations,
                &mut salted,
            );
            let client = hmac(&salted, b"Client Key");
            assert_eq!(Sha256::digest(&client).to_vec(), decode(stored));
            assert_eq!(hmac(&salted, b"Server Key"), decode(server));
            Self { salted, client, server: decode(server) }
        }
    }

    const MASK: u8 = 0xa5;

    /// The child process: connects, and drops everything on request.
    async fn log_in_and_wait() {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let [port, role, passfile, masked] = words[..] else { panic!("{line}") };
        let mut secret = Zeroizing::new(String::with_capacity(masked.len() / 2));
        for at in (0..masked.len()).step_by(2) {
            secret.push(char::from(u8::from_str_radix(&masked[at..at + 2], 16).unwrap() ^ MASK));
        }
        let way = std::env::var("FRAISEQL_WIRE_LOGIN_AND_WAIT").unwrap();
        let builder = || builder(port.parse().unwrap(), role).ssl_mode(SslMode::Disable);
        // Strings of the caller's are the caller's to overwrite.
        let text = |parts: &[&str]| {
            let mut text = Zeroizing::new(String::with_capacity(1000));
            parts.iter().for_each(|part| text.push_str(part));
            text
        };
        let rest = "sslmode=disable dbname=postgres host=127.0.0.1";
        let config = match way.as_str() {
            "builder" => {
                // A client whose login fails, and that is not closed.
                let wrong = builder().password(text(&[&secret, "x"]).as_str()).build();
                let client = FraiseClient::new(wrong.unwrap());
                client.ping().await.unwrap_err();
                builder().password(secret.as_str()).build()
            }
            "uri" => {
                let text =
                    text(&["postgres://", role, ":", &secret, "@127.0.0.1:", port, "/postgres"]);
                ConnectionConfig::parse(&text)
            }
            "list" => {
                let text =
                    text(&["user=", role, " port=", port, " password='", &secret, "' ", rest]);
                ConnectionConfig::parse(&text)
            }
            // TLS is configured, but the server does not support it.
            "encrypted_key" => {
                let folder = passfile.strip_suffix("passwords").unwrap();
                let text = text(
                    &[
                        &["user=", role, " port=", port, " password='", &secret, "'"][..],
                        &[" sslcert=", folder, "client.crt sslkey=", folder, "client.key"],
                        &[" sslpassword='", &secret, "' host=127.0.0.1 dbname=postgres"],
                    ]
                    .concat(),
                );
                ConnectionConfig::parse(&text)
            }
            "passfile" => {
                let text =
                    text(&["user=", role, " port=", port, " passfile=", passfile, " ", rest]);
                ConnectionConfig::parse(&text)
            }
            "provider" => {
                let secret = secret.clone();
                builder()
                    .password_provider(move || {
                        let secret = secret.clone();
                        async move { Ok(secret.as_str().to_owned()) }
                    })
                    .build()
            }
            "keys" => {
                let (client, server) = secret.split_once(' ').unwrap();
                let keys = [" scram_client_key=", client, " scram_server_key=", server, " "];
                let text = text(&[&["user=", role, " port=", port], &keys[..], &[rest]].concat());
                ConnectionConfig::parse(&text)
            }
            other => panic!("{other}"),
        };
        drop(secret);
        let client = FraiseClient::connect_with_config(config.unwrap()).await.unwrap();
        client.ping().await.unwrap();
        println!("connected");
        std::io::stdin().read_line(&mut line).unwrap();
        client.close().await.unwrap();
        println!("gone");
        while std::io::stdin().read_line(&mut line).unwrap() > 0 {}
    }

    /// Returns the names of the secrets that are in what another process can write to.
    fn search(process: u32, secrets: &[(&'static str, Vec<u8>)]) -> BTreeSet<&'static str> {
        let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        let memory = std::fs::File::open(format!("/proc/{process}/mem")).unwrap();
        // In one pass: this is not optimized code.
        let mut by_first_byte = vec![Vec::new(); 256];
        for (name, secret) in secrets {
            by_first_byte[usize::from(secret[0])].push((*name, secret));
        }
        let mut found = BTreeSet::new();
        let mut searched = 0;
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
            let mut region = vec![0; usize::try_from(end - start).unwrap()];
            // The region may have been unmapped meanwhile.
            if memory.read_exact_at(&mut region, start).is_err() {
                continue;
            }
            searched += region.len();
            for at in 0..region.len() {
                for (name, secret) in &by_first_byte[usize::from(region[at])] {
                    if region[at..].starts_with(secret) {
                        found.insert(*name);
                    }
                }
            }
        }
        assert!(searched > 100_000, "{searched} bytes are not all of it");
        found
    }
}
