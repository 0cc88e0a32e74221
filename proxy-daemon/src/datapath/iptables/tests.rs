//! Do iptables and ipset hold what we meant, and is damage to it noticed?
//!
//! Each test has a network namespace of its own, so they need root; what packets meet there is tested
//! by the harness of the `tests` crate.

use super::sets::SetId;
use super::tool::tests::shell;
use super::*;
use crate::datapath::fixtures::{
    NOTHING, in_netns, one_of_each, service_port, state, sync_or_resync,
};
use crate::forwarding::{Affinity, ServicePort};
use crate::net::{V4, V6};

mod promises_nft {
    crate::datapath::tests::promises!("iptables-nft");
}

mod promises_legacy {
    crate::datapath::tests::promises!("iptables-legacy");
}

const FLAVOURS: [(Flavour, &str); 2] = [
    (Flavour::Nft, "iptables-nft"),
    (Flavour::Legacy, "iptables-legacy"),
];

fn the_text_is_what_is_written<F: Family>(flavour: Flavour, iptables: &str) {
    let iptables = match F::FAMILY {
        IpFamily::V4 => iptables.to_owned(),
        IpFamily::V6 => iptables.replace("iptables", "ip6tables"),
    };
    for is_default in [true, false] {
        let mut state = one_of_each::<F>();
        if !is_default {
            state.globals.netfilter.drop_invalid = false;
            state.globals.detector = None;
        }
        let text = rules(&state);
        let (sets, rules) = text.split_once("--noflush\n").unwrap();
        let file = format!("/tmp/pd-{}-{iptables}", std::process::id());
        for (input, program) in [
            (sets, "ipset restore".to_owned()),
            (rules, format!("{iptables}-restore --noflush")),
        ] {
            std::fs::write(&file, input).unwrap();
            shell(&format!("{program} < {file}"));
        }
        std::fs::remove_file(&file).unwrap();
        let mut datapath = Iptables::<F>::open(flavour).unwrap();
        assert_eq!(datapath.resync(&state).unwrap(), NOTHING);
        assert!(!datapath.changed_by_others().unwrap());
        datapath.cleanup().unwrap();
    }
}

/// What `dump --rules` prints is what the kernel gets.
#[test]
fn the_text_of_a_state_is_what_is_written() {
    for (flavour, iptables) in FLAVOURS {
        in_netns(move || the_text_is_what_is_written::<V4>(flavour, iptables));
        in_netns(move || the_text_is_what_is_written::<V6>(flavour, iptables));
    }
}

#[test]
fn sync_9_damage_is_noticed_and_repaired() {
    for (flavour, iptables) in FLAVOURS {
        in_netns(move || {
            let mut datapath = Iptables::<V4>::open(flavour).unwrap();
            let state = one_of_each::<V4>();
            datapath.resync(&state).unwrap();
            let first_set = "$(ipset save | grep -m1 -o 'PROXYD4-cluster-ips')";
            for damage in [
                format!("{iptables} -t nat -F"),
                format!("{iptables} -t filter -F"),
                format!("{iptables} -t nat -F PREROUTING"),
                format!("{iptables} -t filter -F PROXYD-UNKNOWN"),
                format!("{iptables} -t nat -F PROXYD-VIPS"),
                format!("{iptables} -t nat -D POSTROUTING 1"),
                format!("{iptables} -t filter -D OUTPUT 1"),
                format!("{iptables} -t nat -F; {iptables} -t nat -X"),
                format!("ipset flush {first_set}"),
            ] {
                assert!(!datapath.changed_by_others().unwrap(), "before {damage}");
                shell(&damage);
                assert!(datapath.changed_by_others().unwrap(), "{damage}");
                assert_ne!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
                assert_eq!(datapath.resync(&state).unwrap(), NOTHING, "{damage}");
            }
        });
    }
}

#[test]
fn sync_9_a_table_that_others_switched_off_is_switched_on() {
    in_netns(|| {
        let mut datapath = Iptables::<V4>::open(Flavour::Nft).unwrap();
        let state = one_of_each::<V4>();
        datapath.resync(&state).unwrap();
        for table in ["nat", "filter"] {
            assert!(!datapath.changed_by_others().unwrap());
            shell(&format!("nft 'add table ip {table} {{ flags dormant; }}'"));
            assert!(datapath.changed_by_others().unwrap());
            datapath.resync(&state).unwrap();
            assert!(!shell("nft list ruleset").contains("dormant"));
        }
    });
}

