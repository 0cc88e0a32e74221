//! How do tables and sets become what the forwarding state asks for?
//!
//! Invariants: sets only grow before the rules change, and only shrink after it. So a VIP is refused
//! before its translation goes and until after it came, in whichever order the tables are committed
//! (REJ-9); a set is there as long as a rule names it. Nothing that is right already is written again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::affinity_sets::{Rescaled, UnusedSets, rescale_timeouts};
use super::chain::{Chain, Table};
use super::drift::{self, DriftCheck};
use super::layout::Hook;
use super::readback::{InstalledSets, InstalledTable, Reading};
use super::render::{
    Element, Elements, Rendered, Shared, render_globals, render_service_port, render_spared,
    render_state,
};
use super::script::Script;
use super::sets::{self, SetId};
use super::stale::Stale;
use super::tool::Tools;
use super::tree::{ChainChanges, Tree};
use crate::datapath::common::{have_same_rules, is_nothing};
use crate::datapath::counts::Counts;
use crate::datapath::{DatapathError, SyncReport};
use crate::forwarding::{Changes, ForwardingState, Globals};
use crate::net::Family;

/// What the kernel was last given, as far as incremental changes need it.
#[derive(Debug)]
pub(crate) struct Installed<F: Family> {
    globals: Globals<F>,
    /// Of VIPs, and of NodePorts.
    trees: [Tree<F>; 2],
    shared: Counts<Shared<F>>,
    unused_sets: UnusedSets,
    drift: DriftCheck,
}

/// How often, and after which pause, a cleanup checks whether the kernel released sets.
const RELEASE_ATTEMPTS: u32 = 20;
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// Everything that one sync writes.
struct Plan {
    /// Lines for ipset, before the rules.
    before: Vec<String>,
    nat: Script,
    filter: Script,
    /// Lines for ipset, after the rules.
    after: Vec<String>,
    /// To be removed after everything else is written.
    stale: Vec<Stale>,
    rescaled: Rescaled,
    /// Numbers of elements added and removed, by set.
    sizes: BTreeMap<SetId, (usize, usize)>,
}

impl Plan {
    fn new(tools: &Tools) -> Self {
        Self {
            before: Vec::new(),
            nat: Script::new(Table::Nat, tools.flavour),
            filter: Script::new(Table::Filter, tools.flavour),
            after: Vec::new(),
            stale: Vec::new(),
            rescaled: Rescaled::new(),
            sizes: BTreeMap::new(),
        }
    }

    const fn script(&mut self, table: Table) -> &mut Script {
        match table {
            Table::Nat => &mut self.nat,
            Table::Filter => &mut self.filter,
        }
    }

    /// Adds before the rules and removes after them, in the order that [`SetId::ALL`] asks for.
    fn elements<F: Family>(&mut self, old: &Elements, new: &Elements) {
        for (id, element) in new.difference(old) {
            self.sizes.entry(*id).or_default().0 += 1;
            let line = line::<F>("add", *id, element);
            // The backends, which are most of the elements, delay no flow.
            let is_late = *id == SetId::Backends;
            let to = if is_late {
                &mut self.after
            } else {
                &mut self.before
            };
            to.push(line);
        }
        let removed: Vec<&Element> = old.difference(new).collect();
        for (id, element) in removed.into_iter().rev() {
            self.sizes.entry(*id).or_default().1 += 1;
            self.after.push(line::<F>("del", *id, element));
        }
    }

    /// Returns the chains that could not be removed, too, and the last error.
    fn write(self, tools: &Tools) -> Result<(SyncReport, Remaining), DatapathError> {
        let Self {
            before,
            nat,
            filter,
            after,
            stale,
            rescaled,
            sizes,
        } = self;
        // The lines after the rules are removals, except for new backends.
        let n_late = sizes.get(&SetId::Backends).map_or(0, |(n, _)| *n);
        let mut report = SyncReport {
            n_added: before.len() + n_late + nat.report.n_added + filter.report.n_added,
            n_removed: after.len() - n_late + nat.report.n_removed + filter.report.n_removed,
        };
        tools.ipset_restore(&before)?;
        for script in [nat, filter] {
            tools.restore(&script.finish())?;
        }
        let mut left = Remaining::default();
        for stale in stale {
            report.n_removed += stale.remove(tools, &mut left);
        }
        tools.ipset_restore(&after)?;
        rescale_timeouts(tools, &rescaled)?;
        Ok((report, left))
    }
}

