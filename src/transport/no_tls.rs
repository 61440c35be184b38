//! Replaces TLS in a build without it.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::tls_info::TlsInfo;
use crate::{
    config::TlsSettings,
    error::{Error, Result},
};

/// Cannot be constructed.
#[derive(Debug, Clone)]
pub(super) enum TlsConnector {}

/// Cannot be constructed.
#[derive(Debug)]
pub(crate) enum TlsStream {}

impl TlsConnector {
    pub(super) fn new(_settings: &TlsSettings, _host: Option<&str>) -> Result<Self> {
        Err(Error::tls("this build does not support TLS"))
    }

    pub(super) fn missing_roots(&self) -> Option<&Path> {
        match *self {}
    }

    pub(super) async fn connect(&self, _tcp: TcpStream, _direct: bool) -> Result<TlsStream> {
        match *self {}
    }
}

impl TlsStream {
    pub(super) fn info(&self) -> TlsInfo {
        match *self {}
    }

    pub(super) fn socket(&self) -> &TcpStream {
        match *self {}
    }

    pub(super) fn try_write_last(&mut self, _bytes: &[u8]) -> io::Result<()> {
        match *self {}
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match *self {}
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match *self {}
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }
}
