//! libpq's `ssl*` keywords, interpreted like `initialize_SSL` in fe-secure-openssl.c.

use std::path::{Path, PathBuf};

use super::settings::{
    ClientCertificate, Crls, RootSource, SendCertificate, Source, TlsSettings, TlsVersion, Verify,
};
use crate::{
    config::modes::SslMode,
    error::{Error, Result},
};

/// Returns the TLS settings for libpq's keywords.
///
/// `get` returns the effective value of a keyword, or `None` if it is not set. `home` is the
/// directory of the default files: the home directory of the user, and on Windows
/// `%APPDATA%\postgresql`.
pub(crate) fn from_keywords<'a>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    mode: SslMode,
    home: Option<&Path>,
) -> Result<TlsSettings> {
    // As in libpq, an empty value means the default.
    let value = |keyword| get(keyword).filter(|v| !v.is_empty());
    let default = |name: &str| {
        home.map(|h| if cfg!(windows) { h.join(name) } else { h.join(".postgresql").join(name) })
    };
    let path = |keyword, name| value(keyword).map(PathBuf::from).or_else(|| default(name));

    let (min_version, max_version) = versions(&value)?;
    let strict = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let mut verify = match mode {
        SslMode::VerifyFull => Verify::ChainAndName,
        _ => Verify::Chain,
    };
    let mut roots = Vec::new();
    let mut roots_optional = false;
    match path("sslrootcert", "root.crt") {
        Some(file) if file.as_os_str() == "system" => {
            if mode != SslMode::VerifyFull {
                return Err(Error::config(format!(
                    "sslmode={} is too weak for sslrootcert=system, because public authorities \
                     issue certificates to anyone: set sslmode=verify-full",
                    mode.as_str()
                )));
            }
            roots.push(RootSource::System);
        }
        Some(file) => {
            roots.push(RootSource::Certificates(Source::File(file)));
            roots_optional = !strict;
        }
        None if strict => {
            return Err(Error::config(format!(
                "sslmode={} requires root certificates, and without a home directory there is no \
                 default file: set sslrootcert to the file of the server's authority, or to system",
                mode.as_str()
            )));
        }
        None => verify = Verify::Nothing,
    }
    Ok(TlsSettings {
        verify,
        crls: crls(&value, &roots, default("root.crl")),
        roots,
        roots_optional,
        roots_named: value("sslrootcert").is_some(),
        client: path("sslcert", "postgresql.crt").map(|certificate| ClientCertificate {
            certificate: Source::File(certificate),
            key: path("sslkey", "postgresql.key").map(Source::File),
            key_password: None,
            optional: true,
        }),
        send_certificate: match value("sslcertmode") {
            None | Some("allow") => SendCertificate::Allow,
            Some("disable") => SendCertificate::Never,
            Some("require") => SendCertificate::Require,
            Some(_) => {
                return Err(Error::config(
                    "invalid sslcertmode: expected disable, allow or require",
                ));
            }
        },
        min_version,
        max_version,
        // An empty value counts as set. Any value other than 1 means off.
        sni: get("sslsni").unwrap_or("1").starts_with('1'),
        server_name: None,
    })
}

fn crls<'a>(
    value: &dyn Fn(&'static str) -> Option<&'a str>,
    roots: &[RootSource],
    default: Option<PathBuf>,
) -> Crls {
    let named: Vec<_> =
        ["sslcrl", "sslcrldir"].into_iter().filter_map(value).map(PathBuf::from).collect();
    if !named.is_empty() {
        return Crls { paths: named, optional: false };
    }
    // The default list belongs to the default roots. It does not cover the system's authorities.
    let default = default.filter(|_| !roots.contains(&RootSource::System));
    Crls { paths: default.into_iter().collect(), optional: true }
}

