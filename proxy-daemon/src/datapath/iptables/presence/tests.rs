//! Is everything noticed that others do to our rules and sets, and nothing that they do to theirs?
//!
//! Each test has a network namespace of its own, so they need root.

use super::super::tool::tests::{all_tools, ipset, restore, shell};
use super::*;
use crate::datapath::fixtures::in_netns;
use crate::net::IpFamily;

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
const CHECK: &str = "*nat
-C PREROUTING -j PROXYD-SERVICES
-C OUTPUT -j PROXYD-SERVICES
COMMIT
*filter
-C INPUT -j PROXYD-INPUT
COMMIT
";
const SETS: &str = "create PROXYD4-a hash:ip,port
add PROXYD4-a 10.0.0.1,tcp:80
add PROXYD4-a 10.0.0.2,udp:80
create PROXYD4-b hash:net
";

fn now(tools: &Tools) -> Presence {
    Presence::now(tools, ["PROXYD4-a", "PROXYD4-b"].map(str::to_owned)).expect("it can be asked")
}

/// Asks once for each set.
fn is_disturbed(presence: &mut Presence, tools: &Tools) -> bool {
    (0..2).any(|_| {
        presence
            .is_disturbed(tools, &mut |w| w.write_all(CHECK.as_bytes()))
            .expect("it can be asked")
    })
}

/// A namespace with our rules and sets, for each family and flavour.
fn each(test: impl Fn(&Tools) + Send + Clone + 'static) {
    for tools in all_tools() {
        let test = test.clone();
        in_netns(move || {
            restore(&tools, NAT).expect("it is valid");
            restore(&tools, FILTER).expect("it is valid");
            ipset(&tools, SETS).expect("it is valid");
            test(&tools);
        });
    }
}

/// Calls iptables of this family and flavour.
fn iptables(tools: &Tools, arguments: &str) {
    let program = match tools.family() {
        IpFamily::V4 => "iptables",
        IpFamily::V6 => "ip6tables",
    };
    shell(&format!("{program}-{} {arguments}", tools.flavour().name()));
}

const DAMAGE: [&str; 8] = [
    "-t nat -D OUTPUT -j PROXYD-SERVICES",
    "-t nat -D PREROUTING -j PROXYD-SERVICES",
    "-t filter -D INPUT -j PROXYD-INPUT",
    "-t nat -F",
    "-t filter -F",
    "-t nat -F PROXYD-DEEP",
    "-t nat -D PROXYD-DEEP -p tcp -j RETURN",
    "-t filter -F PROXYD-INPUT",
];
const TOP_LEVEL: usize = 5;

#[test]
fn damage_is_noticed_at_the_first_question_and_at_a_later_one() {
    each(|tools| {
        for damage in DAMAGE {
            for n_before in [0, 1, 2] {
                let mut presence = now(tools);
                for _ in 0..n_before {
                    assert!(!is_disturbed(&mut presence, tools));
                }
                let is_first = n_before == 0 && tools.flavour() == Flavour::Nft;
                iptables(tools, damage);
                let is_top_level = DAMAGE[..TOP_LEVEL].contains(&damage);
                // What nft cannot know then is in the documentation of the module.
                assert_eq!(
                    is_disturbed(&mut presence, tools),
                    is_top_level || !is_first,
                    "{damage} after {n_before} questions, {tools:?}"
                );
                if !is_first || is_top_level {
                    assert!(
                        is_disturbed(&mut presence, tools),
                        "{damage} is still there"
                    );
                }
                for table in ["nat", "filter"] {
                    iptables(tools, &format!("-t {table} -F"));
                }
                restore(tools, NAT).expect("it is valid");
                restore(tools, FILTER).expect("it is valid");
            }
        }
    });
}

#[test]
fn a_table_that_is_gone_is_noticed() {
    each(|tools| {
        if tools.flavour() == Flavour::Legacy {
            return;
        }
        for n_before in [0, 1] {
            let mut presence = now(tools);
            for _ in 0..n_before {
                assert!(!is_disturbed(&mut presence, tools));
            }
            shell("nft flush ruleset");
            assert!(is_disturbed(&mut presence, tools));
            restore(tools, NAT).expect("it is valid");
            restore(tools, FILTER).expect("it is valid");
        }
    });
}

#[test]
fn what_others_do_to_theirs_is_not_ours() {
    each(|tools| {
        let mut presence = now(tools);
        assert!(!is_disturbed(&mut presence, tools));
        // Of a legacy table only its size is known.
        let table = match tools.flavour() {
            Flavour::Nft => "nat",
            Flavour::Legacy => "mangle",
        };
        iptables(tools, &format!("-t {table} -N OTHER"));
        iptables(tools, &format!("-t {table} -A OUTPUT -j OTHER"));
        shell(
            "ipset create OTHER hash:ip; ipset add OTHER 10.0.0.1; ipset add PROXYD4-a 10.0.0.1,tcp:80 -exist",
        );
        assert!(!is_disturbed(&mut presence, tools));
        let mut presence = now(tools);
        iptables(tools, &format!("-t {table} -F OTHER"));
        assert!(!is_disturbed(&mut presence, tools));
    });
}

#[test]
fn what_we_write_and_note_is_no_disturbance() {
    each(|tools| {
        let mut presence = now(tools);
        for _ in 0..2 {
            assert!(!is_disturbed(&mut presence, tools));
            restore(tools, "*nat\n-A PROXYD-DEEP -j RETURN\nCOMMIT\n").expect("it is valid");
            presence.wrote_rules(tools).expect("it can be asked");
            assert!(!is_disturbed(&mut presence, tools));
        }
        ipset(tools, "add PROXYD4-a 10.0.0.3,tcp:1\nadd PROXYD4-b 10.0.0.0/8\ndel PROXYD4-a 10.0.0.1,tcp:80\ndel PROXYD4-a 10.0.0.2,udp:80\n").expect("it is valid");
        assert!(is_disturbed(&mut presence, tools));
        presence.wrote_set("PROXYD4-a", 1, 2);
        presence.wrote_set("PROXYD4-b", 1, 0);
        assert!(!is_disturbed(&mut presence, tools));
    });
}

#[test]
fn a_set_that_is_flushed_or_gone_is_noticed() {
    each(|tools| {
        for damage in [
            "flush PROXYD4-a",
            "del PROXYD4-a 10.0.0.1,tcp:80",
            "add PROXYD4-b 1.0.0.0/8",
            "destroy PROXYD4-b",
        ] {
            let mut presence = now(tools);
            assert!(!is_disturbed(&mut presence, tools));
            shell(&format!("ipset {damage}"));
            assert!(is_disturbed(&mut presence, tools), "{damage}");
            ipset(tools, SETS).expect("it is valid");
        }
    });
}

#[test]
fn asking_creates_and_writes_nothing() {
    for tools in all_tools() {
        in_netns(move || {
            let mut presence = now(&tools);
            let asked = presence.is_disturbed(&tools, &mut |w| w.write_all(b""));
            assert!(!asked.expect("it can be asked"));
            let names = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names; nft list ruleset";
            assert_eq!(shell(names), "");
            assert_eq!(shell("ipset list -n"), "");
        });
    }
    each(|tools| {
        let mut presence = now(tools);
        let before = shell("nft list ruleset");
        for _ in 0..3 {
            let generation = nft::generation().expect("it can be asked");
            assert!(!is_disturbed(&mut presence, tools));
            assert_eq!(nft::generation().expect("it can be asked"), generation);
        }
        assert_eq!(shell("nft list ruleset"), before);
    });
}