fn line<F: Family>(verb: &str, id: SetId, element: &str) -> String {
    let (name, element) = (id.name::<F>(), sets::with_protocol_number(element));
    format!("{verb} {name} {element}")
}

/// Unused chains of ours that could not be removed.
#[derive(Debug, Default)]
pub(super) struct Remaining {
    /// With their tables.
    pub(super) chains: Vec<(Table, String)>,
    /// The last error.
    pub(super) because: Option<DatapathError>,
}

impl<F: Family> Installed<F> {
    /// Whether a change can be applied without looking at every ServicePort and rule.
    pub(crate) fn can_follow(&self, desired: &ForwardingState<F>) -> bool {
        have_same_rules(&self.globals, &desired.globals)
    }

    /// Applies changes to what is installed.
    ///
    /// # Errors
    /// What a program could not do; `self` is to be thrown away then.
    pub(crate) fn follow(
        &mut self,
        tools: &Tools,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<SyncReport, DatapathError> {
        let globals = &desired.globals;
        if is_nothing(changes, globals) {
            return Ok(SyncReport::default());
        }
        let (mut old, mut new) = (Rendered::default(), Rendered::default());
        for change in changes.service_ports.values() {
            for (service_port, to) in [(&change.old, &mut old), (&change.new, &mut new)] {
                if let Some(service_port) = service_port {
                    render_service_port(service_port, globals, to);
                }
            }
        }
        if self.globals != *globals {
            render_globals(&self.globals, &mut old.elements);
            render_globals(globals, &mut new.elements);
            self.globals = globals.clone();
        }
        render_spared::<F>(&changes.spared_removed, &mut old.elements);
        render_spared::<F>(&changes.spared_added, &mut new.elements);
        let (begin, cease) = self.shared.replace(&old.shared, &new.shared);
        for (shared, elements) in [(begin, &mut new.elements), (cease, &mut old.elements)] {
            elements.extend(shared.iter().filter_map(|it| it.element(globals)));
        }
        let mut plan = Plan::new(tools);
        plan.elements::<F>(&old.elements, &new.elements);
        for (id, (n_added, n_removed)) in &plan.sizes {
            self.drift.sets.wrote(&id.name::<F>(), *n_added, *n_removed);
        }
        let affinity_sets = old.affinity_sets.into_iter();
        let affinity_sets = affinity_sets.map(|set| (set.name, set.timeout));
        let lines = [&mut plan.before, &mut plan.after];
        plan.rescaled = self
            .unused_sets
            .update(affinity_sets.collect(), &new.affinity_sets, lines);
        let [vips, node_ports] = &mut self.trees;
        let drift = self.drift.table(Table::Nat);
        for ChainChanges { written, removed } in [
            chain_changes(old.chains, new.chains),
            vips.change(&old.vips, new.vips),
            node_ports.change(&old.node_ports, new.node_ports),
        ] {
            for chain in &written {
                drift.put(chain);
                plan.nat.chain(chain);
            }
            for name in &removed {
                drift.remove(name);
            }
            plan.nat.remove(removed);
        }
        let (report, _) = plan.write(tools)?;
        self.unused_sets.release::<F>(tools)?;
        Ok(report)
    }

    /// Whether others changed our rules or sets; destroys sets that the kernel released, too.
    ///
    /// # Errors
    /// What the kernel or a program could not do.
    pub(crate) fn has_drifted(&mut self, tools: &Tools) -> Result<bool, DatapathError> {
        self.unused_sets.release::<F>(tools)?;
        self.drift.has_drifted(tools)
    }
}

/// What differs between the chains of ServicePorts.
fn chain_changes(old: Vec<Chain>, new: Vec<Chain>) -> ChainChanges {
    let old = old.into_iter().map(|chain| (chain.name, chain.rules));
    let mut old: BTreeMap<String, Vec<String>> = old.collect();
    let is_new = |chain: &Chain| old.remove(&chain.name).as_ref() != Some(&chain.rules);
    ChainChanges {
        written: new.into_iter().filter(is_new).collect(),
        removed: old.into_keys().collect(),
    }
}

/// Reads back what is ours and makes it match, writing only what differs.
///
/// # Errors
/// What a program could not do; previous rules still active.
pub(crate) fn resync<F: Family>(
    tools: &Tools,
    desired: &ForwardingState<F>,
    reading: Reading,
) -> Result<(Installed<F>, SyncReport), DatapathError> {
    let mut drift = DriftCheck::default();
    let mut plan = Plan::new(tools);
    let mut nat = InstalledTable::read(tools, Table::Nat, reading)?;
    let mut filter = InstalledTable::read(tools, Table::Filter, reading)?;
    let (all, trees) = render_state(desired, &mut |table, chain| {
        drift.table(table).put(chain);
        let installed = match table {
            Table::Nat => &mut nat,
            Table::Filter => &mut filter,
        };
        if !installed.take_same(chain) {
            plan.script(table).chain(chain);
        }
    });
    for (table, mut installed) in [(Table::Nat, nat), (Table::Filter, filter)] {
        for hook in Hook::of(table) {
            drift.table(table).hook(hook.target);
            if !installed.take_hook(hook) {
                plan.script(table).insert(hook.chain, &hook.rule());
            }
        }
        remove_rest(table, installed, &mut plan);
    }
    let sets = InstalledSets::read::<F>(tools)?;
    for id in SetId::used(desired.globals.netfilter.drop_invalid) {
        if !sets.fixed.contains(&id) {
            plan.before.push(id.declaration::<F>());
        }
        let elements = all.elements.range((id, String::new())..);
        let n = elements.take_while(|(of, _)| *of == id).count();
        drift.sets.wrote(&id.name::<F>(), n, 0);
    }
    plan.elements::<F>(&sets.elements, &all.elements);
    let mut unused_sets = UnusedSets::default();
    let lines = [&mut plan.before, &mut plan.after];
    plan.rescaled = unused_sets.update(sets.others, &all.affinity_sets, lines);
    let (mut report, left) = plan.write(tools)?;
    tolerate(&left, &mut drift);
    report.n_added += drift::wake(tools)?;
    unused_sets.release::<F>(tools)?;
    let mut shared = Counts::default();
    shared.add(&all.shared, 1);
    let installed = Installed {
        globals: desired.globals.clone(),
        trees,
        shared,
        unused_sets,
        drift,
    };
    Ok((installed, report))
}

/// Chains that cannot be removed are harmless; the drift check must not report them again and again.
fn tolerate(left: &Remaining, drift: &mut DriftCheck) {
    for (table, chain) in &left.chains {
        drift.table(*table).tolerate(chain);
    }
    if let Some(error) = &left.because {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            n_chains = left.chains.len(),
            "cannot delete unused chains: rules of other programs jump to them"
        );
    }
}

