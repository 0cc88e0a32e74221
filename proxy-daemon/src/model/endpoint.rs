//! What do we read from an EndpointSlice?

use std::net::IpAddr;
use std::sync::Arc;

use super::{ServiceName, SliceName};
use crate::net::{IpFamily, L4Proto, Port};

/// An EndpointSlice that belongs to a Service and has addresses of one IP family.
///
/// Spec: EPS-3, EPS-4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its name.
    pub name: SliceName,
    /// The Service of its label `kubernetes.io/service-name`.
    pub service: ServiceName,
    /// Its `addressType`.
    pub family: IpFamily,
    /// Its ports, without those that have no name or no number. Spec: EPS-6.
    pub ports: Box<[SlicePort]>,
    /// Its endpoints, without those that have no address of the family. Spec: EPS-8.
    pub endpoints: Box<[Endpoint]>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service port it is for; empty for an unnamed one.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: L4Proto,
    /// The port on the endpoints. Spec: EPS-7.
    pub port: Port,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`. Spec: EPS-8.
    pub address: IpAddr,
    /// `conditions.ready`, nil counting as true. Spec: EPS-11.
    pub ready: bool,
    /// `conditions.serving`, nil counting as true. Spec: EPS-11.
    pub serving: bool,
    /// `conditions.terminating`, nil counting as false. Spec: EPS-11.
    pub terminating: bool,
    /// The node it runs on; `None` is never local. Spec: EPS-12.
    pub node: Option<Arc<str>>,
    /// Topology hints; `None` if it has none at all.
    pub hints: Option<Box<Hints>>,
}

/// Which nodes or zones an endpoint is meant for.
///
/// Spec: TOPO-2, TOPO-3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones[].name`.
    pub zones: Box<[Arc<str>]>,
    /// `hints.forNodes[].name`.
    pub nodes: Box<[Arc<str>]>,
}
