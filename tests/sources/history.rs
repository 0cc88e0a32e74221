//! The server's state is replaced by an older one, as after a restore from a backup.

use std::time::{Duration, Instant};

use proxy_daemon::watch::ObjectKind;
use proxy_daemon::watch::kubernetes::Timing;
use proxy_tests::fake_api::{Ahead, FakeApi, Fault, RequestKind, Streaming};

use crate::failures::check_alive;
use crate::follow::{
    Followed, follow_small, get, has_slice, is_at, run, service, slice, small, timing, until_asked,
};

/// Restores the server: the latest changes are gone, and versions are low again.
fn restore(api: &FakeApi, ahead: Ahead) {
    api.down();
    api.put(service("a", 1));
    api.put(service("restored", 42));
    api.delete(ObjectKind::Service, "default/late");
    api.delete(ObjectKind::EndpointSlice, "default/late-1");
    api.rewind(500, ahead);
    api.up();
}

/// A newer version than any that there is.
fn newer() -> Fault {
    Fault::Instead("{\"metadata\":{\"resourceVersion\":\"99999\"},\"items\":[]}".to_owned())
}

fn is_restored(store: &proxy_daemon::watch::Store) -> bool {
    is_at(store, "a", 1)
        && is_at(store, "restored", 42)
        && get(store, "late").is_none()
        && !has_slice(store, "late-1")
}

/// A store that knows more than the server will after the restore.
async fn with_late_changes(api: &FakeApi, timing: Timing) -> Followed {
    let followed = Followed::whole(api, timing).await;
    api.put(service("a", 7));
    api.put(service("late", 8));
    api.put(slice("late-1", "late", 8));
    followed
        .until("late", |store| {
            is_at(store, "a", 7) && is_at(store, "late", 8) && has_slice(store, "late-1")
        })
        .await;
    followed
}

#[test]
fn life_3_a_restore_from_a_backup_is_noticed_when_the_server_is_back() {
    run(async {
        for ahead in [Ahead::Refused, Ahead::Accepted, Ahead::Silent] {
            for streaming in [Streaming::On, Streaming::Refused] {
                let api = small();
                api.set_streaming(streaming);
                // The times as shipped: they are what is tested.
                let followed = with_late_changes(&api, Timing::default()).await;
                let began = Instant::now();
                restore(&api, ahead);
                followed.until("restored", is_restored).await;
                let took = began.elapsed();
                assert!(took < Duration::from_secs(10), "{ahead:?}: {took:?}");
                check_alive(&api, &followed).await;
            }
        }
    });
}

#[test]
fn life_3_events_and_bookmarks_of_an_older_state_lead_to_a_list() {
    run(async {
        for is_event in [true, false] {
            let api = small();
            let followed = with_late_changes(&api, timing()).await;
            // Another server is asked for its version than the one that is watched.
            api.fault(ObjectKind::Service, RequestKind::Check, newer());
            api.clear_requests();
            restore(&api, Ahead::Accepted);
            until_asked(&api, "a watch", |api| {
                api.n_requests(ObjectKind::Service, RequestKind::Watch) > 0
            })
            .await;
            // The watch was asked for, but may not be open yet: send until the daemon reacts.
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            let send = async {
                for n in 0..=u8::MAX {
                    tick.tick().await;
                    if is_event {
                        api.put(service("next", n));
                    } else {
                        api.bookmark();
                    }
                }
            };
            let listed = until_asked(&api, "a list", |api| {
                api.n_requests(ObjectKind::Service, RequestKind::StreamingList) > 0
            });
            tokio::select! {
                () = send => panic!("no list"),
                () = listed => {}
            }
            followed.until("restored", is_restored).await;
            check_alive(&api, &followed).await;
        }
    });
}

#[test]
fn life_3_a_restored_server_that_stays_silent_is_asked_for_its_version() {
    run(async {
        let api = small();
        let short = Timing {
            plain_watch: (Duration::from_secs(1), Duration::from_secs(1)),
            ..timing()
        };
        let followed = with_late_changes(&api, short).await;
        api.fault(ObjectKind::Service, RequestKind::Check, newer());
        // It accepts the watch, and neither sends nor lacks anything.
        restore(&api, Ahead::Silent);
        followed.until("restored", is_restored).await;
    });
}

#[test]
fn life_3_a_server_that_waits_for_its_cache_is_asked_again() {
    run(async {
        let (api, followed) = follow_small(Streaming::On).await;
        let says = "Too large resource version: 9, current: 3";
        api.faults(
            ObjectKind::Service,
            RequestKind::Watch,
            Fault::Status(504, None),
            2,
        );
        api.fault(
            ObjectKind::Service,
            RequestKind::Watch,
            Fault::Says(504, says.to_owned()),
        );
        api.clear_requests();
        api.cut();
        until_asked(&api, "a list", |api| {
            api.n_requests(ObjectKind::Service, RequestKind::StreamingList) > 0
        })
        .await;
        check_alive(&api, &followed).await;
        assert_eq!(followed.n_services(), 3);
    });
}

#[test]
fn life_4_an_outage_without_a_restore_costs_no_list() {
    run(async {
        let api = small();
        let followed = with_late_changes(&api, timing()).await;
        api.clear_requests();
        for last in 50..55 {
            api.cut();
            api.put(service("a", last));
            followed.until("a", |store| is_at(store, "a", last)).await;
        }
        assert_eq!(api.n_lists(ObjectKind::Service), 0);
    });
}
