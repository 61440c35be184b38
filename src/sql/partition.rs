//! The SQL of parallel queries: several sessions each read one partition of the rows, in one
//! snapshot.

use std::{mem, time::Duration};

use super::{field::literal, ident::quote_relation, placeholders::highest_parameter};
use crate::error::{Error, OneLine, Result};

/// The rows that one session reads. Together, the partitions contain each row exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Partition {
    /// The rows in a range of blocks. If the relation has child tables, by partitioning or
    /// inheritance, the range applies to each table. The last range has no end. Postgres 14 and
    /// later use a [TID Range Scan].
    ///
    /// [TID Range Scan]: https://www.postgresql.org/docs/14/release-14.html
    Blocks { from: u64, to: Option<u64> },
    /// The rows for which the hash of an expression, modulo `parts`, is `index`.
    Hash { expression: String, parts: usize, index: usize },
}

/// Begins a transaction whose statements all use one snapshot. It does not take the snapshot or any
/// lock yet.
pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub(crate) const ROLLBACK: &str = "ROLLBACK";

/// Ends a read-only transaction.
pub(crate) const COMMIT: &str = "COMMIT";

/// Checks whether a session is still in its transaction.
pub(crate) const PROBE: &str = "SELECT 1";

/// A statement without effect, sent first. pgpool classifies a message by its first statement:
/// after SET or LOCK TABLE, it buffers all rows of a later query before it forwards them.
const LEADING_STATEMENT: &str = "SHOW lock_timeout";

/// Advice for a role that is not allowed to read `ctid`.
pub(crate) const CTID_HINT: &str = "parallel() splits a table by ctid, which requires SELECT on \
                                    the whole table: grant it, or call partition_by() with an \
                                    expression of readable columns";

/// Separates the fields of a response.
const SEPARATOR: char = '\u{1f}';

/// The maximum number of tables of a relation. It bounds the work that a malicious server can
/// cause. A session of Postgres with default settings cannot lock as many.
const MAX_TABLES: usize = 100_000;

/// The maximum length of a snapshot's name, which is sent on each connection. Those of Postgres
/// have at most 28 bytes.
const MAX_SNAPSHOT_NAME: usize = 256;

/// Selects the relations that this session has locked, which include all that its query reads:
/// `LOCK TABLE` locks tables, their children and the tables of views, and planning a query locks
/// every relation in the plan. System relations (OIDs up to 16383) are excluded, because these
/// statements lock some of them.
const LOCKED_RELATIONS: &str = "SELECT l.relation AS oid FROM pg_catalog.pg_locks l \
     WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.relation > 16383 \
     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d \
     WHERE d.datname = pg_catalog.current_database()) \
     GROUP BY l.relation";

/// Whether an exported snapshot does not cover a relation, so that several sessions must not read
/// it. Temporary tables of other sessions can be children of a table, but are never read.
const UNCOVERED: &str = "c.relkind = 'f' OR c.relpersistence = 't' \
     AND NOT pg_catalog.pg_is_other_temp_schema(c.relnamespace)";

/// The state that must be equal in all sessions, so that they see the same rows. The first three
/// entries have their own results in [`SessionView::compare`].
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
         LEFT JOIN pg_catalog.pg_class c USING (oid) WHERE c.relkind IS NULL OR c.relkind NOT IN \
         ('i', 'I')), '')",
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
    /// Its name, quoted.
    name: String,
    /// Its `pg_class.relkind`.
    kind: String,
    /// The session's `lock_timeout` or `statement_timeout`, whichever is shorter, if one is set.
    lock_timeout: Option<Duration>,
    /// Whether Citus's catalog of distributed tables exists.
    has_citus: bool,
    /// Whether `LOCK TABLE` can lock it. It does not support materialized views, and requires
    /// privileges on the whole table.
    pub(crate) is_lockable: bool,
}

/// The snapshot that the first session of a parallel query has exported.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExportedSnapshot {
    snapshot: String,
    /// The number of blocks of the relation, or of each of its tables, in ascending order.
    blocks: Vec<u64>,
}

/// The state that a session sees after it has planned its partition, in the order of
/// [`COMPARED_STATE`] after two fields of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SessionView(Vec<String>);

/// The result of comparing two session views.
#[derive(Debug)]
pub(crate) enum Comparison {
    Same,
    /// Another session has changed the relation in the meantime.
    Changed,
    /// The sessions can never see the same rows, so a retry does not help.
    Refused(Error),
}

