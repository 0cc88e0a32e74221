//! Which tests exist, and how they are run: every behaviour × datapath × family × protocol.
//!
//! Invariants: a case that cannot run here is ignored with a reason, never passed; beds are passed on only by tests that passed;
//! when the run ends, however it ends, no namespace of it is left.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::address::{Family, Host, Protocol, Site};
use crate::bed::{Bed, Kind};
use crate::client::{Attempt, Outcome, Stream};
use crate::daemon::{Daemon, LOCAL_SERVER, http_json};
use crate::flow::{Flow, Setting};
use crate::netns::{self, Netns};
use crate::oracle::Judgement;
use crate::reactor;
use crate::sniff::Sniffer;
use crate::topology::Pods;
use crate::world::World;

/// The datapaths that every behaviour is shown on.
pub const DATAPATHS: [&str; 1] = ["nftables"];

/// What stands in a test's name for the run without a kernel.
const ORACLE: &str = "oracle";

/// Thrown by a test on the oracle when it comes to something that only a kernel can show.
struct NeedsKernel;

/// How many tests run at once: they wait more than they work.
const THREADS: usize = 4;

/// A behaviour and where it is shown.
#[derive(Clone, Debug)]
pub struct Case {
    name: &'static str,
    body: fn(&mut Test),
    families: Vec<Family>,
    protocols: Vec<Protocol>,
    flags: Vec<String>,
    pods: Pods,
    fresh: bool,
    needs: Vec<fn() -> Result<(), String>>,
}

impl Case {
    /// A behaviour in both families, for every protocol.
    pub fn new(name: &'static str, body: fn(&mut Test)) -> Self {
        Self {
            name,
            body,
            families: Family::ALL.to_vec(),
            protocols: Protocol::ALL.to_vec(),
            flags: Vec::new(),
            pods: Pods::PointToPoint,
            fresh: false,
            needs: Vec::new(),
        }
    }

    /// Only for TCP.
    #[must_use]
    pub fn tcp(self) -> Self {
        self.protocols(&[Protocol::Tcp])
    }

    /// Only for UDP.
    #[must_use]
    pub fn udp(self) -> Self {
        self.protocols(&[Protocol::Udp])
    }

    /// Only for these protocols.
    #[must_use]
    pub fn protocols(self, protocols: &[Protocol]) -> Self {
        Self {
            protocols: protocols.to_vec(),
            ..self
        }
    }

    /// Only for IPv4.
    #[must_use]
    pub fn v4(self) -> Self {
        Self {
            families: vec![Family::V4],
            ..self
        }
    }

    /// With these flags; they take the place of the usual ones of the same name.
    #[must_use]
    pub fn flags(self, flags: &[&str]) -> Self {
        Self {
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..self
        }
    }

    /// With the pods behind a bridge.
    #[must_use]
    pub fn bridge(self) -> Self {
        Self {
            pods: Pods::Bridge,
            ..self
        }
    }

    /// On a bed of its own, because it changes the network or the daemon.
    #[must_use]
    pub fn fresh(self) -> Self {
        Self {
            fresh: true,
            ..self
        }
    }

    /// Only where this holds; otherwise it is ignored with the reason.
    #[must_use]
    pub fn needs(mut self, condition: fn() -> Result<(), String>) -> Self {
        self.needs.push(condition);
        self
    }
}

/// Names a case after its function.
#[macro_export]
macro_rules! case {
    ($body:ident) => {
        $crate::matrix::Case::new(stringify!($body), $body)
    };
}

/// Whether bridged packets pass netfilter here.
///
/// # Errors
/// Why not.
pub fn bridge_netfilter() -> Result<(), String> {
    if std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        Ok(())
    } else {
        Err("the kernel has no br_netfilter".into())
    }
}

/// A running test: its world, and the bed it comes true on.
#[derive(Debug)]
pub struct Test {
    world: World,
    bed: Option<Bed>,
    kind: Kind,
    n_judged: usize,
}

