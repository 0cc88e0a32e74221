//! What does the demo show, and what must it look like?

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
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
const MOVES: usize = 10;
/// A pause between moves that is longer than any minSyncPeriod as shipped, so that each move meets an idle daemon.
const PAUSE: Duration = Duration::from_millis(1200);
/// What "within milliseconds" means.
const SOON_MS: f64 = 100.0;

type Ask = fn(SocketAddr) -> Outcome;

/// Shows everything; whether all was as expected.
pub(crate) fn show(cluster: &Cluster) -> Result<bool> {
    println!("\nrequests:");
    let three: &[&str] = &["pod-2", "pod-3", "pod-4"];
    let spread = [
        (Site::P1, "pod-1", "shop/web, ClusterIP, TCP", WEB, ask::tcp as Ask, three, Source::Kept("10.244.1.11")),
        (Site::P1, "pod-1", "shop/web, ClusterIP, TCP, IPv6", WEB6, ask::tcp, three, Source::Kept("fd00:244:0:1::11")),
        (Site::N, "node-a", "shop/web, ClusterIP, TCP", WEB, ask::tcp, three, Source::Any),
        (Site::P1, "pod-1", "kube-dns, ClusterIP, UDP", DNS, ask::udp, &three[..2], Source::Kept("10.244.1.11")),
        (Site::P1, "pod-1", "default/kubernetes", KUBERNETES, ask::tcp, &["api-server"], Source::Kept("10.244.1.11")),
        (Site::N, "node-a", "default/kubernetes", KUBERNETES, ask::tcp, &["api-server"], Source::Any),
        (Site::X, "outside", "shop/web, NodePort, TCP", NODE_PORT, ask::tcp, three, Source::Masqueraded("203.0.113.7")),
    ];
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        report::progress(&row);
        rows.push(row);
    };
    for (site, from, name, to, ask, expected, source) in spread {
        add(even(cluster, site, from, &format!("{name} {to}"), to, ask, expected, source)?);
    }
    for (site, from) in [(Site::P1, "pod-1"), (Site::N, "node-a")] {
        add(sticky(cluster, site, from)?);
    }
    for (site, from) in [(Site::P1, "pod-1"), (Site::N, "node-a")] {
        add(refused(cluster, site, from)?);
    }
    println!("  moving the only endpoint of shop/moving {MOVES} times, under connections without a pause …");
    add(moved(cluster)?);
    report::table(&rows);
    let bad = rows.iter().filter(|r| !r.good).count();
    println!("{} mode: {} of {} as expected", cluster.mode, rows.len() - bad, rows.len());
    Ok(bad == 0)
}

/// Whether the daemon answers for all: one Service of each family, and the NodePort.
pub(crate) fn is_ready(cluster: &Cluster) -> bool {
    let answers = |site, to: &str| {
        let to = address(to);
        cluster.topology.site(site).enter(|| std::net::TcpStream::connect_timeout(&to, Duration::from_millis(50))).is_ok()
    };
    answers(Site::P1, WEB) && answers(Site::P1, WEB6) && answers(Site::X, NODE_PORT)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a literal socket address")
}

