//! Whether sessions and cancel requests are encrypted.

use crate::{
    config::{ConnectionConfig, SslMode},
    transport::{Address, Tls},
};

/// How a connection is protected on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encryption {
    Plain,
    Tls,
}

/// The kinds of encryption to try for a session, in order.
pub(super) fn encryption_modes(
    config: &ConnectionConfig,
    address: &Address,
) -> &'static [Encryption] {
    match (address, config.ssl_mode) {
        // As in libpq: data on a Unix socket does not leave the machine.
        #[cfg(unix)]
        (Address::Unix(_), _) => &[Encryption::Plain],
        (_, SslMode::Disable) => &[Encryption::Plain],
        (_, SslMode::Allow | SslMode::Prefer) if !Tls::AVAILABLE => &[Encryption::Plain],
        (_, SslMode::Allow) => &[Encryption::Plain, Encryption::Tls],
        (_, SslMode::Prefer) => &[Encryption::Tls, Encryption::Plain],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Encryption::Tls],
    }
}

/// The kinds of encryption to try for a cancel request, in order: those of a new session. If the
/// session uses TLS, TLS comes first.
pub(super) fn cancel_encryption_modes(
    config: &ConnectionConfig,
    address: &Address,
    session_is_encrypted: bool,
) -> &'static [Encryption] {
    match encryption_modes(config, address) {
        [Encryption::Plain, Encryption::Tls] if session_is_encrypted => {
            &[Encryption::Tls, Encryption::Plain]
        }
        modes => modes,
    }
}