impl Deref for Test {
    type Target = World;
    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Test {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

impl Test {
    /// The bed.
    pub fn bed(&self) -> &Bed {
        self.bed
            .as_ref()
            .unwrap_or_else(|| resume_unwind(Box::new(NeedsKernel)))
    }

    /// The bed, to change it.
    pub fn bed_mut(&mut self) -> &mut Bed {
        self.bed
            .as_mut()
            .unwrap_or_else(|| resume_unwind(Box::new(NeedsKernel)))
    }

    /// Makes the world come true.
    #[track_caller]
    pub fn apply(&mut self) {
        if let Some(bed) = &mut self.bed
            && let Err(error) = bed.apply(&self.world)
        {
            panic!("{error:#}");
        }
    }

    /// Asks the oracle, makes the world come true, and tries the flows, all at once.
    #[track_caller]
    pub fn check(&mut self, flows: impl IntoIterator<Item = Flow>) {
        let flows: Vec<Flow> = flows.into_iter().collect();
        self.judge(&flows);
        if self.bed.is_some() {
            self.apply();
            self.observe(flows);
        }
    }

    /// What the oracle says must be what is expected.
    #[track_caller]
    fn judge(&mut self, flows: &[Flow]) {
        let flags = Daemon::all_flags(self.kind.mode, &self.kind.flags);
        let told = Judgement::of(&self.world, &flags, self.kind.pods)
            .unwrap_or_else(|error| panic!("no oracle: {error:#}"))
            .check(flows, self.world.family, self.world.protocol);
        if let Err(report) = told {
            panic!("{report}");
        }
        self.n_judged += flows.iter().filter(|flow| flow.oracle_knows).count();
    }

    /// Tries the flows in the world as it is.
    #[track_caller]
    pub fn observe(&self, flows: impl IntoIterator<Item = Flow>) {
        let flows: Vec<Flow> = flows.into_iter().collect();
        if let Err(report) = self.setting().try_all(&flows) {
            panic!("{report}{}", self.state());
        }
    }

    /// Tries the flows again and again until they come out as expected.
    #[track_caller]
    pub fn eventually(&self, patience: std::time::Duration, flows: impl IntoIterator<Item = Flow>) {
        let flows: Vec<Flow> = flows.into_iter().collect();
        let deadline = std::time::Instant::now() + patience;
        while let Err(report) = self.setting().try_all(&flows) {
            assert!(
                std::time::Instant::now() < deadline,
                "not within {patience:?}: {report}{}",
                self.state()
            );
        }
    }

    /// What flows are tried in.
    pub fn setting(&self) -> Setting<'_> {
        let (family, protocol) = (self.world.family, self.world.protocol);
        Setting {
            topology: &self.bed().topology,
            family,
            protocol,
        }
    }

    /// One attempt at a flow.
    pub fn try_once(&self, flow: &Flow) -> Outcome {
        self.attempt(flow).run(self.ns(flow.client.site))
    }

    /// Who answers how often, when a flow is tried `n` times; anything but an answer fails.
    #[track_caller]
    pub fn count(&self, flow: &Flow, n: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let ns = self.ns(flow.client.site);
        let attempt = self.attempt(flow);
        let mut left = n;
        while left > 0 {
            let batch: Vec<_> = (0..left.min(100)).map(|_| attempt.open(ns)).collect();
            left -= batch.len();
            let outcomes = reactor::block(async move {
                let tasks: Vec<_> = batch
                    .into_iter()
                    .map(|o| tokio::spawn(o.finish()))
                    .collect();
                let mut outcomes = Vec::new();
                for task in tasks {
                    outcomes.push(task.await.expect("a flow does not panic"));
                }
                outcomes
            });
            for outcome in outcomes {
                let Outcome::Reached(to) = outcome else {
                    panic!("{outcome}{}", self.state())
                };
                *counts.entry(to.backend).or_default() += 1;
            }
        }
        counts
    }

    /// The one who answers, when a flow is tried `n` times one after the other.
    #[track_caller]
    pub fn only(&self, flow: &Flow, n: usize) -> String {
        let mut counts = BTreeMap::new();
        for _ in 0..n {
            counts.extend(self.count(flow, 1));
        }
        assert_eq!(
            counts.len(),
            1,
            "{} moves: {counts:?}{}",
            flow.client.name(),
            self.state()
        );
        counts.into_keys().next().unwrap_or_default()
    }

    /// Tries a flow over and over, in the background.
    pub fn hammer(&self, flow: &Flow) -> Hammer {
        let stop = Arc::new(AtomicBool::new(false));
        let (attempt, ns) = (self.attempt(flow), Arc::clone(self.ns(flow.client.site)));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut outcomes = BTreeMap::new();
            while !told.load(Ordering::Relaxed) {
                let mut outcome = attempt.run(&ns);
                if let Outcome::Reached(to) = &mut outcome {
                    to.source_port = 0;
                }
                *outcomes.entry(outcome).or_default() += 1;
            }
            outcomes
        });
        Hammer { stop, thread }
    }

    /// What the daemon says about its syncs.
    #[track_caller]
    pub fn report(&self) -> Value {
        http_json(self.node_ns(), LOCAL_SERVER, "/debug/sync")
            .unwrap_or_else(|error| panic!("no report: {error:#}"))
    }

    /// How many syncs there were, over both families.
    #[track_caller]
    pub fn n_syncs(&self) -> u64 {
        let report = self.report();
        let families = report["families"]
            .as_object()
            .expect("an object of families");
        families
            .values()
            .filter_map(|family| family["n_syncs"].as_u64())
            .sum()
    }

    /// Changes the manifests step by step, and demands that no step leads to a sync.
    #[track_caller]
    pub fn causes_no_sync(&mut self, n: usize, mut step: impl FnMut(&mut World, usize)) {
        self.apply();
        let before = self.n_syncs();
        for n in 0..n {
            step(&mut self.world, n);
            let world = self.world.clone();
            let published = self.bed_mut().daemon.publish_quietly(&world);
            published.unwrap_or_else(|error| panic!("{error:#}"));
            // Long enough for the daemon to look at each step by itself.
            thread::sleep(std::time::Duration::from_millis(15));
        }
        // Reporting that all of it was seen takes one pass in each family.
        self.apply();
        let n_syncs = self.n_syncs() - before;
        assert!(
            n_syncs <= 2,
            "{n_syncs} syncs after {n} changes without effect"
        );
    }

    /// Runs `nft` in N.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        if let Err(error) = self.node_ns().feed("nft", &["-f", "-"], script) {
            panic!("{error:#}");
        }
    }

    /// Runs `ip` in a namespace; the words are split at blanks.
    #[track_caller]
    pub fn ip_tool(&self, site: Site, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        if let Err(error) = self.ns(site).check_run("ip", &words) {
            panic!("{error:#}");
        }
    }

    /// Ends the daemon, and starts it again with these flags besides those it has.
    #[track_caller]
    pub fn restart(&mut self, signal: Signal, flags: &[&str]) {
        self.bed_mut()
            .daemon
            .signal(signal)
            .unwrap_or_else(|error| panic!("{error:#}"));
        self.bed_mut().daemon.set_flags(flags);
        self.apply();
    }

    /// The attempt that a flow stands for, to be changed by the test.
    pub fn attempt(&self, flow: &Flow) -> Attempt {
        let patient = flow.clone().is_rejected();
        self.setting().attempt(&patient)
    }

    /// A TCP connection that stays.
    #[track_caller]
    pub fn stream(&self, flow: &Flow) -> Stream {
        match Stream::open(self.ns(flow.client.site), self.attempt(flow)) {
            Ok(stream) => stream,
            Err(outcome) => panic!("no connection: {outcome}{}", self.state()),
        }
    }

    /// The address of one thing in the test's family.
    pub fn ip(&self, address: crate::address::Addr) -> std::net::IpAddr {
        address.of(self.world.family)
    }

    /// A namespace.
    pub fn ns(&self, site: Site) -> &Arc<Netns> {
        self.bed().topology.site(site)
    }

    /// The node's namespace.
    pub fn node_ns(&self) -> &Netns {
        self.ns(Site::N)
    }

    /// Looks at an interface of a host's namespace.
    pub fn sniff(&self, host: Host, interface: &str) -> Sniffer {
        Sniffer::start(self.ns(host.site), interface)
    }

    /// `4` or `6`, for tools that have an option of that name.
    pub fn family_flag(&self) -> &'static str {
        match self.world.family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }

    /// What N's rules and the daemon have to say, for a report.
    pub fn state(&self) -> String {
        let family = match self.world.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let output = self
            .node_ns()
            .run("nft", &["list", "table", family, "proxy-daemon"]);
        let rules = String::from_utf8_lossy(&output.stdout);
        let rules: Vec<&str> = rules.lines().take(250).collect();
        format!(
            "--- rules of N\n{}\n--- log\n{}",
            rules.join("\n"),
            self.bed().daemon.log()
        )
    }
}

