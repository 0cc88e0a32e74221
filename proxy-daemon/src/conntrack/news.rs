//! What do the passes, which run beside the syncs, hear of them?
//!
//! Invariants: news are merged until they are taken in, so that they never hold more than the UDP ServicePorts
//! of the state, [`MAX_GONE`] that are gone, and the removed frontends that are remembered anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::removed::{RemovedFrontends, can_go_stale, is_udp};
use crate::forwarding::{Change, Changes, ForwardingState, Globals, ServicePort, ServicePortId};
use crate::net::Family;

/// ServicePorts that are gone of which news are kept one by one; more become news of the whole state.
pub(super) const MAX_GONE: usize = 10_000;

/// What changed of UDP ServicePorts, and whether flows must be looked at because of that.
#[derive(Clone, Debug, Default)]
pub struct News<F: Family> {
    /// The state, of which only UDP ServicePorts are needed; older ones do not count then.
    all: Option<ForwardingState<F>>,
    /// What changed since; `None` for one that is gone.
    ports: BTreeMap<ServicePortId, Option<Arc<ServicePort<F>>>>,
    /// The globals, if they changed.
    globals: Option<Globals<F>>,
    pub(super) removed: RemovedFrontends<F>,
    /// Whether a pass must follow.
    pub(super) is_owed: bool,
}

impl<F: Family> News<F> {
    /// Notes what changed in the state, which has the changes already.
    ///
    /// A change of endpoints or frontends of UDP asks for a pass, and so does one of the addresses that accept
    /// NodePorts, and of ServiceCIDRs (CT-4).
    pub fn note(&mut self, changes: &Changes<F>, state: &ForwardingState<F>) {
        let globals = &state.globals;
        self.removed.note(changes, globals);
        if let Some(old) = &changes.globals {
            self.is_owed |= old.node_port_addresses != globals.node_port_addresses
                || old.service_cidrs != globals.service_cidrs;
            self.globals = Some(globals.clone());
        }
        for (id, change) in &changes.service_ports {
            let (old, new) = (change.old.as_deref(), change.new.as_deref());
            if old.or(new).is_some_and(is_udp) {
                self.is_owed |= can_go_stale(old, new);
                self.ports.insert(id.clone(), change.new.clone());
            }
        }
        if self.ports.len() > state.service_ports.len() + MAX_GONE {
            self.note_resync(state);
        }
    }

    /// Notes that frontends may translate now although they did not before, without a change of the state.
    ///
    /// So it is at the start, after a failure, and after others changed our objects: clients that sent
    /// meanwhile have flows without a translation, and keep them for as long as they send (CT-4).
    pub fn note_resync(&mut self, state: &ForwardingState<F>) {
        let ports = state.service_ports.iter().filter(|(_, port)| is_udp(port));
        self.all = Some(ForwardingState {
            globals: state.globals.clone(),
            spared: BTreeSet::new(),
            service_ports: ports
                .map(|(id, port)| (id.clone(), Arc::clone(port)))
                .collect(),
        });
        self.ports.clear();
        self.globals = None;
        self.is_owed = true;
    }

    /// How many ServicePorts are kept one by one.
    #[cfg(test)]
    pub(super) fn n_kept(&self) -> usize {
        self.ports.len()
    }

    /// Whether the state is what it was.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_none() && self.ports.is_empty() && self.globals.is_none()
    }

    /// Brings what is known of the state up to date; a whole state shows which frontends were removed.
    pub(super) fn update(&mut self, known: &mut Option<ForwardingState<F>>) {
        if let Some(all) = self.all.take() {
            if let Some(old) = known.take() {
                let ports = old.service_ports.into_iter().map(|(id, port)| {
                    let (old, new) = (Some(port), all.service_ports.get(&id).cloned());
                    (id, Change { old, new })
                });
                let changes = Changes {
                    globals: Some(old.globals),
                    service_ports: ports.collect(),
                    ..Changes::default()
                };
                self.removed.note(&changes, &all.globals);
            }
            *known = Some(all);
        }
        let Some(known) = known else {
            return;
        };
        if let Some(globals) = self.globals.take() {
            known.globals = globals;
        }
        for (id, port) in std::mem::take(&mut self.ports) {
            match port {
                Some(port) => known.service_ports.insert(id, port),
                None => known.service_ports.remove(&id),
            };
        }
    }
}
