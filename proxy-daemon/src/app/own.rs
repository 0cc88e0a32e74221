//! Which limits does the process set for itself, and which capabilities does it drop?
//!
//! Invariant: this happens before a second thread starts, because capabilities belong to threads; the results
//! are logged later.

use crate::config::Config;
use crate::sys::capabilities::{self, Also, KeepError};
use crate::sys::host;

/// The results.
pub(super) struct Own {
    oom_score_adj: std::io::Result<()>,
    open_files: std::io::Result<(u64, u64)>,
    capabilities: Result<(), KeepError>,
}

impl Own {
    /// Spec: LIFE-12, LIFE-20, LIFE-21.
    pub(super) fn settle(config: &Config) -> Self {
        let listeners = [config.healthz_address, config.metrics_address];
        let also = Also {
            loads_modules: config.datapath.may_need(|needs| needs.loads_modules),
            binds_low_ports: listeners.iter().flatten().any(|a| a.port() < 1024),
        };
        Self {
            // Before the capability that it takes is given up.
            oom_score_adj: host::set_oom_score_adj(config.oom_score_adj),
            open_files: host::raise_open_files(),
            capabilities: capabilities::keep_needed(also),
        }
    }

    /// Logs the results.
    pub(super) fn tell(&self) {
        if let Err(error) = &self.oom_score_adj {
            tracing::info!(%error, "cannot set oom_score_adj");
        }
        match &self.open_files {
            Ok((before, now)) if before == now => {}
            Ok((before, now)) => tracing::info!(before, now, "raised the open file limit"),
            Err(error) => tracing::warn!(%error, "cannot raise the open file limit"),
        }
        if let Err(error) = &self.capabilities {
            let error = error as &dyn std::error::Error;
            tracing::info!(error, "cannot drop all unneeded capabilities");
        }
    }
}
