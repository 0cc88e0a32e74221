//! Which addresses can be no Service's and no endpoint's?
//!
//! The API server refuses most of these; a manifest file and the status of a load balancer can hold them.
//! A frontend on loopback would take over the node's traffic to itself, and so none of them reaches a
//! datapath. Source: `ValidateNonSpecialIP` of Kubernetes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What the address is, if it is no unicast address that several hosts could agree on.
pub(crate) const fn never_unicast(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if matches!(address, IpAddr::V4(address) if address.is_broadcast()) {
        Some("the broadcast address")
    } else {
        None
    }
}

/// What the address is, if it means something else on every link.
pub(crate) const fn link_local(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) if address.is_link_local() => Some("a link-local address"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Whether the network holds a loopback address.
pub(crate) fn holds_loopback(network: &IpNet) -> bool {
    match network {
        IpNet::V4(network) => {
            network.addr().is_loopback() || network.contains(&Ipv4Addr::LOCALHOST)
        }
        IpNet::V6(network) => network.contains(&Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{parse_address, parse_network};

    #[test]
    fn special_addresses_are_told_apart_from_those_of_hosts() {
        let special = |text: &str| {
            let address = parse_address(text).expect("an address");
            never_unicast(address).or_else(|| link_local(address))
        };
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "169.254.169.254",
            "::",
            "::1",
            "ff02::1",
            "ff0e::1",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(special(text).is_some(), "{text}");
        }
        for text in [
            "10.0.0.1",
            "192.0.2.255",
            "100.64.0.1",
            "240.0.0.1",
            "fd00::1",
            "2001:db8::1",
        ] {
            assert_eq!(special(text), None, "{text}");
        }
    }

    #[test]
    fn networks_with_loopback_in_them_are_found() {
        let holds = |text: &str| holds_loopback(&parse_network(text).expect("a network"));
        for text in [
            "0.0.0.0/0",
            "64.0.0.0/2",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "::/0",
            "::1/128",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            "10.96.0.0/12",
            "128.0.0.0/1",
            "0.0.0.0/2",
            "fd00::/108",
            "8000::/1",
        ] {
            assert!(!holds(text), "{text}");
        }
    }
}
