//! Does the kernel hold what we meant, and only what we meant to write gets written?
//!
//! Each test has a network namespace of its own, so they need root; what packets meet there is tested
//! by the harness of the `tests` crate.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::layout::SetId;
use super::*;
use crate::datapath::fixtures::{
    NOTHING, Numbers, address, changes, in_netns, net, one_of_each, service_port, some_networks,
    state, sync_or_resync,
};
use crate::datapath::{SyncReport, Tables};
use crate::forwarding::{Affinity, BackendSet};
use crate::net::{IpFamily, V4, V6};

mod promises {
    crate::datapath::tests::promises!("nftables");
}

/// What `nft` answers in the namespace of this thread.
#[expect(
    clippy::disallowed_methods,
    reason = "a test looks at the kernel with a tool of its own"
)]
fn nft(arguments: &str) -> String {
    let output = std::process::Command::new("nft")
        .args(arguments.split(' '))
        .output()
        .expect("nft runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "nft {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The table as `nft` lists it, without what moves by itself.
fn list<F: Family>() -> String {
    nft(match F::FAMILY {
        IpFamily::V4 => "-n list table ip proxy-daemon",
        IpFamily::V6 => "-n list table ip6 proxy-daemon",
    })
}

/// `nft` has no way to quote these characters; the kernel needs none.
#[test]
fn names_of_interfaces_do_not_leave_their_quotes() {
    use crate::forwarding::{Detector, InterfaceName};
    for (name, is_written) in [("cni0", true), ("a\"drop#", false), ("a\\", false)] {
        let mut state = one_of_each::<V4>();
        state.globals.detector = InterfaceName::new(name).map(Detector::Interface);
        let rules = rules(&state);
        assert_eq!(rules.contains(&format!("iifname \"{name}\"")), is_written);
        assert_eq!(rules.contains("# a rule for an interface"), !is_written);
        assert!(is_written || !rules.contains(name), "{rules}");
    }
}

/// What others can do to our table that a quick look notices.
const DAMAGE: &[&str] = &[
    "flush ruleset",
    "delete table ip proxy-daemon",
    "flush chain ip proxy-daemon services",
    "flush chain ip proxy-daemon nat-output",
    "delete chain ip proxy-daemon nat-output",
    "add rule ip proxy-daemon nat-prerouting drop",
    "insert rule ip proxy-daemon services return",
    "insert rule ip proxy-daemon services ip saddr { 192.0.2.1, 192.0.2.2 } accept",
    "add chain ip proxy-daemon foreign { type filter hook input priority 0; policy drop; }",
    "add chain ip proxy-daemon filter-forward { policy drop; }",
    "add chain ip proxy-daemon nat-prerouting { policy drop; }",
    "add set ip proxy-daemon foreign { type ipv4_addr; }",
    "add table ip proxy-daemon { flags dormant; }",
    "add set ip proxy-daemon cluster-ips { type ipv4_addr; size 3; }",
    "add counter ip proxy-daemon foreign",
    "add quota ip proxy-daemon foreign { over 1 bytes; }",
    "add map ip proxy-daemon foreign { type ipv4_addr : verdict; elements = { 192.0.2.1 : jump services }; }",
    "add chain ip proxy-daemon foreign; add map ip proxy-daemon foreign2 { type ipv4_addr : verdict; elements = { 192.0.2.1 : jump foreign }; }; add rule ip proxy-daemon services ip saddr vmap @foreign2",
    "flush set ip proxy-daemon service-cidrs",
    "add element ip proxy-daemon service-cidrs { 203.0.113.0/24 }",
    "flush set ip proxy-daemon source-ranges",
    "add element ip proxy-daemon cluster-ips { 10.9.9.9 }",
    "flush map ip proxy-daemon cluster-backends",
];

#[test]
fn sync_9_damage_is_noticed_and_repaired() {
    in_netns(|| {
        let mut datapath = Nftables::<V4>::open().unwrap();
        let state = one_of_each::<V4>();
        datapath.resync(&state).unwrap();
        let whole = list::<V4>();
        assert!(!datapath.changed_by_others().unwrap());
        for damage in DAMAGE {
            nft(damage);
            assert!(datapath.changed_by_others().unwrap(), "{damage}");
            assert_ne!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
            let mut same: Vec<&str> = whole.lines().collect();
            let list = list::<V4>();
            let mut listed: Vec<&str> = list.lines().collect();
            // The order of chains, and of elements in a line, is that of their making.
            same.sort_unstable();
            listed.sort_unstable();
            assert_eq!(same.len(), listed.len(), "{damage}");
            assert!(!datapath.changed_by_others().unwrap(), "{damage}");
            assert_eq!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
            let mut restarted = Nftables::<V4>::open().unwrap();
            nft(damage);
            assert_ne!(restarted.resync(&state).unwrap(), NOTHING, "{damage}");
            assert_eq!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
        }
        // Of elements, a quick look sees at most that there are too few or too many.
        for damage in [
            "delete element ip proxy-daemon frontends { 10.96.0.1 . tcp . 80 }",
            "delete element ip proxy-daemon cluster-ips { 10.96.0.1 }; add element ip proxy-daemon cluster-ips { 10.96.0.1 comment \"x\" }",
        ] {
            nft(damage);
            assert_ne!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
            assert_eq!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
        }
    });
}

/// However many there are, and however many are added: the kernel counts ends of intervals in its own way.
#[test]
fn sync_9_networks_of_others_in_our_set_are_noticed() {
    in_netns(|| {
        for (n_ours, n_more) in [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 1)] {
            let mut state = state::<V4>([service_port(1, 3, 0)]);
            let networks = (0..n_ours).map(|n| net::<V4>(0x60_0000 + n * 0x200, 8));
            state.globals.service_cidrs = networks.collect();
            let mut datapath = Nftables::<V4>::open().unwrap();
            datapath.resync(&state).unwrap();
            for n in 0..n_more {
                nft(&format!(
                    "add element ip proxy-daemon service-cidrs {{ 203.0.{n}.0/24 }}"
                ));
            }
            assert!(
                datapath.changed_by_others().unwrap(),
                "{n_ours} and {n_more}"
            );
            assert_ne!(datapath.resync(&state).unwrap(), NOTHING);
            assert!(!holds::<V4>([203, 0, 0, 1].into()));
            assert!(!datapath.changed_by_others().unwrap());
        }
    });
}

#[test]
fn sync_10_foreign_tables_stay() {
    in_netns(|| {
        nft("add table ip foreign");
        nft("add chain ip foreign input { type filter hook input priority 0; }");
        let before = nft("list ruleset");
        let mut datapath = Nftables::<V4>::open().unwrap();
        let state = one_of_each::<V4>();
        datapath.resync(&state).unwrap();
        nft("add rule ip foreign input accept");
        assert!(!datapath.changed_by_others().unwrap());
        nft("flush chain ip foreign input");
        datapath.cleanup().unwrap();
        assert_eq!(nft("list ruleset"), before);
    });
}

#[test]
fn a_refused_sync_changes_nothing_and_the_next_reads_back() {
    in_netns(|| {
        let mut datapath = Nftables::<V4>::open().unwrap();
        let old = state([service_port(1, 3, 0), service_port(2, 3, 0)]);
        let new = state([service_port(1, 4, 0)]);
        datapath.resync(&old).unwrap();
        nft("delete element ip proxy-daemon frontends { 10.96.0.2 . tcp . 80 }");
        let before = list::<V4>();
        assert!(datapath.sync(&new, &changes(&old, &new)).is_err());
        assert_eq!(list::<V4>(), before);
        sync_or_resync(&mut datapath, &old, &new);
        assert_eq!(Nftables::open().unwrap().resync(&new).unwrap(), NOTHING);
    });
}

/// The clients that the table remembers, as `nft` prints them.
fn remembered() -> Vec<String> {
    let list = nft("-n list map ip proxy-daemon affinity");
    let elements = list
        .split_once("elements = {")
        .map_or("", |(_, elements)| elements);
    let clients = elements
        .split(',')
        .map(str::trim)
        .filter(|client| client.contains(" . "));
    clients.map(str::to_owned).collect()
}

#[test]
fn aff_6_aff_8_aff_9_clients_are_forgotten_kept_and_kept_for_another_time() {
    in_netns(|| {
        let with_affinity = |n, seconds| {
            let mut service_port = service_port::<V4>(1, n, 0);
            service_port.affinity = Affinity::Seconds(seconds);
            service_port
        };
        let mut datapath = Nftables::<V4>::open().unwrap();
        let first = state([with_affinity(3, 10_800)]);
        datapath.resync(&first).unwrap();
        for (backend, code) in render::backend_codes(&with_affinity(3, 1)) {
            let client = backend.address.octets()[3];
            let (upper, lower) = (code >> 16, code & 0xffff);
            nft(&format!(
                "add element ip proxy-daemon affinity {{ 10.96.0.1 . tcp . 80 . 192.0.2.{client} timeout 10800s expires 10000s : {upper:x}:{lower:x} }}"
            ));
        }
        assert_eq!(remembered().len(), 3);
        // Restart, and a change of something else.
        let second = state([with_affinity(3, 10_800), service_port(2, 3, 0xff)]);
        let mut restarted = Nftables::<V4>::open().unwrap();
        assert_eq!(restarted.resync(&first).unwrap(), NOTHING);
        sync_or_resync(&mut restarted, &first, &second);
        assert_eq!(remembered().len(), 3);
        // A backend goes.
        let third = state([with_affinity(2, 10_800)]);
        sync_or_resync(&mut restarted, &second, &third);
        assert_eq!(remembered().len(), 2);
        // The time changes: of 10,800 s, 800 s were over.
        let fourth = state([with_affinity(2, 1000)]);
        sync_or_resync(&mut restarted, &third, &fourth);
        let clients = remembered();
        assert_eq!(clients.len(), 2);
        let as_told = |client: &String| {
            client.contains("timeout 1000s expires 19")
                || client.contains("timeout 1000s expires 200s")
        };
        assert!(clients.iter().all(as_told), "{clients:?}");
        let fifth = state([with_affinity(2, 500)]);
        sync_or_resync(&mut restarted, &fourth, &fifth);
        assert_eq!(remembered(), Vec::<String>::new());
    });
}

#[test]
fn without_privilege_the_error_says_what_to_do() {
    let thread = std::thread::spawn(|| {
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        // A user namespace that does not own the network namespace has no power over it.
        unshare(CloneFlags::CLONE_NEWUSER).map(|()| Nftables::<V4>::open().map(drop))
    });
    if let Ok(Ok(opened)) = thread.join() {
        let error = opened.expect_err("no privilege").to_string();
        assert!(error.contains("CAP_NET_ADMIN"), "{error}");
    }
}

#[test]
fn actions_have_codes_of_their_own() {
    use super::action::{Action, BackendChain, Lookup, Masquerade};
    let mut codes = BTreeSet::new();
    let mut count = 0;
    let mut check = |action: Action| {
        assert!(codes.insert(action.code()), "{action:?}");
        count += 1;
    };
    for action in [Action::Drop, Action::Reject, Action::CheckSourceRanges] {
        check(action);
    }
    check(Action::BySource { node_port: false });
    check(Action::BySource { node_port: true });
    for lookup in [Lookup::Direct, Lookup::Vip, Lookup::NodePort] {
        for set in [BackendSet::Cluster, BackendSet::Local] {
            for masquerade in [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always] {
                for n in [
                    1, 2, 3, 10, 255, 256, 861, 862, 5000, 65_535, 65_536, 100_000,
                ] {
                    for affinity in [None, Some(1), Some(2), Some(10_800), Some(86_400)] {
                        let n = std::num::NonZeroU32::new(n).unwrap();
                        check(Action::SelectBackend(BackendChain {
                            lookup,
                            set,
                            n,
                            masquerade,
                            affinity,
                        }));
                    }
                }
            }
        }
    }
    assert_eq!(codes.len(), count);
}

/// Sets that are too large to be read quickly are compared all the same.
#[test]
fn sync_9_large_sets_are_compared_too() {
    in_netns(|| {
        let state = state((1..=700).map(|number| service_port::<V4>(number, 10, 0)));
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&state).unwrap();
        assert_eq!(datapath.resync(&state).unwrap(), NOTHING);
        assert!(!datapath.changed_by_others().unwrap());
        let report = |n_added, n_removed| SyncReport { n_added, n_removed };
        let map = "element ip proxy-daemon cluster-backends";
        nft(&format!("delete {map} {{ 10.96.0.1 . tcp . 80 . 3 }}"));
        assert_eq!(datapath.resync(&state).unwrap(), report(1, 0));
        nft(&format!(
            "add {map} {{ 10.97.0.1 . tcp . 80 . 3 : 10.9.9.9 . 80 }}"
        ));
        assert_eq!(datapath.resync(&state).unwrap(), report(0, 1));
        nft(&format!("delete {map} {{ 10.96.0.1 . tcp . 80 . 3 }}"));
        nft(&format!(
            "add {map} {{ 10.96.0.1 . tcp . 80 . 3 : 10.9.9.9 . 80 }}"
        ));
        assert_eq!(datapath.resync(&state).unwrap(), report(1, 1));
        nft("flush map ip proxy-daemon cluster-backends");
        assert_eq!(datapath.resync(&state).unwrap(), report(7000, 0));
        assert_eq!(datapath.resync(&state).unwrap(), NOTHING);
        assert!(!datapath.changed_by_others().unwrap());
    });
}

/// The expressions that act on packets and maps, with the numbers that `nft list` hides: checksums, flags.
///
/// Not those that load and compare: `nft` loads a key for each lookup anew, and a prefix by its bytes.
fn list_code<F: Family>() -> String {
    let listed = nft(match F::FAMILY {
        IpFamily::V4 => "-n --debug=netlink list table ip proxy-daemon",
        IpFamily::V6 => "-n --debug=netlink list table ip6 proxy-daemon",
    });
    let acts = |line: &&str| {
        let words = [
            "payload write",
            "meta set",
            "lookup",
            "dynset",
            "numgen",
            "nat",
            "masq",
            "reject",
        ];
        words
            .iter()
            .any(|word| line.starts_with(&format!("  [ {word} ")))
    };
    let code = listed.lines().filter(acts);
    code.flat_map(|line| [line, "\n"]).collect()
}

fn load(text: &str) {
    let file = std::env::temp_dir().join(format!(
        "pd-{}-{:?}.nft",
        std::process::id(),
        std::thread::current().id()
    ));
    // nft 1.0.6 prints this of a map, and reads it of sets only.
    let lines = text.lines().filter(|line| !line.contains("gc-interval"));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&file, text).unwrap();
    nft(&format!("-c -f {}", file.display()));
    nft(&format!("-f {}", file.display()));
    std::fs::remove_file(&file).unwrap();
}

