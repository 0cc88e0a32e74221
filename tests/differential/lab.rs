//! Where do probes run? A node with two links, and a wire that plays everybody else.
//!
//! Namespace W has the other ends of N's links and no address: it can speak as anybody, sees whatever leaves N, and answers nothing.
//! Invariant: probes and the sentinels behind them are processed in order (one CPU, one queue), so that a probe of which nothing was
//! seen before its sentinel came out was dropped; nothing waits for time to pass.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use proxy_daemon::net::L4Proto;
use proxy_tests::netns::Netns;
use proxy_tests::sniff::{Seen, Sniffer};

use crate::cluster::{From, GATEWAY, Pool, SECOND, UPLINK};
use crate::probe::{self, Fate};

/// Where sentinels start, and the numbers of the first round's; later rounds' are higher, but below those of probes.
const SENTINELS: [(From, u16); 3] = [(From::Pods, 1), (From::Uplink, 2), (From::Node, 3)];

pub(crate) struct Lab {
    /// The node.
    pub(crate) node: Netns,
    _wire: Netns,
    sniffers: [Sniffer; 2],
    /// Sockets of the node that receive the packets delivered to it.
    local: Vec<(u8, OwnedFd)>,
    senders: [(From, OwnedFd); 3],
    /// Rounds of sentinels so far, so that a late one is not taken for another round's.
    round: Cell<u16>,
}

impl Lab {
    pub(crate) fn new<F: Pool>() -> Result<Self> {
        let mut cpus = CpuSet::new();
        cpus.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;

        let mut spaces = Netns::create(&["node", "wire"])?;
        let (Some(wire), Some(node)) = (spaces.pop(), spaces.pop()) else {
            bail!("no namespaces")
        };
        for name in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
            node.sysctl(&format!("net.{name}"), "1")?;
        }
        for space in [&node, &wire] {
            for scope in ["all", "default"] {
                space.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
                space.sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
                space.sysctl(&format!("net.ipv4.conf.{scope}.send_redirects"), "0")?;
            }
        }
        for (name, value) in [
            ("net.ipv4.icmp_ratelimit", "0"),
            ("net.ipv6.icmp.ratelimit", "0"),
            ("net.ipv4.icmp_msgs_per_sec", "1000000"),
            ("net.ipv4.icmp_msgs_burst", "1000000"),
        ] {
            // Kernel: the last two are per namespace only since 6.11; before, the defaults are enough for a batch.
            if node.sysctl(name, value).is_err() && !name.contains("msgs") {
                bail!("the kernel lacks {name}");
            }
        }
        node.feed("ip", &["-batch", "-"], &node_script::<F>(&wire.name()))?;
        wire.feed("ip", &["-batch", "-"], &wire_script::<F>())?;

        let sniffers = ["w-pods", "w-up"].map(|device| Sniffer::start(&wire, device));
        let local = node.enter(|| {
            let icmp = if F::ADDR_LEN == 4 { 1 } else { 58 };
            [6, 17, 132, icmp].map(|protocol| Ok((protocol, raw::<F>(protocol)?)))
        });
        let senders = [
            (From::Pods, wire.enter(|| sender::<F>(Some("w-pods")))?),
            (From::Uplink, wire.enter(|| sender::<F>(Some("w-up")))?),
            (From::Node, node.enter(|| sender::<F>(None))?),
        ];
        let local = local.into_iter().collect::<Result<_>>()?;
        let lab = Self {
            node,
            _wire: wire,
            sniffers,
            local,
            senders,
            round: Cell::new(0),
        };
        lab.await_links::<F>()?;
        Ok(lab)
    }

    /// Kernel: a link that is up drops everything until its carrier was noticed, which linkwatch does up to a second later.
    fn await_links<F: Pool>(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut seen = BTreeSet::new();
        loop {
            let sent = self.send_sentinels::<F>();
            self.wait();
            seen.extend(self.read()?.into_iter().map(|(number, _)| number));
            if sent.is_subset(&seen) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the links do not come up: only {seen:?} came out");
            }
        }
    }

    /// Returns the numbers of the sentinels sent.
    fn send_sentinels<F: Pool>(&self) -> BTreeSet<u16> {
        let round = self.round.replace((self.round.get() + 1) % 6000);
        let outside = F::address([203, 0, 113, 123]);
        let numbers = SENTINELS.map(|(from, first)| {
            let number = first + round * 3;
            let (source, to) = match from {
                From::Pods => (F::address([10, 244, 1, 77]), outside),
                From::Uplink => (outside, F::address([10, 244, 1, 77])),
                From::Node => (F::address(UPLINK), outside),
            };
            let bytes = probe::encode(number, source, to, Some((L4Proto::Udp, 9)));
            self.send(from, &bytes, to);
            number
        });
        numbers.into()
    }

    /// Puts a packet into the world; a refusal by the node's own hooks is a fate, not an error.
    pub(crate) fn send(&self, from: From, bytes: &[u8], to: IpAddr) {
        for (_, socket) in self.senders.iter().filter(|(place, _)| *place == from) {
            let to = SockaddrStorage::from(SocketAddr::new(to, 0));
            let _refused = sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty());
        }
    }

    /// Waits until all packets sent so far were processed, and returns their fates.
    pub(crate) fn settle<F: Pool>(&self) -> Result<BTreeMap<u16, Vec<Fate>>> {
        let sentinels = self.send_sentinels::<F>();
        let mut fates: BTreeMap<u16, Vec<Fate>> = BTreeMap::new();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !sentinels.iter().all(|number| fates.contains_key(number)) {
            if Instant::now() > deadline {
                bail!("sentinels are missing: {fates:?}");
            }
            self.wait();
            for (number, fate) in self.read()? {
                fates.entry(number).or_default().push(fate);
            }
        }
        Ok(fates)
    }

    fn wait(&self) {
        let fds = self.sniffers.iter().map(Sniffer::fd);
        let fds = fds.chain(self.local.iter().map(|(_, socket)| socket.as_fd()));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _timeout = poll(&mut fds, PollTimeout::from(100_u8));
    }

    fn read(&self) -> Result<Vec<(u16, Fate)>> {
        let mut fates = Vec::new();
        for sniffer in &self.sniffers {
            let arrived = sniffer.packets().into_iter().filter(|seen| !seen.outgoing);
            fates.extend(arrived.filter_map(|seen| probe::recognise(&seen)));
        }
        let mut buffer = vec![0; 65_600];
        for (protocol, socket) in &self.local {
            while let Ok((n, from)) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
                let from = from.context("a raw socket names the sender")?;
                fates.extend(delivered(*protocol, ip_of(&from)?, &buffer[..n]));
            }
        }
        Ok(fates)
    }
}

