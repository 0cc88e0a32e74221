//! The client: one attempt to open a flow, and its outcome.
//!
//! Invariants: every outcome is named; silence is only reported after the whole patience; a refusal by ICMP and one by RST are
//! different outcomes.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as BlockingStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::TcpStreamExt as _;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::sock_extended_err;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, connect, getsockopt, recv, recvmsg, send, setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::address::Protocol;
use crate::echo::{as_raw, bind_to, payload, raw_sctp};
use crate::netns::Netns;
use crate::reactor;
use crate::sctp::Packet;

/// A server's name, and the client's address as it sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Greeting {
    /// The server's name.
    pub backend: String,
    /// The port it was reached on.
    pub port: u16,
    /// The peer address that it saw.
    pub source: IpAddr,
    /// The peer port that it saw.
    pub source_port: u16,
}

impl Greeting {
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split_whitespace();
        Some(Self {
            backend: words.next()?.to_owned(),
            port: words.next()?.parse().ok()?,
            source: words.next()?.parse().ok()?,
            source_port: words.next()?.parse().ok()?,
        })
    }
}

/// The outcome of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A server answered.
    Reached(Greeting),
    /// ICMP said port unreachable.
    Refused,
    /// A TCP reset came back.
    Reset,
    /// Another ICMP error, or no route.
    Unreachable(String),
    /// Silence.
    Timeout,
    /// An answer with other content than requested.
    Broken(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached(to) => {
                write!(
                    f,
                    "reached {}:{}, which saw {}",
                    to.backend, to.port, to.source
                )
            }
            Self::Refused => write!(f, "refused (ICMP port unreachable)"),
            Self::Reset => write!(f, "reset (TCP RST)"),
            Self::Unreachable(why) => write!(f, "unreachable ({why})"),
            Self::Timeout => write!(f, "silence"),
            Self::Broken(why) => write!(f, "broken ({why})"),
        }
    }
}

/// One attempt to open a flow.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The protocol to speak.
    pub protocol: Protocol,
    /// The address (and port, 0 for any) to send from; `None` leaves it to the kernel.
    pub source: Option<SocketAddr>,
    /// The address to send to.
    pub destination: SocketAddr,
    /// How long to wait before calling it silence.
    pub patience: Duration,
    /// How many bytes to send and get back.
    pub bytes: usize,
    /// Whether an unanswered datagram is sent again, as TCP does by itself and any client would. Not where a test must
    /// notice that one is lost.
    pub asks_again: bool,
}

/// An attempt whose socket exists.
#[derive(Debug)]
pub struct Opened {
    attempt: Attempt,
    socket: Result<OwnedFd, Errno>,
}

static SCTP_PORT: AtomicU16 = AtomicU16::new(0);
static UDP_PORT: AtomicU16 = AtomicU16::new(0);
static NONCE: AtomicU32 = AtomicU32::new(1);

impl Attempt {
    /// Creates the socket inside the namespace, which lets TCP send its first packet.
    pub fn open(self, ns: &Netns) -> Opened {
        Opened {
            attempt: self,
            socket: ns.enter(|| self.socket(ns)),
        }
    }

    /// Opens, waits, and reports.
    pub fn run(self, ns: &Netns) -> Outcome {
        let opened = self.open(ns);
        reactor::block(opened.finish())
    }

    fn socket(self, ns: &Netns) -> Result<OwnedFd, Errno> {
        let v4 = self.destination.is_ipv4();
        let domain = if v4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = match self.protocol {
            Protocol::Tcp => socket(domain, SockType::Stream, flags, SockProtocol::Tcp)?,
            Protocol::Udp => socket(domain, SockType::Datagram, flags, SockProtocol::Udp)?,
            Protocol::Sctp => raw_sctp(self.destination.ip()).map_err(errno_of)?,
        };
        if v4 {
            setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?;
        }
        match (self.protocol, self.source) {
            (Protocol::Tcp | Protocol::Udp, source)
                if source.is_none_or(|source| source.port() == 0) =>
            {
                let any = if v4 {
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
                } else {
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                };
                let own = source.map_or(any, |source| source.ip());
                if self.protocol == Protocol::Tcp {
                    bind_to_new_port(&fd, own, || ns.new_port())?;
                } else {
                    let next = || UDP_PORT.fetch_add(1, Ordering::Relaxed) % 10_000;
                    bind_to_new_port(&fd, own, || 20_000 + next())?;
                }
            }
            (_, None) => {}
            (protocol, Some(mut source)) => {
                if protocol == Protocol::Sctp {
                    source.set_port(0);
                }
                if source.port() != 0 {
                    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
                }
                bind_to(&fd, source).map_err(errno_of)?;
            }
        }
        let mut to = self.destination;
        if self.protocol == Protocol::Sctp {
            to.set_port(0);
        }
        match connect(as_raw(&fd), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
            Err(errno) => Err(errno),
        }
    }
}

