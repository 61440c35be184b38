//! Private keys that are encrypted with a password: `EncryptedPrivateKeyInfo` of RFC 5958.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::pki_types::PrivateKeyDer;
use x509_cert::der::Tag;

use super::asn1::{content, elements};
#[cfg(feature = "encrypted-keys")]
use super::key_decryption::{self, Undecryptable};
use crate::{
    config::tls::KeyPassword,
    error::{Error, Result},
};

/// Loads an encrypted key from PEM text or DER. Returns `None` if the key is not encrypted.
///
/// This can take seconds, so call it on a blocking thread.
pub(super) fn load(
    bytes: &[u8],
    password: Option<&KeyPassword>,
    what: &str,
) -> Option<Result<PrivateKeyDer<'static>>> {
    Some(match find(bytes)? {
        EncryptedKey::Pkcs8(der) => decrypt(&der, password, what),
        EncryptedKey::Traditional => Err(traditional(what)),
    })
}

enum EncryptedKey {
    /// The DER of an `EncryptedPrivateKeyInfo`; empty if its PEM is malformed.
    Pkcs8(Vec<u8>),
    /// The encryption of PEM by headers, which OpenSSL 1.0 replaced. It derives the key by one MD5
    /// hash of the password.
    Traditional,
}

fn find(bytes: &[u8]) -> Option<EncryptedKey> {
    const BEGIN: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    const END: &[u8] = b"-----END ENCRYPTED PRIVATE KEY-----";
    if let Some(begin) = position(bytes, BEGIN) {
        let rest = bytes.get(begin + BEGIN.len()..)?;
        let body = rest.get(..position(rest, END).unwrap_or(0))?;
        let body: Vec<u8> = body.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
        return Some(EncryptedKey::Pkcs8(BASE64.decode(body).unwrap_or_default()));
    }
    if position(bytes, b"Proc-Type: 4,ENCRYPTED").is_some() {
        return Some(EncryptedKey::Traditional);
    }
    // The algorithm and the encrypted data. A key that is not encrypted begins with its version.
    let fields = content(bytes).and_then(elements)?;
    let tags: Vec<Tag> = fields.iter().map(|field| field.header().tag()).collect();
    (tags == [Tag::Sequence, Tag::OctetString]).then(|| EncryptedKey::Pkcs8(bytes.to_vec()))
}

fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(feature = "encrypted-keys")]
const CONVERT: &str =
    "convert it with openssl pkcs8 -topk8 -in KEY -out NEWKEY, and chmod 0600 the new file";

#[cfg(feature = "encrypted-keys")]
fn decrypt(
    der: &[u8],
    password: Option<&KeyPassword>,
    what: &str,
) -> Result<PrivateKeyDer<'static>> {
    let Some(password) = password else {
        return Err(Error::tls(format!(
            "{what} is encrypted: set sslpassword in the connection string to its password"
        )));
    };
    if let Some(key) = password.decrypted(der) {
        return Ok(PrivateKeyDer::Pkcs8(key.to_vec().into()));
    }
    let key = key_decryption::decrypt(der, password.password()).map_err(|reason| {
        Error::tls(match reason {
            Undecryptable::WrongPassword => {
                format!("{what} cannot be decrypted: correct sslpassword")
            }
            Undecryptable::TooCostly => format!(
                "decrypting {what} takes too much time or memory: the limits are {}; {CONVERT}",
                key_decryption::LIMITS
            ),
            Undecryptable::Unsupported => {
                format!("{what} is malformed, or its encryption is not supported: {CONVERT}")
            }
        })
    })?;
    password.set_decrypted(der, key.secret_der());
    Ok(key)
}

#[cfg(feature = "encrypted-keys")]
fn traditional(what: &str) -> Error {
    Error::tls(format!(
        "{what} has the traditional encryption of PEM (Proc-Type: 4,ENCRYPTED), which is not \
         supported: {CONVERT}"
    ))
}

#[cfg(not(feature = "encrypted-keys"))]
fn decrypt(_: &[u8], _: Option<&KeyPassword>, what: &str) -> Result<PrivateKeyDer<'static>> {
    Err(Error::tls(format!(
        "{what} is encrypted, which this build does not support: enable the feature \
         encrypted-keys of fraiseql-wire, or decrypt it with openssl pkey -in KEY -out NEWKEY, and \
         chmod 0600 the new file"
    )))
}

#[cfg(not(feature = "encrypted-keys"))]
fn traditional(what: &str) -> Error {
    Error::tls(format!(
        "{what} has the traditional encryption of PEM (Proc-Type: 4,ENCRYPTED), which is not \
         supported: convert it with openssl pkcs8 -topk8 -in KEY -out NEWKEY and enable the feature \
         encrypted-keys of fraiseql-wire, or decrypt it with openssl pkey -in KEY -out NEWKEY; \
         chmod 0600 the new file"
    ))
}
