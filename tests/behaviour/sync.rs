//! SYNC, DS-1: rate, scope and failure of syncs.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_tests::address::{NODE, P1, P2, R, R2, VIP, VIP2, VIP3, X};
use proxy_tests::case;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::wait::within;

use crate::common::{Obstacle, PORT, await_rules, foreign, make_foreign, rules, web, works};

const SOON: &str = "--iptables-sync-period=1s";

pub(crate) fn cases() -> Vec<Case> {
    let second = ["--iptables-min-sync-period=1s"];
    vec![
        case!(sync_1_bursts_are_merged)
            .kernel()
            .tcp()
            .v4()
            .fresh()
            .flags(&second),
        case!(sync_2_without_a_minimum_every_change_is_synced)
            .kernel()
            .tcp()
            .v4(),
        case!(sync_3_idle_means_no_syncs)
            .kernel()
            .tcp()
            .v4()
            .fresh()
            .flags(&[SOON]),
        case!(sync_5_partial_syncs_end_where_a_full_one_would)
            .slow()
            .kernel()
            .tcp()
            .fresh(),
        case!(sync_6_vip_3_a_large_rewrite_refuses_nobody)
            .kernel()
            .tcp(),
        case!(sync_9_a_flush_is_noticed_and_repaired)
            .tcp()
            .fresh()
            .flags(&[SOON]),
        case!(sync_9_every_damage_is_noticed_and_repaired)
            .slow()
            .tcp()
            .fresh()
            .flags(&[SOON]),
        case!(sync_10_foreign_objects_are_never_touched)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(sync_11_nothing_stale_is_left).kernel().tcp().fresh(),
        case!(ds_1_sync_7_a_failing_family_does_not_hold_up_the_other)
            .kernel()
            .tcp()
            .fresh()
            .flags(&[SOON]),
        case!(sync_7_sync_8_a_failed_change_is_made_up_for)
            .kernel()
            .tcp()
            .fresh()
            .flags(&[SOON]),
    ]
}

