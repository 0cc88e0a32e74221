//! How does a test write and read a packet?
//!
//! Invariant: a packet with a wrong length or checksum is not read: it stops the test.

use std::net::{IpAddr, SocketAddr};

use proxy_tests::sctp::crc32c;
use proxy_tests::segment::checksum;

/// The length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0c];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0e];

/// What a packet says beyond its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    /// TCP with these flags.
    Tcp(u8),
    /// UDP; without a checksum if `false`.
    Udp(bool),
    /// SCTP with a first chunk of this type.
    Sctp(u8),
}

pub(crate) const SYN: Transport = Transport::Tcp(0x02);
pub(crate) const SYN_ACK: Transport = Transport::Tcp(0x12);
pub(crate) const ACK: Transport = Transport::Tcp(0x10);
pub(crate) const UDP: Transport = Transport::Udp(true);
pub(crate) const INIT: Transport = Transport::Sctp(1);
pub(crate) const INIT_ACK: Transport = Transport::Sctp(2);
pub(crate) const DATA: Transport = Transport::Sctp(0);

impl Transport {
    /// What a client sends first, and what is answered.
    pub(crate) const OPENINGS: [(Self, Self); 3] = [(SYN, SYN_ACK), (UDP, UDP), (INIT, INIT_ACK)];

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp(_) => 17,
            Self::Sctp(_) => 132,
        }
    }
}

/// A packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(source: &str, destination: &str, transport: Transport) -> Self {
        Self {
            source: source.parse().expect("an address and a port"),
            destination: destination.parse().expect("an address and a port"),
            transport,
            payload: b"payload!".to_vec(),
        }
    }

    /// The packet, with an Ethernet header.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes_with(&[])
    }

    /// The packet with these bytes between the network header and the transport header: IPv4 options, or
    /// IPv6 extension headers whose first is of type 0.
    pub(crate) fn bytes_with(&self, extra: &[u8]) -> Vec<u8> {
        let l4 = self.transport_bytes();
        let mut bytes = [NODE_MAC, CLIENT_MAC].concat();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = (20 + extra.len() + l4.len()) as u16;
                let ihl = 0x45 + (extra.len() / 4) as u8;
                let mut header = vec![ihl, 0x12];
                header.extend(total.to_be_bytes());
                header.extend([0x34, 0x56, 0x40, 0, 61, self.transport.number(), 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(extra);
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend([0x08, 0x00]);
                bytes.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xdd, 0x60, 0x10, 0, 7]);
                bytes.extend(((extra.len() + l4.len()) as u16).to_be_bytes());
                let next = if extra.is_empty() {
                    self.transport.number()
                } else {
                    0
                };
                bytes.extend([next, 61]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(extra);
            }
            _ => panic!("{self:?} mixes families"),
        }
        bytes.extend(l4);
        bytes
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = self.source.port().to_be_bytes().to_vec();
        bytes.extend(self.destination.port().to_be_bytes());
        match self.transport {
            Transport::Tcp(flags) => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(&self.payload);
                let sum = checksum(&[self.pseudo(bytes.len()), bytes.clone()].concat());
                bytes[16..18].copy_from_slice(&sum.to_be_bytes());
            }
            Transport::Udp(is_summed) => {
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(&self.payload);
                if is_summed {
                    let sum = match checksum(&[self.pseudo(bytes.len()), bytes.clone()].concat()) {
                        0 => 0xffff,
                        sum => sum,
                    };
                    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
                }
            }
            Transport::Sctp(kind) => {
                bytes.extend([0, 0, 0, 9, 0, 0, 0, 0, kind, 0]);
                bytes.extend((4 + self.payload.len() as u16).to_be_bytes());
                bytes.extend(&self.payload);
                let sum = crc32c(&bytes);
                bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            }
        }
        bytes
    }

    fn pseudo(&self, length: usize) -> Vec<u8> {
        pseudo(
            self.source.ip(),
            self.destination.ip(),
            self.transport.number(),
            length,
        )
    }

    /// Reads a packet that this module wrote, after somebody changed it.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let ip = read_ip(bytes);
        let l4 = &ip.payload;
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let sum = || {
            let length = l4.len();
            checksum(
                &[
                    pseudo(ip.source, ip.destination, ip.protocol, length),
                    l4.clone(),
                ]
                .concat(),
            )
        };
        let (transport, header) = match ip.protocol {
            6 => {
                assert_eq!(sum(), 0, "the TCP checksum of {l4:02x?}");
                (Transport::Tcp(l4[13]), 20)
            }
            17 => {
                assert_eq!(port(4) as usize, l4.len(), "the UDP length of {l4:02x?}");
                let is_summed = port(6) != 0;
                assert!(!is_summed || sum() == 0, "the UDP checksum of {l4:02x?}");
                (Transport::Udp(is_summed), 8)
            }
            132 => {
                let mut clean = l4.clone();
                clean[8..12].fill(0);
                let crc = crc32c(&clean).to_le_bytes();
                assert_eq!(crc, l4[8..12], "the SCTP checksum of {l4:02x?}");
                (Transport::Sctp(l4[12]), 16)
            }
            other => panic!("protocol {other}"),
        };
        Self {
            source: SocketAddr::new(ip.source, port(0)),
            destination: SocketAddr::new(ip.destination, port(2)),
            transport,
            payload: l4[header..].to_vec(),
        }
    }
}

