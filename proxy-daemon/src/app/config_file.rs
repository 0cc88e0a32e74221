//! Did somebody change the configuration file under us?
//!
//! Its content is compared every [`POLL`], which needs no watch on whatever directory it or a link leads
//! to; only a change of content counts. Invariants: what is compared was read before the configuration
//! was, so that no change is missed; a file that is away or being written is no change. Spec: CFG-3.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AppError;

/// How often the file is read.
const POLL: Duration = Duration::from_secs(1);

/// How long the content must stay as it is before it counts.
const SETTLE: Duration = Duration::from_millis(300);

/// A configuration file and what was in it.
pub(super) struct Watched {
    file: PathBuf,
    before: Vec<u8>,
}

impl Watched {
    /// Begins to watch a file; to be called before it is read for its meaning.
    pub(super) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            // One that cannot be read now ends the start, or is another one when it can.
            before: std::fs::read(file).unwrap_or_default(),
        }
    }

    /// Waits until the content is another.
    async fn changed(self, poll: Duration) {
        let is_other = |now: &Vec<u8>| *now != self.before && !now.is_empty();
        let read = || std::fs::read(&self.file).ok().filter(is_other);
        loop {
            tokio::time::sleep(poll).await;
            if let Some(now) = read() {
                // Who writes into the file instead of replacing it is not done yet.
                tokio::time::sleep(SETTLE).await;
                if read().is_some_and(|again| again == now) {
                    return;
                }
            }
        }
    }
}

/// Waits until the file's content is another than it was.
pub(super) async fn changed(watched: Option<Watched>) -> AppError {
    match watched {
        Some(watched) => watched.changed(POLL).await,
        None => std::future::pending().await,
    }
    AppError::ConfigChanged
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
        let poll = Duration::from_millis(5);
        let watched = Watched::new(&file);
        let mut waiting = std::pin::pin!(watched.changed(poll));
        assert!(
            tokio::time::timeout(SETTLE * 2, &mut waiting)
                .await
                .is_err()
        );
        std::fs::write(&file, "a").unwrap();
        std::fs::write(directory.join("other"), "b").unwrap();
        assert!(
            tokio::time::timeout(SETTLE * 2, &mut waiting)
                .await
                .is_err()
        );
        std::fs::write(directory.join("new"), "b").unwrap();
        std::fs::rename(directory.join("new"), &file).unwrap();
        waiting.await;
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn cfg_3_a_file_that_is_being_written_is_no_change_yet() {
        let directory = std::env::temp_dir().join(format!("pd-{}-cfg-3c", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("config.yaml");
        std::fs::write(&file, "mode: nftables").unwrap();
        let watched = Watched::new(&file);
        let mut waiting = std::pin::pin!(watched.changed(SETTLE / 60));
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
        waiting.await;
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
        let watched = Watched::new(&file);
        std::fs::write(&file, "b").unwrap();
        watched.changed(POLL).await;
        let watched = Watched::new(&file);
        std::fs::rename(&directory, parent.join("old")).unwrap();
        let mut waiting = std::pin::pin!(watched.changed(poll));
        assert!(tokio::time::timeout(poll * 3, &mut waiting).await.is_err());
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&file, "c").unwrap();
        waiting.await;
        std::fs::remove_dir_all(&parent).unwrap();
    }
}
