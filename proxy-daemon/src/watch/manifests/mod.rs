//! How does a directory of manifests stand in for an API server?
//!
//! The same YAML or JSON that the API has: Services, EndpointSlices, Nodes and ServiceCIDRs, several
//! documents in a file, lists of objects, as `kubectl get services,endpointslices,nodes -A -o yaml`
//! writes them. Selectors hold as they would on the server, so that an object that is hidden there is hidden here.
//! Invariants: a file that is being written is not read; a document that cannot be read keeps its last
//! good state, and so do all while the directory is not there; an empty directory is a cluster
//! without objects; the content of the file `.token`, read before the manifests, names their state.

mod changes;
mod directory;
pub(crate) mod document;
mod open_directory;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use changes::Changes;
use directory::Directory;

use super::Shared;

/// Why a directory of manifests cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// It is not there, is no directory, or must not be read.
    #[error("cannot read the manifest directory {}", .path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be watched for changes.
    #[error("cannot watch the manifest directory {}", .path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread that reads it cannot be started.
    #[error("cannot start the thread that reads manifests")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// A directory of manifests, watched and ready to be read.
pub struct Manifests {
    directory: Directory,
    changes: Changes,
}

impl Manifests {
    /// Opens a directory; of its Nodes only the one of this name is ours.
    ///
    /// # Errors
    /// [`ManifestsError::Read`] if it is not there, is no directory or must not be read;
    /// [`ManifestsError::Watch`] if the kernel has no more watches.
    pub fn open(path: impl Into<PathBuf>, node: Arc<str>) -> Result<Self, ManifestsError> {
        let path = path.into();
        if let Err(source) = std::fs::read_dir(&path) {
            return Err(ManifestsError::Read { path, source });
        }
        match Changes::of(&path) {
            Ok(changes) => Ok(Self {
                directory: Directory::new(path, node),
                changes,
            }),
            Err(source) => Err(ManifestsError::Watch { path, source }),
        }
    }

    /// Keeps the store equal to the directory until the future is dropped.
    ///
    /// Reading a large file takes long, so that it happens on a thread of its own.
    ///
    /// # Errors
    /// [`ManifestsError::Thread`] if that thread cannot be started.
    pub async fn run(self, shared: Arc<Shared>) -> Result<Infallible, ManifestsError> {
        // Dropping our end tells the thread to stop.
        let (ours, theirs) =
            UnixStream::pair().map_err(|source| ManifestsError::Thread { source })?;
        std::thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || self.follow(&theirs, &shared))
            .map_err(|source| ManifestsError::Thread { source })?;
        let never = std::future::pending().await;
        drop(ours);
        Ok(never)
    }

    fn follow(mut self, stop: &UnixStream, shared: &Shared) {
        let mut has_failed = false;
        loop {
            match self.directory.scan(&mut self.changes) {
                Ok(scan) => {
                    if has_failed {
                        let path = self.directory.path().display();
                        tracing::info!(%path, "manifests can be read again");
                    }
                    has_failed = false;
                    self.directory.apply(scan, shared);
                }
                Err(error) => {
                    if !has_failed {
                        let path = self.directory.path().display();
                        tracing::warn!(%path, %error, "manifests cannot be read, will retry; the last state stays active");
                    }
                    has_failed = true;
                }
            }
            if self.changes.wait(has_failed, stop).is_err() {
                return;
            }
        }
    }
}
