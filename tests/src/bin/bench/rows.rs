//! Which figures are taken, and how often?

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proxy_tests::lab::stats::{ms, quantile};

use crate::Plan;
use crate::bed::{Bed, Proxy, Subject};
use crate::probe::{self, Watched};
use crate::report::{Figures, Report, Target, Unit, progress};
use proxy_tests::world::many::{Size, vip};

const fn size(services: u32, endpoints: u32) -> Size {
    Size {
        services,
        endpoints,
    }
}

/// How long a subject may take to come up.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a change may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Starts and waits until it is in effect.
fn up(subject: &Subject, size: Size) -> Result<(Proxy, Duration)> {
    let mut proxy = Proxy::start(subject, size)?;
    match proxy.wait_for_last(LIMIT)? {
        Some(time) => {
            proxy.forget_attempts();
            Ok((proxy, time))
        }
        None => bail!("{size}: not in effect after {} s", LIMIT.as_secs()),
    }
}

/// Figures by subject, ours first; each round measures every subject in turn.
fn in_turns(
    plan: &Plan,
    rounds: usize,
    mut measure: impl FnMut(&Subject) -> Result<f64>,
) -> Result<(Figures, Option<Figures>)> {
    let mut all: Vec<Figures> = vec![Vec::new(); plan.subjects.len()];
    for _ in 0..rounds {
        for (subject, figures) in plan.subjects.iter().zip(&mut all) {
            // A proxy that ran out of time once is not measured again.
            if !figures.iter().any(|f| f.is_infinite()) {
                figures.push(measure(subject)?);
            }
        }
    }
    let mut all = all.into_iter();
    Ok((all.next().unwrap_or_default(), all.next()))
}

/// Process start to a connection through the last VIP.
pub(crate) fn sync(plan: &Plan, report: &mut Report) -> Result<()> {
    for (size, usual, of_iptables) in [
        (size(10_000, 10), 1000.0, Target::AtMost(5000.0)),
        (size(44_000, 1), 2500.0, Target::None),
        (size(5_000, 50), 2500.0, Target::None),
    ] {
        progress(&format!("sync, {size}"));
        let (ours, peer) = in_turns(plan, plan.rounds, |subject| {
            let mut proxy = Proxy::start(subject, size)?;
            Ok(proxy.wait_for_last(LIMIT)?.map_or(f64::INFINITY, ms))
        })?;
        let what = format!("sync: process start → last VIP works, {size}");
        report.row(
            &what,
            Unit::Time,
            &ours,
            peer.as_ref(),
            plan.target(Target::AtMost(usual), of_iptables),
        );
    }
    Ok(())
}

/// Resident memory and idle CPU.
pub(crate) fn memory(plan: &Plan, report: &mut Report) -> Result<()> {
    let large = size(10_000, 10);
    progress(&format!("memory and idle CPU, {large}"));
    let (mut cpu_ours, mut cpu_peer) = (Vec::new(), Vec::new());
    let (ours, peer) = in_turns(plan, plan.rounds, |subject| {
        let (proxy, _) = up(subject, large)?;
        thread::sleep(Duration::from_secs(3));
        let idle = Duration::from_secs(if plan.quick { 3 } else { 10 });
        let before = proxy.cpu()?;
        thread::sleep(idle);
        let used = (proxy.cpu()? - before) / idle.as_secs_f64() * 100.0;
        if matches!(subject, Subject::Ours { .. }) {
            &mut cpu_ours
        } else {
            &mut cpu_peer
        }
        .push(used);
        proxy.resident()
    })?;
    report.row(
        &format!("resident memory, {large}"),
        Unit::Megabytes,
        &ours,
        peer.as_ref(),
        Target::AtMost(60.0),
    );
    let peer_cpu = peer.is_some().then_some(&cpu_peer);
    report.row(
        &format!("idle CPU of a core, {large}"),
        Unit::Core,
        &cpu_ours,
        peer_cpu,
        Target::AtMost(0.1),
    );
    let (ours, peer) = in_turns(plan, plan.rounds, |subject| {
        let mut proxy = Proxy::start_idle(subject)?;
        proxy.wait_until_idle()?;
        proxy.resident()
    })?;
    report.row(
        "resident memory, no Services",
        Unit::Megabytes,
        &ours,
        peer.as_ref(),
        Target::AtMost(15.0),
    );
    Ok(())
}

