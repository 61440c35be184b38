//! Full-text search.

use super::{
    Filter,
    predicate::{Predicate, Render, STRING},
};
use crate::{
    error::Result,
    sql::{
        field::{Field, literal},
        param::ToParam,
    },
};

/// The syntax of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SearchKind {
    Operators,
    Plain,
    Phrase,
    Web,
}

/// The maximum length of a query, in bytes. The server recurses once for each word of a query, and
/// needs more stack for each word of a phrase. Twice as many words exceed its default
/// `max_stack_depth`.
const MAX_QUERY: usize = 16 * 1024;
const MAX_PHRASE: usize = 8 * 1024;

/// The maximum length of a text, in bytes, whose `tsvector` fits without counting its words. Words
/// with hyphens are indexed as a whole and in parts, but even the `tsvector` of a text that
/// consists only of such words is less than eight times as long as the text.
const MAX_UNCOUNTED_TEXT: usize = 128 * 1024;

/// The maximum length of a text, in bytes, whose words are counted. The words of a longer text
/// could exceed the server's limit for one memory allocation.
const MAX_COUNTED_TEXT: usize = 16 * 1024 * 1024;

/// The maximum size of a `tsvector`, in bytes.
const MAX_TSVECTOR: usize = 1024 * 1024 - 1;

/// The maximum position of a word in a `tsvector`. Later words get the same position.
const MAX_POSITION: usize = 16_383;

/// # Full-text search
///
/// These operators apply to strings; for a field of another type, the result is unknown. Columns
/// must be of a text type or `jsonb`. The text search configuration is the field's
/// [`language`](Self::language). Default: `simple`.
///
/// The condition is
/// `to_tsvector('english'::regconfig, "data"->>'a') @@ plainto_tsquery('english'::regconfig, $1)`.
/// An index `using gin (to_tsvector('english', "data"->>'a'))` serves it.
///
/// The result is unknown for a text whose words and positions exceed 1 MiB, the maximum size of a
/// `tsvector`, and for a text of more than 16 MiB. The index cannot contain such a text either. So
/// the SQL contains the condition twice: once for texts of at most 128 KiB, which always fit, and
/// once for longer texts, after their words are counted.
///
/// There is one exception. The count does not include dictionaries that lengthen words or turn one
/// word into several (a thesaurus, `ispell` for compound words, custom dictionaries). With them, a
/// text just below the limit makes the query fail (54000).
///
/// In a column of type `json`, some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches texts that satisfy a query with [operators], such as `fat & (rat | cat)`.
    ///
    /// The query has at most 16 KiB. An invalid query is a server error.
    ///
    /// [operators]: https://www.postgresql.org/docs/current/textsearch-controls.html#TEXTSEARCH-PARSING-QUERIES
    pub fn matches(self, query: &str) -> Filter {
        self.search(SearchKind::Operators, query)
    }

    /// Matches texts that contain all of the words. Any text of at most 16 KiB is a valid query.
    pub fn plain_query(self, words: &str) -> Filter {
        self.search(SearchKind::Plain, words)
    }

    /// Matches texts that contain the words as a phrase. Any text of at most 8 KiB is a valid
    /// query.
    pub fn phrase_query(self, phrase: &str) -> Filter {
        self.search(SearchKind::Phrase, phrase)
    }

    /// Matches texts that satisfy a query in the syntax of web search engines, such as
    /// `"fat rat" or cat -dog`.
    ///
    /// Any text of at most 16 KiB is a valid query. A phrase in it should not exceed the limit of
    /// [`phrase_query`](Self::phrase_query).
    pub fn websearch_query(self, query: &str) -> Filter {
        self.search(SearchKind::Web, query)
    }

    fn search(self, kind: SearchKind, query: &str) -> Filter {
        let max = match kind {
            SearchKind::Phrase => MAX_PHRASE,
            SearchKind::Operators | SearchKind::Plain | SearchKind::Web => MAX_QUERY,
        };
        if query.len() > max {
            let len = query.len();
            let message = format!("a full-text query has {len} bytes: at most {max} are supported");
            return Filter::invalid(self, message);
        }
        Filter::leaf(self, Search { kind, query: cancel_negations(kind, query) })
    }
}

