//! Which frontends does a Service claim and not get, and which ServicePorts have them?
//!
//! Spec: SVC-14. Invariants: holds current losses only; a change costs the losses that changed; the
//! findings of one Service are bounded.

use std::collections::BTreeMap;

use super::Finding;
use crate::forwarding::{FrontendKey, ServicePortId};
use crate::model::ServiceName;
use crate::net::Family;

/// How many lost frontends of one Service and family are reported one by one.
const MAX_REPORTED: usize = 16;

/// A frontend and a ServicePort that claims it.
type Loss<F> = (FrontendKey<F>, ServicePortId);

/// The lost frontends of every Service, each with the ServicePort that has it.
#[derive(Debug)]
pub(super) struct Lost<F: Family> {
    of: BTreeMap<ServiceName, BTreeMap<Loss<F>, ServicePortId>>,
}

impl<F: Family> Lost<F> {
    pub(super) fn new() -> Self {
        Self {
            of: BTreeMap::new(),
        }
    }

    /// Whether no frontend is lost.
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Records that a ServicePort does not get a frontend; returns whether that is new.
    pub(super) fn put(
        &mut self,
        service: &ServiceName,
        key: FrontendKey<F>,
        loser: &ServicePortId,
        winner: &ServicePortId,
    ) -> bool {
        let losses = self.of.entry(service.clone()).or_default();
        let old = losses.insert((key, loser.clone()), winner.clone());
        old.as_ref() != Some(winner)
    }

    /// Records that a ServicePort gets a frontend or no longer claims it; returns whether that is new.
    pub(super) fn remove(
        &mut self,
        service: &ServiceName,
        key: FrontendKey<F>,
        id: &ServicePortId,
    ) -> bool {
        let Some(losses) = self.of.get_mut(service) else {
            return false;
        };
        let is_news = losses.remove(&(key, id.clone())).is_some();
        if losses.is_empty() {
            self.of.remove(service);
        }
        is_news
    }

    /// The findings about a Service.
    pub(super) fn findings(&self, service: &ServiceName) -> Vec<Finding> {
        let Some(losses) = self.of.get(service) else {
            return Vec::new();
        };
        let reported = losses.iter().take(MAX_REPORTED);
        let reported = reported.map(|((key, loser), winner)| Finding::FrontendLost {
            frontend: key.to_string(),
            loser: loser.clone(),
            winner: winner.clone(),
        });
        let n_more = losses.len().saturating_sub(MAX_REPORTED);
        let more = (n_more > 0).then(|| Finding::MoreFrontendsLost {
            service: service.clone(),
            family: F::FAMILY,
            n: n_more,
        });
        reported.chain(more).collect()
    }
}
