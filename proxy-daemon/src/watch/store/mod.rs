//! Which objects exist now, and which changed since the last drain?
//!
//! Invariants: keys are dirty, values are current, so that any order, duplication or batching of
//! events ends in the same state; an object that is replaced by an equal one is not dirty (SVC-12,
//! EPS-17); memory of a Service without object and slices is freed (EPS-19).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::from_k8s::{ObjectKind, Update};
use crate::model::{
    EndpointSlice, Node, Service, ServiceCidr, ServiceInput, ServiceName, SliceName,
};

/// Whether an update changed the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// A sync is due.
    Yes,
    /// The store is as before.
    No,
}

/// What changed since the last drain, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// The Services of which the object or a slice changed.
    pub services: BTreeMap<ServiceName, ServiceInput>,
    /// Our Node, if it changed.
    pub node: Option<Arc<Node>>,
    /// All ServiceCIDRs, if any of them changed.
    pub service_cidrs: Option<Vec<Arc<ServiceCidr>>>,
    /// The source's name of the state that this completes, for the debug pages.
    ///
    /// Source: the file `.token` of a manifest directory. It never changes what is programmed.
    pub source_token: Option<Arc<str>>,
    /// How many object updates this holds, for metrics and the log line.
    pub n_updates: usize,
}

/// The objects of the cluster and what changed since the last drain.
#[derive(Debug, Default)]
pub struct Store {
    listed: BTreeSet<ObjectKind>,
    /// The slices of each are sorted by name.
    services: BTreeMap<ServiceName, ServiceInput>,
    owner: BTreeMap<SliceName, ServiceName>,
    node: Option<Arc<Node>>,
    service_cidrs: BTreeMap<Arc<str>, Arc<ServiceCidr>>,
    source_token: Option<Arc<str>>,
    dirty: Dirty,
}

#[derive(Debug, Default)]
struct Dirty {
    services: BTreeSet<ServiceName>,
    node: bool,
    service_cidrs: bool,
    source_token: bool,
    n_updates: usize,
}

impl Store {
    /// Puts what an object says, or removes it if it says nothing; a Node is never removed (HZ-5).
    pub fn put(&mut self, update: Update) -> Changed {
        match update {
            Update::Service(name, service) => self.set_service(&name, service),
            Update::EndpointSlice(name, slice) => self.set_slice(&name, slice),
            Update::Node(_, Some(node)) => self.set_node(node),
            Update::Node(_, None) => Changed::No,
            Update::ServiceCidr(name, cidr) => self.set_service_cidr(&name, cidr),
        }
    }

    /// Says what the source calls the state that the store now holds.
    pub fn set_source_token(&mut self, token: Option<Arc<str>>) -> Changed {
        if self.source_token == token {
            return Changed::No;
        }
        self.source_token = token;
        self.dirty.source_token = true;
        Changed::Yes
    }

    /// Says that a kind's first list is complete.
    pub fn set_listed(&mut self, kind: ObjectKind) {
        self.listed.insert(kind);
    }

    /// Whether a kind's first list is complete.
    pub fn is_listed(&self, kind: ObjectKind) -> bool {
        self.listed.contains(&kind)
    }

    /// Whether Services and EndpointSlices were listed, so that draining makes sense. Spec: SYNC-12.
    pub fn is_complete(&self) -> bool {
        self.listed.contains(&ObjectKind::Service)
            && self.listed.contains(&ObjectKind::EndpointSlice)
    }

    /// Puts or, with `None`, removes a Service.
    pub fn set_service(&mut self, name: &ServiceName, service: Option<Arc<Service>>) -> Changed {
        let current = self
            .services
            .get(name)
            .and_then(|entry| entry.service.as_ref());
        if current == service.as_ref() {
            return Changed::No;
        }
        self.services.entry(name.clone()).or_default().service = service;
        self.forget_if_empty(name);
        self.dirty.services.insert(name.clone());
        self.dirty.n_updates += 1;
        Changed::Yes
    }

