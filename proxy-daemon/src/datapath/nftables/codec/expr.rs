//! How does a rule become expressions of libnftnl?
//!
//! Invariants: register numbers are written in the form in which the kernel prints them, so that a
//! rule read back can be compared byte for byte; what the kernel fills in by itself is left out.

use std::ffi::{CString, c_int};
use std::ptr::NonNull;

use nftnl::expr::{Expression, Verdict as NftnlVerdict};
use nftnl::{ProtoFamily, Rule};
use nftnl_sys::{self as sys, libc, nftnl_expr};

use crate::datapath::nftables::ruleset::{Checksum, Expr, Reg, Verdict};
use crate::sys::netfilter::library::RawExpression;

/// `NFT_FIB_RESULT_ADDRTYPE`
const FIB_RESULT_TYPE: u32 = 3;
/// `NFTA_FIB_F_SADDR`
const FIB_SOURCE: u32 = 1;
/// `NFT_PAYLOAD_CSUM_SCTP`
const CHECKSUM_SCTP: u32 = 2;
/// `NFT_PAYLOAD_L4CSUM_PSEUDOHDR`
const CHANGES_PSEUDO_HEADER: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
const RANDOM_PORT: u32 = 0x10;
/// `ICMP_PORT_UNREACH` and `ICMPV6_PORT_UNREACH`
const PORT_UNREACHABLE: (u8, u8) = (3, 4);

/// A constant of libc, which has them as signed.
fn number(constant: c_int) -> u32 {
    constant.cast_unsigned()
}

impl Reg {
    /// The number as the kernel prints it: 128-bit registers by their own numbers.
    fn number(self) -> u32 {
        let index = u32::from(self.0);
        if index.is_multiple_of(4) {
            number(libc::NFT_REG_1) + index / 4
        } else {
            number(libc::NFT_REG32_00) + index
        }
    }
}

fn verdict(verdict: &Verdict) -> NftnlVerdict {
    let chain = |name: &str| CString::new(name).unwrap_or_default();
    match verdict {
        Verdict::Drop => NftnlVerdict::Drop,
        Verdict::Accept => NftnlVerdict::Accept,
        Verdict::Jump(name) => NftnlVerdict::Jump { chain: chain(name) },
        Verdict::Goto(name) => NftnlVerdict::Goto { chain: chain(name) },
    }
}

