//! How do messages reach the kernel, and its answers us?
//!
//! Invariants: a transaction is one `sendmsg`, so the kernel has answered when it returns; an answer
//! belongs to a request by its sequence number; a dump that was disturbed is an error of its own.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

use super::wire::{
    Attrs, HEADERS, Message, Messages, NFTABLES, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, Writer,
};

/// A refused message: its sequence number and the kernel's answer.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Which message.
    pub(super) seq: u32,
    /// At which of its bytes; many kernels say so.
    pub(super) offset: Option<usize>,
    /// Why.
    pub(super) source: io::Error,
}

/// A netlink socket that speaks to `nf_tables` of the network namespace it was opened in.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    seq: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens the socket.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // A dump fills its buffer up to this; the default makes a large map many round trips.
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)))?;
        Ok(Self {
            socket,
            seq: 1,
            send_buffer: 0,
            buffer: vec![0; 1 << 18],
        })
    }

    /// The sequence number of the first of `n` new messages.
    pub(super) fn take_seqs(&mut self, n: u32) -> u32 {
        let first = self.seq;
        self.seq = self.seq.wrapping_add(n).max(1);
        first
    }

    /// Sends bytes as one datagram, growing the send buffer where they need it.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Kernel: netlink_sendmsg() refuses more than sk_sndbuf - 32; setsockopt doubles what it is given.
        if bytes.len() > self.send_buffer {
            let size = bytes.len().max(1 << 20);
            setsockopt(&self.socket, sockopt::SndBufForce, &size)
                .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &size))?;
            self.send_buffer = size;
        }
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    fn receive(&mut self, flags: MsgFlags) -> io::Result<usize> {
        loop {
            let mut free: &mut [u8] = &mut self.buffer;
            match self.socket.recv(&mut free, flags.bits()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Sends a transaction and waits for the answer to its message `last`, which asked for one.
    ///
    /// Answers with the first refusal, if there is any.
    pub(super) fn transact(&mut self, bytes: &[u8], last: u32) -> io::Result<Result<(), Refusal>> {
        self.send(bytes)?;
        let mut first: Option<Refusal> = None;
        let mut acknowledged = false;
        // Kernel: nfnetlink_rcv_batch() runs inside sendmsg(), so all answers are queued by now.
        loop {
            let n = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            for message in Messages(self.buffer.get(..n).unwrap_or(&[])) {
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                match errno(message.body) {
                    0 => acknowledged |= message.seq == last,
                    code if first.is_none() => {
                        first = Some(Refusal {
                            seq: message.seq,
                            offset: offset(message),
                            source: io::Error::from_raw_os_error(code),
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(match first {
            Some(refusal) => Err(refusal),
            None if acknowledged => Ok(()),
            None => Err(Refusal {
                seq: last,
                offset: None,
                source: io::Error::other("the kernel did not answer"),
            }),
        })
    }

    /// Asks for all objects of a kind, or for one, and hands each answer's attributes to `each`.
    ///
    /// An error of kind `Interrupted` says that the objects changed meanwhile.
    pub(super) fn ask(
        &mut self,
        message: u16,
        family: u8,
        dump: bool,
        fill: impl FnOnce(&mut Writer),
        mut each: impl FnMut(Attrs<'_>),
    ) -> io::Result<()> {
        let seq = self.take_seqs(1);
        let mut w = Writer::new();
        let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { 0 };
        let start = w.open_message(NFTABLES << 8 | message, flags, seq, family, 0);
        fill(&mut w);
        w.close_message(start);
        self.send(&w.bytes)?;
        let mut disturbed = false;
        loop {
            let n = self.receive(MsgFlags::empty())?;
            for answer in Messages(self.buffer.get(..n).unwrap_or(&[])) {
                if answer.seq != seq {
                    continue;
                }
                disturbed |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_DONE if disturbed => return Err(io::ErrorKind::Interrupted.into()),
                    // Both end with an error number, which is 0 if all went well.
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = errno(answer.body);
                        return if code == 0 {
                            Ok(())
                        } else {
                            Err(io::Error::from_raw_os_error(code))
                        };
                    }
                    _ => {
                        each(answer.attrs());
                        if !dump {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// Where in the refused message the kernel found the fault.
fn offset(message: Message<'_>) -> Option<usize> {
    const ATTRIBUTES: u16 = 0x200;
    const OFFSET: u16 = 2;
    // The error number and the header of the refused message come first.
    let attrs = Attrs(message.body.get(20..)?);
    if message.flags & ATTRIBUTES == 0 {
        return None;
    }
    let offset = attrs.get(OFFSET)?.payload.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(offset)).ok()
}

/// The error number in an answer, as a positive number.
fn errno(body: &[u8]) -> i32 {
    body.get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(0, |code| i32::from_ne_bytes(code).saturating_neg())
}

const _: () = assert!(HEADERS == 20);
