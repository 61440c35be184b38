//! Sockets: name resolution, TCP, Unix sockets and TLS.

mod address;
mod connect;
mod custom;
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
mod no_tls;
#[cfg(target_os = "linux")]
mod rcvlowat;
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
mod tls;
mod tls_info;

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use self::custom::{CustomStream, TryWrite};
#[cfg(not(any(feature = "tls-ring", feature = "tls-aws-lc-rs")))]
use self::no_tls::{TlsConnector, TlsStream};
#[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
use self::tls::{TlsConnector, TlsStream};
pub(crate) use self::{address::Address, connect::resolve, tls_info::TlsInfo};
use crate::{
    config::{SocketSettings, TlsSettings},
    error::{Error, NOT_STARTED, Result},
    protocol::frontend::SSL_REQUEST,
};

/// How TLS is negotiated.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    /// TLS from the first byte, without an SSLRequest.
    direct: bool,
}

impl Tls {
    /// Whether this build supports TLS.
    pub(crate) const AVAILABLE: bool = cfg!(any(feature = "tls-ring", feature = "tls-aws-lc-rs"));

    /// Reads the certificates on a blocking thread.
    pub(crate) async fn load(
        settings: &TlsSettings,
        host: Option<&str>,
        direct: bool,
    ) -> Result<Self> {
        let (settings, host) = (settings.clone(), host.map(str::to_owned));
        let load = move || TlsConnector::new(&settings, host.as_deref());
        let connector = tokio::task::spawn_blocking(load).await.map_err(|_| {
            Error::tls("the runtime was shut down while certificates were being read")
        })??;
        // Not on the blocking thread, which is outside the span.
        if let Some(file) = connector.missing_roots() {
            tracing::warn!(target: "fraiseql_wire", file = %file.display(),
                "the root certificate file does not exist, so the server's certificate is not \
                 verified: correct sslrootcert, or set sslmode=verify-full to require the file");
        }
        Ok(Self { connector, direct })
    }
}

/// Converts an I/O error of a transport into an error of TLS or of the connection.
pub(crate) fn from_io_error(during: &'static str, error: io::Error) -> Error {
    #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))]
    if let Some(error) = tls::tls_error(&error) {
        return error;
    }
    Error::io(during, error)
}

/// The result of negotiating TLS.
pub(crate) enum Encrypted {
    Yes(Transport),
    /// The server does not support TLS. The connection can be used without it.
    No(Transport),
}

/// A connected socket or the stream of a connector, with or without TLS.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// The stream of a connector.
    Custom(CustomStream),
    CustomTls(Box<TlsStream<CustomStream>>),
    /// The socket has been closed.
    Closed,
}

