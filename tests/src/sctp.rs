//! How SCTP is spoken without SCTP sockets: the two packets that open an association, built by hand (RFC 9260 §3).
//!
//! Invariant: a packet whose CRC32c is wrong is not a packet; so a datapath that rewrites a port must have mended the checksum.

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const STATE_COOKIE: u16 = 7;
const HEADER: usize = 12;
const CHUNK: usize = 20;

/// A packet that opens an association, with the fields that tests read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The source port.
    pub source: u16,
    /// The destination port.
    pub destination: u16,
    /// The tag that the sender chose for packets towards it.
    pub initiate_tag: u32,
    /// The tag that the receiver chose; 0 in an INIT.
    pub verification_tag: u32,
    /// The state cookie of an INIT ACK; `None` means INIT.
    pub cookie: Option<Vec<u8>>,
}

impl Packet {
    /// The bytes after the IP header.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.verification_tag.to_be_bytes());
        bytes.extend([0; 4]);
        let parameter = self.cookie.as_ref().map_or(0, |cookie| 4 + cookie.len());
        bytes.extend([
            if self.cookie.is_some() {
                INIT_ACK
            } else {
                INIT
            },
            0,
        ]);
        bytes.extend(((CHUNK + parameter) as u16).to_be_bytes());
        bytes.extend(self.initiate_tag.to_be_bytes());
        bytes.extend(65_536_u32.to_be_bytes());
        bytes.extend(1_u16.to_be_bytes());
        bytes.extend(1_u16.to_be_bytes());
        bytes.extend(1_u32.to_be_bytes());
        if let Some(cookie) = &self.cookie {
            bytes.extend(STATE_COOKIE.to_be_bytes());
            bytes.extend((parameter as u16).to_be_bytes());
            bytes.extend(cookie);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let sum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the bytes after the IP header; `None` for anything that a receiver would discard or that opens nothing.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut clean = bytes.to_vec();
        clean.get_mut(8..12)?.fill(0);
        if crc32c(&clean).to_le_bytes() != bytes[8..12] || bytes.len() < HEADER + CHUNK {
            return None;
        }
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from(short(at)) << 16 | u32::from(short(at + 2));
        let cookie = match bytes[HEADER] {
            INIT => None,
            INIT_ACK if bytes.len() >= HEADER + CHUNK + 4 && short(32) == STATE_COOKIE => {
                Some(bytes.get(36..32 + usize::from(short(34)))?.to_vec())
            }
            _ => return None,
        };
        Some(Self {
            source: short(0),
            destination: short(2),
            verification_tag: long(4),
            initiate_tag: long(16),
            cookie,
        })
    }
}

/// The checksum of SCTP (RFC 9260 appendix A), bit by bit: packets of tests are small.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_well_known_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn packets_survive_and_damaged_ones_do_not() {
        for cookie in [None, Some(b"P1 10.0.0.1 4242".to_vec())] {
            let packet = Packet {
                source: 40_000,
                destination: 80,
                initiate_tag: 0xdead_beef,
                verification_tag: 0,
                cookie,
            };
            let mut bytes = packet.encode();
            assert_eq!(Packet::decode(&bytes), Some(packet));
            bytes[1] ^= 1;
            assert_eq!(Packet::decode(&bytes), None);
        }
    }
}
