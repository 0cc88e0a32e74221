//! Did others change our rules or sets?
//!
//! Asked every second, so it reads no rules through a program: at 100,000 of them that takes seconds.
//! What the kernel must have is computed from what we wrote (`expected`) and never read from the kernel
//! after a write: that would take what others did in between for ours. So a check can run at any time.
//! Spec: SYNC-9.
//!
//! Cost: with nft one question if nobody wrote, otherwise 15 ms for 20,000 chains. With legacy one
//! question if the counts match, otherwise a copy of the table, which is made every [`UNSEEN`] checks in
//! any case, and more rarely if the table is large. Large sets are checked more rarely.
//!
//! Noticed: any rule, chain, hook or entry of ours that is missing or too many; with nft also a chain that
//! was removed and made anew, and a table that is dormant. No false positives from what others do to their
//! own. Not noticed: one rule or entry replaced by another.
//!
//! Invariants: recording a write costs microseconds and asks nobody; a check never makes the kernel create
//! a table and writes nothing; what cannot be decided counts as drift.

mod expected;
mod legacy;
mod nft;
mod sets;

use std::io;

use super::chain::{Chain, Table};
use super::flavour::Flavour;
use super::tool::Tools;
use crate::datapath::DatapathError;
use crate::net::IpFamily;
use expected::{Difference, Expected, Found};
pub(crate) use nft::Jump;
use sets::Sizes;

/// After so many checks of the size of a legacy table its entries are read: if others add a rule while one
/// of ours is removed, the size does not change.
const UNSEEN: u32 = 10;
/// In large tables the entries are read more rarely, by one check for each so many entries: copying these
/// takes a millisecond, so that checks use a thousandth of the time.
const COPIED: usize = 1_000;
/// So many checks in a row may be interrupted by writes of others.
const SPOILT: u32 = 5;

/// What the kernel must have of ours, and when it was last seen to have it.
#[derive(Debug)]
pub(crate) struct DriftCheck {
    nat: Expected,
    filter: Expected,
    sets: Sizes,
    rules: Rules,
    n_spoilt: u32,
}

#[derive(Debug)]
enum Rules {
    Legacy {
        nat: Size,
        filter: Size,
    },
    /// The number of the last transaction after which our chains were seen to be right; `None` since we
    /// wrote.
    Nft(Option<u32>),
}

/// When a legacy table was last seen to be right.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// What the kernel said then; `None`: never seen.
    seen: Option<Seen>,
    /// Whether we wrote after that.
    has_written: bool,
    /// How many looks there were at its size alone since.
    n_looks: u32,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    info: Option<legacy::Info>,
    /// Entries that are not ours.
    n_others: usize,
}

fn refused(object: &str, source: io::Error) -> DatapathError {
    DatapathError::Refused {
        operation: "checking for changes by others",
        object: object.to_owned(),
        source,
    }
}

impl DriftCheck {
    /// Of rules and sets of which nothing is written yet.
    pub(crate) fn new(tools: &Tools) -> Self {
        Self {
            nat: Expected::default(),
            filter: Expected::default(),
            sets: Sizes::default(),
            rules: match tools.flavour() {
                Flavour::Legacy => Rules::Legacy {
                    nat: Size::default(),
                    filter: Size::default(),
                },
                Flavour::Nft => Rules::Nft(None),
            },
            n_spoilt: 0,
        }
    }

    const fn expected(&mut self, table: Table) -> &mut Expected {
        match table {
            Table::Nat => &mut self.nat,
            Table::Filter => &mut self.filter,
        }
    }

    fn write(&mut self, table: Table) -> &mut Expected {
        match &mut self.rules {
            Rules::Legacy { nat, filter } => {
                let size = match table {
                    Table::Nat => nat,
                    Table::Filter => filter,
                };
                size.has_written = true;
            }
            Rules::Nft(seen) => *seen = None,
        }
        self.expected(table)
    }

