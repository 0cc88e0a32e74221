//! How a test gets a network of its own: named network namespaces, and threads that step into them.
//!
//! Invariants: names are `pd-<pid>-<serial>-<label>`; a namespace goes with its value, also when a test panics; those of dead runs
//! are swept at start. A thread that entered a namespace is back in its own when `enter` returns.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, mpsc};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "pd-";

static SERIAL: AtomicU32 = AtomicU32::new(0);
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A network namespace that `ip netns` also sees.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    /// How many clients were given a port.
    n_clients: AtomicU32,
}

impl Netns {
    /// Makes several namespaces, named after the labels.
    ///
    /// # Errors
    /// When the kernel refuses, which it does without root.
    pub fn create(labels: &[&str]) -> Result<Vec<Self>> {
        fs::create_dir_all(DIRECTORY)?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let paths: Vec<PathBuf> = labels
            .iter()
            .map(|label| {
                Path::new(DIRECTORY)
                    .join(format!("{PREFIX}{}-{serial}-{label}", std::process::id()))
            })
            .collect();
        // A thread of its own, since it leaves its namespace for good.
        thread::spawn(move || paths.into_iter().map(Self::unshare_at).collect())
            .join()
            .expect("the thread that makes namespaces does not panic")
    }

    fn unshare_at(path: PathBuf) -> Result<Self> {
        File::create(&path)?;
        LIVE.lock().unwrap().push(path.clone());
        unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
        let own = "/proc/thread-self/ns/net";
        mount(
            Some(own),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("bind")?;
        let file = File::open(&path)?;
        Ok(Self {
            path,
            file,
            n_clients: AtomicU32::new(0),
        })
    }

    /// The name by which `ip netns exec` knows it.
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Runs a closure inside the namespace, on this thread.
    pub fn enter<T>(&self, inside: impl FnOnce() -> T) -> T {
        let _back = Back::new();
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("setns");
        inside()
    }

    /// A port for a client, which none here had for as long as possible.
    pub fn new_port(&self) -> u16 {
        let n = self.n_clients.fetch_add(1, Ordering::Relaxed) % 28_000;
        33_000 + u16::try_from(n).unwrap_or_default()
    }

    /// Runs a program inside the namespace until it ends.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.enter(|| Command::new(program).args(arguments).output())
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs a program inside the namespace and demands success; returns its output.
    ///
    /// # Errors
    /// When the program ends with anything but 0.
    pub fn check_run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(program, arguments);
        if !output.status.success() {
            bail!(
                "{program} {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Feeds a script to a program inside the namespace and demands success.
    ///
    /// # Errors
    /// When the program ends with anything but 0.
    pub fn feed(&self, program: &str, arguments: &[&str], script: &str) -> Result<()> {
        let mut child = self.enter(|| {
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        })?;
        child
            .stdin
            .take()
            .expect("stdin is piped")
            .write_all(script.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "{program} {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Starts a program inside the namespace that dies when this process does; its output goes to this file or pipe.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(
        &self,
        program: &Path,
        arguments: &[String],
        environment: &[(String, String)],
        log: File,
    ) -> Result<Child> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments);
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let (send, receive) = mpsc::channel();
        let job = Job {
            command,
            file: self.file.try_clone()?,
            send,
        };
        SPAWNER
            .lock()
            .unwrap()
            .send(job)
            .expect("the spawner lives");
        Ok(receive.recv().expect("the spawner answers")?)
    }

    /// Writes a sysctl of the namespace, named with dots.
    ///
    /// # Errors
    /// When the kernel lacks it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::write(&path, value))
            .with_context(|| path.clone())
    }

    /// Reads a sysctl of the namespace.
    ///
    /// # Errors
    /// When the kernel lacks it.
    pub fn read_sysctl(&self, name: &str) -> Result<String> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        Ok(self
            .enter(|| fs::read_to_string(&path))
            .with_context(|| path.clone())?
            .trim()
            .into())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        LIVE.lock().unwrap().retain(|path| *path != self.path);
        remove(&self.path);
    }
}

/// Returns the thread to the namespace it came from.
struct Back(File);

impl Back {
    fn new() -> Self {
        Self(File::open("/proc/thread-self/ns/net").expect("own namespace"))
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
            // Otherwise the next test's packets would be sent in the wrong network.
            std::process::abort();
        }
    }
}

struct Job {
    command: Command,
    file: File,
    send: mpsc::Sender<std::io::Result<Child>>,
}

/// Kernel: the parent-death signal goes off when the *thread* that forked ends, so one thread that never ends forks for all.
static SPAWNER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
    let (send, receive) = mpsc::channel::<Job>();
    thread::spawn(move || {
        for mut job in receive {
            setns(&job.file, CloneFlags::CLONE_NEWNET).expect("setns");
            drop(job.send.send(job.command.spawn()));
        }
    });
    Mutex::new(send)
});

fn remove(path: &Path) {
    // It may never have been mounted.
    let _unmounted = umount2(path, MntFlags::MNT_DETACH);
    drop(fs::remove_file(path));
}

/// Removes the namespaces that runs which are no longer alive left behind.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let Some(Ok(pid)) = pid.map(str::parse::<u32>) else {
            continue;
        };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            remove(&entry.path());
        }
    }
}

/// Removes every namespace of this process; the last thing to happen before it ends.
pub fn remove_all() {
    for path in LIVE.lock().unwrap().drain(..) {
        remove(&path);
    }
}
