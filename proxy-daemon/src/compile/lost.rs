//! Which frontends does a Service want and not get, and who has them?
//!
//! Spec: SVC-14. Invariants: holds the losses of now and nothing of the past; a change costs the losses
//! that changed; what is told of one Service is bounded.

use std::collections::{BTreeMap, BTreeSet};

use crate::forwarding::{FrontendKey, ServicePortId};
use crate::model::{Diagnostic, ServiceName};
use crate::net::Family;

/// How many lost frontends of one Service and family are told one by one.
const MAX_TOLD: usize = 16;

/// A frontend and who wants it.
type Loss<F> = (FrontendKey<F>, ServicePortId);

/// The lost frontends of every Service, each with the ServicePort that has it.
#[derive(Debug)]
pub(super) struct Lost<F: Family> {
    of: BTreeMap<ServiceName, BTreeMap<Loss<F>, ServicePortId>>,
    /// The Services whose losses changed since the last [`Lost::take_changed`].
    changed: BTreeSet<ServiceName>,
}

impl<F: Family> Lost<F> {
    pub(super) fn new() -> Self {
        Self {
            of: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Whether nobody lost anything.
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Notes that a Service's port does not get a frontend.
    pub(super) fn put(
        &mut self,
        service: &ServiceName,
        key: FrontendKey<F>,
        loser: &ServicePortId,
        winner: &ServicePortId,
    ) {
        let losses = self.of.entry(service.clone()).or_default();
        let old = losses.insert((key, loser.clone()), winner.clone());
        if old.as_ref() != Some(winner) {
            self.changed.insert(service.clone());
        }
    }

    /// Notes that a Service's port gets a frontend, or does not want it any longer.
    pub(super) fn remove(
        &mut self,
        service: &ServiceName,
        key: FrontendKey<F>,
        id: &ServicePortId,
    ) {
        let Some(losses) = self.of.get_mut(service) else {
            return;
        };
        if losses.remove(&(key, id.clone())).is_some() {
            if losses.is_empty() {
                self.of.remove(service);
            }
            self.changed.insert(service.clone());
        }
    }

    /// The Services whose losses changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.changed)
    }

    /// What to tell about a Service, for as many of its losses as are told.
    pub(super) fn diagnostics(&self, service: &ServiceName) -> Vec<Diagnostic> {
        let Some(losses) = self.of.get(service) else {
            return Vec::new();
        };
        let told = losses
            .iter()
            .take(MAX_TOLD)
            .map(|((key, loser), winner)| Diagnostic {
                object: format!("Service {loser}"),
                field: String::new(),
                message: format!(
                    "{key} belongs to {winner}; it is not served for this Service (SVC-14)"
                ),
            });
        let mut told: Vec<Diagnostic> = told.collect();
        let n_more = losses.len().saturating_sub(MAX_TOLD);
        if n_more > 0 {
            told.push(Diagnostic {
                object: format!("Service {service}"),
                field: String::new(),
                message: format!(
                    "{n_more} more of its {} frontends belong to others and are not served for \
                     this Service (SVC-14)",
                    F::FAMILY.name()
                ),
            });
        }
        told
    }
}
