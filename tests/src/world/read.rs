//! What does the daemon read of a directory of manifests? Its own source and store say it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use proxy_daemon::watch::manifests::Manifests;
use proxy_daemon::watch::{Drained, Shared, Store};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a store holds that follows this directory on this node.
///
/// # Errors
/// When the directory cannot be followed, or reading takes too long.
pub async fn read(directory: &Path, node: &str) -> Result<Drained> {
    let shared = Arc::new(Shared::default());
    let source = Manifests::open(directory, node.into())?;
    let mut bell = shared.subscribe();
    let complete = async {
        while !shared.with(|store| store.is_complete()) {
            bell.changed().await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        stopped = source.run(Arc::clone(&shared)) => bail!("{stopped:?}"),
        complete = tokio::time::timeout(PATIENCE, complete) => complete??,
    }
    Ok(shared.with(Store::drain))
}
