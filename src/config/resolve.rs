//! Resolves settings into a [`ConnectionConfig`]: libpq's order of precedence, and the meaning of
//! the values.

use std::{env::VarError, path::Path, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use zeroize::Zeroizing;

use super::{
    client_options::ClientOptions,
    connection_config::ConnectionConfig,
    encoding::is_utf8,
    environment::{self, Environment},
    host::Hosts,
    keyword::{KEYWORDS, Values, reject_hidden_secret},
    modes::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs},
    parse,
    protocol_version::ProtocolRange,
    require_auth::RequireAuth,
    scram_cache::ScramCache,
    service,
    socket::SocketSettings,
    statements_lost::StatementsLost,
    system_user::SystemUser,
    tls::{self, KeyPassword, TlsConfig, TlsSettings},
};
use crate::{
    error::{Error, Result},
    secret::Key,
};

impl ConnectionConfig {
    /// Parses a connection string. Settings that it does not contain come from the service file,
    /// the environment, or their defaults.
    ///
    /// The service file is read only if a service is named. The password file and certificates are
    /// read for each connection.
    ///
    /// # Errors
    ///
    /// * [`Error::Config`] names the invalid part. It never shows the password.
    /// * [`Error::Io`]: the service file cannot be read at the moment.
    /// * [`Error::Tls`]: TLS is required, and this build does not support it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut values = Values::default();
        for (keyword, value) in parse::parse(text)? {
            match keyword.as_str() {
                // The predecessor of sslmode.
                "requiressl" => {
                    reject_hidden_secret("requiressl", &value)?;
                    let mode = if value.starts_with('1') { "require" } else { "prefer" };
                    values.set("sslmode", mode.to_owned())?;
                }
                _ => values.set(&keyword, value)?,
            }
        }
        Self::resolve(values, ClientOptions::default())
    }

    /// Reads all settings from the environment: `PGHOST`, `PGUSER`, `PGSERVICE` and so on.
    ///
    /// # Errors
    ///
    /// Same as [`parse`](Self::parse).
    pub fn from_env() -> Result<Self> {
        Self::resolve(Values::default(), ClientOptions::default())
    }

    pub(super) fn resolve(values: Values, client_options: ClientOptions) -> Result<Self> {
        // A variable that cannot be read must not be treated as unset.
        let of_keywords = KEYWORDS.iter().filter_map(|k| k.env);
        for name in Environment::VARIABLES.iter().copied().chain(of_keywords) {
            if let Err(VarError::NotUnicode(_)) = std::env::var(name) {
                return Err(Error::config(format!("the environment variable {name} is not UTF-8")));
            }
        }
        let home = environment::home();
        let environment = Environment { variable: &|name| std::env::var(name).ok(), home };
        Self::resolve_in(&environment, values, client_options)
    }

    fn resolve_in(
        environment: &Environment<'_>,
        mut values: Values,
        client_options: ClientOptions,
    ) -> Result<Self> {
        for name in Environment::VARIABLES {
            if let Some(value) = (environment.variable)(name) {
                reject_hidden_secret(name, &value)?;
            }
        }
        fill_defaults(&mut values, environment)?;
        reject_unsupported(&values)?;
        values.reject_hidden_secrets()?;
        let word = |name| values.get(name).unwrap_or_default();
        let (ssl_mode, ssl_negotiation, tls) =
            resolve_tls(&values, client_options.tls.as_ref(), environment.home.as_deref())?;
        let connect_timeout = values.seconds("connect_timeout")?;
        let sockets = SocketSettings::from_values(&values)?;
        let require_auth = values.non_empty("require_auth").map(RequireAuth::parse).transpose()?;
        client_options.validate()?;
        if client_options.connector.is_some() && values.non_empty("requirepeer").is_some() {
            return Err(Error::config(
                "requirepeer cannot be checked on the stream of a connector: remove it, and verify \
                 the server with sslmode=verify-full",
            ));
        }
        let mut startup_parameters = environment.startup_parameters();
        startup_parameters.extend(client_options.params.iter().cloned());
        if let Some(timeout) = client_options.statement_timeout {
            startup_parameters.push(("statement_timeout".into(), timeout.as_millis().to_string()));
        }
        Ok(Self {
            hosts: Hosts::parse(&values)?,
            startup_parameters,
            ssl_mode,
            ssl_negotiation,
            tls,
            channel_binding: ChannelBinding::parse(word("channel_binding"))?,
            require_auth,
            target_session_attrs: TargetSessionAttrs::parse(word("target_session_attrs"))?,
            load_balance_hosts: LoadBalanceHosts::parse(word("load_balance_hosts"))?,
            connect_timeout: client_options.connect_timeout.or(connect_timeout),
            sockets,
            require_peer: values.non_empty("requirepeer").map(str::to_owned),
            protocol: ProtocolRange::from_values(&values)?,
            scram_client_key: scram_key(&values, "scram_client_key")?,
            scram_server_key: scram_key(&values, "scram_server_key")?,
            scram_cache: ScramCache::default(),
            statements_lost: StatementsLost::default(),
            system_user: SystemUser::default(),
            client_options,
            values,
        })
    }

    /// Returns the configuration with its TLS settings replaced.
    pub(crate) fn with_tls(mut self, tls: TlsConfig) -> Result<Self> {
        self.client_options.tls = Some(tls);
        Self::resolve(self.values, self.client_options)
    }
}

