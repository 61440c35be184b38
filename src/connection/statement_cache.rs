//! Which statements the server of a connection has prepared.
//!
//! A value without I/O. The order of calls for one query:
//!
//! 1. [`choose`](StatementCache::choose) with the text, then
//!    [`take_closes`](StatementCache::take_closes). The request is made of both. If it is never
//!    sent, [`restore_closes`](StatementCache::restore_closes).
//! 2. When the columns of the result have been described and are as expected,
//!    [`confirm`](StatementCache::confirm). If they are not,
//!    [`forget`](StatementCache::forget) with a Close.
//! 3. After an error before the portal was bound, [`recover`](StatementCache::recover), which may
//!    return another way to run the same query. Nothing was delivered yet.
//!
//! If the outcome of a Prepare is unknown, because the query was dropped or cancelled, nothing
//! needs to be called: a statement that was not confirmed is closed before it is prepared again.
//! Closing a statement that does not exist is not an error.

use std::{
    collections::{BTreeMap, VecDeque, hash_map::RandomState},
    fmt::Write as _,
    hash::BuildHasher,
    mem,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use crate::{
    error::sqlstate::{DUPLICATE_PSTATEMENT, SqlState},
    metrics::Reprepared,
    protocol::frontend::Statement,
};

/// The maximum length of a text that is prepared, in bytes. A client and a server keep each.
const MAX_TEXT: usize = 32 << 10;

/// How many texts that were used once are remembered for each statement that is kept.
const SEEN_PER_STATEMENT: usize = 4;

/// The prepared statements of a connection, at most as many as its capacity.
///
/// A text is prepared when it is used for the second time, so that a query that runs once leaves
/// nothing on the server. The statement that was not used for the longest time is closed when there
/// is no room for another one.
///
/// The name of a statement is a hash of its text, the same on every connection and in every
/// process. So a pooler that hands out a server connection on which another client has prepared
/// the same name does no harm: the text is the same too.
///
/// A server rejects the Bind of a statement whose columns have changed. A pooler that prepares
/// statements itself may prepare it again on another server connection instead, and nothing would
/// show that it has other columns. So the first request that prepares one also asks whether the
/// server's process is the one that issued the key of the session. If it is not, there is a pooler,
/// and each request describes its result.
#[derive(Debug)]
pub(crate) struct StatementCache {
    capacity: usize,
    server: Server,
    /// Sorted: to compare a text with a few others takes less than to hash it.
    statements: BTreeMap<Arc<str>, Entry>,
    /// Hashes of the texts that were used once, the oldest first.
    seen_once: VecDeque<u64>,
    hasher: RandomState,
    /// Statements to close with the next request.
    closes: Vec<Arc<str>>,
    /// Grows with each use: the order of uses, instead of a clock.
    uses: u64,
    evicted: u64,
}

/// What answers the requests of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// Not known: the key of the session has this process id.
    Unknown(u32),
    /// The process that issued the key of the session.
    Process,
    /// Perhaps a pooler.
    Other,
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    last_used: u64,
    state: StatementState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StatementState {
    /// A request to prepare it was made. The outcome is not known.
    Sent,
    /// The server has it, and its column was described.
    Prepared,
    /// The same, but a value did not fit a parameter. Either the value is wrong, or the parameter
    /// has another type now than when the statement was prepared.
    Doubted,
    /// It was to be prepared, and its portal could not be bound. Either the query is wrong, or a
    /// pooler has answered the Parse with a statement that it had prepared earlier, and that is out
    /// of date.
    NewDoubted,
    /// The latter. It is not prepared again, because the pooler would use its old statement.
    Stale,
}

/// How to execute a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    Unnamed,
    /// The unnamed statement, after a named one was not usable.
    Instead,
    Prepare(Arc<str>),
    Prepared(Arc<str>),
    /// Prepared, and described again.
    Described(Arc<str>),
    Existing(Arc<str>),
}

