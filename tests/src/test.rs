//! The operations of a behaviour test: change its world, send packets, look at N.
//!
//! Invariants: every `check` asks the oracle first; without a bed, a test ends where it needs a kernel.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::address::{Family, Host, Site};
use crate::bed::{Bed, BedSpec};
use crate::client::{Attempt, Outcome, Stream};
use crate::daemon::{Daemon, LOCAL_SERVER, http_json};
use crate::datapath::Datapath;
use crate::flow::{Flow, Setting};
use crate::netns::Netns;
use crate::oracle::Judgement;
use crate::reactor;
use crate::sniff::Sniffer;
use crate::world::World;

/// Thrown by a test on the oracle at its first step that needs a kernel.
pub(crate) struct NeedsKernel;

/// A running test: its world, and the bed that it runs on.
#[derive(Debug)]
pub struct Test {
    pub(crate) world: World,
    pub(crate) bed: Option<Bed>,
    pub(crate) kind: BedSpec,
    pub(crate) n_judged: usize,
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

    /// Publishes the world and waits until it is in effect.
    #[track_caller]
    pub fn apply(&mut self) {
        if let Some(bed) = &mut self.bed
            && let Err(error) = bed.apply(&self.world)
        {
            panic!("{error:#}");
        }
    }

    /// Asks the oracle, applies the world, and tries the flows, all at once.
    #[track_caller]
    pub fn check(&mut self, flows: impl IntoIterator<Item = Flow>) {
        let flows: Vec<Flow> = flows.into_iter().collect();
        self.judge(&flows);
        if self.bed.is_some() {
            self.apply();
            self.observe(flows);
        }
    }

    /// Demands that the oracle's verdicts match the expectations.
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

    /// The datapath that the test runs on.
    pub fn datapath(&self) -> Datapath {
        self.bed();
        Datapath::named(self.kind.mode).expect("a bed is for a datapath")
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

    /// The number of answers of each server, when a flow is tried `n` times; anything but an answer fails.
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

    /// The only server that answers, when a flow is tried `n` times one after the other.
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

    /// The daemon's report of its syncs.
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

    /// Removes our objects from the kernel, and many others, as `nft flush ruleset` does.
    pub fn flush(&self) {
        let damages = self.datapath().damages(self.node_ns());
        damages[0].inflict(self.node_ns());
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

    /// N's rules and the daemon's log, for a report.
    pub fn state(&self) -> String {
        let rules = self.datapath().show(self.world.family, self.node_ns());
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
    /// Stops it; returns the outcomes of the attempts.
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
