//! How does the declaration of a set become an object of libnftnl, and is a printed one the same?
//!
//! Invariants: what `nft` needs to print keys rightly (type numbers, byte order, where a number comes
//! from) goes into type fields and user data that the kernel only stores.
//! Source: `include/udata.h` of nftables 1.0.6, and its netlink dumps.

use std::ffi::CString;
use std::net::Ipv4Addr;

use nftnl::Table;
use nftnl_sys::{self as sys, libc};

use crate::datapath::nftables::ruleset::{Field, Set, SetKind, Value, has_random};
use crate::net::IpFamily;
use crate::sys::netfilter::attributes::Attrs;
use crate::sys::netfilter::library::set_attribute;

const FLAGS: u16 = 3;
const DESC: u16 = 9;

/// All flags that we know; newer kernels may have others.
const NFT_SET_KNOWN: u32 = 0x1ff;
const NFT_SET_CONCAT: i32 = 0x80;
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// Bytes of a verdict in a map.
const VERDICT_LEN: u32 = 16;

/// How often the kernel removes elements whose time is over; lookups ignore those anyway.
const GC_INTERVAL_MS: u32 = 30_000;

/// The type number and length of one or several concatenated types.
fn concatenation(types: &[Field], family: IpFamily) -> (u32, u32) {
    let number = types
        .iter()
        .fold(0, |number, field| number << 6 | field.data_type(family).0);
    let len = |field: &Field| u32::from(field.len(family));
    let len = match types {
        [only] => len(only),
        several => several
            .iter()
            .map(|field| len(field).next_multiple_of(4))
            .sum(),
    };
    (number, len)
}

