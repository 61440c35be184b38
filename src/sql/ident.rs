use std::borrow::Cow;

use crate::error::{Error, Result};

/// The maximum length of a name in Postgres, in bytes (`NAMEDATALEN` - 1). Postgres truncates
/// longer names silently, so a query could read a different relation.
const MAX_NAME: usize = 63;

/// Quotes the name of a relation, `view` or `schema.view`, part by part.
///
/// A part is either a plain name, which is used exactly as written (upper case stays upper case),
/// or a name in double quotes that follows the rules of [SQL identifiers].
///
/// [SQL identifiers]: https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS
pub(super) fn quote_relation(name: &str) -> Result<String> {
    let mut quoted = String::with_capacity(name.len() + 6);
    push_relation(name, &mut quoted)?;
    Ok(quoted)
}

/// Appends the quoted name of a relation: see [`quote_relation`].
pub(super) fn push_relation(name: &str, quoted: &mut String) -> Result<()> {
    let mut rest = name;
    for part in 0.. {
        if part == 2 {
            return Err(invalid(name, "it has more parts than a schema and a name"));
        }
        let (text, tail) = split_part(rest).map_err(|why| invalid(name, why))?;
        quote(&text, quoted).map_err(|why| invalid(name, why))?;
        match tail.strip_prefix('.') {
            Some(next) => {
                quoted.push('.');
                rest = next;
            }
            None => break,
        }
    }
    Ok(())
}

/// Quotes the name of a collation, `collation` or `schema.collation`. A part without double quotes
/// can contain any other characters, as in `de-x-icu`.
pub(super) fn quote_collation(name: &str) -> Result<String, &'static str> {
    /// Prefixes of the character sets in names of locales, such as `en_US.utf8`.
    const CHARACTER_SETS: [&str; 12] =
        ["utf", "iso", "euc", "koi8", "big5", "gb", "cp", "sjis", "shift", "tis", "armscii", "win"];
    let is_set = |text: &str| {
        let text = text.to_ascii_lowercase();
        CHARACTER_SETS.iter().any(|set| text.starts_with(set))
    };
    if !name.contains('"') && name.split_once('.').is_some_and(|(_, rest)| is_set(rest)) {
        return quote_name(name);
    }
    let mut quoted = String::with_capacity(name.len() + 6);
    let mut rest = name;
    for part in 0.. {
        let (text, tail) = match rest.strip_prefix('"') {
            Some(inner) => split_quoted(inner)?,
            None => {
                let (plain, tail) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
                (Cow::Borrowed(plain), tail)
            }
        };
        quote(&text, &mut quoted)?;
        rest = match tail.strip_prefix('.') {
            Some(next) if part == 0 => next,
            None if tail.is_empty() => break,
            _ => return Err("expected a name, or a schema and a name"),
        };
        quoted.push('.');
    }
    Ok(quoted)
}

/// Quotes one name, exactly as it is written.
pub(super) fn quote_name(name: &str) -> Result<String, &'static str> {
    let mut quoted = String::with_capacity(name.len() + 2);
    quote(name, &mut quoted)?;
    Ok(quoted)
}

/// Splits the first part from a relation's name. The rest is empty or starts with a dot.
fn split_part(name: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    let (text, tail) = match name.strip_prefix('"') {
        Some(inner) => split_quoted(inner)?,
        None => {
            let end = name.bytes().position(|b| b == b'.').unwrap_or(name.len());
            let (plain, tail) = name.split_at(end);
            let is_ascii = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'$';
            let is_allowed = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            if !plain.bytes().all(is_ascii) && !plain.chars().all(is_allowed) {
                return Err("it contains characters that are not allowed outside double quotes \
                            (is it SQL?)");
            }
            (Cow::Borrowed(plain), tail)
        }
    };
    if !tail.is_empty() && !tail.starts_with('.') {
        return Err("something other than a dot follows the closing quote");
    }
    Ok((text, tail))
}

