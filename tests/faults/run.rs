//! How does a run go? A fault, then everything must be as it should be, then the next one.
//!
//! Invariants: which faults come, and when, is decided by the seed alone, what they meet is not; one that is not recovered from is
//! reported, the node is set up anew, and the run goes on; at the end the kernel holds what a fresh daemon writes into a fresh node.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use proxy_tests::address::Site;
use proxy_tests::bed::{Bed, BedSpec};
use proxy_tests::daemon::{Daemon, http};
use proxy_tests::damage;
use proxy_tests::datapath::Datapath;
use proxy_tests::fake_api::FakeApi;
use proxy_tests::netns::Netns;
use proxy_tests::topology::{Pods, Topology};

use crate::cluster::Cluster;
use crate::faults::{self, Fault, What};
use crate::helpers::{LogPipe, Programs};
use crate::reference::{Contents, Reference};
use crate::report::{Report, Times};
use crate::witness::Witnesses;
use proxy_tests::dice::Dice;
use proxy_tests::seeds;

/// How soon others' damage must be repaired.
pub(crate) const SYNC_9: Duration = Duration::from_secs(35);
/// How soon the daemon must have caught up with an API server that is back: 10 s, and some for a machine that does three runs at once.
pub(crate) const LIFE_3: Duration = Duration::from_secs(15);
/// Where kubelet asks.
pub(crate) const HEALTH: &str = "127.0.0.1:10256";
/// From this duration on there is time for rare faults.
const LONG: Duration = Duration::from_secs(300);
/// How many requests a second the API server may get: some for each of four kinds.
const REQUESTS: u64 = 40;

/// What is to be tried.
pub(crate) struct Settings {
    pub(crate) datapath: Datapath,
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
}

/// What faults have before them.
pub(crate) struct Scene<'a> {
    pub(crate) datapath: Datapath,
    pub(crate) topology: &'a Topology,
    pub(crate) node: &'a Netns,
    pub(crate) daemon: &'a mut Daemon,
    pub(crate) api: &'a FakeApi,
    pub(crate) cluster: &'a Cluster<'a>,
    witnesses: &'a Witnesses,
    reference: Reference,
    pub(crate) log: LogPipe,
    pub(crate) programs: Programs,
    pub(crate) dice: Dice,
    /// What chance made of the fault.
    details: Vec<String>,
}

/// Where runs are kept that failed.
const SEEDS: &str = "faults";

/// Runs faults on a datapath; runs that once failed on it come first.
pub(crate) fn run(settings: &Settings) -> Result<(), String> {
    for line in seeds::kept(SEEDS) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [seed, seconds, datapath] = words[..] else {
            return Err(format!(
                "tests/seeds/{SEEDS}.txt: `{line}` is not SEED SECONDS DATAPATH"
            ));
        };
        let number = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
        if datapath == settings.datapath.name() {
            run_once(&Settings {
                datapath: settings.datapath,
                seed: number(seed)?,
                // A short run tries their beginning.
                duration: settings.duration.min(Duration::from_secs(number(seconds)?)),
            })?;
        }
    }
    run_once(settings).inspect_err(|_| {
        let (seconds, name) = (settings.duration.as_secs(), settings.datapath.name());
        seeds::keep(SEEDS, &format!("{} {seconds} {name}", settings.seed));
    })
}

fn run_once(settings: &Settings) -> Result<(), String> {
    let again = format!(
        "FAULTS_SEED={} FAULTS_SECONDS={}",
        settings.seed,
        settings.duration.as_secs()
    );
    eprintln!("{}: {again}", settings.datapath.name());
    set_up(settings).map_err(|error| format!("{again}\n{error:#}"))
}

fn set_up(settings: &Settings) -> Result<()> {
    let (datapath, seed) = (settings.datapath, settings.seed);
    let mut dice = Dice::new(seed);
    let pause = dice.pick(&["0s", "1s"]);
    let flags = [format!("--iptables-min-sync-period={pause}")].to_vec();
    let kind = BedSpec {
        mode: datapath.name(),
        pods: Pods::PointToPoint,
        flags: flags.clone(),
    };
    let mut bed = Bed::build(&kind)?;
    let Bed {
        daemon, topology, ..
    } = &mut bed;
    let node = Arc::clone(topology.site(Site::N));
    let api = FakeApi::start_in(&node)?;
    api.bookmark_every(Duration::from_secs(1));
    let cluster = Cluster::new(&api, &mut dice);
    daemon.remove_flag("--manifests");
    daemon.set_flags(&[&format!("--master={}", api.url())]);
    let log = LogPipe::behind(daemon)?;
    daemon.start(&node)?;
    let witnesses = Witnesses::default();
    let mut scene = Scene {
        datapath,
        topology,
        node: &node,
        daemon,
        api: &api,
        cluster: &cluster,
        witnesses: &witnesses,
        reference: Reference::new(datapath.name(), &flags)?,
        log,
        programs: Programs::new()?,
        dice,
        details: Vec::new(),
    };
    thread::scope(|scope| {
        let _ends = Ends(&cluster, &witnesses);
        scope.spawn(|| witnesses.ask(topology));
        scope.spawn(|| cluster.churn(Dice::new(seed ^ 1)));
        scene.play(settings, &flags)
    })
}