/// A flow that is tried over and over.
#[derive(Debug)]
pub struct Hammer {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<BTreeMap<Outcome, usize>>,
}

impl Hammer {
    /// Stops it; what came of the attempts.
    pub fn stop(self) -> BTreeMap<Outcome, usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a client does not panic")
    }

    /// Stops it and demands that every attempt was answered.
    #[track_caller]
    pub fn was_always_answered(self) {
        let outcomes = self.stop();
        let answered = outcomes
            .keys()
            .all(|outcome| matches!(outcome, Outcome::Reached(_)));
        assert!(answered && !outcomes.is_empty(), "{outcomes:?}");
    }
}

/// Idle beds.
#[derive(Debug, Default)]
struct Pool {
    idle: Mutex<BTreeMap<Kind, Vec<Bed>>>,
}

impl Pool {
    fn take(&self, kind: &Kind) -> Bed {
        let mut unwanted = Vec::new();
        let mut idle = self.idle.lock().unwrap();
        let found = idle.get_mut(kind).and_then(Vec::pop);
        if found.is_none() {
            // Cases come sorted by kind, so other kinds are probably over.
            let others: Vec<Kind> = idle
                .keys()
                .filter(|other| *other != kind)
                .cloned()
                .collect();
            for other in others {
                unwanted.extend(idle.remove(&other));
            }
        }
        drop(idle);
        drop(unwanted);
        found.unwrap_or_else(|| Bed::build(kind).unwrap_or_else(|e| panic!("no test bed: {e:#}")))
    }

