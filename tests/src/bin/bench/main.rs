//! The benchmark: how fast and how frugal, against the targets, against no proxy at all, and against a peer.
//!
//! Invariants: everything is seen on sockets and in /proc; proxies that are compared are measured in the same run, in turns; a missed
//! target is printed, and never fails the run.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a measuring tool talks to a person, and stops at once when its ground gives way"
)]

mod bed;
mod probe;
mod report;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use proxy_tests::lab::mode::Mode;
use proxy_tests::netns;

use crate::bed::Subject;
use crate::report::{Report, Target};

/// Measures proxy-daemon in network namespaces: sync, update, churn, memory, connections, packets.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    #[command(flatten)]
    mode: Mode,
    /// Fewer rounds: figures to look at, not to quote
    #[arg(long)]
    quick: bool,
    /// Measure this command in turns with ours; {kubeconfig}, {master}, {node}, {cluster-cidr} and {dir} are filled in.
    /// For example 'kube-proxy --proxy-mode=nftables --kubeconfig={kubeconfig} --hostname-override={node}
    /// --cluster-cidr={cluster-cidr} --conntrack-max-per-core=0'
    #[arg(long, value_name = "CMD")]
    peer: Option<String>,
    /// Only the rows of these groups: sync, memory, update, churn, connect, scale
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// Takes the figures of a group of rows.
type Group = fn(&Plan, &mut Report) -> Result<()>;

/// The command line.
pub(crate) struct Plan {
    /// Ours first.
    subjects: Vec<Subject>,
    rounds: usize,
    quick: bool,
    is_iptables: bool,
}

impl Plan {
    /// The target of our mode: PERF.md has targets of its own for iptables.
    pub(crate) const fn target(&self, usual: Target, of_iptables: Target) -> Target {
        if self.is_iptables { of_iptables } else { usual }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the benchmark makes network namespaces, for which it must be root: try it with sudo"
        );
    }
    let known = ["sync", "memory", "update", "churn", "connect", "scale"];
    if let Some(unknown) = cli.only.iter().find(|o| !known.contains(&o.as_str())) {
        bail!("--only {unknown}: not one of {}", known.join(", "));
    }
    let program = std::env::var_os("PROXY_DAEMON")
        .context("PROXY_DAEMON is not set: run `cargo xtask bench`")?;
    netns::sweep();
    let _directory = Directory::make()?;
    end_on_signal();
    let ours = Subject::Ours {
        program: program.into(),
        mode: cli.mode.clone(),
    };
    let plan = Plan {
        subjects: std::iter::once(ours)
            .chain(cli.peer.clone().map(Subject::Peer))
            .collect(),
        rounds: if cli.quick { 1 } else { 3 },
        quick: cli.quick,
        is_iptables: cli.mode.is_iptables(),
    };
    report::conditions(&cli.mode.name(), &plan, cli.peer.as_deref());
    let mut report = Report::default();
    let wanted = |group: &str| cli.only.is_empty() || cli.only.iter().any(|o| o == group);
    let groups: [(&str, Group); 6] = [
        ("sync", rows::sync),
        ("memory", rows::memory),
        ("update", rows::update),
        ("churn", rows::churn),
        ("connect", rows::connect),
        ("scale", rows::scale),
    ];
    for (name, measure) in groups {
        if wanted(name) {
            measure(&plan, &mut report).with_context(|| format!("while measuring {name}"))?;
        }
    }
    report.print();
    Ok(())
}

/// Where the files of this run are.
pub(crate) fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("proxy-daemon-bench-{}", std::process::id()))
}

struct Directory;

impl Directory {
    fn make() -> Result<Self> {
        std::fs::create_dir_all(directory())?;
        Ok(Self)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(directory()));
    }
}

/// Takes everything down on Ctrl-C or TERM; the proxies die with this process.
fn end_on_signal() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut int = signal(SignalKind::interrupt()).expect("a handler for INT");
            let mut term = signal(SignalKind::terminate()).expect("a handler for TERM");
            tokio::select! { _ = int.recv() => (), _ = term.recv() => () }
        });
        netns::remove_all();
        drop(std::fs::remove_dir_all(directory()));
        eprintln!("everything is taken down");
        std::process::exit(130);
    });
}
