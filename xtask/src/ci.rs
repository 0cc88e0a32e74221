//! What must hold before a change lands?

use crate::{setup, sh, test, tidy};
use anyhow::Result;

/// fmt, clippy, tidy, test; all of them, also after one has failed.
pub(crate) fn run() -> Result<bool> {
    setup::ensure()?;
    let fmt = sh::echo_run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    let clippy = sh::echo_run(
        sh::cargo()
            .args([
                "clippy",
                "--workspace",
                "--exclude",
                "proxy-ebpf",
                "--all-targets",
            ])
            .args(["--", "--deny", "warnings"]),
    )?;
    let tidy = tidy::run(&tidy::Options::default())?;
    let test = test::run(&test::Options::default())?;
    Ok(fmt && clippy && tidy && test)
}
