//! Strings.

use super::{
    Filter,
    predicate::{Predicate, Render, STRING},
};
use crate::{
    error::Result,
    sql::{field::Field, param::ToParam},
};

/// # Strings
///
/// These operators apply to strings; for a field of another type, the result is unknown. The
/// operators whose names begin with `i` ignore case.
///
/// | operator | SQL | index |
/// |---|---|---|
/// | `starts_with` | `("data"->>'a') LIKE $1` | `on t (("data"->>'a') text_pattern_ops)` |
/// | `contains`, `ends_with`, `like` and the operators that ignore case | `("data"->>'a') LIKE $1`, `ILIKE` | `using gin (("data"->>'a') gin_trgm_ops)`, with the extension `pg_trgm` |
/// | `matches_regex` | `("data"->>'a') ~ $1` | the same index |
///
/// Each condition ends in ` AND jsonb_typeof(("data"->'a')::jsonb) = 'string'`.
///
/// In a column of type `json`, some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches if the string contains the text. In the text, `%` and `_` have no special meaning.
    pub fn contains(self, text: &str) -> Filter {
        self.pattern(format!("%{}%", escape(text)), Case::Sensitive)
    }

    /// Like [`contains`](Self::contains), ignoring case.
    pub fn icontains(self, text: &str) -> Filter {
        self.pattern(format!("%{}%", escape(text)), Case::Ignored)
    }

    /// Matches if the string starts with the text.
    pub fn starts_with(self, text: &str) -> Filter {
        self.pattern(format!("{}%", escape(text)), Case::Sensitive)
    }

    /// Like [`starts_with`](Self::starts_with), ignoring case.
    pub fn istarts_with(self, text: &str) -> Filter {
        self.pattern(format!("{}%", escape(text)), Case::Ignored)
    }

    /// Matches if the string ends with the text.
    pub fn ends_with(self, text: &str) -> Filter {
        self.pattern(format!("%{}", escape(text)), Case::Sensitive)
    }

    /// Like [`ends_with`](Self::ends_with), ignoring case.
    pub fn iends_with(self, text: &str) -> Filter {
        self.pattern(format!("%{}", escape(text)), Case::Ignored)
    }

    /// Matches if the string matches a pattern of SQL's `LIKE`: `%` matches any text, `_` matches
    /// any character, and `\` escapes the next character. A pattern that ends in an incomplete
    /// escape is an error when the query is executed.
    pub fn like(self, pattern: &str) -> Filter {
        self.pattern(pattern.to_owned(), Case::Sensitive)
    }

    /// Like [`like`](Self::like), ignoring case.
    pub fn ilike(self, pattern: &str) -> Filter {
        self.pattern(pattern.to_owned(), Case::Ignored)
    }

    /// Matches if the string matches a [POSIX regular expression]. An invalid expression is a
    /// server error.
    ///
    /// [POSIX regular expression]: https://www.postgresql.org/docs/current/functions-matching.html#FUNCTIONS-POSIX-REGEXP
    pub fn matches_regex(self, pattern: &str) -> Filter {
        Filter::leaf(self, Regex(pattern.to_owned()))
    }

    fn pattern(self, pattern: String, case: Case) -> Filter {
        let trailing = pattern.chars().rev().take_while(|c| *c == '\\').count();
        if trailing % 2 == 1 {
            let message = "a LIKE pattern ends with an incomplete escape: double the backslash";
            return Filter::invalid(self, message);
        }
        Filter::leaf(self, Like { pattern, case })
    }
}

/// Returns a pattern that matches only the text itself.
fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

struct Like {
    pattern: String,
    case: Case,
}

/// Whether upper and lower case are different.
#[derive(Clone, Copy)]
enum Case {
    Sensitive,
    Ignored,
}

impl Predicate for Like {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let word = match self.case {
            Case::Sensitive => "LIKE",
            Case::Ignored => "ILIKE",
        };
        let test = format!("({} {word} {})", sql.text()?, sql.bind(self.pattern.to_param()));
        sql.condition(STRING, &test)
    }
}

struct Regex(String);

impl Predicate for Regex {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let test = format!("({} ~ {})", sql.text()?, sql.bind(self.0.to_param()));
        sql.condition(STRING, &test)
    }
}
