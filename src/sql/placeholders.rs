//! Finds the parameter placeholders in raw SQL.
//!
//! Follows Postgres's lexer ([scan.l]) token by token, because `$1` is a parameter only at the
//! start of a token. Like the lexer, it works on bytes: every byte of a non-ASCII character belongs
//! to an identifier. It assumes `standard_conforming_strings = on`, the server's default. Server
//! versions differ only in texts that newer versions reject, such as `0x1F$1`, which Postgres 16
//! parses as a number and a parameter.
//!
//! [scan.l]: https://github.com/postgres/postgres/blob/master/src/backend/parser/scan.l

use crate::error::{Error, Result};

/// Returns the highest `n` of all `$n` in the text, or 0 if it contains none.
///
/// # Errors
///
/// [`Error::Config`]: a string, a quoted identifier or a comment is not terminated. It would
/// include the SQL that follows the text.
pub(super) fn highest_parameter(sql: &str) -> Result<usize> {
    let unterminated = |what| Error::config(format!("unterminated {what} in the SQL text"));
    let mut highest = 0;
    let mut rest = sql.as_bytes();
    while let Some(first) = rest.first() {
        let length = match first {
            b'\'' => string(rest, false).ok_or_else(|| unterminated("string"))?,
            // A doubled quote counts as the end of one identifier and the start of another, which
            // skips the same bytes.
            b'"' => until(rest, 1, b"\"").ok_or_else(|| unterminated("quoted identifier"))?,
            b'-' if rest.starts_with(b"--") => line(rest),
            b'/' if rest.starts_with(b"/*") => {
                comment(rest).ok_or_else(|| unterminated("comment"))?
            }
            b'$' => match run(rest, 1, u8::is_ascii_digit) {
                1 => match tag(rest) {
                    Some(tag) => until(rest, tag.len(), tag)
                        .ok_or_else(|| unterminated("dollar-quoted string"))?,
                    None => 1,
                },
                end => {
                    let digits = rest.get(1..end).unwrap_or_default();
                    let number = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok());
                    highest = highest.max(number.unwrap_or(usize::MAX));
                    end
                }
            },
            b'0'..=b'9' => number(rest),
            b if starts_word(b) => match rest {
                [b, text @ ..] if b.eq_ignore_ascii_case(&b'e') && text.starts_with(b"'") => {
                    1 + string(text, true).ok_or_else(|| unterminated("string"))?
                }
                _ => run(rest, 1, |b| starts_word(b) || b.is_ascii_digit() || *b == b'$'),
            },
            _ => 1,
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(highest)
}

fn starts_word(byte: &u8) -> bool {
    byte.is_ascii_alphabetic() || *byte == b'_' || !byte.is_ascii()
}

/// Returns the end of the bytes from `start` that satisfy `belongs`.
fn run(text: &[u8], start: usize, belongs: impl Fn(&u8) -> bool) -> usize {
    start + text.iter().skip(start).take_while(|b| belongs(b)).count()
}

/// Returns the end of the first `delimiter` at or after `start`.
fn until(text: &[u8], start: usize, delimiter: &[u8]) -> Option<usize> {
    let body = text.get(start..)?;
    let at = body.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some(start + at + delimiter.len())
}

/// Returns the length of a comment that ends before a line break.
fn line(text: &[u8]) -> usize {
    run(text, 0, |b| !matches!(b, b'\n' | b'\r'))
}

/// Returns the length of `'...'`. With `escapes`, a backslash escapes the next byte, also in a
/// string that continues after a line break.
fn string(text: &[u8], escapes: bool) -> Option<usize> {
    let mut at = 1;
    loop {
        at = match text.get(at..)? {
            [b'\\', _, ..] if escapes => at + 2,
            [b'\'', b'\'', ..] => at + 2,
            [b'\'', after @ ..] => match continued(after) {
                Some(gap) if escapes => at + 1 + gap + 1,
                _ => return Some(at + 1),
            },
            [_, ..] => at + 1,
            [] => return None,
        }
    }
}

/// Returns the length of the gap between two parts of a string: white space, including a line
/// break, and comments.
fn continued(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut breaks = false;
    loop {
        let rest = text.get(at..)?;
        at += match rest {
            [b'\'', ..] => return breaks.then_some(at),
            [b'-', b'-', ..] => {
                breaks = false;
                line(rest)
            }
            [b'\n' | b'\r', ..] => {
                breaks = true;
                1
            }
            [b' ' | b'\t' | 0x0b | 0x0c, ..] => 1,
            _ => return None,
        };
    }
}

/// Returns the length of `/* ... */`. Comments nest.
fn comment(text: &[u8]) -> Option<usize> {
    let mut depth = 0;
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            rest.first()?;
            at += 1;
        }
    }
}

/// Returns the delimiter at the start of a dollar-quoted string: `$$` or `$tag$`.
fn tag(text: &[u8]) -> Option<&[u8]> {
    let end = match text.get(1) {
        Some(b) if starts_word(b) => run(text, 2, |b| starts_word(b) || b.is_ascii_digit()),
        _ => 1,
    };
    (text.get(end) == Some(&b'$')).then(|| text.get(..=end))?
}

