//! SYNC, LIFE, NODE: rate, scope and failure; start, stop and cleanup; changes of the Node.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_tests::address::{
    Family, HOST, NODE, NODE_ALT, P1, P2, Protocol, R, R2, VIP, VIP2, VIP3, X,
};
use proxy_tests::case;
use proxy_tests::daemon::{Directory, binary};
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};

const PORT: u16 = 30_080;
const SOON: &str = "--iptables-sync-period=1s";
/// The nft families that each case of a mode could touch.
const FAMILIES: [&str; 2] = ["ip", "ip6"];

pub(crate) fn cases() -> Vec<Case> {
    let second = ["--iptables-min-sync-period=1s"];
    vec![
        case!(sync_1_bursts_are_merged)
            .tcp()
            .v4()
            .fresh()
            .flags(&second),
        case!(sync_2_without_a_minimum_every_change_is_synced)
            .tcp()
            .v4(),
        case!(sync_3_idle_means_no_syncs)
            .tcp()
            .v4()
            .fresh()
            .flags(&[SOON]),
        case!(sync_5_partial_syncs_end_where_a_full_one_would)
            .tcp()
            .fresh(),
        case!(sync_6_vip_3_a_large_rewrite_refuses_nobody).tcp(),
        case!(sync_9_a_flush_is_noticed_and_repaired)
            .tcp()
            .fresh()
            .flags(&[SOON]),
        case!(sync_9_a_damaged_table_is_repaired)
            .tcp()
            .fresh()
            .flags(&[SOON]),
        case!(sync_10_foreign_objects_are_never_touched)
            .tcp()
            .v4()
            .fresh(),
        case!(sync_11_nothing_stale_is_left).tcp().fresh(),
        case!(life_2_existing_rules_forward_while_the_daemon_is_away)
            .tcp()
            .fresh(),
        case!(life_5_a_restart_is_not_noticed)
            .protocols(&[Protocol::Tcp, Protocol::Udp])
            .fresh(),
        case!(life_5_a_restart_takes_in_what_changed_meanwhile)
            .tcp()
            .fresh(),
        case!(life_6_signals_end_it_promptly_and_rules_stay)
            .tcp()
            .fresh(),
        case!(life_7_cleanup_removes_ours_and_nothing_else)
            .tcp()
            .fresh(),
        case!(life_8_init_only_makes_no_rules).tcp().v4().fresh(),
        case!(life_11_a_second_instance_refuses).tcp().v4().fresh(),
        case!(life_14_arguments_are_refused_and_version_is_printed)
            .tcp()
            .v4()
            .fresh(),
        case!(life_15_a_missing_capability_is_told)
            .tcp()
            .v4()
            .fresh(),
        case!(ds_1_sync_7_a_failing_family_does_not_hold_up_the_other)
            .tcp()
            .fresh()
            .flags(&[SOON]),
        case!(sync_7_sync_8_a_failed_change_is_made_up_for)
            .tcp()
            .fresh()
            .flags(&[SOON]),
        case!(node_3_a_late_node_is_taken_in).tcp().fresh(),
        case!(node_5_changed_pod_networks_end_the_daemon)
            .tcp()
            .v4()
            .fresh()
            .flags(&["--detect-local-mode=NodeCIDR"]),
        case!(node_1_the_name_is_trimmed_and_lower_cased)
            .tcp()
            .fresh(),
        case!(node_2_the_first_address_of_the_node_is_its_ip)
            .protocols(&[Protocol::Tcp, Protocol::Udp]),
        case!(node_4_a_new_node_ip_takes_the_node_ports).protocols(&[Protocol::Tcp, Protocol::Udp]),
    ]
}

fn web(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).node_port(PORT);
    t.endpoints("web").ready(P2);
}

fn works() -> [proxy_tests::flow::Flow; 3] {
    [
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(HOST, VIP, 80).reaches([masqueraded(P2)]),
        flow(X, NODE, PORT).reaches([masqueraded(P2)]),
    ]
}

