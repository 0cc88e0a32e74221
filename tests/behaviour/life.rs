//! LIFE, NODE: start, stop and cleanup; changes of the Node.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_tests::address::{
    Family, HOST, NODE, NODE_ALT, P1, P2, Protocol, R, R2, VIP, VIP2, VIP3, X,
};
use proxy_tests::case;
use proxy_tests::daemon::{Directory, binary};
use proxy_tests::datapath::{Datapath, Flavour};
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::wait::within;
use serde_json::{Value, json};

use crate::common::{PORT, await_rules, foreign, make_foreign, rules, run, run_as, web, works};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(life_2_existing_rules_forward_while_the_daemon_is_away)
            .tcp()
            .fresh(),
        case!(life_5_a_restart_is_not_noticed)
            .kernel()
            .protocols(&[Protocol::Tcp, Protocol::Udp])
            .fresh(),
        case!(life_5_a_restart_takes_in_what_changed_meanwhile)
            .kernel()
            .tcp()
            .fresh(),
        case!(life_6_signals_end_it_promptly_and_rules_stay)
            .tcp()
            .fresh(),
        case!(life_7_cleanup_removes_ours_and_nothing_else)
            .kernel()
            .tcp()
            .fresh(),
        case!(life_9_a_switch_of_modes_is_not_noticed)
            .slow()
            .kernel()
            .protocols(&[Protocol::Tcp, Protocol::Udp])
            .fresh(),
        case!(life_16_kubelet_says_which_iptables_is_used)
            .slow()
            .kernel()
            .tcp()
            .fresh(),
        case!(life_8_init_only_makes_no_rules)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_11_a_second_instance_refuses).tcp().v4().fresh(),
        case!(life_14_arguments_are_refused_and_version_is_printed)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(life_15_a_missing_capability_is_told)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(node_3_a_late_node_is_taken_in).tcp().fresh(),
        case!(node_5_changed_pod_networks_end_the_daemon)
            .tcp()
            .v4()
            .fresh()
            .flags(&["--detect-local-mode=NodeCIDR"]),
        case!(node_1_the_name_is_trimmed_and_lower_cased)
            .kernel()
            .tcp()
            .fresh(),
        case!(node_2_the_first_address_of_the_node_is_its_ip)
            .protocols(&[Protocol::Tcp, Protocol::Udp]),
        case!(node_4_a_new_node_ip_takes_the_node_ports).protocols(&[Protocol::Tcp, Protocol::Udp]),
        case!(node_4_np_4_a_node_that_says_nothing_keeps_its_node_ports)
            .tcp()
            .fresh(),
        case!(node_5_a_node_that_says_nothing_keeps_its_pod_networks)
            .tcp()
            .fresh()
            .flags(&["--detect-local-mode=NodeCIDR"]),
    ]
}

fn life_2_existing_rules_forward_while_the_daemon_is_away(t: &mut Test) {
    web(t);
    t.check(works());
    t.bed_mut().kill_daemon().unwrap();
    t.observe(works());
}

fn life_5_a_restart_is_not_noticed(t: &mut Test) {
    web(t);
    t.apply();
    let before = rules(t);
    let mut stream = (t.protocol == Protocol::Tcp).then(|| t.stream(&flow(P1, VIP, 80)));
    let hammers =
        [flow(P1, VIP, 80), flow(HOST, VIP, 80), flow(X, NODE, PORT)].map(|flow| t.hammer(&flow));
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT] {
        t.restart(signal, &[]);
        if let Some(stream) = &mut stream {
            stream.echo().unwrap();
        }
    }
    for hammer in hammers {
        hammer.was_always_answered();
    }
    assert_eq!(rules(t), before);
}

fn life_5_a_restart_takes_in_what_changed_meanwhile(t: &mut Test) {
    web(t);
    t.service("old").cluster_ip(VIP2).port(80);
    t.endpoints("old").ready(P2);
    t.apply();
    t.bed_mut().kill_daemon().unwrap();
    t.delete_service("old");
    t.service("new").cluster_ip(VIP3).port(80);
    t.endpoints("new").ready(R);
    t.endpoints("web").clear().ready(R2);
    t.check([
        flow(P1, VIP, 80).reaches([kept(R2)]),
        flow(P1, VIP2, 80).is_dropped(),
        flow(P1, VIP3, 80).reaches([kept(R)]),
    ]);
}

fn life_6_signals_end_it_promptly_and_rules_stay(t: &mut Test) {
    web(t);
    t.check(works());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let started = Instant::now();
        let status = t.bed_mut().daemon.signal(signal).unwrap();
        assert!(started.elapsed() < Duration::from_secs(5));
        assert!(status.success(), "{status}: {}", t.bed().daemon.log());
        t.observe(works());
        t.apply();
    }
}

