//! XM: behaviour that every datapath must have.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_tests::address::{
    Addr, EXTERNAL_IP, Family, HOST, Host, NODE, NODE_NAME, P1, P2, POD_GATEWAY, Protocol, R, R2,
    Site, VIP, X,
};
use proxy_tests::bed::SECOND_PORT;
use proxy_tests::case;
use proxy_tests::client::Outcome;
use proxy_tests::flow::{flow, kept, masqueraded, seen_as};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::segment::{Flags, Segment};
use proxy_tests::world::TARGET_PORT;

const PORT: u16 = 30_080;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(xm_2_a_closed_endpoint_port_is_reported_to_the_client)
            .kernel()
            .udp(),
        case!(xm_2_too_big_packets_are_reported_to_the_client)
            .kernel()
            .tcp()
            .fresh(),
        case!(xm_3_fragments_reach_one_endpoint_and_come_back).udp(),
        case!(xm_4_checksums_are_right_without_offloads)
            .tcp()
            .fresh(),
        case!(xm_5_sctp_ports_are_rewritten_with_their_checksum).protocols(&[Protocol::Sctp]),
        case!(xm_6_host_udp_sockets_see_the_vip).kernel().udp(),
        case!(xm_6_a_connected_host_udp_socket_moves_to_a_live_endpoint)
            .kernel()
            .udp(),
        case!(xm_7_a_forward_rule_sees_translated_packets)
            .tcp()
            .fresh(),
        case!(xm_7_foreign_translations_work_beside_ours)
            .kernel()
            .tcp()
            .fresh(),
        case!(xm_8_bridged_replies_are_translated_back).bridge(),
        case!(xm_10_packets_without_a_record_never_leave_towards_the_vip)
            .kernel()
            .tcp(),
        case!(xm_11_new_pods_are_covered_at_once).kernel().fresh(),
        case!(xm_7_a_vip_that_its_owner_takes_out_of_tracking_is_the_owners)
            .kernel()
            .fresh(),
        case!(xm_12_foreign_rules_keep_counting)
            .kernel()
            .tcp()
            .fresh(),
        case!(xm_13_ttl_and_dscp_change_as_by_forwarding)
            .kernel()
            .tcp()
            .fresh(),
        case!(xm_14_streams_survive_restart_and_flush)
            .kernel()
            .tcp()
            .fresh()
            .flags(&[SOON]),
    ]
}

const SOON: &str = "--iptables-sync-period=1s";

fn web(t: &mut Test, host: Host) {
    t.service("web").cluster_ip(VIP).port(80).node_port(PORT);
    t.endpoints("web").ready(host);
}

fn xm_2_a_closed_endpoint_port_is_reported_to_the_client(t: &mut Test) {
    web(t, P2);
    t.endpoints("web").port("", 9);
    t.apply();
    t.observe([
        flow(P1, VIP, 80).is_rejected(),
        flow(HOST, VIP, 80).is_rejected(),
        flow(X, NODE, PORT).is_rejected(),
    ]);
}

fn xm_2_too_big_packets_are_reported_to_the_client(t: &mut Test) {
    web(t, R);
    t.ip_tool(Site::Upstream, "link set r0 mtu 1300");
    t.ip_tool(Site::R, "link set eth0 mtu 1300");
    // Without the ICMP errors, large segments would be lost.
    t.check([
        flow(P1, VIP, 80).bytes(300_000).reaches([kept(R)]).times(3),
        flow(X, NODE, PORT)
            .bytes(300_000)
            .reaches([masqueraded(R)])
            .times(3),
    ]);
}

fn xm_3_fragments_reach_one_endpoint_and_come_back(t: &mut Test) {
    web(t, P2);
    t.endpoints("web").ready(R);
    t.check([
        flow(P1, VIP, 80).bytes(9000).reaches([kept(P2), kept(R)]),
        flow(X, NODE, PORT)
            .bytes(20_000)
            .reaches([masqueraded(P2), masqueraded(R)]),
    ]);
}

