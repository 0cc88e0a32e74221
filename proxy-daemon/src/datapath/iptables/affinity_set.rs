//! Which set holds the clients of a backend with session affinity?
//!
//! One set per backend holds its clients; a rule adds a client with each new flow, and the kernel removes
//! it when its timeout expires. Not the `recent` match: that remembers 100 clients a list unless a module
//! parameter says otherwise, which can be set only while nobody uses the module.
//!
//! Spec: AFF-1 to AFF-10. Kernel: packets cannot make a hash grow, so that it has room from the start for
//! the clients that AFF-10 asks for, over all backends of the ServicePort; `forceadd` lets a new client
//! take the place of a random one beyond that.

use super::names;
use super::sets::family_name;
use crate::forwarding::AffinityLimit;
use crate::net::Family;

/// Room for clients of a ServicePort, at least.
const CLIENTS: usize = 65_536;
/// Clients for each place in a hash; it has room for 12.
const PER_BUCKET: usize = 4;

/// Places for the clients of one of so many backends.
const fn size(n_backends: usize) -> usize {
    // There may be fewer backends later, which must hold as many clients.
    let n = match n_backends {
        0 => 1,
        1..8 => n_backends,
        _ => 8,
    };
    (CLIENTS / n / PER_BUCKET).next_power_of_two()
}

/// Kernel memory of an empty affinity set for one of n backends, in KiB, at least 32.
const fn cost(n_backends: usize) -> usize {
    let cost = size(n_backends) * size_of::<usize>() / 1024;
    if cost < 32 { 32 } else { cost }
}

/// What all affinity sets of a family may take.
///
/// Kernel: a network namespace has room for 65,534 sets, making one takes longer the more there are, and
/// sets have room for their clients from the start.
pub const AFFINITY_LIMIT: AffinityLimit = AffinityLimit {
    total: 256 << 10,
    per_backend: &[cost(1), cost(2), cost(3), cost(4)],
};

/// The clients of one backend of one ServicePort.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AffinitySet {
    /// The set's name.
    pub(crate) name: String,
    /// Unit: seconds.
    pub(crate) timeout: u32,
    /// Unit: places.
    size: usize,
    family: &'static str,
}

impl AffinitySet {
    /// The set that `parts` name, of a ServicePort with `n_backends`.
    pub(crate) fn new<F: Family>(parts: &[&str], timeout: u32, n_backends: usize) -> Self {
        Self {
            name: names::affinity_set::<F>(parts),
            timeout,
            size: size(n_backends),
            family: family_name(F::FAMILY),
        }
    }

    /// What `ipset create` needs, under this name or another.
    pub(crate) fn declaration(&self, name: &str) -> String {
        let (timeout, size, family) = (self.timeout, self.size, self.family);
        format!(
            "create {name} hash:ip family {family} hashsize {size} maxelem {CLIENTS} timeout {timeout} forceadd"
        )
    }

    /// The match for its clients.
    pub(crate) fn matches_client(&self) -> String {
        format!("-m set --match-set {} src", self.name)
    }

    /// Adds the client, or restarts its timeout.
    pub(crate) fn add_client(&self) -> String {
        let Self { name, timeout, .. } = self;
        format!("-j SET --add-set {name} src --exist --timeout {timeout}")
    }

    /// Removes the client.
    pub(crate) fn delete_client(&self) -> String {
        format!("-j SET --del-set {} src", self.name)
    }

    /// The remaining timeout of a client that had `left` of `old` seconds; `None` if it expired.
    ///
    /// Unit: seconds. Spec: AFF-8.
    pub(crate) fn remaining(&self, old: u32, left: u32) -> Option<u32> {
        let age = old.saturating_sub(left);
        self.timeout.checked_sub(age).filter(|left| *left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::V4;

    #[test]
    fn a_changed_time_counts_from_when_the_client_came() {
        let set = AffinitySet::new::<V4>(&["a"], 5, 1);
        assert_eq!(set.remaining(10_800, 10_799), Some(4));
        assert_eq!(set.remaining(10_800, 10_000), None);
        assert_eq!(set.remaining(3, 2), Some(4));
    }

    #[test]
    fn all_affinity_sets_together_hold_what_the_specification_asks_for() {
        for n in 1..10 {
            assert_eq!(AFFINITY_LIMIT.cost(n), n * cost(n));
        }
        for n in [1, 2, 3, 10, 1000] {
            let set = AffinitySet::new::<V4>(&["a"], 5, n);
            assert!(set.size * PER_BUCKET * n >= CLIENTS);
        }
    }
}