/// Parses a connection string, like [`ConnectionConfig::parse`].
impl FromStr for ConnectionConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// Returns the TLS settings: those set in code, or otherwise those of the keywords.
fn resolve_tls(
    values: &Values,
    in_code: Option<&TlsConfig>,
    home: Option<&Path>,
) -> Result<(SslMode, SslNegotiation, TlsSettings)> {
    let word = |name| values.get(name).unwrap_or_default();
    let mode = match in_code {
        Some(tls) => tls.mode(),
        None => SslMode::parse(word("sslmode"))?,
    };
    let negotiation = SslNegotiation::parse(word("sslnegotiation"))?;
    let allows_plaintext = matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer);
    if negotiation == SslNegotiation::Direct && allows_plaintext {
        return Err(Error::config(format!(
            "sslnegotiation=direct requires sslmode require, verify-ca or verify-full: {} could \
             fall back to plaintext",
            mode.as_str()
        )));
    }
    let mut settings = match in_code {
        Some(tls) => tls.settings().clone(),
        None => tls::from_keywords(&|name| values.get(name), mode, home)?,
    };
    // Also for a key that is set in code, because `TlsConfig` has no password.
    if let Some(client) = &mut settings.client {
        client.key_password = values.non_empty("sslpassword").map(KeyPassword::new);
    }
    if !allows_plaintext && cfg!(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))) {
        return Err(Error::tls(format!(
            "sslmode={} requires TLS, which this build does not support: enable the feature \
             tls-ring or tls-aws-lc-rs of fraiseql-wire",
            mode.as_str()
        )));
    }
    Ok((mode, negotiation, settings))
}

/// Sets missing values from the service file, then from the environment, then from the defaults.
/// This is the order of `conninfo_add_defaults` of libpq.
fn fill_defaults(values: &mut Values, environment: &Environment<'_>) -> Result<()> {
    service::fill(values, environment)?;
    let mut mode_is_default = false;
    for keyword in KEYWORDS {
        if values.get(keyword.name).is_some() {
            continue;
        }
        if let Some(value) = keyword.env.and_then(environment.variable) {
            values.fill(keyword, value);
            continue;
        }
        if keyword.name == "sslmode" {
            // The predecessor of sslmode. libpq ignores its other values.
            if (environment.variable)("PGREQUIRESSL").is_some_and(|v| v.starts_with('1')) {
                values.fill(keyword, "require");
                continue;
            }
            mode_is_default = true;
        }
        if let Some(default) = keyword.default {
            values.fill(keyword, default);
        }
    }
    // Public authorities issue certificates to anyone: without the host name they prove nothing.
    if mode_is_default && values.get("sslrootcert") == Some("system") {
        values.set("sslmode", "verify-full".to_owned())?;
    }
    let name = if cfg!(windows) { "pgpass.conf" } else { ".pgpass" };
    let passfile = environment.home.as_ref().map(|home| home.join(name));
    if values.non_empty("password").is_none() && values.non_empty("passfile").is_none() {
        if let Some(passfile) = passfile.as_ref().and_then(|p| p.to_str()) {
            values.set("passfile", passfile.to_owned())?;
        }
    }
    Ok(())
}