/// Compares two listings but for the order of elements: `nft` does not sort those that are ranges.
fn assert_same_listing(one: &str, other: &str) {
    let sorted = |text: &str| -> Vec<String> {
        let mut lines = Vec::new();
        let mut elements: Option<Vec<String>> = None;
        for line in text.lines().filter(|line| !line.contains("gc-interval")) {
            let element = line.trim().trim_start_matches("elements = { ");
            if line.contains("elements = {") {
                elements = Some(Vec::new());
            }
            let Some(found) = &mut elements else {
                lines.push(line.to_owned());
                continue;
            };
            let element = element.trim_end_matches(" }").trim_end_matches(',');
            found.extend(element.split(", ").map(str::to_owned));
            if line.ends_with('}') {
                found.sort();
                lines.extend(elements.take().unwrap());
            }
        }
        lines
    };
    let (one, other) = (sorted(one), sorted(other));
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one, other);
    }
    assert_eq!(one.len(), other.len());
}

/// What changed while the daemon was away is found in large sets key by key.
#[test]
fn life_5_changes_of_backends_since_the_last_run_are_found() {
    in_netns(|| {
        let report = |n_added, n_removed| SyncReport { n_added, n_removed };
        let before = state((1..=700).map(|number| service_port::<V4>(number, 10, 0)));
        let resync = |state: &ForwardingState<V4>| Nftables::open().unwrap().resync(state).unwrap();
        resync(&before);
        let with = |backends: Vec<u32>| {
            let mut state = before.clone();
            let changed = state.service_ports.values_mut().nth(300).unwrap();
            let backends = crate::datapath::fixtures::backends(backends);
            std::sync::Arc::make_mut(changed).cluster = backends;
            state
        };
        let first = before.service_ports.values().nth(300).unwrap();
        let IpAddr::V4(first) = IpAddr::from(first.cluster[0].address) else {
            panic!("V4");
        };
        let first = u32::from(first) & 0xff_ffff;
        let all: Vec<u32> = (first..first + 10).collect();
        // One is another, at the end and at the beginning; then all are as before.
        let mut last_differs = all.clone();
        last_differs[9] = 0xf9_0001;
        assert_eq!(resync(&with(last_differs)), report(2, 2));
        assert_eq!(resync(&before), report(2, 2));
        let mut first_differs = all.clone();
        first_differs[0] = 0xf0_0001;
        assert_eq!(resync(&with(first_differs)), report(2, 2));
        assert_eq!(resync(&before), report(2, 2));
        // One less: its action changes too.
        let less = with(all[1..].to_vec());
        assert_ne!(resync(&less), NOTHING);
        assert_eq!(resync(&less), NOTHING);
        assert_ne!(resync(&before), NOTHING);
        assert_eq!(resync(&before), NOTHING);
        // Services went, and came back.
        let mut fewer = before.clone();
        fewer.service_ports = before.service_ports.clone().into_iter().skip(3).collect();
        assert_eq!(resync(&fewer), report(0, 3 * 22));
        assert_eq!(resync(&fewer), NOTHING);
        assert_eq!(resync(&before), report(3 * 22, 0));
        assert_eq!(resync(&before), NOTHING);
    });
}

