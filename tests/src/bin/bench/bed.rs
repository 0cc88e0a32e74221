//! Where is measured: a test bed with a server pod that has every endpoint's address, and a proxy in its node, or none.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proxy_daemon::watch::ObjectKind;
use proxy_tests::address::{Family, P2, Site};
use proxy_tests::fake_api::{FakeApi, RequestKind};
use proxy_tests::lab::mode::Mode;
use proxy_tests::netns::Netns;
use proxy_tests::topology::{Pods, Topology};
use serde_json::Value;

use proxy_tests::world::many::{CLUSTER_CIDR, ENDPOINTS, PORT, Size};

/// The name of the node under the proxy.
pub(crate) const NODE: &str = "node-a";

/// A proxy that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// proxy-daemon in this mode.
    Ours {
        /// Its binary.
        program: PathBuf,
        /// The datapath.
        mode: Mode,
    },
    /// Any other, by its command line.
    Peer(String),
}

/// A test bed without a proxy.
pub(crate) struct Bed {
    topology: Topology,
}

impl Bed {
    /// Builds the namespaces and starts the servers.
    pub(crate) fn build(size: Size) -> Result<Self> {
        let topology = Topology::build(Pods::PointToPoint)?;
        let (node, pod) = (topology.site(Site::N), topology.site(Site::P2));
        let gateway = P2.addr.of(Family::V4).to_string();
        node.check_run(
            "ip",
            &[
                "route", "add", ENDPOINTS, "via", &gateway, "dev", "p2", "onlink",
            ],
        )?;
        pod.check_run("ip", &["route", "add", "local", ENDPOINTS, "dev", "lo"])?;
        // Connections that were reset soon make room for others.
        drop(node.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "1"));
        serve(pod, size)?;
        Ok(Self { topology })
    }

    /// The client pod.
    pub(crate) fn client(&self) -> &Netns {
        self.topology.site(Site::P1)
    }

    /// The server pod's own address, reached without any Service.
    pub(crate) fn bare() -> SocketAddr {
        SocketAddr::new(P2.addr.of(Family::V4), PORT)
    }
}

/// Answers each connection with the address at which it was reached, and each datagram to the last Service with itself.
fn serve(pod: &Netns, size: Size) -> Result<()> {
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
    let tcp = pod.enter(|| TcpListener::bind(any))?;
    thread::spawn(move || {
        use std::io::Write as _;
        for mut stream in tcp.incoming().flatten() {
            if let Ok(reached_at) = stream.local_addr() {
                drop(stream.write_all(format!("{}\n", reached_at.ip()).as_bytes()));
            }
        }
    });
    for address in size.udp_endpoints() {
        // One socket per address: an answer must come from where the question went.
        let udp = pod.enter(|| UdpSocket::bind(SocketAddr::new(address.into(), PORT)))?;
        thread::spawn(move || {
            let mut datagram = [0; 2048];
            while let Ok((length, peer)) = udp.recv_from(&mut datagram) {
                drop(udp.send_to(&datagram[..length], peer));
            }
        });
    }
    Ok(())
}

/// A proxy at work in a bed of its own.
pub(crate) struct Proxy {
    pub(crate) bed: Bed,
    pub(crate) api: FakeApi,
    pub(crate) size: Size,
    child: Child,
    directory: PathBuf,
    started: Instant,
}

impl Proxy {
    /// Starts `subject` over a cluster of `size`; it need not be in effect yet.
    pub(crate) fn start(subject: &Subject, size: Size) -> Result<Self> {
        Self::start_with(subject, size, size.objects(NODE))
    }

    /// The same without a single Service.
    pub(crate) fn start_idle(subject: &Subject) -> Result<Self> {
        let size = Size {
            services: 1,
            endpoints: 1,
        };
        let mut objects = size.objects(NODE);
        objects.retain(|object| object["kind"] == "Node" || object["kind"] == "ServiceCIDR");
        Self::start_with(subject, size, objects)
    }

