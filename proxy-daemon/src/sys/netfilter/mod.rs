//! How is netfilter asked, and told to change?
//!
//! The one door for nftables, conntrack and what iptables mode wants to know of the kernel; messages are
//! read by libmnl (the mnl crate). Its sockets are not used: their descriptors are inherited by programs
//! that start between two system calls. Invariants: blocking, but for no longer than an answer takes; a
//! batch is one `sendmsg`, however many pages the library made of it, so that it is all or nothing and the
//! kernel has answered when the call returns; an answer belongs to a question by its sequence number; a
//! listing that writes of others disturbed is an error of its own kind, `Interrupted`; a socket that lost
//! an answer is not used again.
//!
//! Of a batch the kernel acknowledges one message and refuses any: to acknowledge each, as the nftnl
//! crate asks, would cost a kernel buffer per message and say no more.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use mnl::NlMessages;
use nftnl::{Batch, FinalizedBatch, MsgType, default_batch_page_size};
use nftnl_sys::libc;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

pub mod attributes;
pub(crate) mod library;

use crate::net::IpFamily;
use attributes::{Attrs, Writer};
use library::{Header, Message, set_option};

/// Where a message's type says which part of netfilter it is for: `NFNL_SUBSYS_*`.
pub(crate) const CONNTRACK: u16 = 1 << 8;
/// The same for ipset.
pub(crate) const IPSET: u16 = 6 << 8;
/// The same for `nf_tables`.
pub(crate) const NFTABLES: u16 = 10 << 8;

