//! Replaces TLS in a build without it.

use std::{
    convert::Infallible,
    io,
    marker::PhantomData,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
pub(crate) struct TlsStream<S> {
    never: Infallible,
    stream: PhantomData<S>,
}

impl TlsConnector {
    pub(super) fn new(_settings: &TlsSettings, _host: Option<&str>) -> Result<Self> {
        Err(Error::tls("this build does not support TLS"))
    }

    pub(super) fn missing_roots(&self) -> Option<&Path> {
        match *self {}
    }

    pub(super) async fn connect<S>(&self, _stream: S, _direct: bool) -> Result<TlsStream<S>> {
        match *self {}
    }
}

impl<S> TlsStream<S> {
    pub(super) fn info(&self) -> TlsInfo {
        match self.never {}
    }

    pub(super) fn socket(&self) -> &S {
        match self.never {}
    }

    pub(super) fn try_write_last(&mut self, _bytes: &[u8]) -> io::Result<()> {
        match self.never {}
    }
}

impl<S: Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.never {}
    }
}

impl<S: Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.never {}
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.never {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.never {}
    }
}
