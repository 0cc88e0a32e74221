//! When is the kernel made to match the cluster, and what happens if that fails?
//!
//! One blocking thread takes in what changed, compiles it, and hands each family's changes to its
//! [`family::FamilySync`]. Invariants: level-triggered, so that only the newest objects count; nothing is
//! written before Services and EndpointSlices are listed (SYNC-12); the families fail, wait and retry
//! apart from each other (DS-1); a failure or a panic leaves the previous rules active and leads to
//! a resync (SYNC-7, SYNC-8).

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::compile::{Compiled, Compiler, Environment};
use crate::config::Periods;
use crate::datapath::DatapathError;
use crate::diagnostics::{About, Diagnostics};
use crate::health::Health;
use crate::model::Services;
use crate::net::{IpFamily, V4, V6};
use crate::sys::{Clock, memory};
use crate::watch::Drained;

mod backoff;
mod family;
mod mailbox;
mod passes;
mod pause;
mod previous;
mod report;
mod surroundings;
#[cfg(test)]
mod tests;

pub use family::FamilySync;
pub use mailbox::{Mailbox, Question};
use pause::Pause;
pub use previous::PreviousMode;
pub use surroundings::Surroundings;

/// Interval of the check for changes by others, unless syncPeriod is shorter.
///
/// The check is one small message to the kernel, so Services need not stay broken for the 30 s that SYNC-9
/// allows.
const LOOK: Duration = Duration::from_secs(1);

/// Number of changed ServicePorts after which freed memory is returned to the system, which takes milliseconds.
const GIVE_BACK_AFTER: usize = 5_000;

/// Where changes of the cluster come from.
pub trait Intake: Send {
    /// What changed since the last call; `None` if nothing may be programmed yet (SYNC-12).
    ///
    /// With `everything`, every Service is returned, for a new compiler.
    fn take(&mut self, everything: bool) -> Option<Drained>;
}

/// [`Compiler::apply`]; another one in tests.
type Compile = fn(&mut Compiler, &Services, &Arc<Environment>) -> Compiled;

/// The sync loop; [`SyncLoop::run`] runs it on the calling thread.
pub struct SyncLoop<I: Intake> {
    intake: I,
    mailbox: Arc<Mailbox>,
    surroundings: Surroundings,
    periods: Periods,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    v4: Option<FamilySync<V4>>,
    v6: Option<FamilySync<V6>>,
    primary: IpFamily,
    compiler: Option<Compiler>,
    /// Whether compile panicked, so that the compiler must be replaced before it takes in anything else.
    is_broken: bool,
    compile: Compile,
    diagnostics: Arc<Diagnostics>,
    /// When the oldest change that is not compiled yet was announced.
    requested: Option<Instant>,
    /// The earliest start of the next sync of changes. Spec: SYNC-1.
    not_before: Option<Instant>,
    pause: Pause,
    /// Time of the next check for changes by others; `None` until the first successful sync.
    next_look: Option<Instant>,
    /// The source's token of the newest state that was taken in.
    source_token: Option<Arc<str>>,
    /// Number of ServicePorts changed since memory was returned to the system.
    n_changed: usize,
}

impl<I: Intake> SyncLoop<I> {
    /// A new loop; no family is served yet.
    pub fn new(
        intake: I,
        mailbox: Arc<Mailbox>,
        surroundings: Surroundings,
        periods: Periods,
        clock: Arc<dyn Clock>,
        health: Arc<Health>,
    ) -> Self {
        let now = clock.now();
        Self {
            intake,
            mailbox,
            surroundings,
            periods,
            clock,
            health,
            v4: None,
            v6: None,
            primary: IpFamily::V4,
            compiler: None,
            is_broken: false,
            compile: Compiler::apply,
            diagnostics: Arc::default(),
            requested: Some(now),
            not_before: None,
            pause: Pause::default(),
            next_look: None,
            source_token: None,
            n_changed: 0,
        }
    }

    /// Reports compile's diagnostics to this store.
    #[must_use]
    pub fn with_diagnostics(self, diagnostics: Arc<Diagnostics>) -> Self {
        Self {
            diagnostics,
            ..self
        }
    }

