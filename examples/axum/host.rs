//! The host names that the service accepts, to prevent DNS rebinding.
//!
//! Without this check, any web page could read the service through its visitor's browser: the
//! page's own name resolves to 127.0.0.1 the second time, so the browser treats the service as the
//! page's server.

use std::{env, net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::error::Failure;

/// Names in addition to `localhost` and IP addresses, which need no DNS.
pub type Names = Arc<[String]>;

/// The names in `HOSTS`, separated by commas.
pub fn names() -> Names {
    let names = env::var("HOSTS").unwrap_or_default();
    names
        .split(',')
        .map(|name| name.trim().to_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

/// Rejects a request for another name.
pub async fn check(State(names): State<Names>, request: Request, next: Next) -> Response {
    match is_allowed(&request, &names) {
        true => next.run(request).await,
        false => Failure::Host.into_response(),
    }
}

fn is_allowed(request: &Request, names: &[String]) -> bool {
    let is_ours = |authority: &Authority| {
        let host = authority.host().to_lowercase();
        let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&host);
        let known = host == "localhost" || address.parse::<IpAddr>().is_ok();
        !authority.as_str().contains('@') && (known || names.contains(&host))
    };
    // Exactly one Host header, and the authority of the target if that is a complete URI.
    let mut headers = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (headers.next(), headers.next()) else { return false };
    let host = Authority::try_from(host.as_bytes());
    host.is_ok_and(|host| is_ours(&host)) && request.uri().authority().is_none_or(is_ours)
}