/// `sslVerifyProtocolVersion` and `sslVerifyProtocolRange` of fe-connect.c, for the supported
/// versions.
fn versions<'a>(
    value: &dyn Fn(&'static str) -> Option<&'a str>,
) -> Result<(TlsVersion, TlsVersion)> {
    /// Numbers in the order of the versions.
    fn number(keyword: &str, word: Option<&str>, default: u8) -> Result<u8> {
        let Some(word) = word else { return Ok(default) };
        let known = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];
        (0..).zip(known).find(|(_, k)| k.eq_ignore_ascii_case(word)).map(|(n, _)| n).ok_or_else(
            || {
                Error::config(format!(
                    "invalid {keyword}: expected TLSv1, TLSv1.1, TLSv1.2 or TLSv1.3"
                ))
            },
        )
    }
    const TLS12: u8 = 2;
    const TLS13: u8 = 3;
    let (min_key, max_key) = ("ssl_min_protocol_version", "ssl_max_protocol_version");
    let min = number(min_key, value(min_key), TLS12)?;
    let max = number(max_key, value(max_key), TLS13)?;
    if max < TLS12 {
        return Err(Error::config(format!(
            "{max_key} is below TLSv1.2, the minimum that is supported: set it to TLSv1.2 or remove it"
        )));
    }
    if min > max {
        return Err(Error::config(format!("{min_key} is above {max_key}")));
    }
    let version = |n| if n == TLS13 { TlsVersion::Tls13 } else { TlsVersion::Tls12 };
    Ok((version(min), version(max)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(
        mode: &str,
        home: Option<&str>,
        pairs: &[(&str, &'static str)],
    ) -> Result<TlsSettings> {
        let get = |k: &str| pairs.iter().find(|(key, _)| *key == k).map(|(_, v)| *v);
        from_keywords(&get, SslMode::parse(mode).unwrap(), home.map(Path::new))
    }

    fn file(path: &str) -> Source {
        Source::File(path.into())
    }

    #[cfg(unix)]
    #[test]
    fn default_tls_files_equal_those_of_libpq() {
        let s = settings("prefer", Some("/home/u"), &[]).unwrap();
        let root = RootSource::Certificates(file("/home/u/.postgresql/root.crt"));
        assert_eq!((s.roots, s.roots_optional, s.verify), (vec![root], true, Verify::Chain));
        let client = s.client.unwrap();
        assert_eq!(client.certificate, file("/home/u/.postgresql/postgresql.crt"));
        assert_eq!(client.key, Some(file("/home/u/.postgresql/postgresql.key")));
        assert!(client.optional && s.sni);
        assert_eq!(s.crls.paths, [Path::new("/home/u/.postgresql/root.crl")]);
        assert!(s.crls.optional);
        assert_eq!(s.send_certificate, SendCertificate::Allow);
    }

    #[test]
    fn named_root_file_is_optional_below_verify_ca() {
        for (mode, optional, verify) in [
            ("allow", true, Verify::Chain),
            ("prefer", true, Verify::Chain),
            ("require", true, Verify::Chain),
            ("verify-ca", false, Verify::Chain),
            ("verify-full", false, Verify::ChainAndName),
        ] {
            let s = settings(mode, None, &[("sslrootcert", "r.crt")]).unwrap();
            assert_eq!((s.roots_optional, s.verify), (optional, verify), "{mode}");
            assert_eq!(s.roots, [RootSource::Certificates(file("r.crt"))]);
        }
    }

    #[test]
    fn without_a_home_directory_there_are_no_defaults() {
        let s = settings("require", None, &[]).unwrap();
        assert_eq!((s.verify, s.roots, s.client), (Verify::Nothing, vec![], None));
        assert!(s.crls.paths.is_empty());
        let error = settings("verify-ca", None, &[]).unwrap_err().to_string();
        assert!(error.contains("set sslrootcert"), "{error}");
        let s = settings("require", None, &[("sslcert", "c")]).unwrap();
        assert_eq!(s.client.unwrap().key, None);
    }

    #[test]
    fn system_roots_require_verify_full() {
        let system = [("sslrootcert", "system")];
        for mode in ["disable", "allow", "prefer", "require", "verify-ca"] {
            let error = settings(mode, None, &system).unwrap_err().to_string();
            assert!(error.contains("verify-full"), "{error}");
        }
        let s = settings("verify-full", Some("/home/u"), &system).unwrap();
        assert_eq!((s.roots, s.verify), (vec![RootSource::System], Verify::ChainAndName));
        assert!(s.crls.paths.is_empty(), "the default list is not for the system's authorities");
    }

    #[test]
    fn explicit_revocation_lists_are_not_optional() {
        let s = settings("require", Some("/h"), &[("sslcrl", "a"), ("sslcrldir", "b")]).unwrap();
        assert_eq!(s.crls, Crls { paths: vec!["a".into(), "b".into()], optional: false });
    }

    #[test]
    fn sslcertmode_and_sslsni_values_are_checked() {
        for (word, mode) in [
            ("disable", SendCertificate::Never),
            ("allow", SendCertificate::Allow),
            ("require", SendCertificate::Require),
            ("", SendCertificate::Allow),
        ] {
            let s = settings("require", None, &[("sslcertmode", word)]).unwrap();
            assert_eq!(s.send_certificate, mode);
        }
        assert!(settings("require", None, &[("sslcertmode", "never")]).is_err());
        for (word, on) in [("1", true), ("0", false), ("", false), ("true", false)] {
            assert_eq!(settings("require", None, &[("sslsni", word)]).unwrap().sni, on, "{word}");
        }
    }

    #[test]
    fn tls_version_range_is_checked_like_libpq() {
        use TlsVersion::{Tls12, Tls13};
        for (min, max, expected) in [
            ("", "", Some((Tls12, Tls13))),
            ("TLSv1", "", Some((Tls12, Tls13))),
            ("TLSv1.1", "tlsV1.2", Some((Tls12, Tls12))),
            ("TLSv1.3", "", Some((Tls13, Tls13))),
            ("", "TLSv1.2", Some((Tls12, Tls12))),
            ("TLSv1.3", "TLSv1.2", None),
            ("TLSv1", "TLSv1.1", None),
            ("1.2", "", None),
            ("", "TLS1.3", None),
        ] {
            let pairs = [("ssl_min_protocol_version", min), ("ssl_max_protocol_version", max)];
            let got =
                settings("require", None, &pairs).ok().map(|s| (s.min_version, s.max_version));
            assert_eq!(got, expected, "{min} {max}");
        }
    }
}
