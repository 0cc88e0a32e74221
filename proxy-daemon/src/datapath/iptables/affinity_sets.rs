//! Which affinity sets are created, removed, or get another timeout?
//!
//! Invariants: a set exists before a rule uses it; it is emptied once no rule does, though the kernel
//! may hold it for longer; a client's age is kept when the timeout of its ServicePort changes.

use std::collections::{BTreeMap, BTreeSet};

use super::affinity_set::AffinitySet;
use super::drift;
use super::readback;
use super::tool::Tools;
use crate::datapath::DatapathError;
use crate::net::Family;

/// Suffix of a temporary set, before `ipset swap`; other names end in 16 letters and digits.
const TEMPORARY: &str = "-new";

/// Sets whose timeout changed, with the previous one in seconds.
pub(crate) type Rescaled = Vec<(AffinitySet, u32)>;

/// Rescales remaining timeouts after the affinity timeout changed. Spec: AFF-8.
///
/// A client that is added between reading and writing loses its affinity.
///
/// # Errors
/// What the program could not do.
pub(crate) fn rescale_timeouts(tools: &Tools, rescaled: &Rescaled) -> Result<(), DatapathError> {
    if rescaled.is_empty() {
        return Ok(());
    }
    let names: BTreeSet<&str> = rescaled.iter().map(|(set, _)| &*set.name).collect();
    let clients = readback::clients(tools, &names)?;
    let mut lines = Vec::new();
    for (set, old) in rescaled {
        let clients = clients.get(&set.name).into_iter().flatten();
        let left = clients.filter_map(|(client, left)| {
            let left = set.remaining(*old, *left)?;
            Some(format!("{client} timeout {left}"))
        });
        replace(set, left, &mut lines);
    }
    tools.ipset_restore(&lines)
}

/// Puts a new set in the place of one that rules may use.
fn replace(set: &AffinitySet, clients: impl Iterator<Item = String>, to: &mut Vec<String>) {
    let name = &set.name;
    let temporary = format!("{name}{TEMPORARY}");
    to.push(set.declaration(&temporary));
    for client in clients {
        to.push(format!("add {temporary} {client}"));
    }
    to.push(format!("swap {temporary} {name}"));
    to.push(format!("destroy {temporary}"));
}

/// Affinity sets that no rule of ours uses any more.
///
/// Kernel: what iptables-nft removes lets go of its sets a little later, in a work queue.
#[derive(Debug, Default)]
pub(crate) struct UnusedSets(BTreeSet<String>);

impl UnusedSets {
    /// Adds the changes from the existing affinity sets, with their timeouts in seconds, to the lines for
    /// ipset before and after the rules are written.
    pub(crate) fn update(
        &mut self,
        mut old: BTreeMap<String, u32>,
        new: &[AffinitySet],
        [before, after]: [&mut Vec<String>; 2],
    ) -> Rescaled {
        let mut rescaled = Rescaled::new();
        // Left behind by a daemon that ended; no rule uses them.
        old.retain(|name, _| {
            let is_temporary = name.ends_with(TEMPORARY);
            if is_temporary {
                before.push(format!("destroy {name}"));
            }
            !is_temporary
        });
        for set in new {
            match old.remove(&set.name) {
                None if self.0.remove(&set.name) => replace(set, std::iter::empty(), before),
                None => before.push(set.declaration(&set.name)),
                Some(timeout) if timeout != set.timeout => rescaled.push((set.clone(), timeout)),
                Some(_) => {}
            }
        }
        after.extend(old.keys().map(|name| format!("flush {name}")));
        self.0.extend(old.into_keys());
        rescaled
    }

    /// Destroys those that the kernel no longer uses.
    ///
    /// # Errors
    /// What the program could not do.
    pub(crate) fn release<F: Family>(&mut self, tools: &Tools) -> Result<(), DatapathError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (unused, used) = drift::sets_by_use(F::FAMILY)?;
        let ours = unused.iter().filter(|name| self.0.contains(*name));
        let lines: Vec<String> = ours.map(|name| format!("destroy {name}")).collect();
        tools.ipset_restore(&lines)?;
        self.0.retain(|name| used.contains(name));
        Ok(())
    }
}
