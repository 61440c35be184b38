//! Which parameters a text of trusted SQL uses: enough of Postgres's lexer to tell `$1` from a part of
//! a string, a name, or a comment.

/// The highest `$n` in the text; 0 if there is none.
pub(super) fn highest_parameter(sql: &str) -> usize {
    let mut highest = 0;
    let mut rest = sql;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        let is_word = before.is_alphanumeric() || before == '_' || before == '$';
        let skipped = match c {
            '\'' => {
                let escapes = matches!(before, 'e' | 'E');
                quoted(rest, '\'', escapes)
            }
            '"' => quoted(rest, '"', false),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment(rest),
            '$' if !is_word => {
                let digits = rest.chars().skip(1).take_while(char::is_ascii_digit).count();
                if digits > 0 {
                    let number = rest.get(1..=digits).and_then(|n| n.parse().ok());
                    highest = highest.max(number.unwrap_or(usize::MAX));
                    1 + digits
                } else {
                    dollar_quoted(rest).unwrap_or(1)
                }
            }
            c => c.len_utf8(),
        };
        let (taken, left) = rest.split_at_checked(skipped.max(1)).unwrap_or((rest, ""));
        before = taken.chars().next_back().unwrap_or(' ');
        rest = left;
    }
    highest
}

/// The length of a quoted part; a doubled quote does not end it.
fn quoted(text: &str, quote: char, escapes: bool) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((i, c)) = chars.next() {
        if c == '\\' && escapes {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return i + 1;
            }
        }
    }
    text.len()
}

/// The length of a comment; they nest.
fn comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|r| !r.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of `$tag$ ... $tag$`, if it is one.
fn dollar_quoted(text: &str) -> Option<usize> {
    let end = 1 + text.get(1..)?.find('$')?;
    let tag = text.get(..=end)?;
    let is_name = |t: &str| t.chars().all(|c| c.is_alphanumeric() || c == '_');
    if !is_name(tag.get(1..end)?) {
        return None;
    }
    let body = text.get(tag.len()..)?;
    Some(body.find(tag).map_or(text.len(), |at| tag.len() + at + tag.len()))
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
            ("'open $3", 0),
            ("$", 0),
        ] {
            assert_eq!(highest_parameter(sql), expected, "{sql}");
        }
    }
}
