//! Parses connection strings like libpq: see [Connection Strings] in the Postgres manual, and
//! `conninfo_uri_parse_options` and `conninfo_parse` in libpq 18.
//!
//! The result is the keywords and values in their order. They are not interpreted here. No error
//! shows a value, because a misplaced `@` or `/` can move the password to any part of a URI.
//!
//! [Connection Strings]: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING

use zeroize::Zeroizing;

use super::{foreign, keyword};
use crate::error::{Error, Result};

/// Keywords and values. If a keyword is repeated, the last value counts.
pub(super) type Pairs = Vec<(String, Zeroizing<String>)>;

/// Parses a URI or a list of keywords and values.
pub(super) fn parse(text: &str) -> Result<Pairs> {
    // The prefixes are case-sensitive in libpq too.
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => parse_uri(rest),
        None => parse_keywords(text),
    }
}

fn parse_uri(rest: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut store = |keyword: &str, value: &str| -> Result<()> {
        if !value.is_empty() {
            pairs.push((keyword.into(), decode(value, keyword)?));
        }
        Ok(())
    };

    // The user part ends at the first @, unless a / comes before it.
    let hosts = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => {
            let (user, password) = split_at_char(&rest[..at], ':');
            store("user", user)?;
            store("password", password.unwrap_or_default())?;
            &rest[at + 1..]
        }
        _ => rest,
    };

    let (hosts, query) = split_at_char(hosts, '?');
    let (hosts, database) = split_at_char(hosts, '/');
    // libpq accepts such names. No host name contains an @, and few database names do. It usually
    // follows a user or password with an unescaped / or @, whose rest would be resolved and shown.
    for (name, part) in [("host", hosts), ("dbname", database.unwrap_or_default())] {
        if part.contains('@') {
            return Err(Error::config(format!(
                "{name} contains @ after the end of the user and password of the URI: if one of \
                 them contains / or @, write %2F or %40; if the {name} contains @, write %40"
            )));
        }
    }
    let (host, port) = parse_hosts(hosts)?;
    store("host", &host)?;
    store("port", &port)?;
    store("dbname", database.unwrap_or_default())?;

    let Some(query) = query.filter(|q| !q.is_empty()) else { return Ok(pairs) };
    // An unescaped password ends up here only together with the @ after it, or if it is given as a
    // parameter and contains a &.
    let mut may_be_secret = query.contains('@');
    // One & at the end is allowed. A second one would begin an empty parameter.
    for pair in query.strip_suffix('&').unwrap_or(query).split('&') {
        let (keyword, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| Error::config("a URI parameter is not of the form keyword=value"))?;
        let keyword = decode(keyword, "a keyword")?;
        let value = decode(value, shown(&keyword))?;
        // requiressl is the predecessor of sslmode.
        let is_known = keyword.as_str() == "requiressl" || keyword::find(&keyword).is_some();
        let is_harmless = is_name(&keyword) && !keyword::begins_as_secret(&keyword);
        if !is_known && !may_be_secret && is_harmless && foreign::advice(&keyword).is_none() {
            return Err(keyword::unknown_and_shown(&keyword));
        }
        may_be_secret |= keyword::is_secret(&keyword) || !is_known;
        match (keyword.as_str(), value.as_str()) {
            ("ssl", "true") => pairs.push(("sslmode".into(), "require".to_owned().into())),
            _ => pairs.push((keyword.to_string(), value)),
        }
    }
    Ok(pairs)
}

/// Splits `host:port,[v6]:port,...` into a list of hosts and a list of ports.
fn parse_hosts(mut rest: &str) -> Result<(String, String)> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    loop {
        if let Some(inner) = rest.strip_prefix('[') {
            let (address, tail) = inner.split_once(']').ok_or_else(|| {
                Error::config("an IPv6 address in the URI has no closing bracket ]")
            })?;
            if address.is_empty() {
                return Err(Error::config("an IPv6 address in the URI is empty: []"));
            }
            if !(tail.is_empty() || tail.starts_with([':', ','])) {
                return Err(Error::config(
                    "in the URI, something other than a port follows an IPv6 address in []",
                ));
            }
            hosts.push_str(address);
            rest = tail;
        } else {
            let (host, tail) = rest.split_at(rest.find([':', ',']).unwrap_or(rest.len()));
            hosts.push_str(host);
            rest = tail;
        }
        if let Some(tail) = rest.strip_prefix(':') {
            let (port, tail) = tail.split_at(tail.find(',').unwrap_or(tail.len()));
            ports.push_str(port);
            rest = tail;
        }
        match rest.strip_prefix(',') {
            Some(tail) => rest = tail,
            None => return Ok((hosts, ports)),
        }
        hosts.push(',');
        ports.push(',');
    }
}

