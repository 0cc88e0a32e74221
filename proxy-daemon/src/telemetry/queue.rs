//! What happens to log lines while nobody reads standard error?
//!
//! Lines go into a buffer, and a thread writes them. Invariants: adding a line never blocks; the buffer holds at
//! most [`LIMIT`] bytes, and as many again are being written; a line that does not fit is dropped and counted,
//! and the count is logged once the reader continues.
//!
//! `tracing-appender` does this too, but it counts lines instead of bytes, and when it ends beside a
//! reader that hangs, it prints on standard output, which often is the same pipe.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Size of the buffer.
const LIMIT: usize = 1 << 20;

/// The lines that are not written yet. All clones are the same queue.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rings when there is something to write, and when all is written.
    bell: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    n_lost: u64,
    /// The thread that writes, whose own lines have a place in any case.
    writer: Option<ThreadId>,
}

impl Queue {
    /// A queue whose thread writes to standard error.
    ///
    /// # Errors
    /// If standard error is closed or no thread can be started.
    pub(super) fn start() -> io::Result<Self> {
        // Not through `io::stderr()`, whose lock the thread would keep while it waits for the reader.
        let to = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::start_to(to, LIMIT, |n_lost| {
            tracing::warn!(
                n_lost,
                "dropped log lines: the reader of standard error is too slow"
            );
        })
    }

    fn start_to(to: File, limit: usize, report: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        let queue = Self(Arc::new(Shared {
            state: Mutex::default(),
            bell: Condvar::new(),
            limit,
        }));
        let shared = Arc::clone(&queue.0);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_all(to, &report))?;
        Ok(queue)
    }

    /// Adds a line, which ends with its end.
    pub(super) fn add(&self, line: &[u8]) {
        let mut state = self.0.lock();
        let is_writers = state.writer == Some(std::thread::current().id());
        if state.waiting.len() + line.len() > self.0.limit && !is_writers {
            state.n_lost += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        self.0.bell.notify_all();
    }

    /// Waits until everything is written, but not for longer than this.
    pub(super) fn flush(&self, patience: Duration) {
        let state = self.0.lock();
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        drop(self.0.bell.wait_timeout_while(state, patience, is_busy));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn write_all(&self, mut to: File, report: &dyn Fn(u64)) {
        let mut lines = Vec::new();
        self.lock().writer = Some(std::thread::current().id());
        loop {
            let mut state = self.lock();
            state.is_writing = false;
            self.bell.notify_all();
            while state.waiting.is_empty() {
                state = self
                    .bell
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.is_writing = true;
            lines.clear();
            std::mem::swap(&mut lines, &mut state.waiting);
            drop(state);
            if write(&mut to, &lines).is_err() {
                // The reader is gone. Who comes after it is told how much it missed.
                self.lock().n_lost += count(&lines);
                continue;
            }
            let n_lost = std::mem::take(&mut self.lock().n_lost);
            if n_lost > 0 {
                report(n_lost);
            }
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    let n = memchr::memchr_iter(b'\n', lines).count();
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Writes all, also if somebody made standard error non-blocking, which it then is for all who share it.
fn write(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or(&[]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a subscriber writes one event to.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::OwnedFd;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
    }

    #[test]
    fn life_18_lines_beyond_the_limit_are_lost_and_counted() {
        let (mut reader, mut writer) = pipe();
        // A full pipe, so that nothing is written, and no loss reported, before all lines were added.
        let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
        let mut filled = vec![0; usize::try_from(size).unwrap()];
        writer.write_all(&filled).unwrap();
        let (report, reports) = std::sync::mpsc::channel();
        let queue = Queue::start_to(writer, 10_000, move |n| report.send(n).unwrap()).unwrap();
        let line = format!("{}\n", "x".repeat(99));
        // More than the pipe, what is being written and what waits hold together.
        for _ in 0..10_000 {
            queue.add(line.as_bytes());
        }
        let n_lost = {
            let state = queue.0.lock();
            assert!(state.waiting.len() <= 10_000, "{}", state.waiting.len());
            state.n_lost
        };
        assert!(n_lost > 8_000, "{n_lost}");
        reader.read_exact(&mut filled).unwrap();
        let kept = usize::try_from(10_000 - n_lost).unwrap() * line.len();
        let mut read = vec![0; kept];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(reports.recv_timeout(PATIENCE), Ok(n_lost));
        queue.flush(PATIENCE);
        // The reader is back, and what comes now arrives.
        queue.add(b"after\n");
        let mut read = vec![0; 6];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(read, b"after\n");
    }

    #[test]
    fn life_18_a_flush_waits_for_a_reader_but_not_for_ever() {
        let (mut reader, writer) = pipe();
        let queue = Queue::start_to(writer, LIMIT, |_| ()).unwrap();
        queue.add(b"one\n");
        queue.flush(PATIENCE);
        let mut read = [0; 4];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one\n");
        queue.add(&vec![b'x'; 1 << 19]);
        queue.flush(Duration::from_millis(1));
        let state = queue.0.lock();
        assert!(state.is_writing || !state.waiting.is_empty());
    }

    #[test]
    fn life_18_what_a_reader_that_is_gone_missed_is_counted() {
        let (reader, writer) = pipe();
        drop(reader);
        let queue = Queue::start_to(writer, LIMIT, |_| ()).unwrap();
        queue.add(b"one\ntwo\n");
        queue.flush(PATIENCE);
        assert_eq!(queue.0.lock().n_lost, 2);
    }
}
