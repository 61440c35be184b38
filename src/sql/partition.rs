//! A query in parts, which several sessions read in one snapshot.

use std::time::Duration;

use super::{field::literal, ident::quote_relation, placeholders::highest_parameter};
use crate::error::{Error, Result};

/// The rows that one session reads. Together, the parts have every row once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Partition {
    /// The rows in a range of blocks, which holds for each table of a tree: a [TID Range Scan]
    /// since Postgres 14. The last part has no end.
    ///
    /// [TID Range Scan]: https://www.postgresql.org/docs/14/release-14.html
    Blocks { from: u64, to: Option<u64> },
    /// The rows with this remainder of an expression's hash.
    Hash { expression: String, parts: usize, index: usize },
}

/// Begins a transaction in which every statement sees what the first one saw. It takes no lock and
/// no snapshot yet.
pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub(crate) const ROLLBACK: &str = "ROLLBACK";

/// Ends a transaction that has only read.
pub(crate) const COMMIT: &str = "COMMIT";

/// Asks for a value, to see whether a session is still in its transaction.
pub(crate) const PROBE: &str = "SELECT 1";

/// A first statement without effect. pgpool judges a message by its first statement: after SET or
/// LOCK TABLE it collects all rows of a later query before it sends them.
const LEADING_STATEMENT: &str = "SHOW lock_timeout";

/// Advice if the role may not read `ctid`.
pub(crate) const CTID_HINT: &str = "parallel() splits a table by ctid, which needs SELECT on the whole table: grant it, or name an \
                         expression of columns that can be read with partition_by()";

/// Separates the fields of an answer.
const SEPARATOR: char = '\u{1f}';

/// The relations that this session has locked, and so every one that its query reads: `LOCK TABLE`
/// locks tables with their children and the tables of views, and planning a query locks all that is
/// in the plan. Postgres's own relations (up to 16383) are left out, because these statements lock
/// some of them.
const LOCKED_RELATIONS: &str = "SELECT l.relation AS oid FROM pg_catalog.pg_locks l \
     WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.relation > 16383 \
     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d \
     WHERE d.datname = pg_catalog.current_database()) \
     GROUP BY l.relation";

/// Relations that an exported snapshot does not cover, so several sessions must not read them.
/// Temporary tables of other sessions may be children of a table, but are never read.
const UNCOVERED: &str = "c.relkind = 'f' OR c.relpersistence = 't' \
     AND NOT pg_catalog.pg_is_other_temp_schema(c.relnamespace)";

/// The state that two sessions must share to see the same rows. The first three have their own
/// errors.
const COMPARED_STATE: [(&str, &str); 14] = [
    (
        "server",
        "(1000000 * extract(epoch FROM pg_catalog.pg_postmaster_start_time()))::pg_catalog.int8",
    ),
    ("snapshot", "pg_catalog.txid_current_snapshot()"),
    (
        "relations",
        "coalesce((SELECT pg_catalog.string_agg(pg_catalog.concat(o.oid, '.', \
         pg_catalog.pg_relation_filenode(o.oid)), ' ' ORDER BY o.oid) FROM locked o \
         LEFT JOIN pg_catalog.pg_class c USING (oid) WHERE c.relkind IS NULL OR c.relkind NOT IN ('i', 'I')), '')",
    ),
    ("database", "pg_catalog.current_database()"),
    ("session_user", "session_user"),
    ("role", "current_user"),
    ("search_path", "pg_catalog.current_setting('search_path')"),
    ("row_security", "pg_catalog.current_setting('row_security')"),
    ("TimeZone", "pg_catalog.current_setting('TimeZone')"),
    ("DateStyle", "pg_catalog.current_setting('DateStyle')"),
    ("IntervalStyle", "pg_catalog.current_setting('IntervalStyle')"),
    ("extra_float_digits", "pg_catalog.current_setting('extra_float_digits')"),
    ("bytea_output", "pg_catalog.current_setting('bytea_output')"),
    ("default_text_search_config", "pg_catalog.current_setting('default_text_search_config')"),
];