/// Hands the set, as an object of the library, to `then`.
///
/// The crate's type knows sets of one simple type without data; the rest is set through the library.
pub(super) fn with_nftnl_set(
    set: &Set,
    table: &Table,
    family: IpFamily,
    then: impl FnOnce(&nftnl::set::Set<'_, Ipv4Addr>),
) {
    // The kernel asks for a number that is unique in the transaction; we name sets by name.
    const ID: u32 = 1;
    let name = CString::new(set.name).unwrap_or_default();
    let mut nftnl = nftnl::set::Set::<Ipv4Addr>::new_named(&name, ID, table, table.get_family());
    let mut put = |attribute, bytes: &[u8]| set_attribute(&mut nftnl, attribute, bytes);
    let mut flags = match set.kind {
        SetKind::Exact => 0,
        SetKind::Interval if set.key.len() > 1 => libc::NFT_SET_INTERVAL | NFT_SET_CONCAT,
        SetKind::Interval => libc::NFT_SET_INTERVAL,
        SetKind::Dynamic => libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL,
    };
    let data = match set.value {
        Value::None => None,
        Value::Verdict => Some((NFT_DATA_VERDICT, VERDICT_LEN)),
        Value::Data(types) => Some(concatenation(types, family)),
    };
    if let Some((data_type, len)) = data {
        flags |= libc::NFT_SET_MAP;
        put(sys::NFTNL_SET_DATA_TYPE, &data_type.to_ne_bytes());
        put(sys::NFTNL_SET_DATA_LEN, &len.to_ne_bytes());
    }
    let (key_type, len) = concatenation(set.key, family);
    put(sys::NFTNL_SET_FLAGS, &flags.to_ne_bytes());
    put(sys::NFTNL_SET_KEY_TYPE, &key_type.to_ne_bytes());
    put(sys::NFTNL_SET_KEY_LEN, &len.to_ne_bytes());
    match set.kind {
        SetKind::Dynamic => put(sys::NFTNL_SET_GC_INTERVAL, &GC_INTERVAL_MS.to_ne_bytes()),
        SetKind::Interval if set.key.len() > 1 => {
            let lens: Vec<u8> = set.key.iter().map(|field| field.len(family)).collect();
            put(sys::NFTNL_SET_DESC_CONCAT, &lens);
        }
        SetKind::Interval | SetKind::Exact => {}
    }
    if let Some(size) = set.size {
        put(sys::NFTNL_SET_DESC_SIZE, &size.to_ne_bytes());
    }
    put(sys::NFTNL_SET_USERDATA, &userdata(set, family));
    then(&nftnl);
}

/// Elements at most, of a set that the kernel printed.
///
/// Kernel: others can change it, and a set that is full takes no more.
pub(super) fn size(attrs: Attrs<'_>) -> Option<u32> {
    const DESC_SIZE: u16 = 1;
    attrs.inside(DESC).u32(DESC_SIZE)
}

/// Whether a set that the kernel printed is what was written, but for its size.
pub(super) fn is_same(read: Attrs<'_>, written: Attrs<'_>) -> bool {
    /// Types and lengths of key and data, policy, garbage collection and timeout, user data, objects,
    /// expressions: also what we never set, as a time that elements stay.
    const COMPARED: [u16; 11] = [4, 5, 6, 7, 8, 11, 12, 13, 15, 17, 18];
    /// The lengths of concatenated fields.
    const DESC_CONCAT: u16 = 2;
    let same = |read: Attrs<'_>, written: Attrs<'_>, kind| {
        super::printed::is_same(read.get(kind), written.get(kind))
    };
    // Kernel: no flags are no attribute.
    read.u32(FLAGS).unwrap_or(0) & NFT_SET_KNOWN == written.u32(FLAGS).unwrap_or(0)
        && COMPARED.iter().all(|kind| same(read, written, *kind))
        && same(read.inside(DESC), written.inside(DESC), DESC_CONCAT)
}

/// Whether a printed set is part of a rule.
pub(super) fn is_anonymous(attrs: Attrs<'_>) -> bool {
    let flags = attrs.u32(FLAGS).unwrap_or(0);
    flags & libc::NFT_SET_ANONYMOUS.cast_unsigned() != 0
}

/// How many elements a printed set has.
///
/// Kernel: `NFTA_SET_COUNT`, since 6.17.
pub(super) fn n_elements(attrs: Attrs<'_>) -> Option<usize> {
    const COUNT: u16 = 20;
    usize::try_from(attrs.u32(COUNT)?).ok()
}

/// `NFTNL_UDATA_SET_*`: byte orders, where numbers come from, and the comment.
fn userdata(set: &Set, family: IpFamily) -> Vec<u8> {
    // Type, length, value.
    fn put(to: &mut Vec<u8>, kind: u32, value: &[u8]) {
        to.push(u8::try_from(kind).unwrap_or(u8::MAX));
        to.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        to.extend_from_slice(value);
    }
    /// Host byte order for numbers, network byte order for addresses, unsaid for concatenations.
    fn byte_order(types: &[Field]) -> u32 {
        match types {
            [Field::Protocol] => 1,
            [only] => 2 - u32::from(only.is_number()),
            _ => 0,
        }
    }
    let mut bytes = Vec::with_capacity(192);
    put(
        &mut bytes,
        sys::NFTNL_UDATA_SET_KEYBYTEORDER,
        &byte_order(set.key).to_ne_bytes(),
    );
    if let Value::Data(types) = set.value {
        put(
            &mut bytes,
            sys::NFTNL_UDATA_SET_DATABYTEORDER,
            &byte_order(types).to_ne_bytes(),
        );
        // A number's type alone says neither its length nor its byte order; where it comes from does.
        if has_random(set.key) {
            put(
                &mut bytes,
                sys::NFTNL_UDATA_SET_KEY_TYPEOF,
                &type_of(set.key, family),
            );
            put(
                &mut bytes,
                sys::NFTNL_UDATA_SET_DATA_TYPEOF,
                &type_of(types, family),
            );
        }
    }
    let comment: Vec<u8> = set.comment.bytes().take(80).chain([0]).collect();
    put(&mut bytes, sys::NFTNL_UDATA_SET_COMMENT, &comment);
    bytes
}

/// `typeof ip daddr . meta l4proto . th dport . numgen …`, as far as the key has such parts.
fn type_of(types: &[Field], family: IpFamily) -> Vec<u8> {
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
    // The description of the protocol, and the field of its header.
    let payload = |protocol, field| expr(PAYLOAD, &[number(0, protocol), number(1, field)]);
    let priority = expr(META, &[number(0, 2)]);
    let parts: Vec<Vec<u8>> = types
        .iter()
        .zip(0_u8..)
        .map(|(field, index)| {
            let part = match (field, family) {
                (Field::Protocol, _) => expr(META, &[number(0, 16)]),
                (Field::Priority, _) => priority.clone(),
                // Random, modulo 2, from 0.
                (Field::Random(_), _) => expr(NUMGEN, &[number(0, 1), number(1, 2), number(2, 0)]),
                (Field::DestinationPort, _) => payload(11, 2),
                (_, IpFamily::V4) => payload(12, 12),
                (_, IpFamily::V6) => payload(13, 9),
            };
            tlv(index, &part)
        })
        .collect();
    match types {
        [Field::Priority] => priority,
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
                Field::Destination,
                Field::Protocol,
                Field::DestinationPort,
                Field::Random(2),
            ],
            value: Value::Data(&[Field::Destination, Field::DestinationPort]),
            kind: SetKind::Exact,
            size: None,
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
