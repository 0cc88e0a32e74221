//! Are our rules and sets in the kernel as we wrote them, whatever others write at the same time?
//!
//! Asked every second, so it reads no rules through a program: at 100,000 of them that takes seconds.
//! What the kernel must have is computed from what we wrote (`expected`), and never taken from the kernel
//! after a write: what others did between a write and a look at its result would become what we believe.
//! So a look needs no moment of its own. Spec: SYNC-9.
//!
//! Cost: with nft nothing but one question if nobody wrote, otherwise 15 ms for 20,000 chains. With
//! legacy one question if the numbers add up, otherwise a copy of the table, which is made every
//! [`UNSEEN`] questions in any case, and more rarely if it is large. Large sets are asked for more rarely.
//!
//! What is noticed: any rule, chain, hook or entry of ours that is missing or too many; with nft also a
//! chain that was removed and made anew, and a table that is dormant. What others do to theirs is not
//! taken for damage. Never noticed: one rule or entry in the place of another.
//!
//! Invariants: taking note of a write costs microseconds and asks nobody; asking never makes the kernel
//! create a table and writes nothing; what cannot be told is answered with yes.

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

/// After so many looks at the size of a legacy table its entries are looked at: a rule of others that
/// comes while one of ours goes leaves the size as it was.
const UNSEEN: u32 = 10;
/// In large tables there are more such looks, one for each so many entries: to copy these takes a
/// millisecond, so that a look costs a thousandth of the time between two.
const COPIED: usize = 1_000;
/// So many looks in a row may be spoilt by writes of others.
const SPOILT: u32 = 5;

/// What our rules and sets must be like, and when they were last seen to be so.
#[derive(Debug)]
pub(crate) struct Presence {
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
    /// The number of the last transaction after which our chains were seen as they must be; `None`
    /// since we wrote.
    Nft(Option<u32>),
}

/// When a legacy table was last seen as it must be.
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
        operation: "looking for changes by others",
        object: object.to_owned(),
        source,
    }
}

impl Presence {
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

    /// Takes note that the chain has these rules and no others.
    pub(crate) fn put(&mut self, table: Table, chain: &Chain) {
        self.write(table).put(chain);
    }

    /// Takes note that the chain is gone.
    pub(crate) fn remove(&mut self, table: Table, chain: &str) {
        self.write(table).remove(chain);
    }

    /// Takes note that a rule in a built-in chain goes to this chain of ours.
    pub(crate) fn hook(&mut self, table: Table, target: &str) {
        self.write(table).hook(target);
    }

    /// Takes note that this chain could not be removed.
    pub(crate) fn tolerate(&mut self, table: Table, chain: &str) {
        self.write(table).tolerate(chain);
    }

    /// Takes note that we added and removed so many entries of a set: entries that were not there, and were.
    pub(crate) fn wrote_set(&mut self, name: &str, n_added: usize, n_removed: usize) {
        self.sets.wrote(name, n_added, n_removed);
    }

    /// Whether others have changed something of ours; of large sets, each question asks for the next ones.
    ///
    /// # Errors
    /// [`DatapathError::Refused`] if the kernel could not be asked.
    pub(crate) fn is_disturbed(&mut self, tools: &Tools) -> Result<bool, DatapathError> {
        let rules = match self.rules_differ(tools.family()) {
            Ok(difference) => {
                self.n_spoilt = 0;
                difference
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.n_spoilt += 1;
                let spoilt = "others write so often that our chains cannot be listed";
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
            tracing::warn!(family, difference, "others changed what is ours");
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

/// Chains of ours and what goes to them, as the kernel has them: no program need be able to print them.
#[derive(Debug, Default)]
pub(crate) struct Unprinted {
    /// The names of our chains.
    pub(crate) chains: Vec<String>,
    /// Rules in chains of others that go to them; nothing is known of them with legacy.
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

/// Removes a rule that goes to a chain of ours; not an error if it is gone.
///
/// # Errors
/// [`DatapathError::Refused`] if the kernel does not let us.
pub(crate) fn remove_jump(tools: &Tools, table: Table, jump: &Jump) -> Result<(), DatapathError> {
    nft::delete(tools.family(), table, jump).map_err(|source| DatapathError::Refused {
        operation: "removal of a rule that goes to a chain of ours",
        object: format!("{} {}", table.name(), jump.chain),
        source,
    })
}

/// Switches our tables on if others switched them off: no rule in them is in force then.
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
                    "others switched the table off (flags dormant); it is switched on again, as Services need it"
                );
                nft::wake(family, table)?;
                n_woken += 1;
            }
            Ok(())
        };
        wake().map_err(|source| DatapathError::Refused {
            operation: "switching on",
            object: format!("the table {name}"),
            source,
        })?;
    }
    Ok(n_woken)
}

/// Hands out the name of each set whose name begins so, and whether rules use it.
///
/// # Errors
/// [`DatapathError`] if the kernel could not be asked.
pub(crate) fn sets_by_use(prefix: &str, each: impl FnMut(&str, bool)) -> Result<(), DatapathError> {
    sets::uses(prefix, each).map_err(|source| {
        // Kernel: `nfnetlink_rcv_msg()` answers so if nobody serves the subsystem.
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
