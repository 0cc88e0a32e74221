//! Is the daemon doing its work, and who may ask?
//!
//! Two servers, plain HTTP/1.1, GET:
//! - on the healthz address (default `0.0.0.0:10256`): `/healthz` and `/livez`, for load balancers and
//!   kubelet (HZ-1 to HZ-6);
//! - on the metrics address (default `127.0.0.1:10249`): `/proxyMode` (MET-1), `/healthz` that says `ok`
//!   (MET-2), `/metrics` (the part of MET-4 that concerns syncs), and for people and tests on the node `/debug/sync` (JSON, see [`Health::report`]),
//!   `/debug/forwarding` (text, or JSON with `?output=json`), `/debug/rules` (text, what `dump --rules`
//!   prints), `/debug/diagnostics` (text) and
//!   `/debug/explain?from=10.0.0.1&to=10.96.0.10&port=80&proto=tcp` (text). These show the cluster's
//!   objects, so that they are answered to peers on loopback only, wherever the server listens.
//!
//! Invariants: asking never delays a sync; what is reported was true at one moment.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::datapath::{DatapathKind, Figure, Scope};
use crate::net::IpFamily;
use crate::sys::Clock;

use metrics::{Histogram, Page};

mod bounded;
mod metrics;
mod places;
mod server;

pub use server::{BindError, DebugHandler, healthz_router, local_router, serve};

/// How each family stands, written by the sync thread and read by the servers.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    /// How old a queued change may become before we are unhealthy. Spec: HZ-3.
    patience: Duration,
}

#[derive(Debug)]
struct State {
    families: BTreeMap<IpFamily, Family>,
    node_eligible: bool,
    source_token: Option<Arc<str>>,
    probes: Probes,
}

/// Answers of `/healthz` and `/livez`, by path and code. Spec: HZ-7.
type Probes = BTreeMap<(&'static str, &'static str), u64>;

#[derive(Clone, Debug, Default)]
struct Family {
    /// When the oldest and the newest of the changes that wait were announced.
    waiting: Option<(Instant, Instant)>,
    last_updated: Option<SystemTime>,
    last_queued: Option<SystemTime>,
    last_error: Option<String>,
    n_failures: u32,
    /// How many of these wrote only what changed.
    n_partial_failures: u32,
    n_syncs: u32,
    syncs: Histogram,
    full: Histogram,
    partial: Histogram,
    conntrack: Histogram,
    n_flows_deleted: u32,
}

/// What `/healthz` and `/livez` answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the status is 200; else it is 503.
    pub ok: bool,
    /// The body. Spec: HZ-2.
    pub body: Value,
}

