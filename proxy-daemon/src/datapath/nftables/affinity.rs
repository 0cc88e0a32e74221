//! Which clients must be removed from the affinity map, or get another timeout?
//!
//! The kernel adds clients with each new flow; we only remove them and change timeouts. Invariants: this
//! runs after the rules are active, which ignore clients whose backend is not in the set of their
//! frontend, so a client that is added meanwhile does no harm; clients that expire soon are left alone.
//!
//! Spec: AFF-6 to AFF-10. The kernel keeps at most a fixed number of clients over all ServicePorts,
//! evicts none for another, and sends flows of clients beyond that to a random backend.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::codec::{Kernel, Transaction, Writer, write_timed};
use super::layout::SetId;
use super::render::{backend_codes, owner_key};
use crate::datapath::{DatapathError, SyncReport};
use crate::forwarding::{Changes, ForwardingState, ServicePort};
use crate::net::Family;

/// Clients that expire within this time are left alone. Unit: milliseconds.
const SOON: u64 = 1000;
/// A packet or the clock may remove a client between our reading and our writing.
const ATTEMPTS: u32 = 5;

/// The affinity of one ServicePort.
#[derive(Debug, Default)]
struct Policy {
    /// Unit: milliseconds.
    timeout: u64,
    /// Codes of backends.
    backends: BTreeSet<u32>,
}

/// What is to be checked in the affinity map.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// By the ServicePort's key in the kernel; `None`: remove all its clients.
    policies: BTreeMap<Vec<u8>, Option<Policy>>,
    /// Whether clients of other ServicePorts are removed too.
    forget_others: bool,
}

fn policy<F: Family>(service_port: &ServicePort<F>) -> Option<Policy> {
    let seconds = service_port.affinity.timeout()?;
    Some(Policy {
        timeout: u64::from(seconds) * 1000,
        backends: backend_codes(service_port).into_values().collect(),
    })
}

impl Check {
    /// Everything against a whole state.
    pub(crate) fn all<F: Family>(state: &ForwardingState<F>) -> Self {
        let with_affinity = state
            .service_ports
            .values()
            .filter(|sp| sp.affinity.timeout().is_some());
        Self {
            policies: with_affinity
                .filter_map(|sp| Some((owner_key(sp)?, policy(sp))))
                .collect(),
            forget_others: true,
        }
    }

    /// Only what changed: affinity was removed, its timeout changed, or a backend was removed.
    pub(crate) fn of_changes<F: Family>(changes: &Changes<F>) -> Self {
        let mut policies: BTreeMap<Vec<u8>, Option<Policy>> = BTreeMap::new();
        for change in changes.service_ports.values() {
            let keyed = |sp: &ServicePort<F>| Some((owner_key(sp)?, policy(sp)?));
            let Some((old_key, old_policy)) = change.old.as_deref().and_then(keyed) else {
                continue;
            };
            match change.new.as_deref().and_then(keyed) {
                Some((key, policy)) if key == old_key => {
                    let keeps = old_policy.backends.is_subset(&policy.backends);
                    if !keeps || old_policy.timeout != policy.timeout {
                        policies.insert(key, Some(policy));
                    }
                }
                Some(_) | None => {
                    policies.entry(old_key).or_insert(None);
                }
            }
        }
        Self {
            policies,
            forget_others: false,
        }
    }

    /// Reads the affinity map and corrects it.
    ///
    /// # Errors
    /// What the kernel refused; the map is unchanged then.
    pub(crate) fn apply<F: Family>(
        &self,
        kernel: &mut Kernel,
        new: impl Fn() -> Transaction,
    ) -> Result<SyncReport, DatapathError> {
        let client_len = F::ADDR_LEN;
        if self.policies.is_empty() && !self.forget_others {
            return Ok(SyncReport::default());
        }
        let mut attempts = 0;
        loop {
            let mut transaction = new();
            let report = self.correct(kernel, client_len, &mut transaction)?;
            match kernel.commit(transaction) {
                Ok(()) => return Ok(report),
                Err(DatapathError::Refused { source, .. })
                    if attempts < ATTEMPTS && source.kind() == io::ErrorKind::NotFound =>
                {
                    attempts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn correct(
        &self,
        kernel: &mut Kernel,
        client_len: usize,
        transaction: &mut Transaction,
    ) -> Result<SyncReport, DatapathError> {
        let name = SetId::Affinity.name();
        let corrections: Vec<Correction> =
            kernel.elements(name, Vec::new, |found: &mut Vec<Correction>, printed| {
                if let (Some(key), Some(data), Some((timeout, left))) =
                    (printed.key(), printed.data(), printed.timeout())
                {
                    found.extend(self.correction(key, data, client_len, timeout, left));
                }
            })?;
        let mut report = SyncReport::default();
        for correction in &corrections {
            let mut w = Writer::new();
            let key_len = write_timed(&mut w, &correction.key, &correction.data, 1, 1);
            transaction.delete_element(name, w.as_slice().get(..key_len).unwrap_or(&[]));
            report.n_removed += 1;
        }
        for correction in &corrections {
            if let Some((timeout, left)) = correction.time {
                let mut w = Writer::new();
                write_timed(&mut w, &correction.key, &correction.data, timeout, left);
                transaction.add_element(name, w.as_slice());
                report.n_added += 1;
            }
        }
        Ok(report)
    }

    /// What to do with one client, if anything.
    fn correction(
        &self,
        key: &[u8],
        data: &[u8],
        client_len: usize,
        timeout: u64,
        left: u64,
    ) -> Option<Correction> {
        if left < SOON {
            return None;
        }
        let code = data.try_into().map(u32::from_ne_bytes).ok();
        let owner = key.get(..key.len().saturating_sub(client_len))?;
        let forget = Correction {
            key: key.to_vec(),
            data: data.to_vec(),
            time: None,
        };
        match self.policies.get(owner) {
            None if self.forget_others => Some(forget),
            None => None,
            Some(None) => Some(forget),
            Some(Some(policy)) if code.is_none_or(|code| !policy.backends.contains(&code)) => {
                Some(forget)
            }
            Some(Some(policy)) => {
                let age = timeout.saturating_sub(left);
                let time = policy.timeout.checked_sub(age).filter(|left| *left > 0);
                (policy.timeout != timeout).then_some(Correction {
                    time: time.map(|left| (policy.timeout, left)),
                    ..forget
                })
            }
        }
    }
}

/// A client to remove, and the timeout and remaining time to add it again with.
#[derive(Debug)]
struct Correction {
    key: Vec<u8>,
    data: Vec<u8>,
    time: Option<(u64, u64)>,
}
