//! When is what handed to the datapaths?

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::time::SystemTime;

mod skeleton;

use super::*;
use crate::config::Policy;
use crate::conntrack::{ConntrackError, Flow, FlowTable, StaleFlows};
use crate::datapath::{DatapathError, SyncReport, Tables};
use crate::forwarding::{Changes, ForwardingState};
use crate::model::{
    Endpoint, EndpointSlice, Service, ServiceInput, ServiceKind, ServiceName, ServicePortSpec,
    SliceName, SlicePort, TrafficPolicy,
};
use crate::net::{Family, L4Proto, Port};
use crate::sys::SystemClock;

const PERIODS: Periods = Periods {
    min_sync: Duration::from_secs(1),
    sync: Duration::from_secs(30),
};

/// A clock that only moves when told.
struct FakeClock {
    start: Instant,
    passed: Mutex<Duration>,
}

impl FakeClock {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: SystemClock.now(),
            passed: Mutex::default(),
        })
    }

    fn advance(&self, by: Duration) {
        *self.passed.lock().unwrap() += by;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Instant {
        self.start + *self.passed.lock().unwrap()
    }
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + *self.passed.lock().unwrap()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Sync(usize),
    Resync(usize),
    Retire,
    List,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Fine,
    Fail,
    Unusable,
    Panic,
}

#[derive(Default)]
struct Log {
    calls: Vec<(Duration, Call)>,
    answers: VecDeque<Answer>,
    foreign: bool,
    /// What a call takes.
    cost: Duration,
}

/// A datapath and a conntrack table that write down what they are asked.
#[derive(Clone)]
struct Fake {
    clock: Arc<FakeClock>,
    log: Arc<Mutex<Log>>,
}

impl Fake {
    fn new(clock: &Arc<FakeClock>) -> Self {
        Self {
            clock: Arc::clone(clock),
            log: Arc::default(),
        }
    }

    fn call(&self, call: Call) -> Result<SyncReport, DatapathError> {
        let answer = {
            let mut log = self.log.lock().unwrap();
            let at = *self.clock.passed.lock().unwrap();
            log.calls.push((at, call));
            self.clock.advance(log.cost);
            log.answers.pop_front().unwrap_or(Answer::Fine)
        };
        match answer {
            Answer::Fine => Ok(SyncReport::default()),
            Answer::Fail => Err(DatapathError::Refused {
                operation: "test",
                object: "test".to_owned(),
                source: io::ErrorKind::Other.into(),
            }),
            Answer::Unusable => Err(DatapathError::Unusable {
                operation: "test",
                advice: "none",
                source: io::ErrorKind::Unsupported.into(),
            }),
            Answer::Panic => panic!("a bug, for the test"),
        }
    }

    fn take(&self) -> Vec<(Duration, Call)> {
        std::mem::take(&mut self.log.lock().unwrap().calls)
    }

    fn answer(&self, answers: &[Answer]) {
        self.log.lock().unwrap().answers.extend(answers);
    }
}

impl<F: Family> Tables<F> for Fake {
    fn sync(
        &mut self,
        _: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<Option<SyncReport>, DatapathError> {
        self.call(Call::Sync(changes.service_ports.len())).map(Some)
    }
    fn resync(&mut self, desired: &ForwardingState<F>) -> Result<SyncReport, DatapathError> {
        self.call(Call::Resync(desired.service_ports.len()))
    }
    fn changed_by_others(&mut self) -> Result<bool, DatapathError> {
        Ok(std::mem::take(&mut self.log.lock().unwrap().foreign))
    }
}

impl<F: Family> FlowTable<F> for Fake {
    fn list(
        &mut self,
        _: usize,
        _: &dyn Fn(&Flow<F>) -> bool,
    ) -> Result<Vec<Flow<F>>, ConntrackError> {
        let at = *self.clock.passed.lock().unwrap();
        self.log.lock().unwrap().calls.push((at, Call::List));
        Ok(Vec::new())
    }
    fn delete(&mut self, _: &Flow<F>) -> Result<(), ConntrackError> {
        Ok(())
    }
}

/// What the store would hand over.
#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    listed: bool,
    all: BTreeMap<ServiceName, ServiceInput>,
    changed: Drained,
}

