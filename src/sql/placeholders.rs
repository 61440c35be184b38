//! Finds the parameters that a text of trusted SQL uses.
//!
//! Follows Postgres's lexer ([scan.l]) token by token, because `$1` is a parameter only where a
//! token begins. Like the lexer, it works on bytes: every byte of a non-ASCII character belongs to
//! an identifier. It assumes `standard_conforming_strings = on`, the server's default. Versions
//! differ only in texts that newer ones reject, such as `0x1F$1`, which Postgres 16 reads as a
//! number and a parameter.
//!
//! [scan.l]: https://github.com/postgres/postgres/blob/master/src/backend/parser/scan.l

use crate::error::{Error, Result};

/// Returns the highest `n` of all `$n` in the text; 0 if there is none.
///
/// # Errors
///
/// [`Error::Config`]: the text ends within a string, a quoted identifier or a comment. The SQL after it
/// would become a part of that.
pub(super) fn highest_parameter(sql: &str) -> Result<usize> {
    let unclosed = |what| Error::config(format!("the SQL text ends within a {what}: close it"));
    let mut highest = 0;
    let mut rest = sql.as_bytes();
    while let Some(first) = rest.first() {
        let length = match first {
            b'\'' => string(rest, false).ok_or_else(|| unclosed("string"))?,
            // A doubled quote is the end of one identifier and the start of the next: same bytes.
            b'"' => until(rest, 1, b"\"").ok_or_else(|| unclosed("quoted identifier"))?,
            b'-' if rest.starts_with(b"--") => line(rest),
            b'/' if rest.starts_with(b"/*") => comment(rest).ok_or_else(|| unclosed("comment"))?,
            b'$' => match run(rest, 1, u8::is_ascii_digit) {
                1 => match tag(rest) {
                    Some(tag) => until(rest, tag.len(), tag)
                        .ok_or_else(|| unclosed("dollar-quoted string"))?,
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
                    1 + string(text, true).ok_or_else(|| unclosed("string"))?
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

/// The end of the bytes from `start` on that belong to a class.
fn run(text: &[u8], start: usize, belongs: impl Fn(&u8) -> bool) -> usize {
    start + text.iter().skip(start).take_while(|b| belongs(b)).count()
}

/// The end of the first `delimiter` from `start` on.
fn until(text: &[u8], start: usize, delimiter: &[u8]) -> Option<usize> {
    let body = text.get(start..)?;
    let at = body.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some(start + at + delimiter.len())
}

/// The length of a comment that a line break ends.
fn line(text: &[u8]) -> usize {
    run(text, 0, |b| !matches!(b, b'\n' | b'\r'))
}

/// The length of `'...'`. With escapes, a backslash takes the next byte with it, and a string that
/// continues after a line break still has escapes.
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

/// The length of what is between two parts of a string: white space and comments with a line break.
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

/// The length of `/* ... */`; comments nest.
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

/// The delimiter that a dollar-quoted string begins with: `$$` or `$tag$`.
fn tag(text: &[u8]) -> Option<&[u8]> {
    let end = match text.get(1) {
        Some(b) if starts_word(b) => run(text, 2, |b| starts_word(b) || b.is_ascii_digit()),
        _ => 1,
    };
    (text.get(end) == Some(&b'$')).then(|| text.get(..=end))?
}

/// The length of a number. Letters that follow begin an identifier, where the server does not
/// reject them.
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
    fn only_parameters_count() {
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

    /// tests/query.rs compares more of them with a server.
    #[test]
    fn a_token_decides_what_the_next_character_means() {
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
    fn what_is_not_closed_is_an_error() {
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
