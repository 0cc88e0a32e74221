//! The lives of packets that are forwarded: what each hook makes of them.

use std::net::IpAddr;

use proxy_common::{Exposure, Reason, Route};
use proxy_ebpf::Verdict;

use crate::cast::{Cast, V4, ip, tell};
use crate::frame::{Frame, INIT, Transport, UDP};
use crate::host::Host;
use crate::node::{Hook, Node};
use crate::world::{BACKEND, CLIENT, FIRST_PORT, MARK, N_PORTS, Service, UPLINK};

#[test]
fn vip_1_src_2_a_pod_reaches_a_backend_with_its_own_address_and_back() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.service());
        let (client, vip, backend) = (
            (cast.names.client, 4000),
            (cast.names.vip, 80),
            (cast.names.backend, 8080),
        );
        for transport in [cast.opening, cast.next()] {
            let sent = Cast::frame(client, vip, transport);
            let arrived = node.forwards(Hook::In, CLIENT, &sent);
            assert_eq!(arrived, Cast::frame(client, backend, transport));
            // What was translated is translated no more.
            assert_eq!(node.forwards(Hook::In, CLIENT, &arrived), arrived);
            assert_eq!(node.forwards(Hook::Out, BACKEND, &arrived), arrived);
            let answer = Cast::frame(backend, client, cast.answer);
            assert_eq!(node.forwards(Hook::In, BACKEND, &answer), answer);
            let back = node.forwards(Hook::Out, CLIENT, &answer);
            assert_eq!(back, Cast::frame(vip, client, cast.answer));
            assert_eq!(node.forwards(Hook::Out, CLIENT, &back), back);
        }
        assert_eq!(node.counted(Reason::NewFlow), 1);
    });
}

#[test]
fn src_1_src_6_a_node_port_masquerades_with_the_address_towards_the_backend() {
    tell(|cast| {
        for (way_out, own_address) in [(BACKEND, cast.names.pod_side), (UPLINK, cast.names.node)] {
            let mut node = (cast.node)(&cast.service());
            let (client, port) = ((cast.names.outside, 5000), (cast.names.node, 30_080));
            let backend = (cast.names.backend, 8080);
            let sent = Cast::frame(client, port, cast.opening);
            let arrived = node.forwards(Hook::In, UPLINK, &sent);
            assert_eq!(arrived, Cast::frame(client, backend, cast.opening));
            let masqueraded = node.forwards(Hook::Out, way_out, &arrived);
            let own = masqueraded.source;
            assert_eq!(own.ip(), ip(own_address));
            assert!(
                (FIRST_PORT..FIRST_PORT + N_PORTS).contains(&own.port()),
                "{own}"
            );
            assert_eq!(masqueraded.destination, arrived.destination);
            // The next packet of the flow keeps it all.
            let next = node.forwards(Hook::In, UPLINK, &Cast::frame(client, port, cast.next()));
            assert_eq!(node.forwards(Hook::Out, way_out, &next).source, own);
            let answer = Cast::frame(backend, (own_address, own.port()), cast.answer);
            let back = node.forwards(Hook::In, way_out, &answer);
            assert_eq!(back, Cast::frame(backend, client, cast.answer));
            let back = node.forwards(Hook::Out, UPLINK, &back);
            assert_eq!(back, Cast::frame(port, client, cast.answer));
            assert_eq!(node.counted(Reason::NewFlow), 1);
        }
    });
}

#[test]
fn src_9_a_pod_reaches_itself_as_the_node() {
    tell(|cast| {
        // Also where its own port is the backend's.
        for own_port in [4000, 8080] {
            let mut node = (cast.node)(&cast.world(&[(cast.names.client, 8080)], Route::CLUSTER));
            let (pod, vip) = ((cast.names.client, own_port), (cast.names.vip, 80));
            let server = (cast.names.client, 8080);
            let arrived = node.forwards(Hook::In, CLIENT, &Cast::frame(pod, vip, cast.opening));
            assert_eq!(
                arrived.destination,
                Cast::frame(pod, server, cast.opening).destination
            );
            let masqueraded = node.forwards(Hook::Out, CLIENT, &arrived);
            assert_eq!(masqueraded.source.ip(), ip(cast.names.pod_side));
            let node_port = (cast.names.pod_side, masqueraded.source.port());
            let back = node.forwards(
                Hook::In,
                CLIENT,
                &Cast::frame(server, node_port, cast.answer),
            );
            let back = node.forwards(Hook::Out, CLIENT, &back);
            assert_eq!(back, Cast::frame(vip, pod, cast.answer));
        }
    });
}

