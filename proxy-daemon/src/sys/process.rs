//! How is a program of the machine run?
//!
//! Invariants: it gets our `PATH`, the C locale and what the caller names, and nothing else of our
//! environment; it runs in the network namespace of the calling thread; it reads and writes files in memory, so
//! that it never waits for us; one that hangs is killed after [`IDLE`]; when a call returns, or panics,
//! the program has ended and is reaped, and what it started is killed; and however the daemon ends, the
//! program ends with it, so that it cannot write after a successor did.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{Clock as _, SystemClock};

/// Where programs for administrators are, also if `PATH` does not say so.
const DIRECTORIES: &str = ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
/// How much of what a program says on its standard error is kept.
const SAID: usize = 16 << 10;
/// How often a program is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often it is logged that a program has not ended.
const NEWS: Duration = Duration::from_secs(15);
/// After so long it is killed, even if it works.
const LIMIT: Duration = Duration::from_secs(600);
/// After so long it is killed if it neither read, wrote nor computed anything: it hangs.
///
/// Longer than a program waits for the lock of iptables-legacy.
const IDLE: Duration = Duration::from_secs(15);
/// How long the end of a program that was killed is waited for; the kernel may be busy for it.
const REAP: Duration = Duration::from_secs(2);

/// The programs that run, each the leader of a group of processes.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all programs that run, with what they started; the last thing to happen before the daemon ends.
pub(crate) fn end_all() {
    let running = running();
    for pid in &*running {
        kill_group(*pid);
    }
    // Whoever would start another one now waits for the end of the process.
    std::mem::forget(running);
}

fn kill_group(pid: u32) {
    if let Err(error) = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
        tracing::debug!(pid, %error, "cannot kill a program");
    }
}

/// The program of this name, if this machine has it.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(DIRECTORIES);
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| {
            file.is_absolute()
                && file.is_file()
                && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
        })
}

/// A program and how it is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// Where it is.
    pub(crate) program: &'a Path,
    /// What it is called with.
    pub(crate) arguments: &'a [&'a str],
    /// What it sees of the environment besides `PATH` and the locale.
    pub(crate) environment: &'a [(&'static str, OsString)],
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Whether it says that it did what it was asked.
    pub(crate) status: ExitStatus,
    /// The beginning of what it said on its standard error.
    pub(crate) said: String,
}

impl Call<'_> {
    /// Runs the program with this standard input, and hands each line of its standard output to `each`,
    /// without its end.
    ///
    /// # Errors
    /// If it cannot be started, hangs, or ends well before having read everything; what it printed until then
    /// was handed out. That it fails is no error: see [`Ended`].
    pub(crate) fn run(&self, input: &[u8], each: &mut dyn FnMut(&str)) -> io::Result<Ended> {
        let file = |name| memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from);
        let files = [file(c"stdin")?, file(c"stdout")?, file(c"stderr")?];
        let [stdin, stdout, stderr] = &files;
        let (mut stdin, mut stdout) = (stdin, stdout);
        stdin.write_all(input)?;
        stdin.rewind()?;
        let status = Running::spawn(self, &files)?.end(&files);
        stdout.rewind()?;
        for line in BufReader::new(stdout).split(b'\n') {
            each(&String::from_utf8_lossy(&line?));
        }
        let status = status?;
        if status.success() && stdin.stream_position()? < stdin.metadata()?.len() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut said = vec![0; SAID];
        let n = stderr.read_at(&mut said, 0)?;
        said.truncate(n);
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok(Ended { status, said })
    }
}

/// Has the kernel kill the program when the thread that starts it ends, and with it the daemon.
fn end_with_us(command: &mut Command) {
    let us = nix::unistd::getpid();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // We may have ended before that was asked.
        if nix::unistd::getppid() == us {
            Ok(())
        } else {
            Err(Errno::ESRCH.into())
        }
    };
    #[expect(unsafe_code, reason = "the standard library has no safe way to say it")]
    // SAFETY: between fork and exec, `ask` makes two system calls, and allocates and locks nothing.
    unsafe {
        command.pre_exec(ask);
    }
}

/// A program that runs; killed and reaped when dropped.
struct Running {
    name: String,
    child: Child,
    is_reaped: bool,
    /// Its sender goes when the program has ended.
    end: Receiver<()>,
}