impl Intake for Cluster {
    fn take(&mut self, everything: bool) -> Option<Drained> {
        let mut cluster = self.0.lock().unwrap();
        if !cluster.listed {
            return None;
        }
        let mut drained = std::mem::take(&mut cluster.changed);
        if everything {
            drained.services.clone_from(&cluster.all);
        }
        Some(drained)
    }
}

impl Cluster {
    fn put(&self, name: &str, protocol: L4Proto, n_endpoints: u8) {
        self.put_input(name, input(name, protocol, n_endpoints));
    }

    fn put_input(&self, name: &str, input: ServiceInput) {
        let name = ServiceName::new("ns", name);
        let mut cluster = self.0.lock().unwrap();
        cluster.listed = true;
        cluster.all.insert(name.clone(), input.clone());
        cluster.changed.services.insert(name, input);
    }
}

fn input(name: &str, protocol: L4Proto, n_endpoints: u8) -> ServiceInput {
    let number = name.bytes().fold(0_u8, u8::wrapping_add);
    let port = Port::new(80).unwrap();
    let service = ServiceName::new("ns", name);
    let endpoint = |i| Endpoint {
        address: IpAddr::from([10, 244, 1, i]),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hints: None,
    };
    ServiceInput {
        service: Some(Arc::new(Service {
            name: service.clone(),
            kind: ServiceKind::ClusterIp,
            cluster_ip_v4: Some(Ipv4Addr::new(10, 96, 0, number)),
            cluster_ip_v6: None,
            ports: Box::new([ServicePortSpec {
                name: "".into(),
                protocol,
                port,
                node_port: None,
            }]),
            external_ips: Box::default(),
            load_balancer_ips: Box::default(),
            source_ranges: Box::default(),
            external_policy: TrafficPolicy::Cluster,
            internal_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_port: None,
            created: 0,
        })),
        slices: vec![Arc::new(EndpointSlice {
            name: SliceName::new("ns", name),
            service,
            family: IpFamily::V4,
            ports: Box::new([SlicePort {
                name: "".into(),
                protocol,
                port,
            }]),
            endpoints: (1..=n_endpoints).map(endpoint).collect(),
        })],
    }
}

struct Bench {
    clock: Arc<FakeClock>,
    cluster: Cluster,
    v4: Fake,
    v6: Fake,
    health: Arc<Health>,
    sync: SyncLoop<Cluster>,
}

impl Bench {
    fn new() -> Self {
        let clock = FakeClock::new();
        let cluster = Cluster::default();
        let (v4, v6) = (Fake::new(&clock), Fake::new(&clock));
        let health = Arc::new(Health::new(PERIODS.sync, true));
        let surroundings = Surroundings::new(Policy::default(), "node".into(), None);
        let now = clock.now();
        let sync = SyncLoop::new(
            cluster.clone(),
            Arc::default(),
            surroundings,
            PERIODS,
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::clone(&health),
        )
        .with_v4(family_sync(&v4, now))
        .with_v6(family_sync(&v6, now));
        Self {
            clock,
            cluster,
            v4,
            v6,
            health,
            sync,
        }
    }

    /// What the loop does when it is told of a change.
    fn change(&mut self, name: &str, n_endpoints: u8) {
        self.cluster.put(name, L4Proto::Tcp, n_endpoints);
        self.sync.requested = self.sync.requested.or(Some(self.clock.now()));
        self.sync.step().unwrap();
    }

    /// Lets time pass, the loop waking when it wants to.
    fn wait(&mut self, time: Duration) {
        let end = self.clock.now() + time;
        loop {
            let next = self.sync.deadline();
            if next > end {
                break;
            }
            assert!(next > self.clock.now(), "the loop spins");
            self.clock.advance(next - self.clock.now());
            self.sync.step().unwrap();
        }
        self.clock.advance(end - self.clock.now());
    }
}

