//! How is the whole table written: built, repaired, or replaced?
//!
//! Invariants: a table that is not there is built unreachable, in bounded transactions, and hooked in
//! by the last one; a repair is one transaction, bound to the generation that was read, and writes only
//! differences; a replacement is one transaction too, and relies on nothing in the kernel.

use super::clashes::Clashes;
use super::codec::{
    Kernel, Printed, PrintedChain, PrintedSet, PrintedTable, TableIs, Transaction, Writer,
    write_timed,
};
use super::desired::{Desired, transaction};
use super::elements::{Comparison, Difference, Elements, SetElements};
use super::layout::{SetId, TABLE_COMMENT};
use super::ruleset::{Chain, Rule};
use crate::datapath::{DatapathError, SyncReport};
use crate::net::Family;

/// A transaction of a table that is not live yet has about this many bytes.
const BOUNDED: usize = 4 << 20;

/// What an attempt reads of an existing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Large sets are not read but written again, and counted before and after.
    ///
    /// Kernel: reading a set takes time that grows with the square of its size, since a dump walks
    /// from the beginning for each 32 KiB (`nf_tables_dump_set()`: 10 s for 600,000 elements). Adding
    /// an existing element changes nothing: if all exist, the generation does not change, and if their
    /// number is right, there is no surplus.
    Probe,
    /// All sets are read.
    Everything,
    /// A new table replaces the old one, whatever it holds.
    Nothing,
}

/// From this size on a set is probed.
const PROBED: usize = 4096;

impl Reading {
    /// What to rely on when this has failed.
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Probe => Self::Everything,
            Self::Everything | Self::Nothing => Self::Nothing,
        }
    }

    /// Whether this set, of which the kernel printed `set`, is probed.
    ///
    /// Only sets without comments, which probing would not compare.
    fn probes(self, id: SetId, wanted: usize, set: Option<&PrintedSet>) -> bool {
        let large = matches!(
            id,
            SetId::ClusterBackends | SetId::LocalBackends | SetId::Backends | SetId::ClusterIps
        ) && wanted >= PROBED;
        self == Self::Probe && large && set.is_some_and(|set| set.n_elements.is_some())
    }
}