fn xm_4_checksums_are_right_without_offloads(t: &mut Test) {
    web(t, P2);
    t.endpoints("web").ready(R);
    let big = |t: &mut Test| {
        let large = |client, to, port| flow(client, to, port).bytes(500_000).times(20);
        t.check([
            large(P1, VIP, 80).reaches([kept(P2), kept(R)]),
            large(X, NODE, PORT).reaches([masqueraded(P2), masqueraded(R)]),
        ]);
    };
    big(t);
    for site in [Site::P1, Site::P2, Site::R, Site::X] {
        t.ns(site)
            .check_run("ethtool", &["-K", "eth0", "tx", "off", "rx", "off"])
            .unwrap();
    }
    big(t);
    for site in Site::ALL {
        let text = t
            .ns(site)
            .check_run("nstat", &["-az", "TcpInCsumErrors"])
            .unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("TcpInCsumErrors"))
            .unwrap();
        assert_eq!(
            line.split_whitespace().nth(1),
            Some("0"),
            "{site:?}: {line}"
        );
    }
}

fn xm_5_sctp_ports_are_rewritten_with_their_checksum(t: &mut Test) {
    t.service("web").cluster_ip(VIP).port(5060).node_port(PORT);
    t.endpoints("web").port("", SECOND_PORT).ready(P2).ready(R);
    t.check([
        flow(P1, VIP, 5060).reaches([kept(P2).on(SECOND_PORT), kept(R).on(SECOND_PORT)]),
        flow(X, NODE, PORT).reaches([masqueraded(P2), masqueraded(R)]),
    ]);
}

/// A UDP socket of the host, as a program would make it.
fn host_socket(t: &Test) -> UdpSocket {
    let any = if t.family == Family::V4 {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = t.node_ns().enter(|| UdpSocket::bind(any)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    socket
}

fn xm_6_host_udp_sockets_see_the_vip(t: &mut Test) {
    web(t, R);
    t.apply();
    let socket = host_socket(t);
    let vip = std::net::SocketAddr::new(t.ip(VIP), 80);
    socket.send_to(b"ping", vip).unwrap();
    let mut answer = [0; 200];
    let (n, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(from, vip);
    assert!(answer[..n].starts_with(b"R "));
}

fn xm_6_a_connected_host_udp_socket_moves_to_a_live_endpoint(t: &mut Test) {
    web(t, R);
    t.apply();
    let socket = host_socket(t);
    socket
        .connect(std::net::SocketAddr::new(t.ip(VIP), 80))
        .unwrap();
    let ask = || {
        let mut answer = [0; 200];
        drop(socket.send(b"ping"));
        let n = socket.recv(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..n])
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(ask(), "R");
    t.endpoints("web").clear().ready(R2);
    t.apply();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut moved = false;
    while !moved && Instant::now() < deadline {
        moved = ask() == "R2";
    }
    assert!(moved, "it stays with an endpoint that is gone{}", t.state());
}

fn xm_7_a_forward_rule_sees_translated_packets(t: &mut Test) {
    web(t, R);
    t.endpoints("web").ready(P2);
    t.check([flow(P1, VIP, 80).reaches([kept(R), kept(P2)])]);
    let family = if t.family == Family::V4 { "ip" } else { "ip6" };
    let (pod, remote) = (t.ip(P1.addr), t.ip(R.addr));
    t.nft(&format!(
        "table {family} netpol {{ chain forward {{ type filter hook forward priority filter;
           {family} saddr {pod} {family} daddr {remote} tcp dport {TARGET_PORT} reject with {} port-unreachable;
         }}
         }}",
        if family == "ip" { "icmp" } else { "icmpv6" }
    ));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..25 {
        match t.try_once(&flow(P1, VIP, 80)) {
            Outcome::Reached(to) => _ = seen.insert(to.backend),
            Outcome::Refused => _ = seen.insert("refused".into()),
            other => panic!("{other}"),
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["P2", "refused"]);
}

