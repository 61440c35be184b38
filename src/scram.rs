//! SCRAM-SHA-256 by [RFC 5802] and [RFC 7677], the client's side, without I/O.
//!
//! Each step consumes the state before it and returns the next, so that no step can be left out or
//! repeated. Only [`ServerFinal::verify`] ends an exchange well: then the server has proved that it
//! knows the password too.
//!
//! [RFC 5802]: https://www.rfc-editor.org/rfc/rfc5802
//! [RFC 7677]: https://www.rfc-editor.org/rfc/rfc7677

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// The name of the mechanism, as in the server's list.
pub(crate) const MECHANISM: &str = "SCRAM-SHA-256";

/// Random bytes in a nonce, 18 as in libpq (`SCRAM_RAW_NONCE_LEN`).
pub(crate) const NONCE_BYTES: usize = 18;

/// The most iterations a server may ask for. Each costs this side two SHA-256 blocks; 100,000 are
/// some 50 ms, and a hostile server could otherwise ask for 2^31 of them.
const MAX_ITERATIONS: u32 = 100_000;

/// RFC 5802, section 7: `gs2-header = gs2-cbind-flag "," [authzid] ","`, "n" when the client does
/// not do channel binding.
const GS2_HEADER: &str = "n,,";

/// The client has spoken first.
pub(crate) struct ClientFirst {
    nonce: String,
    bare: String,
}

/// The server has answered with its challenge; the proof costs `iterations` rounds of hashing.
pub(crate) struct Challenge {
    salt: Vec<u8>,
    iterations: u32,
    nonce: String,
    /// `client-first-message-bare "," server-first-message ","`
    auth_message_start: String,
}

/// The client has sent its proof and waits for the server's.
pub(crate) struct ServerFinal {
    signature: Hmac<Sha256>,
}

impl ClientFirst {
    /// Begins an exchange with a nonce of fresh random bytes.
    ///
    /// The name is left empty: Postgres takes the one of the start-up message.
    pub(crate) fn new(random: [u8; NONCE_BYTES]) -> Self {
        Self::with("", BASE64.encode(random))
    }

    fn with(user: &str, nonce: String) -> Self {
        // client-first-message-bare = username "," nonce
        let bare = format!("n={user},r={nonce}");
        Self { nonce, bare }
    }

    /// The client-first-message.
    pub(crate) fn message(&self) -> String {
        format!("{GS2_HEADER}{}", self.bare)
    }

    /// Takes the server-first-message.
    pub(crate) fn challenge(self, server_first: &[u8]) -> Result<Challenge> {
        let text = std::str::from_utf8(server_first).map_err(|_| malformed("it is not UTF-8"))?;
        // server-first-message = [reserved-mext ","] nonce "," salt "," iteration-count
        //                        ["," extensions]
        let mut attributes = text.split(',');
        let nonce = attribute(attributes.next(), "r=")?;
        let salt = attribute(attributes.next(), "s=")?;
        let iterations = attribute(attributes.next(), "i=")?;

        // RFC 5802, section 5.1: the client MUST verify that the initial part of the nonce used in
        // subsequent messages is the same as the nonce it initially specified.
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(malformed("its nonce does not continue the client's"));
        }
        let salt = BASE64.decode(salt).map_err(|_| malformed("its salt is not base64"))?;
        let iterations = iterations
            .parse()
            .ok()
            .filter(|i| *i > 0)
            .ok_or_else(|| malformed("its iteration count is not a positive number"))?;
        if iterations > MAX_ITERATIONS {
            return Err(Error::authentication(format!(
                "the server asks for {iterations} SCRAM iterations, more than the {MAX_ITERATIONS} \
                 that are accepted: set scram_iterations on the server lower and set the password \
                 again"
            )));
        }
        Ok(Challenge {
            salt,
            iterations,
            nonce: nonce.to_owned(),
            auth_message_start: format!("{},{text},", self.bare),
        })
    }
}

impl Challenge {
    /// Answers the challenge: the client-final-message. Takes milliseconds of computing.
    pub(crate) fn prove(self, password: &str) -> Result<(String, ServerFinal)> {
        // Postgres prepares the password like this, and takes one that cannot be prepared as it is.
        let prepared = stringprep::saslprep(password).unwrap_or(password.into());

        // SaltedPassword := Hi(Normalize(password), salt, i)
        let mut salted = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(
            prepared.as_bytes(),
            &self.salt,
            self.iterations,
            &mut salted,
        );
        // ClientKey := HMAC(SaltedPassword, "Client Key")
        let client_key = hmac(&salted, b"Client Key")?.finalize().into_bytes();
        // StoredKey := H(ClientKey)
        let stored_key = Sha256::digest(client_key);
        // client-final-message-without-proof = channel-binding "," nonce
        let without_proof = format!("c={},r={}", BASE64.encode(GS2_HEADER), self.nonce);
        // AuthMessage := client-first-message-bare + "," + server-first-message + "," +
        //                client-final-message-without-proof
        let auth_message = self.auth_message_start + &without_proof;
        // ClientSignature := HMAC(StoredKey, AuthMessage)
        let signature = hmac(&stored_key, auth_message.as_bytes())?.finalize().into_bytes();
        // ClientProof := ClientKey XOR ClientSignature
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(k, s)| k ^ s).collect();
        // ServerKey := HMAC(SaltedPassword, "Server Key")
        let server_key = hmac(&salted, b"Server Key")?.finalize().into_bytes();
        // ServerSignature := HMAC(ServerKey, AuthMessage)
        let signature = hmac(&server_key, auth_message.as_bytes())?;

