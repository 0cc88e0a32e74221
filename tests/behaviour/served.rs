//! HZ, MET, CFG, XM: the daemon's answers over HTTP and on the command line, and the fields of its configuration file.

use std::time::{Duration, Instant};

use proxy_tests::address::{Family, HOST, NODE, P1, P2, VIP, X};
use proxy_tests::case;
use proxy_tests::daemon::{Directory, LOCAL_SERVER, http, http_json};
use proxy_tests::datapath::Datapath;
use proxy_tests::flow::{flow, kept, masqueraded};
use proxy_tests::matrix::{Case, Test};
use proxy_tests::wait::within;
use serde_json::{Value, json};

use crate::common::{Obstacle, PORT, run_as, web, works};

/// The healthz server, which any client may ask.
const HEALTHZ: &str = "127.0.0.1:10256";
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn cases() -> Vec<Case> {
    let cases = vec![
        case!(hz_1_hz_2_two_paths_are_served_with_a_body),
        case!(hz_3_a_change_that_waits_for_two_sync_periods_is_unhealthy)
            .fresh()
            .flags(&["--iptables-sync-period=1s"]),
        case!(hz_4_hz_6_a_tainted_node_is_live_and_not_healthy),
        case!(hz_5_a_deleted_node_stays_eligible),
        case!(hz_7_met_4_probes_and_syncs_are_counted),
        case!(met_1_met_2_the_mode_and_liveness_are_told_to_the_node),
        case!(met_7_an_empty_address_or_port_0_disables).fresh(),
        case!(met_9_a_failure_is_counted_and_moves_no_time).fresh(),
        case!(cfg_1_a_file_overrules_flags_and_they_are_named).fresh(),
        case!(cfg_2_cfg_5_faults_of_a_file_end_the_daemon),
        case!(cfg_2_unknown_fields_are_warnings).fresh(),
        case!(cfg_3_a_changed_file_ends_the_daemon).fresh(),
        case!(cfg_4_underscores_are_dashes).fresh(),
        case!(cfg_7_an_ipv6_bind_address_moves_the_servers).fresh(),
        case!(cfg_8_only_the_section_of_the_mode_counts).fresh(),
        case!(xm_15_dump_and_explain_say_the_same_in_every_mode),
    ];
    // What is asked depends on no family and no protocol.
    cases
        .into_iter()
        .map(|case| case.kernel().tcp().v4())
        .collect()
}

fn get(t: &Test, address: &str, path: &str) -> (u16, String) {
    http(t.node_ns(), address, path).unwrap()
}