fn family_sync<F: Family>(fake: &Fake, now: Instant) -> FamilySync<F> {
    let stale = StaleFlows::new(Box::new(fake.clone()));
    FamilySync::new(Box::new(fake.clone()), Some(stale), PERIODS.sync, now)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn sync_12_nothing_is_written_before_all_kinds_are_listed() {
    let mut bench = Bench::new();
    bench.sync.step().unwrap();
    bench.wait(ms(300_000));
    assert_eq!(bench.v4.take(), []);
    bench.change("a", 1);
    assert_eq!(bench.v4.take(), [(ms(300_000), Call::Resync(1))]);
}

#[test]
fn sync_1_changes_after_idle_run_at_once_and_then_merge() {
    let mut bench = Bench::new();
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.v4.take();
    bench.change("b", 1);
    for n in 0..10 {
        bench.wait(ms(50));
        bench.change(&format!("c{n}"), 1);
    }
    bench.wait(ms(10_000));
    assert_eq!(
        bench.v4.take(),
        [(ms(5_000), Call::Sync(1)), (ms(6_000), Call::Sync(10))]
    );
}

#[test]
fn sync_1_syncs_that_cost_much_leave_pauses_between_them() {
    for (cost, n_syncs) in [(ms(2), 200..=500), (ms(60), 17..=22), (ms(400), 4..=5)] {
        let mut bench = Bench::new();
        bench.sync.periods.min_sync = ms(10);
        bench.change("a", 1);
        bench.wait(ms(5_000));
        bench.v4.take();
        bench.v4.log.lock().unwrap().cost = cost;
        let end = bench.clock.now() + ms(5_000);
        let mut n_endpoints = 1;
        while bench.clock.now() < end {
            n_endpoints = n_endpoints % 100 + 1;
            bench.change("b", n_endpoints);
            bench.wait(ms(10));
        }
        let n = bench.v4.take().len();
        assert!(n_syncs.contains(&n), "{n} syncs of {cost:?}");
    }
}

#[test]
fn sync_3_sync_4_idle_writes_nothing_but_reads_back_every_hour() {
    let mut bench = Bench::new();
    bench.change("a", 1);
    bench.v4.take();
    bench.wait(ms(3_599_000));
    assert_eq!(bench.v4.take(), []);
    bench.wait(ms(2_000));
    assert_eq!(bench.v4.take(), [(ms(3_600_000), Call::Resync(1))]);
}

#[test]
fn sync_7_sync_8_a_failed_family_is_read_back_and_the_other_goes_on() {
    let mut bench = Bench::new();
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.v6.take();
    bench.v4.take();
    bench.v4.answer(&[Answer::Fail, Answer::Fail]);
    bench.change("a", 2);
    bench.wait(ms(5_000));
    assert_eq!(
        bench.v4.take(),
        [
            (ms(5_000), Call::Sync(1)),
            (ms(5_100), Call::Resync(1)),
            (ms(5_300), Call::Resync(1)),
        ]
    );
    assert_eq!(bench.v6.take(), [], "it has no such Service");
    assert_eq!(bench.health.report(&*bench.clock)["pending"], 0);
}

#[test]
fn sync_7_a_kernel_that_keeps_refusing_is_asked_ever_less() {
    let mut bench = Bench::new();
    bench.v4.answer(&[Answer::Fail; 100]);
    bench.change("a", 1);
    bench.wait(ms(600_000));
    let calls = bench.v4.take();
    assert!((20..40).contains(&calls.len()), "{calls:?}");
    assert!(!bench.health.healthz(&*bench.clock).ok, "HZ-3");
    bench.change("b", 1);
    bench.wait(ms(100));
    assert!(bench.v4.take().len() <= 1);
}

#[test]
fn sync_7_a_bug_in_a_datapath_is_a_failure() {
    let mut bench = Bench::new();
    bench.v4.answer(&[Answer::Panic]);
    bench.change("a", 1);
    bench.wait(ms(1_000));
    assert_eq!(
        bench.v4.take(),
        [(ms(0), Call::Resync(1)), (ms(100), Call::Resync(1))]
    );
}

#[test]
fn met_9_sync_7_a_panic_is_counted_like_any_failed_sync() {
    let mut bench = Bench::new();
    bench
        .v4
        .answer(&[Answer::Panic, Answer::Fail, Answer::Panic]);
    bench.change("a", 1);
    let report = |bench: &Bench| bench.health.report(&*bench.clock)["families"]["IPv4"].clone();
    assert_eq!(report(&bench)["n_failures"], 1);
    let last_error = report(&bench)["last_error"].to_string();
    assert!(last_error.contains("panicked"), "{last_error}");
    bench.wait(ms(1_000));
    assert_eq!(report(&bench)["n_failures"], 3);
}

#[test]
fn ds_2_a_kernel_without_the_secondary_family_serves_the_primary() {
    let mut bench = Bench::new();
    bench.v6.answer(&[Answer::Unusable]);
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.change("b", 1);
    assert_eq!(bench.v4.take().len(), 2);
    assert_eq!(bench.v6.take().len(), 1);
    assert!(bench.health.healthz(&*bench.clock).ok);
}

#[test]
fn ds_2_a_secondary_family_that_failed_first_is_given_up_too() {
    let mut bench = Bench::new();
    bench.v6.answer(&[Answer::Fail, Answer::Unusable]);
    bench.change("a", 1);
    bench.wait(ms(60_000));
    assert_eq!(bench.v6.take().len(), 2);
    assert!(bench.health.healthz(&*bench.clock).ok);
    // Once it was served it is not given up.
    let mut bench = Bench::new();
    bench
        .v6
        .answer(&[Answer::Fail, Answer::Fine, Answer::Unusable]);
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.v6.log.lock().unwrap().foreign = true;
    bench.wait(ms(60_000));
    assert_eq!(bench.v6.take().len(), 4);
}

#[test]
fn ds_2_a_kernel_without_the_primary_family_is_fatal_at_the_start_only() {
    let mut bench = Bench::new();
    bench.v4.answer(&[Answer::Unusable]);
    bench.cluster.put("a", L4Proto::Tcp, 1);
    assert!(bench.sync.step().is_err());
    let mut bench = Bench::new();
    bench.v4.answer(&[Answer::Fine, Answer::Unusable]);
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.change("b", 1);
}

#[test]
fn sync_9_what_others_changed_is_read_back() {
    let mut bench = Bench::new();
    bench.change("a", 1);
    bench.v4.take();
    bench.v4.log.lock().unwrap().foreign = true;
    bench.wait(ms(30_000));
    assert_eq!(bench.v4.take(), [(ms(1_000), Call::Resync(1))]);
    assert_eq!(
        bench.v6.take().len(),
        1,
        "the other family is not disturbed"
    );
}

#[test]
fn np_7_an_address_change_alone_is_a_change() {
    let mut bench = Bench::new();
    bench.change("a", 1);
    bench.wait(ms(5_000));
    let address = IpAddr::from([192, 0, 2, 2]);
    let with_prefix = IpNet::new(address, 24).unwrap();
    bench.sync.set_local_addresses([with_prefix].into());
    assert_eq!(bench.sync.deadline(), bench.sync.not_before.unwrap());
    bench.sync.set_local_addresses([with_prefix].into());
    bench.sync.step().unwrap();
    assert_eq!(bench.sync.requested, None);
    assert!(
        bench
            .sync
            .surroundings
            .environment()
            .local_addresses
            .contains(&address)
    );
}

#[test]
fn ct_13_stale_flows_are_looked_for_after_a_successful_sync() {
    let mut bench = Bench::new();
    bench.v4.answer(&[Answer::Fail]);
    bench.cluster.put("dns", L4Proto::Udp, 1);
    bench.sync.step().unwrap();
    assert_eq!(bench.v4.take(), [(ms(0), Call::Resync(1))]);
    bench.wait(ms(1_000));
    assert_eq!(
        bench.v4.take(),
        [(ms(100), Call::Resync(1)), (ms(100), Call::List)]
    );
    bench.wait(ms(60_000));
    assert_eq!(bench.v4.take(), [(ms(1_100), Call::List)], "and once more");
}

#[test]
fn ct_4_every_resync_is_followed_by_a_look_at_the_flows() {
    let mut bench = Bench::new();
    bench.cluster.put("dns", L4Proto::Udp, 1);
    bench.sync.step().unwrap();
    bench.wait(ms(10_000));
    bench.v4.take();
    bench.change("a", 1);
    assert_eq!(bench.v4.take(), [(ms(10_000), Call::Sync(1))], "no UDP");
    // Others changed our objects.
    bench.v4.log.lock().unwrap().foreign = true;
    bench.wait(ms(10_000));
    let [resync, list, again] = bench.v4.take()[..] else {
        panic!("one resync and two looks");
    };
    assert_eq!(
        (resync.1, list.1, again.1),
        (Call::Resync(2), Call::List, Call::List)
    );
    assert_eq!((list.0, again.0), (resync.0, resync.0 + ms(1_000)));
    // A sync failed, and is made good.
    bench.v4.answer(&[Answer::Fail]);
    bench.change("b", 1);
    bench.wait(ms(500));
    let calls: Vec<Call> = bench.v4.take().into_iter().map(|(_, call)| call).collect();
    assert_eq!(calls, [Call::Sync(1), Call::Resync(3), Call::List]);
}

/// A table whose listings last until the test ends them.
struct Slow {
    listed: std::sync::mpsc::Sender<()>,
    ends: std::sync::mpsc::Receiver<()>,
}

impl FlowTable<V4> for Slow {
    fn list(
        &mut self,
        _: usize,
        _: &dyn Fn(&Flow<V4>) -> bool,
    ) -> Result<Vec<Flow<V4>>, ConntrackError> {
        self.listed.send(()).unwrap();
        self.ends.recv().unwrap_err();
        Ok(Vec::new())
    }
    fn delete(&mut self, _: &Flow<V4>) -> Result<(), ConntrackError> {
        Ok(())
    }
}

#[test]
fn ct_13_no_sync_waits_for_a_pass_and_the_thread_ends_with_the_loop() {
    let mut bench = Bench::new();
    let (listed, listings) = std::sync::mpsc::channel();
    let (goes_on, ends) = std::sync::mpsc::channel();
    let stale = StaleFlows::new(Box::new(Slow { listed, ends }));
    let tables = Box::new(bench.v4.clone());
    let mut family = FamilySync::new(tables, Some(stale), PERIODS.sync, bench.clock.now());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    family.start_passes(&clock, &bench.health);
    bench.sync = bench.sync.with_v4(family);
    bench.cluster.put("dns", L4Proto::Udp, 1);
    bench.sync.step().unwrap();
    let patience = Duration::from_secs(60);
    listings.recv_timeout(patience).unwrap();
    bench.wait(ms(5_000));
    bench.v4.take();
    bench.cluster.put("dns", L4Proto::Udp, 2);
    bench.change("a", 1);
    assert_eq!(bench.v4.take(), [(ms(5_000), Call::Sync(2))]);
    drop(bench.sync);
    drop(goes_on);
    // The sender of the table, which the thread has.
    assert!(listings.recv_timeout(patience).is_err());
}

#[test]
fn ct_13_no_pass_begins_while_a_resync_fails() {
    let mut bench = Bench::new();
    let (listed, listings) = std::sync::mpsc::channel();
    let (_, ends) = std::sync::mpsc::channel();
    let stale = StaleFlows::new(Box::new(Slow { listed, ends }));
    let tables = Box::new(bench.v4.clone());
    let mut family = FamilySync::new(tables, Some(stale), PERIODS.sync, bench.clock.now());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    family.start_passes(&clock, &bench.health);
    bench.sync = bench.sync.with_v4(family);
    bench.cluster.put("dns", L4Proto::Udp, 1);
    bench.sync.step().unwrap();
    listings.recv_timeout(Duration::from_secs(60)).unwrap();
    bench.v4.answer(&[Answer::Fail]);
    bench.v4.log.lock().unwrap().foreign = true;
    bench.clock.advance(LOOK);
    bench.sync.step().unwrap();
    assert!(!bench.sync.is_in_sync());
    // On a slow machine the second pass may be here already.
    while listings.try_recv().is_ok() {}
    let second = listings.recv_timeout(ms(1_500));
    assert!(second.is_err(), "its rules are damaged");
}

#[test]
fn sync_14_no_difference_writes_nothing() {
    let mut bench = Bench::new();
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.v4.take();
    bench.change("a", 1);
    assert_eq!(bench.v4.take(), []);
    assert_eq!(bench.health.report(&*bench.clock)["pending"], 0);
}

/// Another mode to be cleaned up after the bench's IPv4, which writes into a log of its own.
fn instead_of_another(bench: Bench) -> (Bench, Fake) {
    let other = Fake::new(&bench.clock);
    let opened = other.clone();
    let previous = PreviousMode::new("other", move || opened.call(Call::Retire).map(drop));
    let family_sync = family_sync(&bench.v4, bench.clock.now()).instead_of(vec![previous]);
    let sync = bench.sync.with_v4(family_sync);
    (Bench { sync, ..bench }, other)
}

/// Waits for another thread to clean the mode up.
fn awaited(other: &Fake) -> Vec<Call> {
    let deadline = SystemClock.now() + Duration::from_secs(60);
    loop {
        let calls: Vec<Call> = other.take().into_iter().map(|(_, call)| call).collect();
        if !calls.is_empty() {
            return calls;
        }
        assert!(SystemClock.now() < deadline, "nobody asks");
        std::thread::sleep(ms(1));
    }
}

#[test]
fn life_9_another_mode_s_state_goes_with_the_first_success_and_not_before() {
    let (mut bench, other) = instead_of_another(Bench::new());
    bench.sync.step().unwrap();
    bench.wait(ms(60_000));
    assert_eq!(bench.v4.take(), [], "nothing is listed yet");
    bench.v4.answer(&[Answer::Fail]);
    bench.change("a", 1);
    assert_eq!(bench.v4.take(), [(ms(60_000), Call::Resync(1))]);
    assert_eq!(other.take(), [], "nothing is in force yet");
    bench.wait(ms(5_000));
    assert_eq!(awaited(&other), [Call::Retire]);
    bench.change("b", 1);
    let calls: Vec<Call> = bench.v4.take().into_iter().map(|(_, call)| call).collect();
    assert_eq!(calls, [Call::Resync(1), Call::Sync(1)]);
}

#[test]
fn life_9_removing_another_mode_s_state_holds_up_no_sync() {
    let mut bench = Bench::new();
    let (hangs, goes_on) = std::sync::mpsc::channel::<()>();
    let (hangs, goes_on) = (hangs, Mutex::new(goes_on));
    let previous = PreviousMode::new("hangs", move || {
        goes_on.lock().unwrap().recv().unwrap_err();
        Err(DatapathError::Unusable {
            operation: "test",
            advice: "none",
            source: io::ErrorKind::NotFound.into(),
        })
    });
    let family_sync = family_sync(&bench.v4, bench.clock.now()).instead_of(vec![previous]);
    bench.sync = bench.sync.with_v4(family_sync);
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.change("b", 1);
    let calls: Vec<Call> = bench.v4.take().into_iter().map(|(_, call)| call).collect();
    assert_eq!(calls, [Call::Resync(1), Call::Sync(1)]);
    assert!(bench.health.healthz(&*bench.clock).ok);
    drop(hangs);
}

/// A Service of so many ports, all on one externalIP.
fn on_shared_address(name: &str, n_ports: u16, round: u16) -> ServiceInput {
    let mut input = input(name, L4Proto::Tcp, 1);
    let service = input.service.take().unwrap();
    let port = |i| ServicePortSpec {
        name: format!("p{round}-{i}").into(),
        port: Port::new(1000 + i).unwrap(),
        ..service.ports[0].clone()
    };
    input.service = Some(Arc::new(Service {
        ports: (0..n_ports).map(port).collect(),
        external_ips: Box::new([IpAddr::from([203, 0, 113, 250])]),
        ..Service::clone(&service)
    }));
    input
}

#[test]
fn svc_14_diagnostics_of_lost_frontends_stay_bounded_and_go_with_the_services() {
    let mut bench = Bench::new();
    let step = |bench: &mut Bench, name: &str, input| {
        bench.cluster.put_input(name, input);
        bench.clock.advance(PERIODS.min_sync);
        bench.sync.requested = Some(bench.clock.now());
        bench.sync.step().unwrap();
        bench.sync.diagnostics.current().len()
    };
    step(&mut bench, "a", on_shared_address("a", 90, 0));
    for round in 0..20 {
        let n = step(&mut bench, "b", on_shared_address("b", 90, round));
        assert!((1..=20).contains(&n), "{n} in round {round}");
    }
    // A Service whose own words are without fault wins as soon as the other goes.
    assert_eq!(step(&mut bench, "a", ServiceInput::default()), 0);
    assert!(step(&mut bench, "a", on_shared_address("a", 90, 0)) > 0);
    assert_eq!(step(&mut bench, "b", ServiceInput::default()), 0);
    assert_eq!(step(&mut bench, "a", ServiceInput::default()), 0);
}

#[test]
fn svc_14_after_a_bug_in_compile_nothing_is_told_twice() {
    let mut bench = Bench::new();
    bench.cluster.put_input("a", on_shared_address("a", 3, 0));
    bench.cluster.put_input("b", on_shared_address("b", 3, 0));
    bench.sync.step().unwrap();
    assert_eq!(bench.sync.diagnostics.current().len(), 3);
    // As after a panic: the compiler must be replaced, and a Service went meanwhile.
    bench.sync.is_broken = true;
    bench.cluster.0.lock().unwrap().all.clear();
    bench.clock.advance(PERIODS.min_sync);
    bench.sync.requested = Some(bench.clock.now());
    bench.sync.step().unwrap();
    assert_eq!(bench.sync.diagnostics.current(), []);
}

#[test]
fn sync_7_sync_9_repairs_go_on_while_compile_panics_each_time() {
    let mut bench = Bench::new();
    bench.change("a", 1);
    bench.wait(ms(5_000));
    bench.v4.take();
    bench.sync.compile = |_, _, _| panic!("a bug, for the test");
    bench.change("b", 1);
    assert_eq!(bench.v4.take(), []);
    // More than one attempt to compile fails meanwhile.
    bench.v4.log.lock().unwrap().foreign = true;
    bench.wait(ms(100_000));
    assert_eq!(bench.v4.take(), [(ms(6_000), Call::Resync(1))]);
    assert!(!bench.health.healthz(&*bench.clock).ok, "HZ-3");
    bench.sync.compile = Compiler::apply;
    bench.wait(ms(30_000));
    let calls: Vec<Call> = bench.v4.take().into_iter().map(|(_, call)| call).collect();
    assert_eq!(calls, [Call::Resync(2)], "what failed to compile");
    assert!(bench.health.healthz(&*bench.clock).ok);
    bench.change("c", 1);
    assert_eq!(bench.v4.take().len(), 1);
}
