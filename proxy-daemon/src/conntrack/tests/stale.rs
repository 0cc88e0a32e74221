//! Which flows are stale, and for how long is a removed frontend remembered?

use super::*;

/// Whether the flow is stale where one ServicePort has these live endpoints, and nothing was withdrawn.
fn is_stale(live: &[Ipv4Addr], flow: &Flow<V4>) -> bool {
    let state = state(&[service_port(L4Proto::Udp, live)]);
    Plan::new(&state, &RemovedFrontends::unknown()).is_stale(flow)
}

/// Whether the flow is stale where nothing is left of a ServicePort but what these have.
fn is_stale_after(
    gone: &Arc<ServicePort<V4>>,
    left: &[Arc<ServicePort<V4>>],
    flow: &Flow<V4>,
) -> bool {
    let state = state(left);
    let mut removed = RemovedFrontends::unknown();
    removed.note(&changes(Some(gone), None), &state.globals);
    Plan::new(&state, &removed).is_stale(flow)
}

#[test]
fn ct_1_flows_to_backends_that_are_gone_are_stale() {
    let gone = flow((VIP, 53), (P2, 5353));
    assert!(is_stale(&[P1], &gone));
    assert!(!is_stale(&[P1, P2], &gone));
    assert!(
        is_stale(&[P1], &flow((VIP, 53), (P1, 53))),
        "the port changed"
    );
    assert!(
        is_stale(&[P1], &flow((VIP, 53), (VIP, 53))),
        "never translated"
    );
    assert!(is_stale(&[P1], &flow((NODE, 30053), (P2, 5353))));
}

#[test]
fn ct_1_other_flows_are_left_alone() {
    assert!(!is_stale(&[P1], &flow((VIP, 54), (P2, 5353))));
    assert!(!is_stale(&[P1], &flow((P2, 53), (P2, 53))));
    assert!(!is_stale(&[P1], &flow((VIP, 0), (P2, 5353))));
}

#[test]
fn ct_3_without_live_endpoints_every_flow_to_a_frontend_is_stale() {
    assert!(is_stale(&[], &flow((VIP, 53), (P2, 5353))));
    assert!(is_stale(&[], &flow((VIP, 53), (VIP, 53))));
    assert!(is_stale(&[], &flow((NODE, 30053), (NODE, 30053))));
    assert!(!is_stale(&[], &flow((VIP, 54), (P2, 5353))));
}

#[test]
fn ct_3_of_a_former_frontend_only_translated_flows_are_stale() {
    let gone = service_port(L4Proto::Udp, &[P1]);
    for destination in [(VIP, 53), (NODE, 30053)] {
        assert!(is_stale_after(&gone, &[], &flow(destination, (P1, 5353))));
        let own = flow(destination, destination);
        assert!(!is_stale_after(&gone, &[], &own), "a process of the node");
    }
    assert!(!is_stale_after(&gone, &[], &flow((VIP, 54), (P1, 5353))));
    let tcp = service_port(L4Proto::Tcp, &[P1]);
    assert!(!is_stale_after(&tcp, &[], &flow((VIP, 53), (P1, 5353))));
}

#[test]
fn ct_3_a_frontend_that_another_service_has_now_is_judged_by_it() {
    let gone = service_port(L4Proto::Udp, &[P1]);
    let mut owner = ServicePort::clone(&service_port(L4Proto::Udp, &[P2]));
    owner.id = ServicePortId::new(&"ns/other", "dns", L4Proto::Udp);
    let owner = [Arc::new(owner)];
    for destination in [(VIP, 53), (NODE, 30053)] {
        assert!(is_stale_after(
            &gone,
            &owner,
            &flow(destination, (P1, 5353))
        ));
        assert!(!is_stale_after(
            &gone,
            &owner,
            &flow(destination, (P2, 5353))
        ));
        assert!(is_stale_after(
            &gone,
            &owner,
            &flow(destination, destination)
        ));
    }
}