    /// Records that the chain has exactly these rules.
    pub(crate) fn put(&mut self, table: Table, chain: &Chain) {
        self.write(table).put(chain);
    }

    /// Records that the chain was removed.
    pub(crate) fn remove(&mut self, table: Table, chain: &str) {
        self.write(table).remove(chain);
    }

    /// Records that a rule in a built-in chain jumps to this chain of ours.
    pub(crate) fn hook(&mut self, table: Table, target: &str) {
        self.write(table).hook(target);
    }

    /// Records that this chain could not be removed.
    pub(crate) fn tolerate(&mut self, table: Table, chain: &str) {
        self.write(table).tolerate(chain);
    }

    /// Records how many entries of a set we added that were not in it, and removed that were.
    pub(crate) fn wrote_set(&mut self, name: &str, n_added: usize, n_removed: usize) {
        self.sets.wrote(name, n_added, n_removed);
    }

    /// Whether others changed our rules or sets; of large sets, each call checks the next ones.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] if the kernel could not be asked.
    pub(crate) fn has_drifted(&mut self, tools: &Tools) -> Result<bool, DatapathError> {
        let rules = match self.rules_differ(tools.family()) {
            Ok(difference) => {
                self.n_spoilt = 0;
                difference
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.n_spoilt += 1;
                let spoilt = "cannot list our chains: others write too often";
                (self.n_spoilt >= SPOILT).then(|| spoilt.to_owned())
            }
            Err(error) => return Err(refused("rules", error)),
        };
        let difference = match rules {
            Some(difference) => Some(difference),
            None => self.sets.difference().map_err(|e| refused("sets", e))?,
        };
        if let Some(difference) = &difference {
            let family = tools.family().name();
            tracing::warn!(
                family,
                difference,
                "another program changed our rules or sets"
            );
        }
        Ok(difference.is_some())
    }

    fn rules_differ(&mut self, family: IpFamily) -> io::Result<Option<String>> {
        match &mut self.rules {
            Rules::Legacy { nat, filter } => {
                let tables = [
                    (Table::Nat, nat, &mut self.nat),
                    (Table::Filter, filter, &mut self.filter),
                ];
                for (table, size, expected) in tables {
                    if let Some(difference) = size.differs(family, table, expected)? {
                        return Ok(Some(named(table, &difference)));
                    }
                }
                Ok(None)
            }
            Rules::Nft(seen) => {
                // Before the chains, so that a write after it is a reason to look again.
                let generation = nft::generation()?;
                if *seen == Some(generation) {
                    return Ok(None);
                }
                let difference = nft_differs(family, &mut self.nat, &mut self.filter)?;
                if difference.is_none() {
                    *seen = Some(generation);
                }
                Ok(difference)
            }
        }
    }
}

fn named(table: Table, difference: &Difference) -> String {
    format!("table {}: {difference}", table.name())
}

fn nft_differs(
    family: IpFamily,
    nat: &mut Expected,
    filter: &mut Expected,
) -> io::Result<Option<String>> {
    for table in Table::ALL {
        if nft::is_dormant(family, table)? {
            return Ok(Some(format!("table {} is dormant", table.name())));
        }
    }
    let chains = nft::chains(family)?;
    for (table, expected) in [(Table::Nat, nat), (Table::Filter, filter)] {
        let chains = chains.iter().filter(|(of, _)| *of == table);
        if let Some(difference) = expected.compare(chains.map(|(_, found)| found)) {
            return Ok(Some(named(table, &difference)));
        }
    }
    Ok(None)
}

