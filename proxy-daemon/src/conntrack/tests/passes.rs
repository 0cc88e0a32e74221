//! When is the table listed, and what if that fails?

use std::sync::Mutex;

use super::*;

/// The flows, how often they were listed, and whether they can be deleted.
#[derive(Default)]
struct Contents {
    flows: Vec<Flow<V4>>,
    n_listings: usize,
    is_broken: bool,
}

#[derive(Default, Clone)]
struct FakeTable(Arc<Mutex<Contents>>);

impl FakeTable {
    fn with(flows: &[Flow<V4>]) -> Self {
        let table = Self::default();
        table.0.lock().unwrap().flows = flows.to_vec();
        table
    }

    fn flows(&self) -> Vec<Flow<V4>> {
        self.0.lock().unwrap().flows.clone()
    }

    fn n_listings(&self) -> usize {
        self.0.lock().unwrap().n_listings
    }
}

impl FlowTable<V4> for FakeTable {
    fn list(
        &mut self,
        most: usize,
        wanted: &dyn Fn(&Flow<V4>) -> bool,
    ) -> Result<Vec<Flow<V4>>, ConntrackError> {
        let mut table = self.0.lock().unwrap();
        table.n_listings += 1;
        let flows = table.flows.iter().filter(|flow| wanted(flow));
        Ok(flows.take(most).cloned().collect())
    }

    fn delete(&mut self, flow: &Flow<V4>) -> Result<(), ConntrackError> {
        let mut table = self.0.lock().unwrap();
        if table.is_broken {
            return Err(ConntrackError::Delete {
                flow: flow.to_string(),
                source: std::io::ErrorKind::PermissionDenied.into(),
            });
        }
        table.flows.retain(|other| other != flow);
        Ok(())
    }
}

/// A clock that the test moves.
struct Hand(Mutex<Instant>);

