use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::assert_one_line;
use crate::scram::{Binding, ClientFirst, Keys, NONCE_BYTES};

/// The maximum number of iterations, so that an input does not take long.
pub(super) const MAX_ITERATIONS: u32 = 16;

/// Fuzzes the server's messages of a login: the binding, the challenge up to a line break, and the
/// final message. In that, `{signature}` stands for the right signature, and `{part}` for its
/// beginning.
///
/// The login succeeds if and only if the final message has the right signature.
pub fn scram(data: &[u8]) {
    let Some((binding, said)) = data.split_first() else { return };
    let end = said.iter().position(|b| *b == b'\n').unwrap_or(said.len());
    let (server_first, server_final) = (&said[..end], said.get(end + 1..).unwrap_or_default());
    let binding = match binding % 3 {
        0 => Binding::No,
        1 => Binding::NotOffered,
        _ => Binding::EndPoint(vec![0xff; 32]),
    };
    // A fixed nonce, so that an input can continue it: it starts with "r=" and 24 characters,
    // BwcHBw and so on.
    let first = ClientFirst::new([7; NONCE_BYTES], binding);
    let client_first = first.message();
    let (_, nonce) = client_first.split_once("r=").unwrap();
    let nonce = nonce.to_owned();

    let challenge = match first.challenge(server_first, MAX_ITERATIONS) {
        Ok(challenge) => challenge,
        Err(e) => return assert_one_line(e),
    };
    let text = std::str::from_utf8(server_first).unwrap();
    let continued = text.strip_prefix("r=").and_then(|text| text.strip_prefix(&nonce));
    assert!(!continued.unwrap().starts_with(','), "{text}");
    assert!((1..=MAX_ITERATIONS).contains(&challenge.iterations));

    let keys = Keys::derive("pencil", &challenge.salt, challenge.iterations).unwrap();
    let (client_final, verifier) = challenge.prove(&keys).unwrap();
    let signature = signature(&keys, &client_first, text, &client_final);

    let server_final = replace(server_final, b"{signature}", signature.as_bytes());
    // 20 characters encode 15 of its 32 bytes.
    let server_final = replace(&server_final, b"{part}", &signature.as_bytes()[..20]);
    let verified = verifier.verify(&server_final);
    let is_right = std::str::from_utf8(&server_final)
        .is_ok_and(|text| text.split(',').next() == Some(&format!("v={signature}")));
    match verified {
        Ok(()) => assert!(is_right, "{server_final:?} was believed"),
        Err(e) => {
            assert!(!is_right, "{e}");
            assert_one_line(e);
        }
    }
}

/// Computes the server's signature of these messages, by section 3 of RFC 5802.
pub(super) fn signature(
    keys: &Keys,
    client_first: &str,
    server_first: &str,
    client_final: &str,
) -> String {
    // Skips the gs2-header: a flag, an empty name, and their commas.
    let bare = client_first.splitn(3, ',').nth(2).unwrap_or_default();
    let without_proof = client_final.rsplit_once(",p=").map_or(client_final, |(start, _)| start);
    let mut hmac = <Hmac<Sha256> as KeyInit>::new_from_slice(&keys.server).unwrap();
    hmac.update(format!("{bare},{server_first},{without_proof}").as_bytes());
    BASE64.encode(hmac.finalize().into_bytes())
}

/// Returns the text with the first `what` replaced.
fn replace(text: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    match text.windows(what.len()).position(|window| window == what) {
        Some(at) => [&text[..at], with, &text[at + what.len()..]].concat(),
        None => text.to_vec(),
    }
}
