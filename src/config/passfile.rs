//! Password files: [The Password File], and `passwordFromFile` of libpq.
//!
//! [The Password File]: https://www.postgresql.org/docs/current/libpq-pgpass.html

use std::{fs, path::Path};

use super::secret::Password;

/// What a line must match.
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The password of the first line that matches.
///
/// A file that is not there or cannot be read is as good as none, and one that others may read is
/// ignored with a warning, as in libpq.
pub(super) fn look_up(file: &Path, wanted: &Wanted<'_>) -> Option<Password> {
    let metadata = fs::metadata(file).ok()?;
    if !metadata.is_file() {
        tracing::warn!(target: "fraiseql_wire", file = %file.display(),
            "the password file is ignored: it is not a plain file");
        return None;
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
        tracing::warn!(target: "fraiseql_wire", file = %file.display(),
            "the password file is ignored: others may read it; chmod it to 0600");
        return None;
    }
    let text = zeroize::Zeroizing::new(fs::read(file).ok()?);
    let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&text).into_owned());
    find(&text, wanted)
}

fn find(text: &str, wanted: &Wanted<'_>) -> Option<Password> {
    let port = wanted.port.to_string();
    let fields = [wanted.host, &port, wanted.database, wanted.user];
    text.split('\n')
        .map(|line| line.trim_end_matches('\r'))
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| fields.iter().try_fold(line, |rest, field| matching(rest, field)))
        .map(|rest| Password::new(unescape(rest)))
}

/// What follows the first field, if that is `*` or stands for `wanted`.
fn matching<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut chars = line.chars();
    let mut wanted = wanted.chars();
    loop {
        let (c, escaped) = match chars.next()? {
            '\\' => (chars.next()?, true),
            c => (c, false),
        };
        match wanted.next() {
            // As in libpq, a colon of the name need not be escaped.
            Some(w) if w == c => {}
            Some(_) => return None,
            None => return (c == ':' && !escaped).then_some(chars.as_str()),
        }
    }
}

/// The password: up to a colon that no backslash precedes, without its backslashes.
fn unescape(field: &str) -> String {
    let mut password = String::new();
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => break,
            '\\' => password.push(chars.next().unwrap_or('\\')),
            c => password.push(c),
        }
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Option<String> {
        let wanted = Wanted { host: "h:1", port: 5432, database: "d", user: "u\\" };
        find(text, &wanted).map(|p| p.reveal().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        assert_eq!(password("x:*:*:*:no\n*:5432:*:*:yes\n*:*:*:*:no"), Some("yes".into()));
        assert_eq!(password(r"h\:1:5432:d:u\\:a\:b\\c:rest"), Some(r"a:b\c".into()));
        assert_eq!(password("#*:*:*:*:no"), None);
        assert_eq!(password("*:*:*:*:p\r\n"), Some("p".into()));
        assert_eq!(password(r"h:1:5432:d:u\\:yes"), Some("yes".into()), "as the name has it");
        assert_eq!(password("h:5432:d:u:no"), None);
        assert_eq!(password("*:*:*"), None);
        assert_eq!(password("**:*:*:*:no"), None);
    }
}
