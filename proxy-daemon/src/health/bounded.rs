//! How much of us can strangers hold on to?
//!
//! The healthz address is open to whoever reaches the node. Invariants: at most [`CONNECTIONS`] at a
//! time, none longer than [`LIFETIME`], so that clients that say nothing cost neither the descriptors
//! that syncs need nor, for long, the answers that others wait for.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

const CONNECTIONS: usize = 128;
const LIFETIME: Duration = Duration::from_secs(15);
/// How long accepting is left alone when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(200);

/// A listener whose connections are few and short.
pub(super) struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            free: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else {
                // Nobody closes the semaphore.
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let end = Box::pin(tokio::time::sleep(LIFETIME));
                    let connection = Connection {
                        stream,
                        end,
                        _permit: permit,
                    };
                    return (connection, peer);
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends by itself.
pub(super) struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_says_nothing_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bounded = Bounded::new(listener);
        let address = bounded.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = bounded.accept().await;
        assert_eq!(bounded.free.available_permits(), CONNECTIONS - 1);
        connection.end = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut bytes = [0; 1];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = std::future::poll_fn(|context| {
            Pin::new(&mut connection).poll_read(context, &mut buffer)
        });
        assert_eq!(read.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert_eq!(bounded.free.available_permits(), CONNECTIONS);
    }
}
