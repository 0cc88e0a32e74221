//! How do tables and sets become what the forwarding state asks for?
//!
//! Invariants: sets only grow before the rules change, and only shrink after it. So a VIP is refused
//! before its translation goes and until after it came, in whichever order the tables are committed
//! (REJ-9); a set is there as long as a rule names it. Nothing that is right already is written again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use super::affinity_sets::{self, UnusedSets};
use super::chain::{Chain, Table};
use super::drift::{self, DriftCheck};
use super::layout::{self, Hook};
use super::names;
use super::readback::{self, InstalledSets, InstalledTable, Reading};
use super::render::{Rendered, render_globals, render_service_port, render_spared};
use super::script::{Lines, Script};
use super::sets::{self, SetId};
use super::stale::Stale;
use super::tool::Tools;
use super::tree::{ChainChanges, Tree};
use crate::datapath::common::{have_same_rules, is_nothing};
use crate::datapath::counts::Counts;
use crate::datapath::{DatapathError, SyncReport};
use crate::forwarding::{Backend, Changes, ForwardingState, Globals};
use crate::net::Family;

/// What the kernel was last given, as far as incremental changes need it.
#[derive(Debug)]
pub(crate) struct Installed<F: Family> {
    globals: Globals<F>,
    vips: Tree<F>,
    node_ports: Tree<F>,
    backends: Counts<Backend<F>>,
    cluster_ips: Counts<F::Addr>,
    unused_sets: UnusedSets,
    drift: DriftCheck,
}

/// How often, and after which pause, a cleanup checks whether the kernel released sets.
const RELEASE_ATTEMPTS: u32 = 20;
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

type Elements = BTreeSet<(SetId, String)>;

/// Everything that one sync writes.
struct Plan {
    /// Lines for ipset, before the rules.
    before: Lines,
    nat: Script,
    filter: Script,
    /// Lines for ipset, after the rules.
    after: Lines,
    /// To be removed after everything else is written.
    stale: Vec<Stale>,
    affinity_sets: affinity_sets::Updates,
    /// Numbers of elements added and removed, by set.
    sizes: BTreeMap<SetId, (usize, usize)>,
}