impl Hand {
    fn new() -> Self {
        Self(Mutex::new(SystemClock.now()))
    }

    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for Hand {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn wall(&self) -> std::time::SystemTime {
        SystemClock.wall()
    }
}

fn note(flows: &mut StaleFlows<V4>, changes: &Changes<V4>, state: &ForwardingState<V4>) {
    let mut news = News::default();
    news.note(changes, state);
    flows.take_in(news);
}

fn resync(flows: &mut StaleFlows<V4>) {
    let mut news = News::default();
    news.note_resync(&state(&[]));
    flows.take_in(news);
}

/// A pass after a sync to this state.
fn clean(
    flows: &mut StaleFlows<V4>,
    state: &ForwardingState<V4>,
    clock: &dyn Clock,
) -> Result<Option<Pass>, ConntrackError> {
    flows.known = Some(state.clone());
    flows.clean(&News::default, clock)
}

/// Whether a pass is due after this change alone.
fn is_due(old: Option<&Arc<ServicePort<V4>>>, new: Option<&Arc<ServicePort<V4>>>) -> bool {
    let mut flows = StaleFlows::new(Box::new(FakeTable::default()));
    note(&mut flows, &changes(old, new), &state(&[]));
    let now = SystemClock.now();
    flows.deadline(now) == Some(now)
}

#[test]
fn ct_4_ct_6_only_changes_of_udp_list_the_table() {
    let tcp = service_port(L4Proto::Tcp, &[P1]);
    assert!(!is_due(None, Some(&tcp)));
    assert!(!is_due(Some(&tcp), None));
    let udp = service_port(L4Proto::Udp, &[P1]);
    let mut affine = ServicePort::clone(&udp);
    affine.affinity = Affinity::Seconds(10);
    assert!(!is_due(Some(&udp), Some(&Arc::new(affine))));
    let grown = service_port(L4Proto::Udp, &[P1, P2]);
    assert!(!is_due(Some(&udp), Some(&grown)), "nothing can be stale");
    let none = service_port(L4Proto::Udp, &[]);
    assert!(is_due(Some(&none), Some(&udp)), "untranslated flows can");
    assert!(is_due(Some(&grown), Some(&udp)));
    assert!(is_due(Some(&udp), Some(&none)), "the last endpoint");
    let mut fewer = ServicePort::clone(&udp);
    let frontends = udp.frontends.iter().take(1);
    fewer.frontends = frontends.map(|(key, f)| (*key, f.clone())).collect();
    let fewer = Arc::new(fewer);
    assert!(is_due(Some(&udp), Some(&fewer)), "a withdrawn frontend");
    assert!(is_due(Some(&fewer), Some(&udp)), "a new frontend");
    assert!(is_due(None, Some(&udp)));
    assert!(is_due(Some(&udp), None), "a deleted Service");
}

#[test]
fn ct_4_a_resync_and_a_change_of_globals_list_the_table_though_no_service_changed() {
    let now = SystemClock.now();
    let mut flows = StaleFlows::<V4>::new(Box::new(FakeTable::default()));
    assert_eq!(flows.deadline(now), None);
    resync(&mut flows);
    assert_eq!(flows.deadline(now), Some(now));
    let mut flows = StaleFlows::new(Box::new(FakeTable::default()));
    let after = state(&[]);
    let mut before = after.globals.clone();
    before.node_port_addresses.clear();
    let changes = Changes {
        globals: Some(before),
        ..Changes::default()
    };
    note(&mut flows, &changes, &after);
    assert_eq!(flows.deadline(now), Some(now));
}

#[test]
fn ct_1_a_pass_deletes_what_is_stale_and_nothing_else() {
    let keep = flow((VIP, 53), (P1, 5353));
    let drop = flow((VIP, 53), (P2, 5353));
    let table = FakeTable::with(&[keep.clone(), drop]);
    let mut flows = StaleFlows::new(Box::new(table.clone()));
    resync(&mut flows);
    let state = state(&[service_port(L4Proto::Udp, &[P1])]);
    let pass = clean(&mut flows, &state, &SystemClock).unwrap().unwrap();
    assert_eq!((pass.n_deleted, pass.n_failed), (1, 0));
    assert_eq!(table.flows(), [keep]);
}

#[test]
fn ct_1_a_flow_to_a_backend_that_comes_while_a_pass_runs_is_kept() {
    let (keep, drop) = (flow((VIP, 53), (P2, 5353)), flow((VIP, 53), (NODE, 5353)));
    let table = FakeTable::with(&[keep.clone(), drop]);
    let mut flows = StaleFlows::new(Box::new(table.clone()));
    resync(&mut flows);
    let before = service_port(L4Proto::Udp, &[P1]);
    let after = service_port(L4Proto::Udp, &[P1, P2]);
    let state = state(&[Arc::clone(&before)]);
    flows.known = Some(state.clone());
    let newest = || {
        let mut news = News::default();
        news.note(&changes(Some(&before), Some(&after)), &state);
        news
    };
    let pass = flows.clean(&newest, &SystemClock).unwrap().unwrap();
    assert_eq!((pass.n_deleted, table.flows()), (1, vec![keep.clone()]));
    // The next pass knows of it.
    flows.take_in(newest());
    flows.is_owed = true;
    flows.clean(&News::default, &SystemClock).unwrap().unwrap();
    assert_eq!(table.flows(), [keep]);
}

#[test]
fn ct_4_news_of_several_syncs_add_up() {
    let (one, other) = (
        service_port(L4Proto::Udp, &[P1]),
        service_port(L4Proto::Udp, &[P2]),
    );
    let after = state(&[Arc::clone(&other)]);
    let mut news = News::default();
    news.note_resync(&state(&[Arc::clone(&one)]));
    news.note(&changes(Some(&one), None), &state(&[]));
    news.note(&changes(None, Some(&other)), &after);
    let mut flows = StaleFlows::<V4>::new(Box::new(FakeTable::default()));
    flows.take_in(news);
    let known = flows.known.as_ref().unwrap();
    assert_eq!(known.service_ports.values().collect::<Vec<_>>(), [&other]);
    let target = (FrontendAddress::Vip(VIP), port(53));
    assert!(flows.removed.has(&target), "it was removed in between");
}

#[test]
fn ct_1_a_whole_state_shows_what_was_removed_since_the_one_before() {
    let gone = service_port(L4Proto::Udp, &[P1]);
    let mut flows = StaleFlows::<V4>::new(Box::new(FakeTable::default()));
    let target = (FrontendAddress::Vip(VIP), port(53));
    for (ports, has_removed) in [(vec![gone], false), (vec![], true)] {
        let mut news = News::default();
        news.note_resync(&state(&ports));
        flows.take_in(news);
        assert_eq!(flows.removed.has(&target), has_removed);
    }
}

#[test]
fn ct_4_news_of_syncs_that_all_fail_are_bounded() {
    let gone = service_port(L4Proto::Udp, &[P1]);
    let mut news = News::default();
    for n in 0..=news::MAX_GONE {
        let mut gone = ServicePort::clone(&gone);
        gone.id = ServicePortId::new(&"ns/dns", &n.to_string(), L4Proto::Udp);
        let gone = Arc::new(gone);
        let old = Some(Arc::clone(&gone));
        let changes = Changes {
            service_ports: [(gone.id.clone(), Change { old, new: None })].into(),
            ..Changes::default()
        };
        assert_eq!(news.n_kept(), n);
        news.note(&changes, &state(&[]));
    }
    assert_eq!(news.n_kept(), 0);
}

#[test]
fn ct_13_what_was_confirmed_late_is_found_by_a_second_pass() {
    let clock = Hand::new();
    let table = FakeTable::default();
    let mut flows = StaleFlows::new(Box::new(table.clone()));
    let gone = service_port(L4Proto::Udp, &[P1]);
    let state = state(&[]);
    note(&mut flows, &changes(Some(&gone), None), &state);
    clean(&mut flows, &state, &clock).unwrap().unwrap();
    let late = flow((VIP, 53), (P1, 5353));
    table.0.lock().unwrap().flows = vec![late.clone()];
    assert!(
        clean(&mut flows, &state, &clock).unwrap().is_none(),
        "not yet"
    );
    assert_eq!(flows.deadline(clock.now()), Some(clock.now() + AGAIN));
    clock.advance(AGAIN);
    assert_eq!(
        clean(&mut flows, &state, &clock)
            .unwrap()
            .unwrap()
            .n_deleted,
        1
    );
    assert_eq!(flows.deadline(clock.now()), None);
    assert_eq!(table.n_listings(), 2);
    assert!(flows.removed.is_empty(&state.globals));
}

#[test]
fn ct_4_a_pass_that_failed_is_owed() {
    let clock = Hand::new();
    let table = FakeTable::with(&[flow((VIP, 53), (P1, 5353))]);
    table.0.lock().unwrap().is_broken = true;
    let mut flows = StaleFlows::new(Box::new(table.clone()));
    let gone = service_port(L4Proto::Udp, &[P1]);
    let state = state(&[]);
    note(&mut flows, &changes(Some(&gone), None), &state);
    for _ in 0..3 {
        let pass = clean(&mut flows, &state, &clock).unwrap().unwrap();
        assert_eq!((pass.n_deleted, pass.n_failed), (0, 1));
        assert_eq!(flows.deadline(clock.now()), Some(clock.now() + RETRY));
        clock.advance(RETRY);
    }
    table.0.lock().unwrap().is_broken = false;
    assert_eq!(
        clean(&mut flows, &state, &clock)
            .unwrap()
            .unwrap()
            .n_deleted,
        1
    );
    assert!(!flows.is_owed);
}

#[test]
fn ct_1_more_flows_than_a_pass_deletes_are_left_to_the_next_one() {
    let flows: Vec<_> = (0..u32::try_from(MAX_DELETED).unwrap() + 5)
        .map(|n| Flow {
            handle: n.to_be_bytes().into(),
            ..flow((VIP, 53), (P2, 5353))
        })
        .collect();
    let clock = Hand::new();
    let table = FakeTable::with(&flows);
    let mut flows = StaleFlows::new(Box::new(table.clone()));
    resync(&mut flows);
    let state = state(&[service_port(L4Proto::Udp, &[P1])]);
    assert_eq!(
        clean(&mut flows, &state, &clock)
            .unwrap()
            .unwrap()
            .n_deleted,
        MAX_DELETED
    );
    assert_eq!(flows.deadline(clock.now()), Some(clock.now()));
    assert_eq!(
        clean(&mut flows, &state, &clock)
            .unwrap()
            .unwrap()
            .n_deleted,
        5
    );
    assert!(table.flows().is_empty());
}

#[test]
fn ct_1_passes_wait_only_when_many_follow_each_other() {
    let mut flows = StaleFlows::<V4>::new(Box::new(FakeTable::default()));
    resync(&mut flows);
    let mut now = SystemClock.now();
    let cost = Duration::from_millis(10);
    let mut n_passes = 0;
    let end = now + Duration::from_secs(60);
    while now < end {
        let due = flows.deadline(now).unwrap();
        assert!(due <= now + MAX_PAUSE);
        now = now.max(due);
        flows.spend(now, now + cost);
        n_passes += 1;
        now += cost;
    }
    assert!((600..700).contains(&n_passes), "{n_passes}");
    flows.not_before = None;
    flows.spend(end + Duration::from_secs(60), end + Duration::from_secs(61));
    assert_eq!(flows.deadline(end), Some(end + Duration::from_secs(64)));
}
