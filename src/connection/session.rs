//! What is known of a session: by its connection, by the client, and by who may cancel its query.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tracing::{debug, warn};

use super::{TARGET, cancel::CancelKey, count_protocol_error};
use crate::{
    config::{Target, is_utf8},
    error::{DbError, Error, OneLine, Result, sqlstate},
    metrics,
    protocol::backend::Message,
};

/// How a session was made: see [`FraiseClient::connection_info`](crate::FraiseClient::connection_info).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The host as configured, unless only an address or a directory was given.
    pub host: Option<String>,
    /// The IP address it was reached at.
    pub address: Option<IpAddr>,
    /// The Unix socket it was reached at.
    pub unix_socket: Option<PathBuf>,
    /// The port.
    pub port: u16,
    /// The version of TLS, such as `TLSv1.3`; `None` in the clear.
    pub tls_version: Option<String>,
    /// The cipher suite of TLS.
    pub tls_cipher: Option<String>,
    /// How the client logged in: `none`, `password`, `md5`, `scram-sha-256`, or
    /// `scram-sha-256-plus`, which is bound to the TLS channel.
    pub auth_method: &'static str,
    /// The version of the protocol: `3.0` or `3.2`.
    pub protocol_version: &'static str,
}

/// The version of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ServerVersion {
    /// 18 of 18.4.
    pub major: u32,
    /// 4 of 18.4; 0 before a first release, such as 19beta1.
    pub minor: u32,
}

impl ServerVersion {
    /// Reads the parameter `server_version`, which packagers and other engines add to: `15.18
    /// (Debian 15.18-0+deb12u1)`, `19beta1`.
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (major, rest) = text.split_at_checked(end)?;
        let minor: String = rest
            .strip_prefix('.')
            .unwrap_or_default()
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        Some(Self { major: major.parse().ok()?, minor: minor.parse().unwrap_or(0) })
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Who hears the server's notices.
#[derive(Clone, Default)]
pub(crate) struct Notices(Arc<Mutex<Option<Arc<Handler>>>>);

type Handler = dyn Fn(&DbError) + Send + Sync;

impl Notices {
    pub(crate) fn set(&self, handler: impl Fn(&DbError) + Send + Sync + 'static) {
        *lock(&self.0) = Some(Arc::new(handler));
    }

    fn report(&self, notice: &DbError) {
        // Not under the lock: what a user's code does is not ours to know.
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

/// What a server says at any time.
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
    /// The reported `client_encoding`, if it is not UTF8. Kept apart from the values, which are
    /// bounded: it must never be forgotten.
    wrong_encoding: Option<String>,
    /// Logged in: from here on another encoding is an error even if it is changed back, because
    /// part of an answer was sent in it.
    in_session: bool,
}

/// The most parameters that are remembered: Postgres reports some fifteen.
const MAX_PARAMETERS: usize = 256;

/// The longest name and the longest value that are remembered, in bytes.
const MAX_VALUE: usize = 8 << 10;

impl AsyncMessages {
    pub(super) fn new(notices: Notices) -> Self {
        Self { notices, parameters: Mutex::default(), is_ending: AtomicBool::new(false) }
    }

    /// Deals with what may come at any time; what belongs to an exchange is returned.
    pub(super) fn handle(&self, message: Message) -> Option<Message> {
        match message {
            Message::NoticeResponse(notice) => {
                metrics::connection::notice(notice.severity());
                // After a crash of another backend, this is a warning.
                if matches!(*notice.code(), sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN) {
                    self.is_ending.store(true, Relaxed);
                }
                self.notices.report(&notice);
            }
            Message::ParameterStatus { name, value } => {
                let (shown, to) = (OneLine::name(&name), OneLine::name(&value));
                debug!(target: TARGET, name = %shown, value = %to, "the server reports a parameter");
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

    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        lock(&self.parameters).values.get(name).cloned()
    }

    /// Ends the login. The client encoding is [checked](Self::check_encoding) only now, because a
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
    /// [`Error::Protocol`]: the connection cannot be used again and must be dropped.
    pub(super) fn check_encoding(&self) -> Result<()> {
        let Some(encoding) = lock(&self.parameters).wrong_encoding.clone() else { return Ok(()) };
        let message = format!(
            "the server changed client_encoding to {encoding:?}, and JSON is read as UTF-8: find \
             what sets it (a function of the view, or another client of the same pooler) and have \
             it leave client_encoding alone; the connection was closed"
        );
        count_protocol_error("ParameterStatus", Err(Error::protocol(message)))
    }
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) async_messages: AsyncMessages,
    pub(super) info: ConnectionInfo,
    /// Without it, no query can be stopped but by closing the connection.
    pub(super) cancel: Option<CancelKey>,
    requests: Mutex<Requests>,
    request_ended: Notify,
}

/// Cancel requests that were sent to this session.
#[derive(Debug, Default)]
struct Requests {
    /// When the last one ended, as far as the client can tell.
    last: Option<Instant>,
    /// Requests that have not ended.
    in_flight: usize,
    /// A request was abandoned before it ended: it may still arrive and would cancel any query.
    is_undelivered: bool,
}

impl Session {
    pub(super) fn new(
        async_messages: AsyncMessages,
        info: ConnectionInfo,
        cancel: Option<CancelKey>,
    ) -> Self {
        Self {
            async_messages,
            info,
            cancel,
            requests: Mutex::default(),
            request_ended: Notify::new(),
        }
    }

