//! How does the kernel's table become what the forwarding state asks for?
//!
//! Invariants: one transaction per sync, so that no packet sees half of it; a table that is not there
//! is built unreachable, in bounded transactions, and hooked in by the last one; nothing that is right
//! already is written again.

use super::affinity::Check;
use super::codec::{Kernel, NEEDS, PrintedChain, PrintedSet, Transaction};
use super::elements::{Comparison, Difference, Elements, difference};
use super::kind::Pick;
use super::layout::{self, SetId, TABLE, TABLE_COMMENT};
use super::render::{Rendered, render_globals, render_service_port};
use super::ruleset::{Chain, Set};
use super::shared::Shared;
use crate::datapath::common::have_same_rules;
use crate::datapath::{DatapathError, SyncReport};
use crate::forwarding::{Changes, ForwardingState, Globals};
use crate::net::Family;

/// A transaction of a table that is not live yet has about this many bytes.
const BOUNDED: usize = 4 << 20;
/// How often a full comparison is begun anew because others wrote meanwhile.
const RESYNC_ATTEMPTS: u32 = 10;

/// What the kernel was last given, as far as incremental changes need it.
#[derive(Debug)]
pub(crate) struct Installed<F: Family> {
    shared: Shared<F>,
    /// How many elements each set has, in the order of [`SetId::ALL`].
    n_elements: Vec<usize>,
    globals: Globals<F>,
}

/// A whole state, rendered.
struct Desired<F: Family> {
    sets: Vec<Set>,
    chains: Vec<Chain>,
    elements: Elements,
    shared: Shared<F>,
}

fn declarations<F: Family>() -> Vec<Set> {
    SetId::ALL
        .iter()
        .map(|id| id.declaration(F::FAMILY))
        .collect()
}

/// All chains, base chains last.
fn all_chains<'a, F: Family>(
    globals: &Globals<F>,
    picks: impl Iterator<Item = &'a Pick>,
) -> Vec<Chain> {
    picks
        .map(|pick| pick.chain(globals))
        .chain(layout::chains(globals))
        .collect()
}

impl<F: Family> Desired<F> {
    fn render(state: &ForwardingState<F>) -> Self {
        let ForwardingState {
            globals,
            service_ports,
        } = state;
        let mut rendered = Rendered::default();
        for service_port in service_ports.values() {
            render_service_port(service_port, globals.detector.is_some(), &mut rendered);
        }
        render_globals(globals, &mut rendered.elements);
        let mut shared = Shared::default();
        shared.count(&rendered, 1);
        let turns = Shared::default().turns(&shared);
        let mut elements = rendered.elements;
        elements.append(turns.added);
        Self {
            sets: declarations::<F>(),
            chains: all_chains(globals, shared.picks()),
            elements,
            shared,
        }
    }

    /// Everything but base chains and elements.
    fn create_unhooked(&self, transaction: &mut Transaction) {
        transaction.create_table(TABLE_COMMENT);
        for set in &self.sets {
            transaction.create_set(set);
        }
        // A rule may name any chain, a map's element too: all chains come first.
        let unhooked = || self.chains.iter().filter(|chain| chain.hook.is_none());
        for chain in unhooked() {
            transaction.create_chain(chain);
        }
        for chain in unhooked() {
            transaction.create_rules(chain);
        }
    }

    fn create_hooked(&self, transaction: &mut Transaction) {
        for chain in self.chains.iter().filter(|chain| chain.hook.is_some()) {
            transaction.create_chain(chain);
            transaction.create_rules(chain);
        }
    }

    /// How many objects a table made from nothing has.
    fn n_objects(&self) -> usize {
        let n_rules: usize = self.chains.iter().map(|chain| chain.rules.len()).sum();
        1 + self.sets.len() + self.chains.len() + n_rules + self.elements.n_elements()
    }
}

fn transaction<F: Family>(generation: Option<u32>) -> Transaction {
    Transaction::new(F::FAMILY, TABLE, generation)
}

