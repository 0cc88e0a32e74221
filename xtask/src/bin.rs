//! How are the demo and the benchmark started?
//!
//! Both are programs of the proxy-tests package, because they share its namespaces and topology with the tests.

use crate::{setup, sh};
use anyhow::{Result, bail};

/// Builds the daemon and the program `name`, and runs it with the path of the daemon.
pub(crate) fn run(name: &str, args: &[String]) -> Result<bool> {
    let help = args.iter().any(|a| a == "--help" || a == "-h");
    if !help && !sh::is_root() {
        bail!(
            "the {name} makes network namespaces, for which it must be root; try\n  sudo -E env \"PATH=$PATH\" cargo xtask {name} {}",
            args.join(" ")
        );
    }
    setup::ensure()?;
    // The demo takes what `cargo xtask test` builds anyway; a benchmark of a debug build would say nothing.
    let (directory, profile) = if name == "bench" {
        ("release", "release")
    } else {
        ("debug", "dev")
    };
    sh::must_run(sh::cargo().args(["build", "--profile", profile]).args([
        "--package",
        "proxy-daemon",
        "--package",
        "proxy-tests",
        "--bin",
        "proxy-daemon",
        "--bin",
        name,
    ]))?;
    let target = sh::root().join("target").join(directory);
    let mut command = sh::program(target.join(name));
    command
        .args(args)
        .env("PROXY_DAEMON", target.join("proxy-daemon"));
    Ok(command.status()?.success())
}
