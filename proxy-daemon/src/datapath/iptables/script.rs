//! What is the input of `iptables-restore`?
//!
//! Invariants: a chain is written with all its rules in one piece, so that no packet sees half of it;
//! targets come before the chains that jump to them, and unused chains are removed last, so that the
//! input may be cut between any two pieces.

use std::fmt::Write as _;

use super::chain::{Chain, Table};
use super::flavour::Flavour;
use crate::datapath::SyncReport;

/// The input for one table.
#[derive(Debug)]
pub(crate) struct Script {
    table: Table,
    /// How many lines are committed at once.
    block: usize,
    text: String,
    n_in_block: usize,
    removed: Vec<String>,
    /// What it will have done.
    pub(crate) report: SyncReport,
}

impl Script {
    /// An empty input.
    pub(crate) fn new(table: Table, flavour: Flavour) -> Self {
        let block = match flavour {
            // iptables-nft takes four times as long for 100,000 lines at once.
            Flavour::Nft => 2_000,
            // Each commit copies the whole table into the kernel.
            Flavour::Legacy => usize::MAX,
        };
        Self {
            table,
            block,
            text: String::new(),
            n_in_block: 0,
            removed: Vec::new(),
            report: SyncReport::default(),
        }
    }

    /// Makes the chain if it is not there, and gives it these rules and no others.
    pub(crate) fn chain(&mut self, chain: &Chain) {
        let Chain { name, rules } = chain;
        self.piece(format_args!(":{name} - [0:0]"));
        for rule in rules {
            self.line(format_args!("-A {name} {rule}"));
        }
        self.report.n_added += 1 + rules.len();
    }

    /// Puts a rule before all others of a chain that is not ours.
    pub(crate) fn insert(&mut self, chain: &str, rule: &str) {
        self.piece(format_args!("-I {chain} 1 {rule}"));
        self.report.n_added += 1;
    }

    /// Removes a rule from a chain that is not ours.
    pub(crate) fn remove_rule(&mut self, chain: &str, rule: &str) {
        self.piece(format_args!("-D {chain} {rule}"));
        self.report.n_removed += 1;
    }

    /// Removes chains of ours, after everything else.
    pub(crate) fn remove(&mut self, chains: impl IntoIterator<Item = String>) {
        let before = self.removed.len();
        self.removed.extend(chains);
        self.report.n_removed += self.removed.len() - before;
    }

    /// Removes all rules of chains of ours.
    pub(crate) fn empty(&mut self, chains: &[String]) {
        for name in chains {
            self.piece(format_args!(":{name} - [0:0]"));
        }
    }

    /// Removes chains of ours that are empty.
    pub(crate) fn delete(&mut self, chains: &[String]) {
        for name in chains {
            self.piece(format_args!("-X {name}"));
        }
    }

    /// The input; empty if there is nothing to do.
    pub(crate) fn finish(mut self) -> String {
        let removed = std::mem::take(&mut self.removed);
        // They may refer to each other: all are flushed before the first is deleted.
        self.empty(&removed);
        self.delete(&removed);
        if !self.text.is_empty() {
            self.text.push_str("COMMIT\n");
        }
        self.text
    }

    /// Adds the first line of a piece.
    fn piece(&mut self, line: std::fmt::Arguments<'_>) {
        if self.n_in_block >= self.block {
            self.text.push_str("COMMIT\n");
            self.n_in_block = 0;
        }
        if self.n_in_block == 0 {
            // Writing to a String cannot fail.
            writeln!(self.text, "*{}", self.table.name()).unwrap_or_default();
        }
        self.line(line);
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.n_in_block += 1;
        self.text.write_fmt(line).unwrap_or_default();
        self.text.push('\n');
    }
}
