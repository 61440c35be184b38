//! The user of the server at a Unix socket.

use super::attempts::CONNECTING;
use crate::{
    error::{Error, Result},
    transport::Transport,
};

/// Checks the user of the server at a Unix socket against `requirepeer`.
pub(super) fn check_peer(required: Option<&str>, transport: &Transport) -> Result<()> {
    let Some(required) = required else { return Ok(()) };
    let peer = transport.peer_user().map_err(|e| Error::Io { during: CONNECTING, source: e })?;
    match peer {
        Some(peer) if peer != required => Err(Error::authentication(format!(
            "requirepeer is {required:?}, but the server runs as the user {peer:?}"
        ))),
        _ => Ok(()),
    }
}