/// Nothing in our table is beyond the language of `nft`; 1.0.6 dies of rules that are.
#[test]
fn the_listing_can_be_fed_back_to_nft() {
    in_netns(|| {
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&one_of_each::<V4>()).unwrap();
        let listed = list::<V4>();
        datapath.cleanup().unwrap();
        load(&listed);
        assert_same_listing(&list::<V4>(), &listed);
    });
}

fn both_writers_make_the_same_table<F: Family>() {
    use crate::forwarding::{Detector, InterfaceName};
    let name = |name| InterfaceName::new(name).unwrap();
    let detectors = [
        None,
        Some(Detector::Interface(name("cni0"))),
        Some(Detector::InterfacePrefix(name("veth"))),
        Some(Detector::Network(net::<F>(0xf4_0102, 0))),
    ];
    let mut states = vec![state([]), one_of_each::<F>()];
    states.extend(detectors.map(|detector| {
        let mut state = one_of_each::<F>();
        state.globals.detector = detector;
        state.globals.netfilter.drop_invalid = false;
        state
    }));
    let mut numbers = Numbers(3);
    states.extend((0..6).map(|_| {
        let mut state = crate::datapath::fixtures::some_state::<F>(&mut numbers);
        state.globals.service_cidrs = some_networks::<F>(&mut numbers);
        state
    }));
    let mut datapath = Nftables::<F>::open().unwrap();
    for mut state in states {
        let affinity_rules = |text: &str| -> Vec<String> {
            let rules = text
                .lines()
                .filter(|line| line.starts_with("\t\t") && line.contains("@affinity"));
            rules.map(str::to_owned).collect()
        };
        datapath.resync(&state).unwrap();
        assert_eq!(affinity_rules(&rules(&state)), affinity_rules(&list::<F>()));
        if F::FAMILY == IpFamily::V6 {
            // nft 1.0.6 lists these rules, but has too few registers to write them.
            for service_port in state.service_ports.values_mut() {
                std::sync::Arc::make_mut(service_port).affinity = Affinity::Off;
            }
            datapath.cleanup().unwrap();
            datapath.resync(&state).unwrap();
        }
        let (listed, code) = (list::<F>(), list_code::<F>());
        datapath.cleanup().unwrap();
        load(&rules(&state));
        assert_same_listing(&list::<F>(), &listed);
        assert_same_listing(&list_code::<F>(), &code);
        datapath.cleanup().unwrap();
    }
}

