//! The client side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS ([RFC 5802], [RFC 7677]), without I/O.
//!
//! Each step consumes the previous state and returns the next one, so that no step can be skipped
//! or repeated. An exchange succeeds only with [`ServerFinal::verify`]: the server has then proved
//! that it also knows the password.
//!
//! [RFC 5802]: https://www.rfc-editor.org/rfc/rfc5802
//! [RFC 7677]: https://www.rfc-editor.org/rfc/rfc7677

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{
    Hmac, KeyInit, Mac,
    digest::{CtOutput, Output},
};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    error::{Error, OneLine, Result},
    secret::{Key, wipe_stack},
};

/// The name of the mechanism in the server's list.
pub(crate) const MECHANISM: &str = "SCRAM-SHA-256";

/// The number of random bytes in a nonce, as in libpq (`SCRAM_RAW_NONCE_LEN`).
pub(crate) const NONCE_BYTES: usize = 18;

/// The name of the mechanism that binds the login to a TLS channel.
pub(crate) const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The channel binding of the client: the gs2-cbind-flag of RFC 5802, section 7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Binding {
    /// "n": the client does not support channel binding.
    No,
    /// "y": the client supports it, but the server does not offer it. A server that does offer it
    /// then detects that a man in the middle has changed its list of mechanisms.
    NotOffered,
    /// "p": bound by `tls-server-end-point` (RFC 5929), the hash of the server's certificate.
    EndPoint(Vec<u8>),
}

impl Binding {
    /// `gs2-header = gs2-cbind-flag "," [authzid] ","`
    fn gs2_header(&self) -> &'static str {
        match self {
            Self::No => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// `channel-binding = "c=" base64`, of the gs2-header and the binding's data.
    fn attribute(&self) -> String {
        let mut data = self.gs2_header().as_bytes().to_vec();
        if let Self::EndPoint(hash) = self {
            data.extend_from_slice(hash);
        }
        format!("c={}", BASE64.encode(data))
    }
}

/// The keys derived from a password, for one salt and number of iterations. They are sufficient to
/// log in without the password.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) client: Key,
    pub(crate) server: Key,
}

impl Keys {
    /// Derives the keys. The server's default of 4096 iterations takes about a millisecond.
    pub(crate) fn derive(password: &str, salt: &[u8], iterations: u32) -> Result<Self> {
        let keys = Self::compute(password, salt, iterations);
        wipe_stack();
        keys
    }

    #[inline(never)]
    fn compute(password: &str, salt: &[u8], iterations: u32) -> Result<Self> {
        // As in Postgres, a password that SASLprep rejects is used unchanged.
        let prepared = stringprep::saslprep(password).unwrap_or(password.into());
        // SaltedPassword := Hi(Normalize(password), salt, i)
        let mut salted = Zeroizing::new([0; 32]);
        pbkdf2::pbkdf2_hmac::<Sha256>(prepared.as_bytes(), salt, iterations, &mut *salted);
        if let std::borrow::Cow::Owned(prepared) = prepared {
            drop(Zeroizing::new(prepared));
        }
        Ok(Self {
            // ClientKey := HMAC(SaltedPassword, "Client Key")
            client: key(&salted[..], b"Client Key")?,
            // ServerKey := HMAC(SaltedPassword, "Server Key")
            server: key(&salted[..], b"Server Key")?,
        })
    }
}

fn key(salted: &[u8], label: &[u8]) -> Result<Key> {
    let mut bytes = hmac(salted, label)?.finalize().into_bytes();
    let key = Key::copy(&bytes);
    bytes.zeroize();
    Ok(key)
}

/// The state after the client-first-message.
pub(crate) struct ClientFirst {
    binding: Binding,
    nonce: String,
    bare: String,
}

/// The state after the server's challenge. The proof requires `iterations` rounds of hashing.
pub(crate) struct Challenge {
    binding: Binding,
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: u32,
    nonce: String,
    /// `client-first-message-bare "," server-first-message ","`
    auth_message_start: String,
}

/// The state after the client's proof, before the server's signature.
pub(crate) struct ServerFinal {
    /// The expected signature of the server. Compared in constant time.
    signature: CtOutput<Hmac<Sha256>>,
}

impl ClientFirst {
    /// Begins an exchange with a nonce of new random bytes.
    ///
    /// The user name is empty: Postgres uses the one from the startup message.
    pub(crate) fn new(random: [u8; NONCE_BYTES], binding: Binding) -> Self {
        Self::with("", BASE64.encode(random), binding)
    }

    fn with(user: &str, nonce: String, binding: Binding) -> Self {
        // client-first-message-bare = username "," nonce
        let bare = format!("n={user},r={nonce}");
        Self { binding, nonce, bare }
    }

    /// Returns the client-first-message.
    pub(crate) fn message(&self) -> String {
        format!("{}{}", self.binding.gs2_header(), self.bare)
    }

    /// Parses the server-first-message, which can request at most `max_iterations`.
    pub(crate) fn challenge(self, server_first: &[u8], max_iterations: u32) -> Result<Challenge> {
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
        // posit-number = %x31-39 *DIGIT
        let is_number = iterations.bytes().all(|b| b.is_ascii_digit());
        let iterations = Some(iterations)
            .filter(|text| is_number && !text.starts_with('0'))
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| malformed("its iteration count is not a positive number"))?;
        if iterations > max_iterations {
            return Err(Error::authentication(format!(
                "the server requests {iterations} SCRAM iterations, but at most {max_iterations} \
                 are accepted: lower scram_iterations on the server and set the password again, or \
                 raise max_scram_iterations"
            )));
        }
        Ok(Challenge {
            binding: self.binding,
            salt,
            iterations,
            nonce: nonce.to_owned(),
            auth_message_start: format!("{},{text},", self.bare),
        })
    }
}