/// What our tables hold, in an order of its own: elements of sets come in any.
fn rules(t: &Test) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for family in FAMILIES {
        let output = t
            .node_ns()
            .run("nft", &["-j", "list", "table", family, "proxy-daemon"]);
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            continue;
        };
        for object in value["nftables"].as_array().into_iter().flatten() {
            flatten(family, object, &mut found);
        }
    }
    found
}

fn flatten(family: &str, object: &serde_json::Value, found: &mut BTreeSet<String>) {
    let mut object = object.clone();
    for kind in ["table", "chain", "rule", "set", "map", "counter"] {
        let Some(inner) = object.get_mut(kind).and_then(|inner| inner.as_object_mut()) else {
            continue;
        };
        inner.remove("handle");
        let name = inner
            .get("name")
            .map(ToString::to_string)
            .unwrap_or_default();
        if let Some(elements) = inner.remove("elem") {
            for element in elements.as_array().into_iter().flatten() {
                found.insert(format!("{family} {name} {element}"));
            }
        }
    }
    if object.get("metainfo").is_none() {
        found.insert(format!("{family} {object}"));
    }
}

fn sync_1_bursts_are_merged(t: &mut Test) {
    web(t);
    t.apply();
    // The pause after the first sync has to be over for the count to be sharp.
    std::thread::sleep(Duration::from_millis(1200));
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
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(t.n_syncs(), before);
    t.observe(works());
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
    for family in FAMILIES {
        t.nft(&format!("delete table {family} proxy-daemon"));
    }
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
    t.nft("flush ruleset");
    for family in FAMILIES {
        // A table that its owner protects survives the flush.
        let gone = format!("add table {family} proxy-daemon; delete table {family} proxy-daemon");
        let _ours = t.node_ns().feed("nft", &["-f", "-"], &gone);
    }
    t.eventually(Duration::from_secs(10), works());
    assert_eq!(rules(t), before);
}

fn sync_9_a_damaged_table_is_repaired(t: &mut Test) {
    web(t);
    t.check(works());
    let before = rules(t);
    for family in FAMILIES {
        let damage = format!("flush table {family} proxy-daemon");
        let _ours = t.node_ns().feed("nft", &["-f", "-"], &damage);
    }
    t.eventually(Duration::from_secs(10), works());
    assert_eq!(rules(t), before);
}

