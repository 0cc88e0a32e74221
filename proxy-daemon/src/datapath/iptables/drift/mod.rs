//! Did others change our rules or sets?
//!
//! Asked every second, so it reads no rules through a program: at 100,000 of them that takes seconds.
//! What the kernel must have is computed from what we wrote (`expected`) and never read from the kernel
//! after a write: that would take what others did in between for ours. So a check can run at any time.
//! Spec: SYNC-9.
//!
//! Cost: a few questions if nobody wrote; else, of 20,000 rules, some 15 ms with nft and 20 ms with legacy, where
//! our own writes wait for the copy that is due after so many checks.
//!
//! Noticed: any rule, chain, hook or entry of ours that is missing or too many; with nft also a chain that
//! was removed and made anew, and a table that is dormant. No false positives from what others do to their
//! own. Not noticed: one rule or entry replaced by another.
//!
//! Invariants: recording a write costs microseconds and asks nobody; a check never makes the kernel create
//! a table and writes nothing; what cannot be decided for five checks in a row counts as drift.

mod expected;
mod legacy;
mod nft;
mod sets;

use std::io;

use super::chain::Table;
use super::flavour::Flavour;
use super::names::set_prefix;
use super::tool::{Tools, no_ip_set};
use crate::datapath::DatapathError;
use crate::net::IpFamily;
use crate::sys::netfilter::{Netfilter, generation, undisturbed};
use expected::{Expected, Found};
pub(crate) use nft::Jump;
use sets::Sizes;

/// After so many checks legacy tables are copied although what the kernel says about them is the same, or we
/// wrote: if others add a rule while one of ours is removed, it does not change.
const UNSEEN: usize = 10;
/// Large tables are copied more rarely, by one check for each so many entries, whose copy takes a millisecond;
/// but not after more than [`UNSEEN_AT_MOST`], so that damage is noticed within the 30 s of SYNC-9.
const COPIED: usize = 1_000;
const UNSEEN_AT_MOST: usize = 20;
/// How often a listing is repeated because another program wrote meanwhile.
const LISTINGS: usize = 5;
/// After so many checks in a row that could not list our chains they count as changed.
const DISTURBED: usize = 5;

/// What the kernel must have of ours, and when it was last seen to have it.
#[derive(Debug, Default)]
pub(crate) struct DriftCheck {
    nat: Expected,
    filter: Expected,
    /// How many entries our sets must have.
    pub(crate) sets: Sizes,
    /// What the kernel said since our rules were last seen to be right; `None` if they never were.
    seen: Option<State>,
    /// Whether we wrote after that.
    has_written: bool,
    /// How many checks there were since our rules were last seen to be right.
    n_checks: usize,
    /// How many checks in a row could not list our chains.
    n_disturbed: usize,
    netfilter: Option<Netfilter>,
}

/// What the kernel says about rules without showing them.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The number of the last transaction.
    Nft(u32),
    Legacy([Option<legacy::Info>; 2]),
}

impl State {
    fn read(netfilter: &mut Netfilter, tools: &Tools) -> io::Result<Self> {
        let info = |table| legacy::info(tools.family, table);
        Ok(match tools.flavour {
            Flavour::Nft => Self::Nft(generation(netfilter)?),
            Flavour::Legacy => Self::Legacy([info(Table::Nat)?, info(Table::Filter)?]),
        })
    }

    /// For how many checks it is taken for a proof that others did not write.
    fn is_proof_for(&self) -> usize {
        match self {
            Self::Nft(_) => usize::MAX,
            Self::Legacy(infos) => {
                let n_entries = infos.iter().flatten().map(legacy::Info::n_entries);
                (n_entries.sum::<usize>() / COPIED).clamp(UNSEEN, UNSEEN_AT_MOST)
            }
        }
    }
}

const CHECKING: &str = "checking for changes by others";

fn refused(operation: &'static str, object: &str, source: io::Error) -> DatapathError {
    DatapathError::Refused {
        operation,
        object: object.to_owned(),
        source,
    }
}

impl DriftCheck {
    /// What we wrote to a table, to record a change of it.
    pub(crate) fn table(&mut self, table: Table) -> &mut Expected {
        self.has_written = true;
        match table {
            Table::Nat => &mut self.nat,
            Table::Filter => &mut self.filter,
        }
    }