fn payload(base: c_int, offset: u32, len: u32) -> RawExpression {
    RawExpression::new(c"payload")
        .number(sys::NFTNL_EXPR_PAYLOAD_BASE, number(base))
        .number(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
        .number(sys::NFTNL_EXPR_PAYLOAD_LEN, len)
}

fn load_payload(base: c_int, offset: u32, len: u32, to: Reg) -> RawExpression {
    payload(base, offset, len).number(sys::NFTNL_EXPR_PAYLOAD_DREG, to.number())
}

/// Writes a register into the packet; `checksum` is its kind, its offset and whether the transport's changes too.
fn write_payload(written: RawExpression, from: Reg, checksum: (u32, u32, u32)) -> RawExpression {
    written
        .number(sys::NFTNL_EXPR_PAYLOAD_SREG, from.number())
        .number(sys::NFTNL_EXPR_PAYLOAD_CSUM_TYPE, checksum.0)
        .number(sys::NFTNL_EXPR_PAYLOAD_CSUM_OFFSET, checksum.1)
        .number(sys::NFTNL_EXPR_PAYLOAD_FLAGS, checksum.2)
}

fn load_meta(key: c_int, to: Reg) -> RawExpression {
    RawExpression::new(c"meta")
        .number(sys::NFTNL_EXPR_META_KEY, number(key))
        .number(sys::NFTNL_EXPR_META_DREG, to.number())
}

fn set_meta(key: c_int, from: Reg) -> RawExpression {
    RawExpression::new(c"meta")
        .number(sys::NFTNL_EXPR_META_KEY, number(key))
        .number(sys::NFTNL_EXPR_META_SREG, from.number())
}

fn load_ct(key: c_int, to: Reg) -> RawExpression {
    RawExpression::new(c"ct")
        .number(sys::NFTNL_EXPR_CT_KEY, number(key))
        .number(sys::NFTNL_EXPR_CT_DREG, to.number())
}

fn compare(reg: Reg, operation: c_int, bytes: &[u8]) -> RawExpression {
    RawExpression::new(c"cmp")
        .number(sys::NFTNL_EXPR_CMP_SREG, reg.number())
        .number(sys::NFTNL_EXPR_CMP_OP, number(operation))
        .bytes(sys::NFTNL_EXPR_CMP_DATA, bytes)
}

fn lookup(set: &str, key: Reg, flags: c_int) -> RawExpression {
    RawExpression::new(c"lookup")
        .name(sys::NFTNL_EXPR_LOOKUP_SET, set)
        .number(sys::NFTNL_EXPR_LOOKUP_SREG, key.number())
        .number(sys::NFTNL_EXPR_LOOKUP_FLAGS, number(flags))
}

fn change_map(operation: u32, set: &str, key: Reg, data: Reg) -> RawExpression {
    RawExpression::new(c"dynset")
        .name(sys::NFTNL_EXPR_DYNSET_SET_NAME, set)
        .number(sys::NFTNL_EXPR_DYNSET_OP, operation)
        .number(sys::NFTNL_EXPR_DYNSET_SREG_KEY, key.number())
        .number(sys::NFTNL_EXPR_DYNSET_SREG_DATA, data.number())
}

impl Expression for Expr {
    #[expect(clippy::too_many_lines, reason = "a table, one arm per expression")]
    fn to_expr(&self, rule: &Rule<'_>) -> NonNull<nftnl_expr> {
        use libc::{
            NFT_PAYLOAD_NETWORK_HEADER as NETWORK, NFT_PAYLOAD_TRANSPORT_HEADER as TRANSPORT,
        };
        let family = rule.get_chain().get_table().get_family();
        let is_v4 = family == ProtoFamily::Ipv4;
        let inet = number(libc::NFT_PAYLOAD_CSUM_INET);
        let expression = match self {
            Self::Network { offset, len, to } => load_payload(NETWORK, *offset, *len, *to),
            Self::SourcePort { to } => load_payload(TRANSPORT, 0, 2, *to),
            Self::DestinationPort { to } => load_payload(TRANSPORT, 2, 2, *to),
            Self::UdpChecksum { to } => load_payload(TRANSPORT, 6, 2, *to),
            Self::SetDestination { from } if is_v4 => {
                let checksum = (inet, 10, CHANGES_PSEUDO_HEADER);
                write_payload(payload(NETWORK, 16, 4), *from, checksum)
            }
            Self::SetDestination { from } => write_payload(
                payload(NETWORK, 24, 16),
                *from,
                (0, 0, CHANGES_PSEUDO_HEADER),
            ),
            Self::SetDestinationPort { from, checksum } => {
                let checksum = match checksum {
                    Checksum::Tcp => (inet, 16, 0),
                    Checksum::Udp => (inet, 6, 0),
                    Checksum::Sctp => (CHECKSUM_SCTP, 8, 0),
                    Checksum::None => (0, 0, 0),
                };
                write_payload(payload(TRANSPORT, 2, 2), *from, checksum)
            }
            Self::L4Proto { to } => load_meta(libc::NFT_META_L4PROTO, *to),
            Self::Mark { to } => load_meta(libc::NFT_META_MARK, *to),
            Self::Priority { to } => load_meta(libc::NFT_META_PRIORITY, *to),
            Self::InterfaceName { to } => load_meta(libc::NFT_META_IIFNAME, *to),
            Self::SetMark { from } => set_meta(libc::NFT_META_MARK, *from),
            Self::SetPriority { from } => set_meta(libc::NFT_META_PRIORITY, *from),
            Self::CtState { to } => load_ct(libc::NFT_CT_STATE, *to),
            Self::CtStatus { to } => load_ct(libc::NFT_CT_STATUS, *to),
            Self::Zero { to } => RawExpression::new(c"immediate")
                .number(sys::NFTNL_EXPR_IMM_DREG, to.number())
                .bytes(sys::NFTNL_EXPR_IMM_DATA, &[0; 4]),
            Self::SourceAddressType { to } => RawExpression::new(c"fib")
                .number(sys::NFTNL_EXPR_FIB_DREG, to.number())
                .number(sys::NFTNL_EXPR_FIB_RESULT, FIB_RESULT_TYPE)
                .number(sys::NFTNL_EXPR_FIB_FLAGS, FIB_SOURCE),
            Self::Bitwise { reg, mask, xor } => RawExpression::new(c"bitwise")
                .number(sys::NFTNL_EXPR_BITWISE_SREG, reg.number())
                .number(sys::NFTNL_EXPR_BITWISE_DREG, reg.number())
                .number(
                    sys::NFTNL_EXPR_BITWISE_LEN,
                    u32::try_from(mask.len()).unwrap_or(4),
                )
                .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)
                .bytes(sys::NFTNL_EXPR_BITWISE_XOR, xor),
            Self::Equal { reg, to } => compare(*reg, libc::NFT_CMP_EQ, to),
            Self::NotEqual { reg, to } => compare(*reg, libc::NFT_CMP_NEQ, to),
            Self::In { set, key } => lookup(set, *key, 0),
            Self::NotIn { set, key } => lookup(set, *key, libc::NFT_LOOKUP_F_INV),
            Self::Map { set, key, to } => {
                lookup(set, *key, 0).number(sys::NFTNL_EXPR_LOOKUP_DREG, to.number())
            }
            Self::VerdictMap { set, key } => lookup(set, *key, 0)
                .number(sys::NFTNL_EXPR_LOOKUP_DREG, number(libc::NFT_REG_VERDICT)),
            Self::Random { below, to } => RawExpression::new(c"numgen")
                .number(sys::NFTNL_EXPR_NG_DREG, to.number())
                .number(sys::NFTNL_EXPR_NG_MODULUS, *below)
                .number(sys::NFTNL_EXPR_NG_TYPE, number(libc::NFT_NG_RANDOM))
                .number(sys::NFTNL_EXPR_NG_OFFSET, 0),
            Self::Verdict(code) => return verdict(code).to_expr(rule),
            Self::Dnat { address, port } => RawExpression::new(c"nat")
                .number(sys::NFTNL_EXPR_NAT_TYPE, number(libc::NFT_NAT_DNAT))
                .number(sys::NFTNL_EXPR_NAT_FAMILY, family as u32)
                .number(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, address.number())
                .number(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, port.number()),
            Self::Masquerade => {
                RawExpression::new(c"masq").number(sys::NFTNL_EXPR_MASQ_FLAGS, RANDOM_PORT)
            }
            Self::Reject => {
                let (v4, v6) = PORT_UNREACHABLE;
                RawExpression::new(c"reject")
                    .number(
                        sys::NFTNL_EXPR_REJECT_TYPE,
                        number(libc::NFT_REJECT_ICMP_UNREACH),
                    )
                    .bytes(sys::NFTNL_EXPR_REJECT_CODE, &[if is_v4 { v4 } else { v6 }])
            }
            Self::Update {
                set,
                key,
                data,
                seconds,
            } => {
                let change = change_map(number(libc::NFT_DYNSET_OP_UPDATE), set, *key, *data);
                let milliseconds = u64::from(*seconds) * 1000;
                change.bytes(sys::NFTNL_EXPR_DYNSET_TIMEOUT, &milliseconds.to_ne_bytes())
            }
            Self::Delete { set, key, data } => change_map(DYNSET_DELETE, set, *key, *data),
        };
        expression.into_raw()
    }
}

/// `NFT_DYNSET_OP_DELETE`
const DYNSET_DELETE: u32 = 2;
