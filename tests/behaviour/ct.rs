//! CT: connection tracking.

use std::time::{Duration, Instant};

use proxy_tests::address::{
    EXTERNAL_IP, Family, HOST, Host, LB_VIP, NODE, OUT, P1, P2, Protocol, R, R2, Site, VIP, X,
};
use proxy_tests::case;
use proxy_tests::client::Outcome;
use proxy_tests::flow::{Flow, flow, kept};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::segment::{Flags, Segment};
use proxy_tests::world::Endpoint;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(ct_1_ct_13_clients_with_a_fixed_port_move_to_a_live_endpoint)
            .kernel()
            .udp(),
        case!(ct_1_a_changed_target_port_moves_the_flow)
            .kernel()
            .udp(),
        case!(ct_2_serving_or_ready_endpoints_keep_their_flows)
            .kernel()
            .udp(),
        case!(ct_4_a_new_frontend_cleans_untranslated_flows)
            .kernel()
            .udp(),
        case!(ct_5_flows_to_other_hosts_node_ports_are_left_alone)
            .kernel()
            .udp()
            .fresh(),
        case!(ct_6_tcp_and_sctp_flows_are_never_deleted)
            .kernel()
            .protocols(&[Protocol::Tcp, Protocol::Sctp]),
        case!(ct_7_rej_10_invalid_packets_do_not_leak)
            .kernel()
            .tcp(),
    ]
}

/// Asks from a fixed source port, which makes it the same flow each time.
fn ask(t: &Test, flow: &Flow) -> Outcome {
    let mut attempt = t.attempt(flow);
    let own = attempt.source.map_or(t.ip(NODE), |source| source.ip());
    attempt.source = Some((own, 33_333).into());
    attempt.patience = Duration::from_secs(2);
    attempt.run(t.ns(flow.client.site))
}

#[track_caller]
fn answers(t: &Test, flow: &Flow, host: Host) {
    match ask(t, flow) {
        Outcome::Reached(to) if to.backend == host.name() => {}
        other => panic!(
            "{}: {other}, not {}{}",
            flow.client.name(),
            host.name(),
            t.state()
        ),
    }
}