impl Running {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn spawn(call: &Call<'_>, files: &[File; 3]) -> io::Result<Self> {
        let [stdin, stdout, stderr] = files;
        let mut command = Command::new(call.program);
        command
            .args(call.arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LC_ALL", "C")
            .envs(call.environment.iter().map(|(name, value)| (name, value)))
            .stdin(stdin.try_clone()?)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .process_group(0);
        end_with_us(&mut command);
        let child = {
            let mut running = running();
            let child = command.spawn()?;
            running.insert(child.id());
            child
        };
        let (ended, end) = mpsc::channel();
        let pid = Pid::from_raw(child.id().cast_signed());
        let running = Self {
            name: call.program.display().to_string(),
            child,
            is_reaped: false,
            end,
        };
        std::thread::Builder::new()
            .name("program".to_owned())
            .spawn(move || {
                // It stays a zombie, so that its number is nobody else's until it is reaped.
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
                drop(ended);
            })?;
        Ok(running)
    }

    /// Waits for the end, which is an error if it hangs.
    fn end(mut self, files: &[File; 3]) -> io::Result<ExitStatus> {
        let (program, pid) = (self.name.clone(), self.child.id());
        let begun = SystemClock.now();
        let mut next_news = begun + NEWS;
        let mut active = begun;
        let mut seen = None;
        while self.end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let now = SystemClock.now();
            // The position in a file is one for all who have it.
            let positions = files.each_ref().map(|mut file| file.stream_position().ok());
            let progress = Some((cpu_time(pid), positions));
            if progress != seen {
                seen = progress;
                active = now;
            }
            let (idle, running) = ((now - active).as_secs(), (now - begun).as_secs());
            let hangs = if idle >= IDLE.as_secs() {
                format!("did nothing for {idle} s")
            } else if running >= LIMIT.as_secs() {
                format!("did not end within {running} s")
            } else {
                if now >= next_news {
                    next_news = now + NEWS;
                    tracing::warn!(program, pid, seconds = running, "program is still running");
                }
                continue;
            };
            let error = format!("{program} {hangs} and was killed; run it by hand to see why");
            return Err(io::Error::new(io::ErrorKind::TimedOut, error));
        }
        self.reap()
    }

    /// Takes its status, once it has ended, and kills what it left behind.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        let mut running = running();
        kill_group(self.child.id());
        self.is_reaped = true;
        running.remove(&self.child.id());
        self.child.wait()
    }
}

impl Drop for Running {
    /// Kills it if it has not ended, and waits a moment for that.
    fn drop(&mut self) {
        if self.is_reaped {
            return;
        }
        let (program, pid) = (&self.name, self.child.id());
        kill_group(pid);
        if self.end.recv_timeout(REAP) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                program,
                pid,
                "cannot kill a program: it waits in the kernel; see /proc/PID/stack"
            );
        } else if let Err(error) = self.reap() {
            tracing::debug!(%error, "cannot reap a program");
        }
    }
}

