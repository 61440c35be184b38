//! Decrypts `EncryptedPrivateKeyInfo` of RFC 5958, by the crate `pkcs8`.

use pkcs8::{
    EncryptedPrivateKeyInfoRef, Error, SecretDocument,
    pkcs5::{EncryptionScheme, pbes2::Kdf},
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{config::Password, secret::wipe_stack};

/// More than OWASP recommends for any hash (1,300,000). They take up to 2 s.
const MAX_PBKDF2_ITERATIONS: u32 = 2_000_000;
/// The default limit of OpenSSL, and so of libpq.
const MAX_SCRYPT_BYTES: u64 = 32 << 20;
/// 8 times the cost of `openssl pkcs8 -scrypt`. It takes up to 2 s.
const MAX_SCRYPT_COST: u64 = 1 << 20;

pub(super) const LIMITS: &str =
    "2,000,000 iterations for PBKDF2, 32 MiB and N*r*p = 1,048,576 for scrypt";

/// Why a key cannot be decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undecryptable {
    /// Or the encrypted data is damaged, which looks the same.
    WrongPassword,
    TooCostly,
    /// Or malformed.
    Unsupported,
}

/// Decrypts a key. This can take seconds, because a key file decides what its decryption costs.
pub(super) fn decrypt(
    der: &[u8],
    password: &Password,
) -> Result<PrivateKeyDer<'static>, Undecryptable> {
    let key = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|_| Undecryptable::Unsupported)?;
    check_cost(&key.encryption_algorithm)?;
    let document = derive_and_decrypt(&key, password);
    wipe_stack();
    let key = PrivatePkcs8KeyDer::from(document?.as_bytes().to_vec());
    Ok(PrivateKeyDer::Pkcs8(key))
}

#[inline(never)]
fn derive_and_decrypt(
    key: &EncryptedPrivateKeyInfoRef<'_>,
    password: &Password,
) -> Result<SecretDocument, Undecryptable> {
    use pkcs8::pkcs5::Error::DecryptFailed;
    key.decrypt(password.reveal()).map_err(|e| match e {
        // What was decrypted may look like padding, but is no DER then.
        Error::EncryptedPrivateKey(DecryptFailed) | Error::Asn1(_) => Undecryptable::WrongPassword,
        _ => Undecryptable::Unsupported,
    })
}

fn check_cost(algorithm: &EncryptionScheme) -> Result<(), Undecryptable> {
    let EncryptionScheme::Pbes2(parameters) = algorithm else {
        return Err(Undecryptable::Unsupported);
    };
    let is_accepted = match &parameters.kdf {
        Kdf::Pbkdf2(pbkdf2) => pbkdf2.iteration_count <= MAX_PBKDF2_ITERATIONS,
        Kdf::Scrypt(scrypt) => {
            let (n, r, p) = (
                scrypt.cost_parameter,
                u64::from(scrypt.block_size),
                u64::from(scrypt.parallelization),
            );
            // The crate panics at 0.
            if !n.is_power_of_two() {
                return Err(Undecryptable::Unsupported);
            }
            let bytes = n.saturating_add(p).saturating_mul(128 * r);
            // The default key of OpenSSL needs a little more than 16 MiB.
            bytes <= MAX_SCRYPT_BYTES && n.saturating_mul(r * p) <= MAX_SCRYPT_COST
        }
        _ => return Err(Undecryptable::Unsupported),
    };
    if is_accepted { Ok(()) } else { Err(Undecryptable::TooCostly) }
}

#[cfg(test)]
mod tests {
    use pkcs8::{
        EncryptedPrivateKeyInfoOwned,
        der::{Encode as _, asn1::OctetString},
        pkcs5::pbes2::{EncryptionScheme as Cipher, Parameters, Pbkdf2Params, Salt, ScryptParams},
    };

    use super::*;

    /// Returns an encrypted key of 16 bytes that are no key.
    fn key(kdf: impl Into<Kdf>) -> Vec<u8> {
        let parameters =
            Parameters { kdf: kdf.into(), encryption: Cipher::Aes256Cbc { iv: [1; 16] } };
        let key = EncryptedPrivateKeyInfoOwned {
            encryption_algorithm: parameters.into(),
            encrypted_data: OctetString::new([2; 16]).unwrap(),
        };
        key.to_der().unwrap()
    }

    fn pbkdf2(iterations: u32) -> Vec<u8> {
        key(Pbkdf2Params::hmac_sha256(iterations, &[3; 16]).unwrap())
    }

    fn scrypt(n: u64, r: u16, p: u16) -> Vec<u8> {
        key(ScryptParams {
            salt: Salt::new([3; 16]).unwrap(),
            cost_parameter: n,
            block_size: r,
            parallelization: p,
            key_length: None,
        })
    }

    #[test]
    fn key_that_costs_too_much_to_decrypt_is_rejected_before_it_is_tried() {
        let password = Password::new("Pl4nted");
        for der in [
            pbkdf2(2_000_001),
            pbkdf2(Pbkdf2Params::MAX_ITERATION_COUNT),
            // Memory of N blocks.
            scrypt(1 << 15, 8, 1),
            scrypt(1 << 40, 8, 1),
            scrypt(1 << 63, u16::MAX, u16::MAX),
            // Memory of p blocks, and time.
            scrypt(2, u16::MAX, u16::MAX),
            scrypt(1 << 14, 8, 9),
            scrypt(1 << 16, 1, 17),
        ] {
            assert_eq!(decrypt(&der, &password).unwrap_err(), Undecryptable::TooCostly);
        }
    }

    #[test]
    fn key_with_accepted_costs_is_tried() {
        let password = Password::new("Pl4nted");
        for der in [pbkdf2(0), pbkdf2(1), pbkdf2(2048), scrypt(1, 1, 1), scrypt(16, 8, 3)] {
            assert_eq!(decrypt(&der, &password).unwrap_err(), Undecryptable::WrongPassword);
        }
        for (n, r, p) in [(1 << 14, 8, 8), (1 << 17, 1, 1)] {
            let key = scrypt(n, r, p);
            let key = EncryptedPrivateKeyInfoRef::try_from(&*key).unwrap();
            assert_eq!(check_cost(&key.encryption_algorithm), Ok(()));
        }
    }

    #[test]
    fn malformed_key_is_an_error() {
        let password = Password::new("Pl4nted");
        for der in [scrypt(0, 8, 1), scrypt(3, 8, 1), scrypt(16, 0, 1), scrypt(16, 1, 0), vec![]] {
            assert_eq!(decrypt(&der, &password).unwrap_err(), Undecryptable::Unsupported);
        }
        // Each byte changed: never a panic, and never a key.
        for original in [pbkdf2(1), scrypt(2, 1, 1)] {
            for at in 0..original.len() {
                for change in [1, 0x80, 0xff] {
                    let mut der = original.clone();
                    der[at] ^= change;
                    decrypt(&der, &password).unwrap_err();
                }
            }
        }
    }
}
