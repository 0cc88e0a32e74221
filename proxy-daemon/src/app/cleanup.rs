//! How does `--cleanup` remove our objects from the kernel?
//!
//! Spec: LIFE-7. Not implemented yet: kube-proxy's own tables and chains.

use super::AppError;
use crate::datapath::{DatapathKind, Opener};
use crate::net::IpFamily;

/// Cleans up every mode and family; a failure does not stop the rest.
///
/// # Errors
/// [`AppError::Cleanup`] with the modes and families that could not be cleaned up.
pub(super) fn run() -> Result<(), AppError> {
    let mut left = Vec::new();
    for &kind in DatapathKind::ALL {
        let opener = Opener::new(kind, IpFamily::ALL);
        for family in IpFamily::ALL {
            remove(&opener, family, &mut left);
        }
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(AppError::Cleanup(left))
    }
}

fn remove(opener: &Opener, of: IpFamily, left: &mut Vec<(DatapathKind, IpFamily)>) {
    let (mode, family) = (opener.kind().name(), of.name());
    match opener.cleanup(of) {
        Ok(()) => tracing::info!(mode, family, "cleaned up"),
        // Where the mode cannot work, nothing of ours should have come to be; a person may know better.
        Err(error) if error.means_absent() => {
            let error = &error as &dyn std::error::Error;
            tracing::info!(
                mode,
                family,
                error,
                "mode is not available on this node, skipped"
            );
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(mode, family, error, "cannot clean up");
            left.push((opener.kind(), of));
        }
    }
}
