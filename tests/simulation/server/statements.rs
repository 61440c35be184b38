//! The prepared statements of a session in the model, and the answers to requests that use them.

use super::*;

/// The error of a statement that exists already.
const EXISTS: &str = "42P05";

/// The error of a statement that does not exist.
const MISSING: &str = "26000";

/// The error of a server that supports no named statements, and of a result that has changed.
const UNSUPPORTED: &str = "0A000";

/// Errors of a statement whose relations or functions have changed since it was parsed.
const CHANGED_RESULT: [&str; 3] = [UNSUPPORTED, NO_FUNCTION, "XX000"];

/// The error of a function that does not exist.
const NO_FUNCTION: &str = "42883";

/// The error of a value that does not fit the type that its parameter had.
const MISFIT: &str = "22P02";

/// The prepared statements of a session, by name.
#[derive(Default)]
pub(super) struct Statements {
    by_name: BTreeMap<String, Statement>,
    /// The names of statements that the session has lost.
    lost: BTreeSet<String>,
    /// Whether the process of its key executes the statements, once it has said so.
    is_process: Option<bool>,
}

struct Statement {
    sql: String,
    /// Whether this client has prepared it, and not another one of a pooler.
    is_own: bool,
    /// The error that executing it returns until it is parsed again.
    fault: Option<&'static str>,
}

/// The messages of a request that executes a query.
#[derive(Debug, Default)]
pub(super) struct Execution {
    pub(super) closes: Vec<String>,
    /// A name and a text.
    pub(super) parse: Option<(String, String)>,
    /// The statement that is bound.
    pub(super) statement: String,
    pub(super) parameter: Option<String>,
    pub(super) describes: bool,
    /// Whether it asks for the process of the server.
    pub(super) asks_process: bool,
}

/// The beginning of the answer to a query.
#[derive(Default)]
pub(super) struct Begin {
    /// The messages before its rows.
    pub(super) messages: Vec<Vec<u8>>,
    /// The number of messages up to ParseComplete, and up to BindComplete.
    pub(super) parsed: usize,
    pub(super) bound: usize,
    /// Whether it executes a named statement.
    pub(super) is_named: bool,
    /// The error that ends it before it is bound, which is no error of the query.
    pub(super) refusal: Option<&'static str>,
    /// The answer to the question for the process of the server.
    pub(super) process: Vec<Vec<u8>>,
}

impl Execution {
    /// Parses a Bind.
    pub(super) fn bind(&mut self, body: &[u8]) {
        let mut texts = body.splitn(3, |byte| *byte == 0);
        assert_eq!(texts.next(), Some(&b""[..]), "a portal has a name");
        self.statement = String::from_utf8(texts.next().unwrap().to_vec()).unwrap();
        let rest = texts.next().unwrap();
        assert_eq!(rest[..2], [0, 0], "there are formats");
        assert!(rest[2] == 0 && rest[3] <= 1, "there are many parameters");
        if rest[3] == 1 {
            let length = u32::from_be_bytes(rest[4..8].try_into().unwrap()) as usize;
            self.parameter = Some(String::from_utf8(rest[8..8 + length].to_vec()).unwrap());
        }
    }

    /// Returns the query that it executes.
    pub(super) fn query(&self) -> usize {
        match &self.parameter {
            Some(parameter) => parameter.parse().unwrap(),
            None => query_named(&self.parse.as_ref().unwrap().1).unwrap(),
        }
    }
}

impl Statements {
    /// The server connection of a pooler, on which other clients have prepared statements.
    pub(super) fn of_pooler(world: &World) -> Self {
        let mut statements = Self::default();
        if world.one_in(4) {
            for (name, sql) in &world.state().statements {
                statements.add(name, sql, false);
            }
        }
        statements
    }

