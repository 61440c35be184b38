//! A query in parts, which several connections read in one snapshot.

use super::{field::literal, ident::quote_relation, scan::highest_parameter};
use crate::error::{Error, Result};

/// The rows of a relation that one connection reads. Together, the parts have every row once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Those in the table's blocks from one to before another: a [TID Range Scan] since Postgres 14. The last
    /// part has no end.
    ///
    /// [TID Range Scan]: https://www.postgresql.org/docs/14/release-14.html
    Blocks { from: u64, to: Option<u64> },
    /// Those with this remainder of an expression's hash.
    Hash { expression: String, of: usize, number: usize },
}

/// What there is to be split.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Survey {
    kind: String,
    blocks: u64,
    snapshot: String,
}

/// All transactions see what the first one saw when it began.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Asks whether there is a lock to be had on the relation itself: `t`. Postgres has none on materialized views.
pub(crate) fn lockable(entity: &str) -> Result<String> {
    let this = this(entity)?;
    Ok(format!("{BEGIN}; SELECT c.relkind IN ('r', 'p', 'v') {this}; COMMIT"))
}

/// Begins the first transaction and asks for a [`Survey`]. With `lock`, the relation is locked [before there is a
/// snapshot][lock], so that nobody moves its rows before the others have begun: else whoever waits for a `TRUNCATE`,
/// and for what fills the table again, sees a table without rows. The old ones are gone, and the snapshot is older than
/// the new ones.
///
/// Reading nothing of the relation locks it too, but has a snapshot by then.
///
/// [lock]: https://www.postgresql.org/docs/current/sql-lock.html
pub(crate) fn survey(entity: &str, lock: bool) -> Result<String> {
    let (relation, this) = (quote_relation(entity)?, this(entity)?);
    let lock = match lock {
        true => format!("LOCK TABLE {relation} IN ACCESS SHARE MODE; "),
        false => String::new(),
    };
    // With a foreign table in it, it is one: what other servers have is in no snapshot.
    let kind = "CASE WHEN EXISTS (WITH RECURSIVE tree AS (SELECT c.oid UNION \
                SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid) \
                SELECT FROM tree JOIN pg_catalog.pg_class f USING (oid) WHERE f.relkind = 'f') \
                THEN 'f' ELSE c.relkind END";
    Ok(format!(
        "{BEGIN}; {lock}SELECT FROM {relation} LIMIT 0; \
         SELECT concat_ws(' ', {kind}, coalesce(CASE c.relkind \
         WHEN 'p' THEN (SELECT max(pg_relation_size(relid)) FROM pg_partition_tree(c.oid)) \
         ELSE pg_relation_size(c.oid) END / current_setting('block_size')::bigint, 0), \
         pg_export_snapshot()) {this}"
    ))
}

/// Where the server knows of the relation.
fn this(entity: &str) -> Result<String> {
    let name = literal(&quote_relation(entity)?)?;
    Ok(format!("FROM pg_catalog.pg_class c WHERE c.oid = {name}::regclass"))
}

impl Survey {
    /// Reads the server's answer.
    pub(crate) fn read(answer: &str) -> Result<Self> {
        let mut words = answer.split(' ');
        match (words.next(), words.next().and_then(|n| n.parse().ok()), words.next()) {
            (Some(kind), Some(blocks), Some(snapshot)) => {
                Ok(Self { kind: kind.into(), blocks, snapshot: snapshot.into() })
            }
            _ => {
                Err(Error::protocol("the server said neither blocks nor a snapshot of a relation"))
            }
        }
    }

    /// Begins a further transaction.
    pub(crate) fn join(&self) -> Result<String> {
        Ok(format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", literal(&self.snapshot)?))
    }

    /// Splits a table by its blocks.
    pub(crate) fn by_blocks(&self, parts: usize) -> Result<Vec<Part>> {
        // Tables, materialized views, and tables in partitions: each partition has blocks from 0 on.
        if !["r", "m", "p"].contains(&self.kind.as_str()) {
            return Err(Error::config(
                "parallel() of what is not a table or materialized view, or has foreign tables in it, has no \
                 blocks to split by: name an expression with partition_by(), such as its key",
            ));
        }
        let parts = parts as u64;
        let start = |part: u64| self.blocks / parts * part + self.blocks % parts * part / parts;
        let end = |part: u64| (part + 1 < parts).then(|| start(part + 1));
        Ok((0..parts).map(|part| Part::Blocks { from: start(part), to: end(part) }).collect())
    }
}

/// Splits anything by the hash of an expression in trusted SQL, which must not be volatile.
pub(crate) fn by_hash(expression: &str, parts: usize) -> Result<Vec<Part>> {
    if highest_parameter(expression)? > 0 {
        return Err(Error::config("partition_by() takes no parameters: write what it is about"));
    }
    let part = |number| Part::Hash { expression: expression.to_owned(), of: parts, number };
    Ok((0..parts).map(part).collect())
}

impl Part {
    /// The condition on a row.
    pub(super) fn to_sql(&self) -> String {
        match self {
            Self::Blocks { from, to: Some(to) } => {
                format!("ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid")
            }
            Self::Blocks { from, to: None } => format!("ctid >= '({from},0)'::tid"),
            // As text, which every type has, and in a collation that tells all texts apart; what is NULL belongs
            // to a part too. Without its sign, for a remainder has that of what is divided.
            Self::Hash { expression, of, number } => format!(
                "(coalesce(hashtextextended(({expression}\n)::text COLLATE \"C\", 0), 0) \
                 & 9223372036854775807) % {of} = {number}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(kind: &str, blocks: u64) -> Survey {
        Survey::read(&format!("{kind} {blocks} 00000003-0000001B-1")).unwrap()
    }

    #[test]
    fn blocks_are_split_without_a_gap() {
        for blocks in [0, 1, 3, 4, 1000, 4_294_967_294] {
            for parts in [1, 2, 3, 64] {
                let split = survey("r", blocks).by_blocks(parts).unwrap();
                assert_eq!(split.len(), parts);
                let mut next = 0;
                for (i, part) in split.iter().enumerate() {
                    let Part::Blocks { from, to } = part else { panic!() };
                    assert_eq!(*from, next);
                    assert_eq!(to.is_none(), i + 1 == parts);
                    next = to.unwrap_or(next);
                    // None is much larger than another.
                    let size = to.unwrap_or(blocks) - from;
                    assert!(size <= blocks / parts as u64 + 1, "{split:?}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_blocks_is_split_by_an_expression() {
        let error = survey("v", 0).by_blocks(2).unwrap_err().to_string();
        assert!(error.contains("partition_by()"), "{error}");
        assert!(by_hash("data->>$1", 2).is_err());
        let parts = by_hash("data->>'id'", 2).unwrap();
        assert_eq!(
            parts[1].to_sql(),
            "(coalesce(hashtextextended((data->>'id'\n)::text COLLATE \"C\", 0), 0) & \
             9223372036854775807) % 2 = 1"
        );
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        assert!(Survey::read("r x y").is_err() && Survey::read("").is_err());
        assert_eq!(
            survey("r", 7).join().unwrap(),
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT \
             '00000003-0000001B-1'"
        );
    }
}
