//! Which scenes does the demo show, and which results are expected?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proxy_tests::address::Site;
use proxy_tests::lab::ask::{self, Outcome};
use proxy_tests::lab::stats::{median, ms, quantile, show_ms};

use crate::report::{self, Row};
use crate::{Cluster, cluster};

/// The Services' addresses, as the manifests have them.
const WEB: &str = "10.96.0.10:80";
const WEB6: &str = "[fd00:96::10]:80";
const NODE_PORT: &str = "192.0.2.2:30080";
const DNS: &str = "10.96.0.53:53";
const KUBERNETES: &str = "10.96.0.1:443";
const CART: &str = "10.96.0.20:80";
const SOLD_OUT: &str = "10.96.0.30:80";
const MOVING: &str = "10.96.0.40:80";

/// Requests per scene that shows a spread.
const MANY: usize = 300;
/// How often the endpoint moves.
const MOVES: usize = 20;
/// A pause between moves, longer than minSyncPeriod as shipped, so that each move meets an idle daemon.
const PAUSE: Duration = Duration::from_millis(200);
/// The bound of "within milliseconds" for the median, on a machine that may be busy with other things.
const SOON_MS: f64 = 100.0;

/// Requests that must spread evenly.
struct Spread {
    site: Site,
    from: &'static str,
    service: &'static str,
    to: &'static str,
    ask: fn(SocketAddr) -> Outcome,
    pods: &'static [&'static str],
    source: Source,
}

/// The source address that servers must see.
#[derive(Clone, Copy)]
enum Source {
    Kept(&'static str),
    Masqueraded(&'static str),
    Any,
}

const POD: Source = Source::Kept("10.244.1.11");
const THREE: &[&str] = &["pod-2", "pod-3", "pod-4"];
const TWO: &[&str] = &["pod-2", "pod-3"];
const API: &[&str] = &["api-server"];

const fn spread(
    (site, from): (Site, &'static str),
    (service, to): (&'static str, &'static str),
    ask: fn(SocketAddr) -> Outcome,
    pods: &'static [&'static str],
    source: Source,
) -> Spread {
    Spread {
        site,
        from,
        service,
        to,
        ask,
        pods,
        source,
    }
}

const POD_1: (Site, &str) = (Site::P1, "pod-1");
const NODE_A: (Site, &str) = (Site::N, "node-a");
const OUTSIDE: (Site, &str) = (Site::X, "outside");

const SPREADS: [Spread; 7] = [
    spread(
        POD_1,
        ("shop/web, ClusterIP, TCP", WEB),
        ask::tcp,
        THREE,
        POD,
    ),
    spread(
        POD_1,
        ("shop/web, ClusterIP, IPv6", WEB6),
        ask::tcp,
        THREE,
        Source::Kept("fd00:244:0:1::11"),
    ),
    spread(
        NODE_A,
        ("shop/web, ClusterIP, TCP", WEB),
        ask::tcp,
        THREE,
        Source::Any,
    ),
    spread(POD_1, ("kube-dns, ClusterIP, UDP", DNS), ask::udp, TWO, POD),
    spread(
        POD_1,
        ("default/kubernetes", KUBERNETES),
        ask::tcp,
        API,
        POD,
    ),
    spread(
        NODE_A,
        ("default/kubernetes", KUBERNETES),
        ask::tcp,
        API,
        Source::Any,
    ),
    spread(
        OUTSIDE,
        ("shop/web, NodePort", NODE_PORT),
        ask::tcp,
        THREE,
        Source::Masqueraded("203.0.113.7"),
    ),
];

/// Shows everything; whether all was as expected.
pub(crate) fn show(cluster: &Cluster) -> Result<bool> {
    println!("\nrequests:");
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        report::progress(&row);
        rows.push(row);
    };
    for scene in &SPREADS {
        add(even(cluster, scene));
    }
    for client in [POD_1, NODE_A] {
        add(sticky(cluster, client));
    }
    for client in [POD_1, NODE_A] {
        add(refused(cluster, client));
    }
    println!(
        "  moving the only endpoint of shop/moving {MOVES} times, under connections without a pause …"
    );
    add(moved(cluster)?);
    report::table(&rows);
    let bad = rows.iter().filter(|r| !r.good).count();
    println!(
        "{} mode: {} of {} as expected",
        cluster.mode.name(),
        rows.len() - bad,
        rows.len()
    );
    Ok(bad == 0)
}

/// Whether the daemon answers for all: one Service of each family, and the NodePort.
pub(crate) fn is_ready(cluster: &Cluster) -> bool {
    let answers = |site, to: &str| {
        let to = address(to);
        cluster
            .topology
            .site(site)
            .enter(|| std::net::TcpStream::connect_timeout(&to, Duration::from_millis(50)))
            .is_ok()
    };
    answers(Site::P1, WEB) && answers(Site::P1, WEB6) && answers(Site::X, NODE_PORT)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a literal socket address")
}

fn even(cluster: &Cluster, scene: &Spread) -> Row {
    let to = address(scene.to);
    let outcomes: Vec<Outcome> = cluster
        .topology
        .site(scene.site)
        .enter(|| (0..MANY).map(|_| (scene.ask)(to)).collect());
    let counts = count(&outcomes);
    let sources: BTreeSet<&str> = outcomes
        .iter()
        .filter_map(|o| match o {
            Outcome::Answered { saw, .. } => Some(saw.as_str()),
            Outcome::Refused | Outcome::Silence | Outcome::Failed(_) => None,
        })
        .collect();
    let (as_source, remark) = match scene.source {
        Source::Kept(address) => (sources.iter().all(|s| *s == address), "source kept"),
        Source::Masqueraded(address) => (!sources.contains(address), "masqueraded"),
        Source::Any => (true, ""),
    };
    Row {
        from: scene.from.into(),
        to: format!("{} {}", scene.service, scene.to),
        seen: show_counts(&counts),
        remark: if as_source {
            remark.to_owned()
        } else {
            format!("unexpected source {sources:?}")
        },
        good: is_even(&counts, scene.pods) && as_source,
    }
}

/// Whether the counts are those of a fair die, within five standard deviations.
fn is_even(counts: &BTreeMap<String, usize>, pods: &[&str]) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (throws, p) = (MANY as f64, 1.0 / pods.len() as f64);
    let (mean, slack) = (throws * p, 5.0 * (throws * p * (1.0 - p)).sqrt());
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let near = |n: usize| (n as f64 - mean).abs() <= slack;
    counts.len() == pods.len()
        && pods
            .iter()
            .all(|pod| counts.get(*pod).is_some_and(|n| near(*n)))
}

