//! Which checks must pass before a change lands?

use crate::{deny, setup, sh, test, tidy};
use anyhow::Result;

/// fmt, clippy, tidy, docs, deny, test; all of them, also after one has failed.
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
    let docs = sh::echo_run(
        sh::cargo()
            .args(["doc", "--workspace", "--exclude", "proxy-ebpf", "--no-deps"])
            .arg("--document-private-items")
            .env(
                "RUSTDOCFLAGS",
                "--deny warnings --allow rustdoc::private_intra_doc_links",
            ),
    )?;
    let deny = deny::run()?;
    let test = test::run(&test::Options::default())?;
    Ok(fmt && clippy && tidy && docs && deny && test)
}