/// Builds a table that is not there.
pub(super) fn create<F: Family>(
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
/// Returns whether all is as desired now; if not, a probed set has surplus elements.
pub(super) fn repair<F: Family>(
    kernel: &mut Kernel,
    desired: &mut Desired<F>,
    table: &PrintedTable,
    generation: u32,
    reading: Reading,
    clashes: &mut Clashes,
) -> Result<(SyncReport, bool), DatapathError> {
    let mut sets = kernel.sets(&desired.sets)?;
    let chains = kernel.chains()?;
    let table_is = table.is(TABLE_COMMENT);
    let is_another = |chain: &PrintedChain| {
        let wanted = desired.chain(&chain.name);
        wanted.is_some_and(|wanted| !chain.is_declared_as(wanted))
    };
    if table_is == TableIs::Other
        || has_other_objects(table, &sets, &chains)
        || sets.iter().any(|set| set.is_same == Some(false))
        || chains.iter().any(is_another)
    {
        let clients = RememberedClients::read(kernel, &sets);
        return replace(kernel, desired, &clients).map(|report| (report, true));
    }
    let mut transaction = transaction::<F>(Some(generation));
    let mut report = SyncReport::default();
    if table_is == TableIs::Dormant {
        transaction.wake_table();
        report.n_added += 1;
    }
    let resized = keep_sizes(desired, &sets);
    sets.retain(|set| !resized.iter().any(|id| id.name() == set.name));
    repair_sets_and_chains::<F>(
        desired,
        &sets,
        &chains,
        &resized,
        &mut transaction,
        &mut report,
    );

    let comparisons = compare::<F>(kernel, &desired.elements, &sets, reading, clashes)?;
    let differences: Vec<(SetId, Difference<'_>)> = desired
        .elements
        .sets()
        .zip(&comparisons)
        .map(|((id, wanted), comparison)| (id, comparison.difference(wanted).of_set(id, wanted)))
        .collect();
    write_differences(&differences, &mut transaction, &mut report);

    // Unknown objects may refer to each other: delete rules first, then chains, then sets.
    let unknown = |chain: &&PrintedChain| desired.chain(&chain.name).is_none();
    for chain in chains.iter().filter(unknown) {
        transaction.flush_chain(&chain.name);
    }
    for chain in chains.iter().filter(unknown) {
        transaction.delete_chain(&chain.name);
        report.n_removed += 1;
    }
    // An anonymous set is deleted with its rule.
    let is_unknown = |set: &&PrintedSet| set.is_same.is_none() && !set.is_anonymous;
    for set in sets.iter().filter(is_unknown) {
        transaction.delete_set(&set.name);
        report.n_removed += 1;
    }
    kernel.commit_for(transaction, generation)?;
    let is_complete = count_probed(kernel, desired, &sets, reading, clashes, &mut report)?;
    Ok((report, is_complete))
}

/// Subtracts existing elements from the report; returns whether there are no surplus elements.
fn count_probed<F: Family>(
    kernel: &mut Kernel,
    desired: &Desired<F>,
    before: &[PrintedSet],
    reading: Reading,
    clashes: &Clashes,
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
        let n_removed = clashes.of(id).count();
        let grown = (count(&after, id) + n_removed).saturating_sub(count(before, id));
        report.n_added = report.n_added.saturating_sub(wanted) + grown;
        is_complete &= count(&after, id) == wanted;
    }
    Ok(is_complete)
}

/// Creates missing sets and chains, replaces sets of another size, and rewrites rules that differ.
///
/// `sets` are those that are kept.
fn repair_sets_and_chains<F: Family>(
    desired: &Desired<F>,
    sets: &[PrintedSet],
    chains: &[PrintedChain],
    resized: &[SetId],
    transaction: &mut Transaction,
    report: &mut SyncReport,
) {
    let is_right = |chain: &Chain| {
        let uses_resized = |rule: &Rule| resized.iter().any(|id| rule.uses(*id));
        let has_rules = |printed: &PrintedChain| printed.has_rules_of(chain, F::FAMILY);
        find_chain(chains, chain).is_some_and(has_rules) && !chain.rules.iter().any(uses_resized)
    };
    let wrong: Vec<&Chain> = desired
        .chains
        .iter()
        .filter(|chain| !is_right(chain))
        .collect();
    for chain in &wrong {
        if let Some(printed) = find_chain(chains, chain) {
            transaction.flush_chain(&chain.name);
            report.n_removed += printed.n_rules();
        }
    }
    // Kernel: a set is deleted when no rule of the next generation uses it; its name is free at once.
    for id in resized {
        transaction.delete_set(id.name());
        report.n_removed += 1;
    }
    for set in &desired.sets {
        if !sets.iter().any(|printed| printed.name == set.name) {
            transaction.create_set(set);
            report.n_added += 1;
        }
    }
    for chain in &wrong {
        if find_chain(chains, chain).is_none() {
            transaction.create_chain(chain);
            report.n_added += 1;
        }
    }
    for chain in &wrong {
        transaction.create_rules(chain);
        report.n_added += chain.rules.len();
    }
}

fn find_chain<'a>(chains: &'a [PrintedChain], chain: &Chain) -> Option<&'a PrintedChain> {
    chains.iter().find(|printed| printed.name == chain.name)
}

/// Keeps the sizes of sets that fit; returns the sets that must be replaced because of their size.
fn keep_sizes<F: Family>(desired: &mut Desired<F>, printed: &[PrintedSet]) -> Vec<SetId> {
    let mut resized = Vec::new();
    for (set, (id, elements)) in desired.sets.iter_mut().zip(desired.elements.sets()) {
        match find_set(printed, id) {
            Some(printed) if id.fits(printed.size, elements.len()) => set.size = printed.size,
            Some(_) => resized.push(id),
            None => {}
        }
    }
    resized
}

pub(super) fn find_set(sets: &[PrintedSet], id: SetId) -> Option<&PrintedSet> {
    sets.iter().find(|set| set.name == id.name())
}

