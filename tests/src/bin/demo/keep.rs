//! How does the cluster stay up after the show, and how does it go away?
//!
//! The show runs in a background process of its own session, which holds namespaces, servers and daemon: when it ends, all of
//! it ends. A file names that process. Invariant: only a process that is this demo is ever asked to end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_tests::address::Site;
use proxy_tests::lab::mode::Mode;

use crate::Cluster;

/// Where the background process is named: its id, and whether the show went well.
const STATE: &str = "/run/proxy-daemon-demo";

/// Starts the background process and waits until its show is over.
pub(crate) fn start(mode: &Mode) -> Result<bool> {
    if let Some(pid) = holder() {
        bail!("a demo is up already, in process {pid}; `cargo xtask demo --down` removes it");
    }
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--hold")
        .args(mode.flags())
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start the background process")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    // Ctrl-C reaches this process only: pass it on, so that everything is taken down.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        drop(runtime.block_on(tokio::signal::ctrl_c()));
        if let Err(e) = kill(pid, Signal::SIGTERM) {
            eprintln!("cannot end process {pid}: {e}");
        }
    });
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if let Some((holder, good)) = state()
            && holder == pid.as_raw()
        {
            return Ok(good);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Prints how to look around, detaches from the terminal, and runs until it is asked to end.
pub(crate) fn hold(cluster: &Cluster, good: bool) -> Result<()> {
    let node = cluster.topology.site(Site::N).name();
    let (pod, outside) = (
        cluster.topology.site(Site::P1).name(),
        cluster.topology.site(Site::X).name(),
    );
    let daemon = std::env::var("PROXY_DAEMON").unwrap_or_default();
    println!("\nThe cluster stays up. Look around:");
    let programmed = cluster.mode.show().iter().map(|command| {
        (
            format!("ip netns exec {node} {command}"),
            "what it programmed",
        )
    });
    let before = [
        (
            format!("ip netns exec {pod} curl -s http://10.96.0.10/"),
            "pod-1 asks shop/web",
        ),
        (
            format!("ip netns exec {outside} curl -s http://192.0.2.2:30080/"),
            "outside asks its NodePort",
        ),
        (
            format!("ip netns exec {node} {daemon} dump"),
            "what the daemon means to do",
        ),
        (
            format!(
                "ip netns exec {node} {daemon} explain --from 203.0.113.7 --to 192.0.2.2 --port 30080 --interface up0"
            ),
            "where a packet goes, and why",
        ),
    ];
    let after = [
        (
            format!("ip netns exec {node} conntrack -L"),
            "the connections translated so far",
        ),
        (
            format!("ls {}", cluster.manifests.display()),
            "edit them: the daemon follows",
        ),
        (format!("tail -f {}", cluster.log.display()), "its log"),
    ];
    for (command, what) in before.into_iter().chain(programmed).chain(after) {
        println!("  # {what}\n  {command}");
    }
    println!("Remove it:\n  cargo xtask demo --down");
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    fs::write(STATE, format!("{} {good}\n", std::process::id()))?;
    loop {
        // The thread that waits for signals ends the process.
        std::thread::park();
    }
}

/// Ends the background process, and waits until it has taken everything down.
pub(crate) fn down() -> Result<bool> {
    let Some(pid) = holder() else {
        forget();
        println!("no demo is up");
        return Ok(true);
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_demo(pid) {
        if Instant::now() > deadline {
            bail!("process {pid} does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("everything is taken down");
    Ok(true)
}

/// Removes the file, if it is about this process or one that is gone.
pub(crate) fn forget() {
    let ours = state().is_some_and(|(pid, _)| u32::try_from(pid) == Ok(std::process::id()));
    if ours || holder().is_none() {
        drop(fs::remove_file(STATE));
    }
}

/// The background process, if there is one.
fn holder() -> Option<i32> {
    state().map(|(pid, _)| pid).filter(|pid| is_demo(*pid))
}

fn state() -> Option<(i32, bool)> {
    let text = fs::read_to_string(STATE).ok()?;
    let (pid, good) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, good == "true"))
}

/// Whether the process is a demo that holds a cluster, and not another that got its number.
fn is_demo(pid: i32) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let program = fs::read_link(proc.join("exe")).unwrap_or_default();
    // A binary that was built anew meanwhile is listed as deleted.
    let name = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let holds = fs::read(Path::new(&proc).join("cmdline")).unwrap_or_default();
    name.starts_with("demo") && holds.windows(6).any(|w| w == b"--hold")
}
