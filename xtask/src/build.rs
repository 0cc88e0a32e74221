//! How is the daemon built?

use crate::{setup, sh};
use anyhow::Result;

/// Builds the daemon with optimisation and says where it is.
pub(crate) fn run() -> Result<bool> {
    setup::ensure()?;
    sh::must_run(sh::cargo().args(["build", "--release", "--package", "proxy-daemon"]))?;
    println!(
        "{}",
        sh::root().join("target/release/proxy-daemon").display()
    );
    Ok(true)
}
