//! The servers: they answer with their name and the client's address.
//!
//! Every answer begins with the line `<name> <port> <peer address> <peer port>`; whatever was sent is sent back after it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recvfrom,
    sendto, setsockopt, socket, sockopt,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

use crate::netns::Netns;
use crate::reactor;
use crate::sctp::Packet;

/// Servers for every protocol on some ports of one address; they stop when dropped.
#[derive(Debug)]
pub struct Echo {
    tasks: Vec<AbortHandle>,
}

impl Echo {
    /// Starts the servers inside a namespace that owns the address.
    ///
    /// # Errors
    /// When a port is taken or the address is not there.
    pub fn start(ns: &Netns, name: &str, address: IpAddr, ports: &[u16]) -> io::Result<Self> {
        let mut echo = Self { tasks: Vec::new() };
        for port in ports {
            echo.tcp(ns, name, SocketAddr::new(address, *port))?;
            echo.udp(ns, name, SocketAddr::new(address, *port))?;
        }
        echo.sctp(ns, name, address, ports)?;
        Ok(echo)
    }

    fn tcp(&mut self, ns: &Netns, name: &str, address: SocketAddr) -> io::Result<()> {
        let listener = ns.enter(|| std::net::TcpListener::bind(address))?;
        listener.set_nonblocking(true)?;
        let name = name.to_owned();
        self.task(async move {
            let listener = TcpListener::from_std(listener).expect("the event loop takes sockets");
            loop {
                if let Ok((stream, peer)) = listener.accept().await {
                    let line = greeting(&name, address.port(), peer);
                    tokio::spawn(talk(stream, line));
                }
            }
        });
        Ok(())
    }

    fn udp(&mut self, ns: &Netns, name: &str, address: SocketAddr) -> io::Result<()> {
        let socket = ns.enter(|| std::net::UdpSocket::bind(address))?;
        socket.set_nonblocking(true)?;
        let name = name.to_owned();
        self.task(async move {
            let socket = UdpSocket::from_std(socket).expect("the event loop takes sockets");
            let mut buffer = vec![0; 65_536];
            loop {
                // An ICMP error about an earlier answer shows up here; it is the client's business.
                if let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
                    let mut answer = greeting(&name, address.port(), peer);
                    answer.extend(&buffer[..n]);
                    answer.truncate(65_000);
                    drop(socket.send_to(&answer, peer).await);
                }
            }
        });
        Ok(())
    }

    fn sctp(&mut self, ns: &Netns, name: &str, own: IpAddr, ports: &[u16]) -> io::Result<()> {
        let socket = ns.enter(|| raw_sctp(own))?;
        bind_to(&socket, SocketAddr::new(own, 0))?;
        let (name, ports) = (name.to_owned(), ports.to_vec());
        self.task(async move {
            let socket = reactor::watch(socket, Interest::READABLE);
            let mut buffer = vec![0; 2048];
            loop {
                let Ok(mut ready) = socket.readable().await else {
                    return;
                };
                let Ok((n, Some(peer))) =
                    recvfrom::<SockaddrStorage>(as_raw(socket.get_ref()), &mut buffer)
                else {
                    ready.clear_ready();
                    continue;
                };
                let Some(peer) = ip_of(&peer) else { continue };
                let Some(packet) = Packet::decode(payload(own, &buffer[..n])) else {
                    continue;
                };
                if packet.cookie.is_some() || !ports.contains(&packet.destination) {
                    continue;
                }
                let seen = SocketAddr::new(peer, packet.source);
                let answer = Packet {
                    source: packet.destination,
                    destination: packet.source,
                    initiate_tag: 0x5eed_5eed,
                    verification_tag: packet.initiate_tag,
                    cookie: Some(greeting(&name, packet.destination, seen)),
                };
                let to = SockaddrStorage::from(SocketAddr::new(peer, 0));
                let flags = MsgFlags::empty();
                // A client that is gone already gets no answer.
                let _sent = sendto(as_raw(socket.get_ref()), &answer.encode(), &to, flags);
            }
        });
        Ok(())
    }

    fn task(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks
            .push(reactor::handle().spawn(future).abort_handle());
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn greeting(name: &str, port: u16, peer: SocketAddr) -> Vec<u8> {
    format!("{name} {port} {} {}\n", peer.ip(), peer.port()).into_bytes()
}

async fn talk(mut stream: TcpStream, line: Vec<u8>) {
    if stream.write_all(&line).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 65_536];
    loop {
        // Nobody stays connected for longer than a test takes.
        match tokio::time::timeout(Duration::from_secs(120), stream.read(&mut buffer)).await {
            Ok(Ok(n)) if n > 0 => {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// A raw socket that gets every SCTP packet for this host. While there is one, the kernel sends no protocol-unreachable.
pub(crate) fn raw_sctp(own: IpAddr) -> io::Result<OwnedFd> {
    let domain = if own.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(domain, SockType::Raw, flags, SockProtocol::Sctp)?;
    setsockopt(&fd, sockopt::RcvBuf, &1_000_000)?;
    Ok(fd)
}

pub(crate) fn bind_to(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    Ok(bind(as_raw(fd), &SockaddrStorage::from(address))?)
}

pub(crate) fn as_raw(fd: &OwnedFd) -> std::os::fd::RawFd {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

pub(crate) fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| v4.ip().into())
        .or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

/// What follows the IP header, which raw IPv4 sockets deliver and raw IPv6 sockets do not.
pub(crate) fn payload(own: IpAddr, packet: &[u8]) -> &[u8] {
    match own {
        IpAddr::V4(_) if packet.is_empty() => packet,
        IpAddr::V4(_) => packet
            .get(usize::from(packet[0] & 15) * 4..)
            .unwrap_or_default(),
        IpAddr::V6(_) => packet,
    }
}