/// The relation of a parallel query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RelationInfo {
    /// As it is written in SQL.
    name: String,
    /// Its `pg_class.relkind`.
    kind: String,
    /// The server's `lock_timeout` or `statement_timeout`, the shorter one, if it has one.
    lock_timeout: Option<Duration>,
    /// Citus's list of its tables exists.
    has_citus: bool,
    /// `LOCK TABLE` can lock it: it has no lock for materialized views, and wants privileges on the
    /// whole table.
    pub(crate) is_lockable: bool,
}

/// The snapshot that the first session of a parallel query has exported, and what it covers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExportedSnapshot {
    snapshot: String,
    /// The size of the relation, or of each table of its tree.
    blocks: Vec<u64>,
}

/// The state that a session sees after it has planned its part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SessionView(Vec<String>);

/// How what two sessions see compares.
#[derive(Debug)]
pub(crate) enum Comparison {
    Same,
    /// Another session has changed the relation meanwhile.
    Changed,
    /// Trying again does not help.
    Refused(Error),
}

impl RelationInfo {
    /// Asks what the relation is, outside of a transaction.
    pub(crate) fn describe(entity: &str) -> Result<String> {
        let name = literal(&quote_relation(entity)?)?;
        Ok(format!(
            "SELECT pg_catalog.concat_ws({SQL_SEPARATOR}, c.relkind, (1000 * extract(epoch FROM \
             (SELECT coalesce(min(t), '0') FROM (SELECT pg_catalog.current_setting(name)::pg_catalog.interval \
             AS t FROM (VALUES ('lock_timeout'), ('statement_timeout')) names (name)) times WHERE t > '0')\
             ))::pg_catalog.int8, \
             EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attname = 'logicalrelid' \
             AND a.attrelid = pg_catalog.to_regclass('pg_dist_partition')), {UNCOVERED}) \
             FROM pg_catalog.pg_class c WHERE c.oid = {name}::regclass"
        ))
    }

    /// Reads the server's answer. `by_blocks`: the relation is to be split by its blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: it cannot be split.
    pub(crate) fn parse(entity: &str, answer: &str, by_blocks: bool) -> Result<Self> {
        let fields: Vec<_> = answer.split(SEPARATOR).collect();
        let [kind, lock_timeout, has_citus, refused] = fields[..] else {
            return Err(malformed_answer());
        };
        let millis = lock_timeout.parse().map_err(|_| malformed_answer())?;
        if refused == "t" {
            let what = if kind == "f" { "foreign" } else { "temporary" };
            return Err(not_in_snapshot(&format!("the {what} table {entity}")));
        }
        match kind {
            "r" | "m" | "p" => {}
            "v" if by_blocks => {
                return Err(Error::config(
                    "parallel() splits tables and materialized views by their blocks, and a view has none: name an \
                     expression with partition_by(), such as its key",
                ));
            }
            "v" => {}
            _ => {
                return Err(Error::config(
                    "parallel() reads tables, materialized views and, with partition_by(), views: this is another \
                     kind of relation",
                ));
            }
        }
        Ok(Self {
            name: quote_relation(entity)?,
            kind: kind.to_owned(),
            lock_timeout: Some(Duration::from_millis(millis)).filter(|t| !t.is_zero()),
            has_citus: has_citus == "t",
            is_lockable: kind != "m",
        })
    }

    /// For how long a query of this session would wait for a lock, if there is a limit.
    pub(crate) fn lock_timeout(&self) -> Option<Duration> {
        self.lock_timeout
    }

    /// Bounds every later wait for a lock in the transaction.
    pub(crate) fn set_lock_timeout(&self, wait: Duration) -> String {
        let wait = self.lock_timeout.map_or(wait, |own| own.min(wait));
        format!("SET LOCAL lock_timeout = {}", wait.as_millis().max(1))
    }

