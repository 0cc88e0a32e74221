//! How long does it take to fill the store, and how much memory does it use?
//!
//! Figures, not tests: `cargo test --release --test sources measure -- --ignored --nocapture --test-threads=1`.
#![expect(clippy::print_stdout, reason = "it prints figures")]

use std::sync::Arc;
use std::time::Instant;

use proxy_daemon::watch::kubernetes::Timing;
use proxy_daemon::watch::manifests::Manifests;
use proxy_daemon::watch::{Shared, Store};
use proxy_tests::daemon::Directory;
use proxy_tests::fake_api::{FakeApi, Streaming};
use proxy_tests::world::many::Size;
use serde_json::json;

use crate::follow::{Followed, NODE, run};

/// Unit: MiB.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("pages");
    pages * 4096 / (1024 * 1024)
}

#[test]
#[ignore = "prints figures"]
fn measure_an_api_server() {
    run(async {
        for streaming in [Streaming::On, Streaming::Refused] {
            let api = FakeApi::start().expect("a server");
            api.set_streaming(streaming);
            api.put_all(
                Size {
                    services: 10_000,
                    endpoints: 10,
                }
                .objects(NODE),
            );
            let before = resident();
            let began = Instant::now();
            let followed = Followed::whole(&api, Timing::default()).await;
            let took = began.elapsed();
            println!(
                "10,000 x 10, {streaming:?}: {took:?}, {} MiB more",
                resident() - before
            );
            let (began, drained) = (Instant::now(), followed.shared.with(Store::drain));
            println!(
                "drained {} in {:?}",
                drained.services.len(),
                began.elapsed()
            );
        }
    });
}

#[test]
#[ignore = "prints figures"]
fn measure_manifests() {
    run(async {
        let objects = Size {
            services: 10_000,
            endpoints: 10,
        }
        .objects(NODE);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let json = serde_json::to_string_pretty(&list).expect("JSON");
        let yaml = serde_saphyr::to_string(&list).expect("YAML");
        drop((objects, list));
        for (name, text) in [("cluster.json", json), ("cluster.yaml", yaml)] {
            let directory = Directory::new().expect("a directory");
            std::fs::write(directory.path().join(name), &text).expect("written");
            let n_bytes = text.len() / (1024 * 1024);
            drop(text);
            let shared = Arc::new(Shared::default());
            let source = Manifests::open(directory.path(), NODE.into()).expect("a directory");
            let mut bell = shared.subscribe();
            let (before, began) = (resident(), Instant::now());
            let complete = async {
                while !shared.with(|store| store.is_complete()) {
                    bell.changed().await.expect("a bell");
                }
            };
            tokio::select! {
                stopped = source.run(Arc::clone(&shared)) => panic!("{stopped:?}"),
                () = complete => {}
            }
            println!(
                "{name} of {n_bytes} MiB: {:?}, {} MiB more",
                began.elapsed(),
                resident() - before
            );
        }
    });
}