impl Choice {
    pub(crate) fn statement(&self) -> Statement<'_> {
        match self {
            Self::Unnamed | Self::Instead => Statement::Unnamed,
            Self::Prepare(name) => Statement::Prepare(name),
            Self::Prepared(name) => Statement::Prepared(name),
            Self::Described(name) | Self::Existing(name) => Statement::Existing(name),
        }
    }
}

/// How to run a query again whose statement was not usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) choice: Choice,
    /// For the metrics. `None` if the statement may be good.
    pub(crate) reason: Option<Reprepared>,
    /// Statements do not stay where they were prepared: no connection of this configuration
    /// should prepare any.
    pub(crate) statements_lost: bool,
}

impl StatementCache {
    /// A cache of at most `capacity` statements. With 0, nothing is ever prepared. `process_id`:
    /// of the key of the session.
    pub(crate) fn new(capacity: usize, process_id: Option<u32>) -> Self {
        /// `PID_MAX_LIMIT` of Linux. Most poolers issue random numbers, nearly all of them greater.
        const MAX_PROCESS_ID: u32 = 1 << 22;
        let process_id = process_id.filter(|id| *id <= MAX_PROCESS_ID);
        Self {
            capacity,
            server: process_id.map_or(Server::Other, Server::Unknown),
            statements: BTreeMap::new(),
            hasher: RandomState::new(),
            seen_once: VecDeque::new(),
            closes: Vec::new(),
            uses: 0,
            evicted: 0,
        }
    }

    /// Chooses how to execute a text, and counts this as a use of it.
    pub(crate) fn choose(&mut self, sql: &str) -> Choice {
        if self.capacity == 0 || sql.len() > MAX_TEXT {
            return Choice::Unnamed;
        }
        self.uses += 1;
        if let Some(entry) = self.statements.get_mut(sql) {
            entry.last_used = self.uses;
            let name = Arc::clone(&entry.name);
            match entry.state {
                StatementState::Sent | StatementState::NewDoubted => {
                    entry.state = StatementState::Sent;
                    self.closes.push(Arc::clone(&name));
                    return Choice::Prepare(name);
                }
                StatementState::Prepared | StatementState::Doubted => {
                    entry.state = StatementState::Prepared;
                    return match self.server {
                        Server::Process => Choice::Prepared(name),
                        Server::Unknown(_) | Server::Other => Choice::Described(name),
                    };
                }
                StatementState::Stale => return Choice::Unnamed,
            }
        }
        if !self.forget_seen(sql) {
            self.remember_seen(sql);
            return Choice::Unnamed;
        }
        if self.statements.len() >= self.capacity {
            self.evict();
        }
        let name: Arc<str> = name_of(sql).into();
        let entry =
            Entry { name: Arc::clone(&name), last_used: self.uses, state: StatementState::Sent };
        self.statements.insert(sql.into(), entry);
        Choice::Prepare(name)
    }

    /// The process that a request must ask for.
    pub(crate) fn process_to_ask(&self, choice: &Choice) -> Option<u32> {
        match (choice, self.server) {
            (Choice::Unnamed | Choice::Instead, _) | (_, Server::Process | Server::Other) => None,
            (_, Server::Unknown(id)) => Some(id),
        }
    }

    /// The answer: whether the server's process is the one that issued the key of the session.
    ///
    /// Several requests may have asked. A pooler can answer them with different servers.
    pub(crate) fn set_is_process(&mut self, is_process: bool) {
        if !is_process {
            self.server = Server::Other;
        } else if self.server != Server::Other {
            self.server = Server::Process;
        }
    }

    /// Whether a request to prepare this text was made whose outcome is not known.
    pub(crate) fn is_unconfirmed(&self, sql: &str) -> bool {
        self.statements.get(sql).is_some_and(|entry| {
            matches!(entry.state, StatementState::Sent | StatementState::NewDoubted)
        })
    }

    /// Takes the names of the statements to close. The next request must begin with these.
    pub(crate) fn take_closes(&mut self) -> Vec<Arc<str>> {
        mem::take(&mut self.closes)
    }