/// Returns the length of a number. Letters directly after it start an identifier, unless the server
/// rejects them.
fn number(text: &[u8]) -> usize {
    let digits = |start, belongs: fn(&u8) -> bool| {
        let mut end = run(text, start, belongs);
        while text.get(end) == Some(&b'_') && text.get(end + 1).is_some_and(belongs) {
            end = run(text, end + 1, belongs);
        }
        end
    };
    let radix: Option<fn(&u8) -> bool> = match text {
        [b'0', b'x' | b'X', ..] => Some(u8::is_ascii_hexdigit),
        [b'0', b'o' | b'O', ..] => Some(|b| matches!(b, b'0'..=b'7')),
        [b'0', b'b' | b'B', ..] => Some(|b| matches!(b, b'0' | b'1')),
        _ => None,
    };
    if let Some(belongs) = radix {
        let end = digits(2, belongs);
        if end > 2 {
            return end;
        }
    }
    let mut end = digits(0, u8::is_ascii_digit);
    if text.get(end) == Some(&b'.') {
        end = digits(end + 1, u8::is_ascii_digit);
    }
    let sign = match text.get(end..) {
        Some([b, b'+' | b'-', ..]) if b.eq_ignore_ascii_case(&b'e') => 2,
        Some([b, ..]) if b.eq_ignore_ascii_case(&b'e') => 1,
        _ => return end,
    };
    match digits(end + sign, u8::is_ascii_digit) {
        exponent if exponent > end + sign => exponent,
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::highest_parameter;

    #[test]
    fn highest_parameter_ignores_strings_identifiers_and_comments() {
        for (sql, expected) in [
            ("", 0),
            ("a = $1 and b = $12", 12),
            ("a = '$1' and b = $2", 2),
            ("a = 'it''s $9' and b = $1", 1),
            (r"a = e'\'$9' and b = $1", 1),
            (r"a = '\' and b = $1 -- '", 1),
            ("\"col$5\" = $1", 1),
            ("a$5 = $1", 1),
            ("a_$5 = $1", 1),
            ("a$$5 = $1", 1),
            ("a - $1", 1),
            ("a / $1", 1),
            ("a = $1 -- $7", 1),
            ("a = $1 -- $7\n and $2", 2),
            ("a /* $3 /* $4 */ $5 */ = $1", 1),
            ("a = $$ $7 $$ and $1", 1),
            ("a = $x$ $7 $$ $x$ and $1", 1),
            ("a = $x_y$ $7 $x_y$ and $1", 1),
            ("$1::text||$2", 2),
            ("é = $1", 1),
            ("$", 0),
        ] {
            assert_eq!(highest_parameter(sql).ok(), Some(expected), "{sql}");
        }
    }

    /// tests/query/query.rs compares more texts with a server.
    #[test]
    fn highest_parameter_follows_the_tokens_of_the_server() {
        for (sql, expected) in [
            (r"case when a then b else'\' end = $1", 1),
            (r"a like'\' and b = $1", 1),
            (r"a like b escape'\' and c = $1", 1),
            (r"E'\'$9' = $1", 1),
            (r"xe'\' = $1", 1),
            (r"_e'\' = $1", 1),
            (r"ée'\' = $1", 1),
            (r"$1e'\'$9'", 1),
            ("e'a'\n'\\'$9' = $1", 1),
            ("e'a' -- '\n \t\r'\\'$9' = $1", 1),
            ("e'a' '\\'$9", 9),
            ("e'a'\n-- '\n'\\'$9' = $1", 1),
            ("e'a''\\'$9' = $1", 1),
            ("'a'\n'\\' = $1", 1),
            ("n'$9'='\\' and $1", 1),
            ("b'1'||x'F' = u&'\\' and $1", 1),
            ("u&\"$9\" = $1", 1),
            ("\"a\"\"$9\" = $1", 1),
            ("\u{a0}$9 = $1", 1),
            ("a = $€$ $7 $€$ and $1", 1),
            ("a = $é1$ $7 $é1$ and $1", 1),
            ("$1$9", 9),
            ("1$1 + 1.5$2 + 1e5$3 + 0x1F$4 + 1_000$5", 5),
            ("1.$1", 1),
            ("1e$9 = $1", 1),
            ("-- a\r$1", 1),
            ("@-$1", 1),
            ("-/*$9*/$1", 1),
            ("/*/ $9 */ $1", 1),
            ("/*/* $9 */ $9 */ $1", 1),
            ("/***/ $1", 1),
            ("a.$1", 1),
            ("\"a\"$1", 1),
            ("'a'$1", 1),
            ("$0", 0),
            ("$99999999999999999999", usize::MAX),
        ] {
            assert_eq!(highest_parameter(sql).ok(), Some(expected), "{sql}");
        }
    }

    #[test]
    fn unterminated_token_is_an_error() {
        for (sql, what) in [
            ("a = 'open $3", "string"),
            (r"a = e'open\'", "string"),
            ("e'a'\n'", "string"),
            ("\"open", "identifier"),
            ("/* /* */ open", "comment"),
            ("/*", "comment"),
            ("$$ open $a$", "dollar-quoted"),
            ("$a$ open $$", "dollar-quoted"),
        ] {
            let error = highest_parameter(sql).unwrap_err().to_string();
            assert!(error.contains(what), "{sql}: {error}");
            assert!(!error.contains("open"), "{error}");
        }
    }
}
