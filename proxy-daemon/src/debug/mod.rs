//! What does the daemon hold, and where would it send a packet?
//!
//! The same answers for the running daemon (`/debug` of [`crate::health`]) and for a directory of
//! manifests (`proxy-daemon dump`, `proxy-daemon explain`). Invariants: pure; equal states give equal
//! answers, whatever carries them (XM-15).

use std::borrow::Cow;
use std::net::IpAddr;

use serde::de::{Error as _, IntoDeserializer as _, value};
use serde::{Deserialize, Deserializer, Serialize};

use crate::forwarding::{ForwardingState, Oracle, Packet, Transport, explain, table};
use crate::net::{Family, L4Proto, Port, V4, V6, parse_address};

/// The sync thread's state.
#[derive(Clone, Debug, Default)]
pub struct DebugState {
    /// The IPv4 forwarding state; `None` if nothing was compiled yet.
    pub v4: Option<ForwardingState<V4>>,
    /// The IPv6 forwarding state.
    pub v6: Option<ForwardingState<V6>>,
    /// What could not be used of the objects in force, a line each.
    pub diagnostics: Vec<String>,
}

impl DebugState {
    /// What the query asks for.
    pub fn dump(&self, query: DumpQuery) -> String {
        match query.output {
            Output::Text => self.table(),
            Output::Json => format!("{}\n", self.json()),
        }
    }

    fn json(&self) -> String {
        let state = StateAsJson {
            families: Families {
                v4: self.v4.as_ref(),
                v6: self.v6.as_ref(),
            },
            diagnostics: &self.diagnostics,
        };
        // Every key of a mapping is text, so that this cannot fail.
        serde_json::to_string(&state).unwrap_or_default()
    }

    fn table(&self) -> String {
        let v4 = self.v4.as_ref().map(table::<V4>);
        let v6 = self.v6.as_ref().map(table::<V6>);
        [v4, v6].into_iter().flatten().collect()
    }

    /// The diagnostics, a line each.
    pub fn diagnostics(&self) -> String {
        let lines = self.diagnostics.iter().map(|line| format!("{line}\n"));
        lines.collect::<Vec<_>>().concat()
    }

    /// Where a packet would go, and why.
    ///
    /// # Errors
    /// [`ExplainError::Families`] if its addresses are of different families;
    /// [`ExplainError::NotYet`] if nothing was compiled yet.
    pub fn explain(&self, query: &ExplainQuery) -> Result<String, ExplainError> {
        match query.from {
            IpAddr::V4(_) => Self::explain_in(self.v4.as_ref(), query),
            IpAddr::V6(_) => Self::explain_in(self.v6.as_ref(), query),
        }
    }

    fn explain_in<F: Family>(
        state: Option<&ForwardingState<F>>,
        query: &ExplainQuery,
    ) -> Result<String, ExplainError> {
        let (Some(source), Some(destination)) = (F::addr(query.from), F::addr(query.to)) else {
            return Err(ExplainError::Families);
        };
        let state = state.ok_or(ExplainError::NotYet)?;
        let packet = Packet {
            source,
            ingress: query.interface.as_deref(),
            destination,
            transport: query.port.map_or(Transport::Other, |port| {
                Transport::Ports(query.protocol, port)
            }),
        };
        Ok(explain(&Oracle::new(state), &packet))
    }
}

/// [`DebugState`] as JSON.
#[derive(Serialize)]
struct StateAsJson<'a> {
    families: Families<'a>,
    diagnostics: &'a [String],
}

#[derive(Serialize)]
struct Families<'a> {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<&'a ForwardingState<V4>>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<&'a ForwardingState<V6>>,
}

/// What is to be printed of the forwarding state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct DumpQuery {
    /// How: text or json
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Prints the rules of the mode instead, as nft, or ipset and iptables-restore, take them
    #[arg(long, conflicts_with = "output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rules: bool,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The first packet of a flow that somebody asks about: flags of the command line, and a query of the
/// node-local server such as `from=10.0.0.1&to=10.96.0.10&proto=tcp&port=80`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// The packet's source address
    #[arg(long, value_parser = parse_address)]
    #[serde(deserialize_with = "address")]
    pub from: IpAddr,
    /// Its destination address
    #[arg(long, value_parser = parse_address)]
    #[serde(deserialize_with = "address")]
    pub to: IpAddr,
    /// Its protocol: tcp, udp or sctp
    #[arg(long = "proto", default_value_t = tcp(), value_parser = protocol)]
    #[serde(rename = "proto", default = "tcp")]
    pub protocol: L4Proto,
    /// Its destination port; without one, it is a packet such as a ping
    #[arg(long)]
    pub port: Option<Port>,
    /// The interface it enters through; without one, this node sends it
    #[arg(long)]
    pub interface: Option<String>,
}

const fn tcp() -> L4Proto {
    L4Proto::Tcp
}

