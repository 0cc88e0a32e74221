//! Connections that fail, and answers that are damaged.

use std::time::{Duration, Instant};

use proxy_daemon::watch::ObjectKind;
use proxy_daemon::watch::kubernetes::Timing;
use proxy_tests::fake_api::{FakeApi, Fault, RequestKind, Streaming};
use serde_json::json;

use crate::follow::{
    Followed, follow_small, get, has_slice, is_at, run, service, slice, small, timing, until_asked,
};

/// Waits until changes still arrive after whatever was done.
pub(crate) async fn check_alive(api: &FakeApi, followed: &Followed) {
    api.put(service("alive", 77));
    api.put(slice("alive-1", "alive", 77));
    followed
        .until("alive", |store| {
            is_at(store, "alive", 77) && has_slice(store, "alive-1")
        })
        .await;
}

#[test]
fn life_2_a_server_that_is_down_at_start_is_waited_for() {
    run(async {
        let api = small();
        api.down();
        let followed = Followed::start(&api).await;
        tokio::time::timeout(Duration::from_millis(300), followed.complete_for_ever())
            .await
            .unwrap_err();
        api.up();
        followed.complete().await;
        check_alive(&api, &followed).await;
    });
}

impl Followed {
    /// Returns only if the store becomes complete.
    async fn complete_for_ever(&self) {
        let mut bell = self.shared.subscribe();
        while !self.shared.with(|store| store.is_complete()) {
            bell.changed().await.expect("a bell");
        }
    }
}

#[test]
fn life_3_what_happened_while_the_server_was_away_arrives_soon_after() {
    run(async {
        let api = small();
        // The times as shipped: they are what is tested.
        let followed = Followed::whole(&api, Timing::default()).await;
        api.down();
        api.put(service("a", 9));
        api.put(service("c", 3));
        api.delete(ObjectKind::Service, "default/b");
        tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>())
            .await
            .unwrap_err();
        followed
            .shared
            .with(|store| assert!(is_at(store, "a", 1) && is_at(store, "b", 2)));
        let back = Instant::now();
        api.up();
        followed
            .until("changes", |store| {
                is_at(store, "a", 9) && is_at(store, "c", 3) && get(store, "b").is_none()
            })
            .await;
        assert!(
            back.elapsed() < Duration::from_secs(10),
            "{:?}",
            back.elapsed()
        );
    });
}

#[test]
fn life_4_a_relist_removes_what_is_gone_and_touches_nothing_else() {
    run(async {
        for streaming in [Streaming::On, Streaming::Refused] {
            let (api, followed) = follow_small(streaming).await;
            followed
                .until("the rest", |s| {
                    s.node().is_some() && s.service_cidr_names().count() == 1
                })
                .await;
            followed.drain();
            api.down();
            api.delete(ObjectKind::Service, "default/b");
            api.delete(ObjectKind::EndpointSlice, "default/b-1");
            api.compact();
            api.up();
            followed
                .until("b gone", |store| {
                    get(store, "b").is_none() && !has_slice(store, "b-1")
                })
                .await;
            let drained = followed.drain();
            assert_eq!(
                drained
                    .services
                    .keys()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
                ["default/b"]
            );
            assert_eq!((drained.node, drained.service_cidrs), (None, None));
            check_alive(&api, &followed).await;
        }
    });
}

#[test]
fn life_4_versions_that_are_gone_while_watching_are_listed_again() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        followed.drain();
        for fault in [Fault::ErrorEvent(410), Fault::Status(410, None)] {
            api.fault(ObjectKind::Service, RequestKind::Watch, fault);
            api.clear_requests();
            api.cut();
            until_asked(&api, "a list", |api| {
                api.n_requests(ObjectKind::Service, RequestKind::StreamingList) > 0
            })
            .await;
        }
        check_alive(&api, &followed).await;
        assert_eq!(followed.dirty(), ["default/alive"]);
    });
}

#[test]
fn life_3_an_answer_that_breaks_off_is_asked_for_again() {
    run(async {
        for streaming in [Streaming::On, Streaming::Refused] {
            for n_bytes in [0, 1, 100, 700] {
                let api = small();
                api.set_streaming(streaming);
                api.put_all((0..20).map(|i| service(&format!("s{i}"), 1)));
                api.fault_lists(ObjectKind::Service, Fault::Cut(n_bytes), 2);
                let followed = Followed::whole(&api, timing()).await;
                assert_eq!(followed.n_services(), 22);
                api.fault(ObjectKind::Service, RequestKind::Watch, Fault::Cut(n_bytes));
                api.cut();
                check_alive(&api, &followed).await;
                assert_eq!(followed.n_services(), 23);
            }
        }
    });
}