    /// Takes names back whose request was not sent.
    pub(crate) fn restore_closes(&mut self, names: Vec<Arc<str>>) {
        for name in names {
            let is_used = |e: &Entry| {
                e.name == name
                    && matches!(e.state, StatementState::Prepared | StatementState::Doubted)
            };
            if !self.statements.values().any(is_used) {
                self.closes.push(name);
            }
        }
    }

    /// The columns of the result were described, and are as expected.
    pub(crate) fn confirm(&mut self, sql: &str, sent: &Choice) {
        let Some(entry) = self.statements.get_mut(sql) else { return };
        match sent {
            // The statement of an entry that was evicted is closed by a later request.
            Choice::Prepare(name) | Choice::Existing(name) if Arc::ptr_eq(name, &entry.name) => {
                entry.state = StatementState::Prepared;
                self.closes.retain(|close| close != name);
            }
            // Parsed again, the value fits: the type of the parameter has changed.
            Choice::Instead if entry.state == StatementState::Doubted => self.prepare_again(sql),
            Choice::Instead if entry.state == StatementState::NewDoubted => {
                entry.state = StatementState::Stale;
                self.closes.push(Arc::clone(&entry.name));
            }
            _ => {}
        }
    }

    /// Forgets a text. With `close`, the server is to forget its statement too, if it has one.
    pub(crate) fn forget(&mut self, sql: &str, close: bool) {
        if let Some(entry) = self.statements.remove(sql).filter(|_| close) {
            self.closes.push(entry.name);
        }
        self.forget_seen(sql);
    }

    /// Forgets all statements and prepares none from now on. Does not close them on the server:
    /// with a pooler, they could be another client's.
    pub(crate) fn disable(&mut self) {
        *self = Self { evicted: self.evicted, ..Self::new(0, None) };
    }

    /// How to run a query again that failed with `code` before its portal was bound. `has_parsed`:
    /// after a ParseComplete. `None`: the error is not about the statement.
    ///
    /// * 42P05, the statement exists already: it is used. The request describes it.
    /// * 26000, it does not exist: the unnamed statement, and nothing is prepared any more.
    /// * Class 0A, its result has changed (or the server supports no named statements): the unnamed
    ///   statement. The next use of the text prepares it again.
    /// * Class 42 or XX of a statement that was parsed earlier: the same. Its tables or types have
    ///   changed, or the query itself is wrong.
    /// * Class 0A, 22, 42 or XX after the ParseComplete of a statement that was to be prepared: the
    ///   unnamed statement. A pooler that shares statements between its clients may have answered
    ///   the Parse itself. If the unnamed statement succeeds, the text is not prepared again.
    /// * Class 22 of a statement that was parsed earlier: the unnamed statement. If that succeeds,
    ///   the type of a parameter has changed, and the next use of the text prepares it again.
    ///   Otherwise the value is wrong, and the statement stays.
    ///
    /// The unnamed statement is parsed afresh. So it succeeds if the statement was out of date;
    /// otherwise it fails with the error that a query without a cache would have.
    pub(crate) fn recover(
        &mut self,
        sql: &str,
        sent: &Choice,
        has_parsed: bool,
        code: SqlState,
    ) -> Option<Retry> {
        let is_new = match sent {
            Choice::Unnamed | Choice::Instead => return None,
            Choice::Prepare(_) => true,
            Choice::Prepared(_) | Choice::Described(_) | Choice::Existing(_) => false,
        };
        let unnamed = |reason| Retry { choice: Choice::Instead, reason, statements_lost: false };
        match (sent, code.class()) {
            (Choice::Prepare(name), _) if code == DUPLICATE_PSTATEMENT => Some(Retry {
                choice: Choice::Existing(Arc::clone(name)),
                reason: Some(Reprepared::Exists),
                statements_lost: false,
            }),
            (_, "26") => {
                self.disable();
                let retry = unnamed(Some(Reprepared::Missing));
                Some(Retry { statements_lost: true, ..retry })
            }
            (_, "0A" | "22" | "42" | "XX") if is_new && has_parsed => {
                self.set_state(sql, StatementState::NewDoubted);
                Some(unnamed(None))
            }
            (_, "0A") => {
                self.prepare_again(sql);
                Some(unnamed(Some(Reprepared::Changed)))
            }
            (_, "42" | "XX") if !is_new => {
                self.prepare_again(sql);
                Some(unnamed(Some(Reprepared::Changed)))
            }
            (_, "22") if !is_new => {
                self.set_state(sql, StatementState::Doubted);
                Some(unnamed(None))
            }
            // An entry that is not confirmed is closed before its next use.
            _ => None,
        }
    }