#[test]
fn ct_3_ct_5_a_withdrawn_node_address_ends_what_was_translated_there() {
    let before = state(&[service_port(L4Proto::Udp, &[P1])]);
    let mut after = before.clone();
    after.globals.node_port_addresses.clear();
    let mut removed = RemovedFrontends::unknown();
    let changes = Changes {
        globals: Some(before.globals),
        ..Changes::default()
    };
    removed.note(&changes, &after.globals);
    let plan = Plan::new(&after, &removed);
    assert!(plan.is_stale(&flow((NODE, 30053), (P1, 5353))));
    assert!(!plan.is_stale(&flow((NODE, 30053), (NODE, 30053))));
    assert!(!plan.is_stale(&flow((NODE, 30054), (P1, 5353))));
}

#[test]
fn ct_3_what_is_remembered_of_former_frontends_is_limited() {
    let globals = state(&[]).globals;
    let mut removed = RemovedFrontends::unknown();
    let mut port = ServicePort::clone(&service_port(L4Proto::Udp, &[P1]));
    for third in 0..=255 {
        port.frontends = (1..=300)
            .map(|number| {
                let key = FrontendKey {
                    address: FrontendAddress::Vip(Ipv4Addr::new(10, 96, third, 1)),
                    protocol: L4Proto::Udp,
                    port: self::port(number),
                };
                let frontend = Frontend {
                    exposure: Exposure::ClusterIp,
                    routes: Routes::all(Route::Reject),
                };
                (key, frontend)
            })
            .collect();
        let gone = Arc::new(port.clone());
        removed.note(&changes(Some(&gone), None), &globals);
    }
    let n_known = (0..=255).flat_map(|third| (1..=300).map(move |number| (third, number)));
    let n_known = n_known.filter(|(third, number)| {
        let address = Ipv4Addr::new(10, 96, *third, 1);
        removed.has(&(FrontendAddress::Vip(address), self::port(*number)))
    });
    assert_eq!(n_known.count(), 1 << 16);
    let now = SystemClock.now();
    removed.looked_at(&globals, now, now + AGAIN);
    assert!(!removed.is_empty(&globals), "it is looked at once more");
    removed.looked_at(&globals, now + AGAIN, now + AGAIN * 2);
    assert!(removed.is_empty(&globals));
}

#[test]
fn ct_3_of_what_went_while_no_daemon_ran_cluster_ips_are_known_by_their_networks() {
    let mut after = state(&[service_port(L4Proto::Udp, &[P1])]);
    after.globals.service_cidrs = ["10.96.0.0/16".parse().unwrap()].into_iter().collect();
    let gone = Ipv4Addr::new(10, 96, 0, 77);
    let mut removed = RemovedFrontends::unknown();
    let is_stale =
        |removed: &RemovedFrontends<V4>, flow: &Flow<V4>| Plan::new(&after, removed).is_stale(flow);
    assert!(is_stale(&removed, &flow((gone, 53), (P1, 5353))));
    assert!(!is_stale(&removed, &flow((gone, 53), (gone, 53))));
    assert!(
        !is_stale(&removed, &flow((VIP, 53), (P1, 5353))),
        "it serves"
    );
    assert!(
        !is_stale(&removed, &flow((NODE, 9), (P1, 5353))),
        "a hostPort"
    );
    let now = SystemClock.now();
    removed.looked_at(&after.globals, now, now + AGAIN);
    assert!(
        is_stale(&removed, &flow((gone, 53), (P1, 5353))),
        "once more"
    );
    removed.looked_at(&after.globals, now + AGAIN, now + AGAIN * 2);
    assert!(
        !is_stale(&removed, &flow((gone, 53), (P1, 5353))),
        "another's"
    );
}

#[test]
fn ct_5_a_node_port_number_of_another_node_is_left_alone() {
    let elsewhere = Ipv4Addr::new(203, 0, 113, 7);
    assert!(!is_stale(
        &[P1],
        &flow((elsewhere, 30053), (elsewhere, 30053))
    ));
}