    fn give_back(&self, kind: &Kind, mut bed: Bed) {
        if bed.reset().is_ok() {
            self.idle
                .lock()
                .unwrap()
                .entry(kind.clone())
                .or_default()
                .push(bed);
        }
    }
}

fn run_case(
    case: &Case,
    kind: &Kind,
    pool: &Pool,
    family: Family,
    protocol: Protocol,
) -> Result<Completion, Failed> {
    for condition in &case.needs {
        if let Err(reason) = condition() {
            return Ok(Completion::ignored_with(reason));
        }
    }
    let bed = if kind.mode == ORACLE {
        None
    } else if case.fresh {
        Some(Bed::build(kind).map_err(|error| format!("no test bed: {error:#}"))?)
    } else {
        Some(pool.take(kind))
    };
    let world = World::new(family, protocol);
    let mut test = Test {
        world,
        bed,
        kind: kind.clone(),
        n_judged: 0,
    };
    match catch_unwind(AssertUnwindSafe(|| (case.body)(&mut test))) {
        Ok(()) => match test.bed {
            Some(bed) => {
                if !case.fresh {
                    pool.give_back(kind, bed);
                }
                Ok(Completion::Completed)
            }
            None => Ok(judged(test.n_judged)),
        },
        Err(panic) if panic.is::<NeedsKernel>() => Ok(judged(test.n_judged)),
        Err(panic) => {
            let place = PLACE.take();
            drop(test);
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref().map(|text: &&str| (*text).to_owned()));
            Err(Failed::from(format!(
                "{place}: {}",
                what.unwrap_or_default()
            )))
        }
    }
}

thread_local! {
    /// Where the last panic of this thread happened.
    static PLACE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// Keeps the place of a panic for the report, which says more than a message and a backtrace on the way.
fn report_panics_once() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let is_test = thread::current().name().is_none();
        PLACE.set(info.location().map(ToString::to_string).unwrap_or_default());
        if !is_test {
            loud(info);
        }
    }));
}

/// What a run on the oracle came to.
fn judged(n: usize) -> Completion {
    if n > 0 {
        Completion::Completed
    } else {
        Completion::ignored_with(
            "it depends on memory, time or other programs: shown on the kernel",
        )
    }
}

/// Runs the cases as the command line says, and ends the process.
pub fn main(cases: Vec<Case>) -> ! {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    netns::sweep();
    report_panics_once();
    leave_nothing_on_signals();
    let pool = Arc::new(Pool::default());
    let mut all = Vec::new();
    for case in cases {
        for mode in [ORACLE].into_iter().chain(DATAPATHS) {
            for family in &case.families {
                for protocol in &case.protocols {
                    let kind = Kind {
                        mode,
                        pods: case.pods,
                        flags: case.flags.clone(),
                    };
                    all.push((case.fresh, kind, case.clone(), *family, *protocol));
                }
            }
        }
    }
    all.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
    let trials = all.into_iter().map(|(_, kind, case, family, protocol)| {
        let (mode, on, over) = (kind.mode, family.label(), protocol.label());
        let name = format!("{}/{mode}/{on}/{over}", case.name);
        let pool = Arc::clone(&pool);
        Trial::ignorable_test(name, move || {
            run_case(&case, &kind, &pool, family, protocol)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    pool.idle.lock().unwrap().clear();
    netns::remove_all();
    conclusion.exit()
}

fn leave_nothing_on_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        reactor::handle().spawn(async move {
            let mut stream = signal(kind).expect("a signal handler");
            stream.recv().await;
            netns::remove_all();
            std::process::exit(130);
        });
    }
}
