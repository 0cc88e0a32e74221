//! How does a rule become expressions of libnftnl?
//!
//! Invariants: register numbers are written in the form in which the kernel prints them, so that a
//! rule read back can be compared byte for byte; what the kernel fills in by itself is left out.

use std::ffi::c_int;

use nftnl_sys::libc::{
    NFT_PAYLOAD_NETWORK_HEADER as NETWORK, NFT_PAYLOAD_TRANSPORT_HEADER as TRANSPORT,
};
use nftnl_sys::{self as sys, libc};

use crate::datapath::nftables::ruleset::{Checksum, Expr, Field, Target, Verdict};
use crate::datapath::nftables::sets::SetId;
use crate::net::IpFamily;
use crate::sys::netfilter::library::{ExpressionKind, RawExpression};

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

/// `NFT_DYNSET_OP_DELETE`
const DYNSET_DELETE: u32 = 2;

/// A constant of libc, which has them as signed.
fn number(constant: c_int) -> u32 {
    constant.cast_unsigned()
}

/// The register of this index, as the kernel prints it: 128-bit registers by their own numbers.
fn register(index: u8) -> u32 {
    let index = u32::from(index);
    if index.is_multiple_of(4) {
        number(libc::NFT_REG_1) + index / 4
    } else {
        number(libc::NFT_REG32_00) + index
    }
}

fn payload(base: c_int, offset: u32, len: u32) -> RawExpression {
    RawExpression::new(ExpressionKind::PAYLOAD)
        .number(sys::NFTNL_EXPR_PAYLOAD_BASE, number(base))
        .number(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
        .number(sys::NFTNL_EXPR_PAYLOAD_LEN, len)
}

fn meta(key: c_int, attribute: u32, register: u32) -> RawExpression {
    RawExpression::new(ExpressionKind::META)
        .number(sys::NFTNL_EXPR_META_KEY, number(key))
        .number(attribute, register)
}

fn immediate(to: u32) -> RawExpression {
    RawExpression::new(ExpressionKind::IMMEDIATE).number(sys::NFTNL_EXPR_IMM_DREG, to)
}

fn compare(equal: bool, bytes: &[u8]) -> RawExpression {
    let operation = if equal {
        libc::NFT_CMP_EQ
    } else {
        libc::NFT_CMP_NEQ
    };
    RawExpression::new(ExpressionKind::CMP)
        .number(sys::NFTNL_EXPR_CMP_SREG, register(0))
        .number(sys::NFTNL_EXPR_CMP_OP, number(operation))
        .bytes(sys::NFTNL_EXPR_CMP_DATA, bytes)
}

/// `register = (register & mask) ^ xor`, bytes as they lie in the register.
fn bitwise(mask: &[u8], xor: &[u8]) -> RawExpression {
    let len = u32::try_from(mask.len()).unwrap_or(4);
    RawExpression::new(ExpressionKind::BITWISE)
        .number(sys::NFTNL_EXPR_BITWISE_SREG, register(0))
        .number(sys::NFTNL_EXPR_BITWISE_DREG, register(0))
        .number(sys::NFTNL_EXPR_BITWISE_LEN, len)
        .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)
        .bytes(sys::NFTNL_EXPR_BITWISE_XOR, xor)
}

fn lookup(set: SetId, flags: c_int) -> RawExpression {
    RawExpression::new(ExpressionKind::LOOKUP)
        .name(sys::NFTNL_EXPR_LOOKUP_SET, set.name())
        .number(sys::NFTNL_EXPR_LOOKUP_SREG, register(0))
        .number(sys::NFTNL_EXPR_LOOKUP_FLAGS, number(flags))
}

/// The mask of a prefix, in bytes.
fn prefix_mask(prefix: u8, len: usize) -> Vec<u8> {
    let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
    (!host).to_be_bytes().into_iter().take(len).collect()
}

/// The expressions of a rule of this family.
pub(super) fn expressions(exprs: &[Expr], family: IpFamily) -> Vec<RawExpression> {
    let mut steps = Steps {
        family,
        done: Vec::new(),
    };
    for expr in exprs {
        steps.add(expr);
    }
    steps.done
}

struct Steps {
    family: IpFamily,
    done: Vec<RawExpression>,
}

impl Steps {
    fn is_v4(&self) -> bool {
        self.family == IpFamily::V4
    }

