//! Settings that are one of a few words.

use crate::error::{Error, Result};

/// Makes an enum of the words that libpq knows for a parameter.
macro_rules! keyword_enum {
    (
        $(#[$doc:meta])* $name:ident, $keyword:literal,
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Returns libpq's word for it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            pub(super) fn parse(word: &str) -> Result<Self> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(Error::config(expected($keyword, &[$($word),+]))),
                }
            }
        }
    };
}

/// The error for any other word. The word is not shown: it may be a password that was not escaped.
fn expected(keyword: &str, words: &[&str]) -> String {
    let (last, others) = words.split_last().unwrap_or((&"", &[]));
    format!("invalid {keyword}: expected {} or {last}", others.join(", "))
}

keyword_enum! {
    /// Whether a session is encrypted, and how far the server's certificate is checked:
    /// [`sslmode`](https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION).
    SslMode, "sslmode",
    /// Never encrypted.
    Disable = "disable",
    /// In the clear; encrypted if the server refuses that.
    Allow = "allow",
    /// Encrypted if the server can; else in the clear. Protects against nobody who can change
    /// what is on the wire.
    #[default]
    Prefer = "prefer",
    /// Encrypted. The certificate's chain is checked if there is a root file, and not at all if
    /// there is none.
    Require = "require",
    /// Encrypted, and the certificate's chain ends in a known root.
    VerifyCa = "verify-ca",
    /// Encrypted, the chain ends in a known root, and the certificate is for this host.
    VerifyFull = "verify-full",
}

keyword_enum! {
    /// How encryption is agreed upon:
    /// [`sslnegotiation`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-SSLNEGOTIATION).
    SslNegotiation, "sslnegotiation",
    /// The client asks first: one round trip more, and every server knows it.
    #[default]
    Postgres = "postgres",
    /// TLS from the first byte: Postgres 17 and later.
    Direct = "direct",
}

keyword_enum! {
    /// Whether a login is bound to the encrypted channel that it goes through, which keeps anybody
    /// in between from passing it on:
    /// [`channel_binding`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-CHANNEL-BINDING).
    ChannelBinding, "channel_binding",
    /// Never.
    Disable = "disable",
    /// If the session is encrypted and the server offers it.
    #[default]
    Prefer = "prefer",
    /// Always; a server that cannot is refused.
    Require = "require",
}

keyword_enum! {
    /// Which servers of several will do:
    /// [`target_session_attrs`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS).
    TargetSessionAttrs, "target_session_attrs",
    /// Any.
    #[default]
    Any = "any",
    /// One that takes writes: a primary whose sessions do not begin read-only.
    ReadWrite = "read-write",
    /// One that does not: a standby, or one whose sessions begin read-only.
    ReadOnly = "read-only",
    /// One that is not in recovery.
    Primary = "primary",
    /// One that is in recovery.
    Standby = "standby",
    /// A standby if any host is one, else any.
    PreferStandby = "prefer-standby",
}

keyword_enum! {
    /// In which order several hosts are tried:
    /// [`load_balance_hosts`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-LOAD-BALANCE-HOSTS).
    LoadBalanceHosts, "load_balance_hosts",
    /// As they are written.
    #[default]
    Disable = "disable",
    /// In a random order, and the addresses of each host too.
    Random = "random",
}
