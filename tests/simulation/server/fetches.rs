//! The state of fetches that share a client, and of the sessions that run them.

use super::*;

/// The kind of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    All,
    /// All rows with an even number, by a Rust predicate.
    Even,
    /// All rows, as a type that they are not.
    Undecodable,
    Optional,
    One,
    /// The first row with an even number.
    FirstEven,
    Count,
    Exists,
    Explain,
    /// `execute()`, which has the client for itself.
    Stream,
}

/// A fetch, or a stream between fetches.
#[derive(Debug)]
pub struct Fetch {
    pub ask: Ask,
    /// Each session that begins it ends before its rows.
    pub ends_sessions: bool,
    /// A reader must look at each row.
    pub needs_reader: bool,
    /// The deadline, after the first poll.
    pub timeout: Option<Duration>,
    pub first_row: Option<Duration>,
    /// The time and the number of its first poll.
    pub started: Option<(Instant, u64)>,
    /// A stream or a ping was in progress then.
    pub finds_stream: bool,
    /// Its future has returned, or was dropped.
    pub has_ended: bool,
    /// It was dropped before its end, or a token has cancelled it.
    pub is_stopped: bool,
    pub is_cancelled: bool,
    pub unpolled_since: Option<Instant>,
    pub unpolled_before: Duration,
    pub attempts: Vec<Attempt>,
}

/// A run of a fetch by a session.
#[derive(Debug)]
pub struct Attempt {
    pid: usize,
    pub progress: Progress,
    /// Whether it was answered completely, not only rejected because of its statement.
    pub is_answered: bool,
    /// Its session ended before that, and the client had not closed the connection.
    pub is_lost: bool,
    /// No other fetch shared the connection, at some moment since the rows could begin.
    pub was_alone: bool,
    /// It was stopped by a cancel request that a proxy had delayed.
    pub was_hit_late: bool,
}

/// The shared state of the fetches of one client.
#[derive(Default)]
pub struct Sharing {
    pub fetches: BTreeMap<usize, Fetch>,
    pub is_active: bool,
    pub read_timeout: Option<Duration>,
    /// The maximum time of an attempt to connect.
    pub connect_timeout: Duration,
    pub max_attempts: u32,
    /// The number of streams and pings that are in progress or wait.
    pub exclusive: u64,
    /// When sessions ended that the client had not closed.
    losses: Vec<Instant>,
    /// When a connection was last lost before or after its login.
    pub login_lost_at: Option<Instant>,
    /// The number of fetches that were started.
    started: u64,
    /// Each session's fetches, in the order in which it began them.
    begun: BTreeMap<usize, Vec<usize>>,
}

impl Fetch {
    pub fn new(ask: Ask) -> Self {
        Self {
            ask,
            ends_sessions: false,
            needs_reader: false,
            timeout: None,
            first_row: None,
            started: None,
            finds_stream: false,
            has_ended: false,
            is_stopped: false,
            is_cancelled: false,
            unpolled_since: None,
            unpolled_before: Duration::ZERO,
            attempts: Vec::new(),
        }
    }

    pub fn age(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |(at, _)| at.elapsed())
    }

    /// Returns the time since the first poll during which it was not polled.
    pub fn unpolled(&self) -> Duration {
        let now = self.unpolled_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.unpolled_before + now
    }

    /// The client may cancel it, or discard its answer.
    fn may_be_unwanted(&self, read_timeout: Option<Duration>) -> bool {
        let is_over = |limit: Option<Duration>| limit.is_some_and(|l| self.age() + SLACK >= l);
        self.is_stopped
            || self.is_cancelled
            || self.needs_reader
            || matches!(self.ask, Ask::Undecodable | Ask::FirstEven)
            || is_over(self.timeout)
            || is_over(self.first_row)
            || is_over(read_timeout)
            || self.unpolled() + SLACK >= STALL
    }

    pub fn is_answered(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.is_answered)
    }
}

/// The maximum time that a caller may leave rows unread while others wait.
const STALL: Duration = ms(2000);

impl Sharing {
    /// Returns whether another fetch waits for its answer on the connection of this one. A fetch
    /// that is not polled may have its answer.
    fn is_shared(&self, id: usize) -> bool {
        self.fetches.iter().any(|(other, fetch)| {
            *other != id
                && fetch.ask != Ask::Stream
                && fetch.started.is_some()
                && !fetch.has_ended
                && fetch.unpolled_since.is_none()
                && !fetch.is_answered()
                && !fetch.may_be_unwanted(self.read_timeout)
        })
    }

