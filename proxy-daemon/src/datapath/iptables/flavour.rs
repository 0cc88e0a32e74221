//! Which of the two iptables does this node use?
//!
//! Both may be installed, and rules of both meet every packet; whoever works on the node should use the
//! same. Source: iptables-wrappers of kubernetes-sigs. Invariants: looking creates no table; our own
//! rules do not count, so that what was chosen once is no reason to choose it again.

use std::error::Error;

use super::names::CHAIN_PREFIX;
use super::tool::Tools;
use crate::net::IpFamily;

/// One of the two programs that are called iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// iptables-nft: its rules are rules of `nf_tables`.
    Nft,
    /// iptables-legacy: its rules are those of `ip_tables`.
    Legacy,
}

impl Flavour {
    /// The name in lower case, as in the names of the programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The one that this node uses, in the network namespace of the calling thread, and why.
    ///
    /// Changes nothing. If the programs of neither can be used, the answer is one whose opening says so.
    pub fn detect() -> (Self, &'static str) {
        // At the same time, so that one that hangs takes its time once.
        let (nft, legacy) = std::thread::scope(|threads| {
            let nft = threads.spawn(|| Signs::of(Self::Nft));
            let legacy = Signs::of(Self::Legacy);
            (nft.join().unwrap_or_default(), legacy)
        });
        decide(nft, legacy, n_foreign_rules)
    }
}

// Why a flavour was chosen.
const ONLY_THIS_WORKS: &str = "the programs of the other cannot be used here";
const HINT: &str = "kubelet's chain KUBE-IPTABLES-HINT is in it";
const CANARY: &str = "kubelet's chain KUBE-KUBELET-CANARY is in it";
const MORE_RULES: &str = "it has more rules than the other";
const NEWER: &str = "neither is in use, and it is the newer one";

/// What kubelet left in a flavour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    /// Whether its programs are there and can read the tables of one family at least.
    works: bool,
    has_hint: bool,
    has_canary: bool,
}

/// The table in which kubelet has its chains.
const KUBELETS: &str = "mangle";
/// Where rules may be that meet packets.
const TABLES: [&str; 4] = [KUBELETS, "nat", "filter", "raw"];

impl Signs {
    fn of(flavour: Flavour) -> Self {
        let mut signs = Self::default();
        signs.works = read(flavour, &[KUBELETS], &mut |line| {
            let chain = line
                .strip_prefix(':')
                .and_then(|line| line.split(' ').next());
            signs.has_hint |= chain == Some("KUBE-IPTABLES-HINT");
            signs.has_canary |= chain == Some("KUBE-KUBELET-CANARY");
        });
        signs
    }
}

/// How many rules of others a flavour has; at 100,000 this takes a second.
fn n_foreign_rules(flavour: Flavour) -> usize {
    let mut n = 0;
    read(flavour, &TABLES, &mut |line| {
        // A rule of ours is in a chain of ours or jumps to one.
        if line.starts_with("-A ") && !line.contains(CHAIN_PREFIX) {
            n += 1;
        }
    });
    n
}

/// Hands the lines of these tables to `each`; answers whether all could be read in one family at least.
fn read(flavour: Flavour, tables: &[&str], each: &mut dyn FnMut(&str)) -> bool {
    let mut works = false;
    for family in IpFamily::ALL {
        let Ok(tools) = Tools::open(family, flavour) else {
            continue;
        };
        let mut is_readable = true;
        for table in tables {
            if let Err(error) = tools.save(table, each) {
                let error: &dyn Error = &error;
                tracing::debug!(
                    flavour = flavour.name(),
                    table,
                    error,
                    "cannot read the table"
                );
                is_readable = false;
            }
        }
        works |= is_readable;
    }
    works
}

