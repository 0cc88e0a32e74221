//! Which families are served, and through what?

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::AppError;
use crate::conntrack::{Netlink, StaleFlows};
use crate::datapath::{DatapathKind, Opener, PlaneFamily};
use crate::net::{Family, IpFamily, V4, V6};
use crate::sync::{FamilySync, Intake, PreviousMode, SyncLoop};
use crate::sys::host;

/// Adds each family that the node supports to the loop, and returns the opener of the datapath.
///
/// # Errors
/// [`AppError::NoFamily`] or [`AppError::Family`] if the primary family cannot be served; the other one
/// is only logged (DS-2).
pub(super) fn open<I: Intake>(
    mut sync: SyncLoop<I>,
    kind: DatapathKind,
    primary: IpFamily,
    sync_period: Duration,
    now: Instant,
) -> Result<(SyncLoop<I>, Arc<Opener>), AppError> {
    let supported = IpFamily::ALL
        .into_iter()
        .filter(|family| *family == IpFamily::V4 || host::has_ipv6());
    let supported: Vec<_> = supported.collect();
    let others = kind.others();
    let opening = Opening {
        opener: Opener::new(kind, supported.iter().copied()),
        others: others
            .map(|kind| Opener::new(kind, IpFamily::ALL))
            .collect(),
        supported,
        primary,
        sync_period,
        now,
    };
    if let Some(family) = opening.family::<V4>()? {
        sync = sync.with_v4(family);
    }
    if let Some(family) = opening.family::<V6>()? {
        sync = sync.with_v6(family);
    }
    Ok((sync.with_primary(primary), opening.opener))
}

/// What both families have in common.
struct Opening {
    opener: Arc<Opener>,
    /// The other datapaths, to be cleaned up. Spec: LIFE-9.
    others: Vec<Arc<Opener>>,
    supported: Vec<IpFamily>,
    primary: IpFamily,
    sync_period: Duration,
    now: Instant,
}

impl Opening {
    fn family<F: PlaneFamily>(&self) -> Result<Option<FamilySync<F>>, AppError> {
        let is_primary = F::FAMILY == self.primary;
        if !self.supported.contains(&F::FAMILY) {
            if is_primary {
                return Err(AppError::NoFamily(self.primary));
            }
            tracing::info!(
                family = F::FAMILY.name(),
                "this node does not support the family, running single-stack"
            );
            return Ok(None);
        }
        let opened = match self.opener.tables::<F>() {
            Err(error) if error.may_pass() => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    family = F::FAMILY.name(),
                    error,
                    "cannot serve this family yet, will retry"
                );
                Ok(self.opener.tables_later())
            }
            opened => opened,
        };
        match opened {
            Ok(tables) => {
                let family_sync =
                    FamilySync::new(tables, self.stale_flows(), self.sync_period, self.now);
                let others = self.others.iter().map(|other| {
                    let (name, other) = (other.kind().name(), Arc::clone(other));
                    PreviousMode::new(name, move || other.retire(F::FAMILY))
                });
                Ok(Some(family_sync.instead_of(others.collect())))
            }
            Err(source) if is_primary => Err(AppError::Family {
                family: self.primary,
                source,
            }),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    family = F::FAMILY.name(),
                    error,
                    "cannot serve this family, running single-stack"
                );
                Ok(None)
            }
        }
    }

    /// None for a datapath whose flows are not in conntrack.
    fn stale_flows<F: Family>(&self) -> Option<StaleFlows<F>> {
        let needs = self.opener.kind().needs();
        needs
            .conntrack
            .then(|| StaleFlows::new(Box::new(Netlink::default())))
    }
}