/// Binds to a port that no flow of this run had.
///
/// Kernel: conntrack remembers UDP flows for half a minute and longer, and unanswered TCP connections for two minutes,
/// so that a port chosen at random may continue one that went elsewhere.
fn bind_to_new_port(
    fd: &OwnedFd,
    address: IpAddr,
    mut next: impl FnMut() -> u16,
) -> Result<(), Errno> {
    loop {
        match bind_to(fd, SocketAddr::new(address, next())).map_err(errno_of) {
            Err(Errno::EADDRINUSE) => {}
            bound => return bound,
        }
    }
}

fn errno_of(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

impl Opened {
    /// Whether it is a datagram that needs more than a fragment or two.
    pub fn is_large_datagram(&self) -> bool {
        self.attempt.protocol == Protocol::Udp && self.attempt.bytes > 1400
    }

    /// Waits for the outcome.
    pub async fn finish(self) -> Outcome {
        // A flow that had to wait for its turn starts its clock now.
        let deadline = Instant::now() + self.attempt.patience;
        let fd = match self.socket {
            Ok(fd) => fd,
            Err(Errno::ECONNREFUSED) => return Outcome::Refused,
            Err(errno) => return Outcome::Unreachable(errno.to_string()),
        };
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::ERROR;
        let fd = reactor::watch(fd, interest);
        match self.attempt.protocol {
            Protocol::Tcp => tcp(fd, self.attempt, deadline).await,
            Protocol::Udp => udp(&fd, self.attempt, deadline).await,
            Protocol::Sctp => sctp(&fd, self.attempt, deadline).await,
        }
    }
}

async fn connected(fd: &AsyncFd<OwnedFd>, deadline: Instant) -> Result<(), Outcome> {
    let Ok(ready) = timeout_at(deadline, fd.writable()).await else {
        return Err(Outcome::Timeout);
    };
    drop(ready);
    match getsockopt(fd, sockopt::SocketError).map(Errno::from_raw) {
        Ok(errno) if errno == Errno::from_raw(0) => Ok(()),
        Ok(Errno::ECONNREFUSED) => match error_queue(fd.get_ref()) {
            Some(_) => Err(Outcome::Refused),
            None => Err(Outcome::Reset),
        },
        Ok(Errno::ETIMEDOUT) => Err(Outcome::Timeout),
        Ok(errno) | Err(errno) => Err(Outcome::Unreachable(errno.to_string())),
    }
}

async fn tcp(fd: AsyncFd<OwnedFd>, attempt: Attempt, deadline: Instant) -> Outcome {
    if let Err(outcome) = connected(&fd, deadline).await {
        return outcome;
    }
    let stream = TcpStream::from_std(fd.into_inner().into()).expect("the event loop takes sockets");
    let outcome = timeout_at(deadline, tcp_talk(stream, attempt.bytes)).await;
    outcome.unwrap_or_else(|_| Outcome::Broken("connected, then silence".into()))
}

async fn tcp_talk(mut stream: TcpStream, bytes: usize) -> Outcome {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) => line.push(byte),
            Err(error) => return Outcome::Broken(format!("connected, then {error}")),
        }
    }
    let Some(greeting) = Greeting::parse(&line) else {
        return Outcome::Broken(format!("{:?}", String::from_utf8_lossy(&line)));
    };
    if bytes > 0 {
        let (mut read, mut write) = stream.split();
        let sent = vec![b'x'; bytes];
        let mut got = vec![0; bytes];
        let (out, back) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
        if out.is_err() || back.is_err() || sent != got {
            return Outcome::Broken(format!("{bytes} bytes did not come back"));
        }
    }
    Outcome::Reached(greeting)
}

/// When an unanswered datagram is sent again.
const RESEND: Duration = Duration::from_millis(700);