    /// Serves IPv4.
    #[must_use]
    pub fn with_v4(mut self, family: FamilySync<V4>) -> Self {
        self.health.expect(IpFamily::V4);
        self.v4 = Some(family);
        self
    }

    /// Serves IPv6.
    #[must_use]
    pub fn with_v6(mut self, family: FamilySync<V6>) -> Self {
        self.health.expect(IpFamily::V6);
        self.v6 = Some(family);
        self
    }

    /// Sets the family that must be served; the default is IPv4. Spec: DS-2.
    #[must_use]
    pub fn with_primary(mut self, primary: IpFamily) -> Self {
        self.primary = primary;
        self
    }

    /// Syncs until the mailbox says that the process ends.
    ///
    /// # Errors
    /// [`DatapathError::Unusable`] if the kernel lacks what the primary family needs.
    pub fn run(mut self) -> Result<(), DatapathError> {
        if let Some(family) = &mut self.v4 {
            family.start_passes(&self.clock, &self.health);
        }
        if let Some(family) = &mut self.v6 {
            family.start_passes(&self.clock, &self.health);
        }
        loop {
            let deadline = self.deadline();
            let Some(mail) = self.mailbox.wait(deadline, &*self.clock) else {
                return Ok(());
            };
            if mail.changed_since.is_some() {
                self.requested = self.requested.or(mail.changed_since);
            }
            if let Some(addresses) = mail.local_addresses {
                self.set_local_addresses(addresses);
            }
            self.step()?;
            self.diagnostics.flush();
            for question in mail.questions {
                question(self.compiler.as_ref());
            }
        }
    }

    /// Sets the node's addresses before the loop runs; later they come through the mailbox.
    pub fn set_local_addresses(&mut self, addresses: BTreeSet<IpNet>) {
        if self.surroundings.set_local_addresses(addresses) {
            self.requested = self.requested.or_else(|| Some(self.clock.now()));
        }
    }

    /// When the loop must wake up even without mail.
    fn deadline(&self) -> Instant {
        let now = self.clock.now();
        let change = self
            .requested
            .map(|requested| self.not_before.unwrap_or(requested));
        let v4 = self.v4.as_ref().map(|family| family.deadline(now));
        let v6 = self.v6.as_ref().map(|family| family.deadline(now));
        // There is nothing to sync before the first compile.
        let families = [v4, v6, self.next_look]
            .into_iter()
            .filter(|_| self.compiler.is_some());
        families
            .chain([change])
            .flatten()
            .fold(now + self.periods.sync, Instant::min)
    }

    /// Does what is due now.
    fn step(&mut self) -> Result<(), DatapathError> {
        let now = self.clock.now();
        if self.next_look.is_some_and(|look| now >= look) {
            self.look_for_foreign_changes(now);
        }
        let due = self.requested.is_some() && self.not_before.is_none_or(|t| now >= t);
        let is_first = self.compiler.is_none();
        let news = if due { self.take_in(now) } else { None };
        self.carry(news.as_ref())?;
        if news.is_some() {
            let ended = self.clock.now();
            // What the first sync costs says nothing of the next.
            let started = if is_first { ended } else { now };
            self.not_before = Some(self.pause.after(started, ended, self.periods.min_sync));
        }
        Ok(())
    }

    fn look_for_foreign_changes(&mut self, now: Instant) {
        if let Some(family) = &mut self.v4 {
            family.look(now);
        }
        if let Some(family) = &mut self.v6 {
            family.look(now);
        }
        self.next_look = Some(now + self.periods.sync.min(LOOK));
        if self.n_changed >= GIVE_BACK_AFTER {
            self.n_changed = 0;
            memory::give_back();
        }
    }

