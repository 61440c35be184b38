//! The parameters of libpq 18, in its order, and their values.
//!
//! The table is `PQconninfoOptions` of libpq's fe-connect.c. It contains parameters that have no
//! effect here, so that every connection string that libpq accepts is accepted.

use std::{collections::BTreeMap, fmt, time::Duration};

use zeroize::Zeroizing;

use super::foreign;
use crate::error::{Error, Result};

/// One parameter.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    /// The environment variable used if neither the connection string nor a service sets it.
    pub(super) env: Option<&'static str>,
    /// The value used if nothing sets it.
    pub(super) default: Option<&'static str>,
}

const fn keyword(
    name: &'static str,
    env: Option<&'static str>,
    default: Option<&'static str>,
) -> Keyword {
    Keyword { name, env, default }
}

pub(super) const KEYWORDS: &[Keyword] = &[
    keyword("service", Some("PGSERVICE"), None),
    keyword("user", Some("PGUSER"), None),
    keyword("password", Some("PGPASSWORD"), None),
    keyword("passfile", Some("PGPASSFILE"), None),
    keyword("channel_binding", Some("PGCHANNELBINDING"), Some("prefer")),
    keyword("connect_timeout", Some("PGCONNECT_TIMEOUT"), None),
    keyword("dbname", Some("PGDATABASE"), None),
    keyword("host", Some("PGHOST"), None),
    keyword("hostaddr", Some("PGHOSTADDR"), None),
    keyword("port", Some("PGPORT"), Some("5432")),
    keyword("client_encoding", Some("PGCLIENTENCODING"), None),
    keyword("options", Some("PGOPTIONS"), Some("")),
    keyword("application_name", Some("PGAPPNAME"), None),
    keyword("fallback_application_name", None, None),
    keyword("keepalives", None, None),
    keyword("keepalives_idle", None, None),
    keyword("keepalives_interval", None, None),
    keyword("keepalives_count", None, None),
    keyword("tcp_user_timeout", None, None),
    keyword("sslmode", Some("PGSSLMODE"), Some("prefer")),
    keyword("sslnegotiation", Some("PGSSLNEGOTIATION"), Some("postgres")),
    keyword("sslcompression", Some("PGSSLCOMPRESSION"), Some("0")),
    keyword("sslcert", Some("PGSSLCERT"), None),
    keyword("sslkey", Some("PGSSLKEY"), None),
    keyword("sslcertmode", Some("PGSSLCERTMODE"), Some("allow")),
    keyword("sslpassword", None, None),
    keyword("sslrootcert", Some("PGSSLROOTCERT"), None),
    keyword("sslcrl", Some("PGSSLCRL"), None),
    keyword("sslcrldir", Some("PGSSLCRLDIR"), None),
    keyword("sslsni", Some("PGSSLSNI"), Some("1")),
    keyword("requirepeer", Some("PGREQUIREPEER"), None),
    keyword("require_auth", Some("PGREQUIREAUTH"), None),
    keyword("min_protocol_version", Some("PGMINPROTOCOLVERSION"), None),
    keyword("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), None),
    keyword("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), Some("TLSv1.2")),
    keyword("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION"), None),
    // The default of a libpq without GSSAPI.
    keyword("gssencmode", Some("PGGSSENCMODE"), Some("disable")),
    keyword("krbsrvname", Some("PGKRBSRVNAME"), Some("postgres")),
    keyword("gsslib", Some("PGGSSLIB"), None),
    keyword("gssdelegation", Some("PGGSSDELEGATION"), Some("0")),
    keyword("replication", None, None),
    keyword("target_session_attrs", Some("PGTARGETSESSIONATTRS"), Some("any")),
    keyword("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), Some("disable")),
    keyword("scram_client_key", None, None),
    keyword("scram_server_key", None, None),
    keyword("oauth_issuer", None, None),
    keyword("oauth_client_id", None, None),
    keyword("oauth_client_secret", None, None),
    keyword("oauth_scope", None, None),
    keyword("sslkeylogfile", None, None),
];

/// Parameters whose values are never shown.
const SECRETS: &[&str] =
    &["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"];

pub(super) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|k| k.name == name)
}

pub(super) fn is_secret(name: &str) -> bool {
    SECRETS.contains(&name)
}

/// The ends of names of secrets, in the connection strings of any driver and in the environment.
const SECRET_ENDINGS: &[&str] =
    &["password", "passwd", "pwd", "oauth_client_secret", "scram_client_key", "scram_server_key"];