/// Percent-decodes a part of a URI, without surrounding spaces.
fn decode(part: &str, name: &str) -> Result<Zeroizing<String>> {
    let bad = |why: &str| Error::config(format!("in the URI, {name} {why}"));
    let part = part.trim_matches(is_space);
    // Allocated at its maximum size, because a growing vector leaves copies in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(part.len()));
    let mut rest = part.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        if byte == b' ' {
            return Err(bad("contains a space: write %20"));
        }
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(bad("contains a % without two hexadecimal digits: write %25 for %"));
        };
        match u8::try_from(high * 16 + low) {
            Ok(0) => return Err(bad("contains %00, which no setting can contain")),
            Ok(byte) => bytes.push(byte),
            Err(_) => return Err(bad("contains an invalid escape")),
        }
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| bad("is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn parse_keywords(text: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = rest.find(|c| c == '=' || is_space(c)).unwrap_or(rest.len());
        let (keyword, tail) = rest.split_at(end);
        let Some(tail) = tail.trim_start_matches(is_space).strip_prefix('=') else {
            // Not shown: the keyword may be the end of an unquoted password.
            return Err(Error::config(
                "the connection string is neither a URI (postgres://user@host/database) nor a list \
                 of keyword=value; put values with spaces in single quotes",
            ));
        };
        let (value, tail) = parse_value(tail.trim_start_matches(is_space), keyword)?;
        pairs.push((keyword.to_owned(), value));
        rest = tail.trim_start_matches(is_space);
    }
    Ok(pairs)
}

/// Parses a value and returns it with the rest of the text. A backslash escapes the next character.
fn parse_value<'a>(text: &'a str, keyword: &str) -> Result<(Zeroizing<String>, &'a str)> {
    let inner = text.strip_prefix('\'');
    let start = inner.unwrap_or(text);
    let mut chars = start.chars();
    let rest = loop {
        let rest = chars.as_str();
        match chars.next() {
            None if inner.is_some() => {
                let keyword = shown(keyword);
                return Err(Error::config(format!("the value of {keyword} has no closing '")));
            }
            None => break rest,
            Some('\'') if inner.is_some() => break rest,
            Some(c) if inner.is_none() && is_space(c) => break rest,
            Some('\\') => drop(chars.next()),
            Some(_) => {}
        }
    };
    let raw = start.get(..start.len() - rest.len()).unwrap_or_default();
    // Allocated at its maximum size, because a growing string leaves copies in freed memory.
    let mut value = Zeroizing::new(String::with_capacity(raw.len()));
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    Ok((value, rest.strip_prefix('\'').filter(|_| inner.is_some()).unwrap_or(rest)))
}

/// Returns whether the text could be the name of a parameter.
fn is_name(keyword: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    keyword.len() <= 64
        && keyword.starts_with(|c: char| c.is_ascii_alphabetic())
        && keyword.chars().all(is_part)
}

/// Returns the name for an error. An unknown name is not shown: it may be part of a password.
fn shown(keyword: &str) -> &str {
    match keyword::find(keyword) {
        Some(_) => keyword,
        None => "a parameter",
    }
}

/// `isspace` in the C locale.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

