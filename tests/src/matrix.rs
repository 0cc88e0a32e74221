//! Which tests exist, and how they are run: every behaviour × datapath × family × protocol.
//!
//! Invariants: a case that cannot run here is ignored with a reason, never passed; beds are passed on only by tests that passed;
//! when the run ends, however it ends, no namespace of it is left.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::address::{Family, Protocol};
use crate::bed::{Bed, BedSpec};
use crate::daemon::Directory;
use crate::datapath::Datapath;
use crate::netns;
use crate::reactor;
use crate::test::NeedsKernel;
pub use crate::test::Test;
use crate::topology::Pods;
use crate::world::World;

/// Set to anything, this variable leaves one protocol in each family and no slow cases; `cargo xtask test --quick` sets it.
const QUICK: &str = "BEHAVIOUR_QUICK";

/// Set to anything, this variable prints the longest trials at the end.
const TIMES: &str = "BEHAVIOUR_TIMES";
const N_TIMES: usize = 40;

/// What stands in a test's name for the run without a kernel.
const ORACLE: &str = "oracle";

/// What stands in a test's name where no datapath takes part.
const ONCE: &str = "no-daemon";

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
    pods: Vec<Pods>,
    fresh: bool,
    kernel: bool,
    n_datapaths: usize,
    slow: bool,
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
            pods: vec![Pods::PointToPoint],
            fresh: false,
            kernel: false,
            n_datapaths: Datapath::ALL.len(),
            slow: false,
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
        let pods = vec![Pods::Bridge];
        Self { pods, ..self }
    }

    /// With the pods on links of their own, and then behind a bridge.
    #[must_use]
    pub fn routed_and_bridged(self) -> Self {
        let pods = vec![Pods::PointToPoint, Pods::Bridge];
        Self { pods, ..self }
    }

    /// Not on the oracle: it depends on memory, time or other programs.
    #[must_use]
    pub fn kernel(self) -> Self {
        Self {
            kernel: true,
            ..self
        }
    }

    /// Over which protocols a family is tried. A short run takes TCP for IPv4 and UDP for IPv6, or the first there is.
    fn protocols_of(&self, family: Family, quick: bool) -> Vec<Protocol> {
        let wanted = match family {
            Family::V4 => Protocol::Tcp,
            Family::V6 => Protocol::Udp,
        };
        let has_it = self.protocols.contains(&wanted).then_some(wanted);
        let one = has_it.or_else(|| self.protocols.first().copied());
        match one {
            Some(one) if quick => vec![one],
            _ => self.protocols.clone(),
        }
    }

    /// Left out of a short run: it takes many seconds.
    #[must_use]
    pub fn slow(self) -> Self {
        Self { slow: true, ..self }
    }

    /// Without the daemon, and so once and not for each datapath.
    #[must_use]
    pub fn once(self) -> Self {
        Self {
            n_datapaths: 1,
            ..self.kernel().fresh()
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
}

/// Names a case after its function.
#[macro_export]
macro_rules! case {
    ($body:ident) => {
        $crate::matrix::Case::new(stringify!($body), $body)
    };
}

/// Whether bridged packets pass netfilter here, or why not.
fn bridge_netfilter() -> Result<(), String> {
    if std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        Ok(())
    } else {
        Err("the kernel has no br_netfilter".into())
    }
}

/// Idle beds.
#[derive(Debug, Default)]
struct Pool {
    idle: Mutex<BTreeMap<BedSpec, Vec<Bed>>>,
    /// How long each trial took.
    times: Mutex<Vec<(Duration, String)>>,
}

impl Pool {
    fn take(&self, kind: &BedSpec) -> Bed {
        let mut unwanted = Vec::new();
        let mut idle = self.idle.lock().unwrap();
        let found = idle.get_mut(kind).and_then(Vec::pop);
        if found.is_none() {
            // Cases come sorted by kind, so other kinds are probably over.
            let others: Vec<BedSpec> = idle
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

    fn give_back(&self, kind: &BedSpec, mut bed: Bed) {
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
    kind: &BedSpec,
    pool: &Pool,
    family: Family,
    protocol: Protocol,
) -> Result<Completion, Failed> {
    if kind.pods == Pods::Bridge
        && let Err(reason) = bridge_netfilter()
    {
        return Ok(Completion::ignored_with(reason));
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
            None => judged(test.n_judged),
        },
        Err(panic) if panic.is::<NeedsKernel>() => judged(test.n_judged),
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

/// Keeps the place of a panic for the report, instead of printing it at once.
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

/// The result of a run on the oracle.
fn judged(n: usize) -> Result<Completion, Failed> {
    if n > 0 {
        Ok(Completion::Completed)
    } else {
        Err("the oracle was not asked: a case for the kernel alone says so, with .kernel()".into())
    }
}

/// Runs the trials that the command line selects, calls `last`, and ends the process.
pub fn run(trials: Vec<Trial>, n_threads: usize, last: impl FnOnce()) -> ! {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(n_threads);
    netns::sweep();
    Directory::sweep();
    leave_nothing_on_signals();
    let conclusion = libtest_mimic::run(&arguments, trials);
    last();
    leave_nothing();
    conclusion.exit()
}

/// Runs the cases that the command line selects, and ends the process.
pub fn main(cases: Vec<Case>) -> ! {
    report_panics_once();
    let pool = Arc::new(Pool::default());
    let quick = std::env::var_os(QUICK).is_some();
    let mut all = Vec::new();
    for case in cases.into_iter().filter(|case| !(quick && case.slow)) {
        let oracle = (!case.kernel).then_some(ORACLE);
        let datapaths = Datapath::ALL.map(Datapath::name).into_iter();
        let datapaths = datapaths.take(case.n_datapaths);
        for mode in oracle.into_iter().chain(datapaths) {
            for pods in &case.pods {
                for family in &case.families {
                    for protocol in case.protocols_of(*family, quick) {
                        let (pods, flags) = (*pods, case.flags.clone());
                        let kind = BedSpec { mode, pods, flags };
                        all.push((case.fresh, kind, case.clone(), *family, protocol));
                    }
                }
            }
        }
    }
    all.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
    let of_run = Arc::clone(&pool);
    let trials = all.into_iter().map(|(_, kind, case, family, protocol)| {
        let mode = if case.n_datapaths == 1 {
            ONCE
        } else {
            kind.mode
        };
        let (on, over) = (family.label(), protocol.label());
        let bridged = if kind.pods == Pods::Bridge {
            "bridged/"
        } else {
            ""
        };
        let name = format!("{}/{mode}/{bridged}{on}/{over}", case.name);
        let pool = Arc::clone(&pool);
        Trial::ignorable_test(name.clone(), move || {
            let started = Instant::now();
            let outcome = run_case(&case, &kind, &pool, family, protocol);
            let times = &mut *pool.times.lock().unwrap();
            times.push((started.elapsed(), name));
            outcome
        })
    });
    run(trials.collect(), THREADS, || {
        of_run.idle.lock().unwrap().clear();
        if std::env::var_os(TIMES).is_some() {
            let mut times = std::mem::take(&mut *of_run.times.lock().unwrap());
            times.sort();
            for (time, name) in times.iter().rev().take(N_TIMES) {
                eprintln!("{:6.1} s {name}", time.as_secs_f64());
            }
        }
    })
}

fn leave_nothing() {
    netns::remove_all();
    Directory::remove_all();
}

fn leave_nothing_on_signals() {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        reactor::handle().spawn(async move {
            let mut stream = signal(kind).expect("a signal handler");
            stream.recv().await;
            leave_nothing();
            std::process::exit(130);
        });
    }
}
