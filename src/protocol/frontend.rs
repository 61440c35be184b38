//! Messages to the server: [Message Formats] marked (F).
//!
//! [Message Formats]: https://www.postgresql.org/docs/current/protocol-message-formats.html

use std::{fmt, ops::DerefMut};

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::{extended_query::Steps, frame::frame_size};
use crate::error::{Error, Result};

/// Protocol 3.0, which every server and every pooler supports.
pub(crate) const VERSION_3_0: u32 = 3 << 16;
/// Protocol 3.2 of Postgres 18, with cancel keys of up to 256 bytes. There is no 3.1.
pub(crate) const VERSION_3_2: u32 = 3 << 16 | 2;
/// The maximum length of a query's messages: `PQ_LARGE_MESSAGE_LIMIT` of Postgres (libpq.h). After
/// a longer one the server closes the connection.
const MAX_MESSAGE: usize = 0x3fff_fffe;
/// The maximum length of a StartupMessage: `MAX_STARTUP_PACKET_LENGTH` (pqcomm.h), and the length
/// itself.
const MAX_STARTUP: usize = 10_000 + 4;
/// The maximum length of a response during login: `PG_MAX_AUTH_TOKEN_LENGTH` (auth.h).
const MAX_AUTH: usize = 65_535;

/// The code of a CancelRequest, which it has instead of a version.
const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;

/// An SSLRequest. The server responds with one byte.
pub(crate) const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";

/// Encodes a StartupMessage with these parameters.
pub(crate) fn startup(version: u32, parameters: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    message(&mut out, None, MAX_STARTUP, |out| {
        out.extend_from_slice(&version.to_be_bytes());
        for (name, value) in parameters {
            text(out, name, "the name of a startup parameter")?;
            // The error contains the name, never the value.
            text(out, value, name)?;
        }
        out.push(0);
        Ok(())
    })?;
    Ok(out)
}

/// Encodes a CancelRequest, which is sent on a separate connection.
pub(crate) fn cancel_request(process_id: u32, secret: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    message(&mut out, None, MAX_STARTUP, |out| {
        out.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        out.extend_from_slice(&process_id.to_be_bytes());
        out.extend_from_slice(secret);
        Ok(())
    })?;
    Ok(out)
}

/// Encodes a PasswordMessage with a password or its MD5 hash.
pub(crate) fn password(password: &str) -> Result<Vec<u8>> {
    // 6 bytes for tag, length and NUL: a growing vector would leave copies in freed memory.
    let mut out = Vec::with_capacity(password.len() + 6);
    message(&mut out, Some(b'p'), MAX_AUTH, |out| text(out, password, "the password"))?;
    Ok(out)
}

/// Encodes a SASLInitialResponse.
pub(crate) fn sasl_initial_response(mechanism: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    message(&mut out, Some(b'p'), MAX_AUTH, |out| {
        text(out, mechanism, "the SASL mechanism")?;
        out.extend_from_slice(&length(data.len())?.to_be_bytes());
        out.extend_from_slice(data);
        Ok(())
    })?;
    Ok(out)
}

/// Encodes a SASLResponse.
pub(crate) fn sasl_response(data: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    message(&mut out, Some(b'p'), MAX_AUTH, |out| {
        out.extend_from_slice(data);
        Ok(())
    })?;
    Ok(out)
}

/// For a request that closes no statements.
pub(crate) const NO_CLOSES: &[&str] = &[];

/// A validated query with its parameters. [`request`](Self::request) encodes it when it is known
/// which statements the server has prepared.
///
/// The server infers the types of the parameters. Parameters and results are in text format.
#[derive(Clone)]
pub(crate) struct Query {
    sql: String,
    /// The end of Bind, after the names of portal and statement: parameter formats, values, result
    /// formats.
    values: Values,
}

/// Those of a few short parameters are not allocated.
type Values = SmallVec<[u8; 32]>;