/// Tables, chains and iptables rules of others.
fn foreign(t: &Test) -> String {
    let mut text = String::new();
    for words in [
        &["nft", "-s", "list", "table", "inet", "foreign"][..],
        &["nft", "-s", "list", "table", "ip", "cni"],
        &["iptables-legacy-save"],
        &["ip6tables-legacy-save"],
        &["tc", "filter", "show", "dev", "up0", "ingress"],
    ] {
        let output = t.node_ns().run(words[0], &words[1..]);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in lines
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with(':'))
        {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn make_foreign(t: &Test) {
    t.nft(
        "table inet foreign { set s { type ipv4_addr; elements = { 192.0.2.9 } }
           chain c { type filter hook input priority 7; ip saddr @s counter drop; }
         }
         table ip cni { chain nat { type nat hook prerouting priority -90;
           tcp dport 9999 dnat to 10.244.1.12:8080; }
         }",
    );
    let rules = "*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n\
                 -A KUBE-FIREWALL -s 192.0.2.66 -j DROP\nCOMMIT\n\
                 *mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
        let rules = if program.starts_with("ip6") {
            rules.replace("192.0.2.66", "2001:db8::66")
        } else {
            rules.to_owned()
        };
        t.node_ns().feed(program, &["--noflush"], &rules).unwrap();
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
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let after = rules(t);
        let left: Vec<_> = after.difference(&before).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{left:#?}");
    }
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

/// Runs the daemon's binary in N until it ends.
fn run(t: &Test, arguments: &[&str]) -> (Option<i32>, String) {
    let binary = binary();
    let output = t.node_ns().run(binary.to_str().unwrap(), arguments);
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
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

fn life_8_init_only_makes_no_rules(t: &mut Test) {
    let (code, text) = run(t, &["--init-only", "--conntrack-max-per-core=0"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(rules(t).is_empty());
    let name = "net.netfilter.nf_conntrack_tcp_timeout_established";
    assert_eq!(t.node_ns().read_sysctl(name).unwrap(), "86400");
}

fn life_11_a_second_instance_refuses(t: &mut Test) {
    web(t);
    t.check(works());
    let manifests = Directory::new().unwrap();
    let flag = format!("--manifests={}", manifests.path().display());
    let (code, text) = run(
        t,
        &[
            "--hostname-override=node-n",
            "--conntrack-max-per-core=0",
            "--healthz-bind-address=127.0.0.1:20256",
            "--metrics-bind-address=127.0.0.1:20249",
            &flag,
        ],
    );
    assert!(code.is_some_and(|code| code != 0), "{code:?} {text}");
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

fn life_15_a_missing_capability_is_told(t: &mut Test) {
    let manifests = Directory::new().unwrap();
    let manifests = format!("--manifests={}", manifests.path().display());
    let daemon = binary();
    let output = t.node_ns().run(
        "timeout",
        &[
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
        ],
    );
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

/// Another program that owns our table of one family, so that nobody else may touch it.
struct Owner(std::process::Child);

impl Owner {
    fn of(t: &Test, family: &str) -> Self {
        use std::io::Write;
        let child = t.node_ns().enter(|| {
            std::process::Command::new("nft")
                .arg("-i")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        });
        let mut owner = Self(child);
        let stdin = owner.0.stdin.as_mut().unwrap();
        let script = format!(
            "add table {family} proxy-daemon; delete table {family} proxy-daemon; \
             add table {family} proxy-daemon {{ flags owner; }}\n"
        );
        stdin.write_all(script.as_bytes()).unwrap();
        stdin.flush().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let output = t
                .node_ns()
                .run("nft", &["list", "table", family, "proxy-daemon"]);
            if String::from_utf8_lossy(&output.stdout).contains("flags owner") {
                return owner;
            }
            assert!(Instant::now() < deadline, "the table is not owned");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn nft_family(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

fn ds_1_sync_7_a_failing_family_does_not_hold_up_the_other(t: &mut Test) {
    let (family, other) = (t.family, t.family.other());
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
    let owner = Owner::of(t, nft_family(other));
    service(t, "new", VIP2, R);
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    let reaches = |vip, host, family| flow(P1, vip, 80).family(family).reaches([kept(host)]);
    t.eventually(Duration::from_secs(5), [reaches(VIP2, R, family)]);
    t.observe([reaches(VIP, P2, family)]);
    let failures = |t: &Test| t.report()["families"][other.api_name()]["n_failures"].as_u64();
    let deadline = Instant::now() + Duration::from_secs(5);
    while failures(t) == Some(0) {
        assert!(Instant::now() < deadline, "{}", t.report());
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(owner);
    let both = [reaches(VIP, P2, other), reaches(VIP2, R, other)];
    t.eventually(Duration::from_secs(10), both);
    t.bed_mut().settle().unwrap();
}

fn sync_7_sync_8_a_failed_change_is_made_up_for(t: &mut Test) {
    web(t);
    t.service("old").cluster_ip(VIP2).port(80);
    t.endpoints("old").ready(P2);
    t.check(works());
    let owner = Owner::of(t, nft_family(t.family));
    for (change, host) in [R, R2].into_iter().enumerate() {
        t.endpoints("web").clear().ready(host);
        t.service(&format!("s{change}"))
            .cluster_ip(VIP3)
            .port(80 + u16::try_from(change).unwrap());
        t.endpoints(&format!("s{change}")).ready(host);
        let world = t.clone();
        t.bed_mut().daemon.publish(&world).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    t.delete_service("old");
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    drop(owner);
    t.bed_mut().settle().unwrap();
    t.observe([
        flow(P1, VIP, 80).reaches([kept(R2)]),
        flow(X, NODE, PORT).reaches([masqueraded(R2)]),
        flow(P1, VIP3, 80).reaches([kept(R)]),
        flow(P1, VIP3, 81).reaches([kept(R2)]),
        flow(P1, VIP2, 80).is_dropped(),
    ]);
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
    let deadline = Instant::now() + Duration::from_secs(5);
    let status = loop {
        if let Some(status) = t.bed_mut().daemon.ended().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(1));
    t.observe([flow(P1, VIP, 80).reaches([kept(P2)])]);
}
