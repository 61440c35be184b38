//! Label paths of the extension `ltree`.

use super::{
    Filter,
    compare::CompareOp,
    predicate::{Predicate, Render, STRING},
};
use crate::{
    error::Result,
    sql::{
        field::Field,
        param::{Param, ToParam},
    },
};

enum TreeTest {
    /// An operator, its right operand, and the type of that operand.
    Operator(&'static str, String, &'static str),
    AnyQuery(Vec<String>),
    Depth(CompareOp, u32),
    LowestCommonAncestor(Vec<String>),
}

/// # Label paths
///
/// These operators need the extension
/// [`ltree`](https://www.postgresql.org/docs/current/ltree.html). They apply to strings such as
/// `top.science.astronomy`: labels of ASCII letters, digits and `_`, of at most 255 bytes each. For
/// any other field, the result is unknown. Columns must be of type `ltree`.
///
/// | operator | SQL, where `a` is `CASE WHEN ("data"->>'a') ~ '^...$' THEN ("data"->>'a')::ltree END` |
/// |---|---|
/// | `ancestor_of`, `descendant_of` | `a @> $1::ltree`, `a <@ $1::ltree` |
/// | `matches_lquery`, `matches_any_lquery` | `a ~ $1::lquery`, `a ? $1::lquery[]` |
/// | `matches_ltxtquery` | `a @ $1::ltxtquery` |
/// | `depth_...` | `nlevel(a) = $1` |
/// | `lca_of` | `a = lca($1::ltree[])` |
///
/// An index `using gist (...)` on the expression `a`, or on a column of type `ltree`, serves all of
/// these operators except `depth_...`.
///
/// In a column of type `json`, some documents make the query fail: see
/// [`Filter`](crate::Filter#columns-of-type-json).
impl Field {
    /// Matches the ancestors of `path`, and `path` itself.
    pub fn ancestor_of(self, path: &str) -> Filter {
        self.tree(TreeTest::Operator("@>", path.to_owned(), "ltree"))
    }

    /// Matches the descendants of `path`, and `path` itself.
    pub fn descendant_of(self, path: &str) -> Filter {
        self.tree(TreeTest::Operator("<@", path.to_owned(), "ltree"))
    }

    /// Matches if the path matches a pattern of labels, such as `top.*.astro*`. An invalid pattern
    /// is a server error.
    pub fn matches_lquery(self, pattern: &str) -> Filter {
        self.tree(TreeTest::Operator("~", pattern.to_owned(), "lquery"))
    }

    /// Matches if the labels of the path match a query, such as `science & !books`, in any order.
    /// An invalid query is a server error.
    pub fn matches_ltxtquery(self, query: &str) -> Filter {
        self.tree(TreeTest::Operator("@", query.to_owned(), "ltxtquery"))
    }

    /// Matches if the path matches at least one of the patterns of labels. An empty list matches
    /// nothing.
    pub fn matches_any_lquery<P: Into<String>>(
        self,
        patterns: impl IntoIterator<Item = P>,
    ) -> Filter {
        self.tree(TreeTest::AnyQuery(patterns.into_iter().map(Into::into).collect()))
    }

    /// Matches a path of exactly `depth` labels.
    pub fn depth_eq(self, depth: u32) -> Filter {
        self.tree(TreeTest::Depth(CompareOp::Eq, depth))
    }

    /// Matches a path whose number of labels is not `depth`.
    pub fn depth_ne(self, depth: u32) -> Filter {
        self.tree(TreeTest::Depth(CompareOp::Ne, depth))
    }

    /// Matches a path of more than `depth` labels.
    pub fn depth_gt(self, depth: u32) -> Filter {
        self.tree(TreeTest::Depth(CompareOp::Gt, depth))
    }

    /// Matches a path of at least `depth` labels.
    pub fn depth_gte(self, depth: u32) -> Filter {
        self.tree(TreeTest::Depth(CompareOp::Gte, depth))
    }

    /// Matches a path of fewer than `depth` labels.
    pub fn depth_lt(self, depth: u32) -> Filter {
        self.tree(TreeTest::Depth(CompareOp::Lt, depth))
    }

    /// Matches a path of at most `depth` labels.
    pub fn depth_lte(self, depth: u32) -> Filter {
        self.tree(TreeTest::Depth(CompareOp::Lte, depth))
    }

    /// Matches the lowest common ancestor of `paths`: the longest path that is above all of them.
    pub fn lca_of<P: Into<String>>(self, paths: impl IntoIterator<Item = P>) -> Filter {
        self.tree(TreeTest::LowestCommonAncestor(paths.into_iter().map(Into::into).collect()))
    }

    fn tree(self, test: TreeTest) -> Filter {
        Filter::leaf(self, test)
    }
}

/// Matches only texts that every server version accepts as `ltree`.
const PATH_PATTERN: &str = r"^[A-Za-z0-9_]{1,255}(\.[A-Za-z0-9_]{1,255})*$";

impl Predicate for TreeTest {
    fn render(&self, sql: &mut Render<'_>) -> Result<String> {
        let text = sql.text()?;
        let value = if sql.is_column() {
            text
        } else {
            format!(
                "CASE WHEN {text} ~ E'{}' AND length({text}) <= 65535 THEN {text}::ltree END",
                PATH_PATTERN.replace('\\', "\\\\")
            )
        };
        let test = match self {
            Self::Operator(sign, right, kind) => {
                format!("({value} {sign} {}::{kind})", sql.bind(right.to_param()))
            }
            Self::AnyQuery(patterns) => {
                format!("({value} ? {}::lquery[])", sql.bind(patterns.to_param()))
            }
            Self::Depth(comparison, depth) => {
                let depth = sql.bind(Param::text(depth.to_string()));
                format!("(nlevel({value}) {} {depth}::bigint)", comparison.as_str())
            }
            Self::LowestCommonAncestor(paths) => {
                format!("({value} = lca({}::ltree[]))", sql.bind(paths.to_param()))
            }
        };
        sql.condition(STRING, &test)
    }
}