/// API event to a packet that reaches the new backend, one change at a time.
pub(crate) fn update(plan: &Plan, report: &mut Report) -> Result<()> {
    let sizes = [size(100, 10), size(10_000, 10), size(30_000, 10)];
    let mut medians = Vec::new();
    for size in sizes {
        progress(&format!("update, {size}"));
        let mut by_subject = Vec::new();
        for subject in &plan.subjects {
            // The peer is compared where both are at their ordinary size.
            let is_peer = matches!(subject, Subject::Peer(_));
            if is_peer && size != sizes[1] {
                continue;
            }
            let n = if is_peer {
                5
            } else if plan.quick {
                20
            } else {
                100
            };
            by_subject.push(latencies(subject, size, n)?);
        }
        let ours = &by_subject[0];
        let (middle, tail) = (quantile(ours, 0.5), quantile(ours, 0.99));
        medians.push(middle);
        let peer = by_subject.get(1);
        let of_peer = |q| peer.map(|p| vec![quantile(p, q)]);
        let (p50, p99) = if size == sizes[1] {
            (
                plan.target(Target::AtMost(2.0), Target::AtMost(300.0)),
                plan.target(Target::AtMost(10.0), Target::None),
            )
        } else {
            (Target::None, Target::None)
        };
        report.row(
            &format!("update: API event → packet, {size}, p50"),
            Unit::Time,
            &vec![middle],
            of_peer(0.5).as_ref(),
            p50,
        );
        report.row(
            &format!("update: API event → packet, {size}, p99"),
            Unit::Time,
            &vec![tail],
            of_peer(0.99).as_ref(),
            p99,
        );
    }
    let growth = vec![medians[2] / medians[0]];
    report.row(
        "update p50, 30,000 × 10 over 100 × 10",
        Unit::Ratio,
        &growth,
        None,
        plan.target(Target::AtMost(1.5), Target::None),
    );
    Ok(())
}

/// Milliseconds of `n` changes, each made when the one before has long been in effect.
fn latencies(subject: &Subject, size: Size, n: u32) -> Result<Figures> {
    let (proxy, _) = up(subject, size)?;
    // Work left over from the start does not count as an update's cost.
    thread::sleep(Duration::from_secs(2));
    let (_, service) = size.places()[1];
    let (watched, changes) = Watched::during(
        proxy.bed.client(),
        size,
        vip(service),
        Duration::ZERO,
        |latest| {
            let mut changes = Vec::new();
            for generation in 1..=n {
                // A pause that is no multiple of a period in the daemon.
                thread::sleep(Duration::from_millis(
                    150 + u64::from(generation * 37 % 100),
                ));
                let at = proxy.api.put(size.slice(service, generation));
                changes.push((at, generation));
                if !latest.wait_for(generation, CHANGE_LIMIT) {
                    break;
                }
            }
            changes
        },
    );
    if watched.n_failed() > 0 {
        println!("  {} connections failed meanwhile", watched.n_failed());
    }
    Ok(watched.latencies(&changes))
}

/// A hundred changes a second.
pub(crate) fn churn(plan: &Plan, report: &mut Report) -> Result<()> {
    const EVERY: Duration = Duration::from_millis(10);
    let size = size(10_000, 10);
    let time = Duration::from_secs(if plan.quick { 5 } else { 20 });
    progress(&format!(
        "100 changes a second for {} s, {size}",
        time.as_secs()
    ));
    let mut cpu = Vec::new();
    let (ours, peer) = in_turns(plan, 1, |subject| {
        let (proxy, _) = up(subject, size)?;
        thread::sleep(Duration::from_secs(2));
        let (_, probed) = size.places()[1];
        let before = proxy.cpu()?;
        // The loop that watches pauses between connections, so as not to compete with whom it watches.
        let pause = Duration::from_millis(1);
        let (watched, changes) =
            Watched::during(proxy.bed.client(), size, vip(probed), pause, |latest| {
                let start = Instant::now();
                let mut changes = Vec::new();
                let mut generation = 0;
                for n in 0_u32.. {
                    let due = EVERY * n;
                    if due >= time {
                        break;
                    }
                    thread::sleep(due.saturating_sub(start.elapsed()));
                    // Each thirtieth change is of the Service that is watched, the others go round.
                    if n % 30 == 0 {
                        generation += 1;
                        let at = proxy.api.put(size.slice(probed, generation));
                        changes.push((at, generation));
                    } else {
                        let service = n.wrapping_mul(7919) % (size.services / 2);
                        proxy.api.put(size.slice(service, 1 + n % 7));
                    }
                }
                latest.wait_for(generation, CHANGE_LIMIT);
                changes
            });
        cpu.push((proxy.cpu()? - before) / time.as_secs_f64() * 100.0);
        Ok(quantile(&watched.latencies(&changes), 1.0))
    })?;
    report.row(
        &format!("100 changes/s, {size}: furthest behind"),
        Unit::Time,
        &ours,
        peer.as_ref(),
        plan.target(Target::AtMost(100.0), Target::None),
    );
    let peer_cpu = peer.is_some().then(|| cpu[1..].to_vec());
    report.row(
        &format!("100 changes/s, {size}: CPU of a core"),
        Unit::Core,
        &cpu[..1].to_vec(),
        peer_cpu.as_ref(),
        plan.target(Target::AtMost(10.0), Target::None),
    );
    Ok(())
}

