//! Which faults do the current objects have, and which of them were logged?
//!
//! One store for every part that finds faults. Invariants: diagnostics are grouped by what they are about, and a
//! group is replaced as a whole, so that a diagnostic goes with its cause; a diagnostic is logged once when it
//! appears, and again only after it was gone; memory and log lines are bounded, whatever the input.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::from_k8s::{ObjectKey, ObjectKind};
use crate::model::{Diagnostic, Subject};
use crate::sys::{Clock, Limiter, SystemClock};

/// How many groups are kept in full.
const MAX_GROUPS: usize = 1000;

/// Of how many further groups it is kept that they have faults.
const MAX_FURTHER: usize = 10_000;

/// How many diagnostics of one group are kept and logged.
const MAX_OF_A_GROUP: usize = 1000;

/// How many diagnostics are logged at once, and how often after that.
const BURST: u32 = 20;
const EACH: Duration = Duration::from_secs(1);

/// How often at most it is logged how many were not.
const SUMMARY: Duration = Duration::from_secs(10);

/// What a group of diagnostics is about: it is replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// What a source reports that belongs to no single object.
    Source(&'static str),
    /// Faults of one object.
    Object(ObjectKey),
    /// An object of this kind without a usable name, by what it is called instead.
    Unnamed(ObjectKind, String),
    /// What was found while compiling.
    Compiled(Subject),
}

/// The current diagnostics of all parts.
#[derive(Debug, Default)]
pub struct Diagnostics(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    groups: BTreeMap<About, Vec<Diagnostic>>,
    /// Further groups that have faults, which are not kept in full.
    further: BTreeSet<About>,
    limiter: Limiter,
    summary: Limiter,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Fault(Diagnostic),
    Suppressed(u64),
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            groups: BTreeMap::new(),
            further: BTreeSet::new(),
            limiter: Limiter::new(BURST, EACH),
            summary: Limiter::new(1, SUMMARY),
        }
    }
}

impl Diagnostics {
    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces a group, and logs what is new in it.
    pub fn set(&self, about: About, diagnostics: Vec<Diagnostic>) {
        let now = SystemClock.now();
        log(&self.with(|inner| inner.set(about, diagnostics, now)));
    }

    /// Replaces what was found while compiling, where it changed.
    pub fn set_compiled(&self, findings: BTreeMap<Subject, Vec<Diagnostic>>) {
        for (subject, found) in findings {
            self.set(About::Compiled(subject), found);
        }
    }

    /// Replaces the diagnostics of one object.
    pub fn set_object(&self, key: &ObjectKey, diagnostics: Vec<Diagnostic>) {
        // Nearly every object is without fault, and most often all are.
        if !(diagnostics.is_empty() && self.with(|inner| inner.is_empty())) {
            self.set(About::Object(key.clone()), diagnostics);
        }
    }

    /// Forgets the objects of a kind that a complete list of it has not; `unnamed` are those in the
    /// list that have no usable name.
    pub fn keep_listed(
        &self,
        kind: ObjectKind,
        seen: &BTreeSet<ObjectKey>,
        unnamed: &BTreeSet<String>,
    ) {
        self.with(|inner| {
            inner.retain(|about| match about {
                About::Object(key) => key.kind() != kind || seen.contains(key),
                About::Unnamed(of, name) => *of != kind || unnamed.contains(name),
                About::Source(_) | About::Compiled(_) => true,
            });
        });
    }

    /// Forgets what was found while compiling, because all is compiled anew.
    pub fn forget_compiled(&self) {
        self.with(|inner| inner.retain(|about| !matches!(about, About::Compiled(_))));
    }

    /// Logs how many were not logged; to be called now and then.
    pub fn flush(&self) {
        let now = SystemClock.now();
        let line = self.with(|inner| inner.told_of_suppressed(now));
        log(line.as_slice());
    }

    /// Every diagnostic that holds now, by what it is about; the last one counts those not kept.
    pub fn current(&self) -> Vec<Diagnostic> {
        self.with(|inner| {
            let kept = inner.groups.values().flatten().cloned();
            kept.chain(inner.about_further()).collect()
        })
    }
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.further.is_empty()
    }

    fn retain(&mut self, keep: impl Fn(&About) -> bool) {
        self.groups.retain(|about, _| keep(about));
        self.further.retain(keep);
    }

    /// Replaces a group; what is to be logged.
    fn set(&mut self, about: About, mut diagnostics: Vec<Diagnostic>, now: Instant) -> Vec<Line> {
        let was_further = self.further.remove(&about);
        if diagnostics.is_empty() {
            self.groups.remove(&about);
            return Vec::new();
        }
        diagnostics.sort();
        diagnostics.dedup();
        let n_more = diagnostics.len().saturating_sub(MAX_OF_A_GROUP);
        if n_more > 0 {
            diagnostics.truncate(MAX_OF_A_GROUP);
            diagnostics.push(Diagnostic {
                object: "further objects".to_owned(),
                field: String::new(),
                message: format!("have {n_more} faults that are not listed"),
            });
            diagnostics.sort();
        }
        let old = self.groups.get(&about);
        let has_room = old.is_some() || self.groups.len() < MAX_GROUPS;
        let mut lines = Vec::new();
        // Of a group that was not kept nobody knows what is new in it.
        if !was_further {
            for diagnostic in &diagnostics {
                let is_new = old.is_none_or(|old| old.binary_search(diagnostic).is_err());
                if is_new && self.limiter.allows(now) {
                    lines.push(Line::Fault(diagnostic.clone()));
                }
            }
        }
        if has_room {
            self.groups.insert(about, diagnostics);
        } else if self.further.len() < MAX_FURTHER {
            self.further.insert(about);
        }
        lines
    }

    fn told_of_suppressed(&mut self, now: Instant) -> Option<Line> {
        let is_due = self.limiter.n_refused() > 0 && self.summary.allows(now);
        is_due.then(|| Line::Suppressed(self.limiter.take_refused()))
    }

    fn about_further(&self) -> Option<Diagnostic> {
        let n_further = self.further.len();
        let at_least = if n_further == MAX_FURTHER {
            "at least "
        } else {
            ""
        };
        (n_further > 0).then(|| Diagnostic {
            object: format!("{at_least}{n_further} further objects"),
            field: String::new(),
            message: "have faults that are not listed".to_owned(),
        })
    }
}

fn log(lines: &[Line]) {
    for line in lines {
        match line {
            Line::Fault(diagnostic) => {
                let Diagnostic {
                    object,
                    field,
                    message,
                } = diagnostic;
                tracing::warn!(%object, %field, "{message}");
            }
            Line::Suppressed(n) => tracing::warn!(
                "{n} more warnings about objects suppressed; \
                 /debug/diagnostics lists what is wrong now"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