/// The statement that a request executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statement<'a> {
    /// Parsed by this request. A pooler can send each request to another server.
    Unnamed,
    /// Parsed by this request, under this name.
    Prepare(&'a str),
    /// Parsed by an earlier request of this connection, which described it too.
    Prepared(&'a str),
    /// Parsed earlier, and to be described again: another client of a pooler has prepared it, or a
    /// pooler may have prepared it again.
    Existing(&'a str),
}

impl Query {
    /// Validates a query and encodes its parameters.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: a message exceeds the server's maximum length, there are more than 65,535
    /// parameters, or a text contains NUL.
    pub(crate) fn new(sql: impl Into<String>, parameters: &[Option<&str>]) -> Result<Self> {
        Self::with(sql.into(), parameters.iter().copied())
    }

    /// The same, of an iterator, which is run several times.
    pub(crate) fn with<'a>(
        sql: String,
        parameters: impl ExactSizeIterator<Item = Option<&'a str>> + Clone,
    ) -> Result<Self> {
        let count = u16::try_from(parameters.len()).map_err(|_| {
            Error::config(format!(
                "{} parameters are bound; the protocol allows at most 65,535 per query",
                parameters.len()
            ))
        })?;
        let lengths = parameters.clone().map(|value| 4 + value.map_or(0, str::len));
        let values = 2 + 2 + lengths.sum::<usize>() + 4;
        // Check before anything is copied.
        check_length(Some(b'P'), parse_length(&sql, ""), MAX_MESSAGE)?;
        check_length(Some(b'B'), bind_length("", "", values), MAX_MESSAGE)?;
        if sql.contains('\0') {
            return Err(nul("the SQL text"));
        }
        let mut out = Values::with_capacity(values);
        out.extend_from_slice(&0u16.to_be_bytes()); // all parameters are text
        out.extend_from_slice(&count.to_be_bytes());
        for (i, value) in parameters.enumerate() {
            match value {
                None => out.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(value) => {
                    // Postgres does not support NUL and would report an encoding error.
                    if value.contains('\0') {
                        return Err(nul(&format!("parameter ${}", i + 1)));
                    }
                    out.extend_from_slice(&length(value.len())?.to_be_bytes());
                    out.extend_from_slice(value.as_bytes());
                }
            }
        }
        out.extend_from_slice(&[0, 1, 0, 0]); // one format for all columns: text
        Ok(Self { sql, values: out })
    }

    /// Returns the SQL text, which identifies a prepared statement.
    pub(crate) fn sql(&self) -> &str {
        &self.sql
    }

    /// Returns whether its messages have room for the name of a statement. Otherwise only
    /// [`Statement::Unnamed`] can execute it.
    pub(crate) fn has_room_for_name(&self) -> bool {
        has_room(parse_length(&self.sql, "")) && has_room(bind_length("", "", self.values.len()))
    }

    /// Encodes the request: Close for each statement in `closes`, then Parse, Bind and Describe as
    /// `statement` requires, Execute, the question whether the server's process has the id
    /// `process`, and Sync. Uses the memory of `buffer`.
    ///
    /// The portal is unnamed. Execute has no row limit, which would cost a round trip per batch and
    /// prevent parallel plans.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: a name contains NUL, or there is [no room](Self::has_room_for_name) for
    /// it.
    pub(crate) fn request(
        &self,
        statement: Statement<'_>,
        closes: &[impl AsRef<str>],
        process: Option<u32>,
        buffer: &mut BytesMut,
    ) -> Result<(Bytes, Steps)> {
        // What an error has left.
        buffer.clear();
        let out = buffer;
        let (name, parses, describes) = match statement {
            Statement::Unnamed => ("", true, true),
            Statement::Prepare(name) => (name, true, true),
            Statement::Prepared(name) => (name, false, false),
            Statement::Existing(name) => (name, false, true),
        };
        let close_lengths = closes.iter().map(|name| 1 + close_length(name.as_ref()));
        let bind_length = 1 + bind_length("", name, self.values.len());
        let parse_length = if parses { 1 + parse_length(&self.sql, name) } else { 0 };
        let describe_length = if describes { DESCRIBE.len() } else { 0 };
        out.reserve(
            close_lengths.sum::<usize>()
                + parse_length
                + bind_length
                + describe_length
                + process.map_or(0, |_| MAX_QUESTION)
                + END_OF_QUERY,
        );
        for name in closes {
            message(out, Some(b'C'), MAX_MESSAGE, |out| {
                out.put_u8(b'S');
                text(out, name.as_ref(), STATEMENT_NAME)
            })?;
        }
        if parses {
            message(out, Some(b'P'), MAX_MESSAGE, |out| {
                text(out, name, STATEMENT_NAME)?;
                out.put_slice(self.sql.as_bytes());
                out.put_u8(0);
                out.put_u16(0); // no types given
                Ok(())
            })?;
        }
        message(out, Some(b'B'), MAX_MESSAGE, |out| {
            out.put_u8(0); // the unnamed portal
            text(out, name, STATEMENT_NAME)?;
            out.put_slice(&self.values);
            Ok(())
        })?;
        if describes {
            out.extend_from_slice(DESCRIBE);
        }
        out.extend_from_slice(EXECUTE);
        if let Some(id) = process {
            out.extend_from_slice(&process_question(id)?);
        }
        out.extend_from_slice(SYNC);
        let (closes, asks_process) = (closes.len(), process.is_some());
        Ok((out.split().freeze(), Steps { closes, parses, describes, asks_process }))
    }
}

/// Omits the parameters, which may be secret.
impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("sql", &self.sql).finish_non_exhaustive()
    }
}