/// The extra cost of a new connection over one without a proxy.
pub(crate) fn connect(plan: &Plan, report: &mut Report) -> Result<()> {
    let size = size(10_000, 10);
    progress(&format!("connections, {size}"));
    let bare = Bed::build(size)?;
    let all_up = plan.subjects.iter().map(|s| Ok(up(s, size)?.0));
    let proxies: Vec<Proxy> = all_up.collect::<Result<_>>()?;
    let (n, time, rounds) = if plan.quick {
        (500, Duration::from_millis(500), 2)
    } else {
        (3000, Duration::from_secs(2), 5)
    };
    let mut bare_us = Vec::new();
    let mut bare_rate = Vec::new();
    // By subject and place: added microseconds, and share of bare's connections per second.
    let mut added = vec![[const { Vec::<f64>::new() }; 3]; proxies.len()];
    let mut share = added.clone();
    for _ in 0..rounds {
        let floor = probe::connect_us(bare.client(), Bed::bare(), n)?;
        bare_us.push(floor);
        for (at, proxy) in proxies.iter().enumerate() {
            for (place, (_, service)) in size.places().into_iter().enumerate() {
                added[at][place]
                    .push(probe::connect_us(proxy.bed.client(), vip(service), n)? - floor);
            }
        }
        let floor = probe::connections_per_second(bare.client(), Bed::bare(), time)?;
        bare_rate.push(floor);
        for (at, proxy) in proxies.iter().enumerate() {
            for (place, (_, service)) in size.places().into_iter().enumerate() {
                let rate = probe::connections_per_second(proxy.bed.client(), vip(service), time)?;
                share[at][place].push(rate / floor);
            }
        }
    }
    report.row(
        "connect() without a proxy, p50",
        Unit::Microseconds,
        &bare_us,
        None,
        Target::None,
    );
    report.row(
        "new connections without a proxy, 16 in flight",
        Unit::PerSecond,
        &bare_rate,
        None,
        Target::None,
    );
    let mut by_place = |what: &str, unit, figures: &[[Figures; 3]], target| {
        for (place, (name, _)) in size.places().into_iter().enumerate() {
            let what = format!("{what}, {name} of 10,000 Services");
            let peer = figures.get(1).map(|of_places| &of_places[place]);
            report.row(
                &what,
                unit,
                &figures[0][place],
                peer,
                plan.target(target, Target::None),
            );
        }
    };
    by_place(
        "connect() p50 over bare",
        Unit::Microseconds,
        &added,
        Target::PeerOrLess,
    );
    by_place(
        "new connections against bare",
        Unit::Ratio,
        &share,
        Target::PeerOrMore,
    );
    report.row(
        "connect() p50, last over first of 10,000 Services",
        Unit::Ratio,
        &last_over_first(&bare_us, &added[0]),
        None,
        plan.target(Target::None, Target::AtMost(1.2)),
    );
    Ok(())
}

/// The time to the last Service over that to the first, from the time without a proxy and what each adds.
fn last_over_first(bare: &Figures, [first, _, last]: &[Figures; 3]) -> Figures {
    bare.iter()
        .zip(first.iter().zip(last))
        .map(|(bare, (first, last))| (bare + last) / (bare + first))
        .collect()
}

/// Whether packets and connections notice how many Services there are.
pub(crate) fn scale(plan: &Plan, report: &mut Report) -> Result<()> {
    let (one, many) = (size(1, 1), size(44_000, 1));
    progress(&format!("packets and connections, {one} against {many}"));
    let ours = plan.subjects.first().context("there is always ours")?;
    let (small, large) = (up(ours, one)?.0, up(ours, many)?.0);
    let n = if plan.quick { 2000 } else { 10_000 };
    let (mut packets, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..if plan.quick { 2 } else { 5 } {
        let floor = probe::round_trip_us(small.bed.client(), one.last(), n)?;
        packets.push(probe::round_trip_us(large.bed.client(), many.last(), n)? / floor);
        let floor = probe::connect_us(small.bed.client(), one.last(), n / 4)?;
        connections.push(probe::connect_us(large.bed.client(), many.last(), n / 4)? / floor);
    }
    report.row(
        "packet round trip on an open flow, 44,000 Services over 1",
        Unit::Ratio,
        &packets,
        None,
        plan.target(Target::AtMost(1.05), Target::None),
    );
    report.row(
        "connect(), last of 44,000 Services over 1",
        Unit::Ratio,
        &connections,
        None,
        plan.target(Target::AtMost(1.05), Target::None),
    );
    Ok(())
}
