//! Connection settings, compared with libpq itself: the same strings, environment and files.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use fraiseql_wire::ConnectionConfig;
use fraiseql_wire_libpq as libpq;

const SECRETS: [&str; 5] =
    ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"];

/// Compares parsed settings with libpq's. Returns the differences.
fn differences(text: &str) -> Vec<String> {
    let libpq = libpq::ask(text);
    let ours = match (ConnectionConfig::parse(text), &libpq.refused) {
        (Ok(ours), None) => ours,
        (Err(_), Some(_)) => return Vec::new(),
        (Ok(_), Some(why)) => return vec![format!("{text:?}: libpq refuses it: {why}")],
        (Err(e), None) => return vec![format!("{text:?}: libpq takes it, but: {e}")],
    };
    let mut found = Vec::new();
    for (keyword, value) in &libpq.values {
        let expected = (!SECRETS.contains(&keyword.as_str())).then(|| value.clone());
        let got = ours.get(keyword);
        // libpq resolves "auto" to an encoding.
        if keyword != "client_encoding" && got != expected {
            found.push(format!("{text:?}: {keyword} is {got:?}, in libpq {expected:?}"));
        }
    }
    let password = ours.password_for(&ours.targets()[0]);
    if password != libpq.password {
        found
            .push(format!("{text:?}: the password is {password:?}, in libpq {:?}", libpq.password));
    }
    if password.is_some_and(|p| p.len() > 3 && format!("{ours:?} {ours}").contains(&p)) {
        found.push(format!("{text:?}: the password is shown"));
    }
    found
}

