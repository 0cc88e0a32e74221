//! What stands between a client and the server, and can stop without a word?
//!
//! Bytes are passed on in both directions. Invariants: a frozen connection stays frozen and open, as when the process
//! at the other end is stopped; everything ends with the value.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// An address that leads to a server. It runs on the runtime of the test.
pub struct Relay {
    address: SocketAddr,
    /// Where new connections lead; `None` leads nowhere.
    target: watch::Sender<Option<SocketAddr>>,
    /// Goes up when everything that is open freezes.
    frozen: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// Leads to a server from a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is none.
    pub async fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (target, frozen) = (watch::Sender::new(Some(target)), watch::Sender::new(0));
        let task = tokio::spawn(accept(listener, target.subscribe(), frozen.subscribe()));
        Ok(Self {
            address,
            target,
            frozen,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops everything that is open: it stays open, and nothing comes any more. New connections are
    /// accepted and never answered.
    pub fn freeze(&self) {
        self.target.send_replace(None);
        self.frozen.send_modify(|n| *n += 1);
    }

    /// Leads new connections to a server; frozen connections stay frozen.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(Some(target));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: watch::Receiver<Option<SocketAddr>>,
    frozen: watch::Receiver<u64>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let target = *target.borrow();
        let mut frozen = frozen.clone();
        frozen.mark_unchanged();
        connections.spawn(async move {
            let Some(target) = target else {
                return std::future::pending().await;
            };
            let Ok(server) = TcpStream::connect(target).await else {
                return;
            };
            let (mut client, mut server) = (client, server);
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                changed = frozen.changed() => if changed.is_ok() {
                    // Both ends are kept open.
                    std::future::pending::<()>().await;
                }
            }
        });
    }
}