fn protocol(name: &str) -> Result<L4Proto, value::Error> {
    L4Proto::deserialize(name.into_deserializer())
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    parse_address(&Cow::<str>::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Why a packet is not explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Its addresses are of different families.
    #[error("source and destination are of different IP families")]
    Families,
    /// Nothing was compiled yet.
    #[error("not synced yet")]
    NotYet,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::forwarding::{
        Affinity, Backend, BackendSet, Detector, Exposure, Frontend, FrontendAddress, FrontendKey,
        Globals, MarkBit, Netfilter, Route, Routes, ServicePort, ServicePortId,
    };

    fn parse(query: &str) -> Result<ExplainQuery, serde_urlencoded::de::Error> {
        serde_urlencoded::from_str(query)
    }

    #[test]
    fn a_query_survives_its_encoding() {
        for query in [
            "from=10.0.0.1&to=10.96.0.10&proto=udp&port=53",
            "from=fd00::1&to=fd00::2&proto=tcp&interface=eth0",
            "from=10.0.0.1&to=10.96.0.10&interface=a%26b%3Dc+%C3%A4",
        ] {
            let explain = parse(query).unwrap();
            let query = serde_urlencoded::to_string(&explain).unwrap();
            assert_eq!(parse(&query).unwrap(), explain);
        }
    }

    #[test]
    fn a_bad_question_says_what_is_wrong() {
        for query in [
            "",
            "from=10.0.0.1",
            "from=x&to=10.0.0.1",
            "from=10.0.0.1&to=10.0.0.2&port=0",
            "from=10.0.0.1&to=10.0.0.2&proto=icmp",
            "from=10.0.0.1&to=10.0.0.2&nonsense=1",
        ] {
            assert!(parse(query).is_err(), "{query}");
        }
        let mixed = parse("from=10.0.0.1&to=fd00::1&port=1").unwrap();
        let empty = DebugState::default();
        assert_eq!(empty.explain(&mixed), Err(ExplainError::Families));
        let plain = parse("from=10.0.0.1&to=10.0.0.2&port=1").unwrap();
        assert_eq!(empty.explain(&plain), Err(ExplainError::NotYet));
    }

    fn state() -> ForwardingState<V4> {
        let port = |number| Port::new(number).unwrap();
        let route = Route::Forward {
            to: BackendSet::Cluster,
            masquerade: true,
        };
        let frontend = |address, exposure, routes| {
            let key = FrontendKey {
                address,
                protocol: L4Proto::Tcp,
                port: port(80),
            };
            (key, Frontend { exposure, routes })
        };
        let service_port = ServicePort::<V4> {
            id: ServicePortId::new(&"ns/a", "", L4Proto::Tcp),
            protocol: L4Proto::Tcp,
            cluster_ip: "10.96.0.10".parse().unwrap(),
            affinity: Affinity::Seconds(9),
            cluster: [Backend {
                address: "10.244.0.1".parse().unwrap(),
                port: port(8080),
            }]
            .into(),
            local: [].into(),
            live: [].into(),
            frontends: [
                frontend(
                    FrontendAddress::Vip("10.96.0.10".parse().unwrap()),
                    Exposure::LoadBalancer {
                        source_ranges: Some(Arc::new(
                            ["192.0.2.0/24".parse().unwrap()].into_iter().collect(),
                        )),
                    },
                    Routes::all(route),
                ),
                frontend(
                    FrontendAddress::Node,
                    Exposure::NodePort,
                    Routes::all(Route::Drop),
                ),
            ]
            .into_iter()
            .collect(),
        };
        ForwardingState {
            globals: Globals {
                detector: Some(Detector::Network("10.244.0.0/16".parse().unwrap())),
                local_addresses: ["192.0.2.1".parse().unwrap()].into(),
                node_port_addresses: ["192.0.2.1".parse().unwrap()].into(),
                service_cidrs: ["10.96.0.0/16".parse().unwrap()].into_iter().collect(),
                netfilter: Netfilter {
                    masquerade_bit: MarkBit::DEFAULT,
                    drop_invalid: true,
                },
            },
            spared: [].into(),
            service_ports: [(service_port.id.clone(), Arc::new(service_port))].into(),
        }
    }

    #[test]
    fn states_are_printed_as_json() {
        let state = DebugState {
            v4: Some(state()),
            diagnostics: vec!["a fault".to_owned()],
            ..DebugState::default()
        };
        let forward = json!({"to": "cluster", "masquerade": true});
        assert_eq!(
            serde_json::from_str::<Value>(&state.json()).unwrap(),
            json!({
                "families": {"IPv4": {
                    "globals": {
                        "detector": {"network": "10.244.0.0/16"},
                        "masqueradeBit": 14,
                        "localAddresses": ["192.0.2.1"],
                        "nodePortAddresses": ["192.0.2.1"],
                        "serviceCIDRs": ["10.96.0.0/16"],
                        "spared": [],
                        "dropInvalid": true,
                    },
                    "servicePorts": [{
                        "id": "ns/a/tcp",
                        "protocol": "tcp",
                        "clusterIP": "10.96.0.10",
                        "affinitySeconds": 9,
                        "affinityOverLimit": false,
                        "cluster": ["10.244.0.1:8080"],
                        "local": [],
                        "live": [],
                        "frontends": [
                            {
                                "exposure": "LoadBalancer",
                                "address": "10.96.0.10",
                                "protocol": "tcp",
                                "port": 80,
                                "routes": {"pod": forward, "host": forward, "extn": forward},
                                "sourceRanges": ["192.0.2.0/24"],
                            },
                            {
                                "exposure": "NodePort",
                                "address": null,
                                "protocol": "tcp",
                                "port": 80,
                                "routes": {"pod": "drop", "host": "drop", "extn": "drop"},
                                "sourceRanges": null,
                            },
                        ],
                    }],
                }},
                "diagnostics": ["a fault"],
            })
        );
    }
}
