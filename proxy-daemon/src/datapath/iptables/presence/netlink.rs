//! How is a question put to netfilter, and its answer read?
//!
//! Invariants: a socket per question, so that what is left unread is no answer to another; lengths that
//! the kernel sends are not trusted. Source: `include/uapi/linux/netlink.h`, `…/netfilter/nfnetlink.h`.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH: [u16; 2] = [16, 17];
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
/// `nlmsghdr`.
const HEADER: usize = 16;
/// `nlmsghdr` and `nfgenmsg`.
const HEADERS: usize = HEADER + 4;
/// Without the flags for nested ones and byte order.
const KIND: u16 = 0x3fff;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// For one thing.
    One,
    /// For all of a kind.
    All,
}

/// An attribute with its header and padding.
pub(super) fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + 4).unwrap_or(4);
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Puts a question and hands the attributes of each thing in the answer to `each`.
///
/// # Errors
/// What the kernel answers; `Interrupted` if things changed while they were listed.
pub(super) fn ask(
    kind: u16,
    question: Question,
    family: u8,
    attributes: &[u8],
    each: &mut dyn FnMut(Attributes<'_>),
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let flags = match question {
        Question::One => REQUEST,
        Question::All => REQUEST | DUMP,
    };
    socket.send(&encode(kind, flags, [family, 0, 0, 0], attributes)?, 0)?;
    let mut buffer = vec![0; 64 << 10];
    let mut interrupted = false;
    loop {
        let mut free: &mut [u8] = &mut buffer;
        let n = match socket.recv(&mut free, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let mut rest = buffer.get(..n).unwrap_or(&[]);
        while let Some((message, after)) = message(rest) {
            rest = after;
            interrupted |= message.flags & DUMP_INTERRUPTED != 0;
            match message.kind {
                DONE | ERROR => {
                    let code = message
                        .body
                        .first_chunk()
                        .map_or(0, |c| i32::from_ne_bytes(*c));
                    return match code {
                        0 if interrupted => Err(io::ErrorKind::Interrupted.into()),
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    };
                }
                _ => {
                    each(Attributes(message.body.get(4..).unwrap_or(&[])));
                    if question == Question::One {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// A message with its headers.
fn encode(kind: u16, flags: u16, netfilter: [u8; 4], attributes: &[u8]) -> io::Result<Vec<u8>> {
    let len = u32::try_from(HEADERS + attributes.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADERS + attributes.len());
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(netfilter);
    bytes.extend(attributes);
    Ok(bytes)
}

/// Carries out one change as a transaction of this subsystem.
///
/// # Errors
/// What the kernel answers; nothing has changed then.
pub(super) fn tell(subsystem: u16, kind: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    // The subsystem is a number of 16 bits in network byte order there.
    let [high, low] = subsystem.to_be_bytes();
    let [begin, end] = BATCH;
    let batch = [
        encode(begin, REQUEST, [0, 0, high, low], &[])?,
        encode(kind, REQUEST | ACKNOWLEDGE, [family, 0, 0, 0], attributes)?,
        encode(end, REQUEST, [0, 0, high, low], &[])?,
    ]
    .concat();
    socket.send(&batch, 0)?;
    let mut buffer = vec![0; 8 << 10];
    loop {
        let mut free: &mut [u8] = &mut buffer;
        let n = match socket.recv(&mut free, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let answer = message(buffer.get(..n).unwrap_or(&[]));
        if let Some((
            Message {
                kind: ERROR, body, ..
            },
            _,
        )) = answer
        {
            return match body.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c)) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            };
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

/// The first message and what comes after it.
fn message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let message = Message {
        kind: u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
        flags: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?),
        body: bytes.get(HEADER..len)?,
    };
    Some((message, bytes.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

/// A run of attributes.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those inside of this payload.
    pub(super) const fn of(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    /// The payload of the first one of this kind.
    pub(super) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone()
            .find(|(found, _)| *found == kind)
            .map(|(_, payload)| payload)
    }

    /// The attributes inside of the first one of this kind.
    pub(super) fn nested(&self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    /// The number of 32 bits in the first one of this kind.
    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & KIND;
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inner = attribute(9, &7_u32.to_be_bytes());
        let bytes = [attribute(1, b"abc\0d"), attribute(2, &inner)].concat();
        let attributes = Attributes(&bytes);
        assert_eq!(attributes.get(1), Some(b"abc\0d".as_slice()));
        assert_eq!(attributes.nested(2).and_then(|a| a.number(9)), Some(7));
        assert_eq!(attributes.get(3), None);
        assert_eq!(attributes.count(), 2);
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
            assert_eq!(Attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert!(message(&[0; 20]).is_none());
        assert!(message(&[200, 0, 0, 0, 1, 0, 0, 0]).is_none());
    }
}
