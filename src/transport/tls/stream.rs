use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client;

use crate::transport::{custom::TryWrite, tls_info::TlsInfo};

/// A TLS session over a socket or another stream.
#[derive(Debug)]
pub(crate) struct TlsStream<S> {
    inner: client::TlsStream<S>,
    info: TlsInfo,
}

impl<S> TlsStream<S> {
    pub(super) fn new(inner: client::TlsStream<S>, info: TlsInfo) -> Self {
        Self { inner, info }
    }

    pub(crate) fn info(&self) -> TlsInfo {
        self.info.clone()
    }

    pub(crate) fn socket(&self) -> &S {
        self.inner.get_ref().0
    }
}

impl<S: TryWrite> TlsStream<S> {
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
struct AtOnce<'a, S>(&'a mut S);

impl<S: TryWrite> Write for AtOnce<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
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
