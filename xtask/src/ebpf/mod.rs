//! How is the eBPF object built, and is the committed one that of the sources?
//!
//! The object is committed, so that nobody needs its toolchain to build or run the daemon; a file beside it
//! says what it was built from and with. Invariants: the same sources and tools give the same bytes, wherever
//! they lie; an object with a path to a panic is not accepted; what only this verb needs is installed by it.

mod build;
mod record;

pub(crate) use build::path as built;
pub(crate) use record::problems;

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::sh;
use record::Record;

/// What to do with the eBPF programs.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Build the object from its sources and put it where it is committed (installs its toolchain)
    Build,
    /// Check that the committed object is that of the sources (needs no toolchain)
    Check,
    /// Show how many instructions the kernel's verifier goes through (needs root)
    Verify,
}

/// Runs the verb.
pub(crate) fn run(verb: &Verb) -> Result<bool> {
    match verb {
        Verb::Build => {
            let fresh = build::fresh()?;
            fresh.commit()?;
            println!("{}", record::object().display());
            Ok(true)
        }
        Verb::Check => {
            let problems = problems()?;
            for problem in &problems {
                println!("{problem}");
            }
            Ok(problems.is_empty())
        }
        Verb::Verify => verify(),
    }
}

/// What CI asks for: builds the object anew, compares it, and leaves it where the tests find it.
///
/// Where the toolchain is not the one that the committed object was built with, other bytes are no fault: the
/// tests run on the fresh object, and the output says so.
pub(crate) fn rebuild() -> Result<bool> {
    let fresh = build::fresh()?;
    let committed = Record::read()?;
    if fresh.record == committed {
        println!("the eBPF object is that of its sources");
        return Ok(true);
    }
    if fresh.record.tools == committed.tools {
        println!(
            "the committed eBPF object is not what its sources give: run `cargo xtask ebpf build`, and commit it"
        );
        return Ok(false);
    }
    println!(
        "the eBPF object was built with other tools ({} here, {} then); the tests run on the one built here",
        fresh.record.tools, committed.tools
    );
    Ok(fresh.record.sources == committed.sources)
}

/// Loads each program and asks the kernel.
fn verify() -> Result<bool> {
    if !sh::is_root() {
        bail!("not root: only root may load programs; try with sudo");
    }
    sh::echo_run(
        sh::cargo()
            .args(["run", "--quiet", "--package", "proxy-tests"])
            .args(["--bin", "verify-programs"]),
    )
}