impl Transport {
    /// Connects to one address. Dropping the future abandons the attempt.
    pub(crate) async fn connect(address: &Address, settings: &SocketSettings) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => connect::tcp(*address, settings).await.map(Self::Tcp),
            #[cfg(unix)]
            Address::Unix(path) => connect::unix(path).await.map(Self::Unix),
            Address::Custom(connector, target) => {
                let stream = connector.open(target.clone()).await?;
                Ok(Self::Custom(CustomStream::new(stream)))
            }
        }
    }

    /// Negotiates TLS.
    pub(crate) async fn encrypt(mut self, tls: &Tls) -> Result<Encrypted> {
        if !matches!(self, Self::Tcp(_) | Self::Custom(_)) {
            return Ok(Encrypted::No(self));
        }
        if !tls.direct && !self.request_tls().await? {
            return Ok(Encrypted::No(self));
        }
        let connector = &tls.connector;
        let encrypted = match self {
            Self::Tcp(stream) => Self::Tls(connector.connect(stream, tls.direct).await?.into()),
            Self::Custom(stream) => {
                Self::CustomTls(connector.connect(stream, tls.direct).await?.into())
            }
            other => other,
        };
        Ok(Encrypted::Yes(encrypted))
    }

    /// Returns whether the server supports TLS.
    async fn request_tls(&mut self) -> Result<bool> {
        self.write_all(SSL_REQUEST).await.map_err(|e| Error::io(REQUESTING_TLS, e))?;
        self.flush().await.map_err(|e| Error::io(REQUESTING_TLS, e))?;
        tracing::trace!(target: "fraiseql_wire", direction = "sent", name = "SSLRequest",
            bytes = SSL_REQUEST.len(), "protocol message");
        // Read a single byte: any further plaintext is then read as TLS, and rejected
        // (CVE-2021-23222).
        match self.read_u8().await.map_err(|e| Error::io(REQUESTING_TLS, e))? {
            b'S' => Ok(true),
            b'N' => Ok(false),
            // Usually the server could not start a process for the session. The text is not shown:
            // it is unauthenticated (CVE-2024-10977).
            ERROR_RESPONSE => {
                let text = "it responded to the TLS request with an error; see its log";
                let source = io::Error::other(text);
                Err(Error::Io { during: NOT_STARTED, source })
            }
            other => Err(Error::protocol(format!(
                "unexpected {:?} in response to the TLS request: expected 'S' or 'N'",
                char::from(other)
            ))),
        }
    }

    /// Returns the negotiated parameters of TLS, if it is in use.
    pub(crate) fn tls_info(&self) -> Option<TlsInfo> {
        match self {
            Self::Tls(stream) => Some(stream.info()),
            Self::CustomTls(stream) => Some(stream.info()),
            _ => None,
        }
    }

    /// Returns the user of the peer of a Unix socket; `None` for other sockets.
    #[cfg(unix)]
    pub(crate) fn peer_user(&self) -> io::Result<Option<String>> {
        let Self::Unix(stream) = self else { return Ok(None) };
        let uid = nix::unistd::Uid::from_raw(stream.peer_cred()?.uid());
        match nix::unistd::User::from_uid(uid)? {
            Some(user) => Ok(Some(user.name)),
            None => Ok(Some(format!("with id {uid}, which has no name"))),
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn peer_user(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// Makes the operating system signal readability only when this many bytes have arrived, or the
    /// peer has closed the connection. A read still returns whatever has arrived.
    ///
    /// Returns whether the system supports it: only Linux does, for TCP.
    #[cfg(target_os = "linux")]
    pub(crate) fn set_rcvlowat(&self, bytes: usize) -> bool {
        match self {
            Self::Tcp(stream) => rcvlowat::set(stream, bytes).is_ok(),
            Self::Unix(_) | Self::Custom(_) | Self::CustomTls(_) | Self::Closed => false,
            Self::Tls(stream) => rcvlowat::set(stream.socket(), bytes).is_ok(),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn set_rcvlowat(&self, _bytes: usize) -> bool {
        false
    }

    /// Writes a last message, as far as the socket accepts it without waiting.
    pub(crate) fn try_write_last(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes).map(drop),
            #[cfg(unix)]
            Self::Unix(stream) => stream.try_write(bytes).map(drop),
            Self::Tls(stream) => stream.try_write_last(bytes),
            Self::Custom(stream) => stream.try_write(bytes).map(drop),
            Self::CustomTls(stream) => stream.try_write_last(bytes),
            Self::Closed => Ok(()),
        }
    }

    /// Returns the number of bytes that have arrived, without waiting and without reading them.
    ///
    /// 0 means the end of the stream, and `None` that nothing has arrived. With TLS, these are
    /// bytes on the wire. The stream of a connector has no other answer than that of a read.
    pub(crate) fn peek(&self) -> io::Result<Option<usize>> {
        let mut byte = [MaybeUninit::new(0)];
        let peeked = match self {
            Self::Tcp(stream) => SockRef::from(stream).peek(&mut byte),
            #[cfg(unix)]
            Self::Unix(stream) => SockRef::from(stream).peek(&mut byte),
            Self::Tls(stream) => SockRef::from(stream.socket()).peek(&mut byte),
            Self::Custom(_) | Self::CustomTls(_) => return Ok(None),
            Self::Closed => Ok(0),
        };
        match peeked {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether [`peek`](Self::peek) asks the operating system.
    pub(crate) fn can_peek(&self) -> bool {
        !matches!(self, Self::Custom(_) | Self::CustomTls(_))
    }

    /// Whether a write fails, and sends nothing, once the peer has closed the connection. A TCP
    /// socket accepts the first write after that. If a Unix socket is closed with data that was not
    /// read, Linux reports a reset; other systems report an end in order.
    #[cfg(target_os = "linux")]
    pub(crate) fn reports_end_on_write(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn reports_end_on_write(&self) -> bool {
        false
    }

    /// Waits until the socket can be read.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            #[cfg(unix)]
            Self::Unix(stream) => stream.readable().await,
            Self::Tls(stream) => stream.socket().readable().await,
            Self::Custom(_) | Self::CustomTls(_) | Self::Closed => Ok(()),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// Closes the socket and releases its file descriptor.
    pub(crate) fn close(&mut self) {
        *self = Self::Closed;
    }

    /// Closes the socket with a reset if it supports one, which frees the local port immediately.
    pub(crate) fn abort(&mut self) {
        let tcp = match self {
            Self::Tcp(stream) => Some(&*stream),
            Self::Tls(stream) => Some(stream.socket()),
            _ => None,
        };
        if let Some(tcp) = tcp {
            // If this fails, only the port is not freed immediately.
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
        self.close();
    }
}

/// The error if the connection was lost before the server had answered whether it supports TLS.
pub(crate) const REQUESTING_TLS: &str = "while negotiating TLS";
/// The tag of an ErrorResponse, which some servers send instead of 'S' or 'N'.
const ERROR_RESPONSE: u8 = 0x45;

macro_rules! each {
    ($transport:expr, $stream:ident => $do:expr) => {
        match $transport.get_mut() {
            Self::Tcp($stream) => $do,
            #[cfg(unix)]
            Self::Unix($stream) => $do,
            Self::Tls($stream) => {
                let $stream = $stream.as_mut();
                $do
            }
            Self::Custom($stream) => $do,
            Self::CustomTls($stream) => {
                let $stream = $stream.as_mut();
                $do
            }
            Self::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