    /// Puts or, with `None`, removes an EndpointSlice; one that names another Service moves (EPS-18).
    pub fn set_slice(&mut self, name: &SliceName, slice: Option<Arc<EndpointSlice>>) -> Changed {
        let old_owner = self.owner.get(name).cloned();
        let old_slices = old_owner.as_ref().and_then(|o| self.services.get_mut(o));
        let mut old_slices = old_slices.map(|entry| &mut entry.slices);
        let current = old_slices
            .as_ref()
            .and_then(|slices| slices.iter().find(|slice| slice.name == *name));
        if current == slice.as_ref() {
            return Changed::No;
        }
        if let Some(slices) = &mut old_slices {
            slices.retain(|slice| slice.name != *name);
        }
        if let Some(slice) = slice {
            let owner = slice.service.clone();
            self.owner.insert(name.clone(), owner.clone());
            let slices = &mut self.services.entry(owner.clone()).or_default().slices;
            let at = slices.partition_point(|other| other.name < slice.name);
            // Most Services have one slice: room for more would cost much memory.
            slices.reserve_exact(1);
            slices.insert(at, slice);
            self.dirty.services.insert(owner);
        } else {
            self.owner.remove(name);
        }
        if let Some(owner) = old_owner {
            if let Some(entry) = self.services.get_mut(&owner) {
                entry.slices.shrink_to_fit();
            }
            self.forget_if_empty(&owner);
            self.dirty.services.insert(owner);
        }
        self.dirty.n_updates += 1;
        Changed::Yes
    }

    /// Puts our Node. A deleted Node keeps its last copy (HZ-5, TOPO-9).
    pub fn set_node(&mut self, node: Arc<Node>) -> Changed {
        if self.node.as_ref() == Some(&node) {
            return Changed::No;
        }
        self.node = Some(node);
        self.dirty.node = true;
        self.dirty.n_updates += 1;
        Changed::Yes
    }

    /// Puts or, with `None`, removes a ServiceCIDR.
    pub fn set_service_cidr(&mut self, name: &Arc<str>, cidr: Option<Arc<ServiceCidr>>) -> Changed {
        if self.service_cidrs.get(name) == cidr.as_ref() {
            return Changed::No;
        }
        match cidr {
            Some(cidr) => self.service_cidrs.insert(Arc::clone(name), cidr),
            None => self.service_cidrs.remove(name),
        };
        self.dirty.service_cidrs = true;
        self.dirty.n_updates += 1;
        Changed::Yes
    }

    /// The names of the Services that exist, for a relist to find what was deleted meanwhile (LIFE-4).
    pub fn service_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services
            .iter()
            .filter(|(_, entry)| entry.service.is_some())
            .map(|(name, _)| name)
    }

    /// The names of the EndpointSlices that exist.
    pub fn slice_names(&self) -> impl Iterator<Item = &SliceName> {
        self.owner.keys()
    }

    /// The names of the ServiceCIDRs that exist.
    pub fn service_cidr_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.service_cidrs.keys()
    }

    /// A Service, if it is there and is one that we serve.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)?.service.as_ref()
    }

    /// What the source calls the state that the store holds.
    pub fn source_token(&self) -> Option<&str> {
        self.source_token.as_deref()
    }

    /// Our Node, if it was seen.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// Whether a drain would return anything.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.services.is_empty()
            || self.dirty.node
            || self.dirty.service_cidrs
            || self.dirty.source_token
    }

    /// Makes the next drain return every Service: for when what all of them depend on has changed.
    pub fn mark_all(&mut self) {
        self.dirty.services.extend(self.services.keys().cloned());
    }

    /// Takes what changed since the last drain. Must not be called before [`Store::is_complete`].
    pub fn drain(&mut self) -> Drained {
        let dirty = std::mem::take(&mut self.dirty);
        let services = dirty.services.into_iter().map(|name| {
            let input = self.services.get(&name).cloned();
            (name, input.unwrap_or_default())
        });
        Drained {
            services: services.collect(),
            node: self.node.clone().filter(|_| dirty.node),
            service_cidrs: dirty
                .service_cidrs
                .then(|| self.service_cidrs.values().cloned().collect()),
            source_token: self.source_token.clone(),
            n_updates: dirty.n_updates,
        }
    }

    fn forget_if_empty(&mut self, name: &ServiceName) {
        let entry = self.services.get(name);
        if entry.is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