/// Typical strings, and those that the rules are about. Host names are addresses, so that no name
/// is resolved.
const CORPUS: &[&str] = &[
    "",
    " ",
    "postgres://",
    "postgresql://",
    "postgres:///",
    "postgres://127.0.0.1",
    "postgres://127.0.0.1/",
    "postgres://127.0.0.1:/db",
    "postgres://u@127.0.0.1:1/db",
    "postgres://u:p@127.0.0.1:1/db",
    "postgres://u:p@127.0.0.1:1/db?",
    "postgres://u:a:b@127.0.0.1:1",
    "postgres://:p@127.0.0.1:1",
    "postgres://u:@127.0.0.1:1",
    "postgres://@127.0.0.1:1",
    "postgres://u:p%40%2F%3a@127.0.0.1:1/d%20b",
    "postgres://u%zz@127.0.0.1:1",
    "postgres://u%0@127.0.0.1:1",
    "postgres://u%00@127.0.0.1:1",
    "postgres://u:p p@127.0.0.1:1",
    "postgres:// u@127.0.0.1:1/ d ",
    "postgres://u@[::1]:1/d",
    "postgres://[::1]",
    "postgres://[::1",
    "postgres://[]",
    "postgres://[::1]x",
    "postgres://127.0.0.1,[::1]:2,127.0.0.2:3/d",
    "postgres://127.0.0.1:1,127.0.0.2/d",
    "postgres://127.0.0.1,127.0.0.2/d?port=1,2",
    "postgres://127.0.0.1,127.0.0.2/d?port=1,2,3",
    "postgres://127.0.0.1%2C127.0.0.2/d?port=1",
    "postgres://%2Fnonexistent/d",
    "postgres:///d?host=/nonexistent",
    "postgres:///d?host=/nonexistent&port=1",
    "postgres:///d?host=@nonexistent",
    "postgres://127.0.0.1/a/b?user=x",
    "postgres://127.0.0.1/d#f",
    "postgres://127.0.0.1:1?user=a&user=b",
    "postgres://127.0.0.1:1?%75ser=a",
    "postgres://127.0.0.1:1?user",
    "postgres://127.0.0.1:1?user=a=b",
    "postgres://127.0.0.1:1?user=a&",
    "postgres://127.0.0.1:1?&user=a",
    "postgres://127.0.0.1:1?=a",
    "postgres://127.0.0.1:1?user=a+b",
    "postgres://127.0.0.1:1?bogus=1",
    "postgres://127.0.0.1:1?host=127.0.0.9",
    "postgres://127.0.0.1:1?ssl=true",
    "postgres://127.0.0.1:1?ssl=false",
    "postgres://127.0.0.1:1?requiressl=1",
    "postgres://127.0.0.1:1?requiressl=0",
    "postgres://127.0.0.1:1?password=secretx",
    "POSTGRES://127.0.0.1",
    "postgres:/127.0.0.1",
    "host=127.0.0.1 port=1",
    "host = 127.0.0.1 port = 1",
    "host=127.0.0.1 port=' 1 '",
    "host=127.0.0.1 port=1x",
    "host=127.0.0.1 port=0",
    "host=127.0.0.1 port=-1",
    "host=127.0.0.1 port=65536",
    "host=127.0.0.1 port=99999999999",
    "host=127.0.0.1 port=+1",
    "host=127.0.0.1,127.0.0.2 port=1,2",
    "host=127.0.0.1,127.0.0.2 port=1,",
    "host=127.0.0.1,127.0.0.2 port=,2",
    "host=127.0.0.1,127.0.0.2 port=1,2,3",
    "host=127.0.0.1 port=1,2",
    "host=127.0.0.1, port=1",
    "host= port=1",
    "host='' port=1",
    "host=/nonexistent",
    "host=@nonexistent",
    "hostaddr=127.0.0.1 port=1",
    "hostaddr=127.0.0.1,127.0.0.2 host=a,b port=1",
    "hostaddr=127.0.0.1 host=a,b port=1",
    "hostaddr=127.0.0.1,127.0.0.2 host=a port=1",
    "hostaddr=::1 port=1",
    "hostaddr=127.1 port=1",
    "hostaddr=0x7f000001 port=1",
    "hostaddr=2130706433 port=1",
    "hostaddr=0177.1 port=1",
    "hostaddr=127.1,0x7f.2 host=a,b port=1",
    "hostaddr=127.256 port=1",
    "hostaddr=127.0.0.256 port=1",
    "hostaddr=127.08 port=1",
    "hostaddr=1.2.3.4.5 port=1",
    "hostaddr=0x port=1",
    "hostaddr=' 127.1' port=1",
    "hostaddr='127.1 ' port=1",
    "hostaddr=nonsense port=1",
    "postgres://a/d?hostaddr=127.1&port=1",
    "hostaddr='' host=127.0.0.1 port=1",
    "host=127.0.0.1 port=1 user='a b' password='it\\'s\\\\' dbname=x\\ y",
    "host=127.0.0.1 port=1 user=a\\",
    "host=127.0.0.1 port=1 user='a",
    "host=127.0.0.1 port=1 user",
    "host=127.0.0.1 port=1 user a",
    "host=127.0.0.1 port=1 =a",
    "host=127.0.0.1 port=1 user=a user=b",
    "host=127.0.0.1 port=1 user='a'password=secretx",
    "host=127.0.0.1 port=1 bogus=1",
    "host=127.0.0.1 port=1 servicefile=x",
    "host=127.0.0.1 port=1 service=nonexistent",
    "host=127.0.0.1 port=1 requiressl=1",
    "host=127.0.0.1 port=1 requiressl=0 sslmode=require",
    "host=127.0.0.1 port=1 sslmode=bogus",
    "host=127.0.0.1 port=1 sslmode=''",
    "host=127.0.0.1 port=1 sslmode=disable",
    "host=127.0.0.1 port=1 sslmode=allow",
    "host=127.0.0.1 port=1 sslmode=require",
    "host=127.0.0.1 port=1 sslmode=verify-ca",
    "host=127.0.0.1 port=1 sslmode=verify-full",
    "host=127.0.0.1 port=1 sslmode=Require",
    "host=127.0.0.1 port=1 sslrootcert=system",
    "host=127.0.0.1 port=1 sslrootcert=system sslmode=verify-full",
    "host=127.0.0.1 port=1 sslrootcert=system sslmode=verify-ca",
    "host=127.0.0.1 port=1 sslrootcert=system sslmode=prefer",
    "host=127.0.0.1 port=1 sslnegotiation=direct",
    "host=127.0.0.1 port=1 sslnegotiation=direct sslmode=require",
    "host=127.0.0.1 port=1 sslnegotiation=bogus",
    "host=127.0.0.1 port=1 sslcertmode=disable",
    "host=127.0.0.1 port=1 sslcertmode=require",
    "host=127.0.0.1 port=1 sslcertmode=bogus",
    "host=127.0.0.1 port=1 sslsni=0 sslcompression=1",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=tlsv1.3",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1.4",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=''",
    "host=127.0.0.1 port=1 ssl_max_protocol_version=TLSv1.2",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
    "host=127.0.0.1 port=1 channel_binding=require",
    "host=127.0.0.1 port=1 channel_binding=bogus",
    "host=127.0.0.1 port=1 require_auth=scram-sha-256,md5",
    "host=127.0.0.1 port=1 require_auth=!password,!none",
    "host=127.0.0.1 port=1 require_auth=!password,md5",
    "host=127.0.0.1 port=1 require_auth=md5,md5",
    "host=127.0.0.1 port=1 require_auth=none,none",
    "host=127.0.0.1 port=1 require_auth=!none,!none",
    "host=127.0.0.1 port=1 require_auth=oauth,gss,sspi",
    "host=127.0.0.1 port=1 require_auth=,md5",
    "host=127.0.0.1 port=1 require_auth=' md5'",
    "host=127.0.0.1 port=1 require_auth=''",
    "host=127.0.0.1 port=1 target_session_attrs=prefer-standby",
    "host=127.0.0.1 port=1 target_session_attrs=read-write",
    "host=127.0.0.1 port=1 target_session_attrs=bogus",
    "host=127.0.0.1 port=1 target_session_attrs=''",
    "host=127.0.0.1 port=1 load_balance_hosts=random",
    "host=127.0.0.1 port=1 load_balance_hosts=bogus",
    "host=127.0.0.1 port=1 min_protocol_version=3.2",
    "host=127.0.0.1 port=1 min_protocol_version=3.2 max_protocol_version=3.0",
    "host=127.0.0.1 port=1 max_protocol_version=latest",
    "host=127.0.0.1 port=1 max_protocol_version=3.1",
    "host=127.0.0.1 port=1 max_protocol_version=''",
    "host=127.0.0.1 port=1 keepalives=0 keepalives_idle=10 keepalives_interval=2 keepalives_count=3",
    "host=127.0.0.1 port=1 keepalives=x",
    "host=127.0.0.1 port=1 keepalives_idle=x",
    "host=127.0.0.1 port=1 keepalives_idle=-1 tcp_user_timeout=1000",
    "host=127.0.0.1 port=1 tcp_user_timeout=1s",
    "host=127.0.0.1 port=1 application_name=a fallback_application_name=b options='-c a=b'",
    "host=127.0.0.1 port=1 gssencmode=disable krbsrvname=x gsslib=gssapi gssdelegation=1",
    "host=127.0.0.1 port=1 gssencmode=prefer",
    "host=127.0.0.1 port=1 gssencmode=require",
    "host=127.0.0.1 port=1 gssencmode=bogus",
    "host=127.0.0.1 port=1 client_encoding=utf8",
    "host=127.0.0.1 port=1 connect_timeout=10",
    "host=127.0.0.1 port=1 connect_timeout=' 10 '",
    "host=127.0.0.1 port=1 scram_client_key=bogus",
    "host=127.0.0.1 port=1 scram_server_key=QQ==",
    "host=127.0.0.1 port=1 oauth_issuer=x oauth_client_id=y oauth_client_secret=hidden oauth_scope=z",
    "host=127.0.0.1 port=1 sslcert=/c sslkey=/k sslpassword=hidden sslcrl=/r sslcrldir=/d",
    "host=127.0.0.1 port=1 replication=''",
    "host=127.0.0.1 port=1 passfile=/nonexistent requirepeer=postgres",
];