/// A chain that is gone to from a set cannot be removed, and what is in the set cannot be printed.
#[test]
fn sync_10_a_chain_that_others_hold_is_in_nobodys_way() {
    in_netns(|| {
        let mut datapath = Iptables::<V4>::open(Flavour::Nft).unwrap();
        datapath
            .resync(&state([service_port::<V4>(1, 3, 0)]))
            .unwrap();
        let chain = shell("iptables-nft -t nat -S | grep -m1 -o 'PROXYD-C-[A-Z0-9]*'");
        let chain = chain.trim();
        shell(&format!(
            "nft 'add chain ip nat FOREIGN'; \
             nft 'add rule ip nat FOREIGN ct mark 7 tcp dport vmap {{ 4444 : jump {chain} }}'"
        ));
        let mut datapath = Iptables::<V4>::open(Flavour::Nft).unwrap();
        let others = state([service_port::<V4>(2, 3, 0)]);
        assert_ne!(datapath.resync(&others).unwrap(), NOTHING);
        for _ in 0..3 {
            assert!(!datapath.changed_by_others().unwrap());
        }
        let left = shell("nft -s list table ip nat");
        assert!(
            left.contains(&format!("chain {chain} {{\n\t}}")),
            "it is empty: {left}"
        );
        shell("nft 'flush chain ip nat FOREIGN'; nft 'delete chain ip nat FOREIGN'");
        datapath.resync(&others).unwrap();
        assert!(!shell("nft list table ip nat").contains(chain));
        assert!(!datapath.changed_by_others().unwrap());
    });
}

#[test]
fn sync_10_foreign_rules_and_sets_stay() {
    for (flavour, iptables) in FLAVOURS {
        in_netns(move || {
            let foreign = format!(
                "{iptables} -t nat -N KUBE-MARK-DROP && {iptables} -t nat -A PREROUTING -j KUBE-MARK-DROP \
                 && {iptables} -A INPUT -s 192.0.2.9 -j DROP && ipset create theirs hash:ip && ipset add theirs 192.0.2.1"
            );
            shell(&foreign);
            let ours_aside = format!(
                "{iptables}-save | grep -v '^#' | grep -v PROXYD; ipset save | grep -v PROXYD"
            );
            let before = shell(&ours_aside).replace("[0:0]", "");
            let mut datapath = Iptables::<V4>::open(flavour).unwrap();
            let state = one_of_each::<V4>();
            datapath.resync(&state).unwrap();
            shell(&format!(
                "{iptables} -D INPUT -s 192.0.2.9 -j DROP && {iptables} -A INPUT -s 192.0.2.9 -j DROP"
            ));
            assert_eq!(shell(&ours_aside).replace("[0:0]", ""), before);
            datapath.resync(&state).unwrap();
            datapath.cleanup().unwrap();
            assert_eq!(shell(&ours_aside).replace("[0:0]", ""), before);
            let all = shell(&format!("{iptables}-save; ipset save"));
            assert!(!all.contains("PROXYD"), "{all}");
        });
    }
}