/// Makes the kernel match `state`, whatever it holds.
pub(crate) fn resync<F: Family>(
    kernel: &mut Kernel,
    state: &ForwardingState<F>,
) -> Result<(Installed<F>, SyncReport), DatapathError> {
    let mut desired = Desired::render(state);
    let mut attempts = 0;
    let mut reading = Reading::Probe;
    let mut report = SyncReport::default();
    loop {
        let generation = kernel.generation()?;
        let result = if kernel.has_table()? {
            desired.elements.sort();
            repair(kernel, &desired, generation, reading)
        } else {
            create(kernel, &desired)
                .map(|report| (report, true))
                .map_err(lacking)
        };
        match result {
            Ok((done, is_complete)) => {
                report.n_added += done.n_added;
                report.n_removed += done.n_removed;
                if is_complete {
                    break;
                }
                reading = Reading::Everything;
            }
            Err(DatapathError::Refused { source, .. })
                if attempts < RESYNC_ATTEMPTS && (is_outdated(&source) || is_clash(&source)) =>
            {
                if is_clash(&source) {
                    reading = Reading::Everything;
                }
                attempts += 1;
            }
            Err(error) => return Err(error),
        }
    }
    let forgotten = Check::all(state).apply::<F>(kernel, || transaction::<F>(None))?;
    report.n_added += forgotten.n_added;
    report.n_removed += forgotten.n_removed;
    let installed = Installed {
        shared: desired.shared,
        n_elements: desired
            .elements
            .sets()
            .map(|(_, elements)| elements.len())
            .collect(),
        globals: state.globals.clone(),
    };
    Ok((installed, report))
}

/// Kernel: `ERESTART` answers a transaction whose generation is not the current one.
fn is_outdated(source: &std::io::Error) -> bool {
    const ERESTART: i32 = 85;
    source.raw_os_error() == Some(ERESTART)
}

/// Kernel: what an element that is there with another value answers; `EBUSY`, in older ones `EEXIST`.
fn is_clash(source: &std::io::Error) -> bool {
    const EBUSY: i32 = 16;
    const EEXIST: i32 = 17;
    matches!(source.raw_os_error(), Some(EBUSY | EEXIST))
}

/// How the elements that are there are found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Large sets are not read but written once more, and counted before and after.
    ///
    /// Kernel: reading a set takes time that grows with the square of its size, since a dump walks
    /// from the beginning for each 32 KiB (`nf_tables_dump_set()`: 10 s for 600,000 elements). Adding
    /// an element that is there changes nothing. If all were there the generation stays, and if there
    /// are as many as there should be none is too many.
    Probe,
    /// All sets are read.
    Everything,
}

/// From this size on a set is probed.
const PROBED: usize = 4096;

impl Reading {
    /// Whether this set, of which the kernel printed `set`, is probed.
    ///
    /// Only sets without comments, which probing would not compare.
    fn probes(self, id: SetId, wanted: usize, set: Option<&PrintedSet>) -> bool {
        let large = matches!(
            id,
            SetId::ClusterBackends | SetId::LocalBackends | SetId::Endpoints | SetId::ClusterIps
        ) && wanted >= PROBED;
        self == Self::Probe && large && set.is_some_and(|set| set.n_elements.is_some())
    }
}

/// Kernel: what it has no expression or chain type for is answered as if it were not found.
fn lacking(error: DatapathError) -> DatapathError {
    match error {
        DatapathError::Refused {
            operation, source, ..
        } if operation.starts_with("creation") && source.kind() == std::io::ErrorKind::NotFound => {
            DatapathError::Unusable {
                operation,
                advice: NEEDS,
                source,
            }
        }
        error @ (DatapathError::Unusable { .. } | DatapathError::Refused { .. }) => error,
    }
}

/// Builds a table that is not there.
fn create<F: Family>(
    kernel: &mut Kernel,
    desired: &Desired<F>,
) -> Result<SyncReport, DatapathError> {
    let mut part = transaction::<F>(None);
    desired.create_unhooked(&mut part);
    for (id, elements) in desired.elements.sets() {
        for element in elements.iter() {
            part.add_element(id.name(), element.bytes());
            if part.len() > BOUNDED {
                kernel.commit(std::mem::replace(&mut part, transaction::<F>(None)))?;
            }
        }
    }
    desired.create_hooked(&mut part);
    kernel.commit(part)?;
    Ok(SyncReport {
        n_added: desired.n_objects(),
        n_removed: 0,
    })
}