impl Size {
    fn differs(
        &mut self,
        family: IpFamily,
        table: Table,
        expected: &mut Expected,
    ) -> io::Result<Option<Difference>> {
        let info = legacy::info(family, table)?;
        let n_entries = info.map_or(0, |info| info.n_entries());
        let n_ours = expected.n_entries();
        let is_as_seen = self.seen.is_some_and(|seen| {
            if self.has_written {
                seen.n_others + n_ours == n_entries
            } else {
                seen.info == info
            }
        });
        let unseen = u32::try_from(n_entries / COPIED).unwrap_or(u32::MAX);
        let unseen = UNSEEN.max(unseen);
        if is_as_seen && self.n_looks < unseen {
            self.n_looks += 1;
            return Ok(None);
        }
        let difference = expected.compare(&legacy::chains(family, table)?);
        if difference.is_none() {
            *self = Self {
                seen: Some(Seen {
                    info,
                    n_others: n_entries.saturating_sub(n_ours),
                }),
                ..Self::default()
            };
        }
        Ok(difference)
    }
}

/// Our chains and the jumps to them, read from the kernel: no program need be able to print them.
#[derive(Debug, Default)]
pub(crate) struct Unprinted {
    /// The names of our chains.
    pub(crate) chains: Vec<String>,
    /// Rules in chains of others that jump to them; always empty with legacy.
    pub(crate) jumps: Vec<Jump>,
}

impl Unprinted {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] if the kernel could not be asked.
    pub(crate) fn read(tools: &Tools, table: Table) -> Result<Self, DatapathError> {
        let family = tools.family();
        let read = || {
            Ok(match tools.flavour() {
                Flavour::Legacy => Self {
                    chains: names(legacy::chains(family, table)?),
                    jumps: Vec::new(),
                },
                Flavour::Nft => {
                    let chains = nft::chains(family)?;
                    let chains = chains.into_iter().filter(|(of, _)| *of == table);
                    Self {
                        chains: names(chains.map(|(_, found)| found)),
                        jumps: nft::jumps(family, table)?,
                    }
                }
            })
        };
        read().map_err(|source| refused(table.name(), source))
    }
}

fn names(chains: impl IntoIterator<Item = Found>) -> Vec<String> {
    chains.into_iter().map(|found| found.name).collect()
}

/// Removes a rule that jumps to a chain of ours; not an error if there is none.
///
/// # Errors
/// [`DatapathError::Refused`] if the kernel does not let us.
pub(crate) fn remove_jump(tools: &Tools, table: Table, jump: &Jump) -> Result<(), DatapathError> {
    nft::delete(tools.family(), table, jump).map_err(|source| DatapathError::Refused {
        operation: "removing a jump to our chain",
        object: format!("{} {}", table.name(), jump.chain),
        source,
    })
}

/// Clears the dormant flag of our tables if others set it: no rule of a dormant table is in force.
///
/// # Errors
/// [`DatapathError::Refused`] if the kernel does not let us.
pub(crate) fn wake(tools: &Tools) -> Result<usize, DatapathError> {
    let mut n_woken = 0;
    if tools.flavour() == Flavour::Legacy {
        return Ok(n_woken);
    }
    let family = tools.family();
    for table in Table::ALL {
        let name = table.name();
        let mut wake = || {
            if nft::is_dormant(family, table)? {
                tracing::warn!(
                    family = family.name(),
                    table = name,
                    "activating a dormant table: another program deactivated it"
                );
                nft::wake(family, table)?;
                n_woken += 1;
            }
            Ok(())
        };
        wake().map_err(|source| DatapathError::Refused {
            operation: "activating",
            object: format!("the table {name}"),
            source,
        })?;
    }
    Ok(n_woken)
}

/// Calls `each` with the name of each set with this prefix, and whether rules use it.
///
/// # Errors
/// [`DatapathError`] if the kernel could not be asked.
pub(crate) fn sets_by_use(prefix: &str, each: impl FnMut(&str, bool)) -> Result<(), DatapathError> {
    sets::uses(prefix, each).map_err(|source| {
        // Kernel: the answer of `nfnetlink_rcv_msg()` without the subsystem.
        if source.kind() == io::ErrorKind::InvalidInput {
            DatapathError::Unusable {
                operation: "asking for sets",
                advice: "this kernel has no ip_set; load the module, or use --mode=nftables",
                source,
            }
        } else {
            refused("sets", source)
        }
    })
}

#[cfg(test)]
mod tests;
