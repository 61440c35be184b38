//! Sending a cancel request.

use std::{fmt, io::ErrorKind, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::debug;

use super::{
    attempts::unreachable, encryption::Encryption, peer::check_peer, report::TARGET,
    trace::trace_sent,
};
use crate::{
    config::{SocketSettings, TlsSettings},
    error::{ConnectAttempt, Error, Result, TimeoutPhase},
    metrics::connection::CancelRequest,
    protocol::frontend,
    transport::{Address, Encrypted, Tls, Transport, from_io_error},
};

/// The data of a cancel request, and how to reach the server.
///
/// The connection is opened in the same way as a new session: certificates are read again, because
/// a session may outlive the files that it was opened with.
pub(super) struct CancelKey {
    pub(super) address: Address,
    pub(super) sockets: SocketSettings,
    /// The user that the server at a Unix socket must run as.
    pub(super) require_peer: Option<String>,
    /// The kinds of encryption to try, in order.
    pub(super) encryption: &'static [Encryption],
    pub(super) tls: TlsSettings,
    /// The configured host, which the certificate must name.
    pub(super) host: Option<String>,
    /// `sslnegotiation=direct`: TLS from the first byte.
    pub(super) direct: bool,
    pub(super) process_id: u32,
    pub(super) secret: Vec<u8>,
}

impl CancelKey {
    /// Sends one cancel request on a connection of its own, and waits until the server has handled
    /// it. The server does not answer; it closes that connection.
    pub(super) async fn send(&self) -> Result<()> {
        let metrics = CancelRequest::begin();
        let sent = self.try_send().await;
        metrics.finish(sent.is_ok());
        if sent.is_ok() {
            debug!(target: TARGET, pid = self.process_id, "sent a cancel request");
        }
        sent
    }

    /// # Errors
    ///
    /// The errors of connecting, one for each kind of encryption that was tried.
    async fn try_send(&self) -> Result<()> {
        let mut attempts = Vec::new();
        let mut modes = self.encryption;
        while let Some((&encryption, others)) = modes.split_first() {
            match self.try_encryption(encryption, others).await {
                Ok(()) => return Ok(()),
                Err(e) => attempts.push(ConnectAttempt {
                    target: format!("{}, to cancel a query", self.address),
                    error: Box::new(e),
                }),
            }
            modes = others;
        }
        Err(unreachable(attempts))
    }

    async fn try_encryption(&self, encryption: Encryption, others: &[Encryption]) -> Result<()> {
        const DURING: &str = "while sending a cancel request";
        let request = frontend::cancel_request(self.process_id, &self.secret)?;
        let connected = Transport::connect(&self.address, &self.sockets).await;
        // Not `from_io_error`: there is no connection yet that could be lost.
        let mut transport = connected.map_err(|source| Error::Io { during: DURING, source })?;
        // The secret is for the server of the session only.
        check_peer(self.require_peer.as_deref(), &transport)?;
        if encryption == Encryption::Tls {
            let tls = Tls::load(&self.tls, self.host.as_deref(), self.direct).await?;
            transport = match transport.encrypt(&tls).await? {
                Encrypted::Yes(transport) => transport,
                Encrypted::No(transport) if others.contains(&Encryption::Plain) => transport,
                Encrypted::No(_) => {
                    return Err(Error::Tls {
                        message: "the server refused TLS for a cancel request, and sslmode \
                                  requires it"
                            .into(),
                    });
                }
            };
        }
        let exchange = async {
            transport.write_all(&request).await?;
            transport.flush().await?;
            trace_sent(&request);
            transport.read(&mut [0; 1]).await
        };
        match exchange.await {
            Ok(_) => Ok(()),
            // A reset after the request was written, or an end of TLS without close_notify, ends
            // the connection too.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                Ok(())
            }
            // With TLS 1.3, a rejected client certificate is reported here.
            Err(e) => Err(from_io_error(DURING, e)),
        }
    }
}

pub(super) fn timed_out(after: Duration) -> Error {
    Error::Timeout { phase: TimeoutPhase::Cancel, after }
}

/// Without the secret, which allows cancelling this session's queries.
impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKey")
            .field("address", &self.address)
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::config::ConnectionConfig;

    /// Another process may have taken the place of the server's socket.
    #[tokio::test]
    async fn secret_is_not_sent_to_a_server_of_another_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = UnixListener::bind(&path).unwrap();
        let config: ConnectionConfig = "host=h".parse().unwrap();
        let key = |require_peer| CancelKey {
            address: Address::Unix(path.clone()),
            sockets: config.sockets,
            require_peer,
            encryption: &[Encryption::Plain],
            tls: config.tls.clone(),
            host: None,
            direct: false,
            process_id: 77,
            secret: vec![1, 2, 3, 4],
        };
        let received = async || {
            let (mut socket, _) = server.accept().await.unwrap();
            let mut request = Vec::new();
            while let Ok(1..) = socket.read_buf(&mut request).await {
                if request.len() == 16 {
                    break;
                }
            }
            request.len()
        };
        let other = key(Some("somebody".to_owned()));
        let (sent, bytes) = tokio::join!(other.send(), received());
        assert!(sent.unwrap_err().to_string().contains("requirepeer"));
        assert_eq!(bytes, 0);
        let any = key(None);
        let (sent, bytes) = tokio::join!(any.send(), received());
        assert!(sent.is_ok() && bytes == 16);
    }
}