    fn start_with(subject: &Subject, size: Size, objects: Vec<Value>) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let bed = Bed::build(size)?;
        let node = bed.topology.site(Site::N);
        let api = FakeApi::start_in(node)?;
        api.put_all(objects);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let directory = crate::directory().join(serial.to_string());
        fs::create_dir_all(&directory)?;
        let kubeconfig = directory.join("kubeconfig");
        api.write_kubeconfig(&kubeconfig)?;
        let kubeconfig = kubeconfig.display().to_string();
        let master = api.url();
        let (program, arguments) = match subject {
            Subject::Ours { program, mode } => (
                program.clone(),
                [
                    mode.flags(),
                    vec![
                        format!("--kubeconfig={kubeconfig}"),
                        format!("--cluster-cidr={CLUSTER_CIDR}"),
                        format!("--hostname-override={NODE}"),
                        // Kernel: nf_conntrack_max cannot be written in a network namespace.
                        "--conntrack-max-per-core=0".to_owned(),
                    ],
                ]
                .concat(),
            ),
            Subject::Peer(line) => {
                let line = line
                    .replace("{kubeconfig}", &kubeconfig)
                    .replace("{master}", &master)
                    .replace("{node}", NODE)
                    .replace("{cluster-cidr}", CLUSTER_CIDR)
                    .replace("{dir}", &directory.display().to_string());
                (
                    PathBuf::from("/bin/sh"),
                    vec!["-c".to_owned(), format!("exec {line}")],
                )
            }
        };
        let log = File::create(directory.join("log"))?;
        let started = Instant::now();
        let child = node.spawn(&program, &arguments, &[], log)?;
        Ok(Self {
            bed,
            api,
            size,
            child,
            directory,
            started,
        })
    }

    /// How long it took from the start of the process until a connection through the last VIP works.
    pub(crate) fn wait_for_last(&mut self, limit: Duration) -> Result<Option<Duration>> {
        let to = self.size.last();
        loop {
            // A connection that is not answered soon is not worth waiting for: the next one may be.
            let outcome = self
                .bed
                .client()
                .enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(4)));
            if outcome.is_ok() {
                return Ok(Some(self.started.elapsed()));
            }
            self.alive()?;
            if self.started.elapsed() > limit {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes the records of connections that were tried too early: they would keep their ports from being translated.
    pub(crate) fn forget_attempts(&self) {
        let early = ["-D", "-p", "tcp", "--state", "SYN_SENT"];
        // It fails when there are none.
        drop(self.bed.topology.site(Site::N).run("conntrack", &early));
    }

    /// Waits until it watches all that it will, when there is no VIP to try.
    pub(crate) fn wait_until_idle(&mut self) -> Result<()> {
        let watches = |api: &FakeApi, kind| {
            let asked = |ask| api.n_requests(kind, ask) > 0;
            asked(RequestKind::Watch) || asked(RequestKind::StreamingList)
        };
        while !watches(&self.api, ObjectKind::Service)
            || !watches(&self.api, ObjectKind::EndpointSlice)
        {
            self.alive()?;
            if self.started.elapsed() > Duration::from_secs(20) {
                bail!(
                    "it does not watch Services and EndpointSlices; its log:\n{}",
                    self.log()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the proxy ended with {status}; its log:\n{}", self.log());
        }
        Ok(())
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// CPU time that it and the programs it ran have used, all threads. Unit: seconds. Source: schedstat, stat.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let tasks = Path::new("/proc")
            .join(self.child.id().to_string())
            .join("task");
        let mut nanoseconds = 0;
        for task in fs::read_dir(&tasks).with_context(|| format!("{}", tasks.display()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text
                .split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanoseconds).as_secs_f64() + self.cpu_of_children()?)
    }

    /// Time that programs which it started and waited for have used. Unit: seconds.
    fn cpu_of_children(&self) -> Result<f64> {
        // The ticks of /proc are hundredths of a second on every architecture.
        const TICKS: f64 = 100.0;
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // After the name, which may hold anything, cutime and cstime are the 14th and 15th word.
        let (_, words) = text.rsplit_once(')').context("no name in stat")?;
        let ticks: f64 = words
            .split_whitespace()
            .skip(13)
            .take(2)
            .filter_map(|word| word.parse::<f64>().ok())
            .sum();
        Ok(ticks / TICKS)
    }

    /// Resident memory. Unit: MB (10⁶ bytes).
    pub(crate) fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir_all(&self.directory));
    }
}
