//! Do both sources mean the same by the same objects?

use proxy_daemon::watch::{Drained, Store};
use proxy_tests::daemon::Directory;
use proxy_tests::fake_api::{FakeApi, Streaming, read_directory};
use proxy_tests::world::many::Size;
use proxy_tests::world::read;
use serde_json::{Value, json};

use crate::follow::{Followed, NODE, run, service, slice};

/// What a store holds that follows a directory with these objects.
async fn from_manifests(objects: &[Value]) -> Drained {
    let directory = Directory::new().expect("a directory");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(directory.path().join("cluster.yaml"), list.to_string()).expect("written");
    assert_eq!(read_directory(directory.path()).expect("YAML"), objects);
    read(directory.path(), NODE).await.expect("it is read")
}

async fn check(api: &FakeApi, objects: &[Value]) {
    let expected = from_manifests(objects).await;
    let followed = Followed::start(api).await;
    let is_whole = |store: &Store| {
        let services = expected
            .services
            .values()
            .filter(|input| input.service.is_some());
        store.is_complete()
            && store.service_names().count() == services.count()
            && store.node().is_some()
            && store.service_cidr_names().count() == 1
    };
    followed.until("whole", is_whole).await;
    let found = followed.drain();
    assert_eq!(found.services, expected.services);
    assert_eq!(found.node, expected.node);
    assert_eq!(found.service_cidrs, expected.service_cidrs);
}

#[test]
fn api_4_however_objects_are_listed_the_store_holds_the_same_as_from_manifests() {
    run(async {
        let objects = Size {
            services: 1200,
            endpoints: 3,
        }
        .objects(NODE);
        for streaming in [Streaming::On, Streaming::Refused, Streaming::Ignored] {
            let api = FakeApi::start().expect("a server");
            api.set_streaming(streaming);
            api.put_all(objects.clone());
            check(&api, &objects).await;
        }
    });
}

#[test]
fn svc_3_objects_that_are_hidden_or_odd_mean_the_same_from_both_sources() {
    run(async {
        let mut objects = Size {
            services: 2,
            endpoints: 2,
        }
        .objects(NODE);
        let with = |mut object: Value, pointer: &str, value: Value| {
            let (parent, field) = pointer.rsplit_once('/').expect("a path");
            object.pointer_mut(parent).expect("a parent")[field] = value;
            object
        };
        let label =
            |name: &str, value: &str| json!({"kubernetes.io/service-name": "a", name: value});
        objects.extend([
            service("a", 1),
            with(service("headless", 2), "/spec/clusterIP", json!("None")),
            with(service("external", 3), "/spec/type", json!("ExternalName")),
            with(
                service("labelled", 4),
                "/metadata/labels",
                label("service.kubernetes.io/service-proxy-name", ""),
            ),
            with(
                service("wrong", 5),
                "/spec/ports",
                json!([{"port": "80"}, {"port": 81, "name": "x"}, 7]),
            ),
            with(
                service("no-address", 6),
                "/spec/clusterIP",
                json!("10.96.0.256"),
            ),
            slice("a-1", "a", 1),
            with(
                slice("a-2", "a", 2),
                "/metadata/labels",
                label("service.kubernetes.io/headless", ""),
            ),
            with(slice("a-3", "a", 3), "/addressType", json!("FQDN")),
            with(slice("a-4", "a", 4), "/ports", json!([{"port": 8080}])),
            with(slice("a-5", "a", 5), "/endpoints", Value::Null),
            with(slice("a-6", "a", 6), "/metadata/labels", Value::Null),
        ]);
        let api = FakeApi::start().expect("a server");
        api.put_all(objects.clone());
        check(&api, &objects).await;
    });
}