impl RelationInfo {
    /// Returns the query for the description of the relation. It runs outside a transaction.
    pub(crate) fn describe(entity: &str) -> Result<String> {
        let name = literal(&quote_relation(entity)?)?;
        Ok(format!(
            "SELECT pg_catalog.concat_ws({SQL_SEPARATOR}, c.relkind, \
             (1000 * extract(epoch FROM (SELECT coalesce(min(t), '0') \
             FROM (SELECT pg_catalog.current_setting(name)::pg_catalog.interval AS t \
             FROM (VALUES ('lock_timeout'), ('statement_timeout')) names (name)) times \
             WHERE t > '0')))::pg_catalog.int8, \
             EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attname = 'logicalrelid' \
             AND a.attrelid = pg_catalog.to_regclass('pg_dist_partition')), {UNCOVERED}) \
             FROM pg_catalog.pg_class c WHERE c.oid = {name}::regclass"
        ))
    }

    /// Parses the response to [`describe`](Self::describe). `by_blocks`: the relation will be split
    /// by its blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the relation cannot be split.
    pub(crate) fn parse(entity: &str, answer: &str, by_blocks: bool) -> Result<Self> {
        let fields: Vec<_> = answer.splitn(5, SEPARATOR).collect();
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
                    "parallel() splits tables and materialized views by their blocks, but a view \
                     has none: call partition_by() with an expression, such as its key",
                ));
            }
            "v" => {}
            _ => {
                return Err(Error::config(
                    "parallel() cannot read this kind of relation: it supports only tables, \
                     materialized views and, with partition_by(), views",
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

    /// The time for which a query of this session would wait for a lock, if it is limited.
    pub(crate) fn lock_timeout(&self) -> Option<Duration> {
        self.lock_timeout
    }

    /// Returns the statement that limits each later wait for a lock in the transaction to `wait`,
    /// or to the session's own limit if that is shorter.
    pub(crate) fn set_lock_timeout(&self, wait: Duration) -> String {
        let wait = self.lock_timeout.map_or(wait, |own| own.min(wait));
        format!("SET LOCAL lock_timeout = {}", wait.as_millis().max(1))
    }

    /// Returns the statements that lock the relation and export a snapshot.
    ///
    /// `LOCK TABLE` runs [before the snapshot is taken][lock]. Otherwise a snapshot taken while
    /// waiting for `TRUNCATE` and `INSERT` would see neither the old rows nor the new ones.
    ///
    /// The session waits for the first lock for at most `wait`; until then, it holds no locks
    /// except on the relation's parents. It waits for each later lock for at most `rest`.
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
            "{LEADING_STATEMENT}; {wait}; {stable}{lock}; {rest}; \
             WITH locked AS MATERIALIZED ({LOCKED_RELATIONS}), \
             tables AS (SELECT c.oid, pg_catalog.pg_relation_size(c.oid) AS size \
             FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'm') \
             AND NOT pg_catalog.pg_is_other_temp_schema(c.relnamespace) \
             AND (c.oid IN (SELECT oid FROM locked) OR c.oid = {literal}::regclass)) \
             SELECT pg_catalog.concat_ws({SQL_SEPARATOR}, pg_catalog.pg_export_snapshot(), \
             {refused}, (SELECT pg_catalog.string_agg(\
             (size / pg_catalog.current_setting('block_size')::pg_catalog.int8)::text, ' ') \
             FROM tables))",
            wait = self.set_lock_timeout(wait),
            stable = self.stable_scans(),
            rest = self.set_lock_timeout(rest),
            literal = literal(name)?,
            refused = self.uncovered_relation(),
        ))
    }

    /// Returns the statements by which another session locks the relation and imports the snapshot.
    ///
    /// The session does not wait for its lock. Another session that waits for an exclusive lock
    /// would wait for the first session, and this session would queue after it. The server cannot
    /// detect that deadlock.
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
                "{LEADING_STATEMENT}; {bound}; {stable}\
                 LOCK TABLE {name} IN ACCESS SHARE MODE NOWAIT; {join}"
            )
        } else {
            format!("{LEADING_STATEMENT}; {join}; {bound}; {stable}{}", self.lock_by_reading())
        })
    }

    /// Returns an empty query, which also locks the relation, but only after its snapshot is taken.
    fn lock_by_reading(&self) -> String {
        format!("SELECT FROM {} LIMIT 0", self.name)
    }

    /// Returns a setting for views, which can contain LIMIT without ORDER BY. If all scans start at
    /// the same block, such a view is more likely to return the same rows in each session.
    fn stable_scans(&self) -> &'static str {
        if self.kind == "v" { "SET LOCAL synchronize_seqscans = off; " } else { "" }
    }

    /// Returns an expression for the first locked relation that the snapshot does not cover, or an
    /// empty text.
    fn uncovered_relation(&self) -> String {
        let citus = if self.has_citus {
            "WHEN c.oid IN (SELECT d.logicalrelid::oid FROM pg_dist_partition d) THEN 'Citus'"
        } else {
            ""
        };
        format!(
            "coalesce((SELECT pg_catalog.min(\
             pg_catalog.concat('the ', kind, ' table ', oid::regclass)) \
             FROM (SELECT c.oid, CASE WHEN {UNCOVERED} \
             THEN CASE c.relkind WHEN 'f' THEN 'foreign' ELSE 'temporary' END {citus} END AS kind \
             FROM pg_catalog.pg_class c JOIN locked USING (oid)) kinds WHERE kind IS NOT NULL), '')"
        )
    }

    /// Returns the query for a [`SessionView`], which runs after the session has planned its
    /// partition.
    ///
    /// A relation that is missing in the snapshot, or was rewritten since, was changed before this
    /// session locked it. A refresh of a materialized view does not count as such a change, because
    /// every snapshot sees the new rows.
    pub(crate) fn session_view(&self) -> String {
        let compared: Vec<_> = COMPARED_STATE.iter().map(|(_, expression)| *expression).collect();
        format!(
            "WITH locked AS MATERIALIZED ({LOCKED_RELATIONS}) \
             SELECT pg_catalog.concat_ws({SQL_SEPARATOR}, \
             EXISTS (SELECT FROM locked o LEFT JOIN pg_catalog.pg_class c USING (oid) \
             WHERE c.oid IS NULL OR c.relkind = 'r' \
             AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(o.oid)), {}, {})",
            self.uncovered_relation(),
            compared.join(", ")
        )
    }
}