/// A refusal, as its sender and its receiver see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The ports of the quoted packet.
    pub(crate) about: (SocketAddr, SocketAddr, u8),
}

impl Refusal {
    /// Reads "port unreachable".
    pub(crate) fn read(bytes: &[u8]) -> Self {
        assert_eq!(bytes[..6], CLIENT_MAC, "sent back to the client");
        assert_eq!(bytes[6..12], NODE_MAC, "sent by the node");
        let ip = read_ip(bytes);
        let l4 = &ip.payload;
        let v4 = ip.source.is_ipv4();
        let summed = if v4 {
            l4.clone()
        } else {
            [pseudo(ip.source, ip.destination, 58, l4.len()), l4.clone()].concat()
        };
        assert_eq!(checksum(&summed), 0, "the ICMP checksum of {l4:02x?}");
        let expected = if v4 { (1, 3, 3) } else { (58, 1, 4) };
        assert_eq!((ip.protocol, l4[0], l4[1]), expected, "port unreachable");
        let quoted = read_header(&l4[8..]);
        let port = |at: usize| u16::from_be_bytes([quoted.payload[at], quoted.payload[at + 1]]);
        Self {
            source: ip.source,
            destination: ip.destination,
            about: (
                SocketAddr::new(quoted.source, port(0)),
                SocketAddr::new(quoted.destination, port(2)),
                quoted.protocol,
            ),
        }
    }
}

struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
    payload: Vec<u8>,
}

fn read_ip(bytes: &[u8]) -> Ip {
    let ip = read_header(&bytes[ETHERNET..]);
    assert_eq!(ip.length, ip.payload.len(), "the length in the IP header");
    ip
}

/// The network header and all behind it, of which there may be less than the header says.
fn read_header(bytes: &[u8]) -> Ip {
    let octets = |range: std::ops::Range<usize>| bytes[range].to_vec();
    if bytes[0] >> 4 == 4 {
        let header = usize::from(bytes[0] & 15) * 4;
        assert_eq!(checksum(&bytes[..header]), 0, "the IPv4 header's checksum");
        let address = |range| IpAddr::from(<[u8; 4]>::try_from(octets(range)).expect("4 bytes"));
        Ip {
            source: address(12..16),
            destination: address(16..20),
            protocol: bytes[9],
            length: usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) - header,
            payload: bytes[header..].to_vec(),
        }
    } else {
        let address = |range| IpAddr::from(<[u8; 16]>::try_from(octets(range)).expect("16 bytes"));
        let (mut protocol, mut header) = (bytes[6], 40);
        // Hop-by-hop and destination options, and routing.
        while matches!(protocol, 0 | 43 | 60) {
            protocol = bytes[header];
            header += 8 + usize::from(bytes[header + 1]) * 8;
        }
        Ip {
            source: address(8..24),
            destination: address(24..40),
            protocol,
            length: 40 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]])) - header,
            payload: bytes[header..].to_vec(),
        }
    }
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend(u32::from(protocol).to_be_bytes());
    bytes
}