/// Parse, Bind and Execute of a statement that returns a row if the server's process has this id.
fn process_question(id: u32) -> Result<Vec<u8>> {
    let sql = "select 1 where pg_catalog.pg_backend_pid()::pg_catalog.text \
               operator(pg_catalog.=) $1";
    let mut out = bind_portal("", sql, &[Some(&id.to_string())])?;
    out.truncate(out.len() - SYNC.len());
    out.extend_from_slice(EXECUTE);
    Ok(out)
}

const STATEMENT_NAME: &str = "the name of a statement";

/// Returns whether a name fits into a message that has this length without it.
fn has_room(length: usize) -> bool {
    /// Postgres truncates longer names (`NAMEDATALEN`).
    const MAX_NAME: usize = 63;
    length + MAX_NAME <= MAX_MESSAGE
}

/// Returns the length field of a Parse without types.
fn parse_length(sql: &str, name: &str) -> usize {
    4 + name.len() + 1 + sql.len() + 1 + 2
}

/// Returns the length field of a Bind whose values have this many bytes.
fn bind_length(portal: &str, name: &str, values: usize) -> usize {
    4 + portal.len() + 1 + name.len() + 1 + values
}

/// Returns the length field of a Close of a statement.
fn close_length(name: &str) -> usize {
    4 + 1 + name.len() + 1
}

/// Encodes the first half of a query in a transaction: Parse, Bind of a named portal, Sync. The
/// server plans the query and locks the relations.
pub(crate) fn bind_portal(portal: &str, sql: &str, parameters: &[Option<&str>]) -> Result<Vec<u8>> {
    let Query { sql, values } = Query::new(sql, parameters)?;
    let (parse, bind) = (parse_length(&sql, ""), bind_length(portal, "", values.len()));
    let mut out = Vec::with_capacity(1 + parse + 1 + bind + SYNC.len());
    message(&mut out, Some(b'P'), MAX_MESSAGE, |out| {
        out.push(0); // the unnamed statement
        text(out, &sql, "the SQL text")?;
        out.extend_from_slice(&0u16.to_be_bytes()); // no types given
        Ok(())
    })?;
    message(&mut out, Some(b'B'), MAX_MESSAGE, |out| {
        text(out, portal, "the portal")?;
        out.push(0); // the unnamed statement
        out.extend_from_slice(&values);
        Ok(())
    })?;
    out.extend_from_slice(SYNC);
    Ok(out)
}

/// Encodes the second half of a query in a transaction: Describe and Execute of the portal, Sync.
pub(crate) fn execute_portal(portal: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    message(&mut out, Some(b'D'), MAX_MESSAGE, |out| {
        out.push(b'P');
        text(out, portal, "the portal")
    })?;
    message(&mut out, Some(b'E'), MAX_MESSAGE, |out| {
        text(out, portal, "the portal")?;
        out.extend_from_slice(&0u32.to_be_bytes()); // every row
        Ok(())
    })?;
    out.extend_from_slice(SYNC);
    Ok(out)
}

/// Describe the unnamed portal.
const DESCRIBE: &[u8] = b"D\0\0\0\x06P\0";
/// Execute the unnamed portal, every row.
const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";
const SYNC: &[u8] = b"S\0\0\0\x04";

