//! How does a checksum follow a change?
//!
//! Source: RFC 1624. All words are taken as they lie in memory; the sum does not depend on their byte order.

/// A sum in ones' complement that is not folded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Nothing added.
    pub const ZERO: Self = Self(0);

    /// With a word of four bytes added.
    #[inline]
    pub fn plus(self, word: u32) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// With a word of four bytes taken away.
    #[inline]
    pub fn minus(self, word: u32) -> Self {
        self.plus(!word)
    }

    /// With the words of an address replaced.
    #[inline]
    pub fn replace<const WORDS: usize>(self, old: &[u32; WORDS], new: &[u32; WORDS]) -> Self {
        let pairs = old.iter().zip(new);
        pairs.fold(self, |sum, (old, new)| sum.minus(*old).plus(*new))
    }

    /// Folded to 32 bits, as the kernel's helpers take it.
    #[inline]
    pub fn folded(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        low32((once & 0xffff_ffff) + (once >> 32))
    }

    /// The checksum of what was added: folded to 16 bits and inverted.
    #[inline]
    pub fn checksum(self) -> u16 {
        let sum = self.folded();
        let once = (sum & 0xffff) + (sum >> 16);
        !low16((once & 0xffff) + (once >> 16))
    }

    /// A checksum after this change.
    #[inline]
    pub fn applied_to(self, checksum: u16) -> u16 {
        self.plus(u32::from(!checksum)).checksum()
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
const fn low32(value: u64) -> u32 {
    value as u32
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
const fn low16(value: u32) -> u16 {
    value as u16
}