    /// Returns the number of sessions that the client has lost since then.
    pub fn losses_since(&self, since: Instant) -> u32 {
        self.losses.iter().filter(|at| **at >= since).count() as u32
    }

    /// Returns whether no earlier fetch of the session may have been unwanted.
    fn is_plain(&self, pid: usize, id: usize) -> bool {
        let begun = self.begun.get(&pid).into_iter().flatten();
        let mut before = begun.take_while(|other| **other != id);
        before.all(|other| !self.fetches[other].may_be_unwanted(self.read_timeout))
    }
}

impl World {
    pub fn sharing<T>(&self, look: impl FnOnce(&mut Sharing) -> T) -> T {
        look(&mut self.state().sharing)
    }

    pub fn fetch<T>(&self, id: usize, look: impl FnOnce(&mut Fetch) -> T) -> T {
        self.sharing(|sharing| look(sharing.fetches.get_mut(&id).unwrap()))
    }

    /// A fetch is polled, perhaps for the first time.
    pub fn start_fetch(&self, id: usize) {
        let is_first = self.sharing(|sharing| {
            let fetch = sharing.fetches.get_mut(&id).unwrap();
            let is_first = fetch.started.is_none();
            if is_first {
                sharing.started += 1;
                fetch.started = Some((Instant::now(), sharing.started));
                fetch.finds_stream = sharing.exclusive > 0;
            }
            is_first
        });
        if is_first {
            self.note(|| format!("fetch {id} starts"));
        }
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.state().is_healed = true;
    }

    /// Returns the number of a fault, below `n`; `u64::MAX` after the end of all faults.
    pub(super) fn fault(&self, n: u64) -> u64 {
        let mut state = self.state();
        let number = state.random.below(n);
        if state.is_healed { u64::MAX } else { number }
    }

    /// A session begins a fetch. Returns the number of the attempt.
    pub(super) fn attempt(&self, pid: usize, id: usize) -> Option<usize> {
        let mut state = self.state();
        let sharing = &mut state.sharing;
        let fetch = sharing.fetches.get(&id)?;
        let earlier = fetch.attempts.iter();
        let plain: Vec<_> = earlier.filter(|attempt| sharing.is_plain(attempt.pid, id)).collect();
        let losses = plain.iter().filter(|attempt| attempt.is_lost).count();
        let is_allowed = losses < sharing.max_attempts as usize;
        assert!(is_allowed, "fetch {id} is run again after {losses} losses");
        for Attempt { is_lost, progress, .. } in plain {
            assert!(!(*is_lost && progress.sent > 0), "fetch {id} is run again after its rows");
            let has_failed = progress.fate == Fate::Error && !progress.may_repeat;
            assert!(!has_failed, "fetch {id} is run again after its error");
        }
        sharing.begun.entry(pid).or_default().push(id);
        let was_alone = sharing.fetches[&id].ask == Ask::Stream;
        let attempts = &mut sharing.fetches.get_mut(&id)?.attempts;
        attempts.push(Attempt {
            pid,
            progress: Progress::default(),
            is_answered: false,
            is_lost: false,
            was_alone,
            was_hit_late: false,
        });
        Some(attempts.len() - 1)
    }

    /// Updates an attempt before more of its answer is sent.
    pub(super) fn update(&self, target: Target, look: impl FnOnce(&mut Attempt)) {
        let Some(number) = target.part else { return };
        self.sharing(|sharing| {
            if let Some(fetch) = sharing.fetches.get_mut(&target.id) {
                look(&mut fetch.attempts[number]);
            }
        });
    }

    /// The rows of a fetch can begin, or its session ends.
    pub(super) fn look_for_others(&self, target: Target) {
        let is_alone = self.sharing(|sharing| !sharing.is_shared(target.id));
        self.update(target, |attempt| attempt.was_alone |= is_alone);
    }

    /// A session has ended that the client had not closed.
    pub(super) fn lost(&self, pid: usize) {
        self.sharing(|sharing| sharing.losses.push(Instant::now()));
        self.note(|| format!("session {pid} is lost"));
    }

    /// A cancel request stops a fetch, which its caller must have stopped.
    pub(super) fn may_be_stopped(&self, id: usize) -> bool {
        self.sharing(|sharing| sharing.fetches[&id].may_be_unwanted(sharing.read_timeout))
    }

    /// Checks that each session began the fetches in their order, except repeated ones.
    pub fn assert_order(&self) {
        self.sharing(|sharing| {
            for (pid, begun) in &sharing.begun {
                let fetches = begun.iter().map(|id| (id, &sharing.fetches[id]));
                let once = fetches.filter(|(_, fetch)| fetch.attempts.len() == 1);
                let numbers: Vec<_> =
                    once.map(|(id, fetch)| (fetch.started.unwrap().1, *id)).collect();
                assert!(numbers.is_sorted(), "not first come, first served, by {pid}: {numbers:?}");
            }
        });
    }