#[test]
fn eb_40_one_source_port_to_two_vips_of_one_backend_is_two_flows() {
    tell(|cast| {
        let backends = &[(cast.names.backend, 8080)];
        let world = cast.world(backends, Route::CLUSTER).with(&Service {
            protocol: cast.opening.number(),
            frontends: &[(cast.names.other_vip, 80, Exposure::INTERNAL)],
            backends,
            internal: Route::CLUSTER,
            external: Route::CLUSTER,
            source_range: None,
        });
        let mut node = (cast.node)(&world);
        let (client, backend) = ((cast.names.client, 4000), (cast.names.backend, 8080));
        let (one, two) = ((cast.names.vip, 80), (cast.names.other_vip, 80));
        let mut at_backend = Vec::new();
        for vip in [one, two] {
            let arrived = node.forwards(Hook::In, CLIENT, &Cast::frame(client, vip, cast.opening));
            at_backend.push(node.forwards(Hook::Out, BACKEND, &arrived).source);
        }
        assert_ne!(at_backend[0], at_backend[1]);
        for (vip, seen) in [one, two].into_iter().zip(at_backend) {
            let seen = (cast.names.client, seen.port());
            let answer = Cast::frame(backend, seen, cast.answer);
            let back = node.forwards(Hook::Out, CLIENT, &answer);
            assert_eq!(back, Cast::frame(vip, client, cast.answer));
        }
    });
}

#[test]
fn src_10_a_packet_marked_by_others_is_masqueraded_and_loses_that_mark_alone() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.service());
        let (client, server) = ((cast.names.client, 4000), (cast.names.outside, 443));
        let sent = Cast::frame(client, server, cast.opening);
        let outcome = node.pass(Hook::Out, UPLINK, MARK | 0x11, &sent.bytes());
        assert_eq!((outcome.verdict, outcome.mark), (Verdict::Pass, 0x11));
        let masqueraded = Frame::read(&outcome.bytes);
        assert_eq!(masqueraded.source.ip(), ip(cast.names.node));
        let own = (cast.names.node, masqueraded.source.port());
        let back = node.forwards(Hook::In, UPLINK, &Cast::frame(server, own, cast.answer));
        assert_eq!(back, Cast::frame(server, client, cast.answer));
        // Others mark the first packet of a flow only.
        let next = node.forwards(Hook::Out, UPLINK, &Cast::frame(client, server, cast.next()));
        assert_eq!(next.source, masqueraded.source);
        // Without the mark it is nobody's.
        let other = Cast::frame((cast.names.client, 4001), server, cast.opening);
        assert_eq!(node.forwards(Hook::Out, UPLINK, &other), other);
    });
}

#[test]
fn eb_42_without_a_free_port_a_flow_is_dropped_and_counted() {
    tell(|cast| {
        let mut world = cast.service();
        (world.v4.settings.n_ports, world.v6.settings.n_ports) = (1, 1);
        let mut node = (cast.node)(&world);
        for (client, has_room) in [(5000, true), (5001, false)] {
            let sent = Cast::frame(
                (cast.names.outside, client),
                (cast.names.node, 30_080),
                cast.opening,
            );
            let arrived = node.forwards(Hook::In, UPLINK, &sent);
            if has_room {
                assert_eq!(
                    node.forwards(Hook::Out, BACKEND, &arrived).source.port(),
                    FIRST_PORT
                );
            } else {
                node.drops(Hook::Out, BACKEND, &arrived, Reason::NoFreePort);
            }
        }
    });
}

#[test]
fn eb_44_a_flow_that_lost_any_one_entry_goes_on_or_ends() {
    tell(|cast| {
        for nth in 0.. {
            let mut node = (cast.node)(&cast.service());
            let (client, port) = ((cast.names.outside, 5000), (cast.names.node, 30_080));
            let backend = (cast.names.backend, 8080);
            let first = node.forwards(Hook::In, UPLINK, &Cast::frame(client, port, cast.opening));
            let own = node.forwards(Hook::Out, BACKEND, &first).source;
            if !node.forget(nth) {
                // E1, E2, E3 and E4.
                assert_eq!(nth, 4);
                break;
            }
            node.age();
            let sent = Cast::frame(client, port, cast.next());
            let arrived = node.forwards(Hook::In, UPLINK, &sent);
            if arrived == sent {
                // E1 is lost, and what is in mid-stream begins nothing.
                assert_ne!(cast.opening, UDP);
                continue;
            }
            let masqueraded = node.forwards(Hook::Out, BACKEND, &arrived);
            // With another port the backend ends the connection, or takes the datagram as well.
            let now = (cast.names.pod_side, masqueraded.source.port());
            let answer = Cast::frame(backend, now, cast.answer);
            let back = node.forwards(Hook::In, BACKEND, &answer);
            let back = node.forwards(Hook::Out, UPLINK, &back);
            assert_eq!(
                back,
                Cast::frame(port, client, cast.answer),
                "entry {nth}, {own}"
            );
        }
    });
}

