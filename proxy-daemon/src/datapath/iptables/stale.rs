//! How are unused chains of ours removed, and what if that fails?
//!
//! Invariants: removal comes after the wanted rules are written and is separate, so that a failure of one
//! does not stop the other; foreign rules are removed only if they jump to ours; a chain that remains is
//! empty, so that packets return from it.

use super::chain::Table;
use super::drift::{Jump, remove_jump};
use super::script::Script;
use super::tool::Tools;
use crate::datapath::{DatapathError, SyncReport};

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
    /// Removes it; returns the chains that remain, and the last error.
    pub(crate) fn remove(
        self,
        tools: &Tools,
    ) -> (SyncReport, Vec<String>, Result<(), DatapathError>) {
        let Self {
            table,
            jumps,
            mut chains,
        } = self;
        let mut report = SyncReport::default();
        let mut result = Ok(());
        for jump in &jumps {
            match remove_jump(tools, table, jump) {
                Ok(()) => report.n_removed += 1,
                Err(error) => result = Err(error),
            }
        }
        if chains.is_empty() {
            return (report, chains, result);
        }
        let empty = |script: &mut Script, chains: &[String]| script.empty(chains);
        let remove = |script: &mut Script, chains: &[String]| script.delete(chains);
        let n = chains.len();
        let all =
            write(tools, table, &chains, empty).and_then(|()| write(tools, table, &chains, remove));
        match all {
            Ok(()) => chains.clear(),
            Err(error) => {
                // Wait for a lock or a hanging program once, not for each chain.
                let mut is_late = error.is_late();
                result = Err(error);
                if n <= ONE_BY_ONE {
                    chains.retain(|chain| {
                        if is_late {
                            return true;
                        }
                        let removed = write(tools, table, std::slice::from_ref(chain), remove);
                        is_late = removed.as_ref().is_err_and(DatapathError::is_late);
                        removed.is_err()
                    });
                }
                if chains.is_empty() {
                    result = Ok(());
                }
            }
        }
        report.n_removed += n - chains.len();
        (report, chains, result)
    }
}

fn write(
    tools: &Tools,
    table: Table,
    chains: &[String],
    what: impl Fn(&mut Script, &[String]),
) -> Result<(), DatapathError> {
    let mut script = Script::new(table, tools.flavour());
    what(&mut script, chains);
    match script.finish() {
        Some(text) => tools.restore(&text),
        None => Ok(()),
    }
}
