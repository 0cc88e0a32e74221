//! Which network interfaces does this node have, and when does that change?
//!
//! Invariants: those of [`addresses`]: all are read again after each notification, and a lost one costs seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::{Handle, MulticastGroup};

use super::addresses::{self, AddressesError};

/// Every interface of the node, by its index.
pub type Interfaces = BTreeMap<u32, Interface>;

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Its addresses, each with the prefix of its network.
    pub addresses: BTreeSet<IpNet>,
}

/// Calls `changed` with every interface, now and whenever one of them or of their addresses changes.
///
/// # Errors
/// [`AddressesError`] if they cannot be followed any longer; the caller starts again.
pub async fn follow(changed: impl FnMut(Interfaces)) -> Result<Infallible, AddressesError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    addresses::follow_with(&groups, read, changed).await
}

async fn read(handle: &Handle) -> Result<Interfaces, AddressesError> {
    let mut interfaces = Interfaces::new();
    let mut messages = handle.link().get().execute();
    while let Some(message) = messages.try_next().await.map_err(AddressesError::List)? {
        let mut name = String::new();
        for attribute in &message.attributes {
            if let LinkAttribute::IfName(found) = attribute {
                name.clone_from(found);
            }
        }
        let interface = Interface {
            name,
            is_up: message.header.flags.contains(LinkFlags::Up),
            addresses: BTreeSet::new(),
        };
        interfaces.insert(message.header.index, interface);
    }
    for (index, address) in addresses::read(handle).await? {
        if let Some(interface) = interfaces.get_mut(&index) {
            interface.addresses.insert(address);
        }
    }
    Ok(interfaces)
}