    /// Returns how many statements had to make room for others since the last call.
    pub(crate) fn take_evicted(&mut self) -> u64 {
        mem::take(&mut self.evicted)
    }

    fn set_state(&mut self, sql: &str, state: StatementState) {
        if let Some(entry) = self.statements.get_mut(sql) {
            entry.state = state;
        }
    }

    /// Closes a statement. The next use of its text prepares it again.
    fn prepare_again(&mut self, sql: &str) {
        self.forget(sql, true);
        self.remember_seen(sql);
    }

    fn evict(&mut self) {
        let oldest = self.statements.iter().min_by_key(|(_, entry)| entry.last_used);
        let Some(sql) = oldest.map(|(sql, _)| Arc::clone(sql)) else { return };
        self.forget(&sql, true);
        self.evicted += 1;
    }

    fn remember_seen(&mut self, sql: &str) {
        if self.seen_once.len() >= self.capacity.saturating_mul(SEEN_PER_STATEMENT) {
            self.seen_once.pop_front();
        }
        self.seen_once.push_back(self.hash(sql));
    }

    /// Whether the text was used once. It is forgotten.
    fn forget_seen(&mut self, sql: &str) -> bool {
        let hash = self.hash(sql);
        let found = self.seen_once.iter().position(|seen| *seen == hash);
        found.and_then(|at| self.seen_once.remove(at)).is_some()
    }

    /// Uses random keys, so that no user can construct texts that collide.
    fn hash(&self, sql: &str) -> u64 {
        self.hasher.hash_one(sql)
    }
}

