//! Which affinity sets come, go, or keep their clients for another time?
//!
//! Invariants: a set is there before a rule names it; it is empty once no rule does, though the kernel
//! may hold it for longer; a client's time goes on when the time of its ServicePort changes.

use std::collections::{BTreeMap, BTreeSet};

use super::affinity_set::AffinitySet;
use super::readback;
use super::script::Lines;
use super::tool::Tools;
use crate::datapath::DatapathError;
use crate::net::Family;

/// Suffix of a temporary set, before `ipset swap`; other names end in 16 letters and digits.
const TEMPORARY: &str = "-new";

/// What ipset is told about affinity sets.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    /// Lines before the rules are written.
    pub(crate) before: Lines,
    /// Lines after that.
    pub(crate) after: Lines,
    /// Memories whose clients stay for another time than before, with that time in seconds.
    retimed: Vec<(AffinitySet, u32)>,
}

impl Updates {
    /// Rescales remaining timeouts after the affinity timeout changed. Spec: AFF-8.
    ///
    /// A client that comes between reading and writing is forgotten: its next flow may go elsewhere.
    ///
    /// # Errors
    /// What the program could not do.
    pub(crate) fn retime(&self, tools: &Tools) -> Result<(), DatapathError> {
        if self.retimed.is_empty() {
            return Ok(());
        }
        let names: BTreeSet<&str> = self.retimed.iter().map(|(m, _)| &*m.name).collect();
        let clients = readback::clients(tools, &names)?;
        let mut lines = Lines::default();
        for (memory, old) in &self.retimed {
            let clients = clients.get(&memory.name).into_iter().flatten();
            let left = clients.filter_map(|(client, left)| {
                let left = memory.left_now(*old, *left)?;
                Some(format!("{client} timeout {left}"))
            });
            replace(memory, left, &mut lines);
        }
        tools.ipset_lines(&lines)
    }
}

/// Puts a new set in the place of one that rules may use.
fn replace(memory: &AffinitySet, clients: impl Iterator<Item = String>, to: &mut Lines) {
    let name = &memory.name;
    let temporary = format!("{name}{TEMPORARY}");
    to.push(format_args!("{}", memory.declaration(&temporary)));
    for client in clients {
        to.push(format_args!("add {temporary} {client}"));
    }
    to.push(format_args!("swap {temporary} {name}"));
    to.push(format_args!("destroy {temporary}"));
}

/// Memories that no rule of ours names any more.
///
/// Kernel: what iptables-nft removes lets go of its sets a little later, in a work queue.
#[derive(Debug, Default)]
pub(crate) struct Gone(BTreeSet<String>);

impl Gone {
    /// What is to be done, given the affinity sets that there are, with their times in seconds.
    pub(crate) fn updates(
        &mut self,
        mut old: BTreeMap<String, u32>,
        new: &[AffinitySet],
    ) -> Updates {
        let mut updates = Updates::default();
        // No rule ever names them: an end of the daemon left them behind.
        old.retain(|name, _| {
            let is_temporary = name.ends_with(TEMPORARY);
            if is_temporary {
                updates.before.push(format_args!("destroy {name}"));
            }
            !is_temporary
        });
        for memory in new {
            match old.remove(&memory.name) {
                None if self.0.remove(&memory.name) => {
                    replace(memory, std::iter::empty(), &mut updates.before);
                }
                None => {
                    let declaration = memory.declaration(&memory.name);
                    updates.before.push(format_args!("{declaration}"));
                }
                Some(timeout) if timeout != memory.timeout => {
                    updates.retimed.push((memory.clone(), timeout));
                }
                Some(_) => {}
            }
        }
        for name in old.keys() {
            updates.after.push(format_args!("flush {name}"));
        }
        self.0.extend(old.into_keys());
        updates
    }

    /// Destroys those that the kernel has let go of.
    ///
    /// # Errors
    /// What the program could not do.
    pub(crate) fn release<F: Family>(&mut self, tools: &Tools) -> Result<(), DatapathError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (unused, used) = readback::sets_by_use::<F>()?;
        let mut lines = Lines::default();
        for name in unused.iter().filter(|name| self.0.contains(*name)) {
            lines.push(format_args!("destroy {name}"));
        }
        tools.ipset_lines(&lines)?;
        self.0.retain(|name| used.contains(name));
        Ok(())
    }
}
