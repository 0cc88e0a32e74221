//! Which chains and sets of a datapath can be damaged one by one, and by which commands?
//!
//! Invariants: chains without rules and sets without elements are not among them, nor are sets that packets fill.

use serde_json::Value;

use super::nft;
use crate::address::Family;
use crate::datapath::{Damage, Datapath, OURS, nft_family, save};
use crate::netns::Netns;

/// A chain of ours with rules.
pub(super) struct Chain {
    datapath: Datapath,
    family: Family,
    /// As the tool wants it: `ip proxy-daemon`, or `nat`.
    pub(super) table: String,
    pub(super) name: String,
    /// Of a chain that the kernel calls, in the language of nft.
    pub(super) hook: Option<String>,
    /// The handle, or the rule itself as it is saved.
    pub(super) rules: Vec<String>,
}

impl Chain {
    pub(super) fn flush(&self) -> Damage {
        match self.datapath {
            Datapath::Nftables => {
                let script = format!("flush chain {} {}", self.table, self.name);
                nft(&script, &script)
            }
            Datapath::Iptables(flavour) => {
                let line = format!("-w -t {} -F {}", self.table, self.name);
                let program = flavour.program(self.family, "");
                Damage::new(format!("{program} {line}")).feed(program, &line, "")
            }
        }
    }

    pub(super) fn delete(&self, node: &Netns) -> Damage {
        let (table, name) = (&self.table, &self.name);
        match self.datapath {
            Datapath::Nftables => {
                let script = format!("flush chain {table} {name}\ndelete chain {table} {name}");
                nft(format!("delete chain {table} {name}"), script)
            }
            Datapath::Iptables(flavour) => {
                let leads_here = |line: &&str| {
                    let mut words = line
                        .split(' ')
                        .skip_while(|word| !matches!(*word, "-j" | "-g"));
                    words.nth(1) == Some(name)
                };
                let text = save(flavour, self.family, node);
                let rules = table_of(&text, table).filter_map(|line| line.strip_prefix("-A "));
                let mut script = vec![format!("*{table}")];
                script.extend(rules.filter(leads_here).map(|rule| format!("-D {rule}")));
                script.push(format!("-F {name}\n-X {name}\nCOMMIT\n"));
                let what = format!("-t {table} -X {name}, and what leads there");
                Damage::new(what).feed(
                    flavour.program(self.family, "restore"),
                    "-w --noflush",
                    script.join("\n"),
                )
            }
        }
    }

    pub(super) fn delete_rule(&self, rule: &str) -> Damage {
        let (table, name) = (&self.table, &self.name);
        match self.datapath {
            Datapath::Nftables => {
                let script = format!("delete rule {table} {name} handle {rule}");
                nft(&script, &script)
            }
            Datapath::Iptables(flavour) => {
                let script = format!("*{table}\n-D {rule}\nCOMMIT\n");
                Damage::new(format!("-t {table} -D {rule}")).feed(
                    flavour.program(self.family, "restore"),
                    "-w --noflush",
                    script,
                )
            }
        }
    }
}

/// The lines of one table of what iptables-save prints.
fn table_of<'a>(text: &'a str, table: &str) -> impl Iterator<Item = &'a str> {
    let head = format!("*{table}");
    let lines = text.lines().skip_while(move |line| *line != head);
    lines.skip(1).take_while(|line| *line != "COMMIT")
}

/// Our chains that have rules.
pub(super) fn chains(datapath: Datapath, family: Family, node: &Netns) -> Vec<Chain> {
    let chain = |table: &str, name: &str, hook, rules| Chain {
        datapath,
        family,
        table: table.to_owned(),
        name: name.to_owned(),
        hook,
        rules,
    };
    let mut found = Vec::new();
    match datapath {
        Datapath::Nftables => {
            let listed = nft_list(family, node);
            let table = format!("{} proxy-daemon", nft_family(family));
            for object in listed.iter().map(|object| &object["chain"]) {
                let Some(name) = object["name"].as_str() else {
                    continue;
                };
                let of_chain = |rule: &&Value| rule["chain"] == name;
                let rules = listed.iter().map(|object| &object["rule"]).filter(of_chain);
                let rules: Vec<_> = rules.map(|rule| rule["handle"].to_string()).collect();
                found.push(chain(&table, name, hook(object), rules));
            }
        }
        Datapath::Iptables(flavour) => {
            let text = save(flavour, family, node);
            for table in ["nat", "filter"] {
                let ours = format!(":{OURS}");
                for line in table_of(&text, table).filter(|line| line.starts_with(&ours)) {
                    let name = line.trim_start_matches(':').split(' ').next();
                    let name = name.unwrap_or_default();
                    let begin = format!("-A {name} ");
                    let rules = table_of(&text, table).filter(|line| line.starts_with(&begin));
                    let rules: Vec<_> = rules.map(|line| line[3..].to_owned()).collect();
                    found.push(chain(table, name, None, rules));
                }
            }
        }
    }
    found.retain(|chain| !chain.rules.is_empty());
    found
}

/// How nft spells that the kernel calls a chain.
fn hook(chain: &Value) -> Option<String> {
    let (kind, hook) = (chain["type"].as_str()?, chain["hook"].as_str()?);
    Some(format!(
        "type {kind} hook {hook} priority {};",
        chain["prio"]
    ))
}

/// A set of ours with elements that only we write.
pub(super) struct Set {
    /// `set` or `map`.
    pub(super) noun: &'static str,
    pub(super) table: String,
    pub(super) name: String,
    pub(super) elements: Vec<Value>,
}

pub(super) fn sets(datapath: Datapath, family: Family, node: &Netns) -> Vec<Set> {
    match datapath {
        Datapath::Nftables => {
            let mut found = Vec::new();
            for object in nft_list(family, node) {
                for noun in ["set", "map"] {
                    let set = &object[noun];
                    let elements = set["elem"].as_array().cloned().unwrap_or_default();
                    // Flags say that packets fill it, or that it has intervals, which the kernel counts otherwise.
                    if let (Some(name), true, false) = (
                        set["name"].as_str(),
                        set["flags"].is_null(),
                        elements.is_empty(),
                    ) {
                        found.push(Set {
                            noun,
                            table: format!("{} proxy-daemon", nft_family(family)),
                            name: name.to_owned(),
                            elements,
                        });
                    }
                }
            }
            found
        }
        Datapath::Iptables(_) => {
            let text = String::from_utf8_lossy(&node.run("ipset", &["save"]).stdout).into_owned();
            let ours = match family {
                Family::V4 => format!("create {OURS}4-"),
                Family::V6 => format!("create {OURS}6-"),
            };
            let created = text
                .lines()
                .filter(|line| line.starts_with(&ours) && !line.contains("timeout"));
            let found = created.map(|line| {
                let name = line.split(' ').nth(1).unwrap_or_default();
                let begin = format!("add {name} ");
                let elements = text.lines().filter_map(|line| line.strip_prefix(&begin));
                Set {
                    noun: "set",
                    table: String::new(),
                    name: name.to_owned(),
                    elements: elements.map(Value::from).collect(),
                }
            });
            found.filter(|set| !set.elements.is_empty()).collect()
        }
    }
}

fn nft_list(family: Family, node: &Netns) -> Vec<Value> {
    let list = [
        "-a",
        "-j",
        "list",
        "table",
        nft_family(family),
        "proxy-daemon",
    ];
    let value: Value = serde_json::from_slice(&node.run("nft", &list).stdout).unwrap_or_default();
    value["nftables"].as_array().cloned().unwrap_or_default()
}