#[track_caller]
fn answers_soon(t: &Test, flow: &Flow, host: Host) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match ask(t, flow) {
            Outcome::Reached(to) if to.backend == host.name() => return,
            other if Instant::now() > deadline => {
                panic!(
                    "{}: {other}, not {}{}",
                    flow.client.name(),
                    host.name(),
                    t.state()
                )
            }
            // A packet on its way while the entry is deleted would make a new entry, from the server's side.
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// How many conntrack entries go to an address.
fn n_entries(t: &Test, to: std::net::IpAddr) -> usize {
    let family = if t.family == Family::V4 {
        "ipv4"
    } else {
        "ipv6"
    };
    let output = t
        .node_ns()
        .run("conntrack", &["-L", "-f", family, "-d", &to.to_string()]);
    String::from_utf8_lossy(&output.stdout).lines().count()
}

fn web(t: &mut Test) {
    t.service("web")
        .cluster_ip(VIP)
        .port(80)
        .node_port(PORT)
        .external_ip(EXTERNAL_IP);
    t.service("web").load_balancer(LB_VIP);
}

fn ct_1_ct_13_clients_with_a_fixed_port_move_to_a_live_endpoint(t: &mut Test) {
    let flows = [
        flow(P1, VIP, 80),
        flow(HOST, VIP, 80),
        flow(X, NODE, PORT),
        flow(X, EXTERNAL_IP, 80),
        flow(X, LB_VIP, 80),
    ];
    web(t);
    t.endpoints("web").ready(P2);
    t.apply();
    for flow in &flows {
        answers(t, flow, P2);
    }
    t.endpoints("web").clear().ready(R);
    t.apply();
    for flow in &flows {
        answers_soon(t, flow, R);
    }
}

fn ct_1_a_changed_target_port_moves_the_flow(t: &mut Test) {
    web(t);
    t.endpoints("web").ready(P2).port("", 9);
    t.apply();
    assert_eq!(ask(t, &flow(P1, VIP, 80)), Outcome::Refused);
    t.endpoints("web").no_ports();
    t.apply();
    answers_soon(t, &flow(P1, VIP, 80), P2);
}

fn ct_2_serving_or_ready_endpoints_keep_their_flows(t: &mut Test) {
    let client = flow(P1, VIP, 80);
    web(t);
    t.endpoints("web").ready(P2);
    t.apply();
    answers(t, &client, P2);
    t.endpoints("web").clear().terminating(P2).ready(R);
    t.apply();
    answers(t, &client, P2);
    let published = Endpoint::new(P2).conditions(true, false, true);
    t.endpoints("web").clear().endpoint(published).ready(R);
    t.apply();
    answers(t, &client, P2);
    t.endpoints("web").clear().unready(P2).ready(R);
    t.apply();
    answers_soon(t, &client, R);
}

fn ct_4_a_new_frontend_cleans_untranslated_flows(t: &mut Test) {
    let client = flow(P1, EXTERNAL_IP, 80);
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.apply();
    answers(t, &client, OUT);
    t.service("web").external_ip(EXTERNAL_IP);
    t.apply();
    answers_soon(t, &client, P2);
}

fn ct_5_flows_to_other_hosts_node_ports_are_left_alone(t: &mut Test) {
    t.bed_mut().serve(X, X.addr, &[PORT]).unwrap();
    web(t);
    t.endpoints("web").ready(P2);
    t.apply();
    answers(t, &flow(P1, X.addr, PORT), X);
    answers(t, &flow(X, NODE, PORT), P2);
    assert_eq!(n_entries(t, t.ip(X.addr)), 1);
    t.endpoints("web").clear().ready(R);
    t.apply();
    answers_soon(t, &flow(X, NODE, PORT), R);
    assert_eq!(n_entries(t, t.ip(X.addr)), 1);
}

fn ct_6_tcp_and_sctp_flows_are_never_deleted(t: &mut Test) {
    web(t);
    t.endpoints("web").ready(P2);
    t.apply();
    if t.protocol == Protocol::Sctp {
        answers(t, &flow(P1, VIP, 80), P2);
        t.endpoints("web").clear().ready(R);
        t.check([flow(P1, VIP, 80).reaches([kept(R)])]);
        // The same association still reaches the same endpoint.
        answers(t, &flow(P1, VIP, 80), P2);
    } else {
        let mut inside = t.stream(&flow(P1, VIP, 80));
        let mut outside = t.stream(&flow(X, LB_VIP, 80));
        t.endpoints("web").clear().ready(R);
        t.check([flow(P1, VIP, 80).reaches([kept(R)])]);
        t.endpoints("web").clear().ready(R2);
        t.check([flow(P1, VIP, 80).reaches([kept(R2)])]);
        inside.echo().unwrap();
        outside.echo().unwrap();
    }
}

fn ct_7_rej_10_invalid_packets_do_not_leak(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(80);
    t.endpoints("web").ready(P2);
    t.apply();
    let mut stream = t.stream(&flow(P1, VIP, 80));
    stream.echo().unwrap();
    let pod = t.sniff(P1, "eth0");
    stream.echo().unwrap();
    let vip = t.ip(VIP);
    let latest = pod
        .packets()
        .into_iter()
        .rfind(|p| p.source == vip)
        .unwrap();
    let number = |at: usize| u32::from_be_bytes(latest.payload[at..at + 4].try_into().unwrap());
    let (server, client) = (t.ip(P2.addr), stream.local().unwrap());
    let outside = Segment {
        source: (server, proxy_tests::world::TARGET_PORT).into(),
        destination: client,
        // Far above the window.
        sequence: number(4).wrapping_add(0x4000_0000),
        acknowledgement: number(8),
        flags: Flags::Ack,
        payload: b"boom".to_vec(),
    };
    for n in 0..5 {
        let sequence = outside.sequence.wrapping_add(n * 1000);
        Segment {
            sequence,
            ..outside.clone()
        }
        .send(t.ns(Site::P2))
        .unwrap();
    }
    stream.echo().unwrap();
    // A packet from another port of that address belongs to another flow.
    let elsewhere = Segment {
        flags: Flags::SynAck,
        source: (server, 7777).into(),
        ..outside.clone()
    };
    elsewhere.send(t.ns(Site::P2)).unwrap();
    // A packet that conntrack has no opinion of shows that such packets do arrive.
    let fresh = Segment {
        flags: Flags::Syn,
        source: (server, 40_000).into(),
        ..outside
    };
    fresh.send(t.ns(Site::P2)).unwrap();
    t.observe([flow(P1, VIP, 80).reaches([kept(P2)]).times(1)]);
    let packets = pod.packets();
    let from_server = |port| {
        packets
            .iter()
            .filter(|p| p.source == server && p.source_port == port)
            .count()
    };
    assert_eq!(from_server(40_000), 1, "the control arrives");
    assert_eq!(from_server(7777), 1, "an answer from another port arrives");
    assert_eq!(
        from_server(proxy_tests::world::TARGET_PORT),
        0,
        "untranslated packets arrive"
    );
    assert!(
        !packets
            .iter()
            .any(|p| p.outgoing && p.is_reset() && p.destination_port == 8080)
    );
    stream.echo().unwrap();
}