    /// Returns the reason for this error of a fetch; `None` if there is none.
    pub fn explain(&self, id: usize, error: &Error) -> Option<&'static str> {
        let trouble_until = self.state().trouble_until;
        let size = self.query(id).largest_row();
        let rows = self.query(id).rows;
        self.sharing(|sharing| {
            let fetch = &sharing.fetches[&id];
            let (since, _) = fetch.started?;
            let is_after = |limit: Option<Duration>, after: Duration| {
                limit == Some(after) && since.elapsed() + SLACK >= after
            };
            let any = |test: &dyn Fn(&Attempt) -> bool| fetch.attempts.iter().any(test);
            let fated = |fate| any(&|attempt: &Attempt| attempt.progress.fate == fate);
            // A loss before the rows is no reason, unless there were too many, or it had the
            // connection for itself.
            let lost = |fate| {
                // The client may notice a loss only when a fetch that is not polled is continued.
                let others = sharing.fetches.values().filter(|other| !other.unpolled().is_zero());
                let earlier = others.filter(|other| !other.has_ended).filter_map(|f| f.started);
                let since = earlier.map(|(at, _)| at).fold(since, Instant::min);
                let losses = sharing.losses_since(since);
                let is_alone = losses > 0 && !sharing.is_shared(id);
                losses >= sharing.max_attempts
                    || is_alone
                    || any(&|attempt: &Attempt| {
                        let is_final = attempt.progress.sent > 0
                            || attempt.was_alone
                            || fetch.needs_reader
                            || fetch.ask == Ask::Stream;
                        attempt.is_lost && attempt.progress.fate == fate && is_final
                    })
            };
            let is_over = [fetch.timeout, fetch.first_row].into_iter().flatten();
            let is_over = is_over.min().is_some_and(|limit| since.elapsed() + SLACK >= limit);
            let login_lost = sharing.login_lost_at >= Some(since);
            // It may have waited for an attempt that had begun before.
            let trouble = trouble_until.is_some_and(|at| at + sharing.connect_timeout >= since);
            match error {
                Error::Server(e) => match e.code().code() {
                    DIVISION if fated(Fate::Error) => Some("an error of the server"),
                    SHUTDOWN if lost(Fate::Fatal) => Some("the session was ended"),
                    IDLE if lost(Fate::Fatal) || login_lost => Some("the session was idle"),
                    TOO_MANY if trouble => Some("refused by the server"),
                    CANCELED if any(&|attempt| attempt.was_hit_late) => {
                        Some("hit by a late cancel request")
                    }
                    _ => None,
                },
                Error::ConnectionClosed { .. } if lost(Fate::Cut) => Some("the session was lost"),
                Error::ConnectionClosed { .. } if login_lost => Some("a new session was lost"),
                Error::Connection { .. } if trouble => Some("could not connect"),
                // Its deadline passed while it, another fetch or the driver connected.
                Error::Connection { .. } if is_over => Some("timed out while connecting"),
                Error::Timeout { phase, after } => match phase {
                    TimeoutPhase::Query if is_after(fetch.timeout, *after) => Some("timed out"),
                    TimeoutPhase::FirstRow if is_after(fetch.first_row, *after) => {
                        Some("the first row timed out")
                    }
                    TimeoutPhase::Read if is_after(sharing.read_timeout, *after) => {
                        Some("read timed out")
                    }
                    TimeoutPhase::Consumer if fetch.unpolled() + SLACK >= STALL => {
                        Some("rows were not read")
                    }
                    TimeoutPhase::Connect if trouble => Some("connecting timed out"),
                    TimeoutPhase::Connect if fetch.unpolled() + SLACK >= *after => {
                        Some("connecting was not polled")
                    }
                    _ => None,
                },
                Error::Cancelled if fetch.is_cancelled => Some("cancelled by a token"),
                Error::ConnectionBusy if fetch.finds_stream => Some("a stream was active"),
                e if e.is_row_error() => {
                    (fetch.ask == Ask::Undecodable && rows > 0).then_some("a row did not decode")
                }
                Error::InvalidState { .. } if fetch.ask == Ask::One && rows == 0 => Some("no row"),
                Error::MemoryLimitExceeded { limit, .. } if fetch.needs_reader && size > *limit => {
                    Some("a row beyond memory")
                }
                _ => None,
            }
        })
    }
}
