//! How does SCTP's checksum follow a change of ports, without reading the payload?
//!
//! This sum is linear: the change of the sum depends on the changed bits and on how many bytes follow, not on
//! what they are. To append one zero byte is a linear map of the 32 bits; its powers of two, as tables of
//! four bits each, append any number of them in at most sixteen steps.
//!
//! Source: RFC 9260, appendix A, for the polynomial and the bit order.

/// The number of powers: packets are shorter than 2^16 bytes.
const POWERS: usize = 16;
/// The words of one power: eight tables of sixteen.
const WORDS: usize = 128;

static APPEND: [[u32; WORDS]; POWERS] = tables();

/// The register after this many zero bytes.
///
/// The change of the checksum is the changed four bytes at the packet's start (as they lie in memory of a
/// little-endian machine), advanced by the length of the whole packet.
#[inline(never)]
pub(crate) fn advance(register: u32, length: u32) -> u32 {
    let mut register = register;
    for (power, table) in APPEND.iter().enumerate() {
        if (length >> power) & 1 == 1 {
            register = apply(table, register);
        }
    }
    register
}

#[inline]
fn apply(table: &[u32; WORDS], register: u32) -> u32 {
    let (mut bits, mut result) = (register, 0);
    for nibble in table.chunks_exact(16) {
        let word = nibble.get((bits & 15) as usize);
        result ^= word.copied().unwrap_or_default();
        bits >>= 4;
    }
    result
}

/// One zero byte appended.
const fn append(register: u32) -> u32 {
    let (mut register, mut bit) = (register, 0);
    while bit < 8 {
        let carry = register & 1;
        register >>= 1;
        if carry == 1 {
            register ^= 0x82f6_3b78;
        }
        bit += 1;
    }
    register
}

#[expect(
    clippy::indexing_slicing,
    reason = "evaluated when it is compiled: a wrong index stops the build"
)]
const fn tables() -> [[u32; WORDS]; POWERS] {
    let mut tables = [[0; WORDS]; POWERS];
    // What becomes of each single bit.
    let mut columns = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        columns[bit] = append(1 << bit);
        bit += 1;
    }
    let mut power = 0;
    while power < POWERS {
        let mut at = 0;
        while at < WORDS {
            let nibble = (at % 16) << (4 * (at / 16));
            tables[power][at] = combine(&columns, nibble);
            at += 1;
        }
        let before = columns;
        bit = 0;
        while bit < 32 {
            columns[bit] = combine(&before, before[bit] as usize);
            bit += 1;
        }
        power += 1;
    }
    tables
}

#[expect(clippy::indexing_slicing, reason = "as above")]
const fn combine(columns: &[u32; 32], bits: usize) -> u32 {
    let (mut result, mut bit) = (0, 0);
    while bit < 32 {
        if (bits >> bit) & 1 == 1 {
            result ^= columns[bit];
        }
        bit += 1;
    }
    result
}
