//! CT-3: flows of UDP clients that lead nowhere go, whatever took the Service or the endpoint away.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proxy_tests::address::{HOST, NODE, P1, P2, Protocol, Site, VIP, VIP2, X};
use proxy_tests::case;
use proxy_tests::flow::flow;
use proxy_tests::matrix::{Case, Test};
use proxy_tests::sender::Sink;
use proxy_tests::world::TARGET_PORT;
use serde_json::json;

use crate::common::PORT;
use crate::senders::{
    Client, Fate, SILENT, SOON, await_answers, await_more, await_that, clients, meets, web,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(ct_3_svc_13_xm_6_flows_that_lead_nowhere_go)
            .slow()
            .kernel()
            .udp()
            .fresh(),
        case!(ct_3_a_cluster_ip_that_went_while_no_daemon_ran_leads_nowhere)
            .kernel()
            .udp()
            .fresh(),
        case!(ct_3_a_process_of_the_node_keeps_its_clients)
            .kernel()
            .udp()
            .fresh(),
    ]
}

type Change = fn(&mut Test);

/// A change, and the fate of each of [`clients`] after it.
fn endings() -> Vec<(&'static str, Change, [Fate; 5])> {
    use Fate::{Owner, Refused, Silence, Stays};
    let gone = [Silence, Silence, Refused, Owner, Owner];
    vec![
        (
            "the last endpoint goes",
            |t| _ = t.endpoints("web").clear(),
            [Refused; 5],
        ),
        (
            "the last endpoint stops serving",
            |t| _ = t.endpoints("web").clear().unready(P2),
            [Refused; 5],
        ),
        (
            "the externalIP is withdrawn",
            |t| _ = t.service("web").no_external_ips(),
            [Stays, Stays, Stays, Owner, Stays],
        ),
        (
            "the load balancer's address is withdrawn",
            |t| _ = t.service("web").no_load_balancer(),
            [Stays, Stays, Stays, Stays, Owner],
        ),
        (
            "the nodePort is withdrawn",
            |t| _ = t.service("web").node_port(0),
            [Stays, Stays, Refused, Stays, Stays],
        ),
        (
            "the port is renumbered",
            |t| {
                let service = t.service("web").no_ports();
                service.named_port("datagram", 81).node_port(PORT);
            },
            [Refused, Refused, Stays, Owner, Owner],
        ),
        (
            "the Service is given to another proxy",
            |t| {
                let label = json!({"service.kubernetes.io/service-proxy-name": "other"});
                t.service("web")
                    .patch(json!({"metadata": {"labels": label}}));
            },
            gone,
        ),
        (
            "the Service becomes an ExternalName",
            |t| {
                let spec = json!({"type": "ExternalName", "externalName": "example.org"});
                t.service("web").patch(json!({"spec": spec}));
            },
            gone,
        ),
        ("the Service is deleted", |t| t.delete_service("web"), gone),
    ]
}

fn ct_3_svc_13_xm_6_flows_that_lead_nowhere_go(t: &mut Test) {
    let at = SocketAddr::new(t.ip(P2.addr), SILENT);
    web(t, SILENT);
    t.apply();
    let mut sink = Sink::open(t.ns(Site::P2), at);
    let clients = clients(t, 0);
    for (what, change, fates) in endings() {
        web(t, SILENT);
        t.apply();
        let mut heard = BTreeMap::new();
        await_that(t, SOON, &format!("all are heard before {what}"), || {
            heard.append(&mut sink.heard());
            clients
                .iter()
                .all(|client| heard.contains_key(&client.number))
        });
        let mut stream = t.stream(&flow(P1, VIP, 443).over(Protocol::Tcp));
        change(t);
        t.apply();
        let cut = clients
            .iter()
            .zip(fates)
            .filter(|(_, fate)| *fate != Fate::Stays);
        let is_cut = |client: &Client| cut.clone().any(|(other, _)| other.number == client.number);
        for client in clients.iter().filter(|client| is_cut(client)) {
            let name = format!("{what}: the flow of {} goes", client.name());
            let by = t.ip(P2.addr);
            await_that(t, SOON, &name, || client.n_entries(t, by) == 0);
        }
        // The next owner of the address receives nothing.
        drop(sink);
        sink = Sink::open(t.ns(Site::P2), at);
        await_that(
            t,
            SOON,
            &format!("{what}: the endpoint hears those that stay"),
            || {
                sink.heard();
                await_more(t, &clients);
                let heard = sink.heard();
                clients
                    .iter()
                    .all(|client| heard.contains_key(&client.number) != is_cut(client))
            },
        );
        for (client, fate) in clients.iter().zip(fates) {
            meets(t, client, fate, what);
        }
        stream
            .echo()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

fn ct_3_a_cluster_ip_that_went_while_no_daemon_ran_leads_nowhere(t: &mut Test) {
    let sink = Sink::open(t.ns(Site::P2), SocketAddr::new(t.ip(P2.addr), SILENT));
    web(t, SILENT);
    t.service("stays").cluster_ip(VIP2).port(80);
    t.endpoints("stays").ready(P2).port("", SILENT);
    t.apply();
    let all = [(0, P1, VIP), (1, HOST, VIP), (2, P1, VIP2)];
    let all = all.map(|(number, from, to)| Client::start(t, from, to, 80, number));
    let mut heard = BTreeMap::new();
    await_that(t, SOON, "all are heard", || {
        heard.append(&mut sink.heard());
        heard.len() == 3
    });
    t.bed_mut().kill_daemon().unwrap();
    t.delete_service("web");
    sink.heard();
    await_more(t, &all);
    assert_eq!(sink.heard().len(), 3, "the rules stay");
    t.apply();
    await_that(t, SOON, "only the Service that remains is reached", || {
        sink.heard();
        await_more(t, &all);
        sink.heard().into_keys().eq([2])
    });
}

fn ct_3_a_process_of_the_node_keeps_its_clients(t: &mut Test) {
    t.bed_mut().serve(HOST, NODE, &[PORT]).unwrap();
    web(t, TARGET_PORT);
    t.apply();
    t.service("web").node_port(0);
    t.apply();
    let own = [Client::start(t, X, NODE, PORT, 0)];
    await_answers(t, &own, HOST, SOON, "the nodePort was withdrawn");
    let before = own[0].entries(t, t.ip(NODE));
    assert_eq!(before.len(), 1, "{before:?}");
    // A pass while it is not long since the port was a frontend.
    t.service("web").no_external_ips();
    t.apply();
    await_answers(t, &own, HOST, SOON, "a pass");
    assert_eq!(own[0].entries(t, t.ip(NODE)), before);
}