fn sync_1_bursts_are_merged(t: &mut Test) {
    web(t);
    t.apply();
    let before = t.n_syncs();
    let started = Instant::now();
    for n in 0..100 {
        t.service("other")
            .cluster_ip(VIP2)
            .no_ports()
            .port(1000 + n);
        let world = t.clone();
        t.bed_mut().daemon.publish(&world).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    t.bed_mut().settle().unwrap();
    // One at once and one per second after it, in each family.
    let seconds = started.elapsed().as_secs() + 1;
    let n = t.n_syncs() - before;
    assert!(n <= 2 * (seconds + 1), "{n} syncs in {seconds} s");
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn sync_2_without_a_minimum_every_change_is_synced(t: &mut Test) {
    web(t);
    t.apply();
    let before = t.n_syncs();
    for n in 0..10 {
        t.service("other")
            .cluster_ip(VIP2)
            .no_ports()
            .port(1000 + n);
        t.apply();
    }
    assert!(t.n_syncs() - before >= 10);
}

fn sync_3_idle_means_no_syncs(t: &mut Test) {
    web(t);
    t.apply();
    let before = t.n_syncs();
    // Several of the daemon's periods. A sync that must not happen has no end to wait for; the change after it shows that one
    // would have been counted.
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(t.n_syncs(), before);
    t.observe(works());
    t.endpoints("web").clear().ready(R);
    t.apply();
    assert!(t.n_syncs() > before);
}

fn sync_5_partial_syncs_end_where_a_full_one_would(t: &mut Test) {
    web(t);
    t.apply();
    let hosts = [P1, P2, R, R2];
    for n in 0..40_u16 {
        let name = format!("s{}", n % 5);
        let service = t.service(&name);
        service
            .cluster_ip(if n % 2 == 0 { VIP2 } else { VIP3 })
            .no_ports();
        service.port(100 + n % 5).node_port(31_000 + n % 7);
        if n % 3 == 0 {
            service.external_local().affinity(100);
        }
        let slice = t.endpoints(&name).clear();
        for host in &hosts[..usize::from(n % 4)] {
            slice.ready(*host);
        }
        if n % 11 == 10 {
            t.delete_service(&name);
        }
        t.apply();
    }
    let churned = rules(t);
    t.bed_mut().kill_daemon().unwrap();
    t.datapath().remove(t.node_ns());
    assert!(rules(t).is_empty(), "{:#?}", rules(t));
    t.apply();
    let fresh = rules(t);
    let (left, missing): (Vec<_>, Vec<_>) = (
        churned.difference(&fresh).collect(),
        fresh.difference(&churned).collect(),
    );
    assert!(
        left.is_empty() && missing.is_empty(),
        "left: {left:#?}\nmissing: {missing:#?}"
    );
    assert!(fresh.len() > 20);
}

fn sync_6_vip_3_a_large_rewrite_refuses_nobody(t: &mut Test) {
    web(t);
    t.apply();
    let mut stream = t.stream(&flow(P1, VIP, 80));
    let hammers = [flow(P1, VIP, 80), flow(X, NODE, PORT)].map(|flow| t.hammer(&flow));
    for round in 0..3 {
        for n in 0..100_u16 {
            let name = format!("many-{n}");
            t.service(&name).cluster_ip(VIP2).no_ports().port(1000 + n);
            t.endpoints(&name)
                .clear()
                .ready(if round % 2 == 0 { P1 } else { R });
        }
        t.apply();
        stream.echo().unwrap();
    }
    for hammer in hammers {
        hammer.was_always_answered();
    }
    t.observe([
        flow(P2, VIP2, 1000).reaches([kept(P1)]),
        flow(P2, VIP2, 1099).reaches([kept(P1)]),
    ]);
}

fn sync_9_a_flush_is_noticed_and_repaired(t: &mut Test) {
    web(t);
    t.check(works());
    let before = rules(t);
    t.flush();
    t.eventually(Duration::from_secs(10), works());
    await_rules(t, &before, "a flush");
}

fn sync_9_every_damage_is_noticed_and_repaired(t: &mut Test) {
    web(t);
    t.service("empty").cluster_ip(VIP2).port(80);
    t.check(works());
    let before = rules(t);
    for damage in t.datapath().damages(t.node_ns()) {
        // It must not repair what was not looked at yet.
        t.bed().daemon.pause(true);
        damage.inflict(t.node_ns());
        assert_ne!(rules(t), before, "{} did nothing", damage.what);
        t.bed().daemon.pause(false);
        await_rules(t, &before, &damage.what);
        t.observe(works());
        t.observe([flow(P1, VIP2, 80).is_rejected()]);
    }
}

fn sync_10_foreign_objects_are_never_touched(t: &mut Test) {
    make_foreign(t);
    let before = foreign(t);
    assert!(
        before.contains("KUBE-FIREWALL") && before.contains("192.0.2.9"),
        "{before}"
    );
    web(t);
    t.check(works());
    t.endpoints("web").clear();
    t.apply();
    t.endpoints("web").ready(P2);
    t.restart(Signal::SIGKILL, &[]);
    t.observe(works());
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    assert_eq!(foreign(t), before);
}

fn sync_11_nothing_stale_is_left(t: &mut Test) {
    t.service("stays").cluster_ip(VIP3).port(80);
    t.endpoints("stays").ready(R);
    t.apply();
    let before = rules(t);
    for round in 0..3_u16 {
        web(t);
        t.service("web").affinity(100).external_local();
        for n in 0..20 {
            t.service(&format!("s{n}"))
                .cluster_ip(VIP2)
                .port(100 + n + round)
                .node_port(31_000 + n);
            t.endpoints(&format!("s{n}")).ready(P2).ready(R);
        }
        t.apply();
        assert!(rules(t).len() > before.len());
        for name in (0..20).map(|n| format!("s{n}")).chain(["web".to_owned()]) {
            t.delete_service(&name);
            t.delete_endpoints(&name);
        }
        t.apply();
    }
    // Chains of a kind of frontend may stay until the next clean-up; elements may not.
    let left = || rules(t).difference(&before).cloned().collect::<Vec<_>>();
    let none_left = within(Duration::from_secs(5), || left().is_empty());
    assert!(none_left, "{:#?}", left());
}

fn ds_1_sync_7_a_failing_family_does_not_hold_up_the_other(t: &mut Test) {
    let (family, other) = (t.family, t.family.other());
    let mut obstacle = Obstacle::prepare(t);
    let service = |t: &mut Test, name: &str, vip, host| {
        t.service(name)
            .families(&[family, other])
            .cluster_ip(vip)
            .port(80);
        t.endpoints(name).ready(host);
        t.slice(name, &format!("{name}-other"))
            .family(other)
            .ready(host);
    };
    service(t, "web", VIP, P2);
    t.apply();
    obstacle.put_up(t, other);
    service(t, "new", VIP2, R);
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    let reaches = |vip, host, family| flow(P1, vip, 80).family(family).reaches([kept(host)]);
    t.eventually(Duration::from_secs(5), [reaches(VIP2, R, family)]);
    t.observe([reaches(VIP, P2, family)]);
    let failures = |t: &Test| t.report()["families"][other.api_name()]["n_failures"].as_u64();
    let has_failed = within(Duration::from_secs(5), || failures(t) != Some(0));
    assert!(has_failed, "{}", t.report());
    obstacle.take_down();
    let both = [reaches(VIP, P2, other), reaches(VIP2, R, other)];
    t.eventually(Duration::from_secs(10), both);
    t.bed_mut().settle().unwrap();
}

fn sync_7_sync_8_a_failed_change_is_made_up_for(t: &mut Test) {
    let mut obstacle = Obstacle::prepare(t);
    web(t);
    t.service("old").cluster_ip(VIP2).port(80);
    t.endpoints("old").ready(P2);
    t.check(works());
    obstacle.put_up(t, t.family);
    let name = t.family.api_name();
    let failures = |t: &Test| t.report()["families"][name]["n_failures"].as_u64();
    for (change, host) in [R, R2].into_iter().enumerate() {
        t.endpoints("web").clear().ready(host);
        t.service(&format!("s{change}"))
            .cluster_ip(VIP3)
            .port(80 + u16::try_from(change).unwrap());
        t.endpoints(&format!("s{change}")).ready(host);
        let world = t.clone();
        let before = failures(t);
        t.bed_mut().daemon.publish(&world).unwrap();
        let has_failed = within(Duration::from_secs(10), || failures(t) != before);
        assert!(has_failed, "{}", t.report());
    }
    t.delete_service("old");
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    obstacle.take_down();
    t.bed_mut().settle().unwrap();
    t.observe([
        flow(P1, VIP, 80).reaches([kept(R2)]),
        flow(X, NODE, PORT).reaches([masqueraded(R2)]),
        flow(P1, VIP3, 80).reaches([kept(R)]),
        flow(P1, VIP3, 81).reaches([kept(R2)]),
        flow(P1, VIP2, 80).is_dropped(),
    ]);
}
