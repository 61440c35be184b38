//! TLS settings, from code and from libpq's keywords.

mod key_password;
mod keywords;
pub(crate) mod settings;
mod tls_config;

pub(crate) use self::{key_password::KeyPassword, keywords::from_keywords, settings::TlsSettings};
pub use self::{
    settings::TlsVersion,
    tls_config::{TlsConfig, TlsConfigBuilder},
};
