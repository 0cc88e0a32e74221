//! What does nftables mode leave in the kernel, and how do others damage it?

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Damage, Datapath, Harness, nft, nft_family};
use crate::address::Family;
use crate::damage::{self, Chain, Choose, DamageKind, Set};
use crate::netns::Netns;
use crate::wait::within;

/// Tables of `nf_tables`.
pub(super) struct Nftables;

impl Harness for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn mode(&self) -> &'static str {
        "nftables"
    }

    fn failures(&self) -> &'static str {
        "sync_proxy_rules_nftables_sync_failures_total"
    }

    fn objects(&self, node: &Netns) -> BTreeSet<String> {
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

    fn seconds_left(&self, family: Family, node: &Netns) -> Vec<u64> {
        let table = ["-j", "list", "table", nft_family(family), "proxy-daemon"];
        let text = node.run("nft", &table).stdout;
        let mut left = Vec::new();
        expirations(&serde_json::from_slice(&text).unwrap(), &mut left);
        left
    }

    fn remove(&self, node: &Netns) {
        for family in ["ip", "ip6"] {
            let script =
                format!("add table {family} proxy-daemon; delete table {family} proxy-daemon");
            node.feed("nft", &["-f", "-"], &script).unwrap();
        }
    }

    fn show(&self, family: Family, node: &Netns) -> String {
        let table = ["list", "table", nft_family(family), "proxy-daemon"];
        String::from_utf8_lossy(&node.run("nft", &table).stdout).into_owned()
    }

    fn commands(&self) -> &'static [&'static str] {
        &["nft list table ip proxy-daemon"]
    }

    fn damages(&self, _node: &Netns) -> Vec<Damage> {
        damages()
    }

    /// Replaces the family's table by one that it owns, so that the kernel refuses other writers.
    fn seize(&self, family: Family, node: &Netns) -> Option<Child> {
        let family = nft_family(family);
        let mut owner = node.enter(|| {
            Command::new("nft")
                .arg("-i")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        });
        let stdin = owner.stdin.as_mut().unwrap();
        let script = format!(
            "add table {family} proxy-daemon; delete table {family} proxy-daemon; \
             add table {family} proxy-daemon {{ flags owner; }}\n"
        );
        stdin.write_all(script.as_bytes()).unwrap();
        stdin.flush().unwrap();
        let list = ["list", "table", family, "proxy-daemon"];
        let is_owned = || {
            let output = node.run("nft", &list).stdout;
            String::from_utf8_lossy(&output).contains("flags owner")
        };
        if !within(Duration::from_secs(5), is_owned) {
            owner.kill().unwrap();
            owner.wait().unwrap();
            panic!("the table is not owned");
        }
        Some(owner)
    }

    fn firewall(&self) -> Option<Damage> {
        const NFT: &str = "flush ruleset
        table inet firewall {
          chain input { type filter hook input priority 0; policy accept; ct state established accept; }
          chain forward { type filter hook forward priority 0; policy accept; ct state established accept; }
        }";
        Some(nft("flush ruleset, and rules of a firewall", NFT))
    }

    fn kinds_of_damage(&self) -> Vec<DamageKind> {
        let mut kinds = vec![
            damage::TABLE_DELETED,
            damage::kind("table dormant", dormant),
            damage::kind("foreign rule in our chain", foreign_rule),
            damage::kind("policy of our chain changed", policy),
        ];
        if kernel_counts_elements() {
            kinds.extend([damage::SET_FLUSHED, damage::ELEMENT_DELETED]);
        }
        kinds
    }

    fn chains(&self, family: Family, node: &Netns) -> Vec<Chain> {
        let listed = list(family, node);
        let table = format!("{} proxy-daemon", nft_family(family));
        let mut found = Vec::new();
        for object in listed.iter().map(|object| &object["chain"]) {
            let Some(name) = object["name"].as_str() else {
                continue;
            };
            let of_chain = |rule: &&Value| rule["chain"] == name;
            let rules = listed.iter().map(|object| &object["rule"]).filter(of_chain);
            let hook = hook(object);
            let flush = format!("flush chain {table} {name}");
            found.push(Chain {
                flush: nft(&flush, &flush),
                // Only elements of maps and rules jump to the other chains.
                delete: hook.is_some().then(|| {
                    let delete = format!("delete chain {table} {name}");
                    nft(&delete, format!("{flush}\n{delete}"))
                }),
                delete_rules: rules
                    .map(|rule| {
                        let handle = &rule["handle"];
                        let script = format!("delete rule {table} {name} handle {handle}");
                        nft(&script, &script)
                    })
                    .collect(),
                table: table.clone(),
                name: name.to_owned(),
                hook,
            });
        }
        found
    }

    fn sets(&self, family: Family, node: &Netns) -> Vec<Set> {
        let table = format!("{} proxy-daemon", nft_family(family));
        let mut found = Vec::new();
        for object in list(family, node) {
            for noun in ["set", "map"] {
                let set = &object[noun];
                let elements = set["elem"].as_array().cloned().unwrap_or_default();
                // Flags say that packets fill it, or that it has intervals, which the kernel counts otherwise.
                let (Some(name), true) = (set["name"].as_str(), set["flags"].is_null()) else {
                    continue;
                };
                let flush = format!("flush {noun} {table} {name}");
                let delete = |element| {
                    let element = json!({"family": nft_family(family), "table": "proxy-daemon",
                        "name": name, "elem": [element]});
                    let script = json!({"nftables": [{"delete": {"element": element}}]});
                    Damage::new(format!("delete element of {table} {name}")).feed(
                        "nft",
                        "-j -f -",
                        script.to_string(),
                    )
                };
                found.push(Set {
                    flush: nft(&flush, &flush),
                    delete_elements: elements.into_iter().map(delete).collect(),
                });
            }
        }
        found
    }

    fn tables(&self) -> &'static [&'static str] {
        &["proxy-daemon"]
    }
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

