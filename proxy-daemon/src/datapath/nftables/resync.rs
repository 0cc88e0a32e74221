//! How does the kernel's table become what the forwarding state asks for, whatever it holds?
//!
//! Invariants: each failed attempt is followed by one that relies on less, and the last one relies on
//! nothing in the kernel; a ServicePort that the kernel rejects does not block the others.

use std::collections::BTreeSet;

use super::affinity::Check;
use super::apply::Installed;
use super::clashes::Clashes;
use super::codec::{Kernel, NEEDS, Refused};
use super::desired::{Desired, has_element, transaction};
use super::repair::{Reading, RememberedClients, create, repair, replace};
use crate::datapath::{DatapathError, SyncReport};
use crate::forwarding::{ForwardingState, ServicePortId};
use crate::net::Family;

/// How often a repair is repeated because another program wrote meanwhile.
const REPAIR_ATTEMPTS: u32 = 10;
/// Maximum number of ServicePorts with the rejected element, and of those that are left out.
///
/// Beyond these limits the cause is another, and the sync fails: the previous table stays active.
const MAX_OWNERS: usize = 8;
const MAX_LEFT_OUT: usize = 64;

/// Makes the kernel match `state`, whatever it holds.
///
/// # Errors
/// What the kernel refuses of a new table, or [`DatapathError::Held`].
pub(crate) fn resync<F: Family>(
    kernel: &mut Kernel,
    state: &ForwardingState<F>,
) -> Result<(Installed<F>, SyncReport), DatapathError> {
    let mut left_out = BTreeSet::new();
    let mut desired = Desired::render(state, &left_out);
    let mut n_outdated = 0;
    let mut reading = Reading::Probe;
    let mut report = SyncReport::default();
    let mut clashes = Clashes::default();
    loop {
        let result = attempt(kernel, &mut desired, reading, &mut clashes);
        if let Err(DatapathError::Refused { .. }) = result
            && reading == Reading::Probe
            && let Some(rejected) = kernel.take_refused()
            // If the keys cannot be read, the next attempt reads everything, as after any other failure.
            && clashes
                .explain::<F>(kernel, &desired.elements, &rejected)
                .unwrap_or(false)
        {
            continue;
        }
        match result {
            Ok((done, is_complete)) => {
                report.n_added += done.n_added;
                report.n_removed += done.n_removed;
                if is_complete {
                    break;
                }
                reading = Reading::Everything;
            }
            Err(error @ (DatapathError::Held { .. } | DatapathError::Unusable { .. })) => {
                return Err(error);
            }
            Err(error) if is_outdated(&error) && n_outdated < REPAIR_ATTEMPTS => n_outdated += 1,
            Err(error) if reading != Reading::Nothing => {
                reading = reading.next();
                if reading == Reading::Nothing {
                    let because = if is_outdated(&error) {
                        "other programs change nf_tables too often"
                    } else {
                        "the kernel rejected the repair"
                    };
                    tracing::warn!(
                        family = F::FAMILY.name(),
                        because,
                        error = &error as &dyn std::error::Error,
                        "cannot repair the table, replacing it in one transaction"
                    );
                }
            }
            Err(error) => {
                let refused = kernel.take_refused();
                let owners = refused.map(|refused| owners(state, &left_out, &refused));
                let Some(owners) = owners.filter(|owners| !owners.is_empty()) else {
                    return Err(error);
                };
                if owners.len() > MAX_OWNERS || left_out.len() >= MAX_LEFT_OUT {
                    return Err(error);
                }
                for id in &owners {
                    tracing::error!(
                        family = F::FAMILY.name(),
                        service_port = id.as_str(),
                        error = &error as &dyn std::error::Error,
                        "cannot program this ServicePort: the kernel rejected one of its elements; the \
                         others are not affected; will retry when it changes, or within an hour"
                    );
                }
                left_out.extend(owners);
                desired = Desired::render(state, &left_out);
            }
        }
    }
    let forgotten = Check::all(state).apply::<F>(kernel, || transaction::<F>(None))?;
    report.n_added += forgotten.n_added;
    report.n_removed += forgotten.n_removed;
    let installed = Installed::new(desired, state.globals.clone(), left_out);
    Ok((installed, report))
}

/// Returns whether all is as desired now.
fn attempt<F: Family>(
    kernel: &mut Kernel,
    desired: &mut Desired<F>,
    reading: Reading,
    clashes: &mut Clashes,
) -> Result<(SyncReport, bool), DatapathError> {
    if reading == Reading::Nothing {
        // Sets that cannot be read are not copied.
        let sets = kernel.sets(&desired.sets).unwrap_or_default();
        let clients = RememberedClients::read(kernel, &sets);
        return replace(kernel, desired, &clients)
            .map(|report| (report, true))
            .map_err(lacking);
    }
    let generation = kernel.generation()?;
    if let Some(table) = kernel.table()? {
        desired.elements.sort();
        repair(kernel, desired, &table, generation, reading, clashes)
    } else {
        // Not mapped by `lacking`: another program may have removed the table between our transactions.
        create(kernel, desired).map(|report| (report, true))
    }
}

/// The ServicePorts that have this element.
fn owners<F: Family>(
    state: &ForwardingState<F>,
    left_out: &BTreeSet<ServicePortId>,
    refused: &Refused,
) -> Vec<ServicePortId> {
    state
        .service_ports
        .values()
        .filter(|port| !left_out.contains(&port.id))
        .filter(|port| has_element(port, refused.set, &refused.element))
        .map(|port| port.id.clone())
        .collect()
}

/// Kernel: `ERESTART` answers a transaction whose generation is not the current one.
fn is_outdated(error: &DatapathError) -> bool {
    const ERESTART: i32 = 85;
    matches!(error, DatapathError::Refused { source, .. } if source.raw_os_error() == Some(ERESTART))
}

/// Kernel: a missing expression or chain type is answered by `ENOENT`.
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
        error @ (DatapathError::Unusable { .. }
        | DatapathError::Refused { .. }
        | DatapathError::Held { .. }) => error,
    }
}
