//! What do the cluster's objects mean for packets?
//!
//! [`compile`] is the whole of it as a function; [`Compiler`] is the same function, told only what
//! changed. Invariants: pure (no clock, log, randomness or I/O); it cannot fail, what cannot be used is
//! a [`Diagnostic`]; the result depends on the current objects and environment, never on the order in
//! which they came (property test in `tests.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::forwarding::{Changes, ForwardingState};
use crate::model::{Diagnostic, ServiceInput, ServiceName, Services};
use crate::net::{Family, V4, V6};

mod backends;
mod claims;
mod context;
mod environment;
mod family;
mod frontends;
mod lost;
#[cfg(test)]
mod tests;
mod unallocated;

use context::Context;
pub use environment::Environment;
use family::FamilyCompiler;

/// Compiles everything at once.
pub fn compile(
    services: &BTreeMap<ServiceName, ServiceInput>,
    environment: &Environment,
) -> (ForwardingState<V4>, ForwardingState<V6>, Vec<Diagnostic>) {
    let environment = Arc::new(environment.clone());
    let mut whole = Compiler::new(&environment);
    let Compiled {
        diagnostics,
        overlaps,
        ..
    } = whole.apply(&Services::All(services.clone()), &environment);
    let of_services = diagnostics.into_values().flatten();
    let diagnostics = overlaps.into_iter().flatten().chain(of_services).collect();
    (whole.v4.into_state(), whole.v6.into_state(), diagnostics)
}

/// What one call of [`Compiler::apply`] changed.
#[derive(Debug)]
pub struct Compiled {
    /// What changed for IPv4.
    pub v4: Changes<V4>,
    /// What changed for IPv6.
    pub v6: Changes<V6>,
    /// The Services whose diagnostics changed, with all that hold now: none where the cause is gone.
    ///
    /// A Service may be here although only another one changed, such as the one that had its frontend
    /// (SVC-14).
    pub diagnostics: BTreeMap<ServiceName, Vec<Diagnostic>>,
    /// All that there is to tell about ServiceCIDRs that overlap networks of pods and nodes (REJ-6), if
    /// any of these networks changed.
    pub overlaps: Option<Vec<Diagnostic>>,
}

/// The forwarding states of both families, and what is needed to bring them up to date.
///
/// The unit of work is the Service: a changed slice costs its Service's ports, and those of other
/// Services only where they claim the same frontend.
#[derive(Debug)]
pub struct Compiler {
    /// What was compiled against; `None` before any Service was.
    environment: Option<Arc<Environment>>,
    v4: FamilyCompiler<V4>,
    v6: FamilyCompiler<V6>,
}

impl Compiler {
    /// A compiler that knows no Service yet.
    pub fn new(environment: &Environment) -> Self {
        Self {
            environment: None,
            v4: FamilyCompiler::new(environment),
            v6: FamilyCompiler::new(environment),
        }
    }

    /// The IPv4 forwarding state.
    pub fn v4(&self) -> &ForwardingState<V4> {
        self.v4.state()
    }

    /// The IPv6 forwarding state.
    pub fn v6(&self) -> &ForwardingState<V6> {
        self.v6.state()
    }

    /// Whether [`Compiler::apply`] must be given [`Services::All`] to follow to this environment.
    pub fn needs_all(&self, environment: &Arc<Environment>) -> bool {
        self.environment.as_ref().is_none_or(|known| {
            !Arc::ptr_eq(known, environment)
                && (self.v4.needs_all(environment) || self.v6.needs_all(environment))
        })
    }

    /// Takes in Services and the environment, as they are now.
    ///
    /// An environment that [needs all](Self::needs_all) Services is left for later if only some are given.
    pub fn apply(&mut self, services: &Services, environment: &Arc<Environment>) -> Compiled {
        let can_follow = matches!(services, Services::All(_)) || !self.needs_all(environment);
        let is_known = |known: &Arc<Environment>| Arc::ptr_eq(known, environment);
        let is_other = can_follow && !self.environment.as_ref().is_some_and(is_known);
        let other = is_other.then_some(&**environment);
        let v4 = self.v4.apply(services, other);
        let v6 = self.v6.apply(services, other);
        if is_other {
            self.environment = Some(Arc::clone(environment));
        }
        let mut reported = self.v4.take_changed_diagnostics();
        reported.append(&mut self.v6.take_changed_diagnostics());
        let diagnostics = reported
            .into_iter()
            .map(|name| (name.clone(), self.diagnostics(&name)))
            .collect();
        Compiled {
            v4,
            v6,
            diagnostics,
            overlaps: self.take_overlaps(),
        }
    }

    fn take_overlaps(&mut self) -> Option<Vec<Diagnostic>> {
        let (v4, v6) = (self.v4.unallocated(), self.v6.unallocated());
        let is_news = v4.take_news() | v6.take_news();
        is_news.then(|| [v4.diagnostics(), v6.diagnostics()].concat())
    }

    /// What there is to tell about a Service; what holds in both families is told once.
    fn diagnostics(&self, service: &ServiceName) -> Vec<Diagnostic> {
        let mut all = self.v4.diagnostics(service);
        all.extend(self.v6.diagnostics(service));
        all.sort();
        all.dedup();
        all
    }
}

/// Compiles one Service for one family, as if it were alone: collisions are decided by the caller.
fn compile_service<F: Family>(
    input: &ServiceInput,
    context: &Context<F>,
) -> Vec<Arc<crate::forwarding::ServicePort<F>>> {
    let Some(service) = &input.service else {
        return Vec::new();
    };
    let Some(cluster_ip) = context::cluster_ip::<F>(service) else {
        return Vec::new();
    };
    let targets = backends::Targets::new::<F>(&input.slices);
    let ports = service.ports.iter();
    ports
        .map(|port| {
            let sets = backends::compile_backends(&targets, port, context);
            Arc::new(frontends::compile_port(
                service, port, cluster_ip, sets, context,
            ))
        })
        .collect()
}
