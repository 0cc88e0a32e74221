//! How do changes reach the kernel's table, and is it still as we wrote it?
//!
//! Invariants: one transaction per sync, so that no packet sees half of it; a change costs what changed.

use std::collections::BTreeSet;

use super::affinity::Check;
use super::codec::{Kernel, TableIs};
use super::desired::{Desired, all_chains, transaction};
use super::elements::{Difference, Elements, difference};
use super::layout::{SetId, TABLE_COMMENT};
use super::render::{Rendered, render_globals, render_service_port, render_spared};
use super::repair::{compare_set, find_set, has_other_objects, write_differences};
use super::ruleset::{Chain, Set};
use super::sets::has_room;
use super::shared::Shared;
use crate::datapath::common::{have_same_rules, is_nothing};
use crate::datapath::{DatapathError, SyncReport};
use crate::forwarding::{Changes, ForwardingState, Globals, ServicePortId};
use crate::net::Family;

/// What the kernel was last given, as far as incremental changes need it.
#[derive(Debug)]
pub(crate) struct Installed<F: Family> {
    shared: Shared<F>,
    /// How each set is declared, in the order of [`SetId::ALL`].
    sets: Vec<Set>,
    /// How many elements each set has, in the same order.
    n_elements: Vec<usize>,
    globals: Globals<F>,
    /// What the kernel refused.
    left_out: BTreeSet<ServicePortId>,
}

impl<F: Family> Installed<F> {
    /// What the kernel has been given now.
    pub(super) fn new(
        desired: Desired<F>,
        globals: Globals<F>,
        left_out: BTreeSet<ServicePortId>,
    ) -> Self {
        let sizes = desired.elements.sets().map(|(_, elements)| elements.len());
        Self {
            n_elements: sizes.collect(),
            sets: desired.sets,
            shared: desired.shared,
            globals,
            left_out,
        }
    }

    /// Whether a change can be applied without looking at every ServicePort and rule.
    pub(crate) fn can_follow(&self, desired: &ForwardingState<F>, changes: &Changes<F>) -> bool {
        let is_written = |id| !changes.service_ports.contains_key(id);
        have_same_rules(&self.globals, &desired.globals) && self.left_out.iter().all(is_written)
    }

