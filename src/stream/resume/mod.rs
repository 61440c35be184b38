//! Resuming a query after its last row, on a new connection.

mod decimal;
mod key;
mod policy;

use std::{borrow::Cow, cmp::Ordering, mem};

use bytes::Bytes;

pub(super) use self::policy::is_transient;
use self::{
    decimal::compare,
    key::{KeyKind, find, text},
};
use super::plan::{encode, unnamed};
use crate::{
    error::{Error, OneLine, Result},
    protocol::rows::{self, Run},
    sql::{Field, Select},
};

/// The state of a query that can be resumed.
pub(super) struct ResumeState {
    select: Select,
    /// The key that orders the rows.
    key: Field,
    /// The key of the last row, as JSON.
    last: Option<String>,
    rows: u64,
    /// Whether rows without the key, which the current request omits, still have to be requested.
    check_missing_key: bool,
    /// The current request checks for rows that are omitted: each row of its answer is an error.
    is_checking: bool,
    /// After it, the rows after the last one have to be requested.
    rest_follows: bool,
    /// The part of the current run that was checked.
    checked: Run,
    /// The number of resumptions since the last row.
    pub(super) attempts_without_progress: u32,
}

impl ResumeState {
    /// Starts after the position of the query, if it has one.
    pub(super) fn new(select: &Select, key: &Field) -> Self {
        let last = select.after.as_ref().map(|after| after.last.clone());
        Self {
            select: select.clone(),
            key: key.clone(),
            check_missing_key: last.is_some(),
            last,
            is_checking: false,
            rest_follows: false,
            rows: 0,
            checked: Run::default(),
            attempts_without_progress: 0,
        }
    }

    /// Checks the keys of a run of rows, each once. Truncates the run before a row with an invalid
    /// key.
    pub(super) fn record(&mut self, buffer: &[u8], run: &mut Run) -> Result<()> {
        while self.checked.rows < run.rows {
            let Some((value, next)) = rows::value_at(buffer, self.checked.frame_bytes) else {
                break;
            };
            let bytes = value.as_ref().map_or(0, |range| range.len());
            let document = value.and_then(|range| buffer.get(range)).unwrap_or(b"null");
            match self.next_key(document) {
                Ok(key) => self.last = Some(key),
                Err(e) => {
                    *run = self.checked;
                    return Err(e);
                }
            }
            self.checked.rows += 1;
            self.checked.frame_bytes = next;
            self.checked.value_bytes += bytes;
            self.rows += 1;
            self.attempts_without_progress = 0;
        }
        Ok(())
    }

    /// Starts a new run, after the current one was enqueued.
    pub(super) fn next_run(&mut self) {
        self.checked = Run::default();
    }

    /// Returns the key of the next row.
    fn next_key(&self, document: &[u8]) -> Result<String> {
        let wrong = |what: String| {
            Error::config(format!(
                "resume_by({:?}): row {} {what}; keys must be unique numbers or strings",
                self.key.keys().unwrap_or_default().join("."),
                self.rows + 1
            ))
        };
        let key = match find(self.key.keys()?, document) {
            Ok(Some(key)) => key,
            Ok(None) => return Err(wrong("does not have this field".into())),
            Err(e) => return Err(wrong(format!("is not JSON ({e})"))),
        };
        let shown = OneLine::name(key);
        let kind = KeyKind::of(key).ok_or_else(|| wrong(format!("has the key {shown}")))?;
        if self.is_checking {
            return Err(wrong(format!("has the key {shown} of another row")));
        }
        let Some(last) = &self.last else { return Ok(key.to_owned()) };
        let after = || wrong(format!("has the key {shown} after {}", OneLine::name(last)));
        if KeyKind::of(last) != Some(kind) {
            return Err(after());
        }
        // Only the server knows the order of strings.
        let increases = match kind {
            KeyKind::Number => compare(last, key) == Ordering::Less,
            // In `json`, the same string can have several representations.
            KeyKind::String => text(last) != text(key),
        };
        if increases { Ok(key.to_owned()) } else { Err(after()) }
    }

