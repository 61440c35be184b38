//! A byte stream that a connector has opened.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::config::ByteStream;

/// A byte stream that a connector has opened.
///
/// The mutex is never locked. It makes the stream `Sync`, which connectors need not provide.
pub(crate) struct CustomStream(Mutex<Box<dyn ByteStream>>);

impl CustomStream {
    pub(super) fn new(stream: Box<dyn ByteStream>) -> Self {
        Self(Mutex::new(stream))
    }

    fn stream(&mut self) -> Pin<&mut dyn ByteStream> {
        Pin::new(self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut())
    }

    /// Writes at least one byte. A stream that accepts none will never accept any, but TLS would
    /// wait for it.
    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.stream().poll_write(cx, bytes) {
            Poll::Ready(Ok(0)) if !bytes.is_empty() => {
                Poll::Ready(Err(io::ErrorKind::WriteZero.into()))
            }
            written => written,
        }
    }
}

/// Writes as much as a stream accepts without waiting, and at least one byte.
pub(crate) trait TryWrite {
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

impl TryWrite for TcpStream {
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::try_write(self, bytes)
    }
}

/// No task is woken afterwards, so nothing else can be written later.
impl TryWrite for CustomStream {
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let cx = &mut Context::from_waker(Waker::noop());
        match self.write(cx, bytes) {
            Poll::Ready(written) => {
                let written = written?;
                // As far as it is possible now.
                let _ = self.stream().poll_flush(cx);
                Ok(written)
            }
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsyncRead for CustomStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for CustomStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_shutdown(cx)
    }
}

impl fmt::Debug for CustomStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomStream")
    }
}
