//! Does the daemon come through whatever strangers, an API server and a node do to it, one after the other and in any order?
//!
//! The real daemon follows a cluster that changes all the time while faults are drawn: damage to its rules, kills, an API server
//! that misbehaves, a node in trouble. After each, every frontend that does not change must answer within the time that the
//! specification gives, and the kernel must hold what a daemon writes that had none of these faults.
//!
//! `FAULTS_SECONDS` is how long each datapath is tried, `FAULTS_SEED` repeats a sequence of faults, `FAULTS_ONLY` draws only those
//! whose name contains it. In reading order: `run` is the loop, `faults` and [`proxy_tests::damage`] what can happen, `cluster` what
//! changes, `witness` what must answer, `reference` what the kernel must hold, `report` what was measured. Needs root.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::unnecessary_wraps,
    reason = "a test; every fault has the signature of those that can fail"
)]

mod cluster;
mod faults;
mod helpers;
mod reference;
mod report;
mod run;
mod servers;
mod witness;

use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use proxy_tests::datapath::Datapath;
use proxy_tests::dice;

/// The default time for each datapath.
const SECONDS: u64 = 120;

fn main() {
    let seconds = variable("FAULTS_SECONDS").unwrap_or(SECONDS);
    let seed = dice::seed("FAULTS_SEED");
    let trials = Datapath::ALL.map(|datapath| {
        let name = format!(
            "sync_9_life_3_life_5_whatever_happens_every_frontend_answers/{}",
            datapath.name()
        );
        let settings = run::Settings {
            datapath,
            seed,
            duration: Duration::from_secs(seconds),
        };
        Trial::test(name, move || run::run(&settings).map_err(Failed::from))
    });
    // They wait more than they work.
    proxy_tests::matrix::run(trials.into(), Datapath::ALL.len(), || {});
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value}: not a number")),
    )
}