/// What `dump --rules` prints is what the kernel gets.
#[test]
fn both_writers_make_the_same_table_of_a_state() {
    in_netns(both_writers_make_the_same_table::<V4>);
    in_netns(both_writers_make_the_same_table::<V6>);
}

/// Whether `nft` finds the address in the set.
#[expect(
    clippy::disallowed_methods,
    reason = "a test looks at the kernel with a tool of its own"
)]
fn holds<F: Family>(address: F::Addr) -> bool {
    let table = match F::FAMILY {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    };
    let element = format!("{{ {address} }}");
    let words = [
        "get",
        "element",
        table,
        "proxy-daemon",
        "service-cidrs",
        &element,
    ];
    let output = std::process::Command::new("nft").args(words).output();
    output.expect("nft runs").status.success()
}

fn any_networks_follow_any_others<F: Family>() {
    let mut numbers = Numbers(8);
    let bits = F::ADDR_LEN;
    let mut datapath = Nftables::<F>::open().unwrap();
    let mut before = state::<F>([service_port(1, 3, 0)]);
    datapath.resync(&before).unwrap();
    let edges = [0, 0xff].map(|byte| F::read_addr(&vec![byte; bits]).unwrap());
    let inside = (0..=8_u32).flat_map(|n| [n * 0x80, (n * 0x80).wrapping_sub(1)]);
    let probes: Vec<F::Addr> = inside
        .map(|n| address::<F>(0x60_0000_u32.wrapping_add(n)))
        .chain((0..4).map(|n| address::<F>(0x60_0000 + n)))
        .chain(edges)
        .collect();
    for round in 0..60 {
        let mut after = before.clone();
        after.globals.service_cidrs = some_networks::<F>(&mut numbers);
        let wanted = &after.globals.service_cidrs;
        if round % 4 == 3 {
            datapath.resync(&after).unwrap();
        } else {
            sync_or_resync(&mut datapath, &before, &after);
        }
        if round % 6 == 0 {
            for probe in &probes {
                let is_in = wanted.iter().any(|network| F::contains(network, *probe));
                assert_eq!(holds::<F>(*probe), is_in, "{probe} in {wanted:?}");
            }
        }
        assert!(!datapath.changed_by_others().unwrap());
        let mut fresh = Nftables::<F>::open().unwrap();
        assert_eq!(fresh.resync(&after).unwrap(), NOTHING, "{wanted:?}");
        before = after;
    }
}

