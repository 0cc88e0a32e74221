//! The demo: a small cluster in network namespaces, the real daemon in its node, and where requests went.
//!
//! Invariants: results come from sockets, never from the daemon; nothing is left behind, also after Ctrl-C or a
//! panic; with `--keep` everything belongs to one background process, and ends with it.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a demonstration talks to a person, and stops at once when its ground gives way"
)]

mod cluster;
mod keep;
mod report;
mod scenes;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use proxy_tests::address::Site;
use proxy_tests::lab::mode::Mode;
use proxy_tests::netns;
use proxy_tests::topology::{Pods, Topology};

/// Shows proxy-daemon at work in a small cluster of network namespaces.
#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
struct Cli {
    #[command(flatten)]
    mode: Mode,
    /// Leave the cluster up, and say how to look around in it
    #[arg(long)]
    keep: bool,
    /// Remove a cluster that was left up
    #[arg(long, conflicts_with = "keep")]
    down: bool,
    /// Be the background process of --keep
    #[arg(long, hide = true)]
    hold: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = if !nix::unistd::geteuid().is_root() {
        Err(anyhow::anyhow!(
            "the demo makes network namespaces, for which it must be root: try it with sudo"
        ))
    } else if cli.down {
        keep::down()
    } else if cli.keep {
        keep::start(&cli.mode)
    } else {
        run(&cli)
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the cluster, shows it, removes it; whether all results were as expected.
fn run(cli: &Cli) -> Result<bool> {
    if cli.hold {
        // A session of its own, so that it outlives the terminal it was started from.
        nix::unistd::setsid().context("setsid")?;
    }
    netns::sweep();
    let directory = Directory::make()?;
    end_on_signal(directory.0.clone());
    let cluster = Cluster::up(&cli.mode, &directory.0)?;
    let as_expected = scenes::show(&cluster)?;
    if cli.hold {
        keep::hold(&cluster, as_expected)?;
    }
    Ok(as_expected)
}

/// The processes and namespaces of a running demo.
pub(crate) struct Cluster {
    topology: Topology,
    /// Where the manifests are.
    manifests: PathBuf,
    /// Where a manifest is written before it is renamed into place.
    staging: PathBuf,
    log: PathBuf,
    daemon: Child,
    mode: Mode,
}

impl Cluster {
    fn up(mode: &Mode, directory: &Path) -> Result<Self> {
        let topology = report::step("a node, its pods, another node, a client outside", || {
            let topology = Topology::build(Pods::PointToPoint)?;
            cluster::serve(&topology)?;
            Ok(topology)
        })?;
        let (manifests, staging) = (directory.join("manifests"), directory.join("staging"));
        report::step(&format!("manifests in {}", manifests.display()), || {
            fs::create_dir_all(&manifests)?;
            fs::create_dir_all(&staging)?;
            for (name, text) in cluster::MANIFESTS {
                fs::write(manifests.join(name), text)?;
            }
            Ok(())
        })?;
        let log = directory.join("proxy-daemon.log");
        let mut command = mode.flags();
        let rest = [
            "--manifests",
            &manifests.display().to_string(),
            "--cluster-cidr",
            cluster::CLUSTER_CIDR,
            "--hostname-override",
            cluster::NODE,
        ];
        command.extend(rest.map(str::to_owned));
        println!("  $ proxy-daemon {}", command.join(" "));
        let program = std::env::var_os("PROXY_DAEMON")
            .context("PROXY_DAEMON is not set: run `cargo xtask demo`")?;
        let daemon = topology.site(Site::N).spawn(
            Path::new(&program),
            &command,
            &[],
            File::create(&log)?,
        )?;
        let mut cluster = Self {
            topology,
            manifests,
            staging,
            log,
            daemon,
            mode: mode.clone(),
        };
        report::step("the daemon answers for every Service", || {
            cluster.wait_until_ready()
        })?;
        Ok(cluster)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !scenes::is_ready(self) {
            if let Some(status) = self.daemon.try_wait()? {
                bail!(
                    "the daemon ended with {status}; its log:\n{}",
                    self.log_tail()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the daemon did not come up within 20 s; its log:\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // By its id; it may have ended by itself.
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}

/// A directory that is removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("proxy-daemon-demo-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Takes everything down on Ctrl-C or TERM; the daemon dies with this process.
fn end_on_signal(directory: PathBuf) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let number = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut int = signal(SignalKind::interrupt()).expect("a handler for INT");
            let mut term = signal(SignalKind::terminate()).expect("a handler for TERM");
            tokio::select! { _ = int.recv() => 2, _ = term.recv() => 15 }
        });
        netns::remove_all();
        drop(fs::remove_dir_all(directory));
        keep::forget();
        eprintln!("everything is taken down");
        std::process::exit(128 + number);
    });
}
