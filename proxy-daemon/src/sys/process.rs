//! How is a program of the machine run?
//!
//! Invariants: it gets our `PATH`, the C locale and what the caller names, and nothing else of our
//! environment; it runs in the network namespace of the calling thread; neither side can block the
//! other by what it does not read; one that hangs is killed after [`IDLE`]; when a call returns, or panics,
//! the program has ended and is reaped, and what it started is killed; and however the daemon ends, the
//! program ends with it, so that it cannot write after a successor did.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{Clock as _, SystemClock};

/// Where programs for administrators are, also if `PATH` does not say so.
const DIRECTORIES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
];
/// How much of what a program says on its standard error is kept.
const SAID: usize = 16 << 10;
/// The size of a read or a write.
const CHUNK: usize = 64 << 10;
/// How often a program is looked at while nothing else is to be done.
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
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(DIRECTORIES.iter().map(PathBuf::from))
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
    /// Runs the program with `write` as its standard input.
    ///
    /// # Errors
    /// If it cannot be started, if `write` fails (the program is killed then), or if it ends well
    /// before having read everything. That it fails is no error: see [`Ended`].
    pub(crate) fn feed(
        &self,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Ended> {
        let mut running = Running::spawn(self, Stdio::piped(), Stdio::null())?;
        let pipe = running
            .child
            .stdin
            .take()
            .ok_or(io::ErrorKind::BrokenPipe)?;
        // So that one that hangs instead of reading can be killed.
        set_nonblocking(&pipe)?;
        let mut buffer = BufWriter::with_capacity(CHUNK, Input { running, pipe });
        let written = write(&mut buffer).and_then(|()| buffer.flush());
        // Taken apart, it does not write the rest when dropped.
        let (Input { running, pipe }, _) = buffer.into_parts();
        match written {
            // Killed before the end of its input is seen.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                drop(running);
                Err(error)
            }
            written => {
                drop(pipe);
                let ended = running.end()?;
                if ended.status.success() {
                    written?;
                }
                Ok(ended)
            }
        }
    }

    /// Runs the program and hands each line of its standard output to `each`, without its end.
    ///
    /// # Errors
    /// If it cannot be started or read. That it fails is no error: see [`Ended`].
    pub(crate) fn read(&self, each: &mut dyn FnMut(&str)) -> io::Result<Ended> {
        let mut running = Running::spawn(self, Stdio::null(), Stdio::piped())?;
        let pipe = running
            .child
            .stdout
            .take()
            .ok_or(io::ErrorKind::BrokenPipe)?;
        set_nonblocking(&pipe)?;
        let mut output = BufReader::with_capacity(CHUNK, pipe);
        let mut line = Vec::new();
        loop {
            match output.read_until(b'\n', &mut line) {
                Ok(n) => {
                    if !line.is_empty() {
                        let text = line.strip_suffix(b"\n").unwrap_or(&line);
                        each(&String::from_utf8_lossy(text));
                        line.clear();
                    }
                    if n == 0 {
                        return running.end();
                    }
                }
                // The beginning of a line stays in `line`.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    running.wait_for(output.get_ref().as_fd(), PollFlags::POLLIN)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn set_nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
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
    /// What it says on its standard error: a file in memory, so that it never waits for a reader.
    said: File,
    begun: Instant,
    /// When it was last seen to do something.
    active: Instant,
    /// The CPU time that it had used, and how much it had said, at the last look.
    seen: (u64, u64),
    next_look: Instant,
    next_news: Instant,
}

impl Running {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn spawn(call: &Call<'_>, stdin: Stdio, stdout: Stdio) -> io::Result<Self> {
        let said = File::from(memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC)?);
        let mut command = Command::new(call.program);
        command
            .args(call.arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LC_ALL", "C")
            .envs(call.environment.iter().map(|(name, value)| (name, value)))
            .stdin(stdin)
            .stdout(stdout)
            .stderr(said.try_clone()?)
            .process_group(0);
        end_with_us(&mut command);
        let child = {
            let mut running = running();
            let child = command.spawn()?;
            running.insert(child.id());
            child
        };
        let (ended, end) = mpsc::channel();
        let now = SystemClock.now();
        let running = Self {
            name: call.program.display().to_string(),
            is_reaped: false,
            end,
            said,
            begun: now,
            active: now,
            seen: (0, 0),
            next_look: now + LOOK,
            next_news: now + NEWS,
            child,
        };
        let pid = Pid::from_raw(running.child.id().cast_signed());
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

    /// Waits until the pipe is ready, or an error of it can be read.
    fn wait_for(&mut self, pipe: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
        let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
        loop {
            match poll(&mut [PollFd::new(pipe, events)], timeout) {
                Ok(0) | Err(Errno::EINTR) => self.look()?,
                Ok(_) => {
                    self.active = SystemClock.now();
                    return self.look();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Looks now and then whether it hangs, which is an error.
    fn look(&mut self) -> io::Result<()> {
        let now = SystemClock.now();
        if now < self.next_look {
            return Ok(());
        }
        self.next_look = now + LOOK;
        let pid = self.child.id();
        let seen = (cpu_time(pid), self.said.metadata()?.len());
        if seen != self.seen {
            self.seen = seen;
            self.active = now;
        }
        let (idle, running) = (now - self.active, now - self.begun);
        if idle >= IDLE || running >= LIMIT {
            let what = if idle >= IDLE {
                format!("did nothing for {} s", idle.as_secs())
            } else {
                format!("did not end within {} s", running.as_secs())
            };
            let error = format!(
                "{} {what} and was killed; run it by hand to see why",
                self.name
            );
            return Err(io::Error::new(io::ErrorKind::TimedOut, error));
        }
        if now >= self.next_news {
            self.next_news = now + NEWS;
            let program = &self.name;
            tracing::warn!(
                program,
                pid,
                seconds = running.as_secs(),
                "program is still running"
            );
        }
        Ok(())
    }

    /// Waits for the end.
    fn end(mut self) -> io::Result<Ended> {
        self.active = SystemClock.now();
        while self.end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            self.look()?;
        }
        let status = self.reap()?;
        let mut said = vec![0; SAID];
        let n = self.said.read_at(&mut said, 0)?;
        said.truncate(n);
        Ok(Ended {
            status,
            said: String::from_utf8_lossy(&said).into_owned(),
        })
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
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return 0;
    };
    let times = processes.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<u32>().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let is_meant = fields.get(2)?.parse() == Ok(group);
        let times = fields.get(11..15).filter(|_| is_meant)?;
        Some(
            times
                .iter()
                .filter_map(|time| time.parse::<u64>().ok())
                .sum::<u64>(),
        )
    });
    times.sum()
}

/// The standard input of a program, as its writer sees it. The program is dropped first.
struct Input {
    running: Running,
    pipe: ChildStdin,
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.pipe.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.running
                        .wait_for(self.pipe.as_fd(), PollFlags::POLLOUT)?;
                }
                written => {
                    self.running.active = SystemClock.now();
                    return written;
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

    fn feed(
        script: &str,
        mut write: impl FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Ended> {
        shell(&["-c", script]).feed(&mut write)
    }

    fn lines(script: &str) -> (Vec<String>, Ended) {
        let mut lines = Vec::new();
        let ended = shell(&["-c", script])
            .read(&mut |line| lines.push(line.to_owned()))
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
        let ended = feed(script, |w| {
            (0..20_000).try_for_each(|_| writeln!(w, "{line}"))
        })
        .expect("sh runs");
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
        let ended = feed("wc -c >&2", |w| {
            (0..1_000_000).try_for_each(|_| w.write_all(b"ab\n"))
        })
        .expect("sh runs");
        assert_eq!(ended.said.trim(), "3000000");
    }

    #[test]
    fn a_program_that_stops_reading_is_heard() {
        let ended = feed("read a; echo \"no: $a\" >&2; exit 3", |w| {
            (0..1_000_000).try_for_each(|_| w.write_all(b"word\n"))
        })
        .expect("its message and not the broken pipe");
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.said, "no: word\n");
    }

    #[test]
    fn a_program_that_leaves_well_without_reading_all_is_an_error() {
        let error = feed("exit 0", |w| {
            (0..1_000_000).try_for_each(|_| w.write_all(b"word\n"))
        })
        .expect_err("nobody knows what it did");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_writer_that_fails_ends_the_program() {
        let name = "fails-writer";
        let file = std::env::temp_dir().join(format!("{}-{name}", std::process::id()));
        std::os::unix::fs::symlink("/bin/cat", &file).expect("a program of our own");
        let call = Call {
            program: &file,
            arguments: &[],
            environment: &[],
        };
        let error = call
            .feed(&mut |w| {
                w.write_all(b"first")?;
                Err(io::Error::other("second"))
            })
            .expect_err("the writer's error");
        std::fs::remove_file(&file).expect("the program is there");
        assert_eq!(error.to_string(), "second");
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
        let error = feed("exec 2>&-; sleep 600 & wait", |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let took = SystemClock.now().duration_since(started);
        assert!(took >= IDLE && took < IDLE * 4, "{took:?}");
        // A child of its own that computes is no reason to think that it hangs.
        let script = "(end=$(($(cut -d. -f1 /proc/uptime)+20)); while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do :; done) & wait; echo done >&2";
        let ended = feed(script, |_| Ok(())).expect("it works");
        assert_eq!(ended.said, "done\n");
    }

    #[test]
    fn life_19_what_a_program_started_ends_with_it() {
        let mut pid = 0;
        let error = shell(&["-c", "sleep 600 & echo $!; wait"])
            .read(&mut |line| pid = line.parse().expect("a number"))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
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