#[test]
fn rej_7_any_service_cidrs_follow_any_others() {
    in_netns(any_networks_follow_any_others::<V4>);
    in_netns(any_networks_follow_any_others::<V6>);
}

/// Three networks that touch, of which the middle one goes.
#[test]
fn rej_7_a_network_between_two_others_goes() {
    in_netns(|| {
        let networks = |numbers: &[u32]| {
            let mut state = state::<V4>([service_port(1, 3, 0)]);
            let networks = numbers.iter().map(|n| net::<V4>(0x60_0000 + n * 0x100, 8));
            state.globals.service_cidrs = networks.collect();
            state
        };
        let (three, two) = (networks(&[0, 1, 2]), networks(&[0, 2]));
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&three).unwrap();
        sync_or_resync(&mut datapath, &three, &two);
        assert!(holds::<V4>(address::<V4>(0x60_0001)));
        assert!(!holds::<V4>(address::<V4>(0x60_0101)));
        assert!(holds::<V4>(address::<V4>(0x60_0201)));
        datapath.resync(&three).unwrap();
        datapath.resync(&two).unwrap();
        assert!(!holds::<V4>(address::<V4>(0x60_0101)));
    });
}

/// Three ServicePorts, of which two claim the same frontends, which `compile` never lets them.
fn with_a_clash() -> ForwardingState<V4> {
    let mut other = service_port::<V4>(1, 2, 0);
    other.id =
        crate::forwarding::ServicePortId::new(&"default/zz", "http", crate::net::L4Proto::Tcp);
    state([service_port(1, 3, 0), other, service_port(2, 3, 0)])
}

