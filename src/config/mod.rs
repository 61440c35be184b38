//! Connection settings: server, login and options.

pub(crate) mod address;
mod builder;
mod client_options;
mod connection_config;
mod connector;
mod encoding;
mod environment;
mod foreign;
mod host;
mod keyword;
mod modes;
mod parse;
mod passfile;
mod password;
mod protocol_version;
mod require_auth;
mod resolve;
mod retry;
mod scram_cache;
mod service;
mod socket;
mod statements_lost;
mod system_user;
pub(crate) mod tls;

pub use self::{
    builder::ConnectionConfigBuilder,
    connection_config::ConnectionConfig,
    host::Target,
    modes::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs},
    retry::RetryPolicy,
    tls::{TlsConfig, TlsConfigBuilder, TlsVersion},
};
pub(crate) use self::{
    connector::{ByteStream, Connector},
    encoding::is_utf8,
    protocol_version::ProtocolVersion,
    require_auth::Method,
    scram_cache::ScramCacheEntry,
    socket::SocketSettings,
    tls::TlsSettings,
};
pub(crate) use crate::secret::Password;
