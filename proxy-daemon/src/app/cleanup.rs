//! How does everything of ours leave the kernel?
//!
//! Spec: LIFE-7. Not there yet: kube-proxy's own tables and chains.

use super::AppError;
use crate::datapath::nftables::Nftables;
use crate::datapath::{Datapath as _, DatapathError};
use crate::net::{Family, IpFamily, V4, V6};

/// Removes what is ours of every family; what cannot be removed does not keep the rest.
///
/// # Errors
/// [`AppError::Cleanup`] for the first family of which something is left.
pub(super) fn run() -> Result<(), AppError> {
    let outcomes = [
        (IpFamily::V4, remove::<V4>()),
        (IpFamily::V6, remove::<V6>()),
    ];
    for (family, outcome) in outcomes {
        outcome.map_err(|source| AppError::Cleanup { family, source })?;
    }
    Ok(())
}

fn remove<F: Family>() -> Result<(), DatapathError> {
    Nftables::<F>::open()?.cleanup()?;
    tracing::info!(
        family = F::FAMILY.name(),
        "nothing of ours is left in nf_tables"
    );
    Ok(())
}
