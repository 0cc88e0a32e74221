//! Which source fills the store?

use std::convert::Infallible;
use std::sync::Arc;

use super::AppError;
use crate::config::{Config, Source};
use crate::watch::Shared;
use crate::watch::manifests::Manifests;

/// A source that is ready to be read.
pub(super) enum Feed {
    /// A directory.
    Manifests(Manifests),
}

/// Opens the source.
///
/// # Errors
/// [`AppError::Manifests`] if there is no such directory.
pub(super) fn open(config: &Config) -> Result<Feed, AppError> {
    match &config.source {
        Source::Manifests(path) => Manifests::open(path, Arc::clone(&config.node_name))
            .map(Feed::Manifests)
            .map_err(AppError::Manifests),
        Source::Kubernetes { .. } => Err(AppError::NotThereYet(
            "the Kubernetes source (without --manifests)",
        )),
    }
}

/// The source in a few words.
pub(super) fn describe(source: &Source) -> String {
    match source {
        Source::Kubernetes {
            master: Some(url), ..
        } => url.clone(),
        Source::Manifests(path)
        | Source::Kubernetes {
            kubeconfig: Some(path),
            ..
        } => path.display().to_string(),
        Source::Kubernetes { .. } => "in-cluster".to_owned(),
    }
}

impl Feed {
    /// Fills the store until dropped.
    ///
    /// # Errors
    /// [`AppError::Manifests`] if it cannot be followed at all.
    pub(super) async fn run(self, shared: Arc<Shared>) -> Result<Infallible, AppError> {
        match self {
            Self::Manifests(manifests) => manifests.run(shared).await.map_err(AppError::Manifests),
        }
    }
}
