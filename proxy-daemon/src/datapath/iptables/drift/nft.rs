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
use crate::sys::netfilter::{NFTABLES, Netfilter, family_number};

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

fn is_ours(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX)
}

/// Carries out one change.
fn change(
    netfilter: &mut Netfilter,
    family: IpFamily,
    kind: u16,
    attributes: &Writer,
) -> io::Result<()> {
    let family = family_number(family).into();
    netfilter.commit_one(Header { kind, family }, attributes)
}

/// Whether the table is there and switched off: none of its chains sees a packet then.
pub(super) fn is_dormant(
    netfilter: &mut Netfilter,
    family: IpFamily,
    table: Table,
) -> io::Result<bool> {
    let mut name = Writer::new();
    name.attr_str(NFTA_TABLE_NAME, table.name());
    let mut flags = 0;
    let mut take = |table: Attrs<'_>| flags = table.u32(NFTA_TABLE_FLAGS).unwrap_or(0);
    match netfilter.get(GET_TABLE, family_number(family), &name, &mut take) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| flags & DORMANT != 0),
    }
}

/// Switches the table on; returns whether it was off.
pub(super) fn wake(netfilter: &mut Netfilter, family: IpFamily, table: Table) -> io::Result<bool> {
    if !is_dormant(netfilter, family, table)? {
        return Ok(false);
    }
    let mut w = Writer::new();
    w.attr_str(NFTA_TABLE_NAME, table.name());
    w.attr_u32(NFTA_TABLE_FLAGS, 0);
    change(netfilter, family, NEW_TABLE, &w).map(|()| true)
}

/// The chains of ours, with their tables.
///
/// # Errors
/// `Interrupted` if others wrote meanwhile.
pub(super) fn chains(
    netfilter: &mut Netfilter,
    family: IpFamily,
) -> io::Result<Vec<(Table, Found)>> {
    let mut chains = Vec::new();
    netfilter.list(
        GET_CHAIN,
        family_number(family),
        &Writer::new(),
        &mut |chain| {
            let table = chain.str(NFTA_CHAIN_TABLE);
            let table = Table::ALL.into_iter().find(|t| Some(t.name()) == table);
            if let (Some(table), Some(name)) = (table, chain.str(NFTA_CHAIN_NAME))
                && is_ours(name)
            {
                let handle = chain.get(NFTA_CHAIN_HANDLE).and_then(Attr::u64);
                let found = Found {
                    name: name.to_owned(),
                    handle: handle.unwrap_or(0),
                    uses: chain.u32(NFTA_CHAIN_USE).unwrap_or(0),
                };
                chains.push((table, found));
            }
        },
    )?;
    Ok(chains)
}

/// A rule in a foreign chain that jumps to a chain of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    /// The chain that it is in.
    pub(super) chain: String,
    handle: Vec<u8>,
}

/// The rules of a table, in chains of others, that go to a chain of ours.
///
/// # Errors
/// `Interrupted` if others wrote meanwhile.
pub(super) fn jumps(
    netfilter: &mut Netfilter,
    family: IpFamily,
    table: Table,
) -> io::Result<Vec<Jump>> {
    let mut jumps = Vec::new();
    let mut w = Writer::new();
    w.attr_str(NFTA_RULE_TABLE, table.name());
    netfilter.list(GET_RULE, family_number(family), &w, &mut |rule| {
        if let Some(chain) = rule.str(NFTA_RULE_CHAIN)
            && rule.str(NFTA_RULE_TABLE) == Some(table.name())
            && !is_ours(chain)
            && goes_to_ours(rule)
            && let Some(handle) = rule.get(NFTA_RULE_HANDLE)
        {
            jumps.push(Jump {
                chain: chain.to_owned(),
                handle: handle.payload.to_owned(),
            });
        }
    })?;
    Ok(jumps)
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
    match change(&mut Netfilter::open()?, family, DELETE_RULE, &w) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