/// The value of a metric; a counter that nothing was counted under is 0.
fn metric(t: &Test, name: &str, labels: &str) -> f64 {
    let (_, text) = get(t, LOCAL_SERVER, "/metrics");
    assert!(text.contains(name), "there is no {name}");
    let line = format!("kubeproxy_{name}{{{labels}}} ");
    let value = text.lines().find_map(|found| found.strip_prefix(&line));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until a condition holds.
#[track_caller]
fn until(t: &mut Test, what: &str, mut holds: impl FnMut(&mut Test) -> bool) {
    let held = within(DEADLINE, || holds(t));
    assert!(held, "{what}: {}", t.bed().daemon.log());
}

fn hz_1_hz_2_two_paths_are_served_with_a_body(t: &mut Test) {
    web(t);
    t.apply();
    assert_eq!(get(t, HEALTHZ, "/metrics").0, 404);
    assert_eq!(get(t, HEALTHZ, "/").0, 404);
    for (path, has_node) in [("/healthz", true), ("/livez", false)] {
        let (code, body) = get(t, HEALTHZ, path);
        assert_eq!(code, 200, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["healthy"], true, "{body}");
        // Healthy: as of now.
        assert_eq!(body["lastUpdated"], body["currentTime"], "{body}");
        assert_eq!(body.get("nodeEligible").is_some(), has_node, "{body}");
        for family in ["IPv4", "IPv6"] {
            assert_eq!(body["status"][family]["healthy"], true, "{body}");
        }
    }
}

fn hz_3_a_change_that_waits_for_two_sync_periods_is_unhealthy(t: &mut Test) {
    let mut obstacle = Obstacle::prepare(t);
    web(t);
    t.apply();
    let is = |t: &Test, code: u16| get(t, HEALTHZ, "/livez").0 == code;
    assert!(is(t, 200));
    obstacle.put_up(t, Family::V4);
    t.endpoints("web").clear();
    let world = t.clone();
    let started = Instant::now();
    t.bed_mut().daemon.publish(&world).unwrap();
    until(t, "it is healthy", |t| is(t, 503));
    assert!(started.elapsed() > Duration::from_secs(2));
    obstacle.take_down();
    until(t, "it is unhealthy", |t| is(t, 200));
}

fn hz_4_hz_6_a_tainted_node_is_live_and_not_healthy(t: &mut Test) {
    t.apply();
    let codes = |t: &Test| ["/healthz", "/livez"].map(|path| get(t, HEALTHZ, path).0);
    assert_eq!(codes(t), [200, 200]);
    for (key, expected) in [
        ("ToBeDeletedByClusterAutoscaler", [503, 200]),
        ("node.kubernetes.io/not-ready", [200, 200]),
    ] {
        let taints = json!([{"key": key, "effect": "NoSchedule"}]);
        t.node().patch(json!({"spec": {"taints": taints}}));
        t.apply();
        assert_eq!(codes(t), expected, "{key}");
    }
}

fn hz_5_a_deleted_node_stays_eligible(t: &mut Test) {
    t.apply();
    t.delete_node();
    t.apply();
    assert_eq!(get(t, HEALTHZ, "/healthz").0, 200);
}

fn hz_7_met_4_probes_and_syncs_are_counted(t: &mut Test) {
    web(t);
    t.apply();
    let counters = |t: &Test| {
        [
            metric(t, "proxy_healthz_total", "code=\"200\""),
            metric(t, "proxy_livez_total", "code=\"200\""),
            metric(
                t,
                "sync_proxy_rules_duration_seconds_count",
                "ip_family=\"IPv4\"",
            ),
        ]
    };
    let before = counters(t);
    get(t, HEALTHZ, "/healthz");
    get(t, HEALTHZ, "/livez");
    get(t, HEALTHZ, "/livez");
    t.endpoints("web").clear();
    t.apply();
    let after = counters(t);
    assert!(after[0] >= before[0] + 1.0 && after[1] >= before[1] + 2.0);
    assert!(after[2] > before[2], "{before:?} {after:?}");
}

fn met_1_met_2_the_mode_and_liveness_are_told_to_the_node(t: &mut Test) {
    t.apply();
    let mode = t.datapath().mode();
    assert_eq!(get(t, LOCAL_SERVER, "/proxyMode"), (200, mode.to_owned()));
    assert_eq!(get(t, LOCAL_SERVER, "/healthz"), (200, "ok".to_owned()));
}

fn met_7_an_empty_address_or_port_0_disables(t: &mut Test) {
    let daemon = &mut t.bed_mut().daemon;
    daemon.set_flags(&["--metrics-bind-address=", "--healthz-port=0"]);
    web(t);
    let world = t.clone();
    let bed = t.bed_mut();
    bed.daemon.publish(&world).unwrap();
    bed.daemon.start(bed.topology.site(HOST.site)).unwrap();
    // Services work although the HTTP servers do not.
    t.eventually(DEADLINE, works());
    for address in [LOCAL_SERVER, HEALTHZ] {
        http(t.node_ns(), address, "/healthz").unwrap_err();
    }
}

fn met_9_a_failure_is_counted_and_moves_no_time(t: &mut Test) {
    let mut obstacle = Obstacle::prepare(t);
    web(t);
    t.apply();
    let family = "ip_family=\"IPv4\"";
    let failures = t.datapath().failures();
    let last = "sync_proxy_rules_last_timestamp_seconds";
    let (before, time) = (metric(t, failures, family), metric(t, last, family));
    obstacle.put_up(t, Family::V4);
    t.endpoints("web").clear();
    let world = t.clone();
    t.bed_mut().daemon.publish(&world).unwrap();
    until(t, "no failure is counted", |t| {
        metric(t, failures, family) > before
    });
    let attempts = |t: &Test| {
        let log = std::fs::read_to_string(t.bed().daemon.log_path()).unwrap();
        let failed = |line: &&str| line.contains("sync failed") && line.contains("IPv4");
        log.lines().filter(failed).count()
    };
    // Each failed attempt, of which the log tells, is counted once.
    until(t, "failures and attempts differ", |t| {
        let told = attempts(t);
        let counted = metric(t, failures, family) - before;
        told == attempts(t) && (counted - f64::from(u32::try_from(told).unwrap())).abs() < 0.5
    });
    assert!((metric(t, last, family) - time).abs() < f64::EPSILON);
    obstacle.take_down();
    until(t, "no sync succeeds", |t| metric(t, last, family) > time);
}

/// Starts the daemon with this configuration file, beside the flags that a test needs.
fn configure(t: &mut Test, fields: &str) -> Directory {
    let directory = Directory::new().unwrap();
    write(&directory, t.datapath(), fields);
    let flag = format!(
        "--config={}",
        directory.path().join("config.yaml").display()
    );
    t.bed_mut().daemon.set_flags(&[&flag]);
    directory
}

fn write(directory: &Directory, datapath: Datapath, fields: &str) {
    let mode = datapath.mode();
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
         conntrack: {{maxPerCore: 0}}\n{fields}\n"
    );
    directory.write("config.yaml", &text).unwrap();
}

