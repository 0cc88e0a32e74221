//! How is one family's forwarding state brought up to date?
//!
//! Two steps: each changed Service is compiled as if it were alone (`wanted`); then every ServicePort
//! that claims a frontend whose claims changed gets what it won. The state holds the result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::affinity::AffinityBudget;
use super::claims::{Claim, Claims};
use super::context::{Context, compile_globals};
use super::unallocated::Unallocated;
use super::{Environment, Finding, compile_service};
use crate::forwarding::{
    Affinity, Change, Changes, ForwardingState, FrontendKey, ServicePort, ServicePortId,
};
use crate::model::{ServiceInput, ServiceName, Services};
use crate::net::{Family, Networks};

/// How many lost frontends of one Service and family are reported one by one. Spec: SVC-14.
const MAX_REPORTED: usize = 16;

#[derive(Debug)]
pub(super) struct FamilyCompiler<F: Family> {
    context: Context<F>,
    state: ForwardingState<F>,
    wanted: BTreeMap<ServicePortId, Wanted<F>>,
    ids: BTreeMap<ServiceName, Vec<ServicePortId>>,
    claims: Claims<F>,
    affinity: AffinityBudget,
    /// The Services whose findings changed since [`FamilyCompiler::take_changed_findings`].
    changed_findings: BTreeSet<ServiceName>,
    unallocated: Unallocated<F>,
}

/// A ServicePort with every frontend it claims.
#[derive(Debug)]
struct Wanted<F: Family> {
    port: Arc<ServicePort<F>>,
    service: ServiceName,
    /// Unit: seconds since 1970-01-01 UTC.
    created: i64,
}

impl<F: Family> Wanted<F> {
    fn claims(&self) -> impl Iterator<Item = (FrontendKey<F>, Claim)> {
        self.port.frontends.iter().map(|(key, frontend)| {
            (
                *key,
                Claim::new(&frontend.exposure, self.created, self.port.id.clone()),
            )
        })
    }
}

impl<F: Family> FamilyCompiler<F> {
    pub(super) fn new(environment: &Environment) -> Self {
        let context = Context::new(environment);
        Self {
            state: ForwardingState {
                globals: compile_globals(environment, &Networks::default()),
                spared: BTreeSet::new(),
                service_ports: BTreeMap::new(),
            },
            wanted: BTreeMap::new(),
            ids: BTreeMap::new(),
            claims: Claims::default(),
            affinity: AffinityBudget::new(context.affinity_limit),
            changed_findings: BTreeSet::new(),
            unallocated: Unallocated::new(),
            context,
        }
    }

    pub(super) fn state(&self) -> &ForwardingState<F> {
        &self.state
    }

    pub(super) fn into_state(self) -> ForwardingState<F> {
        self.state
    }

    /// Whether every Service must be recompiled in this environment.
    pub(super) fn needs_all(&self, environment: &Environment) -> bool {
        Context::new(environment) != self.context || self.unallocated.differs(environment)
    }

    /// Updates Services, and the environment if it changed.
    pub(super) fn apply(
        &mut self,
        services: &Services,
        environment: Option<&Environment>,
    ) -> Changes<F> {
        let mut globals = None;
        let mut touched = Touched::default();
        if let Some(environment) = environment {
            self.context = Context::new(environment);
            if self.affinity.limit() != self.context.affinity_limit {
                self.affinity = AffinityBudget::new(self.context.affinity_limit);
                touched.ids.extend(self.wanted.keys().cloned());
            }
            self.unallocated.set_environment(environment);
            globals = Some(compile_globals(environment, self.unallocated.networks()));
        }
        let services = match services {
            Services::Changed(changed) => changed,
            Services::All(all) => {
                let known = self.ids.keys().chain(self.unallocated.services());
                let gone = known.filter(|name| !all.contains_key(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.recompile(&name, None, &mut touched);
                }
                all
            }
        };
        for (name, input) in services {
            // Slices without a Service wait in the store, which hands them over with it (EPS-15).
            let input = Some(input).filter(|input| input.service.is_some());
            self.recompile(name, input, &mut touched);
        }
        // The state changes only now, so that a panic while a Service is compiled leaves it as it was.
        let globals = globals.filter(|new| *new != self.state.globals);
        let globals = globals.map(|new| std::mem::replace(&mut self.state.globals, new));
        let (spared_added, spared_removed) = self.unallocated.settle(&mut self.state.spared);
        Changes {
            globals,
            spared_added,
            spared_removed,
            service_ports: self.settle(touched),
        }
    }

    /// What is dropped as unallocated.
    pub(super) const fn unallocated(&mut self) -> &mut Unallocated<F> {
        &mut self.unallocated
    }

    /// The Services whose findings changed since the last call.
    pub(super) fn take_changed_findings(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.changed_findings)
    }