#[test]
fn sync_8_a_refused_service_port_does_not_hold_up_the_others() {
    in_netns(|| {
        let clash = with_a_clash();
        let served = state([service_port::<V4>(1, 3, 0), service_port(2, 3, 0)]);
        // At the start, and when it comes later.
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&clash).unwrap();
        assert_eq!(Nftables::open().unwrap().resync(&served).unwrap(), NOTHING);
        assert!(!datapath.changed_by_others().unwrap());
        let mut later = Nftables::<V4>::open().unwrap();
        later.resync(&served).unwrap();
        assert!(later.sync(&clash, &changes(&served, &clash)).is_err());
        later.resync(&clash).unwrap();
        assert_eq!(Nftables::open().unwrap().resync(&served).unwrap(), NOTHING);
        // Others change meanwhile.
        let mut next = with_a_clash();
        let more = service_port::<V4>(2, 5, 0);
        next.service_ports.insert(more.id.clone(), more.into());
        sync_or_resync(&mut later, &clash, &next);
        let served = state([service_port::<V4>(1, 3, 0), service_port(2, 5, 0)]);
        assert_eq!(Nftables::open().unwrap().resync(&served).unwrap(), NOTHING);
        // The one that was in its way goes.
        let mut alone = next.clone();
        alone.service_ports.remove(&service_port::<V4>(1, 3, 0).id);
        sync_or_resync(&mut later, &next, &alone);
        later.resync(&alone).unwrap();
        assert_eq!(Nftables::open().unwrap().resync(&alone).unwrap(), NOTHING);
    });
}

/// A client stays remembered when the table is switched on again, or written anew.
#[test]
fn aff_7_repairs_keep_remembered_clients() {
    in_netns(|| {
        let mut service_port = service_port::<V4>(1, 3, 0);
        service_port.affinity = Affinity::Seconds(10_800);
        let code = render::backend_codes(&service_port)
            .into_values()
            .next()
            .unwrap();
        let state = state([service_port]);
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&state).unwrap();
        let (upper, lower) = (code >> 16, code & 0xffff);
        nft(&format!(
            "add element ip proxy-daemon affinity {{ 10.96.0.1 . tcp . 80 . 192.0.2.9 timeout 10800s expires 10000s : {upper:x}:{lower:x} }}"
        ));
        for damage in [
            "add table ip proxy-daemon { flags dormant; }",
            "add chain ip proxy-daemon nat-prerouting { policy drop; }",
            "add counter ip proxy-daemon foreign",
        ] {
            nft(damage);
            datapath.resync(&state).unwrap();
            let clients = remembered();
            assert!(
                clients.iter().any(|client| client.contains("192.0.2.9")),
                "{damage}: {clients:?}"
            );
        }
    });
}

