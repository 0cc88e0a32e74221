//! How does the declaration of a set become attributes, and is a printed one the same?
//!
//! Invariants: what `nft` needs to print keys rightly (type numbers, byte order, where a number comes
//! from) goes into type fields and user data that the kernel only stores.
//! Source: `include/udata.h` of nftables 1.0.6, and its netlink dumps.

use super::wire::{Attr, Attrs, Writer};
use crate::datapath::nftables::ruleset::{DataType, Set, SetKind, Value};
use crate::net::IpFamily;

const FLAGS: u16 = 3;
const KEY_TYPE: u16 = 4;
const KEY_LEN: u16 = 5;
const DATA_TYPE: u16 = 6;
const DATA_LEN: u16 = 7;
const POLICY: u16 = 8;
const DESC: u16 = 9;
const ID: u16 = 10;
const TIMEOUT: u16 = 11;
const GC_INTERVAL: u16 = 12;
const USERDATA: u16 = 13;
const OBJECT_TYPE: u16 = 15;
const EXPR: u16 = 17;
const EXPRESSIONS: u16 = 18;

const NFT_SET_ANONYMOUS: u32 = 0x1;
/// All flags that we know; newer kernels may have others.
const NFT_SET_KNOWN: u32 = 0x1ff;

const NFT_SET_INTERVAL: u32 = 0x4;
const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
const NFT_SET_CONCAT: u32 = 0x80;
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;

/// How often the kernel removes elements whose time is over; lookups ignore those anyway.
const GC_INTERVAL_MS: u32 = 30_000;

/// The type number and length of one or several concatenated types.
fn concatenation(types: &[DataType]) -> (u32, u32) {
    let number = types
        .iter()
        .fold(0, |number, kind| number << 6 | kind.number());
    let len = match types {
        [only] => only.len(),
        several => several
            .iter()
            .map(|kind| kind.len().next_multiple_of(4))
            .sum(),
    };
    (number, len)
}

/// Flags, key type, key length, and for maps data type and data length.
fn numbers(set: &Set) -> (u32, (u32, u32), Option<(u32, u32)>) {
    let flags = match set.kind {
        SetKind::Exact => 0,
        SetKind::Interval if set.key.len() > 1 => NFT_SET_INTERVAL | NFT_SET_CONCAT,
        SetKind::Interval => NFT_SET_INTERVAL,
        SetKind::Dynamic { .. } => NFT_SET_TIMEOUT | NFT_SET_EVAL,
    };
    let data = match set.value {
        Value::None => None,
        Value::Verdict => Some((NFT_DATA_VERDICT, 16)),
        Value::Data(types) => Some(concatenation(types)),
    };
    let flags = if data.is_some() {
        flags | NFT_SET_MAP
    } else {
        flags
    };
    (flags, concatenation(set.key), data)
}

/// Writes what declares a set, after the table's name.
pub(super) fn write_set(w: &mut Writer, set: &Set, family: IpFamily) {
    let (flags, key, data) = numbers(set);
    w.attr_str(2, set.name);
    w.attr_u32(FLAGS, flags);
    w.attr_u32(KEY_TYPE, key.0);
    w.attr_u32(KEY_LEN, key.1);
    if let Some(data) = data {
        w.attr_u32(DATA_TYPE, data.0);
        w.attr_u32(DATA_LEN, data.1);
    }
    write_desc(w, set);
    // The kernel asks for a number that is unique in the transaction; we name sets by name.
    w.attr_u32(ID, 1);
    if matches!(set.kind, SetKind::Dynamic { .. }) {
        w.attr_u32(GC_INTERVAL, GC_INTERVAL_MS);
    }
    w.attr(USERDATA, &userdata(set, family));
}

fn write_desc(w: &mut Writer, set: &Set) {
    match set.kind {
        SetKind::Dynamic { size } => w.nest(DESC, |w| w.attr_u32(1, size)),
        SetKind::Interval if set.key.len() > 1 => w.nest(DESC, |w| {
            w.nest(2, |w| {
                for field in set.key {
                    w.nest(1, |w| w.attr_u32(1, field.len()));
                }
            });
        }),
        SetKind::Interval | SetKind::Exact => {}
    }
}

/// Whether a set that the kernel printed is declared as `set`.
pub(super) fn is_same(attrs: Attrs<'_>, set: &Set, family: IpFamily) -> bool {
    let (flags, key, data) = numbers(set);
    let number = |kind| attrs.get(kind).and_then(Attr::u32);
    let mut wanted = Writer::new();
    write_desc(&mut wanted, set);
    // Size and fields. Kernel: others can change the size, and a set that is full takes no more.
    let desc = |attrs: Attrs<'_>, kind| {
        let desc = attrs.get(DESC).map(|desc| Attrs(desc.payload));
        desc.and_then(|desc| desc.get(kind))
            .map(|attr| attr.payload.to_vec())
    };
    let same_desc = [1, 2]
        .into_iter()
        .all(|kind| desc(attrs, kind) == desc(Attrs(wanted.as_slice()), kind));
    let is_dynamic = matches!(set.kind, SetKind::Dynamic { .. });
    // What we never set: the policy, a time that elements stay, objects and expressions.
    let has_more = [POLICY, TIMEOUT, OBJECT_TYPE, EXPR, EXPRESSIONS]
        .into_iter()
        .any(|kind| attrs.get(kind).is_some());
    // Kernel: no flags are no attribute.
    number(FLAGS).unwrap_or(0) & NFT_SET_KNOWN == flags
        && !has_more
        && number(GC_INTERVAL) == is_dynamic.then_some(GC_INTERVAL_MS)
        && number(KEY_TYPE) == Some(key.0)
        && number(KEY_LEN) == Some(key.1)
        && number(DATA_TYPE) == data.map(|data| data.0)
        && (number(DATA_LEN) == data.map(|data| data.1))
        && same_desc
        && attrs.get(USERDATA).map(|attr| attr.payload) == Some(&userdata(set, family))
}

