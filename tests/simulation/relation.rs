//! The relation of a parallel query in the model. Other sessions change it, and its locks and
//! snapshots work like those of Postgres.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    Chance,
    server::{CHANGED, Progress},
};

/// The number of rows in a partition that is attached later.
const ATTACHED_ROWS: u64 = 10;

/// The maximum number of partitions that are attached.
const MAX_ATTACHED: u64 = 3;

/// The number of rows that another session inserts at a time.
const INSERTED_ROWS: u64 = 4;

/// The maximum number of inserts.
const MAX_INSERTED: u64 = 5;

/// The number of rows in a block.
const BLOCK: u64 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Table,
    /// A table that the role may read but not lock.
    Unlockable,
    Partitioned,
    Materialized,
    View,
}

pub struct Relation {
    pub kind: Kind,
    rows: u64,
    /// The number of connections that read it.
    pub connections: usize,
    version: Version,
    /// The number of partitions that were attached.
    attached: u64,
    /// The sessions that hold ACCESS SHARE.
    holders: BTreeSet<usize>,
    exclusive: Option<Exclusive>,
    /// Notified when a lock is released.
    pub released: Arc<Notify>,
    /// Snapshots by name: the session that exported it, and the version that it sees.
    snapshots: BTreeMap<String, (usize, Version)>,
    /// The parts that were executed.
    pub parts: Vec<Part>,
    /// Reasons for the query to fail: SQLSTATEs that were sent, and others.
    pub causes: BTreeSet<&'static str>,
}

/// The committed state that a snapshot distinguishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// The number of times that all rows were replaced.
    generation: u64,
    /// The number of inserts.
    inserted: u64,
}

/// An ACCESS EXCLUSIVE lock of another session.
struct Exclusive {
    until: Instant,
    /// Whether it is held. If it is waited for, it precedes later requests just the same.
    is_held: bool,
}

/// A part of the rows, as planned by a session.
#[derive(Debug, Clone)]
pub struct Part {
    version: Version,
    /// The numbers of its rows, in order.
    pub numbers: Vec<u64>,
    pub progress: Progress,
}

impl Part {
    /// The generation of its rows.
    pub fn generation(&self) -> u64 {
        self.version.generation
    }

    pub fn shares_rows(&self, other: &Self) -> bool {
        self.numbers.first().is_some_and(|row| other.numbers.binary_search(row).is_ok())
    }

    /// The numbers of the rows that were sent completely.
    pub fn sent(&self) -> &[u64] {
        &self.numbers[..self.progress.sent as usize]
    }
}

impl Relation {
    pub fn new(kind: Kind, rows: u64, connections: usize) -> Self {
        Self {
            kind,
            rows,
            connections,
            version: Version::default(),
            attached: 0,
            holders: BTreeSet::new(),
            exclusive: None,
            released: Arc::default(),
            snapshots: BTreeMap::new(),
            parts: Vec::new(),
            causes: BTreeSet::new(),
        }
    }

