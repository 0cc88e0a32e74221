//! Does another proxy-daemon run in this network namespace?
//!
//! What we program belongs to the network namespace, and so does the lock: a file in a directory that only
//! root can write to, with the number of the namespace in its name. `flock` goes with the process,
//! whatever ends it. Spec: LIFE-11.
//!
//! Daemons that do not share the directory, such as containers that do not mount it, do not see each other's
//! file. They are detected by an abstract socket, which all processes of the network namespace share. Any user
//! can bind it, so a socket held by another user does not stop a daemon that has the file.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket,
    sockopt,
};

use super::AppError;

const DIRECTORY: &str = "/run/proxy-daemon";
const NAME: &[u8] = b"proxy-daemon";
const ATTEMPTS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);

/// The lock, which is held as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Lock {
    file: Option<(Flock<File>, PathBuf)>,
    socket: Option<UnixListener>,
    is_warned: bool,
}

impl Lock {
    /// Takes the lock; waits 5 s for a daemon that is exiting.
    ///
    /// # Errors
    /// [`AppError::Locked`] if another holds it.
    pub(super) fn take() -> Result<Self, AppError> {
        let mut lock = Self::default();
        for _ in 0..ATTEMPTS {
            if lock.try_file() && lock.try_socket()? {
                return Ok(lock);
            }
            std::thread::sleep(PAUSE);
        }
        let holder = holder();
        if lock.file.is_none() {
            return Err(AppError::Locked);
        }
        tracing::warn!(
            pid = holder.map(|holder| holder.pid()),
            "a process of root holds the abstract socket @proxy-daemon, but not {DIRECTORY}; \
             if it is a proxy-daemon in a container, end it and mount that directory of the host there"
        );
        Ok(lock)
    }

    /// Whether the file is locked by us, or cannot be used here.
    fn try_file(&mut self) -> bool {
        if self.file.is_some() {
            return true;
        }
        match lock_file(Path::new(DIRECTORY)) {
            Ok(Some(file)) => self.file = Some(file),
            Ok(None) => return false,
            Err(_) if self.is_warned => {}
            Err(error) => {
                self.is_warned = true;
                tracing::warn!(
                    %error,
                    "cannot lock a file in {DIRECTORY}, a second proxy-daemon may not be detected; \
                     mount that directory of the host (deploy/daemonset.yaml does)"
                );
            }
        }
        true
    }

    /// Whether the socket is ours, or held by a user that does not count.
    fn try_socket(&mut self) -> Result<bool, AppError> {
        let bound = SocketAddr::from_abstract_name(NAME)
            .and_then(|address| UnixListener::bind_addr(&address));
        match bound {
            Ok(socket) => {
                self.socket = Some(socket);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = holder();
                let us = nix::unistd::geteuid().as_raw();
                // Without the file, whoever does not answer may be one of us.
                let is_ours = match holder {
                    Some(holder) => holder.uid() == us,
                    None => self.file.is_none(),
                };
                if is_ours {
                    return Ok(false);
                }
                tracing::warn!(
                    pid = holder.map(|holder| holder.pid()),
                    uid = holder.map(|holder| holder.uid()),
                    "a process of another user holds the abstract socket @proxy-daemon; starting anyway"
                );
                Ok(true)
            }
            Err(error) => Err(AppError::Runtime(error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked, so that nobody holds a file that others no longer find.
        if let Some((_, path)) = &self.file
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!(%error, "cannot remove the lock file");
        }
    }
}

/// The file of this network namespace, locked; `None` if another holds it.
fn lock_file(directory: &Path) -> io::Result<Option<(Flock<File>, PathBuf)>> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let found = fs::symlink_metadata(directory)?;
    let is_ours = found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if !found.is_dir() || !is_ours {
        let error = "it is not a directory of ours that nobody else can write to";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    let namespace = fs::metadata("/proc/self/ns/net")?;
    let name = format!("netns-{}-{}.lock", namespace.dev(), namespace.ino());
    let path = directory.join(name);
    loop {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits())
            .open(&path)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(error.into()),
        };
        // The one who held it may have removed it between our opening and locking.
        let is_found = fs::metadata(&path).is_ok_and(|now| {
            file.metadata()
                .is_ok_and(|file| (file.dev(), file.ino()) == (now.dev(), now.ino()))
        });
        if is_found {
            return Ok(Some((file, path)));
        }
    }
}

/// The user that listens on the socket; `None` if there is no listener, or its backlog is full.
fn holder() -> Option<UnixCredentials> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    let address = UnixAddr::new_abstract(NAME).ok()?;
    connect(socket.as_raw_fd(), &address).ok()?;
    getsockopt(&socket, sockopt::PeerCredentials).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_11_one_holds_the_file_and_the_next_finds_none_of_it() {
        let directory = std::env::temp_dir().join(format!("pd-{}-lock", std::process::id()));
        let (file, path) = lock_file(&directory).unwrap().unwrap();
        assert!(lock_file(&directory).unwrap().is_none());
        let mut lock = Lock::default();
        lock.file = Some((file, path.clone()));
        drop(lock);
        assert!(!path.exists());
        assert!(lock_file(&directory).unwrap().is_some());
        // A directory that others can write to is none for a lock.
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&directory, all).unwrap();
        assert!(lock_file(&directory).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }
}