fn remove_rest(table: Table, mut installed: InstalledTable, plan: &mut Plan) {
    for (chain, rule) in std::mem::take(&mut installed.hooks) {
        tracing::info!(chain, rule, "removing stale jump to our chain");
        plan.script(table).remove_rule(&chain, &rule);
    }
    plan.stale.push(Stale {
        table,
        chains: installed.take_names(),
        jumps: installed.jumps,
    });
}

/// Removes everything of ours, except sets that rules of the other flavour still use.
///
/// # Errors
/// What a program could not do.
pub(crate) fn cleanup<F: Family>(tools: &Tools) -> Result<(), DatapathError> {
    let (n_removed, because) =
        remove_chains(tools, Reading::Printed).or_else(|_| remove_chains(tools, Reading::Names))?;
    // Kernel: what iptables-nft removed lets go of its sets a little later, in a work queue.
    let mut attempts_left = if n_removed > 0 { RELEASE_ATTEMPTS } else { 0 };
    loop {
        let used = {
            let _sets = super::sets_of::<F>();
            let (unused, used) = drift::sets_by_use(F::FAMILY)?;
            let lines: Vec<String> = unused
                .iter()
                .map(|name| format!("destroy {name}"))
                .collect();
            tools.ipset_restore(&lines)?;
            used
        };
        if used.is_empty() || attempts_left == 0 {
            return because.map_or(Ok(()), Err);
        }
        attempts_left -= 1;
        std::thread::sleep(RELEASE_PAUSE);
    }
}

/// Removes our chains and the jumps to them; returns the number of objects removed, and the last error.
fn remove_chains(
    tools: &Tools,
    reading: Reading,
) -> Result<(usize, Option<DatapathError>), DatapathError> {
    let mut plan = Plan::new(tools);
    for table in Table::ALL {
        let installed = InstalledTable::read(tools, table, reading)?;
        remove_rest(table, installed, &mut plan);
    }
    let (report, left) = plan.write(tools)?;
    Ok((report.n_removed, left.because))
}
