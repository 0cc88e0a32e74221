//! What does `nf_tables` say about our chains without showing their rules?
//!
//! The number of transactions that there have been, and for each chain how often it is used: by its own
//! rules, and by rules that go to it. Invariants: chains of others do not count; what others wrote need
//! not be understood.

use std::io;

use super::expected::Found;
use super::netlink::{Attributes, Question, ask, attribute, tell};
use crate::datapath::iptables::chain::Table;
use crate::datapath::iptables::names::CHAIN_PREFIX;
use crate::net::IpFamily;

/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const GET_TABLE: u16 = NFTABLES << 8 | 1;
const GET_CHAIN: u16 = NFTABLES << 8 | 4;
const GET_RULE: u16 = NFTABLES << 8 | 7;
const DELETE_RULE: u16 = NFTABLES << 8 | 8;
const GET_GENERATION: u16 = NFTABLES << 8 | 16;
const NFTA_GEN_ID: u16 = 1;
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

/// How often things are listed anew because somebody wrote meanwhile.
const LISTINGS: usize = 5;

const fn family_number(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// A name as the kernel reads it.
fn name_attribute(kind: u16, name: &str) -> Vec<u8> {
    attribute(kind, &[name.as_bytes(), &[0]].concat())
}

/// A name as the kernel writes it.
fn text(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.strip_suffix(&[0])?).ok()
}

/// A number of 64 bits.
fn long(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_be_bytes)
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX)
}

/// Lists until nobody wrote meanwhile.
///
/// # Errors
/// `Interrupted` if somebody always did.
fn list(mut once: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 0..LISTINGS {
        match once() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Kernel: `nf_tables_commit()` adds one, in whichever table of the network namespace.
pub(super) fn generation() -> io::Result<u32> {
    let mut generation = None;
    ask(GET_GENERATION, Question::One, 0, &[], &mut |attributes| {
        generation = attributes.number(NFTA_GEN_ID);
    })?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether the table is there and switched off: none of its chains sees a packet then.
pub(super) fn is_dormant(family: IpFamily, table: Table) -> io::Result<bool> {
    let name = name_attribute(NFTA_TABLE_NAME, table.name());
    let mut flags = 0;
    let asked = ask(
        GET_TABLE,
        Question::One,
        family_number(family),
        &name,
        &mut |attributes| flags = attributes.number(NFTA_TABLE_FLAGS).unwrap_or(0),
    );
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(flags & DORMANT != 0),
    }
}

/// Switches the table on.
pub(super) fn wake(family: IpFamily, table: Table) -> io::Result<()> {
    let attributes = [
        name_attribute(NFTA_TABLE_NAME, table.name()),
        attribute(NFTA_TABLE_FLAGS, &0_u32.to_be_bytes()),
    ]
    .concat();
    tell(NFTABLES, NEW_TABLE, family_number(family), &attributes)
}

/// The chains of ours, with their tables.
///
/// # Errors
/// `Interrupted` if others wrote meanwhile, again and again.
pub(super) fn chains(family: IpFamily) -> io::Result<Vec<(Table, Found)>> {
    let mut chains = Vec::new();
    list(|| {
        chains.clear();
        all_chains(family, &mut |table, name, chain| {
            if is_ours(name) {
                let found = Found {
                    name: name.to_owned(),
                    handle: chain.get(NFTA_CHAIN_HANDLE).and_then(long).unwrap_or(0),
                    uses: chain.number(NFTA_CHAIN_USE).unwrap_or(0),
                };
                chains.push((table, found));
            }
        })
    })?;
    Ok(chains)
}

/// Hands out the name of each chain in the tables that we write, with its attributes.
fn all_chains(
    family: IpFamily,
    each: &mut dyn FnMut(Table, &str, &Attributes<'_>),
) -> io::Result<()> {
    let family = family_number(family);
    ask(GET_CHAIN, Question::All, family, &[], &mut |attributes| {
        let table = attributes.get(NFTA_CHAIN_TABLE).and_then(text);
        let table = Table::ALL.into_iter().find(|t| Some(t.name()) == table);
        let name = attributes.get(NFTA_CHAIN_NAME).and_then(text);
        if let (Some(table), Some(name)) = (table, name) {
            each(table, name, &attributes);
        }
    })
}

/// A rule of a chain of others that goes to a chain of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    /// The chain that it is in.
    pub(super) chain: String,
    handle: Vec<u8>,
}

/// The rules of a table, in chains of others, that go to a chain of ours.
pub(super) fn jumps(family: IpFamily, table: Table) -> io::Result<Vec<Jump>> {
    let mut jumps = Vec::new();
    list(|| {
        jumps.clear();
        let mut chains = Vec::new();
        all_chains(family, &mut |of, name, _| {
            if of == table && !is_ours(name) {
                chains.push(name.to_owned());
            }
        })?;
        for chain in chains {
            let request = [
                name_attribute(NFTA_RULE_TABLE, table.name()),
                name_attribute(NFTA_RULE_CHAIN, &chain),
            ]
            .concat();
            let family = family_number(family);
            ask(GET_RULE, Question::All, family, &request, &mut |rule| {
                let is_of_it = rule.get(NFTA_RULE_CHAIN).and_then(text) == Some(&*chain)
                    && rule.get(NFTA_RULE_TABLE).and_then(text) == Some(table.name());
                if is_of_it
                    && goes_to_ours(&rule)
                    && let Some(handle) = rule.get(NFTA_RULE_HANDLE)
                {
                    jumps.push(Jump {
                        chain: chain.clone(),
                        handle: handle.to_owned(),
                    });
                }
            })?;
        }
        Ok(())
    })?;
    Ok(jumps)
}

/// Whether one of its expressions is a verdict that names a chain of ours.
fn goes_to_ours(rule: &Attributes<'_>) -> bool {
    let expressions = rule.nested(NFTA_RULE_EXPRESSIONS);
    expressions
        .into_iter()
        .flatten()
        .filter_map(|(_, expression)| {
            Attributes::of(expression)
                .nested(NFTA_EXPR_DATA)?
                .nested(NFTA_IMMEDIATE_DATA)?
                .nested(NFTA_DATA_VERDICT)?
                .get(NFTA_VERDICT_CHAIN)
        })
        .filter_map(text)
        .any(is_ours)
}

/// Removes a rule; not an error if it is gone.
pub(super) fn delete(family: IpFamily, table: Table, jump: &Jump) -> io::Result<()> {
    let attributes = [
        name_attribute(NFTA_RULE_TABLE, table.name()),
        name_attribute(NFTA_RULE_CHAIN, &jump.chain),
        attribute(NFTA_RULE_HANDLE, &jump.handle),
    ]
    .concat();
    match tell(NFTABLES, DELETE_RULE, family_number(family), &attributes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
