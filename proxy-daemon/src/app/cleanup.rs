//! How does everything of ours leave the kernel?
//!
//! Spec: LIFE-7. Not there yet: kube-proxy's own tables and chains.

use super::AppError;
use crate::datapath::{DatapathKind, Opener};
use crate::net::IpFamily;

/// Removes what is ours of every mode and family; what cannot be removed does not keep the rest.
///
/// # Errors
/// [`AppError::Cleanup`] with everything of which something is left.
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
        Ok(()) => tracing::info!(mode, family, "nothing of ours is left"),
        // Where the mode cannot work, nothing of ours should have come to be; a person may know better.
        Err(error) if error.means_absent() => {
            let error = &error as &dyn std::error::Error;
            tracing::info!(mode, family, error, "not on this node, so not looked at");
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(mode, family, error, "something of ours is left");
            left.push((opener.kind(), of));
        }
    }
}
