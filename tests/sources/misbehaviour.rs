//! A server that misbehaves without end is asked at a bounded rate, and followed again soon after it is well.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proxy_daemon::watch::ObjectKind;
use proxy_daemon::watch::kubernetes::{Pace, Timing};
use proxy_tests::fake_api::{FakeApi, Fault, RequestKind, Streaming};

use crate::follow::{Followed, is_at, run, service, small, timing, until_asked};

/// LIFE-3 allows so long.
const SOON: Duration = Duration::from_secs(10);

/// How many lists, with their pages, and watches there were for one kind within a time.
async fn count(api: &FakeApi, kind: ObjectKind, time: Duration) -> (usize, usize) {
    api.clear_requests();
    // Requests that must not come have no end to wait for; callers show that others came, and that changes arrive later.
    tokio::time::sleep(time).await;
    let n = |ask| api.n_requests(kind, ask);
    let n_watches = n(RequestKind::Watch) + n(RequestKind::Check);
    (api.n_lists(kind), n_watches)
}

/// Waits until a change arrives, which LIFE-3 bounds.
async fn check_in_sync(api: &FakeApi, followed: &Followed, what: &str) {
    let began = Instant::now();
    api.clear_faults();
    api.put(service("a", 123));
    followed.until(what, |store| is_at(store, "a", 123)).await;
    let took = began.elapsed();
    assert!(took < SOON, "{what}: {took:?}");
}

/// Follows a server with these faults for a while, and then without them.
async fn check_bounded(what: &str, faults: Vec<(RequestKind, Fault, u32)>) {
    let api = small();
    if what != "410 after a list" {
        api.set_streaming(Streaming::Refused);
    }
    for (ask, fault, times) in faults {
        api.faults(ObjectKind::Service, ask, fault, times);
    }
    // The times as shipped: they are what is tested.
    let followed = Followed::start_with(&api, Timing::default()).await;
    let (n_lists, n_watches) = count(&api, ObjectKind::Service, SOON).await;
    assert!(n_lists <= 20, "{what}: {n_lists} lists");
    assert!(n_watches <= 40, "{what}: {n_watches} watches");
    assert!(n_lists + n_watches > 1, "{what}: no requests");
    check_in_sync(&api, &followed, what).await;
}

#[test]
fn life_3_a_server_that_misbehaves_for_ever_is_not_asked_in_a_tight_loop() {
    run(async {
        let alternating = (0..2000).map(|n| {
            let fault = Fault::Says(400, format!("reason {n}"));
            (RequestKind::Watch, fault, 1)
        });
        let always = |ask, fault| vec![(ask, fault, u32::MAX)];
        let expired = "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410}}\n";
        let expired = Fault::Before(expired.to_owned());
        let endless = "{\"metadata\":{\"resourceVersion\":\"9\",\"continue\":\"x\"},\"items\":[]}";
        let endless = Fault::Instead(endless.to_owned());
        // All at one time, because each takes its time.
        tokio::join!(
            check_bounded(
                "one bookmark",
                always(RequestKind::Watch, Fault::OneBookmark)
            ),
            check_bounded("410", always(RequestKind::Watch, Fault::Status(410, None))),
            check_bounded(
                "410 as event",
                always(RequestKind::Watch, Fault::ErrorEvent(410))
            ),
            check_bounded(
                "410 after a list",
                always(RequestKind::StreamingList, expired)
            ),
            check_bounded("400", alternating.collect()),
            check_bounded("cut", always(RequestKind::Watch, Fault::Cut(1))),
            check_bounded(
                "endless pages",
                vec![
                    (RequestKind::List, endless.clone(), u32::MAX),
                    (RequestKind::Page, endless, u32::MAX),
                ]
            ),
        );
    });
}