    /// Locks the relation and exports a snapshot. `LOCK TABLE` runs [before there is a
    /// snapshot][lock]: a snapshot taken while waiting for `TRUNCATE` and `INSERT` would see
    /// neither the old rows nor the new ones.
    ///
    /// Waits for the first lock for `wait`, holding no other one but those of the relation's
    /// parents, and for later ones for `rest`.
    ///
    /// [lock]: https://www.postgresql.org/docs/current/sql-lock.html
    pub(crate) fn lock_and_export(&self, wait: Duration, rest: Duration) -> Result<String> {
        let Self { name, .. } = self;
        let lock = if self.is_lockable {
            format!("LOCK TABLE {name} IN ACCESS SHARE MODE")
        } else {
            self.lock_by_reading()
        };
        Ok(format!(
            "{LEADING_STATEMENT}; {wait}; {stable}{lock}; {rest}; WITH locked AS MATERIALIZED ({LOCKED_RELATIONS}), tables AS (\
             SELECT c.oid, pg_catalog.pg_relation_size(c.oid) AS size FROM pg_catalog.pg_class c \
             WHERE c.relkind IN ('r', 'm') AND NOT pg_catalog.pg_is_other_temp_schema(c.relnamespace) \
             AND (c.oid IN (SELECT oid FROM locked) OR c.oid = {literal}::regclass)) \
             SELECT pg_catalog.concat_ws({SQL_SEPARATOR}, pg_catalog.pg_export_snapshot(), {refused}, \
             (SELECT pg_catalog.string_agg((size / pg_catalog.current_setting('block_size')::pg_catalog.int8)::text, ' ') \
             FROM tables))",
            wait = self.set_lock_timeout(wait),
            stable = self.stable_scans(),
            rest = self.set_lock_timeout(rest),
            literal = literal(name)?,
            refused = self.uncovered_relation(),
        ))
    }

    /// Joins a snapshot on another session, which takes its own locks on the relation without
    /// waiting for them: a session that waits for an exclusive lock waits for the first one.
    pub(crate) fn join_snapshot(
        &self,
        exported: &ExportedSnapshot,
        rest: Duration,
    ) -> Result<String> {
        let Self { name, .. } = self;
        let (bound, stable) = (self.set_lock_timeout(rest), self.stable_scans());
        let join = format!("SET TRANSACTION SNAPSHOT {}", literal(&exported.snapshot)?);
        Ok(if self.is_lockable {
            format!(
                "{LEADING_STATEMENT}; {bound}; {stable}LOCK TABLE {name} IN ACCESS SHARE MODE NOWAIT; {join}"
            )
        } else {
            format!("{LEADING_STATEMENT}; {join}; {bound}; {stable}{}", self.lock_by_reading())
        })
    }

    /// Reading nothing locks a relation too, but has a snapshot by then.
    fn lock_by_reading(&self) -> String {
        format!("SELECT FROM {} LIMIT 0", self.name)
    }