    /// Whether others changed our rules or sets.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] if the kernel could not be asked.
    pub(crate) fn has_drifted(&mut self, tools: &Tools) -> Result<bool, DatapathError> {
        let mut netfilter = match self.netfilter.take() {
            Some(netfilter) => netfilter,
            None => Netfilter::open().map_err(|e| refused(CHECKING, "rules", e))?,
        };
        let mut difference = match self.rules_differ(&mut netfilter, tools) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.n_disturbed += 1;
                let disturbed = "cannot list our chains: others write too often";
                (self.n_disturbed >= DISTURBED).then(|| disturbed.to_owned())
            }
            other => {
                self.n_disturbed = 0;
                other.map_err(|e| refused(CHECKING, "rules", e))?
            }
        };
        if difference.is_none() {
            let sets = self.sets.difference(&mut netfilter);
            difference = sets.map_err(|e| refused(CHECKING, "sets", e))?;
        }
        self.netfilter = Some(netfilter);
        if let Some(difference) = &difference {
            let family = tools.family.name();
            tracing::warn!(
                family,
                difference,
                "another program changed our rules or sets"
            );
        }
        Ok(difference.is_some())
    }

    fn rules_differ(
        &mut self,
        netfilter: &mut Netfilter,
        tools: &Tools,
    ) -> io::Result<Option<String>> {
        // Before the chains, so that a write after it is a reason to look again.
        let state = State::read(netfilter, tools)?;
        self.n_checks += 1;
        let has_written = std::mem::take(&mut self.has_written);
        let is_expected = self.seen.take().is_some_and(|seen| {
            // After our own write, a copy of a large legacy table would cost more than the write.
            let is_spared = has_written && tools.flavour == Flavour::Legacy;
            is_spared || !has_written && seen == state
        });
        if is_expected && self.n_checks <= state.is_proof_for() {
            self.seen = Some(state);
            return Ok(None);
        }
        let chains = chains(netfilter, tools)?;
        for (table, expected) in [
            (Table::Nat, &mut self.nat),
            (Table::Filter, &mut self.filter),
        ] {
            let name = table.name();
            if matches!(state, State::Nft(_)) && nft::is_dormant(netfilter, tools.family, table)? {
                return Ok(Some(format!("table {name} is dormant")));
            }
            let chains = chains.iter().filter(|(of, _)| *of == table);
            if let Some(difference) = expected.compare(chains.map(|(_, found)| found)) {
                return Ok(Some(format!("table {name}: {difference}")));
            }
        }
        self.seen = Some(state);
        self.n_checks = 0;
        Ok(None)
    }
}

/// The chains of ours, with their tables.
///
/// # Errors
/// `Interrupted` if others wrote meanwhile, again and again.
fn chains(netfilter: &mut Netfilter, tools: &Tools) -> io::Result<Vec<(Table, Found)>> {
    undisturbed(LISTINGS, || match tools.flavour {
        Flavour::Legacy => legacy::chains(tools.family),
        Flavour::Nft => nft::chains(netfilter, tools.family),
    })
}

/// The names of our chains, and rules in chains of others that jump to them, which are never listed with
/// legacy, read from the kernel: no program need be able to print them.
///
/// # Errors
/// [`DatapathError::Refused`] if the kernel could not be asked.
pub(crate) fn read_unprinted(
    tools: &Tools,
    table: Table,
) -> Result<(Vec<String>, Vec<Jump>), DatapathError> {
    let read = || {
        let mut netfilter = Netfilter::open()?;
        let chains = chains(&mut netfilter, tools)?.into_iter();
        let names = chains.filter_map(|(of, found)| (of == table).then_some(found.name));
        let jumps = match tools.flavour {
            Flavour::Legacy => Vec::new(),
            Flavour::Nft => {
                undisturbed(LISTINGS, || nft::jumps(&mut netfilter, tools.family, table))?
            }
        };
        Ok((names.collect(), jumps))
    };
    read().map_err(|source| refused(CHECKING, table.name(), source))
}

/// Removes a rule that jumps to a chain of ours; not an error if there is none.
///
/// # Errors
/// [`DatapathError::Refused`] if the kernel does not let us.
pub(crate) fn remove_jump(tools: &Tools, table: Table, jump: &Jump) -> Result<(), DatapathError> {
    nft::delete(tools.family, table, jump).map_err(|source| {
        let object = format!("{} {}", table.name(), jump.chain);
        refused("removing a jump to our chain", &object, source)
    })
}

/// Clears the dormant flag of our tables if others set it: no rule of a dormant table is in force.
///
/// # Errors
/// [`DatapathError::Refused`] if the kernel does not let us.
pub(crate) fn wake(tools: &Tools) -> Result<usize, DatapathError> {
    let mut n_woken = 0;
    if tools.flavour == Flavour::Legacy {
        return Ok(n_woken);
    }
    for table in Table::ALL {
        let (family, name) = (tools.family, table.name());
        let woken = Netfilter::open().and_then(|mut it| nft::wake(&mut it, family, table));
        if woken.map_err(|e| refused("activating", &format!("the table {name}"), e))? {
            n_woken += 1;
            tracing::warn!(
                family = family.name(),
                table = name,
                "activated a dormant table: another program deactivated it"
            );
        }
    }
    Ok(n_woken)
}

/// The names of our sets: those that no rule uses, and those that one does.
///
/// # Errors
/// [`DatapathError`] if the kernel could not be asked.
pub(crate) fn sets_by_use(family: IpFamily) -> Result<(Vec<String>, Vec<String>), DatapathError> {
    sets::by_use(set_prefix(family)).map_err(|source| {
        // Kernel: the answer of `nfnetlink_rcv_msg()` without the subsystem.
        if source.kind() == io::ErrorKind::InvalidInput {
            no_ip_set(source)
        } else {
            refused(CHECKING, "sets", source)
        }
    })
}

#[cfg(test)]
mod tests;
