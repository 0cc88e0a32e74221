//! Which checks must pass before a change lands?

use crate::{deny, ebpf, setup, sh, test, tidy};
use anyhow::Result;

/// fmt, clippy, tidy, docs, deny, the eBPF object, test; all of them, also after one has failed.
pub(crate) fn run() -> Result<bool> {
    setup::ensure()?;
    let fmt = sh::echo_run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    let clippy = sh::echo_run(
        sh::cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--", "--deny", "warnings"]),
    )?;
    let tidy = tidy::run(&tidy::Options::default())?;
    let docs = sh::echo_run(
        sh::cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .arg("--document-private-items")
            .env(
                "RUSTDOCFLAGS",
                "--deny warnings --allow rustdoc::private_intra_doc_links",
            ),
    )?;
    let deny = deny::run()?;
    let ebpf = ebpf::rebuild()?;
    let test = test::run(&test::Options::with_object(ebpf::built()))?;
    Ok(fmt && clippy && tidy && docs && deny && ebpf && test)
}
