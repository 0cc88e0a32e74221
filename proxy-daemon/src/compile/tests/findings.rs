//! Does each thing that compiling finds go with its cause, and is it told again when the cause returns?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::world::{P1, cluster_ip_only, environment, input, ip, ready};
use crate::compile::{Compiler, Environment, Finding};
use crate::diagnostics::Diagnostics;
use crate::forwarding::AffinityLimit;
use crate::model::{AffinityTimeout, Service, ServiceInput, ServiceName, Services};

/// The kinds of findings. Who adds one is led by the compiler from here to a cause of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FindingKind {
    FrontendLost,
    MoreFrontendsLost,
    AffinityOverLimit,
    CidrHolds,
    CidrLiesIn,
}

const fn kind(finding: &Finding) -> FindingKind {
    match finding {
        Finding::FrontendLost { .. } => FindingKind::FrontendLost,
        Finding::MoreFrontendsLost { .. } => FindingKind::MoreFrontendsLost,
        Finding::AffinityOverLimit { .. } => FindingKind::AffinityOverLimit,
        Finding::CidrHolds { .. } => FindingKind::CidrHolds,
        Finding::CidrLiesIn { .. } => FindingKind::CidrLiesIn,
    }
}

const fn next(kind: FindingKind) -> Option<FindingKind> {
    match kind {
        FindingKind::FrontendLost => Some(FindingKind::MoreFrontendsLost),
        FindingKind::MoreFrontendsLost => Some(FindingKind::AffinityOverLimit),
        FindingKind::AffinityOverLimit => Some(FindingKind::CidrHolds),
        FindingKind::CidrHolds => Some(FindingKind::CidrLiesIn),
        FindingKind::CidrLiesIn => None,
    }
}

type World = (BTreeMap<ServiceName, ServiceInput>, Environment);

fn world(services: Vec<Service>, cidr: &str) -> World {
    let inputs = services.into_iter().map(|service| {
        let endpoint = ready(P1, "node-n");
        (service.name.clone(), input(service, &[endpoint]))
    });
    let mut environment = environment();
    environment.service_cidrs = [cidr.parse().unwrap()].into();
    environment.policy.affinity_limit = Some(AffinityLimit {
        total: 200,
        per_backend: &[128],
    });
    (inputs.collect(), environment)
}

/// A Service on so many addresses that others may have too, and with affinity.
fn greedy(name: &str, number: u8, n_shared: u8) -> Service {
    let shared = (0..n_shared).map(|n| ip(&format!("203.0.113.{n}")));
    Service {
        external_ips: shared.collect(),
        affinity: Some(AffinityTimeout::DEFAULT).filter(|_| n_shared == 0),
        ..cluster_ip_only(name, [10, 96, 0, number])
    }
}

/// A world with a cause of such a finding.
fn cause(kind: FindingKind) -> World {
    let usual = "10.96.0.0/16";
    let two = |n| world(vec![greedy("a", 1, n), greedy("b", 2, n)], usual);
    match kind {
        FindingKind::FrontendLost => two(1),
        FindingKind::MoreFrontendsLost => two(30),
        FindingKind::AffinityOverLimit => two(0),
        FindingKind::CidrHolds => world(vec![], "10.0.0.0/8"),
        FindingKind::CidrLiesIn => world(vec![], "10.244.9.0/24"),
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What was logged while this ran.
fn log_of(work: impl FnOnce()) -> String {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || sink.clone());
    tracing::subscriber::with_default(subscriber.finish(), work);
    let log = log.0.lock().unwrap();
    String::from_utf8(log.clone()).unwrap()
}

/// Where only one of two Services stays, or none, or with another ServiceCIDR.
#[test]
fn every_finding_goes_with_its_cause_and_is_told_again_if_that_returns() {
    for of in std::iter::successors(Some(FindingKind::FrontendLost), |kind| next(*kind)) {
        let bad = cause(of);
        let mut one_left = bad.clone();
        one_left.0.pop_last();
        one_left.1.service_cidrs = ["10.96.0.0/16".parse().unwrap()].into();
        let nothing = world(vec![], "10.96.0.0/16");
        for good in [one_left, nothing] {
            let diagnostics = Diagnostics::default();
            let mut compiler = Compiler::new(&bad.1);
            let mut apply = |(services, environment): &World| {
                let mut news = compiler.apply(
                    &Services::All(services.clone()),
                    &Arc::new(environment.clone()),
                );
                let found = news.findings.values().flatten();
                let is_of_kind = found.clone().any(|finding| kind(finding) == of);
                let of_kind = found.clone().filter(|finding| kind(finding) == of);
                let texts: Vec<String> = of_kind.map(|f| f.diagnostic().message).collect();
                let log = log_of(|| diagnostics.set_compiled(news.take_diagnostics()));
                (is_of_kind, texts, log, diagnostics.current().len())
            };
            for round in 0..2 {
                let (is_found, texts, log, n) = apply(&bad);
                assert!(is_found, "{of:?} in round {round}");
                let is_logged = texts.iter().all(|text| log.contains(text));
                assert!(is_logged && n >= texts.len(), "{texts:?}: {log}");
                let (_, texts, log, n) = apply(&bad);
                assert!(log.is_empty() && n > 0, "{texts:?}: {log}");
                let (is_found, _, log, n) = apply(&good);
                assert_eq!((is_found, log.as_str(), n), (false, "", 0), "{of:?}");
            }
        }
    }
}