/// The number and fate of a packet that the node received.
fn delivered(protocol: u8, source: IpAddr, bytes: &[u8]) -> Option<(u16, Fate)> {
    // Kernel: raw IPv4 sockets receive the IP header, raw IPv6 sockets do not.
    let start = if source.is_ipv4() {
        usize::from(bytes.first()? & 15) * 4
    } else {
        0
    };
    let segment = bytes.get(start..)?;
    if let Some(number) = probe::number_of(protocol, segment) {
        let port = u16::from_be_bytes([*segment.get(2)?, *segment.get(3)?]);
        return Some((number, Fate::Delivered { source, port }));
    }
    if matches!(segment.first(), Some(8 | 128)) {
        let number = u16::from_be_bytes([*segment.get(4)?, *segment.get(5)?]);
        return Some((number, Fate::Delivered { source, port: 0 }));
    }
    let seen = Seen {
        source,
        destination: source,
        protocol,
        source_port: 0,
        destination_port: 0,
        outgoing: false,
        ttl: 0,
        traffic_class: 0,
        payload: segment.to_vec(),
    };
    Some((probe::refused(&seen)?, Fate::Refused))
}

fn ip_of(address: &SockaddrStorage) -> Result<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
    let v6 = address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
    v4.or(v6).context("an IP address")
}

fn family<F: Pool>() -> AddressFamily {
    if F::ADDR_LEN == 4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn raw<F: Pool>(protocol: u8) -> Result<OwnedFd> {
    let protocol = match protocol {
        6 => SockProtocol::Tcp,
        17 => SockProtocol::Udp,
        1 => SockProtocol::Icmp,
        58 => SockProtocol::IcmpV6,
        _ => SockProtocol::Sctp,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family::<F>(), SockType::Raw, flags, protocol)?;
    setsockopt(&fd, sockopt::RcvBufForce, &4_000_000)?;
    Ok(fd)
}

fn sender<F: Pool>(device: Option<&str>) -> Result<OwnedFd> {
    let fd = socket(
        family::<F>(),
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )?;
    if let Some(device) = device {
        setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
    }
    Ok(fd)
}

fn node_script<F: Pool>(wire: &str) -> String {
    let net = F::prefix_len(24);
    let host = F::prefix_len(32);
    let [uplink, second, gateway] = [UPLINK, SECOND, GATEWAY].map(F::address);
    let nodad = if F::ADDR_LEN == 4 { "" } else { " nodad" };
    let any = if F::ADDR_LEN == 4 {
        "0.0.0.0/0"
    } else {
        "::/0"
    };
    // Kernel: without ARP a frame carries its own device's address, so both ends of a link have the same one.
    format!(
        "link set lo up
link add pods address 02:00:00:00:00:01 type veth peer name w-pods address 02:00:00:00:00:01 netns {wire}
link add up0 address 02:00:00:00:00:02 type veth peer name w-up address 02:00:00:00:00:02 netns {wire}
link set pods arp off up
link set up0 arp off up
addr add {gateway}/{net} dev pods{nodad}
addr add {uplink}/{net} dev up0{nodad}
addr add {second}/{host} dev lo{nodad}
route add {any} dev up0
"
    )
}

fn wire_script<F: Pool>() -> String {
    let any = if F::ADDR_LEN == 4 {
        "0.0.0.0/0"
    } else {
        "::/0"
    };
    format!(
        "link set w-pods arp off up
link set w-up arp off up
route add {any} dev w-pods metric 1
route add {any} dev w-up metric 2
"
    )
}
