//! What does each datapath leave in the kernel, as other programs show it, and how do others damage it?
//!
//! Invariants: the only place that knows how a datapath stores what it means; all is seen and done with the tools of a person
//! (nft, iptables, ipset), never through the daemon.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::address::Family;
use crate::netns::Netns;

/// How the names of our chains and sets of iptables and ipset begin.
pub(crate) const OURS: &str = "PROXYD";

/// A datapath that behaviours are shown on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// Tables of `nf_tables`.
    Nftables,
    /// Chains of one of the two iptables, and sets of ipset.
    Iptables(Flavour),
}

/// One of the two programs that are called iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Rules of `nf_tables`.
    Nft,
    /// Rules of `ip_tables`.
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// As `--iptables-backend` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The program of a family: `iptables-nft`, or with `restore`, `iptables-nft-restore`.
    pub fn program(self, family: Family, what: &str) -> String {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let dash = if what.is_empty() { "" } else { "-" };
        format!("{program}-{}{dash}{what}", self.name())
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

impl Datapath {
    /// All of them.
    pub const ALL: [Self; 3] = [
        Self::Nftables,
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
    ];

    /// The datapath of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|datapath| datapath.name() == name)
    }

    /// Its name in the names of tests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables(Flavour::Nft) => "iptables-nft",
            Self::Iptables(Flavour::Legacy) => "iptables-legacy",
        }
    }

    /// The daemon's flags that ask for it.
    pub fn flags(self) -> Vec<String> {
        match self {
            Self::Nftables => vec!["--mode=nftables".to_owned()],
            Self::Iptables(flavour) => vec![
                "--mode=iptables".to_owned(),
                format!("--iptables-backend={}", flavour.name()),
            ],
        }
    }

    /// What is ours in the kernel, without what packets change, in an order of its own.
    pub fn objects(self, node: &Netns) -> BTreeSet<String> {
        match self {
            Self::Nftables => nft_objects(node),
            Self::Iptables(flavour) => &chains(flavour, node) | &sets(node),
        }
    }

    /// Ways in which others take what is ours away, all of it first.
    pub fn damages(self, node: &Netns) -> Vec<Damage> {
        match self {
            Self::Nftables => nft_damages(),
            Self::Iptables(flavour) => iptables_damages(flavour, node),
        }
    }

    /// Takes everything that is ours away, by hand.
    pub fn remove(self, node: &Netns) {
        match self {
            Self::Nftables => {
                for family in ["ip", "ip6"] {
                    let script = format!(
                        "add table {family} proxy-daemon; delete table {family} proxy-daemon"
                    );
                    node.feed("nft", &["-f", "-"], &script).unwrap();
                }
            }
            Self::Iptables(flavour) => {
                for family in Family::ALL {
                    let restore = flavour.program(family, "restore");
                    let script = removal(&save(flavour, family, node));
                    node.feed(&restore, &["--noflush"], &script).unwrap();
                }
                let sets = our_sets(node);
                let destroy = |set: &String| format!("destroy {set}\n");
                let script: String = sets.iter().map(destroy).collect();
                node.feed("ipset", &["restore"], &script).unwrap();
            }
        }
    }

    /// The rules of a family, for a report.
    pub fn show(self, family: Family, node: &Netns) -> String {
        match self {
            Self::Nftables => {
                let table = ["list", "table", nft_family(family), "proxy-daemon"];
                String::from_utf8_lossy(&node.run("nft", &table).stdout).into_owned()
            }
            Self::Iptables(flavour) => {
                let sets = node.run("ipset", &["save"]);
                let sets = String::from_utf8_lossy(&sets.stdout).into_owned();
                save(flavour, family, node) + &sets
            }
        }
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

fn nft_objects(node: &Netns) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for family in ["ip", "ip6"] {
        let output = node.run("nft", &["-j", "list", "table", family, "proxy-daemon"]);
        let Ok(value) = serde_json::from_slice::<Value>(&output.stdout) else {
            continue;
        };
        for object in value["nftables"].as_array().into_iter().flatten() {
            flatten(family, object, &mut found);
        }
    }
    found
}

fn flatten(family: &str, object: &Value, found: &mut BTreeSet<String>) {
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
            let elements = elements.as_array().into_iter().flatten();
            for element in elements.filter(|element| !is_memory(element)) {
                found.insert(format!("{family} {name} {element}"));
            }
        }
    }
    if object.get("metainfo").is_none() {
        found.insert(format!("{family} {object}"));
    }
}

/// Whether packets made this element: it goes by itself.
fn is_memory(element: &Value) -> bool {
    let key = element.get(0).unwrap_or(element);
    key["elem"].get("expires").is_some()
}

