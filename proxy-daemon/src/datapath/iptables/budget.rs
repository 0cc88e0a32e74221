//! For which ServicePorts with session affinity are clients remembered?
//!
//! Kernel: a network namespace has room for 65,534 sets, and making one takes longer the more there are;
//! sets have room for their clients from the start. Without a limit, one author of Services could use
//! up both on every node. Invariants: who has been admitted stays so until it changes; the others are
//! served without affinity, and named in the log. A read-back decides anew, in the order of names.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::memory;
use crate::forwarding::{ServicePort, ServicePortId};
use crate::net::Family;

/// What all memories of a family may take. Unit: KiB of kernel memory, empty.
const BUDGET: usize = 256 << 10;

/// What is left, and who got nothing.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
    denied: BTreeSet<ServicePortId>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            left: BUDGET,
            denied: BTreeSet::new(),
        }
    }
}

impl Budget {
    /// The ServicePort as it can be carried.
    pub(crate) fn admit<'a, F: Family>(
        &mut self,
        service_port: &'a ServicePort<F>,
    ) -> Cow<'a, ServicePort<F>> {
        if let Some(left) = self.left.checked_sub(cost(service_port)) {
            self.left = left;
            return Cow::Borrowed(service_port);
        }
        let name = service_port.id.as_str();
        tracing::warn!(
            name,
            "no session affinity: the clients of others take all memory there is for them"
        );
        self.denied.insert(service_port.id.clone());
        Cow::Owned(without_affinity(service_port))
    }

    /// The ServicePort as it was carried until now.
    pub(crate) fn release<'a, F: Family>(
        &mut self,
        service_port: &'a ServicePort<F>,
    ) -> Cow<'a, ServicePort<F>> {
        if self.denied.remove(&service_port.id) {
            return Cow::Owned(without_affinity(service_port));
        }
        self.left += cost(service_port);
        Cow::Borrowed(service_port)
    }
}

fn without_affinity<F: Family>(service_port: &ServicePort<F>) -> ServicePort<F> {
    ServicePort {
        affinity: None,
        ..service_port.clone()
    }
}

/// Unit: KiB.
fn cost<F: Family>(service_port: &ServicePort<F>) -> usize {
    if service_port.affinity.is_none() {
        return 0;
    }
    let backends: BTreeSet<_> = service_port
        .cluster
        .iter()
        .chain(&service_port.local)
        .collect();
    backends.len() * memory::cost(backends.len())
}
