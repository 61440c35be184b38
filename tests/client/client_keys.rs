//! Keys of client certificates that are encrypted with a password, on a server that requires the
//! certificate.

use std::{path::Path, process::Command};

use crate::support::{
    admin_at,
    certificates::{Authority, write},
    cluster::{Cluster, Setup},
};
use fraiseql_wire::{ConnectionConfig, ErrorCategory, FraiseClient, TlsConfig};
use futures_util::StreamExt;

/// The role can log in with its certificate only.
const HBA: &str = "
local   all all          trust
hostssl all role_key all cert
host    all all      all scram-sha-256
";

const SETTINGS: &str = "-c ssl=on -c ssl_cert_file={folder}/server.crt \
     -c ssl_key_file={folder}/server.key -c ssl_ca_file={folder}/ca.crt";

/// Cancelled only by a request.
const ENDLESS: &str = "v_numbers";

/// Converts `plain.key` in this folder.
fn openssl(folder: &Path, arguments: &str) {
    let mut openssl = Command::new("openssl");
    let output = openssl.args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {output:?}");
}

#[tokio::test]
async fn encrypted_client_key_logs_in_with_the_right_password_only() {
    let authority = Authority::new("the authority");
    let (own, client) =
        (authority.server("localhost", &["127.0.0.1"]), authority.client("role_key"));
    let server = Cluster::start_with(&Setup {
        hba: HBA,
        settings: SETTINGS,
        files: &[
            ("ca.crt", &authority.pem),
            ("server.crt", &own.certificate),
            ("server.key", &own.key),
        ],
        ..Setup::default()
    })
    .unwrap();
    admin_at(&server.url())
        .await
        .batch_execute(
            "create role role_key login;
             create view v_numbers as select to_jsonb(i) as data from generate_series(1, 9999) i,
             generate_series(1, 9999) j, generate_series(1, 9999) k;
             grant select on v_numbers to role_key",
        )
        .await
        .unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(folder.path(), name, text);
    file("ca.crt", &authority.pem);
    file("client.crt", &client.certificate);
    file("plain.key", &client.key);
    let pass = "-in plain.key -passout pass:key-secret";
    openssl(folder.path(), &format!("pkcs8 -topk8 {pass} -out pbkdf2.key"));
    openssl(folder.path(), &format!("pkcs8 -topk8 -scrypt {pass} -out scrypt.key"));
    openssl(folder.path(), &format!("pkcs8 -topk8 -iter 2000001 {pass} -out costly.key"));
    openssl(folder.path(), &format!("ec -aes128 {pass} -out traditional.key"));
    file("malformed.key", &client.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));

    let text = |key: &str, more: &str| {
        let path = |name: &str| folder.path().join(name).display().to_string();
        format!(
            "host=127.0.0.1 port={} dbname=postgres user=role_key sslmode=verify-full \
             sslrootcert={} sslcert={} sslkey={} {more}",
            server.port(),
            path("ca.crt"),
            path("client.crt"),
            path(key),
        )
    };
    let connect = async |key: &str, more: &str| FraiseClient::connect(&text(key, more)).await;
    for key in ["pbkdf2.key", "scrypt.key"] {
        let client = connect(key, "sslpassword=key-secret").await.unwrap();
        client.ping().await.unwrap();
        assert!(client.connection_info().unwrap().tls_version.is_some());
    }

    // A `TlsConfig` has no password of its own.
    let path = |name: &str| folder.path().join(name);
    let tls = TlsConfig::builder()
        .ca_cert_path(path("ca.crt"))
        .client_cert_path(path("client.crt"))
        .client_key_path(path("pbkdf2.key"));
    let tls = tls.build().unwrap();
    for (password, is_right) in [("key-secret", true), ("key-Secret", false)] {
        // The key of the text has no password, and is replaced.
        let text = text("plain.key", &format!("sslpassword={password}"));
        let config = ConnectionConfig::parse(&text).unwrap();
        let config = config.to_builder().tls(tls.clone()).build().unwrap();
        match FraiseClient::connect_with_config(config).await {
            Ok(client) => {
                assert!(is_right);
                client.ping().await.unwrap();
            }
            Err(error) => {
                assert!(!is_right, "{error}");
                assert_eq!(error.category(), ErrorCategory::Tls, "{error}");
            }
        }
    }

    // Decrypting it takes longer than a cancel request may. So it is not decrypted again.
    openssl(folder.path(), &format!("pkcs8 -topk8 -iter 200000 {pass} -out slow.key"));
    let began = std::time::Instant::now();
    connect("slow.key", "sslpassword=key-secret").await.unwrap();
    let limit = began.elapsed() / 2;
    let config = ConnectionConfig::parse(&text("slow.key", "sslpassword=key-secret")).unwrap();
    let config = config.to_builder().cancel_timeout(limit).build().unwrap();
    let client = FraiseClient::connect_with_config(config).await.unwrap();
    let pid = client.backend_pid();
    let mut stream = client.query::<u64>(ENDLESS).execute().await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.cancel().await.unwrap();
    client.ping().await.unwrap();
    assert_eq!(client.backend_pid(), pid);

    let messages = std::fs::read_to_string("docs/error-messages.md").unwrap();
    for (key, more) in [
        ("pbkdf2.key", "sslpassword=key-Secret"),
        ("pbkdf2.key", "sslpassword=''"),
        ("pbkdf2.key", ""),
        ("costly.key", "sslpassword=key-secret"),
        ("traditional.key", "sslpassword=key-secret"),
        ("malformed.key", "sslpassword=key-secret"),
    ] {
        let error = connect(key, more).await.unwrap_err();
        assert_eq!(error.category(), ErrorCategory::Tls, "{error}");
        assert!(!error.is_retriable(), "{error}");
        let text = error.to_string();
        assert!(!text.to_lowercase().contains("key-secret"), "{text}");
        let text = text.replace(&folder.path().join(key).display().to_string(), "client.key");
        assert!(messages.contains(&format!("| `Tls` | `{text}` |")), "{text}");
    }
    server.stop();
}
