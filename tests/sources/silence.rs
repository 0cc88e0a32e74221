//! A server that is silent, or cut off without a reset.

use std::time::{Duration, Instant};

use proxy_daemon::watch::kubernetes::Timing;
use proxy_daemon::watch::{ObjectKind, Store};
use proxy_tests::daemon::Directory;
use proxy_tests::fake_api::{FakeApi, Fault, Relay, RequestKind, Streaming};

use crate::failures::check_alive;
use crate::follow::{
    Followed, by_kubeconfig, is_at, run, service, small, small_tls, timing, until_asked,
};

/// LIFE-3 allows so long.
const SOON: Duration = Duration::from_secs(10);

/// Follows a server through a relay.
async fn through(api: &FakeApi, relay: &Relay, timing: Timing) -> (Followed, Directory) {
    let (server, directory) = by_kubeconfig(api, relay.address());
    (Followed::start_at(&server, timing).await, directory)
}

/// Puts a change where only a new connection finds it, and waits for it.
async fn check_found_again(api: &FakeApi, followed: &Followed, within: Duration) {
    let began = Instant::now();
    api.put(service("a", 99));
    followed.until("a", |store| is_at(store, "a", 99)).await;
    let took = began.elapsed();
    assert!(took < within, "{took:?}");
}

#[test]
fn life_3_over_http_2_all_watches_share_a_connection_that_is_pinged() {
    run(async {
        let api = small_tls();
        let relay = Relay::to(api.address()).await.expect("a relay");
        let (followed, _directory) = through(&api, &relay, timing()).await;
        followed.complete().await;
        check_alive(&api, &followed).await;
        // The peer is stopped and its connection stays up: only an unanswered ping shows it. No watch ends
        // for 20 s.
        relay.freeze();
        api.put(service("b", 88));
        relay.lead_to(api.address());
        check_found_again(&api, &followed, SOON).await;
    });
}

#[test]
fn life_3_over_http_1_a_watch_that_does_not_end_in_time_is_left() {
    run(async {
        for streaming in [Streaming::On, Streaming::Refused] {
            let api = small();
            api.set_streaming(streaming);
            let relay = Relay::to(api.address()).await.expect("a relay");
            let short = Timing {
                plain_watch: (Duration::from_secs(1), Duration::from_secs(1)),
                ..timing()
            };
            let (followed, _directory) = through(&api, &relay, short).await;
            followed.complete().await;
            until_asked(&api, "a watch of its own", |api| {
                api.n_requests(ObjectKind::Service, RequestKind::Watch) > 0
            })
            .await;
            relay.freeze();
            relay.lead_to(api.address());
            check_found_again(&api, &followed, SOON).await;
        }
    });
}

#[test]
fn life_3_a_quiet_cluster_is_not_taken_for_a_silent_server() {
    run(async {
        for api in [small_tls(), small()] {
            let (server, _directory) = by_kubeconfig(&api, api.address());
            let quiet = Timing {
                plain_watch: (Duration::from_secs(1), Duration::from_secs(1)),
                ..timing()
            };
            let followed = Followed::start_at(&server, quiet).await;
            followed.complete().await;
            followed
                .until("the rest", |store: &Store| store.node().is_some())
                .await;
            api.clear_requests();
            // Several pings, and over HTTP/1 several watches that end without an event. A list that must not come has no end to
            // wait for; the change after it shows that the store still follows.
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert_eq!(api.n_lists(ObjectKind::Service), 0);
            assert!(api.n_requests(ObjectKind::Service, RequestKind::Watch) <= 5);
            check_alive(&api, &followed).await;
        }
    });
}

#[test]
fn life_3_a_watch_without_bookmarks_is_left_and_asked_for_again() {
    run(async {
        let api = small_tls();
        let relay = Relay::to(api.address()).await.expect("a relay");
        let short = Timing {
            silence: Duration::from_millis(600),
            ..timing()
        };
        // A server may answer pings and still send no events.
        api.faults(ObjectKind::Service, RequestKind::Watch, Fault::Silent, 2);
        let (followed, _directory) = through(&api, &relay, short).await;
        followed.complete().await;
        api.put(service("a", 99));
        followed.until("a", |store| is_at(store, "a", 99)).await;
        drop(followed);
        // Bookmarks keep a watch.
        let kept = Timing {
            silence: Duration::from_secs(2),
            ..timing()
        };
        api.bookmark_every(Duration::from_millis(100));
        let (followed, _directory) = through(&api, &relay, kept).await;
        followed.complete().await;
        api.clear_requests();
        // A new watch that must not come has no end to wait for. The part above shows that one comes without bookmarks.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(api.n_requests(ObjectKind::Service, RequestKind::Watch), 0);
        check_alive(&api, &followed).await;
    });
}

#[test]
fn life_3_a_server_that_accepts_and_never_answers_is_replaced_by_one_that_does() {
    run(async {
        for api in [small_tls(), small()] {
            // The times as shipped: they are what is tested.
            let relay = Relay::to(api.address()).await.expect("a relay");
            relay.freeze();
            let (followed, _directory) = through(&api, &relay, Timing::default()).await;
            let hung = Duration::from_secs(7);
            tokio::time::timeout(hung, followed.complete())
                .await
                .unwrap_err();
            relay.lead_to(api.address());
            let began = Instant::now();
            followed.complete().await;
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        }
    });
}

#[test]
fn life_3_a_server_that_needs_long_for_each_answer_is_waited_for() {
    run(async {
        let api = small();
        // Longer than a new connection is tried, shorter than a server may take.
        api.faults(
            None,
            RequestKind::StreamingList,
            Fault::Late(Duration::from_millis(1200)),
            u32::MAX,
        );
        let followed = Followed::whole(&api, timing()).await;
        check_alive(&api, &followed).await;
        assert_eq!(api.n_requests(ObjectKind::Service, RequestKind::List), 0);
    });
}