/// Kernel: an error without data is not readiness to read (`datagram_poll`).
const ANSWER_OR_ERROR: Interest = Interest::READABLE.add(Interest::ERROR);

async fn udp(fd: &AsyncFd<OwnedFd>, attempt: Attempt, deadline: Instant) -> Outcome {
    let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
    let mut sent = nonce.to_be_bytes().to_vec();
    sent.resize(attempt.bytes.max(4), b'x');
    let mut buffer = vec![0; 65_536];
    if let Err(errno) = send(as_raw(fd.get_ref()), &sent, MsgFlags::empty())
        && let Some(outcome) = sent_badly(errno)
    {
        return outcome;
    }
    loop {
        // Of many fragments one may be lost in a queue, as anywhere: then the datagram is sent again, too.
        let again = if attempt.asks_again || sent.len() > 1400 {
            deadline.min(Instant::now() + RESEND)
        } else {
            deadline
        };
        let Ok(Ok(mut ready)) = timeout_at(again, fd.ready(ANSWER_OR_ERROR)).await else {
            if Instant::now() < deadline {
                let _sent = send(as_raw(fd.get_ref()), &sent, MsgFlags::empty());
                continue;
            }
            return Outcome::Timeout;
        };
        let got = match recv(as_raw(fd.get_ref()), &mut buffer, MsgFlags::empty()) {
            Ok(n) => &buffer[..n],
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                // Readiness may stand for the error queue alone.
                error_queue(fd.get_ref());
                continue;
            }
            Err(Errno::ECONNREFUSED) => return Outcome::Refused,
            Err(errno) => return Outcome::Unreachable(errno.to_string()),
        };
        let end = got
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(got.len());
        let echoed = got.get(end + 1..).unwrap_or_default();
        match Greeting::parse(&got[..end]) {
            Some(greeting) if echoed == sent || echoed.len() > 60_000 => {
                return Outcome::Reached(greeting);
            }
            // An answer to an earlier question of the same socket.
            Some(_) if echoed.len() == 4 => {}
            _ => return Outcome::Broken(format!("{} of {} bytes", echoed.len(), sent.len())),
        }
    }
}

/// Kernel: a packet that the OUTPUT hook drops or rejects makes send fail with EPERM; only an ICMP error after it is a refusal.
fn sent_badly(errno: Errno) -> Option<Outcome> {
    match errno {
        Errno::EPERM => None,
        Errno::ECONNREFUSED => Some(Outcome::Refused),
        other => Some(Outcome::Unreachable(other.to_string())),
    }
}

async fn sctp(fd: &AsyncFd<OwnedFd>, attempt: Attempt, deadline: Instant) -> Outcome {
    let chosen = attempt.source.map_or(0, |source| source.port());
    let any = 20_000 + SCTP_PORT.fetch_add(1, Ordering::Relaxed) % 40_000;
    let init = Packet {
        source: if chosen == 0 { any } else { chosen },
        destination: attempt.destination.port(),
        initiate_tag: 1 + NONCE.fetch_add(1, Ordering::Relaxed),
        verification_tag: 0,
        cookie: None,
    };
    let bytes = init.encode();
    if let Err(errno) = send(as_raw(fd.get_ref()), &bytes, MsgFlags::empty())
        && let Some(outcome) = sent_badly(errno)
    {
        return outcome;
    }
    let mut buffer = vec![0; 2048];
    loop {
        let again = if attempt.asks_again {
            deadline.min(Instant::now() + RESEND)
        } else {
            deadline
        };
        let Ok(Ok(mut ready)) = timeout_at(again, fd.ready(ANSWER_OR_ERROR)).await else {
            if Instant::now() < deadline {
                let _sent = send(as_raw(fd.get_ref()), &bytes, MsgFlags::empty());
                continue;
            }
            return Outcome::Timeout;
        };
        let received = recv(as_raw(fd.get_ref()), &mut buffer, MsgFlags::empty());
        // The error may be about another association of this host: all raw sockets hear of it. The queue tells.
        while let Some(error) = error_queue(fd.get_ref()) {
            if error.about(&bytes) {
                return error.outcome();
            }
        }
        let Ok(n) = received else {
            if received == Err(Errno::EAGAIN) {
                ready.clear_ready();
            }
            continue;
        };
        let own = attempt.destination.ip();
        let Some(packet) = Packet::decode(payload(own, &buffer[..n])) else {
            continue;
        };
        let ours = packet.destination == init.source
            && packet.source == init.destination
            && packet.verification_tag == init.initiate_tag;
        if let (true, Some(cookie)) = (ours, packet.cookie) {
            return Greeting::parse(&cookie).map_or_else(
                || Outcome::Broken("a cookie of somebody else".into()),
                Outcome::Reached,
            );
        }
    }
}

