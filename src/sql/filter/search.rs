//! Full text search.

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

/// How the text of a query is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SearchKind {
    Operators,
    Plain,
    Phrase,
    Web,
}

/// The longest query of each kind, in bytes. The server recurses into a query once for each word,
/// with a larger step for a phrase: twice as many words are beyond its default `max_stack_depth`.
const MAX_QUERY: usize = 16 * 1024;
const MAX_PHRASE: usize = 8 * 1024;

/// The longest text that makes a `tsvector` in any case, in bytes. Words with hyphens are indexed
/// as a whole and in parts, but not even of those alone does a `tsvector` come to eight times the
/// length of its text.
const MAX_UNCOUNTED_TEXT: usize = 128 * 1024;

/// The longest text that is counted word by word, in bytes. Beyond it the words in the server's
/// memory could come to its limit for one allocation.
const MAX_COUNTED_TEXT: usize = 16 * 1024 * 1024;

/// The largest `tsvector`, in bytes.
const MAX_TSVECTOR: usize = 1024 * 1024 - 1;

/// The last position that is kept of a word; those after it have the same one.
const MAX_POSITION: usize = 16_383;

/// # Full text
///
/// On strings, in the [`language`](Self::language) of the field. Default: `simple`. The condition
/// is
/// `to_tsvector('english'::regconfig, "data"->>'a') @@ plainto_tsquery('english'::regconfig, $1)`,
/// and the index that serves it `using gin (to_tsvector('english', "data"->>'a'))`. A column is of
/// a text type or `jsonb`.
///
/// A text whose words and their positions come to more than 1 MiB, the largest `tsvector`, is
/// unknown, and so is one of more than 16 MiB; such a text cannot be in the index either. The SQL
/// therefore has the condition twice: for texts of at most 128 KiB, which always fit, and for
/// longer ones after their words are counted.
///
/// One exception: dictionaries that make words longer, or several of one (a thesaurus, `ispell` for
/// compound words, your own), are not counted. With them a text that is just below the limit fails
/// the query (54000).
///
/// In a column of type `json`, some documents cannot be read: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches a query of at most 16 KiB with
    /// [operators](https://www.postgresql.org/docs/current/textsearch-controls.html#TEXTSEARCH-PARSING-QUERIES):
    /// `fat & (rat | cat)`. One that is not valid is an error of the server.
    pub fn matches(self, query: &str) -> Filter {
        self.search(SearchKind::Operators, query)
    }

    /// Matches texts with all of the words. Any text of at most 16 KiB is a valid query.
    pub fn plain_query(self, words: &str) -> Filter {
        self.search(SearchKind::Plain, words)
    }

    /// Matches texts with the words one after the other. Any text of at most 8 KiB is a valid
    /// query.
    pub fn phrase_query(self, phrase: &str) -> Filter {
        self.search(SearchKind::Phrase, phrase)
    }

    /// Matches a query as people type it: `"fat rat" or cat -dog`. Any text of at most 16 KiB is a
    /// valid query; a phrase in it should be as short as in [`phrase_query`](Self::phrase_query).
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
            let message = format!("a full text query of {len} bytes: at most {max} are supported");
            return Filter::invalid(self, message);
        }
        Filter::leaf(self, Search { kind, query: cancel_negations(kind, query) })
    }
}

/// In a web search, each dash before a word negates it once more, and the server has room for 32 at
/// a time. Two cancel out, so two or three of many have the same meaning: for instance of a line of
/// dashes.
fn cancel_negations(kind: SearchKind, query: &str) -> String {
    const MANY: usize = 16;
    if kind != SearchKind::Web {
        return query.to_owned();
    }
    // Between dashes, the server skips white space and operators.
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
        // A column may be of type jsonb.
        let text = if sql.is_column() { format!("{value}::text") } else { value.clone() };
        // In the text of the statement, for an index is made for one language: with a parameter, a
        // prepared statement would not use it.
        let language =
            format!("{}::regconfig", literal(sql.field.language.as_deref().unwrap_or("simple"))?);
        let query = format!("{function}({language}, {})", sql.bind(self.query.to_param()));
        let vector = format!("to_tsvector({language}, {value})");
        let is_short = format!("octet_length({text}) <= {MAX_UNCOUNTED_TEXT}");
        // An upper bound: for each word its length, padding, a count, its last position, and two bytes
        // in case a dictionary makes it longer; and two bytes for each position before the last one
        // there is.
        let fits = format!(
            "octet_length({text}) BETWEEN {MAX_UNCOUNTED_TEXT} + 1 AND {MAX_COUNTED_TEXT} AND (SELECT coalesce(sum(octet_length(word) + 7), 0) \
             FROM (SELECT DISTINCT lower(t.token) AS word FROM \
             ts_parse((SELECT c.cfgparser FROM pg_catalog.pg_ts_config c WHERE c.oid = {language}), {text}) t \
             WHERE t.tokid IN (SELECT m.maptokentype FROM pg_catalog.pg_ts_config_map m \
             WHERE m.mapcfg = {language})) AS words) <= {MAX_TSVECTOR} - 2 * {MAX_POSITION}"
        );
        if sql.negated {
            let test = format!("CASE WHEN {is_short} OR ({fits}) THEN {vector} @@ {query} END");
            return sql.condition(STRING, &format!("({test})"));
        }
        // An index serves conditions, not a CASE. Within OR, they are evaluated from left to right,
        // until one is false. A condition that both sides have would be moved in front of them, and no
        // longer be guarded: so the second one has its operands in the other order.
        let test =
            format!("(({is_short} AND {vector} @@ {query}) OR ({fits} AND {query} @@ {vector}))");
        sql.guarded(STRING, &test)
    }
}