/// The separator as an SQL expression.
const SQL_SEPARATOR: &str = "pg_catalog.chr(31)";

fn not_in_snapshot(what: &str) -> Error {
    let what = OneLine::name(what);
    Error::config(format!(
        "parallel() cannot read {what}: the snapshot that the connections share does not cover it, \
         so they could see different rows, even with partition_by(); remove parallel()"
    ))
}

fn malformed_answer() -> Error {
    Error::protocol(
        "unexpected format of the server's response about the relation of a parallel query",
    )
}

impl ExportedSnapshot {
    /// Parses the response to [`RelationInfo::lock_and_export`].
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
        // The field is missing if the relation has no tables.
        let blocks = fields.next().unwrap_or_default();
        if snapshot.len() > MAX_SNAPSHOT_NAME || blocks.len() > MAX_TABLES * "4294967295 ".len() {
            return Err(malformed_answer());
        }
        // Block numbers have 32 bits.
        let block = |b: &str| b.parse().map(|b: u32| b.into()).map_err(|_| malformed_answer());
        let mut blocks = blocks.split_whitespace().map(block).collect::<Result<Vec<_>>>()?;
        if blocks.len() > MAX_TABLES {
            return Err(malformed_answer());
        }
        blocks.sort_unstable();
        Ok(Self { snapshot: snapshot.to_owned(), blocks })
    }

    /// Splits the rows by blocks. The ranges are the same for each table, and each range contains
    /// the same number of blocks of all tables together. So one large table is split as evenly as
    /// many small ones.
    pub(crate) fn split_by_blocks(&self, parts: usize) -> Vec<Partition> {
        let total: u64 = self.blocks.iter().sum();
        // All tables together have `before` blocks in front of block `reached`. `larger` of them
        // have further blocks.
        let mut tables = self.blocks.iter().copied().peekable();
        let (mut reached, mut before, mut larger) = (0, 0, self.blocks.len() as u64);
        // The first block that has the blocks of all earlier parts in front of it.
        let mut start = |part: usize| {
            let wanted = (total * part as u64).div_ceil(parts as u64);
            while let Some(end) = tables.next_if(|end| before + (end - reached) * larger < wanted) {
                before += (end - reached) * larger;
                (reached, larger) = (end, larger - 1);
            }
            reached + (wanted - before).div_ceil(larger.max(1))
        };
        let mut from = 0;
        let parts = (0..parts).map(|part| {
            let to = (part + 1 < parts).then(|| start(part + 1));
            Partition::Blocks { from: mem::replace(&mut from, to.unwrap_or_default()), to }
        });
        parts.collect()
    }
}

impl SessionView {
    /// Parses the response to [`RelationInfo::session_view`].
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the snapshot does not cover a relation that the session's plan reads.
    pub(crate) fn parse(answer: &str) -> Result<Self> {
        // One more than expected, so that too many are noticed but not copied one by one.
        let expected = COMPARED_STATE.len() + 2;
        let fields = answer.splitn(expected + 1, SEPARATOR).map(str::to_owned);
        let fields: Vec<String> = fields.collect();
        match fields.get(1) {
            Some(refused) if fields.len() == expected => match refused.as_str() {
                "" => Ok(Self(fields)),
                refused => Err(not_in_snapshot(refused)),
            },
            _ => Err(malformed_answer()),
        }
    }