/// Ends the threads when the play is over, however it ends.
struct Ends<'a>(&'a Cluster<'a>, &'a Witnesses);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
        self.1.end();
    }
}

impl Scene<'_> {
    fn play(&mut self, settings: &Settings, flags: &[String]) -> Result<()> {
        let &Settings { duration, seed, .. } = settings;
        let started = Instant::now();
        self.witnesses.excuse();
        self.all_answered(started, SYNC_9).context("at the start")?;
        self.witnesses.expect();
        let only = std::env::var("FAULTS_ONLY").unwrap_or_default();
        let mut faults = faults::all(self.datapath);
        faults.retain(|fault| fault.name.contains(&only) && (!fault.is_rare || duration >= LONG));
        ensure!(
            !faults.is_empty(),
            "FAULTS_ONLY={only}: no fault of such a name"
        );
        let mut report = Report::default();
        let mut order = Dice::new(seed);
        let mut drawn = Vec::new();
        let mut n = 0;
        while started.elapsed() < duration {
            // Each once, in an order of chance, before any of them again.
            if drawn.is_empty() {
                drawn = order.shuffled(faults.clone());
            }
            let Some(fault) = drawn.pop() else { break };
            n += 1;
            // How many random numbers the earlier faults used depends on timing.
            self.dice = Dice::new(seed ^ (n << 32));
            self.pass(0, 1000);
            let at = format!(
                "{} #{n} at {:.1} s: {}",
                self.datapath.name(),
                started.elapsed().as_secs_f64(),
                fault.name
            );
            eprintln!("{at}");
            match self.undergo(&fault) {
                Ok(times) => report.add(fault.name, times),
                Err(error) => {
                    let details = self.details.join("; ");
                    let failure = format!("{at} ({details}): {error:#}");
                    eprintln!("{failure}\n{}", self.daemon.log());
                    report.failures.push(failure);
                    self.begin_anew(flags)?;
                }
            }
        }
        eprintln!(
            "{}: {n} faults, all asked {} times\n{report}",
            self.datapath.name(),
            self.witnesses.n_rounds()
        );
        self.is_as_if_fresh(flags)
            .unwrap_or_else(|error| report.failures.push(format!("at the end: {error:#}")));
        if !report.failures.is_empty() {
            bail!("{}", report.failures.join("\n"));
        }
        Ok(())
    }

    /// Lets a fault happen, and waits until everything is as it should be.
    fn undergo(&mut self, fault: &Fault) -> Result<Times> {
        self.nothing_was_missing().context("before it")?;
        self.api.clear_requests();
        self.details.clear();
        let began = Instant::now();
        let inflicted = match fault.what {
            What::Damage(kind) => {
                self.witnesses.excuse();
                self.damage(kind)
            }
            What::Other(inflict) => inflict(self),
        };
        let over = Instant::now();
        let answered = self.all_answered(over, SYNC_9);
        self.witnesses.expect();
        inflicted?;
        let answered = answered?;
        let in_step = self.in_step(over, fault.limit)?;
        if let Some(status) = self.daemon.ended()? {
            bail!("the daemon ended with {status}");
        }
        let (code, body) = http(self.node, HEALTH, "/healthz")?;
        ensure!(code == 200, "/healthz: {code} {body}");
        let took = began.elapsed();
        let n_requests = self.api.requests().len() as u64;
        ensure!(
            n_requests < 100 + REQUESTS * took.as_secs(),
            "the API server got {n_requests} requests in {took:?}"
        );
        self.nothing_was_missing()?;
        Ok(Times { answered, in_step })
    }

    /// Others damage the rules: while the daemon looks, while it cannot, around its end, or while it has no API server.
    fn damage(&mut self, kind: damage::DamageKind) -> Result<()> {
        match self.dice.below(8) {
            0 => {
                self.say("while the daemon is stopped");
                self.daemon.pause(true);
                let damaged = self.do_damage(kind);
                self.daemon.pause(false);
                damaged
            }
            1 => {
                self.say("then SIGKILL");
                self.do_damage(kind)?;
                self.restart(Signal::SIGKILL)
            }
            2 => {
                self.say("after SIGKILL");
                self.restart(Signal::SIGKILL)?;
                self.pass(0, 400);
                self.do_damage(kind)
            }
            3 => {
                self.say("without an API server");
                self.api.down();
                let outcome = self
                    .do_damage(kind)
                    .and_then(|()| self.all_answered(Instant::now(), SYNC_9));
                self.api.up();
                outcome.map(drop)
            }
            _ => self.do_damage(kind),
        }
    }

    fn do_damage(&mut self, kind: damage::DamageKind) -> Result<()> {
        // What was drawn may be gone before it is damaged: the cluster changes.
        for _ in 0..5 {
            let steps = kind.draw(self.datapath, self.node, &mut |n| self.dice.below(n));
            let pause = Duration::from_secs(1) / u32::try_from(steps.len())?.max(1);
            let is_slow = steps.len() > 1;
            let mut did_something = false;
            for step in steps {
                did_something |= step.inflict(self.node);
                if is_slow {
                    thread::sleep(pause);
                } else if did_something {
                    self.say(&step.what);
                }
            }
            if did_something {
                return Ok(());
            }
        }
        bail!("there was nothing to damage")
    }

    /// Ends the daemon and starts it at once.
    pub(crate) fn restart(&mut self, signal: Signal) -> Result<()> {
        self.daemon.signal(signal)?;
        self.daemon.start(self.node)
    }

    /// Lets a time between these pass, in milliseconds: chance decides how long faults last.
    pub(crate) fn pass(&mut self, from: usize, to: usize) {
        thread::sleep(self.dice.millis(from, to));
    }

    /// Records the fault's random choices, for the report of a failure.
    pub(crate) fn say(&mut self, detail: &str) {
        self.details.push(detail.to_owned());
    }

    fn all_answered(&self, since: Instant, limit: Duration) -> Result<Duration> {
        self.witnesses
            .all_answered(since, limit)
            .map_err(|report| anyhow!(report))
    }

    fn nothing_was_missing(&self) -> Result<()> {
        let missing = self.witnesses.unexcused();
        ensure!(
            missing.is_empty(),
            "without damage, answers were missing {} times; first:\n{}",
            missing.len(),
            missing[0]
        );
        Ok(())
    }

    /// Has the cluster stand still, and waits until the kernel holds what it must; how long after the moment that was.
    pub(crate) fn in_step(&mut self, since: Instant, limit: Duration) -> Result<Duration> {
        let _still = self.cluster.stand_still();
        let wanted = self
            .reference
            .contents(&self.cluster.world())
            .context("the reference")?;
        becomes(self.node, &wanted, since, limit)
    }

    /// The end: nothing changes any more.
    fn is_as_if_fresh(&mut self, flags: &[String]) -> Result<()> {
        let _still = self.cluster.stand_still();
        let mut fresh = Reference::new(self.datapath.name(), flags)?;
        let wanted = fresh
            .contents(&self.cluster.world())
            .context("a fresh daemon")?;
        becomes(self.node, &wanted, Instant::now(), LIFE_3)?;
        self.nothing_was_missing()
    }

    /// Makes the node as good as new after something that was not recovered from.
    fn begin_anew(&mut self, flags: &[String]) -> Result<()> {
        self.witnesses.excuse();
        self.api.clear_faults();
        self.api.down();
        self.api.up();
        if self.daemon.ended().is_ok_and(|ended| ended.is_none()) {
            self.daemon.signal(Signal::SIGKILL)?;
        }
        self.datapath.remove(self.node);
        // Not all: of a TCP connection that it does not know, conntrack takes the next packet for the first one.
        self.node.run("conntrack", &["-D", "-p", "udp"]);
        self.daemon.start(self.node)?;
        // What it was given may be too much for it as well.
        self.reference = Reference::new(self.datapath.name(), flags)?;
        self.all_answered(Instant::now(), SYNC_9)
            .context("a new start after a failure")?;
        self.witnesses.expect();
        self.witnesses.unexcused();
        Ok(())
    }
}

/// Waits until a node holds this.
fn becomes(node: &Netns, wanted: &Contents, since: Instant, limit: Duration) -> Result<Duration> {
    /// How long one look may take.
    const LOOK: Duration = Duration::from_secs(5);
    let deadline = (since + limit).max(Instant::now() + LOOK);
    loop {
        let now = Instant::now();
        let differs = match Contents::of(node) {
            Ok(contents) if contents == *wanted => return Ok(now - since),
            Ok(contents) => contents.differs(wanted),
            Err(error) => format!("{error:#}"),
        };
        ensure!(
            Instant::now() < deadline,
            "not in step after {limit:?}:\n{differs}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}
