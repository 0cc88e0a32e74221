//! Does every datapath keep what the trait promises?
//!
//! What packets meet is tested by the harness of the `tests` crate.

use super::fixtures::{
    NOTHING, Numbers, in_netns, one_of_each, service_port, some_networks, some_state, state,
    sync_or_resync,
};
use super::{DatapathChoice, DatapathKind, Opener, PlaneFamily, Tables};
use std::sync::Arc;

use crate::forwarding::{Exposure, ForwardingState};

/// One run of the daemon after another, in one network namespace.
#[derive(Clone, Copy)]
pub(super) struct Runs(DatapathKind);

impl Runs {
    fn opener<F: PlaneFamily>(self) -> Arc<Opener> {
        Opener::new(self.0, [F::FAMILY])
    }

    fn start<F: PlaneFamily>(self) -> Box<dyn Tables<F>> {
        self.opener::<F>().tables().unwrap()
    }

    fn cleanup<F: PlaneFamily>(self) {
        self.opener::<F>().cleanup(F::FAMILY).unwrap();
    }
}

#[test]
fn every_datapath_has_a_name_and_is_found_by_its_mode_and_backend() {
    for kind in DatapathKind::ALL {
        assert_eq!(DatapathKind::named(kind.name()), Some(*kind));
        assert_eq!(kind.others().count(), DatapathKind::ALL.len() - 1);
        let choice = DatapathChoice::of(kind.mode(), kind.backend()).unwrap();
        assert_eq!(choice, DatapathChoice::Fixed(*kind));
        let by_mode = DatapathChoice::of(kind.mode(), None).unwrap();
        let is_only = kind.backend().is_none();
        assert_eq!(by_mode == DatapathChoice::Fixed(*kind), is_only);
        assert_eq!(by_mode.mode(), kind.mode());
    }
    let modes = DatapathKind::modes();
    assert!(modes.starts_with(&["nftables", "iptables"]), "{modes:?}");
    assert_eq!(DatapathChoice::of("nftables", Some("nft")), None);
    assert_eq!(DatapathChoice::of("no-such", None), None);
}

pub(super) fn run(name: &str, test: fn(Runs)) {
    let kind = DatapathKind::named(name).unwrap();
    in_netns(move || test(Runs(kind)));
}

/// Runs what every datapath must pass for one of this name and both families, each in a network namespace of its own.
macro_rules! promises {
    ($name:literal) => {
        crate::datapath::tests::promises!(@ $name applies_and_reads_back);
        crate::datapath::tests::promises!(@ $name sync_5_churn_leaves_what_a_fresh_start_writes);
        crate::datapath::tests::promises!(@ $name rej_7_any_networks_follow_any_others);
        crate::datapath::tests::promises!(@ $name cleanup_leaves_nothing_and_needs_nothing);
    };
    (@ $name:literal $test:ident) => {
        mod $test {
            use crate::datapath::tests::{$test, run};
            use crate::net::{V4, V6};

            #[test]
            fn v4() {
                run($name, $test::<V4>);
            }

            #[test]
            fn v6() {
                run($name, $test::<V6>);
            }
        }
    };
}
pub(super) use promises;

pub(super) fn applies_and_reads_back<F: PlaneFamily>(runs: Runs) {
    let mut datapath = runs.start::<F>();
    let desired = one_of_each::<F>();
    let report = datapath.resync(&desired).unwrap();
    assert!(report.n_added > 60, "{report:?}");
    assert!(!datapath.changed_by_others().unwrap());
    assert_eq!(datapath.resync(&desired).unwrap(), NOTHING);
    let mut restarted = runs.start::<F>();
    assert_eq!(restarted.resync(&desired).unwrap(), NOTHING);
}

/// Whatever the way, the kernel holds what a fresh start would have written.
pub(super) fn sync_5_churn_leaves_what_a_fresh_start_writes<F: PlaneFamily>(runs: Runs) {
    let mut numbers = Numbers(7);
    let mut datapath = runs.start::<F>();
    let mut state = some_state::<F>(&mut numbers);
    datapath.resync(&state).unwrap();
    for round in 0..60 {
        let next = some_state::<F>(&mut numbers);
        sync_or_resync(&mut *datapath, &state, &next);
        state = next;
        if round % 10 == 0 {
            let mut fresh = runs.start::<F>();
            assert_eq!(fresh.resync(&state).unwrap(), NOTHING, "round {round}");
            assert!(!datapath.changed_by_others().unwrap());
        }
    }
    // From one state to any other, read back too.
    for _ in 0..10 {
        let next = some_state::<F>(&mut numbers);
        datapath.resync(&next).unwrap();
        assert_eq!(datapath.resync(&next).unwrap(), NOTHING);
    }
}

/// Networks that touch, nest or cover everything, of ServiceCIDRs and of source ranges.
pub(super) fn rej_7_any_networks_follow_any_others<F: PlaneFamily>(runs: Runs) {
    let mut numbers = Numbers(11);
    let mut some = || {
        let mut guarded = service_port::<F>(1, 2, 0b0011_0000);
        let frontends = guarded.frontends.iter().map(|(key, frontend)| {
            let mut frontend = frontend.clone();
            if let Exposure::LoadBalancer { source_ranges } = &mut frontend.exposure {
                *source_ranges = Some(Arc::new(some_networks::<F>(&mut numbers)));
            }
            (*key, frontend)
        });
        guarded.frontends = frontends.collect();
        let mut some = state([guarded]);
        some.globals.service_cidrs = some_networks::<F>(&mut numbers);
        some
    };
    let mut datapath = runs.start::<F>();
    let mut before = some();
    datapath.resync(&before).unwrap();
    for round in 0..30 {
        let after = some();
        sync_or_resync(&mut *datapath, &before, &after);
        if round % 3 == 0 {
            let mut fresh = runs.start::<F>();
            assert_eq!(fresh.resync(&after).unwrap(), NOTHING, "{after:?}");
        }
        before = after;
    }
}

/// What a start on a clean kernel writes, it writes again after a cleanup.
pub(super) fn cleanup_leaves_nothing_and_needs_nothing<F: PlaneFamily>(runs: Runs) {
    runs.cleanup::<F>();
    let desired = one_of_each::<F>();
    let first = runs.start::<F>().resync(&desired).unwrap();
    runs.cleanup::<F>();
    runs.cleanup::<F>();
    let mut datapath = runs.start::<F>();
    assert_eq!(datapath.resync(&desired).unwrap(), first);
    let empty = ForwardingState {
        service_ports: std::collections::BTreeMap::new(),
        ..desired
    };
    datapath.resync(&empty).unwrap();
    let left = datapath.resync(&empty).unwrap();
    assert_eq!(left, NOTHING);
    runs.cleanup::<F>();
}