    /// Whether the relation was changed after the snapshot and before it was locked.
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
                    "the connections of parallel() are connected to different servers, which \
                     cannot share a snapshot: connect to one server, without a load balancer"
                        .to_owned()
                }
                name => format!(
                    "the connections of parallel() differ in {name}, so they could see different \
                     rows: reconnect, and do not change settings on connections of a pooler"
                ),
            };
            return Comparison::Refused(Error::config(refused));
        }
        if changed { Comparison::Changed } else { Comparison::Same }
    }
}

/// Splits the rows of any relation by the hash of an expression in raw SQL, which must not be
/// volatile.
pub(crate) fn split_by_hash(expression: &str, parts: usize) -> Result<Vec<Partition>> {
    if highest_parameter(expression)? > 0 {
        return Err(Error::config("partition_by() does not support parameters such as $1"));
    }
    let part = |index| Partition::Hash { expression: expression.to_owned(), parts, index };
    Ok((0..parts).map(part).collect())
}

impl Partition {
    /// Returns the condition that selects the rows of the partition.
    pub(super) fn to_sql(&self) -> String {
        match self {
            Self::Blocks { from, to: Some(to) } => {
                format!("ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid")
            }
            Self::Blocks { from, to: None } => format!("ctid >= '({from},0)'::tid"),
            // The hash of the text, which every type has, in a collation in which different texts
            // are never equal. NULL belongs to a partition too. The sign bit is cleared, because
            // the remainder of a negative number is negative.
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
        let mut blocks = blocks.to_vec();
        blocks.sort_unstable();
        let exported = ExportedSnapshot { snapshot: String::new(), blocks };
        let range = |part| match part {
            Partition::Blocks { from, to } => (from, to),
            Partition::Hash { .. } => panic!("{part:?}"),
        };
        exported.split_by_blocks(parts).into_iter().map(range).collect()
    }

    /// For one table and for many tables of very different sizes.
    #[test]
    fn split_by_blocks_covers_every_block_in_equal_ranges() {
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
                    // A boundary can move only by whole blocks of each table.
                    assert!(
                        size <= total / parts as u64 + blocks.len() as u64 + 1,
                        "{split:?} of {blocks:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn view_is_split_by_an_expression_only() {
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
    fn set_lock_timeout_does_not_exceed_the_sessions_own_limit() {
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
    fn session_views_are_compared_by_every_field() {
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
    fn exported_snapshot_is_parsed_with_the_blocks_of_its_tables() {
        let read = |blocks: &str| ExportedSnapshot::parse(&format!("3-1B-1\u{1f}{blocks}"));
        assert_eq!(read("\u{1f}7 0 12").unwrap().blocks, [0, 7, 12]);
        assert_eq!(read("").unwrap().blocks, [0; 0]);
        assert!(read("\u{1f}x").is_err());
        // More blocks than a table can have. Their sum would overflow.
        assert!(read("\u{1f}18446744073709551615 1").is_err());
        assert!(read("the Citus table t").unwrap_err().to_string().contains("the Citus table t"));
        assert!(ExportedSnapshot::parse("").is_err());
    }

    #[test]
    fn exported_snapshot_of_a_malicious_server_is_bounded() {
        let with = |snapshot: &str, tables: usize| {
            let blocks = vec!["4294967295"; tables].join(" ");
            ExportedSnapshot::parse(&format!("{snapshot}\u{1f}\u{1f}{blocks}"))
        };
        assert_eq!(with("3-1B-1", MAX_TABLES).unwrap().split_by_blocks(64).len(), 64);
        assert!(with("3-1B-1", MAX_TABLES + 1).is_err());
        assert!(with(&"3".repeat(MAX_SNAPSHOT_NAME + 1), 1).is_err());
        // The numbers are valid and few, but their text is long.
        let blocks = " ".repeat(12 * MAX_TABLES);
        assert!(ExportedSnapshot::parse(&format!("3-1B-1\u{1f}\u{1f}1{blocks}1")).is_err());
    }

    #[test]
    fn table_name_in_an_error_is_shown_on_one_line() {
        let name = format!("the foreign table a\u{1b}[2K\n\u{202e}{}", "b".repeat(1000));
        let fields = ["f", &name].into_iter().chain(vec!["x"; COMPARED_STATE.len()]);
        let view = fields.collect::<Vec<_>>().join("\u{1f}");
        for error in [
            ExportedSnapshot::parse(&format!("3-1B-1\u{1f}{name}")).unwrap_err().to_string(),
            SessionView::parse(&view).unwrap_err().to_string(),
        ] {
            assert!(error.contains("the foreign table a [2K bbb"), "{error}");
            assert!(error.len() < 600, "{error}");
        }
    }
}
