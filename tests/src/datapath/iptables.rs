//! What do the iptables modes leave in the kernel, and how do others damage it?

use std::collections::{BTreeMap, BTreeSet};

use super::{Damage, Datapath, Harness};
use crate::address::Family;
use crate::damage::{self, Chain, DamageKind, Set};
use crate::netns::Netns;

/// How the names of our chains and sets of iptables and ipset begin.
const OURS: &str = "PROXYD";

/// Chains of one of the two iptables, and sets of ipset.
pub(super) struct Iptables(pub(super) Flavour);

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

    /// The datapath that uses it.
    pub fn datapath(self) -> Datapath {
        let mut all = Datapath::ALL.into_iter();
        let mine = all.find(|datapath| datapath.kind().backend() == Some(self.name()));
        mine.expect("each has a datapath")
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

impl Harness for Iptables {
    fn name(&self) -> &'static str {
        match self.0 {
            Flavour::Nft => "iptables-nft",
            Flavour::Legacy => "iptables-legacy",
        }
    }

    fn mode(&self) -> &'static str {
        "iptables"
    }

    fn failures(&self) -> &'static str {
        "sync_proxy_rules_iptables_restore_failures_total"
    }

    fn loads_modules(&self) -> bool {
        self.0 == Flavour::Legacy
    }

    fn objects(&self, node: &Netns) -> BTreeSet<String> {
        &chains(self.0, node) | &sets(node)
    }

    fn seconds_left(&self, _family: Family, node: &Netns) -> Vec<u64> {
        let text = node.run("ipset", &["save"]).stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        let entries = text.lines().filter(|line| line.starts_with("add PROXYD"));
        let left = entries.filter_map(|line| line.split_once(" timeout ")?.1.split(' ').next());
        left.map(|seconds| seconds.parse().unwrap()).collect()
    }

    fn remove(&self, node: &Netns) {
        for family in Family::ALL {
            let restore = self.0.program(family, "restore");
            let script = removal(&save(self.0, family, node));
            node.feed(&restore, &["--noflush"], &script).unwrap();
        }
        let sets = our_sets(node);
        let destroy = |set: &String| format!("destroy {set}\n");
        let script: String = sets.iter().map(destroy).collect();
        node.feed("ipset", &["restore"], &script).unwrap();
    }

    fn show(&self, family: Family, node: &Netns) -> String {
        let sets = node.run("ipset", &["save"]);
        let sets = String::from_utf8_lossy(&sets.stdout).into_owned();
        save(self.0, family, node) + &sets
    }

    fn commands(&self) -> &'static [&'static str] {
        match self.0 {
            Flavour::Nft => &["iptables-nft-save", "ipset list"],
            Flavour::Legacy => &["iptables-legacy-save", "ipset list"],
        }
    }

    fn damages(&self, node: &Netns) -> Vec<Damage> {
        damages(self.0, node)
    }

    fn programs(&self, family: Family) -> Vec<String> {
        ["save", "restore"]
            .map(|what| self.0.program(family, what))
            .to_vec()
    }

    fn takes_xtables_lock(&self) -> bool {
        self.0 == Flavour::Legacy
    }

    fn firewall(&self) -> Option<Damage> {
        const IPTABLES: &str = "*nat
:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 9997 -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:FIREWALL - [0:0]
-A INPUT -j FIREWALL
-A FORWARD -j FIREWALL
-A FIREWALL -m conntrack --ctstate ESTABLISHED -j ACCEPT
COMMIT\n";
        let damage = Damage::new("iptables-restore of a firewall's rules");
        let damage = Family::ALL.into_iter().fold(damage, |damage, family| {
            damage.feed(self.0.program(family, "restore"), "-w", IPTABLES)
        });
        Some(damage)
    }

    fn kinds_of_damage(&self) -> Vec<DamageKind> {
        let mut kinds = vec![damage::SET_FLUSHED, damage::ELEMENT_DELETED];
        if self.0 == Flavour::Nft {
            kinds.push(damage::TABLE_DELETED);
        }
        kinds
    }

    fn chains(&self, family: Family, node: &Netns) -> Vec<Chain> {
        let text = save(self.0, family, node);
        let mut found = Vec::new();
        for table in ["nat", "filter"] {
            let ours = format!(":{OURS}");
            for line in table_of(&text, table).filter(|line| line.starts_with(&ours)) {
                let name = line.trim_start_matches(':').split(' ').next();
                let name = name.unwrap_or_default();
                found.push(self.chain(family, &text, table, name));
            }
        }
        found
    }

    fn sets(&self, family: Family, node: &Netns) -> Vec<Set> {
        let text = String::from_utf8_lossy(&node.run("ipset", &["save"]).stdout).into_owned();
        let ours = match family {
            Family::V4 => format!("create {OURS}4-"),
            Family::V6 => format!("create {OURS}6-"),
        };
        let created = text
            .lines()
            .filter(|line| line.starts_with(&ours) && !line.contains("timeout"));
        let ipset = |line: String| Damage::new(format!("ipset {line}")).feed("ipset", &line, "");
        let found = created.map(|line| {
            let name = line.split(' ').nth(1).unwrap_or_default();
            let begin = format!("add {name} ");
            let elements = text.lines().filter_map(|line| line.strip_prefix(&begin));
            Set {
                flush: ipset(format!("flush {name}")),
                delete_elements: elements
                    .map(|element| ipset(format!("del {name} {element}")))
                    .collect(),
            }
        });
        found.collect()
    }

    fn tables(&self) -> &'static [&'static str] {
        &["nat", "filter"]
    }
}