impl Challenge {
    /// Responds to the challenge with the client-final-message.
    pub(crate) fn prove(self, keys: &Keys) -> Result<(String, ServerFinal)> {
        let proved = self.compute(keys);
        wipe_stack();
        proved
    }

    #[inline(never)]
    fn compute(self, keys: &Keys) -> Result<(String, ServerFinal)> {
        // StoredKey := H(ClientKey)
        let stored_key = Sha256::digest(&keys.client[..]);
        // client-final-message-without-proof = channel-binding "," nonce
        let without_proof = format!("{},r={}", self.binding.attribute(), self.nonce);
        // AuthMessage := client-first-message-bare + "," + server-first-message + "," +
        //                client-final-message-without-proof
        let auth_message = self.auth_message_start + &without_proof;
        // ClientSignature := HMAC(StoredKey, AuthMessage)
        let signature = hmac(&stored_key, auth_message.as_bytes())?.finalize().into_bytes();
        // ClientProof := ClientKey XOR ClientSignature
        let proof: Vec<u8> = keys.client.iter().zip(&signature).map(|(k, s)| k ^ s).collect();
        // ServerSignature := HMAC(ServerKey, AuthMessage)
        let signature = hmac(&keys.server, auth_message.as_bytes())?.finalize();

        let client_final = format!("{without_proof},p={}", BASE64.encode(proof));
        Ok((client_final, ServerFinal { signature }))
    }
}

impl ServerFinal {
    /// Verifies the server-final-message, which proves that the server knows the password.
    pub(crate) fn verify(self, server_final: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(server_final).map_err(|_| malformed("it is not UTF-8"))?;
        // server-final-message = (server-error / verifier) ["," extensions]
        let first = text.split(',').next();
        if let Ok(error) = attribute(first, "e=") {
            let error = OneLine::name(error);
            return Err(Error::authentication(format!("the server reports \"{error}\"")));
        }
        let signature = BASE64
            .decode(attribute(first, "v=")?)
            .map_err(|_| malformed("its signature is not base64"))?;
        let signature: Option<Output<Hmac<Sha256>>> = signature.as_slice().try_into().ok();
        match signature.map(CtOutput::new) {
            Some(signature) if signature == self.signature => Ok(()),
            _ => Err(Error::authentication(
                "the server's signature is wrong: it does not know the password, so it is not the \
                 expected server",
            )),
        }
    }
}

/// Returns the value of the attribute, which must be the next one.
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

// Secrets, and values from which they could be recovered, are never shown.
macro_rules! opaque {
    ($($state:ident)*) => {$(
        impl fmt::Debug for $state {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($state)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque!(ClientFirst Challenge ServerFinal Keys);

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
         s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn first() -> ClientFirst {
        ClientFirst::with("user", NONCE.to_owned(), Binding::No)
    }

    fn challenge(server_first: &[u8]) -> Result<Challenge> {
        first().challenge(server_first, 100_000)
    }

    fn prove(password: &str) -> (String, ServerFinal) {
        let challenge = challenge(SERVER_FIRST.as_bytes()).unwrap();
        let keys = Keys::derive(password, &challenge.salt, challenge.iterations).unwrap();
        challenge.prove(&keys).unwrap()
    }

    /// RFC 7677, section 3.
    #[test]
    fn scram_exchange_equals_the_example_of_rfc_7677() {
        assert_eq!(first().message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (client_final, server_final) = prove("pencil");
        assert_eq!(
            client_final,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        server_final.verify(SERVER_FINAL).unwrap();
    }

    /// The flag and the content of "c=" by RFC 5802, checked like a server does.
    #[test]
    fn channel_binding_is_sent_first_and_covered_by_the_proof() {
        for (binding, header, repeated) in [
            (Binding::No, "n,,", "n,,".as_bytes()),
            (Binding::NotOffered, "y,,", b"y,,"),
            (
                Binding::EndPoint(vec![0, 255]),
                "p=tls-server-end-point,,",
                b"p=tls-server-end-point,,\0\xff",
            ),
        ] {
            let first = ClientFirst::with("", NONCE.to_owned(), binding);
            assert_eq!(first.message(), format!("{header}n=,r={NONCE}"));
            let challenge = first.challenge(SERVER_FIRST.as_bytes(), 4096).unwrap();
            let keys = Keys::derive("pencil", &challenge.salt, 4096).unwrap();
            let (client_final, _) = challenge.prove(&keys).unwrap();
            let sent = client_final.strip_prefix("c=").unwrap().split(',').next().unwrap();
            assert_eq!(BASE64.decode(sent).unwrap(), repeated);
        }
    }

    #[test]
    fn wrong_server_signature_is_rejected() {
        for wrong in ["v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "v=", "v=6rriTRBi", "v"] {
            let (_, server_final) = prove("pencil");
            assert!(server_final.verify(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let (_, server_final) = prove("pencils");
        assert!(server_final.verify(SERVER_FINAL).is_err());
    }

    #[test]
    fn scram_error_of_the_server_is_reported() {
        let (_, server_final) = prove("x");
        let error = server_final.verify(b"e=invalid-proof").unwrap_err().to_string();
        assert!(error.contains("invalid-proof"), "{error}");
    }

    #[test]
    fn malformed_challenge_is_rejected() {
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
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=", "not a positive number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=+4", "not a positive number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=04096", "not a positive number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i= 4096", "not a positive number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=100001", "at most 100000"),
        ] {
            let error = challenge(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(challenge(b"r=\xff").is_err());
        assert!(challenge(b"r=rOprNGfwEbeRWgbNEkqOx,s=QQ==,i=1,x=ext").is_ok());
    }
}
