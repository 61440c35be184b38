//! Whether sessions and cancel requests are encrypted.

use crate::{
    config::{ConnectionConfig, SslMode},
    transport::{Address, Tls},
};

/// Whether to encrypt, first to last.
pub(super) fn encryption_modes(config: &ConnectionConfig, address: &Address) -> &'static [bool] {
    match (address, config.ssl_mode) {
        // A Unix socket is never encrypted, whatever was asked for: nobody is in between.
        #[cfg(unix)]
        (Address::Unix(_), _) => &[false],
        (_, SslMode::Disable) => &[false],
        (_, SslMode::Allow | SslMode::Prefer) if !Tls::AVAILABLE => &[false],
        (_, SslMode::Allow) => &[false, true],
        (_, SslMode::Prefer) => &[true, false],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[true],
    }
}

/// Whether to encrypt a cancel request, first to last: as a new session would be, but for a session
/// that TLS protects, TLS first.
pub(super) fn cancel_encryption_modes(
    config: &ConnectionConfig,
    address: &Address,
    session_is_encrypted: bool,
) -> &'static [bool] {
    match encryption_modes(config, address) {
        [false, true] if session_is_encrypted => &[true, false],
        ways => ways,
    }
}
