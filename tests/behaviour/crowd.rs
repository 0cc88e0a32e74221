//! HZ-9: clients that connect and misbehave, each in a way drawn at random.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use proxy_tests::address::{NODE, Site};
use proxy_tests::case;
use proxy_tests::matrix::{Case, Test};
use proxy_tests::netns::Netns;

use crate::common::{web, works};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(hz_9_misbehaving_clients_keep_nobody_from_his_answer)
            .slow()
            .kernel()
            .tcp()
            .fresh(),
    ]
}

/// The port of `/livez`, and the port that only the node itself may use.
const HEALTHZ: u16 = 10256;
const LOCAL: u16 = 10249;
/// How long an attack lasts: longer than a silent connection may live.
const LONG: Duration = Duration::from_secs(6);
/// Kubelet's default timeout of a probe.
const PROBE: Duration = Duration::from_secs(1);
/// The machine that runs the tests may be busy, so that a single answer may take longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many connections each crowd keeps open, and how often it opens those anew that were cut.
const N: usize = 200;
const PAUSE: Duration = Duration::from_millis(400);
/// What the first crowd begins with.
const BURST: usize = 2000;

/// What a client does after it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Manner {
    Silent,
    ClosesItsHalf,
    Trickles,
    HugeHead,
    AsksAndDoesNotRead,
    AsksManyAtOnce,
    AsksAndStays,
}

const MANNERS: [Manner; 7] = [
    Manner::Silent,
    Manner::ClosesItsHalf,
    Manner::Trickles,
    Manner::HugeHead,
    Manner::AsksAndDoesNotRead,
    Manner::AsksManyAtOnce,
    Manner::AsksAndStays,
];

impl Manner {
    fn any() -> Self {
        let random = usize::try_from(RandomState::new().hash_one(0) % 7).unwrap();
        MANNERS[random]
    }

    fn begin(self, stream: &mut TcpStream) -> std::io::Result<()> {
        let request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
        match self {
            Self::Silent | Self::Trickles => Ok(()),
            Self::ClosesItsHalf => stream.shutdown(std::net::Shutdown::Write),
            Self::HugeHead => {
                stream.write_all(b"GET /livez HTTP/1.1\r\n")?;
                stream.write_all(format!("X: {}", "x".repeat(30_000)).as_bytes())
            }
            Self::AsksAndDoesNotRead => stream.write_all(b"GET /debug/forwarding HTTP/1.1\r\n\r\n"),
            Self::AsksManyAtOnce => stream.write_all(&request.repeat(500)),
            Self::AsksAndStays => stream.write_all(request),
        }
    }

