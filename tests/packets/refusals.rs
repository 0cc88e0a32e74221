//! Which packets are refused or dropped?

use proxy_common::{Exposure, Reason, Route};
use proxy_ebpf::Verdict;

use crate::cast::{Cast, ip, tell};
use crate::frame::{INIT, Refusal, UDP};
use crate::node::{Hook, Node};
use crate::world::{CLIENT, Service, UPLINK, World};

#[test]
fn rej_1_without_endpoints_a_client_is_refused_at_once() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.world(&[], Route::REJECT));
        let (client, vip) = ((cast.names.client, 4000), (cast.names.vip, 80));
        for payload in [0, 1, 1400] {
            let mut sent = Cast::frame(client, vip, cast.opening);
            sent.payload = vec![b'x'; payload];
            if cast.opening == INIT && payload < 16 {
                continue;
            }
            let refusal = node.refuses(CLIENT, &sent);
            let about = (sent.source, sent.destination, cast.opening.number());
            assert_eq!(
                refusal,
                Refusal {
                    source: ip(cast.names.pod_side),
                    destination: ip(cast.names.client),
                    about,
                }
            );
        }
        let refused = if cast.opening == INIT { 1 } else { 3 };
        assert_eq!(node.counted(Reason::NoEndpoints), refused);
    });
}

#[test]
fn rej_1_a_refusal_quotes_options_and_extension_headers() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.world(&[], Route::REJECT));
        let sent = Cast::frame(
            (cast.names.client, 4000),
            (cast.names.vip, 80),
            cast.opening,
        );
        let refused = |node: &mut dyn Node, extra: &[u8]| {
            let outcome = node.pass(Hook::In, CLIENT, 0, &sent.bytes_with(extra));
            assert_eq!(outcome.verdict, Verdict::Bounce);
            Refusal::read(&outcome.bytes).about
        };
        let about = (sent.source, sent.destination, cast.opening.number());
        if sent.source.is_ipv4() {
            assert_eq!(refused(&mut *node, &[1; 40]).2, about.2);
            return;
        }
        for units in [0, 1, 7] {
            let mut extra = vec![cast.opening.number(), units, 1, 4 + 8 * units];
            extra.resize(8 + 8 * usize::from(units), 0);
            assert_eq!(refused(&mut *node, &extra).2, about.2);
        }
        // More than a refusal holds is not answered.
        let mut extra = vec![cast.opening.number(), 15, 1, 124];
        extra.resize(128, 0);
        let outcome = node.pass(Hook::In, CLIENT, 0, &sent.bytes_with(&extra));
        assert_eq!(outcome.verdict, Verdict::Drop);
        assert_eq!(node.counted(Reason::CannotRefuse), 1);
    });
}

#[test]
fn rej_1_what_is_sent_to_many_or_from_many_is_not_answered() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.world(&[], Route::REJECT));
        let vip = (cast.names.vip, 80);
        let mut broadcast = Cast::frame((cast.names.client, 4000), vip, cast.opening).bytes();
        broadcast[..6].fill(0xff);
        let from = if cast.names.any == "::" {
            "ff02::1"
        } else {
            "255.255.255.255"
        };
        let from_many = Cast::frame((from, 4000), vip, cast.opening).bytes();
        for bytes in [broadcast, from_many] {
            assert_eq!(
                node.pass(Hook::In, CLIENT, 0, &bytes).verdict,
                Verdict::Drop
            );
        }
        assert_eq!(node.counted(Reason::CannotRefuse), 2);
    });
}

#[test]
fn rej_3_a_flow_in_mid_stream_is_not_refused() {
    tell(|cast| {
        if cast.opening == UDP {
            return;
        }
        let mut node = (cast.node)(&cast.world(&[], Route::REJECT));
        let sent = Cast::frame((cast.names.client, 4000), (cast.names.vip, 80), cast.next());
        assert_eq!(node.forwards(Hook::In, CLIENT, &sent), sent);
        // Nor does it leave the node as it is, nor to another port of the ClusterIP.
        node.drops(Hook::Out, UPLINK, &sent, Reason::Untranslated);
        let other = Cast::frame((cast.names.client, 4000), (cast.names.vip, 81), cast.next());
        node.drops(Hook::Out, UPLINK, &other, Reason::Untranslated);
    });
}

#[test]
fn rej_5_other_ports_of_a_cluster_ip_are_refused_and_of_the_node_are_not() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.service());
        let client = (cast.names.client, 4000);
        let refusal = node.refuses(
            CLIENT,
            &Cast::frame(client, (cast.names.vip, 81), cast.opening),
        );
        assert_eq!(refusal.source, ip(cast.names.pod_side));
        for (address, port) in [(cast.names.node, 22), (cast.names.pod_side, 30_080)] {
            let sent = Cast::frame(client, (address, port), cast.opening);
            assert_eq!(node.forwards(Hook::In, CLIENT, &sent), sent);
        }
    });
}

#[test]
fn loc_3_a_local_policy_without_local_endpoints_drops_in_silence() {
    tell(|cast| {
        let mut node = (cast.node)(&cast.world(&[], Route::DROP));
        let sent = Cast::frame(
            (cast.names.outside, 4000),
            (cast.names.node, 30_080),
            cast.opening,
        );
        node.drops(Hook::In, UPLINK, &sent, Reason::NoLocalEndpoints);
    });
}

#[test]
fn fw_2_sources_outside_the_ranges_are_dropped() {
    tell(|cast| {
        let length = if cast.names.any == "::" { 64 } else { 24 };
        let world = World::new().with(&Service {
            protocol: cast.opening.number(),
            frontends: &[(cast.names.vip, 80, Exposure::EXTERNAL)],
            backends: &[(cast.names.backend, 8080)],
            internal: Route::CLUSTER,
            external: Route::CLUSTER,
            source_range: Some((cast.names.client, length)),
        });
        let mut node = (cast.node)(&world);
        let vip = (cast.names.vip, 80);
        let inside = Cast::frame((cast.names.client, 4000), vip, cast.opening);
        assert_eq!(
            node.forwards(Hook::In, CLIENT, &inside).destination.port(),
            8080
        );
        let outside = Cast::frame((cast.names.outside, 4000), vip, cast.opening);
        node.drops(Hook::In, UPLINK, &outside, Reason::SourceRanges);
    });
}