impl Plan {
    fn new(tools: &Tools) -> Self {
        Self {
            before: Lines::default(),
            nat: Script::new(Table::Nat, tools.flavour()),
            filter: Script::new(Table::Filter, tools.flavour()),
            after: Lines::default(),
            stale: Vec::new(),
            affinity_sets: affinity_sets::Updates::default(),
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
    fn elements<F: Family>(&mut self, added: &Elements, removed: &Elements) {
        for (id, element) in added {
            self.element::<F>(true, *id, element);
        }
        for (id, element) in removed.iter().rev() {
            self.element::<F>(false, *id, element);
        }
    }

    fn backends<'a, F: Family>(
        &mut self,
        added: impl IntoIterator<Item = &'a Backend<F>>,
        removed: impl IntoIterator<Item = &'a Backend<F>>,
    ) {
        for backend in added {
            self.element::<F>(true, SetId::Backends, &sets::backend(backend));
        }
        for backend in removed {
            self.element::<F>(false, SetId::Backends, &sets::backend(backend));
        }
    }

    fn element<F: Family>(&mut self, is_added: bool, id: SetId, element: &dyn Display) {
        let (name, element) = (
            id.name::<F>(),
            sets::with_protocol_number(&element.to_string()),
        );
        let (n_added, n_removed) = self.sizes.entry(id).or_default();
        let (verb, n) = if is_added {
            ("add", n_added)
        } else {
            ("del", n_removed)
        };
        *n += 1;
        // The backends, which are most of the elements, delay no flow.
        let to = if is_added && id != SetId::Backends {
            &mut self.before
        } else {
            &mut self.after
        };
        to.push(format_args!("{verb} {name} {element}"));
    }

    /// Returns the chains that could not be removed, too, and the last error.
    fn write(self, tools: &Tools) -> Result<(SyncReport, Remaining), DatapathError> {
        let Self {
            mut before,
            nat,
            filter,
            mut after,
            stale,
            affinity_sets,
            sizes,
        } = self;
        before.append(&affinity_sets.before);
        after.append(&affinity_sets.after);
        // The lines after the rules are removals, except for new backends.
        let n_late = sizes
            .get(&SetId::Backends)
            .map_or(0, |(n_added, _)| *n_added);
        let mut report = SyncReport {
            n_added: before.n + n_late + nat.report.n_added + filter.report.n_added,
            n_removed: after.n - n_late + nat.report.n_removed + filter.report.n_removed,
        };
        tools.ipset_restore(before.text())?;
        for script in [nat, filter] {
            if let Some(text) = script.finish() {
                tools.restore(&text)?;
            }
        }
        let mut left = Remaining::default();
        for stale in stale {
            let table = stale.table;
            let (removed, chains, result) = stale.remove(tools);
            report.n_removed += removed.n_removed;
            left.chains
                .extend(chains.into_iter().map(|name| (table, name)));
            left.because = result.err().or(left.because);
        }
        tools.ipset_restore(after.text())?;
        affinity_sets.rescale_timeouts(tools)?;
        Ok((report, left))
    }
}

/// Unused chains of ours that could not be removed.
#[derive(Debug, Default)]
struct Remaining {
    chains: Vec<(Table, String)>,
    because: Option<DatapathError>,
}

impl<F: Family> Installed<F> {
    fn new(globals: Globals<F>) -> Self {
        Self {
            globals,
            vips: Tree::new(names::VIPS, true),
            node_ports: Tree::new(names::NODE_PORTS, false),
            backends: Counts::default(),
            cluster_ips: Counts::default(),
            unused_sets: UnusedSets::default(),
            drift: DriftCheck::default(),
        }
    }

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
        if is_nothing(changes, &desired.globals) {
            return Ok(SyncReport::default());
        }
        let (mut old, mut new) = (Rendered::default(), Rendered::default());
        for change in changes.service_ports.values() {
            for (service_port, to) in [(&change.old, &mut old), (&change.new, &mut new)] {
                if let Some(service_port) = service_port {
                    render_service_port(service_port, &desired.globals, to);
                }
            }
        }
        if self.globals != desired.globals {
            render_globals(&self.globals, &mut old.elements);
            render_globals(&desired.globals, &mut new.elements);
            self.globals = desired.globals.clone();
        }
        render_spared::<F>(&changes.spared_removed, &mut old.elements);
        render_spared::<F>(&changes.spared_added, &mut new.elements);
        let mut plan = Plan::new(tools);
        self.plan_elements(&old, &new, &mut plan);
        let affinity_sets = old.affinity_sets.into_iter();
        let affinity_sets = affinity_sets.map(|set| (set.name, set.timeout));
        plan.affinity_sets = self
            .unused_sets
            .updates(affinity_sets.collect(), &new.affinity_sets);

