use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client;

use crate::transport::tls_info::TlsInfo;

/// A TLS session over a socket.
#[derive(Debug)]
pub(crate) struct TlsStream {
    inner: client::TlsStream<TcpStream>,
    info: TlsInfo,
}

impl TlsStream {
    pub(super) fn new(inner: client::TlsStream<TcpStream>, info: TlsInfo) -> Self {
        Self { inner, info }
    }

    pub(crate) fn info(&self) -> TlsInfo {
        self.info.clone()
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        self.inner.get_ref().0
    }

    /// Writes a last message, as far as the socket accepts it without waiting, and closes TLS.
    pub(crate) fn try_write_last(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (socket, session) = self.inner.get_mut();
        session.writer().write_all(bytes)?;
        session.send_close_notify();
        while session.wants_write() {
            session.write_tls(&mut AtOnce(socket))?;
        }
        Ok(())
    }
}

/// Writes what the socket accepts without waiting.
struct AtOnce<'a>(&'a TcpStream);

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