#[test]
fn life_3_a_watch_that_ends_after_a_while_is_asked_for_again_at_once() {
    run(async {
        let api = small();
        let slow = Pace {
            burst: 1,
            first: Duration::from_secs(30),
            longest: Duration::from_secs(30),
            cooling: Duration::from_millis(500),
        };
        let patient = Timing {
            plain_watch: (Duration::from_secs(1), Duration::from_secs(1)),
            watches: slow,
            ..timing()
        };
        let followed = Followed::whole(&api, patient).await;
        for last in 10..15 {
            api.clear_requests();
            until_asked(&api, "the next watch", |api| {
                api.n_requests(ObjectKind::Service, RequestKind::Watch) > 0
            })
            .await;
            api.put(service("a", last));
            followed.until("a", |store| is_at(store, "a", last)).await;
        }
    });
}

#[test]
fn life_3_who_asks_us_to_stay_away_for_long_is_asked_again_soon() {
    run(async {
        for code in [429, 503] {
            let api = small();
            for ask in [
                RequestKind::StreamingList,
                RequestKind::Watch,
                RequestKind::Check,
            ] {
                api.faults(None, ask, Fault::Status(code, Some(3600)), u32::MAX);
            }
            let followed = Followed::start_with(&api, Timing::default()).await;
            let (n_lists, _) = count(&api, ObjectKind::Service, Duration::from_secs(5)).await;
            assert!(n_lists <= 5, "{n_lists} lists");
            let began = Instant::now();
            api.clear_faults();
            followed.complete().await;
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        }
    });
}

/// Anything that can be wrong with an answer.
fn any_fault() -> impl Strategy<Value = Fault> {
    let code = prop::sample::select(vec![
        400, 401, 403, 404, 408, 410, 422, 429, 500, 502, 503, 504,
    ]);
    prop_oneof![
        (code, prop::option::of(0_u64..4000)).prop_map(|(code, after)| Fault::Status(code, after)),
        (400_u16..600, "[a-z ]{0,20}").prop_map(|(code, text)| Fault::Says(code, text)),
        (0_usize..900).prop_map(Fault::Cut),
        Just(Fault::Withhold),
        Just(Fault::Silent),
        Just(Fault::OneBookmark),
        prop::sample::select(vec![400_u16, 410, 500]).prop_map(Fault::ErrorEvent),
        ".{0,40}".prop_map(|text| Fault::Instead(text + "\n")),
        ".{0,40}".prop_map(|text| Fault::Before(text + "\n")),
        Just(Fault::Instead(
            "{\"metadata\":{\"resourceVersion\":\"9\",\"continue\":\"x\"},\"items\":[]}".to_owned()
        )),
    ]
}

fn any_ask() -> impl Strategy<Value = Option<RequestKind>> {
    prop_oneof![
        Just(None),
        prop::sample::select(vec![
            Some(RequestKind::List),
            Some(RequestKind::StreamingList),
            Some(RequestKind::Watch),
            Some(RequestKind::Check)
        ]),
    ]
}

#[test]
fn life_3_whatever_the_server_did_the_store_is_up_to_date_soon_after() {
    let config = Config {
        cases: 8,
        failure_persistence: None,
        ..Config::default()
    };
    // Shorter than as shipped, but in the same proportion to each other.
    let short = Timing {
        piece: Duration::from_millis(500),
        silence: Duration::from_secs(1),
        asked_wait: Duration::from_millis(800),
        plain_watch: (Duration::from_secs(1), Duration::from_secs(2)),
        ..timing()
    };
    let faults = prop::collection::vec((any_ask(), any_fault(), 1_u32..8), 1..6);
    TestRunner::new(config)
        .run(&faults, |faults| {
            run(async {
                let api = small();
                let followed = Followed::whole(&api, short.clone()).await;
                for (ask, fault, times) in &faults {
                    api.faults(None, *ask, fault.clone(), *times);
                }
                api.cut();
                let (n_lists, n_watches) =
                    count(&api, ObjectKind::Service, Duration::from_secs(2)).await;
                assert!(n_lists <= 50 && n_watches <= 100, "{n_lists} {n_watches}");
                api.delete(ObjectKind::Service, "default/b");
                check_in_sync(&api, &followed, "a").await;
                followed
                    .until("b gone", |store| store.service_names().count() == 1)
                    .await;
            });
            Ok(())
        })
        .expect("every sequence is outlasted");
}
