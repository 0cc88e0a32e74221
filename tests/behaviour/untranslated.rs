//! CT-4: UDP clients that sent while packets could pass untranslated are answered once they are translated.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use proxy_tests::address::{Addr, EXTERNAL_IP2, Family, NODE, NODE_ALT, P1, P2, Site, VIP2, X};
use proxy_tests::case;
use proxy_tests::datapath::Datapath;
use proxy_tests::matrix::{Case, Test};
use proxy_tests::sender::Sink;
use proxy_tests::world::TARGET_PORT;

use crate::common::{Obstacle, PORT};
use crate::senders::{
    Client, Fate, REPAIRED, SILENT, SOON, await_answers, await_more, await_that, clients, meets,
    web,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(ct_4_clients_that_sent_past_missing_rules_are_answered_again)
            .slow()
            .kernel()
            .udp()
            .fresh()
            .flags(&["--iptables-sync-period=1s"]),
        case!(ct_4_a_failed_sync_that_is_made_good_frees_its_clients)
            .kernel()
            .udp()
            .fresh()
            .flags(&["--iptables-sync-period=1s"]),
        case!(ct_4_node_ports_on_a_new_address_free_its_clients)
            .kernel()
            .udp()
            .fresh()
            .flags(&["--nodeport-addresses=198.51.100.0/24,2001:db8:5100::/48"]),
        case!(ct_3_ct_4_ct_5_node_ports_move_with_the_node_ip)
            .kernel()
            .udp()
            .fresh(),
    ]
}

/// Rules of others that make the kernel track every flow, as a firewall's do.
fn firewall(t: &Test) {
    t.nft("table inet firewall { chain input { type filter hook input priority 5; ct state invalid counter; }
             chain forward { type filter hook forward priority 5; ct state invalid counter; }
             chain output { type filter hook output priority 5; ct state invalid counter; }
           }");
}

/// Waits until every client has an untranslated flow.
#[track_caller]
fn await_untranslated(t: &Test, clients: &[Client], after: &str) {
    for client in clients {
        let what = format!("{} is not translated after {after}", client.name());
        let to = t.ip(client.to);
        await_that(t, SOON, &what, || client.n_entries(t, to) > 0);
    }
}

fn ct_4_clients_that_sent_past_missing_rules_are_answered_again(t: &mut Test) {
    web(t, TARGET_PORT);
    t.apply();
    let mut all = clients(t, 0);
    await_answers(t, &all, P2, SOON, "the start");

    t.bed().daemon.pause(true);
    t.flush();
    let what = "a flush";
    all.extend(clients(t, 10));
    await_more(t, &all);
    t.bed().daemon.pause(false);
    await_answers(t, &all, P2, REPAIRED, what);

    t.bed().daemon.pause(true);
    t.flush();
    firewall(t);
    let what = "a reload of the firewall";
    let new = clients(t, 20);
    await_untranslated(t, &new, what);
    t.bed().daemon.pause(false);
    all.extend(new);
    await_answers(t, &all, P2, REPAIRED, what);

    let own = t.datapath();
    let mut running = own;
    let modes = Datapath::ALL.into_iter().filter(|other| *other != own);
    for (n, mode) in (3..).zip([own].into_iter().chain(modes)) {
        let what = format!("a start as {} where no rules were", mode.name());
        t.bed_mut().kill_daemon().unwrap();
        running.remove(t.node_ns());
        running = mode;
        let new = clients(t, n * 10);
        await_untranslated(t, &new, &what);
        t.bed_mut().daemon.remove_flag("--iptables-backend");
        let flags = mode.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        t.bed_mut().daemon.set_flags(&flags);
        t.apply();
        all.extend(new);
        await_answers(t, &all, P2, SOON, &what);
    }
}

fn ct_4_a_failed_sync_that_is_made_good_frees_its_clients(t: &mut Test) {
    const PORT2: u16 = 30_081;
    let mut obstacle = Obstacle::prepare(t);
    firewall(t);
    web(t, TARGET_PORT);
    t.apply();
    // Before it is a Service's: iptables' sets grow before its rules fail, and let no such flow come to be.
    let mut all = vec![
        Client::start(t, X, EXTERNAL_IP2, 80, 10),
        Client::start(t, X, NODE, PORT2, 11),
    ];
    await_untranslated(t, &all, "sending to an unassigned address");
    obstacle.put_up(t, t.family);
    t.service("late")
        .cluster_ip(VIP2)
        .port(80)
        .node_port(PORT2)
        .external_ip(EXTERNAL_IP2);
    t.endpoints("late").ready(P2);
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    let failures = |t: &Test| t.report()["families"][t.family.api_name()]["n_failures"].as_u64();
    await_that(t, SOON, "a sync fails", || failures(t) > Some(0));
    // In one mode the obstacle takes all rules away, so that these are not translated either.
    all.extend(clients(t, 0));
    await_more(t, &all);
    obstacle.take_down();
    await_answers(t, &all, P2, REPAIRED, "a sync that was made good");
}

fn ct_4_node_ports_on_a_new_address_free_its_clients(t: &mut Test) {
    let new = Addr::new(
        "NEW",
        [198, 51, 100, 77],
        ([0x2001, 0xdb8, 0x5100, 0], 0x77),
    );
    web(t, TARGET_PORT);
    t.apply();
    let all = [P1, X].map(|from| Client::start(t, from, new, PORT, u32::from(from == X)));
    await_untranslated(t, &all, "sending to an unassigned address");
    let prefix = new.prefix(t.family);
    t.ip_tool(Site::N, &format!("addr add {prefix} dev lo"));
    await_answers(t, &all, P2, REPAIRED, "a new address");
}

fn ct_3_ct_4_ct_5_node_ports_move_with_the_node_ip(t: &mut Test) {
    let at = SocketAddr::new(t.ip(P2.addr), SILENT);
    let sink = Sink::open(t.ns(Site::P2), at);
    web(t, SILENT);
    t.apply();
    let old = [Client::start(t, X, NODE, PORT, 0)];
    let new = [Client::start(t, X, NODE_ALT, PORT, 1)];
    await_untranslated(t, &new, "the start");
    await_that(t, SOON, "the old address leads to the endpoint", || {
        sink.heard().contains_key(&0)
    });
    let addresses = [Family::V4, Family::V6].map(|family| NODE_ALT.of(family).to_string());
    t.node().internal_ips(&[&addresses[0], &addresses[1]]);
    t.apply();
    await_that(
        t,
        SOON,
        "the new address leads to the endpoint, alone",
        || {
            sink.heard();
            await_more(t, &old);
            await_more(t, &new);
            sink.heard().into_keys().eq([1])
        },
    );
    meets(t, &old[0], Fate::Refused, "the node's IP changes");
    // A restart finds them as they are.
    t.restart(Signal::SIGKILL, &[]);
    sink.heard();
    await_more(t, &new);
    assert!(sink.heard().into_keys().eq([1]));
}
