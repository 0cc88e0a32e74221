//! What crosses a namespace's interfaces: a packet socket, and the packets it saw.
//!
//! Invariant: a sniffer sees everything from its start until it is asked, in and out, before and after translation.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket,
    sockopt,
};

use crate::address::Protocol;
use crate::echo::as_raw;
use crate::netns::Netns;

/// A packet on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The protocol number.
    pub protocol: u8,
    /// The source port, or 0.
    pub source_port: u16,
    /// The destination port, or 0.
    pub destination_port: u16,
    /// Whether it left rather than arrived.
    pub outgoing: bool,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// What follows the IP header.
    pub payload: Vec<u8>,
}

impl Seen {
    /// Whether it is a TCP reset.
    pub fn is_reset(&self) -> bool {
        self.protocol == Protocol::Tcp.number() && self.payload.get(13).is_some_and(|f| f & 4 != 0)
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    interface: usize,
}

impl Sniffer {
    /// Starts looking at one interface of a namespace.
    pub fn start(ns: &Netns, interface: &str) -> Self {
        let (socket, interface) = ns.enter(|| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let all = SockProtocol::EthAll;
            let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, all).unwrap();
            setsockopt(&fd, sockopt::RcvBufForce, &16_000_000).unwrap();
            // The traffic of other interfaces would fill the buffer, and what comes then is lost.
            let own = |link: &InterfaceAddress| link.interface_name == interface;
            let mut links = getifaddrs().unwrap().filter(own);
            let link = links.find_map(|link| link.address?.as_link_addr().copied());
            let link = link.expect("the interface exists");
            bind(as_raw(&fd), &link).unwrap();
            (fd, link.ifindex())
        });
        Self { socket, interface }
    }

    /// Becomes readable when there is something to see.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Everything seen so far. What was sent before a flow's outcome was known has been seen.
    pub fn packets(&self) -> Vec<Seen> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; 65_600];
        while let Ok((n, Some(from))) = recvfrom::<LinkAddr>(as_raw(&self.socket), &mut buffer) {
            // Kernel: PACKET_OUTGOING is 4.
            if from.ifindex() == self.interface
                && let Some(seen) = parse(&buffer[..n], from.pkttype() == 4)
            {
                packets.push(seen);
            }
        }
        packets
    }

    /// What was seen towards these addresses, taken as proof only if a packet towards `control` was seen as well, which a flow of
    /// the test sends this way.
    ///
    /// # Panics
    /// When nothing was seen towards `control`: then the capture saw nothing at all.
    #[track_caller]
    pub fn towards(&self, addresses: &[IpAddr], control: IpAddr) -> Vec<Seen> {
        let mut packets = self.packets();
        let has_control = packets.iter().any(|packet| packet.destination == control);
        assert!(has_control, "no packet to {control} was seen: {packets:?}");
        packets.retain(|packet| addresses.contains(&packet.destination));
        packets
    }
}

fn parse(packet: &[u8], outgoing: bool) -> Option<Seen> {
    let (source, destination, protocol, start, ttl, class): (IpAddr, IpAddr, _, _, _, _) =
        match packet.first()? >> 4 {
            4 => {
                let address = |at: usize| {
                    Some(IpAddr::from(
                        <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
                    ))
                };
                let length = usize::from(packet[0] & 15) * 4;
                (
                    address(12)?,
                    address(16)?,
                    packet[9],
                    length,
                    packet[8],
                    packet[1],
                )
            }
            6 => {
                let address = |at: usize| {
                    Some(IpAddr::from(
                        <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?,
                    ))
                };
                let class = packet[0] << 4 | packet[1] >> 4;
                (address(8)?, address(24)?, packet[6], 40, packet[7], class)
            }
            _ => return None,
        };
    let payload = packet.get(start..).unwrap_or_default().to_vec();
    let port = |at: usize| {
        let known = Protocol::ALL.iter().any(|known| known.number() == protocol);
        payload
            .get(at..at + 2)
            .filter(|_| known)
            .map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
    };
    Some(Seen {
        source,
        destination,
        protocol,
        source_port: port(0),
        destination_port: port(2),
        outgoing,
        ttl,
        traffic_class: class,
        payload,
    })
}