fn xm_7_foreign_translations_work_beside_ours(t: &mut Test) {
    web(t, R);
    t.apply();
    let (family, target) = match t.ip(P2.addr) {
        std::net::IpAddr::V4(v4) => ("ip", format!("{v4}:{SECOND_PORT}")),
        std::net::IpAddr::V6(v6) => ("ip6", format!("[{v6}]:{SECOND_PORT}")),
    };
    let node = t.ip(NODE);
    t.nft(&format!(
        "table {family} portmap {{
           chain arrives {{ type nat hook prerouting priority dstnat + 5;
             {family} daddr {node} tcp dport 18080 dnat to {target}
           }}
           chain sent {{ type nat hook output priority -95;
             {family} daddr {node} tcp dport 18080 dnat to {target}
           }}
         }}"
    ));
    t.observe([
        flow(X, NODE, 18_080).reaches([kept(P2).on(SECOND_PORT)]),
        flow(P1, NODE, 18_080).reaches([kept(P2).on(SECOND_PORT)]),
        flow(X, NODE, PORT).reaches([masqueraded(R)]),
        flow(P1, VIP, 80).reaches([kept(R)]),
    ]);
}

fn xm_8_bridged_replies_are_translated_back(t: &mut Test) {
    web(t, P2);
    t.endpoints("web").ready(R);
    t.check([
        flow(P1, VIP, 80).reaches([kept(P2), kept(R)]),
        flow(P2, VIP, 80).reaches([masqueraded(P2), kept(R)]),
        flow(P1, NODE, PORT).reaches([masqueraded(P2), masqueraded(R)]),
        flow(X, NODE, PORT).reaches([masqueraded(P2), masqueraded(R)]),
    ]);
}

fn xm_10_packets_without_a_record_never_leave_towards_the_vip(t: &mut Test) {
    web(t, R);
    t.apply();
    let (uplink, link) = (t.sniff(HOST, "up0"), t.sniff(HOST, "p1"));
    let (own, vip) = (t.ip(P1.addr), t.ip(VIP));
    for n in 0..5 {
        let segment = Segment {
            source: (own, 41_000 + n).into(),
            destination: (vip, 80).into(),
            sequence: 1000,
            acknowledgement: 1000,
            flags: Flags::Ack,
            payload: b"late".to_vec(),
        };
        segment.send(t.ns(Site::P1)).unwrap();
    }
    t.observe([flow(P1, VIP, 80).reaches([kept(R)])]);
    let late = link.towards(&[vip], vip);
    let n_late = late.iter().filter(|p| p.payload.ends_with(b"late"));
    assert_eq!(n_late.count(), 5, "all came to the node: {late:?}");
    assert_eq!(uplink.towards(&[vip], t.ip(R.addr)), []);
}

fn xm_11_new_pods_are_covered_at_once(t: &mut Test) {
    web(t, R);
    t.apply();
    let new = Addr::new("P3", [10, 244, 1, 13], ([0xfd00, 0x244, 0, 1], 0x13));
    // A second link of P1's namespace plays the new pod.
    let peer = t.ns(Site::P1).name();
    t.ip_tool(
        Site::N,
        &format!("link add p3 type veth peer name eth3 netns {peer}"),
    );
    for (site, device, address) in [(Site::N, "p3", POD_GATEWAY), (Site::P1, "eth3", new)] {
        for family in Family::ALL {
            let nodad = if family == Family::V6 { "nodad" } else { "" };
            let prefix = address.prefix(family);
            t.ip_tool(site, &format!("addr add {prefix} dev {device} {nodad}"));
        }
        t.ip_tool(site, &format!("link set {device} up"));
    }
    t.ip_tool(
        Site::N,
        &format!("route add {} dev p3", new.prefix(t.family)),
    );
    let (flag, gateway) = (t.family_flag(), t.ip(POD_GATEWAY));
    t.ip_tool(
        Site::P1,
        &format!("{flag} route add default via {gateway} dev eth3 onlink table 9"),
    );
    t.ip_tool(
        Site::P1,
        &format!("{flag} rule add from {} lookup 9", t.ip(new)),
    );
    let pod = Host {
        addr: new,
        node: NODE_NAME,
        ..P1
    };
    t.observe([flow(pod, VIP, 80).reaches([kept(R)])]);
}