fn nft_damages() -> Vec<Damage> {
    let mut flush = Damage::new("nft flush ruleset").feed("nft", "-f -", "flush ruleset");
    let mut empty = Damage::new("nft flush table");
    for family in ["ip", "ip6"] {
        // A table that its owner protects survives the flush.
        flush = flush.feed("nft", "-f -", format!("delete table {family} proxy-daemon"));
        empty = empty.feed("nft", "-f -", format!("flush table {family} proxy-daemon"));
    }
    let mut off = Damage::new("nft add table … { flags dormant; }");
    let mut drop = Damage::new("nft add chain … { policy drop; }");
    let mut objects = Damage::new("nft add quota");
    let mut sets = Damage::new("nft add rule with sets of its own");
    for family in ["ip", "ip6"] {
        let table = format!("{family} proxy-daemon");
        off = off.feed(
            "nft",
            "-f -",
            format!("add table {table} {{ flags dormant; }}"),
        );
        drop = drop.feed(
            "nft",
            "-f -",
            format!("add chain {table} filter-forward {{ policy drop; }}"),
        );
        objects = objects.feed(
            "nft",
            "-f -",
            format!("add quota {table} foreign {{ over 1 bytes; }}"),
        );
        sets = sets.feed(
            "nft",
            "-f -",
            format!("insert rule {table} services meta l4proto {{ tcp, udp, sctp }} accept"),
        );
    }
    vec![flush, empty, off, drop, objects, sets]
}

pub(crate) fn save(flavour: Flavour, family: Family, node: &Netns) -> String {
    let output = node.run(&flavour.program(family, "save"), &[]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Our chains with their rules, numbered within each, and the rules of other chains that lead to them.
fn chains(flavour: Flavour, node: &Netns) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        let program = flavour.program(family, "");
        let mut table = "";
        let mut n_rules: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        let text = save(flavour, family, node);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            }
            let mut words = line.split(' ');
            let (Some(verb), chain) = (words.next(), words.next().unwrap_or_default()) else {
                continue;
            };
            if !line.contains(OURS) {
                continue;
            }
            if verb == "-A" {
                let n = n_rules.entry((table, chain)).or_default();
                *n += 1;
                found.insert(format!("{program} {table} {line} [{n}]"));
            } else {
                // Behind it are policy and counters.
                found.insert(format!("{program} {table} {verb}"));
            }
        }
    }
    found
}

/// Sets of ours, without what the kernel chooses and the elements that packets made, which go by themselves.
fn sets(node: &Netns) -> BTreeSet<String> {
    let output = node.run("ipset", &["save"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let chosen = ["hashsize", "initval", "bucketsize"];
    let ours = |line: &&str| {
        line.split(' ')
            .nth(1)
            .is_some_and(|set| set.starts_with(OURS))
    };
    let is_memory = |line: &&str| line.starts_with("add") && line.contains(" timeout ");
    text.lines()
        .filter(ours)
        .filter(|line| !is_memory(line))
        .map(|line| {
            let mut left = Vec::new();
            let mut words = line.split(' ');
            while let Some(word) = words.next() {
                if chosen.contains(&word) {
                    words.next();
                } else {
                    left.push(word);
                }
            }
            format!("ipset {}", left.join(" "))
        })
        .collect()
}

fn our_sets(node: &Netns) -> Vec<String> {
    let output = node.run("ipset", &["list", "-name"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ours = text.lines().filter(|name| name.starts_with(OURS));
    ours.map(str::to_owned).collect()
}

/// What `iptables-restore --noflush` must do to remove our chains and what leads to them.
fn removal(save: &str) -> String {
    let mut script: Vec<String> = Vec::new();
    let mut removed = Vec::new();
    for line in save.lines().filter(|line| !line.starts_with('#')) {
        let chain = line.split([' ', ':']).nth(1).unwrap_or_default();
        if line.starts_with(':') && chain.starts_with(OURS) {
            // It empties the chain, too.
            script.push(format!(":{chain} - [0:0]"));
            removed.push(format!("-X {chain}"));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            if rule.contains(OURS) && !chain.starts_with(OURS) {
                script.push(format!("-D {rule}"));
            }
        } else if line == "COMMIT" {
            script.append(&mut removed);
            script.push(line.to_owned());
        } else if line.starts_with('*') {
            script.push(line.to_owned());
        }
    }
    script.join("\n") + "\n"
}

fn iptables_damages(flavour: Flavour, node: &Netns) -> Vec<Damage> {
    let flush = |damage: Damage, tables: &[&str]| {
        let mut damage = damage;
        for family in Family::ALL {
            let program = flavour.program(family, "");
            for table in tables {
                for verb in ["-F", "-X"] {
                    damage = damage.feed(&program, &format!("-w -t {table} {verb}"), "");
                }
            }
        }
        damage
    };
    let mut damages = vec![
        flush(
            Damage::new("iptables -F, -X in nat and filter"),
            &["nat", "filter"],
        ),
        flush(Damage::new("iptables -F, -X in nat"), &["nat"]),
        flush(Damage::new("iptables -F, -X in filter"), &["filter"]),
    ];
    if flavour == Flavour::Nft {
        damages.push(Damage::new("nft flush ruleset").feed("nft", "-f -", "flush ruleset"));
    }
    for family in Family::ALL {
        let restore = flavour.program(family, "restore");
        let mut table = String::new();
        for line in save(flavour, family, node).lines() {
            if line.starts_with('*') {
                line.clone_into(&mut table);
            }
            let Some(rule) = line.strip_prefix("-A ") else {
                continue;
            };
            if rule.contains(OURS) && !rule.starts_with(OURS) {
                let script = format!("{table}\n-D {rule}\nCOMMIT\n");
                let damage = Damage::new(format!("{restore}: {table}: -D {rule}"));
                damages.push(damage.feed(&restore, "--noflush", script));
            }
        }
    }
    damages
}
