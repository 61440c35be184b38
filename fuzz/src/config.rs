//! Password files and service files.

#[path = "../../src/config/address.rs"]
pub(crate) mod address;
#[path = "../../src/config/environment.rs"]
#[allow(dead_code)]
mod environment;
#[path = "../../src/config/foreign.rs"]
#[allow(dead_code)]
mod foreign;
#[path = "../../src/config/keyword.rs"]
#[allow(dead_code)]
mod keyword;
#[path = "../../src/config/passfile.rs"]
mod passfile;
#[path = "../../src/config/service.rs"]
mod service;

use self::{environment::Environment, keyword::Values, passfile::Wanted};
use crate::targets::TempPath;

/// Fuzzes a password file. The input starts with the host, database, user and password, each ended
/// by a NUL.
///
/// A simple parser must find the same password. A line that was escaped as the manual requires must
/// be found by its own fields, whatever follows it.
pub fn password_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(5, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (host, database, user, password, file) = (next(), next(), next(), next(), next());
    let wanted = Wanted { host, port: 5432, database, user };
    let look_up = |text: &str| {
        let found = passfile::look_up(&TempPath::with(text).0, &wanted).expect("it can be read");
        found.map(|password| password.reveal().to_owned())
    };

    let found = look_up(file);
    // libpq treats an unescaped colon as part of the name; the simple parser does not.
    if ![host, database, user].iter().any(|name| name.contains(':')) {
        assert_eq!(found, parse_simply(file, [host, "5432", database, user]), "{file:?}");
    }
    // Lines for others match nothing.
    let others = "#x:*:*:*:no\n*:5433:*:*:no\n*:*:*\n";
    assert_eq!(look_up(&format!("{others}{file}")), found);

    // A line cannot contain these.
    if [host, database, user, password].iter().any(|part| part.contains(['\n', '\r'])) {
        return;
    }
    let [host, database, user, escaped] = [host, database, user, password].map(escape);
    let line = format!("{host}:5432:{database}:{user}:{escaped}");
    assert_eq!(look_up(&format!("{others}{line}\n{file}")).as_deref(), Some(password), "{line}");
}

/// Returns the password of the first line with these fields, by [the manual].
///
/// [the manual]: https://www.postgresql.org/docs/current/libpq-pgpass.html
fn parse_simply(file: &str, wanted: [&str; 4]) -> Option<String> {
    let lines = file.split('\n').map(|line| line.trim_end_matches('\r'));
    for line in lines.filter(|line| !line.starts_with('#')) {
        // Each field as it is written, and without its escapes.
        let mut fields = vec![(String::new(), String::new())];
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            let (written, meant) = fields.last_mut().unwrap();
            match c {
                ':' => fields.push(Default::default()),
                '\\' => {
                    let escaped = chars.next().unwrap_or('\\');
                    written.extend(['\\', escaped]);
                    meant.push(escaped);
                }
                c => {
                    written.push(c);
                    meant.push(c);
                }
            }
        }
        let Some((_, password)) = fields.get(4) else { continue };
        let mut pairs = fields.iter().zip(wanted);
        if pairs.all(|((written, meant), wanted)| written == "*" || meant == wanted) {
            return Some(password.clone());
        }
    }
    None
}

/// Escapes `:` and `\`, as the manual requires. Other characters may be escaped too; a `*` or `#`
/// must be, where it has a meaning.
fn escape(part: &str) -> String {
    let mut escaped = String::new();
    for c in part.chars() {
        if [':', '\\', '*', '#'].contains(&c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Too long to occur by chance.
const SECRET: &str = "Pl4ntedS3cret";

/// Fuzzes a service file. It is accepted or rejected, explicit settings have precedence, and no
/// password is ever shown.
pub fn service_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // A fuzzer finds this constant, and puts it where it is not a secret.
    if text.contains(SECRET) {
        return;
    }
    let _ = fill(&text);

    // Text after the end of the section has no effect.
    let ended = format!("[svc]\nhost=planted.example\n[other]\n{text}");
    assert_eq!(fill(&ended).unwrap().get("host"), Some("planted.example"));
    // A password in its line, in another place, and in the last line.
    for shown in [
        fill(&format!("[svc]\npassword={SECRET}{text}")),
        fill(&format!("[svc]\n{SECRET}{text}")),
        fill(&format!("[svc]\n{text}\npassword = {SECRET}")),
    ] {
        match shown {
            Err(error) => assert!(!error.contains(SECRET), "{error}"),
            // Only a value that is read as the password is a secret.
            Ok(values) if values.get("password").is_some_and(|p| p.contains(SECRET)) => {
                assert!(!format!("{values:?}").contains(SECRET), "{text:?}");
            }
            Ok(_) => {}
        }
    }
}

/// Applies the service `svc` of this file.
fn fill(text: &str) -> Result<Values, String> {
    let file = TempPath::with(text);
    let variable = |name: &str| match name {
        "PGSERVICEFILE" => file.0.to_str().map(str::to_owned),
        // The only variable that is set.
        "PGSYSCONFDIR" => Some("/nowhere".to_owned()),
        _ => None,
    };
    let environment = Environment { variable: &variable, home: None };
    let mut values = Values::default();
    values.set("service", "svc".to_owned()).unwrap();
    values.set("port", "1".to_owned()).unwrap();
    match service::fill(&mut values, &environment) {
        Ok(()) => {
            assert_eq!(values.get("port"), Some("1"));
            assert!(text.contains("[svc]"), "{text:?} has no such section");
            Ok(values)
        }
        Err(error) => Err(error.to_string()),
    }
}
