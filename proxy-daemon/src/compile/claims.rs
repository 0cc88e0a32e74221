//! Which ServicePort gets a frontend that several claim?
//!
//! Spec: SVC-14. Invariant: the winner depends on the claims alone, not on the order of events.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::forwarding::{Exposure, FrontendKey, ServicePortId};
use crate::net::Family;

/// One ServicePort's claim to a frontend; the smallest wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// A ClusterIP beats everything else.
    is_other: bool,
    /// Unit: seconds since 1970-01-01 UTC; the older Service beats the younger.
    created: i64,
    /// Namespace and name decide what is left.
    pub(super) id: ServicePortId,
}

impl Claim {
    pub(super) fn new<F: Family>(exposure: &Exposure<F>, created: i64, id: ServicePortId) -> Self {
        Self {
            is_other: *exposure != Exposure::ClusterIp,
            created,
            id,
        }
    }
}

/// All claims of one family.
///
/// One flat set: most frontends have one claim, and a collection for each would dwarf it.
#[derive(Debug, Default)]
pub(super) struct Claims<F: Family>(BTreeSet<(FrontendKey<F>, Claim)>);

impl<F: Family> Claims<F> {
    pub(super) fn insert(&mut self, key: FrontendKey<F>, claim: Claim) {
        self.0.insert((key, claim));
    }

    pub(super) fn remove(&mut self, key: FrontendKey<F>, claim: Claim) {
        self.0.remove(&(key, claim));
    }

    /// The claims to a frontend, the winner first.
    pub(super) fn of(&self, key: FrontendKey<F>) -> impl Iterator<Item = &Claim> {
        let first = Claim {
            is_other: false,
            created: i64::MIN,
            id: ServicePortId::lowest(),
        };
        let from = Bound::Included((key, first));
        let claims = self.0.range((from, Bound::Unbounded));
        claims
            .take_while(move |(other, _)| *other == key)
            .map(|(_, claim)| claim)
    }

    pub(super) fn is_won_by(&self, key: FrontendKey<F>, id: &ServicePortId) -> bool {
        self.of(key).next().is_some_and(|claim| claim.id == *id)
    }
}
