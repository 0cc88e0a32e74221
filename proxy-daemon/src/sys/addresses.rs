//! Which addresses does this node have, and when does that change?
//!
//! Invariants: a notification of the kernel only means that something changed; everything is read again after
//! each, and every `REREAD` without one, so that a lost notification costs seconds (NP-7).

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::address::AddressAttribute;
use rtnetlink::{Handle, MulticastGroup};

/// Interval at which everything is read without a notification, in case one was lost.
const REREAD: Duration = Duration::from_secs(10);
/// How long notifications are collected before reading, because addresses often come several at a time.
const SETTLE: Duration = Duration::from_millis(5);

/// The node's addresses or network interfaces cannot be read or followed.
#[derive(Debug, thiserror::Error)]
pub enum AddressesError {
    /// No netlink socket.
    #[error("cannot open a routing netlink socket")]
    Open(#[source] std::io::Error),
    /// The kernel did not list them.
    #[error("cannot list the node's addresses or network interfaces")]
    List(#[source] rtnetlink::Error),
    /// The notification socket was closed.
    #[error("the routing netlink socket was closed")]
    Ended,
}

/// Calls `changed` with every address of the node, each with the prefix of its network, now and whenever that
/// set changes.
///
/// # Errors
/// [`AddressesError`] if they cannot be followed any longer; the caller starts again.
pub async fn follow(changed: impl FnMut(BTreeSet<IpNet>)) -> Result<Infallible, AddressesError> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    follow_with(
        &groups,
        async |handle| {
            let addresses = read(handle).await?;
            Ok(addresses.into_iter().map(|(_, address)| address).collect())
        },
        changed,
    )
    .await
}

/// Calls `changed` with what `read` returns, now and whenever that changes; it is read after each notification to
/// one of these groups.
///
/// # Errors
/// [`AddressesError`] if it cannot be followed any longer; the caller starts again.
pub(super) async fn follow_with<T: Clone + PartialEq>(
    groups: &[MulticastGroup],
    read: impl AsyncFn(&Handle) -> Result<T, AddressesError>,
    mut changed: impl FnMut(T),
) -> Result<Infallible, AddressesError> {
    let (connection, handle, mut notices) =
        rtnetlink::new_multicast_connection(groups).map_err(AddressesError::Open)?;
    let connection = AbortOnDrop(tokio::spawn(connection));
    let mut known = read(&handle).await?;
    changed(known.clone());
    loop {
        match tokio::time::timeout(REREAD, notices.next()).await {
            Ok(None) => return Err(AddressesError::Ended),
            Ok(Some(_)) => {
                tokio::time::sleep(SETTLE).await;
                while notices.try_recv().is_ok() {}
            }
            Err(_elapsed) if connection.0.is_finished() => return Err(AddressesError::Ended),
            Err(_elapsed) => {}
        }
        let current = read(&handle).await?;
        if current != known {
            known.clone_from(&current);
            changed(current);
        }
    }
}

/// The task of a netlink connection; aborted when this is dropped.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Every address of the node, with the index of its interface.
pub(super) async fn read(handle: &Handle) -> Result<Vec<(u32, IpNet)>, AddressesError> {
    let mut addresses = Vec::new();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await.map_err(AddressesError::List)? {
        // The local end of a point-to-point link is in IFA_LOCAL, and IFA_ADDRESS is then the peer's.
        let mut own = None;
        for attribute in &message.attributes {
            if let AddressAttribute::Local(address) = attribute {
                own = Some(*address);
            } else if let AddressAttribute::Address(address) = attribute {
                own = own.or(Some(*address));
            }
        }
        // Of a point-to-point link the prefix is the peer's.
        let prefix = message.header.prefix_len;
        let own = own.and_then(|own| IpNet::new(own, prefix).ok());
        addresses.extend(own.map(|own| (message.header.index, own)));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn np_7_the_loopback_address_is_found() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        let follow = follow(move |addresses| {
            if let Some(sender) = sender.take() {
                sender.send(addresses).unwrap();
            }
        });
        let addresses = tokio::select! {
            error = follow => panic!("{error:?}"),
            addresses = receiver => addresses.unwrap(),
        };
        assert!(
            addresses.contains(&"127.0.0.1/8".parse().unwrap()),
            "{addresses:?}"
        );
    }
}
