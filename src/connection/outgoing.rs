//! Pipelined requests: sent without waiting for the answers to earlier ones.

use std::{
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::{io::AsyncWriteExt, time::Instant};

use crate::transport::Transport;

/// How many bytes of memory are kept for the next requests.
const MAX_KEPT: usize = 64 << 10;

/// Requests that are sent while answers are read.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    requests: BytesMut,
    /// How many bytes were added since all had been sent.
    added: usize,
    /// Not all of them has been sent, or passed on by TLS.
    is_sending: bool,
    /// When bytes were sent last.
    pub(super) sent_at: Option<Instant>,
    /// Why the rest of them could not be sent.
    error: Option<io::Error>,
}

impl Outgoing {
    pub(super) fn add(&mut self, request: &[u8]) {
        self.requests.extend_from_slice(request);
        self.added += request.len();
        self.is_sending = true;
    }

    /// Whether bytes are not sent yet, or held back by TLS.
    pub(super) fn is_sending(&self) -> bool {
        self.is_sending
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

    /// Returns the error of sending, if nothing is left to read. What the server sent before, and
    /// the end of the connection, come first: the runtime may not know of them yet.
    pub(super) fn take_error(&mut self, transport: &Transport) -> Option<io::Error> {
        self.error.take_if(|_| !matches!(transport.peek(), Ok(Some(_))))
    }

    fn send(&mut self, transport: &mut Transport, cx: &mut Context<'_>) {
        let sent = loop {
            if self.requests.is_empty() {
                // TLS may hold back the end of it otherwise.
                break pin!(transport.flush()).poll(cx);
            }
            match pin!(transport.write_buf(&mut self.requests)).poll(cx) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(_)) => self.sent_at = Some(Instant::now()),
                Poll::Ready(Err(e)) => break Poll::Ready(Err(e)),
                Poll::Pending => break Poll::Pending,
            }
        };
        if let Poll::Ready(sent) = sent {
            self.is_sending = false;
            self.requests.clear();
            // A large request must not stay in memory as long as the connection.
            if std::mem::take(&mut self.added) > MAX_KEPT {
                self.requests = BytesMut::new();
            }
            self.error = sent.err();
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Shutdown};

    use socket2::SockRef;
    use tokio::{io::AsyncReadExt, net::UnixStream};

    use super::*;

    #[tokio::test]
    async fn memory_of_a_large_request_is_not_kept() {
        for (size, is_kept) in [(1 << 10, true), (1 << 20, false)] {
            let (client, mut server) = UnixStream::pair().unwrap();
            let (mut outgoing, mut transport) = (Outgoing::default(), Transport::Unix(client));
            outgoing.add(&vec![b'x'; size]);
            let reading = tokio::spawn(async move {
                let mut received = 0;
                while received < size {
                    received += server.read(&mut [0; 64 << 10]).await.unwrap();
                }
            });
            poll_fn(|cx| {
                outgoing.poll_send(&mut transport, cx);
                if outgoing.is_sending() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            reading.await.unwrap();
            assert_eq!(outgoing.requests.try_reclaim(size), is_kept, "{size}");
        }
    }

    async fn send(outgoing: &mut Outgoing, transport: &mut Transport) {
        outgoing.add(b"request");
        poll_fn(|cx| {
            outgoing.poll_send(transport, cx);
            Poll::Ready(())
        })
        .await;
        assert!(outgoing.error.is_some());
    }

    #[tokio::test]
    async fn error_of_sending_comes_after_what_was_received() {
        for answer in [&b"answer"[..], b""] {
            let (client, mut server) = UnixStream::pair().unwrap();
            let (mut outgoing, mut transport) = (Outgoing::default(), Transport::Unix(client));
            server.write_all(answer).await.unwrap();
            drop(server);
            send(&mut outgoing, &mut transport).await;
            assert!(outgoing.take_error(&transport).is_none(), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn error_of_sending_is_returned_if_nothing_was_received() {
        let (client, server) = UnixStream::pair().unwrap();
        let (mut outgoing, mut transport) = (Outgoing::default(), Transport::Unix(client));
        SockRef::from(&server).shutdown(Shutdown::Read).unwrap();
        send(&mut outgoing, &mut transport).await;
        assert!(outgoing.take_error(&transport).is_some());
    }
}
