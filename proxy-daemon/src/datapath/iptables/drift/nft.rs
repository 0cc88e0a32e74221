//! What does `nf_tables` say about our chains without showing their rules?
//!
//! The number of transactions that there have been, and for each chain how often it is used: by its own
//! rules, and by rules that go to it. Invariants: chains of others do not count; what others wrote need
//! not be understood.

use std::io;

use super::expected::Found;
use crate::datapath::iptables::chain::Table;
use crate::datapath::iptables::names::CHAIN_PREFIX;
use crate::net::IpFamily;
use crate::sys::netfilter::attributes::{Attr, Attrs, Writer};
use crate::sys::netfilter::library::Header;
use crate::sys::netfilter::{NFTABLES, Netfilter, family_number, undisturbed};

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = NFTABLES | 1;
const GET_CHAIN: u16 = NFTABLES | 4;
const GET_RULE: u16 = NFTABLES | 7;
const DELETE_RULE: u16 = 8;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
/// `NFT_TABLE_F_DORMANT`.
const DORMANT: u32 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HANDLE: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// How often a listing is repeated because another program wrote meanwhile.
const LISTINGS: usize = 5;

fn is_ours(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX)
}

/// The number of the last transaction, in whichever table of the network namespace.
pub(super) fn generation() -> io::Result<u32> {
    crate::sys::netfilter::generation(&mut Netfilter::open()?)
}

/// Carries out one change.
fn change(family: IpFamily, kind: u16, attributes: &Writer) -> io::Result<()> {
    let family = family_number(family).into();
    Netfilter::open()?.commit_one(Header { kind, family }, attributes)
}

/// Whether the table is there and switched off: none of its chains sees a packet then.
pub(super) fn is_dormant(family: IpFamily, table: Table) -> io::Result<bool> {
    let mut name = Writer::new();
    name.attr_str(NFTA_TABLE_NAME, table.name());
    let mut flags = 0;
    let family = family_number(family);
    match Netfilter::open()?.get(GET_TABLE, family, &name, &mut |table| {
        flags = table.u32(NFTA_TABLE_FLAGS).unwrap_or(0);
    }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(flags & DORMANT != 0),
    }
}

/// Switches the table on.
pub(super) fn wake(family: IpFamily, table: Table) -> io::Result<()> {
    let mut w = Writer::new();
    w.attr_str(NFTA_TABLE_NAME, table.name());
    w.attr_u32(NFTA_TABLE_FLAGS, 0);
    change(family, NEW_TABLE, &w)
}

/// The chains of ours, with their tables.
///
/// # Errors
/// `Interrupted` if others wrote meanwhile, again and again.
pub(super) fn chains(family: IpFamily) -> io::Result<Vec<(Table, Found)>> {
    let mut netfilter = Netfilter::open()?;
    undisturbed(LISTINGS, || {
        let mut chains = Vec::new();
        all_chains(&mut netfilter, family, &mut |table, name, chain| {
            if is_ours(name) {
                let found = Found {
                    name: name.to_owned(),
                    handle: chain
                        .get(NFTA_CHAIN_HANDLE)
                        .and_then(Attr::u64)
                        .unwrap_or(0),
                    uses: chain.u32(NFTA_CHAIN_USE).unwrap_or(0),
                };
                chains.push((table, found));
            }
        })?;
        Ok(chains)
    })
}

/// Hands out the name of each chain in the tables that we write, with its attributes.
fn all_chains(
    netfilter: &mut Netfilter,
    family: IpFamily,
    each: &mut dyn FnMut(Table, &str, Attrs<'_>),
) -> io::Result<()> {
    let family = family_number(family);
    netfilter.list(GET_CHAIN, family, &Writer::new(), &mut |chain| {
        let table = chain.str(NFTA_CHAIN_TABLE);
        let table = Table::ALL.into_iter().find(|t| Some(t.name()) == table);
        if let (Some(table), Some(name)) = (table, chain.str(NFTA_CHAIN_NAME)) {
            each(table, name, chain);
        }
    })
}

/// A rule in a foreign chain that jumps to a chain of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    /// The chain that it is in.
    pub(super) chain: String,
    handle: Vec<u8>,
}

/// The rules of a table, in chains of others, that go to a chain of ours.
pub(super) fn jumps(family: IpFamily, table: Table) -> io::Result<Vec<Jump>> {
    let mut netfilter = Netfilter::open()?;
    undisturbed(LISTINGS, || {
        let mut jumps = Vec::new();
        let mut chains = Vec::new();
        all_chains(&mut netfilter, family, &mut |of, name, _| {
            if of == table && !is_ours(name) {
                chains.push(name.to_owned());
            }
        })?;
        for chain in chains {
            let mut w = Writer::new();
            w.attr_str(NFTA_RULE_TABLE, table.name());
            w.attr_str(NFTA_RULE_CHAIN, &chain);
            netfilter.list(GET_RULE, family_number(family), &w, &mut |rule| {
                let is_of_it = rule.str(NFTA_RULE_CHAIN) == Some(&*chain)
                    && rule.str(NFTA_RULE_TABLE) == Some(table.name());
                if is_of_it
                    && goes_to_ours(rule)
                    && let Some(handle) = rule.get(NFTA_RULE_HANDLE)
                {
                    jumps.push(Jump {
                        chain: chain.clone(),
                        handle: handle.payload.to_owned(),
                    });
                }
            })?;
        }
        Ok(jumps)
    })
}

/// Whether one of its expressions is a verdict that names a chain of ours.
fn goes_to_ours(rule: Attrs<'_>) -> bool {
    rule.inside(NFTA_RULE_EXPRESSIONS).any(|expression| {
        let data = expression.inside().inside(NFTA_EXPR_DATA);
        let verdict = data.inside(NFTA_IMMEDIATE_DATA).inside(NFTA_DATA_VERDICT);
        verdict.str(NFTA_VERDICT_CHAIN).is_some_and(is_ours)
    })
}

/// Removes a rule; not an error if it is gone.
pub(super) fn delete(family: IpFamily, table: Table, jump: &Jump) -> io::Result<()> {
    let mut w = Writer::new();
    w.attr_str(NFTA_RULE_TABLE, table.name());
    w.attr_str(NFTA_RULE_CHAIN, &jump.chain);
    w.attr(NFTA_RULE_HANDLE, &jump.handle);
    match change(family, DELETE_RULE, &w) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