        let kept: BTreeMap<&str, &[String]> = old
            .chains
            .iter()
            .map(|chain| (&*chain.name, &*chain.rules))
            .collect();
        let wanted: BTreeSet<&str> = new.chains.iter().map(|chain| &*chain.name).collect();
        let is_new = |chain: &&Chain| kept.get(&*chain.name) != Some(&&*chain.rules);
        for chain in new.chains.iter().filter(is_new) {
            self.drift.put(Table::Nat, chain);
            plan.nat.chain(chain);
        }
        let unwanted: Vec<String> = kept
            .keys()
            .filter(|name| !wanted.contains(*name))
            .map(|name| (*name).to_owned())
            .collect();
        for name in &unwanted {
            self.drift.remove(Table::Nat, name);
        }
        let changed_trees = [
            update_tree(&mut self.vips, old.vips, new.vips),
            update_tree(&mut self.node_ports, old.node_ports, new.node_ports),
        ];
        for ChainChanges { written, removed } in changed_trees {
            for chain in &written {
                self.drift.put(Table::Nat, chain);
                plan.nat.chain(chain);
            }
            for name in &removed {
                self.drift.remove(Table::Nat, name);
            }
            plan.nat.remove(removed);
        }
        plan.nat.remove(unwanted);
        for (id, (n_added, n_removed)) in &plan.sizes {
            let name = id.name::<F>();
            self.drift.wrote_set(&name, *n_added, *n_removed);
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

    fn plan_elements(&mut self, old: &Rendered<F>, new: &Rendered<F>, plan: &mut Plan) {
        let mut removed: Elements = old.elements.iter().cloned().collect();
        let mut added: Elements = BTreeSet::new();
        for element in &new.elements {
            if !removed.remove(element) {
                added.insert(element.clone());
            }
        }
        let (begin, cease) = self.cluster_ips.replace(&old.cluster_ips, &new.cluster_ips);
        added.extend(begin.iter().map(cluster_ip_element::<F>));
        removed.extend(cease.iter().map(cluster_ip_element::<F>));
        let (begin, cease) = self.backends.replace(&old.backends, &new.backends);
        if self.globals.netfilter.drop_invalid {
            plan.backends::<F>(&begin, &cease);
        }
        plan.elements::<F>(&added, &removed);
    }
}

fn cluster_ip_element<F: Family>(address: &F::Addr) -> (SetId, String) {
    (SetId::ClusterIps, address.to_string())
}

type Entry = (super::bits::Bits, Vec<String>);

/// Changes the frontends of a tree that differ.
fn update_tree<F: Family>(tree: &mut Tree<F>, old: Vec<Entry>, new: Vec<Entry>) -> ChainChanges {
    let mut old: BTreeMap<_, _> = old.into_iter().collect();
    let mut added = Vec::new();
    for (bits, rules) in new {
        match old.remove(&bits) {
            Some(same) if same == rules => {}
            Some(_) | None => added.push((bits, rules)),
        }
    }
    let removed: Vec<_> = old.into_keys().collect();
    tree.change(&removed, added)
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
    let globals = &desired.globals;
    let mut installed = Installed::new(globals.clone());
    let mut plan = Plan::new(tools);
    let mut elements = Vec::new();
    render_globals(globals, &mut elements);
    render_spared::<F>(&desired.spared, &mut elements);
    let mut affinity_sets = Vec::new();

    let mut nat = InstalledTable::read(tools, Table::Nat, reading)?;
    let mut write = |chain: &Chain| {
        installed.drift.put(Table::Nat, chain);
        if !nat.take_same(chain) {
            plan.nat.chain(chain);
        }
    };
    for service_port in desired.service_ports.values() {
        let mut rendered = Rendered::default();
        render_service_port(service_port, globals, &mut rendered);
        rendered.chains.iter().for_each(&mut write);
        for (bits, rules) in rendered.vips {
            installed.vips.insert(bits, rules);
        }
        for (bits, rules) in rendered.node_ports {
            installed.node_ports.insert(bits, rules);
        }
        elements.append(&mut rendered.elements);
        affinity_sets.append(&mut rendered.affinity_sets);
        installed.backends.add(&rendered.backends, 1);
        installed.cluster_ips.add(&rendered.cluster_ips, 1);
    }
    for tree in [&installed.vips, &installed.node_ports] {
        tree.chains(&mut |chain| write(&chain));
    }
    layout::chains(Table::Nat, globals)
        .iter()
        .for_each(&mut write);
    settle(Table::Nat, nat, &mut installed.drift, &mut plan);

    let mut filter = InstalledTable::read(tools, Table::Filter, reading)?;
    for chain in layout::chains(Table::Filter, globals) {
        installed.drift.put(Table::Filter, &chain);
        if !filter.take_same(&chain) {
            plan.filter.chain(&chain);
        }
    }
    settle(Table::Filter, filter, &mut installed.drift, &mut plan);

    let ips = installed.cluster_ips.keys().map(cluster_ip_element::<F>);
    let elements: Elements = elements.into_iter().chain(ips).collect();
    let backends: BTreeSet<Backend<F>> = if globals.netfilter.drop_invalid {
        installed.backends.keys().copied().collect()
    } else {
        BTreeSet::new()
    };
    for id in SetId::used(globals.netfilter.drop_invalid) {
        let n = if id == SetId::Backends {
            backends.len()
        } else {
            let of_it = elements.range((id, String::new())..);
            of_it.take_while(|(of, _)| *of == id).count()
        };
        installed.drift.wrote_set(&id.name::<F>(), n, 0);
    }
    let used = SetId::used(globals.netfilter.drop_invalid);
    let old_affinity_sets = compare_sets::<F>(tools, elements, backends, used, &mut plan)?;
    plan.affinity_sets = installed
        .unused_sets
        .updates(old_affinity_sets, &affinity_sets);
    let (mut report, left) = plan.write(tools)?;
    tolerate(&left, &mut installed.drift);
    report.n_added += drift::wake(tools)?;
    installed.unused_sets.release::<F>(tools)?;
    Ok((installed, report))
}

/// Chains that cannot be removed are harmless; the drift check must not report them again and again.
fn tolerate(left: &Remaining, drift: &mut DriftCheck) {
    for (table, chain) in &left.chains {
        drift.tolerate(*table, chain);
    }
    if let Some(error) = &left.because {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            n_chains = left.chains.len(),
            "cannot delete unused chains: rules of other programs jump to them"
        );
    }
}

/// Hooks our chains in, and removes the rest of ours.
fn settle(table: Table, mut installed: InstalledTable, drift: &mut DriftCheck, plan: &mut Plan) {
    for hook in Hook::ALL.iter().filter(|hook| hook.table == table) {
        drift.hook(table, hook.target);
        if !installed.take_hook(hook) {
            plan.script(table).insert(hook.chain, &hook.rule());
        }
    }
    remove_rest(table, installed, plan);
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

/// Elements that are wanted and not found yet, found, and not wanted.
struct SetComparison<F: Family> {
    wanted: Elements,
    wanted_backends: BTreeSet<Backend<F>>,
    found: Elements,
    found_backends: BTreeSet<Backend<F>>,
    unwanted: Elements,
    unwanted_backends: Vec<Backend<F>>,
}

impl<F: Family> SetComparison<F> {
    fn take(&mut self, id: SetId, element: &str) {
        // Not as text: there may be a hundred thousand of them.
        if id == SetId::Backends
            && let Some(backend) = sets::read_backend(element)
        {
            match self.wanted_backends.take(&backend) {
                Some(backend) => drop(self.found_backends.insert(backend)),
                None => self.unwanted_backends.push(backend),
            }
            return;
        }
        let element = (id, element.to_owned());
        match self.wanted.take(&element) {
            Some(element) => drop(self.found.insert(element)),
            None => drop(self.unwanted.insert(element)),
        }
    }

    /// Forgets what was found.
    fn restart(&mut self) {
        self.wanted.append(&mut self.found);
        self.wanted_backends.append(&mut self.found_backends);
        self.unwanted.clear();
        self.unwanted_backends.clear();
    }
}

/// Plans the changes of sets; returns our other sets with their timeouts in seconds.
fn compare_sets<F: Family>(
    tools: &Tools,
    wanted: Elements,
    wanted_backends: BTreeSet<Backend<F>>,
    used: impl Iterator<Item = SetId>,
    plan: &mut Plan,
) -> Result<BTreeMap<String, u32>, DatapathError> {
    let mut sets = SetComparison::<F> {
        wanted,
        wanted_backends,
        found: Elements::new(),
        found_backends: BTreeSet::new(),
        unwanted: Elements::new(),
        unwanted_backends: Vec::new(),
    };
    let read = InstalledSets::read::<F>(tools, &mut |id, element| sets.take(id, element));
    let installed = match read {
        Ok(installed) => installed,
        Err(error @ DatapathError::Unusable { .. }) => return Err(error),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "cannot list all sets, reading ours one by one; update ipset if it does not support a set of another program"
            );
            sets.restart();
            InstalledSets::read_one_by_one::<F>(tools, &mut |id, element| sets.take(id, element))?
        }
    };
    for id in used {
        if !installed.fixed.contains(&id) {
            plan.before.push(format_args!("{}", id.declaration::<F>()));
        }
    }
    plan.elements::<F>(&sets.wanted, &sets.unwanted);
    plan.backends::<F>(&sets.wanted_backends, &sets.unwanted_backends);
    Ok(installed.others)
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
            let (unused, used) = readback::sets_by_use::<F>()?;
            let mut lines = Lines::default();
            for name in unused {
                lines.push(format_args!("destroy {name}"));
            }
            tools.ipset_restore(lines.text())?;
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
