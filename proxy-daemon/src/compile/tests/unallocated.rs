//! Which addresses of ServiceCIDRs are dropped?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use super::world::{P1, environment, ip, port, service};
use crate::compile::{Compiler, Environment, compile};
use crate::config::DetectLocal;
use crate::forwarding::InterfaceName;
use crate::model::{
    EndpointSlice, ServiceInput, ServiceName, Services, SliceName, SlicePort, Subject,
};
use crate::net::{IpFamily, L4Proto};

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A node in 192.0.2.0/24 of a cluster whose pods are in 10.244.0.0/16.
fn with_cidrs(cidrs: &[&str]) -> Environment {
    Environment {
        service_cidrs: nets(cidrs),
        ..environment()
    }
}

fn is_dropped(environment: &Environment, address: &str) -> bool {
    let (v4, v6, _) = compile(&BTreeMap::new(), environment);
    let address = ip(address);
    let in_v4 = v4.globals.service_cidrs.iter().any(|net| {
        let net: IpNet = (*net).into();
        net.contains(&address)
    });
    let in_v6 = v6.globals.service_cidrs.iter().any(|net| {
        let net: IpNet = (*net).into();
        net.contains(&address)
    });
    let spared = v4.spared.iter().any(|a| *a == address) || v6.spared.iter().any(|a| *a == address);
    (in_v4 || in_v6) && !spared
}

#[test]
fn rej_6_the_more_specific_network_decides() {
    for (cidrs, address, dropped) in [
        (&["10.96.0.0/16"][..], "10.96.9.9", true),
        (&["10.0.0.0/8"], "10.96.9.9", true),
        (&["10.0.0.0/8"], "10.244.9.9", false),
        (&["10.244.0.0/16"], "10.244.9.9", false),
        (&["10.244.96.0/20"], "10.244.96.9", true),
        (&["10.0.0.0/8", "10.244.96.0/20"], "10.244.96.9", true),
        (&["10.0.0.0/8", "10.244.96.0/20"], "10.244.9.9", false),
        (&["0.0.0.0/0"], "192.0.2.77", false),
        (&["0.0.0.0/0"], "192.0.3.77", true),
        (&["0.0.0.0/0"], "10.244.9.9", false),
        (&["224.0.0.0/4"], "224.0.0.18", false),
        (&["128.0.0.0/1"], "224.0.0.18", false),
        (&["128.0.0.0/1"], "223.0.0.18", true),
        (&["ff00::/8"], "ff02::1", false),
        // This node's own, outside its networks.
        (&["0.0.0.0/0"], "198.51.100.2", false),
        (&["0.0.0.0/0"], "198.51.100.3", true),
        (&["::/0"], "fd00:244::9", false),
        (&["::/0"], "fd00:245::9", true),
        (&["::/0"], "2001:db8:2::2", false),
    ] {
        let environment = with_cidrs(cidrs);
        assert_eq!(
            is_dropped(&environment, address),
            dropped,
            "{cidrs:?} {address}"
        );
    }
}

#[test]
fn rej_6_the_cluster_cidr_counts_whatever_detects_pods() {
    let mut environment = with_cidrs(&["10.0.0.0/8"]);
    for detect_local in [
        DetectLocal::NodeCidr,
        DetectLocal::BridgeInterface(InterfaceName::new("pods").unwrap()),
        DetectLocal::InterfaceNamePrefix(InterfaceName::new("po").unwrap()),
    ] {
        environment.policy.detect_local = detect_local;
        assert!(!is_dropped(&environment, "10.244.9.9"), "{environment:?}");
        assert!(is_dropped(&environment, "10.245.9.9"), "{environment:?}");
    }
}