    /// The findings about a Service.
    pub(super) fn findings(&self, service: &ServiceName) -> Vec<Finding> {
        let ids = || self.ids.get(service).into_iter().flatten();
        let mut lost: Vec<_> = ids().flat_map(|id| self.lost(id)).collect();
        lost.sort_unstable();
        let n_more = lost.len().saturating_sub(MAX_REPORTED);
        let lost = lost.into_iter().take(MAX_REPORTED);
        let mut findings: Vec<_> = lost
            .map(|(key, loser, winner)| Finding::FrontendLost {
                frontend: key.to_string(),
                loser: loser.clone(),
                winner: winner.clone(),
            })
            .collect();
        let (service, family) = (service.clone(), F::FAMILY);
        if n_more > 0 {
            findings.push(Finding::MoreFrontendsLost {
                service: service.clone(),
                family,
                n: n_more,
            });
        }
        let n = ids().filter(|id| self.affinity.refuses(id)).count();
        if n > 0 {
            findings.push(Finding::AffinityOverLimit { service, family, n });
        }
        findings
    }

    /// The frontends that a ServicePort claims and does not get, each with itself and the ServicePort that has it.
    fn lost<'a>(
        &'a self,
        id: &'a ServicePortId,
    ) -> impl Iterator<Item = (FrontendKey<F>, &'a ServicePortId, &'a ServicePortId)> {
        let wanted = self.wanted.get(id).into_iter();
        let keys = wanted.flat_map(|wanted| wanted.port.frontends.keys());
        keys.filter_map(move |key| {
            let winner = &self.claims.of(*key).next()?.id;
            (winner != id).then_some((*key, id, winner))
        })
    }

    /// Records, if several ServicePorts claim a frontend, that the findings about their Services may change; returns
    /// whether they do.
    fn note_contest(&mut self, key: FrontendKey<F>) -> bool {
        let is_contested = self.claims.of(key).nth(1).is_some();
        if is_contested {
            let claimants = self.claims.of(key).map(|claim| &claim.id);
            let claimants = claimants.filter_map(|id| self.wanted.get(id));
            let services = claimants.map(|wanted| wanted.service.clone());
            self.changed_findings.extend(services);
        }
        is_contested
    }

    /// Notes that the claims of a frontend change, before they do; returns whether this is the first change of it and
    /// several ServicePorts claim it.
    ///
    /// The claimants are noted only once: a frontend may have thousands, and all of them may go together.
    fn touch(&mut self, key: FrontendKey<F>, touched: &mut Touched<F>) -> bool {
        touched.keys.insert(key) && self.note_contest(key)
    }

    /// Compiles one Service as if it were alone and replaces its claims.
    fn recompile(
        &mut self,
        name: &ServiceName,
        input: Option<&ServiceInput>,
        touched: &mut Touched<F>,
    ) {
        self.unallocated.count(name, input);
        let created = input
            .and_then(|i| i.service.as_ref())
            .map_or(i64::MAX, |s| s.created);
        let ports = input
            .map(|input| compile_service(input, &self.context))
            .unwrap_or_default();

        let old_ids = self.ids.remove(name).unwrap_or_default();
        let new_ids: Vec<_> = ports.iter().map(|port| port.id.clone()).collect();
        if old_ids != new_ids {
            let kept: BTreeSet<_> = new_ids.iter().collect();
            for id in old_ids.iter().filter(|id| !kept.contains(id)) {
                if let Some(old) = self.wanted.remove(id) {
                    self.withdraw(&old, touched);
                }
            }
        }
        for port in ports {
            let service = name.clone();
            let new = Wanted {
                port,
                service,
                created,
            };
            match self.wanted.get(&new.port.id) {
                Some(old) if old.port == new.port && old.created == created => {}
                Some(old) if old.claims().eq(new.claims()) => {
                    touched.ids.insert(new.port.id.clone());
                    self.wanted.insert(new.port.id.clone(), new);
                }
                Some(_) | None => {
                    if let Some(old) = self.wanted.remove(&new.port.id) {
                        self.withdraw(&old, touched);
                    }
                    for (key, claim) in new.claims() {
                        self.touch(key, touched);
                        self.claims.insert(key, claim);
                    }
                    touched.ids.insert(new.port.id.clone());
                    self.wanted.insert(new.port.id.clone(), new);
                }
            }
        }
        if !new_ids.is_empty() {
            self.ids.insert(name.clone(), new_ids);
        }
    }

    fn withdraw(&mut self, old: &Wanted<F>, touched: &mut Touched<F>) {
        touched.ids.insert(old.port.id.clone());
        if self.affinity.refuses(&old.port.id) {
            self.changed_findings.insert(old.service.clone());
        }
        for (key, claim) in old.claims() {
            if self.touch(key, touched) {
                self.changed_findings.insert(old.service.clone());
            }
            self.claims.remove(key, claim);
        }
    }

    /// Gives every ServicePort that could be affected the frontends it won.
    fn settle(&mut self, touched: Touched<F>) -> BTreeMap<ServicePortId, Change<F>> {
        let Touched { mut ids, keys } = touched;
        for key in keys {
            self.note_contest(key);
            ids.extend(self.claims.of(key).map(|claim| claim.id.clone()));
        }
        let mut moved = BTreeSet::new();
        for id in &ids {
            let now = self.wanted.get(id);
            let now = now.map(|wanted| (&*wanted.port, wanted.created));
            moved.append(&mut self.affinity.put(id, now));
        }
        ids.append(&mut moved);
        let mut changes = BTreeMap::new();
        for id in ids {
            let new = self.wanted.get(&id).map(|wanted| self.won(&wanted.port));
            self.note_affinity(&id);
            let old = match &new {
                Some(new) => self.state.service_ports.insert(id.clone(), Arc::clone(new)),
                None => self.state.service_ports.remove(&id),
            };
            if old != new {
                changes.insert(id, Change { old, new });
            }
        }
        changes
    }

    /// Records if a ServicePort gets or loses its requested affinity.
    fn note_affinity(&mut self, id: &ServicePortId) {
        let state = self.state.service_ports.get(id);
        let was_refused = state.is_some_and(|port| port.affinity == Affinity::OverLimit);
        if was_refused != self.affinity.refuses(id)
            && let Some(wanted) = self.wanted.get(id)
        {
            self.changed_findings.insert(wanted.service.clone());
        }
    }

    /// The ServicePort with the frontends that it won, and the affinity that there is room for.
    fn won(&self, wanted: &Arc<ServicePort<F>>) -> Arc<ServicePort<F>> {
        let is_won = |key: &FrontendKey<F>| self.claims.is_won_by(*key, &wanted.id);
        let is_refused = self.affinity.refuses(&wanted.id);
        if !is_refused && wanted.frontends.keys().all(is_won) {
            return Arc::clone(wanted);
        }
        let mut port = ServicePort::clone(wanted);
        if is_refused {
            port.affinity = Affinity::OverLimit;
        }
        let kept = port.frontends.iter().filter(|(key, _)| is_won(key));
        port.frontends = kept.map(|(key, f)| (*key, f.clone())).collect();
        Arc::new(port)
    }
}

/// What one [`FamilyCompiler::apply`] must recompute.
#[derive(Debug, Default)]
struct Touched<F: Family> {
    ids: BTreeSet<ServicePortId>,
    keys: BTreeSet<FrontendKey<F>>,
}
