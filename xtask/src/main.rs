//! Every command of the project: `cargo xtask <verb>`.
//!
//! Invariants: builds without any system library, because it installs them; each verb that needs system packages checks
//! them itself, so that `setup` need not be called; CI runs these verbs and nothing else.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks on stdout and stderr"
)]

mod bin;
mod build;
mod ci;
mod deny;
mod ebpf;
mod setup;
mod sh;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The commands of proxy-daemon's repository.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the system packages that are missing (the other verbs do this by themselves)
    Setup,
    /// Build the daemon, optimised, and say where it is
    Build,
    /// Run every test: units, and behaviour in network namespaces (needs root); ends with `N passed, M failed`
    Test(test::Options),
    /// Show the daemon at work in a small cluster of network namespaces (needs root)
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on to the demo; see `cargo xtask demo --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure, and compare with the targets and with a peer (needs root)
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the benchmark; see `cargo xtask bench --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build, check or verify the eBPF programs
    #[command(subcommand)]
    Ebpf(ebpf::Verb),
    /// Check rules that the compiler does not: imports, SPEC IDs, module docs, unsafe, the tree
    Tidy(tidy::Options),
    /// Check licences, sources and advisories of what we depend on (builds cargo-deny at the first time)
    Deny,
    /// All checks before a change lands: fmt, clippy, tidy, docs, deny, test
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build => build::run(),
        Verb::Test(options) => test::run(&options),
        Verb::Demo { args } => bin::run("demo", &args),
        Verb::Bench { args } => bin::run("bench", &args),
        Verb::Ebpf(verb) => ebpf::run(&verb),
        Verb::Tidy(options) => tidy::run(&options),
        Verb::Deny => deny::run(),
        Verb::Ci => ci::run(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        // The reason was already printed; the summary of `test` must be the last line of stdout.
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
