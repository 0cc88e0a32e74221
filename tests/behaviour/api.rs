//! API, and the tests of LIFE, SYNC and REJ that need an API server: the daemon follows a scripted one.

use std::time::Duration;

use nix::sys::signal::Signal;
use proxy_daemon::watch::ObjectKind;
use proxy_tests::address::{HOST, P1, P2, R, R2, Site, VIP, VIP2, VIP3, X};
use proxy_tests::case;
use proxy_tests::fake_api::{FakeApi, Fault, Streaming};
use proxy_tests::flow::{flow, kept};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::sniff::Seen;
use proxy_tests::wait::within;

use crate::common::rules;

/// LIFE-3 allows so long, from an API server that is back to packets.
const SOON: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(api_4_services_are_served_from_an_api_server)
            .kernel()
            .tcp()
            .fresh(),
        case!(life_2_an_api_server_that_is_down_at_start_changes_nothing)
            .tcp()
            .v4()
            .fresh(),
        case!(life_3_an_outage_of_the_api_server_is_not_noticed)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
        case!(sync_12_nothing_is_written_before_every_kind_is_listed)
            .tcp()
            .v4()
            .fresh(),
        case!(rej_7_forbidden_service_cidrs_hold_up_nothing)
            .kernel()
            .tcp()
            .v4()
            .fresh(),
    ]
}

fn web(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2).ready(R);
}

/// Starts an API server in the node's namespace; the daemon does not use it yet.
fn api_server(t: &mut Test) -> FakeApi {
    FakeApi::start_in(t.ns(Site::N)).unwrap()
}

/// Puts the objects of the world into the API server.
fn publish(t: &Test, api: &FakeApi) {
    api.replace_all(t.manifest()["items"].as_array().unwrap().clone());
}

/// Makes the daemon follow the API server from its start on.
fn follow(t: &mut Test, api: &FakeApi) {
    let bed = t.bed_mut();
    if bed.daemon.is_started() {
        bed.daemon.signal(Signal::SIGKILL).unwrap();
    }
    bed.daemon.remove_flag("--manifests");
    bed.daemon.set_flags(&[&format!("--master={}", api.url())]);
    bed.daemon.start(bed.topology.site(Site::N)).unwrap();
}

/// Waits until the server was asked so often.
fn until_asked(t: &Test, api: &FakeApi, kind: ObjectKind, n_times: usize) {
    assert!(
        within(SOON, || api.n_lists(kind) >= n_times),
        "the daemon does not ask: {}",
        t.state()
    );
}

fn api_4_services_are_served_from_an_api_server(t: &mut Test) {
    for streaming in [Streaming::On, Streaming::Refused] {
        let api = api_server(t);
        api.set_streaming(streaming);
        web(t);
        publish(t, &api);
        follow(t, &api);
        t.eventually(SOON, [flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
        t.endpoints("web").clear().ready(R2);
        t.service("new").cluster_ip(VIP2).port(80);
        t.endpoints("new").ready(P2);
        publish(t, &api);
        t.eventually(
            SOON,
            [
                flow(P1, VIP, 80).reaches([kept(R2)]),
                flow(P1, VIP2, 80).reaches([kept(P2)]),
            ],
        );
        t.delete_service("new");
        publish(t, &api);
        t.eventually(SOON, [flow(P1, VIP2, 80).is_dropped()]);
        t.endpoints("web").clear();
    }
}

fn life_2_an_api_server_that_is_down_at_start_changes_nothing(t: &mut Test) {
    web(t);
    let works = || [flow(P1, VIP, 80).reaches([kept(P2), kept(R)])];
    t.check(works());
    let before = rules(t);
    let api = api_server(t);
    api.down();
    let loopback = t.sniff(HOST, "lo");
    follow(t, &api);
    // The API server's port is closed: only the wire tells that the daemon asked, and asked again.
    let mut n_refusals = 0;
    let asks_again = within(SOON, || {
        let refused = |p: &Seen| p.is_reset() && p.source_port == api.address().port();
        n_refusals += loopback.packets().iter().filter(|p| refused(p)).count();
        n_refusals >= 2
    });
    assert!(asks_again, "{}", t.state());
    t.observe(works());
    assert_eq!(rules(t), before);
    t.endpoints("web").clear().ready(R2);
    publish(t, &api);
    api.up();
    t.eventually(SOON, [flow(P1, VIP, 80).reaches([kept(R2)])]);
}

fn life_3_an_outage_of_the_api_server_is_not_noticed(t: &mut Test) {
    let api = api_server(t);
    web(t);
    publish(t, &api);
    follow(t, &api);
    let works = || [flow(P1, VIP, 80).reaches([kept(P2), kept(R)])];
    t.eventually(SOON, works());
    let hammer = t.hammer(&flow(P1, VIP, 80));
    api.down();
    t.endpoints("web").clear().ready(R2);
    t.service("new").cluster_ip(VIP2).port(80);
    t.endpoints("new").ready(P2);
    publish(t, &api);
    t.observe(works());
    // Nobody can go on from where he was.
    api.compact();
    api.up();
    t.eventually(
        SOON,
        [
            flow(P1, VIP, 80).reaches([kept(R2)]),
            flow(P1, VIP2, 80).reaches([kept(P2)]),
        ],
    );
    hammer.was_always_answered();
}

fn sync_12_nothing_is_written_before_every_kind_is_listed(t: &mut Test) {
    web(t);
    let works = || [flow(P1, VIP, 80).reaches([kept(P2), kept(R)])];
    t.check(works());
    let before = rules(t);
    let api = api_server(t);
    api.fault_lists(ObjectKind::EndpointSlice, Fault::Withhold, u32::MAX);
    t.delete_service("web");
    t.service("new").cluster_ip(VIP2).port(80);
    t.endpoints("new").ready(P2);
    publish(t, &api);
    follow(t, &api);
    until_asked(t, &api, ObjectKind::Service, 1);
    until_asked(t, &api, ObjectKind::EndpointSlice, 1);
    // The Services are there within milliseconds. A sync that must not happen has no end to wait for; the end of this test shows
    // that it happens as soon as it may.
    std::thread::sleep(Duration::from_secs(1));
    t.observe(works());
    assert_eq!(rules(t), before);
    api.clear_faults();
    api.cut();
    t.eventually(
        SOON,
        [
            flow(P1, VIP2, 80).reaches([kept(P2)]),
            flow(P1, VIP, 80).is_dropped(),
        ],
    );
}

fn rej_7_forbidden_service_cidrs_hold_up_nothing(t: &mut Test) {
    let api = api_server(t);
    api.faults(ObjectKind::ServiceCidr, None, Fault::Status(403, None), 3);
    web(t);
    publish(t, &api);
    follow(t, &api);
    t.eventually(SOON, [flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
    // It is asked for again, and then addresses that no Service has are dropped.
    t.eventually(
        Duration::from_secs(20),
        [
            flow(P1, VIP3, 80).is_dropped(),
            flow(X, VIP3, 80).is_dropped(),
        ],
    );
    until_asked(t, &api, ObjectKind::ServiceCidr, 4);
}