const PODS: &str = "clusterCIDR: 10.244.0.0/16,fd00:244::/48";

fn cfg_1_a_file_overrules_flags_and_they_are_named(t: &mut Test) {
    let _file = configure(t, PODS);
    t.bed_mut()
        .daemon
        .set_flags(&["--cluster-cidr=192.0.2.0/24", "--masquerade-all=true"]);
    web(t);
    // Pods are where the file says, and not everything is masqueraded.
    t.apply();
    t.observe(works());
    let log = t.bed().daemon.log();
    let mut warnings = log.lines().filter(|line| line.contains("cluster-cidr"));
    let warning = warnings.next().unwrap_or_else(|| panic!("{log}"));
    assert!(
        warning.contains("WARN") && warning.contains("masquerade-all"),
        "{log}"
    );
    assert!(!warning.contains("hostname-override"), "{log}");
    assert_eq!(warnings.next(), None, "{log}");
}

fn cfg_2_cfg_5_faults_of_a_file_end_the_daemon(t: &mut Test) {
    let directory = Directory::new().unwrap();
    let flag = format!(
        "--config={}",
        directory.path().join("config.yaml").display()
    );
    for (fields, told) in [
        ("oomScoreAdj: many", &["line 5"][..]),
        ("bindAddress: ::", &["line 5"]),
        (
            "oomScoreAdj: 2000\nclusterCIDR: ten\nnodePortAddresses: [10.0.0.1]",
            &["oomScoreAdj", "clusterCIDR", "nodePortAddresses"],
        ),
    ] {
        write(&directory, t.datapath(), fields);
        let (code, text) = run_as(t, &[&flag]);
        assert_eq!(code, Some(2), "{text}");
        for word in told {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

fn cfg_2_unknown_fields_are_warnings(t: &mut Test) {
    let _file = configure(t, &format!("{PODS}\nsurprise: 1"));
    web(t);
    t.apply();
    t.observe(works());
    let log = t.bed().daemon.log();
    let warns = |line: &str| line.contains("WARN") && line.contains("surprise");
    assert!(log.lines().any(warns), "{log}");
}

fn cfg_3_a_changed_file_ends_the_daemon(t: &mut Test) {
    let directory = configure(t, PODS);
    web(t);
    t.apply();
    // The same content is no change; only the next write ends the daemon.
    write(&directory, t.datapath(), PODS);
    t.endpoints("web").clear();
    t.apply();
    write(&directory, t.datapath(), &format!("{PODS}\n#"));
    let mut status = None;
    until(t, "it goes on", |t| {
        status = t.bed_mut().daemon.ended().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(1));
}

fn cfg_4_underscores_are_dashes(t: &mut Test) {
    let daemon = &mut t.bed_mut().daemon;
    daemon.remove_flag("--cluster-cidr");
    daemon.set_flags(&["--cluster_cidr=10.244.0.0/16,fd00:244::/48"]);
    web(t);
    t.apply();
    // The pods' networks are known, and so which sources are masqueraded.
    t.observe([
        flow(P1, VIP, 80).reaches([kept(P2)]),
        flow(X, VIP, 80).reaches([masqueraded(P2)]),
    ]);
}

fn cfg_7_an_ipv6_bind_address_moves_the_servers(t: &mut Test) {
    let address = NODE.of(Family::V6).to_string();
    t.bed_mut()
        .daemon
        .set_flags(&[&format!("--bind-address={address}")]);
    web(t);
    let world = t.clone();
    let bed = t.bed_mut();
    bed.daemon.publish(&world).unwrap();
    bed.daemon.start(bed.topology.site(HOST.site)).unwrap();
    until(t, "nobody answers at [::1]", |t| {
        http_json(t.node_ns(), "[::1]:10249", "/debug/sync").is_ok()
    });
    http(t.node_ns(), LOCAL_SERVER, "/healthz").unwrap_err();
    let outside = format!("[{address}]:10256");
    until(t, "nobody answers at [::]", |t| {
        http(t.node_ns(), &outside, "/livez").is_ok_and(|(code, _)| code == 200)
    });
}

fn cfg_8_only_the_section_of_the_mode_counts(t: &mut Test) {
    let own = t.datapath().mode();
    let other = if own == "nftables" {
        "iptables"
    } else {
        "nftables"
    };
    web(t);
    let _file = configure(t, &format!("{PODS}\n{other}: {{masqueradeAll: true}}"));
    t.apply();
    t.observe([flow(P1, VIP, 80).reaches([kept(P2)])]);
    let _file = configure(t, &format!("{PODS}\n{own}: {{masqueradeAll: true}}"));
    t.restart(nix::sys::signal::Signal::SIGTERM, &[]);
    t.observe([flow(P1, VIP, 80).reaches([masqueraded(P2)])]);
}

fn xm_15_dump_and_explain_say_the_same_in_every_mode(t: &mut Test) {
    web(t);
    t.apply();
    let (code, live) = run_as(t, &["dump", "-o", "json"]);
    assert_eq!(code, Some(0), "{live}");
    let mut live: Value = serde_json::from_str(&live).unwrap();
    // The daemon's forwarding state equals that of an offline dump of the manifests, in every mode.
    let manifests = t.bed().daemon.manifests().path().display().to_string();
    let (code, offline) = run_as(
        t,
        &[
            &format!("--manifests={manifests}"),
            "--hostname-override=node-n",
            "--cluster-cidr=10.244.0.0/16,fd00:244::/48",
            "dump",
            "-o",
            "json",
        ],
    );
    assert_eq!(code, Some(0), "{offline}");
    let mut offline: Value = serde_json::from_str(&offline).unwrap();
    // But for the node's addresses, which only the running daemon knows all of.
    let node = t.ip(NODE).to_string();
    for state in [&mut live, &mut offline] {
        for (name, family) in state["families"].as_object_mut().unwrap() {
            let globals = family["globals"].as_object_mut().unwrap();
            let addresses = globals.remove("localAddresses").unwrap();
            let knows_it = addresses.as_array().unwrap().contains(&json!(node));
            assert!(knows_it || name != "IPv4", "{addresses}");
        }
    }
    assert_eq!(live, offline);
    let (from, to) = (t.ip(X.addr).to_string(), t.ip(NODE).to_string());
    let port = PORT.to_string();
    let (code, text) = run_as(
        t,
        &["explain", "--from", &from, "--to", &to, "--port", &port],
    );
    assert_eq!(code, Some(0), "{text}");
    let backend = t.ip(P2.addr).to_string();
    assert!(text.contains(&backend), "{text}");
}
