//! Which words about addresses and ports do all layers share?
//!
//! Invariants: nothing here knows Kubernetes, a datapath or I/O. A value of one family cannot hold an
//! address of the other: what is generic over [`Family`] is instantiated once per family.

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU16, ParseIntError};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

mod networks;
mod parse;
mod special;

pub use networks::Networks;
pub use parse::{AddressError, parse_address, parse_network};
pub(crate) use special::{holds_loopback, link_local, never_unicast};

/// A transport protocol that Services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum L4Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl L4Proto {
    /// Every protocol, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol's number in the IP header.
    ///
    /// Source: IANA protocol numbers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this number in the IP header, if Services can have it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }

    /// The name in lower case, as tools print it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for L4Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A port that is not zero.
///
/// Unit: port number, 1 to 65,535, host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port with this number; `None` for 0.
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number, in host byte order.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for Port {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IP family as a value; as a type it is [`V4`] or [`V6`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name that Kubernetes and kube-proxy's metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The other family.
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An address or a network of one family.
pub trait Value:
    Copy + fmt::Debug + fmt::Display + Eq + Ord + Send + Sync + Hash + Serialize + 'static
{
}

impl Value for Ipv4Addr {}
impl Value for Ipv6Addr {}
impl Value for Ipv4Net {}
impl Value for Ipv6Net {}

/// An IP family as a type, so that addresses of the two cannot be mixed.
pub trait Family: Copy + fmt::Debug + Default + Eq + Ord + Send + Sync + Hash + 'static {
    /// An address of the family.
    type Addr: Value + Into<IpAddr>;
    /// A network of the family.
    type Net: Value + Into<IpNet>;

    /// The family as a value.
    const FAMILY: IpFamily;
    /// Bytes in an address.
    const ADDR_LEN: usize;

    /// The address, if it is of this family.
    fn addr(address: IpAddr) -> Option<Self::Addr>;
    /// The network, if it is of this family.
    fn net(network: IpNet) -> Option<Self::Net>;
    /// The network that holds just this address.
    fn host_net(address: Self::Addr) -> Self::Net;
    /// The next higher address; `None` after the last one.
    fn next(address: Self::Addr) -> Option<Self::Addr>;
    /// Whether the address lies in the network.
    fn contains(network: &Self::Net, address: Self::Addr) -> bool;
    /// The first address of the network and its prefix length in bits.
    fn prefix(network: &Self::Net) -> (Self::Addr, u8);
    /// Appends the address in network byte order.
    fn write_addr(address: Self::Addr, to: &mut Vec<u8>);
    /// Reads an address in network byte order; `None` if there are not [`Self::ADDR_LEN`] bytes.
    fn read_addr(bytes: &[u8]) -> Option<Self::Addr>;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6;

macro_rules! family {
    ($family:ident, $addr:ty, $net:ty, $len:literal) => {
        impl Family for $family {
            type Addr = $addr;
            type Net = $net;
            const FAMILY: IpFamily = IpFamily::$family;
            const ADDR_LEN: usize = $len;

            fn addr(address: IpAddr) -> Option<$addr> {
                match address {
                    IpAddr::$family(address) => Some(address),
                    _ => None,
                }
            }

            fn net(network: IpNet) -> Option<$net> {
                match network {
                    IpNet::$family(network) => Some(network),
                    _ => None,
                }
            }

            fn host_net(address: $addr) -> $net {
                <$net>::from(address)
            }

            fn next(address: $addr) -> Option<$addr> {
                address.to_bits().checked_add(1).map(<$addr>::from_bits)
            }

            fn contains(network: &$net, address: $addr) -> bool {
                network.contains(&address)
            }

            fn prefix(network: &$net) -> ($addr, u8) {
                (network.network(), network.prefix_len())
            }

            fn write_addr(address: $addr, to: &mut Vec<u8>) {
                to.extend_from_slice(&address.octets());
            }

            fn read_addr(bytes: &[u8]) -> Option<$addr> {
                <[u8; $len]>::try_from(bytes).ok().map(<$addr>::from)
            }
        }
    };
}

family!(V4, Ipv4Addr, Ipv4Net, 4);
family!(V6, Ipv6Addr, Ipv6Net, 16);
