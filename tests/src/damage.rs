//! How do others damage what a datapath left in the kernel, in a way that is drawn by chance?
//!
//! Invariants: only damage that SYNC-9 promises to detect is drawn: sets that packets fill and foreign objects are not touched;
//! each datapath's harness says which objects are chains, sets or tables.

use crate::address::Family;
use crate::datapath::{Damage, Datapath, nft, nft_family};
use crate::netns::Netns;

/// Chooses a number below this one.
pub type Choose<'a> = dyn FnMut(usize) -> usize + 'a;

/// What a kind of damage comes to, step by step; nothing if there is nothing to damage.
type Draw = fn(Datapath, &Netns, &mut Choose<'_>) -> Vec<Damage>;

/// A kind of damage.
#[derive(Clone, Copy, Debug)]
pub struct DamageKind {
    /// In a few words.
    pub name: &'static str,
    draw: Draw,
}

/// The kind whose author takes time over it.
pub const SLOW: DamageKind = kind("chains flushed slowly", slowly);
pub(crate) const TABLE_DELETED: DamageKind = kind("table deleted", table_deleted);
pub(crate) const SET_FLUSHED: DamageKind = kind("set flushed", set_flushed);
pub(crate) const ELEMENT_DELETED: DamageKind = kind("element deleted", element_deleted);

pub(crate) const fn kind(name: &'static str, draw: Draw) -> DamageKind {
    DamageKind { name, draw }
}

impl DamageKind {
    /// Draws one of this kind from the objects that exist.
    ///
    /// With more than one step, time passes between them.
    pub fn draw(self, datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
        (self.draw)(datapath, node, choose)
    }
}

/// The kinds of damage that a datapath can suffer.
pub fn kinds(datapath: Datapath) -> Vec<DamageKind> {
    let mut kinds = vec![
        kind("everything flushed", everything),
        kind("a part flushed", a_part),
        kind("firewall reloaded", firewall),
        SLOW,
        kind("chain flushed", chain_flushed),
        kind("chain deleted", chain_deleted),
        kind("rule deleted", rule_deleted),
    ];
    kinds.extend(datapath.kinds_of_damage());
    kinds
}

/// A chain of ours, and how a person damages it.
#[derive(Clone, Debug)]
pub struct Chain {
    /// As the tool wants it: `ip proxy-daemon`, or `nat`.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Of a chain that the kernel calls, in the language of nft.
    pub hook: Option<String>,
    /// Flushes it.
    pub flush: Damage,
    /// Deletes it, if a person could.
    pub delete: Option<Damage>,
    /// Deletes one of its rules each.
    pub delete_rules: Vec<Damage>,
}

/// A set of ours with elements that only we write, and how a person damages it.
#[derive(Clone, Debug)]
pub struct Set {
    /// Flushes it.
    pub flush: Damage,
    /// Deletes one of its elements each.
    pub delete_elements: Vec<Damage>,
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

pub(crate) fn one<T>(mut from: Vec<T>, choose: &mut Choose<'_>) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(choose(from.len())))
}

pub(crate) fn a_family(choose: &mut Choose<'_>) -> Family {
    Family::ALL[choose(2)]
}

/// Our chains that have rules.
pub(crate) fn chains(datapath: Datapath, family: Family, node: &Netns) -> Vec<Chain> {
    let mut chains = datapath.chains(family, node);
    chains.retain(|chain| !chain.delete_rules.is_empty());
    chains
}

pub(crate) fn a_chain(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Option<Chain> {
    one(chains(datapath, a_family(choose), node), choose)
}

/// One of our sets that have elements.
fn a_set(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Option<Set> {
    let mut sets = datapath.sets(a_family(choose), node);
    sets.retain(|set| !set.delete_elements.is_empty());
    one(sets, choose)
}

fn everything(datapath: Datapath, node: &Netns, _: &mut Choose<'_>) -> Vec<Damage> {
    datapath.damages(node).into_iter().take(1).collect()
}

fn a_part(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let parts = datapath.damages(node).into_iter().skip(1).collect();
    one(parts, choose).into_iter().collect()
}

fn firewall(datapath: Datapath, _: &Netns, _: &mut Choose<'_>) -> Vec<Damage> {
    datapath.firewall().into_iter().collect()
}

fn slowly(datapath: Datapath, node: &Netns, _: &mut Choose<'_>) -> Vec<Damage> {
    let all = Family::ALL
        .into_iter()
        .flat_map(|family| chains(datapath, family, node));
    all.map(|chain| chain.flush).collect()
}

fn chain_flushed(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let chain = a_chain(datapath, node, choose);
    chain.into_iter().map(|chain| chain.flush).collect()
}

fn chain_deleted(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let chains = chains(datapath, a_family(choose), node).into_iter();
    let deletions = chains.filter_map(|chain| chain.delete).collect();
    one(deletions, choose).into_iter().collect()
}

fn rule_deleted(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let chain = a_chain(datapath, node, choose);
    let rule = chain.and_then(|chain| one(chain.delete_rules, choose));
    rule.into_iter().collect()
}

fn table_deleted(datapath: Datapath, _: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let family = nft_family(a_family(choose));
    let table = one(datapath.tables().to_vec(), choose);
    let script = table.map(|table| format!("delete table {family} {table}"));
    script
        .into_iter()
        .map(|script| nft(&script, &script))
        .collect()
}

fn set_flushed(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let set = a_set(datapath, node, choose);
    set.into_iter().map(|set| set.flush).collect()
}

fn element_deleted(datapath: Datapath, node: &Netns, choose: &mut Choose<'_>) -> Vec<Damage> {
    let set = a_set(datapath, node, choose);
    let element = set.and_then(|set| one(set.delete_elements, choose));
    element.into_iter().collect()
}