/// Changes a table that is there, in one transaction.
///
/// Answers whether all is as desired now; if not, a set that was probed has too many elements.
fn repair<F: Family>(
    kernel: &mut Kernel,
    desired: &Desired<F>,
    generation: u32,
    reading: Reading,
) -> Result<(SyncReport, bool), DatapathError> {
    let sets = kernel.sets(&desired.sets)?;
    let chains = kernel.chains()?;
    let moved = |chain: &PrintedChain| {
        let wanted = desired
            .chains
            .iter()
            .find(|wanted| wanted.name == chain.name);
        wanted.is_some_and(|wanted| !chain.has_hook(wanted.hook))
    };
    if sets.iter().any(|set| set.is_same == Some(false)) || chains.iter().any(moved) {
        return replace(kernel, desired, generation).map(|report| (report, true));
    }
    let mut transaction = transaction::<F>(Some(generation));
    let mut report = SyncReport::default();
    for set in &desired.sets {
        if !sets.iter().any(|printed| printed.name == set.name) {
            transaction.create_set(set);
            report.n_added += 1;
        }
    }
    repair_chains::<F>(&chains, &desired.chains, &mut transaction, &mut report);

    let comparisons = compare(kernel, &desired.elements, &sets, reading)?;
    let differences: Vec<(SetId, Difference<'_>)> = desired
        .elements
        .sets()
        .zip(&comparisons)
        .map(|((id, wanted), comparison)| {
            (id, comparison.difference(wanted).of_set(id, wanted))
        })
        .collect();
    write_differences(&differences, &mut transaction, &mut report);

    // Unknown objects may name each other: rules go first, then chains, then sets.
    let unknown = |chain: &&PrintedChain| {
        !desired
            .chains
            .iter()
            .any(|wanted| wanted.name == chain.name)
    };
    for chain in chains.iter().filter(unknown) {
        transaction.flush_chain(&chain.name);
    }
    for chain in chains.iter().filter(unknown) {
        transaction.delete_chain(&chain.name);
        report.n_removed += 1;
    }
    for set in sets.iter().filter(|set| set.is_same.is_none()) {
        transaction.delete_set(&set.name);
        report.n_removed += 1;
    }
    kernel.commit_for(transaction, generation)?;
    let is_complete = count_probed(kernel, desired, &sets, reading, &mut report)?;
    Ok((report, is_complete))
}

/// Corrects the report by what was there already, and answers whether nothing else is there.
fn count_probed<F: Family>(
    kernel: &mut Kernel,
    desired: &Desired<F>,
    before: &[PrintedSet],
    reading: Reading,
    report: &mut SyncReport,
) -> Result<bool, DatapathError> {
    let probed: Vec<(SetId, usize)> = desired
        .elements
        .sets()
        .map(|(id, wanted)| (id, wanted.len()))
        .filter(|(id, wanted)| reading.probes(*id, *wanted, find_set(before, *id)))
        .collect();
    if probed.is_empty() {
        return Ok(true);
    }
    let after = kernel.sets(&desired.sets)?;
    let count = |sets, id| {
        find_set(sets, id)
            .and_then(|set| set.n_elements)
            .unwrap_or(0)
    };
    let mut is_complete = true;
    for (id, wanted) in probed {
        let grown = count(&after, id).saturating_sub(count(before, id));
        report.n_added = report.n_added.saturating_sub(wanted) + grown;
        is_complete &= count(&after, id) == wanted;
    }
    Ok(is_complete)
}

fn find_set(sets: &[PrintedSet], id: SetId) -> Option<&PrintedSet> {
    sets.iter().find(|set| set.name == id.name())
}

/// Reads every set that the kernel has, except the affinity memory, which is the packets' own.
fn compare(
    kernel: &mut Kernel,
    elements: &Elements,
    printed: &[PrintedSet],
    reading: Reading,
) -> Result<Vec<Comparison>, DatapathError> {
    let mut comparisons = Vec::with_capacity(SetId::ALL.len());
    for (id, wanted) in elements.sets() {
        let set = find_set(printed, id);
        let is_read =
            set.is_some() && id != SetId::Affinity && !reading.probes(id, wanted.len(), set);
        comparisons.push(if is_read {
            kernel.elements(
                id.name(),
                || Comparison::new(wanted),
                |comparison, element| comparison.take(wanted, element),
            )?
        } else {
            Comparison::new(wanted)
        });
    }
    Ok(comparisons)
}

/// Makes missing chains, and gives the others the rules they should have.
fn repair_chains<F: Family>(
    printed: &[PrintedChain],
    wanted: &[Chain],
    transaction: &mut Transaction,
    report: &mut SyncReport,
) {
    let find = |chain: &Chain| printed.iter().find(|printed| printed.name == chain.name);
    for chain in wanted.iter().filter(|chain| find(chain).is_none()) {
        transaction.create_chain(chain);
        report.n_added += 1;
    }
    for chain in wanted {
        match find(chain) {
            Some(printed) if printed.has_rules(&chain.rules, F::FAMILY) => continue,
            Some(printed) => {
                transaction.flush_chain(&chain.name);
                report.n_removed += printed.rules.len();
            }
            None => {}
        }
        transaction.create_rules(chain);
        report.n_added += chain.rules.len();
    }
}

/// Puts a new table in the place of one whose sets or hooks are not ours; in one transaction.
fn replace<F: Family>(
    kernel: &mut Kernel,
    desired: &Desired<F>,
    generation: u32,
) -> Result<SyncReport, DatapathError> {
    let mut transaction = transaction::<F>(Some(generation));
    transaction.delete_table();
    desired.create_unhooked(&mut transaction);
    for (id, elements) in desired.elements.sets() {
        for element in elements.iter() {
            transaction.add_element(id.name(), element.bytes());
        }
    }
    desired.create_hooked(&mut transaction);
    kernel.commit(transaction)?;
    Ok(SyncReport {
        n_added: desired.n_objects(),
        n_removed: 1,
    })
}

/// Removes first: an element that moves to another ServicePort, or gets another value, has the same key.
fn write_differences(
    differences: &[(SetId, Difference<'_>)],
    transaction: &mut Transaction,
    report: &mut SyncReport,
) {
    for (id, difference) in differences {
        if difference.whole.is_some() {
            transaction.flush_set(id.name());
        } else {
            for key in &difference.removed {
                transaction.delete_element(id.name(), key);
            }
        }
        report.n_removed += difference.removed.len();
    }
    for (id, difference) in differences {
        if let Some(whole) = difference.whole {
            for element in whole.iter() {
                transaction.add_element(id.name(), element.bytes());
            }
        } else {
            for element in &difference.added {
                transaction.add_element(id.name(), element);
            }
        }
        report.n_added += difference.added.len();
    }
}

impl<F: Family> Installed<F> {
    /// Whether a change can be applied without looking at every ServicePort and rule.
    pub(crate) fn can_follow(&self, desired: &ForwardingState<F>) -> bool {
        have_same_rules(&self.globals, &desired.globals)
    }

    /// Applies changes to what is installed.
    ///
    /// # Errors
    /// What the kernel refused; `self` is to be thrown away then.
    pub(crate) fn follow(
        &mut self,
        kernel: &mut Kernel,
        desired: &ForwardingState<F>,
        changes: &Changes<F>,
    ) -> Result<SyncReport, DatapathError> {
        let has_detector = desired.globals.detector.is_some();
        let (mut old, mut new) = (Rendered::default(), Rendered::default());
        for change in changes.service_ports.values() {
            for (service_port, to) in [(&change.old, &mut old), (&change.new, &mut new)] {
                if let Some(service_port) = service_port {
                    render_service_port(service_port, has_detector, to);
                }
            }
        }
        if self.globals != desired.globals {
            render_globals(&self.globals, &mut old.elements);
            render_globals(&desired.globals, &mut new.elements);
        }
        let mut change = Shared::default();
        change.count(&old, -1);
        change.count(&new, 1);
        let turns = self.shared.turns(&change);
        old.elements.append(turns.removed);
        new.elements.append(turns.added);
        old.elements.sort();
        new.elements.sort();

        let mut transaction = transaction::<F>(None);
        let mut report = SyncReport::default();
        let chains: Vec<Chain> = turns
            .chains_added
            .iter()
            .map(|pick| pick.chain(&desired.globals))
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
            if let Some(n) = self.n_elements.get_mut(*id as usize) {
                *n = (*n + difference.added.len()).saturating_sub(difference.removed.len());
            }
        }
        for pick in &turns.chains_removed {
            transaction.delete_chain(&pick.chain_name());
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
        Ok(report)
    }

    /// Whether the table's sets, chains and rules are still as we wrote them.
    ///
    /// Where the kernel says how many elements a set has, a wrong number counts as damage too.
    pub(crate) fn is_intact(&self, kernel: &mut Kernel) -> Result<bool, DatapathError> {
        if !kernel.has_table()? {
            return Ok(false);
        }
        let declarations = declarations::<F>();
        let sets = kernel.sets(&declarations)?;
        let chains = kernel.chains()?;
        let wanted = all_chains(&self.globals, self.shared.picks());
        let all_sets = sets.len() == declarations.len()
            && sets.iter().all(|set| set.is_same == Some(true))
            && SetId::ALL.iter().zip(&self.n_elements).all(|(id, n)| {
                // Packets fill the memory, and of intervals the kernel counts otherwise.
                matches!(
                    id,
                    SetId::Affinity | SetId::ServiceCidrs | SetId::SourceRanges
                ) || find_set(&sets, *id)
                    .is_some_and(|set| set.n_elements.is_none_or(|printed| printed == *n))
            });
        let all_chains = chains.len() == wanted.len()
            && wanted.iter().all(|wanted| {
                chains.iter().any(|chain| {
                    chain.name == wanted.name
                        && chain.has_hook(wanted.hook)
                        && chain.has_rules(&wanted.rules, F::FAMILY)
                })
            });
        Ok(all_sets && all_chains)
    }
}

/// Removes our table.
pub(crate) fn cleanup<F: Family>(kernel: &mut Kernel) -> Result<(), DatapathError> {
    if kernel.has_table()? {
        let mut transaction = transaction::<F>(None);
        transaction.delete_table();
        kernel.commit(transaction)?;
    }
    Ok(())
}
