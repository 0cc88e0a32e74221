//! Which elements make a probe (see [`super::repair::Reading`]) fail, or are left over after it?
//!
//! A probe writes large sets without reading them. If the kernel holds another value for a key, it rejects
//! the probe and names that element. Then we ask for the numbered backends of that one ServicePort, key by
//! key, instead of dumping the set. Invariant: these are removed in the transaction of the next probe, which
//! is bound to a generation, so that an outdated answer does no harm.

use std::collections::BTreeSet;

use super::codec::{Data, Kernel, Key, Printed, Refused, Writer, write_element};
use super::elements::{Elements, SetElements};
use super::layout::SetId;
use crate::datapath::DatapathError;
use crate::net::Family;

/// Up to this number of ServicePorts, keys are read one by one; beyond that, all sets are read.
const MAX_OWNERS: usize = 32;

/// Keys to remove before the next probe.
#[derive(Debug, Default)]
pub(super) struct Clashes {
    keys: BTreeSet<(SetId, Vec<u8>)>,
    /// Sets and owners whose keys were read.
    asked: BTreeSet<(SetId, Vec<u8>)>,
}

/// The key as [`write_element`] writes it.
fn written(key: &[u8]) -> Vec<u8> {
    let mut w = Writer::new();
    write_element(&mut w, Key::Exact(key), Data::None, "");
    w.as_slice().to_vec()
}

impl Clashes {
    /// The keys to remove from this set.
    pub(super) fn of(&self, id: SetId) -> impl Iterator<Item = &[u8]> {
        let keys = self.keys.iter().filter(move |(set, _)| *set == id);
        keys.map(|(_, key)| &**key)
    }

    /// Finds what clashes with a rejected element; returns whether a retry can help.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn explain<F: Family>(
        &mut self,
        kernel: &mut Kernel,
        wanted: &Elements,
        rejected: &Refused,
    ) -> Result<bool, DatapathError> {
        let numbered = [SetId::ClusterBackends, SetId::LocalBackends];
        let id = numbered.into_iter().find(|id| id.name() == rejected.set);
        let key = Printed::of(&rejected.element).key().unwrap_or_default();
        match (id, key.split_last_chunk::<4>()) {
            (Some(id), Some((owner, _))) => self.ask::<F>(kernel, wanted, id, owner),
            _ => Ok(false),
        }
    }

    /// Finds what a ServicePort without its frontend left behind.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn frontend_is_gone<F: Family>(
        &mut self,
        kernel: &mut Kernel,
        wanted: &Elements,
        frontend: &[u8],
    ) -> Result<(), DatapathError> {
        for id in [SetId::ClusterBackends, SetId::LocalBackends] {
            self.ask::<F>(kernel, wanted, id, frontend)?;
        }
        let address = frontend.get(..F::ADDR_LEN).unwrap_or_default();
        self.drop_unwanted(kernel, wanted, SetId::ClusterIps, address)
    }

    /// Reads the numbered backends of a ServicePort; `false` if that was done before.
    fn ask<F: Family>(
        &mut self,
        kernel: &mut Kernel,
        wanted: &Elements,
        id: SetId,
        owner: &[u8],
    ) -> Result<bool, DatapathError> {
        if self.asked.len() >= MAX_OWNERS || !self.asked.insert((id, owner.to_vec())) {
            return Ok(false);
        }
        let set = wanted.of(id);
        for number in 0_u32.. {
            let key = written(&[owner, &number.to_ne_bytes()].concat());
            let found = kernel.element(id.name(), &key, |printed| {
                let mut element = SetElements::default();
                element.push(|w| printed.write_normal(w));
                (element, printed.data().unwrap_or_default().to_vec())
            })?;
            let Some((element, backend)) = found else {
                break;
            };
            let is_wanted = set
                .and_then(|set| set.find(&key))
                .is_some_and(|(_, wanted)| element.iter().next() == Some(wanted));
            if is_wanted {
                continue;
            }
            self.keys.insert((id, key));
            // Its hairpin: address, protocol and port, and the address again.
            let (address, port) = backend.split_at_checked(F::ADDR_LEN).unwrap_or_default();
            let protocol = owner.get(F::ADDR_LEN..F::ADDR_LEN + 4).unwrap_or_default();
            let hairpin = [address, protocol, port, address].concat();
            self.drop_unwanted(kernel, wanted, SetId::Backends, &hairpin)?;
        }
        Ok(true)
    }

    /// Removes an element that exists and is not wanted.
    fn drop_unwanted(
        &mut self,
        kernel: &mut Kernel,
        wanted: &Elements,
        id: SetId,
        key: &[u8],
    ) -> Result<(), DatapathError> {
        let key = written(key);
        let is_wanted = wanted.of(id).is_some_and(|set| set.find(&key).is_some());
        if !is_wanted && kernel.element(id.name(), &key, |_| ())?.is_some() {
            self.keys.insert((id, key));
        }
        Ok(())
    }
}