#[test]
fn aff_6_aff_8_aff_9_clients_are_forgotten_kept_and_kept_for_another_time() {
    for (flavour, _) in FLAVOURS {
        in_netns(move || {
            let is_default = |n, seconds| {
                let mut service_port = service_port::<V4>(1, n, 0);
                service_port.affinity = Affinity::Seconds(seconds);
                service_port
            };
            let clients = || {
                let all =
                    shell("ipset save | grep '^add PROXYD4-A-' | cut -d' ' -f3- | sort; true");
                all.lines().map(str::to_owned).collect::<Vec<String>>()
            };
            let mut datapath = Iptables::<V4>::open(flavour).unwrap();
            let first = state([is_default(3, 10_800)]);
            datapath.resync(&first).unwrap();
            shell(
                "n=1; for set in $(ipset list -n | grep PROXYD4-A-); do ipset add $set 192.0.2.$n timeout 10000; n=$((n+1)); done",
            );
            assert_eq!(clients().len(), 3);
            // Restart, and a change of something else.
            let second = state([is_default(3, 10_800), service_port(2, 3, 0xff)]);
            let mut restarted = Iptables::<V4>::open(flavour).unwrap();
            assert_eq!(restarted.resync(&first).unwrap(), NOTHING);
            sync_or_resync(&mut restarted, &first, &second);
            assert_eq!(clients().len(), 3);
            // A backend goes; and comes back, whether or not the kernel let go of its set meanwhile.
            let third = state([is_default(2, 10_800)]);
            sync_or_resync(&mut restarted, &second, &third);
            assert_eq!(clients().len(), 2);
            sync_or_resync(&mut restarted, &third, &first);
            assert_eq!(clients().len(), 2);
            sync_or_resync(&mut restarted, &first, &third);
            // The time changes: of 10,800 s, 800 s were over.
            let fourth = state([is_default(2, 1000)]);
            sync_or_resync(&mut restarted, &third, &fourth);
            let left = clients();
            let is_right = |client: &String| {
                let left: u32 = client.rsplit(' ').next().unwrap().parse().unwrap();
                (150..=200).contains(&left)
            };
            assert!(left.len() == 2 && left.iter().all(is_right), "{left:?}");
            let fifth = state([is_default(2, 500)]);
            sync_or_resync(&mut restarted, &fourth, &fifth);
            assert_eq!(clients(), Vec::<String>::new());
            assert_eq!(
                Iptables::open(flavour).unwrap().resync(&fifth).unwrap(),
                NOTHING
            );
        });
    }
}

/// An affinity set that the kernel still holds is destroyed as soon as that is possible.
#[test]
fn sync_11_affinity_sets_of_gone_backends_go() {
    for (flavour, _) in FLAVOURS {
        in_netns(move || {
            let mut datapath = Iptables::<V4>::open(flavour).unwrap();
            let old = state([service_port::<V4>(1, 5, 0b1000_0000)]);
            let new = state([service_port::<V4>(1, 1, 0b1000_0000)]);
            datapath.resync(&old).unwrap();
            sync_or_resync(&mut datapath, &old, &new);
            let mut attempts_left = 1000;
            while shell("ipset list -n").matches("PROXYD4-A-").count() > 1 {
                assert!(!datapath.changed_by_others().unwrap());
                attempts_left -= 1;
                assert!(attempts_left > 0);
            }
        });
    }
}

/// Who is over the limit has no sets; who is, `compile` says (see its tests).
#[test]
fn affinity_beyond_the_budget_is_none_and_nobody_else_suffers() {
    in_netns(|| {
        let mut datapath = Iptables::<V4>::open(Flavour::Nft).unwrap();
        let greedy = service_port::<V4>(1, 5_000, 0b1000_0000);
        let too_greedy = ServicePort {
            affinity: Affinity::OverLimit,
            ..service_port::<V4>(2, 8_193, 0b1000_0000)
        };
        let old = state([too_greedy, service_port(3, 3, 0b1000_0000)]);
        let new = state([greedy, service_port(3, 3, 0b1000_0000)]);
        datapath.resync(&old).unwrap();
        let elements = || {
            shell("ipset list -n | grep -c PROXYD4-A-; true")
                .trim()
                .to_owned()
        };
        assert_eq!(elements(), "3");
        sync_or_resync(&mut datapath, &old, &new);
        assert_eq!(elements(), "5003");
        sync_or_resync(&mut datapath, &new, &old);
        assert_eq!(
            Iptables::open(Flavour::Nft).unwrap().resync(&old).unwrap(),
            NOTHING
        );
    });
}

/// As an operator counts them.
#[test]
fn sync_16_sets_and_filter_rules_do_not_grow_with_services() {
    for (flavour, iptables) in FLAVOURS {
        in_netns(move || {
            let mut datapath = Iptables::<V4>::open(flavour).unwrap();
            let mut count = |n: u16| {
                let ports = (1..=n).map(|number| service_port::<V4>(number, 3, 0b0111_1000));
                datapath.resync(&state(ports)).unwrap();
                let lines = |command: &str| shell(command).lines().count();
                (
                    lines("ipset list -n"),
                    lines(&format!("{iptables} -t filter -S")),
                )
            };
            let few = count(2);
            assert!(few.0 >= SetId::ALL.len() && few.1 > 10, "{few:?}");
            assert_eq!(count(120), few);
        });
    }
}
