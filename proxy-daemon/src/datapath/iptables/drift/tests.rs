//! Is everything noticed that others do to our rules and sets, and nothing that they do to theirs?
//!
//! Each test has a network namespace of its own, so they need root.

use super::super::chain::Chain;
use super::super::tool::tests::{all_tools, shell};
use super::*;
use crate::datapath::fixtures::in_netns;

const NAT: &str = "*nat
:PROXYD-SERVICES - [0:0]
:PROXYD-DEEP - [0:0]
-A PREROUTING -j PROXYD-SERVICES
-A OUTPUT -j PROXYD-SERVICES
-A PROXYD-SERVICES -j PROXYD-DEEP
-A PROXYD-DEEP -p udp -j RETURN
-A PROXYD-DEEP -p tcp -j RETURN
COMMIT
";
const FILTER: &str = "*filter
:PROXYD-INPUT - [0:0]
-A INPUT -j PROXYD-INPUT
-A PROXYD-INPUT -p udp -j RETURN
COMMIT
";
const SETS: &str = "create PROXYD4-a hash:ip,port
add PROXYD4-a 10.0.0.1,tcp:80
add PROXYD4-a 10.0.0.2,udp:80
create PROXYD4-b hash:net
";

fn chain(name: &str, rules: &[&str]) -> Chain {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    Chain::new(format!("PROXYD-{name}"), rules)
}

/// What we believe after having written [`NAT`], [`FILTER`] and [`SETS`].
fn written() -> DriftCheck {
    let mut drift = DriftCheck::default();
    let deep = ["-p udp -j RETURN", "-p tcp -j RETURN"];
    for (table, chain) in [
        (Table::Nat, chain("SERVICES", &["-j PROXYD-DEEP"])),
        (Table::Nat, chain("DEEP", &deep)),
        (Table::Filter, chain("INPUT", &deep[..1])),
    ] {
        drift.table(table).put(&chain);
    }
    drift.table(Table::Nat).hook("PROXYD-SERVICES");
    drift.table(Table::Nat).hook("PROXYD-SERVICES");
    drift.table(Table::Filter).hook("PROXYD-INPUT");
    drift.sets.wrote("PROXYD4-a", 2, 0);
    drift.sets.wrote("PROXYD4-b", 0, 0);
    drift
}

fn has_drifted(drift: &mut DriftCheck, tools: &Tools) -> bool {
    drift.has_drifted(tools).expect("it can be asked")
}

/// A namespace with our rules and sets, for each family and flavour.
fn each(test: impl Fn(&Tools) + Send + Clone + 'static) {
    for tools in all_tools() {
        let test = test.clone();
        in_netns(move || {
            tools.restore(NAT).expect("it is valid");
            tools.restore(FILTER).expect("it is valid");
            tools.ipset_restore(&[SETS]).expect("it is valid");
            test(&tools);
        });
    }
}

/// Calls iptables of this family and flavour.
fn iptables(tools: &Tools, arguments: &str) {
    let program = match tools.family {
        IpFamily::V4 => "iptables",
        IpFamily::V6 => "ip6tables",
    };
    shell(&format!("{program}-{} {arguments}", tools.flavour.name()));
}

const DAMAGE: [&str; 9] = [
    "-t nat -D OUTPUT -j PROXYD-SERVICES",
    "-t nat -D PREROUTING -j PROXYD-SERVICES",
    "-t nat -A PREROUTING -j PROXYD-SERVICES",
    "-t filter -D INPUT -j PROXYD-INPUT",
    "-t nat -F",
    "-t filter -F",
    "-t nat -F PROXYD-DEEP",
    "-t nat -D PROXYD-DEEP -p tcp -j RETURN",
    "-t filter -F PROXYD-INPUT",
];

fn repair(tools: &Tools) {
    for table in ["nat", "filter"] {
        iptables(tools, &format!("-t {table} -F"));
    }
    tools.restore(NAT).expect("it is valid");
    tools.restore(FILTER).expect("it is valid");
}

#[test]
fn sync_9_damage_is_noticed_whenever_it_was_done() {
    each(|tools| {
        for damage in DAMAGE {
            for n_before in [0, 1, 2] {
                let mut drift = written();
                for _ in 0..n_before {
                    assert!(!has_drifted(&mut drift, tools));
                }
                iptables(tools, damage);
                for _ in 0..2 {
                    assert!(
                        has_drifted(&mut drift, tools),
                        "{damage} after {n_before} questions, {tools:?}"
                    );
                }
                repair(tools);
            }
        }
    });
}

