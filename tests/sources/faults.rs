//! Are diagnostics of a bad object withdrawn with their cause, and do they come back with it?
//!
//! Each way of being bad that a source knows is drawn from one list, and each way of ending it is tried.

use std::time::Duration;

use proxy_daemon::watch::ObjectKind;
use proxy_tests::fake_api::{FakeApi, Streaming};
use proxy_tests::world::service_cidr;
use serde_json::{Value, json};

use crate::follow::{Followed, NODE, follow_small, node, run, service, slice};

/// An object with one fault, and the same object without.
struct Case {
    kind: ObjectKind,
    key: &'static str,
    bad: Value,
    /// `None` where the fault is the name, which no update mends.
    good: Option<Value>,
}

fn at(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).expect("there is such a field") = value;
    object
}

fn cases() -> Vec<Case> {
    let of = |kind, key, good: Value, path, value| Case {
        kind,
        key,
        bad: at(good.clone(), path, value),
        good: Some(good),
    };
    let web = || service("web", 7);
    let web_1 = || slice("web-1", "web", 17);
    let mut cases = Vec::new();
    for (path, value) in [
        ("/spec/clusterIPs/0", json!("127.0.0.1")),
        ("/spec/ports/0/port", json!(0)),
        ("/spec/ports", json!("none")),
    ] {
        cases.push(of(ObjectKind::Service, "default/web", web(), path, value));
    }
    for (path, value) in [
        ("/endpoints/0/addresses/0", json!("127.0.0.1")),
        ("/endpoints", json!({})),
        ("/ports/0/port", json!(70_000)),
        ("/metadata/labels", json!({})),
    ] {
        cases.push(of(
            ObjectKind::EndpointSlice,
            "default/web-1",
            web_1(),
            path,
            value,
        ));
    }
    let address = "/status/addresses/0/address";
    cases.push(of(
        ObjectKind::Node,
        NODE,
        node(NODE, "zone-a"),
        address,
        json!("nowhere"),
    ));
    for network in ["nonsense", "127.0.0.0/8"] {
        let cidr = service_cidr("more", &["10.97.0.0/16"]);
        let path = "/spec/cidrs/0";
        cases.push(of(
            ObjectKind::ServiceCidr,
            "more",
            cidr,
            path,
            json!(network),
        ));
    }
    for (kind, key, bad) in [
        (ObjectKind::Service, "default/-web", service("-web", 7)),
        (
            ObjectKind::EndpointSlice,
            "default/-web",
            slice("-web", "web", 17),
        ),
        (
            ObjectKind::ServiceCidr,
            "-more",
            service_cidr("-more", &["10.97.0.0/16"]),
        ),
    ] {
        cases.push(Case {
            kind,
            key,
            bad,
            good: None,
        });
    }
    cases
}

/// Waits until so many faults are known.
async fn until_faults(followed: &Followed, n: usize, what: &str) -> Vec<String> {
    let wait = async {
        loop {
            let faults = followed.faults();
            if faults.len() == n {
                return faults;
            }
            // No bell rings when only diagnostics change.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    assert!(
        waited.is_ok(),
        "never {n} faults: {what}: {:?}",
        followed.faults()
    );
    waited.unwrap_or_default()
}

#[test]
fn life_4_what_is_said_of_an_object_goes_with_its_cause_and_comes_back_with_it() {
    run(async {
        for streaming in [Streaming::On, Streaming::Refused] {
            let (api, followed) = follow_small(streaming).await;
            for case in cases() {
                try_case(&api, &followed, &case).await;
            }
        }
    });
}

async fn try_case(api: &FakeApi, followed: &Followed, case: &Case) {
    let Case {
        kind,
        key,
        bad,
        good,
    } = case;
    let what = format!("{bad}");
    api.put(bad.clone());
    let told = until_faults(followed, 1, &what).await;
    if let Some(good) = good {
        api.put(good.clone());
        until_faults(followed, 0, &what).await;
        api.put(bad.clone());
        assert_eq!(until_faults(followed, 1, &what).await, told);
    }
    api.delete(*kind, key);
    until_faults(followed, 0, &what).await;
    api.put(bad.clone());
    assert_eq!(until_faults(followed, 1, &what).await, told);
    // Deleted while no watch is open: the next list lacks it.
    api.down();
    api.delete(*kind, key);
    api.compact();
    api.up();
    until_faults(followed, 0, &what).await;
    if *kind == ObjectKind::Node {
        api.put(node(NODE, "zone-a"));
    }
}