fn life_7_cleanup_removes_ours_and_nothing_else(t: &mut Test) {
    let nothing_there = run(t, &["--cleanup"]);
    assert_eq!(nothing_there.0, Some(0), "{}", nothing_there.1);
    make_foreign(t);
    let before = foreign(t);
    web(t);
    t.check(works());
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    let (code, text) = run(t, &["--cleanup"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(rules(t).is_empty());
    assert_eq!(foreign(t), before);
    t.observe([
        flow(P1, VIP, 80).is_unroutable(),
        flow(X, NODE, PORT).finds_nobody(),
    ]);
}

fn life_9_a_switch_of_modes_is_not_noticed(t: &mut Test) {
    web(t);
    t.service("empty").cluster_ip(VIP2).port(80);
    t.apply();
    let own = t.datapath();
    let before = rules(t);
    let mut streams = Vec::new();
    if t.protocol == Protocol::Tcp {
        streams.extend([flow(P1, VIP, 80), flow(X, NODE, PORT)].map(|flow| t.stream(&flow)));
    }
    let hammers =
        [flow(P1, VIP, 80), flow(HOST, VIP, 80), flow(X, NODE, PORT)].map(|flow| t.hammer(&flow));
    for other in Datapath::ALL.into_iter().filter(|other| *other != own) {
        switch(t, &other.flags());
        await_with_rules(t, &[other]);
        for stream in &mut streams {
            stream.echo().unwrap();
        }
        t.observe([flow(P1, VIP2, 80).is_rejected()]);
        switch(t, &own.flags());
        await_rules(t, &before, "the switch back");
        for stream in &mut streams {
            stream.echo().unwrap();
        }
        t.observe([flow(P1, VIP2, 80).is_rejected()]);
    }
    for hammer in hammers {
        hammer.was_always_answered();
    }
}

/// Starts the daemon anew with these flags in the place of those that ask for the datapath.
fn switch(t: &mut Test, flags: &[String]) {
    t.bed_mut().daemon.remove_flag("--iptables-backend");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    t.restart(Signal::SIGTERM, &flags);
}

/// The datapaths that have rules in the kernel; sets are the same for both flavours.
fn with_rules(t: &Test) -> Vec<Datapath> {
    let is_rule = |object: &String| !object.starts_with("ipset ");
    Datapath::ALL
        .into_iter()
        .filter(|datapath| datapath.objects(t.node_ns()).iter().any(is_rule))
        .collect()
}

/// Waits until these datapaths, and no others, have rules in the kernel.
#[track_caller]
fn await_with_rules(t: &Test, expected: &[Datapath]) {
    assert!(
        within(Duration::from_secs(10), || with_rules(t) == expected),
        "{:?}, not {expected:?}: {}",
        with_rules(t),
        t.bed().daemon.log()
    );
}

fn life_16_kubelet_says_which_iptables_is_used(t: &mut Test) {
    web(t);
    t.apply();
    let auto = ["--mode=iptables", "--iptables-backend=auto"].map(str::to_owned);
    for chain in ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"] {
        for flavour in Flavour::ALL {
            let restore = flavour.program(t.family, "restore");
            let tell = |t: &Test, line: &str| {
                let script = format!("*mangle\n{line}\nCOMMIT\n");
                t.node_ns().feed(&restore, &["--noflush"], &script).unwrap();
            };
            tell(t, &format!(":{chain} - [0:0]"));
            switch(t, &auto);
            t.observe(works());
            await_with_rules(t, &[flavour.datapath()]);
            tell(t, &format!("-X {chain}"));
        }
    }
}

fn life_8_init_only_makes_no_rules(t: &mut Test) {
    let (code, text) = run_as(t, &["--init-only", "--conntrack-max-per-core=0"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(rules(t).is_empty());
    let name = "net.netfilter.nf_conntrack_tcp_timeout_established";
    assert_eq!(t.node_ns().read_sysctl(name).unwrap(), "86400");
}

fn life_11_a_second_instance_refuses(t: &mut Test) {
    web(t);
    t.check(works());
    let before = (rules(t), t.n_syncs());
    let manifests = Directory::new().unwrap();
    let flag = format!("--manifests={}", manifests.path().display());
    let (code, text) = run_as(
        t,
        &[
            "--hostname-override=node-n",
            "--conntrack-max-per-core=0",
            "--healthz-bind-address=127.0.0.1:20256",
            "--metrics-bind-address=127.0.0.1:20249",
            &flag,
        ],
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("runs here already"), "{text}");
    // The first is not disturbed.
    assert!(t.bed_mut().daemon.ended().unwrap().is_none());
    assert_eq!((rules(t), t.n_syncs()), before);
    t.observe(works());
}

fn life_14_arguments_are_refused_and_version_is_printed(t: &mut Test) {
    let (code, text) = run(t, &["--version"]);
    assert!(code == Some(0) && text.contains("proxy-daemon"), "{text}");
    let (code, _) = run(t, &["surprise"]);
    assert!(code.is_some_and(|code| code != 0));
    assert!(rules(t).is_empty());
}

fn node_1_the_name_is_trimmed_and_lower_cased(t: &mut Test) {
    t.bed_mut()
        .daemon
        .set_flags(&["--hostname-override=  Node-N "]);
    web(t);
    t.service("web").external_local();
    t.endpoints("web").ready(R);
    t.check([flow(X, NODE, PORT).reaches([kept(P2)])]);
}

fn node_2_the_first_address_of_the_node_is_its_ip(t: &mut Test) {
    web(t);
    let alt = t.ip(NODE_ALT).to_string();
    let own = t.ip(NODE).to_string();
    t.node().internal_ips(&[&alt, &own]);
    t.check([
        flow(X, NODE_ALT, PORT).reaches([masqueraded(P2)]),
        flow(X, NODE, PORT).finds_nobody(),
    ]);
}

fn node_4_a_new_node_ip_takes_the_node_ports(t: &mut Test) {
    web(t);
    t.check([
        flow(X, NODE, PORT).reaches([masqueraded(P2)]),
        flow(X, NODE_ALT, PORT).finds_nobody(),
    ]);
    let addresses = [
        NODE_ALT.of(Family::V4).to_string(),
        NODE_ALT.of(Family::V6).to_string(),
    ];
    t.node().internal_ips(&[&addresses[0], &addresses[1]]);
    t.check([
        flow(X, NODE_ALT, PORT).reaches([masqueraded(P2)]),
        flow(X, NODE, PORT).finds_nobody(),
    ]);
}

/// Fields of a Node that has no address in one family.
fn silent_statuses(t: &Test) -> Vec<Value> {
    let other = NODE.of(t.family.other()).to_string();
    let (any, loopback, external) = match t.family {
        Family::V4 => ("0.0.0.0", "127.0.0.1", "203.0.113.9"),
        Family::V6 => ("::", "::1", "2001:db8:9::9"),
    };
    let internal = |address: &str| json!({"type": "InternalIP", "address": address});
    [
        json!([]),
        Value::Null,
        json!([{"type": "Hostname", "address": "node-n"}]),
        json!([{"type": "ExternalIP", "address": external}]),
        json!([internal(&other)]),
        json!([internal(any), internal("nonsense"), internal(loopback)]),
    ]
    .into_iter()
    .map(|addresses| json!({"status": {"addresses": addresses}}))
    .collect()
}

fn node_4_np_4_a_node_that_says_nothing_keeps_its_node_ports(t: &mut Test) {
    web(t);
    let alt = t.ip(NODE_ALT).to_string();
    for (own, not) in [(NODE, NODE_ALT), (NODE_ALT, NODE)] {
        if own == NODE_ALT {
            // Only another address is news.
            t.node().internal_ips(&[&alt]);
        }
        t.check([
            flow(X, own, PORT).reaches([masqueraded(P2)]),
            flow(X, not, PORT).finds_nobody(),
        ]);
        for status in silent_statuses(t) {
            t.node().patch(status);
            t.apply();
            t.observe([
                flow(X, own, PORT).reaches([masqueraded(P2)]),
                flow(P1, own, PORT).reaches([masqueraded(P2)]),
                flow(X, not, PORT).finds_nobody(),
            ]);
        }
    }
}

fn node_5_a_node_that_says_nothing_keeps_its_pod_networks(t: &mut Test) {
    web(t);
    let flows = || {
        [
            flow(P1, VIP, 80).reaches([kept(P2)]),
            flow(X, VIP, 80).reaches([masqueraded(P2)]),
        ]
    };
    t.check(flows());
    for networks in [json!([]), Value::Null] {
        t.node()
            .patch(json!({"spec": {"podCIDR": null, "podCIDRs": networks}}));
        t.apply();
        t.observe(flows());
    }
}

fn life_15_a_missing_capability_is_told(t: &mut Test) {
    let manifests = Directory::new().unwrap();
    let manifests = format!("--manifests={}", manifests.path().display());
    let daemon = binary();
    let datapath = t.datapath().flags();
    let mut words = vec![
        "10",
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        daemon.to_str().unwrap(),
        "--hostname-override=node-n",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        &manifests,
    ];
    words.extend(datapath.iter().map(String::as_str));
    let output = t.node_ns().run("timeout", &words);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        output
            .status
            .code()
            .is_some_and(|code| code == 1 || code == 2),
        "{log}"
    );
    assert!(
        log.contains("CAP_NET_ADMIN") || log.contains("NET_ADMIN"),
        "{log}"
    );
}

fn node_3_a_late_node_is_taken_in(t: &mut Test) {
    web(t);
    t.service("web").external_local();
    t.delete_node();
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(X, NODE, PORT).finds_nobody(),
    ]);
    t.node();
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(X, NODE, PORT).reaches([kept(P2)]),
    ]);
}

fn node_5_changed_pod_networks_end_the_daemon(t: &mut Test) {
    web(t);
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
    let networks = serde_json::json!(["10.244.7.0/24", "fd00:244:0:7::/64"]);
    t.node()
        .patch(serde_json::json!({"spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": networks}}));
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    let daemon = &mut t.bed_mut().daemon;
    let mut status = None;
    within(Duration::from_secs(5), || {
        status = daemon.ended().unwrap();
        status.is_some()
    });
    assert_eq!(status.expect("it ends").code(), Some(1));
    t.observe([flow(P1, VIP, 80).reaches([kept(P2)])]);
}
