//! What do the cluster's objects mean for packets?
//!
//! [`compile`] is the whole of it as a function; [`Compiler`] is the same function, told only what
//! changed. Invariants: pure (no clock, log, randomness or I/O); it cannot fail, what cannot be used is
//! a [`Finding`]; the result depends on the current objects and environment, never on the order in
//! which they came (property test in `tests.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::forwarding::{Changes, ForwardingState};
use crate::model::{Diagnostic, ServiceInput, ServiceName, Services, Subject};
use crate::net::{Family, V4, V6};

mod affinity;
mod backends;
mod claims;
mod context;
mod environment;
mod family;
mod finding;
mod frontends;
#[cfg(test)]
mod tests;
mod unallocated;

use context::Context;
pub use environment::Environment;
use family::FamilyCompiler;
pub use finding::Finding;

/// Compiles everything at once.
pub fn compile(
    services: &BTreeMap<ServiceName, ServiceInput>,
    environment: &Environment,
) -> (ForwardingState<V4>, ForwardingState<V6>, Vec<Diagnostic>) {
    let environment = Arc::new(environment.clone());
    let mut whole = Compiler::new(&environment);
    let mut found = whole.apply(&Services::All(services.clone()), &environment);
    let diagnostics = found.take_diagnostics().into_values().flatten().collect();
    (whole.v4.into_state(), whole.v6.into_state(), diagnostics)
}

/// What one call of [`Compiler::apply`] changed.
#[derive(Debug)]
pub struct Compiled {
    /// What changed for IPv4.
    pub v4: Changes<V4>,
    /// What changed for IPv6.
    pub v6: Changes<V6>,
    /// What there is to tell, by what it is about, where that changed: nothing where the cause is gone.
    ///
    /// A Service may be here although only another one changed, such as the one that had its frontend
    /// (SVC-14).
    pub findings: BTreeMap<Subject, Vec<Finding>>,
}

impl Compiled {
    /// Takes [`Compiled::findings`] as diagnostics.
    pub fn take_diagnostics(&mut self) -> BTreeMap<Subject, Vec<Diagnostic>> {
        let findings = std::mem::take(&mut self.findings).into_iter();
        let diagnostics = |found: Vec<Finding>| found.iter().map(Finding::diagnostic).collect();
        findings
            .map(|(subject, found)| (subject, diagnostics(found)))
            .collect()
    }
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
        let mut changed = self.v4.take_changed_findings();
        changed.append(&mut self.v6.take_changed_findings());
        let of_services = changed.into_iter().map(|name| {
            let mut found = [self.v4.findings(&name), self.v6.findings(&name)].concat();
            // A finding of both families is reported once.
            found.sort();
            found.dedup();
            (Subject::Service(name), found)
        });
        let mut findings: BTreeMap<Subject, Vec<Finding>> = of_services.collect();
        let (of_v4, of_v6) = (self.v4.unallocated(), self.v6.unallocated());
        if of_v4.take_news() | of_v6.take_news() {
            let found = [of_v4.findings(), of_v6.findings()].concat();
            findings.insert(Subject::ServiceCidrs, found);
        }
        Compiled { v4, v6, findings }
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
