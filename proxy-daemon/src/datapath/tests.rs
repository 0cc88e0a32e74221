//! Does every datapath keep what the trait promises?
//!
//! What packets meet is tested by the harness of the `tests` crate.

use super::fixtures::{
    NOTHING, Numbers, changes, in_netns, one_of_each, service_port, some_networks, some_state,
    state,
};
use super::iptables::{Flavour, Iptables};
use super::nftables::Nftables;
use super::{Datapath, DatapathError};
use std::sync::Arc;

use crate::forwarding::{Exposure, ForwardingState};
use crate::net::Family;

type Open<F> = fn() -> Result<Box<dyn Datapath<F>>, DatapathError>;

fn nftables<F: Family>() -> Result<Box<dyn Datapath<F>>, DatapathError> {
    Ok(Box::new(Nftables::open()?))
}

fn iptables_nft<F: Family>() -> Result<Box<dyn Datapath<F>>, DatapathError> {
    Ok(Box::new(Iptables::open(Flavour::Nft)?))
}

fn iptables_legacy<F: Family>() -> Result<Box<dyn Datapath<F>>, DatapathError> {
    Ok(Box::new(Iptables::open(Flavour::Legacy)?))
}

/// Runs a test for every datapath and family, each in a network namespace of its own.
macro_rules! for_each {
    ($($test:ident),* $(,)?) => {
        mod each {
            $(mod $test {
                use crate::net::{V4, V6};
                for_each!(@ $test nftables iptables_nft iptables_legacy);
            })*
        }
    };
    (@ $test:ident $($datapath:ident)*) => {
        $(mod $datapath {
            use super::{V4, V6};
            use crate::datapath::tests;

            #[test]
            fn v4() {
                tests::in_netns(|| tests::$test::<V4>(tests::$datapath));
            }

            #[test]
            fn v6() {
                tests::in_netns(|| tests::$test::<V6>(tests::$datapath));
            }
        })*
    };
}

for_each!(
    applies_and_reads_back,
    sync_5_churn_leaves_what_a_fresh_start_writes,
    rej_7_any_networks_follow_any_others,
    cleanup_leaves_nothing_and_needs_nothing,
);

fn applies_and_reads_back<F: Family>(open: Open<F>) {
    let mut datapath = open().unwrap();
    let desired = one_of_each::<F>();
    let report = datapath.resync(&desired).unwrap();
    assert!(report.n_added > 60, "{report:?}");
    assert!(!datapath.changed_by_others().unwrap());
    assert_eq!(datapath.resync(&desired).unwrap(), NOTHING);
    let mut restarted = open().unwrap();
    assert_eq!(restarted.resync(&desired).unwrap(), NOTHING);
}

/// Whatever the way, the kernel holds what a fresh start would have written.
fn sync_5_churn_leaves_what_a_fresh_start_writes<F: Family>(open: Open<F>) {
    let mut numbers = Numbers(7);
    let mut datapath = open().unwrap();
    let mut state = some_state::<F>(&mut numbers);
    datapath.resync(&state).unwrap();
    for round in 0..60 {
        let next = some_state::<F>(&mut numbers);
        datapath.sync(&next, &changes(&state, &next)).unwrap();
        state = next;
        if round % 10 == 0 {
            let mut fresh = open().unwrap();
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
fn rej_7_any_networks_follow_any_others<F: Family>(open: Open<F>) {
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
    let mut datapath = open().unwrap();
    let mut before = some();
    datapath.resync(&before).unwrap();
    for round in 0..30 {
        let after = some();
        datapath.sync(&after, &changes(&before, &after)).unwrap();
        if round % 3 == 0 {
            let mut fresh = open().unwrap();
            assert_eq!(fresh.resync(&after).unwrap(), NOTHING, "{after:?}");
        }
        before = after;
    }
}

/// What a start on a clean kernel writes, it writes again after a cleanup.
fn cleanup_leaves_nothing_and_needs_nothing<F: Family>(open: Open<F>) {
    let mut datapath = open().unwrap();
    datapath.cleanup().unwrap();
    let desired = one_of_each::<F>();
    let first = datapath.resync(&desired).unwrap();
    datapath.cleanup().unwrap();
    datapath.cleanup().unwrap();
    assert_eq!(datapath.resync(&desired).unwrap(), first);
    let empty = ForwardingState {
        service_ports: std::collections::BTreeMap::new(),
        ..desired
    };
    datapath.resync(&empty).unwrap();
    let left = datapath.resync(&empty).unwrap();
    assert_eq!(left, NOTHING);
    datapath.cleanup().unwrap();
}