#[test]
fn xm_4_options_and_extension_headers_stay_and_what_cannot_be_read_passes_unchanged() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.service());
        let sent = Cast::frame(
            (cast.names.client, 4000),
            (cast.names.vip, 80),
            cast.opening,
        );
        let is_v4 = sent.source.is_ipv4();
        // Router alert; hop-by-hop options and then destination options.
        let extra: Vec<u8> = if is_v4 {
            vec![0x94, 4, 0, 0]
        } else {
            let last = cast.opening.number();
            vec![60, 0, 5, 2, 0, 0, 1, 0, last, 0, 1, 4, 0, 0, 0, 0]
        };
        let outcome = node.pass(Hook::In, CLIENT, 0, &sent.bytes_with(&extra));
        assert_eq!(Frame::read(&outcome.bytes).destination.port(), 8080);
        // Cut off anywhere in its headers, it is left alone. SCTP's header ends before the chunk.
        let whole = sent.bytes();
        let chunk = if cast.opening == INIT { 4 } else { 0 };
        for length in node.shortest()..whole.len() - sent.payload.len() - chunk {
            let outcome = node.pass(Hook::In, CLIENT, 0, &whole[..length]);
            assert_eq!(outcome.verdict, Verdict::Pass, "{length} bytes");
            assert_eq!(outcome.bytes, whole[..length], "{length} bytes");
        }
        if is_v4 {
            for fragment in [[0x20, 0x00], [0x00, 0x10]] {
                let mut bytes = whole.clone();
                bytes[20..22].copy_from_slice(&fragment);
                let outcome = node.pass(Hook::In, CLIENT, 0, &bytes);
                assert_eq!((outcome.verdict, &outcome.bytes), (Verdict::Pass, &bytes));
            }
        }
    });
}

#[test]
fn eb_50_udp_without_a_checksum_stays_without() {
    tell(|cast| {
        if cast.opening != UDP || cast.names.any == "::" {
            return;
        }
        let mut node = (cast.node)(&cast.service());
        let sent = Cast::frame(
            (cast.names.client, 4000),
            (cast.names.vip, 80),
            Transport::Udp(false),
        );
        let arrived = node.forwards(Hook::In, CLIENT, &sent);
        assert_eq!(arrived.transport, Transport::Udp(false));
        // And one whose new checksum comes out as zero is sent as all ones.
        let mut zeroes = 0;
        for n in 0..=u16::MAX {
            let mut sent = Cast::frame((cast.names.client, 4001), (cast.names.vip, 80), UDP);
            sent.payload = n.to_be_bytes().to_vec();
            let outcome = node.pass(Hook::In, CLIENT, 0, &sent.bytes());
            assert_ne!(outcome.bytes[40..42], [0, 0]);
            zeroes += u32::from(outcome.bytes[40..42] == [0xff, 0xff]);
        }
        assert_eq!(zeroes, 1, "one payload in 65,536");
    });
}

#[test]
fn vip_5_each_backend_is_as_likely_as_any_other() {
    tell(|cast| {
        let names: Vec<String> = (10..15)
            .map(|n| format!("{}{n}", cast.names.pod_side.trim_end_matches('1')))
            .collect();
        let backends: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 8080)).collect();
        let mut node = (cast.node)(&cast.world(&backends, Route::CLUSTER));
        let mut hits = std::collections::BTreeMap::<IpAddr, f64>::new();
        let n_flows = 1000;
        for port in 0..n_flows {
            let sent = Cast::frame(
                (cast.names.client, 20_000 + port),
                (cast.names.vip, 80),
                cast.opening,
            );
            let backend = node.forwards(Hook::In, CLIENT, &sent).destination.ip();
            *hits.entry(backend).or_default() += 1.0;
        }
        let expected = f64::from(n_flows) / 5.0;
        let chi_square: f64 = hits
            .values()
            .map(|hit| (hit - expected).powi(2) / expected)
            .sum();
        assert_eq!(hits.len(), 5);
        // Four degrees of freedom: more than 33.4 has a probability of one in a million.
        assert!(chi_square < 33.4, "{hits:?}");
    });
}

/// The packet of the test below, as another CPU has it.
fn datagram() -> Frame {
    Cast::frame((V4.client, 4000), (V4.vip, 80), UDP)
}

#[test]
fn vip_3_two_cpus_with_packets_of_a_new_flow_make_one_flow() {
    let world = Cast {
        node: Box::new(|world| Box::new(Host::new(world, 1))),
        names: &V4,
        opening: UDP,
        answer: UDP,
    }
    .world(&[(V4.backend, 8080), (V4.outside, 8080)], Route::CLUSTER);
    for seed in 0..64 {
        // Before E4, before E2, and before E1.
        for nth in 0..3 {
            let mut node = Host::new(&world, seed);
            node.interrupt(nth, |memory| memory.arrives(CLIENT, &datagram().bytes()));
            let arrived = node.forwards(Hook::In, CLIENT, &datagram());
            let again = node.forwards(Hook::In, CLIENT, &datagram());
            assert_eq!(again, arrived, "one backend");
            let mut answer = arrived.clone();
            std::mem::swap(&mut answer.source, &mut answer.destination);
            let back = node.forwards(Hook::Out, CLIENT, &answer);
            assert_eq!(back.source, datagram().destination);
            assert_eq!(node.v4().n_flows(), 3, "E1, E2 and E4 alone");
        }
    }
}