#[test]
fn rej_6_an_overlap_is_named_once_and_as_long_as_it_lasts() {
    let narrow = with_cidrs(&["10.96.0.0/16"]);
    let overlapping = with_cidrs(&["10.0.0.0/8", "10.96.0.0/16"]);
    let wider = with_cidrs(&["10.0.0.0/8", "10.96.0.0/16", "192.0.2.128/25"]);
    let mut compiler = Compiler::new(&narrow);
    let mut told = |environment: &Environment| {
        let environment = Arc::new(environment.clone());
        let mut told = compiler.apply(&Services::All(BTreeMap::new()), &environment);
        let told = told.take_diagnostics().remove(&Subject::ServiceCidrs);
        told.map(|told| told.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(told(&narrow), Some(Vec::new()));
    let found = told(&overlapping).expect("networks changed");
    let names = |text: &str, of: &[&str]| of.iter().all(|name| text.contains(name));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        names(&found[0], &["10.0.0.0/8", "10.244.0.0/16"]),
        "{found:?}"
    );
    assert_eq!(told(&overlapping), None);
    let more = told(&wider).expect("networks changed");
    assert_eq!(more.len(), 2, "{more:?}");
    assert!(more.contains(&found[0]), "{more:?}");
    assert!(
        more.iter().any(|text| text.contains("192.0.2.0/24")),
        "{more:?}"
    );
    assert_eq!(told(&narrow), Some(Vec::new()));
}

fn input(addresses: &[&str]) -> ServiceInput {
    let service = service("web");
    let endpoint = |address: &&str| crate::model::Endpoint {
        address: ip(address),
        ready: false,
        serving: false,
        terminating: false,
        node: None,
        hints: None,
    };
    let slice = EndpointSlice {
        name: SliceName::new("default", "web-1"),
        service: service.name.clone(),
        family: IpFamily::V4,
        ports: [SlicePort {
            name: "http".into(),
            protocol: L4Proto::Tcp,
            port: port(8080),
        }]
        .into(),
        endpoints: addresses.iter().map(endpoint).collect(),
    };
    ServiceInput {
        service: Some(Arc::new(service)),
        slices: vec![Arc::new(slice)],
    }
}

/// Ready or not, as long as it is in a slice of a Service.
#[test]
fn rej_6_endpoints_are_spared_as_long_as_they_exist() {
    let name = ServiceName::new("default", "web");
    let mut environment = with_cidrs(&["10.0.0.0/8"]);
    environment.policy.cluster_cidrs = Box::default();
    let mut environment = Arc::new(environment);
    let mut compiler = Compiler::new(&environment);
    let spared = |compiler: &Compiler| -> Vec<String> {
        compiler
            .v4()
            .spared
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let change = |compiler: &mut Compiler, environment: &Arc<Environment>, addresses: &[&str]| {
        let changed = BTreeMap::from([(name.clone(), input(addresses))]);
        let services = if compiler.needs_all(environment) {
            Services::All(changed)
        } else {
            Services::Changed(changed)
        };
        compiler.apply(&services, environment);
    };
    change(&mut compiler, &environment, &[P1, "203.0.113.7"]);
    assert_eq!(spared(&compiler), [P1]);
    change(&mut compiler, &environment, &["10.1.1.1"]);
    assert_eq!(spared(&compiler), ["10.1.1.1"]);
    // Another ServiceCIDR looks at endpoints that are known already.
    Arc::make_mut(&mut environment).service_cidrs = nets(&["203.0.113.0/24"]);
    let all = BTreeMap::from([(name.clone(), input(&["10.1.1.1"]))]);
    assert!(compiler.needs_all(&environment));
    compiler.apply(&Services::All(all), &environment);
    assert!(spared(&compiler).is_empty());
    change(&mut compiler, &environment, &["203.0.113.7"]);
    assert_eq!(spared(&compiler), ["203.0.113.7"]);
    let gone = BTreeMap::from([(name.clone(), ServiceInput::default())]);
    compiler.apply(&Services::Changed(gone), &environment);
    assert!(spared(&compiler).is_empty());
}

fn network() -> impl Strategy<Value = Ipv4Net> {
    (any::<u8>(), any::<u8>(), 0..=20_u8).prop_map(|(a, b, prefix)| {
        let address = std::net::Ipv4Addr::new(10 + a % 2, b % 8 * 32, 0, 0);
        Ipv4Net::new(address, prefix).unwrap().trunc()
    })
}

proptest! {
    /// Longest prefix match over all networks says what is dropped.
    #[test]
    fn rej_6_dropped_is_what_the_longest_prefix_says(
        cidrs in prop::collection::btree_set(network(), 0..4),
        others in prop::collection::btree_set(network(), 0..4),
        probes in prop::collection::vec((10..13_u8, any::<u8>(), any::<u8>()), 20),
    ) {
        let mut environment = with_cidrs(&[]);
        environment.policy.cluster_cidrs = Box::default();
        environment.local_addresses.clear();
        environment.service_cidrs = cidrs.iter().copied().map(IpNet::from).collect();
        environment.local_networks = others.iter().copied().map(IpNet::from).collect();
        for (a, b, c) in probes {
            let address = std::net::Ipv4Addr::new(a, b, c, 1);
            let longest = |nets: &BTreeSet<Ipv4Net>| {
                let holding = nets.iter().filter(|net| net.contains(&address));
                holding.map(|net| i16::from(net.prefix_len())).max().unwrap_or(-1)
            };
            let dropped = longest(&cidrs) > longest(&others);
            prop_assert_eq!(is_dropped(&environment, &address.to_string()), dropped);
        }
    }
}
