//! Did somebody change the configuration file under us?
//!
//! Its directory is watched, since editors and `ConfigMap`s replace files rather than write them; only a
//! change of content counts. Spec: CFG-3.

use std::io;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};

use super::AppError;

/// Waits until the file's content is another than now.
pub(super) async fn changed(file: Option<PathBuf>) -> AppError {
    let Some(file) = file else {
        return std::future::pending().await;
    };
    match wait(&file).await {
        Ok(()) => AppError::ConfigChanged,
        Err(error) => {
            tracing::warn!(%error, "the configuration file is not watched for changes");
            std::future::pending().await
        }
    }
}

async fn wait(file: &Path) -> io::Result<()> {
    let directory = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let inotify = Inotify::init()?;
    let events = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE;
    inotify.watches().add(directory, events)?;
    let before = std::fs::read(file)?;
    let mut stream = inotify.into_event_stream([0; 1024])?;
    while let Some(event) = stream.next().await {
        event?;
        // A file that is away for a moment is being replaced.
        if std::fs::read(file).is_ok_and(|now| now != before) {
            return Ok(());
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
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
        let mut waiting = std::pin::pin!(wait(&file));
        let millisecond = std::time::Duration::from_millis(1);
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
}