    pub fn relkind(&self) -> &'static str {
        match self.kind {
            Kind::Table | Kind::Unlockable => "r",
            Kind::Partitioned => "p",
            Kind::Materialized => "m",
            Kind::View => "v",
        }
    }

    /// Returns the maximum number of rows that a relation of `rows` rows can have later.
    pub fn most_rows(rows: u64) -> u64 {
        rows + MAX_ATTACHED * ATTACHED_ROWS + MAX_INSERTED * INSERTED_ROWS
    }

    /// Returns whether a query may return `rows` rows.
    pub fn allows(&self, rows: u64) -> bool {
        (0..=self.attached).any(|attached| {
            let more = rows.checked_sub(self.rows + attached * ATTACHED_ROWS);
            more.is_some_and(|more| {
                more % INSERTED_ROWS == 0 && more / INSERTED_ROWS <= self.version.inserted
            })
        })
    }

    /// Changes the relation from another session, or lets that session wait for a lock.
    pub fn disturb(&mut self, random: &mut Chance) {
        self.pass_time();
        self.causes.insert(CHANGED);
        let until = Instant::now() + random.delay(0, 5000);
        match random.below(5) {
            // These changes conflict with no lock of a query.
            0 if self.kind != Kind::Materialized => {
                self.version.inserted = MAX_INSERTED.min(self.version.inserted + 1);
            }
            1 if self.kind == Kind::Partitioned => {
                self.attached = MAX_ATTACHED.min(self.attached + 1);
            }
            0..3 if self.holders.is_empty() && self.exclusive.is_none() => {
                self.version.generation += 1;
            }
            _ if self.exclusive.is_none() => {
                let is_held = self.holders.is_empty();
                self.exclusive = Some(Exclusive { until, is_held });
            }
            _ => {}
        }
    }

    /// Ends the exclusive lock, or the wait for it, if its time is over.
    fn pass_time(&mut self) {
        match &self.exclusive {
            Some(exclusive) if exclusive.until <= Instant::now() => {
                // The transaction that held it has committed.
                self.version.generation += u64::from(exclusive.is_held);
                self.exclusive = None;
            }
            _ => {}
        }
    }

    /// Locks the relation and its partitions for a session. Returns the number of partitions that
    /// are attached.
    ///
    /// # Errors
    ///
    /// Another session holds a conflicting lock, or waits for one, until this time.
    pub fn lock(&mut self, pid: usize) -> Result<u64, Instant> {
        self.pass_time();
        match &self.exclusive {
            Some(exclusive) if !self.holders.contains(&pid) => Err(exclusive.until),
            _ => {
                self.holders.insert(pid);
                Ok(self.attached)
            }
        }
    }

    /// Ends the transaction of a session.
    pub fn release(&mut self, pid: usize) {
        self.pass_time();
        self.snapshots.retain(|_, (exporter, _)| *exporter != pid);
        self.holders.remove(&pid);
        let waits = |exclusive: &mut Exclusive| !exclusive.is_held;
        if self.holders.is_empty() && self.exclusive.take_if(waits).is_some() {
            // The waiting session gets the lock, and commits.
            self.version.generation += 1;
        }
        self.released.notify_waiters();
    }

    /// Returns the version that a statement sees if it begins now.
    pub fn version(&mut self) -> Version {
        self.pass_time();
        self.version
    }

    pub fn export(&mut self, name: &str, pid: usize, version: Version) {
        self.snapshots.insert(name.to_owned(), (pid, version));
    }

    pub fn import(&self, name: &str) -> Option<Version> {
        self.snapshots.get(name).map(|(_, version)| *version)
    }

    /// Returns the number of blocks of each of its tables.
    pub fn blocks(&self) -> Vec<u64> {
        let attached = (0..self.attached).map(|_| ATTACHED_ROWS / BLOCK + 1);
        [self.rows / BLOCK + 1].into_iter().chain(attached).collect()
    }

    /// Returns the relations that a session has locked, with their files.
    pub fn locked(&self, attached: u64) -> String {
        let attached = (1..=attached).map(|n| format!(" {}.0", 20_000 + n));
        format!("16400.{}", self.version.generation) + &attached.collect::<String>()
    }

    /// Returns whether a session with this snapshot sees another file than the present one. Every
    /// snapshot sees the rows of a materialized view that was refreshed.
    pub fn has_changed(&self, seen: Version) -> bool {
        self.kind != Kind::Materialized && seen.generation != self.version.generation
    }

    /// Plans the rows of a condition for a session with this snapshot.
    pub fn plan(&self, sql: &str, seen: Version) -> Part {
        let (_, condition) = sql.split_once(" WHERE ").unwrap();
        let number_after = |text: &str| {
            let (_, rest) = condition.rsplit_once(text)?;
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest[..digits].parse::<u64>().ok()
        };
        let hash = number_after(" % ").zip(number_after(" = "));
        let blocks = number_after("ctid >= '(").map(|from| (from, number_after("ctid < '(")));
        assert!(hash.is_some() != blocks.is_some(), "{condition}");
        let is_in_part = |number: &u64| match (hash, blocks) {
            (Some((of, rest)), _) => number % of == rest,
            (None, Some((from, to))) => {
                let block = match number.checked_sub(self.rows + 1) {
                    // Rows of the partitions, or at the end of the table.
                    Some(later) if self.attached > 0 => later % ATTACHED_ROWS / BLOCK,
                    _ => (number - 1) / BLOCK,
                };
                block >= from && to.is_none_or(|to| block < to)
            }
            (None, None) => false,
        };
        // Rows of another generation are invisible.
        let rows = if self.has_changed(seen) {
            0
        } else {
            self.rows + seen.inserted * INSERTED_ROWS + self.attached * ATTACHED_ROWS
        };
        let numbers = (1..=rows).filter(is_in_part).collect();
        Part { version: self.version, numbers, progress: Progress::default() }
    }
}