    /// Whether the connection is still there.
    fn go_on(self, stream: &mut TcpStream) -> bool {
        if self == Self::Trickles && stream.write_all(b"G").is_err() {
            return false;
        }
        if self == Self::AsksAndDoesNotRead {
            return stream.take_error().is_ok_and(|error| error.is_none());
        }
        match stream.read(&mut [0; 4096]) {
            Ok(n) => n > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Clients in one namespace, for as long as the value lives.
struct Crowd {
    stop: Arc<AtomicBool>,
    n_opened: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn gather(ns: &Arc<Netns>, to: SocketAddr, manners: &[Manner]) -> Self {
        let (stop, n_opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = manners.iter().map(|manner| {
            let (ns, manner, n) = (Arc::clone(ns), *manner, N / manners.len());
            let (stop, n_opened) = (Arc::clone(&stop), Arc::clone(&n_opened));
            thread::spawn(move || ns.enter(|| crowd(to, manner, n, &stop, &n_opened)))
        });
        let threads = threads.collect();
        Self {
            stop,
            n_opened,
            threads,
        }
    }

    fn n_opened(&self) -> usize {
        self.n_opened.load(Ordering::Relaxed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn crowd(to: SocketAddr, manner: Manner, n: usize, stop: &AtomicBool, n_opened: &AtomicUsize) {
    let mut streams = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        streams.retain_mut(|stream| manner.go_on(stream));
        for _ in streams.len()..n {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(500)) else {
                continue;
            };
            n_opened.fetch_add(1, Ordering::Relaxed);
            drop(stream.set_nonblocking(true));
            drop(manner.begin(&mut stream));
            streams.push(stream);
        }
        // A machine with few CPUs must have time left for the daemon.
        thread::sleep(PAUSE);
    }
}

/// Asks once, and demands an answer; how long it took.
#[track_caller]
fn ask(t: &Test, from: Site, to: SocketAddr, path: &str, during: &str) -> Duration {
    let started = Instant::now();
    let once = || {
        t.ns(from).enter(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut head = [0; 12];
            stream.read_exact(&mut head)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&head).into_owned())
        })
    };
    let mut answer = once();
    // HZ-9: all connections from the node itself share their places, so that its crowd, which is at this port, has one cut that
    // has not asked yet. Only that is forgiven: an answer that takes too long is none.
    let is_cut = |error: &std::io::Error| error.kind() != ErrorKind::WouldBlock;
    while to.port() == LOCAL && answer.as_ref().is_err_and(is_cut) && started.elapsed() < PROBE {
        answer = once();
    }
    let took = started.elapsed();
    assert!(
        took < PATIENCE && matches!(answer.as_deref(), Ok("HTTP/1.1 200")),
        "{to}{path} from {from:?} during {during}: {answer:?} after {took:?}\n{}",
        t.bed().daemon.log()
    );
    took
}

/// Descriptors, and KiB of memory.
fn size(t: &Test) -> (usize, u64) {
    let process = format!("/proc/{}", t.bed().daemon.pid());
    let n_open = std::fs::read_dir(format!("{process}/fd")).unwrap().count();
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let memory = status.lines().find_map(|line| {
        let rest = line.strip_prefix("VmRSS:")?;
        rest.split_whitespace().next()?.parse().ok()
    });
    (n_open, memory.unwrap())
}

fn hz_9_misbehaving_clients_keep_nobody_from_his_answer(t: &mut Test) {
    web(t);
    let any = format!("--healthz-bind-address=[::]:{HEALTHZ}");
    t.bed_mut().daemon.set_flags(&[&any]);
    t.check(works());
    let own = SocketAddr::new(t.ip(NODE), HEALTHZ);
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HEALTHZ);
    let local = SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), LOCAL);
    let before = size(t);

    // One host, after a burst: neither the node nor other hosts notice it.
    // As many as get through.
    let connect = || TcpStream::connect_timeout(&own, PATIENCE).ok();
    let burst: Vec<_> = t
        .ns(Site::X)
        .enter(|| (0..BURST).map_while(|_| connect()).collect());
    let mut manners = vec![Manner::Silent, Manner::any(), Manner::any()];
    let said = format!("one host that is {manners:?}");
    let one = Crowd::gather(t.ns(Site::X), own, &manners);
    let mut took = Vec::new();
    let started = Instant::now();
    while started.elapsed() < LONG {
        took.push(ask(t, Site::N, loopback, "/livez", &said));
        took.push(ask(t, Site::N, own, "/livez", &said));
        took.push(ask(t, Site::R, own, "/healthz", &said));
    }
    assert!(one.n_opened() > N, "{}", one.n_opened());

    // Several hosts, and a user of the node itself.
    manners = vec![Manner::Silent, Manner::any()];
    let sites = [Site::P1, Site::P2, Site::R];
    let mut crowds: BTreeMap<_, _> = sites
        .into_iter()
        .map(|site| {
            (
                format!("{site:?}"),
                Crowd::gather(t.ns(site), own, &manners),
            )
        })
        .collect();
    let node = Crowd::gather(t.ns(Site::N), local, &manners);
    crowds.insert("N".to_owned(), node);
    let said = format!("hosts that are {manners:?}");
    let started = Instant::now();
    let mut largest = before;
    while started.elapsed() < LONG {
        took.push(ask(t, Site::N, loopback, "/livez", &said));
        took.push(ask(t, Site::N, own, "/livez", &said));
        took.push(ask(t, Site::N, local, "/metrics", &said));
        took.push(ask(t, Site::N, local, "/debug/forwarding", &said));
        let now = size(t);
        largest = (largest.0.max(now.0), largest.1.max(now.1));
    }
    for (site, crowd) in &crowds {
        assert!(crowd.n_opened() > N, "{site}: {}", crowd.n_opened());
    }
    drop((one, crowds, burst));
    took.sort();
    assert!(took[took.len() / 2] < PROBE, "{took:?}");
    assert!(
        largest.0 < before.0 + 400 && largest.1 < before.1 + (40 << 10),
        "{before:?} became {largest:?}"
    );
    t.observe(works());
}