/// The name of the statement of this text: `fw_` and 128 bits of its SHA-256.
fn name_of(sql: &str) -> String {
    let mut name = String::with_capacity(3 + 32);
    name.push_str("fw_");
    for byte in Sha256::digest(sql.as_bytes()).iter().take(16) {
        // A String accepts everything.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use Choice::{Described, Existing, Instead, Prepare, Prepared, Unnamed};

    use super::*;
    use crate::error::sqlstate::{
        FEATURE_NOT_SUPPORTED, INTERNAL_ERROR, INVALID_SQL_STATEMENT_NAME,
        INVALID_TEXT_REPRESENTATION, QUERY_CANCELED, UNDEFINED_FUNCTION, UNDEFINED_TABLE,
    };

    fn name(sql: &str) -> Arc<str> {
        name_of(sql).into()
    }

    /// A cache in which these texts are prepared, the first one used least recently.
    fn with(capacity: usize, texts: &[&str]) -> StatementCache {
        let mut cache = StatementCache::new(capacity, Some(7));
        cache.set_is_process(true);
        for sql in texts {
            assert_eq!(cache.choose(sql), Unnamed);
            let choice = cache.choose(sql);
            assert_eq!(choice, Prepare(name(sql)));
            cache.confirm(sql, &choice);
        }
        cache
    }

    /// By `printf 'select 1' | sha256sum`.
    #[test]
    fn statement_name_is_the_hash_of_its_text() {
        assert_eq!(name_of("select 1"), "fw_822ae07d4783158bc1912bb623e5107c");
    }

    #[test]
    fn second_use_prepares_and_third_executes() {
        let mut cache = with(2, &["a"]);
        assert_eq!(cache.choose("a"), Prepared(name("a")));
        assert_eq!(cache.choose("a"), Prepared(name("a")));
        assert!(cache.take_closes().is_empty());
        let prepared = Prepared(name("a"));
        assert_eq!(prepared.statement(), Statement::Prepared(&name("a")));
    }

    /// Until it is known, requests that use a named statement ask, and describe it.
    #[test]
    fn result_is_described_unless_the_process_of_the_key_executes_the_statement() {
        let mut cache = StatementCache::new(2, Some(7));
        assert_eq!(cache.choose("a"), Unnamed);
        let prepare = cache.choose("a");
        assert_eq!(prepare, Prepare(name("a")));
        cache.confirm("a", &prepare);
        let described = Described(name("a"));
        assert_eq!(cache.choose("a"), described);
        let asked = |cache: &StatementCache| {
            let existing = Existing(name("a"));
            [&Unnamed, &prepare, &described, &existing].map(|choice| cache.process_to_ask(choice))
        };
        assert_eq!(asked(&cache), [None, Some(7), Some(7), Some(7)]);
        cache.set_is_process(true);
        assert_eq!((cache.choose("a"), asked(&cache)), (Prepared(name("a")), [None; 4]));
        for answer in [false, true] {
            cache.set_is_process(answer);
            assert_eq!((cache.choose("a"), asked(&cache)), (described.clone(), [None; 4]));
        }
        // Without a key, or with one that is no process id, there is nothing to ask for.
        for key in [None, Some((1 << 22) + 1), Some(u32::MAX)] {
            let server = StatementCache::new(2, key).server;
            let mut cache = StatementCache { server, ..with(2, &["a"]) };
            assert_eq!((cache.choose("a"), asked(&cache)), (described.clone(), [None; 4]));
        }
        assert_eq!(StatementCache::new(2, Some(1 << 22)).server, Server::Unknown(1 << 22));
    }

    #[test]
    fn statement_that_is_always_described_stays_prepared_until_its_result_changes() {
        let mut cache = StatementCache { server: Server::Other, ..with(2, &["a"]) };
        let described = Described(name("a"));
        assert_eq!(described.statement(), Statement::Existing(&name("a")));
        for _ in 0..2 {
            assert_eq!(cache.choose("a"), described);
            cache.confirm("a", &described);
            assert!(cache.take_closes().is_empty());
        }
        let changed = cache.recover("a", &described, false, FEATURE_NOT_SUPPORTED);
        assert_eq!(changed.unwrap().choice, Instead);
        assert_eq!(cache.choose("a"), Prepare(name("a")));
        assert_eq!(cache.take_closes(), [name("a")]);
        // The answer to an earlier request says nothing about the one that prepares it again.
        cache.confirm("a", &described);
        assert!(cache.is_unconfirmed("a"));
    }

    #[test]
    fn least_recently_used_statement_is_closed_for_another() {
        let mut cache = with(2, &["a", "b"]);
        assert_eq!(cache.choose("a"), Prepared(name("a")));
        assert_eq!(cache.choose("c"), Unnamed);
        assert!(cache.take_closes().is_empty());
        assert_eq!(cache.choose("c"), Prepare(name("c")));
        assert_eq!(cache.take_closes(), [name("b")]);
        assert_eq!((cache.take_evicted(), cache.take_evicted()), (1, 0));
        assert_eq!(cache.choose("b"), Unnamed);
        assert_eq!(cache.choose("a"), Prepared(name("a")));
    }

    #[test]
    fn text_used_once_among_many_is_not_prepared() {
        let mut cache = with(1, &["a"]);
        for i in 0..100 {
            assert_eq!(cache.choose(&i.to_string()), Unnamed);
        }
        assert!(cache.seen_once.len() <= SEEN_PER_STATEMENT);
        assert_eq!(cache.choose("0"), Unnamed);
        assert_eq!(cache.choose("99"), Prepare(name("99")));
    }

    #[test]
    fn long_texts_and_a_capacity_of_0_prepare_nothing() {
        let mut cache = StatementCache::new(1, Some(7));
        for (len, second) in [(MAX_TEXT, false), (MAX_TEXT + 1, true)] {
            let sql = "x".repeat(len);
            cache.choose(&sql);
            assert_eq!(cache.choose(&sql) == Unnamed, second);
        }
        let mut cache = StatementCache::new(0, Some(7));
        for _ in 0..3 {
            assert_eq!(cache.choose("a"), Unnamed);
        }
        assert!(cache.seen_once.is_empty());
    }

    #[test]
    fn unconfirmed_statement_is_closed_before_it_is_prepared_again() {
        let mut cache = with(2, &[]);
        cache.choose("a");
        assert_eq!(cache.choose("a"), Prepare(name("a")));
        assert!(cache.take_closes().is_empty());
        let sent = cache.choose("a");
        assert_eq!(sent, Prepare(name("a")));
        assert_eq!(cache.take_closes(), [name("a")]);
        cache.confirm("a", &sent);
        assert_eq!(cache.choose("a"), Prepared(name("a")));
    }

    /// Requests in flight: the first answer is not about the last request.
    #[test]
    fn answer_does_not_confirm_a_statement_that_was_evicted_and_is_prepared_again() {
        let mut cache = with(1, &[]);
        let mut prepare = |sql| {
            assert_eq!(cache.choose(sql), Unnamed);
            cache.choose(sql)
        };
        let first = prepare("a");
        prepare("b");
        let last = prepare("a");
        assert_eq!(first, last);
        cache.confirm("a", &first);
        assert!(cache.is_unconfirmed("a"));
        cache.confirm("a", &last);
        assert_eq!(cache.choose("a"), Prepared(name("a")));
    }

    #[test]
    fn closes_of_a_request_that_was_not_sent_are_kept() {
        let mut cache = with(1, &["a", "b"]);
        let closes = cache.take_closes();
        assert_eq!(closes, [name("a")]);
        cache.restore_closes(closes);
        assert_eq!(cache.take_closes(), [name("a")]);
        // One that is prepared again meanwhile must not be closed.
        cache.restore_closes(vec![name("a"), name("b")]);
        assert_eq!(cache.take_closes(), [name("a")]);
        cache.restore_closes(vec![name("a")]);
        cache.choose("a");
        let choice = cache.choose("a");
        cache.confirm("a", &choice);
        assert_eq!(cache.take_closes(), [name("b")]);
    }

    #[test]
    fn forgotten_text_is_counted_from_its_first_use_again() {
        for close in [true, false] {
            let mut cache = with(2, &["a"]);
            cache.forget("a", close);
            assert_eq!(cache.take_closes().len(), usize::from(close));
            assert_eq!(cache.choose("a"), Unnamed);
            cache.forget("a", close);
            assert!(cache.take_closes().is_empty(), "nothing was prepared");
            assert_eq!(cache.choose("a"), Unnamed);
            assert_eq!(cache.choose("a"), Prepare(name("a")));
        }
    }

    #[test]
    fn existing_statement_is_used_once_it_is_described() {
        let mut cache = with(2, &[]);
        cache.choose("a");
        let sent = cache.choose("a");
        let retry = cache.recover("a", &sent, false, DUPLICATE_PSTATEMENT).unwrap();
        assert_eq!(retry.choice, Existing(name("a")));
        assert_eq!(retry.reason, Some(Reprepared::Exists));
        assert!(!retry.statements_lost && cache.take_closes().is_empty());
        cache.confirm("a", &retry.choice);
        assert_eq!(cache.choose("a"), Prepared(name("a")));
    }

    #[test]
    fn missing_statement_disables_preparing() {
        for sent in [Prepared(name("a")), Prepare(name("a")), Existing(name("a"))] {
            let mut cache = with(2, &["a", "b"]);
            let retry = cache.recover("a", &sent, true, INVALID_SQL_STATEMENT_NAME).unwrap();
            let reason = Some(Reprepared::Missing);
            assert_eq!(retry, Retry { choice: Instead, reason, statements_lost: true });
            for sql in ["a", "b", "b", "b"] {
                assert_eq!(cache.choose(sql), Unnamed);
            }
            assert!(cache.take_closes().is_empty());
        }
    }

    #[test]
    fn changed_statement_is_closed_and_prepared_on_its_next_use() {
        for code in [FEATURE_NOT_SUPPORTED, UNDEFINED_FUNCTION, UNDEFINED_TABLE, INTERNAL_ERROR] {
            for sent in [Prepared(name("a")), Existing(name("a"))] {
                let mut cache = with(2, &["a"]);
                let retry = cache.recover("a", &sent, false, code).unwrap();
                let reason = Some(Reprepared::Changed);
                assert_eq!(retry, Retry { choice: Instead, reason, statements_lost: false });
                cache.confirm("a", &retry.choice);
                assert_eq!(cache.choose("a"), Prepare(name("a")), "{code}");
                assert_eq!(cache.take_closes(), [name("a")]);
            }
        }
    }

    #[test]
    fn value_that_does_not_fit_keeps_the_statement_unless_the_unnamed_one_accepts_it() {
        for fits in [true, false] {
            let mut cache = with(2, &["a"]);
            let sent = cache.choose("a");
            let retry = cache.recover("a", &sent, false, INVALID_TEXT_REPRESENTATION).unwrap();
            assert_eq!(retry, Retry { choice: Instead, reason: None, statements_lost: false });
            let next = if fits {
                cache.confirm("a", &retry.choice);
                Prepare(name("a"))
            } else {
                assert_eq!(cache.recover("a", &Instead, true, INVALID_TEXT_REPRESENTATION), None);
                Prepared(name("a"))
            };
            assert_eq!(cache.choose("a"), next);
            assert_eq!(cache.take_closes().len(), usize::from(fits));
            // A later success of the unnamed statement is not about that value.
            cache.confirm("a", &Unnamed);
            assert!(cache.take_closes().is_empty());
        }
    }

    #[test]
    fn query_error_is_not_retried() {
        let mut cache = with(2, &["a"]);
        assert_eq!(cache.recover("a", &Prepared(name("a")), false, QUERY_CANCELED), None);
        assert_eq!(cache.choose("a"), Prepared(name("a")));
        assert_eq!(cache.recover("a", &Unnamed, true, INVALID_SQL_STATEMENT_NAME), None);
        cache.choose("b");
        let sent = cache.choose("b");
        for code in [INVALID_TEXT_REPRESENTATION, UNDEFINED_TABLE, QUERY_CANCELED] {
            assert_eq!(cache.recover("b", &sent, false, code), None, "it was parsed just now");
        }
        assert_eq!(cache.recover("b", &sent, true, QUERY_CANCELED), None);
    }

    #[test]
    fn statement_that_a_pooler_prepared_earlier_is_not_used_if_the_unnamed_one_succeeds() {
        for code in
            [INVALID_TEXT_REPRESENTATION, FEATURE_NOT_SUPPORTED, UNDEFINED_FUNCTION, INTERNAL_ERROR]
        {
            for succeeds in [true, false] {
                let mut cache = with(1, &[]);
                cache.choose("a");
                let sent = cache.choose("a");
                assert_eq!(sent, Prepare(name("a")));
                let retry = cache.recover("a", &sent, true, code).unwrap();
                assert_eq!(retry, Retry { choice: Instead, reason: None, statements_lost: false });
                assert!(cache.is_unconfirmed("a"));
                // Another query of the text, such as one that is not persistent, has other values.
                cache.confirm("a", &Unnamed);
                assert!(cache.is_unconfirmed("a"));
                if succeeds {
                    cache.confirm("a", &retry.choice);
                    assert_eq!(cache.take_closes(), [name("a")]);
                    assert_eq!(cache.choose("a"), Unnamed);
                    assert_eq!(cache.choose("a"), Unnamed);
                    assert!(cache.take_closes().is_empty());
                    // Like every statement, it makes room for another one.
                    cache.choose("b");
                    assert_eq!(cache.choose("b"), Prepare(name("b")));
                    assert_eq!(cache.choose("a"), Unnamed);
                    assert_eq!(cache.choose("a"), Prepare(name("a")));
                } else {
                    assert_eq!(cache.choose("a"), Prepare(name("a")));
                    assert_eq!(cache.take_closes(), [name("a")]);
                }
            }
        }
    }
}