    /// Loads a field to a register.
    fn load(&mut self, field: Field, to: u8) {
        let len = u32::from(field.len(self.family));
        let to = register(to);
        let payload =
            |base, offset| payload(base, offset, len).number(sys::NFTNL_EXPR_PAYLOAD_DREG, to);
        let meta = |key| meta(key, sys::NFTNL_EXPR_META_DREG, to);
        let ct = |key| {
            RawExpression::new(ExpressionKind::CT)
                .number(sys::NFTNL_EXPR_CT_KEY, number(key))
                .number(sys::NFTNL_EXPR_CT_DREG, to)
        };
        self.done.push(match field {
            Field::Source => payload(NETWORK, if self.is_v4() { 12 } else { 8 }),
            Field::Destination => payload(NETWORK, if self.is_v4() { 16 } else { 24 }),
            Field::SourcePort => payload(TRANSPORT, 0),
            Field::DestinationPort => payload(TRANSPORT, 2),
            Field::UdpChecksum => payload(TRANSPORT, 6),
            Field::Protocol => meta(libc::NFT_META_L4PROTO),
            Field::Mark => meta(libc::NFT_META_MARK),
            Field::Priority => meta(libc::NFT_META_PRIORITY),
            Field::Interface => meta(libc::NFT_META_IIFNAME),
            Field::CtState => ct(libc::NFT_CT_STATE),
            Field::CtStatus => ct(libc::NFT_CT_STATUS),
            Field::SourceType => RawExpression::new(ExpressionKind::FIB)
                .number(sys::NFTNL_EXPR_FIB_DREG, to)
                .number(sys::NFTNL_EXPR_FIB_RESULT, FIB_RESULT_TYPE)
                .number(sys::NFTNL_EXPR_FIB_FLAGS, FIB_SOURCE),
            Field::Random(below) => RawExpression::new(ExpressionKind::NUMGEN)
                .number(sys::NFTNL_EXPR_NG_DREG, to)
                .number(sys::NFTNL_EXPR_NG_MODULUS, below)
                .number(sys::NFTNL_EXPR_NG_TYPE, number(libc::NFT_NG_RANDOM))
                .number(sys::NFTNL_EXPR_NG_OFFSET, 0),
        });
    }

    /// Loads fields to registers one after another, from the first on; answers which is free then.
    fn load_key(&mut self, key: &[Field]) -> u8 {
        key.iter().fold(0, |register, field| {
            self.load(*field, register);
            register + field.len(self.family).div_ceil(4)
        })
    }

    /// Loads what a map holds for a key to the first register.
    fn map(&mut self, map: SetId, key: &[Field]) {
        self.load_key(key);
        let found = lookup(map, 0).number(sys::NFTNL_EXPR_LOOKUP_DREG, register(0));
        self.done.push(found);
    }

    /// Changes what a map holds for a key; the kernel wants data of a removal too.
    fn change_map(&mut self, operation: u32, map: SetId, key: &[Field]) -> RawExpression {
        // At a multiple of four, as `nft` aligns it.
        let data = self.load_key(key).next_multiple_of(4);
        self.load(Field::Priority, data);
        RawExpression::new(ExpressionKind::DYNSET)
            .name(sys::NFTNL_EXPR_DYNSET_SET_NAME, map.name())
            .number(sys::NFTNL_EXPR_DYNSET_OP, operation)
            .number(sys::NFTNL_EXPR_DYNSET_SREG_KEY, register(0))
            .number(sys::NFTNL_EXPR_DYNSET_SREG_DATA, register(data))
    }

    /// Writes the first register into the packet.
    fn write(&self, target: Target) -> RawExpression {
        let inet = number(libc::NFT_PAYLOAD_CSUM_INET);
        // The kind of the checksum, its offset, and whether the transport's changes too.
        let (written, checksum) = match target {
            Target::Priority => {
                let priority = libc::NFT_META_PRIORITY;
                return meta(priority, sys::NFTNL_EXPR_META_SREG, register(0));
            }
            Target::Destination if self.is_v4() => {
                (payload(NETWORK, 16, 4), (inet, 10, CHANGES_PSEUDO_HEADER))
            }
            Target::Destination => (payload(NETWORK, 24, 16), (0, 0, CHANGES_PSEUDO_HEADER)),
            Target::DestinationPort(checksum) => (
                payload(TRANSPORT, 2, 2),
                match checksum {
                    Checksum::Tcp => (inet, 16, 0),
                    Checksum::Udp => (inet, 6, 0),
                    Checksum::Sctp => (CHECKSUM_SCTP, 8, 0),
                    Checksum::None => (0, 0, 0),
                },
            ),
        };
        written
            .number(sys::NFTNL_EXPR_PAYLOAD_SREG, register(0))
            .number(sys::NFTNL_EXPR_PAYLOAD_CSUM_TYPE, checksum.0)
            .number(sys::NFTNL_EXPR_PAYLOAD_CSUM_OFFSET, checksum.1)
            .number(sys::NFTNL_EXPR_PAYLOAD_FLAGS, checksum.2)
    }