/// Reads every set in the kernel except the affinity map, which packets fill.
///
/// For probed sets, `clashes` has what is to be removed.
fn compare<F: Family>(
    kernel: &mut Kernel,
    elements: &Elements,
    printed: &[PrintedSet],
    reading: Reading,
    clashes: &mut Clashes,
) -> Result<Vec<Comparison>, DatapathError> {
    let mut comparisons = Vec::with_capacity(SetId::ALL.len());
    for (id, wanted) in elements.sets() {
        let set = find_set(printed, id);
        let is_read =
            set.is_some() && id != SetId::Affinity && !reading.probes(id, wanted.len(), set);
        let mut comparison = if is_read {
            compare_set(kernel, id, wanted)?
        } else {
            Comparison::new(wanted)
        };
        if id == SetId::Frontends && reading == Reading::Probe {
            for frontend in comparison.surplus.iter() {
                if wanted.find(frontend.key()).is_none() {
                    let key = Printed::of(frontend.bytes()).key().unwrap_or_default();
                    clashes.frontend_is_gone::<F>(kernel, elements, key)?;
                }
            }
        }
        if reading.probes(id, wanted.len(), set) {
            for key in clashes.of(id) {
                comparison.surplus.push(|w| {
                    w.raw(key);
                    key.len()
                });
            }
        }
        comparisons.push(comparison);
    }
    Ok(comparisons)
}

/// Reads one set that the kernel has.
pub(super) fn compare_set(
    kernel: &mut Kernel,
    id: SetId,
    wanted: &SetElements,
) -> Result<Comparison, DatapathError> {
    kernel.elements(
        id.name(),
        || Comparison::new(wanted),
        |comparison, element| comparison.take(wanted, element),
    )
}

/// Whether there are objects or flowtables, of which we have none.
pub(super) fn has_other_objects(
    table: &PrintedTable,
    sets: &[PrintedSet],
    chains: &[PrintedChain],
) -> bool {
    table
        .n_objects
        .is_some_and(|n| n != sets.len() + chains.len())
}

/// The clients in the affinity map, to be copied into a new table.
#[derive(Debug, Default)]
pub(super) struct RememberedClients(Vec<Vec<u8>>);

impl RememberedClients {
    /// Reads them if the map is ours; a map that cannot be read counts as empty.
    pub(super) fn read(kernel: &mut Kernel, sets: &[PrintedSet]) -> Self {
        let is_ours = find_set(sets, SetId::Affinity).is_some_and(|set| set.is_same == Some(true));
        if !is_ours {
            return Self::default();
        }
        let clients = kernel.elements(SetId::Affinity.name(), Vec::new, |clients, printed| {
            if let (Some(key), Some(data), Some((timeout, left))) =
                (printed.key(), printed.data(), printed.timeout())
                && left > 0
            {
                let mut w = Writer::new();
                write_timed(&mut w, key, data, timeout, left);
                clients.push(w.as_slice().to_vec());
            }
        });
        Self(clients.unwrap_or_default())
    }
}

/// Replaces whatever has our table's name by a new table, in one transaction.
pub(super) fn replace<F: Family>(
    kernel: &mut Kernel,
    desired: &Desired<F>,
    remembered: &RememberedClients,
) -> Result<SyncReport, DatapathError> {
    let mut transaction = transaction::<F>(None);
    // Only an existing table can be deleted.
    transaction.ensure_table();
    transaction.delete_table();
    desired.create_unhooked(&mut transaction);
    for (id, elements) in desired.elements.sets() {
        add_all(id, elements, &mut transaction);
    }
    for client in &remembered.0 {
        transaction.add_element(SetId::Affinity.name(), client);
    }
    desired.create_hooked(&mut transaction);
    kernel.commit(transaction)?;
    Ok(SyncReport {
        n_added: desired.n_objects(),
        n_removed: 1,
    })
}

fn add_all(id: SetId, elements: &SetElements, to: &mut Transaction) {
    for element in elements.iter() {
        to.add_element(id.name(), element.bytes());
    }
}

/// Removes first: an element with another ServicePort or value keeps its key.
pub(super) fn write_differences(
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
            add_all(*id, whole, transaction);
        } else {
            for element in &difference.added {
                transaction.add_element(id.name(), element);
            }
        }
        report.n_added += difference.added.len();
    }
}
