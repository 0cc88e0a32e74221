//! LOC: traffic policies. And TERM: which endpoints may receive new connections.

use proxy_tests::address::{EXTERNAL_IP, HOST, HOST_ALT, LB_VIP, NODE, P1, P2, R, R2, VIP, X};
use proxy_tests::case;
use proxy_tests::flow::{Flow, Landing, flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::world::Endpoint;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(loc_1_outsiders_reach_local_endpoints_only),
        case!(loc_2_pods_and_host_are_short_circuited),
        case!(loc_3_outsiders_are_dropped_without_local_endpoint),
        case!(loc_4_everybody_is_rejected_without_endpoints),
        case!(loc_5_without_detector_pods_are_outsiders).flags(&["--cluster-cidr="]),
        case!(loc_6_internal_local_holds_for_every_source),
        case!(loc_7_internal_local_without_local_endpoint_drops),
        case!(loc_8_policies_are_judged_per_frontend),
        case!(loc_9_external_policy_without_external_frontend_is_ignored),
        case!(loc_10_topo_7_topology_does_not_filter_local_endpoints),
        case!(loc_11_policy_changes_spare_established_connections)
            .kernel()
            .tcp(),
        case!(term_1_ready_endpoints_only),
        case!(term_2_terminating_endpoints_serve_when_none_is_ready),
        case!(term_3_local_set_falls_back_on_its_own),
        case!(term_4_what_does_not_serve_is_never_chosen),
        case!(term_5_remote_terminating_endpoints_count_as_any),
        case!(term_6_terminating_endpoints_ignore_hints),
        case!(term_8_losing_eligibility_spares_established_connections)
            .kernel()
            .tcp(),
    ]
}

const EXTERNAL: [(proxy_tests::address::Addr, u16); 3] =
    [(NODE, PORT), (EXTERNAL_IP, 80), (LB_VIP, 80)];

/// A Service with every kind of frontend.
fn web(t: &mut Test) -> &mut proxy_tests::world::Service {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP)
}

fn external(client: proxy_tests::address::Host, expect: impl Fn(Flow) -> Flow) -> Vec<Flow> {
    EXTERNAL
        .iter()
        .map(|(to, port)| expect(flow(client, *to, *port)))
        .collect()
}

fn reaching(landings: &[Landing]) -> impl Fn(Flow) -> Flow {
    let landings = landings.to_vec();
    move |flow| flow.reaches(landings.clone())
}

fn loc_1_outsiders_reach_local_endpoints_only(t: &mut Test) {
    web(t).external_local();
    t.endpoints("web").ready(P2).ready(R);
    t.check(external(X, reaching(&[kept(P2)])));
}

fn loc_2_pods_and_host_are_short_circuited(t: &mut Test) {
    web(t).external_local();
    t.endpoints("web").ready(P2).ready(R);
    t.check(external(P1, reaching(&[kept(P2), kept(R)])));
    t.check(external(
        HOST_ALT,
        reaching(&[masqueraded(P2), masqueraded(R)]),
    ));
}

fn loc_3_outsiders_are_dropped_without_local_endpoint(t: &mut Test) {
    web(t).external_local();
    t.endpoints("web").ready(R);
    let mut flows = external(X, Flow::is_dropped);
    flows.extend(external(P1, reaching(&[kept(R)])));
    flows.extend(external(HOST_ALT, reaching(&[masqueraded(R)])));
    t.check(flows);
}

fn loc_4_everybody_is_rejected_without_endpoints(t: &mut Test) {
    web(t).external_local();
    let flows = [X, P1, HOST]
        .into_iter()
        .flat_map(|client| external(client, Flow::is_rejected));
    t.check(flows);
}

fn loc_5_without_detector_pods_are_outsiders(t: &mut Test) {
    web(t).external_local();
    t.endpoints("web").ready(P2).ready(R);
    let mut flows = external(P1, reaching(&[kept(P2)]));
    flows.extend(external(X, reaching(&[kept(P2)])));
    t.check(flows);
    t.endpoints("web").clear().ready(R);
    t.check(external(P1, Flow::is_dropped));
}

fn loc_6_internal_local_holds_for_every_source(t: &mut Test) {
    web(t).internal_local();
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(HOST_ALT, VIP, 80).reaches([masqueraded(P2)]),
        flow(X, VIP, 80).reaches([masqueraded(P2)]),
    ]);
}

fn loc_7_internal_local_without_local_endpoint_drops(t: &mut Test) {
    web(t).internal_local();
    t.endpoints("web").ready(R);
    let mut flows = external(X, reaching(&[masqueraded(R)]));
    flows.extend([P1, HOST, X].map(|client| flow(client, VIP, 80).is_dropped()));
    t.check(flows);
}

fn loc_8_policies_are_judged_per_frontend(t: &mut Test) {
    web(t).internal_local().external_local();
    t.endpoints("web").ready(P2).ready(R);
    let mut flows = external(X, reaching(&[kept(P2)]));
    flows.extend(external(P1, reaching(&[kept(P2), kept(R)])));
    flows.push(flow(P1, VIP, 80).reaches([kept(P2)]));
    flows.push(flow(X, VIP, 80).reaches([masqueraded(P2)]));
    t.check(flows);
    t.endpoints("web").clear().ready(R);
    let mut flows = external(X, Flow::is_dropped);
    flows.extend(external(P1, reaching(&[kept(R)])));
    flows.push(flow(P1, VIP, 80).is_dropped());
    t.check(flows);
}