    /// Applies changes to the kernel; `None` if a set is too small for them, and nothing was done.
    ///
    /// # Errors
    /// What the kernel refused; `self` is to be thrown away then.
    pub(crate) fn follow(
        &mut self,
        kernel: &mut Kernel,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<Option<SyncReport>, DatapathError> {
        if is_nothing(changes, &desired.globals) {
            return Ok(Some(SyncReport::default()));
        }
        let (mut old, mut new) = (Rendered::default(), Rendered::default());
        for change in changes.service_ports.values() {
            for (service_port, to) in [(&change.old, &mut old), (&change.new, &mut new)] {
                if let Some(service_port) = service_port {
                    render_service_port(service_port, to);
                }
            }
        }
        if self.globals != desired.globals {
            render_globals(&self.globals, &mut old.elements);
            render_globals(&desired.globals, &mut new.elements);
        }
        render_spared::<F>(&changes.spared_removed, &mut old.elements);
        render_spared::<F>(&changes.spared_added, &mut new.elements);
        let mut change = Shared::default();
        change.count(&old, -1);
        change.count(&new, 1);
        let delta = self.shared.delta(&change);
        old.elements.append(delta.removed);
        new.elements.append(delta.added);
        old.elements.sort();
        new.elements.sort();

        let mut transaction = transaction::<F>(None);
        let mut report = SyncReport::default();
        let chains: Vec<Chain> = delta
            .chains_added
            .iter()
            .map(|chain| chain.render(&desired.globals))
            .collect();
        for chain in &chains {
            transaction.create_chain(chain);
            transaction.create_rules(chain);
            report.n_added += 1 + chain.rules.len();
        }
        let differences: Vec<(SetId, Difference<'_>)> = old
            .elements
            .sets()
            .zip(new.elements.sets())
            .map(|((id, old), (_, new))| (id, difference(old, new).of_set(id, new)))
            .filter(|(_, difference)| !difference.is_empty())
            .collect();
        write_differences(&differences, &mut transaction, &mut report);
        for (id, difference) in &differences {
            let at = *id as usize;
            if let (Some(n), Some(set)) = (self.n_elements.get_mut(at), self.sets.get(at)) {
                // Kernel: a removed element counts until the transaction is committed.
                let most = *n + difference.added.len();
                *n = most.saturating_sub(difference.removed.len());
                if set.size.is_some_and(|size| !has_room(size, most)) {
                    return Ok(None);
                }
            }
        }
        for chain in &delta.chains_removed {
            transaction.delete_chain(&chain.name());
            report.n_removed += 1;
        }
        kernel.commit(transaction)?;
        self.shared.merge(change);
        if self.globals != desired.globals {
            self.globals = desired.globals.clone();
        }
        let forgotten =
            Check::of_changes(changes).apply::<F>(kernel, || self::transaction::<F>(None))?;
        report.n_added += forgotten.n_added;
        report.n_removed += forgotten.n_removed;
        Ok(Some(report))
    }

    /// Whether the table's sets, chains and rules are still as we wrote them.
    ///
    /// A wrong number of elements counts as damage too, where the kernel tells it.
    pub(crate) fn is_intact(&self, kernel: &mut Kernel) -> Result<bool, DatapathError> {
        let Some(table) = kernel.table()? else {
            return Ok(false);
        };
        let sets = kernel.sets(&self.sets)?;
        let chains = kernel.chains()?;
        let wanted = all_chains(&self.globals, self.shared.backend_chains());
        let all_sets = sets.len() == self.sets.len()
            && sets.iter().all(|set| set.is_same == Some(true))
            && SetId::ALL
                .iter()
                .zip(&self.sets)
                .zip(&self.n_elements)
                .all(|((id, set), n)| {
                    let has_n = |seen| !is_counted(*id) || seen == *n;
                    find_set(&sets, *id).is_some_and(|printed| {
                        printed.size == set.size && printed.n_elements.is_none_or(has_n)
                    })
                });
        let all_chains = chains.len() == wanted.len()
            && wanted.iter().all(|wanted| {
                chains.iter().any(|chain| {
                    chain.name == wanted.name
                        && chain.is_declared_as(wanted)
                        && chain.has_rules_of(wanted, F::FAMILY)
                })
            });
        let is_same =
            table.is(TABLE_COMMENT) == TableIs::Same && !has_other_objects(&table, &sets, &chains);
        Ok(is_same && all_sets && all_chains && self.has_intervals(kernel)?)
    }

    /// Whether the sets of intervals, which are small, have just the elements that they should have.
    ///
    /// Kernel: `nft_rbtree_usize()` counts two ends as one, so that numbers say too little.
    fn has_intervals(&self, kernel: &mut Kernel) -> Result<bool, DatapathError> {
        let mut wanted = Elements::default();
        render_globals(&self.globals, &mut wanted);
        wanted.sort();
        for (id, wanted) in wanted.sets().filter(|(id, _)| id.is_written_whole()) {
            if !compare_set(kernel, id, wanted)?
                .difference(wanted)
                .is_empty()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether the number of elements is checked: packets fill the affinity map, and intervals are compared one
/// by one.
fn is_counted(id: SetId) -> bool {
    id != SetId::Affinity && !id.is_written_whole()
}

/// Removes our table.
pub(crate) fn cleanup<F: Family>(kernel: &mut Kernel) -> Result<(), DatapathError> {
    if kernel.table()?.is_some() {
        let mut transaction = transaction::<F>(None);
        transaction.delete_table();
        kernel.commit(transaction)?;
    }
    Ok(())
}
