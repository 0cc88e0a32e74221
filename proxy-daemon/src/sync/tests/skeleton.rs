//! Does the loop get along with a datapath that is node-wide and has work of its own?
//!
//! The skeleton datapath is opened as the app opens every other one.

use super::*;
use crate::datapath::skeleton::{TICK, kernel, reset};
use crate::datapath::{DatapathKind, Opener, PlaneFamily};

/// Runs a test on a thread in a network namespace of its own, whose lo is up.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("network namespaces need root");
        reset();
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[expect(clippy::disallowed_methods, reason = "a tool of a person, in a test")]
fn ip(arguments: &str) {
    let arguments = arguments.split(' ');
    let status = std::process::Command::new("ip").args(arguments).status();
    assert!(status.unwrap().success());
}

#[track_caller]
fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = SystemClock.now() + Duration::from_secs(30);
    while !holds() {
        assert!(
            SystemClock.now() < deadline,
            "{:?}",
            kernel(|k| format!("{k:?}"))
        );
        std::thread::sleep(TICK);
    }
}

struct Skeleton {
    clock: Arc<FakeClock>,
    cluster: Cluster,
    opener: Arc<Opener>,
    sync: SyncLoop<Cluster>,
}

impl Skeleton {
    fn start() -> Self {
        let clock = FakeClock::new();
        let cluster = Cluster::default();
        let kind = DatapathKind::named("skeleton").unwrap();
        let opener = Opener::new(kind, IpFamily::ALL);
        let sync = SyncLoop::new(
            cluster.clone(),
            Arc::default(),
            Surroundings::new(Policy::default(), "node".into(), None),
            PERIODS,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::new(Health::new(PERIODS.sync, true)),
        )
        .with_v4(family_sync_of(&opener, clock.now()))
        .with_v6(family_sync_of(&opener, clock.now()));
        Self {
            clock,
            cluster,
            opener,
            sync,
        }
    }

    fn change(&mut self, name: &str) {
        self.cluster.put(name, L4Proto::Tcp, 1);
        self.sync.requested = Some(self.clock.now());
        self.pass(PERIODS.min_sync);
    }

    fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        self.sync.step().unwrap();
    }
}

fn family_sync_of<F: PlaneFamily>(opener: &Arc<Opener>, now: Instant) -> FamilySync<F> {
    let tables = opener.tables().unwrap_or_else(|_| opener.tables_later());
    FamilySync::new(tables, None, PERIODS.sync, now)
}

fn installed() -> Vec<IpFamily> {
    kernel(|kernel| kernel.installed.keys().copied().collect())
}

#[test]
fn ds_1_one_plane_serves_both_families_and_they_fail_and_open_apart() {
    in_netns(|| {
        kernel(|kernel| kernel.closed = IpFamily::ALL.into());
        let mut run = Skeleton::start();
        run.change("a");
        assert_eq!(installed(), [], "the plane cannot be opened");
        kernel(|kernel| kernel.closed = [IpFamily::V6].into());
        run.pass(PERIODS.sync);
        assert_eq!(installed(), [IpFamily::V4]);
        kernel(|kernel| kernel.closed.clear());
        run.pass(PERIODS.sync);
        assert_eq!(installed(), IpFamily::ALL);
        assert_eq!(kernel(|kernel| kernel.n_workers), 1);
        assert_eq!(kernel(|kernel| kernel.families.len()), 2);
        kernel(|kernel| kernel.refused = [IpFamily::V4].into());
        run.change("b");
        assert!(!run.sync.v4.as_ref().unwrap().is_in_sync());
        assert!(run.sync.v6.as_ref().unwrap().is_in_sync());
        kernel(|kernel| kernel.refused.clear());
        run.pass(PERIODS.sync);
        assert!(run.sync.is_in_sync());
        assert_eq!(kernel(|kernel| kernel.installed[&IpFamily::V4]), 2);
    });
}

#[test]
fn links_and_timed_work_do_not_wait_for_a_sync() {
    in_netns(|| {
        let mut run = Skeleton::start();
        eventually(|| kernel(|kernel| kernel.n_ticks > 3));
        assert_eq!(kernel(|kernel| kernel.attached.len()), 0, "SYNC-12");
        run.change("a");
        eventually(|| run.opener.figures()[0].value == 1);
        // This thread is the sync thread, and it is busy with this test.
        ip("link add pods type bridge");
        ip("link set pods up");
        eventually(|| kernel(|kernel| kernel.attached.contains("pods")));
        ip("link del pods");
        eventually(|| run.opener.figures()[0].value == 1);
    });
}

#[test]
fn life_6_the_end_of_the_process_detaches_nothing_and_the_next_start_goes_on() {
    in_netns(|| {
        let mut run = Skeleton::start();
        run.change("a");
        eventually(|| kernel(|kernel| !kernel.attached.is_empty()));
        drop(run);
        eventually(|| kernel(|kernel| kernel.n_workers == 0));
        assert_eq!(installed(), IpFamily::ALL);
        assert!(kernel(|kernel| kernel.attached.contains("lo")));
        let mut run = Skeleton::start();
        run.change("a");
        assert_eq!(kernel(|kernel| kernel.n_workers), 1);
        // Others take it away.
        kernel(|kernel| kernel.installed.clear());
        run.pass(LOOK);
        assert_eq!(installed(), IpFamily::ALL);
    });
}

#[test]
fn life_9_a_mode_that_is_left_hands_its_flows_over_and_starts_no_worker() {
    in_netns(|| {
        let mut run = Skeleton::start();
        run.change("a");
        drop(run);
        eventually(|| kernel(|kernel| kernel.n_workers == 0));
        let mut bench = Bench::new();
        let previous = DatapathKind::named("skeleton").unwrap();
        let previous = Opener::new(previous, IpFamily::ALL);
        let retire = move || previous.retire(IpFamily::V4);
        let family_sync = family_sync(&bench.v4, bench.clock.now());
        let previous = PreviousMode::new("skeleton", retire);
        bench.sync = bench.sync.with_v4(family_sync.instead_of(vec![previous]));
        bench.change("a", 1);
        // The thread that removes it was started in this network namespace.
        eventually(|| kernel(|kernel| kernel.handed_over.contains(&IpFamily::V4)));
        eventually(|| installed() == [IpFamily::V6]);
        assert_eq!(kernel(|kernel| kernel.n_workers), 0);
        let other = DatapathKind::named("skeleton").unwrap();
        Opener::new(other, IpFamily::ALL)
            .cleanup(IpFamily::V6)
            .unwrap();
        assert!(kernel(|kernel| kernel.attached.is_empty()));
    });
}
