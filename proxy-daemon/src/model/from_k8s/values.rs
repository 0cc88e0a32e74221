//! Which addresses, networks, ports and protocols do the kinds have in common?
//!
//! Invariants: a value that cannot be used is a fault and `None`. Spec: SVC-10.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::faults::{At, Quoted};
use super::field::{Field, Str};
use super::text::is_label;
use super::wire::{Port as WirePort, Texts};
use crate::net::{
    AddressError, L4Proto, Port, link_local, never_unicast, parse_address, parse_network,
};

impl At<'_, Str<'_>> {
    /// An address.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.parsed(parse_address(self))
    }

    /// An address that a host can have.
    pub(super) fn unicast(&self) -> Option<IpAddr> {
        let address = self.address()?;
        self.unless(address, never_unicast(address))
    }

    /// An address that means the same host on every link.
    pub(super) fn global(&self) -> Option<IpAddr> {
        let address = self.unicast()?;
        self.unless(address, link_local(address))
    }

    /// A network.
    pub(super) fn network(&self) -> Option<IpNet> {
        self.parsed(parse_network(self.trim()))
    }

    fn parsed<T>(&self, parsed: Result<T, AddressError>) -> Option<T> {
        if let Err(error) = &parsed {
            let text = Quoted(self);
            self.fault(format_args!("{text} is not {}; ignored", error.expected));
        }
        parsed.ok()
    }

    /// The address, unless it is of a sort that has no place here.
    pub(super) fn unless(&self, address: IpAddr, sort: Option<&str>) -> Option<IpAddr> {
        if let Some(sort) = sort {
            self.fault(format_args!("{address} is {sort}; ignored"));
            return None;
        }
        Some(address)
    }
}

impl At<'_, WirePort<'_>> {
    /// The name, if a port may have it; the empty name is that of the unnamed port.
    pub(super) fn checked_name<'n>(&self, name: &'n str) -> Option<&'n str> {
        let is_good = name.is_empty() || is_label(name);
        if !is_good {
            let message = format_args!("{} is no port name; port ignored", Quoted(name));
            self.fault_in("name", message);
        }
        Some(name).filter(|_| is_good)
    }

    /// The protocol, TCP if it is missing.
    pub(super) fn l4_protocol(&self) -> Option<L4Proto> {
        const PROTOCOLS: [(&str, L4Proto); 3] = [
            ("TCP", L4Proto::Tcp),
            ("UDP", L4Proto::Udp),
            ("SCTP", L4Proto::Sctp),
        ];
        let fault = "none of TCP, UDP and SCTP; port ignored";
        if let Field::Wrong { .. } = self.protocol {
            self.value("protocol", &self.protocol)?;
        }
        self.word("protocol", &self.protocol, "TCP", &PROTOCOLS, fault)
    }
}

impl<'a, T> At<'a, T> {
    /// The elements of a list that are not blank.
    pub(super) fn texts(
        &'a self,
        name: &'a str,
        field: &'a Texts<'a>,
    ) -> impl Iterator<Item = At<'a, Str<'a>>> {
        let texts = self.list(name, field);
        texts.filter(|text| !text.trim().is_empty())
    }

    /// A port number; 0 and nothing mean none.
    pub(super) fn optional_port(&self, name: &str, field: &Field<i64>) -> Option<Port> {
        if *field == Field::Value(0) {
            return None;
        }
        self.number(name, field, "ignored")
    }

    /// A port number; `fault` says what comes of a bad one.
    pub(super) fn number(&self, name: &str, field: &Field<i64>, fault: &str) -> Option<Port> {
        let number = *self.value(name, field)?;
        let port = u16::try_from(number).ok().and_then(Port::new);
        if port.is_none() {
            let message = format_args!("{number} is not within 1 to 65535; {fault}");
            self.fault_in(name, message);
        }
        port
    }
}

/// Each value once, in their order.
pub(super) fn distinct<T: Copy + Ord>(values: impl Iterator<Item = T>) -> Box<[T]> {
    let mut known = BTreeSet::new();
    values.filter(|value| known.insert(*value)).collect()
}