/// Damage that a change of others hides from who counts the table: each takes and adds a rule.
#[test]
fn sync_9_damage_beside_a_change_of_others_is_noticed() {
    each(|tools| {
        for damage in DAMAGE {
            let mut drift = written();
            assert!(!has_drifted(&mut drift, tools));
            for table in ["nat", "filter"] {
                iptables(tools, &format!("-t {table} -A OUTPUT -p tcp -j RETURN"));
            }
            iptables(tools, damage);
            // Of legacy the entries are looked at now and then while the size is the same.
            let is_noticed = (0..=UNSEEN).any(|_| has_drifted(&mut drift, tools));
            assert!(is_noticed, "{damage}, {tools:?}");
            repair(tools);
        }
    });
}

/// We write at the same time: what we wrote must not become what was done to it.
#[test]
fn sync_9_damage_beside_our_own_writes_is_noticed() {
    each(|tools| {
        for damage in DAMAGE {
            for is_damaged_first in [false, true] {
                let mut drift = written();
                assert!(!has_drifted(&mut drift, tools));
                if is_damaged_first {
                    iptables(tools, damage);
                }
                tools
                    .restore("*nat\n:PROXYD-OTHER - [0:0]\n-A PROXYD-OTHER -j RETURN\nCOMMIT\n")
                    .expect("it is valid");
                drift.table(Table::Nat).put(&chain("OTHER", &["-j RETURN"]));
                if !is_damaged_first {
                    iptables(tools, damage);
                }
                // Of legacy the entries are looked at only after so many checks while we write.
                let is_noticed = (0..=UNSEEN).any(|_| has_drifted(&mut drift, tools));
                assert!(is_noticed, "{damage}, {is_damaged_first}, {tools:?}");
                iptables(tools, "-t nat -F PROXYD-OTHER");
                iptables(tools, "-t nat -X PROXYD-OTHER");
                repair(tools);
            }
        }
    });
}

#[test]
fn sync_9_a_chain_in_the_place_of_another_is_noticed() {
    each(|tools| {
        if tools.flavour == Flavour::Legacy {
            return;
        }
        let mut drift = written();
        assert!(!has_drifted(&mut drift, tools));
        tools.restore("*nat\n-F PROXYD-SERVICES\n-F PROXYD-DEEP\n-X PROXYD-DEEP\n:PROXYD-DEEP - [0:0]\n\
             -A PROXYD-DEEP -j ACCEPT\n-A PROXYD-DEEP -j ACCEPT\n-A PROXYD-SERVICES -j PROXYD-DEEP\nCOMMIT\n",
        )
        .expect("it is valid");
        assert!(has_drifted(&mut drift, tools));
    });
}

#[test]
fn sync_9_a_table_that_is_gone_or_switched_off_is_noticed() {
    each(|tools| {
        if tools.flavour == Flavour::Legacy {
            return;
        }
        let family = match tools.family {
            IpFamily::V4 => "ip",
            IpFamily::V6 => "ip6",
        };
        for n_before in [0, 1] {
            for (damage, repair) in [
                ("nft flush ruleset".to_owned(), "true".to_owned()),
                (
                    format!("nft add table {family} nat '{{ flags dormant; }}'"),
                    format!("nft add table {family} nat"),
                ),
            ] {
                tools.restore(NAT).expect("it is valid");
                tools.restore(FILTER).expect("it is valid");
                let mut drift = written();
                for _ in 0..n_before {
                    assert!(!has_drifted(&mut drift, tools));
                }
                shell(&damage);
                assert!(has_drifted(&mut drift, tools), "{damage}");
                shell(&repair);
                shell("nft flush ruleset");
            }
        }
    });
}

#[test]
fn what_others_do_to_theirs_is_not_ours() {
    each(|tools| {
        let mut drift = written();
        let mut has_drifted = || has_drifted(&mut drift, tools);
        assert!(!has_drifted());
        for table in ["nat", "mangle", "filter"] {
            for change in [
                "-N OTHER",
                "-A OUTPUT -j OTHER",
                "-A OTHER -j RETURN",
                "-F OTHER",
            ] {
                iptables(tools, &format!("-t {table} {change}"));
                assert!(!has_drifted(), "{table} {change}");
            }
        }
        shell(
            "ipset create OTHER hash:ip; ipset add OTHER 10.0.0.1; ipset add PROXYD4-a 10.0.0.1,tcp:80 -exist",
        );
        assert!(!has_drifted());
    });
}