impl Health {
    /// Nothing synced, nothing waiting; `node_eligible` holds until a Node says otherwise (HZ-4).
    pub fn new(sync_period: Duration, node_eligible: bool) -> Self {
        Self {
            state: Mutex::new(State {
                families: BTreeMap::new(),
                node_eligible,
                source_token: None,
                probes: Probes::new(),
            }),
            patience: sync_period * 2,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_family(&self, family: IpFamily, change: impl FnOnce(&mut Family)) {
        change(self.state().families.entry(family).or_default());
    }

    /// This family is served, and counts from now on.
    pub fn expect(&self, family: IpFamily) {
        self.with_family(family, |_| {});
    }

    /// This family turned out not to be served.
    pub fn forget(&self, family: IpFamily) {
        self.state().families.remove(&family);
    }

    /// A change was announced at this time.
    pub fn queued(&self, at: Instant, clock: &dyn Clock) {
        let wall = clock.wall();
        for family in self.state().families.values_mut() {
            family.last_queued = Some(wall);
            let (oldest, newest) = family.waiting.unwrap_or((at, at));
            family.waiting = Some((oldest.min(at), newest.max(at)));
        }
    }

    /// A sync that began at this time has ended well.
    pub fn succeeded(&self, family: IpFamily, started: Instant, clock: &dyn Clock) {
        let wall = clock.wall();
        self.with_family(family, |family| {
            // What was announced later may have missed it.
            family.waiting = family
                .waiting
                .filter(|(_, newest)| *newest > started)
                .map(|(_, newest)| (newest, newest));
            family.last_updated = Some(wall);
            family.last_error = None;
        });
    }

    /// The kernel was written to, with whatever success, which took so long.
    pub fn measured(&self, family: IpFamily, scope: Scope, took: Duration) {
        self.with_family(family, |family| {
            family.n_syncs += 1;
            family.syncs.observe(took);
            match scope {
                Scope::Full => family.full.observe(took),
                Scope::Partial => family.partial.observe(took),
            }
        });
    }

    /// Stale flows were looked for. Spec: CT-12.
    pub fn cleaned(&self, family: IpFamily, n_deleted: usize, took: Duration) {
        self.with_family(family, |family| {
            family.conntrack.observe(took);
            let n_deleted = u32::try_from(n_deleted).unwrap_or(u32::MAX);
            family.n_flows_deleted = family.n_flows_deleted.saturating_add(n_deleted);
        });
    }

    /// A sync failed. Spec: MET-9.
    pub fn failed(&self, family: IpFamily, scope: Scope, error: &(dyn Error + 'static)) {
        let mut texts = Vec::new();
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = next {
            texts.push(error.to_string());
            next = error.source();
        }
        self.with_family(family, |family| {
            family.last_error = Some(texts.join(": "));
            family.n_failures += 1;
            family.n_partial_failures += u32::from(scope == Scope::Partial);
        });
    }

    /// Whether our Node may get traffic from load balancers. Spec: HZ-4.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().node_eligible = eligible;
    }

    /// Every family carries the state that the source calls so.
    pub fn programmed(&self, token: Option<&Arc<str>>) {
        self.state().source_token = token.cloned();
    }

    /// What `/healthz` answers. Spec: HZ-2 to HZ-4.
    pub fn healthz(&self, clock: &dyn Clock) -> Answer {
        self.probe("healthz", |state| Some(state.node_eligible), clock)
    }

    /// What `/livez` answers. Spec: HZ-6.
    pub fn livez(&self, clock: &dyn Clock) -> Answer {
        self.probe("livez", |_| None, clock)
    }

    /// The answer on a path; `eligible` is whether our Node is eligible, if that counts there.
    fn probe(
        &self,
        path: &'static str,
        eligible: impl FnOnce(&State) -> Option<bool>,
        clock: &dyn Clock,
    ) -> Answer {
        let (now, wall) = (clock.now(), clock.wall());
        let mut state = self.state();
        let eligible = eligible(&state);
        let mut healthy = true;
        let mut newest = None;
        let mut status = BTreeMap::new();
        for (name, family) in &state.families {
            let is_healthy = self.is_healthy(family, now);
            healthy &= is_healthy;
            newest = newest.max(family.last_updated);
            let last = rfc3339(family.last_updated.unwrap_or(SystemTime::UNIX_EPOCH));
            let family = json!({"lastUpdated": last, "healthy": is_healthy});
            status.insert(name.name(), family);
        }
        let ok = healthy && eligible != Some(false);
        let code = if ok { "200" } else { "503" };
        *state.probes.entry((path, code)).or_default() += 1;
        // Compat: while healthy, the time of the last update is the time of the answer (HZ-2).
        let last = if ok { Some(wall) } else { newest };
        let mut body = json!({
            "lastUpdated": rfc3339(last.unwrap_or(SystemTime::UNIX_EPOCH)),
            "currentTime": rfc3339(wall),
            "healthy": healthy,
            "status": status,
        });
        if let (Some(body), Some(eligible)) = (body.as_object_mut(), eligible) {
            body.insert("nodeEligible".to_owned(), eligible.into());
        }
        Answer { ok, body }
    }

    fn is_healthy(&self, family: &Family, now: Instant) -> bool {
        family
            .waiting
            .is_none_or(|(oldest, _)| now.saturating_duration_since(oldest) <= self.patience)
    }

    /// What `/debug/sync` answers.
    ///
    /// `token` is the content of the manifest directory's `.token` as of the state that every family
    /// carries; `pending` is how many families have changes waiting.
    pub fn report(&self, clock: &dyn Clock) -> Value {
        let state = self.state();
        let now = clock.now();
        let mut n_pending = 0;
        let mut families = BTreeMap::new();
        for (name, family) in &state.families {
            n_pending += usize::from(family.waiting.is_some());
            let report = json!({
                "last_sync": family.last_updated.map(rfc3339),
                "healthy": self.is_healthy(family, now),
                "pending": family.waiting.is_some(),
                "last_error": family.last_error,
                "n_syncs": family.n_syncs,
                "n_failures": family.n_failures,
            });
            families.insert(name.name(), report);
        }
        json!({
            "token": state.source_token.as_deref(),
            "pending": n_pending,
            "families": families,
        })
    }

    /// What `/metrics` answers for this datapath, which has these figures: the metrics that exist so far, in
    /// Prometheus' text format. Spec: MET-4.
    pub fn metrics(&self, datapath: DatapathKind, figures: Vec<Figure>) -> String {
        self.page(datapath, figures).into_text()
    }

    /// All metrics at one moment, to be written as text without holding up syncs.
    fn page(&self, datapath: DatapathKind, figures: Vec<Figure>) -> Page {
        let state = self.state();
        Page {
            families: state.families.clone(),
            probes: state.probes.clone(),
            failures: datapath.failures(),
            figures,
        }
    }
}

/// The moment as RFC 3339 in UTC with microseconds, such as `2026-11-22T08:15:00.000000Z`.
fn rfc3339(moment: SystemTime) -> String {
    Timestamp::try_from(moment).map_or_else(|_| String::new(), |moment| format!("{moment:.6}"))
}

#[cfg(test)]
mod tests;
