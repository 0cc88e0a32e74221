//! Which lists and watches are requested, and which changes reach the store.

use std::time::Duration;

use proxy_daemon::watch::{ObjectKind, Store};
use proxy_tests::fake_api::{FakeApi, Fault, RequestKind, Streaming};
use proxy_tests::world::service_cidr;
use serde_json::json;

use crate::follow::{
    Followed, NODE, follow_small, get, has_slice, is_at, node, run, service, slice, small, timing,
    until_asked,
};

#[test]
fn svc_1_eps_1_selectors_are_sent_with_lists_and_watches() {
    run(async {
        for streaming in [Streaming::On, Streaming::Refused] {
            let (api, _followed) = follow_small(streaming).await;
            let watch = if streaming == Streaming::On {
                RequestKind::StreamingList
            } else {
                RequestKind::Watch
            };
            until_asked(&api, "watches", |api| {
                ObjectKind::ALL
                    .iter()
                    .all(|kind| api.n_requests(*kind, watch) > 0)
            })
            .await;
            for request in api.requests() {
                let (label, field) = match request.kind.expect("a kind") {
                    ObjectKind::Service => (
                        Some("!service.kubernetes.io/service-proxy-name"),
                        Some("spec.clusterIP!=None"),
                    ),
                    ObjectKind::EndpointSlice => (Some("!service.kubernetes.io/headless"), None),
                    ObjectKind::Node => (None, Some("metadata.name=n")),
                    ObjectKind::ServiceCidr => (None, None),
                };
                let value = |key: &str| request.query.get(key).map(String::as_str);
                assert_eq!(
                    (value("labelSelector"), value("fieldSelector")),
                    (label, field)
                );
                if request.ask != Some(RequestKind::List) {
                    assert_eq!(value("allowWatchBookmarks"), Some("true"));
                }
            }
        }
    });
}

#[test]
fn svc_2_a_label_that_comes_and_goes_removes_and_restores() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        let mut labelled = service("a", 1);
        labelled["metadata"]["labels"] =
            json!({"service.kubernetes.io/service-proxy-name": "other"});
        api.put(labelled);
        followed
            .until("hidden", |store| get(store, "a").is_none())
            .await;
        api.put(service("a", 1));
        followed.until("back", |store| is_at(store, "a", 1)).await;
    });
}

#[test]
fn eps_2_the_headless_label_removes_and_restores_a_slice() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        let mut headless = slice("a-1", "a", 11);
        headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
        api.put(headless);
        followed
            .until("hidden", |store| !has_slice(store, "a-1"))
            .await;
        api.put(slice("a-1", "a", 11));
        followed
            .until("back", |store| has_slice(store, "a-1"))
            .await;
    });
}

#[test]
fn svc_4_changes_of_every_kind_arrive() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        api.put(service("c", 3));
        api.put(service("a", 9));
        api.delete(ObjectKind::Service, "default/b");
        api.delete(ObjectKind::EndpointSlice, "default/b-1");
        api.put(node(NODE, "zone-c"));
        api.put(service_cidr("second", &["10.97.0.0/16"]));
        followed
            .until("all", |store| {
                is_at(store, "c", 3)
                    && is_at(store, "a", 9)
                    && get(store, "b").is_none()
                    && !has_slice(store, "b-1")
                    && store
                        .node()
                        .is_some_and(|node| node.zone.as_deref() == Some("zone-c"))
                    && store.service_cidr_names().count() == 2
            })
            .await;
    });
}

#[test]
fn svc_6_changes_of_ignored_fields_touch_nothing() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        followed
            .until("the Node", |store| store.node().is_some())
            .await;
        followed.drain();
        let mut annotated = service("a", 1);
        annotated["metadata"]["annotations"] = json!({"x": "y"});
        annotated["spec"]["selector"] = json!({"app": "other"});
        api.put(annotated);
        let mut annotated = slice("a-1", "a", 11);
        annotated["metadata"]["annotations"] = json!({"x": "y"});
        annotated["endpoints"][0]["targetRef"] = json!({"kind": "Pod"});
        api.put(annotated);
        api.put(slice("b-1", "b", 99));
        api.put(service("b", 9));
        followed.until("b", |store| is_at(store, "b", 9)).await;
        assert_eq!(followed.dirty(), ["default/b"]);
    });
}