impl Iptables {
    /// A chain in the output of iptables-save.
    fn chain(&self, family: Family, text: &str, table: &str, name: &str) -> Chain {
        let restore = |what: String, script: String| {
            Damage::new(what).feed(self.0.program(family, "restore"), "-w --noflush", script)
        };
        let leads_here = |line: &&str| {
            let mut words = line
                .split(' ')
                .skip_while(|word| !matches!(*word, "-j" | "-g"));
            words.nth(1) == Some(name)
        };
        let rules = || table_of(text, table).filter_map(|line| line.strip_prefix("-A "));
        let mut delete = vec![format!("*{table}")];
        delete.extend(rules().filter(leads_here).map(|rule| format!("-D {rule}")));
        delete.push(format!("-F {name}\n-X {name}\nCOMMIT\n"));
        let flush = format!("-w -t {table} -F {name}");
        let program = self.0.program(family, "");
        let begin = format!("{name} ");
        Chain {
            flush: Damage::new(format!("{program} {flush}")).feed(program, &flush, ""),
            delete: Some(restore(
                format!("-t {table} -X {name}, and what leads there"),
                delete.join("\n"),
            )),
            delete_rules: rules()
                .filter(|rule| rule.starts_with(&begin))
                .map(|rule| {
                    let script = format!("*{table}\n-D {rule}\nCOMMIT\n");
                    restore(format!("-t {table} -D {rule}"), script)
                })
                .collect(),
            table: table.to_owned(),
            name: name.to_owned(),
            hook: None,
        }
    }
}

fn save(flavour: Flavour, family: Family, node: &Netns) -> String {
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

/// Our sets, without values that the kernel chooses and elements that packets made, which expire by themselves.
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

/// Input of `iptables-restore --noflush` that removes our chains and the jumps to them.
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

fn damages(flavour: Flavour, node: &Netns) -> Vec<Damage> {
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

/// The lines of one table in the output of iptables-save.
fn table_of<'a>(text: &'a str, table: &str) -> impl Iterator<Item = &'a str> {
    let head = format!("*{table}");
    let lines = text.lines().skip_while(move |line| *line != head);
    lines.skip(1).take_while(|line| *line != "COMMIT")
}
