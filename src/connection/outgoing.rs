//! Pipelined requests: sent without waiting for the answers to earlier ones.

use std::{
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use crate::transport::Transport;

/// Requests that are sent while answers are read.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    requests: BytesMut,
    /// Not all of them has been sent, or passed on by TLS.
    is_sending: bool,
    /// Why the rest of them could not be sent.
    error: Option<io::Error>,
}

impl Outgoing {
    pub(super) fn add(&mut self, request: &[u8]) {
        self.requests.extend_from_slice(request);
        self.is_sending = true;
    }

    /// How many bytes are not sent yet.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Sends as much as the socket accepts.
    #[inline]
    pub(super) fn poll_send(&mut self, transport: &mut Transport, cx: &mut Context<'_>) {
        if self.is_sending {
            self.send(transport, cx);
        }
    }

    /// Returns the error of sending. Everything that the server sent before comes first.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    fn send(&mut self, transport: &mut Transport, cx: &mut Context<'_>) {
        let sent = loop {
            if self.requests.is_empty() {
                // TLS may hold back the end of it otherwise.
                break pin!(transport.flush()).poll(cx);
            }
            match pin!(transport.write_buf(&mut self.requests)).poll(cx) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => break Poll::Ready(Err(e)),
                Poll::Pending => break Poll::Pending,
            }
        };
        if let Poll::Ready(sent) = sent {
            self.is_sending = false;
            self.requests.clear();
            self.error = sent.err();
        }
    }
}