#[test]
fn api_4_long_lists_come_in_pages() {
    run(async {
        let api = FakeApi::start().expect("a server");
        api.set_streaming(Streaming::Refused);
        api.put_all((0..1200).map(|i| service(&format!("s{i}"), 1)));
        let followed = Followed::whole(&api, timing()).await;
        assert_eq!(followed.n_services(), 1200);
        assert_eq!(api.n_requests(ObjectKind::Service, RequestKind::List), 1);
        assert_eq!(api.n_requests(ObjectKind::Service, RequestKind::Page), 2);
    });
}

#[test]
fn api_4_a_page_that_has_expired_is_followed_by_a_whole_list() {
    run(async {
        let api = FakeApi::start().expect("a server");
        api.set_streaming(Streaming::Refused);
        api.put_all((0..1200).map(|i| service(&format!("s{i}"), 1)));
        api.fault(
            ObjectKind::Service,
            RequestKind::Page,
            Fault::Status(410, None),
        );
        let followed = Followed::whole(&api, timing()).await;
        assert_eq!(followed.n_services(), 1200);
        let requests = api.requests();
        let mut lists = requests
            .iter()
            .filter(|r| r.kind == Some(ObjectKind::Service) && r.ask == Some(RequestKind::List));
        assert!(
            lists
                .next()
                .is_some_and(|first| first.query.contains_key("limit"))
        );
        assert!(
            lists
                .next()
                .is_some_and(|second| !second.query.contains_key("limit"))
        );
    });
}

#[test]
fn api_4_bookmarks_of_a_server_without_streaming_lists_keep_no_list_open() {
    run(async {
        let api = small();
        api.set_streaming(Streaming::Ignored);
        // More often than any patience ends.
        api.bookmark_every(Duration::from_millis(20));
        Followed::whole(&api, timing()).await;
        assert!(api.n_requests(ObjectKind::Service, RequestKind::List) > 0);
    });
}

#[test]
fn api_4_a_watch_goes_on_where_a_bookmark_said() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        // Changes of other kinds move the version; only a bookmark tells the watch of slices.
        api.put(node("other", "zone-x"));
        let version = api.version().to_string();
        for attempt in 0.. {
            assert!(attempt < 100, "the bookmark never arrived");
            api.bookmark();
            let last = u8::try_from(attempt).unwrap() + 100;
            api.put(service("c", last));
            followed.until("c", |store| is_at(store, "c", last)).await;
            api.clear_requests();
            api.cut();
            let asked =
                |api: &FakeApi| api.n_requests(ObjectKind::EndpointSlice, RequestKind::Watch) > 0;
            until_asked(&api, "a watch", asked).await;
            let requests = api.requests();
            let watch = requests.iter().find(|request| {
                request.kind == Some(ObjectKind::EndpointSlice)
                    && request.ask == Some(RequestKind::Watch)
            });
            if watch.expect("a watch").query["resourceVersion"] >= version {
                break;
            }
        }
        assert_eq!(
            api.n_requests(ObjectKind::EndpointSlice, RequestKind::List),
            0
        );
    });
}

#[test]
fn node_1_only_our_node_reaches_the_store() {
    run(async {
        let api = small();
        let followed = Followed::start(&api).await;
        followed
            .until("the Node", |store| store.node().is_some())
            .await;
        api.put(node("other", "zone-x"));
        api.put(node(NODE, "zone-y"));
        let zone = |store: &Store| store.node().and_then(|node| node.zone.clone());
        followed
            .until("the zone", |store| zone(store).as_deref() == Some("zone-y"))
            .await;
        // HZ-5 and TOPO-9: the last copy stays.
        api.delete(ObjectKind::Node, NODE);
        api.put(service("c", 3));
        followed.until("c", |store| is_at(store, "c", 3)).await;
        followed
            .shared
            .with(|store| assert_eq!(zone(store).as_deref(), Some("zone-y")));
    });
}

#[test]
fn node_6_a_deleted_node_that_comes_back_is_followed() {
    run(async {
        let api = small();
        let followed = Followed::start(&api).await;
        followed
            .until("the Node", |store| store.node().is_some())
            .await;
        api.delete(ObjectKind::Node, NODE);
        api.put(node(NODE, "zone-new"));
        let zone = |store: &Store| store.node().and_then(|node| node.zone.clone());
        followed
            .until("the zone", |store| {
                zone(store).as_deref() == Some("zone-new")
            })
            .await;
    });
}

#[test]
fn a_late_node_arrives_without_anything_else() {
    run(async {
        let api = FakeApi::start().expect("a server");
        let followed = Followed::whole(&api, timing()).await;
        api.put(node(NODE, "zone-a"));
        followed
            .until("the Node", |store| store.node().is_some())
            .await;
    });
}