fn loc_9_external_policy_without_external_frontend_is_ignored(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80).external_local();
    t.endpoints("web").ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2), kept(R)]),
        flow(X, VIP, 80).reaches([masqueraded(P2), masqueraded(R)]),
    ]);
}

fn loc_10_topo_7_topology_does_not_filter_local_endpoints(t: &mut Test) {
    web(t).external_local();
    t.endpoints("web")
        .endpoint(Endpoint::new(P2).for_zones(&["zone-b"]));
    t.endpoints("web")
        .endpoint(Endpoint::new(R).for_zones(&["zone-a"]));
    let mut flows = external(X, reaching(&[kept(P2)]));
    flows.extend(external(P1, reaching(&[kept(R)])));
    flows.push(flow(P1, VIP, 80).reaches([kept(R)]));
    t.check(flows);
    t.service("web").internal_local();
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn loc_11_policy_changes_spare_established_connections(t: &mut Test) {
    web(t);
    t.endpoints("web").ready(R);
    t.apply();
    let mut outside = t.stream(&flow(X, NODE, PORT));
    let mut inside = t.stream(&flow(P1, VIP, 80));
    t.service("web").external_local().internal_local();
    t.check([
        flow(X, NODE, PORT).is_dropped(),
        flow(P1, VIP, 80).is_dropped(),
    ]);
    outside.echo().unwrap();
    inside.echo().unwrap();
}

fn term_1_ready_endpoints_only(t: &mut Test) {
    web(t);
    t.endpoints("web").ready(P2).terminating(R).unready(R2);
    let mut flows = external(X, reaching(&[masqueraded(P2)]));
    flows.push(flow(P1, VIP, 80).reaches([kept(P2)]));
    t.check(flows);
}

fn term_2_terminating_endpoints_serve_when_none_is_ready(t: &mut Test) {
    web(t);
    t.endpoints("web")
        .terminating(P2)
        .terminating(R)
        .unready(R2);
    let mut flows = external(X, reaching(&[masqueraded(P2), masqueraded(R)]));
    flows.push(flow(P1, VIP, 80).reaches([kept(P2), kept(R)]));
    t.check(flows);
}

fn term_3_local_set_falls_back_on_its_own(t: &mut Test) {
    web(t).external_local();
    t.endpoints("web").terminating(P2).ready(R);
    let mut flows = external(X, reaching(&[kept(P2)]));
    flows.extend(external(P1, reaching(&[kept(R)])));
    flows.push(flow(P1, VIP, 80).reaches([kept(R)]));
    t.check(flows);
    t.service("web").internal_local();
    t.check([flow(P1, VIP, 80).reaches([kept(P2)])]);
}

fn term_4_what_does_not_serve_is_never_chosen(t: &mut Test) {
    web(t);
    t.endpoints("web").gone(P2);
    let mut flows = external(X, Flow::is_rejected);
    flows.push(flow(P1, VIP, 80).is_rejected());
    t.check(flows.clone());
    t.endpoints("web").clear().unready(P2);
    t.check(flows.clone());
    t.endpoints("web")
        .clear()
        .endpoint(Endpoint::new(P2).conditions(false, true, false));
    t.check(flows);
}

fn term_5_remote_terminating_endpoints_count_as_any(t: &mut Test) {
    web(t).internal_local().external_local();
    t.endpoints("web").terminating(R);
    let mut flows = external(X, Flow::is_dropped);
    flows.extend(external(P1, reaching(&[kept(R)])));
    flows.push(flow(P1, VIP, 80).is_dropped());
    t.check(flows);
}

fn term_6_terminating_endpoints_ignore_hints(t: &mut Test) {
    web(t);
    let terminating = |host| Endpoint::new(host).conditions(false, true, true);
    t.endpoints("web")
        .endpoint(terminating(P2).for_zones(&["zone-b"]));
    t.endpoints("web")
        .endpoint(terminating(R).for_zones(&["zone-a"]));
    t.check([flow(P1, VIP, 80).reaches([kept(P2), kept(R)])]);
}

fn term_8_losing_eligibility_spares_established_connections(t: &mut Test) {
    web(t);
    t.endpoints("web").ready(P2);
    t.apply();
    let mut inside = t.stream(&flow(P1, VIP, 80));
    let mut outside = t.stream(&flow(X, NODE, PORT));
    let states: [fn(&mut proxy_tests::world::Slice); 3] = [
        |slice| _ = slice.clear().terminating(P2).ready(R),
        |slice| _ = slice.clear().gone(P2).ready(R),
        |slice| _ = slice.clear().ready(R),
    ];
    for state in states {
        state(t.endpoints("web"));
        t.check([flow(P1, VIP, 80).reaches([kept(R)])]);
        inside.echo().unwrap();
        outside.echo().unwrap();
    }
}
