//! SYNC-9: other programs damage our objects while the daemon writes them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use proxy_tests::address::{P1, R, R2, VIP2, VIP3};
use proxy_tests::case;
use proxy_tests::damage::{self, DamageKind};
use proxy_tests::dice::{self, Dice};
use proxy_tests::flow::flow;
use proxy_tests::matrix::{Case, Test};

use crate::common::{PORT, await_rules, rules, web, works};

/// How long damage by others may last: syncPeriod.
const SYNC_9: Duration = Duration::from_secs(30);
/// The pause between two steps of a slow person.
const SLOWLY: Duration = Duration::from_millis(900);
/// How often the kernel is damaged in one test.
const DAMAGES: usize = 6;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(sync_9_damage_beside_our_own_writes_is_repaired)
            .slow()
            .kernel()
            .tcp()
            .fresh(),
        case!(sync_9_slow_damage_is_repaired)
            .slow()
            .kernel()
            .tcp()
            .fresh(),
    ]
}

/// Endpoints of another Service that change all the time, until this is dropped.
struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The objects that do not depend on endpoints, and all objects that any endpoints lead to.
    always: BTreeSet<String>,
    ever: BTreeSet<String>,
}

impl Churn {
    fn start(t: &mut Test, seed: u64) -> Self {
        let (mut always, mut ever): (Option<BTreeSet<String>>, _) = (None, BTreeSet::new());
        let mut manifests = Vec::new();
        for hosts in [&[P1][..], &[R], &[P1, R2], &[]] {
            let endpoints = t.endpoints("other").clear();
            for host in hosts {
                endpoints.ready(*host);
            }
            t.apply();
            let there = rules(t);
            always = Some(always.map_or(there.clone(), |always| &always & &there));
            ever.extend(there);
            manifests.push(t.manifest().to_string());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let directory = t.bed().daemon.manifests().path().to_owned();
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut dice = Dice::new(seed);
            while !told.load(Ordering::Relaxed) {
                let manifest = &manifests[dice.below(manifests.len())];
                let new = directory.join(".cluster.yaml.new");
                std::fs::write(&new, manifest).unwrap();
                std::fs::rename(&new, directory.join("cluster.yaml")).unwrap();
                thread::sleep(dice.millis(50, 200));
            }
        });
        Self {
            stop,
            thread: Some(thread),
            always: always.unwrap_or_default(),
            ever,
        }
    }

    /// Waits until all is there that must be, and nothing else.
    fn await_rules(&self, t: &Test, what: &str) {
        let deadline = Instant::now() + SYNC_9;
        loop {
            let now = rules(t);
            let missing: Vec<_> = self.always.difference(&now).collect();
            let more: Vec<_> = now.difference(&self.ever).collect();
            if missing.is_empty() && more.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: missing {missing:#?}\nmore {more:#?}\n{}",
                t.bed().daemon.log()
            );
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Damages the kernel; a kind of several steps takes its time. Whether any of it could be done.
fn inflict(t: &Test, kind: DamageKind, dice: &mut Dice) -> bool {
    let steps = kind.draw(t.datapath(), t.node_ns(), &mut |n| dice.below(n));
    let pause = SLOWLY / u32::try_from(steps.len().max(1)).unwrap();
    let mut is_done = false;
    for (n, step) in steps.iter().enumerate() {
        if n > 0 {
            thread::sleep(pause);
        }
        is_done |= step.inflict(t.node_ns());
    }
    is_done
}

/// Damage of a random kind at random moments, while the daemon writes all the time.
fn sync_9_damage_beside_our_own_writes_is_repaired(t: &mut Test) {
    let seed = dice::seed("SEED");
    let mut dice = Dice::new(seed);
    web(t);
    t.service("empty").cluster_ip(VIP2).port(80);
    t.service("other")
        .cluster_ip(VIP3)
        .port(81)
        .node_port(PORT + 1);
    t.check(works());
    let churn = Churn::start(t, seed);
    let kinds = damage::kinds(t.datapath());
    let mut n_done = 0;
    for round in 0..DAMAGES {
        thread::sleep(dice.millis(0, 1500));
        let kind = dice.pick(&kinds);
        n_done += usize::from(inflict(t, kind, &mut dice));
        let what = format!("SEED={seed}, damage {round}, {}", kind.name);
        churn.await_rules(t, &what);
        t.eventually(SYNC_9, works());
        t.eventually(SYNC_9, [flow(P1, VIP2, 80).is_rejected()]);
    }
    assert!(
        n_done * 2 > DAMAGES,
        "SEED={seed}: only {n_done} could be done"
    );
}

fn sync_9_slow_damage_is_repaired(t: &mut Test) {
    let mut dice = Dice::new(1);
    web(t);
    t.check(works());
    let before = rules(t);
    for round in 0..3 {
        assert!(inflict(t, damage::SLOW, &mut dice), "nothing to flush");
        await_rules(t, &before, &format!("{}, {round}", damage::SLOW.name));
        t.observe(works());
    }
}
