//! Which ServicePorts get the requested session affinity, where memory for it is limited?
//!
//! Packets cannot make the kernel's memory for clients grow, so that a mode such as iptables reserves it;
//! without a limit, one author of Services could use up all of it on every node. ServicePorts are
//! served in a fixed order until the first for which there is not enough left: small ones before large
//! ones, so that one with thousands of endpoints takes nothing from others; of about equal ones the older
//! first, so that a new Service takes nothing from an existing one.
//!
//! Invariants: the result depends on the ServicePorts alone, and not on their history; a change costs a
//! look-up, and another for each ServicePort that it moves across the limit.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::forwarding::{Affinity, AffinityLimit, ServicePort, ServicePortId};
use crate::net::Family;

/// Where a ServicePort stands in the order; the smallest is served first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The cost, rounded up so that an endpoint more or less rarely matters.
    size: usize,
    /// Unit: seconds since 1970-01-01 UTC.
    created: i64,
    id: ServicePortId,
}

impl Place {
    fn new(cost: usize, created: i64, id: ServicePortId) -> Self {
        // Up to eight endpoints are alike.
        let size = cost.next_power_of_two().max(256);
        Self { size, created, id }
    }
}

/// The ServicePorts of one family that ask for affinity, in a mode that limits it.
#[derive(Debug)]
pub(super) struct AffinityBudget {
    limit: Option<AffinityLimit>,
    /// The cost of each. Unit: KiB.
    costs: BTreeMap<Place, usize>,
    places: BTreeMap<ServicePortId, Place>,
    /// The sum over those that are served. Unit: KiB.
    used: usize,
    /// The first that is not served; all after it are not served either.
    first_refused: Option<Place>,
}

impl AffinityBudget {
    pub(super) const fn new(limit: Option<AffinityLimit>) -> Self {
        Self {
            limit,
            costs: BTreeMap::new(),
            places: BTreeMap::new(),
            used: 0,
            first_refused: None,
        }
    }

    pub(super) const fn limit(&self) -> Option<AffinityLimit> {
        self.limit
    }

    /// Updates or removes a ServicePort; returns the others that got or lost affinity by that.
    pub(super) fn put<F: Family>(
        &mut self,
        id: &ServicePortId,
        now: Option<(&ServicePort<F>, i64)>,
    ) -> BTreeSet<ServicePortId> {
        let Some(limit) = self.limit else {
            return BTreeSet::new();
        };
        let asks = now.filter(|(port, _)| port.affinity != Affinity::Off);
        let asks = asks.map(|(port, created)| (limit.cost(n_backends(port)), created));
        let place = asks.map(|(cost, created)| (Place::new(cost, created, id.clone()), cost));
        let before = self.places.get(id);
        if before == place.as_ref().map(|(place, _)| place)
            && before.and_then(|place| self.costs.get(place))
                == place.as_ref().map(|(_, cost)| cost)
        {
            return BTreeSet::new();
        }
        if let Some(before) = self.places.remove(id)
            && let Some(cost) = self.costs.remove(&before)
            && self.serves(&before)
        {
            self.used -= cost;
        }
        if let Some((place, cost)) = place {
            if self.serves(&place) {
                self.used += cost;
            }
            self.places.insert(id.clone(), place.clone());
            self.costs.insert(place, cost);
        }
        self.move_limit(limit.total)
    }

    /// Whether a ServicePort asks for affinity in vain.
    pub(super) fn refuses(&self, id: &ServicePortId) -> bool {
        self.first_refused.is_some() && self.places.get(id).is_some_and(|place| !self.serves(place))
    }

    fn serves(&self, place: &Place) -> bool {
        self.first_refused
            .as_ref()
            .is_none_or(|first| place < first)
    }

    /// Refuses the last ones until the others fit, or serves the next ones as long as they fit.
    fn move_limit(&mut self, total: usize) -> BTreeSet<ServicePortId> {
        let mut moved = BTreeSet::new();
        while self.used > total {
            let end = self
                .first_refused
                .as_ref()
                .map_or(Bound::Unbounded, Bound::Excluded);
            let mut served = self.costs.range((Bound::Unbounded, end));
            let Some((last, cost)) = served.next_back() else {
                break;
            };
            self.used -= cost;
            moved.insert(last.id.clone());
            self.first_refused = Some(last.clone());
        }
        while let Some(first) = &self.first_refused {
            let mut refused = self.costs.range(first..);
            let fits = |(_, cost): &(&Place, &usize)| self.used + **cost <= total;
            let Some((next, cost)) = refused.next().filter(fits) else {
                break;
            };
            self.used += cost;
            moved.insert(next.id.clone());
            self.first_refused = refused.next().map(|(place, _)| place.clone());
        }
        moved
    }
}

/// Distinct ones of both sets.
fn n_backends<F: Family>(port: &ServicePort<F>) -> usize {
    let is_new = |backend: &&_| port.cluster.binary_search(backend).is_err();
    port.cluster.len() + port.local.iter().filter(is_new).count()
}
