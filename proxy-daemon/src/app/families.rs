//! Which families are served, and through what?

use std::time::{Duration, Instant};

use super::AppError;
use crate::config::{IptablesBackend, Mode};
use crate::conntrack::{Netlink, StaleFlows};
use crate::datapath::Kind;
use crate::datapath::iptables::Flavour;
use crate::net::{Family, IpFamily, V4, V6};
use crate::sync::{Carrier, Former, Intake, Sync};
use crate::sys::host;

/// The datapath that this mode means on this node.
pub(super) fn kind(mode: Mode) -> Kind {
    match mode {
        Mode::Nftables => Kind::Nftables,
        Mode::Iptables(IptablesBackend::Nft) => Kind::Iptables(Flavour::Nft),
        Mode::Iptables(IptablesBackend::Legacy) => Kind::Iptables(Flavour::Legacy),
        Mode::Iptables(IptablesBackend::Auto) => {
            let (flavour, because) = Flavour::detect();
            tracing::info!(backend = %flavour, %because, "chose the iptables to use");
            Kind::Iptables(flavour)
        }
    }
}

/// Gives the loop a carrier for each family that the node supports.
///
/// # Errors
/// [`AppError::NoFamily`] or [`AppError::Family`] if the primary family cannot be served; the other one
/// is only logged (DS-2).
pub(super) fn open<I: Intake>(
    mut sync: Sync<I>,
    kind: Kind,
    primary: IpFamily,
    sync_period: Duration,
    now: Instant,
) -> Result<Sync<I>, AppError> {
    let opening = Opening {
        kind,
        primary,
        sync_period,
        now,
    };
    if let Some(carrier) = opening.carrier::<V4>(true)? {
        sync = sync.with_v4(carrier);
    }
    if let Some(carrier) = opening.carrier::<V6>(host::has_ipv6())? {
        sync = sync.with_v6(carrier);
    }
    Ok(sync.with_primary(primary))
}

/// What the carriers of both families have in common.
struct Opening {
    kind: Kind,
    primary: IpFamily,
    sync_period: Duration,
    now: Instant,
}

impl Opening {
    fn carrier<F: Family>(&self, supported: bool) -> Result<Option<Carrier<F>>, AppError> {
        let is_primary = F::FAMILY == self.primary;
        if !supported {
            if is_primary {
                return Err(AppError::NoFamily(self.primary));
            }
            tracing::info!(family = F::FAMILY.name(), "not on this node: single-stack");
            return Ok(None);
        }
        let opened = match self.kind.open::<F>() {
            Err(error) if error.may_pass() => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    family = F::FAMILY.name(),
                    error,
                    "not served yet, trying again"
                );
                Ok(self.kind.open_later())
            }
            opened => opened,
        };
        match opened {
            Ok(datapath) => {
                let stale_flows = StaleFlows::new(Box::new(Netlink::default()));
                let carrier = Carrier::new(datapath, stale_flows, self.sync_period, self.now);
                // Spec: LIFE-9.
                let others = self.kind.others();
                let others = others.map(|kind| Former::new(kind.name(), move || kind.open()));
                Ok(Some(carrier.instead_of(others.collect())))
            }
            Err(source) if is_primary => Err(AppError::Family {
                family: self.primary,
                source,
            }),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(family = F::FAMILY.name(), error, "not served: single-stack");
                Ok(None)
            }
        }
    }
}
