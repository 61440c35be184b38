//! Parameters of other drivers' connection strings, and their replacements.
//!
//! A connection string of another driver fails on a name that libpq does not know. The names in
//! this table are public, so errors can show them.

/// Returns the replacement for a parameter that libpq does not have; `None` for an unknown name.
///
/// The value is not considered: it may be a secret.
pub(super) fn advice(name: &str) -> Option<String> {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let same = |word: &&str| plain == **word;
    if let Some((_, advice)) = TABLE.iter().find(|(words, _)| words.iter().any(same)) {
        return Some((*advice).to_owned());
    }
    if let Some((_, name)) = RENAMED.iter().find(|(words, _)| words.iter().any(same)) {
        return Some(format!("libpq's name for it is {name}"));
    }
    // A different spelling of a libpq parameter: sslMode, ssl-root-cert.
    let known = super::keyword::KEYWORDS.iter().find(|k| k.name.replace('_', "") == plain);
    if let Some(known) = known {
        return Some(format!("libpq's name for it is {}", known.name));
    }
    // A server parameter in the syntax of sqlx: options[search_path].
    let is_option = name.starts_with("options[") || SERVER.iter().any(same);
    is_option.then(|| {
        "it is a parameter of the server: write options=-cNAME=VALUE, or set it for the role".into()
    })
}

/// Lowercase names without `-` and `_`, and the advice.
const TABLE: &[(&[&str], &str)] = &[
    (
        &["schema", "currentschema", "searchpath"],
        "write the schema in the query (query(\"schema.view\")), or set search_path for the role \
         or by options=-csearch_path=NAME",
    ),
    (&["pgbouncer"], "remove it: nothing has to be set for PgBouncer"),
    (
        &[
            "connectionlimit",
            "pooltimeout",
            "poolsize",
            "maxpoolsize",
            "minpoolsize",
            "maximumpoolsize",
            "minimumpoolsize",
            "poolmaxconns",
            "poolminconns",
            "poolmaxconnlifetime",
            "poolmaxconnidletime",
            "poolhealthcheckperiod",
            "poolmaxsize",
            "poolminsize",
            "poolrecycle",
            "poolpreping",
            "maxoverflow",
            "pooling",
            "pool",
            "maxconnections",
            "minconnections",
            "maxlifetimeconnection",
            "maxidleconnectionlifetime",
            "singleuseconnections",
            "connectionlifetime",
            "idletimeout",
            "checkouttimeout",
            "reapingfrequency",
        ],
        "remove it: a pool is configured in code (fraiseql_wire::pool), not in the connection string",
    ),
    (
        &["sockettimeout", "commandtimeout", "querytimeout", "readtimeout"],
        "use read_timeout of ConnectionConfig::builder(), or timeout of a query",
    ),
    (
        &[
            "statementcachesize",
            "statementcachecapacity",
            "statementcachemode",
            "preparedstatementcachesize",
            "preparedstatementcachequeries",
            "preparedstatementcachesizemib",
            "preparedstatements",
            "preparethreshold",
            "preferquerymode",
            "prefersimpleprotocol",
            "defaultqueryexecmode",
            "descriptioncachecapacity",
            "maxautoprepare",
            "autoprepareminusages",
            "disableprepare",
        ],
        "use statement_cache_capacity of ConnectionConfig::builder(): 0 prepares no statements",
    ),
    (
        &[
            "binaryparameters",
            "binarytransfer",
            "stringtype",
            "rewritebatchedinserts",
            "defaultrowfetchsize",
            "autosave",
            "supa",
            "uselibpqcompat",
            "workaround",
        ],
        "remove it: it belongs to another driver and has no meaning here",
    ),
    (
        &["ssl", "usessl", "tls", "sslenabled", "encrypt"],
        "set sslmode: verify-full, verify-ca, require, prefer, allow or disable",
    ),
    (
        &[
            "sslaccept",
            "trustservercertificate",
            "rejectunauthorized",
            "sslhostnameverifier",
            "sslfactory",
        ],
        "set sslmode: verify-full (with sslrootcert) verifies the server, require does not",
    ),
    (
        &["sslca", "sslcacert", "cacert", "rootcertificate", "sslrootcertificate", "tlscafile"],
        "set sslrootcert to the file of the authority",
    ),
    (
        &["sslidentity", "sslclientcert", "sslcertificate", "clientcert"],
        "set sslcert and sslkey to PEM files",
    ),
    (
        &["endpoint", "project"],
        "write options=endpoint%3DID, or remove it: TLS sends the host name (sslsni)",
    ),
    (
        &["statementtimeout"],
        "use statement_timeout of ConnectionConfig::builder(), or options=-cstatement_timeout=VALUE",
    ),
    (&["timezone"], "use the variable PGTZ, or options=-ctimezone=NAME"),
    (
        &["socketfactory", "cloudsqlinstance", "unixsocketpath", "instance"],
        "set host to the directory of the socket",
    ),
];