/// A set that has no room left is replaced by a larger one, and by a smaller one at a read-back.
#[test]
fn sync_8_sets_grow_before_they_are_full() {
    in_netns(|| {
        let many = |n| state((1..=n).map(|number| service_port::<V4>(number, 1, 0b1000_0000)));
        let sizes = || -> BTreeSet<String> {
            let list = list::<V4>();
            let sizes = list
                .lines()
                .filter_map(|line| line.trim().strip_prefix("size "));
            sizes.map(str::to_owned).collect()
        };
        let with = |sizes: &[&str]| sizes.iter().map(|size| (*size).to_owned()).collect();
        let mut datapath = Nftables::<V4>::open().unwrap();
        let mut before = many(500);
        datapath.resync(&before).unwrap();
        assert_eq!(sizes(), with(&["1024", "262144"]));
        let codes = render::backend_codes(&service_port::<V4>(1, 1, 0b1000_0000));
        let code = codes.into_values().next().unwrap();
        let (upper, lower) = (code >> 16, code & 0xffff);
        nft(&format!(
            "add element ip proxy-daemon affinity {{ 10.96.0.1 . tcp . 80 . 192.0.2.9 timeout 10800s expires 10000s : {upper:x}:{lower:x} }}"
        ));
        for n in [900, 1024, 1025, 1100, 2600, 4200] {
            let after = many(n);
            sync_or_resync(&mut datapath, &before, &after);
            assert!(!datapath.changed_by_others().unwrap());
            assert_eq!(Nftables::open().unwrap().resync(&after).unwrap(), NOTHING);
            before = after;
        }
        assert_eq!(sizes(), with(&["1024", "262144", "16384"]));
        assert!(
            remembered()
                .iter()
                .any(|client| client.contains("192.0.2.9"))
        );
        // Fewer elements alone change no size, until all is read back.
        let after = many(1);
        sync_or_resync(&mut datapath, &before, &after);
        assert_eq!(sizes(), with(&["1024", "262144", "16384"]));
        assert_ne!(Nftables::open().unwrap().resync(&after).unwrap(), NOTHING);
        assert_eq!(sizes(), with(&["1024", "262144"]));
        assert_eq!(Nftables::open().unwrap().resync(&after).unwrap(), NOTHING);
    });
}

