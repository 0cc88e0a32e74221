//! How a test runs the real daemon, and how it knows that its manifests are in effect.
//!
//! Invariants: manifests are replaced whole, then a token beside them, and the daemon reports the token once every
//! family has programmed a state read at or after it. The daemon dies with this process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::address::NODE_NAME;
use crate::datapath::Datapath;
use crate::netns::Netns;
use crate::world::World;

/// How long a change may take to be in effect, on a machine that runs several tests at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the daemon answers questions of its own node.
pub const LOCAL_SERVER: &str = "127.0.0.1:10249";

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// The flags that every test's daemon gets, before its own.
pub fn usual_flags() -> Vec<String> {
    [
        &format!("--hostname-override={NODE_NAME}"),
        "--cluster-cidr=10.244.0.0/16,fd00:244::/48",
        // Tests look at every single change.
        "--iptables-min-sync-period=0s",
        // Kernel: nf_conntrack_max cannot be written in a network namespace.
        "--conntrack-max-per-core=0",
        "--v=2",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Where the daemon's binary is: `$PROXY_DAEMON`, or beside this executable.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("PROXY_DAEMON") {
        return path.into();
    }
    let own = std::env::current_exe().expect("the own path");
    let directory = own
        .parent()
        .and_then(Path::parent)
        .expect("target/debug/deps/behaviour-…");
    directory.join("proxy-daemon")
}