/// Shortens long runs of negations in a web search, such as a line of dashes. Each dash before a
/// word negates it once more, and the server supports 32 in a row. Two negations cancel out, so a
/// long run means the same as two or three dashes.
fn cancel_negations(kind: SearchKind, query: &str) -> String {
    const MANY: usize = 16;
    if kind != SearchKind::Web {
        return query.to_owned();
    }
    // The server skips white space and operators between dashes.
    let is_skipped = |c: char| c.is_whitespace() || "-!&|()<".contains(c);
    let mut kept = String::with_capacity(query.len());
    let mut rest = query;
    while !rest.is_empty() {
        let (text, tail) = rest.split_at(rest.find(is_skipped).unwrap_or(rest.len()));
        let (run, tail) = tail.split_at(tail.find(|c| !is_skipped(c)).unwrap_or(tail.len()));
        kept.push_str(text);
        match run.matches('-').count() {
            dashes if dashes > MANY => {
                let blank = |is_blank| if is_blank { " " } else { "" };
                kept.push_str(blank(run.starts_with(char::is_whitespace)));
                kept.push_str(if dashes % 2 == 0 { "--" } else { "---" });
                kept.push_str(blank(run.ends_with(char::is_whitespace)));
            }
            _ => kept.push_str(run),
        }
        rest = tail;
    }
    kept
}

struct Search {
    kind: SearchKind,
    query: String,
}

impl Predicate for Search {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let function = match self.kind {
            SearchKind::Operators => "to_tsquery",
            SearchKind::Plain => "plainto_tsquery",
            SearchKind::Phrase => "phraseto_tsquery",
            SearchKind::Web => "websearch_to_tsquery",
        };
        let value = sql.text()?;
        // A column can be of type jsonb.
        let text = if sql.is_column() { format!("{value}::text") } else { value.clone() };
        // A literal, because an index is built for one language: a prepared statement could not use
        // it if the language were a parameter.
        let language =
            format!("{}::regconfig", literal(sql.field.language.as_deref().unwrap_or("simple"))?);
        let query = format!("{function}({language}, {})", sql.bind(self.query.to_param()));
        let vector = format!("to_tsvector({language}, {value})");
        let is_short = format!("octet_length({text}) <= {MAX_UNCOUNTED_TEXT}");
        // An upper bound of the size. Each word needs its length, padding, a count, its last
        // position, and two bytes in case a dictionary lengthens it. Each position before the
        // maximum needs two more bytes.
        let fits = format!(
            "octet_length({text}) BETWEEN {MAX_UNCOUNTED_TEXT} + 1 AND {MAX_COUNTED_TEXT} \
             AND (SELECT coalesce(sum(octet_length(word) + 7), 0) \
             FROM (SELECT DISTINCT lower(t.token) AS word \
             FROM ts_parse((SELECT c.cfgparser FROM pg_catalog.pg_ts_config c \
             WHERE c.oid = {language}), {text}) t \
             WHERE t.tokid IN (SELECT m.maptokentype FROM pg_catalog.pg_ts_config_map m \
             WHERE m.mapcfg = {language})) AS words) <= {MAX_TSVECTOR} - 2 * {MAX_POSITION}"
        );
        if sql.negated {
            let test = format!("CASE WHEN {is_short} OR ({fits}) THEN {vector} @@ {query} END");
            return sql.condition(STRING, &format!("({test})"));
        }
        // No CASE here, because an index can serve only plain conditions. The server evaluates the
        // conditions of each AND from left to right and stops at the first one that is false. It
        // would move a condition that both sides of OR share in front of the guards, so the second
        // side has its operands in reverse order.
        let test =
            format!("(({is_short} AND {vector} @@ {query}) OR ({fits} AND {query} @@ {vector}))");
        sql.guarded(STRING, &test)
    }
}
