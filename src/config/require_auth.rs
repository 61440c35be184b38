//! `require_auth`: the accepted authentication methods, as in `pqConnectOptions2` of libpq.

use crate::error::{Error, Result};

/// An authentication method that a server can request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Password,
    Md5,
    Gss,
    Sspi,
    Scram,
    OAuth,
    /// The server requests no authentication.
    None,
}

impl Method {
    const ALL: [Self; 7] =
        [Self::Password, Self::Md5, Self::Gss, Self::Sspi, Self::Scram, Self::OAuth, Self::None];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::Gss => "gss",
            Self::Sspi => "sspi",
            Self::Scram => "scram-sha-256",
            Self::OAuth => "oauth",
            Self::None => "none",
        }
    }
}

/// The accepted methods. Unless `none` is accepted, the server must complete one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequireAuth {
    text: String,
    allowed: Vec<Method>,
}

impl RequireAuth {
    /// Parses a list of accepted methods, or of rejected methods that all begin with `!`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let negated = text.starts_with('!');
        let mut named = Vec::new();
        for element in text.split(',') {
            let (name, is_negated) = match element.strip_prefix('!') {
                Some(name) => (name, true),
                None => (element, false),
            };
            if is_negated != negated {
                return Err(Error::config(
                    "require_auth mixes names with and without !: use ! for all of them or for none",
                ));
            }
            let method = Method::ALL.into_iter().find(|m| m.as_str() == name).ok_or_else(|| {
                Error::config(format!(
                    "invalid require_auth: expected a list of {}",
                    Method::ALL.map(Method::as_str).join(", ")
                ))
            })?;
            if named.contains(&method) {
                return Err(Error::config(format!("require_auth contains {name} more than once")));
            }
            named.push(method);
        }
        let allowed = Method::ALL.into_iter().filter(|m| named.contains(m) != negated).collect();
        Ok(Self { text: text.to_owned(), allowed })
    }

    pub(crate) fn allows(&self, method: Method) -> bool {
        self.allowed.contains(&method)
    }

    /// Returns the list as written.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_auth_accepts_or_rejects_the_listed_methods() {
        let scram = RequireAuth::parse("scram-sha-256").unwrap();
        assert!(scram.allows(Method::Scram) && !scram.allows(Method::None));
        assert!(!scram.allows(Method::Password));
        let not_in_clear = RequireAuth::parse("!password,!none").unwrap();
        assert!(not_in_clear.allows(Method::Md5) && not_in_clear.allows(Method::Gss));
        assert!(!not_in_clear.allows(Method::Password) && !not_in_clear.allows(Method::None));
        for bad in ["md5,md5", "md5,!none", "!none,md5", "bogus", "md5,", "!", "MD5"] {
            assert!(RequireAuth::parse(bad).is_err(), "{bad}");
        }
    }
}
