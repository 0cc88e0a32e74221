//! How is a program of the machine run?
//!
//! Invariants: it gets our `PATH`, the C locale and what the caller names, and nothing else of our
//! environment; it runs in the network namespace of the calling thread; neither side can block the
//! other by what it does not read; one that hangs is killed after [`IDLE`]; when a call returns, or panics,
//! the program is gone and reaped, with whatever it started; and however the daemon ends, the program ends
//! with it, so that it cannot write after a successor did.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
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
/// How often one who waits for a program is told so.
pub(crate) const SLOW: Duration = Duration::from_secs(2);

/// How often it is logged that a program has not ended.
const NEWS: Duration = Duration::from_secs(15);
/// After so long it is killed, even if it works.
const LIMIT: Duration = Duration::from_secs(600);
/// After so long it is killed if it neither read, wrote nor computed anything: it hangs.
///
/// Longer than a program waits for the lock of iptables-legacy.
pub(crate) const IDLE: Duration = Duration::from_secs(15);
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
        tracing::debug!(pid, %error, "a program could not be ended");
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
    /// `slow` is called every [`SLOW`] with the process's id and for how long it has been running.
    ///
    /// # Errors
    /// If it cannot be started, if `write` fails (the program is killed then), or if it ends well
    /// before having read everything. That it fails is no error: see [`Ended`].
    pub(crate) fn feed(
        &self,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
        slow: &mut dyn FnMut(u32, Duration),
    ) -> io::Result<Ended> {
        let mut running = Running::spawn(self, Stdio::piped(), Stdio::null(), slow)?;
        let pipe = running.child.stdin.take();
        let mut input = Input::new(&mut running, pipe)?;
        let mut buffer = BufWriter::with_capacity(CHUNK, &mut input);
        let written = write(&mut buffer).and_then(|()| buffer.flush());
        // Taken apart, it does not write the rest when dropped.
        drop(buffer.into_parts());
        let is_lost = input.is_lost;
        // The end of what it reads.
        drop(input);
        match written {
            Err(error) if !is_lost => Err(error),
            written => {
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
        let mut unheard = |_, _| ();
        let mut running = Running::spawn(self, Stdio::null(), Stdio::piped(), &mut unheard)?;
        let mut output = running.child.stdout.take();
        let mut lines = Lines::default();
        let mut chunk = vec![0; CHUNK];
        while let Some(pipe) = &mut output {
            if !running.wait(Some((pipe.as_fd(), PollFlags::POLLIN)))? {
                continue;
            }
            match pipe.read(&mut chunk) {
                Ok(0) => output = None,
                Ok(n) => lines.take(chunk.get(..n).unwrap_or(&[]), each),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        lines.finish(each);
        running.end()
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
            Err(nix::errno::Errno::ESRCH.into())
        }
    };
    #[expect(unsafe_code, reason = "the standard library has no safe way to say it")]
    // SAFETY: between fork and exec, `ask` makes two system calls, and allocates and locks nothing.
    unsafe {
        command.pre_exec(ask);
    }
}

/// A program that runs.
struct Running<'a> {
    name: String,
    /// For how long it has been running when that is logged next.
    news: Duration,
    child: Child,
    stderr: Option<ChildStderr>,
    said: Vec<u8>,
    begun: Instant,
    /// When it was last seen to do something, and the CPU time that it had used then.
    active: Instant,
    cpu_time: u64,
    /// How long its end is waited for, each time, when it has closed its standard error.
    pause: Duration,
    is_reaped: bool,
    /// For how long it has been running when `slow` is called next.
    next: Duration,
    slow: &'a mut dyn FnMut(u32, Duration),
}

impl<'a> Running<'a> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn spawn(
        call: &Call<'_>,
        stdin: Stdio,
        stdout: Stdio,
        slow: &'a mut dyn FnMut(u32, Duration),
    ) -> io::Result<Self> {
        let mut command = Command::new(call.program);
        command
            .args(call.arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LC_ALL", "C")
            .envs(call.environment.iter().map(|(name, value)| (name, value)))
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .process_group(0);
        end_with_us(&mut command);
        let mut child = {
            let mut running = running();
            let child = command.spawn()?;
            running.insert(child.id());
            child
        };
        let begun = SystemClock.now();
        Ok(Self {
            name: call.program.display().to_string(),
            news: NEWS,
            stderr: child.stderr.take(),
            child,
            said: Vec::new(),
            begun,
            active: begun,
            cpu_time: 0,
            pause: Duration::from_millis(1),
            is_reaped: false,
            next: SLOW,
            slow,
        })
    }

    /// Waits until `fd` is ready, which it answers, the program said something, or some time passed.
    fn wait(&mut self, fd: Option<(BorrowedFd<'_>, PollFlags)>) -> io::Result<bool> {
        let now = SystemClock.now();
        let running = now.duration_since(self.begun);
        if running >= self.next {
            self.next = running + SLOW;
            (self.slow)(self.child.id(), running);
            let cpu_time = cpu_time(self.child.id());
            if cpu_time != self.cpu_time {
                self.cpu_time = cpu_time;
                self.active = now;
            }
        }
        let idle = now.duration_since(self.active);
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
        if running >= self.news {
            self.news = running + NEWS;
            let (program, pid) = (&self.name, self.child.id());
            tracing::warn!(program, pid, seconds = running.as_secs(), "still running");
        }
        // One more millisecond, since a timeout is rounded down.
        let mut timeout = self.next.saturating_sub(running) + Duration::from_millis(1);
        if self.stderr.is_none() && fd.is_none() {
            timeout = timeout.min(self.pause);
            self.pause = (self.pause * 2).min(Duration::from_millis(50));
        }
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let (has_said, is_ready) = {
            let stderr = self.stderr.as_ref();
            let stderr = stderr.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            let fd = fd.map(|(fd, events)| PollFd::new(fd, events));
            let has_stderr = stderr.is_some();
            let mut fds: Vec<PollFd<'_>> = stderr.into_iter().chain(fd).collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
            (
                has_stderr && ready.next() == Some(true),
                ready.next() == Some(true),
            )
        };
        if has_said || is_ready {
            self.active = SystemClock.now();
        }
        if has_said {
            self.hear()?;
        }
        Ok(is_ready)
    }

    /// How it ended, if it did.
    fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut running = running();
        let status = self.child.try_wait()?;
        if status.is_some() && !self.is_reaped {
            self.is_reaped = true;
            running.remove(&self.child.id());
        }
        Ok(status)
    }

    /// Whether there is something to hear.
    fn has_said(&self) -> io::Result<bool> {
        let Some(pipe) = &self.stderr else {
            return Ok(false);
        };
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(n) => Ok(n > 0),
            Err(nix::Error::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what the program has said on its standard error.
    fn hear(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.stderr else {
            return Ok(());
        };
        let mut chunk = [0; 4096];
        match pipe.read(&mut chunk) {
            Ok(0) => self.stderr = None,
            Ok(n) => {
                let room = SAID.saturating_sub(self.said.len()).min(n);
                self.said.extend(chunk.get(..room).unwrap_or(&[]));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Waits for the end.
    ///
    /// Its standard error is closed when it ends, so there is nothing to look at again and again.
    fn end(mut self) -> io::Result<Ended> {
        loop {
            if let Some(status) = self.reap()? {
                while self.has_said()? {
                    self.hear()?;
                }
                return Ok(Ended {
                    status,
                    said: String::from_utf8_lossy(&self.said).into_owned(),
                });
            }
            self.wait(None)?;
        }
    }

    /// Ends it, and waits a moment for that.
    fn kill(&mut self) -> io::Result<()> {
        kill_group(self.child.id());
        let begun = SystemClock.now();
        while self.reap()?.is_none() {
            if SystemClock.now().duration_since(begun) >= REAP {
                let (program, pid) = (&self.name, self.child.id());
                tracing::warn!(
                    program,
                    pid,
                    "was killed and has not ended: the kernel does not let it go; look what it waits for in /proc/PID/stack"
                );
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Running<'_> {
    /// Ends and reaps the program if that has not happened.
    fn drop(&mut self) {
        if !self.is_reaped
            && let Err(error) = self.kill()
        {
            tracing::debug!(%error, "a program could not be ended");
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

/// The standard input of a program, as its writer sees it.
struct Input<'a, 'b> {
    running: &'a mut Running<'b>,
    pipe: Option<ChildStdin>,
    /// Whether the program ended, or closed its input, before it had read everything.
    is_lost: bool,
}

impl<'a, 'b> Input<'a, 'b> {
    fn new(running: &'a mut Running<'b>, pipe: Option<ChildStdin>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            // So that a program that talks instead of reading can be listened to.
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            running,
            pipe,
            is_lost: false,
        })
    }
}

impl Write for Input<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(pipe) = &mut self.pipe else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        loop {
            match pipe.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.running
                        .wait(Some((pipe.as_fd(), PollFlags::POLLOUT)))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_lost = error.kind() == io::ErrorKind::BrokenPipe;
                    return Err(error);
                }
                Ok(n) => {
                    self.running.active = SystemClock.now();
                    return Ok(n);
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts what is read into lines.
#[derive(Default)]
struct Lines {
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(line) if self.rest.is_empty() => each(&String::from_utf8_lossy(line)),
                Some(line) => {
                    self.rest.extend(line);
                    each(&String::from_utf8_lossy(&self.rest));
                    self.rest.clear();
                }
                None => self.rest.extend(part),
            }
        }
    }

    fn finish(self, each: &mut dyn FnMut(&str)) {
        if !self.rest.is_empty() {
            each(&String::from_utf8_lossy(&self.rest));
        }
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
        shell(&["-c", script]).feed(&mut write, &mut |_, _| ())
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
            .feed(
                &mut |w| {
                    w.write_all(b"first")?;
                    Err(io::Error::other("second"))
                },
                &mut |_, _| (),
            )
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
    fn one_who_waits_is_told_so() {
        let mut told = Vec::new();
        let ended = shell(&["-c", "read a; sleep 4.5; echo $a >&2"])
            .feed(&mut |w| w.write_all(b"a\n"), &mut |pid, running| {
                assert!(Path::new(&format!("/proc/{pid}")).exists());
                told.push(running.as_secs());
            })
            .expect("sh runs");
        assert_eq!(told, [2, 4]);
        assert_eq!(ended.said, "a\n");
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
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        assert!(stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ")));
    }
}