/// The CPU time that the processes of a group have used, in ticks of the kernel's clock.
///
/// Kernel: in /proc/PID/stat the name comes second, in brackets; then, from 0: 2 the group, 11 to 14 the
/// times of the process and of its children that ended.
fn cpu_time(group: u32) -> u64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let times = processes.filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<u64> = rest
            .split(' ')
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let is_meant = *fields.get(2)? == u64::from(group);
        is_meant.then(|| fields.iter().take(15).skip(11).sum::<u64>())
    });
    times.sum()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn shell<'a>(arguments: &'a [&'a str]) -> Call<'a> {
        Call {
            program: Path::new("/bin/sh"),
            arguments,
            environment: &[],
        }
    }

    fn feed(script: &str, input: &str) -> io::Result<Ended> {
        shell(&["-c", script]).run(input.as_bytes(), &mut |_| {})
    }

    fn lines(script: &str) -> (Vec<String>, Ended) {
        let mut lines = Vec::new();
        let ended = shell(&["-c", script])
            .run(b"", &mut |line| lines.push(line.to_owned()))
            .expect("sh runs");
        (lines, ended)
    }

    /// Whether this process has a child of this name, dead or alive.
    fn has_child(name: &str) -> bool {
        let me = std::process::id();
        std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
            .any(|stat| {
                stat.contains(&format!("({name})"))
                    && stat
                        .rsplit_once(") ")
                        .and_then(|(_, rest)| rest.split(' ').nth(1))
                        == Some(&me.to_string())
            })
    }

    #[test]
    fn a_program_that_talks_before_it_reads_blocks_nobody() {
        let line = "x".repeat(99);
        let script = "i=0; while [ $i -lt 5000 ]; do echo 'it is all so long, and this is line' $i >&2; i=$((i+1)); done; exec cksum >&2";
        let ended = feed(script, &format!("{line}\n").repeat(20_000)).expect("sh runs");
        assert!(ended.status.success());
        assert!(
            ended
                .said
                .starts_with("it is all so long, and this is line 0\n")
        );
        assert_eq!(ended.said.len(), SAID);
    }

    #[test]
    fn all_that_is_written_arrives() {
        let ended = feed("cat | wc -c >&2", &"ab\n".repeat(1_000_000)).expect("sh runs");
        assert_eq!(ended.said.trim(), "3000000");
    }

    #[test]
    fn a_program_that_stops_reading_is_heard() {
        let script = "read a; echo \"no: $a\" >&2; exit 3";
        let ended = feed(script, &"word\n".repeat(1_000_000)).expect("its message");
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.said, "no: word\n");
    }

    #[test]
    fn a_program_that_leaves_well_without_reading_all_is_an_error() {
        let error = feed("exit 0", "word\n").expect_err("nobody knows what it did");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_what_it_printed_is_read() {
        let name = "prints-and-hangs";
        let file = std::env::temp_dir().join(format!("{}-{name}", std::process::id()));
        std::os::unix::fs::symlink("/usr/bin/tail", &file).expect("a program of our own");
        let call = Call {
            program: &file,
            arguments: &["-n", "1", "-f", "/etc/passwd"],
            environment: &[],
        };
        let mut lines = Vec::new();
        let error = call
            .run(b"first", &mut |line| lines.push(line.to_owned()))
            .expect_err("it hangs");
        std::fs::remove_file(&file).expect("the program is there");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!has_child(&format!("{}-{name}", std::process::id())[..15]));
    }

    #[test]
    fn lines_are_those_that_were_printed() {
        let script = "i=0; while [ $i -lt 30000 ]; do echo line number $i; i=$((i+1)); done; echo; printf end";
        let (lines, ended) = lines(script);
        assert!(ended.status.success());
        assert_eq!(lines.len(), 30_002);
        for (i, line) in lines.iter().take(30_000).enumerate() {
            let mut wanted = String::new();
            write!(wanted, "line number {i}").expect("a string");
            assert_eq!(*line, wanted);
        }
        assert_eq!(lines[30_000..], ["", "end"]);
    }

    #[test]
    fn a_program_sees_nothing_of_our_environment() {
        let (lines, _) = lines("/usr/bin/env");
        let names: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.split('=').next())
            .filter(|name| !matches!(*name, "PWD" | "SHLVL" | "_" | "OLDPWD"))
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(lines.contains(&"LC_ALL=C".to_owned()));
        assert!(std::env::vars_os().count() > 2);
    }

    #[test]
    fn what_a_program_leaves_behind_ends_with_it() {
        let (lines, ended) = lines("sleep 600 >/dev/null & echo $!");
        assert!(ended.status.success());
        // It was told to end, which takes a moment.
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", lines[0]));
        while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn programs_are_found_without_a_path() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-here"), None);
        assert_eq!(find(""), None);
    }

    #[test]
    fn life_19_one_that_hangs_is_killed_and_one_that_works_is_not() {
        let started = SystemClock.now();
        let error = feed("exec 2>&-; sleep 600 & wait", "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let took = SystemClock.now().duration_since(started);
        assert!(took >= IDLE && took < IDLE * 4, "{took:?}");
        // A child of its own that computes is no reason to think that it hangs.
        let script = "(end=$(($(cut -d. -f1 /proc/uptime)+20)); while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do :; done) & wait; echo done >&2";
        let ended = feed(script, "").expect("it works");
        assert_eq!(ended.said, "done\n");
    }

    #[test]
    fn life_19_what_a_program_started_ends_with_it() {
        let mut pid = 0;
        let error = shell(&["-c", "sleep 600 & echo $!; wait"])
            .run(b"", &mut |line| pid = line.parse().expect("a number"))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_ne!(pid, 0);
        // It was told to end; that takes the kernel a moment.
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let started = SystemClock.now();
        while runs() {
            assert!(SystemClock.now().duration_since(started) < IDLE);
            std::thread::yield_now();
        }
    }
}
