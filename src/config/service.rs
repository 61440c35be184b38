//! Service files: [The Connection Service File], and `parseServiceFile` of libpq.
//!
//! [The Connection Service File]: https://www.postgresql.org/docs/current/libpq-pgservice.html

use std::path::{Path, PathBuf};

use super::{
    environment::Environment,
    keyword::{self, Values},
};
use crate::error::{Error, Result};

/// The maximum length of a line: the size of libpq's buffer.
const MAX_LINE: usize = 1022;

/// Sets missing values from the service.
pub(super) fn fill(values: &mut Values, environment: &Environment<'_>) -> Result<()> {
    let named = values.get("service").map(str::to_owned);
    let Some(service) = named.or_else(|| (environment.variable)("PGSERVICE")) else {
        return Ok(());
    };
    keyword::reject_hidden_secret("service", &service)?;
    let mut files = Vec::new();
    match (environment.variable)("PGSERVICEFILE") {
        Some(file) => {
            let file = PathBuf::from(file);
            // Any other failure is reported when the file is read.
            if matches!(file.try_exists(), Ok(false)) {
                return Err(Error::config(format!(
                    "the service file {} (PGSERVICEFILE) does not exist",
                    file.display()
                )));
            }
            files.push(file);
        }
        None => files.extend(environment.home.as_ref().map(|h| h.join(".pg_service.conf"))),
    }
    match (environment.variable)("PGSYSCONFDIR") {
        Some(folder) => files.push(PathBuf::from(folder).join("pg_service.conf")),
        // The defaults of Debian's and Fedora's libpq.
        None => files.extend(
            ["/etc/postgresql-common", "/etc"].map(|f| Path::new(f).join("pg_service.conf")),
        ),
    }
    for file in &files {
        let text = Environment::read_file(file).map_err(|e| {
            let what = format!("the service file {}", file.display());
            Error::unreadable(&what, e).unwrap_or_else(|e| Error::config(format!("{what}: {e}")))
        })?;
        if let Some(text) = text {
            if find_section(&text, &service, values).map_err(|why| {
                Error::config(format!("the service file {}, {why}", file.display()))
            })? {
                return Ok(());
            }
        }
    }
    let files: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
    // Not shown: such a name may be something else, with a password (`service= key=x`).
    let named = match service.contains(['=', ':', '@', '/', '%']) {
        true => "the service".to_owned(),
        false => format!("service {service:?}"),
    };
    Err(Error::config(format!("{named} is not defined in any of {}", files.join(", "))))
}

/// Sets missing values from the section of the service, and returns whether the section exists. No
/// error shows a value, because it may be a password.
fn find_section(text: &[u8], service: &str, values: &mut Values) -> Result<bool, String> {
    let mut found = false;
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let number = number + 1;
        if line.strip_suffix(b"\r").unwrap_or(line).len() > MAX_LINE {
            return Err(format!("line {number}: longer than {MAX_LINE} bytes"));
        }
        let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'\x0b';
        let Some(start) = line.iter().position(|byte| !is_blank(byte)) else { continue };
        let line = line.get(start..).unwrap_or_default();
        if line.starts_with(b"#") {
            continue;
        }
        if let Some(section) = line.strip_prefix(b"[") {
            if found {
                break;
            }
            let rest = section.strip_prefix(service.as_bytes());
            found = rest.is_some_and(|rest| rest.starts_with(b"]"));
            continue;
        }
        if !found {
            continue;
        }
        // Only this section must be UTF-8: a lossy conversion would send a different password.
        let line = std::str::from_utf8(line).map_err(|_| format!("line {number}: not UTF-8"))?;
        let line = line.trim_end_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        let Some((name, value)) = line.split_once('=') else {
            return Err(format!("line {number}: not of the form keyword=value"));
        };
        if name == "service" {
            return Err(format!("line {number}: a service cannot name another service"));
        }
        // Spaces around the equals sign would be part of the keyword or the value.
        let keyword = keyword::find(name).ok_or_else(|| {
            format!("line {number}: the text before the = is not a connection parameter")
        })?;
        values.fill(keyword, value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\n\n[a]\nhost=db\n port=6432 \npassword=se cret\n[ab]\nhost=no\n";

    #[test]
    fn service_section_sets_missing_values() {
        let mut values = Values::default();
        values.set("port", "1".to_owned()).unwrap();
        assert!(find_section(FILE.as_bytes(), "a", &mut values).unwrap());
        assert_eq!(values.get("host"), Some("db"));
        assert_eq!(values.get("port"), Some("1"), "what is given explicitly counts");
        assert_eq!(values.get("password"), Some("se cret"));
        assert!(!find_section(FILE.as_bytes(), "b", &mut Values::default()).unwrap());
        let other = b"[\xfc]\nhost=\xfc\n[a]\nhost=db\n[\xfc]\nport=\xfc";
        let mut values = Values::default();
        assert!(find_section(other, "a", &mut values).unwrap());
        assert_eq!((values.get("host"), values.get("port")), (Some("db"), None));
    }

    #[test]
    fn service_file_errors_name_the_line_and_no_value() {
        for (file, expected) in [
            (&b"[a]\nsecret"[..], "line 2: not of the form"),
            (b"[a]\nservice=b", "line 2: a service cannot"),
            (b"[a]\npassword = secret", "line 2: the text before"),
            (b"[a]\npassword=secret\xfc", "line 2: not UTF-8"),
            (format!("[a]\nhost={}", "s".repeat(1100)).as_bytes(), "line 2: longer"),
        ] {
            let error = find_section(file, "a", &mut Values::default()).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
    }
}
