//! The messages that a server sends at any time: notices, parameters, notifications.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tracing::{debug, warn};

use super::report::{TARGET, violation};
use crate::{
    config::is_utf8,
    error::{DbError, OneLine, Result, sqlstate},
    metrics,
    protocol::backend::Message,
    sync::lock,
};

/// The handler of the server's notices.
#[derive(Clone, Default)]
pub(crate) struct Notices(Arc<Mutex<Option<Arc<Handler>>>>);

type Handler = dyn Fn(&DbError) + Send + Sync;

impl Notices {
    pub(crate) fn set(&self, handler: impl Fn(&DbError) + Send + Sync + 'static) {
        *lock(&self.0) = Some(Arc::new(handler));
    }

    fn report(&self, notice: &DbError) {
        // Called after the lock is released, because the handler is code of the user.
        let handler = lock(&self.0).clone();
        match (handler, notice.severity()) {
            (Some(handler), _) => handler(notice),
            (None, "WARNING") => warn!(target: TARGET, "{notice}"),
            (None, _) => debug!(target: TARGET, "{notice}"),
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notices")
    }
}

/// What the messages that may come at any time have reported.
#[derive(Debug, Default)]
pub(super) struct AsyncMessages {
    notices: Notices,
    parameters: Mutex<Parameters>,
    /// The server has announced that it ends the session.
    is_ending: AtomicBool,
}

#[derive(Debug, Default)]
struct Parameters {
    values: BTreeMap<String, String>,
    /// The reported `client_encoding`, if it is not UTF8. Kept apart from the values, because their
    /// number is limited and this must never be forgotten.
    wrong_encoding: Option<String>,
    /// The login has ended. From then on another encoding is an error even if it is changed back,
    /// because part of an answer was sent in it.
    in_session: bool,
}

/// The maximum number of parameters that are kept. Postgres reports about fifteen.
const MAX_PARAMETERS: usize = 256;

/// The maximum length of a name and of a value that are kept, in bytes.
const MAX_VALUE: usize = 8 << 10;

impl AsyncMessages {
    pub(super) fn new(notices: Notices) -> Self {
        Self { notices, parameters: Mutex::default(), is_ending: AtomicBool::new(false) }
    }

    /// Handles a message that may come at any time; any other one is returned.
    pub(super) fn handle(&self, message: Message) -> Option<Message> {
        match message {
            Message::NoticeResponse(notice) => {
                metrics::connection::notice(notice.severity());
                // After the crash of another backend, it is announced in a warning.
                if matches!(*notice.code(), sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN) {
                    self.is_ending.store(true, Relaxed);
                }
                self.notices.report(&notice);
            }
            Message::ParameterStatus { name, value } => {
                let (shown, to) = (OneLine::name(&name), OneLine::name(&value));
                debug!(target: TARGET, name = %shown, value = %to,
                    "the server reports a parameter");
                let mut parameters = lock(&self.parameters);
                if name.eq_ignore_ascii_case("client_encoding") {
                    let wrong = (!is_utf8(&value)).then(|| OneLine::name(&value).to_string());
                    if wrong.is_some() || !parameters.in_session {
                        parameters.wrong_encoding = wrong;
                    }
                }
                let is_known = parameters.values.contains_key(&name);
                let is_short = name.len() <= MAX_VALUE && value.len() <= MAX_VALUE;
                if is_short && (parameters.values.len() < MAX_PARAMETERS || is_known) {
                    parameters.values.insert(name, value);
                } else if !is_short {
                    // No value is better than an outdated one.
                    parameters.values.remove(&name);
                }
            }
            Message::NotificationResponse { channel } => {
                let channel = OneLine::name(&channel);
                debug!(target: TARGET, %channel, "ignored a notification");
            }
            other => return Some(other),
        }
        None
    }

    pub(super) fn set_ending(&self) {
        self.is_ending.store(true, Relaxed);
    }

    /// Whether a notice or an error has announced the end of the session.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Relaxed)
    }

    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        lock(&self.parameters).values.get(name).cloned()
    }

    /// Ends the login. [Checks](Self::check_encoding) the client encoding only now, because a
    /// pooler may first report the value that its own connection began with.
    pub(super) fn end_login(&self) -> Result<()> {
        lock(&self.parameters).in_session = true;
        self.check_encoding()
    }

    /// Checks that the server still converts to and from UTF-8. In another encoding a comparison
    /// with a bound value silently finds other rows.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`](crate::Error::Protocol): the connection cannot be used again and must be
    /// dropped.
    pub(super) fn check_encoding(&self) -> Result<()> {
        let Some(encoding) = lock(&self.parameters).wrong_encoding.clone() else { return Ok(()) };
        let message = format!(
            "the server changed client_encoding to {encoding:?}, and JSON is read as UTF-8: find \
             what sets it (a function of the view, or another client of the same pooler) and have \
             it leave client_encoding alone; the connection was closed"
        );
        Err(violation("ParameterStatus", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_remembered_within_bounds() {
        let async_messages = AsyncMessages::default();
        let tell = |name: &str, value: &str| {
            let (name, value) = (name.into(), value.into());
            assert!(async_messages.handle(Message::ParameterStatus { name, value }).is_none());
        };
        let long = "x".repeat(MAX_VALUE + 1);
        tell(&long, "1");
        tell("long", &long);
        assert!(
            async_messages.parameter(&long).is_none() && async_messages.parameter("long").is_none()
        );
        tell("long", "short");
        tell("long", &long);
        assert_eq!(async_messages.parameter("long"), None, "no value that is out of date");
        for i in 0..=MAX_PARAMETERS {
            tell(&format!("p{i}"), "1");
        }
        tell("p0", "2");
        assert_eq!(async_messages.parameter("p0").as_deref(), Some("2"));
        assert!(async_messages.parameter(&format!("p{MAX_PARAMETERS}")).is_none());
    }
}