fn sticky(cluster: &Cluster, (site, from): (Site, &str)) -> Row {
    let outcomes: Vec<Outcome> = cluster
        .topology
        .site(site)
        .enter(|| (0..MANY / 10).map(|_| ask::tcp(address(CART))).collect());
    let counts = count(&outcomes);
    Row {
        from: from.into(),
        to: format!("shop/cart, session affinity {CART}"),
        seen: show_counts(&counts),
        remark: "one pod per client".into(),
        good: counts.len() == 1 && outcomes.iter().all(|o| o.by().is_some()),
    }
}

fn refused(cluster: &Cluster, (site, from): (Site, &str)) -> Row {
    let mut times = Vec::new();
    let outcomes: Vec<Outcome> = cluster.topology.site(site).enter(|| {
        (0..10)
            .map(|_| {
                let start = Instant::now();
                let outcome = ask::tcp(address(SOLD_OUT));
                times.push(ms(start.elapsed()));
                outcome
            })
            .collect()
    });
    let good = outcomes.iter().all(|o| *o == Outcome::Refused);
    Row {
        from: from.into(),
        to: format!("shop/soldout, no endpoint {SOLD_OUT}"),
        seen: show_counts(&count(&outcomes)),
        remark: format!("after {} (median)", show_ms(median(&times))),
        good,
    }
}

/// The pods that take turns as the one endpoint of shop/moving: name, address, node.
const PLACES: [(&str, &str, &str); 2] = [
    ("pod-3", "10.244.2.21", "node-b"),
    ("pod-2", "10.244.1.12", "node-a"),
];

/// Replaces the endpoint again and again under a loop of connections.
fn moved(cluster: &Cluster) -> Result<Row> {
    let site = cluster.topology.site(Site::P1);
    let to = address(MOVING);
    put(cluster, 0)?;
    let ready = site.enter(|| ask::until(Duration::from_secs(5), || ask::tcp(to), PLACES[0].0));
    ready.context("shop/moving never came up")?;
    std::thread::sleep(PAUSE);
    let stop = AtomicBool::new(false);
    let (moves, seen) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            site.enter(|| {
                let mut seen = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    seen.push((start, ask::tcp(to)));
                }
                seen
            })
        });
        let moves: Result<Vec<Instant>> = (1..=MOVES)
            .map(|round| {
                let at = put(cluster, round);
                std::thread::sleep(PAUSE);
                at
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        (
            moves,
            asking.join().expect("the asking thread does not panic"),
        )
    });
    // From the rename to the start of the first connection that the new endpoint answered.
    let times: Vec<f64> = (1..)
        .zip(moves?)
        .map(|(round, at)| {
            let (name, _, _) = PLACES[round % 2];
            seen.iter()
                .find(|(start, outcome)| *start >= at && outcome.by() == Some(name))
                .map_or(f64::INFINITY, |(start, _)| ms(start.duration_since(at)))
        })
        .collect();
    let failed = seen
        .iter()
        .filter(|(_, outcome)| outcome.by().is_none())
        .count();
    let (middle, worst) = (median(&times), quantile(&times, 1.0));
    Ok(Row {
        from: "pod-1".into(),
        to: format!("shop/moving, endpoint replaced {MOVING}"),
        seen: format!("{} connections, {failed} failed", seen.len()),
        remark: format!(
            "moved after {} (median), {} (worst)",
            show_ms(middle),
            show_ms(worst)
        ),
        good: failed == 0 && middle <= SOON_MS,
    })
}

/// Renames a new EndpointSlice into place; when that happened.
fn put(cluster: &Cluster, round: usize) -> Result<Instant> {
    let (_, endpoint, node) = PLACES[round % 2];
    let staged = cluster.staging.join("moving-endpoints.yaml");
    fs::write(&staged, cluster::moving(endpoint, node))?;
    let at = Instant::now();
    fs::rename(&staged, cluster.manifests.join("moving-endpoints.yaml"))?;
    Ok(at)
}

fn count(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let who = match outcome {
            Outcome::Answered { by, .. } => by.clone(),
            Outcome::Refused => "refused".into(),
            Outcome::Silence => "silence".into(),
            Outcome::Failed(why) => why.clone(),
        };
        *counts.entry(who).or_insert(0) += 1;
    }
    counts
}

fn show_counts(counts: &BTreeMap<String, usize>) -> String {
    counts
        .iter()
        .map(|(who, n)| format!("{who} {n}"))
        .collect::<Vec<_>>()
        .join(", ")
}
