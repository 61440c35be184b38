//! Any byte stream in place of a socket. Of tokio, this uses only the traits of streams.

use std::{fmt, io, pin::Pin, sync::Arc};

pub(crate) use tokio::io::{AsyncRead, AsyncWrite};

/// A callback that opens a byte stream to a target of type `T`.
#[derive(Clone)]
pub(crate) struct Connector<T>(Arc<Open<T>>);

type Open<T> = dyn Fn(T) -> Opening + Send + Sync;
type Opening = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// A stream that a connector opens.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

impl<T> Connector<T> {
    pub(crate) fn new<F, C, S>(open: F) -> Self
    where
        F: Fn(T) -> C + Send + Sync + 'static,
        C: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self(Arc::new(move |target| {
            let opening = open(target);
            Box::pin(async { Ok(Box::new(opening.await?) as Box<dyn ByteStream>) })
        }))
    }

    pub(crate) async fn open(&self, target: T) -> io::Result<Box<dyn ByteStream>> {
        (self.0)(target).await
    }
}

impl<T> PartialEq for Connector<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for Connector<T> {}

impl<T> fmt::Debug for Connector<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}
