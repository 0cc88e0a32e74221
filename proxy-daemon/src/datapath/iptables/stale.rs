//! How are unused chains of ours removed, and what if that fails?
//!
//! Invariants: removal comes after the wanted rules are written and is separate, so that a failure of one
//! does not stop the other; foreign rules are removed only if they jump to ours; a chain that remains is
//! empty, so that packets return from it.

use super::apply::Remaining;
use super::chain::Table;
use super::drift::{Jump, remove_jump};
use super::script::Script;
use super::tool::Tools;
use crate::datapath::DatapathError;

/// Up to this number, chains are deleted one by one if they cannot be deleted together.
const ONE_BY_ONE: usize = 64;

/// What is to be removed from one table.
#[derive(Debug)]
pub(crate) struct Stale {
    /// The table.
    pub(crate) table: Table,
    /// Foreign rules that jump to chains of ours.
    pub(crate) jumps: Vec<Jump>,
    /// Chains of ours.
    pub(crate) chains: Vec<String>,
}

impl Stale {
    /// Removes it; returns the number of objects removed.
    pub(super) fn remove(self, tools: &Tools, left: &mut Remaining) -> usize {
        let Self {
            table,
            jumps,
            mut chains,
        } = self;
        let mut n_removed = 0;
        for jump in &jumps {
            match remove_jump(tools, table, jump) {
                Ok(()) => n_removed += 1,
                Err(error) => left.because = Some(error),
            }
        }
        let write = |fill: fn(&mut Script, &[String]), chains: &[String]| {
            let mut script = Script::new(table, tools.flavour);
            fill(&mut script, chains);
            tools.restore(&script.finish())
        };
        let n = chains.len();
        let all = write(Script::empty, &chains).and_then(|()| write(Script::delete, &chains));
        if let Err(error) = all {
            // Wait for a lock or a hanging program once, not for each chain.
            let mut is_late = n > ONE_BY_ONE || error.is_late();
            chains.retain(|chain| {
                is_late || {
                    let removed = write(Script::delete, std::slice::from_ref(chain));
                    is_late = removed.as_ref().is_err_and(DatapathError::is_late);
                    removed.is_err()
                }
            });
            if !chains.is_empty() {
                left.because = Some(error);
            }
        } else {
            chains.clear();
        }
        n_removed += n - chains.len();
        left.chains
            .extend(chains.into_iter().map(|name| (table, name)));
        n_removed
    }
}
