//! The transactions of a parallel query in the model: the statements before its rows and after
//! them.

use super::*;
use crate::relation::{Kind, Part, Version};

/// The type of a value.
const TEXT: u32 = 25;

/// The type of documents.
const JSONB: u32 = 3802;

/// Separates the fields of a value.
const SEPARATOR: &str = "\u{1f}";

/// The transaction of a session.
#[derive(Default)]
pub(super) struct Transaction {
    is_failed: bool,
    /// The query whose relation its statements name.
    relation: Option<usize>,
    /// The name of its snapshot, and the version that it sees.
    snapshot: Option<(String, Version)>,
    /// In milliseconds.
    lock_timeout: u64,
    /// The number of partitions that it has locked.
    attached: u64,
    /// The parts that it has planned.
    portals: BTreeMap<String, Part>,
}

/// A statement of such a transaction.
pub(super) enum Step {
    Simple(String),
    /// Parse and Bind.
    Plan {
        portal: String,
        sql: String,
    },
}

impl Step {
    /// The query whose relation it names.
    fn named(&self) -> Option<usize> {
        let (Self::Simple(sql) | Self::Plan { sql, .. }) = self;
        query_named(sql)
    }

    /// Whether it begins or ends a transaction, which cannot fail.
    fn is_border(&self) -> bool {
        matches!(self, Self::Simple(sql) if sql.starts_with("BEGIN") || is_end(sql))
    }
}

fn is_end(sql: &str) -> bool {
    matches!(sql, "COMMIT" | "ROLLBACK")
}

/// The error that ends a statement.
struct Refusal {
    code: &'static str,
    text: &'static str,
    /// The server's function that reports it.
    routine: &'static str,
}

impl Refusal {
    fn new(code: &'static str, text: &'static str) -> Self {
        Self { code, text, routine: "" }
    }

    fn message(&self) -> Vec<u8> {
        let (severity, routine) = ("ERROR", self.routine);
        let texts = [(b'S', severity), (b'V', severity), (b'C', self.code), (b'M', self.text)];
        fields(b'E', &[&texts[..], &[(b'R', routine)]].concat())
    }
}