/// Returns the text of a quoted part and the rest after it. `inner` begins after the opening quote,
/// and `""` is an escaped quote.
fn split_quoted(inner: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    let mut text = String::new();
    let mut rest = inner;
    loop {
        let (before, after) = rest.split_once('"').ok_or("a double quote is not closed")?;
        text.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                text.push('"');
                rest = next;
            }
            None => return Ok((Cow::Owned(text), after)),
        }
    }
}

/// Appends a name as a quoted identifier.
fn quote(name: &str, out: &mut String) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("a part of it is empty");
    }
    if name.as_bytes().contains(&0) {
        return Err("it contains a NUL character");
    }
    if name.len() > MAX_NAME {
        return Err(
            "a part of it is longer than 63 bytes, the maximum length of a name in Postgres",
        );
    }
    out.push('"');
    if name.as_bytes().contains(&b'"') {
        out.push_str(&name.replace('"', "\"\""));
    } else {
        out.push_str(name);
    }
    out.push('"');
    Ok(())
}

fn invalid(name: &str, why: &str) -> Error {
    Error::config(format!(
        "{name:?} is not a valid table or view name: {why}; expected view or schema.view"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quote_relation_quotes_each_part() {
        for (name, quoted) in [
            ("v_user", r#""v_user""#),
            ("app.v_user", r#""app"."v_user""#),
            ("V_User", r#""V_User""#),
            ("select", r#""select""#),
            ("größe$1", r#""größe$1""#),
            (r#""a.b".c"#, r#""a.b"."c""#),
            (r#"app."odd ""name""; --""#, r#""app"."odd ""name""; --""#),
        ] {
            assert_eq!(quote_relation(name).unwrap(), quoted, "{name}");
        }
        assert!(quote_relation(&"x".repeat(63)).is_ok(), "the maximum length");
    }

    #[test]
    fn quote_collation_accepts_a_schema_or_a_character_set() {
        for (name, quoted) in [
            ("C", r#""C""#),
            ("de-x-icu", r#""de-x-icu""#),
            ("en_US.utf8", r#""en_US.utf8""#),
            ("C.UTF-8", r#""C.UTF-8""#),
            ("ca_ES.iso885915@euro", r#""ca_ES.iso885915@euro""#),
            ("app.german", r#""app"."german""#),
            ("pg_catalog.de-x-icu", r#""pg_catalog"."de-x-icu""#),
            (r#""app.german""#, r#""app.german""#),
            (r#"app."en_US.utf8""#, r#""app"."en_US.utf8""#),
            (r#""a.b"."c ""d""""#, r#""a.b"."c ""d""""#),
        ] {
            assert_eq!(quote_collation(name).unwrap(), quoted, "{name}");
        }
        let long = "x".repeat(64);
        for name in ["", ".", "a.", ".a", "a.b.c", r#"""#, r#""a"b"#, r#""a"."#, "a\0b", &long] {
            assert!(quote_collation(name).is_err(), "{name}");
        }
    }

    #[test]
    fn quote_relation_rejects_invalid_names() {
        let long = "x".repeat(64);
        for (name, why) in [
            ("", "empty"),
            (".", "empty"),
            ("app.", "empty"),
            (".v", "empty"),
            (r#""""#, "empty"),
            ("v; drop table x", "is it SQL?"),
            ("v--", "is it SQL?"),
            ("v\"", "is it SQL?"),
            ("v where true", "is it SQL?"),
            ("a\0b", "is it SQL?"),
            ("\"a\0b\"", "NUL"),
            (r#""v"#, "not closed"),
            (r#""v" x"#, "other than a dot"),
            ("db.app.v", "more parts"),
            (&long, "63 bytes"),
        ] {
            let error = quote_relation(name).unwrap_err().to_string();
            assert!(error.contains(why), "{name:?}: {error}");
        }
    }
}