#[test]
fn life_3_a_streaming_list_that_never_ends_gives_way_to_pages() {
    run(async {
        let api = small();
        api.faults(
            ObjectKind::Service,
            RequestKind::StreamingList,
            Fault::Cut(200),
            u32::MAX,
        );
        let followed = Followed::whole(&api, timing()).await;
        check_alive(&api, &followed).await;
        assert!(api.n_requests(ObjectKind::Service, RequestKind::List) > 0);
    });
}

#[test]
fn life_3_slow_answers_are_answers() {
    run(async {
        for streaming in [Streaming::On, Streaming::Refused] {
            let api = small();
            api.set_streaming(streaming);
            api.faults(
                None,
                None,
                Fault::Slow(97, Duration::from_millis(2)),
                u32::MAX,
            );
            let followed = Followed::whole(&api, timing()).await;
            check_alive(&api, &followed).await;
        }
    });
}

#[test]
fn life_3_garbage_is_survived() {
    run(async {
        for garbage in [
            "garbage\n",
            "<html>502</html>\n",
            "{\"type\":\"ADDED\"}\n",
            "\u{0}\n",
            "{\"type\":\"NEW\",\"object\":{}}\n",
        ] {
            let (api, followed) = follow_small(Streaming::On).await;
            for ask in [RequestKind::Watch, RequestKind::StreamingList] {
                api.fault(ObjectKind::Service, ask, Fault::Before(garbage.to_owned()));
            }
            api.cut();
            check_alive(&api, &followed).await;
            assert_eq!(followed.n_services(), 3);
        }
    });
}

#[test]
fn life_3_what_is_no_list_removes_nothing() {
    run(async {
        for answer in [
            "",
            "{}",
            "<html>",
            "{\"kind\":\"Status\",\"code\":200}",
            "{\"items\":[]}",
        ] {
            let (api, followed) = follow_small(Streaming::Refused).await;
            followed.drain();
            api.faults(
                ObjectKind::Service,
                RequestKind::List,
                Fault::Instead(answer.to_owned()),
                3,
            );
            api.clear_requests();
            api.compact();
            until_asked(&api, "lists", |api| {
                api.n_requests(ObjectKind::Service, RequestKind::List) >= 4
            })
            .await;
            check_alive(&api, &followed).await;
            assert_eq!(followed.dirty(), ["default/alive"]);
        }
    });
}

#[test]
fn life_3_an_object_that_cannot_be_read_holds_up_no_other() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        // Twice the same field: no JSON object of ours, and the watch meets it again at every attempt.
        let twice = "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"x\"},\"metadata\":{\"name\":\"y\"}}}\n";
        for ask in [RequestKind::Watch, RequestKind::StreamingList] {
            api.faults(ObjectKind::Service, ask, Fault::Before(twice.to_owned()), 6);
        }
        api.cut();
        check_alive(&api, &followed).await;
    });
}

#[test]
fn bad_fields_are_told_and_forgotten_when_mended() {
    run(async {
        let api = small();
        let mut bad = service("a", 1);
        bad["spec"]["ports"] = json!([{"port": 0}]);
        api.put(bad.clone());
        let followed = Followed::whole(&api, timing()).await;
        assert_eq!(
            followed.faults(),
            ["Service default/a: spec.ports[0].port: 0 is not within 1 to 65535; port ignored"]
        );
        api.put(service("a", 1));
        followed
            .until("mended", |s| {
                get(s, "a").is_some_and(|a| a.ports.len() == 1)
            })
            .await;
        assert_eq!(followed.faults(), Vec::<String>::new());
        api.put(bad);
        api.delete(ObjectKind::Service, "default/a");
        followed.until("gone", |s| get(s, "a").is_none()).await;
        assert_eq!(followed.faults(), Vec::<String>::new());
    });
}

#[test]
fn sync_12_a_withheld_list_keeps_the_store_incomplete() {
    run(async {
        let api = small();
        api.fault_lists(ObjectKind::EndpointSlice, Fault::Withhold, u32::MAX);
        let followed = Followed::start(&api).await;
        followed
            .until("Services", |store| store.is_listed(ObjectKind::Service))
            .await;
        until_asked(&api, "slices", |api| {
            api.n_requests(ObjectKind::EndpointSlice, RequestKind::StreamingList) > 0
        })
        .await;
        followed.shared.with(|store| assert!(!store.is_complete()));
        api.clear_faults();
        followed.complete().await;
        check_alive(&api, &followed).await;
    });
}
