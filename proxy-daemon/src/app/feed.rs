//! Which source fills the store?

use std::convert::Infallible;
use std::sync::Arc;

use super::AppError;
use crate::config::{Config, Source};
use crate::watch::Shared;
use crate::watch::kubernetes::{ApiServer, Kubernetes, Timing};
use crate::watch::manifests::Manifests;

/// A source that is ready to be read.
pub(super) enum Feed {
    /// A directory.
    Manifests(Manifests),
    /// An API server.
    Kubernetes(Kubernetes),
}

/// Opens the source.
///
/// # Errors
/// [`AppError::Manifests`] if there is no such directory; [`AppError::ApiServer`] if no server is configured.
/// A server that does not answer is retried (LIFE-2).
pub(super) async fn open(config: &Config) -> Result<Feed, AppError> {
    let node = Arc::clone(&config.node_name);
    match &config.source {
        Source::Manifests(path) => Manifests::open(path, node)
            .map(Feed::Manifests)
            .map_err(AppError::Manifests),
        Source::Kubernetes { kubeconfig, master } => {
            let server = ApiServer {
                kubeconfig: kubeconfig.clone(),
                master: master.clone(),
            };
            let source = Kubernetes::open(server, node, Timing::default()).await;
            source.map(Feed::Kubernetes).map_err(AppError::ApiServer)
        }
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
            Self::Kubernetes(server) => Ok(server.run(shared).await),
        }
    }
}