/// Puts a flag in the place of that of the same name.
fn put(flags: &mut Vec<String>, flag: &str) {
    let key = flag.split('=').next().unwrap_or(flag);
    flags.retain(|old| old.split('=').next() != Some(key));
    flags.push(flag.to_owned());
}

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new() -> Result<Self> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("pd-{}-{serial}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// Removes those of this process; the last thing to happen before it ends.
    pub fn remove_all() {
        Self::remove(|pid| pid == std::process::id());
    }

    /// Removes those that runs which are no longer alive left behind.
    pub fn sweep() {
        Self::remove(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    }

    /// Removes those of these processes.
    fn remove(of: impl Fn(u32) -> bool) {
        let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix("pd-").and_then(|it| it.split('-').next());
            if pid.and_then(|pid| pid.parse().ok()).is_some_and(&of) {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces a file at once.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let new = self.path.join(format!(".{name}.new"));
        fs::write(&new, content)?;
        fs::rename(&new, self.path.join(name))?;
        Ok(())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}

/// The daemon in a namespace, fed from a directory.
#[derive(Debug)]
pub struct Daemon {
    manifests: Directory,
    private: Directory,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    token: String,
    /// Where it logs, if not into its file.
    log_to: Option<File>,
    /// The program, and its arguments, that starts it.
    prefix: Vec<String>,
}

impl Daemon {
    /// Prepares a daemon that runs with these flags besides the usual ones; `--manifests` and the flags of the datapath are added.
    ///
    /// # Errors
    /// When there is no place for its files.
    pub fn new(mode: &str, flags: &[String]) -> Result<Self> {
        let manifests = Directory::new()?;
        let mut all = Self::all_flags(mode, flags);
        all.push(format!("--manifests={}", manifests.path().display()));
        let private = Directory::new()?;
        Ok(Self {
            manifests,
            private,
            flags: all,
            environment: Vec::new(),
            child: None,
            token: String::new(),
            log_to: None,
            prefix: Vec::new(),
        })
    }

    /// The usual flags with these over them.
    pub fn all_flags(mode: &str, flags: &[String]) -> Vec<String> {
        let mut all = usual_flags();
        // The oracle has none.
        all.extend(Datapath::named(mode).into_iter().flat_map(Datapath::flags));
        for flag in flags {
            put(&mut all, flag);
        }
        all
    }

    /// Replaces the flags that begin alike, and adds the others; they count from the next start.
    pub fn set_flags(&mut self, flags: &[&str]) {
        for flag in flags {
            put(&mut self.flags, flag);
        }
    }

    /// Takes the flags of this name away; counts from the next start.
    pub fn remove_flag(&mut self, name: &str) {
        self.flags
            .retain(|flag| flag.split('=').next() != Some(name));
    }

    /// The flags it starts with.
    pub fn flags(&self) -> &[String] {
        &self.flags
    }

    /// Puts a variable into its environment; counts from the next start.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.retain(|(old, _)| old != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Has it log there instead of into its file (`None`); counts from the next start.
    pub fn log_to(&mut self, log: impl Into<Option<File>>) {
        self.log_to = log.into();
    }

    /// Has this program, with these arguments, start it from the next start on.
    pub fn set_prefix(&mut self, words: &[&str]) {
        self.prefix = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// The id of its process.
    ///
    /// # Panics
    /// When it was not started.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// The directory of the manifests.
    pub fn manifests(&self) -> &Directory {
        &self.manifests
    }

    /// Replaces the manifests, without waiting.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn publish(&mut self, world: &World) -> Result<()> {
        self.publish_quietly(world)?;
        self.token = format!("token-{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        self.manifests.write(".token", &self.token)
    }

    /// Replaces the manifests without a new token: the daemon has nothing to report, and so need not sync.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn publish_quietly(&mut self, world: &World) -> Result<()> {
        self.manifests
            .write("cluster.yaml", &world.manifest().to_string())
    }

    /// Starts it, without waiting.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn start(&mut self, ns: &Netns) -> Result<()> {
        let binary = binary();
        if !binary.exists() {
            bail!(
                "{} is missing: cargo build -p proxy-daemon",
                binary.display()
            );
        }
        let log = match &self.log_to {
            Some(log) => log.try_clone()?,
            None => File::options()
                .create(true)
                .append(true)
                .open(self.log_path())?,
        };
        let daemon = [binary.display().to_string()];
        let words = self.prefix.iter().chain(&daemon).chain(&self.flags);
        let words: Vec<String> = words.cloned().collect();
        let (program, arguments) = words.split_first().context("there is a program")?;
        let child = ns.spawn(Path::new(program), arguments, &self.environment, log)?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the last published manifests are in effect.
    ///
    /// # Errors
    /// When it ends instead, or takes too long.
    pub fn settle(&mut self, ns: &Netns) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                bail!("the daemon ended with {status}:\n{}", self.log());
            }
            last = match http_json(ns, LOCAL_SERVER, "/debug/sync") {
                Ok(answer) if answer["token"] == self.token.as_str() => return Ok(()),
                Ok(answer) => answer.to_string(),
                Err(error) => format!("{error:#}"),
            };
            thread::sleep(Duration::from_millis(3));
        }
        bail!(
            "{} is not in effect, /debug/sync says {last}\n{}",
            self.token,
            self.log()
        )
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("the daemon was not started")?;
        Ok(child.try_wait()?)
    }

    /// Sends it a signal and waits for its end.
    ///
    /// # Errors
    /// When it is still there after ten seconds.
    pub fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the daemon was not started")?;
        kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(3));
        }
        bail!("still there after {signal}")
    }

    /// Stops it where it is, or lets it go on.
    pub fn pause(&self, pause: bool) {
        let child = self.child.as_ref().expect("the daemon runs");
        let signal = if pause {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("the daemon runs");
    }

    /// Whether it was started and not stopped.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The file of its log.
    pub fn log_path(&self) -> PathBuf {
        self.private.path().join("daemon.log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// GETs a path from inside a namespace; the status line's code and the body.
///
/// # Errors
/// When there is no answer.
pub fn http(ns: &Netns, address: &str, path: &str) -> Result<(u16, String)> {
    let address: SocketAddr = address.parse()?;
    let second = Duration::from_secs(1);
    let mut stream = ns.enter(|| TcpStream::connect_timeout(&address, second))?;
    stream.set_read_timeout(Some(second))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((code, body.to_owned()))
}

/// GETs a JSON document from inside a namespace.
///
/// # Errors
/// When there is no answer, or it is not JSON.
pub fn http_json(ns: &Netns, address: &str, path: &str) -> Result<Value> {
    let (code, body) = http(ns, address, path)?;
    serde_json::from_str(&body).with_context(|| format!("{code} {body}"))
}