    /// A view may have LIMIT without an order. Scans that begin at the same place make it more
    /// likely that it has the same rows each time.
    fn stable_scans(&self) -> &'static str {
        if self.kind == "v" { "SET LOCAL synchronize_seqscans = off; " } else { "" }
    }

    /// The first relation that the snapshot does not cover, or an empty text.
    fn uncovered_relation(&self) -> String {
        let citus = if self.has_citus {
            "WHEN c.oid IN (SELECT d.logicalrelid::oid FROM pg_dist_partition d) THEN 'Citus'"
        } else {
            ""
        };
        format!(
            "coalesce((SELECT pg_catalog.min(pg_catalog.concat('the ', kind, ' table ', oid::regclass)) FROM (\
             SELECT c.oid, CASE WHEN {UNCOVERED} THEN CASE c.relkind WHEN 'f' THEN 'foreign' ELSE 'temporary' END \
             {citus} END AS kind FROM pg_catalog.pg_class c JOIN locked USING (oid)) kinds \
             WHERE kind IS NOT NULL), '')"
        )
    }

    /// Asks for a [`SessionView`], when the part of the query has been planned. A relation that is not in
    /// the snapshot, or was rewritten after it, was changed before it was locked. To refresh a
    /// materialized view is no such change: every snapshot sees its new rows.
    pub(crate) fn session_view(&self) -> String {
        let compared: Vec<_> = COMPARED_STATE.iter().map(|(_, expression)| *expression).collect();
        format!(
            "WITH locked AS MATERIALIZED ({LOCKED_RELATIONS}) SELECT pg_catalog.concat_ws({SQL_SEPARATOR}, \
             EXISTS (SELECT FROM locked o LEFT JOIN pg_catalog.pg_class c USING (oid) WHERE c.oid IS NULL \
             OR c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(o.oid)), \
             {}, {})",
            self.uncovered_relation(),
            compared.join(", ")
        )
    }
}

/// The separator as SQL has it.
const SQL_SEPARATOR: &str = "pg_catalog.chr(31)";

fn not_in_snapshot(what: &str) -> Error {
    Error::config(format!(
        "parallel() cannot read {what}: its rows are not in the snapshot that the connections share, so each \
         would see different rows, also with partition_by(); remove parallel()"
    ))
}

fn malformed_answer() -> Error {
    Error::protocol(
        "the server's answer about the relation of a parallel query has an unexpected form",
    )
}

impl ExportedSnapshot {
    /// Reads the server's answer.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the snapshot does not cover the relation.
    pub(crate) fn parse(answer: &str) -> Result<Self> {
        let mut fields = answer.split(SEPARATOR);
        let (Some(snapshot), Some(refused)) = (fields.next(), fields.next()) else {
            return Err(malformed_answer());
        };
        if !refused.is_empty() {
            return Err(not_in_snapshot(refused));
        }
        // Without a table there is no such field.
        let blocks = fields.next().unwrap_or_default().split_whitespace();
        // A block has a number of 32 bits.
        let blocks =
            blocks.map(|b| b.parse().map(|b: u32| b.into()).map_err(|_| malformed_answer()));
        Ok(Self { snapshot: snapshot.to_owned(), blocks: blocks.collect::<Result<_>>()? })
    }