/// The kernel lets a program reserve a table for itself, as long as it runs.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a test looks at the kernel with a tool of its own"
)]
fn sync_10_a_table_that_another_program_holds_is_named() {
    use std::io::Write as _;
    in_netns(|| {
        let mut holder = std::process::Command::new("nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("nft runs");
        let mut input = holder.stdin.take().unwrap();
        input
            .write_all(b"add table ip proxy-daemon { flags owner; }\n")
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !nft("list tables").contains("proxy-daemon") {
            assert!(std::time::Instant::now() < deadline, "nft makes the table");
        }
        let state = one_of_each::<V4>();
        let mut datapath = Nftables::<V4>::open().unwrap();
        for _ in 0..2 {
            let error = datapath.resync(&state).unwrap_err().to_string();
            assert!(error.contains("reserved by another program"), "{error}");
            assert!(error.contains(&holder.id().to_string()), "{error}");
        }
        assert!(datapath.cleanup().is_err());
        drop(input);
        holder.wait().unwrap();
        datapath.resync(&state).unwrap();
        assert_eq!(Nftables::open().unwrap().resync(&state).unwrap(), NOTHING);
    });
}

/// Sets of newer tools, with user data of types that nobody knows yet, in a foreign table and in ours.
#[test]
fn life_17_unknown_user_data_disturbs_nobody() {
    in_netns(|| {
        // A type that does not exist, of three bytes, and a comment.
        let mut userdata = codec::Writer::new();
        userdata.attr(13, &[200, 3, 1, 2, 3, 7, 2, b'x', 0]);
        let userdata = userdata.as_slice();
        let declaration = SetId::ClusterIps.declaration();
        let newer = ruleset::Set {
            name: "newer",
            ..declaration.clone()
        };
        let mut foreign = Kernel::open(IpFamily::V4, "foreign").unwrap();
        let mut transaction = codec::Transaction::new(IpFamily::V4, "foreign", None);
        transaction.ensure_table();
        transaction.create_set_with(&newer, userdata);
        foreign.commit(transaction).unwrap();
        let state = one_of_each::<V4>();
        let mut datapath = Nftables::<V4>::open().unwrap();
        datapath.resync(&state).unwrap();
        nft("list ruleset");

        let mut ours = Kernel::open(IpFamily::V4, layout::TABLE).unwrap();
        let mut transaction = codec::Transaction::new(IpFamily::V4, layout::TABLE, None);
        transaction.create_set_with(&newer, userdata);
        ours.commit(transaction).unwrap();
        assert!(datapath.changed_by_others().unwrap());
        datapath.resync(&state).unwrap();
        assert_eq!(Nftables::open().unwrap().resync(&state).unwrap(), NOTHING);
        nft("list ruleset");

        // The whole table is a newer one's.
        nft("delete table ip proxy-daemon");
        let mut transaction = codec::Transaction::new(IpFamily::V4, layout::TABLE, None);
        transaction.ensure_table();
        transaction.create_set_with(&declaration, userdata);
        ours.commit(transaction).unwrap();
        datapath.resync(&state).unwrap();
        assert_eq!(Nftables::open().unwrap().resync(&state).unwrap(), NOTHING);
        nft("list ruleset");
        assert_eq!(
            foreign.table().unwrap().and_then(|table| table.n_objects),
            Some(1)
        );
    });
}

/// As an operator counts them.
#[test]
fn sync_16_sets_and_chains_do_not_grow_with_services() {
    in_netns(|| {
        let count = |n: u16| {
            let traits = [0, 0b0100_1000, 0b1000_0000, 0b0011_1000];
            let service_ports = (1..=n)
                .flat_map(|i| (0..4).map(move |k| (i * 4 + k, traits[usize::from(k)])))
                .map(|(number, traits)| service_port::<V4>(number, 3, traits));
            let mut datapath = Nftables::<V4>::open().unwrap();
            datapath.resync(&state(service_ports)).unwrap();
            let list = list::<V4>();
            let begins = |word: &str| list.lines().filter(|l| l.trim().starts_with(word)).count();
            (begins("set "), begins("map "), begins("chain "))
        };
        let few = count(1);
        assert_eq!(few.0 + few.1, SetId::ALL.len());
        assert!(few.2 > 10, "{few:?}");
        assert_eq!(count(250), few);
    });
}

/// The library keeps a batch in pages; the kernel must see one.
#[test]
fn sync_7_a_transaction_of_many_pages_takes_effect_whole_or_not_at_all() {
    use codec::{Data, Key, Transaction, write_element};
    const N: u32 = 100_000;
    fn element(number: u32, owner: u8) -> Vec<u8> {
        let mut element = codec::Writer::new();
        let bytes = number.to_be_bytes();
        let key = [bytes[0], 0, 0, 0, bytes[2], bytes[3], bytes[1], 0];
        let data = Data::Bytes(&[192, 0, 2, owner]);
        write_element(&mut element, Key::Exact(&key), data, "");
        element.as_slice().to_vec()
    }
    let transaction = |generation, clash: Option<&[u8]>| {
        let map = SetId::NodePortOwners.declaration();
        let mut transaction = Transaction::new(IpFamily::V4, layout::TABLE, generation);
        transaction.create_table("many pages");
        transaction.create_set(&map);
        for number in 0..N {
            transaction.add_element(map.name, &element(number, 1));
        }
        if let Some(clash) = clash {
            transaction.add_element(map.name, clash);
        }
        assert!(transaction.len() > 3 << 20);
        transaction
    };
    in_netns(move || {
        let map = SetId::NodePortOwners.name();
        let mut kernel = Kernel::open(IpFamily::V4, layout::TABLE).unwrap();
        let before = kernel.generation().unwrap();
        let clash = element(N / 2, 2);
        let refused = kernel.commit(transaction(None, Some(&clash)));
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(map), "{error}");
        let refused = kernel.take_refused().map(|refused| refused.element);
        assert_eq!(refused, Some(clash));
        assert_eq!(kernel.table().unwrap(), None);
        assert_eq!(kernel.generation().unwrap(), before);
        kernel.commit(transaction(Some(before), None)).unwrap();
        assert_eq!(kernel.generation().unwrap(), before + 1);
        let mut n = 0;
        kernel.elements(map, || (), |(), _| n += 1).unwrap();
        assert_eq!(n, N);
        // Made for a generation that is over.
        assert!(kernel.commit(transaction(Some(before), None)).is_err());
        assert_eq!(kernel.generation().unwrap(), before + 1);
    });
}
