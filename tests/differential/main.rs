//! Does the kernel do what the oracle says, for any cluster and any packet?
//!
//! Random clusters are compiled and programmed one after the other into the same namespace, so that each step is an update of the
//! one before; after each, random packets are sent through it and compared with [`proxy_daemon::forwarding::Oracle`]. A failure
//! shrinks to a small cluster and one packet. Needs root.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod cluster;
mod compare;
mod lab;
mod probe;

use libtest_mimic::{Arguments, Failed, Trial};
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use proxy_daemon::datapath::PlaneFamily;
use proxy_daemon::net::{V4, V6};

use compare::States;
use proxy_tests::address;
use proxy_tests::datapath::Datapath;

/// Seeds of earlier failures on any datapath, replayed first on each.
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/differential.txt");

/// Unit: sequences of clusters for each datapath and family. A program that iptables starts costs as much as a whole step does
/// over netlink.
fn cases(datapath: Datapath) -> u32 {
    let runs_programs = !datapath.programs(address::Family::V4).is_empty();
    if runs_programs { 100 } else { 150 }
}

fn main() {
    proxy_tests::netns::sweep();
    let arguments = Arguments::from_args();
    let trials = Datapath::ALL
        .into_iter()
        .flat_map(|datapath| [trial::<V4>(datapath, "v4"), trial::<V6>(datapath, "v6")])
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    proxy_tests::netns::remove_all();
    conclusion.exit();
}

fn trial<F: PlaneFamily + cluster::Pool + States>(datapath: Datapath, family: &str) -> Trial {
    let on = datapath.name();
    let name = format!("xm_1_the_kernel_agrees_with_the_oracle/{on}/{family}");
    Trial::test(name, move || run::<F>(datapath).map_err(Failed::from))
}

fn run<F: PlaneFamily + cluster::Pool + States>(datapath: Datapath) -> Result<(), String> {
    let wanted = std::env::var("DIFFERENTIAL_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    let config = Config {
        cases: wanted.unwrap_or(cases(datapath)),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(SEEDS))),
        max_shrink_iters: 400,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let strategy = cluster::sequences();
    runner
        .run(&strategy, |steps| {
            compare::check::<F>(datapath, &steps).map_err(TestCaseError::fail)
        })
        .map_err(|error| error.to_string())
}
