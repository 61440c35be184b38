//! Full text search.

use super::{Operator, STRING, Sql};
use crate::{
    error::Result,
    sql::{field::Field, filter::Filter, param::ToParam},
};

/// How the text of a query is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextQuery {
    Operators,
    Plain,
    Phrase,
    Web,
}

/// # Full text
///
/// On strings, in the [`language`](Self::language) of the field, which is `simple` unless set. The SQL is
/// `to_tsvector($1::regconfig, "data"->>'a') @@ plainto_tsquery($1::regconfig, $2)`, and the index that
/// serves it `using gin (to_tsvector('english', "data"->>'a'))`.
impl Field {
    /// Matches a query with [operators](https://www.postgresql.org/docs/current/textsearch-controls.html#TEXTSEARCH-PARSING-QUERIES):
    /// `fat & (rat | cat)`. One that is not valid is an error of the server.
    pub fn matches(self, query: &str) -> Filter {
        self.search(TextQuery::Operators, query)
    }

    /// Matches texts with all of the words. Any text will do as a query.
    pub fn plain_query(self, words: &str) -> Filter {
        self.search(TextQuery::Plain, words)
    }

    /// Matches texts with the words one after the other. Any text will do as a query.
    pub fn phrase_query(self, phrase: &str) -> Filter {
        self.search(TextQuery::Phrase, phrase)
    }

    /// Matches a query as people type it: `"fat rat" or cat -dog`. Any text will do.
    pub fn websearch_query(self, query: &str) -> Filter {
        self.search(TextQuery::Web, query)
    }

    fn search(self, kind: TextQuery, query: &str) -> Filter {
        Filter::leaf(self, Operator::Search(kind, query.to_owned()))
    }
}

pub(super) fn render(
    kind: TextQuery,
    query: &str,
    field: &Field,
    sql: &mut Sql<'_>,
    negated: bool,
) -> Result<String> {
    let function = match kind {
        TextQuery::Operators => "to_tsquery",
        TextQuery::Plain => "plainto_tsquery",
        TextQuery::Phrase => "phraseto_tsquery",
        TextQuery::Web => "websearch_to_tsquery",
    };
    let value = field.text(sql.document)?;
    let language = field.language.as_deref().unwrap_or("simple");
    let language = format!("{}::regconfig", sql.bind(field, language.to_param()));
    let query = sql.bind(field, query.to_param());
    let test = format!("(to_tsvector({language}, {value}) @@ {function}({language}, {query}))");
    sql.guarded(field, STRING, &test, negated)
}