    fn add(&mut self, name: &str, sql: &str, is_own: bool) {
        let statement = Statement { sql: sql.to_owned(), is_own, fault: None };
        self.lost.remove(name);
        self.by_name.insert(name.to_owned(), statement);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Applies what other clients and sessions do between two requests.
    fn disturb(&mut self, world: &World) {
        let what = world.below(200);
        let number = world.below(self.by_name.len().max(1) as u64) as usize;
        let Some((name, statement)) = self.by_name.iter_mut().nth(number) else { return };
        match what {
            0..2 => {
                self.lost.extend(mem::take(&mut self.by_name).into_keys());
                world.count("all statements were discarded");
            }
            2..4 => {
                let name = name.clone();
                self.by_name.remove(&name);
                self.lost.insert(name);
                world.count("a statement was lost");
            }
            4..14 => {
                statement.fault = Some(CHANGED_RESULT[world.below(3) as usize]);
                world.count("a statement was changed");
            }
            14..20 => {
                statement.fault = Some(MISFIT);
                world.count("the type of a parameter was changed");
            }
            _ => {}
        }
    }

    /// Executes a request up to its rows.
    pub(super) fn begin(&mut self, world: &World, request: &Execution) -> Begin {
        self.disturb(world);
        let [parse_complete, bind_complete, columns] = begin_json_parts();
        let mut begin = Begin { is_named: !request.statement.is_empty(), ..Begin::default() };
        for name in &request.closes {
            self.by_name.remove(name);
            self.lost.remove(name);
            begin.messages.push(message(b'3', b""));
            world.count("a statement was closed");
        }
        if let Some((name, sql)) = &request.parse {
            if !name.is_empty() {
                world.state().statements.insert(name.clone(), sql.clone());
                let is_new = !self.by_name.contains_key(name);
                match world.below(30) {
                    0 if is_new => self.add(name, sql, false),
                    1 => {
                        world.count("named statements are not supported");
                        begin.refusal = Some(UNSUPPORTED);
                        return begin;
                    }
                    _ => {}
                }
                if self.by_name.contains_key(name) {
                    world.count("a statement existed already");
                    begin.refusal = Some(EXISTS);
                    return begin;
                }
                self.add(name, sql, true);
                world.count("a statement was prepared");
            }
            begin.messages.push(parse_complete);
            begin.parsed = begin.messages.len();
        }
        let own = self.by_name.values().filter(|statement| statement.is_own).count();
        let capacity = world.state().statement_capacity;
        assert!(own <= capacity, "{own} statements are prepared, of at most {capacity}");
        let sql = match (&request.parse, request.statement.as_str()) {
            (Some((name, sql)), statement) if statement == name => sql.clone(),
            (_, name) => match self.by_name.get(name) {
                Some(Statement { fault: Some(code), .. }) => {
                    begin.refusal = Some(code);
                    return begin;
                }
                Some(Statement { sql, .. }) => sql.clone(),
                None => {
                    assert!(self.lost.contains(name), "{name} was not prepared");
                    world.count("a statement was missing");
                    begin.refusal = Some(MISSING);
                    return begin;
                }
            },
        };
        if begin.is_named && begin.parsed > 0 && world.one_in(60) {
            self.by_name.remove(&request.statement);
            self.lost.insert(request.statement.clone());
            world.count("a statement was prepared on another server");
            begin.refusal = Some(MISSING);
            return begin;
        }
        if begin.is_named && begin.parsed == 0 && !request.describes {
            assert_eq!(self.is_process, Some(true), "the result of a pooler is not described");
            world.count("a prepared statement was executed");
        }
        world.assert_relation(request.query(), &sql);
        begin.messages.push(bind_complete);
        begin.bound = begin.messages.len();
        if request.describes {
            begin.messages.push(columns);
        }
        if request.asks_process {
            begin.process = match world.one_in(10) {
                true => {
                    world.count("the question for the process failed");
                    vec![error("ERROR", NO_FUNCTION, "there is no such function")]
                }
                false => {
                    let is_process = self.is_process.get_or_insert_with(|| !world.one_in(4));
                    process_answer(*is_process)
                }
            };
        }
        begin
    }
}

/// ParseComplete, BindComplete and RowDescription.
fn begin_json_parts() -> [Vec<u8>; 3] {
    let mut parse_complete = begin_json();
    let mut bind_complete = parse_complete.split_off(5);
    let columns = bind_complete.split_off(5);
    [parse_complete, bind_complete, columns]
}
