//! What does each datapath leave in the kernel, as other programs show it, and how do others damage it?
//!
//! One file per datapath. Invariants: only these files know how a datapath stores what it means; all is seen and done with the
//! tools of a person (nft, iptables, ipset), never through the daemon.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::process::Child;

use proxy_daemon::datapath::DatapathKind;

use crate::address::Family;
use crate::damage::{Chain, DamageKind, Set};
use crate::netns::Netns;

mod iptables;
mod nftables;

pub use iptables::Flavour;

/// What the harness knows of a datapath. What has a default is needed by tests of damage and obstacles only.
pub trait Harness: Sync {
    /// The daemon's name for it.
    fn name(&self) -> &'static str;

    /// The word of `--mode`, which `/proxyMode` answers and whose section of the configuration file counts.
    fn mode(&self) -> &'static str;

    /// The metric that counts failed syncs.
    fn failures(&self) -> &'static str;

    /// Whether it may load kernel modules.
    fn loads_modules(&self) -> bool {
        false
    }

    /// Our objects in the kernel, without state that packets change, sorted.
    fn objects(&self, node: &Netns) -> BTreeSet<String>;

    /// Takes everything that is ours away, by hand.
    fn remove(&self, node: &Netns);

    /// The rules of a family, for a report.
    fn show(&self, family: Family, node: &Netns) -> String;

    /// Commands that print the rules of IPv4.
    fn commands(&self) -> &'static [&'static str];

    /// Ways in which others remove our objects; the first removes all of them.
    fn damages(&self, node: &Netns) -> Vec<Damage>;

    /// For how long the kernel still remembers each client of a Service with session affinity. Unit: seconds.
    fn seconds_left(&self, family: Family, node: &Netns) -> Vec<u64>;

    /// The programs of a family that the daemon runs, the one that writes rules last.
    fn programs(&self, _family: Family) -> Vec<String> {
        Vec::new()
    }

    /// Starts a program that keeps the daemon from writing a family, until it is killed; for a datapath without programs.
    fn seize(&self, _family: Family, _node: &Netns) -> Option<Child> {
        None
    }

    /// Whether its writes wait for `/run/xtables.lock`.
    fn takes_xtables_lock(&self) -> bool {
        false
    }

    /// A firewall that puts its own rules in the place of all others.
    fn firewall(&self) -> Option<Damage> {
        None
    }

    /// The kinds of damage that only it can suffer.
    fn kinds_of_damage(&self) -> Vec<DamageKind> {
        Vec::new()
    }

    /// Our chains that have rules.
    fn chains(&self, _family: Family, _node: &Netns) -> Vec<Chain> {
        Vec::new()
    }

    /// Sets of ours with elements that only we write.
    fn sets(&self, _family: Family, _node: &Netns) -> Vec<Set> {
        Vec::new()
    }

    /// Our tables, as nft names them, that can be deleted as a whole.
    fn tables(&self) -> &'static [&'static str] {
        &[]
    }
}

/// A datapath that behaviours are shown on.
#[derive(Clone, Copy)]
pub struct Datapath(&'static dyn Harness);

impl Datapath {
    /// All of them: one for each that the daemon has.
    pub const ALL: [Self; 3] = [
        Self(&nftables::Nftables),
        Self(&iptables::Iptables(Flavour::Nft)),
        Self(&iptables::Iptables(Flavour::Legacy)),
    ];

    /// The datapath of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|datapath| datapath.0.name() == name)
    }

    /// Its name in the names of tests.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// What the daemon knows of it.
    pub fn kind(self) -> DatapathKind {
        DatapathKind::named(self.name()).expect("the daemon has a datapath of this name")
    }

    /// The daemon's flags that ask for it.
    pub fn flags(self) -> Vec<String> {
        let mut flags = vec![format!("--mode={}", self.mode())];
        let backend = self.kind().backend();
        flags.extend(backend.map(|backend| format!("--iptables-backend={backend}")));
        flags
    }
}

impl Deref for Datapath {
    type Target = dyn Harness;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl PartialEq for Datapath {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Datapath {}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that others do to our objects.
#[derive(Clone, Debug)]
pub struct Damage {
    /// In a few words.
    pub what: String,
    /// Program, arguments and input, one after the other; one that fails finds its work done.
    commands: Vec<(String, Vec<String>, String)>,
}

impl Damage {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            commands: Vec::new(),
        }
    }

    pub(crate) fn feed(
        mut self,
        program: impl Into<String>,
        arguments: &str,
        input: impl Into<String>,
    ) -> Self {
        let arguments = arguments.split_whitespace().map(str::to_owned).collect();
        self.commands
            .push((program.into(), arguments, input.into()));
        self
    }

    /// Does it; whether there was anything to do.
    pub fn inflict(&self, node: &Netns) -> bool {
        let mut did_something = false;
        for (program, arguments, input) in &self.commands {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            did_something |= node.feed(program, &arguments, input).is_ok();
        }
        did_something
    }
}

/// What is ours of all datapaths.
pub fn everything_of_ours(node: &Netns) -> BTreeSet<String> {
    let all = Datapath::ALL.into_iter();
    all.flat_map(|datapath| datapath.objects(node)).collect()
}

/// As nft spells a family.
pub const fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Damage by a script of nft.
pub(crate) fn nft(what: impl Into<String>, script: impl Into<String>) -> Damage {
    Damage::new(what).feed("nft", "-f -", script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datapath_of_the_daemon_has_a_harness() {
        let of_daemon: Vec<_> = DatapathKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(Datapath::ALL.map(Datapath::name).to_vec(), of_daemon);
    }
}