/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct nlmsghdr` and `struct nfgenmsg`: what comes before the attributes.
const HEADERS: usize = HEADER + 4;
/// Sequence numbers of questions; those of a batch begin at 0 or 1.
const FIRST_QUESTION: u32 = 1 << 31;
/// No datagram that the kernel sends is larger: a listing comes in pieces of 32 KiB.
const ANSWER: usize = 64 << 10;
/// An answer that has not come after this time is lost. Unit: seconds.
///
/// Kernel: a question may wait for a commit of others, which takes a second or two if it is large.
const PATIENCE: i64 = 20;
/// A transaction has at most 1,024 pages (`UIO_MAXIOV`); of this many times the library's default.
const PAGE: u32 = 8;

/// `NFPROTO_*`
pub(crate) const fn family_number(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// A batch without messages.
pub(crate) fn new_batch() -> Batch {
    Batch::with_page_size(default_batch_page_size().saturating_mul(PAGE))
}

/// Reads until nobody writes meanwhile, but not more often than `attempts` times.
///
/// # Errors
/// That of `read`; `Interrupted` if others wrote during each attempt.
pub(crate) fn undisturbed<T>(
    attempts: usize,
    mut read: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    for _ in 1..attempts {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    read()
}

/// A batch was refused, and nothing of it is in force.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Which of its messages was refused, counted from 0; `None` if it was none in particular.
    pub(crate) message: Option<usize>,
    /// That message from the attribute on that the kernel found at fault, where it says so.
    pub(crate) attribute: Vec<u8>,
    /// Why.
    pub(crate) source: io::Error,
}

/// A socket to netfilter in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: OwnedFd,
    /// An answer was lost, or may still come.
    is_broken: bool,
    seq: u32,
    send_buffer: usize,
    buffer: Vec<u8>,
}

/// A message of the kernel.
struct Answer<'a> {
    kind: i32,
    flags: i32,
    seq: u32,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let number = |at| Some(u16::from_ne_bytes(*message.get(at..)?.first_chunk()?));
        Some(Self {
            kind: number(4)?.into(),
            flags: number(6)?.into(),
            seq: u32::from_ne_bytes(*message.get(8..)?.first_chunk()?),
            body: message.get(HEADER..)?,
        })
    }

    /// The error number of an answer that ends something; it is 0 if all went well.
    fn errno(&self) -> i32 {
        let number = self
            .body
            .first_chunk()
            .map(|code| i32::from_ne_bytes(*code));
        number.unwrap_or(0).saturating_neg()
    }

    fn result(&self) -> io::Result<()> {
        match self.errno() {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }

    /// Where in the refused message the kernel found the fault.
    fn offset(&self) -> Option<usize> {
        /// `NLM_F_ACK_TLVS`
        const HAS_ATTRIBUTES: i32 = 0x200;
        /// `NLMSGERR_ATTR_OFFS`
        const OFFSET: u16 = 2;
        if self.flags & HAS_ATTRIBUTES == 0 {
            return None;
        }
        // The error number and the header of the refused message come first.
        let attrs = Attrs(self.body.get(4 + HEADER..)?);
        let offset = attrs.get(OFFSET)?.payload.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(offset)).ok()
    }
}

/// The messages in these bytes, which begin where an allocation does.
fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    // `NlMessages` asks that the last message is padded too.
    NlMessages::new(bytes.get(..bytes.len() & !3).unwrap_or(&[])).map_while(Result::ok)
}

fn open_socket() -> io::Result<OwnedFd> {
    /// Answers to a batch wait in the socket until it has run to its end. Unit: bytes.
    const RECEIVE: libc::c_int = 4 << 20;
    let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
    // A refusal does not repeat the refused message, and says where its fault is.
    set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
    set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
    let receive = |name| set_option(&socket, libc::SOL_SOCKET, name, RECEIVE);
    receive(libc::SO_RCVBUFFORCE).or_else(|_| receive(libc::SO_RCVBUF))?;
    Ok(socket)
}

impl Netfilter {
    /// Opens the socket.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: open_socket()?,
            is_broken: false,
            seq: FIRST_QUESTION,
            send_buffer: 0,
            buffer: vec![0; ANSWER],
        })
    }

    /// Opens the socket anew if it must not be used again.
    fn mend(&mut self) -> io::Result<()> {
        if self.is_broken {
            self.socket = open_socket()?;
            self.send_buffer = 0;
            self.is_broken = false;
        }
        Ok(())
    }

    /// Asks for one thing, and hands its attributes to `each`.
    ///
    /// # Errors
    /// The kernel's answer: `NotFound` if there is no such thing.
    pub(crate) fn get(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &Writer,
        each: &mut dyn FnMut(Attrs<'_>),
    ) -> io::Result<()> {
        self.ask(kind, 0, family, attributes, each)
    }

    /// Asks for all things of a kind, and hands the attributes of each to `each`.
    ///
    /// # Errors
    /// The kernel's answer; `Interrupted` if things changed while they were listed, and `each` may have seen
    /// some twice or never.
    pub(crate) fn list(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &Writer,
        each: &mut dyn FnMut(Attrs<'_>),
    ) -> io::Result<()> {
        self.ask(kind, libc::NLM_F_DUMP, family, attributes, each)
    }

    /// Carries out a change outside of any batch.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(crate) fn change(&mut self, kind: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
        let mut w = Writer::new();
        w.raw(attributes);
        self.ask(kind, libc::NLM_F_ACK, family, &w, &mut |_| {})
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: libc::c_int,
        family: u8,
        attributes: &Writer,
        each: &mut dyn FnMut(Attrs<'_>),
    ) -> io::Result<()> {
        self.mend()?;
        self.seq = self.seq.wrapping_add(1).max(FIRST_QUESTION);
        let seq = self.seq;
        let question = question(kind, flags, seq, family, attributes)?;
        send(self.socket.as_raw_fd(), &question, MsgFlags::empty())?;
        let mut is_disturbed = false;
        loop {
            let Some(n) = self.receive(MsgFlags::empty())? else {
                self.is_broken = true;
                return Err(io::ErrorKind::TimedOut.into());
            };
            for answer in self.answers(n).filter(|answer| answer.seq == seq) {
                is_disturbed |= answer.flags & libc::NLM_F_DUMP_INTR != 0;
                if [libc::NLMSG_DONE, libc::NLMSG_ERROR].contains(&answer.kind) {
                    return match answer.result() {
                        Ok(()) if is_disturbed => Err(io::ErrorKind::Interrupted.into()),
                        other => other,
                    };
                }
                each(Attrs(answer.body.get(HEADERS - HEADER..).unwrap_or(&[])));
                if flags == 0 {
                    return Ok(());
                }
            }
        }
    }

    /// Takes a datagram, and answers how many bytes it has; `None` if none came in time.
    fn receive(&mut self, flags: MsgFlags) -> io::Result<Option<usize>> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(n) => return Ok(Some(n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                // Kernel: ENOBUFS says that answers were dropped, and which ones is not known.
                Err(error) => {
                    self.is_broken = true;
                    return Err(error.into());
                }
            }
        }
    }

    /// What the kernel said in the datagram of so many bytes.
    fn answers(&self, n: usize) -> impl Iterator<Item = Answer<'_>> {
        let bytes = self.buffer.get(..n.next_multiple_of(4));
        messages(bytes.unwrap_or(&[])).filter_map(Answer::read)
    }

    /// Applies a batch to `nf_tables`. With a generation, the kernel refuses if anything changed since that one.
    ///
    /// # Errors
    /// If it could not be sent. `Ok(Err(_))`: the kernel refused it.
    pub(crate) fn commit(
        &mut self,
        batch: Batch,
        generation: Option<u32>,
    ) -> io::Result<Result<(), Refusal>> {
        self.mend()?;
        let batch = batch.finalize();
        let mut pages = batch.iter();
        let first = pages.next().unwrap_or(&[]);
        let (begin, rest) = begin(first, generation);
        let pages: Vec<IoSlice<'_>> = [&*begin, rest]
            .into_iter()
            .chain(pages)
            .map(IoSlice::new)
            .collect();
        self.send(&pages)?;
        let mut refusal = None;
        let mut is_acknowledged = false;
        // Kernel: nfnetlink_rcv_batch() runs inside sendmsg(), so all answers are queued by now.
        while let Some(n) = self.receive(MsgFlags::MSG_DONTWAIT)? {
            for answer in self.answers(n) {
                if answer.kind != libc::NLMSG_ERROR || answer.seq >= FIRST_QUESTION {
                    continue;
                }
                match answer.result() {
                    Ok(()) => is_acknowledged = true,
                    Err(source) if refusal.is_none() => {
                        refusal = Some(Refusal::new(&batch, &answer, source));
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(match refusal {
            Some(refusal) => Err(refusal),
            None if is_acknowledged => Ok(()),
            None => Err(Refusal {
                message: None,
                attribute: Vec::new(),
                source: io::Error::other("the kernel did not answer"),
            }),
        })
    }

    /// Sends pages as one datagram, growing the send buffer where they need it.
    fn send(&mut self, pages: &[IoSlice<'_>]) -> io::Result<()> {
        let len = pages.iter().map(|page| page.len()).sum::<usize>();
        // Kernel: netlink_sendmsg() refuses more than sk_sndbuf - 32; setsockopt doubles what it is given.
        if len > self.send_buffer {
            let size = libc::c_int::try_from(len.max(1 << 20)).map_err(io::Error::other)?;
            let enlarge = |name| set_option(&self.socket, libc::SOL_SOCKET, name, size);
            enlarge(libc::SO_SNDBUFFORCE).or_else(|_| enlarge(libc::SO_SNDBUF))?;
            self.send_buffer = len.max(1 << 20);
        }
        let fd = self.socket.as_raw_fd();
        sendmsg(fd, pages, &[], MsgFlags::empty(), None::<&NetlinkAddr>)?;
        Ok(())
    }

    /// Carries out one change of `nf_tables` as a batch of its own.
    ///
    /// # Errors
    /// The kernel's answer; nothing has changed then.
    pub(crate) fn commit_one(&mut self, message: Header, attributes: &Writer) -> io::Result<()> {
        let mut batch = new_batch();
        let message = Message {
            object: &message,
            flags: libc::NLM_F_ACK,
            more: attributes.as_slice(),
        };
        batch.add(&message, MsgType::Add);
        self.commit(batch, None)?.map_err(|refusal| refusal.source)
    }
}

/// The generation of the rules in `nf_tables`.
///
/// Kernel: `nf_tables_commit()` adds one, in whichever table of the network namespace.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn generation(netfilter: &mut Netfilter) -> io::Result<u32> {
    /// `NFT_MSG_GETGEN`
    const GET: u16 = NFTABLES | 16;
    /// `NFTA_GEN_ID`
    const ID: u16 = 1;
    let mut generation = None;
    netfilter.get(GET, 0, &Writer::new(), &mut |attrs| {
        generation = attrs.u32(ID);
    })?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A message that is no part of a batch.
fn question(
    kind: u16,
    flags: libc::c_int,
    seq: u32,
    family: u8,
    attributes: &Writer,
) -> io::Result<Vec<u8>> {
    let len = u32::try_from(HEADERS + attributes.len()).map_err(io::Error::other)?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | flags).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADERS + attributes.len());
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes.as_slice());
    Ok(bytes)
}

/// The message that begins a batch, with the generation in it, and what follows it on the first page.
fn begin(page: &[u8], generation: Option<u32>) -> (Vec<u8>, &[u8]) {
    /// `NFNL_BATCH_GENID`
    const GENERATION: u16 = 1;
    let (begin, rest) = page.split_at_checked(HEADERS).unwrap_or((page, &[]));
    let mut w = Writer::new();
    w.raw(begin);
    if let Some(generation) = generation {
        w.attr_u32(GENERATION, generation);
    }
    let mut begin = w.as_slice().to_vec();
    let len = u32::try_from(begin.len()).unwrap_or(0);
    if let Some(field) = begin.first_chunk_mut() {
        *field = len.to_ne_bytes();
    }
    (begin, rest)
}

/// The attributes of each message in a batch, without the two that enclose it.
pub(crate) fn contents(batch: Batch) -> Vec<Vec<u8>> {
    let batch = batch.finalize();
    let mut contents: Vec<Vec<u8>> = batch
        .iter()
        .flat_map(messages)
        .filter_map(|message| Some(message.get(HEADERS..)?.to_vec()))
        .skip(1)
        .collect();
    contents.pop();
    contents
}

impl Refusal {
    fn new(batch: &FinalizedBatch, answer: &Answer<'_>, source: io::Error) -> Self {
        let mut messages = batch.iter().flat_map(messages);
        let found = messages
            .by_ref()
            .enumerate()
            .find(|(_, message)| Answer::read(message).is_some_and(|m| m.seq == answer.seq));
        let attribute = found.and_then(|(_, message)| message.get(answer.offset()?..));
        Self {
            // The first one begins the batch.
            message: found.and_then(|(index, _)| index.checked_sub(1)),
            attribute: attribute.unwrap_or(&[]).to_vec(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::getsockname;

    fn port(netfilter: &Netfilter) -> u32 {
        let address: NetlinkAddr = getsockname(netfilter.socket.as_raw_fd()).unwrap();
        address.pid()
    }

    #[test]
    fn a_socket_whose_answer_is_lost_is_not_used_again() {
        let mut netfilter = Netfilter::open().unwrap();
        let flags = fcntl(&netfilter.socket, FcntlArg::F_GETFD).unwrap();
        assert_eq!(FdFlag::from_bits_retain(flags), FdFlag::FD_CLOEXEC);
        let (first, soon) = (port(&netfilter), TimeVal::new(0, 1000));
        setsockopt(&netfilter.socket, sockopt::ReceiveTimeout, &soon).unwrap();
        // Kernel: nobody answers a NLMSG_NOOP.
        let lost = netfilter.get(1, 0, &Writer::new(), &mut |_| {});
        assert_eq!(lost.unwrap_err().kind(), io::ErrorKind::TimedOut);
        generation(&mut netfilter).unwrap();
        assert_ne!(port(&netfilter), first);
        // As many refusals as the socket has no room for.
        let second = port(&netfilter);
        set_option(&netfilter.socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap();
        let mut batch = new_batch();
        for _ in 0..1000 {
            let unknown = Header {
                kind: 0xff,
                family: 2,
            };
            batch.add(&unknown, MsgType::Add);
        }
        let lost = netfilter.commit(batch, None).map(|_| ());
        assert_eq!(lost.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        generation(&mut netfilter).unwrap();
        assert_ne!(port(&netfilter), second);
    }
}