/// Rejects values of libpq parameters that request unsupported features.
fn reject_unsupported(values: &Values) -> Result<()> {
    let reject = |what: &str| Err(Error::config(what));
    match values.get("gssencmode") {
        Some("disable" | "prefer") | None => {}
        Some("require") => {
            return reject("gssencmode=require is not supported: there is no GSSAPI");
        }
        Some(_) => return reject("invalid gssencmode: expected disable, prefer or require"),
    }
    if !matches!(values.get("replication"), None | Some("" | "false" | "off" | "no" | "0")) {
        return reject("replication is not supported: remove it");
    }
    if values.non_empty("sslkeylogfile").is_some() {
        return reject("sslkeylogfile is not supported: it would write session keys to a file");
    }
    let database = values.get("dbname").unwrap_or_default();
    if database.contains("://") || reject_hidden_secret("dbname", database).is_err() {
        // Not shown: it may contain a password.
        return reject(
            "dbname (or PGDATABASE) is a connection string instead of the name of a database: pass \
             it to ConnectionConfig::parse",
        );
    }
    let encoding = values.get("client_encoding").unwrap_or_default();
    if !(encoding.is_empty() || encoding.eq_ignore_ascii_case("auto") || is_utf8(encoding)) {
        return reject(
            "invalid client_encoding (or PGCLIENTENCODING): expected UTF8, because JSON is decoded \
             as UTF-8",
        );
    }
    Ok(())
}