    /// Splits by blocks. The ranges are the same for each table of a tree, and as many blocks of
    /// the whole tree are in each, so that one large partition is split as well as many small ones.
    pub(crate) fn split_by_blocks(&self, parts: usize) -> Vec<Partition> {
        let total: u64 = self.blocks.iter().sum();
        let before = |block: u64| self.blocks.iter().map(|blocks| block.min(*blocks)).sum::<u64>();
        let start = |part: usize| {
            let wanted = (u128::from(total) * part as u128).div_ceil(parts as u128);
            // The first block with that many before it.
            let (mut low, mut high) = (0, self.blocks.iter().copied().max().unwrap_or(0));
            while low < high {
                let middle = low + (high - low) / 2;
                if u128::from(before(middle)) >= wanted {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            low
        };
        (0..parts)
            .map(|part| Partition::Blocks {
                from: start(part),
                to: (part + 1 < parts).then(|| start(part + 1)),
            })
            .collect()
    }
}

impl SessionView {
    /// Reads the server's answer.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the snapshot does not cover what the session has planned to read.
    pub(crate) fn parse(answer: &str) -> Result<Self> {
        let fields: Vec<String> = answer.split(SEPARATOR).map(str::to_owned).collect();
        match fields.get(1) {
            Some(refused) if fields.len() == COMPARED_STATE.len() + 2 => match refused.as_str() {
                "" => Ok(Self(fields)),
                refused => Err(not_in_snapshot(refused)),
            },
            _ => Err(malformed_answer()),
        }
    }

    /// Whether the relation was changed between the snapshot and the locks.
    fn has_changed(&self) -> bool {
        self.0.first().is_none_or(|changed| changed != "f")
    }

    pub(crate) fn compare(&self, other: &Self) -> Comparison {
        let fields = self.0.iter().zip(&other.0).skip(2).zip(COMPARED_STATE);
        let differs = fields.filter(|((one, other), _)| one != other).map(|(_, (name, _))| name);
        let mut changed = self.has_changed() || other.has_changed();
        for name in differs {
            let refused = match name {
                "relations" => {
                    changed = true;
                    continue;
                }
                "server" => {
                    "the connections of parallel() have reached different servers, which cannot share a snapshot: \
                     connect to one server, without a balancer in between"
                        .to_owned()
                }
                name => format!(
                    "the connections of parallel() differ in {name}, so they could see different rows: connect \
                     again, and through a pooler leave no settings on its connections"
                ),
            };
            return Comparison::Refused(Error::config(refused));
        }
        if changed { Comparison::Changed } else { Comparison::Same }
    }
}

/// Splits anything by the hash of an expression in trusted SQL, which must not be volatile.
pub(crate) fn split_by_hash(expression: &str, parts: usize) -> Result<Vec<Partition>> {
    if highest_parameter(expression)? > 0 {
        return Err(Error::config("partition_by() takes no parameters: write what it is about"));
    }
    let part = |index| Partition::Hash { expression: expression.to_owned(), parts, index };
    Ok((0..parts).map(part).collect())
}

impl Partition {
    /// The condition on a row.
    pub(super) fn to_sql(&self) -> String {
        match self {
            Self::Blocks { from, to: Some(to) } => {
                format!("ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid")
            }
            Self::Blocks { from, to: None } => format!("ctid >= '({from},0)'::tid"),
            // As text, which every type has, and in a collation that tells all texts apart; what is NULL belongs
            // to a part too. Without its sign, for a remainder has that of what is divided.
            Self::Hash { expression, parts, index } => format!(
                "(coalesce(hashtextextended(({expression}\n)::text COLLATE \"C\", 0), 0) \
                 & 9223372036854775807) % {parts} = {index}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(blocks: &[u64], parts: usize) -> Vec<(u64, Option<u64>)> {
        let exported = ExportedSnapshot { snapshot: String::new(), blocks: blocks.to_vec() };
        let range = |part| match part {
            Partition::Blocks { from, to } => (from, to),
            Partition::Hash { .. } => panic!("{part:?}"),
        };
        exported.split_by_blocks(parts).into_iter().map(range).collect()
    }

    /// One table, many, and of very different sizes: no block is missing, and the parts are level.
    #[test]
    fn blocks_are_split_without_a_gap_into_equal_parts() {
        let trees: [&[u64]; 10] = [
            &[],
            &[0],
            &[1],
            &[3],
            &[1000],
            &[4_294_967_294],
            &[0, 500, 500, 500],
            &[10_000, 1, 1, 0, 7],
            &[100, 200, 400, 800, 1600],
            &[4_294_967_294, 4_294_967_294, 5],
        ];
        for blocks in trees {
            for parts in [1, 2, 3, 64] {
                let split = split(blocks, parts);
                assert_eq!(split.len(), parts);
                let mut next = 0;
                let total: u64 = blocks.iter().sum();
                for (i, (from, to)) in split.iter().enumerate() {
                    assert_eq!(*from, next);
                    assert_eq!(to.is_none(), i + 1 == parts);
                    next = to.unwrap_or(next);
                    let within =
                        |blocks: &u64| to.unwrap_or(*blocks).min(*blocks).saturating_sub(*from);
                    let size: u64 = blocks.iter().map(within).sum();
                    // A block of each table is the least that a border can move by.
                    assert!(
                        size <= total / parts as u64 + blocks.len() as u64 + 1,
                        "{split:?} of {blocks:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_has_no_blocks_is_split_by_an_expression() {
        let read = |kind: &str, by_blocks| {
            RelationInfo::parse("app.v", &format!("{kind}\u{1f}0\u{1f}f\u{1f}f"), by_blocks)
        };
        let error = read("v", true).unwrap_err().to_string();
        assert!(error.contains("partition_by()"), "{error}");
        assert!(read("v", false).unwrap().is_lockable);
        assert!(!read("m", true).unwrap().is_lockable);
        for kind in ["S", "i", "I", "c", "t", ""] {
            assert!(read(kind, false).is_err(), "{kind}");
        }
        assert!(split_by_hash("data->>$1", 2).is_err());
        let parts = split_by_hash("data->>'id'", 2).unwrap();
        assert_eq!(
            parts[1].to_sql(),
            "(coalesce(hashtextextended((data->>'id'\n)::text COLLATE \"C\", 0), 0) & \
             9223372036854775807) % 2 = 1"
        );
    }

    #[test]
    fn the_servers_own_lock_timeout_is_not_exceeded() {
        let read = |millis: &str| {
            RelationInfo::parse("t", &format!("r\u{1f}{millis}\u{1f}f\u{1f}f"), true).unwrap()
        };
        let second = Duration::from_secs(1);
        assert_eq!(read("0").set_lock_timeout(second), "SET LOCAL lock_timeout = 1000");
        assert_eq!(read("250").set_lock_timeout(second), "SET LOCAL lock_timeout = 250");
        assert_eq!(read("5000").set_lock_timeout(second), "SET LOCAL lock_timeout = 1000");
        assert_eq!(read("5000").lock_timeout(), Some(5 * second));
        assert!(RelationInfo::parse("t", "r 0 f", true).is_err());
    }

    #[test]
    fn what_sessions_see_is_compared() {
        let sight = |change: usize, value: &str| {
            let mut fields = vec!["x".to_owned(); COMPARED_STATE.len() + 2];
            (fields[0], fields[1]) = ("f".into(), String::new());
            fields[change] = value.into();
            SessionView::parse(&fields.join("\u{1f}"))
        };
        let same = || sight(2, "x").unwrap();
        assert!(matches!(same().compare(&same()), Comparison::Same));
        assert!(matches!(sight(0, "t").unwrap().compare(&same()), Comparison::Changed));
        assert!(matches!(same().compare(&sight(0, "t").unwrap()), Comparison::Changed));
        for (field, (name, _)) in COMPARED_STATE.iter().enumerate() {
            match same().compare(&sight(field + 2, "y").unwrap()) {
                Comparison::Changed => assert_eq!(*name, "relations"),
                Comparison::Refused(error) => {
                    assert!(error.to_string().contains(name), "{name}: {error}");
                }
                Comparison::Same => panic!("{name} is not compared"),
            }
        }
        let error = sight(1, "the foreign table f").unwrap_err().to_string();
        assert!(error.contains("the foreign table f"), "{error}");
        assert!(SessionView::parse("f").is_err() && SessionView::parse("").is_err());
    }

    #[test]
    fn an_export_is_read_with_its_tables() {
        let read = |blocks: &str| ExportedSnapshot::parse(&format!("3-1B-1\u{1f}{blocks}"));
        assert_eq!(read("\u{1f}7 0 12").unwrap().blocks, [7, 0, 12]);
        assert_eq!(read("").unwrap().blocks, [0; 0]);
        assert!(read("\u{1f}x").is_err());
        // More blocks than a table can have; their sum would be beyond any number.
        assert!(read("\u{1f}18446744073709551615 1").is_err());
        assert!(read("the Citus table t").unwrap_err().to_string().contains("the Citus table t"));
        assert!(ExportedSnapshot::parse("").is_err());
    }
}