/// Names that other drivers use for parameters of libpq.
const RENAMED: &[(&[&str], &str)] = &[
    (&["username", "userid", "uid", "login"], "user"),
    (&["pass", "passwd", "pwd"], "password"),
    (&["database", "databasename", "db", "dbase"], "dbname"),
    (&["hostname", "server", "servername", "address"], "host"),
    (&["logintimeout", "timeout", "connectiontimeout"], "connect_timeout"),
    (&["tcpkeepalive", "keepalive"], "keepalives"),
    (&["keepalivesretries"], "keepalives_count"),
    (&["targetservertype"], "target_session_attrs"),
    (&["gssencryptionmode"], "gssencmode"),
    (&["encoding", "charset"], "client_encoding"),
    (&["appname"], "application_name"),
    (&["passwordfile", "pgpass"], "passfile"),
];

/// Server parameters that connection strings of other drivers can contain.
const SERVER: &[&str] = &[
    "locktimeout",
    "idleintransactionsessiontimeout",
    "idlesessiontimeout",
    "transactiontimeout",
    "defaulttransactionreadonly",
    "defaulttransactionisolation",
    "workmem",
    "datestyle",
    "intervalstyle",
    "extrafloatdigits",
    "rowsecurity",
    "role",
    "jit",
    "geqo",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_other_drivers_get_advice() {
        for (name, part) in [
            ("schema", "search_path"),
            ("currentSchema", "query(\"schema.view\")"),
            ("search_path", "options=-csearch_path"),
            ("pgbouncer", "PgBouncer"),
            ("connection_limit", "in code"),
            ("pool_timeout", "in code"),
            ("socket_timeout", "read_timeout"),
            ("statement_cache_size", "statement_cache_capacity of"),
            ("prepareThreshold", "0 prepares no statements"),
            ("uselibpqcompat", "no meaning"),
            ("supa", "no meaning"),
            ("sslaccept", "sslmode"),
            ("ssl", "sslmode"),
            ("ssl-mode", "name for it is sslmode"),
            ("sslRootCert", "name for it is sslrootcert"),
            ("channelBinding", "name for it is channel_binding"),
            ("ApplicationName", "name for it is application_name"),
            ("options[search_path]", "options=-cNAME"),
            ("lock_timeout", "options=-cNAME"),
            ("endpoint", "options=endpoint"),
            ("username", "name for it is user"),
        ] {
            let advice = advice(name).unwrap_or_else(|| panic!("{name}"));
            assert!(advice.contains(part), "{name}: {advice}");
        }
        for unknown in ["", "secret", "hunter2", "_", "conect_timeout", "ретри"] {
            assert_eq!(advice(unknown), None, "{unknown}");
        }
    }

    /// Names of libpq parameters are never looked up here.
    #[test]
    fn no_libpq_parameter_is_in_the_table() {
        let words =
            TABLE.iter().map(|(words, _)| words).chain(RENAMED.iter().map(|(words, _)| words));
        for word in words.flat_map(|words| words.iter()).chain(SERVER) {
            let known = super::super::keyword::KEYWORDS.iter().any(|k| k.name == *word);
            assert!(!known, "{word}");
            assert!(word.chars().all(|c| c.is_ascii_lowercase()), "{word}");
        }
        for (_, name) in RENAMED {
            assert!(super::super::keyword::find(name).is_some(), "{name}");
        }
    }
}
