//! Are the licences, sources and advisories of our dependencies acceptable?
//!
//! Invariants: always the same version of cargo-deny, which is built once into `target/tools`; licences, sources and bans must
//! pass anywhere; advisories are checked where their database can be fetched, and the output says where it cannot.

use crate::sh;
use anyhow::Result;
use std::ffi::OsString;
use std::path::PathBuf;

const VERSION: &str = "0.20.2";

/// Checks the dependencies against `deny.toml`.
pub(crate) fn run() -> Result<bool> {
    let program = program()?;
    let rules = sh::echo_run(
        sh::program(&program)
            .arg("--all-features")
            .args(["check", "bans", "licenses", "sources"]),
    )?;
    if !sh::echo_run(sh::program(&program).args(["fetch", "db"]))? {
        eprintln!("cannot fetch the database of advisories: they are not checked here");
        return Ok(rules);
    }
    let advisories = sh::echo_run(sh::program(&program).arg("--all-features").args([
        "check",
        "--disable-fetch",
        "advisories",
    ]))?;
    Ok(rules && advisories)
}

/// The path of cargo-deny in its pinned version, which is built if it is missing.
fn program() -> Result<PathBuf> {
    let tools = sh::root().join("target/tools");
    let built = tools.join("bin/cargo-deny");
    let found = [Some(built.clone()), sh::which("cargo-deny")];
    if let Some(found) = found.into_iter().flatten().find(is_right) {
        return Ok(found);
    }
    // Not optimised: that would take longer than all checks do.
    sh::must_run(
        sh::cargo()
            .args(["install", "cargo-deny", "--version", VERSION])
            .args(["--locked", "--debug", "--root"])
            .arg(&tools)
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_TARGET_DIR", tools.join("build")),
    )?;
    Ok(built)
}

fn is_right(program: &PathBuf) -> bool {
    let version = OsString::from(format!("cargo-deny {VERSION}\n"));
    let output = sh::program(program).arg("--version").output();
    output.is_ok_and(|output| output.stdout == version.as_encoded_bytes())
}
