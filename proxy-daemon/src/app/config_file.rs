//! Did somebody change the configuration file under us?
//!
//! Its directory is watched, since editors and `ConfigMap`s replace files rather than write them; only a
//! change of content counts. Invariants: what is compared was read before the configuration was, so that
//! no change is missed; a directory that was replaced is found again within [`POLL`]. Spec: CFG-3.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};

use super::AppError;

/// How often the file is looked at without any event: its directory, or what a link leads to, may be
/// another than the one that is watched.
const POLL: Duration = Duration::from_secs(10);

/// How long the content must stay as it is before it counts.
const SETTLE: Duration = Duration::from_millis(300);

/// What makes us look.
const EVENTS: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::CREATE)
    .union(WatchMask::MOVE_SELF);

/// A configuration file and what was in it.
pub(super) struct Watched {
    file: PathBuf,
    inotify: Inotify,
    before: Vec<u8>,
}

impl Watched {
    /// Begins to watch a file; to be called before it is read for its meaning.
    ///
    /// # Errors
    /// When it cannot be read or watched.
    pub(super) fn new(file: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        inotify.watches().add(directory(file), EVENTS)?;
        Ok(Self {
            file: file.to_owned(),
            inotify,
            before: std::fs::read(file)?,
        })
    }

    /// Waits until the content is another.
    async fn changed(self, poll: Duration) -> io::Result<()> {
        let mut stream = self.inotify.into_event_stream([0; 1024])?;
        loop {
            // No event for so long is a reason to look, too.
            if let Ok(event) = tokio::time::timeout(poll, stream.next()).await {
                event.ok_or(io::ErrorKind::UnexpectedEof)??;
            }
            // A directory that is away for a moment is being replaced, as is a file.
            if let Err(error) = stream.watches().add(directory(&self.file), EVENTS) {
                tracing::debug!(%error, "the directory of the configuration file is not there");
            }
            let is_other = |now: &Vec<u8>| *now != self.before;
            let read = || std::fs::read(&self.file).ok().filter(is_other);
            if let Some(now) = read() {
                // Who writes into the file instead of replacing it is not done yet.
                tokio::time::sleep(SETTLE).await;
                if !now.is_empty() && read().is_some_and(|again| again == now) {
                    return Ok(());
                }
            }
        }
    }
}

/// Waits until the file's content is another than it was.
pub(super) async fn changed(watched: Option<io::Result<Watched>>) -> AppError {
    let Some(watched) = watched else {
        return std::future::pending().await;
    };
    let changed = match watched {
        Ok(watched) => watched.changed(POLL).await,
        Err(error) => Err(error),
    };
    match changed {
        Ok(()) => AppError::ConfigChanged,
        Err(error) => {
            tracing::warn!(%error, "the configuration file is not watched for changes");
            std::future::pending().await
        }
    }
}

fn directory(file: &Path) -> &Path {
    file.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cfg_3_only_another_content_is_a_change() {
        let directory = std::env::temp_dir().join(format!("pd-{}-cfg-3", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("config.yaml");
        std::fs::write(&file, "a").unwrap();
        let watched = Watched::new(&file).unwrap();
        let mut waiting = std::pin::pin!(watched.changed(POLL));
        let millisecond = Duration::from_millis(1);
        assert!(
            tokio::time::timeout(millisecond, &mut waiting)
                .await
                .is_err()
        );
        std::fs::write(&file, "a").unwrap();
        std::fs::write(directory.join("other"), "b").unwrap();
        assert!(
            tokio::time::timeout(millisecond, &mut waiting)
                .await
                .is_err()
        );
        std::fs::write(directory.join("new"), "b").unwrap();
        std::fs::rename(directory.join("new"), &file).unwrap();
        waiting.await.unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn cfg_3_a_file_that_is_being_written_is_no_change_yet() {
        let directory = std::env::temp_dir().join(format!("pd-{}-cfg-3c", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("config.yaml");
        std::fs::write(&file, "mode: nftables").unwrap();
        let watched = Watched::new(&file).unwrap();
        let mut waiting = std::pin::pin!(watched.changed(POLL));
        for text in ["", "mode: nft", "mode: nftables"] {
            std::fs::write(&file, text).unwrap();
            let a_while = tokio::time::timeout(SETTLE / 10, &mut waiting);
            assert!(a_while.await.is_err(), "{text:?}");
        }
        // It is empty for longer, and then what it was before.
        assert!(
            tokio::time::timeout(SETTLE * 2, &mut waiting)
                .await
                .is_err()
        );
        std::fs::write(&file, "mode: iptables").unwrap();
        waiting.await.unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn cfg_3_a_change_before_the_wait_and_another_directory_are_noticed() {
        let parent = std::env::temp_dir().join(format!("pd-{}-cfg-3b", std::process::id()));
        let directory = parent.join("etc");
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("config.yaml");
        std::fs::write(&file, "a").unwrap();
        let poll = Duration::from_millis(20);
        let watched = Watched::new(&file).unwrap();
        std::fs::write(&file, "b").unwrap();
        watched.changed(POLL).await.unwrap();
        let watched = Watched::new(&file).unwrap();
        std::fs::rename(&directory, parent.join("old")).unwrap();
        let mut waiting = std::pin::pin!(watched.changed(poll));
        assert!(tokio::time::timeout(poll * 3, &mut waiting).await.is_err());
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&file, "c").unwrap();
        waiting.await.unwrap();
        std::fs::remove_dir_all(&parent).unwrap();
    }
}
