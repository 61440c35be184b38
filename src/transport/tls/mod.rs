//! TLS by rustls, with libpq's rules for verifying the server.
//!
//! The verifier of rustls is not used, because it supports neither verification without a host
//! name, nor common names, nor a server's self-signed certificate as its own root.

mod asn1;
mod channel_binding;
mod client_cert;
mod connector;
mod constraints;
mod encrypted_key;
mod error;
mod fields;
mod files;
mod hostname;
#[cfg(feature = "encrypted-keys")]
mod key_decryption;
mod names;
mod paths;
mod revocation;
mod roots;
mod show;
mod stream;
mod trust;
// The tests set file permissions.
#[cfg(all(test, unix))]
mod tests;
mod verify;

pub(super) use self::{connector::TlsConnector, error::tls_error, stream::TlsStream};
