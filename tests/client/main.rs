//! Connecting and the life of a connection: addresses, hosts, logins, sessions, pools and proxies.

#[cfg(feature = "encrypted-keys")]
mod client_keys;
mod connect;
mod connectors;
mod hosts;
mod login;
#[cfg(all(feature = "bb8", feature = "deadpool"))]
mod pools;
mod proxies;
mod session;
#[path = "../support/mod.rs"]
mod support;
