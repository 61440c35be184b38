//! Password files: [The Password File], and `passwordFromFile` of libpq.
//!
//! [The Password File]: https://www.postgresql.org/docs/current/libpq-pgpass.html

use std::{fs, io::ErrorKind, path::Path};

use zeroize::Zeroizing;

use crate::{
    error::{Error, Result},
    secret::Password,
};

/// The values that a line must match.
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// Returns the password of the first line that matches.
///
/// Returns `None` if the file does not exist. As in libpq, a file that other users can read is
/// ignored with a warning.
///
/// # Errors
///
/// * The file cannot be read although it may exist and contain the password. libpq ignores such a
///   file.
/// * The password is not UTF-8. libpq sends it unchanged.
pub(super) fn look_up(file: &Path, wanted: &Wanted<'_>) -> Result<Option<Password>> {
    let unreadable =
        |e| match Error::unreadable(&format!("the password file {}", file.display()), e) {
            Ok(error) => error,
            Err(e) => Error::authentication(format!(
                "no password is set, and the password file {} cannot be read: {e}",
                file.display()
            )),
        };
    let metadata = match fs::metadata(file) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        found => found.map_err(unreadable)?,
    };
    if !metadata.is_file() {
        tracing::warn!(target: "fraiseql_wire", file = %file.display(),
            "ignored the password file: it is not a regular file");
        return Ok(None);
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
        tracing::warn!(target: "fraiseql_wire", file = %file.display(),
            "ignored the password file: other users can read it; run chmod 0600 on it");
        return Ok(None);
    }
    let text = Zeroizing::new(fs::read(file).map_err(unreadable)?);
    let Some(found) = find(&text, wanted) else { return Ok(None) };
    let password = unescape(found);
    // A lossy conversion would send a different password to the server.
    let password = std::str::from_utf8(&password).map_err(|_| {
        Error::authentication(format!(
            "the password in the password file {} is not UTF-8: save the file as UTF-8",
            file.display()
        ))
    })?;
    Ok(Some(Password::new(password)))
}

/// Returns the last field of the first line that matches. Bytes, as in libpq: other lines can be in
/// any encoding.
fn find<'a>(text: &'a [u8], wanted: &Wanted<'_>) -> Option<&'a [u8]> {
    let port = wanted.port.to_string();
    let fields = [wanted.host, &port, wanted.database, wanted.user];
    text.split(|&byte| byte == b'\n')
        .map(|line| {
            let end = line.iter().rposition(|&byte| byte != b'\r').map_or(0, |last| last + 1);
            line.get(..end).unwrap_or_default()
        })
        .filter(|line| !line.starts_with(b"#"))
        .find_map(|line| {
            fields.iter().try_fold(line, |rest, field| matching(rest, field.as_bytes()))
        })
}

/// Returns the rest of the line after its first field, if that field is `*` or equals `wanted`.
fn matching<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let mut bytes = line.iter();
    let mut wanted = wanted.iter();
    loop {
        let (byte, escaped) = match bytes.next()? {
            b'\\' => (bytes.next()?, true),
            byte => (byte, false),
        };
        match wanted.next() {
            // As in libpq, a colon in the name need not be escaped.
            Some(w) if w == byte => {}
            Some(_) => return None,
            None => return (*byte == b':' && !escaped).then_some(bytes.as_slice()),
        }
    }
}

/// Returns the password: the text before the first unescaped colon, with escapes removed.
fn unescape(field: &[u8]) -> Zeroizing<Vec<u8>> {
    // Allocated at its maximum size, because a growing vector leaves copies in freed memory.
    let mut password = Zeroizing::new(Vec::with_capacity(field.len()));
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => break,
            b'\\' => password.push(*bytes.next().unwrap_or(&b'\\')),
            byte => password.push(*byte),
        }
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Option<String> {
        let wanted = Wanted { host: "h:1", port: 5432, database: "d", user: "u\\" };
        let password = find(text.as_bytes(), &wanted).map(unescape)?;
        Some(String::from_utf8(password.to_vec()).unwrap())
    }

    /// Bytes that are not UTF-8 affect only the line that contains them.
    #[test]
    fn password_that_is_not_utf8_is_an_error() {
        let wanted = Wanted { host: "h", port: 1, database: "d", user: "u" };
        let text = b"# k\xfcche\n*:*:*:\xfc:no\n*:*:*:\xef\xbf\xbd:no\nh:1:d:u:gr\xfcn\n";
        assert_eq!(
            find(text, &wanted).map(|field| unescape(field).to_vec()),
            Some(b"gr\xfcn".to_vec())
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        let error = look_up(file.path(), &wanted).unwrap_err().to_string();
        assert!(error.contains("is not UTF-8"), "{error}");
        fs::write(&file, b"# k\xfcche\nh:1:d:u:gr\xc3\xbcn\n").unwrap();
        assert_eq!(look_up(file.path(), &wanted).unwrap().unwrap().reveal(), "grün");
    }

    #[test]
    fn first_matching_line_of_the_password_file_is_used() {
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