#[test]
fn what_we_write_and_note_is_no_disturbance() {
    each(|tools| {
        let mut drift = written();
        for n in 0..2 {
            assert!(!has_drifted(&mut drift, tools));
            tools
                .restore(
                    "*nat\n:PROXYD-NEW - [0:0]\n-A PROXYD-NEW -j PROXYD-DEEP\n\
                 :PROXYD-SERVICES - [0:0]\n-A PROXYD-SERVICES -p tcp -g PROXYD-NEW\nCOMMIT\n",
                )
                .expect("it is valid");
            drift
                .table(Table::Nat)
                .put(&chain("NEW", &["-j PROXYD-DEEP"]));
            drift
                .table(Table::Nat)
                .put(&chain("SERVICES", &["-p tcp -g PROXYD-NEW"]));
            for _ in 0..UNSEEN + 2 {
                assert!(!has_drifted(&mut drift, tools), "{n} {tools:?}");
            }
            tools
                .restore(
                    "*nat\n:PROXYD-SERVICES - [0:0]\n-A PROXYD-SERVICES -j PROXYD-DEEP\n\
                 -F PROXYD-NEW\n-X PROXYD-NEW\nCOMMIT\n",
                )
                .expect("it is valid");
            drift
                .table(Table::Nat)
                .put(&chain("SERVICES", &["-j PROXYD-DEEP"]));
            drift.table(Table::Nat).remove("PROXYD-NEW");
        }
        assert!(!has_drifted(&mut drift, tools));
        tools.ipset_restore(&["add PROXYD4-a 10.0.0.3,tcp:1\nadd PROXYD4-b 10.0.0.0/8\ndel PROXYD4-a 10.0.0.1,tcp:80\ndel PROXYD4-a 10.0.0.2,udp:80\n"]).expect("it is valid");
        assert!(has_drifted(&mut drift, tools));
        drift.sets.wrote("PROXYD4-a", 1, 2);
        drift.sets.wrote("PROXYD4-b", 1, 0);
        assert!(!has_drifted(&mut drift, tools));
    });
}

#[test]
fn our_own_writes_bring_no_copy_of_legacy_tables_forward() {
    each(|tools| {
        if tools.flavour == Flavour::Nft {
            return;
        }
        let mut drift = written();
        assert!(!has_drifted(&mut drift, tools));
        for round in 0..2 * UNSEEN {
            let rules = &["-j RETURN"; 2][..=round % 2];
            let text = format!("-A PROXYD-OTHER {}\n", rules[0]).repeat(rules.len());
            tools
                .restore(&format!("*nat\n:PROXYD-OTHER - [0:0]\n{text}COMMIT\n"))
                .expect("it is valid");
            drift.table(Table::Nat).put(&chain("OTHER", rules));
            assert!(!has_drifted(&mut drift, tools));
            assert_eq!(drift.n_checks, (round + 1) % (UNSEEN + 1));
        }
    });
}

#[test]
fn sync_9_a_set_that_is_flushed_or_gone_is_noticed() {
    each(|tools| {
        for damage in [
            "flush PROXYD4-a",
            "del PROXYD4-a 10.0.0.1,tcp:80",
            "add PROXYD4-b 1.0.0.0/8",
            "destroy PROXYD4-b",
        ] {
            for n_before in [0, 1] {
                let mut drift = written();
                for _ in 0..n_before {
                    assert!(!has_drifted(&mut drift, tools));
                }
                shell(&format!("ipset {damage}"));
                assert!(has_drifted(&mut drift, tools), "{damage}");
                shell("ipset flush");
                tools.ipset_restore(&[SETS]).expect("it is valid");
            }
        }
    });
}

#[test]
fn asking_creates_and_writes_nothing() {
    for tools in all_tools() {
        in_netns(move || {
            let mut drift = DriftCheck::default();
            assert!(!has_drifted(&mut drift, &tools));
            let names = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names; nft list ruleset";
            assert_eq!(shell(names), "");
            assert_eq!(shell("ipset list -n"), "");
        });
    }
    each(|tools| {
        let mut drift = written();
        let before = shell("nft list ruleset");
        for _ in 0..3 {
            let now = || generation(&mut Netfilter::open().expect("a socket")).expect("a number");
            let before = now();
            assert!(!has_drifted(&mut drift, tools));
            assert_eq!(now(), before);
        }
        assert_eq!(shell("nft list ruleset"), before);
    });
}
