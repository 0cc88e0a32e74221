//! TCP segments that no kernel sends: built by hand, sent over a raw socket.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::echo::{as_raw, bind_to};
use crate::netns::Netns;

/// The fields of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// A first segment.
    Syn,
    /// The answer to a first segment.
    SynAck,
    /// A segment in the middle of a connection.
    Ack,
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it claims to come from; the address must be the sender's.
    pub source: SocketAddr,
    /// Its destination.
    pub destination: SocketAddr,
    /// The sequence number.
    pub sequence: u32,
    /// The acknowledgement number.
    pub acknowledgement: u32,
    /// Its payload.
    pub flags: Flags,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Sends it from inside a namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&self, ns: &Netns) -> io::Result<()> {
        let v4 = self.source.is_ipv4();
        let domain = if v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = ns.enter(|| {
            socket(
                domain,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Tcp,
            )
        })?;
        bind_to(&fd, SocketAddr::new(self.source.ip(), 0))?;
        let to = SockaddrStorage::from(SocketAddr::new(self.destination.ip(), 0));
        sendto(as_raw(&fd), &self.encode(), &to, MsgFlags::empty())?;
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        let flags = match self.flags {
            Flags::Syn => 0x02,
            Flags::SynAck => 0x12,
            Flags::Ack => 0x18,
        };
        bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(&self.payload);
        let mut pseudo = Vec::new();
        for address in [self.source.ip(), self.destination.ip()] {
            match address {
                IpAddr::V4(v4) => pseudo.extend(v4.octets()),
                IpAddr::V6(v6) => pseudo.extend(v6.octets()),
            }
        }
        pseudo.extend((bytes.len() as u32).to_be_bytes());
        pseudo.extend(6_u32.to_be_bytes());
        pseudo.extend(&bytes);
        let sum = checksum(&pseudo);
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// The checksum of bytes (RFC 1071); zero if there is one among them and it is right.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
