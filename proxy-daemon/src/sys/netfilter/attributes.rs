//! How are netlink attributes written, and read from any bytes?
//!
//! The only place in the daemon that does so. The reader is safe Rust over a byte slice and not
//! `mnl_attr_next` and its relatives: those take raw pointers, so that each step over an attribute
//! and each number in it would need an `unsafe` block with a proof that it lies within the datagram;
//! a slice carries that proof. Invariants: no bytes make the reader panic or read past their end; it
//! stops at the first attribute that makes no sense; numbers inside attributes are in network byte
//! order, headers in host byte order; each attribute that is written is padded to four bytes with zeros.

/// Bit of an attribute's type: its payload is attributes.
const NESTED: u16 = 1 << 15;
/// An attribute's type without that bit and the one for byte order.
const TYPE: u16 = 0x3fff;
/// Bytes that fit into one attribute beside its header.
const MAX_PAYLOAD: usize = u16::MAX as usize - 4;

/// Appends attributes to a byte string.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends bytes as they are: attributes that were written elsewhere, or a part of a payload.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends an attribute. A payload above 65,531 bytes cannot be said and is cut to nothing.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) {
        let payload = if payload.len() > MAX_PAYLOAD {
            &[]
        } else {
            payload
        };
        self.nest(kind, |w| w.raw(payload));
    }

    /// Appends an attribute that was read, with the very bytes that it had.
    pub fn copy(&mut self, attr: Attr<'_>) {
        let nested = if attr.is_nested { NESTED } else { 0 };
        self.attr(attr.kind | nested, attr.payload);
    }

    /// Appends a string with its closing zero.
    pub fn attr_str(&mut self, kind: u16, text: &str) {
        self.nest(kind, |w| {
            w.raw(text.as_bytes());
            w.raw(&[0]);
        });
    }

    /// Appends a number of 32 bits.
    pub fn attr_u32(&mut self, kind: u16, number: u32) {
        self.attr(kind, &number.to_be_bytes());
    }

    /// Appends a number of 64 bits.
    pub fn attr_u64(&mut self, kind: u16, number: u64) {
        self.attr(kind, &number.to_be_bytes());
    }

    /// Appends an attribute whose payload `fill` writes. Its type does not say that it is nested:
    /// `nf_tables` prints none that do, and neither it nor conntrack asks for it.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.open(kind);
        fill(self);
        self.close(start);
    }

    /// Begins an attribute; answers what [`Writer::close`] wants to know.
    pub fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.raw(&[0, 0]);
        self.raw(&kind.to_ne_bytes());
        start
    }

    /// Ends an attribute: its length is now known.
    pub fn close(&mut self, start: usize) {
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(slot) = self.bytes.get_mut(start..start + 2) {
            slot.copy_from_slice(&len.to_ne_bytes());
        }
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// One attribute that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Its type, without flags.
    pub kind: u16,
    /// Whether its type says that the payload is attributes; not all that are say so.
    pub is_nested: bool,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The payload as a number of 32 bits.
    pub fn u32(self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_be_bytes)
    }

    /// The payload as a number of 64 bits.
    pub fn u64(self) -> Option<u64> {
        self.payload.try_into().ok().map(u64::from_be_bytes)
    }

    /// The payload as text without its closing zero.
    pub fn str(self) -> Option<&'a str> {
        let text = self.payload.strip_suffix(&[0]).unwrap_or(self.payload);
        std::str::from_utf8(text).ok()
    }

    /// The payload as attributes.
    pub const fn inside(self) -> Attrs<'a> {
        Attrs(self.payload)
    }
}

/// A run of attributes, from the first to the last that makes sense.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Attrs<'a> {
    /// The first attribute of this type.
    pub fn get(mut self, kind: u16) -> Option<Attr<'a>> {
        self.find(|attr| attr.kind == kind)
    }

    /// The number of 32 bits in the first attribute of this type.
    pub fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.u32()
    }

    /// The text in the first attribute of this type.
    pub fn str(self, kind: u16) -> Option<&'a str> {
        self.get(kind)?.str()
    }

    /// The payload of the first attribute of this type; nothing if there is none.
    pub fn payload(self, kind: u16) -> &'a [u8] {
        self.get(kind).map_or(&[], |attr| attr.payload)
    }

    /// The attributes in the first attribute of this type; none if there is none.
    pub fn inside(self, kind: u16) -> Self {
        Self(self.payload(kind))
    }
}

#[expect(
    clippy::copy_iterator,
    reason = "a view; each look begins at the start"
)]
impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?);
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attr {
            kind: kind & TYPE,
            is_nested: kind & NESTED != 0,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut w = Writer::new();
        w.attr(1, b"abc\0d");
        w.nest(2, |w| w.attr_u32(9, 7));
        w.attr_str(3, "name");
        let attrs = Attrs(w.as_slice());
        assert_eq!(attrs.payload(1), b"abc\0d");
        assert_eq!(attrs.inside(2).u32(9), Some(7));
        assert_eq!(attrs.str(3), Some("name"));
        assert_eq!(attrs.get(4), None);
        assert_eq!(attrs.count(), 3);
        let mut copy = Writer::new();
        attrs.for_each(|attr| copy.copy(attr));
        assert_eq!(copy.as_slice(), w.as_slice());
    }

    #[test]
    fn lengths_that_make_no_sense_end_the_reading() {
        for bytes in [
            &[][..],
            &[0, 0, 1, 0],
            &[3, 0, 1, 0],
            &[9, 0, 1, 0, 0],
            &[8, 0, 1],
        ] {
            assert_eq!(Attrs(bytes).count(), 0, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes: Vec<u8>) {
            for attr in Attrs(&bytes) {
                prop_assert!(attr.payload.len() + 4 <= bytes.len());
                attr.inside().for_each(|inner| _ = (inner.u32(), inner.u64(), inner.str()));
            }
        }
    }
}
