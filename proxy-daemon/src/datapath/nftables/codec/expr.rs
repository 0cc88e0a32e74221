//! How does a rule become attributes?
//!
//! Invariants: register numbers are written in the form in which the kernel prints them, so that a
//! rule read back can be compared byte for byte; what the kernel fills in by itself is left out.
//! Source: `include/uapi/linux/netfilter/nf_tables.h`.

use super::wire::{Attrs, Writer};
use crate::datapath::nftables::ruleset::{Checksum, Expr, Reg, Rule, Verdict};
use crate::net::IpFamily;

/// `NFTA_LIST_ELEM`
pub(super) const LIST_ELEM: u16 = 1;
/// `NFTA_DATA_VALUE`
pub(super) const DATA_VALUE: u16 = 1;
/// `NFTA_DATA_VERDICT`
const DATA_VERDICT: u16 = 2;

impl Reg {
    /// The number as the kernel prints it: 128-bit registers by their own numbers.
    const fn number(self) -> u32 {
        let index = self.0 as u32;
        if index.is_multiple_of(4) {
            1 + index / 4
        } else {
            8 + index
        }
    }
}

/// Writes a verdict into the attribute that holds it.
pub(super) fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3_i32, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    w.nest(DATA_VERDICT, |w| {
        w.attr(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            w.attr_str(2, chain);
        }
    });
}

/// Reads what [`write_verdict`] wrote.
pub(super) fn read_verdict(attrs: Attrs<'_>) -> Option<Verdict> {
    let verdict = Attrs(attrs.get(DATA_VERDICT)?.payload);
    let chain = || verdict.get(2)?.str();
    match i32::from_be_bytes(verdict.get(1)?.payload.try_into().ok()?) {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -3 => Some(Verdict::Jump(chain()?.into())),
        -4 => Some(Verdict::Goto(chain()?.into())),
        _ => None,
    }
}

/// Writes the payload of `NFTA_RULE_EXPRESSIONS`.
pub(super) fn write_expressions(w: &mut Writer, rule: &Rule, family: IpFamily) {
    for expr in &rule.exprs {
        w.nest(LIST_ELEM, |w| write_expression(w, expr, family));
    }
}

fn named(w: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    w.attr_str(1, name);
    w.nest(2, fill);
}

fn payload(w: &mut Writer, base: u32, offset: u32, len: u32, to: Reg) {
    named(w, "payload", |w| {
        w.attr_u32(1, to.number());
        w.attr_u32(2, base);
        w.attr_u32(3, offset);
        w.attr_u32(4, len);
    });
}

/// Writes a register into the packet; `checksum` is its kind, its offset and whether the transport's changes too.
fn write_payload(
    w: &mut Writer,
    base: u32,
    offset: u32,
    len: u32,
    from: Reg,
    checksum: (u32, u32, u32),
) {
    named(w, "payload", |w| {
        w.attr_u32(5, from.number());
        w.attr_u32(2, base);
        w.attr_u32(3, offset);
        w.attr_u32(4, len);
        w.attr_u32(6, checksum.0);
        w.attr_u32(7, checksum.1);
        w.attr_u32(8, checksum.2);
    });
}

/// An expression that loads one thing, by its key, into one register.
fn load(w: &mut Writer, name: &str, key: u32, to: Reg) {
    named(w, name, |w| {
        if name == "meta" {
            w.attr_u32(2, key);
            w.attr_u32(1, to.number());
        } else {
            w.attr_u32(1, to.number());
            w.attr_u32(2, key);
        }
    });
}

fn compare(w: &mut Writer, reg: Reg, operation: u32, bytes: &[u8]) {
    named(w, "cmp", |w| {
        w.attr_u32(1, reg.number());
        w.attr_u32(2, operation);
        w.nest(3, |w| w.attr(DATA_VALUE, bytes));
    });
}

/// `flags`: 1 goes on if there is no such key.
fn lookup(w: &mut Writer, set: &str, key: Reg, to: Option<u32>, flags: u32) {
    named(w, "lookup", |w| {
        w.attr_str(1, set);
        w.attr_u32(2, key.number());
        if let Some(to) = to {
            w.attr_u32(3, to);
        }
        w.attr_u32(5, flags);
    });
}

fn change_map(w: &mut Writer, operation: u32, set: &str, key: Reg, data: Reg, seconds: u32) {
    named(w, "dynset", |w| {
        w.attr_u32(4, key.number());
        w.attr_u32(5, data.number());
        w.attr_u32(3, operation);
        w.attr_str(1, set);
        if seconds > 0 {
            w.attr_u64(6, u64::from(seconds) * 1000);
        }
    });
}