    /// Sends the flow to the address and port in the first registers.
    fn dnat(&self) -> RawExpression {
        let family = if self.is_v4() {
            libc::NFPROTO_IPV4
        } else {
            libc::NFPROTO_IPV6
        };
        let port = Field::Destination.len(self.family).div_ceil(4);
        RawExpression::new(ExpressionKind::NAT)
            .number(sys::NFTNL_EXPR_NAT_TYPE, number(libc::NFT_NAT_DNAT))
            .number(sys::NFTNL_EXPR_NAT_FAMILY, number(family))
            .number(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, register(0))
            .number(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, register(port))
    }

    fn add(&mut self, expr: &Expr) {
        let step = match expr {
            Expr::Compare { field, equal, to } => {
                self.load(*field, 0);
                compare(*equal, to)
            }
            Expr::Network {
                field,
                inside,
                first,
                prefix,
            } => {
                self.load(*field, 0);
                if usize::from(*prefix) < first.len() * 8 {
                    let mask = prefix_mask(*prefix, first.len());
                    self.done.push(bitwise(&mask, &vec![0; mask.len()]));
                }
                compare(*inside, first)
            }
            Expr::AnyBit(field, bits) => {
                self.load(*field, 0);
                self.done.push(bitwise(&bits.to_ne_bytes(), &[0; 4]));
                compare(false, &[0; 4])
            }
            Expr::In(set, key) => {
                self.load_key(key);
                lookup(*set, 0)
            }
            Expr::NotIn(set, key) => {
                self.load_key(key);
                lookup(*set, libc::NFT_LOOKUP_F_INV)
            }
            Expr::VerdictMap(map, key) => {
                self.load_key(key);
                let to = number(libc::NFT_REG_VERDICT);
                lookup(*map, 0).number(sys::NFTNL_EXPR_LOOKUP_DREG, to)
            }
            Expr::Set(target, map, key) => {
                self.map(*map, key);
                self.write(*target)
            }
            Expr::ClearPriority => {
                let zero = immediate(register(0)).bytes(sys::NFTNL_EXPR_IMM_DATA, &[0; 4]);
                self.done.push(zero);
                self.write(Target::Priority)
            }
            Expr::SetMark { keep, set } => {
                self.load(Field::Mark, 0);
                self.done
                    .push(bitwise(&keep.to_ne_bytes(), &set.to_ne_bytes()));
                let mark = libc::NFT_META_MARK;
                meta(mark, sys::NFTNL_EXPR_META_SREG, register(0))
            }
            Expr::Verdict(to) => verdict(to),
            Expr::Dnat(map, key) => {
                self.map(*map, key);
                self.dnat()
            }
            Expr::Masquerade => RawExpression::new(ExpressionKind::MASQ)
                .number(sys::NFTNL_EXPR_MASQ_FLAGS, RANDOM_PORT),
            Expr::Reject => {
                let (v4, v6) = PORT_UNREACHABLE;
                let code = if self.is_v4() { v4 } else { v6 };
                RawExpression::new(ExpressionKind::REJECT)
                    .number(
                        sys::NFTNL_EXPR_REJECT_TYPE,
                        number(libc::NFT_REJECT_ICMP_UNREACH),
                    )
                    .bytes(sys::NFTNL_EXPR_REJECT_CODE, &[code])
            }
            Expr::Update(map, key, seconds) => {
                let milliseconds = u64::from(*seconds) * 1000;
                self.change_map(number(libc::NFT_DYNSET_OP_UPDATE), *map, key)
                    .bytes(sys::NFTNL_EXPR_DYNSET_TIMEOUT, &milliseconds.to_ne_bytes())
            }
            Expr::Delete(map, key) => self.change_map(DYNSET_DELETE, *map, key),
        };
        self.done.push(step);
    }
}

fn verdict(verdict: &Verdict) -> RawExpression {
    let (code, chain) = verdict.code();
    let expression =
        immediate(number(libc::NFT_REG_VERDICT)).number(sys::NFTNL_EXPR_IMM_VERDICT, number(code));
    match chain {
        Some(chain) => expression.name(sys::NFTNL_EXPR_IMM_CHAIN, chain),
        None => expression,
    }
}
