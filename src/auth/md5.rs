//! The MD5 password exchange: `AuthenticationMD5Password` in [Protocol Flow].
//!
//! [Protocol Flow]: https://www.postgresql.org/docs/current/protocol-flow.html

use std::fmt::Write;

use md5::{Digest, Md5};
use zeroize::Zeroizing;

use crate::secret::wipe_stack;

/// Returns the response to the server's salt: `"md5" + md5(md5(password + user) + salt)`.
pub(crate) fn response(user: &str, password: &str, salt: [u8; 4]) -> String {
    let response = compute(user, password, salt);
    wipe_stack();
    response
}

#[inline(never)]
fn compute(user: &str, password: &str, salt: [u8; 4]) -> String {
    // Equivalent to the password: the server stores this hash.
    let stored = hex_digest(&[password.as_bytes(), user.as_bytes()]);
    format!("md5{}", *hex_digest(&[stored.as_bytes(), &salt]))
}

fn hex_digest(parts: &[&[u8]]) -> Zeroizing<String> {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    // Allocated at its final size, because a growing string leaves copies in freed memory.
    let mut hex = Zeroizing::new(String::with_capacity(32));
    for byte in hash.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The salt and response of a login by libpq 15: user `role_md5`, password `md5-secret`.
    #[test]
    fn md5_response_equals_that_of_libpq() {
        let response = response("role_md5", "md5-secret", [1, 2, 3, 4]);
        assert_eq!(response, "md5c110f332b870780f6b6e8e669dad3353");
    }
}