/// A node-local DNS cache does so: it has the ClusterIP on an interface of its node.
fn xm_7_a_vip_that_its_owner_takes_out_of_tracking_is_the_owners(t: &mut Test) {
    web(t, R);
    t.check([flow(HOST, VIP, 80).reaches([masqueraded(R)])]);
    let (family, vip) = match t.family {
        Family::V4 => ("ip", t.ip(VIP)),
        Family::V6 => ("ip6", t.ip(VIP)),
    };
    let protocol = t.protocol.label();
    let rules = format!(
        "{family} daddr {vip} {protocol} dport 80 notrack; {family} saddr {vip} {protocol} sport 80 notrack;"
    );
    t.nft(&format!(
        "table {family} foreign {{
           chain arrives {{ type filter hook prerouting priority -300; {rules} }}
           chain leaves {{ type filter hook output priority -300; {rules} }}
         }}"
    ));
    for family in Family::ALL {
        let prefix = VIP.prefix(family);
        t.ip_tool(Site::N, &format!("addr add {prefix} dev lo"));
    }
    let tentative = ["-6", "-o", "addr", "show", "tentative"];
    while !t.node_ns().check_run("ip", &tentative).unwrap().is_empty() {}
    t.bed_mut().serve(HOST, VIP, &[80]).unwrap();
    t.observe([
        flow(P1, VIP, 80).reaches([kept(HOST)]),
        flow(HOST, VIP, 80).reaches([seen_as(HOST, VIP)]),
    ]);
}

fn xm_12_foreign_rules_keep_counting(t: &mut Test) {
    web(t, R);
    let family = if t.family == Family::V4 { "ip" } else { "ip6" };
    t.nft(&format!(
        "table {family} foreign {{ counter seen {{ }}
           chain arrives {{ type filter hook prerouting priority 10; tcp dport 8080 counter name seen; }}
         }}"
    ));
    let count = |t: &Test| {
        let text = t
            .node_ns()
            .check_run("nft", &["list", "counter", family, "foreign", "seen"]);
        let text = text.unwrap();
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse::<u64>().unwrap()
    };
    t.check([flow(X, R.addr, TARGET_PORT).reaches([kept(R)]).times(1)]);
    let first = count(t);
    t.restart(Signal::SIGTERM, &[]);
    t.observe([flow(X, R.addr, TARGET_PORT).reaches([kept(R)]).times(1)]);
    let second = count(t);
    t.bed_mut().daemon.signal(Signal::SIGTERM).unwrap();
    t.observe([flow(X, R.addr, TARGET_PORT).reaches([kept(R)]).times(1)]);
    assert!(0 < first && first < second && second < count(t));
}

fn xm_13_ttl_and_dscp_change_as_by_forwarding(t: &mut Test) {
    web(t, R);
    t.apply();
    let family = if t.family == Family::V4 { "ip" } else { "ip6" };
    let marks = format!(
        "table {family} dscp {{ chain sent {{ type filter hook output priority 0;
           {family} dscp set cs3;
         }}
         }}"
    );
    t.ns(Site::P1).feed("nft", &["-f", "-"], &marks).unwrap();
    let uplink = t.sniff(HOST, "up0");
    t.observe([
        flow(P1, VIP, 80).reaches([kept(R)]).times(1),
        flow(P1, NODE, PORT).reaches([masqueraded(R)]).times(1),
        flow(P1, R.addr, SECOND_PORT).reaches([kept(R)]).times(1),
        flow(P1, EXTERNAL_IP, 80)
            .reaches([kept(proxy_tests::address::OUT)])
            .times(1),
    ]);
    let remote = t.ip(R.addr);
    let sent: Vec<_> = uplink
        .packets()
        .into_iter()
        .filter(|p| p.outgoing && p.destination == remote && p.protocol == 6)
        .collect();
    assert!(sent.iter().any(|p| p.destination_port == TARGET_PORT));
    for packet in sent {
        assert_eq!(
            (packet.ttl, packet.traffic_class),
            (63, 24 << 2),
            "{packet:?}"
        );
    }
}

fn xm_14_streams_survive_restart_and_flush(t: &mut Test) {
    web(t, R);
    t.apply();
    let mut streams = [t.stream(&flow(P1, VIP, 80)), t.stream(&flow(X, NODE, PORT))];
    let mut alive = || {
        for stream in &mut streams {
            stream.echo().unwrap();
        }
    };
    t.restart(Signal::SIGTERM, &[]);
    alive();
    t.restart(Signal::SIGKILL, &[]);
    alive();
    t.flush();
    t.eventually(
        Duration::from_secs(10),
        [flow(P1, VIP, 80).reaches([kept(R)]).times(3)],
    );
    alive();
}