/// The size in bytes of the end of a [`Query`]'s request. A server that has not received all of it
/// has not started the query.
pub(crate) const END_OF_QUERY: usize = EXECUTE.len() + SYNC.len();

/// The maximum size in bytes of the question for the server's process, which precedes the Sync.
pub(crate) const MAX_QUESTION: usize = 192;

/// Encodes a Query of the simple protocol.
pub(crate) fn simple_query(sql: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let limit = MAX_MESSAGE;
    check_length(Some(b'Q'), 4 + sql.len() + 1, limit)?;
    message(&mut out, Some(b'Q'), limit, |out| text(out, sql, "the SQL text"))?;
    Ok(out)
}

/// An empty Query: a round trip to a backend, even through a pooler.
pub(crate) const EMPTY_QUERY: &[u8] = b"Q\0\0\0\x05\0";

/// The names and sizes of the messages in `bytes`, which holds complete messages.
pub(crate) fn messages_in(mut bytes: &[u8]) -> impl Iterator<Item = (&'static str, usize)> {
    std::iter::from_fn(move || {
        let tag = *bytes.first()?;
        // A message without a tag begins with its length, which is below 2^24.
        let (name, size) = if tag == 0 {
            let code = bytes.get(4..8)?.try_into().map(u32::from_be_bytes).ok()?;
            let name = if code == CANCEL_REQUEST { "CancelRequest" } else { "StartupMessage" };
            (name, bytes.len())
        } else {
            (name_of(tag), frame_size(*bytes.get(1..)?.first_chunk()?))
        };
        bytes = bytes.get(size..).unwrap_or_default();
        Some((name, size))
    })
}

fn name_of(tag: u8) -> &'static str {
    match tag {
        b'B' => "Bind",
        b'C' => "Close",
        b'D' => "Describe",
        b'E' => "Execute",
        b'P' => "Parse",
        // Also SASLInitialResponse and SASLResponse.
        b'p' => "PasswordMessage",
        b'Q' => "Query",
        b'S' => "Sync",
        b'X' => "Terminate",
        _ => "an unknown message",
    }
}

/// Terminate.
pub(crate) const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// Appends one message. Its length is set when its body has been written.
fn message<B: BufMut + DerefMut<Target = [u8]>>(
    out: &mut B,
    tag: Option<u8>,
    limit: usize,
    body: impl FnOnce(&mut B) -> Result<()>,
) -> Result<()> {
    if let Some(tag) = tag {
        out.put_u8(tag);
    }
    let start = out.len();
    out.put_slice(&[0; 4]);
    body(out)?;
    check_length(tag, out.len() - start, limit)?;
    let len = length(out.len() - start)?;
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&len.to_be_bytes());
    }
    Ok(())
}

/// Rejects a message for which the server would close the connection.
fn check_length(tag: Option<u8>, len: usize, limit: usize) -> Result<()> {
    if len <= limit {
        return Ok(());
    }
    let (what, advice) = match tag {
        None => (
            "the startup parameters have",
            "shorten options, application_name or the added parameters, or set them for the role",
        ),
        Some(b'p') => ("the password or its proof has", "use a shorter one"),
        Some(b'B') => ("the parameters of the query have", "bind less in one query"),
        Some(_) => ("the text of the query has", "bind values instead of writing them into it"),
    };
    Err(Error::config(format!(
        "{what} {len} bytes in one message, but Postgres accepts at most {limit}: {advice}"
    )))
}

fn text(out: &mut impl BufMut, text: &str, what: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(nul(what));
    }
    out.put_slice(text.as_bytes());
    out.put_u8(0);
    Ok(())
}

fn length(len: usize) -> Result<i32> {
    i32::try_from(len).map_err(|_| {
        Error::config(format!(
            "{len} bytes in one message; the protocol allows at most 2,147,483,647"
        ))
    })
}

