//! Which types describe what the nftables datapath writes?
//!
//! Tables, sets and maps, chains, rules and their expressions, as far as we use them. Invariants:
//! nothing here knows a Service or does I/O; `codec` turns these types into netlink and back.

use std::borrow::Cow;

/// A 32-bit register of the kernel's `nf_tables` machine, counted from 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reg(pub(crate) u8);

/// A data type as `nft` numbers them; the kernel only stores the number.
///
/// Source: `enum datatypes` of nftables 1.0.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataType {
    /// A number in host byte order, 4 bytes; `numgen` makes these.
    Integer,
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `inet_proto`, 1 byte in a register of 4.
    InetProto,
    /// `inet_service`, 2 bytes in a register of 4.
    InetService,
    /// `classid`, two numbers in 4 bytes; the type of a packet's priority.
    ClassId,
}

impl DataType {
    /// The number `nft` gives it.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Integer => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::ClassId => 23,
        }
    }

    /// Bytes of its value.
    pub(crate) const fn len(self) -> u32 {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Integer | Self::ClassId | Self::Ipv4Addr => 4,
            Self::Ipv6Addr => 16,
        }
    }
}

/// What a map's elements hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// It is a set: nothing.
    None,
    /// A verdict.
    Verdict,
    /// A value, or several concatenated.
    Data(&'static [DataType]),
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    /// Its name.
    pub(crate) name: &'static str,
    /// As `nft list` shows it.
    pub(crate) comment: &'static str,
    /// The key, one type or several concatenated.
    pub(crate) key: &'static [DataType],
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
    /// Drop silently.
    Drop,
    /// No more rules of this base chain.
    Accept,
    /// Go on in this chain, and come back.
    Jump(Cow<'static, str>),
    /// Go on in this chain.
    Goto(Cow<'static, str>),
}

/// Which checksum covers a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// TCP's.
    Tcp,
    /// UDP's.
    Udp,
    /// SCTP's.
    Sctp,
    /// None: a UDP packet over IPv4 may have none.
    None,
}

/// One step of a rule. Offsets and lengths are in bytes; a key or data begins at its register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads bytes of the network header.
    Network { offset: u32, len: u32, to: Reg },
    /// Loads the transport header's source port.
    SourcePort { to: Reg },
    /// Loads the transport header's destination port.
    DestinationPort { to: Reg },
    /// Loads the transport protocol's number.
    L4Proto { to: Reg },
    /// Loads the packet mark.
    Mark { to: Reg },
    /// Writes the packet mark.
    SetMark { from: Reg },
    /// Loads the packet's priority.
    Priority { to: Reg },
    /// Writes the packet's priority.
    SetPriority { from: Reg },
    /// Loads zero.
    Zero { to: Reg },
    /// Loads the checksum of a UDP packet.
    UdpChecksum { to: Reg },
    /// Writes the destination address into the packet, and updates the checksums.
    SetDestination { from: Reg },
    /// Writes the destination port into the packet, and updates the checksum.
    SetDestinationPort { from: Reg, checksum: Checksum },
    /// Loads the name of the interface that the packet came in by.
    InterfaceName { to: Reg },
    /// Loads the conntrack state.
    CtState { to: Reg },
    /// Loads the conntrack status.
    CtStatus { to: Reg },
    /// Loads the routing type of the source address.
    SourceAddressType { to: Reg },
    /// `register = (register & mask) ^ xor`, bytes as they lie in the register.
    Bitwise {
        reg: Reg,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Goes on only if the register holds this.
    Equal { reg: Reg, to: Vec<u8> },
    /// Goes on only if the register holds anything else.
    NotEqual { reg: Reg, to: Vec<u8> },
    /// Goes on only if the key is in the set.
    In { set: &'static str, key: Reg },
    /// Goes on only if the key is not in the set.
    NotIn { set: &'static str, key: Reg },
    /// Loads the value of the key; goes on only if the map has the key.
    Map {
        set: &'static str,
        key: Reg,
        to: Reg,
    },
    /// Follows the verdict of the key; goes on if the map does not have the key.
    VerdictMap { set: &'static str, key: Reg },
    /// Loads a random number below `below`.
    Random { below: u32, to: Reg },
    /// Ends the rule.
    Verdict(Verdict),
    /// Sends the flow to an address and port.
    Dnat { address: Reg, port: Reg },
    /// Gives the flow this node's address, with a random port.
    Masquerade,
    /// Answers that the port is unreachable.
    Reject,
    /// Adds an element, or restarts its timeout if the key exists.
    Update {
        set: &'static str,
        key: Reg,
        data: Reg,
        /// The timeout.
        seconds: u32,
    },
    /// Removes an element if it exists.
    Delete {
        set: &'static str,
        key: Reg,
        /// Any loaded register; the kernel requires one.
        data: Reg,
    },
}

/// A rule: its expressions, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The expressions.
    pub(crate) exprs: Vec<Expr>,
    /// As `nft list` shows it.
    pub(crate) comment: Option<&'static str>,
}

impl Rule {
    /// Whether it reads or updates this set.
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.exprs.iter().any(|expr| {
            if let Expr::In { set, .. }
            | Expr::NotIn { set, .. }
            | Expr::Map { set, .. }
            | Expr::VerdictMap { set, .. }
            | Expr::Update { set, .. }
            | Expr::Delete { set, .. } = expr
            {
                *set == name
            } else {
                false
            }
        })
    }
}

/// Where in the network stack a base chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `nat` or `filter`.
    pub(crate) chain_type: &'static str,
    /// `enum nf_inet_hooks`.
    pub(crate) number: u32,
    /// Lower comes first.
    pub(crate) priority: i32,
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: Cow<'static, str>,
    /// As `nft list` shows it.
    pub(crate) comment: &'static str,
    /// Set for base chains.
    pub(crate) hook: Option<Hook>,
    /// Its rules.
    pub(crate) rules: Vec<Rule>,
}