    /// Drains the source and compiles; `None` if there is nothing to compile yet.
    fn take_in(&mut self, now: Instant) -> Option<Compiled> {
        let since = self.requested.take().unwrap_or(now);
        let services = self.drain()?;
        self.health.queued(since, &*self.clock);
        let environment = Arc::clone(self.surroundings.environment());
        let is_new = self.needs_compiler();
        let mut replacement = is_new.then(|| Compiler::new(&environment));
        let compiler = replacement.as_mut().or(self.compiler.as_mut())?;
        let compile = self.compile;
        // A panic in compile is a bug of ours: the compiler takes in nothing any more, and the next attempt
        // starts anew from everything. What it compiled before is carried meanwhile.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            compile(compiler, &services, &environment)
        }));
        let Ok(mut news) = outcome else {
            tracing::error!(
                "compile panicked; previous rules still active, will compile everything again"
            );
            self.is_broken = true;
            self.requested = Some(since);
            self.not_before = Some(self.clock.now() + self.periods.sync);
            return None;
        };
        if is_new {
            self.compiler = replacement;
            // Every diagnostic is reported again, and changes are those since nothing.
            self.diagnostics.forget_compiled();
            self.is_broken = false;
            self.fall_behind();
        }
        self.n_changed += news.v4.service_ports.len() + news.v6.service_ports.len();
        self.diagnostics.set_compiled(news.take_diagnostics());
        Some(news)
    }

    const fn needs_compiler(&self) -> bool {
        self.is_broken || self.compiler.is_none()
    }

    /// Takes what changed, and every Service if the environment asks for that.
    fn drain(&mut self) -> Option<Services> {
        let drained = self.drain_once(self.needs_compiler())?;
        let environment = self.surroundings.environment();
        let needs_all = |compiler: &Compiler| compiler.needs_all(environment);
        match &drained {
            Services::Changed(_) if self.compiler.as_ref().is_some_and(needs_all) => {
                self.drain_once(true)
            }
            Services::All(_) | Services::Changed(_) => Some(drained),
        }
    }

    fn drain_once(&mut self, everything: bool) -> Option<Services> {
        let drained = self.intake.take(everything)?;
        let has_node_news = drained.node.is_some();
        if let Some(node) = &drained.node {
            self.health.set_node_eligible(node.eligible);
        }
        self.source_token = drained.source_token.or(self.source_token.take());
        self.surroundings
            .take_in(drained.node, drained.service_cidrs);
        if has_node_news {
            let missing = self.surroundings.diagnostics();
            self.diagnostics.set(About::Source("our Node"), missing);
        }
        Some(if everything {
            Services::All(drained.services)
        } else {
            Services::Changed(drained.services)
        })
    }

    fn fall_behind(&mut self) {
        let now = self.clock.now();
        if let Some(family) = &mut self.v4 {
            family.fall_behind(now);
        }
        if let Some(family) = &mut self.v6 {
            family.fall_behind(now);
        }
    }

    fn is_in_sync(&self) -> bool {
        self.v4.as_ref().is_none_or(FamilySync::is_in_sync)
            && self.v6.as_ref().is_none_or(FamilySync::is_in_sync)
    }

    /// Runs what is due in each family.
    fn carry(&mut self, news: Option<&Compiled>) -> Result<(), DatapathError> {
        let v4_changes = news.map(|news| &news.v4);
        let v6_changes = news.map(|news| &news.v6);
        let Some(compiler) = &self.compiler else {
            return Ok(());
        };
        let was_in_sync = self.is_in_sync();
        let (clock, health) = (&*self.clock, &*self.health);
        if let Some(family) = &mut self.v4
            && let Err(error) = family.step(compiler.v4(), v4_changes, clock, health)
        {
            self.v4 = None;
            give_up(IpFamily::V4, self.primary, health, error)?;
        }
        if let Some(family) = &mut self.v6
            && let Err(error) = family.step(compiler.v6(), v6_changes, clock, health)
        {
            self.v6 = None;
            give_up(IpFamily::V6, self.primary, health, error)?;
        }
        if self.is_in_sync() {
            if !was_in_sync {
                // A resync rendered everything.
                self.n_changed = GIVE_BACK_AFTER;
            }
            if !self.is_broken {
                self.health.programmed(self.source_token.as_ref());
            }
            let look = self.clock.now() + self.periods.sync.min(LOOK);
            self.next_look.get_or_insert(look);
        }
        Ok(())
    }
}

/// A node that cannot serve its secondary family runs single-stack. Spec: DS-2.
fn give_up(
    family: IpFamily,
    primary: IpFamily,
    health: &Health,
    error: DatapathError,
) -> Result<(), DatapathError> {
    if family == primary {
        return Err(error);
    }
    health.forget(family);
    let error = &error as &dyn std::error::Error;
    tracing::error!(
        family = family.name(),
        error,
        "cannot serve this family, running single-stack"
    );
    Ok(())
}
