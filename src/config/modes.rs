//! Settings with a fixed set of values.

use std::fmt;

use crate::error::{Error, Result};

/// Defines an enum of the values that libpq accepts for a parameter.
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
            /// Returns the value as libpq writes it.
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

        /// Writes the value as libpq does: the same as `as_str`.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

/// The message for an invalid value. The value is not shown: it may be part of an unescaped
/// password.
fn expected(keyword: &str, words: &[&str]) -> String {
    let (last, others) = words.split_last().unwrap_or((&"", &[]));
    format!("invalid {keyword}: expected {} or {last}", others.join(", "))
}

keyword_enum! {
    /// Whether a session is encrypted, and how the server's certificate is verified:
    /// [`sslmode`](https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION).
    ///
    /// It applies to TCP, and to every [`connector`](crate::ConnectionConfigBuilder::connector). A
    /// Unix socket is never encrypted and its server never verified, whatever the mode, as with
    /// libpq.
    ///
    /// ```
    /// use fraiseql_wire::SslMode;
    ///
    /// assert_eq!(SslMode::VerifyFull.to_string(), "verify-full");
    /// ```
    SslMode, "sslmode",
    /// Never use TLS.
    Disable = "disable",
    /// Connect without TLS; if the server rejects that, use TLS.
    Allow = "allow",
    /// Use TLS if the server supports it; otherwise plaintext. Does not protect against an active
    /// attacker.
    #[default]
    Prefer = "prefer",
    /// Require TLS. The certificate chain is verified if a root file exists; otherwise nothing is
    /// verified.
    Require = "require",
    /// Require TLS, and a certificate chain that ends in a trusted root.
    VerifyCa = "verify-ca",
    /// Require TLS, a certificate chain that ends in a trusted root, and a certificate for this
    /// host.
    VerifyFull = "verify-full",
}

keyword_enum! {
    /// How encryption is negotiated:
    /// [`sslnegotiation`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-SSLNEGOTIATION).
    ///
    /// ```
    /// use fraiseql_wire::SslNegotiation;
    ///
    /// assert_eq!(SslNegotiation::Direct.to_string(), "direct");
    /// ```
    SslNegotiation, "sslnegotiation",
    /// The client requests TLS in plaintext first. Costs a round trip; all servers support it.
    #[default]
    Postgres = "postgres",
    /// TLS from the first byte. Requires Postgres 17 or later.
    Direct = "direct",
}

keyword_enum! {
    /// Whether the login is bound to its TLS channel, which prevents a man in the middle from
    /// relaying it:
    /// [`channel_binding`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-CHANNEL-BINDING).
    ///
    /// ```
    /// use fraiseql_wire::ChannelBinding;
    ///
    /// assert_eq!(ChannelBinding::Require.to_string(), "require");
    /// ```
    ChannelBinding, "channel_binding",
    /// Never.
    Disable = "disable",
    /// If the session is encrypted and the server offers it.
    #[default]
    Prefer = "prefer",
    /// Always. A server that does not support it is rejected.
    Require = "require",
}

keyword_enum! {
    /// Which servers are accepted if there are several:
    /// [`target_session_attrs`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS).
    ///
    /// ```
    /// use fraiseql_wire::TargetSessionAttrs;
    ///
    /// assert_eq!(TargetSessionAttrs::PreferStandby.to_string(), "prefer-standby");
    /// ```
    TargetSessionAttrs, "target_session_attrs",
    /// Any server.
    #[default]
    Any = "any",
    /// A server that accepts writes: a primary whose sessions are not read-only by default.
    ReadWrite = "read-write",
    /// A server that does not accept writes: a standby, or one whose sessions are read-only by
    /// default.
    ReadOnly = "read-only",
    /// A server that is not in recovery.
    Primary = "primary",
    /// A server that is in recovery.
    Standby = "standby",
    /// A standby if any host is one; otherwise any server.
    PreferStandby = "prefer-standby",
}

keyword_enum! {
    /// The order in which several hosts are tried:
    /// [`load_balance_hosts`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-LOAD-BALANCE-HOSTS).
    ///
    /// ```
    /// use fraiseql_wire::LoadBalanceHosts;
    ///
    /// assert_eq!(LoadBalanceHosts::Random.to_string(), "random");
    /// ```
    LoadBalanceHosts, "load_balance_hosts",
    /// In the order of the list.
    #[default]
    Disable = "disable",
    /// In random order, also for the addresses of each host.
    Random = "random",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_the_keyword_of_libpq() {
        assert_eq!(SslMode::VerifyFull.to_string(), "verify-full");
        assert_eq!(SslNegotiation::Direct.to_string(), "direct");
        assert_eq!(ChannelBinding::Require.to_string(), "require");
        assert_eq!(TargetSessionAttrs::PreferStandby.to_string(), "prefer-standby");
        assert_eq!(LoadBalanceHosts::Random.to_string(), "random");
        assert_eq!(format!("{:>8}|", SslMode::Prefer), "  prefer|");
    }
}
