//! Which types describe what the nftables datapath writes?
//!
//! Tables, sets and maps, chains, rules and their expressions, as far as we use them. Invariants:
//! nothing here knows a Service or does I/O; `codec` turns these types into netlink, `text` into words.
//! Rules name what they load; which register it lies in is decided by `codec`.

use std::borrow::Cow;

use nftnl_sys::libc;

use super::sets::SetId;
use crate::net::IpFamily;

/// A value that a rule loads; keys and values of sets have the types of such values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Source,
    Destination,
    /// The transport protocol's number.
    Protocol,
    SourcePort,
    DestinationPort,
    /// The checksum of a UDP packet.
    UdpChecksum,
    Mark,
    /// The packet's priority, two numbers of 16 bits.
    Priority,
    /// The name of the interface that the packet came in by.
    Interface,
    CtState,
    CtStatus,
    /// The routing type of the source address.
    SourceType,
    /// A random number below this one.
    Random(u32),
}

impl Field {
    /// The number and the name of its type in `nft`; the kernel only stores the number.
    ///
    /// Source: `enum datatypes` of nftables 1.0.6. Types that no set has are plain numbers here.
    pub(crate) const fn data_type(self, family: IpFamily) -> (u32, &'static str) {
        match (self, family) {
            (Self::Source | Self::Destination, IpFamily::V4) => (7, "ipv4_addr"),
            (Self::Source | Self::Destination, IpFamily::V6) => (8, "ipv6_addr"),
            (Self::Protocol, _) => (12, "inet_proto"),
            (Self::SourcePort | Self::DestinationPort, _) => (13, "inet_service"),
            (Self::Priority, _) => (23, "classid"),
            _ => (4, "integer"),
        }
    }

    /// How many bytes it has, of registers of four.
    pub(crate) const fn len(self, family: IpFamily) -> u8 {
        match (self, family) {
            (Self::Protocol, _) => 1,
            (Self::SourcePort | Self::DestinationPort | Self::UdpChecksum, _) => 2,
            (Self::Source | Self::Destination, IpFamily::V6) | (Self::Interface, _) => 16,
            _ => 4,
        }
    }

    /// Whether it is a number in host byte order.
    pub(crate) const fn is_number(self) -> bool {
        matches!(self, Self::Random(_) | Self::Priority)
    }
}

/// Whether there is a random number: its type alone says neither its length nor its byte order.
pub(crate) fn has_random(fields: &[Field]) -> bool {
    let is_random = |field: &Field| matches!(field, Field::Random(_));
    fields.iter().any(is_random)
}

/// The key of a NodePort frontend.
pub(crate) const NODE_PORT: &[Field] = &[Field::Protocol, Field::DestinationPort];
/// The key of a VIP frontend.
pub(crate) const FRONTEND: &[Field] =
    &[Field::Destination, Field::Protocol, Field::DestinationPort];
/// A VIP frontend and a client.
pub(crate) const CLIENT: &[Field] = &[
    Field::Destination,
    Field::Protocol,
    Field::DestinationPort,
    Field::Source,
];

/// What a map's elements hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// It is a set: nothing.
    None,
    /// A verdict.
    Verdict,
    /// A value, or several concatenated.
    Data(&'static [Field]),
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// As `nft list` shows it.
    pub(crate) comment: &'static str,
    /// The key, one type or several concatenated.
    pub(crate) key: &'static [Field],
    /// The type of the values.
    pub(crate) value: Value,
    pub(crate) kind: SetKind,
    /// Maximum number of elements, allocated at once; `None`: no limit, the table grows.
    pub(crate) size: Option<u32>,
}

/// How the keys of a set are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetKind {
    /// Exactly.
    Exact,
    /// Elements are ranges.
    Interval,
    /// Rules add elements, which expire.
    Dynamic,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    /// No more rules of this base chain.
    Accept,
    /// Go on in this chain, and come back.
    Jump(Cow<'static, str>),
    /// Go on in this chain.
    Goto(Cow<'static, str>),
}

impl Verdict {
    /// Its number in the kernel, and the chain that it names.
    pub(crate) fn code(&self) -> (i32, Option<&str>) {
        match self {
            Self::Drop => (libc::NF_DROP, None),
            Self::Accept => (libc::NF_ACCEPT, None),
            Self::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
        }
    }
}

/// Which checksum covers a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Tcp,
    Udp,
    Sctp,
    /// None: a UDP packet over IPv4 may have none.
    None,
}

/// What a rule writes into a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The packet's priority.
    Priority,
    /// The destination address, with the checksums.
    Destination,
    /// The destination port, with this checksum.
    DestinationPort(Checksum),
}

/// One step of a rule. Several fields are concatenated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Goes on only if the field has this value, or only if it has another.
    Compare {
        field: Field,
        equal: bool,
        to: Vec<u8>,
    },
    /// Goes on only if the address is in the network, or only if it is not.
    Network {
        field: Field,
        inside: bool,
        first: Vec<u8>,
        prefix: u8,
    },
    /// Goes on only if any of these bits is set.
    AnyBit(Field, u32),
    /// Goes on only if the key is in the set.
    In(SetId, Vec<Field>),
    /// Goes on only if the key is not in the set.
    NotIn(SetId, Vec<Field>),
    /// Follows the verdict of the key; goes on if the map does not have the key.
    VerdictMap(SetId, Vec<Field>),
    /// Writes the value of the key; goes on only if the map has the key.
    Set(Target, SetId, Vec<Field>),
    /// Writes zero as the packet's priority.
    ClearPriority,
    /// Keeps these bits of the packet mark, and sets those.
    SetMark { keep: u32, set: u32 },
    /// Ends the rule.
    Verdict(Verdict),
    /// Sends the flow to the address and port of the key; goes on only if the map has the key.
    Dnat(SetId, Vec<Field>),
    /// Gives the flow this node's address, with a random port.
    Masquerade,
    /// Answers that the port is unreachable.
    Reject,
    /// Adds the packet's priority under this key for some seconds, or restarts the time if the key exists.
    Update(SetId, Vec<Field>, u32),
    /// Removes an element if it exists.
    Delete(SetId, Vec<Field>),
}

/// A rule: its expressions, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) exprs: Vec<Expr>,
    /// As `nft list` shows it.
    pub(crate) comment: Option<&'static str>,
}

impl Rule {
    /// Whether it reads or updates this set.
    pub(crate) fn uses(&self, id: SetId) -> bool {
        self.exprs.iter().any(|expr| {
            matches!(
                expr,
                Expr::In(set, _)
                | Expr::NotIn(set, _)
                | Expr::VerdictMap(set, _)
                | Expr::Set(_, set, _)
                | Expr::Dnat(set, _)
                | Expr::Update(set, ..)
                | Expr::Delete(set, _) if *set == id
            )
        })
    }
}

/// Where in the network stack a base chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `nat` or `filter`.
    pub(crate) chain_type: &'static str,
    pub(crate) at: nftnl::Hook,
    /// Lower comes first.
    pub(crate) priority: i32,
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: Cow<'static, str>,
    /// As `nft list` shows it.
    pub(crate) comment: &'static str,
    /// Set for base chains.
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}
