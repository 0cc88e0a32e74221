//! What does the process take from the machine, and what does it give up?
//!
//! Invariant: this happens before there is a second thread, since capabilities belong to threads; so what
//! came of it is logged afterwards.

use crate::config::Config;
use crate::sys::capabilities::{self, Also, KeepError};
use crate::sys::host;

/// What came of it.
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

    /// Logs it.
    pub(super) fn tell(&self) {
        if let Err(error) = &self.oom_score_adj {
            tracing::info!(%error, "cannot set oom_score_adj");
        }
        match &self.open_files {
            Ok((before, now)) if before == now => {}
            Ok((before, now)) => tracing::info!(before, now, "raised the limit of open files"),
            Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
        }
        if let Err(error) = &self.capabilities {
            let error = error as &dyn std::error::Error;
            tracing::info!(
                error,
                "not all capabilities that are not needed were given up"
            );
        }
    }
}