/// Whether packets made this element, which expires by itself.
fn is_memory(element: &Value) -> bool {
    let key = element.get(0).unwrap_or(element);
    key["elem"].get("expires").is_some()
}

fn damages() -> Vec<Damage> {
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

/// Kernel: `NFTA_SET_COUNT`, since 6.17; older kernels do not report the number of elements.
fn kernel_counts_elements() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(a)), Some(Ok(b))) if (a, b) >= (6, 17))
}

fn dormant(_: Datapath, _: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let family = nft_family(damage::a_family(choose));
    let script = format!("add table {family} proxy-daemon {{ flags dormant; }}");
    vec![nft(&script, &script)]
}

fn foreign_rule(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let chain = damage::a_chain(datapath, node, choose);
    let insert = |chain: Chain| {
        let script = format!("insert rule {} {} accept", chain.table, chain.name);
        nft(&script, &script)
    };
    chain.into_iter().map(insert).collect()
}

fn policy(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let mut chains = damage::chains(datapath, damage::a_family(choose), node);
    chains.retain(|chain| chain.hook.is_some());
    let Some(chain) = damage::one(chains, choose) else {
        return Vec::new();
    };
    let hook = chain.hook.as_deref().unwrap_or_default();
    let script = format!(
        "add chain {} {} {{ {hook} policy drop; }}",
        chain.table, chain.name
    );
    vec![nft(&script, &script)]
}

/// How nft spells that the kernel calls a chain.
fn hook(chain: &Value) -> Option<String> {
    let (kind, hook) = (chain["type"].as_str()?, chain["hook"].as_str()?);
    Some(format!(
        "type {kind} hook {hook} priority {};",
        chain["prio"]
    ))
}

fn list(family: Family, node: &Netns) -> Vec<Value> {
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

/// Every `expires` in a listing.
fn expirations(listing: &Value, found: &mut Vec<u64>) {
    match listing {
        Value::Object(fields) => {
            found.extend(fields.get("expires").and_then(Value::as_u64));
            fields.values().for_each(|value| expirations(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expirations(value, found)),
        _ => {}
    }
}