fn nul(what: &str) -> Error {
    Error::config(format!(
        "{what} contains a NUL character, which Postgres does not support: remove it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(query: &Query, statement: Statement<'_>, closes: &[&str]) -> Result<(Bytes, Steps)> {
        query.request(statement, closes, None, &mut BytesMut::new())
    }

    fn unnamed(sql: &str, parameters: &[Option<&str>]) -> Result<Vec<u8>> {
        let query = Query::new(sql, parameters)?;
        encoded(&query, Statement::Unnamed, NO_CLOSES).map(|(request, _)| request.into())
    }

    /// Recorded from libpq 15: `user=role_md5 dbname=d client_encoding=UTF8`.
    #[test]
    fn startup_matches_libpq() {
        let parameters = [("user", "role_md5"), ("database", "d"), ("client_encoding", "UTF8")];
        assert_eq!(
            startup(VERSION_3_0, &parameters).unwrap(),
            b"\0\0\0\x37\0\x03\0\0user\0role_md5\0database\0d\0client_encoding\0UTF8\0\0"
        );
    }

    /// Recorded from libpq 15: `PQsendQueryParams(c, "select $1, $2", {"a", NULL})`.
    #[test]
    fn unnamed_request_matches_libpq() {
        assert_eq!(
            unnamed("select $1, $2", &[Some("a"), None]).unwrap(),
            b"P\0\0\0\x15\0select $1, $2\0\0\0\
              B\0\0\0\x17\0\0\0\0\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\x01\0\0\
              D\0\0\0\x06P\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04"
                .as_slice()
        );
    }

    /// Recorded from libpq (`PQsendPrepare`, `PQsendQueryPrepared`). Close follows Message Formats
    /// in the manual.
    #[test]
    fn named_request_matches_libpq() {
        let query = Query::new("select $1, $2", &[Some("a"), None]).unwrap();
        let parse = b"P\0\0\0\x19fw_1\0select $1, $2\0\0\0".as_slice();
        let bind = b"B\0\0\0\x1b\0fw_1\0\0\0\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\x01\0\0".as_slice();
        let describe = b"D\0\0\0\x06P\0".as_slice();
        let end = b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04".as_slice();
        let close = b"C\0\0\0\x07Sx\0C\0\0\0\x09Sx_2\0".as_slice();
        assert_eq!(end.len(), END_OF_QUERY);
        for (statement, messages, parses, describes) in [
            (Statement::Prepare("fw_1"), [parse, bind, describe, end], true, true),
            (Statement::Prepared("fw_1"), [b"", bind, b"", end], false, false),
            (Statement::Existing("fw_1"), [b"", bind, describe, end], false, true),
        ] {
            let (request, steps) = encoded(&query, statement, NO_CLOSES).unwrap();
            assert_eq!(request, messages.concat(), "{statement:?}");
            assert_eq!(steps, Steps { parses, describes, ..Steps::WHOLE });
            let (request, steps) = encoded(&query, statement, &["x", "x_2"]).unwrap();
            assert_eq!(request, [close, &messages.concat()].concat(), "{statement:?}");
            assert_eq!(steps, Steps { closes: 2, parses, describes, ..Steps::WHOLE });
        }
        let (request, steps) = encoded(&query, Statement::Unnamed, &["x", "x_2"]).unwrap();
        let whole = unnamed("select $1, $2", &[Some("a"), None]).unwrap();
        assert_eq!(request, [close, &whole].concat());
        assert_eq!(steps, Steps { closes: 2, ..Steps::WHOLE });
    }

    #[test]
    fn question_for_the_process_comes_after_the_query() {
        let query = Query::new("select $1, $2", &[Some("a"), None]).unwrap();
        let mut buffer = BytesMut::new();
        for id in [7, u32::MAX] {
            let asking = query.request(Statement::Prepare("fw_1"), &["x"], Some(id), &mut buffer);
            let (request, steps) = asking.unwrap();
            let (prepare, _) = encoded(&query, Statement::Prepare("fw_1"), &["x"]).unwrap();
            let sql = "select 1 where pg_catalog.pg_backend_pid()::pg_catalog.text \
                       operator(pg_catalog.=) $1";
            let question = unnamed(sql, &[Some(&id.to_string())]).unwrap();
            let described = [DESCRIBE, EXECUTE, SYNC].concat();
            let question = [question.strip_suffix(&*described).unwrap(), EXECUTE].concat();
            assert!(question.len() <= MAX_QUESTION);
            let before = prepare.strip_suffix(SYNC).unwrap();
            assert_eq!(request, [before, &*question, SYNC].concat());
            assert_eq!(steps, Steps { closes: 1, asks_process: true, ..Steps::WHOLE });
        }
    }

    #[test]
    fn request_rejects_names_that_contain_nul_or_do_not_fit() {
        let query = Query::new("select 1", &[]).unwrap();
        assert!(query.has_room_for_name() && query.sql() == "select 1");
        assert!(encoded(&query, Statement::Prepared("a\0b"), NO_CLOSES).is_err());
        assert!(encoded(&query, Statement::Unnamed, &["a\0b"]).is_err());
        assert!(has_room(MAX_MESSAGE - 63) && !has_room(MAX_MESSAGE - 62));
    }

    #[test]
    fn query_debug_omits_parameters() {
        let query = Query::new("select $1", &[Some("planted")]).unwrap();
        let shown = format!("{query:?}");
        assert!(shown.contains("select $1") && !shown.contains("planted"), "{shown}");
    }

    /// Follows Message Formats in the manual: like a whole query, but with a named portal.
    #[test]
    fn portal_is_bound_first_and_executed_later() {
        assert_eq!(
            bind_portal("part", "select $1", &[Some("a")]).unwrap(),
            b"P\0\0\0\x11\0select $1\0\0\0\
              B\0\0\0\x17part\0\0\0\0\0\x01\0\0\0\x01a\0\x01\0\0\
              S\0\0\0\x04"
                .as_slice()
        );
        assert_eq!(
            execute_portal("part").unwrap(),
            b"D\0\0\0\x0aPpart\0\
              E\0\0\0\x0dpart\0\0\0\0\0\
              S\0\0\0\x04"
                .as_slice()
        );
    }

    /// Recorded from psql 15, including the nonces. The version is from the manual of Postgres 18.
    #[test]
    fn login_and_cancel_messages_match_libpq() {
        assert_eq!(startup(VERSION_3_2, &[]).unwrap(), b"\0\0\0\x09\0\x03\0\x02\0");
        assert_eq!(password("pencil").unwrap(), b"p\0\0\0\x0bpencil\0");
        let client_first = b"n,,n=,r=P1OgQh6FyFQOyq7wHftcZjZW";
        assert_eq!(
            sasl_initial_response("SCRAM-SHA-256", client_first).unwrap(),
            b"p\0\0\0\x36SCRAM-SHA-256\0\0\0\0\x20n,,n=,r=P1OgQh6FyFQOyq7wHftcZjZW"
        );
        assert_eq!(sasl_response(b"c=biws,r=P1Og").unwrap(), b"p\0\0\0\x11c=biws,r=P1Og");
        assert_eq!(simple_query("select 1").unwrap(), b"Q\0\0\0\x0dselect 1\0");
        assert_eq!(
            cancel_request(2560, b"key!").unwrap(),
            b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\x0a\0key!"
        );
    }

    /// Measured with messages of these lengths at Postgres 15: one byte more closes the connection.
    #[test]
    fn messages_beyond_the_servers_limits_are_rejected() {
        let error = |r: Result<Vec<u8>>| r.unwrap_err().to_string();
        let fits = |r: Result<Vec<u8>>| r.is_ok();
        // Version, "options", the NULs.
        let options = |len: usize| startup(VERSION_3_0, &[("options", &"x".repeat(len))]);
        assert!(fits(options(MAX_STARTUP - 4 - 4 - 8 - 1 - 1)));
        assert!(error(options(MAX_STARTUP - 4 - 4 - 8 - 1)).contains("startup parameters"));
        assert!(fits(password(&"x".repeat(MAX_AUTH - 5))));
        assert!(error(password(&"x".repeat(MAX_AUTH - 4))).contains("password"));
        for (len, limit, ok) in [(9, 9, true), (10, 9, false)] {
            assert_eq!(check_length(Some(b'P'), len, limit).is_ok(), ok);
        }
    }

    #[test]
    fn values_that_the_protocol_does_not_support_are_rejected() {
        let error = |r: Result<Vec<u8>>| r.unwrap_err().to_string();
        assert!(error(unnamed("select '\0'", &[])).contains("the SQL text"));
        assert!(error(unnamed("$1 $2", &[None, Some("a\0b")])).contains("parameter $2"));
        assert!(error(unnamed("", &vec![None; 65_536])).contains("65536 parameters"));
        let secret = error(password("se\0cret"));
        assert!(secret.contains("the password") && !secret.contains("cret "), "{secret}");
    }
}