/// An ICMP error that the kernel kept for a socket.
struct IcmpError {
    error: sock_extended_err,
    packet: Vec<u8>,
}

impl IcmpError {
    /// Whether the offending packet was this one, by its ports.
    fn about(&self, sent: &[u8]) -> bool {
        let inner_v6 = self.packet.len() > 44 && self.packet[0] >> 4 == 6 && self.packet[6] == 132;
        let start = if inner_v6 { 40 } else { 0 };
        self.packet.get(start..start + 4) == sent.get(..4)
    }

    fn outcome(&self) -> Outcome {
        match Errno::from_raw(self.error.ee_errno.cast_signed()) {
            Errno::ECONNREFUSED => Outcome::Refused,
            errno => Outcome::Unreachable(errno.to_string()),
        }
    }
}

fn error_queue(fd: &OwnedFd) -> Option<IcmpError> {
    let mut bytes = [0; 256];
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let mut space = cmsg_space!([u8; 256]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(as_raw(fd), &mut iov, Some(&mut space), flags).ok()?;
    let error = message.cmsgs().ok()?.find_map(|part| {
        let (ControlMessageOwned::Ipv4RecvErr(error, _)
        | ControlMessageOwned::Ipv6RecvErr(error, _)) = part
        else {
            return None;
        };
        Some(error)
    })?;
    let n = message.bytes;
    Some(IcmpError {
        error,
        packet: bytes[..n].to_vec(),
    })
}

/// A TCP connection that stays open over a change of the world.
#[derive(Debug)]
pub struct Stream {
    stream: BlockingStream,
    /// The server's greeting.
    pub greeting: Greeting,
}

impl Stream {
    /// Connects from inside a namespace and reads the greeting.
    ///
    /// # Errors
    /// The outcome that came instead of a connection.
    pub fn open(ns: &Netns, attempt: Attempt) -> Result<Self, Outcome> {
        let fd = attempt
            .open(ns)
            .socket
            .map_err(|e| Outcome::Unreachable(e.to_string()))?;
        let patience = attempt.patience;
        let fd = reactor::block(async move {
            let deadline = Instant::now() + patience;
            let interest = Interest::READABLE | Interest::WRITABLE | Interest::ERROR;
            let fd = reactor::watch(fd, interest);
            connected(&fd, deadline).await.map(|()| fd.into_inner())
        })?;
        // Only to tell why a connection failed: with it an open one would end at the first ICMP error, which those of
        // ordinary programs do not.
        let off = if attempt.destination.is_ipv4() {
            setsockopt(&fd, sockopt::Ipv4RecvErr, &false)
        } else {
            setsockopt(&fd, sockopt::Ipv6RecvErr, &false)
        };
        off.map_err(|errno| Outcome::Broken(errno.to_string()))?;
        let stream = BlockingStream::from(fd);
        let broken = |error: io::Error| Outcome::Broken(error.to_string());
        stream.set_nonblocking(false).map_err(broken)?;
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .map_err(broken)?;
        let mut line = Vec::new();
        let mut byte = [0];
        while byte[0] != b'\n' {
            io::Read::read_exact(&mut &stream, &mut byte).map_err(broken)?;
            line.push(byte[0]);
        }
        let greeting = Greeting::parse(&line).ok_or(Outcome::Broken("greeting".into()))?;
        Ok(Self { stream, greeting })
    }

    /// Sends something and waits for it to come back.
    ///
    /// # Errors
    /// When it does not.
    pub fn echo(&mut self) -> io::Result<()> {
        let mut got = [0; 4];
        io::Write::write_all(&mut self.stream, b"ping")?;
        io::Read::read_exact(&mut self.stream, &mut got)?;
        // The acknowledgement leaves now and not some time later, so that between two echoes the connection is silent.
        self.stream.set_quickack(true)?;
        if got == *b"ping" {
            Ok(())
        } else {
            Err(io::Error::other(format!("{got:?}")))
        }
    }

    /// The client's own address.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// The peer address of the client's socket.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}