        let client_final = format!("{without_proof},p={}", BASE64.encode(proof));
        Ok((client_final, ServerFinal { signature }))
    }
}

impl ServerFinal {
    /// Takes the server-final-message and checks that the server knows the password.
    pub(crate) fn verify(self, server_final: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(server_final).map_err(|_| malformed("it is not UTF-8"))?;
        // server-final-message = (server-error / verifier) ["," extensions]
        let first = text.split(',').next();
        if let Ok(error) = attribute(first, "e=") {
            return Err(Error::authentication(format!("the server says {error:?}")));
        }
        let signature = BASE64
            .decode(attribute(first, "v=")?)
            .map_err(|_| malformed("its signature is not base64"))?;
        self.signature.verify_slice(&signature).map_err(|_| {
            Error::authentication(
                "the server's signature is wrong: it does not know the password, so it is not the \
                 server it pretends to be",
            )
        })
    }
}

/// The value of the attribute that must come next.
fn attribute<'a>(next: Option<&'a str>, name: &str) -> Result<&'a str> {
    next.and_then(|a| a.strip_prefix(name))
        .ok_or_else(|| malformed(&format!("the attribute {name:?} is missing")))
}

fn hmac(key: &[u8], data: &[u8]) -> Result<Hmac<Sha256>> {
    let mut hmac = <Hmac<Sha256> as KeyInit>::new_from_slice(key)
        .map_err(|e| Error::authentication(e.to_string()))?;
    hmac.update(data);
    Ok(hmac)
}

fn malformed(why: &str) -> Error {
    Error::authentication(format!("the server's SCRAM message is malformed: {why}"))
}

// Secrets and what could be computed back to them are never shown.
macro_rules! opaque {
    ($($state:ident)*) => {$(
        impl fmt::Debug for $state {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($state)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque!(ClientFirst Challenge ServerFinal);

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
         s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn first() -> ClientFirst {
        ClientFirst::with("user", NONCE.to_owned())
    }

    /// RFC 7677, section 3.
    #[test]
    fn the_exchange_of_the_rfc() {
        assert_eq!(first().message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = first().challenge(SERVER_FIRST.as_bytes()).unwrap();
        let (client_final, server_final) = challenge.prove("pencil").unwrap();
        assert_eq!(
            client_final,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        server_final.verify(SERVER_FINAL).unwrap();
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_refused() {
        for wrong in ["v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "v=", "v=6rriTRBi", "v"] {
            let challenge = first().challenge(SERVER_FIRST.as_bytes()).unwrap();
            let (_, server_final) = challenge.prove("pencil").unwrap();
            assert!(server_final.verify(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let (_, server_final) =
            first().challenge(SERVER_FIRST.as_bytes()).unwrap().prove("pencils").unwrap();
        assert!(server_final.verify(SERVER_FINAL).is_err());
    }

    #[test]
    fn the_servers_own_error_is_passed_on() {
        let (_, server_final) =
            first().challenge(SERVER_FIRST.as_bytes()).unwrap().prove("x").unwrap();
        let error = server_final.verify(b"e=invalid-proof").unwrap_err().to_string();
        assert!(error.contains("invalid-proof"), "{error}");
    }

    #[test]
    fn a_malformed_challenge_is_refused() {
        for (bad, why) in [
            ("", "\"r=\" is missing"),
            ("r=rOprNGfwEbeRWgbNEkqO", "\"s=\" is missing"),
            ("m=ext,r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=1", "\"r=\" is missing"),
            ("r=rOprNGfwEbeRWgbNEkqO,s=QQ==,i=1", "does not continue"),
            ("r=other,s=QQ==,i=1", "does not continue"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=Q,i=1", "not base64"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=0", "not a positive number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=-1", "not a positive number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=99999999999", "not a positive number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=100001", "more than the 100000"),
        ] {
            let error = first().challenge(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(first().challenge(b"r=\xff").is_err());
        assert!(first().challenge(b"r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=1,x=ext").is_ok());
    }
}
