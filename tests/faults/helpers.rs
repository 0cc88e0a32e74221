//! Stand-ins for the reader of the daemon's log and for the programs that it runs; both can hang.
//!
//! Invariant: a stand-in that hangs continues on command, and no line is lost: unread lines stay in the pipe.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proxy_tests::address::Family;
use proxy_tests::daemon::{Daemon, Directory};
use proxy_tests::datapath::Flavour;

/// The pipe's name.
const PIPE: &str = "log";

/// A pipe from the daemon to its log, so small that a reader who hangs is felt at once.
pub(crate) struct LogPipe {
    hangs: Arc<(Mutex<bool>, Condvar)>,
    directory: Directory,
}

impl LogPipe {
    /// Puts itself behind the daemon's output; counts from its next start.
    pub(crate) fn behind(daemon: &mut Daemon) -> Result<Self> {
        let directory = Directory::new()?;
        let path = directory.path().join(PIPE);
        mkfifo(&path, Mode::S_IRWXU)?;
        // Open both ways, it neither waits for a writer nor ends with one.
        let mut pipe = File::options().read(true).write(true).open(&path)?;
        fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(4096))?;
        daemon.log_to(pipe.try_clone()?);
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(daemon.log_path())?;
        let hangs = Arc::new((Mutex::new(false), Condvar::new()));
        let told = Arc::clone(&hangs);
        // It ends with the process, because it cannot know that no daemon will ever write again.
        thread::Builder::new().name("log".into()).spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = pipe.read(&mut buffer) {
                drop(log.write_all(&buffer[..n]));
                let hangs = told.0.lock().unwrap();
                drop(told.1.wait_while(hangs, |hangs| *hangs).unwrap());
            }
        })?;
        Ok(Self { hangs, directory })
    }

    /// Makes the reader hang and fills the pipe, so that writing another line blocks.
    pub(crate) fn hang(&self) -> Result<()> {
        self.set(true);
        let mut options = File::options();
        options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let mut pipe = options.open(self.directory.path().join(PIPE))?;
        // A reader that already waits in a read takes the content of the pipe once more.
        let mut n_full = 0;
        while n_full < 20 {
            match pipe.write(b"\n") {
                Ok(_) => n_full = 0,
                Err(_) => n_full += 1,
            }
            if n_full > 0 {
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Makes the reader go on.
    pub(crate) fn go_on(&self) {
        self.set(false);
    }

    fn set(&self, hang: bool) {
        *self.hangs.0.lock().unwrap() = hang;
        self.hangs.1.notify_all();
    }
}

/// Programs in the place of those that the daemon runs.
pub(crate) struct Programs {
    directory: Directory,
    path: String,
}

impl Programs {
    pub(crate) fn new() -> Result<Self> {
        let directory = Directory::new()?;
        let path = std::env::var("PATH").context("PATH")?;
        let mut names = vec!["ipset".to_owned()];
        for flavour in Flavour::ALL {
            for family in Family::ALL {
                names.extend(["", "save", "restore"].map(|what| flavour.program(family, what)));
            }
        }
        let flag = Self::flag(directory.path());
        for name in names {
            let script = format!(
                "#!/bin/sh\nwhile [ -e {flag} ]; do sleep 0.1; done\nPATH={path}\nexec {name} \"$@\"\n"
            );
            directory.write(&name, &script)?;
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(directory.path().join(&name), executable)?;
        }
        Ok(Self { directory, path })
    }

    fn flag(directory: &Path) -> String {
        directory.join("hang").display().to_string()
    }

    /// Makes them hang from the daemon's next start on.
    pub(crate) fn hang(&self, daemon: &mut Daemon) -> Result<()> {
        self.directory.write("hang", "")?;
        let here = self.directory.path().display();
        daemon.set_variable("PATH", &format!("{here}:{}", self.path));
        Ok(())
    }

    /// Lets those that hang go on; from the next start the daemon runs the usual ones.
    pub(crate) fn go_on(&self, daemon: &mut Daemon) {
        drop(fs::remove_file(Self::flag(self.directory.path())));
        daemon.set_variable("PATH", &self.path);
    }
}