/// In the environment of the test run.
#[test]
fn corpus_is_parsed_like_libpq() {
    let found: Vec<_> = CORPUS.iter().flat_map(|text| differences(text)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Random strings of the pieces that rules are about; the same ones in each run.
#[test]
fn generated_strings_are_read_as_libpq_reads_them() {
    const URI: &[&str] = &[
        "u",
        "p",
        ":",
        "@",
        "/",
        "?",
        "&",
        "=",
        ",",
        "%2C",
        "%20",
        "%",
        "%4",
        "%41",
        "%00",
        "[",
        "]",
        "[::1]",
        "::1",
        "127.0.0.1",
        "1",
        "5432",
        "user=",
        "password=",
        "dbname=",
        "port=1",
        "host=127.0.0.1",
        "sslmode=require",
        "ssl=true",
        "#",
        "'",
        "\\",
        " ",
        "é",
        "",
    ];
    const LIST: &[&str] = &[
        "user",
        "password",
        "dbname",
        "=",
        "=",
        "=",
        " ",
        " ",
        "'",
        "'",
        "\\",
        "a",
        "b c",
        "é",
        "\t",
        "host=127.0.0.1 ",
        "port=1 ",
        "user=",
        "password='",
        "\n",
        "sslmode=require ",
        ",",
        "",
    ];
    let mut seed = 1u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let (mut taken, mut refused) = (0, 0);
    for round in 0..6000 {
        let (mut text, pieces) = match round % 3 {
            0 => (String::from("postgres://"), URI),
            1 => (String::from("postgresql://u:p@127.0.0.1:1/d?"), URI),
            _ => (String::from("host=127.0.0.1 port=1 "), LIST),
        };
        for _ in 0..random(9) {
            text.push_str(pieces[random(pieces.len())]);
        }
        // Compares only the syntax, with a function of libpq that does not connect: random host
        // names would have to be resolved.
        match (libpq::parse(&text), ConnectionConfig::parse(&text)) {
            (None, Err(_)) => refused += 1,
            (Some(values), Ok(ours)) => {
                taken += 1;
                for (keyword, value) in values {
                    match keyword.as_str() {
                        "password" => {
                            let given = ours.password().unwrap_or_default();
                            assert_eq!(given, value, "{text:?}: the password");
                        }
                        // Empty means the default.
                        "user" | "dbname" if value.is_empty() => {}
                        _ => assert_eq!(ours.get(&keyword), Some(value), "{text:?}: {keyword}"),
                    }
                }
            }
            // Settings must be UTF-8 here, but not in libpq.
            (Some(_), Err(e)) if e.to_string().ends_with("is not UTF-8") => {}
            // Rejected here, because other values than passwords are shown.
            (Some(values), Err(e)) if e.to_string().contains("contains password=") => {
                let contains = |(k, v): (&String, &String)| {
                    k != "password" && v.contains("password") && v.contains('=')
                };
                assert!(values.iter().any(contains), "{text:?}: {e}");
            }
            (Some(values), Err(e)) => {
                // libpq reports these errors when it connects. An @ in the database of a URI is
                // rejected here, because it may end a part of a password.
                let late = ["host", "port", "sslmode", "dbname"];
                let error = e.to_string();
                assert!(
                    late.iter().any(|k| {
                        let starts = ["", "invalid "].map(|s| format!("configuration: {s}{k}"));
                        starts.iter().any(|start| error.contains(start))
                    }) && late.iter().any(|k| values.contains_key(*k)),
                    "{text:?}: libpq takes it, but: {error}"
                );
            }
            (None, Ok(_)) => panic!("{text:?}: libpq refuses it"),
        }
    }
    assert!(taken > 1000 && refused > 1000, "{taken} taken, {refused} refused");
}

/// Runs the corpus in other environments, each in a separate process: this test binary, with only
/// the first test.
#[test]
fn environments_and_files_are_read_as_libpq_reads_them() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    file(
        ".pgpass",
        "# comment\n127.0.0.1:1:d:u:of-d\n*:1:*:a\\\\:no\n127.0.0.1:*:*:*:of-host:rest\n\
         localhost:*:*:*:of-localhost\n\\:\\:1:*:*:*:of-v6\n*:*:*:*:of-\\:all\\\\\n",
        0o600,
    );
    file(
        ".pg_service.conf",
        "# comment\n[other]\nport=9\n[mine]\nhost=127.0.0.7\nuser=of service\nsslmode=disable\n\
         # more\n[last]\nport=2\n",
        0o644,
    );
    let other_passfile = file("other", "*:*:*:*:of-other\n", 0o600);
    let open_passfile = file("open", "*:*:*:*:of-open\n", 0o640);
    let service_file = file("services", "[mine]\nport=3\ndbname=x\n", 0o644);
    file("etc/pg_service.conf", "[system]\nhost=127.0.0.8\napplication_name=etc\n", 0o644);
    let etc = home.path().join("etc").to_str().unwrap().to_owned();
    let bad_service = file("bad", "[mine]\nhost 127.0.0.1\n", 0o644);
    let nested = file("nested", "[mine]\nservice=other\n", 0o644);
    let unknown = file("unknown", "[mine]\nhost =127.0.0.1\n", 0o644);
    let long = file("long", &format!("[mine]\nuser={}\n", "x".repeat(2000)), 0o644);
    let environments: &[&[(&str, &str)]] = &[
        &[],
        &[("PGHOST", "127.0.0.3"), ("PGPORT", "7"), ("PGUSER", "envuser"), ("PGDATABASE", "envdb")],
        &[("PGHOST", "127.0.0.3,127.0.0.4"), ("PGPORT", "7,8"), ("PGPASSWORD", "of-env")],
        &[("PGHOSTADDR", "127.0.0.3")],
        &[("PGUSER", ""), ("PGHOST", ""), ("PGPORT", ""), ("PGDATABASE", "")],
        &[("PGSSLMODE", "disable"), ("PGREQUIRESSL", "1")],
        &[("PGREQUIRESSL", "1")],
        &[("PGREQUIRESSL", "0")],
        &[("PGSSLROOTCERT", "system")],
        &[("PGSSLROOTCERT", "system"), ("PGSSLMODE", "require")],
        &[("PGSSLMODE", "bogus")],
        &[("PGPASSFILE", &other_passfile)],
        &[("PGPASSFILE", &open_passfile)],
        &[("PGPASSFILE", "/nonexistent")],
        &[("PGPASSFILE", "/")],
        &[("PGSERVICE", "mine")],
        &[("PGSERVICE", "mine"), ("PGHOST", "127.0.0.3"), ("PGPORT", "7")],
        &[("PGSERVICE", "last")],
        &[("PGSERVICE", "min")],
        &[("PGSERVICE", "system"), ("PGSYSCONFDIR", &etc)],
        &[("PGSERVICE", "nonexistent"), ("PGSYSCONFDIR", &etc)],
        &[("PGSERVICE", "mine"), ("PGSERVICEFILE", &service_file)],
        &[("PGSERVICE", "mine"), ("PGSERVICEFILE", "/nonexistent")],
        &[("PGSERVICE", "mine"), ("PGSERVICEFILE", &bad_service)],
        &[("PGSERVICE", "mine"), ("PGSERVICEFILE", &nested)],
        &[("PGSERVICE", "mine"), ("PGSERVICEFILE", &unknown)],
        &[("PGSERVICE", "mine"), ("PGSERVICEFILE", &long)],
        &[("PGREQUIREAUTH", "scram-sha-256"), ("PGCHANNELBINDING", "require")],
        &[("PGTARGETSESSIONATTRS", "standby"), ("PGLOADBALANCEHOSTS", "disable")],
        &[("PGMINPROTOCOLVERSION", "3.0"), ("PGMAXPROTOCOLVERSION", "3.2")],
        &[("PGCONNECT_TIMEOUT", "3"), ("PGAPPNAME", "app"), ("PGOPTIONS", "-c a=b")],
        &[("PGSSLNEGOTIATION", "direct"), ("PGSSLCERTMODE", "disable"), ("PGSSLSNI", "0")],
        &[("PGGSSENCMODE", "require")],
    ];
    for environment in environments {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "corpus_is_parsed_like_libpq"]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            child.env_remove(name);
        }
        child.env("HOME", home.path()).envs(environment.iter().copied());
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{environment:?}: {text}");
    }
}
