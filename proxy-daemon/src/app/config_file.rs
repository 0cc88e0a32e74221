//! What is in the configuration file, and did somebody change it under us?
//!
//! Its content is compared every [`POLL`], which needs no watch on whatever directory it or a link leads
//! to; only a change of content counts. Invariants: it is read once for its meaning and for the comparison, so
//! that no change is missed and a pipe will do, which then is not watched; a file that is away or being written
//! is no change. Spec: CFG-3.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AppError;
use crate::config::raw::FileError;

/// How often the file is read.
const POLL: Duration = Duration::from_secs(1);

/// How long the content must stay as it is before it counts.
const SETTLE: Duration = Duration::from_millis(300);

/// A configuration file and what was in it.
pub(super) struct Watched {
    file: PathBuf,
    pub(super) text: String,
    /// Whether its changes can be noticed. To read a pipe again would wait for somebody who writes.
    pub(super) is_regular: bool,
}

impl Watched {
    /// Reads a file that is to be watched.
    pub(super) fn read(file: &Path) -> Result<Self, AppError> {
        let read = || -> std::io::Result<Self> {
            let mut open = File::open(file)?;
            let mut text = String::new();
            open.read_to_string(&mut text)?;
            Ok(Self {
                file: file.to_owned(),
                text,
                is_regular: open.metadata()?.is_file(),
            })
        };
        read().map_err(|source| {
            let path = file.display().to_string();
            AppError::ConfigFile(FileError::Read { path, source })
        })
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> String {
        self.file.display().to_string()
    }

    /// Waits until the content is another.
    async fn changed(self, poll: Duration) {
        let is_other = |now: &Vec<u8>| now != self.text.as_bytes() && !now.is_empty();
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
        Some(watched) if watched.is_regular => watched.changed(POLL).await,
        Some(_) | None => std::future::pending().await,
    }
    AppError::ConfigChanged
}

#[cfg(test)]
mod tests {
    use super::super::read_config;
    use super::*;
    use crate::cli::Cli;
    use crate::config::Resolved;

    #[tokio::test]
    async fn cfg_3_only_another_content_is_a_change() {
        let directory = std::env::temp_dir().join(format!("pd-{}-cfg-3", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("config.yaml");
        std::fs::write(&file, "a").unwrap();
        let poll = Duration::from_millis(5);
        let watched = Watched::read(&file).unwrap();
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
        let watched = Watched::read(&file).unwrap();
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
        let watched = Watched::read(&file).unwrap();
        std::fs::write(&file, "b").unwrap();
        watched.changed(POLL).await;
        let watched = Watched::read(&file).unwrap();
        std::fs::rename(&directory, parent.join("old")).unwrap();
        let mut waiting = std::pin::pin!(watched.changed(poll));
        assert!(tokio::time::timeout(poll * 3, &mut waiting).await.is_err());
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&file, "c").unwrap();
        waiting.await;
        std::fs::remove_dir_all(&parent).unwrap();
    }

    #[tokio::test]
    async fn cfg_3_a_pipe_is_read_once_and_not_watched() {
        use std::io::Write as _;
        use std::os::fd::AsRawFd as _;
        let (reader, mut writer) = std::io::pipe().unwrap();
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        writeln!(writer, "{text}hostnameOverride: n").unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let cli = Cli::read(["proxy-daemon", "--config", &path].map(Into::into)).unwrap();
        let watched = Watched::read(Path::new(&path)).unwrap();
        let Resolved { config, warnings } = read_config(&cli, Some(&watched)).unwrap();
        assert_eq!(&*config.node_name, "n");
        let warning = format!("{path} is not a regular file: it is not watched");
        assert!(warnings.contains(&warning), "{warnings:?}");
        let waiting = tokio::time::timeout(POLL + SETTLE, changed(Some(watched)));
        assert!(waiting.await.is_err());
    }
}
