//! Which of the two iptables does this node use?
//!
//! Both may be installed, and rules of both meet every packet; whoever works on the node should use the
//! same. Source: iptables-wrappers of kubernetes-sigs. Invariants: looking creates no table; our own
//! rules do not count, so that what was chosen once is no reason to choose it again.

use std::fmt;

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
    pub fn detect() -> (Self, Because) {
        decide(&Signs::of(Self::Nft), &Signs::of(Self::Legacy))
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a flavour was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// The programs of the other cannot be used here.
    OnlyThisWorks,
    /// kubelet made its chain for this very question, KUBE-IPTABLES-HINT, in this one.
    Hint,
    /// kubelet watches for flushes, by KUBE-KUBELET-CANARY, in this one.
    Canary,
    /// It has more rules of others.
    MoreRules,
    /// Nothing speaks for either, and it is the newer one.
    Newer,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OnlyThisWorks => "the programs of the other cannot be used here",
            Self::Hint => "kubelet's chain KUBE-IPTABLES-HINT is in it",
            Self::Canary => "kubelet's chain KUBE-KUBELET-CANARY is in it",
            Self::MoreRules => "it has more rules than the other",
            Self::Newer => "neither is in use, and it is the newer one",
        })
    }
}

/// What speaks for a flavour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    /// Whether its programs are there and can read the tables of one family at least.
    works: bool,
    has_hint: bool,
    has_canary: bool,
    /// Rules that are not ours.
    n_rules: usize,
}

/// Where rules may be; `security` is not for packets.
const TABLES: [&str; 4] = ["mangle", "nat", "filter", "raw"];

impl Signs {
    fn of(flavour: Flavour) -> Self {
        let mut signs = Self::default();
        for family in IpFamily::ALL {
            let Ok(tools) = Tools::open(family, flavour) else {
                continue;
            };
            let mut is_readable = true;
            for table in TABLES {
                let read = tools.save(table, &mut |line| signs.take(table, line));
                if let Err(error) = read {
                    tracing::debug!(%flavour, table, error = &error as &dyn std::error::Error, "unreadable");
                    is_readable = false;
                }
            }
            signs.works |= is_readable;
        }
        signs
    }

    /// Takes a line that `iptables-save` printed.
    fn take(&mut self, table: &str, line: &str) {
        let is_chain = |name| {
            table == "mangle"
                && line
                    .strip_prefix(':')
                    .and_then(|line| line.split(' ').next())
                    == Some(name)
        };
        self.has_hint |= is_chain("KUBE-IPTABLES-HINT");
        self.has_canary |= is_chain("KUBE-KUBELET-CANARY");
        // A rule of ours is in a chain of ours or jumps to one.
        if line.starts_with("-A ") && !line.contains("PROXYD-") {
            self.n_rules += 1;
        }
    }
}

fn decide(nft: &Signs, legacy: &Signs) -> (Flavour, Because) {
    let one = |is_nft| {
        if is_nft {
            Flavour::Nft
        } else {
            Flavour::Legacy
        }
    };
    if nft.works != legacy.works {
        (one(nft.works), Because::OnlyThisWorks)
    } else if nft.has_hint != legacy.has_hint {
        (one(nft.has_hint), Because::Hint)
    } else if nft.has_canary != legacy.has_canary {
        (one(nft.has_canary), Because::Canary)
    } else if nft.n_rules != legacy.n_rules {
        (one(nft.n_rules > legacy.n_rules), Because::MoreRules)
    } else {
        (Flavour::Nft, Because::Newer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tool::tests::{all_tools, in_netns, restore, shell};
    use super::*;

    const NONE: Signs = Signs {
        works: true,
        has_hint: false,
        has_canary: false,
        n_rules: 0,
    };

    #[test]
    fn signs_are_weighed_in_their_order() {
        let absent = Signs::default();
        let hint = Signs {
            has_hint: true,
            ..NONE
        };
        let canary = Signs {
            has_canary: true,
            ..NONE
        };
        let rules = |n_rules| Signs { n_rules, ..NONE };
        let all_but_programs = Signs {
            works: false,
            has_hint: true,
            has_canary: true,
            n_rules: 100,
        };
        let table = [
            (NONE, NONE, Flavour::Nft, Because::Newer),
            (absent, NONE, Flavour::Legacy, Because::OnlyThisWorks),
            (NONE, absent, Flavour::Nft, Because::OnlyThisWorks),
            (
                all_but_programs,
                NONE,
                Flavour::Legacy,
                Because::OnlyThisWorks,
            ),
            (NONE, all_but_programs, Flavour::Nft, Because::OnlyThisWorks),
            (absent, absent, Flavour::Nft, Because::Newer),
            (canary, hint, Flavour::Legacy, Because::Hint),
            (hint, canary, Flavour::Nft, Because::Hint),
            (rules(9), canary, Flavour::Legacy, Because::Canary),
            (hint, hint, Flavour::Nft, Because::Newer),
            (rules(9), rules(10), Flavour::Legacy, Because::MoreRules),
            (rules(10), rules(9), Flavour::Nft, Because::MoreRules),
        ];
        for (nft, legacy, flavour, because) in table {
            assert_eq!(
                decide(&nft, &legacy),
                (flavour, because),
                "{nft:?} {legacy:?}"
            );
        }
    }

    #[test]
    fn looking_at_an_untouched_node_leaves_it_untouched() {
        in_netns(|| {
            assert_eq!(Flavour::detect(), (Flavour::Nft, Because::Newer));
            let names = "cat /proc/self/net/ip_tables_names /proc/self/net/ip6_tables_names; nft list ruleset";
            assert_eq!(shell(names), "");
        });
    }

    #[test]
    fn the_flavour_of_kubelet_is_found_in_either_family() {
        for tools in all_tools() {
            for (chain, because) in [
                ("KUBE-IPTABLES-HINT", Because::Hint),
                ("KUBE-KUBELET-CANARY", Because::Canary),
            ] {
                let tools = tools.clone();
                in_netns(move || {
                    restore(&tools, &format!("*mangle\n:{chain} - [0:0]\nCOMMIT\n"))
                        .expect("it is valid");
                    assert_eq!(Flavour::detect(), (tools.flavour(), because));
                });
            }
        }
    }

    #[test]
    fn without_kubelet_the_rules_of_others_decide_and_ours_do_not() {
        in_netns(|| {
            for tools in all_tools() {
                if tools.family() == IpFamily::V6 {
                    continue;
                }
                let ours = ":PROXYD-A - [0:0]\n-A OUTPUT -j PROXYD-A\n-A PROXYD-A -j RETURN\n";
                let theirs = match tools.flavour() {
                    Flavour::Legacy => "-A OUTPUT -j RETURN\n",
                    Flavour::Nft => "",
                };
                restore(&tools, &format!("*nat\n{ours}{theirs}COMMIT\n")).expect("it is valid");
                if tools.flavour() == Flavour::Nft {
                    assert_eq!(Flavour::detect(), (Flavour::Nft, Because::Newer));
                }
            }
            assert_eq!(Flavour::detect(), (Flavour::Legacy, Because::MoreRules));
        });
    }
}
