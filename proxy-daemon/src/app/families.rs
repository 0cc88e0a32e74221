//! Which families are served, and through what?

use std::time::{Duration, Instant};

use super::AppError;
use crate::conntrack::{Netlink, StaleFlows};
use crate::datapath::nftables::Nftables;
use crate::net::{Family, IpFamily, V4, V6};
use crate::sync::{Carrier, Intake, Sync};
use crate::sys::host;

/// Gives the loop a carrier for each family that the node supports.
///
/// # Errors
/// [`AppError::NoFamily`] or [`AppError::Family`] if the primary family cannot be served; the other one
/// is only logged (DS-2).
pub(super) fn open<I: Intake>(
    mut sync: Sync<I>,
    primary: IpFamily,
    sync_period: Duration,
    now: Instant,
) -> Result<Sync<I>, AppError> {
    if let Some(carrier) = carrier::<V4>(true, primary, sync_period, now)? {
        sync = sync.with_v4(carrier);
    }
    if let Some(carrier) = carrier::<V6>(host::has_ipv6(), primary, sync_period, now)? {
        sync = sync.with_v6(carrier);
    }
    Ok(sync.with_primary(primary))
}

fn carrier<F: Family>(
    supported: bool,
    primary: IpFamily,
    sync_period: Duration,
    now: Instant,
) -> Result<Option<Carrier<F>>, AppError> {
    let is_primary = F::FAMILY == primary;
    if !supported {
        if is_primary {
            return Err(AppError::NoFamily(primary));
        }
        tracing::info!(family = F::FAMILY.name(), "not on this node: single-stack");
        return Ok(None);
    }
    match Nftables::<F>::open() {
        Ok(datapath) => {
            let stale_flows = StaleFlows::new(Box::new(Netlink::default()));
            let carrier = Carrier::new(Box::new(datapath), stale_flows, sync_period, now);
            Ok(Some(carrier))
        }
        Err(source) if is_primary => Err(AppError::Family {
            family: primary,
            source,
        }),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(family = F::FAMILY.name(), error, "not served: single-stack");
            Ok(None)
        }
    }
}