#[expect(clippy::too_many_lines, reason = "a table, one arm per expression")]
fn write_expression(w: &mut Writer, expr: &Expr, family: IpFamily) {
    const NETWORK_HEADER: u32 = 1;
    const TRANSPORT_HEADER: u32 = 2;
    let (nf_family, port_unreachable) = match family {
        IpFamily::V4 => (super::NFPROTO_IPV4, 3),
        IpFamily::V6 => (super::NFPROTO_IPV6, 4),
    };
    match expr {
        Expr::Network { offset, len, to } => payload(w, NETWORK_HEADER, *offset, *len, *to),
        Expr::SourcePort { to } => payload(w, TRANSPORT_HEADER, 0, 2, *to),
        Expr::DestinationPort { to } => payload(w, TRANSPORT_HEADER, 2, 2, *to),
        Expr::L4Proto { to } => load(w, "meta", 16, *to),
        Expr::Mark { to } => load(w, "meta", 3, *to),
        Expr::Priority { to } => load(w, "meta", 2, *to),
        Expr::SetPriority { from } => named(w, "meta", |w| {
            w.attr_u32(2, 2);
            w.attr_u32(3, from.number());
        }),
        Expr::Zero { to } => named(w, "immediate", |w| {
            w.attr_u32(1, to.number());
            w.nest(2, |w| w.attr(DATA_VALUE, &[0; 4]));
        }),
        Expr::UdpChecksum { to } => payload(w, TRANSPORT_HEADER, 6, 2, *to),
        Expr::SetDestination { from } => match family {
            IpFamily::V4 => write_payload(w, NETWORK_HEADER, 16, 4, *from, (1, 10, 1)),
            IpFamily::V6 => write_payload(w, NETWORK_HEADER, 24, 16, *from, (0, 0, 1)),
        },
        Expr::SetDestinationPort { from, checksum } => {
            let checksum = match checksum {
                Checksum::Tcp => (1, 16, 0),
                Checksum::Udp => (1, 6, 0),
                Checksum::Sctp => (2, 8, 0),
                Checksum::None => (0, 0, 0),
            };
            write_payload(w, TRANSPORT_HEADER, 2, 2, *from, checksum);
        }
        Expr::InterfaceName { to } => load(w, "meta", 6, *to),
        Expr::CtState { to } => load(w, "ct", 0, *to),
        Expr::CtStatus { to } => load(w, "ct", 2, *to),
        Expr::SetMark { from } => named(w, "meta", |w| {
            w.attr_u32(2, 3);
            w.attr_u32(3, from.number());
        }),
        Expr::SourceAddressType { to } => named(w, "fib", |w| {
            w.attr_u32(1, to.number());
            w.attr_u32(2, 3);
            w.attr_u32(3, 1);
        }),
        Expr::Bitwise { reg, mask, xor } => named(w, "bitwise", |w| {
            w.attr_u32(1, reg.number());
            w.attr_u32(2, reg.number());
            w.attr_u32(3, u32::try_from(mask.len()).unwrap_or(4));
            w.nest(4, |w| w.attr(DATA_VALUE, mask));
            w.nest(5, |w| w.attr(DATA_VALUE, xor));
        }),
        Expr::Equal { reg, to } => compare(w, *reg, 0, to),
        Expr::NotEqual { reg, to } => compare(w, *reg, 1, to),
        Expr::In { set, key } => lookup(w, set, *key, None, 0),
        Expr::NotIn { set, key } => lookup(w, set, *key, None, 1),
        Expr::Map { set, key, to } => lookup(w, set, *key, Some(to.number()), 0),
        Expr::VerdictMap { set, key } => lookup(w, set, *key, Some(0), 0),
        Expr::Random { below, to } => named(w, "numgen", |w| {
            w.attr_u32(1, to.number());
            w.attr_u32(2, *below);
            w.attr_u32(3, 1);
            w.attr_u32(4, 0);
        }),
        Expr::Verdict(verdict) => named(w, "immediate", |w| {
            w.attr_u32(1, 0);
            w.nest(2, |w| write_verdict(w, verdict));
        }),
        Expr::Dnat { address, port } => named(w, "nat", |w| {
            w.attr_u32(1, 1);
            w.attr_u32(2, u32::from(nf_family));
            w.attr_u32(3, address.number());
            w.attr_u32(5, port.number());
        }),
        // NF_NAT_RANGE_PROTO_RANDOM_FULLY
        Expr::Masquerade => named(w, "masq", |w| w.attr_u32(1, 0x10)),
        Expr::Reject => named(w, "reject", |w| {
            w.attr_u32(1, 0);
            w.attr(2, &[port_unreachable]);
        }),
        Expr::Remember {
            set,
            key,
            data,
            seconds,
        } => change_map(w, 1, set, *key, *data, *seconds),
        Expr::Forget { set, key, data } => change_map(w, 2, set, *key, *data, 0),
    }
}