    /// Returns the first request on a new connection: for the rows after the last one, or to check
    /// for another row with its key, which would be omitted.
    pub(super) fn next_request(&mut self) -> Result<Bytes> {
        (self.is_checking, self.rest_follows) = (false, false);
        match &self.last {
            Some(last) if self.rows > 0 => {
                // Beyond the limit, no row is omitted.
                if self.select.limit.is_some_and(|limit| self.rows >= limit) {
                    return self.rest_request();
                }
                (self.is_checking, self.rest_follows) = (true, true);
                request(&self.select.repeated_key(&self.key, last))
            }
            last => {
                self.check_missing_key = last.is_some();
                request(&self.select)
            }
        }
    }

    /// Returns the request that follows a complete answer, if there is one. The last one checks for
    /// rows without the key, which sort last and would otherwise be missed. Such a row is an error
    /// with and without a resumption, as is one whose key is repeated.
    pub(super) fn following_request(&mut self) -> Result<Option<Bytes>> {
        if mem::take(&mut self.rest_follows) {
            return self.rest_request().map(Some);
        }
        if !mem::take(&mut self.check_missing_key) {
            return Ok(None);
        }
        self.is_checking = true;
        request(&self.select.without_key(&self.key, self.rows)).map(Some)
    }

    fn rest_request(&mut self) -> Result<Bytes> {
        (self.is_checking, self.check_missing_key) = (false, true);
        let last = self.last.as_deref().unwrap_or_default();
        request(&self.select.after(&self.key, last, self.rows))
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }
}

/// Returns the key of a row as text: a number with all of its digits, or the text of a string.
pub(super) fn key_text<'d>(key: &Field, document: &'d [u8]) -> Option<Cow<'d, str>> {
    let key = find(key.keys().ok()?, document).ok()??;
    KeyKind::of(key).map(|kind| match kind {
        KeyKind::Number => Cow::Borrowed(key),
        KeyKind::String => text(key),
    })
}

fn request(select: &Select) -> Result<Bytes> {
    unnamed(&encode(select.rows()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{After, field};

    /// The rows that OFFSET skips have not been received.
    #[test]
    fn request_before_the_first_row_keeps_the_position_and_the_offset() {
        let after = Some(After { key: field("id"), last: "5".into() });
        let select = Select { after, offset: Some(2), limit: Some(9), ..Select::new("v") };
        let mut state = ResumeState::new(&select, &field("id"));
        let request = |state: &mut ResumeState| {
            String::from_utf8_lossy(&state.next_request().unwrap()).into_owned()
        };
        assert!(request(&mut state).contains("::jsonb) > $1::jsonb LIMIT 9 OFFSET 2"));
        (state.last, state.rows) = (Some("7".into()), 1);
        let repeated = request(&mut state);
        assert!(repeated.contains("::jsonb) = $1::jsonb LIMIT 1 OFFSET 1\0"), "{repeated}");
        let following = |state: &mut ResumeState| {
            String::from_utf8_lossy(&state.following_request().unwrap().unwrap()).into_owned()
        };
        let rest = following(&mut state);
        assert!(rest.contains("::jsonb) > $1::jsonb LIMIT 8\0"), "{rest}");
        let missing = following(&mut state);
        assert!(missing.contains("WHERE ((\"data\"->'id')::jsonb) IS NULL LIMIT 1\0"), "{missing}");
    }

    #[test]
    fn error_shows_the_beginning_of_a_key_on_one_line() {
        let mut state = ResumeState::new(&Select::new("v"), &field("id"));
        for key in
            [format!("\"{}\"", "\u{202e}x".repeat(10_000)), format!("[{}0]", "0,".repeat(9999))]
        {
            state.last = Some(key.clone());
            let error = state.next_key(format!("{{\"id\": {key}}}").as_bytes()).unwrap_err();
            let shown = error.to_string();
            assert!(shown.len() < 1000 && !shown.contains('\u{202e}'), "{shown}");
        }
    }

    #[test]
    fn strings_with_different_escapes_are_the_same_key() {
        let key = |last: &str, next: &str| {
            let mut state = ResumeState::new(&Select::new("v"), &field("id"));
            state.last = Some(last.to_owned());
            state.next_key(format!("{{\"id\": {next}}}").as_bytes())
        };
        for (last, next) in
            [(r#""\u00e9""#, "\"\u{e9}\""), (r#""a\/b""#, r#""a/b""#), (r#""a""#, r#""a""#)]
        {
            let error = key(last, next).unwrap_err().to_string();
            assert!(error.contains("keys must be unique"), "{error}");
        }
        assert_eq!(key(r#""a\"""#, r#""a""#).unwrap(), r#""a""#);
    }
}