/// Returns the text before the first `separator`, and the text after it if there is one.
fn split_at_char(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_parsed(text: &str, expected: &[(&str, &str)]) {
        let pairs = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, expected, "{text}");
    }

    /// The expected values are those of libpq (`PQconninfoParse`).
    #[test]
    fn uris_are_parsed_like_libpq() {
        assert_parsed("postgres://", &[]);
        assert_parsed(
            "postgresql://u:p@h:1/d",
            &[("user", "u"), ("password", "p"), ("host", "h"), ("port", "1"), ("dbname", "d")],
        );
        assert_parsed("postgres:///db?host=/dir", &[("dbname", "db"), ("host", "/dir")]);
        assert_parsed("postgres://u:a:b@h", &[("user", "u"), ("password", "a:b"), ("host", "h")]);
        assert_parsed("postgres://:@h", &[("host", "h")]);
        assert_parsed("postgres://u:p/w", &[("host", "u"), ("port", "p"), ("dbname", "w")]);
        assert_parsed("postgres://h/a%40b", &[("host", "h"), ("dbname", "a@b")]);
        assert_parsed("postgres://h?user=a@b", &[("user", "h?user=a"), ("host", "b")]);
        assert_parsed("postgres://h/?user=a@b", &[("host", "h"), ("user", "a@b")]);
        assert_parsed(
            "postgres://u:p%40%2F%3A%25@h",
            &[("user", "u"), ("password", "p@/:%"), ("host", "h")],
        );
        assert_parsed(
            "postgres://u#?x@h/a/b#c",
            &[("user", "u#?x"), ("host", "h"), ("dbname", "a/b#c")],
        );
        assert_parsed(
            "postgres://[::1]:5433/d",
            &[("host", "::1"), ("port", "5433"), ("dbname", "d")],
        );
        assert_parsed("postgres://h1,h2:5433", &[("host", "h1,h2"), ("port", ",5433")]);
        assert_parsed(
            "postgres://h?%75ser=x&connect_timeout=3",
            &[("host", "h"), ("user", "x"), ("connect_timeout", "3")],
        );
        assert_parsed("postgres://h?ssl=true", &[("host", "h"), ("sslmode", "require")]);
        assert_parsed("postgres://h?requiressl=1", &[("host", "h"), ("requiressl", "1")]);
        assert_parsed("postgres://%2Ftmp/d", &[("host", "/tmp"), ("dbname", "d")]);
    }

    #[test]
    fn keyword_lists_are_parsed_like_libpq() {
        assert_parsed("", &[]);
        assert_parsed(" host = h  port=1 ", &[("host", "h"), ("port", "1")]);
        assert_parsed("host= port=1", &[("host", "port=1")]);
        assert_parsed(
            r"password='a b\'c\\' user=u\ v",
            &[("password", r"a b'c\"), ("user", "u v")],
        );
        assert_parsed("password= password=x", &[("password", "password=x")]);
        assert_parsed("user=a user=b", &[("user", "a"), ("user", "b")]);
        assert_parsed(r"user=a\", &[("user", "a")]);
        assert_parsed("user='a'port=1", &[("user", "a"), ("port", "1")]);
    }

    #[test]
    fn parse_errors_name_the_part_and_never_show_a_value() {
        for (text, part) in [
            ("postgres://u:sec%zzret@h", "password contains a %"),
            ("postgres://u:secret%@h", "password contains a %"),
            ("postgres://u:sec%00ret@h", "password contains %00"),
            ("postgres://u:sec ret@h", "password contains a space"),
            ("postgres://u:secret@[::1", "closing bracket"),
            ("postgres://u:secret@[]", "empty"),
            ("postgres://u:secret@[::1]x", "IPv6"),
            ("postgres://h?password", "keyword=value"),
            ("postgres://h?password=a=secret", "keyword=value"),
            ("password='secret", "password has no closing"),
            ("POSTGRES://u:secret@h", "neither a URI"),
            ("user=u password=my secret", "neither a URI"),
            // libpq accepts these: the password would become a host or a database.
            ("postgres://u:p@secret@h/db", "host contains @"),
            ("postgres://u:secret@@h/db", "host contains @"),
            ("postgres://u:a@secret,@h/db", "host contains @"),
            ("postgres://u:a/secret@h/db", "dbname contains @"),
            ("postgres://us/er:secret@h/db", "dbname contains @"),
            ("postgres://u:,/secret@h", "dbname contains @"),
            ("postgres://u:1/secret@h", "dbname contains @"),
            ("postgres://u:a@secret:1/x@h", "dbname contains @"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("sec"), "{text}: {error}");
        }
    }
}