/// Whether a printed set is part of a rule.
pub(super) fn is_anonymous(attrs: Attrs<'_>) -> bool {
    let flags = attrs.get(FLAGS).and_then(Attr::u32).unwrap_or(0);
    flags & NFT_SET_ANONYMOUS != 0
}

/// How many elements a printed set has.
///
/// Kernel: `NFTA_SET_COUNT`, since 6.17.
pub(super) fn n_elements(attrs: Attrs<'_>) -> Option<usize> {
    const COUNT: u16 = 20;
    usize::try_from(attrs.get(COUNT)?.u32()?).ok()
}

/// `NFTNL_UDATA_SET_*`: byte orders, where numbers come from, and the comment.
fn userdata(set: &Set, family: IpFamily) -> Vec<u8> {
    // Type, length, value.
    fn put(to: &mut Vec<u8>, kind: u8, value: &[u8]) {
        to.push(kind);
        to.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        to.extend_from_slice(value);
    }
    /// Host byte order for numbers, network byte order for addresses, unsaid for concatenations.
    fn byte_order(types: &[DataType]) -> u32 {
        match types {
            [DataType::Ipv4Addr | DataType::Ipv6Addr | DataType::InetService] => 2,
            [DataType::Integer | DataType::ClassId | DataType::InetProto] => 1,
            _ => 0,
        }
    }
    let mut bytes = Vec::with_capacity(192);
    put(&mut bytes, 0, &byte_order(set.key).to_ne_bytes());
    if let Value::Data(types) = set.value {
        put(&mut bytes, 1, &byte_order(types).to_ne_bytes());
        // A number's type alone says neither its length nor its byte order; where it comes from does.
        if set.key.contains(&DataType::Integer) {
            put(&mut bytes, 3, &type_of(set.key, family));
            put(&mut bytes, 4, &type_of(types, family));
        }
    }
    let comment: Vec<u8> = set.comment.bytes().take(80).chain([0]).collect();
    put(&mut bytes, 7, &comment);
    bytes
}

/// `typeof ip daddr . meta l4proto . th dport . numgen …`, as far as the key has such parts.
fn type_of(types: &[DataType], family: IpFamily) -> Vec<u8> {
    const CONCAT: u8 = 13;
    const PAYLOAD: u8 = 7;
    const META: u8 = 9;
    const NUMGEN: u8 = 23;
    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, u8::try_from(value.len()).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(value);
        bytes
    }
    fn number(kind: u8, number: u8) -> Vec<u8> {
        tlv(kind, &u32::from(number).to_ne_bytes())
    }
    fn expr(kind: u8, fields: &[Vec<u8>]) -> Vec<u8> {
        [number(0, kind), tlv(1, &fields.concat())].concat()
    }
    // (protocol description, header field) of the destination address.
    let daddr = match family {
        IpFamily::V4 => [number(0, 12), number(1, 12)],
        IpFamily::V6 => [number(0, 13), number(1, 9)],
    };
    let priority = expr(META, &[number(0, 2)]);
    let parts: Vec<Vec<u8>> = types
        .iter()
        .zip(0_u8..)
        .map(|(kind, index)| {
            let part = match kind {
                DataType::Ipv4Addr | DataType::Ipv6Addr => expr(PAYLOAD, &daddr),
                DataType::InetService => expr(PAYLOAD, &[number(0, 11), number(1, 2)]),
                DataType::InetProto => expr(META, &[number(0, 16)]),
                // Random, modulo 2, from 0: the modulus here is that of no rule in particular.
                DataType::ClassId => priority.clone(),
                DataType::Integer => expr(NUMGEN, &[number(0, 1), number(1, 2), number(2, 0)]),
            };
            tlv(index, &part)
        })
        .collect();
    match types {
        [DataType::ClassId] => priority,
        _ => expr(CONCAT, &parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_user_data_is_what_nft_writes() {
        let set = Set {
            name: "backends",
            comment: "x",
            key: &[
                DataType::Ipv4Addr,
                DataType::InetProto,
                DataType::InetService,
                DataType::Integer,
            ],
            value: Value::Data(&[DataType::Ipv4Addr, DataType::InetService]),
            kind: SetKind::Exact,
        };
        let bytes = userdata(&set, IpFamily::V4);
        let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        // As nft 1.0.6 wrote it for `typeof ip daddr . meta l4proto . th dport . numgen random mod 2`.
        assert_eq!(
            hex.concat(),
            "000400000000010400000000\
             036000040d00000001580014000407000000010c00040c00000001040c000000010e00040900000001060004100000\
             000214000407000000010c00040b000000010402000000031a00041700000001120004010000000104020000000204\
             00000000\
             043400040d000000012c0014000407000000010c00040c00000001040c0000000114000407000000010c00040b0000\
             00010402000000\
             07027800"
        );
    }
}
