//! Which frontends does a Service want and not get, and who has them?
//!
//! Spec: SVC-14. Invariants: holds the losses of now and nothing of the past; a change costs the losses
//! that changed; what is told of one Service is bounded.

use std::collections::BTreeMap;

use super::Finding;
use crate::forwarding::{FrontendKey, ServicePortId};
use crate::model::ServiceName;
use crate::net::Family;

/// How many lost frontends of one Service and family are told one by one.
const MAX_TOLD: usize = 16;

/// A frontend and who wants it.
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

    /// Whether nobody lost anything.
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Notes that a Service's port does not get a frontend; whether that is news.
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

    /// Notes that a Service's port gets a frontend, or does not want it any longer; whether that is
    /// news.
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

    /// What to tell about a Service, for as many of its losses as are told.
    pub(super) fn findings(&self, service: &ServiceName) -> Vec<Finding> {
        let Some(losses) = self.of.get(service) else {
            return Vec::new();
        };
        let told = losses.iter().take(MAX_TOLD);
        let told = told.map(|((key, loser), winner)| Finding::FrontendLost {
            frontend: key.to_string(),
            loser: loser.clone(),
            winner: winner.clone(),
        });
        let n_more = losses.len().saturating_sub(MAX_TOLD);
        let more = (n_more > 0).then(|| Finding::MoreFrontendsLost {
            service: service.clone(),
            family: F::FAMILY,
            n: n_more,
        });
        told.chain(more).collect()
    }
}
