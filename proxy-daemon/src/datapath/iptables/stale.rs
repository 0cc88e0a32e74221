//! How do chains of ours go that nobody wants any more, and what if they cannot?
//!
//! Invariants: this comes after what is wanted was written, and apart from it, so that what is in the way
//! of the one is not in the way of the other; rules of others go only where they lead to ours; what stays
//! is empty, so that packets that are led to it come back.

use super::chain::Table;
use super::drift::{Jump, remove_jump};
use super::script::Script;
use super::tool::Tools;
use crate::datapath::{DatapathError, SyncReport};

/// So many chains are tried one by one if they cannot go together.
const ONE_BY_ONE: usize = 64;

/// What is to go of one table.
#[derive(Debug)]
pub(crate) struct Stale {
    /// The table.
    pub(crate) table: Table,
    /// Rules in chains of others that go to chains of ours.
    pub(crate) jumps: Vec<Jump>,
    /// Chains of ours.
    pub(crate) chains: Vec<String>,
}

impl Stale {
    /// Removes it, and answers which chains stay, because of what.
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
                // Who holds the lock, or a program that hangs, is waited for once and not for each chain.
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
        Some(text) => tools.restore(&mut |to| to.write_all(text.as_bytes())),
        None => Ok(()),
    }
}
