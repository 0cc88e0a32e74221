//! Do the answers follow SPEC §15?

use super::*;

struct Fake(Mutex<(Instant, SystemTime)>);

impl Fake {
    fn new() -> Self {
        let now = crate::sys::SystemClock.now();
        Self(Mutex::new((now, SystemTime::UNIX_EPOCH)))
    }

    fn advance(&self, seconds: u64) {
        let mut times = self.0.lock().unwrap();
        times.0 += Duration::from_secs(seconds);
        times.1 += Duration::from_secs(seconds);
    }
}

impl Clock for Fake {
    fn now(&self) -> Instant {
        self.0.lock().unwrap().0
    }
    fn wall(&self) -> SystemTime {
        self.0.lock().unwrap().1
    }
}

fn health() -> Health {
    let health = Health::new(Duration::from_secs(30), true);
    health.expect(IpFamily::V4);
    health.expect(IpFamily::V6);
    health
}

/// Whether the text has this sample; 7 and 7.0 are the same value.
fn has(text: &str, sample: &str) -> bool {
    let parse = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series.to_owned(), value.parse::<f64>().ok()?))
    };
    text.lines()
        .any(|line| parse(line) == parse(sample) && parse(line).is_some())
}

#[test]
fn hz_3_unhealthy_when_a_change_waits_for_two_sync_periods() {
    let clock = Fake::new();
    let health = health();
    assert!(health.healthz(&clock).ok);
    health.queued(clock.now(), &clock);
    clock.advance(60);
    assert!(health.healthz(&clock).ok);
    clock.advance(1);
    assert!(!health.healthz(&clock).ok);
    health.succeeded(IpFamily::V4, clock.now(), &clock);
    assert!(!health.healthz(&clock).ok, "the other family still waits");
    health.succeeded(IpFamily::V6, clock.now(), &clock);
    assert!(health.healthz(&clock).ok);
    clock.advance(100_000);
    assert!(health.healthz(&clock).ok, "idle is healthy");
}

#[test]
fn hz_3_a_change_during_a_sync_waits_for_the_next() {
    let clock = Fake::new();
    let health = health();
    let started = clock.now();
    health.queued(started, &clock);
    clock.advance(1);
    health.queued(clock.now(), &clock);
    health.succeeded(IpFamily::V4, started, &clock);
    health.succeeded(IpFamily::V6, started, &clock);
    assert_eq!(health.report(&clock)["pending"], 2);
    clock.advance(60);
    assert!(health.livez(&clock).ok);
    clock.advance(1);
    assert!(!health.livez(&clock).ok);
}

#[test]
fn hz_2_the_body_says_who_is_unwell() {
    let clock = Fake::new();
    let health = health();
    health.queued(clock.now(), &clock);
    clock.advance(10);
    health.succeeded(IpFamily::V4, clock.now(), &clock);
    clock.advance(90);
    let Answer { ok, body } = health.healthz(&clock);
    assert!(!ok);
    assert_eq!(
        body,
        json!({
            "lastUpdated": "1970-01-01T00:00:10.000000Z",
            "currentTime": "1970-01-01T00:01:40.000000Z",
            "healthy": false,
            "nodeEligible": true,
            "status": {
                "IPv4": {"lastUpdated": "1970-01-01T00:00:10.000000Z", "healthy": true},
                "IPv6": {"lastUpdated": "1970-01-01T00:00:00.000000Z", "healthy": false},
            },
        })
    );
    health.succeeded(IpFamily::V6, clock.now(), &clock);
    clock.advance(5);
    assert_eq!(
        health.healthz(&clock).body["lastUpdated"],
        "1970-01-01T00:01:45.000000Z"
    );
}

#[test]
fn hz_4_hz_6_an_ineligible_node_is_live_and_not_healthy() {
    let clock = Fake::new();
    let health = health();
    health.set_node_eligible(false);
    assert!(!health.healthz(&clock).ok);
    let livez = health.livez(&clock);
    assert!(livez.ok);
    assert_eq!(livez.body.get("nodeEligible"), None);
    health.set_node_eligible(true);
    assert!(health.healthz(&clock).ok);
}

#[test]
fn hz_7_met_4_probes_and_syncs_are_counted() {
    let clock = Fake::new();
    let health = health();
    health.healthz(&clock);
    health.livez(&clock);
    health.livez(&clock);
    health.measured(IpFamily::V4, Scope::Full, Duration::from_millis(2));
    health.measured(IpFamily::V4, Scope::Partial, Duration::from_millis(2));
    health.cleaned(IpFamily::V6, 3, Duration::from_millis(2));
    let nftables = DatapathKind::named("nftables").unwrap();
    let text = health.metrics(nftables, Vec::new());
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 2",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 0",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 3",
    ] {
        assert!(has(&text, line), "{line}\n{text}");
    }
}

#[test]
fn met_4_a_page_is_of_one_moment_and_holds_up_no_sync() {
    let health = health();
    let page = health.page(DatapathKind::named("nftables").unwrap(), Vec::new());
    health.measured(IpFamily::V4, Scope::Full, Duration::from_millis(2));
    let count = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 0";
    let text = page.into_text();
    assert!(has(&text, count), "{text}");
}

#[test]
fn met_9_a_failure_counts_once_under_its_mode_s_names_and_moves_no_time() {
    let clock = Fake::new();
    let health = health();
    clock.advance(7);
    health.succeeded(IpFamily::V4, clock.now(), &clock);
    clock.advance(1);
    let error = std::io::Error::other("refused");
    health.failed(IpFamily::V4, Scope::Full, &error);
    health.failed(IpFamily::V4, Scope::Partial, &error);
    for (name, lines) in [
        (
            "nftables",
            &["kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 2"][..],
        ),
        (
            "iptables-legacy",
            &[
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"} 2",
                "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"} 0",
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv4\"} 1",
            ],
        ),
    ] {
        let figure = |is_counter| Figure {
            name: if is_counter { "events" } else { "links" },
            help: "for the test",
            is_counter,
            value: 3,
        };
        let figures = [false, true].map(figure).to_vec();
        let text = health.metrics(DatapathKind::named(name).unwrap(), figures);
        assert!(has(&text, "kubeproxy_links 3"), "{text}");
        assert!(has(&text, "kubeproxy_events_total 3"), "{text}");
        let last = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 7";
        for line in lines.iter().chain([&last]) {
            assert!(has(&text, line), "{line}\n{text}");
        }
        let others = if name == "nftables" {
            "_iptables_"
        } else {
            "_nftables_"
        };
        assert!(!text.contains(others), "{text}");
    }
}

#[test]
fn moments_are_written_as_rfc_3339() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (1_795_334_399, "2026-11-22T07:59:59.000000Z"),
    ] {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(rfc3339(moment), expected);
    }
}
