//! How do others damage what a datapath left in the kernel, in a way that is drawn by chance?
//!
//! Invariants: what SYNC-9 promises to notice is drawn, and nothing else: a set that packets fill is left alone, and so is
//! what belongs to others; a kind is one line in the list of its datapath; all is done with the tools of a person.

use serde_json::json;

use crate::address::Family;
use crate::datapath::{Damage, Datapath, Flavour, nft_family};
use crate::netns::Netns;

mod objects;

use objects::{Chain, Set, chains, sets};

/// Chooses a number below this one.
pub type Choose<'a> = dyn FnMut(usize) -> usize + 'a;

/// What a kind of damage comes to, step by step; nothing if there is nothing to damage.
type Draw = fn(Datapath, &Netns, &mut Choose<'_>) -> Vec<Damage>;

/// A kind of damage.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// In a few words.
    pub name: &'static str,
    draw: Draw,
}

/// The kind whose author takes time over it.
pub const SLOW: Kind = kind("chains flushed slowly", slowly);

const fn kind(name: &'static str, draw: Draw) -> Kind {
    Kind { name, draw }
}

impl Kind {
    /// Draws one of the kind from what is there.
    ///
    /// More than one step is the work of somebody slow: time passes between them.
    pub fn draw(self, datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
        (self.draw)(datapath, node, choose)
    }
}

/// The kinds of damage that a datapath can suffer.
pub fn kinds(datapath: Datapath) -> Vec<Kind> {
    let mut kinds = vec![
        kind("everything flushed", everything),
        kind("a part flushed", a_part),
        kind("firewall reloaded", firewall),
        SLOW,
        kind("chain flushed", chain_flushed),
        kind("chain deleted", chain_deleted),
        kind("rule deleted", rule_deleted),
    ];
    match datapath {
        Datapath::Nftables => {
            kinds.push(kind("table deleted", table_deleted));
            kinds.push(kind("table dormant", dormant));
            kinds.push(kind("foreign rule in our chain", foreign_rule));
            kinds.push(kind("policy of our chain changed", policy));
            if kernel_counts_elements() {
                kinds.push(kind("set flushed", set_flushed));
                kinds.push(kind("element deleted", element_deleted));
            }
        }
        Datapath::Iptables(flavour) => {
            kinds.push(kind("set flushed", set_flushed));
            kinds.push(kind("element deleted", element_deleted));
            if flavour == Flavour::Nft {
                kinds.push(kind("table deleted", table_deleted));
            }
        }
    }
    kinds
}

/// Kernel: `NFTA_SET_COUNT`, since 6.17; before, nobody is told that elements of a set are missing.
fn kernel_counts_elements() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(a)), Some(Ok(b))) if (a, b) >= (6, 17))
}

/// A rule of nft in a table of iptables-nft that iptables cannot print, or its absence again.
pub fn unprintable(node: &Netns, is_there: bool) {
    for family in ["ip", "ip6"] {
        let script = if is_there {
            format!(
                "table {family} nat {{ chain unprintable {{ tcp dport vmap {{ 9 : accept }}; }}; }}"
            )
        } else {
            format!("delete chain {family} nat unprintable")
        };
        let done = node.feed("nft", &["-f", "-"], &script);
        done.unwrap_or_else(|error| panic!("{script}: {error:#}"));
    }
}

fn one<T>(mut from: Vec<T>, choose: &mut Choose<'_>) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(choose(from.len())))
}

fn a_family(choose: &mut Choose<'_>) -> Family {
    Family::ALL[choose(2)]
}

fn nft(what: impl Into<String>, script: impl Into<String>) -> Damage {
    Damage::new(what).feed("nft", "-f -", script)
}

fn everything(datapath: Datapath, node: &Netns, _: &mut Choose<'_>) -> Vec<Damage> {
    datapath.damages(node).into_iter().take(1).collect()
}

fn a_part(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let parts = datapath.damages(node).into_iter().skip(1).collect();
    one(parts, choose).into_iter().collect()
}