    pub(crate) fn backend_pid(&self) -> Option<u32> {
        self.cancel.as_ref().map(|key| key.process_id)
    }

    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        self.async_messages.parameter(name)
    }

    pub(crate) fn server_version(&self) -> Option<ServerVersion> {
        ServerVersion::parse(&self.parameter("server_version")?)
    }

    /// Whether a notice of the server has announced the end of the session.
    pub(crate) fn is_ending(&self) -> bool {
        self.async_messages.is_ending.load(Relaxed)
    }

    /// The server, for another connection to it.
    pub(super) fn server(&self) -> Target {
        Target {
            host: self.info.host.clone(),
            hostaddr: self.info.address,
            unix_socket: self.info.unix_socket.clone(),
            port: self.info.port,
        }
    }

    /// Sends one cancel request, and waits until the server has acted on it.
    ///
    /// # Errors
    ///
    /// The request may not have arrived, and may still do so: the session must not run another
    /// query.
    pub(super) async fn send_cancel(&self, key: &CancelKey) -> Result<()> {
        lock(&self.requests).in_flight += 1;
        let mut request = CancelInFlight { session: self, has_ended: false };
        let sent = key.send().await;
        request.has_ended = sent.is_ok();
        sent
    }

    /// Whether a cancel request may still arrive.
    pub(super) fn may_be_cancelled(&self) -> bool {
        let requests = lock(&self.requests);
        requests.in_flight > 0 || requests.is_undelivered
    }

    /// Waits until no cancel request is in flight.
    pub(super) async fn requests_ended(&self) {
        loop {
            let ended = self.request_ended.notified();
            if lock(&self.requests).in_flight == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Whether a cancel request has ended so recently that a proxy may still be holding it: some
    /// close the request's connection before the server has acted on it.
    pub(crate) fn was_cancelled_recently(&self) -> bool {
        lock(&self.requests).last.is_some_and(|last| last.elapsed() < LATE_CANCEL)
    }
}

/// How late a proxy may deliver a cancel request whose connection it has closed.
const LATE_CANCEL: Duration = Duration::from_secs(1);

/// A cancel request on its way.
struct CancelInFlight<'a> {
    session: &'a Session,
    has_ended: bool,
}

impl Drop for CancelInFlight<'_> {
    fn drop(&mut self) {
        let mut requests = lock(&self.session.requests);
        requests.last = Some(Instant::now());
        requests.in_flight -= 1;
        requests.is_undelivered |= !self.has_ended;
        drop(requests);
        self.session.request_ended.notify_waiters();
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn versions_are_read_as_servers_write_them() {
        let version = |text| ServerVersion::parse(text).map(|v| v.to_string());
        assert_eq!(version("15.18 (Debian 15.18-0+deb12u1)").as_deref(), Some("15.18"));
        assert_eq!(version("19beta1").as_deref(), Some("19.0"));
        assert_eq!(version("9.6.24").as_deref(), Some("9.6"));
        assert_eq!(version("18").as_deref(), Some("18.0"));
        assert_eq!(version("CockroachDB"), None);
        assert_eq!(version("99999999999"), None);
        assert!(ServerVersion { major: 17, minor: 9 } < ServerVersion { major: 18, minor: 0 });
    }
}