fn decide(
    nft: Signs,
    legacy: Signs,
    n_rules: impl Fn(Flavour) -> usize,
) -> (Flavour, &'static str) {
    let one = |is_nft| {
        if is_nft {
            Flavour::Nft
        } else {
            Flavour::Legacy
        }
    };
    for (nft, legacy, because) in [
        (nft.works, legacy.works, ONLY_THIS_WORKS),
        (nft.has_hint, legacy.has_hint, HINT),
        (nft.has_canary, legacy.has_canary, CANARY),
    ] {
        if nft != legacy {
            return (one(nft), because);
        }
    }
    let n_nft = n_rules(Flavour::Nft);
    let n_legacy = n_rules(Flavour::Legacy);
    if n_nft == n_legacy {
        (Flavour::Nft, NEWER)
    } else {
        (one(n_nft > n_legacy), MORE_RULES)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tool::tests::{all_tools, shell};
    use super::*;
    use crate::datapath::fixtures::in_netns;

    #[test]
    fn signs_are_weighed_in_their_order() {
        let absent = Signs::default();
        let none = Signs {
            works: true,
            ..absent
        };
        let hint = Signs {
            has_hint: true,
            ..none
        };
        let canary = Signs {
            has_canary: true,
            ..none
        };
        let all_but_programs = Signs {
            works: false,
            has_hint: true,
            has_canary: true,
        };
        let table = [
            (none, none, [0, 0], Flavour::Nft, NEWER),
            (absent, none, [0, 0], Flavour::Legacy, ONLY_THIS_WORKS),
            (none, absent, [0, 9], Flavour::Nft, ONLY_THIS_WORKS),
            (
                all_but_programs,
                none,
                [9, 0],
                Flavour::Legacy,
                ONLY_THIS_WORKS,
            ),
            (
                none,
                all_but_programs,
                [0, 9],
                Flavour::Nft,
                ONLY_THIS_WORKS,
            ),
            (absent, absent, [0, 0], Flavour::Nft, NEWER),
            (canary, hint, [9, 0], Flavour::Legacy, HINT),
            (hint, canary, [0, 9], Flavour::Nft, HINT),
            (none, canary, [9, 0], Flavour::Legacy, CANARY),
            (hint, hint, [0, 0], Flavour::Nft, NEWER),
            (hint, hint, [0, 1], Flavour::Legacy, MORE_RULES),
            (none, none, [9, 10], Flavour::Legacy, MORE_RULES),
            (none, none, [10, 9], Flavour::Nft, MORE_RULES),
        ];
        for (nft, legacy, [n_nft, n_legacy], flavour, because) in table {
            let n_rules = |flavour| match flavour {
                Flavour::Nft => n_nft,
                Flavour::Legacy => n_legacy,
            };
            let decided = decide(nft, legacy, n_rules);
            assert_eq!(decided, (flavour, because), "{nft:?} {legacy:?}");
        }
    }

    #[test]
    fn looking_at_an_untouched_node_leaves_it_untouched() {
        in_netns(|| {
            assert_eq!(Flavour::detect(), (Flavour::Nft, NEWER));
            let names = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names; nft list ruleset";
            assert_eq!(shell(names), "");
        });
    }

    #[test]
    fn the_flavour_of_kubelet_is_found_in_either_family() {
        for tools in all_tools() {
            for (chain, because) in [
                ("KUBE-IPTABLES-HINT", HINT),
                ("KUBE-KUBELET-CANARY", CANARY),
            ] {
                let tools = tools.clone();
                in_netns(move || {
                    tools
                        .restore(&format!("*mangle\n:{chain} - [0:0]\nCOMMIT\n"))
                        .expect("it is valid");
                    assert_eq!(Flavour::detect(), (tools.flavour, because));
                });
            }
        }
    }

    #[test]
    fn without_kubelet_the_rules_of_others_decide_and_ours_do_not() {
        in_netns(|| {
            for tools in all_tools() {
                if tools.family == IpFamily::V6 {
                    continue;
                }
                let ours = ":PROXYD-A - [0:0]\n-A OUTPUT -j PROXYD-A\n-A PROXYD-A -j RETURN\n";
                let theirs = match tools.flavour {
                    Flavour::Legacy => "-A OUTPUT -j RETURN\n",
                    Flavour::Nft => "",
                };
                tools
                    .restore(&format!("*nat\n{ours}{theirs}COMMIT\n"))
                    .expect("it is valid");
                if tools.flavour == Flavour::Nft {
                    assert_eq!(Flavour::detect(), (Flavour::Nft, NEWER));
                }
            }
            assert_eq!(Flavour::detect(), (Flavour::Legacy, MORE_RULES));
        });
    }
}