/// A firewall that puts its own rules in the place of all others.
fn firewall(datapath: Datapath, _: &Netns, _: &mut Choose<'_>) -> Vec<Damage> {
    const NFT: &str = "flush ruleset
        table inet firewall {
          chain input { type filter hook input priority 0; policy accept; ct state established accept; }
          chain forward { type filter hook forward priority 0; policy accept; ct state established accept; }
        }";
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
    let damage = match datapath {
        Datapath::Nftables => nft("flush ruleset, and rules of a firewall", NFT),
        Datapath::Iptables(flavour) => {
            let damage = Damage::new("iptables-restore of a firewall's rules");
            Family::ALL.into_iter().fold(damage, |damage, family| {
                damage.feed(flavour.program(family, "restore"), "-w", IPTABLES)
            })
        }
    };
    vec![damage]
}

fn slowly(datapath: Datapath, node: &Netns, _: &mut Choose<'_>) -> Vec<Damage> {
    let all = Family::ALL
        .into_iter()
        .flat_map(|family| chains(datapath, family, node));
    all.map(|chain| chain.flush()).collect()
}

fn chain_flushed(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let chain = one(chains(datapath, a_family(choose), node), choose);
    chain.iter().map(Chain::flush).collect()
}

fn chain_deleted(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let mut chains = chains(datapath, a_family(choose), node);
    if datapath == Datapath::Nftables {
        // What jumps to another chain are elements of maps and rules that a person would have to find first.
        chains.retain(|chain| chain.hook.is_some());
    }
    let chain = one(chains, choose);
    chain.iter().map(|chain| chain.delete(node)).collect()
}

fn rule_deleted(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let Some(chain) = one(chains(datapath, a_family(choose), node), choose) else {
        return Vec::new();
    };
    let n = choose(chain.rules.len());
    vec![chain.delete_rule(&chain.rules[n])]
}

fn table_deleted(datapath: Datapath, _: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let table = match datapath {
        Datapath::Nftables => "proxy-daemon",
        Datapath::Iptables(_) => ["nat", "filter"][choose(2)],
    };
    let script = format!("delete table {} {table}", nft_family(a_family(choose)));
    vec![nft(&script, &script)]
}

fn dormant(_: Datapath, _: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let family = nft_family(a_family(choose));
    let script = format!("add table {family} proxy-daemon {{ flags dormant; }}");
    vec![nft(&script, &script)]
}

fn foreign_rule(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let chain = one(chains(datapath, a_family(choose), node), choose);
    let insert = |chain: Chain| {
        let script = format!("insert rule {} {} accept", chain.table, chain.name);
        nft(&script, &script)
    };
    chain.into_iter().map(insert).collect()
}

fn policy(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let mut chains = chains(datapath, a_family(choose), node);
    chains.retain(|chain| chain.hook.is_some());
    let Some(chain) = one(chains, choose) else {
        return Vec::new();
    };
    let hook = chain.hook.as_deref().unwrap_or_default();
    let script = format!(
        "add chain {} {} {{ {hook} policy drop; }}",
        chain.table, chain.name
    );
    vec![nft(&script, &script)]
}

fn set_flushed(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let flush = |set: Set| match datapath {
        Datapath::Nftables => {
            let script = format!("flush {} {} {}", set.noun, set.table, set.name);
            nft(&script, &script)
        }
        Datapath::Iptables(_) => {
            let line = format!("flush {}", set.name);
            Damage::new(format!("ipset {line}")).feed("ipset", &line, "")
        }
    };
    let set = one(sets(datapath, a_family(choose), node), choose);
    set.into_iter().map(flush).collect()
}

fn element_deleted(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let Some(set) = one(sets(datapath, a_family(choose), node), choose) else {
        return Vec::new();
    };
    let element = &set.elements[choose(set.elements.len())];
    vec![match datapath {
        Datapath::Nftables => {
            let (family, table) = set.table.split_once(' ').unwrap_or_default();
            let element =
                json!({"family": family, "table": table, "name": set.name, "elem": [element]});
            let script = json!({"nftables": [{"delete": {"element": element}}]}).to_string();
            Damage::new(format!("delete element of {} {}", set.table, set.name))
                .feed("nft", "-j -f -", script)
        }
        Datapath::Iptables(_) => {
            let element = element.as_str().unwrap_or_default();
            let line = format!("del {} {element}", set.name);
            Damage::new(format!("ipset {line}")).feed("ipset", &line, "")
        }
    }]
}
