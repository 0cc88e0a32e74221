//! What does the daemon hold, and where would it send a packet?
//!
//! The same answers for the running daemon (`/debug` of [`crate::health`]) and for a directory of
//! manifests (`proxy-daemon dump`, `proxy-daemon explain`). Invariants: pure; equal states give equal
//! answers, whatever carries them (XM-15).

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::forwarding::{ForwardingState, Oracle, Packet, Transport, explain, table};
use crate::net::{Family, L4Proto, Port, V4, V6, parse_address};

mod json;

pub use json::json;

/// What the sync thread shows of itself.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    /// The IPv4 forwarding state; `None` if nothing was compiled yet.
    pub v4: Option<ForwardingState<V4>>,
    /// The IPv6 forwarding state.
    pub v6: Option<ForwardingState<V6>>,
    /// Every address of this node.
    pub local_addresses: BTreeSet<IpAddr>,
    /// What could not be used of the objects in force, a line each.
    pub diagnostics: Vec<String>,
}

impl Inside {
    /// Both forwarding states as text.
    pub fn table(&self) -> String {
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
    pub fn explain(&self, probe: &Probe) -> Result<String, ExplainError> {
        match (probe.from, probe.to) {
            (IpAddr::V4(_), IpAddr::V4(_)) => self.explain_in(self.v4.as_ref(), probe),
            (IpAddr::V6(_), IpAddr::V6(_)) => self.explain_in(self.v6.as_ref(), probe),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                Err(ExplainError::Families)
            }
        }
    }

    fn explain_in<F: Family>(
        &self,
        state: Option<&ForwardingState<F>>,
        probe: &Probe,
    ) -> Result<String, ExplainError> {
        let state = state.ok_or(ExplainError::NotYet)?;
        let (Some(source), Some(destination)) = (F::addr(probe.from), F::addr(probe.to)) else {
            return Err(ExplainError::Families);
        };
        let packet = Packet {
            source,
            source_is_local: self.local_addresses.contains(&probe.from),
            ingress: probe.interface.as_deref(),
            destination,
            transport: match probe.port {
                Some(port) => Transport::Ports(probe.protocol, port),
                None => Transport::Other,
            },
        };
        Ok(explain(&Oracle::new(state), &packet))
    }
}

/// The first packet of a flow that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its source address.
    pub from: IpAddr,
    /// Its destination address.
    pub to: IpAddr,
    /// Its destination port; `None` for what has none, such as an ICMP echo.
    pub port: Option<Port>,
    /// Its protocol, if it has a port.
    pub protocol: L4Proto,
    /// The interface it enters through; `None` if this node sends it.
    pub interface: Option<String>,
}

/// Why a packet is not explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExplainError {
    /// Its addresses are of different families.
    Families,
    /// Nothing was compiled yet.
    NotYet,
    /// The question is not understood.
    Question(String),
}

impl fmt::Display for ExplainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Families => f.write_str("source and destination are of different IP families"),
            Self::NotYet => f.write_str("nothing was read yet, so that nothing is known"),
            Self::Question(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ExplainError {}

impl Probe {
    /// The probe that a query such as `from=10.0.0.1&to=10.96.0.10&port=80&proto=tcp` describes.
    ///
    /// # Errors
    /// [`ExplainError::Question`] naming the part that is missing or not understood.
    pub fn parse(query: &str) -> Result<Self, ExplainError> {
        let question = |what: String| Err(ExplainError::Question(what));
        let (mut from, mut to, mut port) = (None, None, None);
        let (mut protocol, mut interface) = (L4Proto::Tcp, None);
        let address = |text: &str| {
            parse_address(text).map_err(|error| ExplainError::Question(error.to_string()))
        };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            // An IPv6 address may come with its colons escaped.
            let value = value.replace("%3A", ":").replace("%3a", ":");
            match name {
                "from" => from = Some(address(&value)?),
                "to" => to = Some(address(&value)?),
                "port" => match value.parse().ok().and_then(Port::new) {
                    Some(number) => port = Some(number),
                    None => return question(format!("port {value:?} is not from 1 to 65535")),
                },
                "proto" => match L4Proto::ALL.iter().find(|proto| proto.name() == value) {
                    Some(found) => protocol = *found,
                    None => return question(format!("proto {value:?} is not tcp, udp or sctp")),
                },
                "interface" => interface = Some(value),
                other => {
                    return question(format!(
                        "{other:?} is none of from, to, port, proto, interface"
                    ));
                }
            }
        }
        match (from, to) {
            (Some(from), Some(to)) => Ok(Self {
                from,
                to,
                port,
                protocol,
                interface,
            }),
            _ => question(
                "from and to are needed, such as from=10.0.0.1&to=10.96.0.10&port=80".to_owned(),
            ),
        }
    }

    /// The query that [`Probe::parse`] reads.
    pub fn query(&self) -> String {
        let port = self.port.map(|port| format!("&port={port}"));
        let interface = self.interface.as_ref();
        let interface = interface.map(|interface| format!("&interface={interface}"));
        format!(
            "from={}&to={}&proto={}{}{}",
            self.from,
            self.to,
            self.protocol,
            port.unwrap_or_default(),
            interface.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_survives_its_query() {
        for query in [
            "from=10.0.0.1&to=10.96.0.10&proto=udp&port=53",
            "from=fd00::1&to=fd00::2&proto=tcp&interface=eth0",
        ] {
            let probe = Probe::parse(query).unwrap();
            assert_eq!(Probe::parse(&probe.query()).unwrap(), probe);
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
            assert!(Probe::parse(query).is_err(), "{query}");
        }
        let mixed = Probe::parse("from=10.0.0.1&to=fd00::1&port=1").unwrap();
        let empty = Inside::default();
        assert_eq!(empty.explain(&mixed), Err(ExplainError::Families));
        let plain = Probe::parse("from=10.0.0.1&to=10.0.0.2&port=1").unwrap();
        assert_eq!(empty.explain(&plain), Err(ExplainError::NotYet));
    }
}