/// What servers must see as the source.
#[derive(Clone, Copy)]
enum Source {
    Kept(&'static str),
    Masqueraded(&'static str),
    Any,
}

#[expect(clippy::too_many_arguments, reason = "a row of the table above")]
fn even(
    cluster: &Cluster,
    site: Site,
    from: &str,
    name: &str,
    to: &str,
    ask: Ask,
    expected: &[&str],
    source: Source,
) -> Result<Row> {
    let to = address(to);
    let outcomes: Vec<Outcome> = cluster.topology.site(site).enter(|| (0..MANY).map(|_| ask(to)).collect());
    let counts = count(&outcomes);
    // A fair die of n sides thrown MANY times stays within five standard deviations.
    let n = expected.len();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (mean, slack) = {
        let (throws, p) = (MANY as f64, 1.0 / n as f64);
        (throws * p, 5.0 * (throws * p * (1.0 - p)).sqrt())
    };
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let fair = counts.len() == n
        && expected.iter().all(|e| counts.get(*e).is_some_and(|c| (*c as f64 - mean).abs() <= slack));
    let sources: Vec<&str> = outcomes
        .iter()
        .filter_map(|o| match o {
            Outcome::Answered { saw, .. } => Some(saw.as_str()),
            Outcome::Refused | Outcome::Silence | Outcome::Failed(_) => None,
        })
        .collect();
    let (as_source, remark) = match source {
        Source::Kept(address) => (sources.iter().all(|s| *s == address), "source kept"),
        Source::Masqueraded(address) => (sources.iter().all(|s| *s != address), "masqueraded"),
        Source::Any => (true, ""),
    };
    let remark = if as_source { remark.to_owned() } else { format!("unexpected source {sources:?}") };
    Ok(Row { from: from.into(), to: name.into(), seen: show_counts(&counts), remark, good: fair && as_source })
}

fn sticky(cluster: &Cluster, site: Site, from: &str) -> Result<Row> {
    let outcomes: Vec<Outcome> =
        cluster.topology.site(site).enter(|| (0..MANY / 10).map(|_| ask::tcp(address(CART))).collect());
    let counts = count(&outcomes);
    Ok(Row {
        from: from.into(),
        to: format!("shop/cart, session affinity {CART}"),
        seen: show_counts(&counts),
        remark: "one pod per client".into(),
        good: counts.len() == 1 && outcomes.iter().all(|o| o.by().is_some()),
    })
}

fn refused(cluster: &Cluster, site: Site, from: &str) -> Result<Row> {
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
    Ok(Row {
        from: from.into(),
        to: format!("shop/soldout, no endpoint {SOLD_OUT}"),
        seen: show_counts(&count(&outcomes)),
        remark: format!("after {} (median)", show_ms(median(&times))),
        good,
    })
}

/// Replaces the endpoint again and again under a loop of connections.
fn moved(cluster: &Cluster) -> Result<Row> {
    let places = [("pod-3", "10.244.2.21", "node-b"), ("pod-2", "10.244.1.12", "node-a")];
    let site = cluster.topology.site(Site::P1);
    put(cluster, places[0].1, places[0].2)?;
    let ready = site.enter(|| ask::until(Duration::from_secs(5), || ask::tcp(address(MOVING)), places[0].0));
    ready.context("shop/moving never came up")?;
    std::thread::sleep(PAUSE);
    let stop = Arc::new(AtomicBool::new(false));
    let (times, outcomes) = std::thread::scope(|scope| -> Result<_> {
        let stopped = Arc::clone(&stop);
        let asking = scope.spawn(move || {
            site.enter(|| {
                let mut seen = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    seen.push((start, ask::tcp(address(MOVING))));
                }
                seen
            })
        });
        let mut moves = Vec::new();
        for round in 0..MOVES {
            let (name, address, node) = places[(round + 1) % 2];
            let outcome = put(cluster, address, node);
            match outcome {
                Ok(at) => moves.push((at, name)),
                Err(e) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(e);
                }
            }
            std::thread::sleep(PAUSE);
        }
        stop.store(true, Ordering::Relaxed);
        let seen = asking.join().expect("the asking thread does not panic");
        // From the rename to the start of the first connection that the new endpoint answered.
        let times: Vec<f64> = moves
            .iter()
            .map(|(at, name)| {
                seen.iter()
                    .find(|(start, outcome)| start >= at && outcome.by() == Some(name))
                    .map_or(f64::INFINITY, |(start, _)| ms(start.duration_since(*at)))
            })
            .collect();
        Ok((times, seen.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>()))
    })?;
    let failed = outcomes.iter().filter(|o| o.by().is_none()).count();
    let (middle, worst) = (median(&times), quantile(&times, 1.0));
    Ok(Row {
        from: "pod-1".into(),
        to: format!("shop/moving, endpoint replaced {MOVING}"),
        seen: format!("{} connections, {failed} failed", outcomes.len()),
        remark: format!("moved after {} (median), {} (worst)", show_ms(middle), show_ms(worst)),
        good: failed == 0 && worst <= SOON_MS,
    })
}

/// Renames a new EndpointSlice into place; when that happened.
fn put(cluster: &Cluster, endpoint: &str, node: &str) -> Result<Instant> {
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
    counts.iter().map(|(who, n)| format!("{who} {n}")).collect::<Vec<_>>().join(", ")
}
