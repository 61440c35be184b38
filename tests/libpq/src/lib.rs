//! Calls libpq: how it parses settings, and whether it connects.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    ptr,
};

use pq_sys::{ConnStatusType, PGconn, PQconninfoOption};

/// libpq's result for a connection string.
#[derive(Debug)]
pub struct Verdict {
    /// The error, if libpq rejects it.
    pub refused: Option<String>,
    /// The effective values.
    pub values: BTreeMap<String, String>,
    /// The password for the first host.
    pub password: Option<String>,
}

/// Parses, completes and checks the settings, and begins to connect.
pub fn ask(text: &str) -> Verdict {
    let connection = Connection::with(text, pq_sys::PQconnectStart);
    // SAFETY: the connection is alive; libpq's texts live as long as it does.
    let (message, failed, password, options) = unsafe {
        (
            owned(pq_sys::PQerrorMessage(connection.0)).unwrap_or_default(),
            pq_sys::PQstatus(connection.0) == ConnStatusType::CONNECTION_BAD,
            owned(pq_sys::PQpass(connection.0)).filter(|p| !p.is_empty()),
            pq_sys::PQconninfo(connection.0),
        )
    };
    // These errors are about the network, not about the settings.
    let network = ["connection to server", "could not translate host name", "Unix-domain socket"];
    let is_network = network.iter().any(|n| message.starts_with(n))
        // These errors are about a setting, but are reported when connecting.
        && !message.contains("invalid integer value")
        && !message.contains("keepalives parameter");
    let refused = (failed && !is_network).then_some(message);
    Verdict { refused, values: take(options).unwrap_or_default(), password }
}

/// Parses a string, without the environment and without connecting.
pub fn parse(text: &str) -> Option<BTreeMap<String, String>> {
    let text = CString::new(text).ok()?;
    // SAFETY: the string ends with a NUL; no message is asked for.
    take(unsafe { pq_sys::PQconninfoParse(text.as_ptr(), ptr::null_mut()) })
}

/// Connects. Returns whether by TLS; `None` after an error. Blocks.
pub fn connect(text: &str) -> Option<bool> {
    try_connect(text).ok()
}

/// Connects. Returns whether by TLS, or libpq's error. Blocks.
pub fn try_connect(text: &str) -> Result<bool, String> {
    let connection = Connection::with(text, pq_sys::PQconnectdb);
    // SAFETY: the connection is alive.
    unsafe {
        match pq_sys::PQstatus(connection.0) {
            ConnStatusType::CONNECTION_OK => Ok(pq_sys::PQsslInUse(connection.0) == 1),
            _ => Err(owned(pq_sys::PQerrorMessage(connection.0)).unwrap_or_default()),
        }
    }
}

/// Closed on drop.
struct Connection(*mut PGconn);

impl Connection {
    fn with(text: &str, connect: unsafe extern "C" fn(*const c_char) -> *mut PGconn) -> Self {
        let text = CString::new(text).expect("no NUL in a connection string");
        // SAFETY: the string ends with a NUL.
        Self(unsafe { connect(text.as_ptr()) })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        unsafe { pq_sys::PQfinish(self.0) }
    }
}

/// Copies a text of libpq.
fn owned(text: *const c_char) -> Option<String> {
    // SAFETY: it ends with a NUL, and its owner is alive.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Copies the options that have a value, and frees them.
fn take(options: *mut PQconninfoOption) -> Option<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let mut option = options;
    // SAFETY: the array ends with an entry without a keyword.
    while let Some(entry) = unsafe { option.as_ref() } {
        let Some(keyword) = owned(entry.keyword) else { break };
        values.extend(owned(entry.val).map(|value| (keyword, value)));
        option = unsafe { option.add(1) };
    }
    // SAFETY: it is not used any more.
    unsafe { pq_sys::PQconninfoFree(options) };
    (!options.is_null()).then_some(values)
}