fn done(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

/// Returns a RowDescription.
fn columns(columns: &[(&str, u32)]) -> Vec<u8> {
    // Omits ParseComplete and BindComplete.
    begin(columns).split_off(10)
}

/// Returns the answer with one value.
fn value(value: &str, tag: &str) -> Vec<u8> {
    [columns(&[("?column?", TEXT)]), row(value), done(tag)].concat()
}

impl Peer {
    pub(super) fn end_transaction(&mut self, pid: usize) {
        if let Some(id) = self.transaction.take().and_then(|transaction| transaction.relation) {
            self.world.relation(id, |relation| relation.release(pid));
        }
    }

    /// Marks the transaction as failed, if there is one.
    pub(super) fn fail_transaction(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.is_failed = true;
        }
    }

    /// Returns ReadyForQuery with the status of the transaction.
    pub(super) fn ready(&self) -> Vec<u8> {
        match &self.transaction {
            None => ready(),
            Some(transaction) if transaction.is_failed => message(b'Z', b"E"),
            Some(_) => message(b'Z', b"T"),
        }
    }

    /// Executes the statements of one request. Returns whether the session continues. Like a
    /// server, sends all results after the last statement.
    pub(super) async fn steps(&mut self, pid: usize, steps: &[Step]) -> io::Result<bool> {
        let world = Arc::clone(&self.world);
        let named = steps.iter().find_map(Step::named);
        // The client's own session has to describe the relation.
        let is_first = self.transaction.is_none() && named.is_some();
        let signal = world.work(pid, named, is_first);
        let id = world.parallel_query(pid);
        let fate = match world.below(1500) {
            0..4 if !steps.iter().any(Step::is_border) => Fate::Error,
            4..8 => Fate::Fatal,
            8..14 => Fate::Cut,
            14..17 => Fate::Silence,
            _ => Fate::Whole,
        };
        world.note(|| format!("session {pid} takes {} steps of {id}: {fate:?}", steps.len()));
        if world.one_in(40) {
            world.cause(id, SLOW);
            let long = world.delay(0, 20_000);
            select! {
                biased;
                () = signal.notified() => {}
                () = sleep(long) => {}
            }
        }
        let fails_at = world.below(steps.len() as u64) as usize;
        let mut bytes = if world.one_in(30) { aside(&world) } else { Vec::new() };
        for (number, step) in steps.iter().enumerate() {
            if world.one_in(10) {
                let mut random = Chance::of(world.below(1 << 32));
                world.relation(id, |relation| relation.disturb(&mut random));
            }
            let result = match fate {
                Fate::Error if number == fails_at => {
                    Err(Refusal::new(DIVISION, "division by zero"))
                }
                Fate::Fatal if number == fails_at => {
                    world.cause(id, SHUTDOWN);
                    bytes.extend(error("FATAL", SHUTDOWN, "shutting down"));
                    break;
                }
                _ if world.is_signalled(pid) => Err(self.stopped(pid)),
                _ => self.step(pid, id, step, &signal).await,
            };
            match result {
                Ok(result) => bytes.extend(result),
                Err(refusal) => {
                    world.note(|| format!("session {pid} is refused: {}", refusal.text));
                    world.cause(id, refusal.code);
                    self.fail_transaction();
                    bytes.extend(refusal.message());
                    break;
                }
            }
        }
        match fate {
            Fate::Fatal => world.count("FATAL before the rows of a part"),
            Fate::Cut | Fate::Silence => {
                bytes.truncate(world.below(bytes.len() as u64 + 1) as usize);
                let is_cut = fate == Fate::Cut;
                world.cause(id, if is_cut { LOST } else { SLOW });
                world.count(if is_cut {
                    "cut before the rows of a part"
                } else {
                    "silence before the rows of a part"
                });
            }
            _ => bytes.extend(self.ready()),
        }
        let continues = matches!(fate, Fate::Whole | Fate::Error);
        let mut sent = 0;
        while sent < bytes.len() {
            let end = bytes.len().min(sent + 1 + world.below(self.pace.piece) as usize);
            if end == bytes.len() && continues {
                world.idle(pid);
            }
            self.send(&bytes[sent..end]).await?;
            sent = end;
            if let Some(pause) = self.pause().filter(|_| sent < bytes.len()) {
                world.cause(id, SLOW);
                sleep(pause).await;
            }
        }
        if fate == Fate::Silence {
            let _ = self.silence().await;
        }
        Ok(continues)
    }

    /// Returns the error of a statement that was stopped.
    fn stopped(&self, pid: usize) -> Refusal {
        self.world.stopped(pid);
        self.world.count("stopped before the rows of a part");
        self.world.state().sessions[pid - 1].signalled = false;
        Refusal::new("57014", "canceling statement due to user request")
    }

    /// Executes a statement. Returns its result.
    async fn step(
        &mut self,
        pid: usize,
        id: usize,
        step: &Step,
        signal: &Notify,
    ) -> Result<Vec<u8>, Refusal> {
        let sql = match step {
            Step::Plan { portal, sql } => return self.plan(pid, id, portal, sql, signal).await,
            Step::Simple(sql) => sql.as_str(),
        };
        if is_end(sql) {
            // If BEGIN was stopped, there is no transaction. A server only warns about that.
            self.end_transaction(pid);
            return Ok(done(sql));
        }
        if sql.contains("logicalrelid") {
            assert!(self.transaction.is_none(), "it is described in a transaction");
            return Ok(self.describe(id));
        }
        if sql.starts_with("BEGIN") {
            if self.transaction.is_some() {
                // The ROLLBACK before it was stopped.
                self.usable()?;
                panic!("BEGIN in a transaction");
            }
            self.transaction = Some(Transaction::default());
            return Ok(done("BEGIN"));
        }
        let transaction = self.usable()?;
        if let Some(wait) = sql.strip_prefix("SET LOCAL lock_timeout = ") {
            transaction.lock_timeout = wait.parse().unwrap();
            return Ok(done("SET"));
        }
        if let Some(name) = sql.strip_prefix("SET TRANSACTION SNAPSHOT '") {
            return self.import(id, name.trim_end_matches('\''));
        }
        match sql {
            "SHOW lock_timeout" => Ok(value("0", "SHOW")),
            "SELECT 1" => Ok(value("1", "SELECT 1")),
            "SET LOCAL synchronize_seqscans = off" => Ok(done("SET")),
            sql if sql.starts_with("LOCK TABLE ") => {
                self.lock_table(pid, id, sql.ends_with(" NOWAIT"), signal).await
            }
            sql if sql.starts_with("SELECT FROM ") => {
                self.seen(id);
                self.lock(pid, id, None, signal).await?;
                Ok([columns(&[]), done("SELECT 0")].concat())
            }
            sql if sql.contains("pg_export_snapshot()") => Ok(self.export(pid, id)),
            sql if sql.contains("txid_current_snapshot()") => Ok(self.see(id)),
            _ => panic!("{sql} was sent"),
        }
    }

    /// Returns the transaction. If it has failed, only its end is accepted.
    fn usable(&mut self) -> Result<&mut Transaction, Refusal> {
        let transaction = self.transaction.as_mut().expect("a transaction");
        if transaction.is_failed {
            return Err(Refusal::new("25P02", "current transaction is aborted"));
        }
        Ok(transaction)
    }

    /// Returns the kind of the relation, and the server's `lock_timeout`.
    fn describe(&self, id: usize) -> Vec<u8> {
        if self.world.one_in(20) {
            self.world.count("a relation had no description yet");
            return [columns(&[("?column?", TEXT)]), done("SELECT 0")].concat();
        }
        let kind = self.world.relation(id, |relation| relation.relkind());
        let lock_timeout = ["0", "0", "0", "250"][self.world.below(4) as usize];
        value(&[kind, lock_timeout, "f", "f"].join(SEPARATOR), "SELECT 1")
    }

    /// Returns the version that the transaction's snapshot sees. Its first query takes the
    /// snapshot.
    fn seen(&mut self, id: usize) -> Version {
        let number = self.world.below(1 << 32);
        let world = Arc::clone(&self.world);
        let transaction = self.transaction.as_mut().unwrap();
        transaction.relation = Some(id);
        let taken = || {
            let version = world.relation(id, |relation| relation.version());
            (format!("{number:08X}-1"), version)
        };
        transaction.snapshot.get_or_insert_with(taken).1
    }

    /// Exports the snapshot. Returns the sizes of the tables.
    fn export(&mut self, pid: usize, id: usize) -> Vec<u8> {
        let version = self.seen(id);
        let transaction = self.transaction.as_ref().unwrap();
        let (name, _) = transaction.snapshot.as_ref().unwrap();
        let blocks = self.world.relation(id, |relation| {
            relation.export(name, pid, version);
            relation.blocks()
        });
        let blocks: Vec<_> = blocks.iter().map(u64::to_string).collect();
        value(&[name, "", &blocks.join(" ")].join(SEPARATOR), "SELECT 1")
    }

    fn import(&mut self, id: usize, name: &str) -> Result<Vec<u8>, Refusal> {
        let transaction = self.transaction.as_mut().unwrap();
        assert!(transaction.snapshot.is_none(), "a snapshot is imported after a query");
        if let Some(version) = self.world.relation(id, |relation| relation.import(name)) {
            transaction.snapshot = Some((name.to_owned(), version));
            return Ok(done("SET"));
        }
        self.world.count("a snapshot was lost");
        let (code, routine) = match self.world.below(2) {
            0 => ("22023", "ImportSnapshot"),
            _ => ("55000", "SetTransactionSnapshot"),
        };
        Err(Refusal { code, text: "there is no such snapshot", routine })
    }

    async fn lock_table(
        &mut self,
        pid: usize,
        id: usize,
        is_nowait: bool,
        signal: &Notify,
    ) -> Result<Vec<u8>, Refusal> {
        let kind = self.world.relation(id, |relation| relation.kind);
        match kind {
            Kind::Materialized => panic!("LOCK TABLE of a materialized view"),
            Kind::Unlockable => {
                self.world.count("a lock was refused to the role");
                return Err(Refusal::new("42501", "permission denied"));
            }
            Kind::Partitioned if self.world.one_in(40) => {
                self.world.count("a child was dropped");
                return Err(Refusal::new(CHILD_DROPPED, "cache lookup failed"));
            }
            _ => {}
        }
        self.lock(pid, id, is_nowait.then_some(0), signal).await?;
        Ok(done("LOCK TABLE"))
    }

    /// Locks the relation in mode ACCESS SHARE. Waits at most `wait`, by default `lock_timeout`.
    async fn lock(
        &mut self,
        pid: usize,
        id: usize,
        wait: Option<u64>,
        signal: &Notify,
    ) -> Result<(), Refusal> {
        let world = Arc::clone(&self.world);
        let transaction = self.transaction.as_mut().unwrap();
        transaction.relation = Some(id);
        let deadline = Instant::now() + ms(wait.unwrap_or(transaction.lock_timeout));
        loop {
            let released = world.relation(id, |relation| Arc::clone(&relation.released));
            let released = released.notified();
            let until = match world.relation(id, |relation| relation.lock(pid)) {
                Ok(attached) => {
                    transaction.attached = attached;
                    return Ok(());
                }
                Err(until) => until,
            };
            if Instant::now() >= deadline {
                world.count("a lock was not available");
                return Err(Refusal::new(LOCKED, "canceling statement due to lock timeout"));
            }
            world.cause(id, SLOW);
            select! {
                biased;
                // The notification may be left over from an earlier request.
                () = signal.notified() => if world.is_signalled(pid) {
                    return Err(self.stopped(pid));
                },
                () = released => {}
                () = sleep_until(until.min(deadline)) => {}
            }
        }
    }

    /// Plans a part in a portal, which also locks the relation.
    async fn plan(
        &mut self,
        pid: usize,
        id: usize,
        portal: &str,
        sql: &str,
        signal: &Notify,
    ) -> Result<Vec<u8>, Refusal> {
        self.usable()?;
        self.lock(pid, id, None, signal).await?;
        let seen = self.seen(id);
        let part = self.world.relation(id, |relation| relation.plan(sql, seen));
        self.usable()?.portals.insert(portal.to_owned(), part);
        Ok([message(b'1', b""), message(b'2', b"")].concat())
    }

    /// Returns the state that the session sees after it has planned its part.
    fn see(&mut self, id: usize) -> Vec<u8> {
        let seen = self.seen(id);
        let transaction = self.transaction.as_ref().unwrap();
        let (snapshot, _) = transaction.snapshot.as_ref().unwrap();
        let (locked, has_changed) = self.world.relation(id, |relation| {
            (relation.locked(transaction.attached), relation.has_changed(seen))
        });
        if has_changed {
            self.world.count("a relation was changed before its lock");
        }
        // All relations are in the snapshot. The server is a single one.
        let mut sight = vec![if has_changed { "t" } else { "f" }, "", "1", snapshot, &locked];
        sight.resize(16, "same");
        if self.world.one_in(100) {
            self.world.count("sessions differ");
            self.world.cause(id, DIFFERENT);
            sight[7] = "another";
        }
        value(&sight.join(SEPARATOR), "SELECT 1")
    }

    /// Sends the rows of a portal. Returns whether the session continues.
    pub(super) async fn execute(&mut self, pid: usize, portal: &str) -> io::Result<bool> {
        let id = self.world.parallel_query(pid);
        let transaction = self.transaction.as_mut().expect("a transaction");
        assert!(!transaction.is_failed, "a part is executed after an error");
        let part = transaction.portals.remove(portal).expect("a portal");
        let (generation, numbers) = (part.generation(), part.numbers.clone());
        let number = self.world.relation(id, |relation| {
            let is_same = |other: &Part| other.shares_rows(&part);
            assert!(!relation.parts.iter().any(is_same), "a part is executed twice");
            relation.parts.push(part);
            relation.parts.len() - 1
        });
        let target = Target { id, part: Some(number) };
        let rows = numbers.iter().map(|row| self.world.document(id, *row, generation)).collect();
        let begin = Begin { messages: vec![columns(&[("data", JSONB)])], ..Begin::default() };
        self.answer(pid, target, begin, rows, None).await
    }
}