fn scram_key(values: &Values, name: &str) -> Result<Option<Key>> {
    let Some(text) = values.get(name) else { return Ok(None) };
    // The decoder requires room for whole blocks.
    let mut bytes = Zeroizing::new([0; 48]);
    match BASE64.decode_slice(text, &mut *bytes) {
        Ok(32) => Ok(bytes.get(..32).map(Key::copy)),
        _ => Err(Error::config(format!("invalid {name}: expected 32 bytes in base64"))),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;

    /// As in a libpq without SSL, the modes that allow plaintext are accepted.
    #[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
    #[test]
    fn without_tls_sslmodes_that_require_it_are_errors() {
        for mode in ["disable", "allow", "prefer"] {
            ConnectionConfig::parse(&format!("host=h sslmode={mode}")).unwrap();
        }
        for mode in ["require", "verify-ca", "verify-full"] {
            let error = ConnectionConfig::parse(&format!("host=h sslmode={mode}")).unwrap_err();
            let Error::Tls { message } = error else { panic!("{error:?}") };
            assert!(message.contains("tls-ring"), "{message}");
        }
    }

    fn resolve(text: &str, variables: &[(&str, &str)]) -> ConnectionConfig {
        try_resolve(text, variables).unwrap()
    }

    fn try_resolve(text: &str, variables: &[(&str, &str)]) -> Result<ConnectionConfig> {
        let variable = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        let environment = Environment { variable: &variable, home: None };
        let mut values = Values::default();
        for (keyword, value) in parse::parse(text).unwrap() {
            values.set(&keyword, value).unwrap();
        }
        ConnectionConfig::resolve_in(&environment, values, ClientOptions::default())
    }

    /// libpq's `EnvironmentOptions`; `default` leaves it to the server.
    #[test]
    fn environment_variables_set_startup_parameters() {
        let config = resolve("host=h", &[("PGTZ", "Asia/Tokyo"), ("PGDATESTYLE", "DEFAULT")]);
        assert_eq!(config.param("timezone"), Some("Asia/Tokyo"));
        assert_eq!(config.param("datestyle"), None);
    }

    #[test]
    fn to_builder_keeps_settings_that_are_not_replaced() {
        let begun = resolve(
            "host=a,b hostaddr=127.0.0.1,127.0.0.2 port=1,2 user=u password=Pl4nted connect_timeout=7",
            &[("PGAPPNAME", "app"), ("PGTZ", "Asia/Tokyo")],
        );
        let again = begun.to_builder().read_timeout(Duration::from_secs(3));
        assert!(!format!("{again:?}").contains("Pl4nted"));
        let again = again.build().unwrap();
        assert_eq!(again.targets(), begun.targets());
        assert_eq!((again.user(), again.password()), (begun.user(), begun.password()));
        assert_eq!(again.application_name(), Some("app"));
        assert_eq!(again.connect_timeout(), Some(Duration::from_secs(7)));
        assert_eq!(again.read_timeout(), Some(Duration::from_secs(3)));
        // Settings without a keyword are kept too, and the last value counts.
        let third = again.to_builder().connect_timeout(Duration::from_millis(1)).user("v").build();
        let third = third.unwrap();
        assert_eq!(third.read_timeout(), Some(Duration::from_secs(3)));
        assert_eq!(third.connect_timeout(), Some(Duration::from_millis(1)));
        assert_eq!(third.user().as_deref(), Some("v"));

        // Another host is not looked for at the address of the first.
        let other = begun.to_builder().host("c").build().unwrap();
        let [target] = &other.targets()[..] else { panic!() };
        assert_eq!((target.host.as_deref(), target.hostaddr), (Some("c"), None));
        // Nor at one of the environment or of the service, which replace what is not set.
        assert_eq!(other.values.get("hostaddr"), Some(""));
        let other = begun.to_builder().hostaddr(Ipv4Addr::LOCALHOST).build().unwrap();
        assert_eq!(other.values.get("host"), Some(""));
        assert_eq!(other.user(), begun.user());
        let port = begun.to_builder().port(9).build().unwrap();
        assert_eq!(port.port(), [9, 9]);
        assert_eq!(port.host(), ["a", "b"]);
    }

    #[test]
    fn copies_share_that_statements_are_lost_and_built_configurations_do_not() {
        let config = resolve("host=a", &[]);
        let copy = config.clone();
        let built = config.to_builder().build().unwrap();
        assert!(!copy.prepared_statements_lost().get());
        assert!(config.prepared_statements_lost().set());
        assert!(!copy.prepared_statements_lost().set(), "it is set already");
        assert!(copy.prepared_statements_lost().get());
        assert!(!built.prepared_statements_lost().get());
        assert!(!config.to_builder().build().unwrap().prepared_statements_lost().get());
    }

    #[test]
    fn statement_cache_has_a_default_and_can_be_disabled() {
        let config = resolve("", &[]);
        assert_eq!(config.statement_cache_capacity(), 100);
        let disabled = config.to_builder().statement_cache_capacity(0).build().unwrap();
        assert_eq!(disabled.statement_cache_capacity(), 0);
        let kept = disabled.to_builder().host("b").build().unwrap();
        assert_eq!(kept.statement_cache_capacity(), 0);
    }

    #[test]
    fn connect_timeout_of_zero_or_less_is_none() {
        for text in ["connect_timeout=0", "connect_timeout=-1", ""] {
            assert_eq!(resolve(text, &[]).connect_timeout(), None);
        }
        let config = resolve("", &[("PGCONNECT_TIMEOUT", "7")]);
        assert_eq!(config.connect_timeout(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn secrets_are_not_shown() {
        let config =
            resolve("host=h password=planted sslpassword=planted oauth_client_secret=planted", &[]);
        assert!(!format!("{config:?} {config:#?} {config}").contains("planted"));
        assert_eq!(config.get("password"), None);
    }

    /// libpq accepts these: a part of the password, or all of it, would become a value that is
    /// shown.
    #[test]
    fn values_that_contain_a_secret_are_errors_and_not_shown() {
        let cases = [
            ("service= password=planted", "service contains password="),
            (r"service=a\ password=planted", "service contains password="),
            ("host=\n\tsslpassword='planted'", "host contains password="),
            ("host=password=planted", "host contains password="),
            ("host='a password=planted'", "host contains password="),
            ("host=/runpassword=planted", "host contains password="),
            ("host=a,b,password=planted", "host contains password="),
            ("hostaddr=::1password=planted", "hostaddr contains password="),
            ("user=upassword=planted", "user contains password="),
            ("sslrootcert=/a sslcert= password=planted", "sslcert contains password="),
            ("sslkey=/koauth_client_secret=planted", "sslkey contains oauth_client_secret="),
            ("passfile=/p;password=planted", "passfile contains password="),
            ("application_name=apassword=planted", "application_name contains password="),
            ("options='-c password=planted -c a.b=c'", "options contains password="),
            ("dbname=dpassword=planted", "dbname (or PGDATABASE) is a connection string"),
            ("dbname='host=h password = planted'", "dbname (or PGDATABASE) is a connection string"),
            ("dbname=' POSTGRES://u:planted@h/d'", "dbname (or PGDATABASE) is a connection string"),
            ("user=postgresql+asyncpg://u:planted@h/d", "user contains a URI"),
            ("host= PASSWORD=planted", "host contains password="),
            ("host=h;Username=u;Password=planted", "host contains password="),
            ("host='h password = planted'", "host contains password="),
            ("host=h\u{a0}password\u{a0}=planted", "host contains password="),
            ("host= pwd=planted", "host contains pwd="),
            ("host= passwd=planted", "host contains passwd="),
            ("host= pass=planted", "host contains pass="),
            ("host=h%20password%3Dplanted", "host contains password="),
            ("host=db.example.password=planted", "host contains password="),
            ("service= key=planted", "the service is not defined"),
            ("postgres://u@h/d?sslcrl=%2Fc%20password%3Dplanted", "sslcrl contains password="),
        ];
        let no_variables: &[(&str, &str)] = &[];
        let cases = cases.map(|(text, expected)| (text, no_variables, expected));
        let of_variables: [(_, &[(&str, &str)], _); 6] = [
            ("", &[("PGHOST", "a password=planted")], "host contains password="),
            ("", &[("PGSERVICE", "a password=planted")], "service contains password="),
            ("", &[("PGSERVICE", "postgres://u:planted@h/d")], "service contains a URI"),
            ("", &[("PGHOST", "h PGPASSWORD=planted")], "host contains password="),
            ("", &[("PGTZ", "UTC password=planted")], "PGTZ contains password="),
            ("", &[("PGSERVICEFILE", "/f password=planted")], "PGSERVICEFILE contains password="),
        ];
        for (text, variables, expected) in cases.into_iter().chain(of_variables) {
            let error = try_resolve(text, variables).unwrap_err().to_string();
            assert!(error.contains(expected), "{text} {variables:?}: {error}");
            assert!(!error.contains("plan"), "{text} {variables:?}: {error}");
        }
        for accepted in [
            // Settings of extensions.
            "options='-c app.password=x -c app.db_password=y --app.smtp-password=z'",
            "password=password=x application_name=compass=1 sslcert=/a=b user=a://b",
        ] {
            resolve(&format!("host=h {accepted}"), &[]);
        }
        let config = resolve("host=h options='-c app.password=planted'", &[]);
        let builder = config.to_builder().user("u password=planted");
        assert!(!format!("{config:?} {builder:?}").contains("planted"));
    }
}