/// Returns the name of a secret that the value contains, with an assignment (`a Password = x`).
fn assigned_secret(name: &str, value: &str) -> Option<&'static str> {
    let value = Zeroizing::new(value.to_ascii_lowercase());
    let mut signs = ["=", "%3d"].iter().flat_map(|sign| value.match_indices(sign));
    signs.find_map(|(at, _)| {
        let before = value
            .get(..at)?
            .trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\''));
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let word = before.rsplit(|c| !is_part(c)).next()?;
        // A setting of an extension may have such a name (`-c app.password=x`).
        if name == "options" && word.contains('.') {
            return None;
        }
        let ends = |ending: &&&str| word.ends_with(**ending);
        SECRET_ENDINGS.iter().find(ends).copied().or((word == "pass").then_some("pass"))
    })
}

/// Rejects a value that contains a secret, because values of other parameters are shown. A missing
/// value is the next word (`host= password=x`), a missing space or an escape can join words
/// (`host=a\ password=x`), and a URI can be given in place of a name.
pub(super) fn reject_hidden_secret(name: &str, value: &str) -> Result<()> {
    if is_secret(name) {
        return Ok(());
    }
    if let Some(secret) = assigned_secret(name, value) {
        return Err(Error::config(format!(
            "{name} contains {secret}=: separate the two parameters, or remove {name} if it is empty"
        )));
    }
    if value.split_once("://").is_some_and(|(_, rest)| rest.contains('@')) {
        return Err(Error::config(format!(
            "{name} contains a URI: pass it to ConnectionConfig::parse"
        )));
    }
    Ok(())
}

/// Returns what may be shown of a value that is not checked yet.
pub(super) fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    match is_secret(name) || assigned_secret("", value).is_some() {
        true => "(secret)",
        false => value,
    }
}

/// Values by keyword. An empty value counts as set. Some are secrets, so all are zeroized on drop.
#[derive(Clone, Default)]
pub(super) struct Values(BTreeMap<&'static str, Zeroizing<String>>);

impl Values {
    /// Sets a value and replaces an earlier one.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Zeroizing<String>>) -> Result<()> {
        let keyword = find(name).ok_or_else(|| unknown(name))?;
        self.0.insert(keyword.name, value.into());
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// See [`reject_hidden_secret`].
    pub(super) fn reject_hidden_secrets(&self) -> Result<()> {
        self.0.iter().try_for_each(|(name, value)| reject_hidden_secret(name, value))
    }

    /// Sets a value if there is none.
    pub(super) fn fill(&mut self, keyword: &Keyword, value: impl Into<String>) {
        self.0.entry(keyword.name).or_insert_with(|| Zeroizing::new(value.into()));
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|v| v.as_str())
    }

    /// Returns the value unless it is empty, which for most parameters means unset.
    pub(super) fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// Parses an integer by libpq's rules. Negative numbers become 0.
    pub(super) fn integer(&self, name: &str) -> Result<Option<u32>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number =
            text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b').parse::<i32>();
        let number = number.map_err(|_| Error::config(format!("{name} is not an integer")))?;
        Ok(Some(u32::try_from(number).unwrap_or(0)))
    }

    /// Parses a number of seconds. `None` also for 0 and negative numbers.
    pub(super) fn seconds(&self, name: &str) -> Result<Option<Duration>> {
        let seconds = self.integer(name)?.filter(|s| *s > 0);
        Ok(seconds.map(|s| Duration::from_secs(s.into())))
    }
}

/// Shows no secrets.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(k, v)| (k, shown(k, v)))).finish()
    }
}

/// The error for an unknown name. The name may be part of an unescaped or unquoted password. So it
/// is shown only if it is known from another driver, or begins like a parameter of similar length.
fn unknown(name: &str) -> Error {
    if let Some(advice) = foreign::advice(name) {
        return Error::config(format!("{name:?} is not a parameter of libpq; {advice}"));
    }
    let start = |text: &str| text.get(..4).map(str::to_ascii_lowercase);
    let is_like = |k: &Keyword| {
        start(k.name).is_some_and(|s| start(name) == Some(s))
            && k.name.len().abs_diff(name.len()) <= 2
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if KEYWORDS.iter().any(is_like) {
        return unknown_and_shown(name);
    }
    Error::config(format!(
        "unknown connection parameter; its name is not shown, because it may be part of a password; \
         {PARAMETERS}"
    ))
}

/// Returns whether the name could be that of a secret, with the secret (`passwordx=`).
pub(super) fn begins_as_secret(name: &str) -> bool {
    let name = Zeroizing::new(name.to_ascii_lowercase());
    SECRETS.iter().chain(SECRET_ENDINGS).chain(&["pass"]).any(|secret| name.starts_with(secret))
}

/// The error for an unknown name that is not part of a password.
pub(super) fn unknown_and_shown(name: &str) -> Error {
    Error::config(format!("unknown connection parameter {name:?}; {PARAMETERS}"))
}

const PARAMETERS: &str =
    "the parameters are libpq's: https://www.postgresql.org/docs/current/libpq-connect.html";
